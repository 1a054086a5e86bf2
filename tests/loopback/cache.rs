//! Answers that are kept: given again while they are fresh, and instead of failures after that.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use outrigger_tests::app::Echo;
use outrigger_tests::client::{Answer, Curl};
use outrigger_tests::eventually;
use outrigger_tests::process::{ControlPlane, Proxy};

use crate::resilience::{policy, scripted};
use crate::unmeshed;

/// A caller of an app whose answers are numbered and carry `headers`, until it is ill.
struct Pair {
    caller: Proxy,
    _plane: ControlPlane,
    count: Arc<AtomicU64>,
    ill: Arc<AtomicBool>,
}

impl Pair {
    fn start(headers: &'static str, spec: &str) -> Self {
        let ill = Arc::new(AtomicBool::new(false));
        let state = Arc::clone(&ill);
        let (port, count) = scripted(move |n| match state.load(Relaxed) {
            true => "HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n",
            // Some requests a test: what is leaked is little.
            false => Box::leak(
                format!("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n{headers}\r\n{n:04}")
                    .into_boxed_str(),
            ),
        });
        let plane = ControlPlane::start(&[
            ("app.yaml", &unmeshed("app", "http", port)),
            ("policy.yaml", &policy(spec)),
        ]);
        let caller = Proxy::caller(&plane, &[]);
        Self { caller, _plane: plane, count, ill }
    }

    fn ask(&self, path: &str, more: &[&str]) -> Answer {
        Curl::through(&self.caller).args(more).get(&format!("http://app.bank{path}"))
    }

    /// Bodies of the answers to some requests.
    fn bodies(&self, requests: &[(&str, &[&str])]) -> Vec<String> {
        requests.iter().map(|(path, more)| self.ask(path, more).body).collect()
    }
}

fn says(answer: &Answer, line: &str) -> bool {
    answer.head.to_ascii_lowercase().lines().any(|other| other.starts_with(line))
}

const CACHE: &str = "  cache: {ttl: 1m, staleOnError: 10m}\n";

#[test]
fn a_fresh_answer_is_given_again_without_asking() {
    let pair = Pair::start("X-Kept: yes\r\n", CACHE);
    assert_eq!(pair.bodies(&[("/a?x=1", &[]), ("/a?x=1", &[])]), ["0000", "0000"]);
    let answer = pair.ask("/a?x=1", &[]);
    assert!(says(&answer, "age: ") && says(&answer, "x-kept: yes"), "{answer:?}");
    assert!(!says(&answer, "x-outrigger-degraded"), "{answer:?}");
    // Another URI, another method, and who wants it new are other matters.
    let others: [(&str, &[&str]); 4] = [
        ("/a?x=2", &[]),
        ("/a?x=1", &["-X", "OPTIONS"]),
        ("/a?x=1", &["-H", "cache-control: no-cache"]),
        ("/a?x=1", &["-H", "cache-control: no-store"]),
    ];
    assert_eq!(pair.bodies(&others), ["0001", "0002", "0003", "0004"]);
    assert_eq!(pair.ask("/a?x=1", &[]).body, "0003", "what was asked anew is kept");
    // What changes it makes it untrue.
    pair.ask("/a?x=1", &["-d", "new"]);
    assert_eq!(pair.ask("/a?x=1", &[]).body, "0006");
    assert_eq!(pair.count.load(Relaxed), 7);
    assert!(pair.caller.count("outrigger_cache_requests_total", &["hit"]) >= 3.0);
    assert_eq!(pair.caller.count("outrigger_cache_entries", &[]), 2.0);
}

#[test]
fn what_must_not_be_shared_is_not_kept() {
    for (headers, more) in [
        ("Cache-Control: no-store\r\n", &[][..]),
        ("Cache-Control: private, max-age=60\r\n", &[]),
        ("Set-Cookie: a=b\r\n", &[]),
        ("Vary: *\r\n", &[]),
        ("Cache-Control: max-age=60\r\n", &["-H", "authorization: Bearer a"]),
    ] {
        let pair = Pair::start(headers, CACHE);
        assert_eq!(pair.bodies(&[("/", more), ("/", more)]), ["0000", "0001"], "{headers}");
    }
}

#[test]
fn answers_are_told_apart_by_what_they_vary_by() {
    let pair = Pair::start("Vary: Accept-Language\r\n", CACHE);
    let (de, en) = (&["-H", "accept-language: de"][..], &["-H", "accept-language: en"][..]);
    assert_eq!(
        pair.bodies(&[("/", de), ("/", en), ("/", de), ("/", en), ("/", &[])]),
        ["0000", "0001", "0000", "0001", "0002"]
    );
}

#[test]
fn a_stale_answer_stands_in_for_a_failure_and_says_so() {
    let pair = Pair::start(
        "",
        "  cache: {ttl: 0s, staleOnError: 10m}\n  fallbacks: [{cached: {}}, {static: {status: 299}}]\n",
    );
    assert_eq!(pair.bodies(&[("/", &[]), ("/", &[])]), ["0000", "0001"], "none is given unasked");
    pair.ill.store(true, Relaxed);
    let answer = pair.ask("/", &[]);
    assert_eq!((answer.status, answer.body.as_str()), (200, "0001"), "{answer:?}");
    assert!(says(&answer, "x-outrigger-degraded: cached") && says(&answer, "age: "), "{answer:?}");
    pair.caller.wait_log(&["\"degraded\":\"cached\"", "status 500"]);
    assert_eq!(pair.ask("/other", &[]).status, 299, "nothing is kept of it");
    assert_eq!(pair.ask("/", &["-d", "x"]).status, 299, "a POST is something else");
}

#[test]
fn must_revalidate_forbids_what_is_stale() {
    let pair = Pair::start(
        "Cache-Control: max-age=1, must-revalidate\r\n",
        "  cache: {ttl: 1m, staleOnError: 10m}\n  fallbacks: [{cached: {}}]\n",
    );
    assert_eq!(pair.bodies(&[("/", &[]), ("/", &[])]), ["0000", "0000"]);
    pair.ill.store(true, Relaxed);
    eventually("it is no longer fresh", || pair.ask("/", &[]).status == 500);
}

#[test]
fn only_whole_answers_within_the_size_are_kept() {
    let app = Echo::start("app");
    let spec = "  cache: {ttl: 1m, maxEntryBytes: 1000}\n";
    let plane = ControlPlane::start(&[
        ("app.yaml", &unmeshed("app", "http", app.port)),
        ("policy.yaml", &policy(spec)),
    ]);
    let caller = Proxy::caller(&plane, &["--cache-bytes", "20000"]);
    let ask = |path: &str| Curl::through(&caller).get(&format!("http://app.bank{path}"));
    for (path, asked) in [("/bytes/1000", 1), ("/bytes/1001", 2)] {
        let before = app.requests.load(Relaxed);
        for _ in 0..2 {
            assert_eq!(ask(path).status, 200);
        }
        assert_eq!(app.requests.load(Relaxed) - before, asked, "{path}");
    }
    for i in 0..50 {
        ask(&format!("/bytes/900?{i}"));
    }
    assert!(caller.count("outrigger_cache_bytes", &[]) <= 20_000.0);
    assert!(caller.count("outrigger_cache_entries", &[]) >= 5.0);
}
