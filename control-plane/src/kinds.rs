//! Outrigger's own kinds of objects, API group `outrigger.dev/v1alpha1`.
//!
//! Everything else is read with the types of Kubernetes and of the Gateway API; translation of all
//! of them is in [`crate::translate`].

mod external_service;
mod fallback;
mod fault_injection;
mod server_policy;
mod traffic_policy;

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use external_service::*;
pub use fallback::*;
pub use fault_injection::*;
pub use server_policy::*;
pub use traffic_policy::*;

/// What a policy is for (policy attachment of the Gateway API); in the policy's own namespace.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TargetRef {
    /// Empty for a Service and a Namespace.
    #[serde(default)]
    pub group: String,
    pub kind: String,
    pub name: String,
    /// Name of a Service's port or of a route's rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub section_name: Option<String>,
    /// Number of a Service's port, instead of its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<i32>,
}

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

/// Who may call the workloads of a namespace, and with what.
///
/// All policies that select a workload's port add up. A rule with the action Deny that matches refuses;
/// then, if a rule with the action Allow is in force or the default is Deny, one that allows must match.
#[derive(CustomResource, Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[kube(
    group = "outrigger.dev",
    version = "v1alpha1",
    kind = "AccessPolicy",
    plural = "accesspolicies",
    namespaced,
    doc = "Who may call the workloads of a namespace"
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AccessPolicySpec {
    /// Workloads of the namespace that it is for. Unset: all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<WorkloadSelector>,
    /// Ports of the app that it is for. Empty: all of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<i32>,
    /// Whether these ports take plaintext. Of several policies the most specific one decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtls: Option<AccessMtls>,
    /// What happens to callers that no rule speaks of. Of several the most specific one decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<AccessAction>,
    /// Only log and count what the rules would refuse.
    #[serde(default)]
    pub audit: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<AccessRule>,
    /// Issuers of tokens (JWT) that are believed on these ports.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub jwt: Vec<AccessJwt>,
}

#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WorkloadSelector {
    pub match_labels: std::collections::BTreeMap<String, String>,
}

#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, JsonSchema)]
pub enum AccessMtls {
    /// Only callers with an identity.
    Strict,
    /// Plaintext too, as a caller without an identity.
    Permissive,
}

#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, JsonSchema)]
pub enum AccessAction {
    Allow,
    Deny,
}

/// Matches when one of `from`, one of `to` and all of `claims` do; what is empty matches everything.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AccessRule {
    /// Stands in explanations; `rules[2]` unless set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    pub action: AccessAction,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<AccessFrom>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub to: Vec<AccessTo>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub claims: Vec<AccessClaim>,
}

/// A caller. All fields that are set must hold; of a list one entry.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct AccessFrom {
    /// `namespace/account`, or an account of the policy's own namespace.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub service_accounts: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub trust_domains: Vec<String>,
    /// true: any identity of the mesh; false: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authenticated: Option<bool>,
    /// Where the connection comes from, as in `10.0.0.0/8`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<String>,
}

/// What is asked for. All fields that are set must hold; of a list one entry.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct AccessTo {
    /// `ledger.bank`, `*.bank`; without the port.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<AccessPath>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<AccessHeader>,
}

/// Compared with the canonical path: decoded where that is safe, dot segments resolved, slashes merged.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum AccessPath {
    Exact(String),
    /// Whole segments: `/a` is `/a` and `/a/b`, not `/ab`.
    Prefix(String),
    /// Must match the whole path (RE2-like).
    Regex(String),
}

/// A header. Neither `exact` nor `regex`: it must be there.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AccessHeader {
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exact: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub regex: Option<String>,
}

/// A claim of the verified token has one of the values.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AccessClaim {
    /// Nested claims with dots between, as in `realm_access.roles`.
    pub name: String,
    pub values: Vec<String>,
}

/// An issuer of tokens (RFC 7519) and its keys (RFC 7517).
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AccessJwt {
    pub issuer: String,
    /// One of them must be in the token's `aud`. Empty: any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub audiences: Vec<String>,
    pub jwks: AccessJwks,
    /// Seconds that the issuer's clock may differ by (30 unless set, at most 300).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_skew_seconds: Option<u32>,
    /// Claims that the app gets as headers; what callers send in them is removed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub claims_to_headers: Vec<AccessClaimHeader>,
    /// The app gets the token too.
    #[serde(default)]
    pub forward: bool,
    /// A request without a token is refused.
    #[serde(default)]
    pub required: bool,
}

/// Where the keys come from.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum AccessJwks {
    /// The key set itself, as JSON.
    Inline(String),
    /// A file that the control plane reads, and again whenever it changes.
    File(String),
    /// Fetched by the control plane from an ExternalService of the policy's namespace.
    ExternalService(AccessJwksService),
}

#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AccessJwksService {
    pub name: String,
    /// Path and query, as in `/.well-known/jwks.json`.
    pub path: String,
}

#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AccessClaimHeader {
    pub claim: String,
    pub header: String,
}
