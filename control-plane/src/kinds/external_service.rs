//! `ExternalService`: what lies outside the mesh. docs/external.md says how it is called; the bounds are
//! in `translate/external_service.rs`.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A service outside the mesh: what apps of its namespace reach by its host and port, and where the
/// keys of an issuer of tokens are fetched.
#[derive(CustomResource, Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[kube(
    group = "outrigger.dev",
    version = "v1alpha1",
    kind = "ExternalService",
    plural = "externalservices",
    namespaced,
    doc = "A service outside the mesh"
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExternalServiceSpec {
    /// Host name or IP address, as apps dial it.
    pub host: String,
    pub port: i32,
    /// What is spoken there. Unset: detected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<ExternalProtocol>,
    /// Where it is reached. Empty: at the addresses of the host, which the control plane looks up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoints: Option<Vec<ExternalEndpoint>>,
    /// The calling proxy begins TLS: the host's certificate is verified against the system's roots, or
    /// these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<ExternalServiceTls>,
}

#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum ExternalProtocol {
    Http,
    Http2,
    Grpc,
    /// Bytes that are not looked into.
    Tcp,
    /// TLS that the app speaks itself.
    Tls,
}

#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExternalEndpoint {
    /// IP address.
    pub address: String,
    /// As the service's unless set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<i32>,
}

#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct ExternalServiceTls {
    /// Roots in PEM, instead of the system's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_certificates: Option<String>,
}
