//! A cluster, small or real, a control plane that lives in it, and what people do with kubectl.

use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use kube::Client;
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use outrigger_tests::apiserver::{ApiServer, TEST};
use outrigger_tests::client::http_get;
use outrigger_tests::process::{Process, TempDir, binary, free_port, local};
use outrigger_tests::{eventually, skip, within};
use serde_json::{Value, json};

/// Names a real cluster that the suite may write to.
const REAL: &str = "OUTRIGGER_TEST_KUBECONFIG";
const JSON: &str = "application/json";
const MERGE: &str = "application/merge-patch+json";
const APPLY: &str = "application/apply-patch+yaml";

pub(super) struct Cluster {
    runtime: tokio::runtime::Runtime,
    client: Client,
    pub(super) kubeconfig: PathBuf,
    /// The test's own namespace, and the control plane's.
    pub(super) namespace: String,
    pub(super) system: String,
    /// None: it is a real one.
    pub(super) small: Option<ApiServer>,
}

impl Cluster {
    pub(super) fn start() -> Self {
        match std::env::var_os(REAL) {
            Some(path) => Self::of(path.into(), None),
            None => Self::small(),
        }
    }

    fn small() -> Self {
        let server = ApiServer::start();
        let cluster = Self::of(server.kubeconfig(), Some(server));
        for (group, plural, kind) in [
            ("gateway.networking.k8s.io", "httproutes", "HTTPRoute"),
            ("gateway.networking.k8s.io", "grpcroutes", "GRPCRoute"),
            ("outrigger.dev", "trafficpolicies", "TrafficPolicy"),
            ("outrigger.dev", "accesspolicies", "AccessPolicy"),
        ] {
            cluster.define(group, plural, kind);
        }
        cluster
    }

    /// For a test of what only the small server can do.
    pub(super) fn small_only(test: &str) -> Option<Self> {
        if std::env::var_os(REAL).is_some() {
            skip(test, "the API server of the cluster is not this test's to take away");
            return None;
        }
        Some(Self::small())
    }

    fn of(kubeconfig: PathBuf, small: Option<ApiServer>) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let file = Kubeconfig::read_from(&kubeconfig).expect("a kubeconfig");
        let client = runtime.block_on(async {
            let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await;
            Client::try_from(config.expect("a cluster")).expect("a client")
        });
        let unique = format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let namespace = format!("test-{unique}");
        let system = format!("test-{unique}-system");
        let cluster = Self { runtime, client, kubeconfig, namespace, system, small };
        eventually("the API server answers", || cluster.try_get("/api/v1/namespaces").is_ok());
        for name in [&cluster.namespace, &cluster.system] {
            cluster.apply(
                &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}),
            );
        }
        cluster
    }

    /// Defines a kind, with a schema that takes everything.
    pub(super) fn define(&self, group: &str, plural: &str, kind: &str) {
        let version = if group == "outrigger.dev" { "v1alpha1" } else { "v1" };
        let schema = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
        self.apply(&json!({
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": format!("{plural}.{group}")},
            "spec": {
                "group": group, "scope": "Namespaced",
                "names": {"plural": plural, "kind": kind, "listKind": format!("{kind}List"),
                    "singular": kind.to_lowercase()},
                "versions": [{"name": version, "served": true, "storage": true,
                    "subresources": {"status": {}}, "schema": {"openAPIV3Schema": schema}}],
            },
        }));
    }

    /// Creates the object, or makes it so.
    pub(super) fn apply(&self, object: &Value) -> Value {
        let path = format!("{}?fieldManager=test&force=true", path(object));
        self.call("PATCH", &path, APPLY, object).unwrap_or_else(|e| panic!("{path}: {e}"))
    }

    /// Changes fields of an object.
    pub(super) fn patch(&self, object: &Value, patch: &Value) -> Value {
        let path = path(object);
        self.call("PATCH", &path, MERGE, patch).unwrap_or_else(|e| panic!("{path}: {e}"))
    }

    pub(super) fn patch_status(&self, object: &Value, status: &Value) -> Value {
        let path = format!("{}/status", path(object));
        let patch = json!({"status": status});
        self.call("PATCH", &path, MERGE, &patch).unwrap_or_else(|e| panic!("{path}: {e}"))
    }

    pub(super) fn delete(&self, object: &Value) {
        let path = format!("{}?gracePeriodSeconds=0", path(object));
        self.call("DELETE", &path, JSON, &json!({})).unwrap_or_else(|e| panic!("{path}: {e}"));
    }

    pub(super) fn get(&self, object: &Value) -> Value {
        self.try_get(&path(object)).expect("the object")
    }

    pub(super) fn try_get_object(&self, object: &Value) -> Option<Value> {
        self.try_get(&path(object)).ok()
    }

    pub(super) fn try_get(&self, path: &str) -> Result<Value, kube::Error> {
        self.call("GET", path, MERGE, &Value::Null)
    }

    pub(super) fn call(
        &self,
        method: &str,
        path: &str,
        content: &str,
        body: &Value,
    ) -> Result<Value, kube::Error> {
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", content)
            .header(TEST, "1")
            .body(body)
            .expect("a request");
        self.runtime.block_on(async {
            let call = self.client.request::<Value>(request);
            tokio::time::timeout(Duration::from_secs(10), call).await.expect("an answer")
        })
    }

    pub(super) fn service(&self, name: &str) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": {"ports": [{"name": "http", "port": 80, "targetPort": 8080}]},
        })
    }

    /// Of a Service, with endpoints as a slice has them.
    pub(super) fn slice(&self, name: &str, service: &str, endpoints: &Value) -> Value {
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": name, "namespace": self.namespace,
                "labels": {"kubernetes.io/service-name": service}},
            "addressType": "IPv4",
            "ports": [{"name": "http", "port": 8080}],
            "endpoints": endpoints,
        })
    }

    /// A pod with a sidecar that no kubelet runs.
    pub(super) fn pod(&self, name: &str, account: &str) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": self.namespace, "labels": {"app": name}},
            "spec": {
                "serviceAccountName": account, "nodeName": "nowhere",
                "initContainers": [{"name": "outrigger-proxy", "image": "none", "restartPolicy": "Always",
                    "ports": [{"name": "outrigger-in", "containerPort": 4743}]}],
                "containers": [{"name": "app", "image": "none", "ports": [{"containerPort": 8080}]}],
            },
        })
    }

    /// Makes the pod, at an address, and gives its uid.
    pub(super) fn run_pod(&self, name: &str, account: &str, address: &str) -> String {
        let account_object = json!({"apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": {"name": account, "namespace": self.namespace}});
        self.apply(&account_object);
        let pod = self.pod(name, account);
        let made = self.apply(&pod);
        let ips = json!([{"ip": address}]);
        self.patch_status(&pod, &json!({"phase": "Running", "podIP": address, "podIPs": ips}));
        made["metadata"]["uid"].as_str().expect("a uid").to_owned()
    }

    pub(super) fn route(&self, name: &str, parents: &[&str], backend: &str) -> Value {
        let parents: Vec<Value> = parents
            .iter()
            .map(|name| json!({"group": "", "kind": "Service", "name": name}))
            .collect();
        json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": {"parentRefs": parents, "rules": [{"backendRefs": [{"name": backend, "port": 80}]}]},
        })
    }
}

impl Drop for Cluster {
    /// A real cluster gets its namespaces back.
    fn drop(&mut self) {
        if self.small.is_none() {
            for name in [&self.namespace, &self.system] {
                let _ =
                    self.call("DELETE", &format!("/api/v1/namespaces/{name}"), JSON, &json!({}));
            }
        }
    }
}

/// Where an object is.
fn path(object: &Value) -> String {
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let (api_version, kind) = (text(&object["apiVersion"]), text(&object["kind"]).to_lowercase());
    let plural = match kind.strip_suffix('y') {
        Some(stem) => format!("{stem}ies"),
        None => format!("{kind}s"),
    };
    let root = if api_version.contains('/') { "apis" } else { "api" };
    let name = text(&object["metadata"]["name"]);
    match object["metadata"]["namespace"].as_str() {
        Some(namespace) => format!("/{root}/{api_version}/namespaces/{namespace}/{plural}/{name}"),
        None => format!("/{root}/{api_version}/{plural}/{name}"),
    }
}

/// A control plane in the cluster.
pub(super) struct Plane {
    process: Process,
    _folder: TempDir,
    pub(super) listen: u16,
    pub(super) admin: u16,
}

impl Plane {
    pub(super) fn start(cluster: &Cluster, more: &[&str]) -> Self {
        let plane = Self::start_unready(cluster, more);
        eventually("the control plane is ready", || plane.is_ready());
        plane
    }

    pub(super) fn start_unready(cluster: &Cluster, more: &[&str]) -> Self {
        let folder = TempDir::new("kube-plane");
        let (listen, admin) = (free_port(), free_port());
        let mut command = Command::new(binary("outrigger-control-plane"));
        command
            .arg("--kubernetes")
            .arg("--kubeconfig")
            .arg(&cluster.kubeconfig)
            .args(["--kube-namespace", &cluster.system])
            .args(["--listen", &local(listen).to_string()])
            .args(["--admin", &local(admin).to_string()])
            .args(more);
        let process = Process::start(folder.path(), "control-plane", &mut command);
        Self { process, _folder: folder, listen, admin }
    }

    pub(super) fn is_ready(&self) -> bool {
        http_get(self.admin, "/ready").is_some_and(|answer| answer.0 == 200)
    }

    pub(super) fn index(&self) -> Value {
        let (_, text) = http_get(self.admin, "/index").expect("an answer");
        serde_json::from_str(&text).expect("JSON")
    }

    /// What a page of the admin server says.
    pub(super) fn page(&self, path: &str) -> String {
        http_get(self.admin, path).expect("an answer").1
    }

    /// Addresses of the endpoints of a Service's first port.
    pub(super) fn addresses(&self, cluster: &Cluster, service: &str) -> Vec<String> {
        let endpoints = self.endpoints(cluster, service);
        let addresses = endpoints.as_array().into_iter().flatten();
        let addresses = addresses.filter_map(|endpoint| endpoint["address"].as_str());
        let mut addresses: Vec<String> = addresses.map(str::to_owned).collect();
        addresses.sort();
        addresses
    }

    pub(super) fn endpoints(&self, cluster: &Cluster, service: &str) -> Value {
        let name = format!("{}/{service}", cluster.namespace);
        self.index()["services"][name]["ports"][0]["endpoints"].clone()
    }

    /// Waits until a Service has exactly these endpoints.
    pub(super) fn wait_for(&self, cluster: &Cluster, service: &str, addresses: &[&str]) {
        let limit = Duration::from_secs(10);
        within(limit, &format!("{service} has the endpoints {addresses:?}"), || {
            self.addresses(cluster, service) == addresses
        });
    }

    pub(super) fn log(&self) -> String {
        self.process.log()
    }

    pub(super) fn kill(&mut self) {
        self.process.kill();
    }

    pub(super) fn terminate(&mut self) {
        self.process.terminate();
        assert!(self.process.wait(Duration::from_secs(15)).success());
    }
}
