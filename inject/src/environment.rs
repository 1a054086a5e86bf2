//! The mode without privileges: the app is told of its proxy by its environment.
//!
//! What was added to a container stands in a variable of its own, so that it can be taken away again without
//! touching what the app's author has set.

use serde_json::{Value, json};

use crate::annotations::Overrides;
use crate::pod::{containers_mut, is_ours, list, name};
use crate::settings::{Settings, proxy_url};

/// Names what was added, separated by commas.
const ADDED: &str = "OUTRIGGER_ADDED_ENV";

/// Adds the variables to every container that runs beside the proxy. One that the container has already, in
/// upper or lower case, stays what it is.
pub(crate) fn add(pod: &mut Value, overrides: &Overrides, settings: &Settings) {
    let all = [
        ("HTTP_PROXY", proxy_url()),
        ("HTTPS_PROXY", proxy_url()),
        ("NO_PROXY", no_proxy(overrides, settings)),
    ];
    for (_, container) in containers_mut(pod) {
        let mut container_value = Value::Object(std::mem::take(container));
        let early = overrides.before.iter().any(|before| before == name(&container_value));
        if !early && !is_ours(&container_value) {
            add_to(&mut container_value, &all);
        }
        if let Value::Object(map) = container_value {
            *container = map;
        }
    }
}

fn add_to(container: &mut Value, all: &[(&str, String)]) {
    let Some(env) = list(container, &["env"]) else { return };
    let mut added = Vec::new();
    for (upper, value) in all {
        let is_set = |one: &Value| name(one).eq_ignore_ascii_case(upper);
        if env.iter().any(is_set) {
            continue;
        }
        for variable in [(*upper).to_owned(), upper.to_ascii_lowercase()] {
            env.push(json!({ "name": variable, "value": value }));
            added.push(variable);
        }
    }
    if !added.is_empty() {
        env.push(json!({ "name": ADDED, "value": added.join(",") }));
    } else if env.is_empty()
        && let Some(container) = container.as_object_mut()
    {
        container.remove("env");
    }
}

/// What goes past the proxy: the pod itself, the API server, the cloud's metadata, and what the user skips.
fn no_proxy(overrides: &Overrides, settings: &Settings) -> String {
    let domain = &settings.cluster_domain;
    let mut all = vec![
        "localhost".to_owned(),
        "127.0.0.1".to_owned(),
        "::1".to_owned(),
        "169.254.169.254".to_owned(),
        // The kubelet puts the address in the place of it.
        "$(KUBERNETES_SERVICE_HOST)".to_owned(),
        "kubernetes.default.svc".to_owned(),
        format!("kubernetes.default.svc.{domain}"),
    ];
    all.extend(overrides.skip_outbound_networks.iter().cloned());
    all.join(",")
}

/// Takes away what was added.
pub(crate) fn remove(pod: &mut Value) {
    for (_, container) in containers_mut(pod) {
        let Some(env) = container.get_mut("env").and_then(Value::as_array_mut) else { continue };
        let added = env.iter().find(|one| name(one) == ADDED);
        let Some(added) = added.and_then(|one| one["value"].as_str()).map(str::to_owned) else {
            continue;
        };
        env.retain(|one| name(one) != ADDED && !added.split(',').any(|added| added == name(one)));
        if env.is_empty() {
            container.remove("env");
        }
    }
}
