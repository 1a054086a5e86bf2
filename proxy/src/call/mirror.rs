//! Copies of requests that a route sends to a second service. Their answers are thrown away and
//! their failures touch nobody.
//!
//! A copy is a call: the shadow's own policy bounds and protects it, and it says where it has been. What
//! it must never be is a burden to the request that it copies, so it waits for nothing that it need not
//! wait for, and there are few at a time.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::Response;
use http::header::HeaderValue;
use http_body_util::BodyExt;
use outrigger_core::compile::{Filters, Target};
use outrigger_core::config::Protocol;
use outrigger_core::name::{Authority, DestinationName};
use outrigger_core::outcome::{Outcome, classify_http};
use outrigger_core::policy::{CallPolicy, visits};
use tokio::time::{timeout, timeout_at};

use crate::base::clock::coarse_ms;
use crate::listener::connection::Connection;
use crate::observe::metrics::add;
use crate::policy::mirrors::MirrorPermit;
use crate::proxy::worker::Worker;
use crate::request::exchange::{Exchange, Lease};
use crate::request::head::Head;
use crate::upstream::endpoint::Choice;
use crate::upstream::endpoint::guard::{Attempt, acquire_in_flight};
use crate::upstream::pool::h1::Reuse;
use crate::upstream::store::{Live, Resolution};
use crate::upstream::target::AttemptTarget;
use crate::wire::Wire;
use crate::wire::body::RequestBody;
use crate::wire::deadline::tell;
use crate::wire::headers::VIA;
use crate::wire::streams::WireBody;
use crate::wire::trace;

/// Of a copy whose shadow has no deadline of its own: nobody waits for its answer, so a hung shadow costs
/// at most so long.
const DEADLINE: Duration = Duration::from_secs(15);

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
        let (Ok(via), Some(place)) = (via, MirrorPermit::take(&worker.proxy.mirrors, &shadow.name))
        else {
            add(&gauges.mirrors_dropped, 1);
            continue;
        };
        add(&gauges.mirrors, 1);
        let mut head = head.clone();
        if std::mem::take(&mut head.trace_by_id) {
            // It may go to an endpoint without a proxy.
            trace::say(&mut head.headers, &exchange.trace);
        }
        let copy = Copy {
            worker: Rc::clone(worker),
            live: Arc::clone(live),
            backend,
            callers: connection.protocol,
            grpc: exchange.is_grpc(),
            head,
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
        let request = self.head.into_request(&target, self.body, &worker.hosts).ok()?;
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
