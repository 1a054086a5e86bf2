//! Time that runs out, requests that follow an app's own, and request loops that end.

use std::io::Write;
use std::net::TcpListener;
use std::process::Command;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use outrigger_tests::app::{Echo, Relay, tcp_on};
use outrigger_tests::client::{Answer, Curl, python, python_with};
use outrigger_tests::manifests::traffic_policy;
use outrigger_tests::process::{ControlPlane, Process, Proxy, TempDir, free_port, listens, local};
use outrigger_tests::{eventually, skip};
use serde_json::Value;

use crate::{Mesh, service, unmeshed};

fn get(proxy: &Proxy, url: &str, headers: &[&str]) -> Answer {
    let args: Vec<_> = headers.iter().flat_map(|header| ["-H", header]).collect();
    Curl::through(proxy).args(&args).get(url)
}

/// What the app says that it got in a header.
fn got(answer: &Answer, header: &str) -> Option<String> {
    let said: Value = serde_json::from_str(&answer.body).unwrap_or_default();
    said["headers"][header].as_str().map(str::to_owned)
}

#[test]
fn a_deadline_shrinks_on_its_way_and_ends_what_is_late() {
    let mesh = Mesh::start("h1");
    let answer = get(&mesh.caller, "http://web.bank/", &["x-deadline: 5000"]);
    let left: u64 =
        got(&answer, "x-deadline").and_then(|ms| ms.parse().ok()).expect("what is left");
    assert!((1..5_000).contains(&left), "{left}");
    assert_eq!(got(&get(&mesh.caller, "http://web.bank/", &[]), "x-deadline"), None);

    let began = Instant::now();
    let answer = get(&mesh.caller, "http://web.bank/sleep/20000", &["x-deadline: 300"]);
    let took = began.elapsed();
    assert_eq!(answer.status, 504, "{answer:?}");
    assert!(answer.body.contains("deadline_exceeded"), "{answer:?}");
    assert!(took >= Duration::from_millis(250) && took < Duration::from_secs(5), "{took:?}");
    mesh.caller.wait_log(&["\"reason\":\"deadline_exceeded\"", "\"deadline_left_ms\":"]);

    let before = mesh.app.requests.load(Relaxed);
    let answer = get(&mesh.caller, "http://web.bank/", &["x-deadline: 0"]);
    assert_eq!(answer.status, 504, "{answer:?}");
    assert_eq!(mesh.app.requests.load(Relaxed), before, "it was not even begun");
}

#[test]
fn a_caller_that_leaves_ends_what_was_done_for_it() {
    let mesh = Mesh::start("h1");
    let answer =
        Curl::through(&mesh.caller).args(&["--max-time", "0.5"]).get("http://web.bank/sleep/20000");
    assert_eq!(answer.exit, Some(28), "curl gives up: {answer:?}");
    for proxy in [&mesh.caller, &mesh.web] {
        proxy.wait_log(&[
            "\"reason\":\"downstream_reset\"",
            "\"outcome\":\"canceled\"",
            "/sleep/20000",
        ]);
    }
}

#[test]
fn a_response_that_is_not_finished_in_time_is_cut_and_named() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = tcp_on(listener, |mut stream| {
        // What is said before the request would be taken for no answer to it.
        let mut rest = vec![0; 3];
        let _ = std::io::Read::read_exact(&mut stream, &mut rest);
        let head = "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nbegin";
        let _ = stream.write_all(head.as_bytes());
        let _ = std::io::Read::read_to_end(&mut stream, &mut rest);
    });
    let plane = ControlPlane::start(&[("slow.yaml", &unmeshed("slow", "http", port))]);
    let caller = Proxy::caller(&plane, &[]);
    let answer = get(&caller, "http://slow.bank/", &["x-deadline: 300"]);
    assert_eq!(answer.status, 200);
    assert_eq!(answer.exit, Some(18), "curl says that the end is missing: {answer:?}");
    caller.wait_log(&["deadline_exceeded_after_head"]);
}

/// A caller, an app that passes requests on with a few headers, and an app that says what it got.
struct Chain {
    caller: Proxy,
    middle: Proxy,
    _end: Proxy,
    _plane: ControlPlane,
    app: Echo,
}

impl Chain {
    fn start(forwards: &'static [&'static str]) -> Self {
        let app = Echo::start("end");
        let relay = Relay::start("end.bank", forwards);
        let plane = ControlPlane::start(&[
            ("end.yaml", &service("end", "")),
            ("middle.yaml", &service("middle", "")),
        ]);
        let end = Proxy::beside(&plane, "end", &[format!("{}=h1:main", app.port)], &[]);
        let middle = Proxy::beside(&plane, "middle", &[format!("{}=h1:main", relay.port)], &[]);
        relay.calls_through(middle.outbound);
        let caller = Proxy::caller(&plane, &[]);
        Self { caller, middle, _end: end, _plane: plane, app }
    }
}

#[test]
fn an_app_that_forwards_one_id_passes_the_deadline_on() {
    let w3c: &[&str] = &["traceparent"];
    let trace = "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let b3 = "b3: 80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1-1";
    for (forwards, sent) in [(w3c, Some(trace)), (&["x-request-id"], None), (&["b3"], Some(b3))] {
        let chain = Chain::start(forwards);
        let headers: Vec<_> = ["x-deadline: 8000"].into_iter().chain(sent).collect();
        let answer = get(&chain.caller, "http://middle.bank/", &headers);
        let left = got(&answer, "x-deadline").and_then(|ms| ms.parse().ok()).unwrap_or(0);
        assert!((1..8_000).contains(&left), "{forwards:?}: {left} {answer:?}");

        // At the end of the chain, too, it is over when the caller's time is.
        let before = chain.app.requests.load(Relaxed);
        let headers: Vec<_> = ["x-deadline: 400"].into_iter().chain(sent).collect();
        let answer = get(&chain.caller, "http://middle.bank/sleep/20000", &headers);
        assert_eq!(answer.status, 504, "{answer:?}");
        assert_eq!(chain.app.requests.load(Relaxed), before + 1);
        // Anyone who is first says so: each hop rounds down what it tells the next.
        chain.middle.wait_log(&["\"direction\":\"outbound\"", "end:80", "deadline_left_ms"]);
        eventually("nothing stays remembered", || {
            chain.middle.count("outrigger_correlation_entries", &[]) == 0.0
        });
    }
}

#[test]
fn an_app_that_forwards_nothing_passes_nothing_on() {
    let chain = Chain::start(&[]);
    let answer = get(&chain.caller, "http://middle.bank/", &["x-deadline: 8000"]);
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(got(&answer, "x-deadline"), None);
}

#[test]
fn a_deadline_repeated_as_it_was_told_is_not_made_longer() {
    let chain = Chain::start(&["x-deadline", "x-request-id"]);
    let answer = get(&chain.caller, "http://middle.bank/", &["x-deadline: 8000"]);
    assert!(got(&answer, "x-deadline").is_some(), "{answer:?}");
    let answer = get(&chain.caller, "http://middle.bank/sleep/20000", &["x-deadline: 400"]);
    assert_eq!(answer.status, 504, "{answer:?}");
    chain.middle.wait_log(&["end:80", "/sleep/20000"]);
    let late = chain.middle.log();
    let late = late.lines().rfind(|line| line.contains("end:80")).unwrap_or_default();
    let late: Value = serde_json::from_str(late).unwrap_or_default();
    // Had the app's 400 ms begun anew with its own call, it would have ended later than its caller.
    assert!(late["deadline_left_ms"].as_i64().is_some_and(|left| left <= 5), "{late}");
}

/// An app's own client timeout of 30 s gave its callee 30 s, whatever its caller had left.
#[test]
fn an_apps_own_deadline_counts_only_where_it_is_nearer() {
    let trace = "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let cases: [(&'static [&'static str], u64); 8] = [
        (&["traceparent", "x-deadline: 30000"], 8_000),
        (&["x-request-id", "x-deadline: 30000"], 8_000),
        (&["x-request-id", "x-envoy-expected-rq-timeout-ms: 30000"], 8_000),
        (&["x-request-id", "x-deadline: 30000", "x-deadline: 999999999"], 8_000),
        (&["x-request-id", "x-deadline: 30000", "x-deadline: 3000"], 3_000),
        (&["x-request-id", "x-deadline: 3000"], 3_000),
        (&["traceparent", "x-deadline: never"], 8_000),
        // Nobody's: it is the app's own matter.
        (&["x-deadline: 30000"], 30_000),
    ];
    for (forwards, at_most) in cases {
        let chain = Chain::start(forwards);
        let answer = get(&chain.caller, "http://middle.bank/", &["x-deadline: 8000", trace]);
        let left: u64 = got(&answer, "x-deadline").and_then(|ms| ms.parse().ok()).unwrap_or(0);
        let least = at_most - 2_900;
        assert!((least..=at_most).contains(&left), "{forwards:?}: {left} {answer:?}");
    }
}

#[test]
fn a_circle_of_calls_ends_at_the_second_visit() {
    let relay = Relay::start("again.bank", &["x-request-id"]);
    let plane = ControlPlane::start(&[("again.yaml", &service("again", ""))]);
    let again = Proxy::beside(&plane, "again", &[format!("{}=h1:main", relay.port)], &[]);
    relay.calls_through(again.outbound);
    let caller = Proxy::caller(&plane, &[]);
    let answer = get(&caller, "http://again.bank/", &[]);
    assert_eq!(answer.status, 508, "{answer:?}");
    assert!(answer.body.contains("bank/again:80 -> bank/again:80"), "{answer:?}");
    let visits = again.count("outrigger_requests_total", &["direction=\"inbound\""]);
    assert_eq!(visits, 1.0, "the second one did not reach the app");
}

/// An app that calls the next one with nothing but the request id, and the last one that only waits.
const GRPC_APP: &str = r#"
import sys, threading, grpc
from concurrent import futures
port, proxy, to = sys.argv[1:]
channel = to and grpc.insecure_channel(proxy, options=[('grpc.default_authority', to), ('grpc.enable_http_proxy', 0)])

def pass_on(request, context):
    ids = [pair for pair in context.invocation_metadata() if pair[0] == 'x-request-id']
    try:
        return channel.unary_unary('/bank.Chain/Call')(request, metadata=ids)
    except grpc.RpcError as e:
        context.abort(e.code(), e.details())

def wait(request, context):
    over = threading.Event()
    context.add_callback(over.set)
    over.wait(20)
    sys.stdout.write('canceled\n' if over.is_set() else 'left alone\n')
    sys.stdout.flush()
    return request

class Any(grpc.GenericRpcHandler):
    def service(self, details):
        return grpc.unary_unary_rpc_method_handler(pass_on if to else wait)

server = grpc.server(futures.ThreadPoolExecutor(64), handlers=[Any()])
server.add_insecure_port('127.0.0.1:' + port)
server.start()
sys.stdin.read()
"#;

const GRPC_CALLER: &str = r#"
import sys, time, grpc
from concurrent import futures
channel = grpc.insecure_channel(sys.argv[1], options=[('grpc.default_authority', sys.argv[2]), ('grpc.enable_http_proxy', 0)])
call = channel.unary_unary('/bank.Chain/Call')
def one(n):
    began = time.monotonic()
    try:
        call(b'x', timeout=1)
        code = 'OK'
    except grpc.RpcError as e:
        code = e.code().name
    return code, time.monotonic() - began
with futures.ThreadPoolExecutor(10) as pool:
    for code, took in pool.map(one, range(100)):
        print(code, took)
"#;

#[test]
fn a_grpc_deadline_of_one_second_reaches_the_third_server() {
    let Some(python3) = python_with("grpc") else {
        return skip("a_grpc_deadline_of_one_second_reaches_the_third_server", "no grpcio");
    };
    let names = ["one", "two", "three"];
    let manifests: Vec<_> =
        names.iter().map(|name| (format!("{name}.yaml"), service(name, "grpc"))).collect();
    let manifests: Vec<_> = manifests.iter().map(|(name, text)| (&**name, &**text)).collect();
    let plane = ControlPlane::start_with_identity(&manifests, &["--mtls", "strict"]);
    let dir = TempDir::new("grpc-chain");
    let mut apps = Vec::new();
    for (name, next) in names.iter().zip(["two.bank:80", "three.bank:80", ""]) {
        let (port, outbound) = (free_port(), local(free_port()).to_string());
        let mut app = Command::new(&python3);
        app.args(["-c", GRPC_APP, &port.to_string(), &outbound, next]);
        let app = Process::start(dir.path(), name, &mut app);
        eventually("the app listens", || listens(port));
        let port = format!("{port}=grpc:main");
        let proxy = Proxy::beside(&plane, name, &[port], &["--outbound", &outbound]);
        apps.push((proxy, app));
    }
    let caller = Proxy::caller(&plane, &[]);
    let out = python(&python3, GRPC_CALLER, &[&local(caller.outbound).to_string(), "one.bank:80"]);
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let mut took: Vec<f64> = Vec::new();
    for line in text.lines() {
        let (code, seconds) = line.split_once(' ').unwrap_or((line, ""));
        assert_eq!(code, "DEADLINE_EXCEEDED", "{text}{}", String::from_utf8_lossy(&out.stderr));
        took.extend(seconds.parse::<f64>());
    }
    assert_eq!(took.len(), 100, "{text}{}", String::from_utf8_lossy(&out.stderr));
    took.sort_by(f64::total_cmp);
    println!("gRPC deadline of 1 s: median {:.3} s, longest {:.3} s", took[50], took[99]);
    assert!(took[50] <= 1.05 && took[99] <= 1.25, "median {}, longest {}", took[50], took[99]);
    let (_, deepest) = &apps[2];
    let seen = |word| deepest.log().matches(word).count();
    eventually("the third server sees every call canceled", || seen("canceled") == 100);
    assert_eq!(seen("left alone"), 0);
}

const GRPC_STREAM: &str = r#"
import sys, threading, grpc
from concurrent import futures
def talk(request, context):
    over = threading.Event()
    context.add_callback(over.set)
    yield b'first'
    over.wait(20)
    sys.stdout.write('canceled\n' if over.is_set() else 'left alone\n')
    sys.stdout.flush()
class Any(grpc.GenericRpcHandler):
    def service(self, details):
        return grpc.unary_stream_rpc_method_handler(talk)
server = grpc.server(futures.ThreadPoolExecutor(4), handlers=[Any()])
server.add_insecure_port('127.0.0.1:' + sys.argv[1])
server.start()
sys.stdin.read()
"#;

const GRPC_LISTENER: &str = r#"
import sys, threading, grpc
channel = grpc.insecure_channel(sys.argv[1], options=[('grpc.default_authority', sys.argv[2]), ('grpc.enable_http_proxy', 0)])
call = channel.unary_stream('/bank.Talk/Listen')(b'')
threading.Timer(1.5, call.cancel).start()
try:
    for message in call:
        print(message.decode())
except grpc.RpcError as e:
    print(e.code().name, e.details())
"#;

#[test]
fn a_grpc_stream_that_a_policy_ends_says_so_in_its_trailers() {
    let Some(python3) = python_with("grpc") else {
        return skip("a_grpc_stream_that_a_policy_ends_says_so_in_its_trailers", "no grpcio");
    };
    let policy = "apiVersion: outrigger.dev/v1alpha1\nkind: TrafficPolicy\n\
        metadata: {name: talk, namespace: bank}\nspec:\n  \
        targetRefs: [{kind: Service, group: \"\", name: talk}]\n  deadline: 500ms\n";
    let plane =
        ControlPlane::start(&[("talk.yaml", &service("talk", "grpc")), ("policy.yaml", policy)]);
    let dir = TempDir::new("grpc-stream");
    let port = free_port();
    let mut app = Command::new(&python3);
    let app = Process::start(dir.path(), "app", app.args(["-c", GRPC_STREAM, &port.to_string()]));
    eventually("the app listens", || listens(port));
    let _talk = Proxy::beside(&plane, "talk", &[format!("{port}=grpc:main")], &[]);
    let caller = Proxy::caller(&plane, &[]);
    let listen = || {
        let to = local(caller.outbound).to_string();
        let out = python(&python3, GRPC_LISTENER, &[&to, "talk.bank:80"]);
        String::from_utf8_lossy(&out.stdout).into_owned()
    };
    let text = listen();
    let lines: Vec<_> = text.lines().collect();
    assert!(
        matches!(lines[..], ["first", last] if last.starts_with("DEADLINE_EXCEEDED")),
        "{text}"
    );
    assert!(text.contains("deadline_exceeded_after_head"), "{text}");
    eventually("its server was told", || app.log().contains("canceled"));
    // What is meant to go on does so until its end.
    plane.write("policy.yaml", &format!("{policy}  streaming: true\n"));
    eventually("it is the caller who ends it", || listen().contains("CANCELLED"));
}

/// The second way around comes from another caller with the same id: no proxy can tell by it which of the two requests its
/// app works on.
#[test]
fn a_loop_that_a_policy_allows_ends_at_the_limit_of_hops_whatever_the_apps_forward() {
    for forwards in [&["x-request-id"][..], &["traceparent"]] {
        let (left, right) =
            (Relay::start("right.bank", forwards), Relay::start("left.bank", forwards));
        let mut manifests = Vec::new();
        for name in ["left", "right"] {
            let policy = traffic_policy(name, "  maxVisits: 32\n  deadline: 20s\n");
            manifests.push((format!("{name}.yaml"), format!("{}---\n{policy}", service(name, ""))));
        }
        let manifests: Vec<_> = manifests.iter().map(|(n, t)| (n.as_str(), t.as_str())).collect();
        let plane = ControlPlane::start_with_identity(&manifests, &[]);
        let proxies = [("left", &left), ("right", &right)].map(|(name, app)| {
            let proxy = Proxy::beside(&plane, name, &[format!("{}=h1:main", app.port)], &[]);
            app.calls_through(proxy.outbound);
            proxy
        });
        let caller = Proxy::caller(&plane, &[]);
        let trace = format!("traceparent: 00-{:032x}-{:016x}-01", 0xa, 0xb);
        let answer = get(&caller, "http://left.bank/loop", &[&trace]);
        assert_eq!(answer.status, 508, "{forwards:?}: {answer:?}");
        let calls: f64 = proxies
            .iter()
            .map(|proxy| proxy.count("outrigger_requests_total", &["direction=\"inbound\""]))
            .sum();
        assert!((30.0..40.0).contains(&calls), "{forwards:?}: {calls} calls for one request");
    }
}
