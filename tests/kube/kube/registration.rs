//! Workloads outside the cluster that register themselves, as objects that every replica sees.

use std::io;
use std::net::{Shutdown, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering::Relaxed};
use std::time::Duration;

use k8s_openapi::ByteString;
use outrigger_tests::app::{Echo, tcp};
use outrigger_tests::process::{Process, TempDir, binary, free_port, local};
use outrigger_tests::{eventually, within};
use serde_json::{Value, json};

use super::cluster::{Cluster, Plane};

/// The lease of a replica that has died, the grace period after it, and room.
const LEFT_BEHIND: Duration = Duration::from_secs(60);
const OFF: [&str; 4] = ["--identity", "off", "--grace-period", "2s"];

/// What a process outside the cluster needs to register in the test's namespace: a join token in a file.
pub(super) struct Joining(TempDir);

impl Joining {
    /// With the key that the control plane has made.
    pub(super) fn new(cluster: &Cluster) -> Self {
        let folder = TempDir::new("kube-joining");
        let secret = json!({"apiVersion": "v1", "kind": "Secret",
            "metadata": {"name": "outrigger-join-token.key", "namespace": cluster.system}});
        let key = cluster.get(&secret)["data"]["document"].clone();
        let ByteString(key) = serde_json::from_value(key).expect("a key");
        std::fs::write(folder.path().join("join-token.key"), key).expect("a file");
        let made = Command::new(binary("outrigger-control-plane"))
            .args(["token", "--namespace", &cluster.namespace, "--service-account", "till"])
            .arg("--state-dir")
            .arg(folder.path())
            .output()
            .expect("the token command");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        std::fs::write(folder.path().join("token"), made.stdout).expect("a file");
        Self(folder)
    }
}

/// An app outside the cluster, and its proxy.
pub(super) struct Outside {
    process: Process,
    app: Echo,
}

impl Outside {
    /// Registers as `name` at a control plane on a port of this machine.
    pub(super) fn start(cluster: &Cluster, joining: &Joining, name: &str, at: u16) -> Self {
        let app = Echo::start("till");
        let folder = joining.0.path();
        let mut command = Command::new(binary("outrigger-proxy"));
        command
            .args(["--control-plane", &format!("http://{}", local(at))])
            .args(["--namespace", &cluster.namespace, "--service-account", "till"])
            .args(["--workload", name, "--label", "app=till", "--zone", "a"])
            .args(["--app-port", &format!("{}=http:web", app.port)])
            .arg("--token-file")
            .arg(folder.join("token"))
            .args(["--outbound", &local(free_port()).to_string()])
            .args(["--inbound", &local(free_port()).to_string()])
            .args(["--admin", &local(free_port()).to_string()]);
        let process = Process::start(folder, name, &mut command);
        Self { process, app }
    }

    fn address(&self) -> String {
        local(self.app.port).to_string()
    }

    pub(super) fn leave(&mut self) {
        self.process.terminate();
        assert!(self.process.wait(Duration::from_secs(20)).success());
    }
}

/// A port behind which another one may be put.
struct Switch {
    port: u16,
    to: Arc<AtomicU16>,
}

impl Switch {
    fn to(port: u16) -> Self {
        let to = Arc::new(AtomicU16::new(port));
        let target = Arc::clone(&to);
        let port = tcp(move |client| {
            let Ok(server) = TcpStream::connect(local(target.load(Relaxed))) else { return };
            let (Ok(from), Ok(back)) = (client.try_clone(), server.try_clone()) else { return };
            std::thread::spawn(move || copy(from, server));
            copy(back, client);
        });
        Self { port, to }
    }

    fn turn(&self, to: u16) {
        self.to.store(to, Relaxed);
    }
}

fn copy(mut from: TcpStream, mut to: TcpStream) {
    let _ = io::copy(&mut from, &mut to);
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

fn start() -> Cluster {
    let cluster = Cluster::start();
    if cluster.small.is_some() {
        cluster.define("outrigger.dev", "externalworkloads", "ExternalWorkload");
    }
    let mut service = cluster.service("till");
    service["spec"]["selector"] = json!({"app": "till"});
    service["spec"]["ports"][0]["targetPort"] = json!("web");
    cluster.apply(&service);
    cluster
}

fn plane(cluster: &Cluster, replica: &str) -> Plane {
    Plane::start(cluster, &[&OFF[..], &["--replica", replica]].concat())
}

fn object(cluster: &Cluster, name: &str) -> Value {
    json!({"apiVersion": "outrigger.dev/v1alpha1", "kind": "ExternalWorkload",
        "metadata": {"name": name, "namespace": cluster.namespace}})
}

fn written(cluster: &Cluster, name: &str) -> Value {
    cluster.try_get_object(&object(cluster, name)).unwrap_or_default()
}

fn replica_of(cluster: &Cluster, name: &str) -> String {
    let label = &written(cluster, name)["metadata"]["labels"]["outrigger.dev/replica"];
    label.as_str().unwrap_or_default().to_owned()
}

#[test]
fn a_workload_that_registers_is_an_object_which_every_replica_sees_once() {
    let cluster = start();
    let (one, two) = (plane(&cluster, "one"), plane(&cluster, "two"));
    let joining = Joining::new(&cluster);
    let mut till = Outside::start(&cluster, &joining, "till-1", one.listen);
    let address = till.address();
    for plane in [&one, &two] {
        plane.wait_for(&cluster, "till", &[&address]);
    }
    eventually("the object says that it is ready", || {
        written(&cluster, "till-1")["spec"]["ready"] == true
    });
    let made = written(&cluster, "till-1");
    let (labels, spec) = (&made["metadata"]["labels"], &made["spec"]);
    assert_eq!(labels["outrigger.dev/managed-by"], "outrigger-control-plane", "{made}");
    assert_eq!((&labels["outrigger.dev/replica"], &labels["app"]), (&json!("one"), &json!("till")));
    assert_eq!((&spec["serviceAccount"], &spec["zone"]), (&json!("till"), &json!("a")));
    let port: u16 = till.app.port;
    assert_eq!(spec["ports"], json!([{"port": port, "name": "web", "appProtocol": "http"}]));
    assert!(
        spec["mesh"]["address"].as_str().is_some_and(|a| a.starts_with("127.0.0.1:")),
        "{spec}"
    );
    // The replica that has the object, and the one that has the registration, say the same.
    let uid = format!("{}.till-1", cluster.namespace);
    let of = |plane: &Plane| plane.index()["workloads"][&uid].clone();
    eventually("both say the same of it", || of(&one) == of(&two));
    // What somebody changes is put back.
    cluster.patch(&object(&cluster, "till-1"), &json!({"spec": {"address": "192.0.2.9"}}));
    eventually("its address is put back", || {
        written(&cluster, "till-1")["spec"]["address"] == "127.0.0.1"
    });
    cluster.delete(&object(&cluster, "till-1"));
    eventually("so is the object itself", || replica_of(&cluster, "till-1") == "one");
    two.wait_for(&cluster, "till", &[&address]);
    till.leave();
    eventually("it goes with the workload", || written(&cluster, "till-1").is_null());
    for plane in [&one, &two] {
        plane.wait_for(&cluster, "till", &[]);
    }
}

#[test]
fn what_a_dead_replica_leaves_behind_is_removed_unless_another_one_has_taken_it_over() {
    let cluster = start();
    // The one that stays writes status.
    let two = plane(&cluster, "two");
    let mut one = plane(&cluster, "one");
    let joining = Joining::new(&cluster);
    let switch = Switch::to(one.listen);
    let moving = Outside::start(&cluster, &joining, "moving", switch.port);
    let _stays = Outside::start(&cluster, &joining, "stays", one.listen);
    for name in ["moving", "stays"] {
        eventually("its object is there", || replica_of(&cluster, name) == "one");
    }
    let address = moving.address();
    let is_endpoint = || two.addresses(&cluster, "till").contains(&address);
    eventually("the other replica sees it", is_endpoint);
    one.kill();
    switch.turn(two.listen);
    eventually("the other replica takes it over", || replica_of(&cluster, "moving") == "two");
    within(LEFT_BEHIND, "what nobody has taken over is removed", || {
        assert!(is_endpoint(), "the one that has moved was always there");
        written(&cluster, "stays").is_null()
    });
    assert_eq!(replica_of(&cluster, "moving"), "two");
    two.wait_for(&cluster, "till", &[&address]);
}

#[test]
fn an_object_that_somebody_wrote_keeps_its_name() {
    let cluster = start();
    let plane = plane(&cluster, "one");
    let joining = Joining::new(&cluster);
    let mut theirs = object(&cluster, "till-1");
    theirs["metadata"]["labels"] = json!({"app": "till"});
    theirs["spec"] = json!({"address": "192.0.2.7", "ports": [{"port": 80, "name": "web"}]});
    // With the defaults that a real server writes into it.
    let before = cluster.apply(&theirs);
    plane.wait_for(&cluster, "till", &["192.0.2.7:80"]);
    let till = Outside::start(&cluster, &joining, "till-1", plane.listen);
    eventually("the proxy is told", || {
        till.process.log().contains("is an ExternalWorkload that no registration has made")
    });
    let there = written(&cluster, "till-1");
    assert_eq!(there["spec"], before["spec"]);
    assert_eq!(there["metadata"]["labels"], before["metadata"]["labels"]);
    plane.wait_for(&cluster, "till", &["192.0.2.7:80"]);
    cluster.delete(&theirs);
    eventually("the name is to be had", || replica_of(&cluster, "till-1") == "one");
    plane.wait_for(&cluster, "till", &[&till.address()]);
}

#[test]
fn a_registration_holds_while_the_api_is_away_and_is_written_afterwards() {
    let test = "kube::registration::a_registration_holds_while_the_api_is_away_...";
    if Cluster::small_only(test).is_none() {
        return;
    }
    let cluster = start();
    let server = cluster.small.as_ref().expect("the small one");
    let plane = plane(&cluster, "one");
    let joining = Joining::new(&cluster);
    server.set_up(false);
    eventually("it is noticed", || plane.log().contains("cannot watch"));
    let till = Outside::start(&cluster, &joining, "till-1", plane.listen);
    plane.wait_for(&cluster, "till", &[&till.address()]);
    eventually("that it is not written is said", || {
        plane.log().contains("could not write or remove the ExternalWorkload")
    });
    server.set_up(true);
    eventually("the object is written", || written(&cluster, "till-1")["spec"]["ready"] == true);
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata":
        {"name": "outrigger-replicas.one.registrations", "namespace": cluster.system}});
    let held = || {
        let document =
            cluster.try_get_object(&secret).unwrap_or_default()["data"]["document"].clone();
        let ByteString(bytes) = serde_json::from_value(document).unwrap_or_default();
        String::from_utf8_lossy(&bytes).contains("till-1")
    };
    eventually("so is the registration", held);
}
