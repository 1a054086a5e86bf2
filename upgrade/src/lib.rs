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

use plan::{Progress, is_gone, is_serving, progress};
pub use plan::{Step, name, quoted, step};

/// How often a pod is looked at that is on its way.
const LOOK: Duration = Duration::from_millis(300);
/// From a slice that says that a pod serves until every caller has heard it, with room to spare.
const TOLD: Duration = Duration::from_secs(2);
/// Slices that are read at a time.
const PAGE: u32 = 50;
/// How long the API server may take to say why a pod is not ready.
const LAST: Duration = Duration::from_secs(5);

/// Replaces one proxy and waits until it is ready and its Services list it again; gives how long that took. None: the pod
/// has gone meanwhile, or somebody else has given it another image, which says nothing about this one.
///
/// # Errors
/// If the API server refuses, the pod does not become ready within `limit`, or its app is restarted: a sentence for a
/// person. The pod is left as it then is.
pub async fn replace(
    client: &Client,
    step: &Step,
    image: &str,
    limit: Duration,
) -> Result<Option<Duration>, String> {
    let began = Instant::now();
    match tokio::time::timeout(limit, replaced(client, step, image)).await {
        Ok(Ok(is_there)) => Ok(is_there.then(|| began.elapsed())),
        Ok(Err(why)) => Err(why),
        Err(_) => {
            Err(format!("not ready after {} s: {}", limit.as_secs(), last(client, step).await))
        }
    }
}

/// Whether the pod is still there.
async fn replaced(client: &Client, step: &Step, image: &str) -> Result<bool, String> {
    let api = Api::<Pod>::namespaced(client.clone(), &step.namespace);
    if !patch(&api, step, image).await? {
        return Ok(false);
    }
    loop {
        if let Some(pod) = settled(api.get_opt(&step.pod).await)? {
            if is_gone(step, pod.as_ref()) {
                return Ok(false);
            }
            match progress(step, pod.as_ref()) {
                Progress::Ready => break,
                Progress::Failed(why) => return Err(why),
                Progress::Waiting(_) => {}
            }
        }
        tokio::time::sleep(LOOK).await;
    }
    // Ready is one thing, and that callers know it another: before that the next pod would be missed.
    let slices = Api::<EndpointSlice>::namespaced(client.clone(), &step.namespace);
    while !is_listed(&slices, step).await? {
        tokio::time::sleep(LOOK).await;
    }
    tokio::time::sleep(TOLD).await;
    Ok(true)
}

/// Whether the pod has the image now: nothing is done to one that is gone, or where somebody else has been.
async fn patch(api: &Api<Pod>, step: &Step, image: &str) -> Result<bool, String> {
    let path = format!("/spec/initContainers/{}/image", step.container);
    let patch = json!([
        {"op": "test", "path": "/metadata/uid", "value": step.uid},
        {"op": "test", "path": path, "value": step.image},
        {"op": "replace", "path": path, "value": image},
    ]);
    let patch: json_patch::Patch =
        serde_json::from_value(patch).map_err(|error| error.to_string())?;
    let patch = Patch::Json::<()>(patch);
    loop {
        let patched = api.patch(&step.pod, &PatchParams::default(), &patch).await;
        let Err(error) = patched else { return Ok(true) };
        if !is_passing(&error) {
            // One whose answer was lost may have been done all the same.
            let pod = settled(api.get_opt(&step.pod).await)?.flatten();
            let pod = pod.filter(|pod| !is_gone(step, Some(pod)));
            return match pod.as_ref().and_then(|pod| step.image_of(pod)) {
                Some(now) if now == image => Ok(true),
                Some(now) if now == step.image => {
                    Err(format!("its image could not be changed: {error}"))
                }
                _ => Ok(false),
            };
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Whether every slice of the namespace that lists the pod lists it as ready. A few at a time: users who may write slices
/// decides how many there are.
async fn is_listed(slices: &Api<EndpointSlice>, step: &Step) -> Result<bool, String> {
    let mut params = ListParams::default().limit(PAGE);
    loop {
        let Some(page) = settled(slices.list(&params).await)? else { return Ok(false) };
        if !is_serving(step, &page.items) {
            return Ok(false);
        }
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(true),
        }
    }
}

/// None: the API server does not answer, or not now.
fn settled<T>(answer: Result<T, kube::Error>) -> Result<Option<T>, String> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(error) if is_passing(&error) => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}

/// Whether it may be another time: the API server is away or has too much to do, or a list has become too old.
fn is_passing(error: &kube::Error) -> bool {
    match error {
        kube::Error::Api(status) => matches!(status.code, 410 | 429 | 500..=599),
        _ => true,
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
