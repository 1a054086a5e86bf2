//! One attempt: an endpoint, a connection to it, the request written in its protocol, the head of the
//! answer.

use std::future::poll_fn;
use std::pin::pin;
use std::time::{Duration, Instant};

use http::{Request, Response};
use outrigger_core::config::{Balancer, Protocol};
use outrigger_core::name::Host;
use outrigger_core::reason::Reason;
use outrigger_core::time::Later;

use crate::base::refusal::Refusal;
use crate::call::failed::{FailedAttempt, Waited, failure, timed_out};
use crate::call::fault;
use crate::call::upstream::{Call, Upstream, take_endpoint};
use crate::observe::metrics::add;
use crate::observe::record::{ChosenBy, micros};
use crate::request::context;
use crate::request::exchange::{Exchange, Lease};
use crate::request::head::Head;
use crate::tls::Expected;
use crate::upstream::endpoint::guard::ProbeIds;
use crate::upstream::endpoint::{Choice, EndpointState};
use crate::upstream::pool::h1::Reuse;
use crate::upstream::store::Dialed;
use crate::upstream::target::{AttemptTarget, wire_of};
use crate::wire::Wire;
use crate::wire::body::RequestBody;
use crate::wire::deadline::{AT_DEADLINE, Clock, poll_within};
use crate::wire::headers::explained;
use crate::wire::streams::WireBody;
use crate::wire::trace;

/// Chooses where the next attempt goes.
pub fn choose(
    call: &Call<'_>,
    exchange: &mut Exchange,
    upgrade: bool,
    tried: &[u64],
) -> Result<AttemptTarget, Refusal> {
    let Call { upstream, .. } = *call;
    let worker = call.worker();
    let (live, dialed, backend, hash, session) = match upstream {
        Upstream::Service { live, dialed, backend, hash, session } => {
            (*live, *dialed, *backend, *hash, *session)
        }
        Upstream::App { address, protocol } | Upstream::Outside { address, protocol } => {
            exchange.chosen_by = Some(ChosenBy::Address);
            let wire = wire_of(*protocol, exchange.connection.protocol, upgrade);
            (exchange.endpoint, exchange.wire) = (Some(*address), Some(wire));
            let (address, expected) = (*address, Expected::NONE);
            let (probes, protocol) = (ProbeIds::default(), *protocol);
            let unmatched = matches!(upstream, Upstream::Outside { .. });
            return Ok(AttemptTarget {
                probes,
                address,
                wire,
                expected,
                endpoint: None,
                protocol,
                unmatched,
            });
        }
    };
    let config = &live.compiled.backends[backend];
    let endpoints = &live.backends[backend];
    exchange.service = endpoints.label.get();
    let choice = Choice {
        random: worker.random(),
        now_ms: exchange.began_ms(),
        balancer: &config.balancer,
        hash,
        session,
        tried,
    };
    let (endpoint, probes) = take_endpoint(live, dialed, backend, &choice)?;
    exchange.peer = endpoint.peer.get();
    let callers = exchange.protocol;
    let protocol = if config.protocol.is_http() { config.protocol } else { callers };
    if endpoint.endpoint.mesh.is_none() && !endpoint.is_outside {
        add(&worker.proxy.metrics.gauges.unmeshed, 1);
    }
    exchange.endpoint = Some(endpoint.endpoint.address);
    exchange.chosen_by = Some(chosen_by(dialed, &choice, &endpoint));
    let target =
        AttemptTarget { probes, ..AttemptTarget::to(endpoint, protocol, callers, upgrade) };
    exchange.wire = Some(target.wire);
    Ok(target)
}

fn chosen_by(dialed: &Dialed, choice: &Choice<'_>, endpoint: &EndpointState) -> ChosenBy {
    match choice.balancer {
        _ if dialed.authority.host == Host::Ip(endpoint.endpoint.address.ip()) => ChosenBy::Address,
        _ if choice.session == Some(endpoint.stable) => ChosenBy::Session,
        Balancer::RingHash(_) if choice.hash.is_some() => ChosenBy::Hash,
        Balancer::RoundRobin => ChosenBy::RoundRobin,
        Balancer::RingHash(_) | Balancer::PowerOfTwo => ChosenBy::Load,
    }
}

/// Sends the request once, taking its head unless it is kept for another attempt. On success the exchange
/// holds the connection.
pub async fn send(
    call: &Call<'_>,
    exchange: &mut Exchange,
    target: &mut AttemptTarget,
    (head, keep): (&mut Option<Head>, bool),
    body: RequestBody,
    reuse: Reuse,
) -> Result<Response<WireBody>, FailedAttempt> {
    let Call { upstream, policy, .. } = *call;
    let began = if exchange.attempts == 1 { exchange.began } else { Instant::now() };
    let limits = &policy.timeouts;
    let end = limits.attempt.and_then(|limit| began.checked_add(limit));
    if let (Upstream::Service { live, .. }, Some(head)) = (upstream, head.as_mut()) {
        let streams = (policy, head.upgrade.is_some());
        context::send_along(exchange, live, target, head, streams, end, began);
    }
    if exchange.attempts > 1 {
        exchange.attempt_began = micros(began.saturating_duration_since(exchange.began));
    }
    exchange.attempt = target.begin(upstream, began);
    let mut held = Duration::ZERO;
    if fault::is_possible(call) {
        let until = earlier(end, began, limits.first_byte);
        let injecting = Box::pin(fault::inject(call, exchange, head.as_ref(), until));
        held = injecting.await?.ok_or_else(|| timed_out(target, waited(began, end)))?;
    }
    let mut clock = Clock::at(earlier(end, began.later(held), limits.connect));
    let first_byte_limit = limits.first_byte.map(|limit| limit.saturating_sub(held));
    let key = target.key();
    let keeps_case = exchange.connection.protocol == Protocol::Http1;
    let sent = if target.wire == Wire::Http1 {
        let mut lease = {
            let mut leasing = pin!(call.worker().pools.lease_h1(key, reuse, keeps_case, began));
            let leased = poll_fn(|cx| {
                let polled = poll_within(leasing.as_mut(), &mut clock, cx);
                exchange.watch(polled, |phases| &mut phases.connect)
            });
            leased.await.ok_or_else(|| timed_out(target, Waited::Connection))??
        };
        exchange.phases.tls = exchange.phases.tls.saturating_add(lease.tls);
        // Boxed: it is far larger than all else, and the future of every request would carry its size.
        let mut sending = Box::pin(
            lease.send(write(call, head, keep, target, body)?, Some(exchange.tracked.progress())),
        );
        exchange.lease = Some(Lease::H1(lease));
        first_byte(&mut clock, end, first_byte_limit);
        poll_fn(|cx| poll_within(sending.as_mut(), &mut clock, cx)).await
    } else {
        let lease = {
            let mut leasing = pin!(call.worker().pools.lease_h2(key, began));
            let leased = poll_fn(|cx| {
                let polled = poll_within(leasing.as_mut(), &mut clock, cx);
                exchange.watch(polled, |phases| &mut phases.connect)
            });
            leased.await.ok_or_else(|| timed_out(target, Waited::Connection))??
        };
        exchange.phases.tls = exchange.phases.tls.saturating_add(lease.tls);
        let switches = head.as_ref().is_some_and(|head| head.upgrade.is_some());
        let mut request = write(call, head, keep, target, body)?;
        if exchange.has_own_id && lease.is_first() {
            trace::introduce_id(request.headers_mut());
        }
        let mut sending = pin!(lease.send(request, switches, Some(exchange.tracked.progress())));
        exchange.lease = Some(Lease::H2(lease));
        first_byte(&mut clock, end, first_byte_limit);
        poll_fn(|cx| poll_within(sending.as_mut(), &mut clock, cx)).await
    };
    let response = match sent {
        Some(Ok(response)) => response,
        Some(Err(error)) => return Err(failure(target, error)),
        None => return Err(timed_out(target, waited(began, end))),
    };
    let now = Instant::now();
    if ended_there(exchange, target, (end, now), &response) {
        return Err(timed_out(target, Waited::Attempt));
    }
    exchange.note_first_byte(now);
    target.learn(exchange.is_grpc(), upstream, exchange.attempt.as_mut(), (began, now), &response);
    Ok(response)
}

/// Whether the called proxy answers that the time of this attempt is over: it was told of its end, and
/// its clock was the first.
fn ended_there(
    exchange: &Exchange,
    target: &AttemptTarget,
    (end, now): (Option<Instant>, Instant),
    response: &Response<WireBody>,
) -> bool {
    end.is_some_and(|end| {
        target.wire.is_hop()
            && end <= now.later(AT_DEADLINE)
            && exchange.deadline.is_none_or(|deadline| end < deadline.at)
            && explained(response.headers()) == Some(Reason::DeadlineExceeded)
    })
}

/// The earlier of `end` and `limit` from `now` on.
pub(crate) fn earlier(
    end: Option<Instant>,
    now: Instant,
    limit: Option<Duration>,
) -> Option<Instant> {
    let limit = limit.and_then(|limit| now.checked_add(limit));
    end.into_iter().chain(limit).min()
}

fn first_byte(clock: &mut Clock, end: Option<Instant>, limit: Option<Duration>) {
    let at = match limit {
        Some(_) => earlier(end, Instant::now(), limit),
        None => end,
    };
    clock.set(at);
}

fn waited(began: Instant, end: Option<Instant>) -> Waited {
    match end {
        Some(end) if Instant::now().max(began) >= end => Waited::Attempt,
        Some(_) | None => Waited::FirstByte,
    }
}

fn write(
    call: &Call<'_>,
    head: &mut Option<Head>,
    keep: bool,
    target: &AttemptTarget,
    body: RequestBody,
) -> Result<Request<RequestBody>, Refusal> {
    let hosts = &call.worker().hosts;
    // Each made where it is used up: a head is large to be handed on.
    match head {
        Some(head) if keep => head.lend().into_request(target, body, hosts),
        slot => match slot.take() {
            Some(head) => head.into_request(target, body, hosts),
            None => Err(Refusal::new(Reason::InternalError, "the request is missing")),
        },
    }
}
