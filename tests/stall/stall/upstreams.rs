//! Upstreams and control planes that stop, or go away as often as they are asked.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use outrigger_tests::app::{Echo, tcp};
use outrigger_tests::client::{Curl, raw};
use outrigger_tests::manifests::{service, unmeshed};
use outrigger_tests::process::{ControlPlane, Proxy, local};

/// Frames of a server that takes no stream: SETTINGS, then GOAWAY with nothing processed.
const GOAWAY: &[u8] = &[
    0, 0, 0, 4, 0, 0, 0, 0, 0, // SETTINGS
    0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, // GOAWAY, NO_ERROR
];

#[test]
fn a_peer_that_takes_no_stream_is_given_up() {
    let dialled = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&dialled);
    let app = tcp(move |mut stream| {
        count.fetch_add(1, Relaxed);
        let _ = stream.write_all(GOAWAY);
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let plane = ControlPlane::start(&[("app.yaml", &unmeshed("app", "kubernetes.io/h2c", app))]);
    let caller = Proxy::caller(&plane, &[]);
    let began = Instant::now();
    let answer = Curl::through(&caller).get("http://app.bank/");
    assert_eq!(answer.status, 503, "{}", answer.body);
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    let dialled = dialled.load(Relaxed);
    assert!(dialled <= 20, "{dialled} connections for one request");
}

#[test]
fn traffic_goes_on_beside_a_control_plane_that_hangs_and_an_app_that_does() {
    let app = Echo::start("web");
    let hung = tcp(|mut stream| drop(stream.read_to_end(&mut Vec::new())));
    let plane = ControlPlane::start(&[
        ("web.yaml", &service("web", "")),
        ("hung.yaml", &unmeshed("hung", "http", hung)),
    ]);
    let _web = Proxy::beside(&plane, "web", &[format!("{}=h1:main", app.port)], &[]);
    let caller = Proxy::caller(&plane, &[]);
    assert_eq!(Curl::through(&caller).get("http://web.bank/").status, 200);
    plane.process().freeze(true);
    let _waiting: Vec<TcpStream> = (0..200)
        .map(|_| {
            let mut stream = TcpStream::connect(local(caller.outbound)).expect("a connection");
            write!(stream, "GET http://hung.bank/ HTTP/1.1\r\nhost: hung.bank\r\n\r\n")
                .expect("a write");
            stream
        })
        .collect();
    for _ in 0..20 {
        let began = Instant::now();
        assert_eq!(Curl::through(&caller).get("http://web.bank/").status, 200);
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    }
    plane.process().freeze(false);
}

#[test]
fn streams_that_stay_open_do_not_use_up_an_endpoint() {
    // More than one connection takes, and more than four would have taken before.
    const OPEN: usize = 1_100;
    let app = tcp(|mut stream| {
        let (mut head, mut byte) = (Vec::new(), [0]);
        while !head.ends_with(b"\r\n\r\n") {
            if !matches!(stream.read(&mut byte), Ok(1)) {
                return;
            }
            head.push(byte[0]);
        }
        let _ = stream.write_all(
            b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n",
        );
        let mut buffer = [0; 64];
        while let Ok(n) = stream.read(&mut buffer) {
            if n == 0 || stream.write_all(&buffer[..n]).is_err() {
                return;
            }
        }
    });
    let plane = ControlPlane::start(&[("app.yaml", &service("app", "http"))]);
    let web = Proxy::beside(&plane, "app", &[format!("{app}=h1:main")], &["--workers", "1"]);
    let caller = Proxy::caller(&plane, &["--workers", "1"]);
    let mut open: Vec<TcpStream> = Vec::new();
    for n in 0..OPEN {
        let mut stream = TcpStream::connect(local(caller.outbound)).expect("a connection");
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a limit");
        let head = "GET http://app.bank/ HTTP/1.1\r\nhost: app.bank\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";
        stream.write_all(head.as_bytes()).expect("a write");
        let (mut answer, mut byte) = (Vec::new(), [0]);
        while !answer.ends_with(b"\r\n\r\n") {
            assert_eq!(stream.read(&mut byte).expect("an answer"), 1, "upgrade {n}");
            answer.push(byte[0]);
        }
        assert!(answer.starts_with(b"HTTP/1.1 101"), "{n}: {}", String::from_utf8_lossy(&answer));
        open.push(stream);
    }
    for stream in &mut open {
        stream.write_all(b"ping").expect("a write");
        let mut back = [0; 4];
        stream.read_exact(&mut back).expect("an echo");
        assert_eq!(&back, b"ping");
    }
    drop(open);
    let left = || web.count("outrigger_connections_open", &[]);
    outrigger_tests::eventually("only the hop's connections are left", || left() <= 16.0);
    let again = "GET http://app.bank/ HTTP/1.1\r\nhost: app.bank\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";
    let answer = raw(caller.outbound, again.as_bytes(), Duration::from_secs(1));
    assert!(answer.starts_with("HTTP/1.1 101"), "{answer}");
}
