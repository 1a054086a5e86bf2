//! Copies of requests: how many there are, and that they end. Shadows that hang are in the stall suite.

use std::sync::atomic::Ordering::Relaxed;

use outrigger_tests::app::Echo;
use outrigger_tests::client::{Curl, gets};
use outrigger_tests::eventually;
use outrigger_tests::manifests::MIRRORED;
use outrigger_tests::process::{ControlPlane, Proxy, free_port};

use crate::unmeshed;

#[test]
fn a_share_of_requests_is_copied() {
    let (app, shadow) = (Echo::start("app"), Echo::start("shadow"));
    let route = MIRRORED.replace("requestMirror: {", "requestMirror: {percent: 25, ");
    let plane = ControlPlane::start(&[
        ("app.yaml", &unmeshed("app", "http", app.port)),
        ("shadow.yaml", &unmeshed("shadow", "http", shadow.port)),
        ("route.yaml", &route),
    ]);
    let port = free_port();
    let listen = format!("127.0.0.1:{port}=app.bank:80");
    let caller = Proxy::caller(&plane, &["--listen", &listen]);
    gets(port, 400);
    let dropped = || caller.count("outrigger_mirrors_dropped_total", &[]);
    let copies = || shadow.requests.load(Relaxed) as f64 + dropped();
    // Six standard deviations around 100.
    eventually("a quarter is copied", || copies() >= 48.0);
    assert!(copies() <= 152.0, "{} of 400", copies());
    assert_eq!(app.requests.load(Relaxed), 400);
}

#[test]
fn copies_that_are_copied_in_turn_end() {
    let app = Echo::start("app");
    // The shadow of each is the other.
    let route = |name: &str, shadow: &str| {
        MIRRORED
            .replace("name: copied", &format!("name: {name}"))
            .replace("name: shadow", &format!("name: {shadow}"))
            .replace("name: app", &format!("name: {name}"))
    };
    let plane = ControlPlane::start(&[
        ("left.yaml", &crate::service("left", "http")),
        ("right.yaml", &crate::service("right", "http")),
        ("routes.yaml", &format!("{}---\n{}", route("left", "right"), route("right", "left"))),
    ]);
    let relays = ["right.bank", "left.bank"]
        .map(|to| outrigger_tests::app::Relay::start(to, &["x-request-id"]));
    let proxies: Vec<_> = ["left", "right"]
        .iter()
        .zip(&relays)
        .map(|(name, relay)| {
            let proxy = Proxy::beside(&plane, name, &[format!("{}=h1:main", relay.port)], &[]);
            relay.calls_through(proxy.outbound);
            proxy
        })
        .collect();
    let caller = Proxy::caller(&plane, &[]);
    let answer = Curl::through(&caller).get("http://left.bank/");
    assert_eq!(answer.status, 508, "{answer:?}");
    let inbound =
        |proxy: &Proxy| proxy.count("outrigger_requests_total", &["direction=\"inbound\""]);
    eventually("every request and copy has ended", || {
        proxies.iter().all(|proxy| proxy.count("outrigger_correlation_entries", &[]) == 0.0)
    });
    let total: f64 = proxies.iter().map(inbound).sum();
    assert!(total <= 8.0, "{total} requests of one");
    drop(app);
}
