//! Where one attempt goes: the address, how it is written there, and what its endpoint learns of it.

use std::time::Instant;

use http::header::HeaderMap;
use http::{Response, StatusCode};
use outrigger_core::config::Protocol;
use outrigger_core::outcome::Outcome;
use outrigger_core::policy::retry::{Failure, RetryConfig};
use outrigger_core::reason::Reason;

use crate::base::clock::coarse_ms;
use crate::call::upstream::{Upstream, take_endpoint};
use crate::call::verdict::{self, Verdict};
use crate::observe::record::micros;
use crate::proxy::worker::Worker;
use crate::request::exchange::Exchange;
use crate::upstream::endpoint::Choice;
use crate::upstream::endpoint::guard::Attempt;
use crate::upstream::target::{AttemptTarget, HedgeOf};
use crate::wire::headers::{PROXY_STATUS, REASON, UNPROCESSED, has_internal};
use crate::wire::streams::WireBody;

impl AttemptTarget {
    /// Learns from the head of an answer how quick and how fit the endpoint is.
    pub(crate) fn learn(
        &self,
        grpc: bool,
        upstream: &Upstream<'_>,
        attempt: Option<&mut Attempt>,
        (began, now): (Instant, Instant),
        response: &Response<WireBody>,
    ) {
        let (Some(endpoint), Some(attempt)) = (&self.endpoint, attempt) else { return };
        attempt.answered();
        let (latency, now_ms) = (micros(now.saturating_duration_since(began)), coarse_ms(now));
        match Verdict::of(response, grpc, self.wire.is_hop()) {
            Verdict::Healthy => endpoint.load.observe_answer(now_ms, latency),
            Verdict::Failed => {
                if let Some(endpoints) = upstream.endpoints() {
                    endpoints.failed(endpoint, began, now);
                }
            }
            verdict => {
                if let (Verdict::Full(time), Some(endpoints)) = (verdict, upstream.endpoints()) {
                    endpoints.set_full(endpoint, now_ms, time);
                }
                attempt.judge(Outcome::Refused, || 0);
            }
        }
    }

    /// Another endpoint of the same service that is reached in the same way, for a second attempt beside a
    /// first one. None: there is none that may be asked now.
    pub(crate) fn beside(
        first: &HedgeOf,
        worker: &Worker,
        upstream: &Upstream<'_>,
        callers: Protocol,
    ) -> Option<Self> {
        let Upstream::Service { live, dialed, backend, .. } = *upstream else { return None };
        let tried = [first.endpoint];
        let choice = Choice::by_load(worker.random(), coarse_ms(Instant::now()), &tried);
        let (endpoint, probes) = take_endpoint(live, dialed, backend, &choice).ok()?;
        let other = endpoint.key != first.endpoint;
        let target = Self { probes, ..Self::to(endpoint, first.protocol, callers, false) };
        if !other || target.wire != first.wire {
            target.unused(upstream);
            return None;
        }
        Some(target)
    }

    /// The attempt is not made after all.
    pub(crate) fn unused(&self, upstream: &Upstream<'_>) {
        if let Some(endpoints) = upstream.endpoints() {
            endpoints.guard.unused(&self.probes);
        }
    }

    /// The attempt as its endpoint and its service's breaker count it.
    pub(crate) fn begin(&mut self, upstream: &Upstream<'_>, now: Instant) -> Option<Attempt> {
        let (endpoints, endpoint) = (upstream.endpoints()?, self.endpoint.as_ref()?);
        Some(Attempt::begin(endpoints, endpoint, std::mem::take(&mut self.probes), now))
    }
}

/// Whether an answer may be the far proxy's own: its status says that it is no success, or it is one to a gRPC request.
fn may_refuse(exchange: &Exchange, target: &AttemptTarget, response: &Response<WireBody>) -> bool {
    target.wire.is_hop()
        && (exchange.sends_grpc || !response.status().is_success())
        && has_internal(response.headers())
}

/// Why the far proxy has refused the request, if it has.
pub fn refused(
    exchange: &Exchange,
    target: &AttemptTarget,
    response: &Response<WireBody>,
) -> Option<Reason> {
    if !may_refuse(exchange, target, response) {
        return None;
    }
    let word = response.headers().get(REASON)?;
    Reason::from_word(word.to_str().ok()?)
}

/// The detail that the far proxy gives with its reason, of its `Proxy-Status`.
pub fn said(headers: &HeaderMap) -> Option<Box<str>> {
    let text = headers.get(PROXY_STATUS)?.to_str().ok()?;
    let (_, detail) = text.split_once("details=\"")?.1.split_once(": ")?;
    Some(detail.trim_end_matches('"').replace('\\', "").into())
}

/// Why the far proxy says that nobody processed the request, if it says so.
pub fn unprocessed(
    exchange: &Exchange,
    target: &AttemptTarget,
    response: &Response<WireBody>,
) -> Option<Reason> {
    if !may_refuse(exchange, target, response) {
        return None;
    }
    let word = response.headers().get(UNPROCESSED)?;
    Reason::from_word(word.to_str().ok()?)
}

/// What an answer says about its attempt; none: it is what the caller shall get.
pub(crate) fn answered(
    exchange: &Exchange,
    target: &AttemptTarget,
    policy: &RetryConfig,
    response: &Response<WireBody>,
) -> Option<Failure> {
    if unprocessed(exchange, target, response).is_some() {
        return Some(Failure::Unprocessed);
    }
    let status = response.status();
    let failure = if exchange.is_grpc() {
        // Without messages the status stands in the head; with some, nothing can be taken back.
        Failure::Grpc(verdict::grpc_code(response.headers()).filter(|code| *code != 0)?)
    } else if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
        Failure::Status(status)
    } else {
        return None;
    };
    let named = verdict::named(response.headers()).filter(|_| target.wire.is_hop());
    // A policy that names the status has it so, too.
    Some(named.filter(|named| policy.on.includes(*named)).unwrap_or(failure))
}
