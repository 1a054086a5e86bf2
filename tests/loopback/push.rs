//! Metrics and the access log as they are sent: by OTLP and to StatsD.

use std::io::Read;
use std::net::UdpSocket;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use outrigger_tests::app::{Echo, tcp};
use outrigger_tests::client::Curl;
use outrigger_tests::collector::Collector;
use outrigger_tests::eventually;
use outrigger_tests::process::{ControlPlane, Proxy};

use crate::service;

/// An app, and who calls it.
struct Bed {
    caller: Proxy,
    _end: Proxy,
    _plane: ControlPlane,
    _app: Echo,
}

impl Bed {
    fn start(telemetry: &[&str], caller: &[&str]) -> Self {
        let app = Echo::start("end");
        let flags = [&["--identity", "off"], telemetry].concat();
        let plane = ControlPlane::start_with(&[("end.yaml", &service("end", ""))], &flags);
        let end = Proxy::beside(&plane, "end", &[format!("{}=h1:main", app.port)], &[]);
        let caller = Proxy::caller(&plane, caller);
        Self { caller, _end: end, _plane: plane, _app: app }
    }

    fn get(&self, path: &str) -> u16 {
        Curl::through(&self.caller).get(&format!("http://end.bank{path}")).status
    }

    /// Ten requests, three of which fail.
    fn call(&self) {
        for i in 0..10 {
            let (path, status) = if i < 3 { ("/status/503", 503) } else { ("/good", 200) };
            assert_eq!(self.get(path), status);
        }
    }
}

const OUTBOUND: (&str, &str) = ("direction", "outbound");
const END: (&str, &str) = ("service", "bank/end:80");

#[test]
fn metrics_and_the_access_log_arrive_by_otlp_over_grpc_and_over_http() {
    for protocol in ["grpc", "http"] {
        let collector = Collector::start();
        let port = if protocol == "grpc" { collector.grpc } else { collector.http };
        let address = format!("http://127.0.0.1:{port}");
        let flags =
            ["--otlp-metrics", &address, "--otlp-logs", &address, "--otlp-protocol", protocol];
        let bed = Bed::start(&[&flags[..], &["--metrics-every", "1s"]].concat(), &[]);
        bed.call();
        let sum = |metric: &str, labels: &[(&str, &str)]| -> f64 {
            let points = collector.points(metric, labels);
            points.iter().filter(|p| p.service == "caller").map(|p| p.value).sum()
        };
        eventually("all requests are in the metrics", || {
            sum("outrigger_requests_total", &[OUTBOUND, END]) == 10.0
        });
        let failed = [OUTBOUND, END, ("status", "5xx")];
        assert_eq!(sum("outrigger_requests_total", &failed), 3.0);
        assert_eq!(sum("outrigger_request_duration_seconds", &[OUTBOUND, END]), 10.0);
        let callee = collector.points("outrigger_requests_total", &[("direction", "inbound")]);
        assert_eq!(
            callee.iter().filter(|p| p.service == "end").map(|p| p.value).sum::<f64>(),
            10.0
        );
        let of_caller = || -> Vec<_> {
            collector.lines().into_iter().filter(|line| line.service == "caller").collect()
        };
        eventually("and in the log", || of_caller().len() >= 10);
        bed.caller.wait_log(&["\"log\":\"access\"", "\"path\":\"/good\""]);
        // Another round has been sent by then.
        let round = bed.caller.count("outrigger_metrics_pushed_total", &["otlp", "sent"]);
        eventually("another round", || {
            bed.caller.count("outrigger_metrics_pushed_total", &["otlp", "sent"]) > round
        });
        let lines = of_caller();
        assert_eq!(lines.len(), 10, "each once");
        let failed = lines.iter().find(|line| line.attributes["status"] == "5xx").expect("one");
        assert_eq!(failed.attributes["path"], "/status/503");
        assert_eq!(failed.attributes["service"], END.1);
        assert_eq!(failed.body, "GET bank/end:80/status/503 failure 5xx");
        assert_eq!(bed.caller.count("outrigger_log_records_total", &["sent"]), 10.0);
        assert_eq!(bed.caller.count("outrigger_log_records_total", &["failed"]), 0.0);
    }
}

#[test]
fn a_proxy_that_ends_sends_its_last_metrics_and_lines() {
    let collector = Collector::start();
    let address = format!("http://127.0.0.1:{}", collector.grpc);
    let flags = ["--otlp-metrics", &address, "--otlp-logs", &address, "--metrics-every", "1h"];
    let mut bed = Bed::start(&flags, &["--drain-delay", "0s"]);
    bed.call();
    bed.caller.process().terminate();
    eventually("what it counted is there an hour before its time", || {
        let points = collector.points("outrigger_requests_total", &[OUTBOUND, END]);
        let lines = collector.lines();
        points.iter().map(|point| point.value).sum::<f64>() == 10.0
            && lines.iter().filter(|line| line.service == "caller").count() == 10
    });
}

#[test]
fn nobody_waits_for_a_collector_of_metrics_or_lines_that_hangs_or_is_away() {
    // Takes connections, reads, and never answers.
    let hangs = tcp(|mut stream| {
        let mut buffer = [0; 4096];
        while matches!(stream.read(&mut buffer), Ok(n) if n > 0) {}
    });
    for port in [hangs, 1] {
        let address = format!("http://127.0.0.1:{port}");
        let flags = ["--otlp-metrics", &address, "--otlp-logs", &address, "--metrics-every", "1s"];
        let bed = Bed::start(&flags, &[]);
        let began = Instant::now();
        for _ in 0..50 {
            assert_eq!(bed.get("/"), 200);
        }
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
        eventually("they are counted as lost", || {
            bed.caller.count("outrigger_log_records_total", &["failed"]) >= 1.0
                && bed.caller.count("outrigger_metrics_pushed_total", &["otlp", "failed"]) >= 1.0
        });
        bed.caller.wait_log(&["lines of the access log are lost", &address, "--otlp-logs"]);
        bed.caller.wait_log(&["metrics are lost", &address, "--otlp-metrics"]);
        assert_eq!(bed.caller.count("outrigger_log_records_total", &["sent"]), 0.0);
    }
}

/// Lines that come, and where.
fn statsd() -> (String, Receiver<String>) {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let address = socket.local_addr().expect("its address").to_string();
    let (heard, lines) = channel();
    std::thread::spawn(move || {
        let mut packet = [0; 65_536];
        while let Ok(read) = socket.recv(&mut packet) {
            let text = String::from_utf8_lossy(&packet[..read]).into_owned();
            assert!(read <= 1_432, "{read} bytes");
            if !text.split('\n').all(|line| heard.send(line.to_owned()).is_ok()) {
                return;
            }
        }
    });
    (address, lines)
}

#[test]
fn statsd_is_told_of_each_request_once() {
    let (address, lines) = statsd();
    let bed = Bed::start(&["--statsd", &address, "--metrics-every", "1s"], &[]);
    bed.call();
    let (mut counted, mut timed, mut failed, mut rounds) = (0.0, 0.0, 0.0, 0);
    let until = Instant::now() + Duration::from_secs(30);
    // Three rounds after all of them have come.
    while Instant::now() < until && rounds < 3 {
        let Ok(line) = lines.recv_timeout(Duration::from_secs(5)) else { break };
        let (name, rest) = line.split_once(':').expect("a name");
        if !rest.contains("pod:caller") {
            continue;
        }
        rounds += usize::from(counted >= 10.0 && name == "outrigger_metric_series");
        if !rest.contains("direction:outbound") || !rest.contains("service:bank/end:80") {
            continue;
        }
        let number = |text: &str| text.parse::<f64>().expect("a number");
        let parts: Vec<_> = rest.split('|').collect();
        match (name, &parts[..]) {
            ("outrigger_requests_total", [n, "c", tags]) => {
                counted += number(n);
                failed += if tags.contains("status:5xx") { number(n) } else { 0.0 };
                assert!(tags.starts_with("#app:caller,namespace:bank,pod:caller,"), "{tags}");
            }
            ("outrigger_request_duration", [millis, "ms", rate, _]) => {
                assert!((0.01..20_000.0).contains(&number(millis)), "{line}");
                timed += 1.0 / number(rate.strip_prefix('@').expect("a rate"));
            }
            _ => panic!("{line}"),
        }
    }
    assert_eq!((counted, failed, timed.round()), (10.0, 3.0, 10.0));
    let sent = bed.caller.count("outrigger_metrics_pushed_total", &["statsd", "sent"]);
    assert!(sent >= 3.0, "{sent}");
}

#[test]
fn the_layout_of_the_access_log_is_set_for_the_mesh_and_by_a_proxy_for_itself() {
    let bed = Bed::start(&["--access-log-layout", "logstash"], &[]);
    assert_eq!(bed.get("/told"), 200);
    bed.caller.wait_log(&["\"@timestamp\"", "\"message\":\"GET bank/end:80/told success 2xx\""]);
    let bed = Bed::start(&["--access-log-layout", "logstash"], &["--access-log-layout", "json"]);
    assert_eq!(bed.get("/own"), 200);
    bed.caller.wait_log(&["\"path\":\"/own\""]);
    assert!(!bed.caller.log().contains("@timestamp"));
}

#[test]
fn an_address_that_cannot_be_sent_to_is_refused_with_what_it_should_be() {
    for (flag, value, says) in [
        ("--statsd", "http://statsd:8125", "is not HOST:PORT"),
        ("--otlp-metrics", "collector:4317", "is not http://HOST:PORT"),
        ("--otlp-logs", "https://collector:4317", "https is not supported"),
        ("--metrics-every", "10ms", "must be between 1s and 1h"),
        ("--access-log-layout", "ecs", "is not json or logstash"),
    ] {
        let binary = outrigger_tests::process::binary("outrigger-control-plane");
        let wrong = std::process::Command::new(binary)
            .args(["--manifests", ".", "--identity", "off", flag, value])
            .output()
            .expect("it runs");
        let said = String::from_utf8_lossy(&wrong.stderr).into_owned();
        assert!(!wrong.status.success() && said.contains(says) && said.contains(flag), "{said}");
    }
}
