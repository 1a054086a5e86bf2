//! Outrigger's own kinds of objects, API group `outrigger.dev/v1alpha1`.
//!
//! Everything else is read with the types of Kubernetes and of the Gateway API; translation of all
//! of them is in [`crate::translate`].

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A process outside the cluster (a virtual machine, a laptop) that serves as an endpoint of every
/// Service of its namespace whose selector matches its labels.
#[derive(CustomResource, Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[kube(
    group = "outrigger.dev",
    version = "v1alpha1",
    kind = "ExternalWorkload",
    plural = "externalworkloads",
    namespaced,
    doc = "A process outside the cluster that serves as an endpoint of Services"
)]
#[serde(rename_all = "camelCase")]
pub struct ExternalWorkloadSpec {
    /// IP address at which the process is reached.
    pub address: String,
    /// Ports that it serves. Empty: every port that a Service targets by number.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<ExternalWorkloadPort>,
    /// Its sidecar, if it has one; without it callers connect to the process itself, in plaintext.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mesh: Option<ExternalWorkloadMesh>,
    /// The account that it runs as (`default` unless set).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_account: Option<String>,
    /// Topology zone, for locality preference.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
}

/// One port that the process listens on.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExternalWorkloadPort {
    pub port: i32,
    /// Matched by a Service's named `targetPort`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What is spoken on it: `http`, `http2`, `grpc`, `tcp`, `tls`. Unset: detected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app_protocol: Option<String>,
}

/// How the sidecar of the process is reached.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExternalWorkloadMesh {
    /// `ip:port` of its inbound listener.
    pub address: String,
}
