//! What our proxy costs when nothing happens, what an idle connection costs, what the first request
//! to a destination costs, and whether two workers share long-lived connections.

use std::fmt;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::Failure;
use crate::measure::{get, pause, pss};
use crate::peers::{Build, OTHER_CPU, Places, Running};

/// Idle connections opened, as the promise says, all at once.
const CONNECTIONS: u64 = 1_000;
/// How long they rest before they are measured: until the thousand connections to the app that they
/// needed for a moment have been given up, and their memory with them.
const REST: Duration = Duration::from_secs(8);
/// Destinations dialled for the first time; enough for a 99th percentile.
const DESTINATIONS: usize = 200;
/// Idle after the first configuration, in KiB.
const MOST_IDLE: f64 = 10.0 * 1024.0;
/// For each idle HTTP/1.1 connection after one served request, in KB (1,000 bytes).
const MOST_EACH: f64 = 6.0;
/// For each idle HTTP/2 connection, likewise, to be reached.
const MOST_H2: f64 = 12.0;
/// p99 of a first request above a second one, in milliseconds.
const MOST_FIRST: f64 = 20.0;
/// Share of requests of the busier of two workers, in percent.
const MOST_SHARE: f64 = 60.0;

/// One promise with what was measured.
#[derive(Serialize)]
pub struct Line {
    what: String,
    value: f64,
    at_most: f64,
    unit: &'static str,
    pub holds: bool,
    /// To be reached: the result of the bench does not depend on it yet.
    pub goal: bool,
}

impl Line {
    /// A promise that is to be reached.
    pub fn goal(what: &str, value: f64, at_most: f64, unit: &'static str) -> Self {
        Self { goal: true, ..line(what, value, at_most, unit) }
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match (self.holds, self.goal) {
            (true, _) => "holds",
            (false, true) => "goal ",
            (false, false) => "FAILS",
        };
        let Self { what, value, at_most, unit, .. } = self;
        write!(f, "{verdict} {what:<60} {value:.1} {unit}, at most {at_most:.1}")
    }
}

pub fn line(what: &str, value: f64, at_most: f64, unit: &'static str) -> Line {
    Line { what: what.to_owned(), value, at_most, unit, holds: value <= at_most, goal: false }
}

pub fn measure(running: &mut Running, places: &Places) -> Result<Vec<Line>, Failure> {
    let mut lines = idle(running, places)?;
    lines.push(first_requests(running, places)?);
    lines.push(shares(running, places)?);
    Ok(lines)
}

fn idle(running: &mut Running, places: &Places) -> Result<Vec<Line>, Failure> {
    let mut lines = Vec::new();
    for (protocol, kind, most) in [("HTTP/1.1", "idle", MOST_EACH), ("HTTP/2", "idle-h2", MOST_H2)]
    {
        let listen = ["--listen", "127.0.0.1:19901=h1.bench:80,127.0.0.1:19903=h2.bench:80"];
        let port = if kind == "idle" { 19_901 } else { 19_903 };
        Build::NOW.proxy(running, places, "memory", 19_990, &listen)?;
        wait_ready(19_992)?;
        let pids = running.pids("memory");
        let before = pss(&pids);
        let mut caller = hold(places, kind, port)?;
        let each = |now: u64| now.saturating_sub(before) as f64 * 1.024 / CONNECTIONS as f64;
        let at_once = each(pss(&pids));
        pause(REST);
        let rested = each(pss(&pids));
        drop(caller.stdin.take());
        let _ = caller.wait();
        running.stop("memory");
        if lines.is_empty() {
            lines.push(line(
                "idle after first configuration (PSS)",
                before as f64,
                MOST_IDLE,
                "KiB",
            ));
        }
        let what = format!("each of 1,000 idle {protocol} connections (at first {at_once:.1})");
        lines.push(match kind {
            "idle" => line(&what, rested, most, "KB"),
            _ => Line::goal(&what, rested, most, "KB"),
        });
    }
    Ok(lines)
}

/// Opens the idle connections; they stay until the caller's standard input ends.
fn hold(places: &Places, kind: &str, port: u16) -> Result<Child, Failure> {
    let mut caller = Command::new("taskset")
        .args(["-c", OTHER_CPU])
        .arg(places.bin.join("load"))
        .args(["--kind", kind, "--address", &format!("127.0.0.1:{port}")])
        .args(["--connections", &CONNECTIONS.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let out = caller.stdout.take().ok_or("the caller has no output")?;
    let mut said = String::new();
    BufReader::new(out).read_line(&mut said)?;
    if !said.contains(&format!("\"requests\":{CONNECTIONS}")) {
        return Err(format!("not every idle connection was served: {said}").into());
    }
    Ok(caller)
}

fn first_requests(running: &mut Running, places: &Places) -> Result<Line, Failure> {
    let file = places.work.join("manifests/many.yaml");
    let services: Vec<String> = (0..DESTINATIONS).map(service).collect();
    fs::write(&file, services.join("---\n"))?;
    // The control plane must know the last one before the proxy asks.
    wait_for(|| get(19_782, "admin", "/index").is_ok_and(|text| text.contains("many-199")))?;
    Build::NOW.proxy(running, places, "first", 19_980, &[])?;
    wait_ready(19_982)?;
    let mut extra = Vec::new();
    for i in 0..DESTINATIONS {
        let [first, second] = [0; 2].map(|_| {
            let began = Instant::now();
            let answer = get(19_980, &format!("many-{i}.bench"), "/bench");
            (began.elapsed(), answer)
        });
        if !(first.1?.starts_with("HTTP/1.1 200") && second.1?.starts_with("HTTP/1.1 200")) {
            return Err(format!("many-{i} did not answer").into());
        }
        extra.push((first.0.as_secs_f64() - second.0.as_secs_f64()) * 1e3);
    }
    running.stop("first");
    fs::remove_file(&file)?;
    extra.sort_by(f64::total_cmp);
    let p99 = extra[DESTINATIONS * 99 / 100];
    Ok(line("first request to a destination above the second, p99", p99, MOST_FIRST, "ms"))
}

fn service(i: usize) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: many-{i}, namespace: bench}}\n\
         spec: {{ports: [{{name: http, port: 80}}]}}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: many-{i}, namespace: bench, labels: {{kubernetes.io/service-name: many-{i}}}}}\n\
         addressType: IPv4\nports: [{{name: http, port: 19001}}]\n\
         endpoints: [{{addresses: [\"127.0.0.1\"], conditions: {{ready: true}}}}]\n"
    )
}

fn shares(running: &mut Running, places: &Places) -> Result<Line, Failure> {
    let more = ["--listen", "127.0.0.1:19902=h2.bench:80", "--workers", "2"];
    Build::NOW.proxy(running, places, "shares", 19_970, &more)?;
    wait_ready(19_972)?;
    let done = Command::new("h2load")
        .args(["-c4", "-m16", "-n40000", "http://127.0.0.1:19902/bench"])
        .stdout(Stdio::null())
        .status()?;
    if !done.success() {
        return Err("h2load failed".into());
    }
    let metrics = get(19_972, "admin", "/metrics")?;
    running.stop("shares");
    let each: Vec<f64> = metrics
        .lines()
        .filter(|line| line.starts_with("outrigger_worker_requests_total"))
        .filter_map(|line| line.rsplit(' ').next()?.parse().ok())
        .collect();
    let most = each.iter().copied().fold(0.0, f64::max);
    let share = 100.0 * most / each.iter().sum::<f64>().max(1.0);
    Ok(line("busier of 2 workers with 4 HTTP/2 connections", share, MOST_SHARE, "%"))
}

pub fn wait_ready(admin: u16) -> Result<(), Failure> {
    wait_for(|| get(admin, "admin", "/ready").is_ok_and(|text| text.starts_with("HTTP/1.1 200")))
}

pub fn wait_for(mut holds: impl FnMut() -> bool) -> Result<(), Failure> {
    let end = Instant::now() + Duration::from_secs(20);
    while !holds() {
        if Instant::now() > end {
            return Err("waited 20 s in vain".into());
        }
        pause(Duration::from_millis(20));
    }
    Ok(())
}
