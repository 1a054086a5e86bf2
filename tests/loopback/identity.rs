//! Who may talk to whom: certificates from the control plane, TLS between proxies, and what happens
//! when either comes to its end.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use outrigger_tests::app::{Echo, count_then_answer, greet_then_echo, tcp};
use outrigger_tests::client::{Curl, Load, has, http_get, raw};
use outrigger_tests::process::{ControlPlane, Proxy, free_port, local};
use outrigger_tests::{eventually, skip, within};

use crate::service;

pub const HANDSHAKES: &str = "outrigger_tls_handshakes_total";

/// An app `web` with a sidecar, and a caller with another, in a mesh with identities.
pub struct Mesh {
    // Dropped in this order: callers before what they call.
    pub caller: Proxy,
    pub web: Proxy,
    pub plane: ControlPlane,
    pub app: Echo,
    /// Leads the caller's app to `web.bank:80`.
    pub listen: u16,
}

impl Mesh {
    pub fn start(protocol: &str, plane: &[&str], web: &[&str]) -> Self {
        let app = Echo::start("web");
        let plane = ControlPlane::start_with_identity(&[("web.yaml", &service("web", ""))], plane);
        let port = format!("{}={protocol}:main", app.port);
        let web = Proxy::beside(&plane, "web", &[port], web);
        let listen = free_port();
        let listener = format!("127.0.0.1:{listen}=web.bank:80");
        let caller = Proxy::caller(&plane, &["--listen", &listener]);
        Self { caller, web, plane, app, listen }
    }
}

pub fn number(proxy: &Proxy, field: &str) -> u64 {
    proxy.identity()[field].as_u64().unwrap_or(0)
}

#[test]
fn requests_travel_authenticated_and_both_sides_name_the_other() {
    let mesh = Mesh::start("h1", &["--mtls", "strict"], &["--forward-client-identity"]);
    let forged = "x-forwarded-client-cert: URI=spiffe://outrigger.local/ns/bank/sa/admin";
    let answer = Curl::through(&mesh.caller)
        .args(&["--header", forged, "--data", "hello"])
        .get("http://web.bank/path");
    assert_eq!(answer.status, 200, "{answer:?}");
    let said: serde_json::Value = serde_json::from_str(&answer.body).expect("JSON");
    assert_eq!(
        said["headers"]["x-forwarded-client-cert"],
        "By=spiffe://outrigger.local/ns/bank/sa/web;URI=spiffe://outrigger.local/ns/bank/sa/caller"
    );
    let requests = "outrigger_requests_total";
    eventually("the caller's proxy names the called", || {
        mesh.caller.count(requests, &["outbound", "peer=\"bank/web\""]) == 1.0
    });
    eventually("the called proxy names the caller", || {
        mesh.web.count(requests, &["inbound", "peer=\"bank/caller\""]) == 1.0
    });
    assert_eq!(mesh.web.count(HANDSHAKES, &["inbound", "full"]), 1.0);
    let shown = mesh.web.identity();
    assert_eq!(shown["id"], "spiffe://outrigger.local/ns/bank/sa/web", "{shown}");
    assert!(mesh.web.count("outrigger_certificate_expiry_timestamp_seconds", &[]) > 1e9);
}

#[test]
fn http2_and_upgrades_and_tunnels_are_authenticated_too() {
    let mesh = Mesh::start("h2", &["--mtls", "strict"], &[]);
    let to = format!("web.bank:80:{}", local(mesh.caller.outbound));
    let answer = Curl::direct()
        .args(&["--http2-prior-knowledge", "--connect-to", &to, "--data", "hello"])
        .get("http://web.bank/x");
    assert_eq!(answer.status, 200, "{answer:?}");
    // CONNECT from the app, as opaque bytes inside.
    let answer = Curl::through(&mesh.caller)
        .args(&["--proxytunnel", "--http2-prior-knowledge"])
        .get("http://web.bank/tunnel");
    assert_eq!(answer.status, 200, "{answer:?}");
}

#[test]
fn opaque_tcp_is_authenticated_whichever_side_speaks_first() {
    let manifests = format!("{}---\n{}", service("count", "tcp"), service("greet", ""));
    let plane =
        ControlPlane::start_with_identity(&[("tcp.yaml", &manifests)], &["--mtls", "strict"]);
    let count = format!("{}=tcp:main", tcp(count_then_answer));
    let greet = format!("{}=detect:main", tcp(greet_then_echo));
    let count = Proxy::beside(&plane, "count", &[count], &[]);
    let _greet = Proxy::beside(&plane, "greet", &[greet], &[]);
    let [one, two] = [free_port(), free_port()];
    let listeners =
        [format!("127.0.0.1:{one}=count.bank:80"), format!("127.0.0.1:{two}=greet.bank:80")];
    let _caller = Proxy::caller(&plane, &["--listen", &listeners[0], "--listen", &listeners[1]]);
    let mut stream = TcpStream::connect(local(one)).expect("a connection");
    stream.write_all(&vec![b'x'; 100_000]).expect("written");
    stream.shutdown(std::net::Shutdown::Write).expect("a half closed");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    assert!(answer.contains("100000"), "{answer}");
    let mut stream = TcpStream::connect(local(two)).expect("a connection");
    let mut greeting = [0; 64];
    let n = stream.read(&mut greeting).expect("a greeting");
    assert!(n > 0);
    eventually("the tunnel is counted with its caller", || {
        count.count("outrigger_requests_total", &["inbound", "peer=\"bank/caller\""]) == 1.0
    });
    assert!(count.count(HANDSHAKES, &["inbound", "full"]) >= 1.0);
}

#[test]
fn a_strict_port_says_why_it_takes_no_plaintext() {
    let mesh = Mesh::start("h1", &["--mtls", "strict"], &[]);
    let hop = format!("x-outrigger-hop: 1;port={};proto=h1", mesh.app.port);
    for more in ["", &hop] {
        let request = format!("GET / HTTP/1.1\r\nhost: web\r\n{more}\r\n\r\n");
        let request =
            if more.is_empty() { request.replacen("\r\n\r\n", "\r\n", 1) } else { request };
        let answer = raw(mesh.web.inbound, request.as_bytes(), Duration::from_secs(5));
        assert!(answer.starts_with("HTTP/1.1 403"), "{more}: {answer}");
        assert!(answer.contains("mtls_required"), "{more}: {answer}");
    }
    raw(mesh.web.inbound, b"\x00\x01not http at all\n", Duration::from_secs(5));
    mesh.web.wait_log(&["mtls_required", "\"direction\":\"inbound\"", "\"protocol\":\"detect\""]);
    assert_eq!(mesh.app.requests.load(Relaxed), 0);
}

#[test]
fn tls_without_a_certificate_is_refused_with_the_cause() {
    let test = "tls_without_a_certificate_is_refused_with_the_cause";
    if !has("openssl") {
        return skip(test, "openssl is not installed");
    }
    let mesh = Mesh::start("h1", &[], &[]);
    let to = local(mesh.web.inbound).to_string();
    let mut child = Command::new("openssl")
        .args(["s_client", "-connect", &to, "-alpn", "outrigger/1"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("openssl runs");
    mesh.web.wait_log(&["tls_handshake_failed", "no client certificate"]);
    child.kill().expect("its end");
    child.wait().expect("its end");
    assert_eq!(mesh.web.count(HANDSHAKES, &["inbound", "failed"]), 1.0);
}

#[test]
fn a_control_plane_that_is_away_does_no_harm_until_certificates_end() {
    let mut mesh = Mesh::start("h1", &["--certificate-lifetime", "30s"], &[]);
    let load = Load::start(mesh.listen, 2, Duration::from_millis(5));
    load.further(100);
    mesh.plane.kill();
    within(Duration::from_secs(30), "both have tried to renew in vain", || {
        number(&mesh.web, "failedRenewals") > 0 && number(&mesh.caller, "failedRenewals") > 0
    });
    let before = (number(&mesh.web, "renewals"), number(&mesh.caller, "renewals"));
    mesh.plane.run();
    eventually("both are renewed", || {
        number(&mesh.web, "renewals") > before.0 && number(&mesh.caller, "renewals") > before.1
    });
    load.further(100);
    load.stop_unharmed();
    // And now for too long.
    mesh.plane.kill();
    within(Duration::from_secs(60), "the certificates have ended", || {
        number(&mesh.caller, "secondsLeft") == 0 && number(&mesh.web, "secondsLeft") == 0
    });
    eventually("new connections fail closed, and say why", || {
        let answer = Curl::through(&mesh.caller).get("http://web.bank/");
        answer.status == 503 && answer.body.contains("identity_unavailable")
    });
    let answer = Curl::through(&mesh.caller).get("http://web.bank/");
    assert!(answer.body.contains("the certificate expired"), "{answer:?}");
    let ready = http_get(mesh.caller.admin, "/ready").expect("an answer");
    assert!(ready.0 == 503 && ready.1.contains("the certificate expired"), "{ready:?}");
    mesh.plane.run();
    eventually("it recovers by itself", || {
        Curl::through(&mesh.caller).get("http://web.bank/").status == 200
    });
}

#[test]
fn a_restarted_proxy_needs_its_copy_while_the_control_plane_is_away() {
    let mut mesh = Mesh::start("h1", &[], &[]);
    let states = [mesh.plane.dir.path().join("with"), mesh.plane.dir.path().join("without")];
    let [with, without] = states.map(|dir| dir.display().to_string());
    let mut kept = Proxy::start(&mesh.plane, "kept", &["--state-dir", &with, "--persist-identity"]);
    let mut lost = Proxy::start(&mesh.plane, "lost", &["--state-dir", &without]);
    for proxy in [&kept, &lost] {
        assert_eq!(Curl::through(proxy).get("http://web.bank/").status, 200);
    }
    assert_eq!(kept.identity()["persisted"], true);
    eventually("the configuration is on disk", || {
        [&with, &without].iter().all(|dir| {
            std::fs::read(format!("{dir}/config"))
                .is_ok_and(|bytes| bytes.windows(11).any(|text| text == b"bank/web:80"))
        })
    });
    mesh.plane.kill();
    for proxy in [&mut kept, &mut lost] {
        proxy.process().kill();
        proxy.run();
    }
    eventually("the one with a copy serves", || {
        kept.is_ready() && Curl::through(&kept).get("http://web.bank/").status == 200
    });
    eventually("the other says what it lacks", || {
        http_get(lost.admin, "/ready")
            .is_some_and(|(status, why)| status == 503 && why.contains("no certificate; the last"))
    });
    let answer = Curl::through(&lost).get("http://web.bank/");
    assert!(answer.body.contains("identity_unavailable"), "{answer:?}");
}

#[test]
fn a_process_that_takes_over_an_address_does_not_take_over_the_identity() {
    let mut mesh = Mesh::start("h1", &["--mtls", "strict"], &[]);
    assert_eq!(Curl::through(&mesh.caller).get("http://web.bank/").status, 200);
    // It dies without a word, so for a while its endpoint stays known; and another workload of the
    // same mesh, with a certificate as good as any, listens at its address.
    mesh.web.process().kill();
    let thief = Echo::start("thief");
    let inbound = local(mesh.web.inbound).to_string();
    let ports = [format!("{}=h1:main", thief.port)];
    let proxy = Proxy::beside(&mesh.plane, "thief", &ports, &["--inbound", &inbound]);
    let answer =
        Curl::through(&mesh.caller).args(&["--data", "secret"]).get("http://web.bank/path");
    assert_eq!(answer.status, 503, "{answer:?}");
    for word in ["upstream_identity_mismatch", "sa/thief", "sa/web"] {
        assert!(answer.body.contains(word), "{word}: {answer:?}");
    }
    assert_eq!(thief.requests.load(Relaxed), 0);
    let served = proxy.count("outrigger_requests_total", &["inbound", "outcome=\"success\""]);
    assert_eq!(served, 0.0, "no request got there");
}

#[test]
fn the_root_is_replaced_under_load_and_too_early_is_refused_by_name() {
    let mut mesh = Mesh::start("h1", &["--mtls", "strict"], &[]);
    let mut idle = Proxy::start(&mesh.plane, "idle", &[]);
    let load = Load::start(mesh.listen, 4, Duration::from_millis(5));
    load.further(200);
    let pids = [mesh.plane.process().id(), mesh.caller.process().id(), mesh.web.process().id()];
    let old = mesh.web.identity()["root"].as_str().expect("a root").to_owned();

    let why = mesh.plane.trust(&["remove-root", &old]).expect_err("it issues");
    assert!(why.contains("is the issuing root: issue from another one first"), "{why}");
    // One that stands still cannot have heard of the new root. It carries nothing.
    idle.process().freeze(true);
    let new = mesh.plane.trust(&["add-root"]).expect("a new root");
    let why = mesh.plane.trust(&["issue-from", &new]).expect_err("one does not know it");
    assert!(why.contains("not safe yet") && why.contains("sa/idle"), "{why}");
    idle.process().freeze(false);
    eventually("everybody knows the new root", || mesh.plane.trust(&["issue-from", &new]).is_ok());
    let why = mesh.plane.trust(&["remove-root", &old]).expect_err("certificates are under it");
    assert!(why.contains("not safe yet") && why.contains("spiffe://outrigger.local/ns/"), "{why}");
    within(Duration::from_secs(60), "nobody needs the old root", || {
        mesh.plane.trust(&["remove-root", &old]).is_ok()
    });
    for proxy in [&mesh.caller, &mesh.web, &idle] {
        eventually("it trusts the new root alone", || {
            let shown = proxy.identity();
            shown["root"].as_str().is_some_and(|root| root.starts_with(&new))
                && shown["roots"].as_array().is_some_and(|roots| roots.len() == 1)
        });
    }
    load.further(500);
    load.stop_unharmed();
    let now = [mesh.plane.process().id(), mesh.caller.process().id(), mesh.web.process().id()];
    assert_eq!(pids, now);
    assert!(mesh.web.count(HANDSHAKES, &["inbound"]) >= 2.0, "connections were made anew");
    let status = mesh.plane.trust(&["status"]).expect("a status");
    assert!(!status.contains(&old[..12]), "{status}");
}

#[test]
fn two_proxies_of_one_name_are_reported() {
    let mesh = Mesh::start("h1", &[], &[]);
    let warned = || mesh.plane.process().log().contains("its name is another proxy's");
    assert!(!warned());
    let other = Echo::start("other");
    let port = format!("{}=h1:main", other.port);
    let second = Proxy::start_unready(&mesh.plane, "web", &["--app-port", &port]);
    eventually("the control plane says so", warned);
    second.wait_log(&["refused this workload's registration"]);
    assert!(!second.is_ready());
}
