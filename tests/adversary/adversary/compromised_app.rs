//! From an app that somebody else controls: what it does not get through its own proxy, which is a forward proxy
//! for it. Other HTTP proxies, schemes, the proxy itself, and admin servers.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use outrigger_tests::app::{Echo, read_head, tcp};
use outrigger_tests::client::{Curl, http_get, raw};
use outrigger_tests::eventually;
use outrigger_tests::manifests::{service, unmeshed};
use outrigger_tests::process::{ControlPlane, Proxy, free_port, local};

const SOON: Duration = Duration::from_secs(5);

/// An HTTP proxy of somebody else's, which notes the request lines that it gets and opens every tunnel.
fn egress() -> (u16, Arc<Mutex<Vec<String>>>) {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&lines);
    let port = tcp(move |mut stream| {
        while let Some(head) = read_head(&mut stream) {
            let line = head.lines().next().unwrap_or_default().to_owned();
            let connects = line.starts_with("CONNECT ");
            let length = line.len();
            noted.lock().expect("no panic").push(line.clone());
            let _ = match connects {
                true => {
                    stream.write_all(b"HTTP/1.1 200 Connection established\r\n\r\nthrough egress")
                }
                false => {
                    write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{line}")
                }
            };
            if connects {
                return;
            }
        }
    });
    (port, lines)
}

#[test]
fn a_proxy_of_the_apps_own_is_spoken_to_as_the_app_does() {
    let (port, lines) = egress();
    let target = Echo::start("target");
    let plane = ControlPlane::start(&[
        ("plain.yaml", &unmeshed("plain", "http", port)),
        ("meshed.yaml", &service("meshed", "http")),
    ]);
    let _sidecar = Proxy::beside(&plane, "meshed", &[format!("{port}=h1:main")], &[]);
    for name in ["plain", "meshed"] {
        let listener = free_port();
        let listen = format!("127.0.0.1:{listener}={name}.bank:80");
        let _caller = Proxy::start(&plane, &format!("caller-{name}"), &["--listen", &listen]);
        lines.lock().expect("no panic").clear();
        let to = local(target.port).to_string();
        let ask = format!("CONNECT {to} HTTP/1.1\r\nhost: {to}\r\n\r\n");
        let answer = raw(listener, ask.as_bytes(), SOON);
        assert!(answer.starts_with("HTTP/1.1 200"), "{name}: {answer}");
        assert!(answer.ends_with("\r\n\r\nthrough egress"), "{name}: {answer}");
        for uri in ["http://example.test/x?y=1", "https://example.test/z"] {
            let ask =
                format!("GET {uri} HTTP/1.1\r\nhost: example.test\r\nconnection: close\r\n\r\n");
            let answer = raw(listener, ask.as_bytes(), SOON);
            assert!(answer.ends_with(&format!("\r\n\r\nGET {uri} HTTP/1.1")), "{name}: {answer}");
        }
        let path =
            raw(listener, b"GET /p HTTP/1.1\r\nhost: a.test\r\nconnection: close\r\n\r\n", SOON);
        assert!(path.ends_with("\r\n\r\nGET /p HTTP/1.1"), "{name}: {path}");
        let want = format!("CONNECT {to} HTTP/1.1");
        assert_eq!(lines.lock().expect("no panic")[0], want, "{name}");
    }
    assert_eq!(target.connections.load(std::sync::atomic::Ordering::Relaxed), 0);
}

#[test]
fn what_would_lose_its_protection_is_refused() {
    let app = Echo::start("app");
    let plane = ControlPlane::start(&[
        ("pay.yaml", &unmeshed("pay", "http", app.port)),
        ("out.yaml", &unmeshed("out", "tcp", app.port)),
    ]);
    let caller = Proxy::caller(&plane, &[]);
    let port = local(app.port);
    for uri in [
        "https://pay.bank/x".to_owned(),
        "https://pay.bank:80/x".to_owned(),
        format!("https://{port}/x"),
        format!("HTTPS://{port}/x"),
        format!("ftp://{port}/x"),
        format!("ws://{port}/x"),
    ] {
        let ask = format!(
            "GET {uri} HTTP/1.1\r\nhost: a\r\nauthorization: secret\r\nconnection: close\r\n\r\n"
        );
        let answer = raw(caller.outbound, ask.as_bytes(), SOON);
        assert!(answer.starts_with("HTTP/1.1 400"), "{uri}: {answer}");
        assert!(
            answer.contains("scheme") || answer.contains("https in a request"),
            "{uri}: {answer}"
        );
    }
    assert_eq!(app.requests.load(std::sync::atomic::Ordering::Relaxed), 0);
}

#[test]
fn a_tunnel_in_a_tunnel_is_its_destinations_business() {
    let (port, lines) = egress();
    let plane = ControlPlane::start(&[("egress.yaml", &unmeshed("egress", "http", port))]);
    let mut caller = Proxy::caller(&plane, &[]);
    let mut stream = TcpStream::connect(local(caller.outbound)).expect("a connection");
    stream.set_read_timeout(Some(SOON)).expect("a limit");
    stream.write_all(b"CONNECT egress.bank:80 HTTP/1.1\r\nhost: x\r\n\r\n").expect("written");
    assert!(read_head(&mut stream).expect("an answer").starts_with("HTTP/1.1 200"));
    // What comes inside is for the destination: it is asked, and opens it or not.
    stream.write_all(b"CONNECT b.test:80 HTTP/1.1\r\nhost: x\r\n\r\n").expect("written");
    assert!(read_head(&mut stream).expect("an answer").starts_with("HTTP/1.1 200"));
    assert_eq!(*lines.lock().expect("no panic"), ["CONNECT b.test:80 HTTP/1.1"]);
    // As deep as anybody likes.
    for own in [format!("127.0.0.1:{}", caller.outbound), "b.test:80".to_owned()] {
        let mut stream = TcpStream::connect(local(caller.outbound)).expect("a connection");
        stream.set_read_timeout(Some(SOON)).expect("a limit");
        for _ in 0..10_000 {
            let ask = format!("CONNECT {own} HTTP/1.1\r\nhost: x\r\n\r\n");
            let written = stream.write_all(ask.as_bytes());
            if written.is_err()
                || !read_head(&mut stream).is_some_and(|head| head.contains(" 200 "))
            {
                break;
            }
        }
    }
    assert!(caller.process().pss() < 40 * 1024);
    assert!(caller.is_ready(), "{}", caller.log());
}

#[test]
fn the_proxy_never_calls_itself() {
    let plane = ControlPlane::start(&[]);
    let listener = free_port();
    let listen = format!("127.0.0.1:{listener}=nobody.bank:80");
    let mut caller = Proxy::caller(&plane, &["--listen", &listen]);
    let id = caller.process().id();
    let open = || std::fs::read_dir(format!("/proc/{id}/fd")).expect("its files").count();
    let before = open();
    for port in [caller.outbound, caller.inbound, caller.admin, listener] {
        for host in
            ["127.0.0.1", "0.0.0.0", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::ffff:0.0.0.0]"]
        {
            for method in ["GET", "CONNECT"] {
                let target = match method {
                    "GET" => format!("http://{host}:{port}/drain"),
                    _ => format!("{host}:{port}"),
                };
                let ask = format!(
                    "{method} {target} HTTP/1.1\r\nhost: {host}:{port}\r\nconnection: close\r\n\r\n"
                );
                let answer = raw(caller.outbound, ask.as_bytes(), SOON);
                assert!(answer.starts_with("HTTP/1.1 508"), "{method} {target}: {answer}");
            }
        }
    }
    eventually("nothing is left open", || open() <= before + 8);
    assert!(caller.is_ready());
}

#[test]
fn admin_servers_are_not_reached_through_a_proxy() {
    let plane = ControlPlane::start(&[]);
    let (one, other) = (Proxy::caller(&plane, &[]), Proxy::start(&plane, "other", &[]));
    for port in [other.admin, plane.admin] {
        assert_eq!(http_get(port, "/ready").expect("an answer").0, 200);
        for prefix in ["", "\r\n", "\r\n\r\n\n"] {
            let get = format!(
                "{prefix}GET /ready HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n",
                local(port)
            );
            let absolute = get.replace("GET /", &format!("GET http://{}/", local(port)));
            let answer = raw(one.outbound, absolute.as_bytes(), SOON);
            assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
            let mut stream = TcpStream::connect(local(one.outbound)).expect("a connection");
            stream.set_read_timeout(Some(SOON)).expect("a limit");
            let connect = format!("CONNECT {0} HTTP/1.1\r\nhost: {0}\r\n\r\n", local(port));
            stream.write_all(connect.as_bytes()).expect("written");
            assert!(read_head(&mut stream).expect("an answer").starts_with("HTTP/1.1 200"));
            stream.write_all(get.as_bytes()).expect("written");
            assert!(read_head(&mut stream).expect("an answer").starts_with("HTTP/1.1 403"));
        }
    }
}

#[test]
fn what_changes_the_proxy_wants_the_socket_or_the_token() {
    let plane = ControlPlane::start(&[]);
    let (socket, token) =
        (plane.dir.path().join("admin.sock"), plane.dir.path().join("admin.token"));
    // A socket that a killed process left behind is replaced.
    drop(std::os::unix::net::UnixListener::bind(&socket).expect("a socket"));
    std::fs::write(&token, "secret\n").expect("a file");
    let (at, file) = (socket.display().to_string(), token.display().to_string());
    let mut proxy = Proxy::caller(&plane, &["--admin-socket", &at, "--admin-token-file", &file]);
    let mode = {
        use std::os::unix::fs::PermissionsExt;
        std::fs::metadata(&socket).expect("a socket").permissions().mode()
    };
    assert_eq!(mode & 0o777, 0o600);
    let log = format!("http://{}/log", local(proxy.admin));
    let put = |more: &[&str], url: &str| {
        let args = [&["-X", "PUT", "--data", "info"], more].concat();
        Curl::direct().args(&args).get(url).status
    };
    assert_eq!(put(&[], &log), 401);
    assert_eq!(put(&["-H", "authorization: Bearer wrong"], &log), 401);
    assert_eq!(put(&["-H", "authorization: Bearer secret"], &log), 200);
    std::fs::write(&token, "\n").expect("a file");
    assert_eq!(put(&["-H", "authorization: Bearer "], &log), 403);
    assert_eq!(put(&["--unix-socket", &at], "http://admin/log"), 200);
    let without = Proxy::start(&plane, "without", &[]);
    let drain = format!("http://{}/drain", local(without.admin));
    let refused = Curl::direct().args(&["-X", "POST"]).get(&drain);
    assert!(refused.status == 403 && refused.body.contains("--admin-socket"), "{refused:?}");
    assert!(without.is_ready());
    let drained =
        Curl::direct().args(&["-X", "POST", "--unix-socket", &at]).get("http://admin/drain");
    assert_eq!(drained.status, 202);
    assert!(proxy.process().wait(Duration::from_secs(10)).success());
}

#[test]
fn an_address_that_is_not_the_proxys_own_is_dialled() {
    let app = TcpListener::bind("127.0.0.2:0").expect("a port");
    let address = app.local_addr().expect("its address");
    let _app = outrigger_tests::app::Echo::on(app, "near");
    let plane = ControlPlane::start(&[]);
    let caller = Proxy::caller(&plane, &[]);
    assert_eq!(Curl::through(&caller).get(&format!("http://{address}/")).status, 200);
}
