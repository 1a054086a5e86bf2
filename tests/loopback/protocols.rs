//! Every protocol, through a pair of proxies, with clients that we did not write.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use outrigger_tests::app::{Echo, count_then_answer, greet_then_echo, tcp};
use outrigger_tests::client::{Curl, has, python, python_with};
use outrigger_tests::process::{ControlPlane, Process, Proxy, TempDir, free_port, listens, local};
use outrigger_tests::{eventually, skip};

use crate::{Mesh, service, unmeshed};

#[test]
fn a_declared_protocol_that_the_app_does_not_speak_is_named() {
    // Its app answers whatever it does not know as servers of HTTP/1 do.
    let port = tcp(|mut stream| {
        let _ = stream.read(&mut [0; 1024]);
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n");
    });
    let plane = ControlPlane::start(&[("web.yaml", &service("web", "grpc"))]);
    let web = Proxy::beside(&plane, "web", &[format!("{port}=grpc:main")], &[]);
    let caller = Proxy::caller(&plane, &[]);
    eventually("it is an endpoint", || {
        Curl::through(&caller).get("http://web.bank/").status == 502
    });
    let answer = Curl::through(&caller).get("http://web.bank/");
    let says = "upstream_protocol_error: 127.0.0.1";
    let came = "it speaks HTTP/1 where HTTP/2 is expected: its first words are \"HTTP/1.1 400 Bad Request\"";
    assert!(
        answer.status == 502 && answer.body.contains(says) && answer.body.contains(came),
        "{answer:?}"
    );
    for (proxy, by) in [(&web, "local"), (&caller, "peer")] {
        let reason = ["upstream_protocol_error", by];
        eventually("both say so", || proxy.count("outrigger_requests_total", &reason) > 0.0);
    }
}

#[test]
fn http1_through_two_proxies() {
    let mesh = Mesh::start("h1");
    let answer = Curl::through(&mesh.caller)
        .args(&["--header", "connection: x-private", "--header", "x-private: 1"])
        .args(&["--header", "x-outrigger-hop: 1;port=1;proto=h1", "--header", "x-kept: 1"])
        .args(&["--data", "hello"])
        .get("http://web.bank/path?q=1");
    assert_eq!(answer.status, 200, "{answer:?}");
    let said: serde_json::Value = serde_json::from_str(&answer.body).expect("JSON");
    assert_eq!(said["version"], "HTTP/1.1");
    assert_eq!((&said["uri"], &said["body"]), (&"/path?q=1".into(), &"hello".into()));
    let headers = said["headers"].as_object().expect("headers");
    assert_eq!(headers["host"], "web.bank");
    assert_eq!(headers["x-kept"], "1");
    assert_eq!(headers["x-request-id"].as_str().map(str::len), Some(32));
    assert!(!headers.contains_key("traceparent"), "a trace that nobody records: {headers:?}");
    for gone in ["x-private", "connection", "proxy-connection", "x-outrigger-hop"] {
        assert!(!headers.contains_key(gone), "{gone} reached the app: {headers:?}");
    }
    assert!(answer.head.contains("x-app: web"), "{}", answer.head);
    // Both sides count it.
    let labels = ["service=\"bank/web:80\"", "outcome=\"success\"", "protocol=\"h1\""];
    eventually("the caller's proxy counts it", || {
        mesh.caller.count("outrigger_requests_total", &labels) == 1.0
    });
    eventually("the app's proxy counts it", || {
        mesh.web.count("outrigger_requests_total", &["direction=\"inbound\""]) == 1.0
    });
}

#[test]
fn bodies_of_any_size_arrive_whole() {
    let mesh = Mesh::start("h1");
    let dir = TempDir::new("body");
    let file = dir.path().join("body");
    std::fs::write(&file, vec![b'y'; 3_000_000]).expect("a file");
    let upload = format!("@{}", file.display());
    for more in [[].as_slice(), &["--header", "transfer-encoding: chunked"]] {
        let answer = Curl::through(&mesh.caller)
            .args(&["--data-binary", &upload, "--header", "expect:"])
            .args(more)
            .get("http://web.bank/");
        assert!(answer.body.contains("\"bodyBytes\":3000000"), "{more:?}: {}", answer.head);
    }
    let answer = Curl::through(&mesh.caller).get("http://web.bank/bytes/5000000");
    assert_eq!(answer.body.len(), 5_000_000);
    let answer = Curl::through(&mesh.caller).args(&["--head"]).get("http://web.bank/bytes/10");
    assert!(answer.head.contains("content-length: 10"), "{answer:?}");
}

#[test]
fn many_http1_callers_share_few_connections() {
    if !has("wrk") {
        return skip("many_http1_callers_share_few_connections", "wrk is not installed");
    }
    let mesh = Mesh::start("h1");
    let port = free_port();
    let listen = format!("127.0.0.1:{port}=web.bank:80");
    let caller = Proxy::start(&mesh.plane, "sharing", &["--workers", "1", "--listen", &listen]);
    let url = format!("http://{}/", local(port));
    let out = Command::new("wrk").args(["-t1", "-c50", "-d1", &url]).output().expect("wrk runs");
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(text.contains("requests in") && !text.contains("Non-2xx"), "{text}");
    let opened = caller.count("outrigger_upstream_connections_total", &[]);
    assert!(opened <= 4.0, "50 callers took {opened} connections");
}

#[test]
fn http2_with_prior_knowledge() {
    let mesh = Mesh::start("h2");
    let to = format!("web.bank:80:{}", local(mesh.caller.outbound));
    let answer = Curl::direct()
        .args(&["--http2-prior-knowledge", "--connect-to", &to, "--data", "hello"])
        .get("http://web.bank/x");
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(answer.head.starts_with("HTTP/2"), "{}", answer.head);
    let said: serde_json::Value = serde_json::from_str(&answer.body).expect("JSON");
    assert_eq!((&said["version"], &said["body"]), (&"HTTP/2.0".into(), &"hello".into()));
    // The same app, asked in HTTP/1.1: its own protocol stays what it declared.
    let answer = Curl::through(&mesh.caller).get("http://web.bank/y");
    assert!(answer.body.contains("HTTP/2.0"), "{answer:?}");
}

/// An answer to HEAD has no body (RFC 9110 section 9.3.2), anyone who gives it.
#[test]
fn own_answers_to_head_have_no_body() {
    let mesh = Mesh::start("h2");
    let to = format!("nobody.bank:80:{}", local(mesh.caller.outbound));
    for version in ["--http2-prior-knowledge", "--http1.1"] {
        let args = [version, "--connect-to", &to, "--head"];
        let answer = Curl::direct().args(&args).get("http://nobody.bank/");
        assert_eq!((answer.status, answer.exit), (502, Some(0)), "{version}: {answer:?}");
        assert!(answer.head.contains("no_such_service") && answer.body.is_empty(), "{answer:?}");
    }
}

#[test]
fn h2load_counts_every_answer() {
    if !has("h2load") {
        return skip("h2load_counts_every_answer", "h2load is not installed");
    }
    let mesh = Mesh::start("h2");
    let port = free_port();
    let listen = format!("127.0.0.1:{port}=web.bank:80");
    let _caller = Proxy::start(&mesh.plane, "loaded", &["--listen", &listen]);
    let out = Command::new("h2load")
        .args(["-n5000", "-c4", "-m32", &format!("http://{}/", local(port))])
        .output()
        .expect("h2load runs");
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(text.contains("5000 succeeded, 0 failed"), "{text}");
    assert_eq!(mesh.app.requests.load(Relaxed), 5_000);
}

const GRPC: &str = r#"
import sys, grpc
from concurrent import futures

class Any(grpc.GenericRpcHandler):
    def service(self, details):
        if details.method == '/bank.Echo/Say':
            return grpc.unary_unary_rpc_method_handler(lambda r, c: b'said ' + r)
        if details.method == '/bank.Echo/Fail':
            def fail(r, c):
                c.set_trailing_metadata((('x-why', 'because'),))
                c.abort(grpc.StatusCode.FAILED_PRECONDITION, 'not today')
            return grpc.unary_unary_rpc_method_handler(fail)
        if details.method == '/bank.Echo/Chat':
            return grpc.stream_stream_rpc_method_handler(lambda rs, c: (b're ' + r for r in rs))

server = grpc.server(futures.ThreadPoolExecutor(4), handlers=[Any()])
server.add_insecure_port('127.0.0.1:' + sys.argv[1])
server.start()
print('up', flush=True)
sys.stdin.read()
"#;

const GRPC_CLIENT: &str = r#"
import sys, grpc
channel = grpc.insecure_channel(sys.argv[1], options=[('grpc.default_authority', sys.argv[2]), ('grpc.enable_http_proxy', 0)])
print(channel.unary_unary('/bank.Echo/Say')(b'hello', timeout=10).decode())
try:
    channel.unary_unary('/bank.Echo/Fail')(b'', timeout=10)
except grpc.RpcError as e:
    print(e.code().name, e.details(), dict(e.trailing_metadata())['x-why'])
print([r.decode() for r in channel.stream_stream('/bank.Echo/Chat')(iter([b'a', b'b', b'c']), timeout=10)])
channel = grpc.insecure_channel(sys.argv[1], options=[('grpc.default_authority', 'nobody.bank:80'), ('grpc.enable_http_proxy', 0)])
try:
    channel.unary_unary('/bank.Echo/Say')(b'', timeout=10)
except grpc.RpcError as e:
    print(e.code().name, e.details())
"#;

#[test]
fn grpc_with_trailers_and_streams() {
    let Some(python3) = python_with("grpc") else {
        return skip("grpc_with_trailers_and_streams", "no Python with grpcio");
    };
    let port = free_port();
    let dir = TempDir::new("grpc");
    let mut server = Command::new(&python3);
    let _server =
        Process::start(dir.path(), "server", server.args(["-c", GRPC, &port.to_string()]));
    eventually("the gRPC server listens", || listens(port));
    let manifests = service("echo", "grpc");
    let manifests = [("echo.yaml", manifests.as_str())];
    grpc_in(&ControlPlane::start(&manifests), &python3, port);
    let strict = ControlPlane::start_with_identity(&manifests, &["--mtls", "strict"]);
    grpc_in(&strict, &python3, port);
}

fn grpc_in(plane: &ControlPlane, python3: &PathBuf, port: u16) {
    let echo = Proxy::beside(plane, "echo", &[format!("{port}=grpc:main")], &[]);
    let caller = Proxy::caller(plane, &[]);
    let out = python(python3, GRPC_CLIENT, &[&local(caller.outbound).to_string(), "echo.bank:80"]);
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 4, "{text}{}", String::from_utf8_lossy(&out.stderr));
    assert_eq!(lines[0], "said hello");
    assert_eq!(lines[1], "FAILED_PRECONDITION not today because");
    assert_eq!(lines[2], "['re a', 're b', 're c']");
    assert!(lines[3].contains("no_such_service"), "{}", lines[3]);
    eventually("statuses are counted by name", || {
        let labels = ["status=\"FAILED_PRECONDITION\"", "protocol=\"grpc\""];
        echo.count("outrigger_requests_total", &labels) == 1.0
            && caller.count("outrigger_requests_total", &labels) == 1.0
    });
}

const WEBSOCKET: &str = r#"
import sys, asyncio, websockets
async def main():
    async def echo(ws):
        async for message in ws:
            await ws.send('re ' + message)
    async with websockets.serve(echo, '127.0.0.1', int(sys.argv[1])):
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
asyncio.run(main())
"#;

const WEBSOCKET_CLIENT: &str = r#"
import sys, asyncio, websockets
async def main():
    async with websockets.connect('ws://' + sys.argv[1] + '/chat') as ws:
        for i in range(100):
            await ws.send('m%d' % i)
            assert await ws.recv() == 're m%d' % i
        await ws.send('x' * 500000)
        assert len(await ws.recv()) == 500003
    print('fine')
asyncio.run(main())
"#;

#[test]
fn websockets_through_a_hop_and_straight() {
    let Some(python3) = python_with("websockets") else {
        return skip("websockets_through_a_hop_and_straight", "no Python with websockets");
    };
    let port = free_port();
    let dir = TempDir::new("ws");
    let mut server = Command::new(&python3);
    let _server =
        Process::start(dir.path(), "server", server.args(["-c", WEBSOCKET, &port.to_string()]));
    eventually("the WebSocket server listens", || listens(port));
    let manifests = [service("chat", "http"), unmeshed("plain", "http", port)];
    let manifests = [("chat.yaml", manifests[0].as_str()), ("plain.yaml", manifests[1].as_str())];
    websockets_in(&ControlPlane::start(&manifests), &python3, port);
    let strict = ControlPlane::start_with_identity(&manifests, &["--mtls", "strict"]);
    websockets_in(&strict, &python3, port);
}

fn websockets_in(plane: &ControlPlane, python3: &PathBuf, port: u16) {
    let _chat = Proxy::beside(plane, "chat", &[format!("{port}=h1:main")], &[]);
    for name in ["chat", "plain"] {
        let listener = free_port();
        let listen = format!("127.0.0.1:{listener}={name}.bank:80");
        let _caller = Proxy::caller(plane, &["--listen", &listen]);
        let out = python(python3, WEBSOCKET_CLIENT, &[&local(listener).to_string()]);
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        assert_eq!(text.trim(), "fine", "{name}: {}", String::from_utf8_lossy(&out.stderr));
    }
}

/// A service of a TCP app behind a sidecar, and a caller with a listener for it.
fn tcp_mesh(app: u16, declared: &str) -> (ControlPlane, Proxy, Proxy, u16) {
    let plane = ControlPlane::start(&[("raw.yaml", &service("raw", ""))]);
    let raw = Proxy::beside(&plane, "raw", &[format!("{app}={declared}:main")], &[]);
    let listener = free_port();
    let listen = format!("127.0.0.1:{listener}=raw.bank:80");
    let caller = Proxy::caller(&plane, &["--listen", &listen]);
    (plane, raw, caller, listener)
}

#[test]
fn of_services_that_select_one_port_the_one_that_was_called_is_counted() {
    for (declared, app) in [("http", Echo::start("raw").port), ("tcp", tcp(count_then_answer))] {
        let other = service("raw", declared).replace("name: raw,", "name: zoo,");
        let files = [("raw.yaml", &*service("raw", declared)), ("zoo.yaml", &*other)];
        let plane = ControlPlane::start(&files);
        let app = format!("{app}={}:main", if declared == "http" { "h1" } else { declared });
        let raw = Proxy::beside(&plane, "raw", &[app], &[]);
        for (name, calls) in [("zoo", 2), ("raw", 1)] {
            let listener = free_port();
            let listen = format!("127.0.0.1:{listener}={name}.bank:80");
            let _caller = Proxy::caller(&plane, &["--listen", &listen]);
            for _ in 0..calls {
                let mut stream = TcpStream::connect(local(listener)).expect("a connection");
                let request =
                    format!("GET / HTTP/1.1\r\nhost: {name}.bank\r\nconnection: close\r\n\r\n");
                stream.write_all(request.as_bytes()).expect("written");
                stream.shutdown(Shutdown::Write).expect("half closed");
                let mut said = String::new();
                stream.read_to_string(&mut said).expect("an answer");
                assert!(said.contains(if declared == "tcp" { "got " } else { "200 OK" }), "{said}");
            }
            let label = format!("service=\"bank/{name}:80\"");
            let labels = ["direction=\"inbound\"", "outcome=\"success\"", &label];
            eventually("they are counted as calls of it", || {
                raw.count("outrigger_requests_total", &labels) == f64::from(calls)
            });
        }
    }
}

#[test]
fn opaque_bytes_with_half_close() {
    let app = tcp(count_then_answer);
    for declared in ["tcp", "detect"] {
        let (_plane, raw, _caller, listener) = tcp_mesh(app, declared);
        let mut stream = TcpStream::connect(local(listener)).expect("a connection");
        stream.write_all(b"\x00\x01binary").expect("written");
        stream.write_all(&vec![7; 1_000_000]).expect("written");
        stream.shutdown(Shutdown::Write).expect("half closed");
        let mut said = String::new();
        stream.read_to_string(&mut said).expect("an answer");
        assert_eq!(said, "got 1000008 bytes", "{declared}");
        eventually("the stream is counted", || {
            raw.count("outrigger_requests_total", &["protocol=\"tcp\"", "outcome=\"success\""])
                >= 1.0
        });
    }
}

#[test]
fn a_server_that_speaks_first_is_waited_for() {
    let app = tcp(greet_then_echo);
    let (_plane, _raw, caller, listener) = tcp_mesh(app, "detect");
    let greet = || {
        let began = Instant::now();
        let mut stream = TcpStream::connect(local(listener)).expect("a connection");
        let mut said = [0; 11];
        stream.read_exact(&mut said).expect("a greeting");
        assert_eq!(&said, b"220 ready\r\n");
        stream.write_all(b"ping\r\n").expect("written");
        let mut echo = [0; 6];
        stream.read_exact(&mut echo).expect("an echo");
        assert_eq!(&echo, b"ping\r\n");
        began.elapsed()
    };
    let first = greet();
    assert!(first >= Duration::from_millis(50), "silence was no verdict in {first:?}");
    greet();
    drop(caller);
}

#[test]
fn connect_carries_anything() {
    let app = tcp(greet_then_echo);
    let (_plane, _raw, caller, _listener) = tcp_mesh(app, "tcp");
    // curl speaks "telnet" through the tunnel.
    let mut curl = Command::new("curl")
        .args(["--silent", "--no-buffer", "--max-time", "10", "--proxytunnel", "--proxy"])
        .arg(format!("http://{}", local(caller.outbound)))
        .arg("telnet://raw.bank:80")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("curl runs");
    let mut out = curl.stdout.take().expect("its output");
    let mut said = [0; 11];
    out.read_exact(&mut said).expect("a greeting");
    assert_eq!(&said, b"220 ready\r\n");
    curl.kill().expect("its end");
    curl.wait().expect("its end");
    // HTTP inside a tunnel is routed like any other.
    let web = Mesh::start("h1");
    let answer = Curl::through(&web.caller).args(&["--proxytunnel"]).get("http://web.bank/inside");
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(answer.body.contains("/inside"), "{answer:?}");
    // And a name that nobody has is refused before the tunnel opens.
    let answer = Curl::through(&web.caller).args(&["--proxytunnel"]).get("http://nobody.bank/");
    assert!(answer.head.contains("no_such_service"), "{answer:?}");
}

#[test]
fn tls_is_passed_through_by_server_name() {
    if !has("openssl") {
        return skip("tls_is_passed_through_by_server_name", "openssl is not installed");
    }
    let dir = TempDir::new("tls");
    let at = |name: &str| dir.path().join(name).display().to_string();
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"])
        .args([
            "-days",
            "1",
            "-subj",
            "/CN=secure.bank",
            "-keyout",
            &at("key"),
            "-out",
            &at("cert"),
        ])
        .output()
        .expect("openssl runs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let port = free_port();
    let mut server = Command::new("openssl");
    server.args([
        "s_server",
        "-accept",
        &port.to_string(),
        "-key",
        &at("key"),
        "-cert",
        &at("cert"),
    ]);
    let _server = Process::start(dir.path(), "server", server.arg("-www"));
    eventually("the TLS server listens", || listens(port));
    let route = "apiVersion: gateway.networking.k8s.io/v1alpha2\nkind: TLSRoute\n\
        metadata: {name: secure, namespace: bank}\nspec:\n\
        \x20 parentRefs: [{group: \"\", kind: Service, name: secure, port: 80}]\n\
        \x20 hostnames: [secure.bank]\n  rules: [{backendRefs: [{name: secure, port: 80}]}]\n";
    let plane =
        ControlPlane::start(&[("secure.yaml", &service("secure", "tls")), ("route.yaml", route)]);
    let _secure = Proxy::beside(&plane, "secure", &[format!("{port}=tls:main")], &[]);
    let caller = Proxy::caller(&plane, &[]);
    let get = |name: &str| {
        let to = format!("{name}:80:secure.bank:80");
        Curl::through(&caller)
            .args(&["--insecure", "--proxytunnel", "--connect-to", &to])
            .get(&format!("https://{name}:80/"))
    };
    let answer = get("secure.bank");
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(answer.body.contains("s_server"), "{answer:?}");
    // Another server name has no route, and the refusal is logged with its reason.
    let answer = get("other.bank");
    assert_ne!(answer.exit, Some(0), "{answer:?}");
    caller.wait_log(&["no_route", "other.bank"]);
}

#[test]
fn what_cannot_be_served_says_why() {
    let mut mesh = Mesh::start("h1");
    let answer = Curl::through(&mesh.caller).get("http://nobody.bank:8000/");
    assert_eq!(answer.status, 502, "{answer:?}");
    assert!(
        answer.head.contains("proxy-status: outrigger; error=destination_not_found"),
        "{answer:?}"
    );
    assert!(answer.body.contains("no_such_service") && answer.body.contains("check the name"));
    // Nobody is ready: the app's proxy has gone.
    mesh.web.process().terminate();
    mesh.web.process().wait(Duration::from_secs(10));
    let answer = Curl::through(&mesh.caller).get("http://web.bank/");
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(answer.body.contains("no_endpoint"), "{answer:?}");
    // Outside names pass through.
    let outside = Echo::start("outside");
    let answer = Curl::through(&mesh.caller).get(&format!("http://localhost:{}/", outside.port));
    assert_eq!(answer.status, 200, "{answer:?}");
    let answer = Curl::through(&mesh.caller).get("http://localhost:9/");
    assert!(answer.body.contains("connect_failed"), "{answer:?}");
    // A proxy never calls itself.
    let own = format!("http://localhost:{}/", mesh.caller.outbound);
    let answer = Curl::through(&mesh.caller).get(&own);
    assert_eq!(answer.status, 508, "{answer:?}");
    // The inbound port is for other proxies only.
    let inbound = format!("http://{}/", local(mesh.caller.inbound));
    let answer = Curl::direct().get(&inbound);
    assert_eq!(answer.status, 403, "{answer:?}");
    drop(mesh);
}
