//! What the control plane writes back.

use std::time::{Duration, Instant};

use outrigger_tests::apiserver::Request;
use outrigger_tests::{eventually, within};
use serde_json::{Value, json};

use super::cluster::{Cluster, Plane};

const OURS: &str = "outrigger.dev/control-plane";
/// Longer than a lease of a replica that has died, and the pause after it.
const TAKEOVER: Duration = Duration::from_secs(40);

/// `Accepted=True` and its like, of our entry for a route's parent.
fn at_parent(route: &Value, name: &str) -> Vec<String> {
    let parents = route["status"]["parents"].as_array().into_iter().flatten();
    let mut ours =
        parents.filter(|p| p["controllerName"] == OURS && p["parentRef"]["name"] == name);
    ours.next().map(|parent| conditions(&parent["conditions"])).unwrap_or_default()
}

fn conditions(conditions: &Value) -> Vec<String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let all = conditions.as_array().into_iter().flatten();
    all.map(|c| format!("{}={} {}", text(&c["type"]), text(&c["status"]), text(&c["reason"])))
        .collect()
}

fn policy(cluster: &Cluster, spec: &Value) -> Value {
    json!({
        "apiVersion": "outrigger.dev/v1alpha1", "kind": "TrafficPolicy",
        "metadata": {"name": "calm", "namespace": cluster.namespace},
        "spec": spec,
    })
}

#[test]
fn a_route_has_a_status_at_each_parent_and_others_keep_theirs() {
    let cluster = Cluster::start();
    cluster.apply(&cluster.service("orders"));
    let route = cluster.route("canary", &["orders", "nowhere"], "orders");
    cluster.apply(&route);
    let foreign = json!({
        "parentRef": {"group": "", "kind": "Service", "name": "orders"},
        "controllerName": "example.com/other",
        "conditions": [{"type": "Accepted", "status": "True", "reason": "Accepted", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z", "observedGeneration": 1}],
    });
    cluster.patch_status(&route, &json!({"parents": [foreign]}));
    let _plane = Plane::start(&cluster, &["--identity", "off"]);
    eventually("both parents have a status", || {
        at_parent(&cluster.get(&route), "nowhere").len() == 3
    });
    let written = cluster.get(&route);
    assert_eq!(at_parent(&written, "orders")[0], "Accepted=True Accepted");
    assert_eq!(at_parent(&written, "nowhere")[0], "Accepted=False NoMatchingParent");
    assert_eq!(at_parent(&written, "orders")[2], "Programmed=Unknown NoProxies");
    assert_eq!(written["status"]["parents"][0], foreign, "somebody else's is as it was");
    // A change of the spec is observed, also where the conditions stay the same.
    let changed = cluster.patch(&route, &json!({"spec": {"hostnames": ["orders.example.com"]}}));
    let generation = &changed["metadata"]["generation"];
    eventually("the new generation is observed", || {
        let route = cluster.get(&route);
        let parents = route["status"]["parents"].as_array().cloned().unwrap_or_default();
        let ours = parents.iter().filter(|parent| parent["controllerName"] == OURS);
        ours.flat_map(|p| p["conditions"].as_array().into_iter().flatten())
            .all(|condition| condition["observedGeneration"] == *generation)
    });
    cluster.apply(&cluster.service("nowhere"));
    eventually("it is accepted there, too", || {
        at_parent(&cluster.get(&route), "nowhere")
            .first()
            .is_some_and(|c| c == "Accepted=True Accepted")
    });
    // The backend goes.
    cluster.delete(&cluster.service("orders"));
    eventually("the reference no longer resolves", || {
        at_parent(&cluster.get(&route), "nowhere")
            .get(1)
            .is_some_and(|c| c == "ResolvedRefs=False BackendNotFound")
    });
}

#[test]
fn a_wrong_version_is_refused_by_field_and_the_last_good_one_stays() {
    let cluster = Cluster::start();
    if cluster.small.is_none() {
        return outrigger_tests::skip(
            "kube::status::a_wrong_version_...",
            "a real server's schema refuses it first",
        );
    }
    cluster.apply(&cluster.service("orders"));
    let target = json!([{"kind": "Service", "name": "orders"}]);
    let good = policy(
        &cluster,
        &json!({"targetRefs": target, "retries": {"maxAttempts": 2, "when": {"reset": true}}}),
    );
    cluster.apply(&good);
    let plane = Plane::start(&cluster, &["--identity", "off"]);
    let of = |kind: &str| {
        let all = conditions(&cluster.get(&good)["status"]["conditions"]);
        all.into_iter().find(|condition| condition.starts_with(kind)).unwrap_or_default()
    };
    eventually("it is accepted", || of("Accepted") == "Accepted=True Accepted");
    cluster.patch(&good, &json!({"spec": {"retries": {"maxAttempts": 1000}}}));
    eventually("it is not accepted", || of("Accepted") == "Accepted=False Invalid");
    let written = cluster.get(&good);
    let message = written["status"]["conditions"][0]["message"].as_str().unwrap_or_default();
    assert!(message.starts_with("spec.retries.maxAttempts: "), "{message}");
    assert_eq!(
        written["status"]["conditions"][0]["observedGeneration"],
        written["metadata"]["generation"]
    );
    // It is written after the status.
    let events = format!("/apis/events.k8s.io/v1/namespaces/{}/events", cluster.namespace);
    eventually("an Event says so", || {
        let events = cluster.try_get(&events).expect("events");
        events.to_string().contains("spec.retries.maxAttempts")
    });
    let index = plane.index();
    assert!(index["problems"].to_string().contains("spec.retries.maxAttempts"), "{index}");
    cluster.patch(&good, &json!({"spec": {"retries": {"maxAttempts": 3}}}));
    eventually("it is accepted again", || of("Accepted") == "Accepted=True Accepted");
    assert_eq!(plane.index()["problems"], json!([]));
}

#[test]
fn an_access_policy_that_was_never_right_lets_nobody_in() {
    let cluster = Cluster::start();
    if cluster.small.is_none() {
        return outrigger_tests::skip(
            "kube::status::an_access_policy_...",
            "a real server's schema refuses it first",
        );
    }
    let plane = Plane::start(&cluster, &["--identity", "off"]);
    let policy = json!({
        "apiVersion": "outrigger.dev/v1alpha1", "kind": "AccessPolicy",
        "metadata": {"name": "ledger", "namespace": cluster.namespace},
        "spec": {"rules": [{"action": "Maybe"}]},
    });
    cluster.apply(&policy);
    eventually("it is not accepted, and says what that means", || {
        let message = cluster.get(&policy)["status"]["conditions"][0]["message"].clone();
        message
            .as_str()
            .is_some_and(|m| m.contains("rules[0].action") && m.contains("all calls to"))
    });
    cluster.delete(&policy);
    eventually("with it goes what stood in for it", || {
        !plane.index().to_string().contains("all calls to")
    });
}

#[test]
fn a_write_that_is_never_answered_stops_no_other() {
    let Some(cluster) = Cluster::small_only("kube::status::a_write_that_is_never_answered_...")
    else {
        return;
    };
    let server = cluster.small.as_ref().expect("the small one");
    cluster.apply(&cluster.service("orders"));
    let is_stuck = |r: &Request| r.resource == "httproutes/status" && r.name == "stuck";
    server.hang(is_stuck);
    let _plane = Plane::start(&cluster, &["--identity", "off"]);
    let stuck = cluster.route("stuck", &["orders"], "orders");
    cluster.apply(&stuck);
    eventually("its write is under way", || server.requests().iter().any(is_stuck));
    let others: Vec<Value> =
        (0..20).map(|i| cluster.route(&format!("route-{i}"), &["orders"], "orders")).collect();
    for route in &others {
        cluster.apply(route);
    }
    // Below the limit after which the one that hangs is given up.
    within(Duration::from_secs(8), "all others have a status", || {
        others.iter().all(|route| !at_parent(&cluster.get(route), "orders").is_empty())
    });
    assert!(at_parent(&cluster.get(&stuck), "orders").is_empty());
    server.answer_all();
    within(Duration::from_secs(30), "it is given up and tried again", || {
        !at_parent(&cluster.get(&stuck), "orders").is_empty()
    });
}

#[test]
fn nothing_is_written_where_nothing_changes_and_two_replicas_do_not_fight() {
    let Some(cluster) = Cluster::small_only("kube::status::nothing_is_written_...") else { return };
    let server = cluster.small.as_ref().expect("the small one");
    cluster.apply(&cluster.service("orders"));
    let route = cluster.route("canary", &["orders"], "orders");
    cluster.apply(&route);
    let mut first = Plane::start(&cluster, &["--identity", "off", "--replica", "one"]);
    eventually("the status is there", || at_parent(&cluster.get(&route), "orders").len() == 3);
    let second = Plane::start(&cluster, &["--identity", "off", "--replica", "two"]);
    eventually("the second one leaves it to the first", || {
        second.log().contains("another replica writes")
    });
    let writes = || {
        let requests = server.requests();
        requests.iter().filter(|r| r.resource.ends_with("/status")).count()
    };
    let (before, quiet) = (writes(), Instant::now());
    within(Duration::from_secs(20), "time passes", || quiet.elapsed() > Duration::from_secs(5));
    assert_eq!(writes(), before, "a status was written although nothing has changed");
    // A write that is undone is written again only when the control plane learns something.
    first.kill();
    within(TAKEOVER, "the second one takes over", || second.log().contains("this replica writes"));
    cluster.delete(&cluster.service("orders"));
    eventually("and writes", || {
        at_parent(&cluster.get(&route), "orders")
            .first()
            .is_some_and(|c| c == "Accepted=False NoMatchingParent")
    });
}
