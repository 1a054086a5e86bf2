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
telemetry:
  accessLog: {what: all, slowerThan: 1s, layout: logstash, otlp: 'http://otel.obs:4317'}
  metrics: {otlp: 'http://otel.obs:4317', statsd: 'statsd.obs:8125', every: 1m}
  otlpProtocol: http
  traces: {address: 'http://jaeger.obs:4317', protocol: grpc, ratio: 0.5, slowerThan: 2s}
mesh: {trustDomain: example.com, clusterDomain: example.local, mtls: strict, defaultAccess: deny, certificateLifetime: 1h}
proxy: {mode: env, log: debug, skipOutboundNetworks: [10.0.0.0/8], skipOutboundPorts: [3306], skipInboundPorts: [22]}
webhook: {timeoutSeconds: 5}
networkPolicy: {metricsFrom: {matchLabels: {team: watchers}}}
podDisruptionBudget: {maxUnavailable: 50%}
monitoring:
  podMonitor: {enabled: true, interval: 10s, labels: {release: prometheus}}
  rules: {enabled: true, as: ConfigMap, labels: {rules: 'yes'}, objective: 99, owner: bank, runbooks: 'https://wiki.example.com/mesh'}
  dashboards: {enabled: true, labels: {team: mesh}, annotations: {grafana_folder: Mesh}}
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
    for values in [
        "",
        "networkPolicy: {enabled: false}\npodDisruptionBudget: {enabled: false}",
        // As an upgrade with the values of a release that did not know of it.
        "telemetry: {tap: null}",
        MAXIMAL,
    ] {
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
    assert_eq!(of_kind(&all, "PodMonitor").len(), 2, "of control planes and of proxies");
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
fn the_cni_daemonset_has_the_rights_that_it_needs_and_leaves_no_gap() {
    if !is_there("kube::chart::the_cni_daemonset_has_the_rights_that_it_needs_and_leaves_no_gap") {
        return;
    }
    assert!(of_kind(&objects(""), "DaemonSet").is_empty(), "only where it is wanted");
    let values = "
cni:
  enabled: true
  namespace: mesh-cni
  binDir: /usr/lib/cni
  confDir: /var/lib/cni/net.d
  runDir: /run/mesh
  confName: 10-pods.conflist
  keepProgram: true
  nodeSelector: {disk: fast}
  tolerations: [{key: special, operator: Exists}]
  podLabels: {team: mesh}
  podAnnotations: {note: 'a: b'}
  seLinuxOptions: {type: spc_t}
monitoring: {podMonitor: {enabled: true}}
";
    for values in ["cni: {enabled: true}", values] {
        let all = objects(values);
        let set = of_kind(&all, "DaemonSet")[0];
        let rollout = &set["spec"]["updateStrategy"]["rollingUpdate"];
        assert_eq!(rollout["maxUnavailable"], 0, "one is always there: {rollout}");
        let pod = &set["spec"]["template"]["spec"];
        assert_eq!(pod["priorityClassName"], "system-node-critical");
        assert!(pod["hostNetwork"].is_null() && pod["hostPID"].is_null(), "{pod}");
        let container = &pod["containers"][0];
        let context = &container["securityContext"];
        assert_eq!(context["privileged"], false);
        let rights = json!({"drop": ["ALL"], "add": ["SYS_ADMIN", "NET_ADMIN", "SYS_PTRACE"]});
        assert_eq!(context["capabilities"], rights);
        // What it asks for, and nothing that changes anything but Events.
        let role = of_kind(&all, "ClusterRole").into_iter();
        let mut role = role.filter(|role| role["metadata"]["name"] == "outrigger-cni");
        let rules = &role.next().expect("a role")["rules"];
        let rules = rules.as_array().into_iter().flatten();
        let verbs: Vec<&Value> = rules.map(|rule| &rule["verbs"]).collect();
        assert_eq!(verbs, [&json!(["get", "list", "watch"]), &json!(["create", "patch"])]);
        // Where the plugin asks is where the daemon listens.
        let args = container["args"].as_array().into_iter().flatten();
        let args: Vec<&str> = args.filter_map(Value::as_str).collect();
        let socket = args.iter().find_map(|arg| arg.strip_prefix("--socket=")).expect("a socket");
        let volumes = pod["volumes"].as_array().into_iter().flatten();
        let folders: Vec<&str> =
            volumes.filter_map(|volume| volume["hostPath"]["path"].as_str()).collect();
        let run = PathBuf::from(socket).parent().map(PathBuf::from).expect("a folder");
        assert!(folders.iter().any(|folder| run == PathBuf::from(folder)), "{folders:?}");
    }
}

/// The texts of a ConfigMap, and of the rules of PrometheusRules.
fn rule_files(objects: &[Value]) -> Vec<Value> {
    let maps = of_kind(objects, "ConfigMap").into_iter();
    let maps = maps.filter(|map| map["metadata"]["name"] == "outrigger-rules");
    let files = maps.flat_map(|map| map["data"].as_object().into_iter().flatten());
    let files = files.map(|(_, text)| text.as_str().expect("text"));
    let files = files.map(|text| serde_saphyr::from_str(text).expect("YAML"));
    let rules = of_kind(objects, "PrometheusRule").into_iter().map(|rule| rule["spec"].clone());
    files.chain(rules).collect()
}

#[test]
fn rules_and_dashboards_are_there_where_they_are_wanted_and_as_they_are_wanted() {
    if !is_there("kube::chart::rules_and_dashboards_are_there_where_they_are_wanted") {
        return;
    }
    let of_dashboards = |objects: &[Value]| -> Vec<Value> {
        let maps = of_kind(objects, "ConfigMap").into_iter().cloned();
        maps.filter(|map| map["metadata"]["labels"]["grafana_dashboard"] == "1").collect()
    };
    let none = objects("");
    for kind in ["PodMonitor", "PrometheusRule"] {
        assert!(of_kind(&none, kind).is_empty(), "{kind} unasked");
    }
    assert!(of_dashboards(&none).is_empty() && rule_files(&none).is_empty());

    let dashboards = of_dashboards(&objects("monitoring: {dashboards: {enabled: true}}"));
    assert_eq!(dashboards.len(), 5);
    for map in dashboards {
        for (file, text) in map["data"].as_object().expect("data") {
            let shipped = chart().join("files/dashboards").join(file);
            let shipped = std::fs::read_to_string(shipped).expect("the file");
            assert_eq!(text.as_str().map(str::trim_end), Some(shipped.trim_end()), "{file}");
        }
    }

    // As they are shipped, and with everything changed.
    let plain = rule_files(&objects("monitoring: {rules: {enabled: true}}"));
    let changed = rule_files(&objects(MAXIMAL));
    let folder = std::fs::read_dir(chart().join("files/rules")).expect("the folder");
    let mut paths: Vec<PathBuf> = folder.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    let shipped: Vec<String> =
        paths.iter().map(|path| std::fs::read_to_string(path).expect("its text")).collect();
    assert_eq!((plain.len(), changed.len()), (shipped.len(), shipped.len()));
    for ((plain, changed), shipped) in plain.iter().zip(&changed).zip(&shipped) {
        assert_eq!(*plain, serde_saphyr::from_str::<Value>(shipped).expect("YAML"));
        let replaced = shipped
            .replace("owner: platform", "owner: bank")
            .replace("https://outrigger.dev/docs/runbooks.md", "https://wiki.example.com/mesh")
            .replace("vector(99.9)", "vector(99)");
        assert_eq!(*changed, serde_saphyr::from_str::<Value>(&replaced).expect("YAML"));
    }
    let all = format!("{changed:?}");
    assert!(!all.contains("platform") && !all.contains("99.9") && all.contains("vector(99)"));
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
        ("telemetry.traces.address=jaeger:4317", "address"),
        ("telemetry.traces.ratio=2", "ratio"),
        ("telemetry.accessLog.layout=ecs", "layout"),
        ("telemetry.accessLog.otlp=otel:4317", "otlp"),
        ("telemetry.metrics.statsd=udp://statsd:8125", "statsd"),
        ("telemetry.metrics.every=30", "every"),
        ("telemetry.otlpProtocol=thrift", "otlpProtocol"),
        ("proxy.skipInboundPorts[0]=70000", "skipInboundPorts"),
        ("image.pullPolicy=Sometimes", "pullPolicy"),
        ("crds.remove=everything", "remove"),
        ("cni.binDir=opt/cni/bin", "binDir"),
        ("cni.confName=../x.conf", "confName"),
        ("monitoring.rules.as=Secret", "as"),
        ("monitoring.rules.objective=100", "objective"),
        ("monitoring.rules.owner=", "owner"),
        ("monitoring.rules.runbooks=here", "runbooks"),
        ("podMonitor.enabled=true", "podMonitor"),
        ("controlPlan.replicas=2", "controlPlan"),
    ] {
        let output = helm(&["template", "--set", set]);
        let why = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && why.contains(field), "{set}: {why}");
    }
}
