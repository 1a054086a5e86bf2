//! `ExternalService`: what lies outside the mesh. docs/external.md says how it is called.

use kube::CustomResource;
use outrigger_core::policy::bounds;
use schemars::{JsonSchema, Schema};
use serde::{Deserialize, Serialize};

use super::schema::{ip, items, length, pattern, port, rule_at};

/// A service outside the mesh: apps of its namespace reach it by its host and port, and the keys of a token issuer
/// can be fetched from it.
#[derive(CustomResource, Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[kube(
    group = "outrigger.dev",
    version = "v1alpha1",
    kind = "ExternalService",
    plural = "externalservices",
    shortname = "exs",
    category = "outrigger",
    namespaced,
    doc = "A service outside the mesh"
)]
#[schemars(transform = one_tls, transform = endpoints_once)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExternalServiceSpec {
    /// Host name or IP address, as apps dial it. Example: `api.pay.example`.
    #[schemars(transform = pattern("^[0-9A-Za-z._:-]+$", "a host name or an IP address"), transform = length(1, 254))]
    pub host: String,
    /// Port, as apps dial it. Example: `443`.
    #[schemars(transform = port())]
    pub port: i32,
    /// Protocol that the app speaks. Unset: detected from the first bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<ExternalProtocol>,
    /// Addresses of the service. Unset: those that the control plane resolves the host to.
    #[schemars(transform = items(1, bounds::MAX_OUTSIDE))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoints: Option<Vec<ExternalEndpoint>>,
    /// The calling proxy originates TLS for the app and verifies the host's certificate. Unset: bytes are sent as the
    /// app sends them. Example: `{}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<ExternalServiceTls>,
}

fn one_tls(schema: &mut Schema) {
    let rule = "!has(self.tls) || !has(self.protocol) || self.protocol != 'TLS'";
    let says = "is TLS, which means that the app speaks TLS itself; with tls set, declare the \
                app's plaintext protocol, or remove tls";
    rule_at("protocol", rule, says)(schema);
}

fn endpoints_once(schema: &mut Schema) {
    let same = "a.address == b.address && \
                (has(a.port) ? a.port : self.port) == (has(b.port) ? b.port : self.port)";
    let rule = format!(
        "!has(self.endpoints) || self.endpoints.all(a, self.endpoints.exists_one(b, {same}))"
    );
    rule_at("endpoints", rule, "has a duplicate endpoint")(schema);
}

#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum ExternalProtocol {
    /// HTTP/1.1.
    Http,
    /// HTTP/2.
    Http2,
    /// gRPC.
    Grpc,
    /// Opaque bytes.
    Tcp,
    /// TLS that the app speaks itself.
    Tls,
}

/// One address of the service.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExternalEndpoint {
    /// IP address. Example: `192.0.2.10`.
    #[schemars(transform = ip)]
    pub address: String,
    /// Port at this address. Unset: the service's. Example: `8081`.
    #[schemars(transform = port())]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<i32>,
}

#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct ExternalServiceTls {
    /// Root certificates in PEM to verify the host's certificate with. Unset: the system roots of the proxy.
    #[schemars(transform = pattern("-----BEGIN CERTIFICATE-----", "certificates in PEM"))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_certificates: Option<String>,
}
