//! What a pod may not be, or should not be, beside a proxy.

use outrigger_core::error::FieldError;
use outrigger_core::name::check_subdomain;
use serde_json::Value;

use crate::annotations::Overrides;
use crate::containers::PORTS as OWN_PORT_NAMES;
use crate::opt_in::Namespace;
use crate::pod::{LISTS, containers, is_ours, name};
use crate::ports::is_tcp;
use crate::service::number;
use crate::settings::Mode;
use crate::strip::is_injected;
use crate::{ADMIN_PORT, INBOUND_PORT, OUTBOUND_PORT};

/// Containers of other meshes, which redirect the same traffic.
const OTHER_MESHES: [(&str, &str); 8] = [
    ("istio-proxy", "Istio"),
    ("istio-init", "Istio"),
    ("istio-validation", "Istio"),
    ("linkerd-proxy", "Linkerd"),
    ("linkerd-init", "Linkerd"),
    ("kuma-sidecar", "Kuma"),
    ("kuma-init", "Kuma"),
    ("consul-dataplane", "Consul"),
];
/// The level of PodSecurity that a namespace holds its pods to.
const POD_SECURITY: &str = "pod-security.kubernetes.io/enforce";

/// Why no pod of this kind can have a proxy, whatever else is in it.
pub(crate) fn impossible(pod: &Value) -> Option<FieldError> {
    let spec = &pod["spec"];
    if spec["hostNetwork"] == true {
        let problem = "the node's network cannot be redirected for one pod: without hostNetwork, or with \
                       outrigger.dev/inject: disabled";
        return Some(FieldError::at("spec.hostNetwork", problem));
    }
    let selector = &spec["nodeSelector"];
    let windows = [
        ("spec.os.name", &spec["os"]["name"]),
        ("spec.nodeSelector[\"kubernetes.io/os\"]", &selector["kubernetes.io/os"]),
        ("spec.nodeSelector[\"beta.kubernetes.io/os\"]", &selector["beta.kubernetes.io/os"]),
    ];
    let (path, _) = windows.into_iter().find(|(_, os)| **os == "windows")?;
    let problem = "the proxy runs on Linux: set outrigger.dev/inject: disabled";
    Some(FieldError::at(path, problem))
}

/// Everything that keeps this pod from having a proxy. `pod`: as it came; `plain`: without what an injector of
/// ours has added.
pub(crate) fn check(
    pod: &Value,
    plain: &Value,
    namespace: &Namespace,
    overrides: &Overrides,
) -> Vec<FieldError> {
    let mut errors = Vec::new();
    shape(plain, &mut errors);
    names(plain, &mut errors);
    for (path, container) in containers(pod) {
        if is_ours(container) && !is_injected(pod) {
            let problem = format!(
                "{:?} is what the injector calls its own container: rename it, or set \
                 outrigger.dev/inject: disabled if it is the proxy, added by hand",
                name(container)
            );
            errors.push(FieldError::at(format!("{path}.name"), problem));
        }
    }
    for (path, container) in containers(plain) {
        let other = OTHER_MESHES.iter().find(|(other, _)| *other == name(container));
        if let Some((_, mesh)) = other {
            let problem = format!(
                "is of another mesh, {mesh}, and both would redirect the same traffic: turn its injection off \
                 for this pod, or set outrigger.dev/inject: disabled"
            );
            errors.push(FieldError::at(format!("{path}.name"), problem));
        }
        ports(&path, container, &mut errors);
        user(
            &format!("{path}.securityContext"),
            &container["securityContext"],
            overrides,
            &mut errors,
        );
    }
    user("spec.securityContext", &plain["spec"]["securityContext"], overrides, &mut errors);
    before(plain, overrides, &mut errors);
    let level = namespace.labels.get(POD_SECURITY).map(String::as_str);
    if let (Mode::Init, Some(level @ ("baseline" | "restricted"))) = (overrides.mode, level) {
        let problem = format!(
            "the namespace enforces PodSecurity {level}, which refuses the NET_ADMIN of the mode init: choose \
             cni (with the plugin installed) or env"
        );
        errors.push(FieldError::at(&overrides.mode_path, problem));
    }
    errors
}

/// What an API server would refuse anyway, and a file may still have.
fn shape(pod: &Value, errors: &mut Vec<FieldError>) {
    if pod["spec"]["containers"].as_array().is_none_or(Vec::is_empty) {
        errors.push(FieldError::at("spec.containers", "must be a list with a container"));
    }
    let metadata = &pod["metadata"];
    for (path, kind) in [
        ("metadata", metadata),
        ("metadata.labels", &metadata["labels"]),
        ("metadata.annotations", &metadata["annotations"]),
    ] {
        if !kind.is_object() && !kind.is_null() {
            errors.push(FieldError::at(path, "must be an object"));
        }
    }
    for list in LISTS.into_iter().chain(["volumes"]) {
        let value = &pod["spec"][list];
        if !value.is_array() && !value.is_null() {
            errors.push(FieldError::at(format!("spec.{list}"), "must be a list"));
        }
    }
    for (path, container) in containers(pod) {
        if name(container).is_empty() {
            errors.push(FieldError::at(format!("{path}.name"), "is missing"));
        }
    }
}

/// The proxy tells the control plane who it is by these.
fn names(pod: &Value, errors: &mut Vec<FieldError>) {
    let mut one = |path: &str, name: &str| {
        if let Err(error) = check_subdomain(name) {
            errors.push(error.under(path));
        }
    };
    let metadata = &pod["metadata"];
    if let Some(name) = metadata["name"].as_str() {
        one("metadata.name", name);
    }
    if let Some(account) =
        pod["spec"]["serviceAccountName"].as_str().filter(|name| !name.is_empty())
    {
        one("spec.serviceAccountName", account);
    }
}

fn ports(path: &str, container: &Value, errors: &mut Vec<FieldError>) {
    for (i, port) in container["ports"].as_array().into_iter().flatten().enumerate() {
        let path = format!("{path}.ports[{i}]");
        let taken = [OUTBOUND_PORT, INBOUND_PORT, ADMIN_PORT];
        let number = number(&port["containerPort"]).filter(|_| is_tcp(port));
        if let Some(number) = number.filter(|number| taken.contains(number)) {
            let problem =
                format!("{number} is a port of the proxy: let the app listen on another one");
            errors.push(FieldError::at(format!("{path}.containerPort"), problem));
        }
        if OWN_PORT_NAMES.contains(&name(port)) {
            let problem =
                format!("{:?} is the name of a port of the proxy: choose another", name(port));
            errors.push(FieldError::at(format!("{path}.name"), problem));
        }
    }
}

/// What runs as the proxy's user passes by the proxy.
fn user(path: &str, context: &Value, overrides: &Overrides, errors: &mut Vec<FieldError>) {
    if context["runAsUser"].as_u64() == Some(u64::from(overrides.uid)) {
        let problem = format!(
            "{} is the proxy's user, whose traffic is not redirected: give the proxy another one with \
             outrigger.dev/uid",
            overrides.uid
        );
        errors.push(FieldError::at(format!("{path}.runAsUser"), problem));
    }
}

/// The names of `outrigger.dev/before` are those of init containers.
fn before(pod: &Value, overrides: &Overrides, errors: &mut Vec<FieldError>) {
    let all = pod["spec"]["initContainers"].as_array();
    for wanted in &overrides.before {
        let known = all.into_iter().flatten().any(|container| name(container) == wanted);
        if !known {
            let names: Vec<&str> = all.into_iter().flatten().map(name).collect();
            let problem = match names.is_empty() {
                true => format!("there is no init container {wanted:?}, or any other"),
                false => {
                    format!("there is no init container {wanted:?}: it has {}", names.join(", "))
                }
            };
            let path = "metadata.annotations[\"outrigger.dev/before\"]";
            errors.push(FieldError::at(path, problem));
        }
    }
}

/// What works, and perhaps not as its author thinks.
pub(crate) fn warnings(pod: &Value, overrides: &Overrides) -> Vec<FieldError> {
    let mut warnings = Vec::new();
    let redirected = overrides.mode != Mode::Env;
    for (path, container) in containers(pod) {
        let security = &container["securityContext"];
        let added = security["capabilities"]["add"].as_array().into_iter().flatten();
        let admin = added.into_iter().any(|one| matches!(one.as_str(), Some("NET_ADMIN" | "ALL")));
        if redirected && (admin || security["privileged"] == true) {
            let problem = "it may change the redirection, and so pass by the proxy";
            warnings.push(FieldError::at(format!("{path}.securityContext"), problem));
        }
        for (i, port) in container["ports"].as_array().into_iter().flatten().enumerate() {
            if redirected && !port["hostPort"].is_null() && is_tcp(port) {
                let problem =
                    "callers through the node come without identity: a strict port refuses them";
                warnings.push(FieldError::at(format!("{path}.ports[{i}].hostPort"), problem));
            }
        }
    }
    if !pod["spec"]["resources"].is_null() {
        let problem = format!(
            "must have room for the proxy's requests, {} of CPU and {} of memory",
            overrides.proxy.cpu_request, overrides.proxy.memory_request
        );
        warnings.push(FieldError::at("spec.resources", problem));
    }
    if overrides.mode == Mode::Cni && !overrides.before.is_empty() {
        let problem = "everything is redirected before they run, and the proxy is not there yet: they reach \
                       nobody but what is skipped";
        let path = "metadata.annotations[\"outrigger.dev/before\"]";
        warnings.push(FieldError::at(path, problem));
    }
    warnings
}
