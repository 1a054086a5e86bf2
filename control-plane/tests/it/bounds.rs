//! Every string and list that a proxy or a tenant may send has a bound: each field of the messages that a
//! proxy sends, and each field of a manifest of every kind.

use std::collections::BTreeSet;
use std::fs;
use std::sync::Arc;

use outrigger_control_plane::ca::csr;
use outrigger_control_plane::index::Index;
use outrigger_control_plane::metrics::Metrics;
use outrigger_control_plane::problems::{Problems, Severity};
use outrigger_control_plane::publish::Publisher;
use outrigger_control_plane::source::manifests::Folder;
use outrigger_control_plane::translate;
use outrigger_core::bounds;
use outrigger_core::config::MeshSettings;
use outrigger_proto::mesh::experiments_client::ExperimentsClient;
use outrigger_proto::mesh::{self, FaultCaller, StopRequest};
use outrigger_proto::wire::{self, DeltaDiscoveryRequest, Locality, Node, Status as Detail};
use serde_json::{Value, json};
use tempfile::TempDir;
use tonic::Code;

use crate::manifests::{SERVICES, templates};
use crate::support::{LOOPBACK, Mesh, channel, node, registration};

/// The messages that a proxy sends, as their files have them.
const FILES: [&str; 6] = [
    include_str!("../../../proto/proto/outrigger/mesh/v1/workload.proto"),
    include_str!("../../../proto/proto/outrigger/mesh/v1/config.proto"),
    include_str!("../../../proto/proto/outrigger/mesh/v1/experiments.proto"),
    include_str!("../../../proto/proto/outrigger/identity/v1/identity.proto"),
    include_str!("../../../proto/proto/envoy/config/core/v3/base.proto"),
    include_str!("../../../proto/proto/envoy/service/discovery/v3/discovery.proto"),
];
const SENT: [&str; 9] = [
    "Registration",
    "Port",
    "MeshAddress",
    "StopRequest",
    "FaultCaller",
    "CertifyRequest",
    "DeltaDiscoveryRequest",
    "Node",
    "Locality",
];

/// `Message.field` of every text, list and map in [`SENT`].
fn fields() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for file in FILES {
        let mut open: Vec<String> = Vec::new();
        for line in file.lines().map(str::trim) {
            if let Some(name) = line.strip_prefix("message ") {
                open.push(name.trim_end_matches('{').trim_end_matches("{}").trim().to_owned());
                if line.ends_with('}') {
                    open.pop();
                }
            } else if line.ends_with('{') {
                open.push(String::new());
            } else if line == "}" {
                open.pop();
            }
            let long = ["string ", "bytes ", "repeated ", "map<"];
            let message = open.iter().rev().find(|name| !name.is_empty());
            let Some(message) = message.filter(|message| SENT.contains(&message.as_str())) else {
                continue;
            };
            if long.iter().any(|kind| line.starts_with(kind)) {
                let field = line.split('=').next().unwrap_or_default().split_whitespace().last();
                found.insert(format!("{message}.{}", field.unwrap()));
            }
        }
    }
    found
}

fn long(len: usize) -> String {
    "x".repeat(len + 1)
}

/// Registrations with one thing too large each, by the fields that are.
fn registrations() -> Vec<(&'static str, mesh::Registration)> {
    let good = registration("bank", "orders-1", "orders", 9000);
    let mut all = Vec::new();
    let mut with = |field, change: &dyn Fn(&mut mesh::Registration)| {
        let mut bad = good.clone();
        change(&mut bad);
        all.push((field, bad));
    };
    with("Registration.namespace", &|r| r.namespace = long(63));
    with("Registration.service_account", &|r| r.service_account = long(63));
    with("Registration.name", &|r| r.name = long(63));
    with("Registration.labels", &|r| {
        r.labels = (0..=bounds::LABELS).map(|i| (format!("l{i}"), String::new())).collect();
    });
    with("Registration.labels", &|r| drop(r.labels.insert(long(bounds::LABEL_KEY), String::new())));
    with("Registration.labels", &|r| {
        r.labels.insert("app".to_owned(), long(bounds::LABEL_VALUE));
    });
    with("Registration.address", &|r| r.address = long(bounds::ADDRESS));
    with("Registration.ports", &|r| r.ports = vec![r.ports[0].clone(); bounds::WORKLOAD_PORTS + 1]);
    with("Port.name", &|r| r.ports[0].name = long(bounds::PORT_NAME));
    with("MeshAddress.address", &|r| r.mesh.as_mut().unwrap().address = long(bounds::ADDRESS));
    with("MeshAddress.identity", &|r| r.mesh.as_mut().unwrap().identity = long(bounds::NAME));
    with("Registration.zone", &|r| r.zone = long(bounds::ZONE));
    with("Registration.session", &|r| r.session = long(bounds::SESSION).into());
    with("Registration.session", &|r| r.session = "short".into());
    all
}

/// The same for discovery.
fn requests() -> Vec<(&'static str, DeltaDiscoveryRequest)> {
    let mut all = Vec::new();
    let mut with = |field, change: &dyn Fn(&mut DeltaDiscoveryRequest)| {
        let mut bad = DeltaDiscoveryRequest {
            node: Some(node("bank.orders-1", "bank")),
            type_url: wire::MESH_SETTINGS.to_owned(),
            ..Default::default()
        };
        change(&mut bad);
        all.push((field, bad));
    };
    let names = |len: usize| (0..=len).map(|i| i.to_string()).collect::<Vec<_>>();
    with("DeltaDiscoveryRequest.type_url", &|r| r.type_url = long(bounds::TYPE_URL));
    with("DeltaDiscoveryRequest.resource_names_subscribe", &|r| {
        r.resource_names_subscribe = names(bounds::NAMES);
    });
    with("DeltaDiscoveryRequest.resource_names_unsubscribe", &|r| {
        r.resource_names_unsubscribe = names(bounds::NAMES);
    });
    with("DeltaDiscoveryRequest.initial_resource_versions", &|r| {
        let versions = names(bounds::VERSIONS).into_iter().map(|name| (name, String::new()));
        r.initial_resource_versions = versions.collect();
    });
    with("DeltaDiscoveryRequest.initial_resource_versions", &|r| {
        r.initial_resource_versions.insert("a".to_owned(), long(bounds::VERSION));
    });
    with("DeltaDiscoveryRequest.response_nonce", &|r| r.response_nonce = long(bounds::NONCE));
    with("Status.details", &|r| {
        let details = vec![wire::Any::default(); bounds::DETAILS + 1];
        r.error_detail = Some(Detail { code: 3, message: String::new(), details });
    });
    let mut of_node = |field, change: &dyn Fn(&mut Node)| {
        with(field, &|r| change(r.node.as_mut().unwrap()));
    };
    of_node("Node.id", &|n| n.id = long(bounds::NAME));
    of_node("Node.cluster", &|n| n.cluster = long(bounds::NAME));
    of_node("Node.user_agent_name", &|n| n.user_agent_name = long(bounds::VERSION));
    of_node("Node.user_agent_version", &|n| n.user_agent_version = long(bounds::VERSION));
    of_node("Node.metadata", &|n| {
        let fields = &mut n.metadata.as_mut().unwrap().fields;
        fields.extend((0..=bounds::DETAILS).map(|i| (i.to_string(), Default::default())));
    });
    let mut of_place = |field, change: &dyn Fn(&mut Locality)| {
        of_node(field, &|n| change(n.locality.as_mut().unwrap()));
    };
    of_place("Locality.region", &|l| l.region = long(bounds::ZONE));
    of_place("Locality.zone", &|l| l.zone = long(bounds::ZONE));
    of_place("Locality.sub_zone", &|l| l.sub_zone = long(bounds::ZONE));
    all
}

/// The same for stopping a fault injection. A reason is cut instead.
fn stops() -> Vec<(&'static str, StopRequest)> {
    let caller = FaultCaller { namespace: "bank".to_owned(), service_account: "web".to_owned() };
    let good = StopRequest {
        name: "bank/f".to_owned(),
        version: "1".to_owned(),
        reason: String::new(),
        caller: Some(caller),
    };
    let caller = |namespace: String, service_account: String| {
        Some(FaultCaller { namespace, service_account })
    };
    let bank = || "bank".to_owned();
    vec![
        ("StopRequest.name", StopRequest { name: long(bounds::NAME), ..good.clone() }),
        ("StopRequest.version", StopRequest { version: long(bounds::VERSION), ..good.clone() }),
        ("FaultCaller.namespace", StopRequest { caller: caller(long(63), bank()), ..good.clone() }),
        (
            "FaultCaller.service_account",
            StopRequest { caller: caller(bank(), long(bounds::NAME)), ..good },
        ),
    ]
}

#[tokio::test]
async fn every_field_that_a_proxy_sends_has_a_bound() {
    let mesh = Mesh::start(&[]).await;
    // A certificate request and its node's name are tested where certificates are.
    let mut tested = BTreeSet::from(
        ["CertifyRequest.csr", "CertifyRequest.node", "StopRequest.reason"].map(str::to_owned),
    );
    assert!(csr::parse(&vec![0; bounds::CSR + 1]).unwrap_err().to_string().contains("at most"));
    let good = registration("bank", "orders-1", "orders", 9000);
    assert!(translate::workload::translate(&good, LOOPBACK).is_ok());
    for (field, registration) in registrations() {
        let error = translate::workload::translate(&registration, LOOPBACK).expect_err(field);
        // What is too long is not repeated.
        assert!(error.to_string().len() < 300, "{field}: {error}");
        tested.insert(field.to_owned());
    }
    for (field, request) in requests() {
        let mut client =
            wire::AggregatedDiscoveryServiceClient::new(channel(mesh.server().discovery).await);
        let stream = tokio_stream::iter([request]);
        let answer = match client.delta_aggregated_resources(stream).await {
            Ok(mut answer) => answer.get_mut().message().await,
            Err(status) => Err(status),
        };
        let status = answer.expect_err(field);
        let code = status.code();
        // Larger than a request may be as a whole.
        assert!(matches!(code, Code::InvalidArgument | Code::OutOfRange), "{field}: {status}");
        tested.insert(field.to_owned());
    }
    for (field, request) in stops() {
        let mut client = ExperimentsClient::new(channel(mesh.server().discovery).await);
        let status = client.stop(request).await.expect_err(field);
        assert_eq!(status.code(), Code::InvalidArgument, "{field}: {status}");
        tested.insert(field.to_owned());
    }
    let missing: Vec<_> = fields().difference(&tested).cloned().collect();
    assert!(missing.is_empty(), "nobody says how long these may be: {missing:?}");
    assert!(fields().len() > 25, "{:?}", fields());
}

/// Good manifests of every kind.
fn everything() -> Vec<Value> {
    let mut all = templates();
    all.push(json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "m", "namespace": "bank",
                     "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4", "ports": [{"name": "http", "port": 9000, "protocol": "TCP"}],
        "endpoints": [{"addresses": ["10.0.0.7"], "zone": "a", "hostname": "h",
                       "targetRef": {"kind": "Pod", "name": "p", "uid": "u"}}],
    }));
    all.push(json!({
        "apiVersion": "outrigger.dev/v1alpha1", "kind": "ExternalWorkload",
        "metadata": {"name": "m", "namespace": "bank", "labels": {"app": "x"}},
        "spec": {"address": "10.0.0.9", "serviceAccount": "x", "zone": "z",
                 "mesh": {"address": "10.0.0.9:4743"},
                 "ports": [{"port": 80, "name": "http", "appProtocol": "http"}]},
    }));
    all.push(json!({
        "apiVersion": "gateway.networking.k8s.io/v1beta1", "kind": "ReferenceGrant",
        "metadata": {"name": "m", "namespace": "bank"},
        "spec": {"from": [{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute",
                           "namespace": "shop"}],
                 "to": [{"group": "", "kind": "Service", "name": "web"}]},
    }));
    all
}

/// Where each text, list and object of a value stands.
fn places(value: &Value, at: &str, found: &mut Vec<String>) {
    match value {
        Value::Array(items) => {
            found.push(at.to_owned());
            for (i, item) in items.iter().enumerate() {
                places(item, &format!("{at}/{i}"), found);
            }
        }
        Value::Object(fields) => {
            found.push(at.to_owned());
            for (key, value) in fields {
                let key = key.replace('~', "~0").replace('/', "~1");
                places(value, &format!("{at}/{key}"), found);
            }
        }
        Value::String(_) => found.push(at.to_owned()),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// Longer than anything may be.
fn inflate(value: &mut Value) {
    const MUCH: usize = 70_000;
    const MANY: usize = 1_001;
    match value {
        Value::String(text) => *text = "a".repeat(MUCH),
        Value::Array(items) => {
            let first = items.first().cloned().unwrap_or(json!("a"));
            items.resize(MANY, first);
        }
        Value::Object(fields) => {
            fields.extend((0..MANY).map(|i| (format!("k{i}"), json!("v"))));
        }
        _ => unreachable!(),
    }
}

#[test]
fn every_field_of_a_manifest_has_a_bound() {
    let mut tried = 0;
    for template in everything() {
        let mut found = Vec::new();
        for root in ["metadata", "spec", "ports", "endpoints", "addressType"] {
            if let Some(value) = template.get(root) {
                places(value, &format!("/{root}"), &mut found);
            }
        }
        let good = problems(std::slice::from_ref(&template));
        assert!(good.is_empty(), "{template:#}: {good:?}");
        for place in found {
            let mut bad = template.clone();
            inflate(bad.pointer_mut(&place).unwrap());
            let said = problems(&[bad]);
            let kind = &template["kind"];
            assert!(!said.is_empty(), "{kind}: {place} has no bound");
            assert!(said.iter().all(|problem| problem.len() < 600), "{kind}: {place}: {said:?}");
            tried += 1;
        }
    }
    assert!(tried > 300, "only {tried} places were tried");
}

fn problems(manifests: &[Value]) -> Vec<String> {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("a.yaml"), SERVICES).unwrap();
    let text: Vec<_> = manifests.iter().map(Value::to_string).collect();
    fs::write(folder.path().join("b.yaml"), text.join("\n---\n")).unwrap();
    let problems = Arc::new(Problems::default());
    let metrics = Arc::new(Metrics::new());
    let mut reader = Folder::new(folder.path().to_owned(), LOOPBACK, problems.clone(), metrics);
    reader.scan(&Publisher::new(Index::new(MeshSettings::default()))).unwrap();
    let wrong = problems.all().into_iter().filter(|problem| problem.severity == Severity::Error);
    wrong.map(|problem| format!("{}: {}", problem.field, problem.problem)).collect()
}
