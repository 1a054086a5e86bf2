//! `ExternalWorkload`: a process outside the cluster as an endpoint.

use kube::CustomResource;
use outrigger_core::bounds::{ADDRESS, PORT_NAME, WORKLOAD_PORTS, ZONE};
use outrigger_core::policy::bounds::HOP_VERSION;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::defaults;
use super::schema::{default, ip, items, label, length, number, pattern, port};

/// A process outside the cluster (a virtual machine, a laptop) that serves as an endpoint of every
/// Service of its namespace whose selector matches its labels.
#[derive(CustomResource, Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[kube(
    group = "outrigger.dev",
    version = "v1alpha1",
    kind = "ExternalWorkload",
    plural = "externalworkloads",
    shortname = "exw",
    category = "outrigger",
    namespaced,
    doc = "A process outside the cluster that serves as an endpoint of Services"
)]
#[serde(rename_all = "camelCase")]
pub struct ExternalWorkloadSpec {
    /// IP address of the process: no multicast or broadcast address, and a loopback or link-local one only where the
    /// control plane's `--local-endpoints` allows it. Example: `192.0.2.7`.
    #[schemars(transform = ip)]
    pub address: String,
    /// Ports that the process listens on. Empty: every port that a Service targets by number.
    #[schemars(transform = items(0, WORKLOAD_PORTS))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<ExternalWorkloadPort>,
    /// Its sidecar, if it has one; without one, callers connect to the process itself, in plaintext.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mesh: Option<ExternalWorkloadMesh>,
    /// Service account of the process; with the namespace it forms the identity that callers expect.
    #[schemars(transform = label, transform = default(defaults::ACCOUNT))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_account: Option<String>,
    /// Topology zone, for zone preference. Example: `eu-west-1a`.
    #[schemars(transform = length(0, ZONE))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// Whether it gets requests. False: its policies and its sidecar's configuration are in force, but it is no
    /// endpoint. For self-registered workloads this is their health.
    #[schemars(transform = default(true))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<bool>,
}

/// One port that the process listens on.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExternalWorkloadPort {
    /// Number of the port. Example: `8000`.
    #[schemars(transform = port())]
    pub port: i32,
    /// Name of the port, by which a Service's named `targetPort` finds it. Example: `http`.
    #[schemars(transform = length(0, PORT_NAME))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Protocol on the port, as a Service's `appProtocol`: `http`, `http2` (`kubernetes.io/h2c`), `grpc`, `tcp`,
    /// `tls` (`https`), `kubernetes.io/ws` or `kubernetes.io/wss`. Unset: detected from the first bytes.
    #[schemars(transform = pattern(APP_PROTOCOL, "a protocol from the list"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app_protocol: Option<String>,
    /// Whether the process accepts connections there. False: the port gets no requests, other ports are not affected.
    /// For self-registered workloads the proxy sets this.
    #[schemars(transform = default(true))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<bool>,
}

/// As `Protocol::from_app_protocol` reads it.
const APP_PROTOCOL: &str = "^(?i:http|http1|http/1[.]1|http2|h2c|kubernetes[.]io/h2c|grpc|tcp|tls|https|ws|wss|kubernetes[.]io/wss?)$";

/// How to reach the sidecar of the process.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExternalWorkloadMesh {
    /// Address of its inbound listener, `ip:port`. Example: `192.0.2.7:4790`, `[2001:db8::7]:4790`.
    #[schemars(transform = pattern(
        r"^([0-9.]+|\[[0-9A-Fa-f:.]+(%[0-9]+)?\]):[0-9]{1,5}$",
        "an IP address and a port",
    ), transform = length(1, ADDRESS))]
    pub address: String,
    /// Version of the proxy-to-proxy protocol that the sidecar speaks.
    #[schemars(transform = number(&HOP_VERSION), transform = default(defaults::HOP_VERSION))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hop_version: Option<i64>,
}
