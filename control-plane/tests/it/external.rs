//! ExternalServices: what their callers are told, and what becomes of it when they change.

use outrigger_proto::mesh;
use prost::Message;
use serde_json::Value;

use crate::support::{Mesh, Proxy, service};

const PAY: &str = "bank/external:pay:443";

fn external(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: outrigger.dev/v1alpha1\nkind: ExternalService\n\
         metadata: {{name: {name}, namespace: bank}}\nspec: {{{spec}}}\n"
    )
}

fn pay(addresses: &str) -> String {
    external("pay", &format!("host: api.pay.example, port: 443, endpoints: [{addresses}]"))
}

const POLICY: &str = "apiVersion: outrigger.dev/v1alpha1\nkind: TrafficPolicy\n\
    metadata: {name: pay, namespace: bank}\nspec:\n  deadline: 2s\n  \
    breaker: {consecutiveFailures: 3}\n  \
    targetRefs: [{group: outrigger.dev, kind: ExternalService, name: pay}]\n";

fn destination(proxy: &Proxy, name: &str) -> Option<mesh::Destination> {
    let held = proxy.held.get(&("Destination".to_owned(), name.to_owned()))?;
    Some(mesh::Destination::decode(held.body.clone()).unwrap())
}

async fn status(mesh: &Mesh, object: &str) -> Value {
    let page = mesh.admin_json("/index").await;
    page["status"]
        .as_array()
        .unwrap()
        .iter()
        .find(|status| status["object"] == object)
        .unwrap()
        .clone()
}

#[tokio::test]
async fn apps_of_its_namespace_reach_it_by_host_and_port_and_nobody_else_does() {
    let two = "{address: 192.0.2.1}, {address: '2001:db8::1', port: 8443}";
    let mesh = Mesh::start(&[("pay.yaml", &pay(two)), ("policy.yaml", POLICY)]).await;
    let mut proxy = mesh.proxy("bank.caller", "bank").await;
    proxy.dial(&["api.pay.example:443"]).await;
    proxy.until("known", |p| p.has("Destination", PAY)).await;
    proxy.until("complete", |p| p.has("Endpoint", &format!("{PAY}/*"))).await;
    assert_eq!(proxy.endpoints(PAY), ["192.0.2.1:443", "2001:db8::1:8443"]);
    let held = &proxy.held[&("Destination".to_owned(), PAY.to_owned())];
    assert_eq!(held.aliases, ["api.pay.example:443"]);
    let told = destination(&proxy, PAY).unwrap();
    assert_eq!(told.protocol(), mesh::Protocol::Detect);
    assert_eq!(told.call.unwrap().deadline, Some(2000));
    assert!(told.policy.unwrap().breaker.is_some());
    let objects = status(&mesh, "TrafficPolicy bank/pay").await;
    assert_eq!(objects["resolved_refs"]["status"], true, "{objects}");

    // Another port, and another namespace, by any name.
    proxy.dial(&["api.pay.example:80"]).await;
    proxy.until("refused", |p| p.removed.contains("api.pay.example:80")).await;
    let mut other = mesh.proxy("shop.caller", "shop").await;
    other.dial(&["api.pay.example:443", PAY]).await;
    other.until("refused", |p| p.removed.contains(PAY)).await;
    other.until("refused", |p| p.removed.contains("api.pay.example:443")).await;
    assert!(!other.has("Destination", PAY));
}

#[tokio::test]
async fn one_address_more_is_one_endpoint_and_a_removed_one_is_unknown_again() {
    let mesh = Mesh::start(&[("pay.yaml", &pay("{address: 192.0.2.1}"))]).await;
    let mut proxy = mesh.proxy("bank.caller", "bank").await;
    proxy.dial(&["api.pay.example:443"]).await;
    proxy.until("complete", |p| p.has("Endpoint", &format!("{PAY}/*"))).await;
    proxy.until("known", |p| p.has("Destination", PAY)).await;
    mesh.write("pay.yaml", &pay("{address: 192.0.2.1}, {address: 192.0.2.2}"));
    proxy.until("the second", |p| p.endpoints(PAY).len() == 2).await;
    assert_eq!(proxy.log.last().unwrap(), &format!("Endpoint +{PAY}/192.0.2.2:443"));
    // A broken version changes nothing.
    mesh.write("pay.yaml", &pay("{address: here}"));
    mesh.admin_until("/index", |page| page["problems"].as_array().unwrap().len() == 1).await;
    mesh.write("pay.yaml", &pay("{address: 192.0.2.2}"));
    proxy.until("one", |p| p.endpoints(PAY) == ["192.0.2.2:443"]).await;
    mesh.remove("pay.yaml");
    proxy.until("gone", |p| p.removed.contains("api.pay.example:443")).await;
    proxy.until("without endpoints", |p| p.endpoints(PAY).is_empty()).await;
    // And comes back.
    mesh.write("pay.yaml", &pay("{address: 192.0.2.3}"));
    proxy.until("back", |p| p.endpoints(PAY) == ["192.0.2.3:443"]).await;
}

#[tokio::test]
async fn a_host_is_looked_up_and_one_that_cannot_be_says_so() {
    let files = [
        ("local.yaml", external("local", "host: LocalHost, port: 81")),
        ("nowhere.yaml", external("nowhere", "host: nowhere.invalid, port: 81, protocol: GRPC")),
        ("address.yaml", external("address", "host: 192.0.2.9, port: 82, protocol: HTTP")),
    ];
    let files: Vec<_> = files.iter().map(|(name, text)| (*name, text.as_str())).collect();
    let mesh = Mesh::start(&files).await;
    let mut proxy = mesh.proxy("bank.caller", "bank").await;
    proxy.dial(&["localhost:81", "nowhere.invalid:81", "192.0.2.9:82"]).await;
    let local = "bank/external:local:81";
    proxy.until("looked up", |p| p.has("Endpoint", &format!("{local}/*"))).await;
    assert!(proxy.endpoints(local).contains(&"127.0.0.1:81".to_owned()), "{:?}", proxy.log);
    let address = "bank/external:address:82";
    proxy.until("told", |p| p.has("Endpoint", &format!("{address}/*"))).await;
    assert_eq!(proxy.endpoints(address), ["192.0.2.9:82"]);
    // None, explicitly: nobody waits for what does not come.
    let nowhere = "bank/external:nowhere:81";
    proxy.until("empty", |p| p.has("Endpoint", &format!("{nowhere}/*"))).await;
    assert_eq!(proxy.endpoints(nowhere), Vec::<String>::new());
    let objects = status(&mesh, "ExternalService bank/nowhere").await;
    let problem = objects["resolved_refs"]["problems"][0].as_str().unwrap();
    assert!(problem.starts_with("spec.host: cannot be looked up: "), "{problem}");
}

#[tokio::test]
async fn a_service_of_the_mesh_goes_before_it_and_of_two_the_oldest() {
    let mesh = Mesh::start(&[
        ("orders.yaml", &service("orders")),
        ("same.yaml", &external("same", "host: orders.bank, port: 80")),
        ("pay.yaml", &pay("{address: 192.0.2.1}")),
        ("again.yaml", &external("qay", "host: api.pay.example, port: 443")),
    ])
    .await;
    let mut proxy = mesh.proxy("bank.caller", "bank").await;
    proxy.dial(&["orders:80", "api.pay.example:443"]).await;
    proxy.until("known", |p| p.has("Destination", "bank/orders:80")).await;
    proxy.until("known", |p| p.has("Destination", PAY)).await;
    for (object, other) in [
        ("ExternalService bank/same", "orders.bank:80 is already Service bank/orders"),
        ("ExternalService bank/qay", "api.pay.example:443 is already ExternalService bank/pay"),
    ] {
        let objects = status(&mesh, object).await;
        let problem = objects["accepted"]["problems"][0].as_str().unwrap();
        assert_eq!(problem, format!("spec.host: {other}, which callers reach instead"));
    }
    mesh.remove("orders.yaml");
    proxy.until("outside", |p| p.has("Destination", "bank/external:same:80")).await;
}

#[tokio::test]
async fn a_route_and_a_fallback_may_send_a_share_outside() {
    let route = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\n\
        metadata: {name: orders, namespace: bank}\nspec:\n  \
        parentRefs: [{group: '', kind: Service, name: orders}]\n  rules:\n  - backendRefs:\n    \
        - {name: orders, port: 80, weight: 9}\n    \
        - {group: outrigger.dev, kind: ExternalService, name: pay, port: 443}\n";
    let fallback = "apiVersion: outrigger.dev/v1alpha1\nkind: TrafficPolicy\n\
        metadata: {name: back, namespace: bank}\nspec:\n  \
        targetRefs: [{kind: Service, name: orders}]\n  fallbacks: [{backend: {group: outrigger.dev, \
        kind: ExternalService, name: spare, port: 80}}]\n";
    let mesh = Mesh::start(&[
        ("orders.yaml", &service("orders")),
        ("route.yaml", route),
        ("fallback.yaml", fallback),
        ("spare.yaml", &external("spare", "host: 192.0.2.7, port: 80")),
    ])
    .await;
    let mut proxy = mesh.proxy("bank.caller", "bank").await;
    proxy.dial(&["orders:80"]).await;
    let spare = "bank/external:spare:80";
    proxy.until("the fallback", |p| p.endpoints(spare) == ["192.0.2.7:80"]).await;
    let objects = status(&mesh, "HTTPRoute bank/orders").await;
    let problem = "spec.rules[0].backendRefs[1].name: there is no ExternalService bank/pay";
    assert_eq!(objects["resolved_refs"]["problems"][0], problem);
    mesh.write("pay.yaml", &pay("{address: 192.0.2.1}"));
    proxy.until("the share", |p| p.endpoints(PAY) == ["192.0.2.1:443"]).await;
    proxy
        .until("told", |p| {
            let told = destination(p, "bank/orders:80");
            told.is_some_and(|told| told.backends.len() == 2)
        })
        .await;
}
