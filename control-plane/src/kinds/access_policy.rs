//! `AccessPolicy`: who may call. docs/access.md says how it is decided.

use std::collections::BTreeMap;

use kube::CustomResource;
use outrigger_core::policy::bounds;
use schemars::{JsonSchema, Schema};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::AccessJwt;
use super::schema::{
    a_label, a_subdomain, each, header, items, method, never, pattern, port, rule_at, some_field,
    within,
};

/// Who may call the workloads of a namespace, and with which requests. All policies that select a workload's port are
/// combined: a matching rule with the action Deny refuses the call; otherwise, if there is a rule with the action
/// Allow or the default is Deny, an Allow rule must match.
#[derive(CustomResource, Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[kube(
    group = "outrigger.dev",
    version = "v1alpha1",
    kind = "AccessPolicy",
    plural = "accesspolicies",
    shortname = "acp",
    category = "outrigger",
    namespaced,
    doc = "Who may call the workloads of a namespace"
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AccessPolicySpec {
    /// Workloads of the namespace that it applies to. Unset: all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<WorkloadSelector>,
    /// Ports of the app that it applies to, as the app listens on them. Empty: all of them. Example: `[8000]`.
    #[schemars(transform = each(port()))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<i32>,
    /// Whether these ports accept plaintext. The most specific policy that sets it applies; unset in all of them: the
    /// control plane's `--mtls`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtls: Option<AccessMtls>,
    /// What happens to callers that match no rule. The most specific policy that sets it applies; unset in all of
    /// them: the control plane's `--default-access`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<AccessAction>,
    /// Audit mode: only log and count what the rules would refuse.
    #[serde(default)]
    pub audit: bool,
    /// Rules, in any order: a deny rule takes precedence over allow rules.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<AccessRule>,
    /// Token issuers (JWT) that are trusted on these ports.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub jwt: Vec<AccessJwt>,
}

#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WorkloadSelector {
    /// Labels that a workload must have, all of them. Example: `{app: ledger}`.
    pub match_labels: BTreeMap<String, String>,
}

#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, JsonSchema)]
pub enum AccessMtls {
    /// Only callers with an identity (mTLS).
    Strict,
    /// Also plaintext, from callers without an identity.
    Permissive,
}

#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, JsonSchema)]
pub enum AccessAction {
    /// The call is allowed.
    Allow,
    /// The call is refused with 403.
    Deny,
}

/// A rule. It matches when one entry of `from`, one of `to` and all of `claims` match; an omitted field matches
/// everything.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AccessRule {
    /// Name that appears in refusals and logs. Unset: the position, as in `rules[2]`. Example: `orders-read`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What happens to a matching call.
    pub action: AccessAction,
    /// Callers, one of which must match. Unset: every caller. Example: `[{serviceAccounts: [orders]}]`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<AccessFrom>,
    /// Requests, one of which must match. Unset: every request, and opaque connections. Example: `[{methods: [GET],
    /// paths: [{prefix: /accounts}]}]`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub to: Vec<AccessTo>,
    /// Claims of the verified token (see `jwt`), all of which must match.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub claims: Vec<AccessClaim>,
}

/// A caller. All fields that are set must match; of a list, one entry.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[schemars(transform = some_field, transform = somebody)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct AccessFrom {
    /// Service accounts: `namespace/account`, or an account of the policy's own namespace. Example: `[orders,
    /// shop/web]`.
    #[schemars(transform = each(pattern(
        format!("^({}/)?{}$", a_label(), a_subdomain()),
        "account, or namespace/account",
    )))]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub service_accounts: Vec<String>,
    /// Namespaces of callers. Example: `[shop]`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<String>,
    /// Trust domains of callers, the first part of an identity. Example: `[outrigger.local]`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub trust_domains: Vec<String>,
    /// `true`: callers with any identity of the mesh; `false`: callers without one. Unset: both.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authenticated: Option<bool>,
    /// Source networks of the connection. Example: `[10.0.0.0/8]`.
    #[schemars(transform = each(pattern(
        "^[0-9A-Fa-f:.]+(/[0-9]{1,3})?$", "an address, or a network as in 10.0.0.0/8",
    )))]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<String>,
}

fn somebody(schema: &mut Schema) {
    let unset = |field: &str| format!("(!has(self.{field}) || self.{field}.size() == 0)");
    let nobody = ["serviceAccounts", "namespaces", "trustDomains"].map(unset).join(" && ");
    let rule = format!("!has(self.authenticated) || self.authenticated || {nobody}");
    let says =
        "is false, but the other fields require an identity: this entry would match no caller";
    rule_at("authenticated", rule, says)(schema);
}

/// A request. All fields that are set must match; of a list, one entry.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[schemars(transform = some_field)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct AccessTo {
    /// Hosts of the request (`Host` or `:authority`), without the port. Example: `[ledger.bank, "*.bank"]`.
    #[schemars(transform = items(0, bounds::MAX_HOSTS), transform = each(pattern(
        format!(r"^(\*\.)?{}$", a_subdomain()),
        "a host name, or one after `*.`",
    )))]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
    /// Methods. Example: `[GET, HEAD]`.
    #[schemars(transform = each(method))]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<String>,
    /// Paths. Example: `[{prefix: /accounts}]`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<AccessPath>,
    /// Headers. Example: `[{name: x-debug}]`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<AccessHeader>,
}

/// A path, by exactly one of `exact`, `prefix` and `regex`. It is compared with the canonical path: decoded where
/// safe, dot segments resolved, slashes merged.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum AccessPath {
    /// The whole path. Example: `/accounts`.
    #[schemars(transform = within(pattern("^/", "begins with `/`")))]
    Exact(String),
    /// Whole leading segments: `/a` matches `/a` and `/a/b`, not `/ab`.
    #[schemars(transform = within(pattern("^/", "begins with `/`")))]
    Prefix(String),
    /// A regular expression (RE2-like) that must match the whole path. Example: `/accounts/[0-9]+`.
    Regex(String),
}

/// A header of the request. Without `exact` and `regex` it must be present.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[schemars(transform = not_both)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AccessHeader {
    /// Name of the header, case-insensitive; hop-by-hop headers such as `Upgrade` and the mesh's own headers are not
    /// allowed. Example: `x-debug`.
    #[schemars(transform = header, transform = never(
        "(?i)^(connection|upgrade|transfer-encoding|te|keep-alive|proxy-connection|x-outrigger-.*)$"
    ))]
    pub name: String,
    /// The whole value. Example: `"1"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exact: Option<String>,
    /// A regular expression (RE2-like) that must match the whole value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub regex: Option<String>,
}

/// Too deep for a rule in CEL: its cost counts every header that there could be.
fn not_both(schema: &mut Schema) {
    schema.insert("not".to_owned(), json!({"required": ["exact", "regex"]}));
}

/// A claim of the verified token, which must have one of the values.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AccessClaim {
    /// Name of the claim; dots separate the parts of a nested one. Example: `realm_access.roles`.
    pub name: String,
    /// Values, one of which the claim must equal or contain. Example: `[ops]`.
    pub values: Vec<String>,
}
