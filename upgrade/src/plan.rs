//! Which pods get another proxy, and how far one of them has come.

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::ResourceExt;
use outrigger_inject::{INJECTED, PROXY};

/// Characters that are taken over from what a pod or the kubelet says.
const MAX_TEXT: usize = 512;

/// One pod, as it is before anything is done to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    pub namespace: String,
    pub pod: String,
    pub uid: String,
    /// Position of the sidecar among the init containers.
    pub(super) container: usize,
    /// Of the sidecar.
    pub image: String,
    /// How often it has been restarted.
    restarts: i32,
    /// The same of each of the app's containers.
    apps: Vec<(String, i32)>,
}

impl Step {
    /// As people write it: `namespace/pod`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.namespace, self.pod)
    }

    /// The command that gives the pod its old proxy back. Any text may be the name of a pod's image: it is quoted for a
    /// shell where it has to be.
    pub fn undo(&self) -> String {
        let image = quoted(&self.image);
        format!("kubectl -n {} set image pod/{} {PROXY}={image}", self.namespace, self.pod)
    }

    /// Of the sidecar now.
    pub(super) fn image_of<'a>(&self, pod: &'a Pod) -> Option<&'a str> {
        let all = pod.spec.as_ref()?.init_containers.as_ref()?;
        all.get(self.container)?.image.as_deref()
    }
}

/// How far a pod has come.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    Ready,
    /// Not yet, and why.
    Waiting(String),
    Failed(String),
}

/// As people write it: `namespace/pod`.
pub fn name(pod: &Pod) -> String {
    format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any())
}

/// What there is to do with a pod so that its proxy is of that image.
///
/// # Errors
/// If there is nothing to do, and where that may surprise, why.
pub fn step(pod: &Pod, image: &str) -> Result<Step, Option<String>> {
    if !pod.annotations().contains_key(INJECTED) || pod.metadata.deletion_timestamp.is_some() {
        return Err(None);
    }
    let spec = pod.spec.as_ref().ok_or(None)?;
    let all = spec.init_containers.iter().flatten();
    let sidecar = all.enumerate().find(|(_, container)| container.name == PROXY);
    let (container, sidecar) = sidecar.ok_or(None)?;
    let before = sidecar.image.clone().unwrap_or_default();
    if before == image {
        return Err(None);
    }
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    if phase != Some("Running") {
        // One that has ended is nobody any more.
        let has_ended = matches!(phase, Some("Succeeded" | "Failed"));
        return Err((!has_ended).then(|| format!("it is {}", phase.unwrap_or("not known yet"))));
    }
    if !is_ready(pod) {
        return Err(Some("it is not ready, and would not be told from one that fails".to_owned()));
    }
    Ok(Step {
        namespace: pod.namespace().unwrap_or_default(),
        pod: pod.name_any(),
        uid: pod.uid().unwrap_or_default(),
        container,
        image: before,
        restarts: proxy(pod).map_or(0, |status| status.restart_count),
        apps: apps(pod),
    })
}

/// What a shell reads as this one word; of characters that would do something to a terminal nothing is left.
pub fn quoted(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-/:@".contains(c);
    match !text.is_empty() && text.chars().all(is_plain) {
        true => text.to_owned(),
        false => format!("'{}'", line(text).replace('\'', "'\\''")),
    }
}

/// As one line, whatever it is.
fn line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_TEXT).collect()
}

/// Whether it is not there any more, or goes: another one of its name is another pod.
pub(super) fn is_gone(step: &Step, pod: Option<&Pod>) -> bool {
    pod.is_none_or(|pod| {
        pod.uid().as_deref() != Some(&step.uid) || pod.metadata.deletion_timestamp.is_some()
    })
}

/// `pod`: as it is now; none: it is gone.
pub(super) fn progress(step: &Step, pod: Option<&Pod>) -> Progress {
    let Some(pod) = pod.filter(|pod| !is_gone(step, Some(pod))) else {
        return Progress::Failed("it was replaced by another pod meanwhile".to_owned());
    };
    for ((name, before), (_, now)) in step.apps.iter().zip(apps(pod)) {
        if now > *before {
            let why = format!("its container {name} was restarted, which this must never do");
            return Progress::Failed(why);
        }
    }
    let waiting = |why: &str| Progress::Waiting(why.to_owned());
    let Some(proxy) = proxy(pod) else { return waiting("the kubelet says nothing of its proxy") };
    let state = proxy.state.clone().unwrap_or_default();
    if let Some(reason) = state.waiting {
        let (reason, message) = (reason.reason.unwrap_or_default(), reason.message);
        let why = format!("{reason} {}", message.unwrap_or_default());
        return Progress::Waiting(line(&why));
    }
    if proxy.restart_count <= step.restarts || state.running.is_none() {
        return waiting("its old proxy has not ended yet");
    }
    if !proxy.ready || !is_ready(pod) {
        return waiting("its new proxy is not ready");
    }
    Progress::Ready
}

/// Whether every slice that lists the pod lists it as ready; one that is in none has no callers.
pub(super) fn is_serving(step: &Step, slices: &[EndpointSlice]) -> bool {
    let endpoints = slices.iter().flat_map(|slice| &slice.endpoints);
    let mut own = endpoints.filter(|endpoint| {
        let target = endpoint.target_ref.as_ref();
        target.and_then(|target| target.uid.as_ref()) == Some(&step.uid)
    });
    // Kubernetes: unset means ready.
    own.all(|own| own.conditions.as_ref().and_then(|conditions| conditions.ready) != Some(false))
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().filter_map(|status| status.conditions.as_ref()).flatten();
    let mut ready = conditions.filter(|condition| condition.type_ == "Ready");
    ready.any(|condition| condition.status == "True")
}

fn proxy(pod: &Pod) -> Option<&ContainerStatus> {
    let status = pod.status.as_ref()?;
    status.init_container_statuses.iter().flatten().find(|status| status.name == PROXY)
}

/// Names and restarts of the app's containers.
fn apps(pod: &Pod) -> Vec<(String, i32)> {
    let status = pod.status.iter().filter_map(|status| status.container_statuses.as_ref());
    status.flatten().map(|status| (status.name.clone(), status.restart_count)).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(change: impl FnOnce(&mut Value)) -> Pod {
        let mut pod = json!({
            "metadata": {"name": "orders-1", "namespace": "bank", "uid": "u-1",
                "annotations": {"outrigger.dev/injected": "version=0.1.0,mode=init"}},
            "spec": {"containers": [{"name": "app"}], "initContainers": [
                {"name": "outrigger-init", "image": "proxy:1"}, {"name": "outrigger-proxy", "image": "proxy:1"}]},
            "status": {
                "phase": "Running",
                "conditions": [{"type": "Ready", "status": "True"}],
                "initContainerStatuses": [status("outrigger-proxy", 2)],
                "containerStatuses": [status("app", 1)],
            },
        });
        change(&mut pod);
        serde_json::from_value(pod).expect("a pod")
    }

    fn status(name: &str, restarts: i32) -> Value {
        json!({"name": name, "image": "i", "imageID": "i", "ready": true, "restartCount": restarts,
            "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}})
    }

    #[test]
    fn pods_that_run_with_another_proxy_are_upgraded() {
        let same = pod(|_| {});
        let planned = step(&same, "proxy:2").expect("a step");
        assert_eq!(
            (planned.container, planned.image.as_str(), planned.restarts),
            (1, "proxy:1", 2)
        );
        assert_eq!(step(&same, "proxy:1"), Err(None));
        assert_eq!(
            step(&pod(|pod| pod["metadata"]["annotations"] = json!({})), "proxy:2"),
            Err(None)
        );
        assert_eq!(
            step(&pod(|pod| pod["status"]["phase"] = json!("Succeeded")), "proxy:2"),
            Err(None)
        );
        let starting = pod(|pod| pod["status"]["phase"] = json!("Pending"));
        assert!(step(&starting, "proxy:2").is_err_and(|why| why.is_some()));
        let unready = pod(|pod| pod["status"]["conditions"] = json!([]));
        assert!(step(&unready, "proxy:2").is_err_and(|why| why.is_some()));
    }

    #[test]
    fn a_pod_is_done_when_its_new_proxy_is_ready_and_its_app_is_the_same() {
        let planned = step(&pod(|_| {}), "proxy:2").expect("a step");
        let is_waiting = |pod: &Pod| matches!(progress(&planned, Some(pod)), Progress::Waiting(_));
        let is_failed = |pod: Option<&Pod>| matches!(progress(&planned, pod), Progress::Failed(_));
        // Still the old one, which is as ready as ever.
        assert!(is_waiting(&pod(|_| {})));
        let restarted = |pod: &mut Value| {
            pod["status"]["initContainerStatuses"] = json!([status("outrigger-proxy", 3)]);
        };
        assert_eq!(progress(&planned, Some(&pod(restarted))), Progress::Ready);
        assert!(is_waiting(&pod(|pod| {
            restarted(pod);
            pod["status"]["initContainerStatuses"][0]["ready"] = json!(false);
        })));
        let pulling = pod(|pod| {
            pod["status"]["initContainerStatuses"][0]["state"] =
                json!({"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}});
        });
        let why = Progress::Waiting("ImagePullBackOff no such image".to_owned());
        assert_eq!(progress(&planned, Some(&pulling)), why);
        assert!(is_failed(Some(&pod(|pod| {
            restarted(pod);
            pod["status"]["containerStatuses"] = json!([status("app", 2)]);
        }))));
        assert!(is_failed(Some(&pod(|pod| pod["metadata"]["uid"] = json!("u-2")))));
        assert!(is_failed(None));
    }

    #[test]
    fn an_image_is_one_word_for_a_shell_and_nothing_for_a_terminal() {
        assert_eq!(
            quoted("r.example:5000/a/proxy@sha256:0f_-."),
            "r.example:5000/a/proxy@sha256:0f_-."
        );
        assert_eq!(quoted("p; curl it's | sh\u{1b}[2J"), "'p; curl it'\\''s | sh [2J'");
        let old = pod(|pod| pod["spec"]["initContainers"][1]["image"] = json!("$(reboot)"));
        let undo = step(&old, "proxy:2").expect("a step").undo();
        assert_eq!(undo, "kubectl -n bank set image pod/orders-1 outrigger-proxy='$(reboot)'");
    }

    #[test]
    fn callers_know_a_pod_again_when_its_slices_do() {
        let planned = step(&pod(|_| {}), "proxy:2").expect("a step");
        let slice = |uid: &str, ready: bool| -> EndpointSlice {
            let slice = json!({"metadata": {"name": "s"}, "addressType": "IPv4", "endpoints": [
                {"addresses": ["10.0.0.1"], "conditions": {"ready": ready}, "targetRef": {"uid": uid}}]});
            serde_json::from_value(slice).expect("a slice")
        };
        assert!(is_serving(&planned, &[]));
        assert!(is_serving(&planned, &[slice("u-1", true), slice("u-2", false)]));
        assert!(!is_serving(&planned, &[slice("u-1", true), slice("u-1", false)]));
    }
}
