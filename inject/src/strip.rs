//! The way back: what a pod was before it was injected.

use serde_json::Value;

use crate::annotations::TRUST_BUNDLE;
use crate::pod::{LISTS, is_ours, name};
use crate::{INJECTED, containers, environment, lifecycle, probes};

/// The pod without anything that an injector of ours has added, of this version or of an earlier one. A pod
/// that bears no mark of it is returned as it is.
///
/// A probe that named its port gets the port's number, and init containers of `outrigger.dev/before` stay first;
/// all else is as it was.
pub fn strip(pod: &Value) -> Value {
    let mut pod = pod.clone();
    if !is_injected(&pod) {
        return pod;
    }
    probes::restore(&mut pod);
    lifecycle::remove(&mut pod);
    environment::remove(&mut pod);
    for list in LISTS {
        retain(&mut pod, list, |container| !is_ours(container));
    }
    retain(&mut pod, "volumes", |volume| !containers::VOLUMES.contains(&name(volume)));
    unmark(&mut pod);
    pod
}

/// Takes the mark away, and what it leaves empty: a template need not have metadata at all.
fn unmark(pod: &mut Value) {
    let Some(pod) = pod.as_object_mut() else { return };
    let Some(metadata) = pod.get_mut("metadata").and_then(Value::as_object_mut) else { return };
    let annotations = metadata.get_mut("annotations").and_then(Value::as_object_mut);
    let Some(annotations) = annotations else { return };
    annotations.remove(INJECTED);
    annotations.remove(TRUST_BUNDLE);
    if annotations.is_empty() {
        metadata.remove("annotations");
    }
    if metadata.is_empty() {
        pod.remove("metadata");
    }
}

/// Whether an injector of ours has been here.
pub(crate) fn is_injected(pod: &Value) -> bool {
    !pod["metadata"]["annotations"][INJECTED].is_null()
}

/// Keeps some items of a list of the spec, and no list that is empty.
fn retain(pod: &mut Value, list: &str, keep: impl Fn(&Value) -> bool) {
    let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) else { return };
    let Some(items) = spec.get_mut(list).and_then(Value::as_array_mut) else { return };
    let before = items.len();
    items.retain(keep);
    if items.is_empty() && before > 0 {
        spec.remove(list);
    }
}
