//! Callers that say nothing, or little, and never go on.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use outrigger_tests::app::tcp;
use outrigger_tests::client::Curl;
use outrigger_tests::process::{ControlPlane, Proxy, free_port, local};
use outrigger_tests::{app::Echo, eventually};

use crate::{Mesh, unmeshed};

/// Waits until the other side has closed; how long that took.
#[track_caller]
fn until_closed(stream: &mut TcpStream, limit: Duration) -> Duration {
    let began = Instant::now();
    stream.set_read_timeout(Some(limit)).expect("a limit");
    // What it says before, such as HTTP/2 settings, is of no interest.
    stream.read_to_end(&mut Vec::new()).expect("it is closed in time");
    began.elapsed()
}

#[test]
fn silent_callers_take_no_place_of_the_apps_own_calls_and_lose_theirs() {
    let app = Echo::start("app");
    let plane = ControlPlane::start(&[("app.yaml", &unmeshed("app", "http", app.port))]);
    let limits = ["--max-connections", "20", "--first-byte-timeout", "2s"];
    let caller = Proxy::caller(&plane, &limits);
    let connect = || TcpStream::connect(local(caller.inbound)).expect("a connection");
    let mut silent: Vec<_> = (0..20).map(|_| connect()).collect();
    eventually("they are all accepted", || caller.count("outrigger_connections_open", &[]) >= 20.0);
    // One more of theirs is too many; the app's own are not.
    until_closed(&mut connect(), Duration::from_secs(1));
    assert_eq!(Curl::through(&caller).get("http://app.bank/").status, 200);
    for one in &mut silent {
        until_closed(one, Duration::from_secs(10));
    }
    caller.wait_log(&["\"direction\":\"inbound\"", "\"reason\":\"header_timeout\""]);
    eventually("their places are free again", || {
        caller.count("outrigger_connections_open", &[]) == 0.0
    });
}

#[test]
fn silent_callers_lose_their_place_where_identities_are_asked_for_too() {
    let plane = ControlPlane::start_with_identity(&[], &["--mtls", "strict"]);
    let caller = Proxy::caller(&plane, &["--first-byte-timeout", "1s", "--header-timeout", "2s"]);
    let mut silent = TcpStream::connect(local(caller.inbound)).expect("a connection");
    let mut begun = TcpStream::connect(local(caller.inbound)).expect("a connection");
    // The first bytes of a handshake, and no more.
    begun.write_all(b"\x16\x03\x01\x02\x00\x01").expect("written");
    until_closed(&mut silent, Duration::from_secs(10));
    until_closed(&mut begun, Duration::from_secs(10));
}

#[test]
fn a_connection_without_requests_is_closed_and_one_with_them_stays() {
    let mesh = Mesh::start("h1");
    let more = ["--client-idle-timeout", "2s", "--workload", "web-2"];
    let port = format!("{}=h1:main", mesh.app.port);
    let web = Proxy::beside(&mesh.plane, "web", &[port], &more);
    let mut idle = TcpStream::connect(local(web.inbound)).expect("a connection");
    idle.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").expect("written");
    let took = until_closed(&mut idle, Duration::from_secs(9));
    assert!(took >= Duration::from_secs(1), "{took:?}");
    let slow = Curl::through(&mesh.caller).get("http://web.bank/sleep/5000");
    assert_eq!(slow.status, 200, "{slow:?}");
}

/// The first words of protocols that nobody declared, and what could still become something else.
const FIRST_WORDS: [&[u8]; 7] =
    [b"ruok", b"a", b"stat", b"\x16\x03", b"a.b.c 1 HT", b"GET k\r\n", b"*1\r\n$4\r\nPING\r\n"];

#[test]
fn a_short_first_word_on_an_undeclared_port_is_answered() {
    let app = tcp(|mut stream| {
        let mut buffer = [0; 1024];
        while let Ok(n) = stream.read(&mut buffer) {
            if n == 0 || stream.write_all(&buffer[..n]).is_err() {
                return;
            }
        }
    });
    let plane = ControlPlane::start(&[("app.yaml", &unmeshed("app", "", app))]);
    let port = free_port();
    let listen = format!("127.0.0.1:{port}=app.bank:80");
    let _caller = Proxy::caller(&plane, &["--listen", &listen]);
    // At once, and after the upstream was asked whether it speaks first.
    for pause in [Duration::ZERO, Duration::from_millis(150)] {
        for words in FIRST_WORDS {
            let mut stream = TcpStream::connect(local(port)).expect("a connection");
            stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a limit");
            std::thread::park_timeout(pause);
            stream.write_all(words).expect("written");
            let began = Instant::now();
            let mut back = vec![0; words.len()];
            let read = stream.read_exact(&mut back);
            let took = began.elapsed();
            assert!(read.is_ok() && back == words, "{words:?}: {read:?} after {took:?}");
            assert!(took < Duration::from_secs(2), "{words:?}: {took:?}");
        }
    }
}
