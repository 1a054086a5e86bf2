//! Fault injections: faults that a FaultInjection asks for, as callers, logs and metrics see them.

use std::process::Command;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use outrigger_tests::app::{Echo, count_then_answer, tcp};
use outrigger_tests::client::{Answer, Curl};
use outrigger_tests::eventually;
use outrigger_tests::process::{ControlPlane, Proxy, free_port, local};

use crate::unmeshed;

/// `from now`, as manifests write times.
pub fn in_time(from_now: &str) -> String {
    let mut date = Command::new("date");
    let date = date.args(["-u", "-d", from_now, "+%Y-%m-%dT%H:%M:%S.%3NZ"]);
    let date = date.output().expect("the date");
    String::from_utf8_lossy(&date.stdout).trim().to_owned()
}

fn experiment(name: &str, spec: &str) -> String {
    let end = in_time("+1 hour");
    let end = if spec.contains("end:") { String::new() } else { format!("  end: {end}\n") };
    let percent = if spec.contains("percent:") { "" } else { "  percent: 100\n" };
    let targets = "  targetRefs: [{kind: Service, name: app}]\n";
    let targets = if spec.contains("targetRefs:") { "" } else { targets };
    format!(
        "apiVersion: outrigger.dev/v1alpha1\nkind: FaultInjection\n\
         metadata: {{name: {name}, namespace: bank}}\nspec:\n{targets}{percent}{end}{spec}"
    )
}

fn policy(spec: &str) -> String {
    format!(
        "apiVersion: outrigger.dev/v1alpha1\nkind: TrafficPolicy\n\
         metadata: {{name: app, namespace: bank}}\nspec:\n  \
         targetRefs: [{{kind: Service, name: app}}]\n{spec}"
    )
}

fn ask(caller: &Proxy, path: &str, more: &[&str]) -> Answer {
    Curl::through(caller).args(more).get(&format!("http://app.bank{path}"))
}

#[test]
fn an_abort_is_a_failure_of_the_service_for_whatever_watches_over_calls() {
    let app = Echo::start("app");
    let abort = "  matches: [{method: GET, path: {value: /prices}, headers: [{name: x-test, value: \
                 '1'}]}]\n  fault: {abort: {status: 503}}\n";
    let plane = ControlPlane::start(&[
        ("app.yaml", &unmeshed("app", "http", app.port)),
        ("policy.yaml", &policy("  retries: {maxAttempts: 3, when: {statuses: [503]}}\n")),
        ("fault.yaml", &experiment("no-prices", abort)),
    ]);
    let caller = Proxy::caller(&plane, &[]);
    let hit = ["-H", "x-test: 1"];
    let answer = ask(&caller, "/prices/eur", &hit);
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(
        answer.body.contains("fault_injected: injected by FaultInjection bank/no-prices"),
        "{answer:?}"
    );
    assert_eq!(app.requests.load(Relaxed), 0);
    let injected = ["\"injected\":\"bank/no-prices\"", "\"attempts\":3", "fault_injected"];
    caller.wait_log(&injected);
    let hits = ["fault=\"bank/no-prices\"", "kind=\"abort\""];
    assert_eq!(caller.count("outrigger_faults_injected_total", &hits), 3.0);
    assert_eq!(caller.count("outrigger_retries_total", &[]), 2.0);
    // What it does not match, it leaves alone.
    for (path, more) in [("/prices", &[][..]), ("/", &hit), ("/pricesx", &hit)] {
        assert_eq!(ask(&caller, path, more).status, 200, "{path}");
    }
    // A 404 is an answer, and no failure.
    plane.write("fault.yaml", &experiment("gone", "  fault: {abort: {status: 404}}\n"));
    eventually("the other experiment holds", || ask(&caller, "/", &[]).status == 404);
    caller.wait_log(&["\"injected\":\"bank/gone\"", "\"outcome\":\"success\"", "\"attempts\":1"]);
    plane.remove("fault.yaml");
    eventually("it is over", || ask(&caller, "/", &[]).status == 200);
    // Enough of it opens a breaker.
    plane.write("policy.yaml", &policy("  breaker: {consecutiveFailures: 2}\n"));
    plane.write("fault.yaml", &experiment("reset", "  fault: {reset: {}}\n"));
    eventually("the breaker opens", || ask(&caller, "/", &[]).body.contains("breaker_open"));
    caller.wait_log(&["\"injected\":\"bank/reset\"", "\"status\":\"5xx\""]);
}

#[test]
fn a_delay_counts_as_the_services_own() {
    let app = Echo::start("app");
    let delay =
        "  from: [{namespace: bank, serviceAccount: slow}]\n  fault: {delay: {fixed: 300ms}}\n";
    let plane = ControlPlane::start(&[
        ("app.yaml", &unmeshed("app", "http", app.port)),
        ("fault.yaml", &experiment("slow", delay)),
    ]);
    let caller = Proxy::caller(&plane, &["--service-account", "slow"]);
    let other = Proxy::start(&plane, "other", &["--service-account", "other"]);
    let timed = |proxy: &Proxy| {
        let began = Instant::now();
        (ask(proxy, "/", &[]).status, began.elapsed())
    };
    let (status, took) = timed(&caller);
    assert_eq!(status, 200);
    assert!(took >= Duration::from_millis(300), "{took:?}");
    caller.wait_log(&["\"injected\":\"bank/slow\"", "\"outcome\":\"success\""]);
    assert_eq!(timed(&other).0, 200);
    assert_eq!(other.count("outrigger_faults_injected_total", &["fault"]), 0.0);
    for (timeout, reason) in [("attempt", "attempt_timeout"), ("firstByte", "first_byte_timeout")] {
        plane.write("policy.yaml", &policy(&format!("  timeouts: {{{timeout}: 100ms}}\n")));
        eventually("the timeout holds", || ask(&caller, "/", &[]).body.contains(reason));
    }
    plane.write("policy.yaml", &policy("  deadline: 100ms\n"));
    eventually("the deadline holds", || ask(&caller, "/", &[]).body.contains("deadline_exceeded"));
    let before = app.requests.load(Relaxed);
    assert_eq!(ask(&caller, "/", &[]).status, 504);
    assert_eq!(app.requests.load(Relaxed), before, "it was never sent");
}

#[test]
fn an_experiment_ends_in_time_while_the_control_plane_is_away() {
    let app = Echo::start("app");
    let spec = format!("  end: {}\n  fault: {{partition: {{}}}}\n", in_time("+6 seconds"));
    let mut plane = ControlPlane::start(&[
        ("app.yaml", &unmeshed("app", "http", app.port)),
        ("fault.yaml", &experiment("cut", &spec)),
    ]);
    let caller = Proxy::caller(&plane, &[]);
    let answer = ask(&caller, "/", &[]);
    assert_eq!(answer.status, 503);
    assert!(answer.body.contains("fault_injected"), "{answer:?}");
    plane.kill();
    assert_eq!(ask(&caller, "/", &[]).status, 503, "it goes on without the control plane");
    eventually("it is over", || ask(&caller, "/", &[]).status == 200);
}

#[test]
fn an_experiment_on_a_route_leaves_other_routes_alone() {
    let app = Echo::start("app");
    let route = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\n\
                 metadata: {name: r, namespace: bank}\nspec:\n  \
                 parentRefs: [{group: '', kind: Service, name: app}]\n  rules:\n  \
                 - {name: a, matches: [{path: {value: /a}}], backendRefs: [{name: app, port: 80}]}\n  \
                 - {name: b, backendRefs: [{name: app, port: 80}]}\n";
    let target = "  targetRefs: [{group: gateway.networking.k8s.io, kind: HTTPRoute, name: r, \
                  sectionName: a}]\n  fault: {abort: {status: 500}}\n";
    let plane = ControlPlane::start(&[
        ("app.yaml", &unmeshed("app", "http", app.port)),
        ("route.yaml", route),
        ("fault.yaml", &experiment("a", target)),
    ]);
    let caller = Proxy::caller(&plane, &[]);
    assert_eq!(ask(&caller, "/a", &[]).status, 500);
    assert_eq!(ask(&caller, "/b", &[]).status, 200);
    let status = plane.admin("/index");
    assert!(status.contains("FaultInjection bank/a"), "{status}");
}

#[test]
fn a_part_of_the_attempts_is_hit_and_grpc_gets_its_code() {
    let app = Echo::start("app");
    let plane = ControlPlane::start(&[
        ("app.yaml", &unmeshed("app", "grpc", app.port)),
        ("a.yaml", &experiment("code", "  fault: {abort: {grpc: RESOURCE_EXHAUSTED}}\n")),
        ("b.yaml", &experiment("half", "  percent: 50.5\n  fault: {abort: {status: 418}}\n")),
    ]);
    let caller = Proxy::caller(&plane, &[]);
    let grpc = ["--http2-prior-knowledge", "-H", "content-type: application/grpc", "-d", ""];
    let answer = ask(&caller, "/x.Y/Z", &grpc);
    assert!(answer.head.contains("grpc-status: 8"), "{answer:?}");
    let hit = (0..60).filter(|_| ask(&caller, "/", &[]).status == 418).count();
    assert!((10..=50).contains(&hit), "{hit} of 60");
}

#[test]
fn a_partition_cuts_connections_that_nobody_looks_into() {
    let app = tcp(count_then_answer);
    let listen = free_port();
    let to = format!("{}=app.bank:80", local(listen));
    let plane = ControlPlane::start(&[("app.yaml", &unmeshed("app", "tcp", app))]);
    let caller = Proxy::caller(&plane, &["--listen", &to]);
    let say = || {
        use std::io::{Read, Write};
        let mut stream = std::net::TcpStream::connect(local(listen)).expect("a connection");
        let mut said = String::new();
        let _ = stream.write_all(b"hello");
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let _ = stream.read_to_string(&mut said);
        said
    };
    assert_eq!(say(), "got 5 bytes");
    plane.write("fault.yaml", &experiment("cut", "  fault: {partition: {}}\n"));
    eventually("it is cut", || say().is_empty());
    caller.wait_log(&["\"injected\":\"bank/cut\"", "fault_injected"]);
    plane.remove("fault.yaml");
    eventually("it is over", || say() == "got 5 bytes");
}

const GUARD: &str = "  guard: {from: {namespace: bank, serviceAccount: gateway}, to: {kind: Service, name: \
                     app, port: 80}, minSuccessPercent: 90, minRequests: 10, window: 5s}\n";

#[test]
fn a_guard_stops_an_experiment_for_everybody_until_its_spec_changes() {
    let app = Echo::start("app");
    let abort = |percent: &str| {
        let spec = format!("  percent: {percent}\n  fault: {{abort: {{status: 503}}}}\n{GUARD}");
        experiment("harsh", &spec)
    };
    let first = abort("100");
    let mut plane = ControlPlane::start_with_identity(
        &[("app.yaml", &unmeshed("app", "http", app.port)), ("fault.yaml", &first)],
        &[],
    );
    let gateway = Proxy::start(&plane, "gateway", &[]);
    let other = Proxy::start(&plane, "other", &[]);
    for _ in 0..30 {
        assert_eq!(ask(&other, "/", &[]).status, 503, "nobody watches this edge");
    }
    eventually("the gateway has it stopped", || ask(&gateway, "/", &[]).status == 200);
    gateway
        .wait_log(&["a fault injection has to stop", "requests failed; minSuccessPercent is 90"]);
    eventually("it is stopped for everybody", || ask(&other, "/", &[]).status == 200);
    let index = plane.admin("/index");
    for words in ["\"stopped\":", "\"by\":\"bank/gateway\"", "minSuccessPercent is 90"] {
        assert!(index.contains(words), "{words}: {index}");
    }
    // It stays stopped over a restart, for those who come later, too.
    plane.kill();
    plane.run();
    let late = Proxy::start(&plane, "late", &[]);
    assert_eq!(ask(&late, "/", &[]).status, 200);
    plane.write("fault.yaml", &first.replace("percent: 100", "percent: 99.99"));
    eventually("another spec is another experiment", || ask(&late, "/", &[]).status == 503);
    eventually("also where the first one was stopped", || ask(&gateway, "/", &[]).status == 503);
}

#[test]
fn a_guard_looks_at_slow_answers_and_stops_its_own_proxy_at_once() {
    let app = Echo::start("app");
    let guard = GUARD.replace("minSuccessPercent: 90", "maxP99: 100ms");
    let delay = format!("  fault: {{delay: {{fixed: 300ms}}}}\n{guard}");
    let mut plane = ControlPlane::start(&[
        ("app.yaml", &unmeshed("app", "http", app.port)),
        ("fault.yaml", &experiment("slow", &delay)),
    ]);
    let gateway = Proxy::start(&plane, "gateway", &["--service-account", "gateway"]);
    assert_eq!(ask(&gateway, "/", &[]).status, 200);
    plane.kill();
    let quick = || {
        let began = Instant::now();
        assert_eq!(ask(&gateway, "/", &[]).status, 200);
        began.elapsed() < Duration::from_millis(250)
    };
    eventually("it stops while the control plane is away", quick);
    gateway.wait_log(&["the control plane has not stopped it yet, trying again"]);
    plane.run();
    eventually("the control plane is told at last", || {
        plane.admin("/index").contains("longer than maxP99, which is 100ms")
    });
}
