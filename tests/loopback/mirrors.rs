//! Copies of requests: a shadow that hangs costs little, and nobody but itself.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use outrigger_tests::app::{Echo, tcp};
use outrigger_tests::client::{Curl, gets};
use outrigger_tests::eventually;
use outrigger_tests::process::{ControlPlane, Proxy, free_port};

use crate::unmeshed;

const ROUTE: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\n\
    metadata: {name: copied, namespace: bank}\nspec:\n  \
    parentRefs: [{group: \"\", kind: Service, name: app}]\n  rules:\n  \
    - filters: [{type: RequestMirror, requestMirror: {backendRef: {name: shadow, port: 80}}}]\n    \
    backendRefs: [{name: app, port: 80}]\n";
const POLICY: &str = "apiVersion: outrigger.dev/v1alpha1\nkind: TrafficPolicy\n\
    metadata: {name: shadow, namespace: bank}\nspec:\n  \
    targetRefs: [{kind: Service, group: \"\", name: shadow}]\n  deadline: 1s\n";

#[test]
fn a_hung_shadow_gets_few_copies_and_each_ends_by_its_own_policy() {
    let app = Echo::start("app");
    let accepted = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&accepted);
    let shadow = tcp(move |mut stream| {
        counted.fetch_add(1, Relaxed);
        // It takes everything and answers nothing.
        let _ = std::io::copy(&mut stream.by_ref(), &mut std::io::sink());
    });
    let plane = ControlPlane::start(&[
        ("app.yaml", &unmeshed("app", "http", app.port)),
        ("shadow.yaml", &unmeshed("shadow", "http", shadow)),
        ("route.yaml", ROUTE),
        ("policy.yaml", POLICY),
    ]);
    let port = free_port();
    let listen = format!("127.0.0.1:{port}=app.bank:80");
    let caller = Proxy::caller(&plane, &["--listen", &listen]);
    // What the shadow wants is known once it has been copied to.
    assert_eq!(Curl::through(&caller).get("http://app.bank/").status, 200);
    eventually("the first copy has come", || accepted.load(Relaxed) == 1);
    eventually("the shadow's policy is known", || {
        Curl::through(&caller).get("http://shadow.bank/").status == 504
    });
    let before = accepted.load(Relaxed);
    gets(port, 400);
    let copies = accepted.load(Relaxed) - before;
    assert!(copies <= 64 * 2, "{copies} copies at a time");
    assert!(caller.count("outrigger_mirrors_dropped_total", &[]) >= 200.0);
    // The first one, sent before the policy was known, has the default of 15 s.
    eventually("every copy has ended", || {
        caller.count("outrigger_upstream_connections_open", &[]) <= 2.0
    });
    assert_eq!(Curl::through(&caller).get("http://app.bank/").status, 200);
}

#[test]
fn a_share_of_requests_is_copied() {
    let (app, shadow) = (Echo::start("app"), Echo::start("shadow"));
    let route = ROUTE.replace("requestMirror: {", "requestMirror: {percent: 25, ");
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
        ROUTE
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
