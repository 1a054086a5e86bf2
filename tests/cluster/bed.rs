//! A namespace of its own for each test, gone in the end, and what runs in it.

use std::io::Write;
use std::process::{Command, Output, Stdio};

use outrigger_tests::client::has;
use outrigger_tests::skip;
use serde_json::Value;

/// For what takes a node its time, and a CronJob its minute.
const LIMIT: &str = "--timeout=150s";

pub(crate) struct Bed {
    kubeconfig: String,
    pub(crate) namespace: String,
}

impl Bed {
    /// None, with the reason said, where there is no cluster to test in. The namespace is meshed, and strict.
    pub(crate) fn start(test: &str) -> Option<Self> {
        let Ok(kubeconfig) = std::env::var("OUTRIGGER_TEST_CLUSTER") else {
            skip(test, "OUTRIGGER_TEST_CLUSTER names no kubeconfig");
            return None;
        };
        if !has("kubectl") {
            skip(test, "no kubectl");
            return None;
        }
        let namespace = format!("test-{}", test.replace('_', "-"));
        let bed = Self { kubeconfig, namespace };
        let control_plane =
            ["--namespace=outrigger-system", "get", "deployment/outrigger-control-plane"];
        let found = bed.command(&control_plane, "");
        if !found.status.success() {
            skip(test, String::from_utf8_lossy(&found.stderr).trim());
            return None;
        }
        let namespace = &bed.namespace;
        bed.kubectl(&["delete", "namespace", namespace, "--ignore-not-found", LIMIT]);
        bed.apply(&format!(
            "apiVersion: v1\nkind: Namespace\n\
             metadata: {{name: {namespace}, labels: {{outrigger.dev/inject: enabled}}}}\n---\n\
             apiVersion: outrigger.dev/v1alpha1\nkind: AccessPolicy\n\
             metadata: {{name: strict, namespace: {namespace}}}\nspec: {{mtls: Strict}}\n"
        ));
        Some(bed)
    }

    fn command(&self, args: &[&str], input: &str) -> Output {
        let mut command = Command::new("kubectl");
        command.env("KUBECONFIG", &self.kubeconfig).args(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("kubectl starts");
        let mut stdin = child.stdin.take().expect("a pipe");
        stdin.write_all(input.as_bytes()).expect("kubectl reads");
        drop(stdin);
        child.wait_with_output().expect("kubectl ends")
    }

    #[track_caller]
    fn said(args: &[&str], output: &Output) -> String {
        let why = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "kubectl {args:?}: {why}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// In the cluster.
    #[track_caller]
    fn kubectl(&self, args: &[&str]) -> String {
        Self::said(args, &self.command(args, ""))
    }

    /// In the test's namespace.
    #[track_caller]
    pub(crate) fn run(&self, args: &[&str]) -> String {
        let namespace = format!("--namespace={}", self.namespace);
        self.kubectl(&[&[namespace.as_str()][..], args].concat())
    }

    #[track_caller]
    pub(crate) fn json(&self, args: &[&str]) -> Value {
        let text = self.run(&[args, &["--output=json"]].concat());
        serde_json::from_str(&text).expect("JSON")
    }

    #[track_caller]
    pub(crate) fn apply(&self, manifests: &str) {
        let args = ["apply", "--filename=-"];
        Self::said(&args, &self.command(&args, manifests));
    }

    /// Whether the API server takes it.
    pub(crate) fn takes(&self, manifests: &str) -> bool {
        self.command(&["apply", "--filename=-"], manifests).status.success()
    }

    #[track_caller]
    pub(crate) fn wait(&self, condition: &str, what: &str) {
        self.run(&["wait", &format!("--for={condition}"), what, LIMIT]);
    }

    /// A server that answers everything with 200, as Service `web:8000` and `web:8001`, and waits for it.
    pub(crate) fn serve(&self, node: Option<&str>) {
        let namespace = &self.namespace;
        let node = node.map(on).unwrap_or_default();
        self.apply(&format!(
            "apiVersion: v1\nkind: Pod\n\
             metadata: {{name: web, namespace: {namespace}, labels: {{app: web}}}}\n\
             spec:\n  {node}\n  containers:\n  - name: app\n    image: outrigger.dev/simplebank:0.1.0\n    \
             args: [tier, '--listen=0.0.0.0:8000', '--admin=0.0.0.0:9900']\n    \
             ports: [{{name: http, containerPort: 8000}}]\n\
             ---\n\
             apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: {namespace}}}\n\
             spec:\n  selector: {{app: web}}\n  ports:\n  \
             - {{name: http, port: 8000}}\n  - {{name: http-alt, port: 8001, targetPort: 8000}}\n"
        ));
        self.wait("condition=Ready", "pod/web");
    }

    /// What became of calls, by name: how many were sent, how many were answered by which status.
    pub(crate) fn calls(&self, pod: &str, calls: &[String], node: Option<&str>) -> Value {
        self.apply(&self.caller(pod, calls, node));
        self.wait("jsonpath={.status.phase}=Succeeded", &format!("pod/{pod}"));
        sum(&self.run(&["logs", pod, "--container=app"]))
    }

    fn caller(&self, pod: &str, calls: &[String], node: Option<&str>) -> String {
        let namespace = &self.namespace;
        let (spec, node) = (calling(calls), node.map(on).unwrap_or_default());
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {pod}, namespace: {namespace}}}\n\
             spec:\n  {node}\n{spec}"
        )
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        let delete = ["delete", "namespace", &self.namespace, "--ignore-not-found", "--wait=false"];
        // A test that fails says why itself.
        self.command(&delete, "");
    }
}

fn on(node: &str) -> String {
    format!("nodeSelector: {{kubernetes.io/hostname: {node}}}")
}

/// The spec of a pod that makes calls for a second and ends, indented by two.
pub(crate) fn calling(calls: &[String]) -> String {
    let calls: Vec<String> = calls.iter().map(|call| format!("'--call={call}'")).collect();
    format!(
        "  restartPolicy: Never\n  containers:\n  - name: app\n    image: outrigger.dev/simplebank:0.1.0\n    \
         args: [calls, '--for=1s', {}]\n",
        calls.join(", ")
    )
}

/// One call of [`Bed::calls`]: five in its second.
pub(crate) fn call(name: &str, url: &str) -> String {
    format!("{name}={url}@5")
}

/// Adds up what `simplebank calls` says of each second: `{"NAME": {"sent": 5, "200": 4, "403": 1}}`.
pub(crate) fn sum(said: &str) -> Value {
    let mut all = serde_json::Map::new();
    for line in said.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        for (name, counts) in line["calls"].as_object().into_iter().flatten() {
            let of_name = all.entry(name).or_insert_with(|| serde_json::json!({}));
            let mut add = |what: &str, count: &Value| {
                let so_far = of_name[what].as_u64().unwrap_or(0);
                let more = count.as_u64().unwrap_or(0);
                if so_far + more > 0 {
                    of_name[what] = (so_far + more).into();
                }
            };
            add("sent", &counts["sent"]);
            add("200", &counts["succeeded"]);
            for (status, count) in counts["failed"].as_object().into_iter().flatten() {
                add(status, count);
            }
        }
    }
    all.into()
}
