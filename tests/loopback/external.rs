//! What lies outside the mesh, called through it: an ExternalService by host and port, with policies.

use std::sync::atomic::Ordering::Relaxed;

use outrigger_tests::app::Echo;
use outrigger_tests::client::Curl;
use outrigger_tests::eventually;
use outrigger_tests::process::{ControlPlane, Proxy, free_port};

use crate::resilience::{OK, UNAVAILABLE, scripted};

fn external(spec: &str) -> String {
    format!(
        "apiVersion: outrigger.dev/v1alpha1\nkind: ExternalService\n\
         metadata: {{name: pay, namespace: bank}}\nspec: {{{spec}}}\n"
    )
}

fn policy(spec: &str) -> String {
    format!(
        "apiVersion: outrigger.dev/v1alpha1\nkind: TrafficPolicy\n\
         metadata: {{name: pay, namespace: bank}}\nspec:\n  \
         targetRefs: [{{group: outrigger.dev, kind: ExternalService, name: pay}}]\n{spec}"
    )
}

fn at(host: &str, port: u16, endpoint: u16) -> String {
    external(&format!(
        "host: {host}, port: {port}, endpoints: [{{address: 127.0.0.1, port: {endpoint}}}]"
    ))
}

#[test]
fn calls_by_host_and_port_are_held_to_its_policies_and_counted_under_its_name() {
    let (port, count) = scripted(|n| if n % 3 == 2 { OK } else { UNAVAILABLE });
    let retries = policy(
        "  retries: {maxAttempts: 3, when: {statuses: [503]}, backoff: {base: 1ms, max: 5ms}}\n",
    );
    let plane = ControlPlane::start(&[
        ("pay.yaml", &at("api.pay.test", 8080, port)),
        ("policy.yaml", &retries),
    ]);
    let listen = free_port();
    let listener = format!("127.0.0.1:{listen}=api.pay.test:8080");
    let caller = Proxy::caller(&plane, &["--listen", &listener]);
    let answer = Curl::through(&caller).get("http://API.pay.test:8080/");
    assert_eq!((answer.status, count.load(Relaxed)), (200, 3), "{answer:?}");
    let service = "\"service\":\"bank/external:pay:8080\"";
    caller.wait_log(&[service, "\"attempts\":3", "\"peer\":\"unknown\""]);
    let counted = ["service=\"bank/external:pay:8080\"", "peer=\"unknown\""];
    assert_eq!(caller.count("outrigger_requests_total", &counted), 1.0);
    // By a listener of one's own, too.
    let answer = Curl::direct().get(&format!("http://127.0.0.1:{listen}/"));
    assert_eq!((answer.status, count.load(Relaxed)), (200, 6), "{answer:?}");
    // Another port is another matter.
    let answer = Curl::through(&caller).get("http://api.pay.test:8081/");
    assert_ne!(answer.status, 200, "{answer:?}");
    assert_eq!(count.load(Relaxed), 6);
}

#[test]
fn nothing_of_the_mesh_is_told_outside() {
    let app = Echo::start("pay");
    let deadline = policy("  deadline: 5s\n  priority: Critical\n");
    let plane = ControlPlane::start(&[
        ("pay.yaml", &at("api.pay.test", 8080, app.port)),
        ("policy.yaml", &deadline),
    ]);
    let caller = Proxy::caller(&plane, &[]);
    let said = ["x-deadline: 9000", "x-outrigger-priority: critical", "x-outrigger-via: a"];
    let headers = said.map(|header| ["-H", header]).concat();
    let answer = Curl::through(&caller).args(&headers).get("http://api.pay.test:8080/a?b");
    assert_eq!(answer.status, 200, "{answer:?}");
    let got: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!(
        (&got["uri"], &got["headers"]["host"]),
        (&"/a?b".into(), &"api.pay.test:8080".into())
    );
    let headers = got["headers"].as_object().unwrap();
    assert!(
        !headers.keys().any(|name| name.starts_with("x-outrigger") || name == "x-deadline"),
        "{headers:?}"
    );
    // The deadline holds all the same.
    let answer = Curl::through(&caller)
        .args(&["-H", "x-deadline: 50"])
        .get("http://api.pay.test:8080/sleep/2000");
    assert_eq!(answer.status, 504, "{answer:?}");
}

#[test]
fn one_that_is_removed_is_treated_as_any_unknown_destination() {
    let (inside, outside) = (Echo::start("inside"), Echo::start("outside"));
    let plane = ControlPlane::start(&[("pay.yaml", &at("localhost", outside.port, inside.port))]);
    let caller = Proxy::caller(&plane, &[]);
    let ask = || Curl::through(&caller).get(&format!("http://localhost:{}/", outside.port));
    assert!(ask().body.contains("\"app\":\"inside\""));
    // Looked up instead: the other one is found under the name itself.
    plane.write("pay.yaml", &external(&format!("host: localhost, port: {}", outside.port)));
    eventually("it is looked up", || ask().body.contains("\"app\":\"outside\""));
    let service = format!("service=\"bank/external:pay:{}\"", outside.port);
    let before = caller.count("outrigger_requests_total", &[&service]);
    assert!(before >= 2.0, "{before}");
    plane.remove("pay.yaml");
    eventually("it is unknown", || {
        assert_eq!(ask().status, 200);
        caller.count("outrigger_requests_total", &["service=\"unknown\"", "success"]) > 0.0
    });
    let after = caller.count("outrigger_requests_total", &[&service]);
    assert!(ask().body.contains("\"app\":\"outside\""));
    assert_eq!(caller.count("outrigger_requests_total", &[&service]), after);
}
