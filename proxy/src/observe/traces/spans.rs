//! Spans of a record, named by OpenTelemetry's semantic conventions for HTTP and RPC.
//!
//! An exchange is a server's span on its callee's side and a client's on its caller's. Where it took several
//! attempts, each of them is a client's span, below one of the request.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use http::StatusCode;
use opentelemetry::trace::{
    Event, SpanContext, SpanId, SpanKind, Status as SpanStatus, TraceFlags, TraceId, TraceState,
};
use opentelemetry::{InstrumentationScope, KeyValue, Value};
use opentelemetry_sdk::trace::SpanData;
use outrigger_core::config::Protocol;
use outrigger_core::outcome::Outcome;
use outrigger_core::reason::Cause;

use crate::base::direction::Direction;
use crate::observe::metrics::Status;
use crate::observe::otlp::cut;
use crate::observe::record::{AttemptEnd, Attempted, Record, SAMPLED};

/// Adds the spans of a record.
pub fn of(record: &Record, scope: &InstrumentationScope, out: &mut Vec<SpanData>) {
    let ended = record.ended;
    let began = ended.checked_sub(record.duration).unwrap_or(ended);
    let earlier = Some(record.earlier()).filter(|earlier| !earlier.is_empty());
    let several = earlier.filter(|_| record.direction == Direction::Outbound);
    let trace = &record.trace;
    let span = |id: u64, parent: u64, kind: SpanKind, (start_time, end_time)| SpanData {
        span_context: SpanContext::new(
            TraceId::from(trace.id),
            SpanId::from(id),
            // It is recorded, no matter who decided it.
            TraceFlags::new(trace.flags | SAMPLED),
            false,
            TraceState::NONE,
        ),
        parent_span_id: SpanId::from(parent),
        parent_span_is_remote: true,
        span_kind: kind,
        name: cut(&name(record)).to_owned().into(),
        start_time,
        end_time,
        attributes: Vec::new(),
        dropped_attributes_count: 0,
        events: Default::default(),
        links: Default::default(),
        status: SpanStatus::Unset,
        instrumentation_scope: scope.clone(),
    };
    let id = record.span();
    let kind = match (record.direction, several) {
        (Direction::Inbound, _) => SpanKind::Server,
        (Direction::Outbound, None) => SpanKind::Client,
        (Direction::Outbound, Some(_)) => SpanKind::Internal,
    };
    let mut whole = span(id, trace.received, kind, (began, ended));
    whole.attributes = attributes(record);
    whole.status = status(record);
    events(record, began, &mut whole);
    if let Some(earlier) = several {
        // In the order in which they were sent, which is that of their spans.
        let mut number: u8 = 1;
        for attempt in earlier {
            let start = later(began, attempt.began);
            let times = (start, later(start, attempt.duration));
            let mut one = span(trace.span_of(number), id, SpanKind::Client, times);
            one.parent_span_is_remote = false;
            one.attributes = attempt_attributes(record, attempt, number);
            if attempt.end != AttemptEnd::Outrun {
                let why = why(attempt.cause, attempt.status.as_ref());
                one.status = SpanStatus::error(why.unwrap_or(attempt.end.as_str()).to_owned());
            }
            out.push(one);
            number = number.saturating_add(1);
        }
        let start = later(began, record.attempt_began);
        let mut last = span(trace.span_of(number), id, SpanKind::Client, (start, ended));
        last.parent_span_is_remote = false;
        last.attributes = last_attributes(record, number);
        last.status = status(record);
        out.push(last);
    }
    out.push(whole);
}

fn later(at: SystemTime, by: Duration) -> SystemTime {
    at.checked_add(by).unwrap_or(at)
}

/// Few enough to be a list: the method and the service, or the method of gRPC.
fn name(record: &Record) -> String {
    let path = record.path.as_deref().unwrap_or_default();
    match &record.method {
        Some(_) if record.protocol == Protocol::Grpc && !path.is_empty() => {
            path.trim_start_matches('/').to_owned()
        }
        Some(method) => format!("{method} {}", record.service),
        None => record.service.to_string(),
    }
}

fn status(record: &Record) -> SpanStatus {
    let fails = match record.outcome {
        Outcome::Success => false,
        Outcome::Failure | Outcome::Canceled => true,
        // What a server refuses is its caller's fault, as a 4xx is.
        Outcome::Refused => record.direction == Direction::Outbound,
    };
    if !fails {
        return SpanStatus::Unset;
    }
    match (&record.detail, record.cause) {
        (Some(detail), Some(cause)) => SpanStatus::error(format!("{}: {detail}", cause.reason)),
        (None, Some(cause)) => SpanStatus::error(cause.reason.as_str()),
        (_, None) => {
            let why = why(None, record.code.as_ref()).unwrap_or(record.outcome.as_str());
            SpanStatus::error(why.to_owned())
        }
    }
}

/// What an attempt or request failed of: what is known of it, else the status of its answer.
fn why(cause: Option<Cause>, code: Option<&StatusCode>) -> Option<&str> {
    cause.map(|cause| cause.reason.as_str()).or(code.map(StatusCode::as_str))
}

fn attributes(record: &Record) -> Vec<KeyValue> {
    let mut all = Attributes::default();
    request(record, &mut all);
    answer(record, &mut all);
    // Of a callee it is its own app.
    if record.direction == Direction::Outbound {
        peer(record.endpoint, record.zone.as_deref(), &mut all);
    }
    cause(record.cause, record.detail.as_deref(), &mut all);
    all.add("outrigger.outcome", record.outcome.as_str());
    all.text("outrigger.route", Some(&record.route).filter(|route| !route.is_empty()));
    all.text("outrigger.chosen_by", record.chosen_by.map(|by| by.as_str()));
    all.text("outrigger.degraded", record.degraded);
    if record.attempts > 1 {
        all.add("outrigger.attempts", i64::from(record.attempts));
    }
    if record.cache_hit {
        all.add("outrigger.cache", "hit");
    }
    if let Some(left) = record.deadline_left_ms {
        all.add("outrigger.deadline_left_ms", left);
    }
    for (name, us) in [
        ("outrigger.queue_us", record.phases.queue),
        ("outrigger.resolve_us", record.phases.resolve),
        ("outrigger.connect_us", record.phases.connect),
        ("outrigger.tls_us", record.phases.tls),
        ("outrigger.first_byte_us", record.phases.first_byte),
    ] {
        if us > 0 {
            all.add(name, i64::from(us));
        }
    }
    all.0
}

fn attempt_attributes(record: &Record, attempt: &Attempted, number: u8) -> Vec<KeyValue> {
    let mut all = Attributes::default();
    request(record, &mut all);
    if let Some(status) = attempt.status {
        all.add("http.response.status_code", i64::from(status.as_u16()));
    }
    resent(number, &mut all);
    peer(attempt.endpoint, attempt.zone.as_deref(), &mut all);
    cause(attempt.cause, None, &mut all);
    let why = why(attempt.cause, attempt.status.as_ref());
    all.text("error.type", why.filter(|_| attempt.end != AttemptEnd::Outrun));
    all.add("outrigger.attempt_end", attempt.end.as_str());
    all.text("outrigger.chosen_by", attempt.chosen_by.map(|by| by.as_str()));
    all.0
}

/// Of the attempt that was answered: what is known of the request as a whole is on the request's span.
fn last_attributes(record: &Record, number: u8) -> Vec<KeyValue> {
    let mut all = Attributes::default();
    request(record, &mut all);
    answer(record, &mut all);
    resent(number, &mut all);
    peer(record.endpoint, record.zone.as_deref(), &mut all);
    if record.outcome != Outcome::Success {
        cause(record.cause, record.detail.as_deref(), &mut all);
    }
    all.text("outrigger.chosen_by", record.chosen_by.map(|by| by.as_str()));
    all.0
}

fn resent(number: u8, all: &mut Attributes) {
    if number > 1 {
        all.add("http.request.resend_count", i64::from(number - 1));
    }
}

/// Attributes of a span.
#[derive(Default)]
struct Attributes(Vec<KeyValue>);

impl Attributes {
    fn add(&mut self, name: &'static str, value: impl Into<Value>) {
        self.0.push(KeyValue::new(name, value));
    }

    fn text(&mut self, name: &'static str, value: Option<impl AsRef<str>>) {
        if let Some(value) = value {
            self.add(name, cut(value.as_ref()).to_owned());
        }
    }
}

fn request(record: &Record, all: &mut Attributes) {
    // `namespace/name:port` of the service that was called.
    let (name, port) = record.service.rsplit_once(':').unwrap_or((&record.service, ""));
    all.text("server.address", Some(name));
    if let Ok(port) = port.parse::<i64>() {
        all.add("server.port", port);
    }
    all.text("outrigger.peer", Some(&record.peer));
    if record.direction == Direction::Outbound {
        all.text("peer.service", name.rsplit('/').next());
    }
    let path = record.path.as_deref();
    if record.protocol == Protocol::Grpc {
        all.add("rpc.system", "grpc");
        if let Some((service, method)) =
            path.and_then(|path| path.trim_start_matches('/').split_once('/'))
        {
            all.text("rpc.service", Some(service));
            all.text("rpc.method", Some(method));
        }
    } else {
        all.text("http.request.method", record.method.as_ref());
        all.text("url.path", path);
        all.text(
            "network.protocol.version",
            match record.protocol {
                Protocol::Http1 => Some("1.1"),
                Protocol::Http2 => Some("2"),
                _ => None,
            },
        );
    }
    all.text("outrigger.request_id", record.request_id.as_deref());
}

fn answer(record: &Record, all: &mut Attributes) {
    if let Status::Grpc(code) = record.status {
        all.add("rpc.grpc.status_code", i64::from(code));
    } else if let Some(code) = record.code.filter(|_| record.status != Status::None) {
        all.add("http.response.status_code", i64::from(code.as_u16()));
    }
    if record.outcome != Outcome::Success {
        let why = why(record.cause, record.code.as_ref()).unwrap_or(record.outcome.as_str());
        all.text("error.type", Some(why));
    }
    all.add("http.response.body.size", i64::try_from(record.bytes).unwrap_or(i64::MAX));
}

fn peer(endpoint: Option<SocketAddr>, zone: Option<&str>, all: &mut Attributes) {
    if let Some(endpoint) = endpoint {
        all.add("network.peer.address", endpoint.ip().to_string());
        all.add("network.peer.port", i64::from(endpoint.port()));
    }
    all.text("outrigger.zone", zone);
}

fn cause(cause: Option<Cause>, detail: Option<&str>, all: &mut Attributes) {
    if let Some(cause) = cause {
        all.add("outrigger.reason", cause.reason.as_str());
        all.add("outrigger.reason_by", cause.named_by.as_str());
        all.text("outrigger.policy", cause.reason.policy());
    }
    all.text("outrigger.detail", detail);
}

/// What happened on the way: attempts given up, what a policy did.
fn events(record: &Record, began: SystemTime, span: &mut SpanData) {
    let mut event =
        |name: &'static str, after: Duration, mut all: Attributes, why: Option<Cause>| {
            cause(why, None, &mut all);
            span.events.events.push(Event::new(name, later(began, after), all.0, 0));
        };
    for attempt in record.earlier() {
        let name = match attempt.end {
            AttemptEnd::Retried => "retry",
            AttemptEnd::Outrun => "hedge",
            AttemptEnd::FellBack => "fallback",
        };
        let mut all = Attributes::default();
        if let Some(status) = attempt.status {
            all.add("http.response.status_code", i64::from(status.as_u16()));
        }
        event(name, attempt.began.saturating_add(attempt.duration), all, attempt.cause);
    }
    if let Some(injected) = &record.injected {
        let mut all = Attributes::default();
        all.text("outrigger.fault_injection", Some(injected));
        event("fault_injected", record.duration, all, None);
    }
    if let Some(policy) = record.cause.and_then(|cause| cause.reason.policy()) {
        let mut all = Attributes::default();
        all.text("outrigger.policy", Some(policy));
        all.text("outrigger.detail", record.detail.as_deref());
        event("policy", record.duration, all, record.cause);
    }
}
