//! `outrigger tap`: requests of workloads while they happen.

use std::fmt::Write as _;
use std::io::{self, ErrorKind, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::{Body, Bytes, Incoming};
use hyper::header::{AUTHORIZATION, HOST};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

/// How long the control plane may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// Bytes of a line; the control plane's are shorter.
const MAX_LINE: usize = 1024 * 1024;
/// Bytes of what is said of a refusal.
const MAX_REFUSAL: usize = 64 * 1024;

/// Show requests of workloads while they happen, as their proxies see them.
///
/// Every condition that is given has to hold. Bodies and queries are never shown, headers only where the control plane
/// lets them be. It shows what has ended: a request that hangs appears when it is given up.
#[derive(Debug, Args)]
#[command(
    after_help = "EXAMPLES:\n  outrigger tap bank/orders --status 5xx\n  outrigger tap bank --slower-than 250ms --direction inbound --limit 20\n  outrigger tap bank/web --service bank/orders --path /orders --header user-agent --json\n\nIN A CLUSTER:\n  kubectl -n outrigger-system port-forward deployment/outrigger-control-plane 4782 &\n  kubectl create token oncall >token\n  outrigger tap bank/orders --token-file token\n\nELSEWHERE:\n  outrigger-control-plane token --tap --namespace bank --state-dir STATE >token\n\nDocs: docs/tap.md"
)]
pub(crate) struct Options {
    /// Whose requests: a namespace, or NAMESPACE/NAME with the name of an app or of one workload
    #[arg(value_name = "TARGET")]
    target: String,

    /// Only requests that the app makes (outbound) or gets (inbound)
    #[arg(long, value_name = "DIRECTION")]
    direction: Option<String>,

    /// Only requests to this service, as in bank, bank/orders or bank/orders:80
    #[arg(long, value_name = "SERVICE")]
    service: Option<String>,

    /// Only requests whose other end is this one, as in bank or bank/web
    #[arg(long, value_name = "PEER")]
    peer: Option<String>,

    /// Only requests of this method
    #[arg(long, value_name = "METHOD")]
    method: Option<String>,

    /// Only requests whose path begins so
    #[arg(long, value_name = "PREFIX")]
    path: Option<String>,

    /// Only requests that were answered so, as in 503 or 5xx
    #[arg(long, value_name = "STATUS")]
    status: Option<String>,

    /// Only requests with this reason of docs/reasons.md, as in no_endpoint
    #[arg(long, value_name = "REASON")]
    reason: Option<String>,

    /// Only requests that took longer, as in 250ms or 2s
    #[arg(long, value_name = "DURATION")]
    slower_than: Option<String>,

    /// Also show this header of the request; may be given several times
    #[arg(long = "header", value_name = "NAME")]
    headers: Vec<String>,

    /// Requests that each proxy shows within a second, at most 1000
    #[arg(long, value_name = "REQUESTS", default_value_t = 100)]
    max_per_second: u32,

    /// How long to watch, at most 1h
    #[arg(long = "for", value_name = "DURATION", default_value = "5m")]
    lasts: String,

    /// Stop after so many requests
    #[arg(long, value_name = "REQUESTS")]
    limit: Option<u64>,

    /// Print each request as a JSON object, with all that is known of it
    #[arg(long)]
    json: bool,

    /// Admin address of the control plane
    #[arg(
        long,
        env = "OUTRIGGER_CONTROL_PLANE_ADMIN",
        value_name = "HOST:PORT",
        default_value = "127.0.0.1:4782"
    )]
    address: String,

    /// File with the token that says who you are
    #[arg(long, env = "OUTRIGGER_TAP_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
}

pub(crate) fn run(options: &Options) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let done = match runtime {
        Ok(runtime) => runtime.block_on(async {
            tokio::select! {
                done = tap(options) => done,
                _ = tokio::signal::ctrl_c() => Ok(()),
            }
        }),
        Err(error) => Err(error.to_string()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "error: {error}");
            ExitCode::FAILURE
        }
    }
}

impl Options {
    fn query(&self) -> String {
        let (namespace, workload) = match self.target.split_once('/') {
            Some((namespace, workload)) => (namespace, Some(workload)),
            None => (self.target.as_str(), None),
        };
        let headers = (!self.headers.is_empty()).then(|| self.headers.join(","));
        let max_per_second = self.max_per_second.to_string();
        let all = [
            ("namespace", Some(namespace)),
            ("workload", workload),
            ("direction", self.direction.as_deref()),
            ("service", self.service.as_deref()),
            ("peer", self.peer.as_deref()),
            ("method", self.method.as_deref()),
            ("path", self.path.as_deref()),
            ("status", self.status.as_deref()),
            ("reason", self.reason.as_deref()),
            ("slower_than", self.slower_than.as_deref()),
            ("headers", headers.as_deref()),
            ("max_per_second", Some(&max_per_second)),
            ("for", Some(&self.lasts)),
        ];
        let given = all.into_iter().filter_map(|(name, value)| Some((name, value?)));
        form_urlencoded::Serializer::new(String::new()).extend_pairs(given).finish()
    }

    fn token(&self) -> Result<Option<String>, String> {
        let Some(path) = &self.token_file else { return Ok(None) };
        let text = std::fs::read_to_string(path)
            .map_err(|error| format!("--token-file {}: {error}", path.display()))?;
        Ok(Some(text.trim().to_owned()))
    }
}

async fn tap(options: &Options) -> Result<(), String> {
    let mut request = Request::get(format!("/tap?{}", options.query())).header(HOST, "localhost");
    if let Some(token) = options.token()? {
        request = request.header(AUTHORIZATION, format!("Bearer {token}"));
    }
    let request = request.body(Empty::<Bytes>::new());
    let request = request.map_err(|error| format!("--token-file: not a token: {error}"))?;
    let answer = ask(&options.address, request).await?;
    if !answer.status().is_success() {
        return Err(refusal(answer).await);
    }
    let mut body = answer.into_body();
    let mut shown = Shown { options, requests: 0, proxies: None, not_shown: 0 };
    let mut rest: Vec<u8> = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| format!("the control plane is gone: {error}"))?;
        let Ok(data) = frame.into_data() else { continue };
        rest.extend_from_slice(&data);
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = rest.drain(..=end).collect();
            match shown.line(&line) {
                Ok(true) => {}
                Ok(false) => return Ok(()),
                // Anyone who reads this has enough.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
                Err(error) => return Err(format!("stdout: {error}")),
            }
        }
        if rest.len() > MAX_LINE {
            return Err(format!("{} does not answer as a control plane does", options.address));
        }
    }
    Err("the control plane is gone".to_owned())
}

async fn ask(address: &str, request: Request<Empty<Bytes>>) -> Result<Response<Incoming>, String> {
    let connected = tokio::time::timeout(CONNECT, TcpStream::connect(address)).await;
    let connected = connected.unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()));
    let stream = connected.map_err(|error| {
        format!(
            "the control plane's admin server at {address}: {error}; --address names another one, and in a cluster \
             `kubectl port-forward` leads to it"
        )
    })?;
    let failed =
        |error: hyper::Error| format!("{address} does not answer as a control plane does: {error}");
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    tokio::spawn(connection);
    let answer = tokio::time::timeout(2 * CONNECT, sender.send_request(request)).await;
    answer.map_err(|_| format!("{address} does not answer"))?.map_err(failed)
}

/// What is said of a request that was refused.
async fn refusal<B: Body>(answer: Response<B>) -> String
where
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let status = answer.status();
    let body = Limited::new(answer.into_body(), MAX_REFUSAL).collect().await;
    let body = body.map(|body| body.to_bytes()).unwrap_or_default();
    let said: Value = serde_json::from_slice(&body).unwrap_or_default();
    match said["error"].as_str() {
        Some(why) => clean(why),
        None => format!("{status} {}", clean(String::from_utf8_lossy(&body).trim())),
    }
}

struct Shown<'a> {
    options: &'a Options,
    requests: u64,
    proxies: Option<u64>,
    not_shown: u64,
}

impl Shown<'_> {
    /// False: that was the last one.
    fn line(&mut self, line: &[u8]) -> io::Result<bool> {
        let Ok(value) = serde_json::from_slice::<Value>(line) else { return Ok(true) };
        if value.get("proxies").is_some() {
            return self.state(&value);
        }
        let mut out = io::stdout().lock();
        match self.options.json {
            // Texts in JSON hold no control characters.
            true => out.write_all(line)?,
            false => writeln!(out, "{}", human(&value))?,
        }
        out.flush()?;
        self.requests += 1;
        Ok(self.options.limit.is_none_or(|limit| self.requests < limit))
    }

    /// What the tap has reached, for people.
    fn state(&mut self, value: &Value) -> io::Result<bool> {
        let mut err = io::stderr().lock();
        let (proxies, not_shown) = (value["proxies"].as_u64(), value["not_shown"].as_u64());
        if let Some(ended) = value["ended"].as_str() {
            writeln!(err, "{}; {} requests shown", clean(ended), self.requests)?;
            return Ok(false);
        }
        if proxies != self.proxies {
            self.proxies = proxies;
            match proxies {
                Some(0) => writeln!(
                    err,
                    "no proxy of {} is connected; waiting for one",
                    self.options.target
                )?,
                Some(1) => writeln!(err, "watching 1 proxy")?,
                Some(n) => writeln!(err, "watching {n} proxies")?,
                None => {}
            }
        }
        let not_shown = not_shown.unwrap_or_default();
        if not_shown > self.not_shown {
            let more = not_shown - self.not_shown;
            self.not_shown = not_shown;
            writeln!(err, "{more} more requests matched than --max-per-second lets be shown")?;
        }
        Ok(true)
    }
}

/// A request in one line.
fn human(value: &Value) -> String {
    let text = |name: &str| value[name].as_str().map(clean);
    let number = |name: &str| value[name].as_u64();
    let mut line = String::new();
    let seconds = value["time"].as_f64().unwrap_or_default() as u64;
    let _ = write!(
        line,
        "{:02}:{:02}:{:02} {:<8} {}",
        seconds / 3_600 % 24,
        seconds / 60 % 60,
        seconds % 60,
        text("direction").unwrap_or_default(),
        text("workload").unwrap_or_default(),
    );
    let (peer, service) = (text("peer").unwrap_or_default(), text("service").unwrap_or_default());
    match value["direction"] == "inbound" {
        true => drop(write!(line, " <- {peer}  ")),
        false => drop(write!(line, " -> {service}  ")),
    }
    for name in ["method", "path", "status", "reason"] {
        if let Some(text) = text(name).filter(|text| !text.is_empty()) {
            let _ = write!(line, "{text} ");
        }
    }
    let _ = write!(line, "{:.1}ms", number("duration_us").unwrap_or_default() as f64 / 1e3);
    if let Some(attempts) = number("attempts").filter(|attempts| *attempts > 1) {
        let _ = write!(line, " attempts={attempts}");
    }
    for name in ["endpoint", "trace_id", "request_id", "detail"] {
        if let Some(text) = text(name) {
            let _ = write!(line, " {name}={text}");
        }
    }
    for (name, value) in value["headers"].as_object().into_iter().flatten() {
        let _ = write!(line, " {}={}", clean(name), clean(value.as_str().unwrap_or_default()));
    }
    line
}

/// Without what a terminal would obey.
fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::json;

    use super::*;

    #[derive(Debug, Parser)]
    struct Flags {
        #[command(flatten)]
        options: Options,
    }

    fn options(args: &[&str]) -> Options {
        Flags::parse_from(["tap"].iter().chain(args)).options
    }

    #[test]
    fn what_is_given_is_asked_for() {
        let bare = options(&["bank"]).query();
        assert_eq!(bare, "namespace=bank&max_per_second=100&for=5m");
        let args = [
            "bank/orders",
            "--path",
            "/a b&c",
            "--header",
            "a",
            "--header",
            "b",
            "--status",
            "5xx",
        ];
        let asked = options(&args).query();
        let expected = "namespace=bank&workload=orders&path=%2Fa+b%26c&status=5xx&headers=a%2Cb\
                        &max_per_second=100&for=5m";
        assert_eq!(asked, expected);
    }

    #[test]
    fn a_line_says_who_called_whom_and_how_it_went_and_a_terminal_obeys_nothing_in_it() {
        let request = json!({
            "time": 45_296.5, "direction": "inbound", "workload": "bank/orders-1", "peer": "bank/web",
            "service": "bank/orders:80", "method": "GET", "path": "/x\u{1b}[31m", "status": "503",
            "reason": "no_endpoint", "duration_us": 12_340, "attempts": 2,
            "headers": { "user-agent": "curl\u{7}" },
        });
        assert_eq!(
            human(&request),
            "12:34:56 inbound  bank/orders-1 <- bank/web  GET /x\u{fffd}[31m 503 no_endpoint 12.3ms \
             attempts=2 user-agent=curl\u{fffd}"
        );
        let outbound = json!({ "direction": "outbound", "workload": "bank/web-1", "service": "bank/orders:80" });
        assert_eq!(human(&outbound), "00:00:00 outbound bank/web-1 -> bank/orders:80  0.0ms");
    }
}
