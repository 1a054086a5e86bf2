//! What other callers may not touch: the requests of others that an app works on, and this proxy's memory.

use std::io::Write;
use std::net::TcpStream;
use std::sync::atomic::Ordering::Relaxed;

use outrigger_tests::app::{Echo, tcp};
use outrigger_tests::client::Curl;
use outrigger_tests::eventually;
use outrigger_tests::process::{ControlPlane, Proxy, local};
use serde_json::Value;

use outrigger_tests::manifests::{service, unmeshed};

/// An app `web` that holds requests and calls `end`, and two proxies of others that call it.
struct Mesh {
    orders: Proxy,
    mallory: Proxy,
    web: Proxy,
    app: Echo,
    _end: Echo,
    _plane: ControlPlane,
}

impl Mesh {
    fn start(plane: fn(&[(&str, &str)]) -> ControlPlane) -> Self {
        let (app, end) = (Echo::start("web"), Echo::start("end"));
        let plane = plane(&[
            ("web.yaml", &service("web", "")),
            ("end.yaml", &unmeshed("end", "http", end.port)),
        ]);
        let web = Proxy::beside(&plane, "web", &[format!("{}=h1:main", app.port)], &[]);
        let orders = Proxy::start(&plane, "orders", &[]);
        let mallory = Proxy::start(&plane, "mallory", &[]);
        Self { orders, mallory, web, app, _end: end, _plane: plane }
    }

    /// A request that the app works on for as long as the stream is there. `to`: its proxy's outbound port, or
    /// for none the inbound port of the app's, in plaintext.
    fn hold(&self, by: Option<&Proxy>, headers: &[&str]) -> TcpStream {
        let before = self.app.requests.load(Relaxed);
        let port = by.map_or(self.web.inbound, |proxy| proxy.outbound);
        let mut stream = TcpStream::connect(local(port)).expect("a connection");
        let hop = format!("x-outrigger-hop: 1;port={};proto=h1", self.app.port);
        let mut lines = vec!["GET /sleep/60000 HTTP/1.1", "Host: web.bank"];
        if by.is_none() {
            lines.push(&hop);
        }
        lines.extend(headers);
        write!(stream, "{}\r\n\r\n", lines.join("\r\n")).expect("written");
        eventually("the app works on it", || self.app.requests.load(Relaxed) == before + 1);
        stream
    }

    /// The milliseconds that `end` is told when the app calls it with a header of an inbound request's.
    fn calls(&self, header: &str) -> Option<u64> {
        let answer = Curl::through(&self.web).args(&["-H", header]).get("http://end.bank/");
        assert_eq!(answer.status, 200, "{answer:?}");
        let said: Value = serde_json::from_str(&answer.body).expect("what it got");
        said["headers"]["x-deadline"].as_str()?.parse().ok()
    }
}

const TRACE: &str = "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// An untrusted client that used the id of somebody else's request took the deadline away from it, or gave it another.
#[test]
fn ids_of_others_match_nothing_and_an_ambiguous_one_changes_nothing() {
    let mesh = Mesh::start(|manifests| ControlPlane::start_with_identity(manifests, &[]));
    for (id, other) in [("x-request-id: r1", "x-request-id: r2"), (TRACE, "x-request-id: r3")] {
        assert_eq!(mesh.calls(id), None, "nobody has sent it");
        let outside = mesh.hold(None, &[id, "x-deadline: 30000"]);
        assert_eq!(mesh.calls(id), None, "{id}: an external client's own");
        let victim = mesh.hold(Some(&mesh.orders), &[id, "x-deadline: 40000"]);
        let left = mesh.calls(id);
        assert!(left.is_some_and(|left| (30_001..=40_000).contains(&left)), "{id}: {left:?}");
        let without = mesh.hold(None, &[id]);
        assert!(mesh.calls(id).is_some(), "{id}: its deadline is still there");
        let member = mesh.hold(Some(&mesh.mallory), &[id, "x-deadline: 20000"]);
        assert_eq!(mesh.calls(id), None, "{id}: whose it is is not known");
        assert_eq!(mesh.calls(other), None, "{other}");
        drop((outside, without, member));
        eventually("only the victim's is left", || mesh.calls(id).is_some());
        drop(victim);
        eventually("none is left", || mesh.calls(id).is_none());
    }
    eventually("nothing stays remembered", || {
        mesh.web.count("outrigger_correlation_entries", &[]) == 0.0
    });
}

/// Copies of one request, as retries and hedges are, come from one caller: what they agree on holds.
#[test]
fn copies_of_one_request_keep_its_deadline() {
    let mesh = Mesh::start(ControlPlane::start);
    let id = "x-request-id: r1";
    let _first = mesh.hold(Some(&mesh.orders), &[id, "x-deadline: 20000"]);
    let _second = mesh.hold(Some(&mesh.orders), &[id, "x-deadline: 40000"]);
    let left = mesh.calls(id);
    assert!(left.is_some_and(|left| (20_001..=40_000).contains(&left)), "{left:?}");
}

/// A way of 64 services in a request with a guessed id ended the app's calls with 508.
#[test]
fn a_way_that_no_proxy_wrote_ends_nothing() {
    let mesh = Mesh::start(ControlPlane::start);
    let services: Vec<_> = (0..64).map(|n| format!("bank/s{n}:80;{n:08x}")).collect();
    let longest = services[..31].join(",");
    for (n, via) in [&services.join(","), "zzz", &"a".repeat(4_000), &"a,".repeat(64), &longest]
        .iter()
        .enumerate()
    {
        let (id, via) = (format!("x-request-id: r{n}"), format!("x-outrigger-via: {via}"));
        let _held = mesh.hold(None, &[&id, &via, "x-deadline: 40000"]);
        assert!(mesh.calls(&id).is_some(), "{via}: it is found, and calls are served");
    }
}

/// Each byte of a body that came alone held the buffer that it was read into: 20 connections, 240,000 bytes
/// and 145 MiB.
#[test]
fn a_body_that_comes_byte_by_byte_holds_little_more_than_its_bytes() {
    const CALLERS: usize = 20;
    const BYTES: usize = 3_000;
    let port = tcp(|mut stream| {
        // It takes everything and answers nothing.
        let _ = std::io::copy(&mut stream, &mut std::io::sink());
    });
    let plane = ControlPlane::start(&[("app.yaml", &unmeshed("app", "http", port))]);
    let mut caller = Proxy::caller(&plane, &[]);
    let mut callers: Vec<_> = (0..CALLERS)
        .map(|_| {
            let mut stream = TcpStream::connect(local(caller.outbound)).expect("a connection");
            stream.set_nodelay(true).expect("at once");
            let head = "POST / HTTP/1.1\r\nHost: app.bank\r\nContent-Length: 60000\r\n\r\n";
            stream.write_all(head.as_bytes()).expect("written");
            stream.write_all(b"x").expect("written");
            stream
        })
        .collect();
    let kept = |caller: &Proxy| caller.count("outrigger_buffered_bytes", &[]);
    eventually("each has begun", || kept(&caller) >= CALLERS as f64);
    let before = caller.process().own_memory();
    for _ in 1..BYTES {
        for stream in &mut callers {
            stream.write_all(b"x").expect("written");
        }
    }
    eventually("all of it is kept", || kept(&caller) >= (CALLERS * BYTES) as f64);
    let counted = kept(&caller);
    assert!(counted <= (CALLERS * (2 * BYTES + 4_096)) as f64, "{counted} bytes are counted");
    // In KiB; what the connections themselves need is there before.
    let grown = caller.process().own_memory().saturating_sub(before);
    assert!(grown < 8 * 1024, "{grown} KiB more for {counted} bytes");
    drop(callers);
    eventually("nothing is kept", || kept(&caller) == 0.0);
}

/// With `--max-buffered-bytes` for few of them, the others are served all the same and not kept.
#[test]
fn what_is_kept_of_all_bodies_together_is_bounded_by_what_they_hold() {
    const LIMIT: usize = 64 * 1024;
    let port = tcp(|mut stream| {
        let _ = std::io::copy(&mut stream, &mut std::io::sink());
    });
    let plane = ControlPlane::start(&[("app.yaml", &unmeshed("app", "http", port))]);
    let caller = Proxy::caller(&plane, &["--max-buffered-bytes", &LIMIT.to_string()]);
    // One byte each, in a buffer of 8 KiB.
    let callers: Vec<_> = (0..32)
        .map(|_| {
            let mut stream = TcpStream::connect(local(caller.outbound)).expect("a connection");
            let text = "POST / HTTP/1.1\r\nHost: app.bank\r\nContent-Length: 1\r\n\r\nx";
            stream.write_all(text.as_bytes()).expect("written");
            stream
        })
        .collect();
    eventually("it is full", || {
        caller.count("outrigger_buffered_bytes", &[]) == LIMIT as f64
            && caller.count("outrigger_upstream_connections_open", &[]) == 32.0
    });
    drop(callers);
    eventually("nothing is kept", || caller.count("outrigger_buffered_bytes", &[]) == 0.0);
}
