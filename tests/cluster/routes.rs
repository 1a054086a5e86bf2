//! Routes of the Gateway API through transparent redirection: a cluster address decides which are in force. A redirect
//! shows which rule was; the rest of the mesh profile is asked of processes on loopback.

use outrigger_tests::within;
use serde_json::json;
use std::time::Duration;

use crate::bed::{Bed, call};

fn route(bed: &Bed, name: &str, parent: &str, rules: &str) -> String {
    let namespace = &bed.namespace;
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\n\
         metadata: {{name: {name}, namespace: {namespace}}}\n\
         spec:\n  parentRefs: [{{group: '', kind: Service, {parent}}}]\n  rules: {rules}\n"
    )
}

#[test]
fn a_route_holds_for_its_services_address_alone() {
    let Some(bed) = Bed::start("a_route_holds_for_its_services_address_alone") else { return };
    let namespace = bed.namespace.clone();
    bed.serve(None);
    bed.apply(&format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: plain, namespace: {namespace}}}\n\
         spec: {{selector: {{app: web}}, ports: [{{name: http, port: 8000}}]}}\n"
    ));
    let redirect = |path: &str, status: u16| {
        format!(
            "{{matches: [{{path: {{type: PathPrefix, value: {path}}}}}], filters: [{{type: RequestRedirect, \
             requestRedirect: {{hostname: elsewhere.test, statusCode: {status}}}}}]}}"
        )
    };
    let through = "{matches: [{path: {type: Exact, value: /through}}], backendRefs: [{name: plain, port: 8000}]}";
    let all = [303, 307, 308].map(|status| redirect(&format!("/{status}"), status)).join(", ");
    bed.apply(&route(&bed, "web", "name: web, port: 8000", &format!("[{through}, {all}]")));
    within(Duration::from_secs(30), "the route is accepted", || {
        let status = bed.json(&["get", "httproute", "web"])["status"]["parents"].clone();
        status.to_string().contains("\"type\":\"Accepted\"")
    });
    let pod = bed.json(&["get", "pod", "web"])["status"]["podIP"].as_str().expect("one").to_owned();
    let pod = if pod.contains(':') { format!("[{pod}]") } else { pod };
    let cases = [
        ("through", "web:8000/through".to_owned(), "200"),
        ("no-rule", "web:8000/other".to_owned(), "404"),
        ("see-other", "web:8000/303".to_owned(), "303"),
        ("temporary", "web:8000/307/x".to_owned(), "307"),
        ("permanent", "web:8000/308".to_owned(), "308"),
        // Another port, another service of the same pods, the pod itself.
        ("port", "web:8001/303".to_owned(), "200"),
        ("service", "plain:8000/303".to_owned(), "200"),
        ("pod", format!("{pod}:8000/303"), "200"),
    ];
    let calls: Vec<String> = cases.iter().map(|(name, url, _)| call(name, url)).collect();
    let said = bed.calls("caller", &calls, None);
    for (name, _, status) in cases {
        assert_eq!(said[name], json!({"sent": 5, status: 5}), "{name}: {said}");
    }
}
