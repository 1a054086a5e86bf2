//! One request and its response, as they are counted and logged.
//!
//! An [`Exchange`] is made when a request's head arrives and ends exactly once: complete, truncated,
//! or dropped, which means that the caller went away.

mod publish;

use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use outrigger_core::config::Protocol;
use outrigger_core::outcome::{Outcome, classify_grpc, classify_http, classify_reason};
use outrigger_core::policy::correlation::Inflight;
use outrigger_core::policy::deadline::Deadline;
use outrigger_core::policy::fallback::Degraded;
use outrigger_core::policy::fault::Answer;
use outrigger_core::policy::priority::Priority;
use outrigger_core::policy::retry::Skip;
use outrigger_core::reason::{Cause, Reason};
use outrigger_core::time::Later;

use crate::base::clock::coarse_ms;
use crate::listener::connection::Connection;
use crate::observe::correlation::Remembered;
use crate::observe::metrics::{CountKey, Label, SeriesKey, Status, add};
use crate::observe::record::{ChosenBy, Ending, Phases, Rare, TraceContext, Wait};
use crate::policy::cache::Recorder;
use crate::policy::limits::Limited;
use crate::upstream::endpoint::guard::{Attempt, InFlightPermit};
use crate::upstream::pool;
use crate::wire::Wire;
use crate::wire::deadline::{AT_DEADLINE, Bounds};
use crate::wire::headers::{GRPC_STATUS, HeaderScan};
use crate::wire::progress::Tracked;

pub struct Exchange {
    pub connection: Rc<Connection>,
    pub tracked: Tracked,
    pub began: Instant,
    pub service: Label,
    pub route: Label,
    pub peer: Label,
    pub protocol: Protocol,
    /// The request that goes on is gRPC, as it came or as a rule has made it.
    pub sends_grpc: bool,
    pub method: Method,
    pub path: Option<PathAndQuery>,
    pub request_id: Option<HeaderValue>,
    /// The id was given to it here.
    pub has_own_id: bool,
    pub trace: TraceContext,
    pub attempts: u8,
    pub deadline: Option<Deadline>,
    pub priority: Priority,
    /// The services that it has come through, the one that it goes to included.
    pub via: Option<HeaderValue>,
    /// What it asks of the service that it goes to, for `via`.
    pub visit: u32,
    /// The inbound request that an outbound one belongs to.
    pub inherited: Option<Arc<Inflight>>,
    /// An inbound request's place among those in flight.
    pub remembered: Option<Remembered>,
    /// What its port's limits made of an inbound request.
    pub limited: Option<Box<Limited>>,
    /// What bounds the body of the response.
    pub bounds: Option<Box<Bounds>>,
    /// Why it failed, was refused or sent again.
    pub cause: Option<Cause>,
    pub detail: Option<Box<str>>,
    /// Among others attempts before the one that is under way.
    pub rare: Option<Box<Rare>>,
    pub phases: Phases,
    /// When the head of the response came.
    first_byte_at: Option<Instant>,
    /// When the attempt that is under way began, in microseconds since `began`.
    pub attempt_began: u32,
    /// The answer is one that was kept, and nobody was asked.
    pub cache_hit: bool,
    /// The answer is being kept as it passes.
    pub recorder: Option<Box<Recorder>>,
    /// What was given instead of the failure that `reason` and `detail` tell of.
    pub degraded: Option<Degraded>,
    /// Of the head that the caller gets; none before there is one.
    pub status: Option<StatusCode>,
    grpc_status: Option<i32>,
    bytes: u64,
    over: bool,
    /// It became a tunnel: what flows inside is counted, and not once more the way there.
    pub tunneled: bool,
    /// The last fault injection that hit an attempt of it.
    pub injected: Option<Arc<str>>,
    /// The upstream connection, to be used again when the response has been read whole.
    pub lease: Option<Lease>,
    /// The attempt that is under way.
    pub attempt: Option<Attempt>,
    /// Its place among the requests in flight to the service, where those are limited.
    pub in_flight: Option<InFlightPermit>,
    pub endpoint: Option<std::net::SocketAddr>,
    pub chosen_by: Option<ChosenBy>,
    /// What is spoken to the endpoint.
    pub wire: Option<Wire>,
    /// Why the last attempt was not made again.
    pub not_retried: Option<Skip>,
}

/// The upstream connection or stream of an exchange.
pub enum Lease {
    H1(pool::h1::H1Lease),
    H2(pool::h2::H2Lease),
}

impl Lease {
    /// The response has been read whole.
    pub fn release(self, now: Instant) {
        match self {
            Self::H1(lease) => lease.release(now),
            Self::H2(lease) => drop(lease),
        }
    }
}

/// What a request that has become a tunnel goes on holding: its stream or connection, its place at the
/// endpoint and among those in flight to the service, and its place at its port's limit.
#[expect(dead_code, reason = "held until dropped")]
pub struct TunnelHold {
    lease: Option<Lease>,
    attempt: Option<Attempt>,
    in_flight: Option<InFlightPermit>,
    limited: Option<Box<Limited>>,
}

impl Exchange {
    /// The upstream has changed protocols: what is held is the tunnel's from now on.
    pub fn hold(&mut self, status: StatusCode, headers: &mut HeaderMap) -> TunnelHold {
        self.judge(Outcome::Success);
        if let Some(limited) = &mut self.limited {
            limited.answered(status, headers);
        }
        TunnelHold {
            lease: self.lease.take(),
            attempt: self.attempt.take(),
            in_flight: self.in_flight.take(),
            limited: self.limited.take(),
        }
    }

    pub fn begin(
        connection: Rc<Connection>,
        head: &Parts,
        seen: HeaderScan,
        tracked: Tracked,
    ) -> Self {
        connection.request_began();
        let grpc = seen.has(HeaderScan::CONTENT_TYPE) && is_grpc(&head.headers);
        let protocol = if grpc { Protocol::Grpc } else { connection.protocol };
        Self {
            began: Instant::now(),
            service: Label::UNKNOWN,
            route: Label::NONE,
            peer: connection.caller_label(),
            protocol,
            sends_grpc: grpc,
            method: head.method.clone(),
            path: head.uri.path_and_query().cloned(),
            request_id: None,
            has_own_id: false,
            trace: TraceContext::default(),
            attempts: 0,
            deadline: None,
            priority: Priority::default(),
            via: None,
            visit: 0,
            inherited: None,
            remembered: None,
            limited: None,
            bounds: None,
            cause: None,
            detail: None,
            rare: connection.worker.proxy.taps.headers(&head.headers),
            phases: Phases::default(),
            first_byte_at: None,
            attempt_began: 0,
            cache_hit: false,
            recorder: None,
            degraded: None,
            status: None,
            grpc_status: None,
            bytes: 0,
            over: false,
            tunneled: false,
            injected: None,
            chosen_by: None,
            wire: None,
            not_retried: None,
            lease: None,
            attempt: None,
            in_flight: None,
            endpoint: None,
            tracked,
            connection,
        }
    }

    pub fn is_grpc(&self) -> bool {
        self.protocol == Protocol::Grpc
    }

    /// Notes the head of the response.
    pub fn head(&mut self, status: StatusCode, headers: &HeaderMap) {
        self.status = Some(status);
        if self.is_grpc() {
            self.grpc_status = grpc_status(headers);
        }
    }

    /// What the head says about the endpoint. A gRPC call may still fail in its trailers.
    pub fn answered(&mut self) {
        let outcome = match self.grpc_status {
            Some(code) => classify_grpc(code),
            None if self.is_grpc() => return,
            None => classify_http(self.status.unwrap_or_default()),
        };
        self.judge(outcome);
    }

    fn judge(&mut self, outcome: Outcome) {
        let random = || self.connection.worker.random();
        if let Some(attempt) = &mut self.attempt {
            attempt.judge(outcome, random);
        }
    }

    /// The attempt is over without a response. Dropping what it held cancels the upstream's work.
    pub fn end_attempt(&mut self, failed: bool) {
        self.judge(if failed { Outcome::Failure } else { Outcome::Canceled });
        self.lease = None;
        self.attempt = None;
    }

    /// A fault injection's answer stands for that of the service.
    pub fn stand_in(&mut self, answer: &Answer) {
        self.judge(answer.outcome);
        self.lease = None;
        self.attempt = None;
        self.grpc_status = self.is_grpc().then_some(answer.grpc);
    }

    pub fn sent(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
    }

    pub fn trailers(&mut self, trailers: Option<&HeaderMap>) {
        if self.is_grpc()
            && let Some(code) = trailers.and_then(grpc_status)
        {
            self.grpc_status = Some(code);
        }
    }

    /// The response was passed on to its end.
    pub fn complete(&mut self) {
        let now = Instant::now();
        if let Some(lease) = self.lease.take() {
            lease.release(now);
        }
        if let Some(keeping) = self.recorder.take() {
            keeping.store(&self.connection.worker.proxy.cache);
        }
        let outcome = match self.cause {
            Some(Cause { reason, .. }) if is_own_fault(reason) && self.degraded.is_none() => {
                classify_reason(reason)
            }
            _ => match self.grpc_status {
                Some(code) => classify_grpc(code),
                None => classify_http(self.status.unwrap_or_default()),
            },
        };
        self.record(outcome, now);
    }

    /// The response broke off in the middle.
    pub fn truncated(&mut self, reason: Reason) {
        self.cause = Some(Cause::local(reason));
        self.record(Outcome::Failure, Instant::now());
    }

    fn record(&mut self, outcome: Outcome, now: Instant) {
        self.over = true;
        self.judge(outcome);
        self.connection.request_ended();
        if let Some(remembered) = self.remembered.take() {
            self.connection.worker.proxy.correlation.forget(&remembered);
        }
        if self.tunneled {
            return;
        }
        let worker = &self.connection.worker;
        let latency = now.saturating_duration_since(self.began);
        self.phases.settle(latency);
        let status = match self.grpc_status {
            // The caller has not got it, or not the whole of what it stands for.
            _ if outcome == Outcome::Canceled && self.is_given_up() => Status::None,
            Some(code) => Status::grpc(code),
            None => self.status.map_or(Status::None, Status::of),
        };
        let key = SeriesKey {
            direction: self.connection.listener.direction(),
            service: self.service,
            route: self.route,
            peer: self.peer,
        };
        let count = CountKey { protocol: self.protocol, outcome, status, cause: self.cause };
        let recorded =
            self.trace.sent != 0 && worker.proxy.traces.records(&self.trace, outcome, latency);
        worker.metrics.record(key, count, latency, if recorded { self.trace.id } else { 0 });
        if self.bytes > 0 {
            add(&worker.proxy.metrics.gauges.bytes_sent, self.bytes);
        }
        let ending = Ending {
            direction: key.direction,
            outcome,
            duration: latency,
            traced: self.trace.sent != 0,
            method: Some(&self.method),
            path: self.path.as_ref(),
            code: self.status,
            cause: self.cause,
        };
        if let Some(wanted) = worker.proxy.records.wanted(&ending, &|| worker.random()) {
            self.publish(wanted, outcome, status, now);
        }
    }

    /// Polls something that the exchange may have to wait for. Nothing is measured while it is ready at once.
    pub fn watch<T>(&mut self, polled: Poll<T>, wait: Wait) -> Poll<T> {
        if polled.is_pending() {
            self.phases.wait(wait, || self.began.elapsed());
        } else if self.phases.is_waiting() {
            self.phases.settle(self.began.elapsed());
        }
        polled
    }

    /// The head of the response has come.
    pub fn note_first_byte(&mut self, now: Instant) {
        self.first_byte_at = Some(now);
    }

    /// Whether it has a place in a trace that this proxy may record.
    pub fn is_recorded(&self) -> bool {
        self.trace.sent != 0 && self.connection.worker.proxy.traces.is_on()
    }

    /// The caller went away.
    fn is_given_up(&self) -> bool {
        self.cause.is_some_and(|cause| cause.reason == Reason::DownstreamReset)
    }

    /// Milliseconds as latency estimates count them.
    pub fn began_ms(&self) -> u32 {
        coarse_ms(self.began)
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if !self.over {
            // Nobody polled it to its end: the caller went away, or the sweep has ended it.
            let now = Instant::now();
            let at_deadline =
                self.deadline.is_some_and(|deadline| deadline.at <= now.later(AT_DEADLINE));
            let reason = match self.tracked.progress().ended() {
                Some(reason) => reason,
                None if at_deadline => {
                    self.status.get_or_insert(Reason::DeadlineExceeded.status());
                    Reason::DeadlineExceeded
                }
                None => Reason::DownstreamReset,
            };
            self.cause = Some(Cause::local(reason));
            let outcome = match classify_reason(reason) {
                Outcome::Refused => Outcome::Canceled,
                outcome => outcome,
            };
            self.record(outcome, now);
        }
    }
}

pub fn is_grpc(headers: &HeaderMap) -> bool {
    headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

/// Whether the reason says by itself how the request ended.
fn is_own_fault(reason: Reason) -> bool {
    reason.status() != StatusCode::OK && reason != Reason::FaultInjected
}

fn grpc_status(headers: &HeaderMap) -> Option<i32> {
    headers.get(GRPC_STATUS)?.to_str().ok()?.parse().ok()
}
