//! What the control plane takes from the API.

use std::time::{Duration, Instant};

use outrigger_tests::{eventually, within};
use serde_json::json;

use super::cluster::{Cluster, Plane};

#[test]
fn endpoints_are_those_of_slices_and_know_their_pods() {
    let cluster = Cluster::start();
    cluster.apply(&cluster.service("orders"));
    let plane = Plane::start(&cluster, &["--identity", "on"]);
    let uid = cluster.run_pod("orders-0", "ledger", "10.1.0.4");
    let target =
        json!({"kind": "Pod", "name": "orders-0", "namespace": cluster.namespace, "uid": uid});
    let of_pod = |address: &str| json!({"addresses": [address], "targetRef": target});
    let slice = |endpoints| cluster.slice("orders-1", "orders", &endpoints);
    cluster.apply(&slice(json!([{"addresses": ["10.1.0.3"]}, of_pod("10.1.0.4")])));
    plane.wait_for(&cluster, "orders", &["10.1.0.3:8080", "10.1.0.4:8080"]);
    let at = |address: &str| {
        let endpoints = plane.endpoints(&cluster, "orders");
        let mut all = endpoints.as_array().into_iter().flatten();
        all.find(|endpoint| endpoint["address"] == address).cloned().unwrap_or_default()
    };
    eventually("the pod is known", || at("10.1.0.4:8080")["mesh"] == "10.1.0.4:4743");
    let identity = format!("spiffe://outrigger.local/ns/{}/sa/ledger", cluster.namespace);
    assert_eq!(at("10.1.0.4:8080")["identity"], identity);
    let other = at("10.1.0.3:8080");
    assert!(other["mesh"].is_null() && other["identity"].is_null(), "{other}");

    // Who may write a slice must not lend a pod's identity to another address.
    cluster.apply(&slice(json!([of_pod("10.1.0.66")])));
    plane.wait_for(&cluster, "orders", &["10.1.0.66:8080"]);
    assert!(plane.endpoints(&cluster, "orders")[0]["mesh"].is_null());

    // One that terminates leaves at once, though it still serves.
    let conditions = json!({"ready": false, "serving": true, "terminating": true});
    let mut terminating = of_pod("10.1.0.4");
    terminating["conditions"] = conditions;
    cluster.apply(&slice(json!([terminating, {"addresses": ["10.1.0.5"]}])));
    plane.wait_for(&cluster, "orders", &["10.1.0.5:8080"]);
    cluster.delete(&slice(json!([])));
    plane.wait_for(&cluster, "orders", &[]);
    cluster.delete(&cluster.service("orders"));
    eventually("the Service is gone", || plane.endpoints(&cluster, "orders").is_null());
}

#[test]
fn a_pod_without_its_own_address_is_no_workload() {
    let cluster = Cluster::start();
    let plane = Plane::start(&cluster, &["--identity", "off"]);
    let pod = cluster.pod("job-0", "default");
    let name = format!("{}.job-0", cluster.namespace);
    cluster.run_pod("job-0", "default", "10.1.0.9");
    eventually("the pod is a workload", || !plane.index()["workloads"][&name].is_null());
    // Its address may soon be another pod's.
    cluster.patch_status(&pod, &json!({"phase": "Succeeded"}));
    eventually("it is none any more", || plane.index()["workloads"][&name].is_null());
}

#[test]
fn nothing_changes_while_the_api_server_is_away_and_it_goes_on_soon_after() {
    let Some(cluster) = Cluster::small_only("kube::source::nothing_changes_while_...") else {
        return;
    };
    let server = cluster.small.as_ref().expect("the small one");
    cluster.apply(&cluster.service("orders"));
    cluster.apply(&cluster.service("gone"));
    cluster.apply(&cluster.slice("orders-1", "orders", &json!([{"addresses": ["10.1.0.3"]}])));
    let plane = Plane::start(&cluster, &["--identity", "off"]);
    plane.wait_for(&cluster, "orders", &["10.1.0.3:8080"]);
    let before = plane.index();
    server.set_up(false);
    within(Duration::from_secs(10), "it is noticed", || plane.log().contains("cannot watch"));
    let away = Instant::now();
    within(Duration::from_secs(10), "time passes", || away.elapsed() > Duration::from_secs(4));
    assert_eq!(plane.index()["services"], before["services"]);
    assert!(plane.is_ready(), "proxies are still served");
    server.set_up(true);
    eventually("the API server answers", || cluster.try_get("/api/v1/namespaces").is_ok());
    cluster.delete(&cluster.service("gone"));
    cluster.apply(&cluster.slice("orders-1", "orders", &json!([{"addresses": ["10.1.0.4"]}])));
    let took = within(Duration::from_secs(2), "a change right after its return is seen", || {
        plane.addresses(&cluster, "orders") == ["10.1.0.4:8080"]
            && plane.endpoints(&cluster, "gone").is_null()
    });
    eprintln!("seen after {took:?}");
}

#[test]
fn a_watch_that_is_too_old_lists_anew_and_changes_only_what_has_changed() {
    let Some(cluster) = Cluster::small_only("kube::source::a_watch_that_is_too_old_...") else {
        return;
    };
    let server = cluster.small.as_ref().expect("the small one");
    for name in ["a", "b", "c"] {
        cluster.apply(&cluster.service(name));
    }
    let plane = Plane::start(&cluster, &["--identity", "off"]);
    let name = |name: &str| format!("{}/{name}", cluster.namespace);
    assert!(!plane.index()["services"][name("c")].is_null());
    let lists = || {
        let requests = server.requests();
        requests.iter().filter(|r| r.verb == "list" && r.resource == "services").count()
    };
    let (before, listed) = (plane.index()["generation"].clone(), lists());
    server.compact();
    eventually("everything is listed anew", || lists() > listed);
    assert_eq!(plane.index()["generation"], before, "nothing has changed, so nothing is told");
    // What went away meanwhile is found by its absence: no watch will ever tell of it.
    server.set_up(false);
    eventually("the watches are gone", || plane.log().contains("cannot watch"));
    server.set_up(true);
    eventually("the API server answers", || cluster.try_get("/api/v1/namespaces").is_ok());
    cluster.delete(&cluster.service("b"));
    server.compact();
    eventually("the one that is gone is gone", || plane.index()["services"][name("b")].is_null());
    assert!(!plane.index()["services"][name("a")].is_null());
    assert!(!plane.index()["services"][name("c")].is_null());
}

#[test]
fn a_kind_is_watched_once_its_definition_is_there_and_forgotten_with_it() {
    let Some(cluster) = Cluster::small_only("kube::source::a_kind_is_watched_once_...") else {
        return;
    };
    cluster.apply(&cluster.service("orders"));
    let plane = Plane::start(&cluster, &["--identity", "off"]);
    cluster.define("outrigger.dev", "externalservices", "ExternalService");
    let external = json!({
        "apiVersion": "outrigger.dev/v1alpha1", "kind": "ExternalService",
        "metadata": {"name": "rates", "namespace": cluster.namespace},
        "spec": {"host": "rates.example.com", "port": 443},
    });
    cluster.apply(&external);
    let is_there = || plane.index().to_string().contains("rates.example.com");
    eventually("its objects are taken over", is_there);
    cluster.delete(&json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "externalservices.outrigger.dev"},
    }));
    eventually("they go with their definition", || !is_there());
    assert!(plane.is_ready());
}

#[test]
fn it_listens_only_once_everything_is_known() {
    let Some(cluster) = Cluster::small_only("kube::source::it_listens_only_once_...") else {
        return;
    };
    let server = cluster.small.as_ref().expect("the small one");
    cluster.apply(&cluster.service("orders"));
    server.set_up(false);
    let plane = Plane::start_unready(&cluster, &["--identity", "off"]);
    eventually("it says what it waits for", || plane.log().contains("API server"));
    assert!(!plane.is_ready());
    server.set_up(true);
    eventually("it goes on by itself", || plane.is_ready());
    assert!(!plane.endpoints(&cluster, "orders").is_null());
}

#[test]
fn a_burst_of_changes_is_few_commits_and_a_single_one_does_not_wait() {
    let cluster = Cluster::start();
    cluster.apply(&cluster.service("orders"));
    let plane = Plane::start(&cluster, &["--identity", "off"]);
    let mut took = Vec::new();
    for i in 0..20 {
        let address = format!("10.2.0.{i}");
        let slice = cluster.slice("orders-1", "orders", &json!([{"addresses": [address]}]));
        cluster.apply(&slice);
        let applied = Instant::now();
        plane.wait_for(&cluster, "orders", &[&format!("{address}:8080")]);
        took.push(applied.elapsed());
    }
    took.sort();
    eprintln!("median {:?}, slowest {:?}", took[10], took[19]);
    assert!(took[10] < Duration::from_millis(200), "{took:?}");
}

#[test]
fn a_policy_cannot_have_a_file_of_the_control_plane_read() {
    let cluster = Cluster::start();
    let plane = Plane::start(&cluster, &["--identity", "off"]);
    let jwks = json!({"file": "keys.json"});
    cluster.apply(&json!({
        "apiVersion": "outrigger.dev/v1alpha1", "kind": "AccessPolicy",
        "metadata": {"name": "tokens", "namespace": cluster.namespace},
        "spec": {"jwt": [{"issuer": "https://issuer.example.com", "jwks": jwks}]},
    }));
    eventually("it is said that none is read", || {
        plane.log().contains("keys.json: files are read beside a folder of manifests only")
    });
}
