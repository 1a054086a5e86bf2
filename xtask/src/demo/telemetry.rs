//! `cargo xtask demo --story telemetry`: one sell order followed through the whole bank, attempts made visible, and
//! every failed request in the backend although one of a hundred traces is recorded.
//!
//! The backend is `oteltap` (PyPI), which prints each span that it takes by OTLP as a line of JSON.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use serde_json::{Value, json};

use super::process::Process;
use super::{Demo, Halt, http};

const BACKEND: &str = "oteltap";
/// How long a trace may take to be whole: proxies send once a second.
const WHOLE: Duration = Duration::from_secs(15);
/// The same for every failed request.
const ALL_THERE: Duration = Duration::from_secs(20);
const REQUESTS: usize = 200;
/// What the control plane is told: one trace of a hundred is recorded for itself.
const RATIO: &str = "0.01";
/// Good requests that may be there at that ratio without anyone having to wonder (chance of more: 1 in 10^9).
const FEW: usize = 15;
/// What the gateway calls its own span of a sale, made with the OpenTelemetry SDK.
const OWN: &str = "sell shares";
/// Services that a sell order passes over HTTP.
const SALE: [&str; 5] = ["gateway", "orders", "market", "fees", "account-transactions"];

/// The backend, and what it took.
#[derive(Debug)]
pub(crate) struct Backend {
    process: Process,
    lines: Receiver<String>,
    spans: Vec<Span>,
}

#[derive(Clone, Debug)]
struct Span {
    trace: String,
    id: String,
    parent: String,
    name: String,
    kind: u64,
    failed: bool,
    attributes: BTreeMap<String, String>,
}

impl Backend {
    /// None: it is not installed.
    pub(crate) fn start(address: SocketAddr, logs: &Path) -> io::Result<Option<Self>> {
        let mut command = Command::new(BACKEND);
        command.args(["--port", &address.port().to_string()]);
        match Process::start_reading(BACKEND, command, logs) {
            Ok((process, lines)) => Ok(Some(Self { process, lines, spans: Vec::new() })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What the control plane is started with.
    pub(crate) fn flags(address: SocketAddr) -> Vec<String> {
        let flags =
            ["--trace-protocol", "http", "--trace-ratio", RATIO, "--trace-slower-than", "0s"];
        let address = ["--traces".to_owned(), format!("http://{address}")];
        address.into_iter().chain(flags.map(str::to_owned)).collect()
    }

    fn read(&mut self) -> &[Span] {
        let new = self.lines.try_iter().filter_map(|line| span(&serde_json::from_str(&line).ok()?));
        self.spans.extend(new);
        &self.spans
    }

    fn of_trace(&mut self, trace: &str) -> Vec<Span> {
        self.read().iter().filter(|span| span.trace == trace).cloned().collect()
    }

    pub(crate) fn stop(mut self) {
        self.process.kill();
    }
}

fn span(line: &Value) -> Option<Span> {
    let text = |key: &str| Some(line[key].as_str()?.to_owned());
    let attributes = line["attributes"].as_array()?.iter().filter_map(|one| {
        let value = &one["value"];
        let value = value["stringValue"].as_str().or_else(|| value["intValue"].as_str())?;
        Some((one["key"].as_str()?.to_owned(), value.to_owned()))
    });
    Some(Span {
        trace: text("traceId")?,
        id: text("spanId")?,
        parent: text("parentSpanId")?,
        name: text("name")?,
        kind: line["kind"].as_u64()?,
        failed: line["status"]["code"] == 2,
        attributes: attributes.collect(),
    })
}

impl Span {
    fn of(&self, name: &str) -> &str {
        self.attributes.get(name).map_or("", String::as_str)
    }

    fn is_server(&self) -> bool {
        self.kind == SERVER
    }

    /// The service that was called, without its namespace.
    fn service(&self) -> &str {
        self.of("server.address").rsplit('/').next().unwrap_or_default()
    }
}

/// Kinds of spans, as OTLP numbers them.
const INTERNAL: u64 = 1;
const SERVER: u64 = 2;

/// What was to be seen, and was or was not.
#[derive(Debug, Default)]
struct Verdicts(Vec<(&'static str, bool, String)>);

impl Verdicts {
    fn add(&mut self, what: &'static str, held: bool, said: String) {
        self.0.push((what, held, said));
    }

    /// Whether all held.
    fn show(&self, demo: &mut Demo) -> bool {
        demo.screen.say("\nVERDICT");
        for (what, held, said) in &self.0 {
            let word = if *held { "ok" } else { "FAILED" };
            demo.screen.say(&format!("{what:<12} {word:<7} {said}"));
        }
        self.0.iter().all(|(_, held, _)| *held)
    }
}

pub(super) fn play(demo: &mut Demo) -> Result<bool, Halt> {
    let mut verdicts = Verdicts::default();
    let Some(mut backend) = demo.backend.take() else {
        demo.screen.say(
            "skipped: the backend that traces are sent to and read back from is not installed: pip install oteltap",
        );
        return Ok(true);
    };
    let result = one_sale(demo, &mut backend, &mut verdicts)
        .and_then(|()| attempts(demo, &mut backend, &mut verdicts))
        .and_then(|()| failures(demo, &mut backend, &mut verdicts));
    backend.stop();
    result?;
    Ok(verdicts.show(demo))
}

/// Sells shares as a client that records its trace; its id and the id of its span.
fn sell(demo: &Demo, number: usize) -> Result<(String, String, u16), Halt> {
    let (trace, parent) =
        (format!("{:032x}", 0xba2c_0000 + number), format!("{:016x}", 1 + number));
    let sale = json!({ "account": format!("{number}"), "symbol": "ACME", "shares": 3 });
    let headers = [
        ("traceparent", format!("00-{trace}-{parent}-01")),
        ("x-operation-id", format!("telemetry-{number}")),
        ("content-type", "application/json".to_owned()),
    ];
    let outbound = demo.fleet.callers_proxy.outbound;
    let answer = http::through(
        outbound,
        "POST",
        "gateway.bank:8000",
        "/shares/sell",
        &headers,
        &sale.to_string(),
    )?;
    Ok((trace, parent, answer.status))
}

fn one_sale(demo: &mut Demo, backend: &mut Backend, verdicts: &mut Verdicts) -> Result<(), Halt> {
    demo.title("one sell order is one trace over every service".to_owned());
    let (trace, parent, status) = sell(demo, 1)?;
    let mut spans = Vec::new();
    demo.until(WHOLE, |_| {
        spans = backend.of_trace(&trace);
        missing(&spans).is_empty()
    })?;
    show(demo, &spans, &parent, 1);
    let mut problems = Vec::new();
    if status != 200 {
        problems.push(format!("the order was answered {status}"));
    }
    let missing = missing(&spans);
    if !missing.is_empty() {
        problems.push(format!("not in the trace: {missing:?}"));
    }
    let orphans: Vec<_> = spans
        .iter()
        .filter(|span| span.parent != parent && spans.iter().all(|other| other.id != span.parent))
        .map(|span| span.name.as_str())
        .collect();
    if !orphans.is_empty() {
        problems.push(format!("spans without their parent: {orphans:?}"));
    }
    let servers = spans.iter().filter(|span| span.is_server()).count();
    let said = format!(
        "{} spans, {servers} of servers, 1 of the app itself, every parent there",
        spans.len()
    );
    verdicts.add("one trace", problems.is_empty(), problems.pop().unwrap_or(said));
    Ok(())
}

/// Services of a sale that have no server's span in the trace, and the gateway's own one if that is missing.
fn missing(spans: &[Span]) -> BTreeSet<&'static str> {
    let is_there = |name: &str| {
        spans.iter().any(|span| match name {
            OWN => span.name == OWN,
            _ => span.is_server() && span.service() == name,
        })
    };
    SALE.iter().chain([&OWN]).filter(|name| !is_there(name)).copied().collect()
}

/// Draws what is below a span.
fn show(demo: &mut Demo, spans: &[Span], parent: &str, depth: usize) {
    for span in spans.iter().filter(|span| span.parent == parent) {
        let kind = match span.kind {
            INTERNAL if span.attributes.contains_key("outrigger.outcome") => "attempts of",
            INTERNAL => "app",
            SERVER => "server",
            _ => "client",
        };
        let result = match (span.of("error.type"), span.failed) {
            ("", false) => String::new(),
            (why, _) => format!("  FAILED {why}"),
        };
        let indent = "  ".repeat(depth.min(20));
        demo.screen.say(&format!("{indent}{kind} {}{result}", span.name));
        show(demo, spans, &span.id, depth + 1);
    }
}

const RETRIES: &str = "\
apiVersion: outrigger.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: fees-retries, namespace: bank}
spec:
  targetRefs: [{kind: Service, name: fees}]
  retries: {maxAttempts: 3, when: {statuses: [500]}, nonIdempotent: true}
  retryBudget: {percent: 100, minPerSecond: 100}
";

fn attempts(demo: &mut Demo, backend: &mut Backend, verdicts: &mut Verdicts) -> Result<(), Halt> {
    demo.title(
        "fees fails every other request, a policy retries: each attempt is a span".to_owned(),
    );
    let file = demo.fleet.stage.manifests().join("fees-retries.yaml");
    let draft = file.with_extension("draft");
    std::fs::write(&draft, RETRIES)?;
    std::fs::rename(&draft, &file)?;
    fault(demo, "fees", 0.5)?;
    let mut number = 100;
    let mut found = None;
    demo.until(WHOLE, |demo| {
        number += 1;
        if let Ok((trace, parent, _)) = sell(demo, number) {
            let whole = demo
                .until(Duration::from_secs(3), |_| missing(&backend.of_trace(&trace)).is_empty());
            let spans = backend.of_trace(&trace);
            let retried = spans.iter().any(|span| {
                span.of("http.request.resend_count") == "1" || span.of("outrigger.attempts") == "2"
            });
            if whole.is_ok() && retried {
                found = Some((spans, parent));
            }
        }
        found.is_some()
    })?;
    fault(demo, "fees", 0.0)?;
    let Some((spans, parent)) = found else {
        verdicts.add("attempts", false, "no trace shows an attempt that was made again".to_owned());
        return Ok(());
    };
    show(demo, &spans, &parent, 1);
    let failed =
        spans.iter().filter(|span| !span.is_server() && span.failed && span.service() == "fees");
    let failed = failed.count();
    let said = format!("{failed} failed attempt and the one that was answered, below one request");
    verdicts.add("attempts", failed >= 1, said);
    Ok(())
}

fn failures(demo: &mut Demo, backend: &mut Backend, verdicts: &mut Verdicts) -> Result<(), Halt> {
    demo.title(format!("market-data fails a third of {REQUESTS} requests, at a ratio of {RATIO}"));
    fault(demo, "market-data", 0.34)?;
    let (mut failed, mut good) = (Vec::new(), Vec::new());
    for number in 0..REQUESTS {
        let id = format!("telemetry-{number}");
        let headers = [("x-request-id", id.clone())];
        let outbound = demo.fleet.callers_proxy.outbound;
        let answer =
            http::through(outbound, "GET", "gateway.bank:8000", "/holdings/1", &headers, "")?;
        if answer.status == 200 { &mut good } else { &mut failed }.push(id);
    }
    fault(demo, "market-data", 0.0)?;
    let mut there = 0;
    demo.until(ALL_THERE, |_| {
        let by_id = by_request(backend.read());
        there = failed.iter().filter(|id| is_whole(by_id.get(id.as_str()))).count();
        there == failed.len()
    })?;
    let by_id = by_request(backend.read());
    let drawn = good.iter().filter(|id| by_id.contains_key(id.as_str())).count();
    let said = format!(
        "{} of {REQUESTS} failed, {there} of them are in the backend, and {drawn} of the {} good ones",
        failed.len(),
        good.len()
    );
    let held = !failed.is_empty() && there == failed.len() && drawn <= FEW;
    verdicts.add("failures", held, said);
    Ok(())
}

fn by_request(spans: &[Span]) -> BTreeMap<&str, Vec<&Span>> {
    let mut by_id: BTreeMap<&str, Vec<&Span>> = BTreeMap::new();
    for span in spans {
        by_id.entry(span.of("outrigger.request_id")).or_default().push(span);
    }
    by_id
}

/// From the caller down to the service that failed.
fn is_whole(spans: Option<&Vec<&Span>>) -> bool {
    let servers = |name: &str| {
        spans.is_some_and(|spans| {
            spans.iter().any(|span| span.is_server() && span.service() == name)
        })
    };
    servers("gateway") && servers("holdings") && servers("market-data")
}

fn fault(demo: &Demo, role: &str, ratio: f64) -> Result<(), Halt> {
    for member in demo.fleet.of_role(role) {
        member.change_fault("fail_ratio", &json!(ratio))?;
    }
    Ok(())
}
