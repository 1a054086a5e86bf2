//! How a pod proves who it is, and what replicas share.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use outrigger_tests::apiserver::Request;
use outrigger_tests::eventually;
use outrigger_tests::process::{Process, TempDir, binary, free_port, local};
use serde_json::{Value, json};

use super::cluster::{Cluster, Plane};

const AUDIENCE: &str = "outrigger.dev";

/// What pods find on their disk.
struct Disk(TempDir);

impl Disk {
    fn new(cluster: &Cluster) -> Self {
        let folder = TempDir::new("kube-pod");
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "outrigger-trust-bundle.pem", "namespace": cluster.system}});
        let bundle = cluster.get(&map)["data"]["document"].as_str().expect("roots").to_owned();
        std::fs::write(folder.path().join("bundle.pem"), bundle).expect("a file");
        Self(folder)
    }

    fn token(&self, token: &str) -> PathBuf {
        let path = self.0.path().join("token");
        std::fs::write(&path, token).expect("a file");
        path
    }

    fn sidecar(&self, cluster: &Cluster, plane: &Plane, pod: &str, token: &str) -> (Process, u16) {
        let admin = free_port();
        let mut command = Command::new(binary("outrigger-proxy"));
        command
            .args(["--control-plane", &format!("https://{}", local(plane.listen))])
            .arg("--trust-bundle")
            .arg(self.0.path().join("bundle.pem"))
            .args([
                "--namespace",
                &cluster.namespace,
                "--service-account",
                "ledger",
                "--workload",
                pod,
            ])
            .arg("--token-file")
            .arg(self.token(token))
            .args(["--outbound", &local(free_port()).to_string()])
            .args(["--inbound", &local(free_port()).to_string()])
            .args(["--admin", &local(admin).to_string()]);
        (Process::start(self.0.path(), pod, &mut command), admin)
    }
}

/// A token of the account, for a pod unless there is none.
fn token(cluster: &Cluster, pod: Option<(&str, &str)>, audience: &str) -> String {
    if let Some(server) = &cluster.small {
        let audience_part = audience.replace(['.', ':', '/'], "-");
        let token = format!("header.{}.{audience_part}", pod.map_or("none", |pod| pod.1));
        let mut user =
            json!({"username": format!("system:serviceaccount:{}:ledger", cluster.namespace)});
        if let Some((name, uid)) = pod {
            user["extra"] = json!({
                "authentication.kubernetes.io/pod-name": [name],
                "authentication.kubernetes.io/pod-uid": [uid],
            });
        }
        let status = json!({"authenticated": true, "user": user, "audiences": [audience]});
        server.know_token(&token, status);
        return token;
    }
    let mut spec = json!({"audiences": [audience], "expirationSeconds": 3600});
    if let Some((name, uid)) = pod {
        spec["boundObjectRef"] =
            json!({"apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid});
    }
    let request =
        json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec});
    let path = format!("/api/v1/namespaces/{}/serviceaccounts/ledger/token", cluster.namespace);
    let made: Value = cluster.call("POST", &path, "application/json", &request).expect("a token");
    made["status"]["token"].as_str().expect("a token").to_owned()
}

#[test]
fn a_pods_token_is_a_certificate_where_the_pod_is_and_each_other_one_is_refused_with_its_reason() {
    let cluster = Cluster::start();
    let plane = Plane::start(&cluster, &["--identity", "on"]);
    let disk = Disk::new(&cluster);
    let here = cluster.run_pod("ledger-0", "ledger", "127.0.0.1");
    let there = cluster.run_pod("ledger-1", "ledger", "10.1.0.9");
    let good = token(&cluster, Some(("ledger-0", &here)), AUDIENCE);
    let stolen = token(&cluster, Some(("ledger-1", &there)), AUDIENCE);
    let foreign = token(&cluster, Some(("ledger-0", &here)), "https://vault.example.com");
    let unbound = token(&cluster, None, AUDIENCE);
    for (what, pod, token, reason) in [
        ("of another audience", "ledger-0", foreign.as_str(), "audiences"),
        ("of a pod elsewhere", "ledger-1", &stolen, "is at 10.1.0.9 and not at 127.0.0.1"),
        ("of no pod", "ledger-0", &unbound, "bound to no pod"),
        ("of nobody", "ledger-0", "a.b.c", "invalid bearer token"),
        ("that is no token", "ledger-0", "nonsense", "not a JSON Web Token"),
        ("for another pod's name", "ledger-1", &good, "bound to the workload ledger-0"),
    ] {
        let (sidecar, _) = disk.sidecar(&cluster, &plane, pod, token);
        eventually(&format!("a token {what} is refused"), || sidecar.log().contains(reason));
        // A log is written behind what it tells of.
        eventually(&format!("{what}: the log says why"), || plane.log().contains(reason));
        assert!(!sidecar.log().contains("a new certificate"), "{what}");
        assert!(!plane.log().contains(token) || token.len() < 9, "a token is never logged");
    }
    let (sidecar, _) = disk.sidecar(&cluster, &plane, "ledger-0", &good);
    eventually("the pod's own token is accepted", || sidecar.log().contains("a new certificate"));
    let identity = format!("spiffe://outrigger.local/ns/{}/sa/ledger", cluster.namespace);
    assert!(sidecar.log().contains(&identity), "{}", sidecar.log());
}

#[test]
fn replicas_share_their_root_and_a_restart_keeps_it() {
    let cluster = Cluster::start();
    let mut first = Plane::start(&cluster, &["--identity", "on", "--replica", "one"]);
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "outrigger-trust-bundle.pem", "namespace": cluster.system}});
    let bundle = cluster.get(&map)["data"].clone();
    let second = Plane::start(&cluster, &["--identity", "on", "--replica", "two"]);
    assert_eq!(cluster.get(&map)["data"], bundle, "the second one makes no root of its own");
    first.terminate();
    let third = Plane::start(&cluster, &["--identity", "on", "--replica", "three"]);
    assert_eq!(cluster.get(&map)["data"], bundle);
    for plane in [&second, &third] {
        assert!(!plane.log().contains("made a new root"), "{}", plane.log());
    }
    // A pod that one replica has certified is served by the others.
    let disk = Disk::new(&cluster);
    let uid = cluster.run_pod("ledger-0", "ledger", "127.0.0.1");
    let good = token(&cluster, Some(("ledger-0", &uid)), AUDIENCE);
    let (sidecar, admin) = disk.sidecar(&cluster, &third, "ledger-0", &good);
    eventually("the sidecar is ready", || {
        outrigger_tests::client::http_get(admin, "/ready").is_some_and(|answer| answer.0 == 200)
    });
    eventually("it says that it has one", || sidecar.log().contains("a new certificate"));
}

/// While the roots were read, nobody else got to what is in force: who asked held up a thread that serves others,
/// and the answer that was waited for could not come in.
#[test]
fn nobody_waits_for_an_api_server_that_is_asked_for_the_roots() {
    let Some(cluster) = Cluster::small_only("kube::identity::nobody_waits_for_...") else { return };
    let server = cluster.small.as_ref().expect("the small one");
    let plane = Plane::start(&cluster, &["--identity", "on"]);
    let is_of_roots = |r: &Request| r.resource == "secrets" && r.name == "outrigger-ca.roots.json";
    let asked = || server.requests().iter().filter(|request| is_of_roots(request)).count();
    server.hang(is_of_roots);
    let before = asked();
    eventually("the roots are asked for", || asked() > before);
    let began = Instant::now();
    for _ in 0..4 {
        assert!(plane.page("/identity").contains("issuing_root"));
    }
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    server.answer_all();
    let before = asked();
    eventually("the roots are read again", || asked() > before + 1);
}
