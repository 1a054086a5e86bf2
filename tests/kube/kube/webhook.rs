//! What the API server is told about an object before it stores it. The tests are the API server here: curl calls
//! the webhook by its Service's name, and takes its certificate only under the roots that are written down.

use std::path::Path;

use outrigger_tests::client::{Curl, has};
use outrigger_tests::process::{TempDir, free_port, local};
use outrigger_tests::{eventually, skip};
use serde_json::{Value, json};

use super::cluster::{Cluster, Plane};

const HOST: &str = "outrigger-control-plane.outrigger-system.svc";

struct Webhook {
    plane: Plane,
    port: u16,
    folder: TempDir,
}

impl Webhook {
    /// None: there is no curl here.
    fn start(cluster: &Cluster, configuration: &str, test: &str) -> Option<Self> {
        if !has("curl") {
            skip(test, "curl is not installed");
            return None;
        }
        let port = free_port();
        let address = local(port).to_string();
        let flags = ["--webhook", &address, "--webhook-host", HOST];
        let named = ["--webhook-configuration", configuration];
        let plane = Plane::start(cluster, &[&flags[..], &named[..]].concat());
        let webhook = Self { plane, port, folder: TempDir::new("kube-webhook") };
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "outrigger-trust-bundle.pem", "namespace": cluster.system}});
        let roots = cluster.get(&map)["data"]["document"].as_str().expect("roots").to_owned();
        std::fs::write(webhook.file("roots.pem"), roots).expect("a file");
        Some(webhook)
    }

    fn file(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    fn post(&self, host: &str, body: &Path) -> outrigger_tests::client::Answer {
        let (roots, body) = (self.file("roots.pem"), format!("@{}", body.display()));
        Curl::direct()
            .args(&["--cacert", roots.to_str().expect("a path")])
            .args(&["--resolve", &format!("{host}:{}:127.0.0.1", self.port)])
            .args(&[
                "--header",
                "expect:",
                "--header",
                "content-type: application/json",
                "--data-binary",
                &body,
            ])
            .get(&format!("https://{host}:{}/validate?timeout=10s", self.port))
    }

    /// Asks about an object as it is about to be, and as it was.
    fn review(&self, object: &Value, old: &Value) -> Value {
        let api_version = object["apiVersion"].as_str().expect("a text");
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let review = json!({
            "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
            "request": {
                "uid": "r-1", "operation": if old.is_null() { "CREATE" } else { "UPDATE" },
                "kind": {"group": group, "version": version, "kind": object["kind"]},
                "object": object, "oldObject": old,
            },
        });
        let path = self.file("review.json");
        std::fs::write(&path, review.to_string()).expect("a file");
        let answer = self.post(HOST, &path);
        assert_eq!(answer.status, 200, "{}", answer.body);
        let answer: Value = serde_json::from_str(&answer.body).expect("JSON");
        assert_eq!(answer["response"]["uid"], "r-1", "{answer}");
        answer["response"].clone()
    }
}

#[test]
fn a_wrong_object_is_refused_with_its_field_and_a_doubtful_one_is_warned_of() {
    let cluster = Cluster::start();
    let test = "kube::webhook::a_wrong_object_is_refused";
    let Some(webhook) = Webhook::start(&cluster, "none", test) else { return };
    cluster.apply(&cluster.service("orders"));
    webhook.plane.wait_for(&cluster, "orders", &[]);
    let good = cluster.route("canary", &["orders"], "orders");
    eventually("the Service is known", || {
        webhook.review(&good, &Value::Null) == json!({"uid": "r-1", "allowed": true})
    });
    // What no schema knows.
    let mut wrong = good.clone();
    wrong["spec"]["rules"][0]["matches"] =
        json!([{"headers": [{"type": "RegularExpression", "name": "x-user", "value": "("}]}]);
    let refused = webhook.review(&wrong, &Value::Null);
    assert_eq!(refused["allowed"], false, "{refused}");
    let field = "spec.rules[0].matches[0].headers[0]";
    let cause = &refused["status"]["details"]["causes"][0];
    assert!(cause["field"].as_str().is_some_and(|at| at.starts_with(field)), "{refused}");
    let message = refused["status"]["message"].as_str().expect("a message");
    assert!(message.contains("is not a regular expression"), "{message}");
    assert_eq!(
        (&refused["status"]["code"], &refused["status"]["reason"]),
        (&json!(422), &json!("Invalid"))
    );
    // What is there already can be labelled, and let go of.
    let mut labelled = wrong.clone();
    labelled["metadata"]["labels"] = json!({"team": "orders"});
    let allowed = webhook.review(&labelled, &wrong);
    assert_eq!(allowed["allowed"], true, "{allowed}");
    assert!(allowed["warnings"][0].as_str().is_some_and(|w| w.starts_with(field)), "{allowed}");
    let mut ending = wrong.clone();
    ending["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    assert_eq!(webhook.review(&ending, &good)["allowed"], true);
    assert_eq!(webhook.review(&wrong, &good)["allowed"], false);
    // Nothing that it refers to is there.
    let lost = cluster.route("lost", &["nowhere"], "orders");
    let warned = webhook.review(&lost, &Value::Null);
    let warning = warned["warnings"][0].as_str().unwrap_or_default();
    assert!(warning.starts_with("spec.parentRefs[0]") && warning.contains("nowhere"), "{warned}");
    let mut to_lost = good.clone();
    to_lost["spec"]["rules"][0]["backendRefs"][0]["name"] = json!("nowhere");
    let warned = webhook.review(&to_lost, &Value::Null);
    let warning = warned["warnings"][0].as_str().unwrap_or_default();
    assert!(warning.starts_with("spec.rules[0].backendRefs[0]"), "{warned}");
    // A name that is still to be made up, and a kind that is nobody's business here.
    let mut unnamed = good;
    unnamed["metadata"] = json!({"generateName": "r-", "namespace": cluster.namespace});
    assert_eq!(webhook.review(&unnamed, &Value::Null), json!({"uid": "r-1", "allowed": true}));
    let other = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "x"}});
    assert_eq!(webhook.review(&other, &Value::Null), json!({"uid": "r-1", "allowed": true}));
}

#[test]
fn the_webhook_is_called_by_its_name_alone_and_takes_no_nonsense() {
    let cluster = Cluster::start();
    let test = "kube::webhook::the_webhook_is_called_by_its_name";
    let Some(webhook) = Webhook::start(&cluster, "none", test) else { return };
    let body = webhook.file("body");
    std::fs::write(&body, "{}").expect("a file");
    let answer = webhook.post(HOST, &body);
    assert_eq!(answer.status, 400, "{}", answer.body);
    assert!(answer.body.contains("not an AdmissionReview"), "{}", answer.body);
    // It may be cut off while it is still sent.
    let large = webhook.file("large");
    std::fs::write(&large, vec![b' '; 5 * 1024 * 1024]).expect("a file");
    let answer = webhook.post(HOST, &large);
    assert!(answer.status == 413 || answer.exit != Some(0), "{answer:?}");
    // Its certificate is for that name: curl says 60 when it is not.
    let other = webhook.post("outrigger-control-plane.elsewhere.svc", &body);
    assert_eq!(other.exit, Some(60), "{}", other.body);
    // Those who say nothing take nobody's place.
    let silent: Vec<_> =
        (0..64).map(|_| std::net::TcpStream::connect(local(webhook.port))).collect();
    assert_eq!(webhook.post(HOST, &body).status, 400);
    drop(silent);
}

#[test]
fn the_webhook_configurations_have_the_roots_of_the_mesh() {
    let cluster = Cluster::start();
    // Of a cluster as a whole, so of this test's own name.
    let name = format!("outrigger-{}", cluster.namespace);
    let configuration = |kind: &str, service: bool| {
        let mut client = json!({"url": "https://other.example.com/validate"});
        if service {
            let service = json!({"namespace": cluster.system, "name": "outrigger", "port": 4781});
            client = json!({"service": service, "caBundle": "bm90aGluZw=="});
        }
        json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": kind,
            "metadata": {"name": name},
            "webhooks": [{"name": "validate.outrigger.dev", "clientConfig": client,
                "admissionReviewVersions": ["v1"], "sideEffects": "None", "failurePolicy": "Ignore",
                "rules": [{"apiGroups": ["nothing.outrigger.dev"], "apiVersions": ["v1"],
                    "operations": ["CREATE"], "resources": ["nothings"]}]}],
        })
    };
    let validating = configuration("ValidatingWebhookConfiguration", true);
    if cluster.small.is_some() {
        cluster.apply(&validating);
    } else {
        let mut unready = validating.clone();
        unready["webhooks"][0]["clientConfig"]["caBundle"].take();
        cluster.apply(&unready);
    }
    let elsewhere = configuration("MutatingWebhookConfiguration", false);
    cluster.apply(&elsewhere);
    let test = "kube::webhook::the_webhook_configurations_have_the_roots";
    let Some(webhook) = Webhook::start(&cluster, &name, test) else { return };
    let roots = std::fs::read(webhook.file("roots.pem")).expect("roots");
    let bundle = || {
        let bundle = cluster.get(&validating)["webhooks"][0]["clientConfig"]["caBundle"].clone();
        bundle.as_str().map(|text| serde_json::from_value(json!(text)).expect("base64"))
    };
    eventually("the configuration has the roots", || {
        bundle().is_some_and(|bundle: k8s_openapi::ByteString| bundle.0 == roots)
    });
    assert_eq!(
        cluster.get(&elsewhere)["webhooks"][0]["clientConfig"],
        elsewhere["webhooks"][0]["clientConfig"]
    );
    for configuration in [&validating, &elsewhere] {
        cluster.delete(configuration);
    }
}
