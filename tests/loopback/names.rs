//! An app that calls more names than anybody should.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use outrigger_tests::app::Echo;
use outrigger_tests::client::Curl;
use outrigger_tests::process::{ControlPlane, Proxy, free_port, local};
use outrigger_tests::{eventually, within};

use crate::unmeshed;

/// More than a proxy holds.
const NAMES: usize = 12_000;
/// At a time, each on a connection of its own.
const CALLERS: usize = 64;

/// Asks for names in `range` on one connection, as fast as they are refused.
fn dial(outbound: u16, range: std::ops::Range<usize>) {
    let mut stream = TcpStream::connect(local(outbound)).expect("a connection");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a limit");
    let mut answers = BufReader::new(stream.try_clone().expect("a second handle"));
    for n in range {
        let host = format!("h{n}.example.com");
        write!(stream, "GET http://{host}/ HTTP/1.1\r\nHost: {host}\r\n\r\n").expect("written");
        let (mut line, mut length) = (String::new(), 0);
        loop {
            line.clear();
            answers.read_line(&mut line).expect("an answer");
            if let Some(n) = line.to_ascii_lowercase().strip_prefix("content-length: ") {
                length = n.trim().parse().expect("a number");
            }
            if line == "\r\n" {
                break;
            }
        }
        std::io::copy(&mut std::io::Read::take(&mut answers, length), &mut std::io::sink())
            .expect("a body");
    }
}

#[test]
fn more_names_than_a_proxy_holds_cost_the_others_nothing() {
    let app = Echo::start("app");
    let mut manifest = unmeshed("app", "http", app.port);
    let _ = write!(manifest, "---\n{}", unmeshed("late", "http", app.port));
    let flags = ["--identity", "off", "--unmatched", "refuse"];
    let plane = ControlPlane::start_with(&[("app.yaml", &manifest)], &flags);
    let dir = plane.dir.path().join("names-state").display().to_string();
    let more = ["--state-dir", &dir, "--access-log", "off"];
    let mut caller = Proxy::caller(&plane, &more);
    assert_eq!(Curl::through(&caller).get("http://app.bank/").status, 200);
    let outbound = caller.outbound;
    std::thread::scope(|scope| {
        for part in 0..CALLERS {
            let names = part * NAMES / CALLERS..(part + 1) * NAMES / CALLERS;
            scope.spawn(move || dial(outbound, names));
        }
    });
    assert_eq!(Curl::through(&caller).get("http://app.bank/").status, 200);
    let late = Curl::through(&caller).get("http://late.bank/");
    assert_eq!(late.status, 200, "{late:?}");
    let reconnects = caller.count("outrigger_discovery_reconnects_total", &[]);
    assert_eq!(reconnects, 1.0, "the stream never broke");
    // What was let go of is let go of on disk, too, and does not come back in the way of others.
    for graceful in [true, false] {
        if graceful {
            caller.process().terminate();
            assert!(caller.process().wait(Duration::from_secs(20)).success());
        } else {
            caller.process().kill();
        }
        caller.run();
        caller.wait_ready();
        within(Duration::from_secs(10), "names are answered after a restart", || {
            Curl::through(&caller).get("http://late.bank/").status == 200
        });
        eventually("the stream is open", || {
            caller.count("outrigger_discovery_connected", &[]) == 1.0
        });
    }
    // While nobody is there to ask, too, names make room for one another.
    plane_is_away(plane, &caller);
}

fn plane_is_away(mut plane: ControlPlane, caller: &Proxy) {
    plane.kill();
    eventually("the stream has broken", || {
        caller.count("outrigger_discovery_connected", &[]) == 0.0
    });
    assert_eq!(Curl::through(caller).get("http://app.bank/").status, 200);
}

/// What was dialled by redirection goes there with everything on it, so an app has to hear when nothing is there.
#[test]
fn a_connection_to_what_is_no_service_any_more_ends() {
    let app = Echo::start("app");
    let plane = ControlPlane::start(&[("app.yaml", &unmeshed("app", "http", app.port))]);
    let listen = free_port();
    let caller = Proxy::caller(&plane, &["--listen", &format!("127.0.0.1:{listen}=app.bank:80")]);
    let mut stream = TcpStream::connect(local(listen)).expect("a connection");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a limit");
    write!(stream, "GET / HTTP/1.1\r\nHost: app.bank\r\n\r\n").expect("written");
    let mut start = [0; 12];
    stream.read_exact(&mut start).expect("an answer");
    assert_eq!(&start, b"HTTP/1.1 200");
    plane.remove("app.yaml");
    // The proxy is told, and no request is made meanwhile.
    stream.read_to_end(&mut Vec::new()).expect("the end of the connection");
    assert!(caller.is_ready());
}
