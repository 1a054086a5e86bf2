//! What the control plane does about the proxies of pods that run.

use std::time::Duration;

use outrigger_tests::process::{TempDir, free_port, local};
use outrigger_tests::within;
use serde_json::{Value, json};

use super::cluster::{Cluster, Plane};

const LIMIT: Duration = Duration::from_secs(30);

/// A control plane that injects `proxy:2`.
fn start(cluster: &Cluster, folder: &TempDir, more: &[&str]) -> Plane {
    let inject = folder.path().join("inject.json");
    let settings =
        json!({"image": "proxy:2", "controlPlane": "https://outrigger-control-plane:4780"});
    std::fs::write(&inject, settings.to_string()).expect("a file");
    let address = local(free_port()).to_string();
    let flags = [
        ["--webhook", &address],
        ["--webhook-host", "outrigger-control-plane.outrigger-system.svc"],
        ["--webhook-configuration", "none"],
        ["--inject", inject.to_str().expect("a path")],
    ];
    Plane::start(cluster, &[&flags.concat(), more].concat())
}

/// A running pod with a proxy of that image.
fn run(cluster: &Cluster, name: &str, image: &str) -> Value {
    let mut pod = cluster.pod(name, "default");
    pod["metadata"]["annotations"] = json!({"outrigger.dev/injected": "version=0.1.0,mode=env"});
    pod["spec"]["initContainers"][0]["image"] = json!(image);
    cluster.apply(&pod);
    set_restarts(cluster, &pod, 0);
    pod
}

/// The status of a pod whose proxy was restarted so often, and is ready.
fn set_restarts(cluster: &Cluster, pod: &Value, proxy: i64) {
    let container = |name: &str, restarts: i64| {
        json!({"name": name, "image": "none", "imageID": "none", "ready": true, "restartCount": restarts,
            "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}})
    };
    cluster.patch_status(
        pod,
        &json!({
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": "True"}],
            "initContainerStatuses": [container("outrigger-proxy", proxy)],
            "containerStatuses": [container("app", 0)],
        }),
    );
}

fn ask(cluster: &Cluster) {
    cluster.apply(&json!({"apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": cluster.namespace, "labels": {"outrigger.dev/inject": "enabled"}}}));
}

/// Reasons of the Events about a pod.
fn reasons(cluster: &Cluster, pod: &str) -> Vec<String> {
    let path = format!("/apis/events.k8s.io/v1/namespaces/{}/events", cluster.namespace);
    let events = cluster.try_get(&path).expect("events");
    let events = events["items"].as_array().cloned().unwrap_or_default();
    let about = events.iter().filter(|event| event["regarding"]["name"] == pod);
    about.filter_map(|event| event["reason"].as_str().map(str::to_owned)).collect()
}

#[test]
fn pods_without_a_proxy_and_with_an_old_one_are_named() {
    let cluster = Cluster::start();
    let folder = TempDir::new("kube-pods");
    let plane = start(&cluster, &folder, &[]);
    let mut plain = cluster.pod("plain", "default");
    plain["spec"]["initContainers"] = json!([]);
    cluster.apply(&plain);
    run(&cluster, "old", "proxy:1");
    run(&cluster, "new", "proxy:2");
    let old = || reasons(&cluster, "old") == ["ProxyOutdated"];
    within(LIMIT, "the pod with the old proxy is named", old);
    assert!(reasons(&cluster, "plain").is_empty(), "its namespace did not ask");
    ask(&cluster);
    let missing = || reasons(&cluster, "plain") == ["ProxyMissing"];
    within(LIMIT, "the pod without proxy is named", missing);
    // Nothing is said twice, and the numbers say the same.
    assert!(old() && reasons(&cluster, "new").is_empty());
    let metrics = plane.page("/metrics");
    for line in ["Meshed\"} 1", "ProxyMissing\"} 1", "ProxyOutdated\"} 1", "NotRedirected\"} 0"] {
        let line = format!("outrigger_control_plane_pods{{state=\"{line}\n");
        assert!(cluster.small.is_none() || metrics.contains(&line), "{line} in {metrics}");
    }
    // Only where that is wanted are pods changed.
    let image = &cluster.get(&cluster.pod("old", "default"))["spec"]["initContainers"][0]["image"];
    assert_eq!(image, "proxy:1");
}

/// Deployments roll and nodes go while proxies are replaced: that says nothing about the new one.
#[test]
fn a_pod_that_is_gone_meanwhile_stops_nobody() {
    let test = "kube::pods::a_pod_that_is_gone_meanwhile";
    let Some(cluster) = Cluster::small_only(test) else { return };
    let folder = TempDir::new("kube-pods");
    let pods = ["a", "b"].map(|name| run(&cluster, name, "proxy:1"));
    let plane = start(&cluster, &folder, &["--upgrade-proxies", "1"]);
    let image = |pod: &Value| cluster.get(pod)["spec"]["initContainers"][0]["image"].clone();
    within(LIMIT, "the first is begun", || image(&pods[0]) == "proxy:2");
    cluster.delete(&pods[0]);
    within(LIMIT, "the second is begun", || image(&pods[1]) == "proxy:2");
    assert!(!reasons(&cluster, "a").contains(&"UpgradeFailed".to_owned()), "{}", plane.log());
}

#[test]
fn old_proxies_are_replaced_one_after_another_and_none_after_one_that_fails() {
    let test = "kube::pods::old_proxies_are_replaced";
    let Some(cluster) = Cluster::small_only(test) else { return };
    let folder = TempDir::new("kube-pods");
    let pods = ["a", "b", "c"].map(|name| run(&cluster, name, "proxy:1"));
    let plane = start(&cluster, &folder, &["--upgrade-proxies", "1"]);
    let replaced = || -> Vec<bool> {
        let images =
            pods.iter().map(|pod| cluster.get(pod)["spec"]["initContainers"][0]["image"].clone());
        images.map(|image| image == "proxy:2").collect()
    };
    within(LIMIT, "the first is begun", || replaced() == [true, false, false]);
    // The test is the kubelet here.
    set_restarts(&cluster, &pods[0], 1);
    within(LIMIT, "the second is begun when the first is ready", || {
        replaced() == [true, true, false]
    });
    // Its app was restarted as well, which must never be.
    let mut status = cluster.get(&pods[1])["status"].clone();
    status["containerStatuses"][0]["restartCount"] = json!(1);
    cluster.patch_status(&pods[1], &status);
    within(LIMIT, "the failure is named", || {
        reasons(&cluster, "b").contains(&"UpgradeFailed".to_owned())
    });
    // Named like any other, which takes two rounds: it would have been begun meanwhile.
    within(LIMIT, "the third is named", || reasons(&cluster, "c") == ["ProxyOutdated"]);
    assert_eq!(replaced(), [true, true, false], "{}", plane.log());
}
