//! What a caller gets instead of a failure, with real processes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use outrigger_tests::app::Echo;
use outrigger_tests::client::{Answer, Curl};
use outrigger_tests::eventually;
use outrigger_tests::process::{ControlPlane, Proxy, free_port};

use crate::resilience::{policy, scripted};
use crate::{service, unmeshed};

/// A caller, `app` that it calls, and `backup`.
struct Pair {
    caller: Proxy,
    plane: ControlPlane,
    backup: Echo,
}

impl Pair {
    fn start(port: u16, spec: &str) -> Self {
        let backup = Echo::start("backup");
        let plane = ControlPlane::start(&[
            ("app.yaml", &unmeshed("app", "http", port)),
            ("backup.yaml", &unmeshed("backup", "http", backup.port)),
            ("policy.yaml", &policy(spec)),
        ]);
        let caller = Proxy::caller(&plane, &[]);
        Self { caller, plane, backup }
    }

    fn ask(&self, path: &str, more: &[&str]) -> Answer {
        Curl::through(&self.caller).args(more).get(&format!("http://app.bank{path}"))
    }
}

/// What the answer says about being less than was asked for.
fn degraded(answer: &Answer) -> Option<String> {
    let head = answer.head.to_ascii_lowercase();
    let line = head.lines().find_map(|line| line.strip_prefix("x-outrigger-degraded: "));
    line.map(str::to_owned)
}

const STATIC: &str = "{static: {contentType: application/json, body: '{\"prices\": []}'}}";

#[test]
fn a_static_answer_stands_in_for_what_cannot_be_had() {
    let pair = Pair::start(free_port(), &format!("  fallbacks: [{STATIC}]\n"));
    let answer = pair.ask("/prices", &[]);
    assert_eq!((answer.status, answer.body.as_str()), (200, "{\"prices\": []}"));
    assert_eq!(degraded(&answer).as_deref(), Some("static"));
    assert!(answer.head.to_ascii_lowercase().contains("content-type: application/json"));
    pair.caller.wait_log(&[
        "\"degraded\":\"static\"",
        "\"reason\":\"connect_failed\"",
        "\"outcome\":\"success\"",
    ]);
    let head = pair.ask("/prices", &["--head"]);
    assert!(head.head.to_ascii_lowercase().contains("content-length: 14"), "{head:?}");
    let count = pair.caller.count("outrigger_fallbacks_total", &["bank/app:80", "static"]);
    assert_eq!(count, 2.0);
    // What the caller itself gets wrong is its own affair.
    assert_eq!(pair.ask("/", &["-H", "x-deadline: 0"]).status, 504);
}

#[test]
fn each_class_of_failure_gets_its_own_fallback() {
    let app = Echo::start("app");
    let spec = "  timeouts: {attempt: 300ms}\n  fallbacks:\n  \
        - {when: [Timeout], static: {status: 201}}\n  \
        - {when: [Overloaded], static: {status: 202}}\n  \
        - {when: [ServerError], static: {status: 203}}\n";
    let pair = Pair::start(app.port, spec);
    for (path, status) in [
        ("/", 200),
        ("/status/404", 404),
        ("/sleep/2000", 201),
        ("/status/429", 202),
        ("/status/500", 203),
        ("/status/504", 201),
        ("/status/508", 508),
    ] {
        assert_eq!(pair.ask(path, &[]).status, status, "{path}");
    }
    // Nobody there is none of these classes.
    pair.plane.write("app.yaml", &unmeshed("app", "http", free_port()));
    eventually("nobody answers", || pair.ask("/", &[]).status == 503);
}

#[test]
fn another_service_answers_what_provably_did_no_harm() {
    let spec = "  fallbacks: [{backend: {name: backup, port: 80}}, {static: {status: 299}}]\n";
    let (port, count) = scripted(|_| UNAVAILABLE);
    let pair = Pair::start(port, spec);
    let answer = pair.ask("/prices?a=1", &[]);
    assert_eq!((answer.status, degraded(&answer).as_deref()), (200, Some("backend")), "{answer:?}");
    assert!(answer.body.contains("\"app\":\"backup\"") && answer.body.contains("/prices?a=1"));
    pair.caller.wait_log(&[
        "\"degraded\":\"backend\"",
        "\"service\":\"bank/app:80\"",
        "status 503",
        "\"attempts\":2",
    ]);
    // It was answered: somebody may have acted on it.
    let answer = pair.ask("/", &["-d", "x"]);
    assert_eq!((answer.status, degraded(&answer).as_deref()), (299, Some("static")), "{answer:?}");
    assert_eq!((count.load(Relaxed), pair.backup.requests.load(Relaxed)), (2, 1));
    let answer = pair.ask("/", &["-d", "x", "-H", "idempotency-key: 1"]);
    assert_eq!(degraded(&answer).as_deref(), Some("backend"));
    assert!(answer.body.contains("\"body\":\"x\""), "{answer:?}");
    // Nobody got it: anybody may.
    pair.plane.write("app.yaml", &unmeshed("app", "http", free_port()));
    eventually("nobody is there", || {
        let answer = pair.ask("/", &["-d", "y"]);
        degraded(&answer).as_deref() == Some("backend") && answer.body.contains("\"body\":\"y\"")
    });
}

#[test]
fn a_reduced_route_of_the_same_service_answers_reads_alone() {
    let app = Echo::start("app");
    let pair = Pair::start(app.port, "  fallbacks: [{route: {path: /summary}}]\n");
    let answer = pair.ask("/status/500?q=1", &[]);
    assert_eq!((answer.status, degraded(&answer).as_deref()), (200, Some("route")), "{answer:?}");
    assert!(answer.body.contains("\"uri\":\"/summary?q=1\""), "{answer:?}");
    let answer = pair.ask("/status/500", &["-X", "PUT", "-d", "x"]);
    assert_eq!((answer.status, degraded(&answer)), (500, None), "{answer:?}");
}

#[test]
fn a_fallback_that_fails_leaves_the_failure_as_it_was() {
    let app = Echo::start("app");
    let pair = Pair::start(
        app.port,
        "  fallbacks: [{route: {path: /status/501}}, {backend: {name: backup, port: 80}}]\n",
    );
    pair.plane.write("backup.yaml", &unmeshed("backup", "http", free_port()));
    eventually("there is no backup", || {
        let answer = pair.ask("/status/500", &[]);
        answer.status == 500 && answer.body.contains("status 500") && degraded(&answer).is_none()
    });
    // The connection of the failed answer is good for the next request.
    let connections = app.connections.load(Relaxed);
    pair.ask("/status/500", &[]);
    assert!(app.connections.load(Relaxed) <= connections + 1);
}

#[test]
fn fallbacks_work_behind_breakers_deadlines_and_through_sidecars() {
    let app = Echo::start("app");
    let backup = Echo::start("backup");
    let spec = "  deadline: 300ms\n  breaker: {consecutiveFailures: 3, open: {fixed: 60s}}\n  \
        fallbacks:\n  - {when: [Timeout], backend: {name: backup, port: 80}}\n  \
        - {when: [Timeout], static: {status: 210}}\n  \
        - {when: [Unavailable], backend: {name: backup, port: 80}}\n";
    let plane = ControlPlane::start(&[
        ("app.yaml", &service("app", "http")),
        ("backup.yaml", &service("backup", "http")),
        ("policy.yaml", &policy(spec)),
    ]);
    let beside = |name: &str, port| Proxy::beside(&plane, name, &[format!("{port}=h1:main")], &[]);
    let (_app, _backup) = (beside("app", app.port), beside("backup", backup.port));
    let caller = Proxy::caller(&plane, &[]);
    let ask = |path: &str| Curl::through(&caller).get(&format!("http://app.bank{path}"));
    eventually("it is there", || ask("/").status == 200 && degraded(&ask("/")).is_none());
    // No time is left for another service.
    for _ in 0..3 {
        assert_eq!(ask("/sleep/5000").status, 210);
    }
    let answer = ask("/");
    assert_eq!((answer.status, degraded(&answer).as_deref()), (200, Some("backend")), "{answer:?}");
    assert!(answer.body.contains("\"app\":\"backup\""), "{answer:?}");
    caller.wait_log(&["\"degraded\":\"backend\"", "\"reason\":\"breaker_open\""]);
}

#[test]
fn policies_change_what_is_given_at_once() {
    let failing = Arc::new(AtomicBool::new(true));
    let state = Arc::clone(&failing);
    let (port, _) = scripted(move |_| if state.load(Relaxed) { UNAVAILABLE } else { OK });
    let pair = Pair::start(port, "  fallbacks: [{static: {status: 210}}]\n");
    assert_eq!(pair.ask("/", &[]).status, 210);
    pair.plane.write("policy.yaml", &policy("  fallbacks: [{static: {status: 211}}]\n"));
    eventually("the new one is given", || pair.ask("/", &[]).status == 211);
    failing.store(false, Relaxed);
    let answer = pair.ask("/", &[]);
    assert_eq!((answer.status, degraded(&answer)), (200, None));
}

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const UNAVAILABLE: &str = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n";
