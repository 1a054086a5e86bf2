//! The control plane asks for nothing but what docs/kubernetes.md lets it, and for all of that.

use std::collections::BTreeSet;
use std::fmt;

use outrigger_tests::apiserver::Request;
use outrigger_tests::eventually;
use outrigger_tests::process::{free_port, local};
use serde_json::{Value, json};

use super::cluster::{Cluster, Plane};
use super::registration::{Joining, Outside};

const DOCUMENT: &str = include_str!("../../../docs/kubernetes.md");
/// What comes up only after a long time, in a rotation, or at the moment of a pod's start.
const SELDOM: [&str; 7] = [
    "delete secrets of ",
    "update configmaps of ",
    "get pods of ",
    "get namespaces of ",
    "create tokenreviews of authentication.k8s.io",
    "create subjectaccessreviews of authorization.k8s.io",
    "patch events of events.k8s.io",
];

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Right {
    verb: String,
    resource: String,
    group: String,
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} of {}", self.verb, self.resource, self.group)
    }
}

/// The rules of the roles in the document; of its namespace where they are a Role's.
fn allowed() -> BTreeSet<Right> {
    let blocks = DOCUMENT.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next());
    let roles = blocks.map(|block| serde_saphyr::from_str::<Value>(block).expect("YAML"));
    let texts = |value: &Value| -> Vec<String> {
        let all = value.as_array().into_iter().flatten();
        all.filter_map(|text| Some(text.as_str()?.to_owned())).collect()
    };
    let mut rights = BTreeSet::new();
    for role in roles {
        for rule in role["rules"].as_array().into_iter().flatten() {
            for group in texts(&rule["apiGroups"]) {
                for resource in texts(&rule["resources"]) {
                    for verb in texts(&rule["verbs"]) {
                        let (group, resource) = (group.clone(), resource.clone());
                        rights.insert(Right { verb, resource, group });
                    }
                }
            }
        }
    }
    rights
}

#[test]
fn no_more_is_asked_for_than_the_roles_allow_and_no_more_allowed_than_is_asked_for() {
    let Some(cluster) = Cluster::small_only("kube::permissions::no_more_is_asked_for_...") else {
        return;
    };
    let server = cluster.small.as_ref().expect("the small one");
    let kinds = [
        ("gateway.networking.k8s.io", "tlsroutes", "TLSRoute"),
        ("gateway.networking.k8s.io", "tcproutes", "TCPRoute"),
        ("gateway.networking.k8s.io", "referencegrants", "ReferenceGrant"),
        ("outrigger.dev", "serverpolicies", "ServerPolicy"),
        ("outrigger.dev", "faultinjections", "FaultInjection"),
        ("outrigger.dev", "externalservices", "ExternalService"),
        ("outrigger.dev", "externalworkloads", "ExternalWorkload"),
    ];
    for (group, plural, kind) in kinds {
        cluster.define(group, plural, kind);
    }
    cluster.apply(&cluster.service("orders"));
    for kind in ["ValidatingWebhookConfiguration", "MutatingWebhookConfiguration"] {
        let service = json!({"namespace": cluster.system, "name": "outrigger"});
        cluster.apply(&json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": kind,
            "metadata": {"name": "outrigger"},
            "webhooks": [{"name": "one.outrigger.dev", "clientConfig": {"service": service}}],
        }));
    }
    let webhook = local(free_port()).to_string();
    let webhook = ["--webhook", &webhook, "--webhook-host", "outrigger.system.svc"];
    let mut plane = Plane::start(&cluster, &[&["--identity", "on"], &webhook[..]].concat());
    // One of each kind that has a status.
    for (api_version, kind) in [
        ("gateway.networking.k8s.io/v1", "HTTPRoute"),
        ("gateway.networking.k8s.io/v1", "GRPCRoute"),
        ("gateway.networking.k8s.io/v1", "TLSRoute"),
        ("gateway.networking.k8s.io/v1", "TCPRoute"),
        ("outrigger.dev/v1alpha1", "TrafficPolicy"),
        ("outrigger.dev/v1alpha1", "AccessPolicy"),
        ("outrigger.dev/v1alpha1", "ServerPolicy"),
        ("outrigger.dev/v1alpha1", "FaultInjection"),
        ("outrigger.dev/v1alpha1", "ExternalService"),
        ("outrigger.dev/v1alpha1", "ExternalWorkload"),
    ] {
        let parents = json!([{"group": "", "kind": "Service", "name": "nowhere"}]);
        let object = json!({
            "apiVersion": api_version, "kind": kind,
            "metadata": {"name": "one", "namespace": cluster.namespace},
            "spec": {"parentRefs": parents, "rules": []},
        });
        cluster.apply(&object);
        eventually(&format!("{kind} has a status"), || !cluster.get(&object)["status"].is_null());
    }
    eventually("an Event is written", || {
        server.requests().iter().any(|request| request.resource == "events")
    });
    // A workload that registers itself, and goes.
    let other = Plane::start(&cluster, &["--identity", "off", "--replica", "two"]);
    let joining = Joining::new(&cluster);
    let mut outside = Outside::start(&cluster, &joining, "till-1", other.listen);
    let made = |verb: &str| {
        let requests = server.requests();
        requests.iter().any(|r| r.resource == "externalworkloads" && r.verb == verb)
    };
    eventually("its object is written", || made("create") && made("patch"));
    outside.leave();
    eventually("its object is removed", || made("delete"));
    plane.terminate();
    let asked = server.requests().into_iter().map(|Request { verb, group, resource, .. }| Right {
        verb: verb.to_owned(),
        resource,
        group,
    });
    let (asked, allowed) = (asked.collect::<BTreeSet<_>>(), allowed());
    let list = |rights: &mut dyn Iterator<Item = &Right>| -> Vec<String> {
        rights.map(ToString::to_string).collect()
    };
    let refused = list(&mut asked.difference(&allowed));
    assert!(refused.is_empty(), "asked for without a rule: {refused:?}");
    let mut unused = list(&mut allowed.difference(&asked));
    unused.retain(|right| !SELDOM.contains(&right.as_str()));
    assert!(unused.is_empty(), "allowed and never asked for: {unused:?}");
}
