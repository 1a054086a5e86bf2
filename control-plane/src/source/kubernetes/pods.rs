//! What is known of pods and their proxies, for who looks after them: which pods should have one and have none, which have
//! another one than new pods get, and which are not redirected.
//!
//! Nothing of a pod is kept here but what decides about that. Whether its namespace asks for proxies is looked up when it is
//! asked: either may be seen first, and a namespace may change.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Mutex;

use outrigger_inject::{INIT, INJECT, INJECTED, Mark, Mode, Namespace, PROXY, should_have_proxy};
use serde::Serialize;
use serde_json::{Value, json};

use crate::object::{Kind, ObjectId};
use crate::sync::lock;

/// By which annotation a pod chooses the image of its proxy itself.
const OWN_IMAGE: &str = "outrigger.dev/proxy-image";
/// Characters that are taken over from what a pod or the kubelet says.
const MAX_MESSAGE: usize = 512;

#[derive(Debug, Default)]
pub struct Pods(Mutex<PodsState>);

#[derive(Debug, Default)]
struct PodsState {
    /// Those that ask for proxies.
    asking: HashSet<String>,
    pods: HashMap<ObjectId, InjectedPod>,
    /// Pods that have been seen while all are listed.
    listed: Option<HashSet<ObjectId>>,
}

#[derive(Debug)]
struct InjectedPod {
    uid: String,
    /// It should have a proxy whatever its namespace says.
    asks: bool,
    /// It should have one if its namespace asks.
    would: bool,
    /// It is injected, runs and is ready.
    is_upgradable: bool,
    proxy: Option<ProxyContainer>,
}

#[derive(Debug)]
struct ProxyContainer {
    image: String,
    /// The pod has chosen the image.
    is_own_image: bool,
    /// Why its traffic does not come to the proxy, as far as that is known.
    trouble: Option<String>,
}

/// Something about a pod that a person, or the control plane, should do something about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    pub namespace: String,
    pub pod: String,
    pub uid: String,
    pub kind: FindingKind,
    pub message: String,
    /// Whether the pod is one whose proxy can be replaced by now, as far as it has been seen.
    #[serde(skip)]
    pub is_upgradable: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum FindingKind {
    ProxyMissing,
    ProxyOutdated,
    NotRedirected,
}

impl FindingKind {
    pub const ALL: [Self; 3] = [Self::ProxyMissing, Self::ProxyOutdated, Self::NotRedirected];

    /// As Events give it for a reason.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ProxyMissing => "ProxyMissing",
            Self::ProxyOutdated => "ProxyOutdated",
            Self::NotRedirected => "NotRedirected",
        }
    }
}

/// All pods as they were when it was asked.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct PodReview {
    /// Pods with a proxy of which nothing is to be said.
    pub meshed: usize,
    /// In the order of their names.
    pub findings: Vec<Finding>,
}

impl Pods {
    pub(super) fn listing(&self) {
        lock(&self.0).listed = Some(HashSet::new());
    }

    /// Those that were not among the listed ones are gone.
    pub(super) fn listed(&self) {
        let mut state = lock(&self.0);
        if let Some(listed) = state.listed.take() {
            state.pods.retain(|id, _| listed.contains(id));
        }
    }

    /// Takes in a pod or a namespace as the API has it.
    pub(super) fn see(&self, id: &ObjectId, object: &Value) {
        match id.kind {
            Kind::Namespace => {
                let asks = Namespace::read(&with_type(object)).is_some_and(|namespace| {
                    should_have_proxy(&json!({"spec": {"containers": []}}), &namespace)
                });
                let mut state = lock(&self.0);
                match asks {
                    true => state.asking.insert(id.namespace.clone()),
                    false => state.asking.remove(&id.namespace),
                };
            }
            Kind::Pod => {
                let pod = InjectedPod::read(object);
                let mut state = lock(&self.0);
                if let Some(listed) = &mut state.listed {
                    listed.insert(id.clone());
                }
                match pod {
                    Some(pod) => drop(state.pods.insert(id.clone(), pod)),
                    None => drop(state.pods.remove(id)),
                }
            }
            _ => {}
        }
    }

    pub(super) fn gone(&self, id: &ObjectId) {
        let mut state = lock(&self.0);
        match id.kind {
            Kind::Namespace => drop(state.asking.remove(&id.namespace)),
            Kind::Pod => drop(state.pods.remove(id)),
            _ => {}
        }
    }

    /// `image`: of the proxies that new pods get.
    pub fn review(&self, image: &str) -> PodReview {
        let state = lock(&self.0);
        let mut review = PodReview::default();
        let mut findings = BTreeMap::new();
        for (id, pod) in &state.pods {
            let should = pod.asks || (pod.would && state.asking.contains(&id.namespace));
            let Some((kind, message)) = pod.finding(should, image) else {
                review.meshed += usize::from(pod.proxy.is_some());
                continue;
            };
            let (namespace, name) = (id.namespace.clone(), id.name.clone());
            let finding = Finding {
                namespace,
                pod: name,
                uid: pod.uid.clone(),
                kind,
                message,
                is_upgradable: pod.is_upgradable,
            };
            findings.insert(id, finding);
        }
        review.findings = findings.into_values().collect();
        review
    }
}

impl InjectedPod {
    /// None: it has ended, or is about to.
    fn read(object: &Value) -> Option<Self> {
        let metadata = &object["metadata"];
        let phase = object["status"]["phase"].as_str();
        if matches!(phase, Some("Succeeded" | "Failed"))
            || metadata["deletionTimestamp"].is_string()
        {
            return None;
        }
        let asking = Namespace {
            annotations: [(INJECT.to_owned(), "enabled".to_owned())].into(),
            ..Namespace::default()
        };
        let pod = Self {
            uid: metadata["uid"].as_str()?.to_owned(),
            asks: should_have_proxy(object, &Namespace::default()),
            would: should_have_proxy(object, &asking),
            is_upgradable: phase == Some("Running")
                && metadata["annotations"][INJECTED].is_string()
                && is_ready(object),
            proxy: ProxyContainer::read(object),
        };
        // Most pods of a cluster may be nothing to the mesh.
        (pod.asks || pod.would || pod.proxy.is_some()).then_some(pod)
    }

    fn finding(&self, should: bool, image: &str) -> Option<(FindingKind, String)> {
        let Some(proxy) = &self.proxy else {
            let missing = "it asked for a proxy and has none: it was made while nobody injected, or before it \
                           was asked for; what made it has to make it anew (kubectl rollout restart)";
            return should.then(|| (FindingKind::ProxyMissing, missing.to_owned()));
        };
        if let Some(trouble) = &proxy.trouble {
            return Some((FindingKind::NotRedirected, trouble.clone()));
        }
        if proxy.image == image || proxy.is_own_image {
            return None;
        }
        let outdated = format!(
            "its proxy is {}, new pods get {image}: outrigger upgrade --image {image} replaces it without \
             restarting the app",
            proxy.image
        );
        Some((FindingKind::ProxyOutdated, outdated))
    }
}

impl ProxyContainer {
    fn read(pod: &Value) -> Option<Self> {
        let all = pod["spec"]["initContainers"].as_array().into_iter().flatten();
        let named = |name: &str| all.clone().find(|container| container["name"] == name);
        let image = line(named(PROXY)?["image"].as_str().unwrap_or_default());
        let is_own_image = pod["metadata"]["annotations"][OWN_IMAGE].is_string();
        let redirects = Mark::of(pod).is_some_and(|mark| mark.mode != Mode::Env);
        let trouble = match named(INIT) {
            None if redirects => Some(format!(
                "the container {INIT} is missing, so the traffic bypasses the proxy: recreate the \
                 pod"
            )),
            None => None,
            Some(_) => failure(pod),
        };
        Some(Self { image, is_own_image, trouble })
    }
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
    conditions.into_iter().any(|one| one["type"] == "Ready" && one["status"] == "True")
}

/// Why the container that redirects, or proves that something else has, has failed.
fn failure(pod: &Value) -> Option<String> {
    let all = pod["status"]["initContainerStatuses"].as_array().into_iter().flatten();
    let status = all.clone().find(|status| status["name"] == INIT)?;
    if status["state"]["terminated"]["exitCode"] == 0 {
        return None;
    }
    let ends = [&status["state"]["terminated"], &status["lastState"]["terminated"]];
    let end =
        ends.into_iter().find(|end| end["exitCode"].as_i64().is_some_and(|code| code != 0))?;
    let said = line(end["message"].as_str().unwrap_or_default());
    let said = match said.trim() {
        "" => format!("see kubectl logs -c {INIT}"),
        said => said.to_owned(),
    };
    Some(format!("the traffic bypasses the proxy, the container {INIT} fails: {said}"))
}

/// What others have written, in one line and no longer than [`MAX_MESSAGE`].
fn line(text: &str) -> String {
    let shown = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    shown.take(MAX_MESSAGE).collect()
}

/// Lists of the API leave out what the type of their items is.
fn with_type(namespace: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": namespace["metadata"]})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(kind: Kind, name: &str) -> ObjectId {
        let namespace = if kind == Kind::Namespace { name } else { "bank" };
        ObjectId { kind, namespace: namespace.to_owned(), name: name.to_owned() }
    }

    fn pod(change: impl FnOnce(&mut Value)) -> Value {
        let mut pod = json!({
            "metadata": {"name": "orders", "namespace": "bank", "uid": "u-1",
                "annotations": {"outrigger.dev/injected": "version=0.1.0,mode=init"}},
            "spec": {"containers": [{"name": "app"}], "initContainers": [
                {"name": "outrigger-init", "image": "proxy:1"}, {"name": "outrigger-proxy", "image": "proxy:1"}]},
            "status": {"phase": "Running", "initContainerStatuses": [
                {"name": "outrigger-init", "state": {"terminated": {"exitCode": 0}}}]},
        });
        change(&mut pod);
        pod
    }

    fn plain(change: impl FnOnce(&mut Value)) -> Value {
        let mut pod = json!({"metadata": {"name": "plain", "uid": "u-2"}, "spec": {"containers": [{"name": "app"}]}});
        change(&mut pod);
        pod
    }

    fn found(pods: &Pods, image: &str) -> Vec<(String, FindingKind)> {
        let all = pods.review(image).findings.into_iter();
        all.map(|finding| (finding.pod, finding.kind)).collect()
    }

    #[test]
    fn a_pod_without_a_proxy_is_named_where_one_is_asked_for() {
        let (pods, plain_id) = (Pods::default(), id(Kind::Pod, "plain"));
        let namespace = |asks: &str| json!({"metadata": {"name": "bank", "labels": {"outrigger.dev/inject": asks}}});
        pods.see(&plain_id, &plain(|_| {}));
        assert_eq!(found(&pods, "proxy:1"), []);
        // The namespace may be seen after the pod, and may change.
        pods.see(&id(Kind::Namespace, "bank"), &namespace("enabled"));
        assert_eq!(found(&pods, "proxy:1"), [("plain".to_owned(), FindingKind::ProxyMissing)]);
        let others = [
            plain(|pod| pod["metadata"]["labels"] = json!({"outrigger.dev/inject": "disabled"})),
            plain(|pod| pod["spec"]["hostNetwork"] = json!(true)),
            plain(|pod| pod["status"]["phase"] = json!("Succeeded")),
            plain(|pod| pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z")),
        ];
        for other in others {
            pods.see(&plain_id, &other);
            assert_eq!(found(&pods, "proxy:1"), [], "{other}");
        }
        pods.see(&id(Kind::Namespace, "bank"), &namespace("disabled"));
        pods.see(
            &plain_id,
            &plain(|pod| {
                pod["metadata"]["annotations"] = json!({"outrigger.dev/inject": "enabled"});
            }),
        );
        assert_eq!(found(&pods, "proxy:1").len(), 1, "the pod's own word stands");
        pods.gone(&plain_id);
        assert_eq!(pods.review("proxy:1"), PodReview::default());
    }

    #[test]
    fn an_old_proxy_is_named_unless_the_pod_chose_it() {
        let (pods, orders) = (Pods::default(), id(Kind::Pod, "orders"));
        pods.see(&orders, &pod(|_| {}));
        assert_eq!(pods.review("proxy:1"), PodReview { meshed: 1, findings: Vec::new() });
        assert_eq!(found(&pods, "proxy:2"), [("orders".to_owned(), FindingKind::ProxyOutdated)]);
        pods.see(
            &orders,
            &pod(|pod| {
                pod["metadata"]["annotations"]["outrigger.dev/proxy-image"] = json!("proxy:1");
            }),
        );
        assert_eq!(found(&pods, "proxy:2"), []);
    }

    #[test]
    fn what_a_pod_says_is_one_short_line() {
        let (pods, orders) = (Pods::default(), id(Kind::Pod, "orders"));
        let image = format!("proxy:1\n\u{1b}[2J{}", "x".repeat(100_000));
        pods.see(&orders, &pod(|pod| pod["spec"]["initContainers"][1]["image"] = json!(image)));
        let message = |pods: &Pods| pods.review("proxy:2").findings[0].message.clone();
        assert!(message(&pods).len() < 2000, "{} bytes", message(&pods).len());
        assert!(!message(&pods).contains(char::is_control), "{:?}", message(&pods));
        pods.see(
            &orders,
            &pod(|pod| {
                pod["status"]["initContainerStatuses"] = json!([{"name": "outrigger-init",
                    "lastState": {"terminated": {"exitCode": 1, "message": "a\nb\u{1b}[31mc"}}}]);
            }),
        );
        assert!(message(&pods).ends_with("fails: a b [31mc"), "{:?}", message(&pods));
    }

    #[test]
    fn a_pod_that_is_not_redirected_is_named() {
        let (pods, orders) = (Pods::default(), id(Kind::Pod, "orders"));
        let failing = |code: i64| {
            json!([{"name": "outrigger-init", "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {"terminated": {"exitCode": code, "message": "Operation not permitted"}}}])
        };
        pods.see(&orders, &pod(|pod| pod["status"]["initContainerStatuses"] = failing(1)));
        let finding = pods.review("proxy:1").findings.remove(0);
        assert_eq!(finding.kind, FindingKind::NotRedirected);
        assert!(finding.message.ends_with("fails: Operation not permitted"), "{}", finding.message);
        let removed =
            |pod: &mut Value| drop(pod["spec"]["initContainers"].as_array_mut().unwrap().remove(0));
        pods.see(&orders, &pod(removed));
        assert_eq!(found(&pods, "proxy:1"), [("orders".to_owned(), FindingKind::NotRedirected)]);
        // Still running for the first time; and in the mode env there is nothing to redirect.
        pods.see(
            &orders,
            &pod(|pod| {
                pod["status"]["initContainerStatuses"] =
                    json!([{"name": "outrigger-init", "state": {"running": {}}}]);
            }),
        );
        assert_eq!(found(&pods, "proxy:1"), []);
        pods.see(
            &orders,
            &pod(|pod| {
                removed(pod);
                pod["metadata"]["annotations"] =
                    json!({"outrigger.dev/injected": "version=0.1.0,mode=env"});
            }),
        );
        assert_eq!(found(&pods, "proxy:1"), []);
    }

    #[test]
    fn what_is_not_listed_any_more_is_gone() {
        let pods = Pods::default();
        pods.see(&id(Kind::Pod, "a"), &pod(|_| {}));
        pods.listing();
        pods.see(&id(Kind::Pod, "b"), &pod(|_| {}));
        pods.listed();
        assert_eq!(found(&pods, "proxy:2"), [("b".to_owned(), FindingKind::ProxyOutdated)]);
    }
}
