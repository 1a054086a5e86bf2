//! A steady load on the gateway: requests leave at fixed moments, whether or not answers come
//! back, and latency counts from the moment at which a request was due. So a stall shows in every
//! request that it delayed, not only in one.
//!
//! One JSON line per second, one per failure as it happens, and a summary at the end.

use std::collections::BTreeMap;
use std::error::Error;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use hdrhistogram::Histogram;
use http::{Method, StatusCode};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::call::{CallError, Caller, PROXY_STATUS};
use crate::context::Context;
use crate::options::Load;
use crate::server::Stop;

/// Beyond this many requests without an answer the generator counts failures of its own, so that
/// a dead gateway does not take all memory.
const MAX_IN_FLIGHT: usize = 20_000;
/// Failures that the summary lists one by one.
const MAX_LISTED: usize = 1_000;

pub(crate) async fn run(load: Load) -> Result<(), Box<dyn Error>> {
    if load.rate == 0 {
        return Err("--rate must be at least 1".into());
    }
    let generator = Arc::new(Generator {
        caller: Caller::new(&load.outbound),
        run_id: format!("{}-{}", std::process::id(), unix_ms()),
        report: Mutex::new(Report::new()),
        load,
    });
    let mut stop = Stop::new()?;
    let mut requests = JoinSet::new();
    tokio::select! {
        () = generator.send_all(&mut requests) => {}
        result = generator.report_seconds() => result?,
        () = stop.requested() => {}
    }
    // Every request ends by its own time limit.
    while requests.join_next().await.is_some() {}
    generator.lock().print_second()?;
    generator.lock().print_summary()?;
    Ok(())
}

struct Generator {
    caller: Caller,
    /// Makes operation ids differ from those of any other run.
    run_id: String,
    report: Mutex<Report>,
    load: Load,
}

#[derive(Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Holdings,
    Sell,
}

#[derive(Clone, Serialize)]
struct Failure {
    kind: Kind,
    #[serde(skip_serializing_if = "Option::is_none")]
    operation_id: Option<String>,
    /// None: there was no response.
    status: Option<u16>,
    /// What a proxy said in `Proxy-Status`.
    reason: Option<String>,
    error: String,
    started_ms: u64,
    ended_ms: u64,
}

impl Generator {
    /// Sends until the time is over.
    async fn send_all(self: &Arc<Self>, requests: &mut JoinSet<()>) {
        let start = Instant::now();
        let end = self.load.duration.map(|duration| start + duration);
        for number in 0u64.. {
            let due =
                start + Duration::from_secs(1).mul_f64(number as f64 / f64::from(self.load.rate));
            if end.is_some_and(|end| due >= end) {
                break;
            }
            sleep_until(due).await;
            while requests.try_join_next().is_some() {}
            if requests.len() < MAX_IN_FLIGHT {
                requests.spawn(Arc::clone(self).one(number, due));
            } else {
                self.lock().not_sent();
            }
        }
    }

    async fn report_seconds(&self) -> io::Result<()> {
        let mut second = tokio::time::interval(Duration::from_secs(1));
        second.tick().await;
        loop {
            second.tick().await;
            self.lock().print_second()?;
        }
    }

    async fn one(self: Arc<Self>, number: u64, due: Instant) {
        let sells = u64::from(self.load.sells);
        let sell = (number + 1) * sells / 100 > number * sells / 100;
        let started_ms = unix_ms();
        let operation_id = sell.then(|| format!("load-{}-{number}", self.run_id));
        self.lock().sent(operation_id.as_ref());
        let account = format!("account-{}", number % u64::from(self.load.accounts));
        let answer = match &operation_id {
            Some(id) => self.sell(&account, id).await,
            None => self.holdings(&account).await,
        };
        let kind = if sell { Kind::Sell } else { Kind::Holdings };
        let mut report = self.lock();
        match answer {
            Ok(version) => report.succeeded(kind, due.elapsed(), version.as_deref()),
            Err((status, reason, error)) => {
                let ended_ms = unix_ms();
                let failure =
                    Failure { kind, operation_id, status, reason, error, started_ms, ended_ms };
                report.failed(due.elapsed(), failure);
            }
        }
    }

    /// The version of market-data that had a part in it.
    async fn holdings(&self, account: &str) -> Result<Option<String>, Wrong> {
        let path = format!("/holdings/{account}");
        let body = self.call(&Context::default(), Method::GET, &path, Bytes::new()).await?;
        match body["market_data"].as_str() {
            Some(version) if body["account"] == account => Ok(Some(version.to_owned())),
            _ => Err(unexpected(&body)),
        }
    }

    async fn sell(&self, account: &str, operation_id: &str) -> Result<Option<String>, Wrong> {
        let mut context = Context::default();
        context.ensure_operation_id(|| operation_id.to_owned());
        let sale = json!({ "account": account, "symbol": "ACME", "shares": 3 });
        let body = sale.to_string().into();
        let body = self.call(&context, Method::POST, "/shares/sell", body).await?;
        if body["operation_id"] == operation_id && body["ledger_entry"].is_u64() {
            return Ok(None);
        }
        Err(unexpected(&body))
    }

    async fn call(
        &self,
        context: &Context,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Value, Wrong> {
        let response = self.caller.send(context, method, &self.load.gateway, path, body).await;
        let response = response.map_err(|error: CallError| (None, None, error.to_string()))?;
        let status = response.status();
        let reason = response.headers().get(PROXY_STATUS).and_then(|v| reason(v.to_str().ok()?));
        if status != StatusCode::OK {
            let text = String::from_utf8_lossy(response.body()).trim().to_owned();
            return Err((Some(status.as_u16()), reason, text));
        }
        serde_json::from_slice(response.body())
            .map_err(|error| (Some(status.as_u16()), reason, error.to_string()))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Report> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Status, reason and text of what went wrong.
type Wrong = (Option<u16>, Option<String>, String);

fn unexpected(body: &Value) -> Wrong {
    (Some(200), None, format!("not the answer to the question: {body}"))
}

/// The first word of `details` in a `Proxy-Status`, else its `error`.
fn reason(proxy_status: &str) -> Option<String> {
    let after = |key: &str| proxy_status.split_once(key).map(|(_, rest)| rest);
    let rest = after("details=\"").or_else(|| after("error="))?;
    let word = rest.split([':', '"', ';', ' ', ',']).next()?;
    (!word.is_empty()).then(|| word.to_owned())
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

struct Report {
    start: Instant,
    second: Counts,
    total: Counts,
    seconds: u64,
    in_flight: u64,
    operation_ids: Vec<String>,
    sells_done: u64,
    failures: Vec<Failure>,
    by_reason: BTreeMap<String, u64>,
}

struct Counts {
    sent: u64,
    completed: u64,
    failed: u64,
    /// Microseconds.
    latency: Histogram<u64>,
    versions: BTreeMap<String, u64>,
}

impl Counts {
    fn new() -> Self {
        let latency = Histogram::new_with_bounds(1, 120_000_000, 3)
            .expect("invariant: these bounds and digits are valid");
        Self { sent: 0, completed: 0, failed: 0, latency, versions: BTreeMap::new() }
    }

    fn done(&mut self, latency: Duration, failed: bool) {
        self.completed += 1;
        self.failed += u64::from(failed);
        self.latency.saturating_record(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX));
    }

    fn percentile(&self, percentile: f64) -> f64 {
        self.latency.value_at_percentile(percentile) as f64 / 1_000.0
    }
}

impl Report {
    fn new() -> Self {
        Self {
            start: Instant::now(),
            second: Counts::new(),
            total: Counts::new(),
            seconds: 0,
            in_flight: 0,
            operation_ids: Vec::new(),
            sells_done: 0,
            failures: Vec::new(),
            by_reason: BTreeMap::new(),
        }
    }

    fn sent(&mut self, operation_id: Option<&String>) {
        self.second.sent += 1;
        self.total.sent += 1;
        self.in_flight += 1;
        self.operation_ids.extend(operation_id.cloned());
    }

    fn succeeded(&mut self, kind: Kind, latency: Duration, version: Option<&str>) {
        self.in_flight -= 1;
        self.sells_done += u64::from(kind == Kind::Sell);
        for counts in [&mut self.second, &mut self.total] {
            counts.done(latency, false);
            if let Some(version) = version {
                *counts.versions.entry(version.to_owned()).or_default() += 1;
            }
        }
    }

    fn failed(&mut self, latency: Duration, failure: Failure) {
        self.in_flight -= 1;
        self.second.done(latency, true);
        self.total.done(latency, true);
        let status = failure.status.map_or_else(|| "none".to_owned(), |code| code.to_string());
        let reason = failure.reason.as_deref().unwrap_or("-");
        *self.by_reason.entry(format!("{status} {reason}")).or_default() += 1;
        // A closed pipe shows at the next second's line.
        let _ = print(&json!({ "failure": failure }));
        if self.failures.len() < MAX_LISTED {
            self.failures.push(failure);
        }
    }

    /// The generator itself is at its limit.
    fn not_sent(&mut self) {
        self.second.failed += 1;
        self.total.failed += 1;
        *self.by_reason.entry("none too_many_in_flight".to_owned()).or_default() += 1;
    }

    fn print_second(&mut self) -> io::Result<()> {
        let second = std::mem::replace(&mut self.second, Counts::new());
        self.seconds += 1;
        print(&json!({
            "second": self.seconds,
            "at_ms": unix_ms(),
            "sent": second.sent,
            "completed": second.completed,
            "failed": second.failed,
            "in_flight": self.in_flight,
            "p50_ms": second.percentile(50.0),
            "p99_ms": second.percentile(99.0),
            "versions": second.versions,
        }))
    }

    fn print_summary(&self) -> io::Result<()> {
        let total = &self.total;
        print(&json!({ "summary": {
            "seconds": self.start.elapsed().as_secs_f64(),
            "sent": total.sent,
            "completed": total.completed,
            "failed": total.failed,
            "by_reason": self.by_reason,
            "latency_ms": {
                "p50": total.percentile(50.0),
                "p90": total.percentile(90.0),
                "p99": total.percentile(99.0),
                "p99.9": total.percentile(99.9),
                "max": total.latency.max() as f64 / 1_000.0,
            },
            "versions": total.versions,
            "sells": {
                "sent": self.operation_ids.len(),
                "succeeded": self.sells_done,
                "operation_ids": self.operation_ids,
            },
            "failures": self.failures,
        }}))
    }
}

fn print(line: &Value) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_the_first_word_of_the_details() {
        let cases = [
            (
                "outrigger; error=connection_refused; details=\"connect_failed: 1.2.3.4\"",
                Some("connect_failed"),
            ),
            ("outrigger; error=dns_error; details=\"dns_error\"", Some("dns_error")),
            ("other; error=connection_timeout", Some("connection_timeout")),
            ("other", None),
        ];
        for (value, want) in cases {
            assert_eq!(reason(value).as_deref(), want, "{value}");
        }
    }
}
