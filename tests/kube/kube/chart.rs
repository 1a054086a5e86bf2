//! The chart, through the real Helm.

use std::path::PathBuf;
use std::process::{Command, Output};

use outrigger_tests::client::has;
use outrigger_tests::process::TempDir;
use outrigger_tests::skip;
use serde_json::{Value, json};

const DOCUMENT: &str = include_str!("../../../docs/kubernetes.md");
/// Everything that can be set.
const MAXIMAL: &str = "
image: {prefix: registry.example.com/mesh, tag: v9, pullPolicy: Always, pullSecrets: [one, two]}
controlPlane:
  replicas: 5
  log: debug
  resources: {requests: {cpu: '1', memory: 1Gi}}
  nodeSelector: {disk: fast}
  tolerations: [{operator: Exists}]
  affinity: {nodeAffinity: {}}
  priorityClassName: ''
  podAnnotations: {note: 'a: b'}
  podLabels: {team: mesh}
  extraArgs: [--unmatched=refuse]
mesh: {trustDomain: example.com, clusterDomain: example.local, mtls: strict, defaultAccess: deny, certificateLifetime: 1h}
proxy: {mode: env, log: debug, skipOutboundNetworks: [10.0.0.0/8], skipOutboundPorts: [3306], skipInboundPorts: [22]}
webhook: {timeoutSeconds: 5}
networkPolicy: {metricsFrom: {matchLabels: {team: watchers}}}
podDisruptionBudget: {maxUnavailable: 50%}
podMonitor: {enabled: true, interval: 10s, labels: {release: prometheus}}
crds: {install: false, remove: keep}
";

fn chart() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../charts/outrigger")
}

fn helm(arguments: &[&str]) -> Output {
    Command::new("helm").args(arguments).arg(chart()).output().expect("helm runs")
}

fn is_there(test: &str) -> bool {
    let is_there = has("helm");
    if !is_there {
        skip(test, "helm is not installed");
    }
    is_there
}

/// The objects that these values make.
fn objects(values: &str) -> Vec<Value> {
    let folder = TempDir::new("chart");
    let file = folder.path().join("values.yaml");
    std::fs::write(&file, values).expect("a file");
    let file = file.display().to_string();
    let output = helm(&["template", "mesh", "--namespace", "mesh-system", "--values", &file]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("text");
    let documents = text.split("\n---").filter(|document| document.contains("\nkind: "));
    documents.map(|document| serde_saphyr::from_str(document).expect("YAML")).collect()
}

fn of_kind<'a>(objects: &'a [Value], kind: &str) -> Vec<&'a Value> {
    objects.iter().filter(|object| object["kind"] == kind).collect()
}

#[test]
fn every_set_of_values_makes_objects_that_a_cluster_takes() {
    if !is_there("kube::chart::every_set_of_values_makes_objects") {
        return;
    }
    let lint = helm(&["lint", "--strict"]);
    assert!(lint.status.success(), "{}", String::from_utf8_lossy(&lint.stdout));
    for values in
        ["", "networkPolicy: {enabled: false}\npodDisruptionBudget: {enabled: false}", MAXIMAL]
    {
        let objects = objects(values);
        for kind in ["Deployment", "Service", "ClusterRole", "MutatingWebhookConfiguration"] {
            assert!(!of_kind(&objects, kind).is_empty(), "{kind} with {values}");
        }
        let pods = objects.iter().filter(|object| object["spec"]["template"].is_object());
        for pod in pods.map(|object| &object["spec"]["template"]) {
            // What PodSecurity `restricted` asks for.
            let context = &pod["spec"]["containers"][0]["securityContext"];
            assert_eq!(context["runAsNonRoot"], true, "{pod}");
            assert_eq!(context["allowPrivilegeEscalation"], false, "{pod}");
            assert_eq!(context["capabilities"], json!({"drop": ["ALL"]}), "{pod}");
            assert_eq!(context["seccompProfile"], json!({"type": "RuntimeDefault"}), "{pod}");
            assert_eq!(pod["metadata"]["labels"]["outrigger.dev/inject"], "disabled", "{pod}");
        }
    }
    let all = objects(MAXIMAL);
    assert_eq!(of_kind(&all, "PodMonitor").len(), 1);
    assert_eq!(of_kind(&all, "Deployment")[0]["spec"]["replicas"], 5);
    // Only the Job that cleans up is left.
    assert_eq!(of_kind(&all, "Job").len(), 1);
}

#[test]
fn the_chart_gives_the_rights_of_the_document() {
    if !is_there("kube::chart::the_chart_gives_the_rights_of_the_document") {
        return;
    }
    let blocks = DOCUMENT.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next());
    let written: Vec<Value> =
        blocks.map(|block| serde_saphyr::from_str(block).expect("YAML")).collect();
    let objects = objects("");
    for kind in ["ClusterRole", "Role"] {
        let named = |all: &[Value]| {
            let found = of_kind(all, kind).into_iter().cloned();
            found.into_iter().find(|role| role["metadata"]["name"] == "outrigger-control-plane")
        };
        let (written, made) = (named(&written).expect("a role"), named(&objects).expect("a role"));
        assert_eq!(written["rules"], made["rules"], "{kind}");
    }
}

#[test]
fn wrong_values_are_refused_by_name() {
    if !is_there("kube::chart::wrong_values_are_refused_by_name") {
        return;
    }
    for (set, field) in [
        ("controlPlane.replicas=0", "replicas"),
        ("mesh.mtls=maybe", "mtls"),
        ("mesh.certificateLifetime=24", "certificateLifetime"),
        ("proxy.mode=magic", "mode"),
        ("proxy.skipInboundPorts[0]=70000", "skipInboundPorts"),
        ("image.pullPolicy=Sometimes", "pullPolicy"),
        ("crds.remove=everything", "remove"),
        ("controlPlan.replicas=2", "controlPlan"),
    ] {
        let output = helm(&["template", "--set", set]);
        let why = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && why.contains(field), "{set}: {why}");
    }
}
