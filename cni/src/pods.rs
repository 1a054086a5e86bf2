//! The pods of this node, and which of them asked to be redirected, and how.
//!
//! What a pod asked for stands in its init container `outrigger-init`, whose arguments the injector writes: the proof
//! and the rules have one source. Watched, so that the plugin's question costs no request; a pod that has not been seen
//! yet is asked for.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use clap::Parser;
use futures::StreamExt;
use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, Resource};
use outrigger_inject::{INIT, INJECTED, Mark, Mode};
use outrigger_redirect::Redirection;
use serde_json::json;
use tokio::sync::mpsc;

use crate::metrics::{Metrics, Part};
use crate::wire::sentence;

/// How long the plugin may wait for the API server, below its own limit.
const LIMIT: Duration = Duration::from_secs(3);

/// What a pod wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wish {
    /// It is not of the mode `cni`.
    Nothing,
    Redirect(Box<Redirection>),
    /// It is, and why what it wants cannot be read.
    Unreadable(String),
}

/// A pod, as far as it matters here.
#[derive(Clone, Debug)]
pub struct Known {
    pub uid: String,
    pub wish: Wish,
    /// Whether it has a network by now, and still has it: what the plugin has not done then, it has missed.
    pub is_running: bool,
    pub reference: ObjectReference,
}

impl Known {
    pub fn of(pod: &Pod) -> Self {
        let status = pod.status.as_ref();
        let phase = status.and_then(|status| status.phase.as_deref()).unwrap_or_default();
        let has_address = status.is_some_and(|status| status.pod_ip.is_some());
        let goes = pod.metadata.deletion_timestamp.is_some();
        Self {
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            wish: wish(pod),
            is_running: has_address && !goes && !matches!(phase, "Succeeded" | "Failed"),
            reference: pod.object_ref(&()),
        }
    }
}

/// The arguments of `outrigger-init`, behind `init`.
#[derive(Debug, Parser)]
#[command(no_binary_name = true, disable_help_flag = true)]
struct InitArguments {
    #[command(flatten)]
    redirection: Redirection,
    #[arg(long)]
    check: bool,
}

fn wish(pod: &Pod) -> Wish {
    let annotation = pod.metadata.annotations.as_ref().and_then(|all| all.get(INJECTED));
    let Some(annotation) = annotation else { return Wish::Nothing };
    let mark = Mark::of(&json!({"metadata": {"annotations": {INJECTED: annotation}}}));
    let spec = pod.spec.as_ref();
    // Its network namespace is the node's: nothing is ever done there.
    let on_node = spec.is_some_and(|spec| spec.host_network == Some(true));
    if mark.is_none_or(|mark| mark.mode != Mode::Cni) || on_node {
        return Wish::Nothing;
    }
    let mut containers = spec.and_then(|spec| spec.init_containers.as_ref()).into_iter().flatten();
    let Some(init) = containers.find(|container| container.name == INIT) else {
        return Wish::Unreadable(format!("it has no init container {INIT}"));
    };
    let args = init.args.iter().flatten().skip_while(|arg| *arg == "init");
    match InitArguments::try_parse_from(args) {
        Ok(read) => Wish::Redirect(Box::new(read.redirection)),
        Err(error) => {
            let said = error.to_string();
            let first = said.lines().next().unwrap_or_default().trim_start_matches("error: ");
            Wish::Unreadable(sentence(&format!(
                "the arguments of its init container {INIT}: {first}"
            )))
        }
    }
}

/// Namespace and name.
type Key = (String, String);

/// The pods of one node.
pub struct Pods {
    api: Client,
    node: String,
    known: Mutex<HashMap<Key, Known>>,
}

impl Pods {
    pub fn new(client: Client, node: String) -> Self {
        Self { api: client, node, known: Mutex::default() }
    }

    /// Watches for ever; pods that may have been missed go to `suspects`.
    pub async fn watch(&self, suspects: mpsc::Sender<Known>, metrics: &Metrics) {
        let config = watcher::Config::default().fields(&format!("spec.nodeName={}", self.node));
        let stream = watcher::watcher(Api::<Pod>::all(self.api.clone()), config).default_backoff();
        let mut stream = std::pin::pin!(stream);
        let mut listing = HashMap::new();
        while let Some(event) = stream.next().await {
            let pod = match event {
                Ok(Event::Init) => {
                    listing.clear();
                    continue;
                }
                Ok(Event::InitApply(pod)) => {
                    listing.insert(key(&pod), Known::of(&pod));
                    pod
                }
                Ok(Event::InitDone) => {
                    *self.lock() = std::mem::take(&mut listing);
                    metrics.set(Part::Pods, Ok(()));
                    continue;
                }
                Ok(Event::Apply(pod)) => {
                    self.lock().insert(key(&pod), Known::of(&pod));
                    pod
                }
                Ok(Event::Delete(pod)) => {
                    self.lock().remove(&key(&pod));
                    continue;
                }
                Err(error) => {
                    tracing::warn!(%error, "the pods of this node could not be watched; trying again");
                    continue;
                }
            };
            let known = Known::of(&pod);
            // When it is full, the next look at all pods finds it.
            if known.is_running && known.wish != Wish::Nothing {
                let _ = suspects.try_send(known);
            }
        }
    }

    /// What a pod wants.
    ///
    /// # Errors
    /// If it has not been seen yet and the API server does not answer.
    pub async fn wish(&self, namespace: &str, name: &str, uid: &str) -> Result<Wish, String> {
        let is_same = |known: &Known| uid.is_empty() || known.uid == uid;
        let key = (namespace.to_owned(), name.to_owned());
        if let Some(known) = self.lock().get(&key).filter(|known| is_same(known)) {
            return Ok(known.wish.clone());
        }
        let api = Api::<Pod>::namespaced(self.api.clone(), namespace);
        match tokio::time::timeout(LIMIT, api.get_opt(name)).await {
            Ok(Ok(Some(pod))) => {
                let known = Known::of(&pod);
                // The API knows a static pod under another uid; no injector has changed it.
                Ok(if is_same(&known) { known.wish } else { Wish::Nothing })
            }
            Ok(Ok(None)) => Ok(Wish::Nothing),
            Ok(Err(error)) => Err(format!("the API server: {error}")),
            Err(_) => Err(format!("the API server did not answer within {} s", LIMIT.as_secs())),
        }
    }

    /// Those that have a network and want something.
    pub fn candidates(&self) -> Vec<Known> {
        let known = self.lock();
        let wants = known.values().filter(|pod| pod.is_running && pod.wish != Wish::Nothing);
        wants.cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key(pod: &Pod) -> Key {
    let meta = &pod.metadata;
    (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn pod(annotation: &str, args: &[&str]) -> Value {
        json!({
            "metadata": {"name": "a", "namespace": "b", "uid": "u", "annotations": {INJECTED: annotation}},
            "spec": {
                "containers": [],
                "initContainers": [{"name": "other", "args": ["x"]}, {"name": INIT, "args": args}],
            },
            "status": {"podIP": "10.0.0.1", "phase": "Pending"},
        })
    }

    fn known(pod: Value) -> Known {
        Known::of(&serde_json::from_value(pod).unwrap())
    }

    const CNI: &str = "version=0.1.0,mode=cni";
    const ARGS: &[&str] = &[
        "init",
        "--check",
        "--uid=4741",
        "--outbound-port=4740",
        "--inbound-port=4743",
        "--skip-inbound-ports=4791,22",
        "--skip-outbound-networks=169.254.0.0/16,fd00::/8",
    ];

    #[test]
    fn what_a_pod_wants_stands_in_its_init_container() {
        let Wish::Redirect(wish) = known(pod(CNI, ARGS)).wish else { panic!("no wish") };
        assert_eq!((wish.uid, wish.outbound_port, wish.inbound_port), (4741, 4740, 4743));
        assert_eq!(wish.skip_inbound_ports, [4791, 22]);
        assert_eq!(wish.skip_outbound_networks.len(), 2);
        for (annotation, args, why) in [
            (CNI, &["init", "--check", "--from-the-future=1"][..], "--from-the-future"),
            (CNI, &["init", "--uid=0"], "0 is not in"),
            (CNI, &["init", "--skip-outbound-networks=10.0.0.0/8; drop"], "is not a network"),
            (CNI, &["remove"], "unexpected argument"),
        ] {
            match known(pod(annotation, args)).wish {
                Wish::Unreadable(said) => {
                    assert!(said.contains(why) && !said.contains('\n'), "{said}");
                }
                other => panic!("{args:?}: {other:?}"),
            }
        }
        let mut none = pod(CNI, ARGS);
        none["spec"]["initContainers"] = json!([]);
        assert!(matches!(known(none).wish, Wish::Unreadable(_)));
        // Neither the log nor a terminal is the pod's to write to, nor is this memory.
        let long = format!("--\u{1b}[2J{}", "x".repeat(100_000));
        let Wish::Unreadable(said) = known(pod(CNI, &[&long])).wish else { panic!("readable") };
        assert!(said.len() < 1000 && !said.contains('\u{1b}'), "{said:?}");
    }

    #[test]
    fn nobody_else_wants_anything() {
        for annotation in ["version=0.1.0,mode=init", "version=0.1.0,mode=env", "mode=cni", ""] {
            assert_eq!(known(pod(annotation, ARGS)).wish, Wish::Nothing, "{annotation}");
        }
        let mut on_node = pod(CNI, ARGS);
        on_node["spec"]["hostNetwork"] = json!(true);
        assert_eq!(known(on_node).wish, Wish::Nothing);
        assert_eq!(known(json!({"metadata": {"name": "a"}})).wish, Wish::Nothing);
    }

    #[test]
    fn a_pod_is_looked_at_while_it_has_a_network() {
        assert!(known(pod(CNI, ARGS)).is_running);
        let mut none = pod(CNI, ARGS);
        none["status"] = json!({"phase": "Pending"});
        assert!(!known(none).is_running);
        let mut done = pod(CNI, ARGS);
        done["status"]["phase"] = json!("Succeeded");
        assert!(!known(done).is_running);
        let mut goes = pod(CNI, ARGS);
        goes["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        assert!(!known(goes).is_running);
    }
}
