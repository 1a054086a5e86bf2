//! Callers that stop reading, stop sending, or are gone without a word.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use outrigger_tests::app::tcp;
use outrigger_tests::client::raw;
use outrigger_tests::manifests::{service, traffic_policy, unmeshed};
use outrigger_tests::process::{ControlPlane, Proxy, local};
use outrigger_tests::within;

/// Bytes of a response that no buffer on the way takes whole.
const LARGE: usize = 100_000_000;

/// Reads a request's head and answers with `LARGE` bytes, as far as they are taken.
fn large(mut stream: TcpStream) {
    while head(&mut stream) {
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {LARGE}\r\n\r\n");
        if stream.write_all(answer.as_bytes()).is_err() {
            return;
        }
        for _ in 0..LARGE / 100_000 {
            if stream.write_all(&[b'x'; 100_000]).is_err() {
                return;
            }
        }
    }
}

fn head(stream: &mut TcpStream) -> bool {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        if !matches!(stream.read(&mut byte), Ok(1)) {
            return false;
        }
        head.push(byte[0]);
    }
    true
}

fn in_flight(proxy: &Proxy) -> f64 {
    proxy.count("outrigger_concurrency_in_flight", &[])
}

const LIMIT: &str = "apiVersion: outrigger.dev/v1alpha1\nkind: ServerPolicy\n\
    metadata: {name: app, namespace: bank}\n\
    spec:\n  targetRefs: [{kind: Service, group: \"\", name: app}]\n  \
    concurrency: {static: 2, maxQueue: 0}\n";

/// Sends a GET and reads only the head of its answer, then nothing.
fn stalled_reader(port: u16, more: &str) -> TcpStream {
    let mut stream = TcpStream::connect(local(port)).expect("a connection");
    write!(stream, "GET http://app.bank/ HTTP/1.1\r\nhost: app.bank\r\n{more}\r\n")
        .expect("a write");
    let mut first = [0; 12];
    stream.read_exact(&mut first).expect("an answer");
    assert_eq!(&first, b"HTTP/1.1 200");
    stream
}

/// A port that takes two requests at a time, behind a sidecar, and its caller.
fn mesh(policy: &str, more: &[&str]) -> (ControlPlane, Proxy, Proxy) {
    let app = tcp(large);
    let plane = ControlPlane::start(&[
        ("app.yaml", &service("app", "http")),
        ("limit.yaml", LIMIT),
        ("policy.yaml", policy),
    ]);
    let server = Proxy::beside(&plane, "app", &[format!("{app}=h1:main")], more);
    let caller = Proxy::caller(&plane, more);
    (plane, server, caller)
}

#[test]
fn stalled_readers_give_their_places_back_at_their_deadline() {
    let policy = traffic_policy("app", "  deadline: 1s\n  timeouts: {idle: 60s}\n");
    let (_plane, server, caller) = mesh(&policy, &[]);
    let stalled = [stalled_reader(caller.outbound, ""), stalled_reader(caller.outbound, "")];
    within(Duration::from_secs(10), "both places are free again", || in_flight(&server) == 0.0);
    let third = stalled_reader(caller.outbound, "");
    server.wait_log(&["deadline_exceeded_after_head"]);
    caller.wait_log(&["deadline_exceeded_after_head"]);
    drop((stalled, third));
}

#[test]
fn stalled_readers_give_their_places_back_after_the_write_timeout() {
    let (_plane, server, caller) = mesh("", &["--write-timeout", "2s"]);
    let stalled = [stalled_reader(caller.outbound, ""), stalled_reader(caller.outbound, "")];
    assert_eq!(in_flight(&server), 2.0);
    within(Duration::from_secs(12), "both places are free again", || in_flight(&server) == 0.0);
    caller.wait_log(&["write_timeout"]);
    drop(stalled);
    let open = || caller.count("outrigger_connections_open", &[]);
    within(Duration::from_secs(10), "no connection is left", || open() == 0.0);
}

#[test]
fn a_reader_that_only_pauses_loses_nothing() {
    let (_plane, _server, caller) = mesh("", &["--write-timeout", "3s"]);
    let mut slow = stalled_reader(caller.outbound, "connection: close\r\n");
    let mut read = 0;
    let mut buffer = vec![0; 1 << 20];
    let began = Instant::now();
    loop {
        let n = slow.read(&mut buffer).expect("no reset");
        if n == 0 {
            break;
        }
        read += n;
        // For longer than the limit in all, never in one.
        if began.elapsed() < Duration::from_secs(5) {
            std::thread::park_timeout(Duration::from_millis(500));
        }
    }
    assert!(read > LARGE, "{read} bytes");
}

#[test]
fn an_upload_that_stops_is_ended_and_says_why() {
    let (_plane, server, caller) = mesh("", &["--stream-idle-timeout", "2s"]);
    let mut stream = TcpStream::connect(local(caller.outbound)).expect("a connection");
    // Without a body's beginning the app does not answer, and with it reads the head alone.
    write!(stream, "POST http://app.bank/ HTTP/1.1\r\nhost: app.bank\r\ncontent-length: 5\r\n\r\n")
        .expect("a write");
    // The app answers early here; a caller that is silent and an app that waits are the case below.
    let mut first = [0; 12];
    stream.read_exact(&mut first).expect("an answer");
    drop(stream);
    within(Duration::from_secs(10), "its place is free again", || in_flight(&server) == 0.0);

    let silent = tcp(|mut stream| drop(stream.read_to_end(&mut Vec::new())));
    let plane = ControlPlane::start(&[("app.yaml", &unmeshed("app", "http", silent))]);
    let caller = Proxy::caller(&plane, &["--stream-idle-timeout", "2s"]);
    let head = "POST http://app.bank/ HTTP/1.1\r\nhost: app.bank\r\ncontent-length: 5\r\n\r\nab";
    let answer = raw(caller.outbound, head.as_bytes(), Duration::from_secs(10));
    assert!(
        answer.starts_with("HTTP/1.1 408") && answer.contains("request_body_timeout"),
        "{answer}"
    );
    let head = "GET http://app.bank/ HTTP/1.1\r\nhost: app.bank\r\nconnection: close\r\n\r\n";
    let answer = raw(caller.outbound, head.as_bytes(), Duration::from_secs(10));
    assert!(answer.starts_with("HTTP/1.1 504") && answer.contains("idle_timeout"), "{answer}");
}

#[test]
fn a_caller_that_has_gone_is_noticed_and_one_that_closed_its_half_is_answered() {
    // Answers after the caller's head and three seconds, or says that nobody waits.
    let app = tcp(|mut stream| {
        while head(&mut stream) {
            stream.set_read_timeout(Some(Duration::from_secs(3))).expect("a limit");
            if stream.read_exact(&mut [0]).is_ok() {
                return;
            }
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nlate");
        }
    });
    let plane = ControlPlane::start(&[("app.yaml", &unmeshed("app", "http", app))]);
    let caller = Proxy::caller(&plane, &[]);
    let ask = || {
        let mut stream = TcpStream::connect(local(caller.outbound)).expect("a connection");
        write!(stream, "GET http://app.bank/ HTTP/1.1\r\nhost: app.bank\r\n\r\n").expect("a write");
        stream
    };
    let mut half = ask();
    half.shutdown(Shutdown::Write).expect("half a close");
    let mut answer = String::new();
    half.read_to_string(&mut answer).expect("an answer");
    assert!(answer.contains("HTTP/1.1 200 OK") && answer.ends_with("late"), "{answer}");
    let open = || caller.count("outrigger_upstream_connections_open", &[]);
    let before = open();
    drop(ask());
    caller.wait_log(&["downstream_reset"]);
    within(Duration::from_secs(10), "the app's work is cancelled", || open() <= before);
}
