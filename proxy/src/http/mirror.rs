//! Copies of requests that a route sends to a second service. Their answers are thrown away and
//! their failures touch nobody.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use http_body_util::BodyExt;
use outrigger_core::compile::{Filters, Target};
use outrigger_core::config::{Balancer, Protocol};

use super::attempt::Hop;
use super::body::RequestBody;
use super::exchange::Lease;
use super::head::Head;
use super::server::Connection;
use crate::endpoint::{Choice, coarse_ms};
use crate::metrics::add;
use crate::pool::Wire;
use crate::pool::h1::Reuse;
use crate::store::Live;
use crate::worker::Worker;

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

/// Sends a copy to a backend, once. None: nobody got the whole of it.
async fn deliver(
    worker: &Worker,
    live: &Live,
    backend: usize,
    callers: Protocol,
    head: Head,
    body: RequestBody,
) -> Option<()> {
    let choice = Choice {
        random: worker.random(),
        now_ms: coarse_ms(Instant::now()),
        balancer: &Balancer::PowerOfTwo,
        hash: None,
        tried: &[],
    };
    let endpoint = live.backends[backend].choose(&choice).ok()?;
    let declared = live.compiled.backends[backend].protocol;
    let protocol = if declared.is_http() { declared } else { callers };
    let hop = Hop::to(endpoint, protocol, callers, false);
    let key = hop.key();
    let now = Instant::now();
    let request = head.into_request(&hop, body).ok()?;
    let (response, lease) = if hop.wire == Wire::Http1 {
        let mut lease = worker.pools.lease_h1(key, Reuse::Safe, false, now).await.ok()?;
        (lease.send(request, None).await.ok()?, Lease::H1(lease))
    } else {
        let lease = worker.pools.lease_h2(key, now).await.ok()?;
        (lease.send(request, false, None).await.ok()?, Lease::H2(lease))
    };
    let mut answer = response.into_body();
    while let Some(frame) = answer.frame().await {
        frame.ok()?;
    }
    lease.release(Instant::now());
    Some(())
}
