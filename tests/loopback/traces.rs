//! Traces: what is recorded, how spans hang together, and that nobody waits for a collector.

use std::io::{Read, Write};
use std::process::Stdio;
use std::time::{Duration, Instant};

use outrigger_tests::app::{Echo, Relay, tcp};
use outrigger_tests::client::Curl;
use outrigger_tests::collector::{Collector, Span};
use outrigger_tests::manifests::{MIRRORED, traffic_policy, unmeshed};
use outrigger_tests::process::{ControlPlane, Proxy};
use outrigger_tests::{eventually, skip};

use crate::service;

/// A caller, an app that passes requests on, and one that answers.
struct Chain {
    caller: Proxy,
    middle: Proxy,
    end: Proxy,
    _plane: ControlPlane,
    _app: Echo,
}

impl Chain {
    fn start(traces: &[&str], forwards: &'static [&'static str]) -> Self {
        let app = Echo::start("end");
        let relay = Relay::start("end.bank", forwards);
        let manifests = [("end.yaml", service("end", "")), ("middle.yaml", service("middle", ""))];
        let manifests = manifests.each_ref().map(|(name, text)| (*name, text.as_str()));
        let plane =
            ControlPlane::start_with(&manifests, &[&["--identity", "off"], traces].concat());
        let end = Proxy::beside(&plane, "end", &[format!("{}=h1:main", app.port)], &[]);
        let middle = Proxy::beside(&plane, "middle", &[format!("{}=h1:main", relay.port)], &[]);
        relay.calls_through(middle.outbound);
        let caller = Proxy::caller(&plane, &[]);
        Self { caller, middle, end, _plane: plane, _app: app }
    }

    fn get(&self, path: &str, args: &[&str]) -> u16 {
        let url = format!("http://middle.bank{path}");
        Curl::through(&self.caller).args(args).get(&url).status
    }
}

fn grpc(collector: &Collector) -> String {
    format!("http://127.0.0.1:{}", collector.grpc)
}

/// The spans of a path from its first one on, each the parent of the next.
fn line(spans: &[Span]) -> Vec<Span> {
    let first = spans.iter().find(|span| spans.iter().all(|other| other.id != span.parent));
    let mut line = vec![first.expect("a first one").clone()];
    while let Some(next) = spans.iter().find(|span| span.parent == line[line.len() - 1].id) {
        line.push(next.clone());
    }
    line
}

#[test]
fn one_request_is_one_trace_over_every_hop_whatever_the_app_forwards() {
    const FORWARDS: [&[&str]; 3] = [&["traceparent"], &["x-request-id"], &["b3"]];
    const ZIPKINS_SPAN: &str = "e457b5a2e4d86bd1";
    let collector = Collector::start();
    let address = grpc(&collector);
    for forwards in FORWARDS {
        let chain = Chain::start(&["--traces", &address, "--trace-ratio", "1"], forwards);
        let zipkin = forwards == ["b3"];
        let path = format!("/way/{}", forwards[0]);
        let (mut spans, mut sent) = (Vec::new(), 0);
        eventually("a whole trace is there", || {
            sent += 1;
            let b3 = format!("b3: {sent:032x}-{ZIPKINS_SPAN}-1");
            let args = ["-H", &b3];
            assert_eq!(chain.get(&path, if zipkin { &args } else { &[] }), 200);
            let all = collector.with(&[("url.path", &path)]);
            let of = |trace: &str| -> Vec<_> {
                all.iter().filter(|span| span.trace == trace).cloned().collect()
            };
            let whole = all.iter().map(|span| of(&span.trace)).find(|spans| spans.len() == 4);
            spans = whole.unwrap_or_default();
            !spans.is_empty()
        });
        let line = line(&spans);
        let services: Vec<_> = line.iter().map(|span| span.service.as_str()).collect();
        assert_eq!(services, ["caller", "middle", "middle", "end"], "{line:#?}");
        let kinds: Vec<_> = line.iter().map(|span| span.kind.as_str_name()).collect();
        let [client, server] = ["SPAN_KIND_CLIENT", "SPAN_KIND_SERVER"];
        assert_eq!(kinds, [client, server, client, server]);
        assert_eq!(line[0].name, "GET bank/middle:80");
        assert_eq!(line[0].parent, if zipkin { ZIPKINS_SPAN } else { "" });
        for pair in line.windows(2) {
            assert!(pair[0].began <= pair[1].began, "{pair:#?}");
        }
        assert_eq!(line[3].attributes["http.response.status_code"], "200");
    }
}

#[test]
fn failed_and_slow_requests_are_there_although_none_was_drawn() {
    let collector = Collector::start();
    let address = format!("http://127.0.0.1:{}/", collector.http);
    let flags = [
        "--traces",
        &address,
        "--trace-protocol",
        "http",
        "--trace-ratio",
        "0",
        "--trace-slower-than",
        "300ms",
    ];
    let chain = Chain::start(&flags, &["traceparent"]);
    for i in 0..20 {
        assert_eq!(chain.get(&format!("/good/{i}"), &[]), 200);
    }
    for i in 0..20 {
        assert_eq!(chain.get(&format!("/status/503?{i}"), &[]), 503);
    }
    assert_eq!(chain.get("/sleep/400", &[]), 200);
    eventually("each failed one is there, and the slow one", || {
        let failed = collector.with(&[("url.path", "/status/503")]);
        failed.len() == 80 && collector.with(&[("url.path", "/sleep/400")]).len() == 4
    });
    let failed = collector.with(&[("url.path", "/status/503"), ("error.type", "503")]);
    assert_eq!(failed.iter().filter(|span| span.failed).count(), 80, "{:#?}", failed[0]);
    let sent: f64 = [&chain.caller, &chain.middle, &chain.end]
        .map(|p| p.count("outrigger_spans_total", &["sent"]))
        .iter()
        .sum();
    assert_eq!(sent, 84.0);
    assert_eq!(collector.spans().len(), 84, "none of the good and quick ones");
}

#[test]
fn each_attempt_is_a_span_and_what_decided_an_event() {
    let collector = Collector::start();
    let (one, other) = (Echo::start("one"), Echo::start("other"));
    let manifest = service("end", "");
    let policy = "apiVersion: outrigger.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {name: end, namespace: bank}\nspec:\n  targetRefs: [{kind: Service, name: end}]\n  retries: {maxAttempts: 3, when: {statuses: [503]}}\n";
    let address = grpc(&collector);
    let plane = ControlPlane::start_with(
        &[("end.yaml", &manifest), ("policy.yaml", policy)],
        &["--identity", "off", "--traces", &address, "--trace-ratio", "0"],
    );
    let ends = [("end-1", &one), ("end-2", &other)].map(|(name, app)| {
        let port = format!("{}=h1:main", app.port);
        Proxy::beside(&plane, "end", &[port], &["--workload", name])
    });
    let caller = Proxy::caller(&plane, &[]);
    eventually("attempts are there", || {
        let answer = Curl::through(&caller).get("http://end.bank/status/503");
        assert_eq!(answer.status, 503, "{answer:?}");
        collector.with(&[("outrigger.attempts", "3")]).len() >= 2
    });
    let whole = collector.with(&[("outrigger.attempts", "3")]);
    let whole = whole.iter().find(|span| span.kind == opentelemetry_kind("INTERNAL")).expect("it");
    assert_eq!(whole.events, ["retry", "retry"], "{whole:#?}");
    let spans = collector.spans();
    let attempts: Vec<_> = spans.iter().filter(|span| span.parent == whole.id).collect();
    assert_eq!(attempts.len(), 3, "{attempts:#?}");
    let mut resent: Vec<_> =
        attempts.iter().map(|one| one.attributes.get("http.request.resend_count")).collect();
    resent.sort();
    assert_eq!(resent, [None, Some(&"1".to_owned()), Some(&"2".to_owned())]);
    for attempt in &attempts {
        assert_eq!(attempt.kind, opentelemetry_kind("CLIENT"));
        assert!(attempt.failed);
        eventually("its server's span is below it", || {
            let servers = collector.spans();
            servers.iter().any(|span| span.parent == attempt.id && span.service == "end")
        });
    }
    drop(ends);
}

/// One endpoint fails, the other one does for it.
#[test]
fn a_retry_that_recovers_is_recorded_with_the_way_to_what_failed() {
    let collector = Collector::start();
    let good = Echo::start("good");
    let bad = tcp(|mut stream| {
        let _ = stream.read(&mut [0; 4096]);
        let _ = stream.write_all(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n");
    });
    let manifest = service("end", "");
    let policy = traffic_policy("end", "  retries: {maxAttempts: 4, when: {statuses: [503]}}\n");
    let address = grpc(&collector);
    let plane = ControlPlane::start_with(
        &[("end.yaml", &manifest), ("policy.yaml", &policy)],
        &["--identity", "off", "--traces", &address, "--trace-ratio", "0"],
    );
    let _ends = [("end-1", good.port), ("end-2", bad)].map(|(name, port)| {
        Proxy::beside(&plane, "end", &[format!("{port}=h1:main")], &["--workload", name])
    });
    let caller = Proxy::caller(&plane, &[]);
    let recovered = || {
        let all = collector
            .with(&[("outrigger.outcome", "success"), ("http.response.status_code", "200")]);
        all.into_iter().find(|span| span.kind == opentelemetry_kind("INTERNAL"))
    };
    eventually("a request that was made again is there", || {
        Curl::through(&caller).get("http://end.bank/");
        recovered().is_some()
    });
    let whole = recovered().expect("it");
    assert_eq!(whole.service, "caller");
    assert!(!whole.failed, "{whole:#?}");
    let of_trace = || -> Vec<_> {
        collector.spans().into_iter().filter(|span| span.trace == whole.trace).collect()
    };
    eventually("and both ends of the attempt that failed", || {
        let spans = of_trace();
        let failed =
            spans.iter().filter(|span| span.failed || span.attributes.contains_key("error.type"));
        let failed: Vec<_> = failed.collect();
        failed.len() >= 2
            && spans
                .iter()
                .all(|one| one.id == whole.id || spans.iter().any(|other| other.id == one.parent))
    });
    let spans = of_trace();
    let mut attempts: Vec<_> = spans.iter().filter(|span| span.parent == whole.id).collect();
    attempts.sort_by_key(|span| span.began);
    let (last, earlier) = attempts.split_last().expect("attempts");
    assert!(!earlier.is_empty() && earlier.iter().all(|one| one.failed), "{attempts:#?}");
    assert!(!last.failed && !last.attributes.contains_key("outrigger.reason"), "{last:#?}");
    assert_eq!(last.attributes["http.request.resend_count"], earlier.len().to_string());
}

/// The app makes a span of its own, as tracing libraries do, and does not record it.
#[test]
fn a_span_that_the_app_does_not_record_leaves_no_gap() {
    const OWN: &str = "traceparent: 00-0000000000000000000000000000000c-00000000000000ee-00";
    let collector = Collector::start();
    let address = grpc(&collector);
    let chain = Chain::start(&["--traces", &address, "--trace-ratio", "0"], &[OWN]);
    let came = "traceparent: 00-0000000000000000000000000000000c-00000000000000cc-00";
    assert_eq!(chain.get("/status/503", &["-H", came]), 503);
    eventually("the whole way is there", || collector.spans().len() == 4);
    let spans = collector.spans();
    let line = line(&spans);
    assert_eq!(line.len(), 4, "{line:#?}");
    assert_eq!(line[0].parent, "00000000000000cc");
}

fn opentelemetry_kind(name: &str) -> outrigger_tests::collector::SpanKind {
    outrigger_tests::collector::SpanKind::from_str_name(&format!("SPAN_KIND_{name}"))
        .expect("a kind")
}

/// The admin server's metrics, as who sends this `Accept` gets them.
fn metrics(proxy: &Proxy, accept: &str) -> String {
    let header = format!("Accept: {accept}");
    let url = format!("http://127.0.0.1:{}/metrics", proxy.admin);
    Curl::direct().args(&["-H", &header]).get(&url).body
}

#[test]
fn a_slow_bucket_names_a_trace_that_is_in_the_backend() {
    let collector = Collector::start();
    let address = grpc(&collector);
    let flags = ["--traces", &address, "--trace-ratio", "0", "--trace-slower-than", "200ms"];
    let chain = Chain::start(&flags, &["traceparent"]);
    assert_eq!(chain.get("/sleep/300", &[]), 200);
    assert_eq!(chain.get("/", &[]), 200);
    let text = metrics(&chain.caller, "application/openmetrics-text;version=1.0.0");
    assert!(text.ends_with("# EOF\n"), "{text}");
    let with: Vec<_> = text.lines().filter(|line| line.contains("# {trace_id=")).collect();
    assert_eq!(with.len(), 1, "of the slow one alone: {with:?}");
    let trace = with[0].split("trace_id=\"").nth(1).and_then(|rest| rest.get(..32)).expect("an id");
    eventually("the trace is in the backend", || {
        collector.spans().iter().any(|span| span.trace == trace)
    });
    let classic = metrics(&chain.caller, "*/*");
    assert!(!classic.contains("trace_id") && !classic.contains("# EOF"), "{classic}");
    let Some(why) = promtool(&classic) else {
        return skip("traces::a_slow_bucket_names_a_trace (promtool)", "promtool is not installed");
    };
    assert_eq!(why, "", "promtool check metrics");
}

/// What `promtool check metrics` complains about. None: it is not installed.
fn promtool(text: &str) -> Option<String> {
    let mut command = std::process::Command::new("promtool");
    command.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.stderr(Stdio::piped()).spawn().ok()?;
    child.stdin.take()?.write_all(text.as_bytes()).ok()?;
    let output = child.wait_with_output().ok()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Some(said + &String::from_utf8_lossy(&output.stdout))
}

#[test]
fn a_proxy_that_ends_sends_what_it_has() {
    let collector = Collector::start();
    let address = grpc(&collector);
    let flags = ["--identity", "off", "--traces", &address, "--trace-ratio", "1"];
    let plane = ControlPlane::start_with(&[("end.yaml", &service("end", ""))], &flags);
    // Each ends at another moment of the second in which it sends.
    for i in 0..5 {
        let mut caller = Proxy::caller(&plane, &["--drain-delay", "0s"]);
        let path = format!("/last/{i}");
        // Once it records, the very next request is its last one.
        eventually("it records", || {
            Curl::through(&caller).get("http://end.bank/first");
            caller.count("outrigger_spans_total", &["sent"]) >= 1.0
        });
        Curl::through(&caller).get(&format!("http://end.bank{path}"));
        caller.process().terminate();
        eventually("its last span is there", || !collector.with(&[("url.path", &path)]).is_empty());
    }
}

#[test]
fn nobody_waits_for_a_collector_that_hangs_or_is_away() {
    // Takes connections, reads, and never answers.
    let hangs = tcp(|mut stream| {
        let mut buffer = [0; 4096];
        while matches!(stream.read(&mut buffer), Ok(n) if n > 0) {}
    });
    for port in [hangs, 1] {
        let address = format!("http://127.0.0.1:{port}");
        let chain = Chain::start(&["--traces", &address, "--trace-ratio", "1"], &["traceparent"]);
        let began = Instant::now();
        for _ in 0..50 {
            assert_eq!(chain.get("/", &[]), 200);
        }
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
        eventually("they are counted as lost, and it is said", || {
            chain.caller.count("outrigger_spans_total", &["failed"]) >= 1.0
        });
        chain.caller.wait_log(&["spans are lost", &address]);
        assert_eq!(chain.caller.count("outrigger_spans_total", &["sent"]), 0.0);
    }
}

#[test]
fn nothing_is_begun_where_nobody_records() {
    let chain = Chain::start(&[], &["traceparent"]);
    let answer = Curl::through(&chain.caller).get("http://end.bank/");
    assert!(!answer.body.contains("traceparent"), "{answer:?}");
    let wrong =
        std::process::Command::new(outrigger_tests::process::binary("outrigger-control-plane"))
            .args(["--manifests", ".", "--identity", "off", "--traces", "https://collector:4317"])
            .output()
            .expect("it runs");
    let said = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(!wrong.status.success() && said.contains("https is not supported"), "{said}");
}

/// By a caller that speaks as proxies do, in a mesh whose proxies record traces, and in one in which they do not.
#[test]
fn the_trace_of_a_request_follows_from_its_id_where_traces_are_recorded() {
    for traces in [&["--traces", "http://127.0.0.1:1"][..], &[]] {
        let app = Echo::start("end");
        let manifest = service("end", "");
        let flags = [&["--identity", "off"], traces].concat();
        let plane = ControlPlane::start_with(&[("end.yaml", &manifest)], &flags);
        let end = Proxy::beside(&plane, "end", &[format!("{}=h1:main", app.port)], &[]);
        let hop = format!("x-outrigger-hop: 1;port={};proto=h1;trace=id", app.port);
        let url = format!("http://127.0.0.1:{}/", end.inbound);
        let get = |id: &str| {
            let id = format!("x-request-id: {id}");
            let args = ["--http2-prior-knowledge", "-H", &hop, "-H", &id];
            Curl::direct().args(&args).get(&url)
        };
        let id = format!("{:032x}", 0xfeed);
        let answer = get(&id);
        assert_eq!(answer.status, 200, "{answer:?}");
        let has = answer.body.contains(&format!("\"traceparent\":\"00-{id}-"));
        assert_eq!(has, !traces.is_empty(), "{answer:?}");
        // An id of somebody else's form is no trace.
        let answer = get("order-4711");
        assert_eq!(answer.body.contains("traceparent"), !traces.is_empty(), "{answer:?}");
    }
}

#[test]
fn a_copy_for_a_shadow_without_a_proxy_says_its_trace() {
    let app = Echo::start("app");
    let (heard, heads) = std::sync::mpsc::channel();
    let shadow = tcp(move |mut stream| {
        let mut head = [0; 4096];
        let read = stream.read(&mut head).unwrap_or_default();
        let _ = heard.send(String::from_utf8_lossy(&head[..read]).into_owned());
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
    });
    let manifests = [
        ("app.yaml", unmeshed("app", "http", app.port)),
        ("shadow.yaml", unmeshed("shadow", "http", shadow)),
    ];
    let [app_manifest, shadow_manifest] = &manifests;
    let plane = ControlPlane::start_with(
        &[
            (app_manifest.0, &app_manifest.1),
            (shadow_manifest.0, &shadow_manifest.1),
            ("route.yaml", MIRRORED),
        ],
        &["--identity", "off", "--traces", "http://127.0.0.1:1"],
    );
    let caller = Proxy::caller(&plane, &[]);
    assert_eq!(Curl::through(&caller).get("http://app.bank/").status, 200);
    let head = heads.recv_timeout(Duration::from_secs(10)).expect("a copy");
    assert!(head.contains("traceparent: 00-"), "{head}");
}
