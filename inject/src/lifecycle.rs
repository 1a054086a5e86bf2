//! The end of a pod. The kubelet ends native sidecars after the app's containers, so the proxy outlives its
//! app. What is left to do is to keep the app from ending before its callers know: its `preStop` asks the
//! proxy, which answers when they do, or when the time is up.

use serde_json::{Value, json};

use crate::ADMIN_PORT;
use crate::pod::{grace_seconds, list, runs_for_ever};

const PRE_STOP: &str = "/prestop";
/// The longest wait, in seconds: callers in the mesh hear of an endpoint's end within one, kube-proxies and load
/// balancers within a few.
const MAX_WAIT: u64 = 5;

/// Adds the wait to every container that has no `preStop` of its own. At most half of the time that the pod has
/// to end, so that the app has as much for itself. Pods that end by themselves are nobody's endpoint.
pub(crate) fn add(pod: &mut Value) {
    let wait = MAX_WAIT.min(grace_seconds(pod) / 2);
    if wait == 0 || !runs_for_ever(pod) {
        return;
    }
    for container in list(pod, &["spec", "containers"]).into_iter().flatten() {
        if container["lifecycle"]["preStop"].is_null()
            && let Some(lifecycle) = crate::pod::object(container, &["lifecycle"])
        {
            let path = format!("{PRE_STOP}?limit={wait}s");
            let ask = json!({ "path": path, "port": ADMIN_PORT, "scheme": "HTTP" });
            lifecycle.insert("preStop".to_owned(), json!({ "httpGet": ask }));
        }
    }
}

/// Takes it away again.
pub(crate) fn remove(pod: &mut Value) {
    for (_, container) in crate::pod::containers_mut(pod) {
        let Some(lifecycle) = container.get_mut("lifecycle").and_then(Value::as_object_mut) else {
            continue;
        };
        let asked = lifecycle.get("preStop").map(|hook| &hook["httpGet"]);
        let asked = asked.filter(|http| http["port"] == ADMIN_PORT);
        let ours = asked.and_then(|http| http["path"].as_str());
        if ours.is_some_and(|path| path.starts_with(PRE_STOP)) {
            lifecycle.remove("preStop");
            if lifecycle.is_empty() {
                container.remove("lifecycle");
            }
        }
    }
}
