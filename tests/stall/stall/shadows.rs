//! Shadows that hang: copies of requests cost little, and nobody but themselves.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use outrigger_tests::app::{Echo, tcp};
use outrigger_tests::client::{Curl, gets};
use outrigger_tests::eventually;
use outrigger_tests::manifests::{MIRRORED, unmeshed};
use outrigger_tests::process::{ControlPlane, Proxy, free_port};

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
        ("route.yaml", MIRRORED),
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
