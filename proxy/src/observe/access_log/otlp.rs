//! The access log by OTLP: the lines that are written, with the same fields as attributes.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex};
use std::time::UNIX_EPOCH;

use arc_swap::ArcSwapOption;
use opentelemetry_proto::tonic::collector::logs::v1::logs_service_client::LogsServiceClient;
use opentelemetry_proto::tonic::collector::logs::v1::{
    ExportLogsServiceRequest, ExportLogsServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, KeyValue, KeyValueList};
use opentelemetry_proto::tonic::logs::v1::{LogRecord, ResourceLogs, ScopeLogs, SeverityNumber};
use opentelemetry_proto::tonic::resource::v1::Resource;
use outrigger_core::telemetry::Collector;
use tonic::transport::Channel;

use super::{AccessLog, Line, level, message};
use crate::base::settings::Settings;
use crate::base::sync::lock;
use crate::observe::bus::{Sink, Waiting};
use crate::observe::metrics::add;
use crate::observe::metrics::table::{self, Exposition};
use crate::observe::otlp::{self, BATCH, CollectorLink, Complaints, EVERY, Signal, cut};
use crate::observe::record::{Ending, Record};

/// Records that wait for being sent, and beyond which others are dropped.
const MAX_WAITING: usize = 2_048;
/// Fields of a line that a record of OpenTelemetry has a place of its own for, or that say nothing there.
const ELSEWHERE: [&str; 3] = ["time", "log", "trace_id"];

/// The sink of lines that are sent.
pub struct SentLog {
    /// Whether there is a collector: asked for each request.
    on: AtomicBool,
    to: ArcSwapOption<Collector>,
    /// Which lines.
    access_log: Arc<AccessLog>,
    waiting: Mutex<Waiting>,
    sent: AtomicU64,
    failed: AtomicU64,
}

impl SentLog {
    /// Sends what `access_log` writes.
    pub fn new(access_log: Arc<AccessLog>) -> Self {
        Self {
            on: AtomicBool::new(false),
            to: ArcSwapOption::empty(),
            access_log,
            waiting: Mutex::default(),
            sent: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        }
    }

    /// Changes where lines are sent from now on; none: nowhere.
    pub fn configure(&self, to: Option<&Collector>) {
        if self.to.load().as_deref() == to {
            return;
        }
        self.to.store(to.cloned().map(Arc::new));
        self.on.store(to.is_some(), Relaxed);
        if to.is_none() {
            *lock(&self.waiting) = Waiting::default();
        }
    }

    pub fn expose(&self, out: &mut Exposition) {
        for (result, counter) in [("sent", &self.sent), ("failed", &self.failed)] {
            out.add(&table::LOG_RECORDS, &[&result], counter.load(Relaxed));
        }
    }
}

impl Sink for Arc<SentLog> {
    fn name(&self) -> &'static str {
        "otlp_logs"
    }

    fn wants(&self, ending: &Ending<'_>, random: &dyn Fn() -> u64) -> bool {
        self.on.load(Relaxed) && self.access_log.takes(ending, random)
    }

    fn take(&self, record: Box<Record>) -> bool {
        let mut waiting = lock(&self.waiting);
        let fits = waiting.fits(&record, MAX_WAITING);
        if fits {
            waiting.push(record);
        }
        fits
    }
}

struct LogsSignal;

impl Signal for LogsSignal {
    type Request = ExportLogsServiceRequest;
    type Response = ExportLogsServiceResponse;
    const PATH: &'static str = "/v1/logs";

    async fn call(
        channel: Channel,
        request: Self::Request,
    ) -> Result<tonic::Response<Self::Response>, tonic::Status> {
        LogsServiceClient::new(channel).export(request).await
    }

    fn partly_refused(response: Self::Response) -> Option<(i64, String)> {
        response.partial_success.map(|part| (part.rejected_log_records, part.error_message))
    }
}

/// Sends lines.
pub struct LogSender {
    log: Arc<SentLog>,
    resource: Resource,
    link: tokio::sync::Mutex<(CollectorLink<LogsSignal>, Complaints)>,
}

impl LogSender {
    pub fn new(log: Arc<SentLog>, settings: &Settings) -> Self {
        let link =
            (CollectorLink::default(), Complaints::about("lines of the access log", "--otlp-logs"));
        Self { log, resource: otlp::resource(settings), link: tokio::sync::Mutex::new(link) }
    }

    /// For ever.
    pub async fn run(&self) {
        let mut every = tokio::time::interval(EVERY);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            every.tick().await;
            self.finish().await;
        }
    }

    /// Sends what waits.
    pub async fn finish(&self) {
        let (link, complaints) = &mut *self.link.lock().await;
        let Some(to) = self.log.to.load_full() else { return };
        // Taken whole, so that what a burst took is given back.
        let mut all = Vec::from(std::mem::take(&mut *lock(&self.log.waiting)).records);
        while !all.is_empty() {
            let rest = all.split_off(all.len().min(BATCH));
            let batch = std::mem::replace(&mut all, rest);
            let count = batch.len() as u64;
            match link.send(&to, self.request(&batch)).await {
                Ok(refused) => {
                    add(&self.log.sent, count.saturating_sub(refused));
                    add(&self.log.failed, refused);
                    complaints.taken(&to.address);
                }
                Err(why) => {
                    // It would take as long for what is left, while more comes.
                    add(&self.log.failed, count + all.len() as u64);
                    complaints.lost(&to.address, &why);
                    return;
                }
            }
        }
    }

    fn request(&self, batch: &[Box<Record>]) -> ExportLogsServiceRequest {
        let log_records = batch.iter().map(|record| log_record(record)).collect();
        let scope = Some(otlp::scope());
        let scope_logs = vec![ScopeLogs { scope, log_records, ..Default::default() }];
        let resource = Some(self.resource.clone());
        let resource = ResourceLogs { resource, scope_logs, ..Default::default() };
        ExportLogsServiceRequest { resource_logs: vec![resource] }
    }
}

fn log_record(record: &Record) -> LogRecord {
    let at = record.ended.duration_since(UNIX_EPOCH).unwrap_or_default();
    let at = u64::try_from(at.as_nanos()).unwrap_or(u64::MAX);
    let level = level(record);
    let severity = if level == "INFO" { SeverityNumber::Info } else { SeverityNumber::Warn };
    // A request may come with a trace in a mesh that records none: then it has no span.
    let (in_trace, has_span) = (record.trace.id != 0, record.trace.sent != 0);
    let id = |is_there: bool, bytes: &[u8]| if is_there { bytes.to_vec() } else { Vec::new() };
    let fields = match serde_json::to_value(Line::from(record)) {
        Ok(serde_json::Value::Object(fields)) => fields,
        _ => serde_json::Map::new(),
    };
    let fields = fields.into_iter().filter(|(name, _)| !ELSEWHERE.contains(&name.as_str()));
    LogRecord {
        time_unix_nano: at,
        observed_time_unix_nano: at,
        severity_number: severity.into(),
        severity_text: level.to_owned(),
        body: Some(text(cut(&message(record)))),
        attributes: fields.map(key_value).collect(),
        flags: u32::from(record.trace.flags),
        trace_id: id(in_trace, &record.trace.id.to_be_bytes()),
        span_id: id(has_span, &record.span().to_be_bytes()),
        event_name: "outrigger.access".to_owned(),
        ..Default::default()
    }
}

fn key_value((key, value): (String, serde_json::Value)) -> KeyValue {
    KeyValue { key, value: Some(any_value(value)), ..Default::default() }
}

fn text(text: &str) -> AnyValue {
    AnyValue { value: Some(Value::StringValue(text.to_owned())) }
}

/// As deep as a line is.
fn any_value(value: serde_json::Value) -> AnyValue {
    use serde_json::Value as Json;
    let value = match value {
        Json::String(value) => return text(cut(&value)),
        Json::Bool(value) => Some(Value::BoolValue(value)),
        Json::Number(number) => match number.as_i64() {
            Some(whole) => Some(Value::IntValue(whole)),
            None => number.as_f64().map(Value::DoubleValue),
        },
        Json::Array(all) => {
            let values = all.into_iter().map(any_value).collect();
            Some(Value::ArrayValue(ArrayValue { values }))
        }
        Json::Object(fields) => {
            let values = fields.into_iter().map(key_value).collect();
            Some(Value::KvlistValue(KeyValueList { values }))
        }
        Json::Null => None,
    };
    AnyValue { value }
}

#[cfg(test)]
mod tests {
    use outrigger_logging::Log;

    use super::*;
    use crate::observe::record::TraceContext;

    #[test]
    fn what_waits_is_bounded_and_nothing_waits_without_a_collector() {
        let all = "all".parse().ok();
        let log = Arc::new(AccessLog::new(all, None, Log::unread()));
        let sent = Arc::new(SentLog::new(log));
        let ending = Ending::new(
            crate::base::direction::Direction::Inbound,
            outrigger_core::outcome::Outcome::Success,
            None,
        );
        assert!(!sent.wants(&ending, &|| 0));
        let to = Collector { address: "http://a".to_owned(), protocol: Default::default() };
        sent.configure(Some(&to));
        assert!(sent.wants(&ending, &|| 0));
        let taken = (0..MAX_WAITING + 9).filter(|_| sent.take(Box::new(Record::example())));
        assert_eq!(taken.count(), MAX_WAITING);
        let long =
            || Box::new(Record { path: Some("x".repeat(60_000).into()), ..Record::example() });
        sent.configure(None);
        assert_eq!(lock(&sent.waiting).records.len(), 0, "what nobody is sent is given back");
        let taken = (0..200).filter(|_| sent.take(long())).count();
        assert!((60..80).contains(&taken), "{taken} of 60 KB in 4 MiB");
    }

    #[test]
    fn a_line_has_its_fields_as_attributes_and_its_place_in_the_trace() {
        let trace = TraceContext { id: 0xa, received: 1, sent: 0xb, flags: 1 };
        let path = Some("/".repeat(5_000).into());
        let record = log_record(&Record { trace, path, ..Record::example() });
        assert_eq!((record.trace_id[15], record.span_id[7], record.flags), (0xa, 0xb, 1));
        let of = |name: &str| {
            let one = record.attributes.iter().find(|one| one.key == name);
            one.and_then(|one| one.value.clone()?.value)
        };
        assert_eq!(of("service"), Some(Value::StringValue("bank/orders:80".to_owned())));
        assert_eq!(of("attempts"), Some(Value::IntValue(0)));
        assert!(matches!(of("path"), Some(Value::StringValue(path)) if path.len() == 1_024));
        assert_eq!((of("time"), of("trace_id")), (None, None));
        assert_eq!(record.severity_number, i32::from(SeverityNumber::Info));
        let unrecorded = TraceContext { sent: 0, ..trace };
        let record = log_record(&Record { trace: unrecorded, ..Record::example() });
        assert!(!record.trace_id.is_empty() && record.span_id.is_empty());
        let without = log_record(&Record::example());
        assert!(without.trace_id.is_empty() && without.span_id.is_empty());
    }
}
