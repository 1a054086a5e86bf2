//! What lies outside the mesh, called through it: an ExternalService by host and port, with policies.

use std::sync::atomic::Ordering::Relaxed;

use outrigger_tests::app::Echo;
use outrigger_tests::client::Curl;
use outrigger_tests::eventually;
use outrigger_tests::outside::Outside;
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

/// An ExternalService in front of `server`. `trusting`: what it says of its TLS.
fn in_front(host: &str, server: &Outside, protocol: &str, tls: Option<&str>) -> String {
    let tls = tls.map(|tls| format!("  tls: {tls}\n")).unwrap_or_default();
    let protocol = match protocol {
        "" => String::new(),
        protocol => format!("  protocol: {protocol}\n"),
    };
    format!(
        "apiVersion: outrigger.dev/v1alpha1\nkind: ExternalService\n\
         metadata: {{name: pay, namespace: bank}}\nspec:\n  host: {host}\n  port: 443\n  \
         endpoints: [{{address: 127.0.0.1, port: {}}}]\n{protocol}{tls}",
        server.port
    )
}

/// Its own certificate is the root.
fn own(server: &Outside) -> String {
    format!("{{caCertificates: {}}}", serde_json::Value::from(server.pem.as_str()))
}

#[test]
fn the_proxy_begins_tls_for_its_app_and_trusts_only_the_right_certificate() {
    let server = Outside::start("api.pay.test", &["http/1.1", "h2"]);
    let roots = own(&server);
    let right = in_front("api.pay.test", &server, "", Some(&roots));
    let plane = ControlPlane::start(&[("pay.yaml", &right)]);
    let caller = Proxy::caller(&plane, &[]);
    let ask = |host: &str| Curl::through(&caller).get(&format!("http://{host}:443/a"));
    let answer = ask("api.pay.test");
    assert_eq!(answer.status, 200, "{answer:?}");
    let got: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!((&got["version"], &got["uri"]), (&"HTTP/1.1".into(), &"/a".into()));
    assert_eq!(ask("api.pay.test").status, 200);
    assert_eq!(server.echo.connections.load(Relaxed), 1, "connections are kept");

    // HTTP/2 where it is said to be spoken, over a connection of its own.
    plane.write("pay.yaml", &in_front("api.pay.test", &server, "HTTP2", Some(&roots)));
    eventually("HTTP/2", || ask("api.pay.test").body.contains("\"version\":\"HTTP/2.0\""));
    let got: serde_json::Value = serde_json::from_str(&ask("api.pay.test").body).unwrap();
    assert_eq!(got["uri"], "https://api.pay.test:443/a");

    // A certificate for another name.
    plane.write("pay.yaml", &in_front("other.pay.test", &server, "", Some(&roots)));
    eventually("the other name", || ask("other.pay.test").body.contains("upstream_tls_failed"));
    let answer = ask("other.pay.test");
    assert_eq!(answer.status, 503, "{answer:?}");
    let why = "the certificate of other.pay.test: certificate not valid for name";
    caller.wait_log(&["upstream_tls_failed", why]);

    // Nobody whom the system trusts issued it.
    plane.write("pay.yaml", &in_front("api.pay.test", &server, "", Some("{}")));
    eventually("the system's roots", || ask("api.pay.test").body.contains("upstream_tls_failed"));

    plane.write("pay.yaml", &right);
    eventually("it is trusted again", || ask("api.pay.test").status == 200);
}

#[test]
fn http2_is_demanded_where_it_is_declared() {
    let server = Outside::start("api.pay.test", &[]);
    let manifest = in_front("api.pay.test", &server, "GRPC", Some(&own(&server)));
    let plane = ControlPlane::start(&[("pay.yaml", &manifest)]);
    let caller = Proxy::caller(&plane, &[]);
    let answer = Curl::through(&caller).get("http://api.pay.test:443/a");
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(answer.body.contains("upstream_tls_failed"), "{answer:?}");
    caller.wait_log(&["api.pay.test does not speak HTTP/2"]);
}

#[test]
fn an_app_that_speaks_tls_itself_is_passed_through_and_counted() {
    let server = Outside::start("api.pay.test", &["http/1.1"]);
    for tls in [Some(own(&server)), None] {
        let manifest = in_front("api.pay.test", &server, "", tls.as_deref());
        let plane = ControlPlane::start(&[("pay.yaml", &manifest)]);
        let caller = Proxy::caller(&plane, &[]);
        let answer = Curl::through(&caller).args(&["--insecure"]).get("https://api.pay.test/x");
        assert_eq!(answer.status, 200, "{answer:?}");
        let labels = ["service=\"bank/external:pay:443\"", "protocol=\"tls\""];
        eventually("it is counted", || caller.count("outrigger_requests_total", &labels) == 1.0);
    }
}

#[test]
fn a_share_of_a_route_goes_outside() {
    let (inside, server) = (Echo::start("inside"), Outside::start("api.pay.test", &["http/1.1"]));
    let route = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\n\
        metadata: {name: app, namespace: bank}\nspec:\n  \
        parentRefs: [{group: '', kind: Service, name: app}]\n  rules:\n  - backendRefs:\n    \
        - {name: app, port: 80}\n    \
        - {group: outrigger.dev, kind: ExternalService, name: pay, port: 443, filters: [\
        {type: URLRewrite, urlRewrite: {hostname: api.pay.test}}]}\n";
    let plane = ControlPlane::start(&[
        ("app.yaml", &crate::unmeshed("app", "http", inside.port)),
        ("pay.yaml", &in_front("api.pay.test", &server, "HTTP", Some(&own(&server)))),
        ("route.yaml", route),
    ]);
    let caller = Proxy::caller(&plane, &[]);
    for _ in 0..40 {
        let answer = Curl::through(&caller).get("http://app.bank/");
        assert_eq!(answer.status, 200, "{answer:?}");
        if answer.body.contains("\"app\":\"outside\"") {
            assert!(answer.body.contains("\"host\":\"api.pay.test\""), "{answer:?}");
        }
    }
    let [inside, outside] = [&inside, &server.echo].map(|app| app.requests.load(Relaxed));
    assert!(inside + outside == 40 && inside >= 5 && outside >= 5, "{inside} and {outside}");
}
