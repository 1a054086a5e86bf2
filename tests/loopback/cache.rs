//! Answers that are kept: given again while they are fresh, and instead of failures after that.

use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use outrigger_tests::app::{Echo, tcp};
use outrigger_tests::client::{Answer, Curl};
use outrigger_tests::eventually;
use outrigger_tests::process::{ControlPlane, Proxy, local};

use crate::resilience::{policy, scripted};
use crate::{service, unmeshed};

/// A caller of an app whose answers are numbered and carry `headers`, until it fails.
struct Pair {
    caller: Proxy,
    _plane: ControlPlane,
    count: Arc<AtomicU64>,
    failing: Arc<AtomicBool>,
}

impl Pair {
    fn start(headers: &'static str, spec: &str) -> Self {
        let failing = Arc::new(AtomicBool::new(false));
        let state = Arc::clone(&failing);
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
        Self { caller, _plane: plane, count, failing }
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
        ("Vary: acc\u{e9}pt\r\n", &[]),
        ("Expires: 0\r\n", &[]),
        ("Expires: Thu, 01 Jan 1970 00:00:00 GMT\r\n", &[]),
        ("Cache-Control: max-age=60, max-age=0\r\n", &[]),
        ("Cache-Control: max-age=60\r\n", &["-H", "authorization: Bearer a"]),
        ("Cache-Control: proxy-revalidate\r\n", &["-H", "authorization: Bearer a"]),
        ("Cache-Control: x=\"a, public, b\"\r\n", &["-H", "authorization: Bearer a"]),
        ("", &["-H", "cookie: user=a"]),
        ("Vary: Cookie\r\n", &["-H", "cookie: user=a"]),
        // A GET with a body, whose answer may depend on it.
        ("", &["-X", "GET", "-d", "a"]),
    ] {
        let pair = Pair::start(headers, CACHE);
        assert_eq!(pair.bodies(&[("/", more), ("/", more)]), ["0000", "0001"], "{headers}");
    }
}

/// Anyone who shows who they are gets an answer to somebody else only where it says so, also instead of a failure.
#[test]
fn answers_are_shared_only_with_whom_they_may_be() {
    let (alice, bob) = (&["-H", "authorization: Bearer a"][..], &["-H", "authorization: b"][..]);
    let cookie = &["-H", "cookie: user=c"][..];
    let spec = "  cache: {ttl: 1m, staleOnError: 10m}\n  fallbacks: [{cached: {}}]\n";
    for (headers, bodies, failed) in [
        ("", ["0000", "0001", "0002", "0003"], [500, 500]),
        ("Cache-Control: proxy-revalidate\r\n", ["0000", "0001", "0002", "0003"], [500, 500]),
        ("Cache-Control: s-maxage=60\r\n", ["0000", "0000", "0000", "0001"], [200, 500]),
        ("Cache-Control: public\r\n", ["0000", "0000", "0000", "0000"], [200, 200]),
    ] {
        let pair = Pair::start(headers, spec);
        let asked = [("/", &[][..]), ("/", alice), ("/", bob), ("/", cookie)];
        assert_eq!(pair.bodies(&asked), bodies, "{headers}");
        pair.failing.store(true, Relaxed);
        let status = |who: &[&str]| pair.ask("/", who).status;
        assert_eq!([status(bob), status(cookie)], failed, "{headers}");
        assert_eq!(status(&[]), 200, "{headers}");
    }
}

const SETTINGS_FRAME: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const GOAWAY: u8 = 7;

/// An HTTP/2 app that answers each request with a half of a body on a connection of its own, and then with
/// `end`, the frame's type and payload; none: it closes the connection.
fn breaks_off(end: Option<(u8, &'static [u8])>) -> (u16, Arc<AtomicU64>) {
    let count = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&count);
    let port = tcp(move |mut stream| {
        let mut preface = [0; 24];
        if stream.read_exact(&mut preface).is_err() || stream.write_all(SETTINGS_FRAME).is_err() {
            return;
        }
        let mut head = [0; 9];
        while stream.read_exact(&mut head).is_ok() {
            let mut payload = vec![0; usize::from(u16::from_be_bytes([head[1], head[2]]))];
            if stream.read_exact(&mut payload).is_err() {
                return;
            }
            if head[3] != HEADERS {
                continue;
            }
            counted.fetch_add(1, Relaxed);
            let id = &head[5..9];
            // `:status: 200` of HPACK's table, and four bytes of data; neither is the end.
            let mut answer = [&[0, 0, 1, HEADERS, 4][..], id, &[0x88]].concat();
            answer.extend([&[0, 0, 4, 0, 0][..], id, b"half"].concat());
            if let Some((kind, payload)) = end {
                let on = if kind == GOAWAY { &[0; 4] } else { id };
                answer.extend([&[0, 0, payload.len() as u8, kind, 0][..], on, payload].concat());
            }
            if stream.write_all(&answer).is_err() || end.is_none_or(|(kind, _)| kind == GOAWAY) {
                return;
            }
        }
    });
    (port, count)
}

/// The caller knows that it has not got the whole: the transfer broke, or there is only our own answer.
fn is_broken(answer: &Answer) -> bool {
    answer.exit != Some(0) || answer.status == 502
}

/// RFC 9113 section 8.1: without END_STREAM no body is whole, whatever the reset says. NO_ERROR was taken for
/// the end: a cut answer was kept, and callers on HTTP/1.1 got its last chunk.
#[test]
fn an_answer_that_is_reset_without_an_error_is_cut_and_not_kept() {
    let ends: [Option<(u8, &'static [u8])>; 4] = [
        Some((RST_STREAM, &[0, 0, 0, 0])),
        Some((RST_STREAM, &[0, 0, 0, 8])),
        Some((GOAWAY, &[0, 0, 0, 1, 0, 0, 0, 0])),
        None,
    ];
    for end in ends {
        let (port, count) = breaks_off(end);
        let plane = ControlPlane::start(&[
            ("app.yaml", &unmeshed("app", "kubernetes.io/h2c", port)),
            ("meshed.yaml", &service("meshed", "")),
            ("policy.yaml", &policy(CACHE)),
        ]);
        let meshed = Proxy::beside(&plane, "meshed", &[format!("{port}=h2:main")], &[]);
        let caller = Proxy::caller(&plane, &[]);
        for host in ["app.bank", "meshed.bank"] {
            let url = format!("http://{host}/");
            let before = count.load(Relaxed);
            for _ in 0..2 {
                let answer = Curl::through(&caller).get(&url);
                assert!(is_broken(&answer), "{end:?} {host}: {answer:?}");
            }
            let to = format!("{host}:80:{}", local(caller.outbound));
            let answer =
                Curl::direct().args(&["--http2-prior-knowledge", "--connect-to", &to]).get(&url);
            assert!(is_broken(&answer), "{end:?} {host}: {answer:?}");
            assert_eq!(count.load(Relaxed) - before, 3, "{end:?} {host}: something was kept");
        }
        assert_eq!(caller.count("outrigger_cache_entries", &[]), 0.0);
        for proxy in [&caller, &meshed] {
            proxy.wait_log(&["\"reason\":\"response_truncated\""]);
        }
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
    pair.failing.store(true, Relaxed);
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
    pair.failing.store(true, Relaxed);
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
