//! Fault injections on an attempt that is about to be sent, and on a connection that is about to be opened.
//!
//! It stands where the network would: whatever watches over attempts (timeouts, retries, breakers, ejection)
//! takes what happens here for the called service's.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use outrigger_core::path::canonical;
use outrigger_core::policy::fault::{Fault, Request};
use outrigger_core::reason::Reason;

use crate::base::refusal::{Injected, Refusal};
use crate::call::failed::FailedAttempt;
use crate::call::upstream::{Call, Upstream};
use crate::proxy::worker::Worker;
use crate::request::exchange::Exchange;
use crate::request::head::Head;

/// Whether some fault injection is about the call: nearly always not.
pub(crate) fn is_possible(call: &Call<'_>) -> bool {
    !call.policy.faults.is_empty() || !of_service(call.upstream).is_empty()
}

/// Does to an attempt what the first fault injection wants that hits it. Returns how long it was held up; none: it
/// was still held up at `until`.
pub(crate) async fn inject(
    call: &Call<'_>,
    exchange: &mut Exchange,
    head: Option<&Head>,
    until: Option<Instant>,
) -> Result<Option<Duration>, FailedAttempt> {
    let fault = head.and_then(|head| first_hit(call, exchange, head));
    let worker = call.worker();
    let Some(fault) = fault else { return Ok(Some(Duration::ZERO)) };
    exchange.injected = Some(Arc::clone(&fault.name));
    worker.proxy.faults.hit(fault);
    if let Some(answer) = fault.kind.answer(exchange.is_grpc()) {
        let injected = Injected { name: Arc::clone(&fault.name), answer };
        return Err(FailedAttempt::injected(detail(fault), injected));
    }
    let delay = fault.kind.delay(worker.random()).unwrap_or_default();
    let left = until.map(|until| until.saturating_duration_since(Instant::now()));
    let held = left.map_or(delay, |left| left.min(delay));
    tokio::time::sleep(held).await;
    Ok((held == delay).then_some(delay))
}

fn of_service<'a>(upstream: &Upstream<'a>) -> &'a [Fault] {
    match upstream {
        Upstream::Service { live, backend, .. } => &live.compiled.backends[*backend].policy.faults,
        Upstream::App { .. } | Upstream::Outside { .. } => &[],
    }
}

/// Of those for the route and those for the service that hit, the one that goes first.
fn first_hit<'a>(call: &Call<'a>, exchange: &Exchange, head: &Head) -> Option<&'a Fault> {
    let worker = call.worker();
    let now = SystemTime::now();
    let path = head.path.path();
    let request = Request {
        method: &head.method,
        authority: head.authority().unwrap_or_default(),
        path: &canonical(path).unwrap_or(Cow::Borrowed(path)),
        headers: &head.headers,
        grpc: exchange.is_grpc(),
    };
    let hit = |faults: &'a [Fault]| {
        let stopped = |fault: &Fault| worker.proxy.faults.is_stopped(fault);
        let hits = |fault: &Fault| fault.hits(&request, now, worker.random()) && !stopped(fault);
        faults.iter().find(|fault| hits(fault))
    };
    let both = hit(&call.policy.faults).into_iter().chain(hit(of_service(call.upstream)));
    both.min_by_key(|fault| fault.order())
}

/// The refusal of a connection that is not looked into, if a fault injection wants one.
pub fn refuse_connection(worker: &Worker, faults: &[Fault]) -> Option<Refusal> {
    let now = SystemTime::now();
    let fault = faults.iter().find(|fault| {
        fault.hits_connection(now, worker.random()) && !worker.proxy.faults.is_stopped(fault)
    });
    let fault = fault?;
    let answer = fault.kind.answer(false)?;
    worker.proxy.faults.hit(fault);
    let injected = Injected { name: Arc::clone(&fault.name), answer };
    let refusal = Refusal::new(Reason::FaultInjected, detail(fault));
    Some(Refusal { injected: Some(Box::new(injected)), ..refusal })
}

fn detail(fault: &Fault) -> String {
    format!("injected by FaultInjection {}: {}", fault.name, fault.kind.as_str())
}
