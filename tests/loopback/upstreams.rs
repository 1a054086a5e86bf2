//! What apps may do wrong, and what is sent again.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use outrigger_tests::app::{Echo, tcp};
use outrigger_tests::client::{Curl, gets};
use outrigger_tests::eventually;
use outrigger_tests::manifests::traffic_policy;
use outrigger_tests::process::{ControlPlane, Proxy, free_port};

use crate::{service, unmeshed};

/// Reads one request's head.
fn read_head(stream: &mut TcpStream) -> bool {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            _ => return false,
        }
    }
    true
}

/// What an app has seen.
#[derive(Clone, Default)]
struct Counts {
    /// Requests, counted before they are answered.
    requests: Arc<AtomicU64>,
    /// Connections, counted after they were closed.
    closed: Arc<AtomicU64>,
}

/// An app that answers each request with `answer` and closes.
fn closing(answer: &'static [u8]) -> (u16, Counts) {
    let counts = Counts::default();
    let counted = counts.clone();
    let port = tcp(move |mut stream| {
        if read_head(&mut stream) {
            counted.requests.fetch_add(1, Relaxed);
            // The proxy may have gone.
            let _ = stream.write_all(answer);
            drop(stream);
            counted.closed.fetch_add(1, Relaxed);
        }
    });
    (port, counts)
}

#[test]
fn only_what_may_be_repeated_is_sent_again() {
    // Takes the request and hangs up: nobody knows what it did.
    let (port, Counts { requests, .. }) = closing(b"");
    let plane = ControlPlane::start(&[
        ("plain.yaml", &unmeshed("plain", "http", port)),
        ("meshed.yaml", &service("meshed", "http")),
    ]);
    let meshed = Proxy::beside(&plane, "meshed", &[format!("{port}=h1:main")], &[]);
    let caller = Proxy::caller(&plane, &[]);
    // A probe of the sidecar's says nothing, and is no request.
    assert_eq!(requests.load(Relaxed), 0);
    for name in ["plain", "meshed"] {
        let url = format!("http://{name}.bank/");
        let before = requests.load(Relaxed);
        let answer = Curl::through(&caller).args(&["--data", "once"]).get(&url);
        assert_eq!(answer.status, 502, "{name}: {answer:?}");
        assert!(answer.body.contains("upstream_reset_ambiguous"), "{name}: {answer:?}");
        assert_eq!(requests.load(Relaxed) - before, 1, "{name}: a POST arrived more than once");
        let answer = Curl::through(&caller).get(&url);
        assert_eq!(answer.status, 502, "{name}: {answer:?}");
        let times = requests.load(Relaxed) - before - 1;
        assert_eq!(times, 1, "{name}: nor is a GET repeated that matches no policy");
    }
    drop(meshed);
}

#[test]
fn answers_that_break_off_or_make_no_sense_are_named() {
    let (short, _) = closing(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nshort");
    let (garbage, _) = closing(b"\x00\x01\x02 this is no HTTP\r\n\r\n");
    let plane = ControlPlane::start(&[
        ("short.yaml", &unmeshed("short", "http", short)),
        ("garbage.yaml", &unmeshed("garbage", "http", garbage)),
        ("gone.yaml", &unmeshed("gone", "http", free_port())),
    ]);
    let caller = Proxy::caller(&plane, &[]);
    let answer = Curl::through(&caller).get("http://short.bank/");
    assert_ne!(answer.exit, Some(0), "a caller must notice: {answer:?}");
    eventually("it is counted", || {
        caller.count("outrigger_requests_total", &["reason=\"response_truncated\""]) == 1.0
    });
    let answer = Curl::through(&caller).args(&["--data", "x"]).get("http://garbage.bank/");
    assert_eq!(answer.status, 502, "{answer:?}");
    assert!(answer.body.contains("upstream_protocol_error"), "{answer:?}");
    let answer = Curl::through(&caller).args(&["--data", "x"]).get("http://gone.bank/");
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(answer.body.contains("connect_failed"), "{answer:?}");
}

#[test]
fn an_endpoint_that_refuses_connections_costs_nothing_while_another_serves() {
    let app = Echo::start("alive");
    // Two addresses of loopback: the app listens on the first only.
    let both = unmeshed("web", "http", app.port)
        .replace("[\"127.0.0.1\"]", "[\"127.0.0.1\"]}, {addresses: [\"127.0.0.2\"]");
    let plane = ControlPlane::start(&[("web.yaml", &both)]);
    let caller = Proxy::caller(&plane, &[]);
    for i in 0..20 {
        let answer = Curl::through(&caller).args(&["--data", "x"]).get("http://web.bank/");
        assert_eq!(answer.status, 200, "request {i}: {answer:?}");
    }
    assert!(plane.admin("/index").contains("127.0.0.2"), "both addresses are endpoints");
}

#[test]
fn connections_that_an_app_has_closed_are_not_used_again() {
    let (port, Counts { closed, .. }) = closing(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
    let plane = ControlPlane::start(&[("web.yaml", &unmeshed("web", "http", port))]);
    let caller = Proxy::caller(&plane, &["--workers", "1"]);
    for i in 1..=30 {
        let answer = Curl::through(&caller).args(&["--data", "x"]).get("http://web.bank/");
        assert_eq!(answer.status, 200, "request {i}: {answer:?}");
        eventually("the app has closed", || closed.load(Relaxed) == i);
    }
}

/// An HTTP/2 server that answers the first request of each connection. At the second one it closes, as a
/// server whose idle time has just passed, or says first that it has not taken it.
fn fickle(says_so: bool) -> (u16, Arc<AtomicU64>) {
    /// Of frames (RFC 9113 section 6), after their length.
    const HEADERS: u8 = 1;
    const GOAWAY: u8 = 7;
    const PREFACE: usize = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len();
    let requests = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&requests);
    let port = tcp(move |mut stream| {
        let (mut head, mut first) = ([0; 9], None);
        // An empty SETTINGS, and the other side's first words.
        if stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).is_err()
            || stream.read_exact(&mut [0; PREFACE]).is_err()
        {
            return;
        }
        while stream.read_exact(&mut head).is_ok() {
            let [a, b, c, kind, _, id @ ..] = head;
            let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
            if stream.read_exact(&mut payload).is_err() {
                return;
            }
            if kind != HEADERS {
                continue;
            }
            counted.fetch_add(1, Relaxed);
            let Some(first) = first.replace(id) else {
                // END_STREAM and END_HEADERS; `:status: 200` of HPACK's static table.
                let answer = [&[0, 0, 1, HEADERS, 5][..], &id, &[0x88]].concat();
                let _ = stream.write_all(&answer);
                continue;
            };
            if says_so {
                let last = [&[0, 0, 8, GOAWAY, 0, 0, 0, 0, 0][..], &first, &[0; 4]].concat();
                let _ = stream.write_all(&last);
                let _ = stream.read_to_end(&mut payload);
            }
            return;
        }
    });
    (port, requests)
}

#[test]
fn a_request_on_an_http2_connection_that_is_just_closed_is_sent_on_a_fresh_one() {
    for says_so in [false, true] {
        let (port, requests) = fickle(says_so);
        let mut files = vec![
            ("plain.yaml", unmeshed("plain", "kubernetes.io/h2c", port)),
            ("meshed.yaml", service("meshed", "kubernetes.io/h2c")),
        ];
        if !says_so {
            // Whatever the policy says: it is no retry, but where nobody has taken the request.
            let none = "  retries: {maxAttempts: 1}\n";
            files.push(("plain-policy.yaml", traffic_policy("plain", none)));
            files.push(("meshed-policy.yaml", traffic_policy("meshed", none)));
        }
        let files: Vec<_> = files.iter().map(|(name, text)| (*name, &**text)).collect();
        let plane = ControlPlane::start(&files);
        let one = ["--workers", "1"];
        let _sidecar = Proxy::beside(&plane, "meshed", &[format!("{port}=h2:main")], &one);
        let caller = Proxy::caller(&plane, &one);
        for name in ["plain", "meshed"] {
            let url = format!("http://{name}.bank/");
            let before = requests.load(Relaxed);
            for n in 0..6 {
                let answer = Curl::through(&caller).get(&url);
                assert_eq!(answer.status, 200, "{name} {n}: {answer:?}");
            }
            // Each but the first one met a connection that had carried one, and was sent twice.
            assert_eq!(requests.load(Relaxed) - before, 11, "{name}");
            let answer = Curl::through(&caller).args(&["--data", "once"]).get(&url);
            let sent = requests.load(Relaxed) - before - 11;
            if says_so {
                assert_eq!((answer.status, sent), (200, 2), "{name}: {answer:?}");
            } else {
                assert_eq!((answer.status, sent), (502, 1), "{name}: {answer:?}");
                assert!(answer.body.contains("upstream_reset_ambiguous"), "{name}: {answer:?}");
            }
        }
    }
}

/// Many sweeps of the pool pass while all that it has is in use.
#[test]
fn a_busy_pool_is_kept() {
    const CALLERS: u64 = 4;
    let opened = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&opened);
    let port = tcp(move |mut stream| {
        counted.fetch_add(1, Relaxed);
        while read_head(&mut stream) {
            std::thread::park_timeout(Duration::from_millis(450));
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
        }
    });
    let plane = ControlPlane::start(&[("slow.yaml", &unmeshed("slow", "http", port))]);
    let listener = free_port();
    let listen = format!("127.0.0.1:{listener}=slow.bank:80");
    let _caller = Proxy::caller(&plane, &["--workers", "1", "--listen", &listen]);
    std::thread::scope(|scope| {
        for _ in 0..CALLERS {
            scope.spawn(|| gets(listener, 10));
        }
    });
    let opened = opened.load(Relaxed);
    // One more where a caller asks again before its last connection is given back.
    assert!(opened <= CALLERS + 1, "{opened} connections for {CALLERS} callers");
}
