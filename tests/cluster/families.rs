//! IPv4 and IPv6, and from one node to another.

use outrigger_tests::skip;
use serde_json::json;

use crate::bed::{Bed, call};

#[test]
fn both_families_between_two_nodes() {
    let test = "both_families_between_two_nodes";
    let Some(bed) = Bed::start(test) else { return };
    let nodes = bed.json(&["get", "nodes"])["items"].as_array().cloned().unwrap_or_default();
    let label = |node: &serde_json::Value| {
        let labels = node["metadata"]["labels"].as_object().cloned().unwrap_or_default();
        labels.get("kubernetes.io/hostname").and_then(|name| name.as_str()).map(str::to_owned)
    };
    let names: Vec<String> = nodes.iter().filter_map(label).collect();
    let [first, second, ..] = &names[..] else {
        skip(test, "the cluster has one node");
        return;
    };
    let service = |name: &str, families: &str| {
        let namespace = &bed.namespace;
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
             spec: {{selector: {{app: web}}, {families}, ports: [{{name: http, port: 8000}}]}}\n"
        )
    };
    if !bed.takes(&service("both", "ipFamilyPolicy: RequireDualStack")) {
        skip(test, "the cluster is not dual stack");
        return;
    }
    bed.apply(&service("four", "ipFamilies: [IPv4]"));
    bed.apply(&service("six", "ipFamilies: [IPv6]"));
    bed.serve(Some(first));
    let addresses = |name: &str| bed.json(&["get", "service", name])["spec"]["clusterIPs"].clone();
    let text = |address: &serde_json::Value| address.as_str().expect("an address").to_owned();
    let both = addresses("both");
    let mut calls = vec![call("four", "four:8000/"), call("six", "six:8000/")];
    for (name, address) in [("cluster-1", &both[0]), ("cluster-2", &both[1])] {
        let address = text(address);
        let host = if address.contains(':') { format!("[{address}]") } else { address };
        calls.push(call(name, &format!("{host}:8000/")));
    }
    // A pod has no name in the mesh but its address.
    let pod = text(&bed.json(&["get", "pod", "web"])["status"]["podIP"]);
    let pod = if pod.contains(':') { format!("[{pod}]") } else { pod };
    calls.push(call("pod", &format!("{pod}:8000/")));
    let said = bed.calls("caller", &calls, Some(second));
    for name in ["four", "six", "cluster-1", "cluster-2", "pod"] {
        assert_eq!(said[name], json!({"sent": 5, "200": 5}), "{name}: {said}");
    }
}
