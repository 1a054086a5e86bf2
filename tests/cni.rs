//! The CNI plugin as a node runs it: the real program, called as a container runtime calls it, in network namespaces, with
//! its daemon and a small API server. Needs root; else it is skipped.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use outrigger_tests::apiserver::ApiServer;
use outrigger_tests::client::{Answer, Curl, has, http_get};
use outrigger_tests::process::{Process, TempDir, binary, free_port};
use outrigger_tests::{eventually, skip};
use serde_json::{Value, json};

const LIST: &str = "{\"cniVersion\":\"1.0.0\",\"name\":\"pods\",\n  \"plugins\":[{\"type\":\"ptp\",\"mtu\":1500.0},\n    {\"type\":\"portmap\"}]}\n";

/// A network namespace with an address and a way out, as a pod has them.
struct Namespace(String);

impl Namespace {
    fn new() -> Result<Self, String> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Relaxed);
        // From here on dropped, whatever goes wrong.
        let namespace = Self(format!("outrigger-cni-{}-{number}", std::process::id()));
        let name = &namespace.0;
        for command in [
            format!("netns add {name}"),
            format!("-n {name} link set lo up"),
            format!("-n {name} link add eth0 type bridge"),
            format!("-n {name} addr add 10.78.0.2/24 dev eth0"),
            format!("-n {name} link set eth0 up"),
            format!("-n {name} route add default dev eth0"),
        ] {
            run("ip", &command)?;
        }
        Ok(namespace)
    }

    fn path(&self) -> String {
        format!("/run/netns/{}", self.0)
    }

    /// The rules that are in force, as nft lists them; empty without.
    fn rules(&self) -> String {
        run("ip", &format!("netns exec {} nft list table inet outrigger", self.0))
            .unwrap_or_default()
    }

    /// As the pod's own init container proves it.
    fn is_redirected(&self, folder: &TempDir) -> bool {
        let program = folder.path().join("outrigger-proxy");
        if !program.exists() {
            std::fs::copy(binary("outrigger-proxy"), &program).expect("a copy");
        }
        let program = program.display();
        let args = format!("netns exec {} setpriv --reuid 1000 {program} init --check", self.0);
        run("ip", &args).is_ok()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // It may never have been made.
        let _ = run("ip", &format!("netns del {}", self.0));
    }
}

/// Runs a command to its end; what it said.
fn run(program: &str, args: &str) -> Result<String, String> {
    let out = Command::new(program).args(args.split_whitespace()).output();
    let out = out.map_err(|e| format!("{program}: {e}"))?;
    match out.status.success() {
        true => Ok(String::from_utf8_lossy(&out.stdout).into_owned()),
        false => Err(format!("{program} {args}: {}", String::from_utf8_lossy(&out.stderr).trim())),
    }
}

/// A node: its folders, its daemon, and the API server that it asks.
struct Node {
    // Dropped in this order.
    daemon: Process,
    api: ApiServer,
    folder: TempDir,
    port: u16,
}

impl Node {
    /// None: it cannot run here.
    fn start(test: &str) -> Option<(Self, Namespace)> {
        if !rustix::process::geteuid().is_root() {
            skip(test, "network namespaces need root");
            return None;
        }
        if !has("nft") || !has("setpriv") {
            skip(test, "nftables or setpriv is not installed");
            return None;
        }
        let namespace = match Namespace::new() {
            Ok(namespace) => namespace,
            Err(why) => {
                skip(test, &why);
                return None;
            }
        };
        let folder = TempDir::new("cni");
        for name in ["bin", "conf", "run", "proc/1/ns"] {
            std::fs::create_dir_all(folder.path().join(name)).expect("a folder");
        }
        let node = folder.path().join("proc/1/ns/net");
        std::os::unix::fs::symlink("/proc/self/ns/net", node).expect("a link");
        let api = ApiServer::start();
        let port = free_port();
        let daemon = daemon(&folder, &api, port);
        let node = Self { daemon, api, folder, port };
        node.create(
            "/apis/apps/v1/namespaces/mesh/daemonsets",
            &json!({
                "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "outrigger-cni"},
                "spec": {"selector": {}, "template": {}},
            }),
        );
        std::fs::write(node.path("conf/10-pods.conflist"), LIST).expect("a file");
        node.wait_ready();
        Some((node, namespace))
    }

    fn wait_ready(&self) {
        eventually("the daemon is ready", || {
            http_get(self.port, "/ready").is_some_and(|answer| answer.0 == 200)
        });
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn conf(&self) -> String {
        std::fs::read_to_string(self.path("conf/10-pods.conflist")).unwrap_or_default()
    }

    fn request(&self, method: &str, path: &str, kind: &str, body: &Value) -> Answer {
        let config = std::fs::read_to_string(self.api.kubeconfig()).expect("a file");
        let config: Value = serde_json::from_str(&config).expect("JSON");
        let server = config["clusters"][0]["cluster"]["server"].as_str().expect("an address");
        let (kind, body) = (format!("content-type: {kind}"), body.to_string());
        Curl::direct()
            .args(&["--request", method, "--header", &kind, "--data", &body])
            .get(&format!("{server}{path}"))
    }

    /// Its uid.
    fn create(&self, path: &str, object: &Value) -> String {
        let answer = self.request("POST", path, "application/json", object);
        let created: Value = serde_json::from_str(&answer.body).unwrap_or_default();
        let uid = created["metadata"]["uid"].as_str().map(str::to_owned);
        uid.unwrap_or_else(|| panic!("not created: {answer:?}"))
    }

    /// A pod as the injector leaves it, in the mode `cni` or not injected.
    fn pod(&self, name: &str, args: Option<&[&str]>) -> String {
        let mut pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
            "spec": {"nodeName": "n1", "containers": [{"name": "app"}]},
        });
        if let Some(args) = args {
            pod["metadata"]["annotations"]["outrigger.dev/injected"] =
                json!("version=0.1.0,mode=cni");
            pod["spec"]["initContainers"] = json!([{"name": "outrigger-init", "args": args}]);
        }
        self.create("/api/v1/namespaces/bank/pods", &pod)
    }

    /// The plugin in the node's folder, as a container runtime calls it.
    fn call(
        &self,
        command: &str,
        version: &str,
        pod: (&str, &str),
        namespace: &Namespace,
    ) -> Output {
        let conf: Value = serde_json::from_str(&self.conf()).unwrap_or_default();
        let all = conf["plugins"].as_array().into_iter().flatten();
        let mut entry = all.clone().find(|entry| entry["type"] == "outrigger-cni").cloned();
        let config = entry.get_or_insert_with(|| json!({}));
        config["cniVersion"] = json!(version);
        config["name"] = json!("pods");
        config["prevResult"] = previous(version);
        let (name, uid) = pod;
        let mut child = Command::new(self.path("bin/outrigger-cni"))
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", "c1")
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", self.path("bin"))
            .env("CNI_NETNS", namespace.path())
            .env(
                "CNI_ARGS",
                format!(
                    "IgnoreUnknown=1;K8S_POD_NAMESPACE=bank;K8S_POD_NAME={name};K8S_POD_UID={uid}"
                ),
            )
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the plugin");
        let mut stdin = child.stdin.take().expect("its input");
        stdin.write_all(config.to_string().as_bytes()).expect("written");
        drop(stdin);
        child.wait_with_output().expect("its output")
    }

    /// [`Node::call`] that has to succeed; what it printed.
    fn done(&self, command: &str, pod: (&str, &str), namespace: &Namespace) -> Value {
        let output = self.call(command, "1.0.0", pod, namespace);
        assert!(output.status.success(), "{command}: {output:?}\n{}", self.daemon.log());
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }

    fn events(&self, reason: &str) -> Vec<Value> {
        let path = "/apis/events.k8s.io/v1/namespaces/bank/events";
        let answer = self.request("GET", path, "application/json", &Value::Null);
        let list: Value = serde_json::from_str(&answer.body).unwrap_or_default();
        let all = list["items"].as_array().cloned().unwrap_or_default();
        all.into_iter().filter(|event| event["reason"] == reason).collect()
    }

    /// What the kubelet reports once the pod has a network, and a process of it in the node's `/proc`.
    fn runs(&self, name: &str, uid: &str, namespace: Option<&Namespace>) {
        if let Some(namespace) = namespace {
            let process = self.path("proc/4711");
            std::fs::create_dir_all(process.join("ns")).expect("a folder");
            std::fs::write(process.join("cgroup"), format!("0::/kubepods/pod{uid}/c1\n"))
                .expect("a file");
            let zeros = vec!["0"; 18].join(" ");
            std::fs::write(process.join("stat"), format!("4711 (pause) S {zeros} 7 0\n"))
                .expect("a file");
            std::os::unix::fs::symlink(namespace.path(), process.join("ns/net")).expect("a link");
        }
        let status = json!({"status": {"phase": "Pending", "podIP": "10.78.0.2"}});
        let path = format!("/api/v1/namespaces/bank/pods/{name}/status");
        let answer = self.request("PATCH", &path, "application/merge-patch+json", &status);
        assert_eq!(answer.status, 200, "{answer:?}");
    }
}

fn daemon(folder: &TempDir, api: &ApiServer, port: u16) -> Process {
    let at = |name: &str| folder.path().join(name);
    let mut command = Command::new(binary("outrigger-cni"));
    command.env("KUBECONFIG", api.kubeconfig()).arg("install").args(["--node", "n1"]);
    command.arg("--bin-dir").arg(at("bin")).arg("--conf-dir").arg(at("conf"));
    command.arg("--socket").arg(at("run/cni.sock")).arg("--proc").arg(at("proc"));
    command.args(["--daemonset", "mesh/outrigger-cni", "--log", "info,outrigger_cni=debug"]);
    command.args(["--listen", &format!("127.0.0.1:{port}")]);
    Process::start(folder.path(), &format!("cni-{port}"), &mut command)
}

fn previous(version: &str) -> Value {
    json!({
        "cniVersion": version,
        "interfaces": [{"name": "eth0", "sandbox": "/x", "unheardOf": 1}],
        "ips": [{"address": "10.78.0.2/24", "interface": 0}],
    })
}

const ARGS: &[&str] = &["init", "--check", "--uid=4747", "--skip-outbound-ports=3306"];

#[test]
fn pods_that_asked_are_redirected_and_others_are_not_touched() {
    let test = "cni::pods_that_asked_are_redirected_and_others_are_not_touched";
    let Some((mut node, namespace)) = Node::start(test) else { return };
    let (asked, plain) = (node.pod("orders-0", Some(ARGS)), node.pod("plain", None));
    let orders = ("orders-0", asked.as_str());
    for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let output = node.call("ADD", version, orders, &namespace);
        let said: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        assert_eq!(said, previous(version), "{output:?}\n{}", node.daemon.log());
    }
    assert!(namespace.is_redirected(&node.folder), "{}", node.daemon.log());
    let rules = namespace.rules();
    assert!(rules.contains("skuid 4747") && rules.contains("dport 3306 return"), "{rules}");
    node.done("ADD", orders, &namespace);
    assert_eq!(namespace.rules(), rules, "twice is once");
    assert_eq!(node.done("CHECK", orders, &namespace), Value::Null);

    // Somebody takes the rules away.
    run("ip", &format!("netns exec {} nft flush ruleset", namespace.0)).expect("no rules");
    let output = node.call("CHECK", "1.0.0", orders, &namespace);
    let error: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    assert!(!output.status.success() && error["code"] == 100, "{error}");
    let details = error["details"].as_str().unwrap_or_default();
    assert!(details.contains("bank/orders-0") && details.contains("the rules are gone"), "{error}");

    node.done("ADD", orders, &namespace);
    assert_eq!(node.done("DEL", orders, &namespace), Value::Null);
    assert_eq!(namespace.rules(), "");
    assert!(!namespace.is_redirected(&node.folder));
    node.done("DEL", orders, &namespace);

    assert_eq!(node.done("ADD", ("plain", &plain), &namespace), previous("1.0.0"));
    assert_eq!(node.done("ADD", ("static-pod-n1", "0a1b2c"), &namespace), previous("1.0.0"));
    assert_eq!(namespace.rules(), "");

    // It asked, and what it asks for is not understood.
    let later = node.pod("later", Some(&["init", "--check", "--from-the-future=1"]));
    let output = node.call("ADD", "1.0.0", ("later", &later), &namespace);
    let error: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    assert!(!output.status.success() && error["code"] == 100, "{output:?}");
    let text = http_get(node.port, "/metrics").expect("metrics").1;
    assert!(
        text.contains("outrigger_cni_calls_total{command=\"add\",result=\"failed\"} 1"),
        "{text}"
    );

    // Without the API server, and without the daemon, nobody is held up who did not ask.
    node.api.set_up(false);
    assert_eq!(node.done("ADD", ("unseen", "u9"), &namespace), previous("1.0.0"));
    assert_eq!(node.done("ADD", orders, &namespace), previous("1.0.0"));
    assert!(namespace.is_redirected(&node.folder), "what has been seen is known");
    node.done("DEL", orders, &namespace);
    node.daemon.kill();
    assert_eq!(node.done("ADD", orders, &namespace), previous("1.0.0"));
    assert_eq!(node.done("DEL", orders, &namespace), Value::Null);
    assert!(!namespace.is_redirected(&node.folder));
}

#[test]
fn a_pod_that_was_missed_is_redirected_later_or_named() {
    let test = "cni::a_pod_that_was_missed_is_redirected_later_or_named";
    let Some((node, namespace)) = Node::start(test) else { return };
    let missed = node.pod("missed", Some(ARGS));
    node.runs("missed", &missed, Some(&namespace));
    eventually("it is redirected", || namespace.rules().contains("skuid 4747"));
    assert!(namespace.is_redirected(&node.folder));
    eventually("an Event says so", || node.events("RedirectionRepaired").len() == 1);
    let event = &node.events("RedirectionRepaired")[0];
    assert_eq!(event["regarding"]["uid"], json!(missed));

    let later = node.pod("later", Some(&["init", "--from-the-future=1"]));
    node.runs("later", &later, None);
    eventually("an Event names it", || node.events("NotRedirected").len() == 1);
    let event = &node.events("NotRedirected")[0];
    assert_eq!((&event["regarding"]["name"], &event["type"]), (&json!("later"), &json!("Warning")));
    assert!(
        event["note"].as_str().is_some_and(|note| note.contains("--from-the-future")),
        "{event}"
    );
}

#[test]
fn the_plugin_stays_until_its_daemonset_is_gone() {
    let test = "cni::the_plugin_stays_until_its_daemonset_is_gone";
    let Some((mut node, _namespace)) = Node::start(test) else { return };
    let has_it = |node: &Node| node.conf().contains("outrigger-cni");
    assert!(has_it(&node) && node.path("bin/outrigger-cni").is_file());
    // Rewritten in place, replaced, and half written for a moment.
    std::fs::write(node.path("conf/10-pods.conflist"), LIST).expect("a file");
    eventually("it is back", || has_it(&node));
    std::fs::write(node.path("conf/draft"), LIST.replace("1500.0", "9000")).expect("a file");
    std::fs::rename(node.path("conf/draft"), node.path("conf/10-pods.conflist")).expect("a move");
    eventually("it is back", || has_it(&node) && node.conf().contains("9000"));
    let mut file = File::create(node.path("conf/10-pods.conflist")).expect("a file");
    file.write_all(&LIST.as_bytes()[..50]).expect("written");
    eventually("it is not ready", || {
        http_get(node.port, "/ready").is_some_and(|answer| answer.0 == 503)
    });
    file.write_all(&LIST.as_bytes()[50..]).expect("written");
    drop(file);
    eventually("it is back", || has_it(&node));
    // Another program takes the folder of programs over.
    std::fs::write(node.path("bin/outrigger-cni"), "old").expect("a file");

    // A rollout: the new daemon is there before the old one ends.
    let mut old = std::mem::replace(&mut node.daemon, daemon(&node.folder, &node.api, free_port()));
    eventually("it answers", || {
        node.daemon.log().contains("the plugin was put") || {
            let program = std::fs::read(node.path("bin/outrigger-cni")).unwrap_or_default();
            program.len() > 1000
        }
    });
    old.terminate();
    assert!(old.wait(Duration::from_secs(20)).success(), "{}", old.log());
    assert!(has_it(&node) && node.path("run/cni.sock").exists(), "{}", old.log());

    let path = "/apis/apps/v1/namespaces/mesh/daemonsets/outrigger-cni";
    assert_eq!(node.request("DELETE", path, "application/json", &json!({})).status, 200);
    node.daemon.terminate();
    assert!(node.daemon.wait(Duration::from_secs(20)).success(), "{}", node.daemon.log());
    assert_eq!(node.conf(), LIST, "{}", node.daemon.log());
    for folder in ["bin", "run"] {
        let left = std::fs::read_dir(node.path(folder)).expect("a folder").count();
        assert_eq!(left, 0, "something is left in {folder}");
    }
}
