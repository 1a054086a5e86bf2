//! Start, restart, drain and end of the processes.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use outrigger_tests::app::{Echo, read_head, tcp};
use outrigger_tests::client::{Curl, Load, http_get};
use outrigger_tests::eventually;
use outrigger_tests::process::{ControlPlane, Proxy, binary, free_port, local};

use crate::{Mesh, service, unmeshed};

/// Far below the 30 s in which requests in flight may finish.
const DRAINED: Duration = Duration::from_secs(10);

/// Sends a request without waiting for its answer.
fn begin(port: u16, path: &str) -> TcpStream {
    let mut stream = TcpStream::connect(local(port)).expect("a connection");
    stream.set_read_timeout(Some(Duration::from_secs(15))).expect("a limit");
    write!(stream, "GET http://web.bank{path} HTTP/1.1\r\nhost: web.bank\r\n\r\n")
        .expect("written");
    stream
}

/// The first piece of what comes.
fn answer(stream: &mut TcpStream) -> String {
    let mut bytes = [0; 4096];
    let n = stream.read(&mut bytes).expect("an answer");
    String::from_utf8_lossy(&bytes[..n]).into_owned()
}

#[test]
fn what_is_in_flight_finishes_after_sigterm() {
    let mut mesh = Mesh::start("h1");
    // An idle kept connection to each proxy, and one that has said nothing.
    let mut idle = begin(mesh.caller.outbound, "/");
    assert!(answer(&mut idle).contains("200 OK"));
    let _silent = TcpStream::connect(local(mesh.web.inbound)).expect("a connection");
    let mut slow = begin(mesh.caller.outbound, "/sleep/1500");
    eventually("the app has the request", || mesh.app.requests.load(Relaxed) == 2);
    let began = Instant::now();
    mesh.web.process().terminate();
    eventually("the proxy says that it leaves", || {
        http_get(mesh.web.admin, "/ready").is_none_or(|(status, _)| status == 503)
    });
    // Impatience changes nothing.
    mesh.web.process().terminate();
    mesh.web.process().interrupt();
    let said = answer(&mut slow);
    assert!(said.starts_with("HTTP/1.1 200"), "{said}");
    let status = mesh.web.process().wait(DRAINED);
    assert!(status.success(), "{status}");
    assert!(began.elapsed() < DRAINED, "{:?}", began.elapsed());
    mesh.web.wait_log(&["drained"]);
}

#[test]
fn idle_connections_of_the_app_do_not_hold_up_the_end() {
    let mut mesh = Mesh::start("h1");
    let mut kept = begin(mesh.caller.outbound, "/");
    assert!(answer(&mut kept).contains("200 OK"));
    let _silent = TcpStream::connect(local(mesh.caller.outbound)).expect("a connection");
    let mut slow = begin(mesh.caller.outbound, "/sleep/2000");
    eventually("the app has the request", || mesh.app.requests.load(Relaxed) == 2);
    mesh.caller.process().interrupt();
    let said = answer(&mut slow).to_ascii_lowercase();
    assert!(said.starts_with("http/1.1 200") && said.contains("connection: close"), "{said}");
    let status = mesh.caller.process().wait(DRAINED);
    assert!(status.success(), "{status}");
}

/// Connections that rest, and what each of them may cost a debug build, in KiB: the buffers of hyper's server alone
/// are 16.
const RESTING: u64 = 400;
const MOST_RESTING: u64 = 5;
/// The same after a request with a body, in whose memory there are more gaps.
const MOST_AFTER_BODIES: u64 = 10;

#[test]
fn an_idle_connection_costs_little_more_than_its_socket_and_serves_again() {
    let mut mesh = Mesh::start("h1");
    let port = mesh.caller.outbound;
    let ask = |stream: &mut TcpStream| {
        write!(stream, "GET http://web.bank/ HTTP/1.1\r\nhost: web.bank\r\n\r\n").expect("written");
        let said = answer(stream);
        assert!(said.starts_with("HTTP/1.1 200"), "{said}");
    };
    assert!(answer(&mut begin(port, "/")).contains("200 OK"));
    let before = mesh.caller.process().own_memory();
    // One by one: what many at once leave between them in the allocator's pages differs from run to run.
    let opened = |_| {
        let mut stream = begin(port, "/");
        assert!(answer(&mut stream).contains("200 OK"));
        stream
    };
    let mut idle: Vec<_> = (0..RESTING).map(opened).collect();
    eventually("idle connections cost little", || {
        mesh.caller.process().own_memory() < before + RESTING * MOST_RESTING
    });
    for stream in &mut idle {
        let head = "POST http://web.bank/ HTTP/1.1\r\nhost: web.bank\r\ncontent-length: 4\r\n\r\n";
        write!(stream, "{head}body").expect("written");
        assert!(answer(stream).contains("200 OK"));
    }
    eventually("also after a request with a body", || {
        mesh.caller.process().own_memory() < before + RESTING * MOST_AFTER_BODIES
    });
    idle.iter_mut().for_each(ask);
    // Its beginning was read with the request before.
    let mut early = begin(port, "/");
    write!(early, "GET http://web.bank/ HTTP/1.1\r\nho").expect("written");
    assert!(answer(&mut early).contains("200 OK"));
    early.set_read_timeout(Some(Duration::from_secs(4))).expect("a limit");
    assert!(early.read(&mut [0]).is_err(), "nothing is said to half a request");
    write!(early, "st: web.bank\r\n\r\n").expect("written");
    assert!(answer(&mut early).contains("200 OK"));
    // A client that leaves is noticed, and one that rests does not hold up the end.
    idle.truncate(8);
    eventually("closed connections are let go", || {
        mesh.caller.count("outrigger_connections_open", &[]) <= 9.0
    });
    mesh.caller.process().interrupt();
    let status = mesh.caller.process().wait(DRAINED);
    assert!(status.success(), "{status}");
    assert_eq!(idle[0].read(&mut [0]).expect("an end"), 0);
}

/// An app that answers without reading the body, and waits.
#[test]
fn the_rest_of_a_body_that_was_answered_early_is_no_request() {
    let (smuggled, seen) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let counts = (Arc::clone(&smuggled), Arc::clone(&seen));
    let app = tcp(move |mut stream| {
        let Some(head) = read_head(&mut stream) else { return };
        counts.0.fetch_add(usize::from(head.starts_with("GET")), Relaxed);
        counts.1.fetch_add(1, Relaxed);
        let _ = write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
        // Until the proxy closes it.
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let plane = ControlPlane::start(&[("app.yaml", &unmeshed("app", "http", app))]);
    let caller = Proxy::caller(&plane, &[]);
    let rest = "GET http://app.bank/ HTTP/1.1\r\nhost: app.bank\r\n\r\n";
    let mut stream = TcpStream::connect(local(caller.outbound)).expect("a connection");
    stream.set_read_timeout(Some(Duration::from_secs(4))).expect("a limit");
    let length = 4 + rest.len();
    let head = "POST http://app.bank/ HTTP/1.1\r\nhost: app.bank\r\ncontent-length";
    write!(stream, "{head}: {length}\r\n\r\nbody").expect("written");
    assert!(answer(&mut stream).ends_with("ok"));
    // Longer than an idle connection is kept in hyper's hands.
    let closed = match stream.read(&mut [0]) {
        Ok(0) => true,
        Ok(_) => panic!("something more is said"),
        Err(_) => false,
    };
    if write!(stream, "{rest}").is_err() {
        assert!(closed);
    }
    let more = stream.read(&mut [0]);
    assert!(!matches!(more, Ok(1..)), "something is answered");
    assert_eq!((seen.load(Relaxed), smuggled.load(Relaxed)), (1, 0));
}

#[test]
fn a_restarted_proxy_serves_what_it_knew_while_the_control_plane_is_away() {
    let mut mesh = Mesh::start("h1");
    let state = mesh.plane.dir.path().join("proxy-state");
    let dir = state.display().to_string();
    let args = ["--state-dir", &dir, "--config-timeout", "1s"];
    let mut proxy = Proxy::start(&mesh.plane, "stateful", &args);
    assert_eq!(Curl::through(&proxy).get("http://web.bank/").status, 200);
    mesh.plane.kill();
    // With time to write, and without.
    for graceful in [true, false] {
        if graceful {
            proxy.process().terminate();
            assert!(proxy.process().wait(DRAINED).success());
        } else {
            proxy.process().kill();
        }
        proxy.run();
        proxy.wait_ready();
        let answer = Curl::through(&proxy).get("http://web.bank/");
        assert_eq!(answer.status, 200, "graceful {graceful}: {answer:?}");
    }
    let answer = Curl::through(&proxy).get("http://other.bank/");
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(answer.body.contains("config_unavailable"), "{answer:?}");
    // And what is new is heard of again.
    mesh.plane.run();
    eventually("the proxy has found the control plane again", || {
        Curl::through(&proxy).get("http://other.bank/").body.contains("no_such_service")
    });
    assert_eq!(Curl::through(&proxy).get("http://web.bank/").status, 200);
}

#[test]
fn a_state_directory_belongs_to_one_proxy() {
    let plane = ControlPlane::start(&[]);
    let dir = plane.dir.path().join("shared").display().to_string();
    let _first = Proxy::start(&plane, "first", &["--state-dir", &dir]);
    let out = run("outrigger-proxy", &["--state-dir", &dir, "--outbound", "127.0.0.1:0"]);
    assert!(!out.status.success());
    let said = text(&out);
    assert!(said.contains("another proxy uses it") && said.contains(&dir), "{said}");
}

fn run(program: &str, args: &[&str]) -> Output {
    Command::new(binary(program)).args(args).output().expect("it runs")
}

fn text(out: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
}

#[test]
fn wrong_flags_say_what_is_wrong() {
    for (program, args, word) in [
        ("outrigger-proxy", ["--outbound", "nowhere"], "--outbound"),
        ("outrigger-proxy", ["--header-timeout", "5"], "250ms, 10s or 2m"),
        ("outrigger-proxy", ["--app-port", "80=smtp"], "h1, h2, grpc, tls, tcp, detect"),
        ("outrigger-proxy", ["--listen", "127.0.0.1:1"], "IP:PORT=HOST:PORT"),
        ("outrigger-proxy", ["--outbuond", "127.0.0.1:1"], "--outbound"),
        ("outrigger-control-plane", ["--grace-period", "soon"], "ms, s, m, h or d"),
        ("outrigger-control-plane", ["--max-endpoints", "0"], "1..=10000"),
        ("outrigger-control-plane", ["--unmatched", "maybe"], "passthrough, refuse"),
    ] {
        let out = run(program, &args);
        let said = text(&out);
        assert_eq!(out.status.code(), Some(2), "{program} {args:?}: {said}");
        assert!(said.contains(word), "{program} {args:?}: {said}");
    }
}

#[test]
fn a_port_in_use_is_named() {
    let plane = ControlPlane::start(&[]);
    let proxy = Proxy::caller(&plane, &[]);
    let taken = local(proxy.outbound).to_string();
    let (a, b) = (local(free_port()).to_string(), local(free_port()).to_string());
    let args = ["--outbound", &taken, "--inbound", &a, "--admin", &b];
    let out = run("outrigger-proxy", &args);
    assert!(!out.status.success());
    assert!(text(&out).contains(&format!("cannot listen on {taken}")), "{}", text(&out));
    let taken = local(plane.listen).to_string();
    let dir = plane.dir.path().join("manifests").display().to_string();
    let args = ["--manifests", &dir, "--listen", &taken, "--admin", &a, "--identity", "off"];
    let out = run("outrigger-control-plane", &args);
    assert!(!out.status.success());
    assert!(text(&out).contains(&taken), "{}", text(&out));
}

#[test]
fn a_killed_replica_costs_no_request_after_it() {
    let plane = ControlPlane::start(&[("web.yaml", &service("web", "http"))]);
    let (one, two) = (Echo::start("one"), Echo::start("two"));
    let port = |app: &Echo| [format!("{}=h1:main", app.port)];
    let mut first = Proxy::beside(&plane, "web", &port(&one), &["--workload", "web-1"]);
    let _second = Proxy::beside(&plane, "web", &port(&two), &["--workload", "web-2"]);
    let listener = free_port();
    let listen = format!("127.0.0.1:{listener}=web.bank:80");
    let _caller = Proxy::caller(&plane, &["--listen", &listen]);
    let load = Load::start(listener, 4, Duration::from_millis(5));
    eventually("both replicas serve", || load.seen().by_app.len() == 2);
    first.process().kill();
    drop(one);
    // What was in flight may fail, and nothing after it.
    let seen = load.further(20);
    assert!(seen.failures.len() <= 4, "{seen:?}");
    let seen = load.further(500);
    assert!(seen.failures.is_empty(), "{seen:?}");
}

#[test]
fn a_drained_replica_costs_no_request_at_all() {
    let plane = ControlPlane::start(&[("web.yaml", &service("web", "http"))]);
    let (one, two) = (Echo::start("one"), Echo::start("two"));
    let port = |app: &Echo| [format!("{}=h1:main", app.port)];
    let mut first = Proxy::beside(&plane, "web", &port(&one), &["--workload", "web-1"]);
    let _second = Proxy::beside(&plane, "web", &port(&two), &["--workload", "web-2"]);
    let listener = free_port();
    let listen = format!("127.0.0.1:{listener}=web.bank:80");
    let _caller = Proxy::caller(&plane, &["--listen", &listen]);
    let load = Load::start(listener, 4, Duration::from_millis(5));
    eventually("both replicas serve", || load.seen().by_app.len() == 2);
    first.process().terminate();
    assert!(first.process().wait(DRAINED).success());
    load.further(100);
    load.stop_unharmed();
}

#[test]
fn the_longest_durations_are_served() {
    // As long as can be said: all that a duration holds.
    let longest = format!("{}h", u64::MAX / 1_000 / 3_600);
    let args = [
        "--drain-timeout",
        &longest,
        "--header-timeout",
        &longest,
        "--write-timeout",
        &longest,
        "--stream-idle-timeout",
        &longest,
        "--client-idle-timeout",
        &longest,
        "--connect-timeout",
        &longest,
    ];
    let mesh = Mesh::start("h1");
    let mut caller = Proxy::caller(&mesh.plane, &args);
    assert_eq!(Curl::through(&caller).get("http://web.bank/").status, 200);
    let mut busy = begin(caller.outbound, "/sleep/1500");
    eventually("the app has the request", || mesh.app.requests.load(Relaxed) == 2);
    caller.process().terminate();
    let answer = answer(&mut busy);
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(caller.process().wait(DRAINED).success(), "{}", caller.log());
}

/// One request with a method and a body to an admin server.
fn admin(port: u16, method: &str, path: &str, body: &str) -> (u16, String) {
    let url = format!("http://{}{path}", local(port));
    let answer = Curl::direct().args(&["-X", method, "--data", body]).get(&url);
    (answer.status, answer.body)
}

#[test]
fn the_admin_server_tells_and_is_told() {
    let mesh = Mesh::start("h1");
    let port = mesh.caller.admin;
    assert_eq!(http_get(port, "/live"), Some((200, "live\n".to_owned())));
    let (status, said) = http_get(port, "/ready").expect("an answer");
    assert!(status == 200 && said.starts_with("ready\nlive: yes\nconfigured: yes\n"), "{said}");
    assert_eq!(Curl::through(&mesh.caller).get("http://web.bank/").status, 200);
    let (_, config) = http_get(port, "/config").expect("an answer");
    let config: serde_json::Value = serde_json::from_str(&config).expect("JSON");
    let destination = &config["destinations"][0];
    assert_eq!(destination["authority"], "web.bank:80", "{config:#}");
    assert_eq!(destination["state"], "found", "{config:#}");
    eventually("the request is counted with its latency", || {
        let name = "outrigger_request_duration_seconds_count";
        mesh.caller.count(name, &["outcome=\"success\"", "service=\"bank/web:80\""]) == 1.0
    });
    assert_eq!(mesh.caller.count("outrigger_discovery_connected", &[]), 1.0);
    assert_eq!(admin(port, "GET", "/nothing", "").0, 404);
    let socket = mesh.plane.dir.path().join("admin.sock").display().to_string();
    let mut other = Proxy::start(&mesh.plane, "other", &["--admin-socket", &socket]);
    let by_socket = |method, path: &str, body| {
        let args = ["-X", method, "--data", body, "--unix-socket", &socket];
        let answer = Curl::direct().args(&args).get(&format!("http://admin{path}"));
        (answer.status, answer.body)
    };
    assert_eq!(by_socket("PUT", "/log", "outrigger_proxy=debug").0, 200);
    let (status, said) = by_socket("PUT", "/log", "a=b=c");
    assert!(status == 400 && said.contains("bad filter"), "{status} {said}");
    assert_eq!(by_socket("POST", "/drain", "").0, 202);
    assert!(other.process().wait(DRAINED).success());
}

#[test]
fn a_kubelet_learns_whether_the_app_is_there_and_gives_it_time() {
    let plane = ControlPlane::start(&[]);
    let listens = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let open = listens.local_addr().expect("an address").port();
    let (ports, http) = (format!("{open}"), format!("{}/healthz", free_port()));
    let args = ["--app-port", &ports, "--no-registration", "--probe", &ports, "--probe", &http];
    let proxy = Proxy::start(&plane, "pod", &args);
    let get = |path: &str| http_get(proxy.admin, path).expect("an answer");
    assert_eq!(get("/startup"), (200, "started\n".to_owned()));
    assert_eq!(get(&format!("/probe/tcp/{open}")), (200, "open\n".to_owned()));
    drop(listens);
    let (status, why) = get(&format!("/probe/tcp/{open}"));
    assert!(status == 503 && why.contains("refused"), "{status} {why}");
    // Of the listed TCP ones alone: the admin port is nobody's port scanner.
    for path in ["/probe/tcp/1", &format!("/probe/tcp/{}", http.trim_end_matches("/healthz"))] {
        assert_eq!(get(path).0, 404, "{path}");
    }
    assert_eq!(get("/prestop?limit=1ms"), (200, "the app may end\n".to_owned()));
    assert_eq!((get("/prestop?limit=soon").0, get("/prestop").0), (400, 400));
    assert_eq!(get("/ready").0, 200, "it changes nothing");
    let workloads = http_get(plane.admin, "/index").expect("an answer").1;
    assert!(!workloads.contains("\"pod\""), "{workloads}");
    assert!(!workloads.contains("bank.pod"), "{workloads}");
}

#[test]
fn a_proxy_is_ready_only_with_its_first_configuration() {
    let mut plane = ControlPlane::start(&[]);
    plane.kill();
    let [outbound, inbound, port] =
        [free_port(), free_port(), free_port()].map(|p| local(p).to_string());
    let url = format!("http://{}", local(plane.listen));
    let mut command = Command::new(binary("outrigger-proxy"));
    command.args(["--control-plane", &url, "--outbound", &outbound]);
    command.args(["--inbound", &inbound, "--admin", &port]);
    let process = outrigger_tests::process::Process::start(plane.dir.path(), "early", &mut command);
    let at = port.parse::<std::net::SocketAddr>().expect("an address").port();
    eventually("it lives", || http_get(at, "/live").is_some_and(|answer| answer.0 == 200));
    let (status, why) = http_get(at, "/ready").expect("an answer");
    assert!(status == 503 && why.contains("not ready"), "{status} {why}");
    let started = std::thread::spawn(move || {
        // Kept until it is, and asked again where this machine is slow.
        eventually("it has started", || http_get(at, "/startup").is_some_and(|got| got.0 == 200));
    });
    plane.run();
    started.join().expect("it has started");
    eventually("it is ready", || http_get(at, "/ready").is_some_and(|answer| answer.0 == 200));
    drop(process);
}

/// A client that keeps its connection and writes a request now and then. Returns how many requests ended without an
/// answer although nobody had said that the connection ends.
fn keep_asking(port: u16, pause: Duration) -> u32 {
    let request = b"GET http://web.bank/ HTTP/1.1\r\nhost: web.bank\r\n\r\n";
    let mut lost = 0;
    while let Ok(mut stream) = TcpStream::connect(local(port)) {
        stream.set_read_timeout(Some(Duration::from_secs(15))).expect("a limit");
        let mut is_fresh = true;
        loop {
            let mut bytes = [0; 4096];
            let read = stream.write_all(request).and_then(|()| stream.read(&mut bytes));
            match read {
                Ok(n) if n > 0 => {
                    let said = String::from_utf8_lossy(&bytes[..n]).to_ascii_lowercase();
                    if said.contains("connection: close") {
                        break;
                    }
                }
                // The listener is gone, and with it what nobody had accepted.
                Ok(_) | Err(_) if is_fresh => return lost,
                Ok(_) | Err(_) => {
                    lost += 1;
                    break;
                }
            }
            is_fresh = false;
            std::thread::park_timeout(pause);
        }
    }
    lost
}

/// An idle connection that was closed without a word took the request with it that the app was just writing.
#[test]
fn an_app_is_told_on_an_answer_that_its_connection_ends() {
    let mesh = Mesh::start("h1");
    let mut caller = Proxy::caller(&mesh.plane, &["--drain-delay", "0s"]);
    let port = caller.outbound;
    eventually("it answers", || Curl::through(&caller).get("http://web.bank/").status == 200);
    let clients: Vec<_> = (0..24)
        .map(|n| std::thread::spawn(move || keep_asking(port, Duration::from_millis(n))))
        .collect();
    eventually("they are at work", || mesh.app.requests.load(Relaxed) > 2_000);
    caller.process().terminate();
    let status = caller.process().wait(DRAINED);
    assert!(status.success(), "{status}");
    let lost: u32 = clients.into_iter().map(|client| client.join().expect("it ends")).sum();
    assert_eq!(lost, 0, "requests without an answer");
}
