//! The two containers, and the volumes that the proxy needs.

use serde_json::{Value, json};

use crate::annotations::{Overrides, TRUST_BUNDLE};
use crate::pod::{grace_seconds, list, name, runs_for_ever};
use crate::ports::AppPorts;
use crate::probes::{self, Probes};
use crate::settings::{Mode, Resources, Settings, TrustBundle, listeners};
use crate::{ADMIN_PORT, INBOUND_PORT, INIT, OUTBOUND_PORT, PROXY};

/// Names of the volumes.
pub(crate) const VOLUMES: [&str; 3] = ["outrigger-state", "outrigger-token", "outrigger-trust"];
/// Names of the sidecar's ports; the control plane looks for the first one.
pub(crate) const PORTS: [&str; 2] = ["outrigger-in", "outrigger-admin"];

const STATE: &str = "/run/outrigger";
const TOKEN: &str = "/var/run/secrets/outrigger.dev/token";
const TRUST: &str = "/var/run/secrets/outrigger.dev/trust";
/// What the copy of the configuration and the identity may take of the node's memory.
const STATE_LIMIT: &str = "32Mi";

/// What the containers are made of.
pub(crate) struct Parts<'a> {
    pub(crate) settings: &'a Settings,
    pub(crate) overrides: &'a Overrides,
    pub(crate) ports: AppPorts,
    pub(crate) probes: Probes,
}

/// Adds containers and volumes: ours come first, but for those that the pod wants before them.
pub(crate) fn add(pod: &mut Value, parts: &Parts<'_>) {
    let sidecar = sidecar(pod, parts);
    let init = init(parts);
    if let Some(containers) = list(pod, &["spec", "initContainers"]) {
        let all = std::mem::take(containers);
        let early = |one: &Value| parts.overrides.before.iter().any(|before| before == name(one));
        let (before, after): (Vec<_>, Vec<_>) = all.into_iter().partition(early);
        containers.extend(before);
        containers.extend(init);
        containers.push(sidecar);
        containers.extend(after);
    }
    if let Some(all) = list(pod, &["spec", "volumes"]) {
        all.extend(volumes(parts.settings));
    }
}

/// The init container; nothing is redirected in the mode `env`.
fn init(parts: &Parts<'_>) -> Option<Value> {
    let Parts { settings, overrides, .. } = parts;
    let security = match overrides.mode {
        Mode::Env => return None,
        Mode::Init => json!({
            "allowPrivilegeEscalation": false,
            // NET_RAW: iptables, where the kernel has no nf_tables.
            "capabilities": { "add": ["NET_ADMIN", "NET_RAW"], "drop": ["ALL"] },
            "privileged": false,
            "readOnlyRootFilesystem": true,
            "runAsGroup": 0,
            "runAsNonRoot": false,
            "runAsUser": 0,
            "seccompProfile": { "type": "RuntimeDefault" },
        }),
        // Not as the proxy's user, whose own traffic is not redirected.
        Mode::Cni => restricted(overrides.uid.saturating_add(1)),
    };
    let mut args = vec!["init".to_owned()];
    if overrides.mode == Mode::Cni {
        args.push("--check".to_owned());
    }
    let mut flag = |name: &str, value: String| args.push(format!("--{name}={value}"));
    flag("uid", overrides.uid.to_string());
    flag("outbound-port", OUTBOUND_PORT.to_string());
    flag("inbound-port", INBOUND_PORT.to_string());
    let admin = std::iter::once(&ADMIN_PORT);
    flag("skip-inbound-ports", joined(admin.chain(&overrides.skip_inbound_ports)));
    if !overrides.skip_outbound_ports.is_empty() {
        flag("skip-outbound-ports", joined(&overrides.skip_outbound_ports));
    }
    if !overrides.skip_outbound_networks.is_empty() {
        flag("skip-outbound-networks", joined(&overrides.skip_outbound_networks));
    }
    Some(json!({
        "name": INIT,
        "image": overrides.init_image,
        "imagePullPolicy": settings.image_pull_policy.as_str(),
        "args": args,
        "resources": resources(&settings.init),
        "securityContext": security,
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }))
}

fn sidecar(pod: &Value, parts: &Parts<'_>) -> Value {
    let Parts { settings, overrides, .. } = parts;
    let mounts: Vec<Value> = VOLUMES
        .into_iter()
        .zip([(STATE, false), (TOKEN, true), (TRUST, true)])
        .map(|(name, (path, read_only))| match read_only {
            true => json!({ "name": name, "mountPath": path, "readOnly": true }),
            false => json!({ "name": name, "mountPath": path }),
        })
        .collect();
    let mut sidecar = json!({
        "name": PROXY,
        "image": overrides.proxy_image,
        "imagePullPolicy": settings.image_pull_policy.as_str(),
        "env": environment(pod, parts),
        "ports": [
            { "containerPort": INBOUND_PORT, "name": PORTS[0], "protocol": "TCP" },
            { "containerPort": ADMIN_PORT, "name": PORTS[1], "protocol": "TCP" },
        ],
        "resources": resources(&overrides.proxy),
        "restartPolicy": "Always",
        "securityContext": restricted(overrides.uid),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": mounts,
    });
    for (kind, probe) in probes::own() {
        sidecar[kind] = probe;
    }
    sidecar
}

/// The proxy's settings, as the variables of `outrigger-proxy --help`.
fn environment(pod: &Value, parts: &Parts<'_>) -> Vec<Value> {
    let Parts { settings, overrides, ports, probes } = parts;
    let (outbound, inbound) = listeners(overrides.mode);
    let mut ports = ports.clone();
    probes.ports.iter().for_each(|port| ports.add(*port));
    let mut all = Vec::new();
    let mut set = |name: &str, value: String| {
        if !value.is_empty() {
            all.push(json!({ "name": format!("OUTRIGGER_{name}"), "value": value }));
        }
    };
    set("CONTROL_PLANE", settings.control_plane.clone());
    set("OUTBOUND", outbound);
    set("INBOUND", inbound);
    set("ADMIN", format!("[::]:{ADMIN_PORT}"));
    set("ADMIN_SOCKET", format!("{STATE}/admin.sock"));
    set("TOKEN_FILE", format!("{TOKEN}/token"));
    set("TRUST_BUNDLE", format!("{TRUST}/{}", trust_file(settings)));
    set("STATE_DIR", format!("{STATE}/state"));
    set("PERSIST_IDENTITY", "true".to_owned());
    // The API server knows the pod, and the control plane asks that.
    set("NO_REGISTRATION", "true".to_owned());
    set("APP_PORTS", ports.to_string());
    set("PROBES", joined(&probes.list));
    set("PROBE_HEADERS", joined(&probes.headers));
    set("LOG", overrides.log.clone());
    if let Some(what) = &overrides.access_log {
        set("ACCESS_LOG", what.clone());
    }
    if overrides.forward_client_identity {
        set("FORWARD_CLIENT_IDENTITY", "true".to_owned());
    }
    if !runs_for_ever(pod) {
        // Nobody calls it, so nobody must hear first: a Job ends with its app.
        set("DRAIN_DELAY", "0s".to_owned());
    }
    set("DRAIN_TIMEOUT", format!("{}s", grace_seconds(pod).max(1)));
    let field = |name: &str, path: &str| {
        let field = json!({ "apiVersion": "v1", "fieldPath": path });
        json!({ "name": format!("OUTRIGGER_{name}"), "valueFrom": { "fieldRef": field } })
    };
    all.push(field("NAMESPACE", "metadata.namespace"));
    all.push(field("SERVICE_ACCOUNT", "spec.serviceAccountName"));
    all.push(field("WORKLOAD", "metadata.name"));
    all.push(field("NODE", "spec.nodeName"));
    all.push(field("ZONE", "metadata.labels['topology.kubernetes.io/zone']"));
    // What listens on loopback alone is not for others, with a mesh as without.
    all.push(field("APP_ADDRESS", "status.podIP"));
    all
}

fn volumes(settings: &Settings) -> [Value; 3] {
    let token = json!({ "serviceAccountToken": {
        "audience": settings.token_audience,
        "expirationSeconds": settings.token_seconds,
        "path": "token",
    } });
    let file = trust_file(settings);
    let mut trust = match &settings.trust_bundle {
        TrustBundle::ConfigMap(map) => json!({ "configMap": {
            "defaultMode": 0o644,
            "name": map.name,
            "items": [{ "key": map.key, "path": file }],
        } }),
        TrustBundle::Roots(_) => {
            let path = format!("metadata.annotations['{TRUST_BUNDLE}']");
            let field = json!({ "apiVersion": "v1", "fieldPath": path });
            json!({ "downwardAPI": {
                "defaultMode": 0o644,
                "items": [{ "fieldRef": field, "path": file }],
            } })
        }
    };
    let [state_name, token_name, trust_name] = VOLUMES;
    trust["name"] = json!(trust_name);
    [
        // In memory: it holds the key, which must not outlive the pod on a disk.
        json!({ "name": state_name, "emptyDir": { "medium": "Memory", "sizeLimit": STATE_LIMIT } }),
        json!({ "name": token_name, "projected": { "defaultMode": 0o644, "sources": [token] } }),
        trust,
    ]
}

fn trust_file(settings: &Settings) -> &str {
    match &settings.trust_bundle {
        TrustBundle::ConfigMap(map) => &map.key,
        TrustBundle::Roots(_) => "roots.pem",
    }
}

/// What PodSecurity `restricted` wants.
fn restricted(uid: u32) -> Value {
    json!({
        "allowPrivilegeEscalation": false,
        "capabilities": { "drop": ["ALL"] },
        "privileged": false,
        "readOnlyRootFilesystem": true,
        "runAsGroup": uid,
        "runAsNonRoot": true,
        "runAsUser": uid,
        "seccompProfile": { "type": "RuntimeDefault" },
    })
}

fn resources(resources: &Resources) -> Value {
    let mut all = json!({
        "requests": { "cpu": resources.cpu_request, "memory": resources.memory_request },
    });
    for (kind, limit) in [("cpu", &resources.cpu_limit), ("memory", &resources.memory_limit)] {
        if let Some(limit) = limit {
            all["limits"][kind] = json!(limit);
        }
    }
    all
}

fn joined<T: ToString>(all: impl IntoIterator<Item = T>) -> String {
    all.into_iter().map(|one| one.to_string()).collect::<Vec<_>>().join(",")
}
