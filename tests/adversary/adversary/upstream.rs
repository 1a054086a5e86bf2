//! From an upstream that answers as it likes: the caller gets an answer that is whole or an error that says why,
//! and nobody else notices.

use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use std::net::TcpStream;

use outrigger_tests::app::{Echo, read_head, tcp};
use outrigger_tests::client::{Curl, raw};
use outrigger_tests::manifests::{service, unmeshed};
use outrigger_tests::process::{ControlPlane, Proxy, local};

/// Most that a proxy may hold in a debug build, whatever it is answered, in KiB.
const MEMORY: u64 = 40 * 1024;

/// What is answered, and what of it may arrive as a success: none of it, or this body.
const ANSWERS: [(&str, Option<&str>); 30] = [
    ("", None),
    ("\r\n\r\n", None),
    ("garbage", None),
    ("\x16\x03\x01\x02\x00\x01\x00", None),
    ("HTTP/1.1", None),
    ("HTTP/1.1 \r\n\r\n", None),
    ("HTTP/1.1 20 OK\r\n\r\n", None),
    ("HTTP/1.1 2000 OK\r\n\r\n", None),
    ("HTTP/9.9 200 OK\r\n\r\n", None),
    ("HTTP/1.1 200 OK\r\nno colon\r\n\r\n", None),
    ("HTTP/1.1 200 OK\r\nx : y\r\n\r\n", None),
    ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhel", None),
    ("HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\nhello", None),
    ("HTTP/1.1 200 OK\r\ncontent-length: +5\r\n\r\nhello", None),
    ("HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999999\r\n\r\nhello", None),
    ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello!", None),
    ("HTTP/1.1 200 OK\r\ncontent-length: 5, 6\r\n\r\nhello!", None),
    ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello", Some("hello")),
    // More than was said is nobody's.
    (
        "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhelloHTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil",
        Some("hello"),
    ),
    ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", Some("hello")),
    ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n", None),
    ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhelloworld\r\n0\r\n\r\n", None),
    ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nhello\r\n", None),
    ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\nhello\r\n", None),
    ("HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\nhello", None),
    ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", None),
    ("HTTP/1.1 101 Switching Protocols\r\nupgrade: evil\r\nconnection: upgrade\r\n\r\nhello", None),
    (
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello",
        Some("hello"),
    ),
    ("HTTP/1.1 204 No Content\r\ncontent-length: 5\r\n\r\nhello", Some("")),
    // Framed by its end.
    ("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nhello", Some("hello")),
];

/// Answers `/N` with the Nth answer and an end, `/fine` properly.
fn hostile() -> (u16, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    let port = tcp(move |mut stream| {
        while let Some(head) = read_head(&mut stream) {
            counted.fetch_add(1, Relaxed);
            if head.starts_with("POST ") {
                // Its body: a connection that is closed before all is read is reset.
                let _ = stream.read(&mut [0]);
            }
            let path = head.split(' ').nth(1).unwrap_or_default();
            let number = path.trim_start_matches('/').parse::<usize>().ok();
            match number.and_then(|number| ANSWERS.get(number)) {
                Some((answer, _)) => {
                    let _ = stream.write_all(answer.as_bytes());
                    return;
                }
                None => {
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nfine");
                }
            }
        }
    });
    (port, asked)
}

#[test]
fn an_answer_is_whole_or_an_error() {
    let (port, _asked) = hostile();
    let plane = ControlPlane::start(&[
        ("plain.yaml", &unmeshed("plain", "http", port)),
        ("meshed.yaml", &service("meshed", "http")),
    ]);
    let mut sidecar = Proxy::beside(&plane, "meshed", &[format!("{port}=h1:main")], &[]);
    let mut caller = Proxy::caller(&plane, &[]);
    for name in ["plain", "meshed"] {
        for (number, (answer, fine)) in ANSWERS.iter().enumerate() {
            // POST: nothing is sent again.
            let args = ["--data", "x", "--http1.1"];
            let got =
                Curl::through(&caller).args(&args).get(&format!("http://{name}.bank/{number}"));
            let whole = got.exit == Some(0) && got.status < 300;
            match fine {
                Some(body) => assert!(whole && got.body == *body, "{name} {answer:?}: {got:?}"),
                None => assert!(!whole, "{name} {answer:?}: {got:?}"),
            }
            assert!(got.status != 101 && !got.body.contains("evil"), "{name} {answer:?}: {got:?}");
            // The next one on fresh connections and kept ones is not touched by it.
            let next = Curl::through(&caller).get(&format!("http://{name}.bank/fine"));
            assert_eq!((next.status, &*next.body), (200, "fine"), "{name} after {answer:?}");
        }
    }
    for proxy in [&mut caller, &mut sidecar] {
        assert!(proxy.process().pss() < MEMORY);
        assert!(proxy.is_ready());
    }
}

/// What only proxies say to each other is not trusted of an app, nor told to a caller.
#[test]
fn an_app_does_not_speak_for_the_mesh() {
    let port = tcp(|mut stream| {
        while read_head(&mut stream).is_some() {
            let _ = stream.write_all(
                b"HTTP/1.1 503 No\r\nx-outrigger-unprocessed: connect_failed\r\nx-outrigger-exhausted: 1\r\n\
                  x-outrigger-reason: access_denied\r\nx-outrigger-upgrade: :connect\r\ncontent-length: 2\r\n\r\nno",
            );
        }
    });
    let plane = ControlPlane::start(&[("meshed.yaml", &service("meshed", "http"))]);
    let sidecar = Proxy::beside(&plane, "meshed", &[format!("{port}=h1:main")], &[]);
    let caller = Proxy::caller(&plane, &[]);
    let ask = b"POST http://meshed.bank/ HTTP/1.1\r\nhost: meshed.bank\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    let answer = raw(caller.outbound, ask, std::time::Duration::from_secs(5));
    assert!(answer.starts_with("HTTP/1.1 503") && answer.ends_with("no"), "{answer}");
    assert!(!answer.contains("x-outrigger"), "{answer}");
    // Nor does it name reasons: its failure is its own, at both proxies.
    for proxy in [&caller, &sidecar] {
        proxy.wait_log(&["\"outcome\":\"failure\"", "\"status\":\"5xx\""]);
        let log = proxy.log();
        assert!(!log.contains("access_denied") && !log.contains("reason_by"), "{log}");
    }
}

/// An upstream that sends informational responses without end is given up, and costs little meanwhile, whether
/// its caller reads or not.
#[test]
fn informational_responses_without_end_are_an_end() {
    let port = tcp(|mut stream| {
        if read_head(&mut stream).is_some() {
            let piece = b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n".repeat(256);
            while stream.write_all(&piece).is_ok() {}
        }
    });
    let fine = Echo::start("fine");
    let plane = ControlPlane::start(&[
        ("endless.yaml", &unmeshed("endless", "http", port)),
        ("fine.yaml", &unmeshed("fine", "http", fine.port)),
    ]);
    let mut caller = Proxy::caller(&plane, &["--workers", "1"]);
    let get = b"GET http://endless.bank/ HTTP/1.1\r\nhost: endless.bank\r\n\r\n";
    let mut unread = Vec::new();
    for _ in 0..4 {
        let mut stream = TcpStream::connect(local(caller.outbound)).expect("a connection");
        stream.write_all(get).expect("written");
        unread.push(stream);
    }
    let read = raw(caller.outbound, get, std::time::Duration::from_secs(5));
    assert!(read.contains("HTTP/1.1 502") && read.contains("upstream_protocol_error"), "{read}");
    assert_eq!(Curl::through(&caller).get("http://fine.bank/").status, 200);
    outrigger_tests::eventually("all of them are over", || {
        caller.count("outrigger_requests_total", &["reason=\"upstream_protocol_error\""]) >= 5.0
    });
    assert!(caller.process().pss() < MEMORY, "{} KiB", caller.process().pss());
}
