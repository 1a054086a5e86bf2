//! Looking at a pod, and adding to it, whatever is in it.

use serde_json::{Map, Value, json};

use crate::{INIT, PROXY};

/// Where containers are, in the order in which the kubelet starts them.
pub(crate) const LISTS: [&str; 2] = ["initContainers", "containers"];

/// Every container with the path of its field from the pod's root, ours too.
pub(crate) fn containers(pod: &Value) -> impl Iterator<Item = (String, &Value)> {
    LISTS.into_iter().flat_map(move |list| {
        let all = pod["spec"][list].as_array().into_iter().flatten().enumerate();
        all.map(move |(i, container)| (format!("spec.{list}[{i}]"), container))
    })
}

/// The same to be changed.
pub(crate) fn containers_mut(
    pod: &mut Value,
) -> impl Iterator<Item = (String, &mut Map<String, Value>)> {
    let spec = pod.get_mut("spec").and_then(Value::as_object_mut);
    // Lists of a map, in the order of LISTS, which is not that of the map.
    let mut lists: Vec<_> = spec
        .into_iter()
        .flat_map(|spec| spec.iter_mut())
        .filter_map(|(key, list)| {
            let place = LISTS.iter().position(|list| list == key)?;
            Some((place, list.as_array_mut()?))
        })
        .collect();
    lists.sort_by_key(|(place, _)| *place);
    lists.into_iter().flat_map(|(place, list)| {
        list.iter_mut().enumerate().filter_map(move |(i, container)| {
            Some((format!("spec.{}[{i}]", LISTS[place]), container.as_object_mut()?))
        })
    })
}

pub(crate) fn name(container: &Value) -> &str {
    container["name"].as_str().unwrap_or_default()
}

pub(crate) fn is_ours(container: &Value) -> bool {
    matches!(name(container), INIT | PROXY)
}

/// The number of a port that a probe or a Service names, among those of one container.
pub(crate) fn named_port(container: &Value, name: &str) -> Option<u16> {
    let ports = container["ports"].as_array().into_iter().flatten();
    let mut named = ports.filter(|port| port["name"] == name);
    named.find_map(|port| crate::service::number(&port["containerPort"]))
}

/// Seconds that the containers of the pod have to end; Kubernetes' default where it does not say.
pub(crate) fn grace_seconds(pod: &Value) -> u64 {
    pod["spec"]["terminationGracePeriodSeconds"].as_u64().unwrap_or(30)
}

/// Whether its containers are to run for ever, as a Job's are not.
pub(crate) fn runs_for_ever(pod: &Value) -> bool {
    pod["spec"]["restartPolicy"].as_str().is_none_or(|policy| policy == "Always")
}

pub(crate) fn annotate(pod: &mut Value, key: &str, value: &Value) {
    if let Some(annotations) = object(pod, &["metadata", "annotations"]) {
        annotations.insert(key.to_owned(), value.clone());
    }
}

/// The object at a path, made where it is not there. None: something else is in its way.
pub(crate) fn object<'a>(
    value: &'a mut Value,
    path: &[&str],
) -> Option<&'a mut Map<String, Value>> {
    let at = at(value, path)?;
    if at.is_null() {
        *at = json!({});
    }
    at.as_object_mut()
}

/// The same of a list.
pub(crate) fn list<'a>(value: &'a mut Value, path: &[&str]) -> Option<&'a mut Vec<Value>> {
    let at = at(value, path)?;
    if at.is_null() {
        *at = json!([]);
    }
    at.as_array_mut()
}

fn at<'a>(value: &'a mut Value, path: &[&str]) -> Option<&'a mut Value> {
    path.iter().try_fold(value, |value, key| {
        if value.is_null() {
            *value = json!({});
        }
        Some(value.as_object_mut()?.entry(*key).or_insert(Value::Null))
    })
}
