//! A policy that demands an identity, or an end of what one may, holds in every mode, for every protocol, and at
//! every moment: on fresh and on kept connections, and for what has long stopped being HTTP.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use outrigger_tests::app::{greet_then_echo, read_head, tcp};
use outrigger_tests::client::{Curl, raw};
use outrigger_tests::eventually;
use outrigger_tests::manifests::service;
use outrigger_tests::process::{ControlPlane, Proxy, free_port, local};

use super::requests::h2;

const SOON: Duration = Duration::from_secs(10);

/// Answers requests, and echoes what has changed protocols.
fn app() -> u16 {
    tcp(|mut stream| {
        while let Some(head) = read_head(&mut stream) {
            let upgrade = head.to_ascii_lowercase().contains("upgrade: echo");
            let answer: &[u8] = match upgrade {
                true => b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n",
                false => b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
            };
            if stream.write_all(answer).is_err() {
                return;
            }
            if upgrade {
                let Ok(mut back) = stream.try_clone() else { return };
                let _ = std::io::copy(&mut stream, &mut back);
                return;
            }
        }
    })
}

/// A mesh of two apps, `web` (HTTP) and `raw` (TCP), and somebody who calls them.
struct Mesh {
    caller: Proxy,
    web: Proxy,
    _raw: Proxy,
    plane: ControlPlane,
    web_port: u16,
    to_raw: u16,
}

impl Mesh {
    fn start(plane: ControlPlane) -> Self {
        let (web_port, raw_port) = (app(), tcp(greet_then_echo));
        let drain = ["--drain-timeout", "1s"];
        let web = Proxy::beside(&plane, "web", &[format!("{web_port}=h1:main")], &drain);
        let raw = Proxy::beside(&plane, "raw", &[format!("{raw_port}=tcp:main")], &drain);
        let to_raw = free_port();
        let listen = format!("127.0.0.1:{to_raw}=raw.bank:80");
        let caller = Proxy::start(&plane, "caller", &["--listen", &listen]);
        Self { caller, web, _raw: raw, plane, web_port, to_raw }
    }

    fn files() -> [(&'static str, String); 2] {
        [("web.yaml", service("web", "http")), ("raw.yaml", service("raw", "tcp"))]
    }

    /// A policy for both apps.
    fn policy(&self, spec: &str) {
        let text = format!(
            "apiVersion: outrigger.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {{name: all, namespace: bank}}\n\
             spec: {{{spec}}}\n"
        );
        self.plane.write("policy.yaml", &text);
    }

    /// The status of a request through the mesh.
    fn asks(&self) -> u16 {
        Curl::through(&self.caller).get("http://web.bank/").status
    }

    /// An open stream that was a request, through the mesh.
    fn upgraded(&self) -> Option<TcpStream> {
        let mut stream = TcpStream::connect(local(self.caller.outbound)).expect("a connection");
        stream.set_read_timeout(Some(SOON)).expect("a limit");
        stream
            .write_all(
                b"GET http://web.bank/ws HTTP/1.1\r\nhost: web.bank\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n",
            )
            .expect("written");
        read_head(&mut stream)?.starts_with("HTTP/1.1 101").then_some(stream)
    }

    /// An open stream that never was one, through the mesh.
    fn opaque(&self) -> Option<TcpStream> {
        let mut stream = TcpStream::connect(local(self.to_raw)).expect("a connection");
        stream.set_read_timeout(Some(SOON)).expect("a limit");
        let mut greeting = [0; 11];
        stream.read_exact(&mut greeting).ok()?;
        Some(stream)
    }
}

fn echoes(stream: &mut TcpStream) -> bool {
    let mut back = [0; 4];
    stream.write_all(b"ping").is_ok() && stream.read_exact(&mut back).is_ok() && &back == b"ping"
}

/// Whether the other side has ended it.
fn is_over(stream: &mut TcpStream) -> bool {
    stream.set_read_timeout(Some(Duration::from_millis(50))).expect("a limit");
    match stream.read(&mut [0; 64]) {
        Ok(n) => n == 0,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

/// Everything that somebody without an identity may say to the inbound port, in plaintext.
fn plaintext(mesh: &Mesh) -> Vec<(&'static str, String)> {
    let port = mesh.web_port;
    let (hop, to) = (format!("1;port={port};proto=h1"), format!("127.0.0.1:{port}"));
    let get = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "web.bank")];
    let request = [&get[..], &[("x-outrigger-hop", &hop)]].concat();
    let upgrade = [&request[..], &[("x-outrigger-upgrade", "echo")]].concat();
    let connect = [(":method", "CONNECT"), (":authority", &*to)];
    let http1 = format!("GET / HTTP/1.1\r\nhost: web.bank\r\nx-outrigger-hop: {hop}\r\n\r\n");
    let limit = Duration::from_secs(1);
    [
        ("request", h2(&request, None)),
        ("upgrade", h2(&upgrade, None)),
        ("stream", h2(&connect, Some(b"GET / HTTP/1.1\r\nhost: web.bank\r\n\r\n"))),
        ("HTTP/1.1", http1.into_bytes()),
    ]
    .into_iter()
    .map(|(what, bytes)| (what, raw(mesh.web.inbound, &bytes, limit)))
    .collect()
}

#[test]
fn who_has_no_identity_gets_nothing_where_one_is_demanded() {
    let files = Mesh::files();
    let files: Vec<_> = files.iter().map(|(name, text)| (*name, &**text)).collect();
    let mesh = Mesh::start(ControlPlane::start_with_identity(&files, &["--mtls", "permissive"]));
    let served = |answer: &str| answer.ends_with("ok") || answer.contains("ok\0");
    let request = |mesh: &Mesh| served(&plaintext(mesh)[0].1);
    assert!(request(&mesh), "plaintext is let in");
    // A connection that was let in, and is kept.
    let hop = format!("1;port={};proto=h1", mesh.web_port);
    let get = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "web.bank")];
    let mut kept = TcpStream::connect(local(mesh.web.inbound)).expect("a connection");
    kept.write_all(&h2(&[&get[..], &[("x-outrigger-hop", &hop)]].concat(), None)).expect("written");
    mesh.policy("mtls: Strict");
    eventually("plaintext is refused", || !request(&mesh));
    eventually("what was let in before has ended", || is_over(&mut kept));
    for (what, answer) in plaintext(&mesh) {
        assert!(!served(&answer), "{what}: {answer:?}");
    }
    // Who proves one gets everything.
    assert_eq!(mesh.asks(), 200);
    assert!(echoes(&mut mesh.upgraded().expect("it is upgraded")));
    assert!(echoes(&mut mesh.opaque().expect("it is open")));
}

/// What is open when a rule comes that forbids it ends, within the drain timeout; what is new is refused.
fn ends_when_forbidden(mesh: &Mesh, rule: &str) {
    let mut upgraded = mesh.upgraded().expect("it is upgraded");
    let mut opaque = mesh.opaque().expect("it is open");
    assert!(echoes(&mut upgraded) && echoes(&mut opaque));
    // A change that forbids nothing ends nothing.
    mesh.policy("rules: [{action: Deny, from: [{namespaces: [nobody]}]}]");
    std::thread::park_timeout(Duration::from_secs(3));
    assert_eq!(mesh.asks(), 200);
    assert!(echoes(&mut upgraded) && echoes(&mut opaque));
    mesh.policy(&format!("rules: [{{action: Deny, {rule}}}]"));
    eventually("the upgraded stream ends", || is_over(&mut upgraded));
    eventually("the stream of bytes ends", || is_over(&mut opaque));
    assert_eq!(mesh.asks(), 403);
    assert!(mesh.upgraded().is_none());
    assert!(mesh.opaque().is_none());
}

#[test]
fn what_is_open_ends_when_its_caller_may_no_longer() {
    let files = Mesh::files();
    let files: Vec<_> = files.iter().map(|(name, text)| (*name, &**text)).collect();
    let mesh = Mesh::start(ControlPlane::start_with_identity(&files, &["--mtls", "strict"]));
    ends_when_forbidden(&mesh, "from: [{serviceAccounts: [caller]}]");
}

#[test]
fn what_is_open_ends_in_a_mesh_without_identities_as_well() {
    let files = Mesh::files();
    let files: Vec<_> = files.iter().map(|(name, text)| (*name, &**text)).collect();
    let mesh = Mesh::start(ControlPlane::start(&files));
    ends_when_forbidden(&mesh, "from: [{networks: [127.0.0.0/8]}]");
}
