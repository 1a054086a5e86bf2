//! Copies of requests that a route sends to a second service. Their answers are thrown away and
//! their failures touch nobody.
//!
//! A copy is a call: the shadow's own policy bounds and protects it, and it says where it has been. What
//! it must never be is a burden to the request that it copies, so it waits for nothing that it need not
//! wait for, and there are few at a time.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::Response;
use http::header::HeaderValue;
use http_body_util::BodyExt;
use outrigger_core::compile::{Filters, Target};
use outrigger_core::config::Protocol;
use outrigger_core::name::{Authority, DestinationName};
use outrigger_core::outcome::{Outcome, classify_http};
use outrigger_core::policy::CallPolicy;
use outrigger_core::policy::visits;
use tokio::time::{timeout, timeout_at};

use super::body::RequestBody;
use super::deadline::tell;
use super::exchange::{Exchange, Lease};
use super::head::Head;
use super::headers::VIA;
use super::hop::AttemptTarget;
use super::server::Connection;
use crate::endpoint::{Choice, coarse_ms};
use crate::guard::{Attempt, acquire_in_flight};
use crate::metrics::add;
use crate::pool::Wire;
use crate::pool::h1::Reuse;
use crate::proxy::Proxy;
use crate::store::{Live, Resolution};
use crate::streams::WireBody;
use crate::worker::Worker;

/// Copies on their way to one service at one time; more are not sent. A shadow need not see all.
const MAX_AT_A_TIME: usize = 64;
/// Of a copy whose shadow has no deadline of its own: nobody waits for its answer, so a hung shadow costs
/// at most so long.
const DEADLINE: Duration = Duration::from_secs(15);

/// How many copies are on their way, by the service that gets them.
#[derive(Default)]
pub struct Mirrors(Mutex<HashMap<DestinationName, usize>>);

/// A copy's place among them, until dropped.
struct MirrorPermit {
    proxy: Arc<Proxy>,
    shadow: DestinationName,
}

impl MirrorPermit {
    fn take(proxy: &Arc<Proxy>, shadow: &DestinationName) -> Option<Self> {
        let mut all = proxy.mirrors.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = all.entry(shadow.clone()).or_default();
        if *count >= MAX_AT_A_TIME {
            return None;
        }
        *count += 1;
        Some(Self { proxy: Arc::clone(proxy), shadow: shadow.clone() })
    }
}

impl Drop for MirrorPermit {
    fn drop(&mut self) {
        let mut all = self.proxy.mirrors.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = all.get_mut(&self.shadow) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.shadow);
            }
        }
    }
}

/// A copy, and what it needs to be sent.
struct Copy {
    worker: Rc<Worker>,
    live: Arc<Live>,
    backend: usize,
    callers: Protocol,
    grpc: bool,
    head: Head,
    body: RequestBody,
    /// Where it has been, the shadow included.
    via: HeaderValue,
    _place: MirrorPermit,
}

/// Sends the copies that `filters` asks for. `visits`: how often one service may see the same request.
pub fn send(
    connection: &Rc<Connection>,
    exchange: &Exchange,
    live: &Arc<Live>,
    (filters, visits): (&Filters, u8),
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
        let gauges = &worker.proxy.metrics.gauges;
        let shadow = &live.compiled.backends[backend];
        let via = exchange.via.as_ref();
        let via = visits::visit(via, &shadow.label, exchange.visit, visits);
        let (Ok(via), Some(place)) = (via, MirrorPermit::take(&worker.proxy, &shadow.name)) else {
            add(&gauges.mirrors_dropped, 1);
            continue;
        };
        add(&gauges.mirrors, 1);
        let copy = Copy {
            worker: Rc::clone(worker),
            live: Arc::clone(live),
            backend,
            callers: connection.protocol,
            grpc: exchange.is_grpc(),
            head: head.clone(),
            body: body.mirror(),
            via,
            _place: place,
        };
        tokio::task::spawn_local(async move {
            let worker = Rc::clone(&copy.worker);
            if copy.deliver().await.is_none() {
                add(&worker.proxy.metrics.gauges.mirrors_dropped, 1);
            }
        });
    }
}

impl Copy {
    /// Sends it, once. None: nobody got the whole of it, or nobody answered in time.
    async fn deliver(self) -> Option<()> {
        let call = own_policy(&self.worker, &self.live.compiled.backends[self.backend].name);
        let began = Instant::now();
        let limit = call.deadline.unwrap_or(DEADLINE);
        let limit = call.timeouts.attempt.map_or(limit, |attempt| attempt.min(limit));
        let end = began.checked_add(limit)?;
        timeout_at(end.into(), self.call(&call, began, limit)).await.ok()?
    }

    async fn call(mut self, call: &CallPolicy, began: Instant, limit: Duration) -> Option<()> {
        let worker = &self.worker;
        let endpoints = &self.live.backends[self.backend];
        let _permit = acquire_in_flight(endpoints, &mut 0).await.ok()?;
        let choice = Choice::by_load(worker.random(), coarse_ms(began), &[]);
        let mut probes = endpoints.guard.admit().ok()?;
        let chosen = endpoints.choose(&choice);
        let endpoint = chosen.inspect_err(|_| endpoints.guard.unused(&probes)).ok()?;
        endpoints.guard.chosen(&endpoint, &mut probes);
        // Given up before there is an answer, it has failed.
        let mut attempt =
            Judged(Attempt::begin(endpoints, &endpoint, probes, began), Rc::clone(worker));
        let declared = self.live.compiled.backends[self.backend].protocol;
        let protocol = if declared.is_http() { declared } else { self.callers };
        let target = AttemptTarget::to(endpoint, protocol, self.callers, false);
        tell(&mut self.head.headers, limit, self.grpc);
        self.head.deadline_by_policy = true;
        if target.wire.is_hop() {
            self.head.headers.insert(VIA, self.via);
        }
        let request = self.head.into_request(&target, self.body).ok()?;
        let first_byte = call.timeouts.first_byte.unwrap_or(limit);
        let (key, connect) = (target.key(), call.timeouts.connect.unwrap_or(limit));
        let (response, lease): (Response<WireBody>, Lease) = if target.wire == Wire::Http1 {
            let leasing = worker.pools.lease_h1(key, Reuse::Safe, false, began);
            let mut lease = timeout(connect, leasing).await.ok()?.ok()?;
            (timeout(first_byte, lease.send(request, None)).await.ok()?.ok()?, Lease::H1(lease))
        } else {
            let leasing = worker.pools.lease_h2(key, began);
            let lease = timeout(connect, leasing).await.ok()?.ok()?;
            (
                timeout(first_byte, lease.send(request, false, None)).await.ok()?.ok()?,
                Lease::H2(lease),
            )
        };
        attempt.0.answered();
        attempt.judge(classify_http(response.status()));
        let mut answer = response.into_body();
        let idle = call.timeouts.idle.unwrap_or(limit);
        while let Some(frame) = timeout(idle, answer.frame()).await.ok()? {
            frame.ok()?;
        }
        lease.release(Instant::now());
        Some(())
    }
}

/// What becomes of the attempt is told its endpoint: that it failed, unless something else is said.
struct Judged(Attempt, Rc<Worker>);

impl Judged {
    fn judge(&mut self, outcome: Outcome) {
        self.0.judge(outcome, || self.1.random());
    }
}

impl Drop for Judged {
    fn drop(&mut self) {
        self.judge(Outcome::Failure);
    }
}

/// How the shadow wants to be called, as far as that is known: nothing waits for it.
fn own_policy(worker: &Worker, shadow: &DestinationName) -> Arc<CallPolicy> {
    let text = format!("{}.{}:{}", shadow.service, shadow.namespace, shadow.port);
    let dialed =
        Authority::parse(&text, None).ok().and_then(|name| worker.dial_authority(&name).ok());
    match dialed.and_then(|dialed| dialed.decided()) {
        Some(Resolution::Found(live)) => Arc::clone(&live.compiled.call),
        _ => Arc::default(),
    }
}
