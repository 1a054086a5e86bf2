//! docs/observability.md: every command of it in a mesh that fails as the document tells, and what it prints.
//!
//! With OUTRIGGER_RECORD_DOCS=1 what is printed is written into the document.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use outrigger_tests::app::{Echo, Relay};
use outrigger_tests::client::{Curl, has};
use outrigger_tests::collector::Collector;
use outrigger_tests::manifests::{service, traffic_policy};
use outrigger_tests::process::{AS_TOLD, ControlPlane, Proxy, binary, local};
use outrigger_tests::{eventually, skip, within};

use serde_json::Value;

use crate::monitoring::Prometheus;

const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/observability.md");

/// A block that is run, and what follows it.
struct Step {
    command: String,
    printed: Option<String>,
}

fn steps(document: &str) -> Vec<Step> {
    let blocks = document.split("```sh\n").skip(1);
    let step = |rest: &str| {
        let (command, after) = rest.split_once("```\n").expect("the end of a block");
        let printed = after.trim_start().strip_prefix("```text\n");
        let printed = printed.and_then(|text| Some(text.split_once("```")?.0.to_owned()));
        Step { command: command.to_owned(), printed }
    };
    blocks.map(step).collect()
}

/// Without what differs from run to run: numbers and ids, and how far columns are apart.
fn alike(text: &str) -> String {
    let id = |word: &str| word.len() >= 16 && word.chars().all(|c| c.is_ascii_hexdigit());
    let line = |line: &str| {
        let words = line.split(|c: char| !c.is_ascii_alphanumeric());
        let ids = words.filter(|word| id(word));
        let line = ids.fold(line.to_owned(), |line, one| line.replace(one, "ID"));
        let mut out = String::new();
        for c in line.split_whitespace().collect::<Vec<_>>().join(" ").chars() {
            let is_number = c.is_ascii_digit() || (c == '.' && out.ends_with('0'));
            match is_number {
                true if out.ends_with('0') => {}
                true => out.push('0'),
                false => out.push(c),
            }
        }
        out + "\n"
    };
    text.lines().map(line).collect()
}

fn run(command: &str, variables: &[(&str, String)]) -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    let bin = binary("outrigger");
    let folder = bin.parent().expect("a folder");
    let out = Command::new("sh")
        .args(["-c", command])
        .envs(variables.iter().map(|(name, value)| (name, value)))
        .env("PATH", format!("{}:{path}", folder.display()))
        .output()
        .expect("a shell");
    assert!(out.status.success(), "{command}: {out:?}");
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// `web` calls `orders`, which calls `fees` and gets no answer within its deadline.
struct Bank {
    web: Proxy,
    orders: Proxy,
    _fees: Proxy,
    plane: ControlPlane,
    _apps: [Echo; 2],
}

impl Bank {
    fn start(collector: &Collector) -> Self {
        let apps = [Echo::start("web"), Echo::start("fees")];
        let relay = Relay::start("fees.bank", &["x-request-id"]);
        let mut manifests = traffic_policy("fees", "  timeouts: {firstByte: 50ms}\n");
        for name in ["web", "orders", "fees"] {
            manifests.push_str(&format!("---\n{}", service(name, "")));
        }
        let traces = format!("http://{}", local(collector.grpc));
        let flags = ["--identity", "on", "--traces", &traces, "--trace-ratio", "0"];
        let plane = ControlPlane::start_with(&[("bank.yaml", &manifests)], &flags);
        let beside = |name: &str, port: u16| {
            Proxy::beside(&plane, name, &[format!("{port}=h1:main")], &[AS_TOLD])
        };
        let (web, fees) = (beside("web", apps[0].port), beside("fees", apps[1].port));
        let orders = beside("orders", relay.port);
        relay.calls_through(orders.outbound);
        Self { web, orders, _fees: fees, plane, _apps: apps }
    }

    fn order(&self) -> u16 {
        Curl::through(&self.web).get("http://orders.bank/sleep/400").status
    }
}

/// Also where the test fails: others would wait for the caller.
struct StopsAtItsEnd<'a>(&'a AtomicBool);

impl Drop for StopsAtItsEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

#[test]
fn the_commands_of_the_document_lead_from_the_alert_to_the_cause() {
    for program in ["prometheus", "promtool", "jq"] {
        if !has(program) {
            let test = "walk::the_commands_of_the_document_lead_from_the_alert_to_the_cause";
            return skip(test, &format!("{program} is not installed"));
        }
    }
    let collector = Collector::start();
    let bank = Bank::start(&collector);
    let prometheus = Prometheus::scrape(
        &bank.plane,
        &[("web", bank.web.admin), ("orders", bank.orders.admin)],
        "exemplar-storage",
    );
    eventually("orders fail", || bank.order() == 504);
    let variables = [
        ("PROMETHEUS", local(prometheus.port).to_string()),
        ("PLANE", local(bank.plane.admin).to_string()),
        ("ORDERS", local(bank.orders.admin).to_string()),
        ("ORDERS_LOG", bank.orders.dir.path().join("proxy.log").display().to_string()),
        ("TOKEN", bank.plane.tap_token("bank").display().to_string()),
    ];
    let document = fs::read_to_string(DOCUMENT).expect("the document");
    let mut recorded = document.clone();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Relaxed) {
                bank.order();
            }
        });
        let _stops = StopsAtItsEnd(&stop);
        within(Duration::from_secs(60), "the alerts are there", || {
            prometheus.has_data("count(ALERTS{alertname=~\"OutriggerErrorBudgetBurn.*\"}) == 4")
        });
        within(Duration::from_secs(30), "the graph has seen both edges", || {
            let graph: Value = serde_json::from_str(&bank.plane.admin("/graph")).expect("JSON");
            let edges = graph["edges"].as_array().expect("edges");
            edges.iter().filter(|edge| edge["success_rate"] == 0.0).count() == 2
        });
        let all = steps(&document);
        assert_eq!(all.len(), 6);
        for Step { command, printed } in all {
            let now = run(&command, &variables);
            let block = format!("```sh\n{command}```\n");
            let old = printed.as_ref().map(|text| format!("\n```text\n{text}```\n"));
            let old = format!("{block}{}", old.unwrap_or_default());
            recorded = recorded.replace(&old, &format!("{block}\n```text\n{now}```\n"));
            if std::env::var_os("OUTRIGGER_RECORD_DOCS").is_none() {
                assert_eq!(alike(&now), alike(&printed.unwrap_or_default()), "{command}");
            }
        }
    });
    if std::env::var_os("OUTRIGGER_RECORD_DOCS").is_some() {
        fs::write(Path::new(DOCUMENT), recorded).expect("the document");
    }
    // And the trace is there, whole, although none was drawn.
    let line = bank.orders.log();
    let line = line.lines().rfind(|line| line.contains("\"log\":\"access\"")).expect("a line");
    let line: Value = serde_json::from_str(line).expect("JSON");
    let id = line["trace_id"].as_str().expect("a trace");
    eventually("the request's trace is in the backend", || {
        let spans: Vec<_> = collector.spans().into_iter().filter(|span| span.trace == id).collect();
        let of = |service: &str| spans.iter().any(|span| span.service == service && span.failed);
        of("web")
            && of("orders")
            && spans.iter().any(|span| span.events.iter().any(|e| e == "policy"))
    });
}
