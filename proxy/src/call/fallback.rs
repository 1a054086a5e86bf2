//! What is given instead of a failure, where a policy says so: an answer that was kept, another service's
//! answer, the same service's answer to another path, or a fixed one.
//!
//! Which failure is replaced, and whether the request may go elsewhere, is decided by
//! [`outrigger_core::policy::fallback`]. If nothing can be given, the caller gets the failure as it was.

use std::future::poll_fn;
use std::pin::pin;

use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, Response, StatusCode};
use outrigger_core::config::BackendTarget;
use outrigger_core::policy::CallPolicy;
use outrigger_core::policy::fallback::{Class, Give, Static, may_send};
use outrigger_core::policy::retry::Replay;
use outrigger_core::reason::{Cause, Side};

use crate::base::refusal::{Refusal, is_unprocessed};
use crate::call::attempt;
use crate::call::cache::Caching;
use crate::call::target::answered;
use crate::call::upstream::{Call, Upstream};
use crate::observe::metrics::Label;
use crate::observe::record::{AttemptEnd, ChosenBy};
use crate::request::exchange::{Exchange, Lease};
use crate::request::head::{Head, head_already_sent, is_idempotent};
use crate::upstream::endpoint::guard::{Attempt, acquire_in_flight};
use crate::upstream::pool::h1::Reuse;
use crate::wire::Wire;
use crate::wire::body::RequestBody;
use crate::wire::deadline::{Clock, poll_within};
use crate::wire::headers::{GRPC_STATUS, explained};
use crate::wire::streams::WireBody;

/// Tells the caller that the answer is less than what it asked for, and in which way.
pub const DEGRADED: HeaderName = HeaderName::from_static("x-outrigger-degraded");

/// What a caller gets.
pub enum FallbackResult {
    Upstream(Response<WireBody>),
    Own(Box<Response<Bytes>>),
}

/// What is kept of a request in case that it fails.
pub struct ReplayHead {
    /// None: no fallback sends it anywhere.
    head: Option<Head>,
    method: Method,
}

/// To be called before the attempts take the head. None: a failure stays one.
pub fn replay_head(call: &CallPolicy, head: Option<&Head>) -> Option<Box<ReplayHead>> {
    if call.fallbacks.is_empty() {
        return None;
    }
    // An upgrade asks for what no other answer can stand for.
    let head = head.filter(|head| head.upgrade.is_none())?;
    let kept = call.sends_elsewhere().then(|| head.clone());
    Some(Box::new(ReplayHead { head: kept, method: head.method.clone() }))
}

/// A request that may fall back to something, and what bounds it.
pub struct FallbackContext<'a> {
    pub call: &'a Call<'a>,
    pub clock: &'a mut Clock,
    pub caching: Option<&'a Caching>,
}

impl FallbackContext<'_> {
    /// The answer as it is, or what is given instead of a failure.
    pub async fn replace(
        mut self,
        exchange: &mut Exchange,
        replay_head: Box<ReplayHead>,
        answered: Result<Response<WireBody>, Refusal>,
    ) -> Result<FallbackResult, Refusal> {
        let given = match class_of(exchange, &answered) {
            None => answered.map(FallbackResult::Upstream),
            Some(class) => self.give(exchange, *replay_head, answered, class).await,
        };
        self.call.body.commit();
        given
    }

    async fn give(
        &mut self,
        exchange: &mut Exchange,
        replay_head: ReplayHead,
        failed: Result<Response<WireBody>, Refusal>,
        class: Class,
    ) -> Result<FallbackResult, Refusal> {
        let idempotent = replay_head.head.as_ref().is_some_and(is_idempotent);
        let processed = match &failed {
            // Noted only if a proxy says that nobody processed it.
            Ok(_) => exchange.cause.is_none_or(|cause| !is_unprocessed(cause.reason)),
            Err(refusal) => refusal.processed,
        };
        let failed = Box::new(ParkedFailure::put(exchange, self.call.body, failed));
        let mut notes = String::new();
        for fallback in
            self.call.policy.fallbacks.iter().filter(|fallback| fallback.when.has(class))
        {
            let replay = Replay { idempotent, kept: self.call.body.is_whole() };
            let sendable = may_send(processed, replay, self.call.policy.retries.non_idempotent);
            let head = replay_head.head.as_ref().filter(|_| sendable);
            let given = match (&fallback.give, head) {
                (Give::Cached, _) => self.caching.and_then(Caching::stale).map(FallbackResult::Own),
                (Give::Static(answer), _) if !exchange.is_grpc() => {
                    Some(FallbackResult::Own(Box::new(fixed(answer, &replay_head.method))))
                }
                (Give::Backend(target), Some(head)) => self
                    .backend(exchange, target, head, &mut notes)
                    .await
                    .map(FallbackResult::Upstream),
                (Give::Route(path), Some(head)) => {
                    self.route(exchange, path, head, &mut notes).await.map(FallbackResult::Upstream)
                }
                (Give::Static(_) | Give::Backend(_) | Give::Route(_), _) => None,
            };
            if let Some(given) = given {
                exchange.degraded = Some(fallback.give.kind());
                failed.explain(exchange);
                if let Some(endpoints) = self.call.upstream.endpoints() {
                    endpoints.guard.degraded(fallback.give.kind());
                }
                return Ok(given);
            }
        }
        failed.take(exchange, &notes).map(FallbackResult::Upstream)
    }

    async fn backend(
        &mut self,
        exchange: &mut Exchange,
        target: &BackendTarget,
        head: &Head,
        notes: &mut String,
    ) -> Option<Response<WireBody>> {
        let Upstream::Service { live, dialed, .. } = self.call.upstream else { return None };
        let name = match target {
            BackendTarget::Service(name) => name,
            BackendTarget::Invalid(why) => {
                notes.push_str("; ");
                notes.push_str(why);
                return None;
            }
        };
        let backend = live.compiled.backend(name)?;
        let upstream = Upstream::service(self.call.connection, live, dialed, backend, head);
        self.send(exchange, &upstream, head.clone(), notes).await
    }

    async fn route(
        &mut self,
        exchange: &mut Exchange,
        path: &PathAndQuery,
        head: &Head,
        notes: &mut String,
    ) -> Option<Response<WireBody>> {
        if !matches!(head.method, Method::GET | Method::HEAD) {
            return None;
        }
        let mut head = head.clone();
        head.path = match path.query() {
            Some(_) => path.clone(),
            None => head.path_as(path.path()).ok()?,
        };
        self.send(exchange, self.call.upstream, head, notes).await
    }

    /// Sends the request once, as far as the deadline allows. None: the answer is no better.
    async fn send(
        &mut self,
        exchange: &mut Exchange,
        upstream: &Upstream<'_>,
        head: Head,
        notes: &mut String,
    ) -> Option<Response<WireBody>> {
        exchange.time_left("").ok()?;
        let call = Call { upstream, ..*self.call };
        let sent = {
            let mut sending = pin!(send(&call, exchange, head));
            poll_fn(|cx| poll_within(sending.as_mut(), self.clock, cx)).await
        };
        let why = match sent {
            Some(Ok(response)) => return Some(response),
            Some(Err(why)) => why,
            None => {
                exchange.end_attempt(true);
                "the deadline passed".to_owned()
            }
        };
        notes.push_str("; instead: ");
        notes.push_str(&why);
        None
    }
}

/// One attempt, which counts at the breaker and the limits of the service that it goes to.
async fn send(
    call: &Call<'_>,
    exchange: &mut Exchange,
    head: Head,
) -> Result<Response<WireBody>, String> {
    let refused = |refusal: Refusal| refusal.detail.into_owned();
    exchange.in_flight = None;
    if let Some(endpoints) = call.upstream.endpoints() {
        exchange.in_flight =
            acquire_in_flight(endpoints, &mut exchange.phases.queue).await.map_err(refused)?;
        endpoints.guard.request();
    }
    exchange.attempts = exchange.attempts.saturating_add(1);
    let mut target = attempt::choose(call, exchange, false, &[]).map_err(refused)?;
    let body = call.body.again().ok_or_else(|| refused(head_already_sent()))?;
    let mut slot = Some(head);
    let kept = (&mut slot, false);
    let sent = attempt::send(call, exchange, &mut target, kept, body, Reuse::Safe).await;
    match sent {
        Ok(response) if answered(exchange, &target, &call.policy.retries, &response).is_none() => {
            Ok(response)
        }
        Ok(response) => {
            exchange.head(response.status(), response.headers());
            exchange.answered();
            Err(format!("{}: status {}", target.address, response.status()))
        }
        Err(failed) => {
            target.note_failure(&mut Vec::new(), failed.blames_upstream());
            exchange.end_attempt(failed.blames_upstream());
            Err(failed.detail)
        }
    }
}

/// A failed answer and what belongs to it, while something better is looked for.
struct ParkedFailure {
    failed: Result<Response<WireBody>, Refusal>,
    service: Label,
    peer: Label,
    endpoint: Option<std::net::SocketAddr>,
    chosen_by: Option<ChosenBy>,
    wire: Option<Wire>,
    cause: Option<Cause>,
    detail: Option<Box<str>>,
    lease: Option<Lease>,
    attempt: Option<Attempt>,
}

impl ParkedFailure {
    /// Tells the state machines what the failure was, so that nothing that follows can hide it.
    fn put(
        exchange: &mut Exchange,
        body: &RequestBody,
        failed: Result<Response<WireBody>, Refusal>,
    ) -> Self {
        let (status, cause) = match &failed {
            Ok(response) => (Some(response.status()), exchange.cause),
            Err(refusal) => (None, Some(refusal.cause())),
        };
        if exchange.attempts > 0 {
            // Without an endpoint nothing was sent.
            let given = exchange.attempt.as_ref().map_or(0, |_| body.given(None));
            exchange.attempted(status, cause, given, AttemptEnd::FellBack);
        }
        match &failed {
            Ok(response) => {
                exchange.head(response.status(), response.headers());
                exchange.answered();
                let detail = match exchange.endpoint {
                    Some(address) => format!("{address}: status {}", response.status()),
                    None => format!("status {}", response.status()),
                };
                exchange.detail.get_or_insert_with(|| detail.into());
            }
            Err(refusal) => {
                match &refusal.injected {
                    Some(injected) => exchange.stand_in(&injected.answer),
                    None => exchange.end_attempt(refusal.reason.side() == Side::Upstream),
                }
                exchange.cause = Some(refusal.cause());
                exchange.detail = Some(refusal.detail.clone().into());
            }
        }
        Self {
            failed,
            service: exchange.service,
            peer: exchange.peer,
            endpoint: exchange.endpoint,
            chosen_by: exchange.chosen_by,
            wire: exchange.wire,
            cause: exchange.cause,
            detail: exchange.detail.take(),
            lease: exchange.lease.take(),
            attempt: exchange.attempt.take(),
        }
    }

    /// The request is still one to the service that failed, and the log says why it did.
    fn explain(self, exchange: &mut Exchange) {
        exchange.service = self.service;
        exchange.cause = self.cause;
        exchange.detail = self.detail;
    }

    /// There was nothing better.
    fn take(self, exchange: &mut Exchange, notes: &str) -> Result<Response<WireBody>, Refusal> {
        exchange.service = self.service;
        exchange.peer = self.peer;
        exchange.endpoint = self.endpoint;
        (exchange.chosen_by, exchange.wire) = (self.chosen_by, self.wire);
        exchange.cause = self.cause;
        exchange.lease = self.lease;
        exchange.attempt = self.attempt;
        exchange.detail = self.detail.map(|detail| format!("{detail}{notes}").into());
        self.failed.map_err(|refusal| {
            let detail = format!("{}{notes}", refusal.detail);
            Refusal { detail: detail.into(), ..refusal }
        })
    }
}

/// None: it is no failure, or one that is not replaced.
fn class_of(exchange: &Exchange, answered: &Result<Response<WireBody>, Refusal>) -> Option<Class> {
    let response = match answered {
        Err(refusal) => {
            return match &refusal.injected {
                Some(injected) => injected.answer.failure.and_then(Class::of_failure),
                None => Class::of_reason(refusal.reason),
            };
        }
        Ok(response) => response,
    };
    let headers = response.headers();
    let class = if exchange.is_grpc() {
        let code = headers.get(GRPC_STATUS)?.to_str().ok()?.parse().ok()?;
        Class::of_grpc(code)?
    } else {
        Class::of_status(response.status())?
    };
    // A proxy on the way knows better what its status stands for.
    match explained(headers) {
        Some(reason) => Class::of_reason(reason),
        None => Some(class),
    }
}

fn fixed(answer: &Static, method: &Method) -> Response<Bytes> {
    let body = Bytes::copy_from_slice(answer.body.as_bytes());
    let mut response = own(answer.status, body, method);
    if let Some(kind) = &answer.content_type {
        response.headers_mut().insert(header::CONTENT_TYPE, kind.clone());
    }
    response
}

/// An answer of our own; one to HEAD says only how long its body would be.
fn own(status: StatusCode, body: Bytes, method: &Method) -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = status;
    if matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
        return response;
    }
    response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
    if method != Method::HEAD {
        *response.body_mut() = body;
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_request_gets_the_length_and_no_body() {
        let body = Bytes::from_static(b"sorry");
        let response = own(StatusCode::OK, body.clone(), &Method::HEAD);
        assert_eq!(
            (response.headers()[header::CONTENT_LENGTH].as_bytes(), response.body().len()),
            (&b"5"[..], 0)
        );
        assert_eq!(own(StatusCode::OK, body, &Method::GET).body().len(), 5);
    }
}
