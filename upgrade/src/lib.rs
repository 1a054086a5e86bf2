//! Another version of the proxy in a pod that runs, while its app goes on.
//!
//! The image of a native sidecar may be changed in a running pod, and the kubelet restarts that container alone. The old
//! proxy leaves its Services' endpoints and finishes what it has; while nobody listens, new connections wait
//! (docs/redirection.md); the new one finds identity and configuration in the pod's volume. [`step()`] says whether
//! there is something to do with a pod, [`replace`] does it.

mod plan;

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Client;
use kube::api::{Api, ListParams, Patch, PatchParams};
use serde_json::json;
use tokio::time::Instant;

use plan::{Progress, is_serving, progress};
pub use plan::{Step, name, step};

/// How often a pod is looked at that is on its way.
const LOOK: Duration = Duration::from_millis(300);
/// From a slice that says that a pod serves until every caller has heard it, with room to spare.
const TOLD: Duration = Duration::from_secs(2);
/// How long the API server may take to say why a pod is not ready.
const LAST: Duration = Duration::from_secs(5);

/// Replaces one proxy and waits until it is ready and its Services list it again; gives how long that took.
///
/// # Errors
/// If the API server refuses, the pod does not become ready within `limit`, or its app is restarted: a sentence for a
/// person. The pod is left as it then is.
pub async fn replace(
    client: &Client,
    step: &Step,
    image: &str,
    limit: Duration,
) -> Result<Duration, String> {
    let began = Instant::now();
    match tokio::time::timeout(limit, replaced(client, step, image)).await {
        Ok(Ok(())) => Ok(began.elapsed()),
        Ok(Err(why)) => Err(why),
        Err(_) => {
            Err(format!("not ready after {} s: {}", limit.as_secs(), last(client, step).await))
        }
    }
}

async fn replaced(client: &Client, step: &Step, image: &str) -> Result<(), String> {
    let api = Api::<Pod>::namespaced(client.clone(), &step.namespace);
    let path = format!("/spec/initContainers/{}/image", step.container);
    // Nothing, if somebody else has been here meanwhile.
    let patch = json!([
        {"op": "test", "path": "/metadata/uid", "value": step.uid},
        {"op": "test", "path": path, "value": step.image},
        {"op": "replace", "path": path, "value": image},
    ]);
    let patch: json_patch::Patch =
        serde_json::from_value(patch).map_err(|error| error.to_string())?;
    let patched = api.patch(&step.pod, &PatchParams::default(), &Patch::Json::<()>(patch)).await;
    patched.map_err(|error| format!("its image could not be changed: {error}"))?;
    loop {
        let pod = api.get_opt(&step.pod).await.map_err(|error| error.to_string())?;
        match progress(step, pod.as_ref()) {
            Progress::Ready => break,
            Progress::Failed(why) => return Err(why),
            Progress::Waiting(_) => tokio::time::sleep(LOOK).await,
        }
    }
    // Ready is one thing, and that callers know it another: before that the next pod would be missed.
    let slices = Api::<EndpointSlice>::namespaced(client.clone(), &step.namespace);
    loop {
        let all = slices.list(&ListParams::default()).await.map_err(|error| error.to_string())?;
        if is_serving(step, &all.items) {
            tokio::time::sleep(TOLD).await;
            return Ok(());
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// What a pod that did not come back says of itself.
async fn last(client: &Client, step: &Step) -> String {
    let api = Api::<Pod>::namespaced(client.clone(), &step.namespace);
    match tokio::time::timeout(LAST, api.get_opt(&step.pod)).await {
        Ok(Ok(pod)) => match progress(step, pod.as_ref()) {
            Progress::Waiting(why) | Progress::Failed(why) => why,
            Progress::Ready => "it has just become ready".to_owned(),
        },
        _ => "the API server does not say why".to_owned(),
    }
}
