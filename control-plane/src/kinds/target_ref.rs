//! `targetRefs`: what a policy is for.

use outrigger_core::name::MAX_LABEL;
use outrigger_core::policy::bounds;
use outrigger_core::policy::section::{self, Scope};
use schemars::{JsonSchema, Schema};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::schema::{default, escaped, items, not_blank, port, rule, rule_at, subdomain};

/// A target of a policy, in the policy's own namespace (policy attachment of the Gateway API).
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[schemars(transform = fits_its_kind)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TargetRef {
    /// API group of the target: empty (or `core`) for a Service and a Namespace, `gateway.networking.k8s.io` for
    /// routes, `outrigger.dev` for an ExternalService.
    #[schemars(transform = default(""))]
    #[serde(default)]
    pub group: String,
    /// Kind of the target. Example: `Service`.
    pub kind: String,
    /// Name of the target; of a Namespace, the policy's own. Example: `orders`.
    #[schemars(transform = subdomain)]
    pub name: String,
    /// A part of the target: the name of a Service's port or of a route's rule. Unset: the whole target. Example:
    /// `http`.
    #[schemars(transform = not_blank)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub section_name: Option<String>,
    /// A port of a Service by number, instead of by name in `sectionName`. Example: `8000`.
    #[schemars(transform = port())]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<i32>,
}

/// Kinds that a TrafficPolicy and a FaultInjection may target.
pub(super) const CALLED: &[&str] =
    &["Service", "ExternalService", "HTTPRoute", "GRPCRoute", "Namespace"];
/// Kinds that a ServerPolicy may target.
pub(super) const SERVED: &[&str] = &["Service", "Namespace"];

fn fits_its_kind(schema: &mut Schema) {
    let group = "self.kind in ['HTTPRoute', 'GRPCRoute'] ? self.group == 'gateway.networking.k8s.io' : \
                 (self.kind == 'ExternalService' ? self.group == 'outrigger.dev' : self.group in ['', 'core'])";
    let says = "must be empty for a Service or Namespace, gateway.networking.k8s.io for a route, outrigger.dev for \
                an ExternalService";
    rule_at("group", group, says)(schema);
    let name = format!(
        "self.kind != 'Service' || self.name.size() <= {MAX_LABEL} && !self.name.contains('.')"
    );
    let says = format!("is not the name of a Service: at most {MAX_LABEL} characters without dots");
    rule_at("name", name, says)(schema);
    let section = "!has(self.sectionName) || !(self.kind in ['Namespace', 'ExternalService'])";
    rule_at("sectionName", section, "a Namespace or ExternalService has no sections")(schema);
    rule_at("port", "!has(self.port) || self.kind == 'Service'", "only a Service has ports")(
        schema,
    );
    let both = "!has(self.port) || !has(self.sectionName)";
    rule_at("port", both, "cannot be combined with sectionName: both name a port")(schema);
}

/// A list of targets of these kinds.
pub(super) fn targets(kinds: &'static [&'static str]) -> impl FnMut(&mut Schema) {
    move |schema| {
        items(1, bounds::MAX_TARGETS)(schema);
        let same = "a.kind == b.kind && a.name == b.name && \
                    (has(a.sectionName) ? a.sectionName : '') == (has(b.sectionName) ? b.sectionName : '') && \
                    (has(a.port) ? a.port : 0) == (has(b.port) ? b.port : 0)";
        rule(format!("self.all(a, self.exists_one(b, {same}))"), "has a duplicate target")(schema);
        // Added to what the type says of its fields.
        if let Some(items) = schema.get_mut("items") {
            items["properties"] = json!({"kind": {"enum": kinds}});
        }
    }
}

/// A policy that says something: one field at least beside `targetRefs`.
pub(super) fn some_section(schema: &mut Schema) {
    let fields = schema.get("properties").and_then(Value::as_object);
    let sections = fields.into_iter().flatten().map(|(name, _)| name.as_str());
    let sections = sections.filter(|name| *name != "targetRefs");
    let any: Vec<_> = sections.map(|name| format!("has(self.{})", escaped(name))).collect();
    rule(any.join(" || "), "has no section: set at least one field beside targetRefs")(schema);
}

/// Sections that are one for all that call a service, whatever route they take.
pub(super) fn not_for_routes(schema: &mut Schema) {
    for section in section::names(Scope::Backend) {
        let holds = format!(
            "!has(self.{section}) || !self.targetRefs.exists(t, t.kind in ['HTTPRoute', 'GRPCRoute'])"
        );
        let says = "applies to a service, not to a route: set it in a policy that targets the \
                    Service or Namespace";
        rule_at(section, holds, says)(schema);
    }
}
