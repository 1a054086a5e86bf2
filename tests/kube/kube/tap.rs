//! Who may open a tap in a cluster: anyone whom the API server knows, and its RBAC lets.

use std::time::Duration;

use outrigger_tests::client::raw;
use serde_json::json;

use super::cluster::{Cluster, Plane};

#[test]
fn a_tap_is_opened_by_whom_rbac_lets_and_by_nobody_while_the_api_server_does_not_answer() {
    let Some(cluster) = Cluster::small_only("who may open a tap") else { return };
    let Some(server) = &cluster.small else { return };
    let plane = Plane::start(&cluster, &["--identity", "off"]);
    let api = "https://kubernetes.default.svc.cluster.local";
    for (token, user, audience) in [
        ("oncall", "oncall@example.com", api),
        ("guest", "guest@example.com", api),
        ("pod", "oncall@example.com", "outrigger.dev"),
    ] {
        let user = json!({"username": user, "groups": ["system:authenticated"]});
        let status = json!({"authenticated": true, "user": user, "audiences": [audience]});
        server.know_token(token, status);
    }
    server.allow("oncall@example.com", "get taps.outrigger.dev in bank");
    let get = |namespace: &str, token: &str| {
        let request = format!(
            "GET /tap?namespace={namespace}&for=1s HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: \
             Bearer {token}\r\n\r\n"
        );
        raw(plane.admin, request.as_bytes(), Duration::from_secs(10))
    };
    for (what, namespace, token, status, says) in [
        ("who may", "bank", "oncall", "200", "its time is over"),
        ("elsewhere", "shop", "oncall", "403", "oncall@example.com may not get taps.outrigger.dev"),
        ("who may not", "bank", "guest", "403", "ClusterRole outrigger-tap"),
        ("a pod's own token", "bank", "pod", "401", "audiences"),
        ("nobody", "bank", "nonsense", "401", "invalid bearer token"),
        ("without a token", "bank", "", "401", "kubectl create token"),
    ] {
        let answer = get(namespace, token);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{what}: {answer}");
        assert!(answer.contains(says), "{what}: {answer}");
    }
    server.hang(|request| request.resource == "subjectaccessreviews");
    let answer = get("bank", "oncall");
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert!(plane.is_ready());
    assert!(!plane.log().contains("Bearer"), "{}", plane.log());
}
