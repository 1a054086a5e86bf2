//! The graph of the mesh: who calls whom as real proxies report it, cycles, and what it shows of failures.

use std::time::{Duration, Instant};

use outrigger_tests::app::{Echo, Relay};
use outrigger_tests::client::Curl;
use outrigger_tests::process::{ControlPlane, Proxy};
use outrigger_tests::{eventually, within};
use serde_json::Value;

use crate::service;

/// `end` answers, `middle` passes requests on to it; anybody may call through any of the proxies.
struct Chain {
    caller: Proxy,
    middle: Proxy,
    end: Proxy,
    plane: ControlPlane,
    _app: Echo,
}

const POLICY: &str = "apiVersion: outrigger.dev/v1alpha1\nkind: AccessPolicy\n\
    metadata: {name: end, namespace: bank}\nspec:\n  selector: {matchLabels: {app: end}}\n  rules:\n  \
    - name: callers\n    action: Allow\n    from: [{serviceAccounts: [middle, auditor, end]}]\n";

impl Chain {
    fn start(args: &[&str], policy: bool) -> Self {
        let app = Echo::start("end");
        let relay = Relay::start("end.bank", &["x-request-id"]);
        let (end, middle) = (service("end", ""), service("middle", ""));
        let mut manifests = vec![("end.yaml", end.as_str()), ("middle.yaml", middle.as_str())];
        if policy {
            manifests.push(("access.yaml", POLICY));
        }
        let plane = ControlPlane::start_with(&manifests, args);
        let end = Proxy::beside(&plane, "end", &[format!("{}=h1:main", app.port)], &[]);
        let middle = Proxy::beside(&plane, "middle", &[format!("{}=h1:main", relay.port)], &[]);
        relay.calls_through(middle.outbound);
        let caller = Proxy::caller(&plane, &[]);
        Self { caller, middle, end, plane, _app: app }
    }

    fn get(&self, path: &str) -> u16 {
        Curl::through(&self.caller).get(&format!("http://middle.bank{path}")).status
    }

    fn graph(&self) -> Value {
        serde_json::from_str(&self.plane.admin("/graph")).expect("JSON")
    }

    fn edge(&self, from: &str, to: &str) -> Option<Value> {
        let graph = self.graph();
        let edges = graph["edges"].as_array().expect("edges");
        edges.iter().find(|edge| edge["from"] == from && edge["to"] == to).cloned()
    }
}

#[test]
fn a_cycle_of_calls_is_named_within_ten_seconds_of_the_call_that_closes_it() {
    let chain = Chain::start(&["--identity", "on"], true);
    eventually("the chain works", || chain.get("/") == 200);
    eventually("both edges are there", || {
        chain.edge("bank/caller", "bank/middle").is_some()
            && chain.edge("bank/middle", "bank/end").is_some()
    });
    // Its numbers are those of whole ticks.
    eventually("the last tick is over", || {
        chain.edge("bank/middle", "bank/end").is_some_and(|edge| edge["success_rate"] == 1.0)
    });
    let graph = chain.graph();
    assert_eq!(graph["cycles"].as_array().map(Vec::len), Some(0), "{graph:#}");
    let edge = chain.edge("bank/middle", "bank/end").expect("just seen");
    assert_eq!(edge["service"], "bank/end:80");
    assert_eq!(edge["mtls"], "all");
    assert_eq!(edge["protocols"][0], "h1");
    assert!(edge["latency_ms"]["p50"].as_f64().is_some_and(|ms| ms > 0.0), "{edge:#}");
    let unused = graph["unused"].as_array().expect("a list");
    let from: Vec<_> = unused.iter().filter_map(|one| one["from"].as_str()).collect();
    assert_eq!(from, ["bank/auditor", "bank/end"], "{graph:#}");
    assert_eq!(unused[0]["policy"], "bank/end");

    // One call of the last one in the chain back to the middle.
    let began = Instant::now();
    assert_eq!(Curl::through(&chain.end).get("http://middle.bank/back").status, 200);
    within(Duration::from_secs(10), "the cycle is named", || {
        chain.graph()["cycles"].as_array().is_some_and(|all| !all.is_empty())
    });
    println!("named after {:?}", began.elapsed());
    let cycle = chain.graph()["cycles"][0].clone();
    assert_eq!(cycle["path"], serde_json::json!(["bank/end", "bank/middle", "bank/end"]));
    assert_eq!(cycle["closed_by"]["from"], "bank/end", "{cycle:#}");
    assert_eq!(cycle["closed_by"]["service"], "bank/middle:80");
    let dot = chain.plane.admin("/graph.dot");
    assert!(dot.contains("\"bank/end\" -> \"bank/middle\""), "{dot}");
}

#[test]
fn failures_are_on_their_edge_with_the_reason_and_callers_without_identity_are_unknown() {
    let chain = Chain::start(&["--identity", "off"], false);
    eventually("the chain works", || chain.get("/") == 200);
    for _ in 0..10 {
        assert_eq!(chain.get("/status/503"), 503);
    }
    let mut end = chain.end;
    end.process().kill();
    for _ in 0..10 {
        assert_eq!(Curl::through(&chain.middle).get("http://end.bank/").status, 503);
    }
    let graph = || -> Value { serde_json::from_str(&chain.plane.admin("/graph")).expect("JSON") };
    eventually("the edge shows why its requests failed", || {
        let graph = graph();
        let edges = graph["edges"].as_array().expect("edges");
        let edge = edges.iter().find(|edge| edge["service"] == "bank/end:80");
        edge.is_some_and(|edge| {
            let reasons = edge["reasons"].as_array().cloned().unwrap_or_default();
            edge["success_rate"].as_f64().is_some_and(|rate| rate < 0.5) && !reasons.is_empty()
        })
    });
}

#[test]
fn what_is_usual_is_kept_over_a_restart() {
    let mut chain = Chain::start(&["--identity", "on"], false);
    eventually("the chain works", || chain.get("/") == 200);
    eventually("the edge is there", || chain.edge("bank/middle", "bank/end").is_some());
    let before = chain.edge("bank/middle", "bank/end").expect("just seen");
    chain.plane.process().terminate();
    assert!(chain.plane.process_mut().wait(Duration::from_secs(20)).success());
    chain.plane.run();
    eventually("the edge is known again", || chain.edge("bank/middle", "bank/end").is_some());
    let after = chain.edge("bank/middle", "bank/end").expect("just seen");
    assert_eq!(after["first_seen"], before["first_seen"]);
    let last_seen = |edge: &Value| edge["last_seen"].as_str().map(str::to_owned);
    eventually("proxies report to the new process", || {
        assert_eq!(chain.get("/"), 200);
        chain
            .edge("bank/middle", "bank/end")
            .is_some_and(|edge| last_seen(&edge) > last_seen(&before))
    });
}
