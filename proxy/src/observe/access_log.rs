//! The access log: one JSON line per request, made and written off the request path.

pub mod otlp;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::{Duration, UNIX_EPOCH};

use http::Method;
use outrigger_core::outcome::Outcome;
use outrigger_core::policy::retry::Skip;
use outrigger_core::telemetry::{AccessLog as Setting, LogLayout, Ratio};
use outrigger_logging::{Log, Record as LogRecord};
use serde::Serialize;

use crate::observe::bus::Sink;
use crate::observe::record::{Attempted, ChosenBy, Ending, Record};

/// The request side: decides and enqueues.
pub struct AccessLog {
    /// Of this proxy's flag, which holds whatever the control plane says.
    own: Option<Setting>,
    own_layout: Option<LogLayout>,
    /// In force, in one word that requests can read at no cost: see [`pack`].
    packed: AtomicU64,
    /// The layout is not the fields alone.
    logstash: AtomicBool,
    log: Log,
}

impl AccessLog {
    pub fn new(own: Option<Setting>, own_layout: Option<LogLayout>, log: Log) -> Self {
        let packed = AtomicU64::new(pack(own.unwrap_or_default()));
        let logstash = AtomicBool::new(own_layout == Some(LogLayout::Logstash));
        Self { own, own_layout, packed, logstash, log }
    }

    /// Takes over what the control plane says; none: nothing.
    pub fn configure(&self, setting: Option<Setting>, layout: Option<LogLayout>) {
        self.packed.store(pack(self.own.or(setting).unwrap_or_default()), Relaxed);
        let layout = self.own_layout.or(layout).unwrap_or_default();
        self.logstash.store(layout == LogLayout::Logstash, Relaxed);
    }

    fn takes(&self, ending: &Ending<'_>, random: &dyn Fn() -> u64) -> bool {
        unpack(self.packed.load(Relaxed)).takes(ending.outcome, ending.duration, random)
    }
}

/// Milliseconds, and above them whether errors are taken, and the share in millionths.
fn pack(setting: Setting) -> u64 {
    let slower_than = setting.slower_than.map_or(0, |limit| limit.as_millis() as u64);
    let share = u64::from(setting.share.millionths());
    slower_than.min(u64::from(u32::MAX)) | u64::from(setting.errors) << 32 | share << 33
}

fn unpack(packed: u64) -> Setting {
    let slower_than = Duration::from_millis(packed & u64::from(u32::MAX));
    Setting {
        share: Ratio::from_millionths((packed >> 33) as u32).unwrap_or(Ratio::ALL),
        errors: packed >> 32 & 1 == 1,
        slower_than: Some(slower_than).filter(|limit| !limit.is_zero()),
    }
}

impl Sink for Arc<AccessLog> {
    fn name(&self) -> &'static str {
        "access_log"
    }

    fn wants(&self, ending: &Ending<'_>, random: &dyn Fn() -> u64) -> bool {
        self.takes(ending, random)
    }

    fn take(&self, record: Box<Record>) -> bool {
        if self.logstash.load(Relaxed) {
            return self.log.write(Box::new(Logstash(record)));
        }
        self.log.write(record)
    }
}

/// A record that is written in the layout of that name.
struct Logstash(Box<Record>);

impl LogRecord for Logstash {
    fn size(&self) -> usize {
        self.0.size()
    }

    fn render(&self, out: &mut Vec<u8>) {
        let at = time::OffsetDateTime::from(self.0.ended);
        let at = at.replace_nanosecond(at.nanosecond() / 1_000_000 * 1_000_000).unwrap_or(at);
        let at = at.format(&time::format_description::well_known::Rfc3339);
        let line = LogstashLine {
            timestamp: at.unwrap_or_default(),
            version: "1",
            level: level(&self.0),
            message: message(&self.0),
            line: Line::from(&*self.0),
        };
        // Writing text to memory cannot fail.
        let _ = serde_json::to_writer(out, &line);
    }
}

/// What Logstash's own encoders for programs write around the fields.
#[derive(Serialize)]
struct LogstashLine<'a> {
    #[serde(rename = "@timestamp")]
    timestamp: String,
    #[serde(rename = "@version")]
    version: &'static str,
    level: &'static str,
    message: String,
    #[serde(flatten)]
    line: Line<'a>,
}

/// How much a line matters to who reads logs of several programs.
fn level(record: &Record) -> &'static str {
    match record.outcome {
        Outcome::Success | Outcome::Canceled => "INFO",
        Outcome::Refused | Outcome::Failure => "WARN",
    }
}

/// A line for people: what was asked of whom, and how it ended.
fn message(record: &Record) -> String {
    let method = record.method.as_ref().map_or("connection", Method::as_str);
    let path = record.path.as_deref().unwrap_or_default();
    let (service, outcome) = (&record.service, record.outcome.as_str());
    let mut text = format!("{method} {service}{path} {outcome}");
    let (status, reason) =
        (record.status.to_string(), record.cause.map(|cause| cause.reason.as_str()));
    for part in
        [Some(status.as_str()), reason].into_iter().flatten().filter(|part| !part.is_empty())
    {
        text.push(' ');
        text.push_str(part);
    }
    text
}

impl LogRecord for Record {
    fn size(&self) -> usize {
        let detail = self.detail.as_ref().map_or(0, |detail| detail.len());
        let path = self.path.as_ref().map_or(0, |path| path.len());
        let request_id = self.request_id.as_ref().map_or(0, |id| id.len());
        let rare = self.rare.as_ref().map_or(0, |rare| {
            let headers =
                rare.headers.iter().map(|(name, value)| name.as_str().len() + value.len());
            let host = rare.host.as_ref().map_or(0, |host| host.len());
            rare.earlier.len() * size_of::<Attempted>() + headers.sum::<usize>() + host
        });
        let method = self.method.as_ref().map_or(0, |method| method.as_str().len());
        size_of::<Self>() + detail + path + request_id + rare + method
    }

    fn render(&self, out: &mut Vec<u8>) {
        // Writing text to memory cannot fail.
        let _ = serde_json::to_writer(out, &Line::from(self));
    }
}

/// A line, without an end.
#[derive(Serialize)]
pub(super) struct Line<'a> {
    time: f64,
    log: &'static str,
    direction: &'static str,
    service: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    route: &'a str,
    peer: &'a str,
    protocol: &'static str,
    outcome: &'static str,
    status: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    /// Which proxy named the reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason_by: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    degraded: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cache: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    method: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoint: Option<SocketAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    zone: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    chosen_by: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    upstream_protocol: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    not_retried: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    injected: Option<&'a str>,
    attempts: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    earlier_attempts: Option<Vec<AttemptLine<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    deadline_left_ms: Option<i64>,
    #[serde(skip_serializing_if = "is_zero")]
    queue_us: u32,
    #[serde(skip_serializing_if = "is_zero")]
    resolve_us: u32,
    #[serde(skip_serializing_if = "is_zero")]
    connect_us: u32,
    #[serde(skip_serializing_if = "is_zero")]
    tls_us: u32,
    #[serde(skip_serializing_if = "is_zero")]
    first_byte_us: u32,
    duration_us: u64,
    bytes: u64,
}

/// An attempt before the last one.
#[derive(Serialize)]
struct AttemptLine<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoint: Option<SocketAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    zone: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    chosen_by: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    upstream_protocol: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason_by: Option<&'static str>,
    end: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_bytes: Option<u64>,
    began_us: u64,
    duration_us: u64,
}

fn is_zero(us: &u32) -> bool {
    *us == 0
}

fn as_us(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

impl<'a> From<&'a Attempted> for AttemptLine<'a> {
    fn from(attempt: &'a Attempted) -> Self {
        Self {
            endpoint: attempt.endpoint,
            zone: attempt.zone.as_deref(),
            chosen_by: attempt.chosen_by.map(ChosenBy::as_str),
            upstream_protocol: attempt.upstream_protocol,
            status: attempt.status.map(|status| status.as_u16()),
            reason: attempt.cause.map(|cause| cause.reason.as_str()),
            reason_by: attempt.cause.map(|cause| cause.named_by.as_str()),
            end: attempt.end.as_str(),
            request_bytes: Some(attempt.request_bytes).filter(|bytes| *bytes > 0),
            began_us: as_us(attempt.began),
            duration_us: as_us(attempt.duration),
        }
    }
}

impl<'a> From<&'a Record> for Line<'a> {
    fn from(entry: &'a Record) -> Self {
        Self {
            time: entry.ended.duration_since(UNIX_EPOCH).map_or(0.0, |t| t.as_secs_f64()),
            log: "access",
            direction: entry.direction.as_str(),
            service: &entry.service,
            route: &entry.route,
            peer: &entry.peer,
            protocol: entry.protocol.as_str(),
            outcome: entry.outcome.as_str(),
            status: entry.status.to_string(),
            reason: entry.cause.map(|cause| cause.reason.as_str()),
            reason_by: entry.cause.map(|cause| cause.named_by.as_str()),
            policy: entry.cause.and_then(|cause| cause.reason.policy()),
            detail: entry.detail.as_deref(),
            degraded: entry.degraded,
            cache: entry.cache_hit.then_some("hit"),
            method: entry.method.as_ref().map(Method::as_str),
            path: entry.path.as_deref(),
            host: entry.rare.as_ref().and_then(|rare| rare.host.as_deref()),
            request_id: entry.request_id.as_deref(),
            trace_id: (entry.trace.id != 0).then(|| format!("{:032x}", entry.trace.id)),
            endpoint: entry.endpoint,
            zone: entry.zone.as_deref(),
            chosen_by: entry.chosen_by.map(ChosenBy::as_str),
            upstream_protocol: entry.upstream_protocol,
            not_retried: entry
                .not_retried
                .filter(|skip| *skip != Skip::NotConfigured)
                .map(Skip::as_str),
            injected: entry.injected.as_deref(),
            attempts: entry.attempts,
            earlier_attempts: Some(entry.earlier())
                .filter(|earlier| !earlier.is_empty())
                .map(|earlier| earlier.iter().map(AttemptLine::from).collect()),
            deadline_left_ms: entry.deadline_left_ms,
            queue_us: entry.phases.queue,
            resolve_us: entry.phases.resolve,
            connect_us: entry.phases.connect,
            tls_us: entry.phases.tls,
            first_byte_us: entry.phases.first_byte,
            duration_us: as_us(entry.duration),
            bytes: entry.bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use outrigger_core::reason::{Cause, Reason};

    use super::*;

    #[test]
    fn a_setting_is_kept_whole_and_the_proxys_own_flag_holds() {
        let log = Log::unread();
        for text in ["off", "errors", "all", "1/100"] {
            for slower_than in
                [None, Some(Duration::from_millis(1)), Some(Duration::from_secs(3_600))]
            {
                let setting = Setting { slower_than, ..text.parse().unwrap() };
                assert_eq!(unpack(pack(setting)), setting);
            }
        }
        let all = "all".parse().unwrap();
        let logstash = Some(LogLayout::Logstash);
        let told = AccessLog::new(None, None, log.clone());
        let own = AccessLog::new(Some(all), logstash, log);
        told.configure(Some(all), logstash);
        assert_eq!(unpack(told.packed.load(Relaxed)), all);
        assert!(told.logstash.load(Relaxed));
        told.configure(None, None);
        assert_eq!(unpack(told.packed.load(Relaxed)), Setting::default());
        assert!(!told.logstash.load(Relaxed));
        own.configure("off".parse().ok(), Some(LogLayout::Json));
        assert_eq!(unpack(own.packed.load(Relaxed)), all);
        assert!(own.logstash.load(Relaxed));
    }

    #[test]
    fn the_layout_of_logstash_has_its_fields_around_those_of_the_line() {
        let cause = Some(Cause::local(Reason::DestinationRefused));
        let ended = UNIX_EPOCH + Duration::from_micros(1_500_999);
        let (method, path) = (Some(Method::GET), Some("/a".into()));
        let failed = Record { ended, cause, method, path, ..Record::example() };
        let read = |record: &dyn LogRecord| -> serde_json::Value {
            let mut text = Vec::new();
            record.render(&mut text);
            serde_json::from_slice(&text).unwrap()
        };
        let json = read(&failed);
        let mut logstash = read(&Logstash(Box::new(failed)));
        let around = logstash.as_object_mut().unwrap();
        let mut take = |name: &str| around.remove(name).unwrap();
        assert_eq!(take("@timestamp"), "1970-01-01T00:00:01.5Z");
        assert_eq!(take("@version"), "1");
        assert_eq!(take("level"), "INFO");
        assert_eq!(take("message"), "GET bank/orders:80/a success 2xx destination_refused");
        assert_eq!(logstash, json);
    }
}
