//! v1 `Pod`: a process of the cluster, joined to the endpoints that EndpointSlices list by its uid.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use outrigger_core::config::{MeshAddress, Protocol};
use serde::Deserialize;

use super::{Report, identity};
use crate::object::{self, Workload, WorkloadPort};

/// What the sidecar's container is called.
pub const SIDECAR: &str = "outrigger-proxy";
/// The name of its port for callers in the mesh.
const INBOUND: &str = "outrigger-in";
/// The same where it does not say it.
const INBOUND_PORT: u16 = 4743;
/// The only version of the protocol between two proxies.
const HOP_VERSION: u32 = 1;
/// Kubernetes copies it from the pod's node.
const ZONE: &str = "topology.kubernetes.io/zone";
/// The account of a pod that names none.
const DEFAULT_ACCOUNT: &str = "default";

/// What is read of a pod: nothing else of it is kept, however large it is.
#[derive(Clone, Debug, Deserialize)]
pub struct PodObject {
    pub metadata: ObjectMeta,
    #[serde(default)]
    pub spec: PodSpec,
    #[serde(default)]
    pub status: PodStatus,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSpec {
    pub service_account_name: Option<String>,
    pub host_network: bool,
    pub containers: Vec<Container>,
    pub init_containers: Vec<Container>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Container {
    pub name: String,
    pub ports: Vec<ContainerPort>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerPort {
    pub container_port: i32,
    pub name: Option<String>,
    pub protocol: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodStatus {
    pub phase: Option<String>,
    #[serde(rename = "podIPs")]
    pub pod_ips: Vec<PodIp>,
    pub conditions: Vec<PodCondition>,
    /// Of the app's containers.
    pub container_statuses: Vec<ContainerStatus>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct PodCondition {
    pub r#type: String,
    pub status: String,
}

#[derive(Clone, Debug, Deserialize)]
pub struct ContainerStatus {
    #[serde(default)]
    pub ready: bool,
}

impl PodStatus {
    fn is(&self, kind: &str) -> bool {
        self.conditions.iter().any(|one| one.r#type == kind && one.status == "True")
    }

    /// Whether the app is ready, and nothing but its proxy, or the news of it, keeps the pod from serving. One whose
    /// containers are all ready and which is not itself waits for a readiness gate, or its node is lost.
    fn is_app_ready(&self) -> bool {
        let mut apps = self.container_statuses.iter();
        let all = !self.container_statuses.is_empty() && apps.all(|one| one.ready);
        all && (self.is("Ready") || !self.is("ContainersReady"))
    }
}

#[derive(Clone, Debug, Deserialize)]
pub struct PodIp {
    pub ip: String,
}

/// None: it has no address yet, or none any more, since a pod that has ended may give its own to another one.
pub fn translate(raw: &PodObject, report: &mut Report) -> Option<Workload> {
    let (namespace, name) = identity(&raw.metadata, report);
    let uid = raw.metadata.uid.clone().filter(|uid| !uid.is_empty())?;
    if matches!(raw.status.phase.as_deref(), Some("Succeeded" | "Failed")) {
        return None;
    }
    let addresses = raw.status.pod_ips.iter().filter_map(|ip| ip.ip.parse::<IpAddr>().ok());
    let addresses: Vec<IpAddr> = addresses.map(|ip| ip.to_canonical()).collect();
    let address = *addresses.first()?;
    let sidecar = raw.spec.init_containers.iter().chain(&raw.spec.containers);
    let sidecar = sidecar.clone().find(|container| container.name == SIDECAR);
    let mesh = sidecar.filter(|_| !raw.spec.host_network).map(|sidecar| {
        let named = sidecar.ports.iter().find(|port| port.name.as_deref() == Some(INBOUND));
        let port = named.and_then(|port| u16::try_from(port.container_port).ok());
        let address = SocketAddr::new(address, port.unwrap_or(INBOUND_PORT));
        MeshAddress { address, hop_version: HOP_VERSION, identity: None }
    });
    let account = raw.spec.service_account_name.clone().filter(|name| !name.is_empty());
    let labels: BTreeMap<String, String> = raw.metadata.labels.clone().unwrap_or_default();
    Some(Workload {
        namespace,
        name,
        service_account: account.unwrap_or_else(|| DEFAULT_ACCOUNT.to_owned()),
        zone: labels.get(ZONE).cloned(),
        labels,
        address,
        ports: ports(&raw.spec),
        mesh,
        // The proxy of one that is being deleted does not come back.
        ready: raw.metadata.deletion_timestamp.is_none() && raw.status.is_app_ready(),
        pod: Some(object::Pod { uid, addresses }),
        registered: None,
    })
}

/// The app's own, as far as its containers say; a port may be served without being among them.
fn ports(spec: &PodSpec) -> Vec<WorkloadPort> {
    let containers = spec.containers.iter().filter(|container| container.name != SIDECAR);
    let ports = containers.flat_map(|container| &container.ports);
    let tcp = ports.filter(|port| matches!(port.protocol.as_deref(), None | Some("TCP")));
    tcp.filter_map(|raw| {
        let port = u16::try_from(raw.container_port).ok().filter(|port| *port != 0)?;
        let name = raw.name.clone().unwrap_or_default();
        Some(WorkloadPort { port, name, protocol: Protocol::Detect, open: true })
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(spec: &Value, status: &Value) -> Option<Workload> {
        let raw = json!({
            "metadata": {"name": "ledger-0", "namespace": "bank", "uid": "u-1",
                "labels": {"app": "ledger", "topology.kubernetes.io/zone": "z1"}},
            "spec": spec,
            "status": status,
        });
        let mut report = Report::default();
        let workload = translate(&serde_json::from_value(raw).unwrap(), &mut report);
        assert!(report.errors.is_empty(), "{:?}", report.errors);
        workload
    }

    #[test]
    fn a_pod_is_a_workload_while_it_has_an_address() {
        let spec = json!({
            "serviceAccountName": "ledger",
            "containers": [{"name": "app", "ports": [
                {"containerPort": 8080, "name": "http"},
                {"containerPort": 53, "protocol": "UDP"},
            ]}],
            "initContainers": [{"name": "outrigger-proxy", "restartPolicy": "Always",
                "ports": [{"containerPort": 15_000, "name": "outrigger-in"}]}],
        });
        let running =
            json!({"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]});
        let workload = pod(&spec, &running).unwrap();
        assert_eq!(
            (workload.service_account.as_str(), workload.zone.as_deref()),
            ("ledger", Some("z1"))
        );
        assert_eq!(workload.ports.iter().map(|port| port.port).collect::<Vec<_>>(), [8080]);
        let mesh = workload.mesh.as_ref().unwrap();
        assert_eq!((mesh.address.to_string().as_str(), mesh.hop_version), ("10.0.0.1:15000", 1));
        let addresses = workload.pod.unwrap().addresses;
        assert_eq!(addresses, ["10.0.0.1", "fd00::1"].map(|ip| ip.parse::<IpAddr>().unwrap()));
        assert_eq!(pod(&spec, &json!({"phase": "Pending"})), None);
        let ended = json!({"phase": "Succeeded", "podIPs": [{"ip": "10.0.0.1"}]});
        assert_eq!(pod(&spec, &ended), None);
        // Its port belongs to the node, and so would the sidecar's.
        let host = json!({"hostNetwork": true, "containers": [{"name": "outrigger-proxy"}]});
        let workload = pod(&host, &running).unwrap();
        assert_eq!((workload.mesh, workload.service_account.as_str()), (None, "default"));
    }

    #[test]
    fn an_app_is_ready_though_its_proxy_is_not() {
        let ready = |apps: &[bool], containers: &str, itself: &str| {
            let apps: Vec<_> =
                apps.iter().map(|ready| json!({"name": "a", "ready": ready})).collect();
            let status = json!({"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}], "containerStatuses": apps,
                "conditions": [{"type": "ContainersReady", "status": containers},
                    {"type": "Ready", "status": itself}]});
            pod(&json!({"containers": [{"name": "app"}]}), &status).unwrap().ready
        };
        assert!(ready(&[true], "True", "True"));
        assert!(ready(&[true, true], "False", "False"), "its proxy is away");
        assert!(!ready(&[true, false], "False", "False"));
        assert!(!ready(&[true], "True", "False"), "a readiness gate, or a lost node");
        assert!(!ready(&[], "False", "False"), "nothing has started");
        let ending = json!({
            "metadata": {"name": "ledger-0", "namespace": "bank", "uid": "u-1",
                "deletionTimestamp": "2026-01-01T00:00:00Z"},
            "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}],
                "containerStatuses": [{"name": "a", "ready": true}]},
        });
        let ending = serde_json::from_value(ending).unwrap();
        let ending = translate(&ending, &mut Report::default()).unwrap();
        assert!(!ending.ready, "nobody waits for a proxy that does not come back");
    }
}
