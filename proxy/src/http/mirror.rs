//! Copies of requests that a route sends to a second service. Their answers are thrown away and
//! their failures touch nobody.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use http_body_util::BodyExt;
use outrigger_core::compile::{Filters, Target};
use outrigger_core::config::Protocol;

use super::attempt::copy;
use super::body::RequestBody;
use super::head::Head;
use super::server::Connection;
use crate::metrics::add;
use crate::store::Live;

/// Sends the copies that `filters` asks for.
pub fn send(
    connection: &Rc<Connection>,
    live: &Arc<Live>,
    filters: &Filters,
    head: &Head,
    body: &RequestBody,
) {
    let worker = &connection.worker;
    for mirror in &filters.mirrors {
        let share = (u128::from(mirror.denominator) * u128::from(worker.random())) >> 64;
        let Target::Backend(backend) = mirror.target else { continue };
        if share >= u128::from(mirror.numerator) || head.upgrade.is_some() {
            continue;
        }
        let (live, head, body) = (Arc::clone(live), head.clone(), body.mirror());
        let (worker, protocol) = (Rc::clone(worker), connection.protocol);
        tokio::task::spawn_local(async move {
            if deliver(&worker, &live, backend, protocol, head, body).await.is_none() {
                add(&worker.proxy.metrics.gauges.mirrors_dropped, 1);
            }
        });
    }
}

/// None: nobody got the whole copy.
async fn deliver(
    worker: &Rc<crate::worker::Worker>,
    live: &Live,
    backend: usize,
    callers: Protocol,
    head: Head,
    body: RequestBody,
) -> Option<()> {
    let (response, lease) = copy(worker, live, backend, callers, head, body).await?;
    let mut answer = response.into_body();
    while let Some(frame) = answer.frame().await {
        frame.ok()?;
    }
    lease.release(Instant::now());
    Some(())
}
