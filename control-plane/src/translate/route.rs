//! What HTTPRoute, GRPCRoute, TLSRoute and TCPRoute have in common: parents and backends.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use outrigger_core::config::{BackendTarget, HostMatch, TcpBackend};
use outrigger_core::error::FieldError;
use outrigger_core::name::{DestinationName, check_label};
use outrigger_core::policy::bounds;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::target_ref::OUTRIGGER;
use super::{Report, check_subdomain, created, identity};
use crate::object::{Kind, ObjectId, Parent, Route, RouteBody, ServiceId};

/// Bounds of the Gateway API's own schema.
const MAX_PARENTS: usize = 32;
const MAX_BACKENDS: usize = 16;
pub(super) const MAX_RULES: usize = 16;
const MAX_WEIGHT: i32 = 1_000_000;

/// A `parentRef` or `backendRef` of any route.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Ref {
    #[serde(default)]
    group: Option<String>,
    #[serde(default)]
    kind: Option<String>,
    name: String,
    #[serde(default)]
    namespace: Option<String>,
    #[serde(default)]
    port: Option<i32>,
    #[serde(default)]
    section_name: Option<String>,
    #[serde(default)]
    weight: Option<i32>,
}

/// The generated types of the Gateway API repeat the same shape under a name for each place where
/// it stands; here they become one. Their schema has been checked, so this does not fail.
pub(super) fn same_shape<T: DeserializeOwned>(
    path: &str,
    value: &impl Serialize,
    report: &mut Report,
) -> Option<T> {
    let value = serde_json::to_value(value).and_then(serde_json::from_value);
    report.check(path, value.map_err(|error| FieldError::here(error.to_string())))
}

/// Puts a route together from its parents and what it routes.
pub(super) fn route(
    kind: Kind,
    meta: &ObjectMeta,
    parents: &Option<impl Serialize>,
    body: RouteBody,
    report: &mut Report,
) -> Route {
    let (namespace, name) = identity(meta, report);
    let id = ObjectId { kind, namespace, name };
    let parents = parent_refs(parents, &id.namespace, report);
    Route { id, created: created(meta), parents, body, calls: Vec::new() }
}

/// Parents that are Services; others belong to somebody else.
fn parent_refs(refs: &Option<impl Serialize>, namespace: &str, report: &mut Report) -> Vec<Parent> {
    let refs: Vec<Ref> = match refs {
        Some(refs) => same_shape("spec.parentRefs", refs, report).unwrap_or_default(),
        None => Vec::new(),
    };
    report.at_most("spec.parentRefs", refs.len(), MAX_PARENTS);
    let mut parents = Vec::new();
    for (position, parent) in refs.into_iter().enumerate() {
        let path = format!("spec.parentRefs[{position}]");
        let group = parent.group.as_deref().unwrap_or("gateway.networking.k8s.io");
        let kind = parent.kind.as_deref().unwrap_or("Gateway");
        if !matches!((group, kind), ("" | "core", "Service")) {
            if kind == "Service" {
                report.warn(
                    format!("{path}.group"),
                    "a Service's group is \"\": write group: \"\" to attach to it",
                );
            }
            continue;
        }
        let service =
            ServiceId::new(parent.namespace.unwrap_or_else(|| namespace.to_owned()), parent.name);
        report.check(&format!("{path}.namespace"), check_label(&service.namespace));
        report.check(&format!("{path}.name"), check_label(&service.name));
        let port = parent.port.and_then(|port| report.port(&format!("{path}.port"), port));
        let section = parent.section_name.filter(|section| !section.is_empty());
        parents.push(Parent { position, service, port, section });
    }
    if parents.is_empty() {
        let problem = "no parent is a Service, so the route has no effect in the mesh";
        report.warn("spec.parentRefs", problem);
    }
    parents
}

/// Where a reference leads, as far as it can be told without the index.
pub(super) fn target(
    path: &str,
    reference: &Ref,
    namespace: Option<&str>,
    report: &mut Report,
) -> Option<BackendTarget> {
    let group = reference.group.as_deref().unwrap_or("");
    let kind = reference.kind.as_deref().unwrap_or("Service");
    let external = (group, kind) == (OUTRIGGER, "ExternalService");
    if !external && !matches!((group, kind), ("" | "core", "Service")) {
        // Not an error of the route (Gateway API: InvalidKind): its share of requests gets 500.
        let kind = if group.is_empty() { kind.to_owned() } else { format!("{group}/{kind}") };
        return Some(BackendTarget::Invalid(format!(
            "kind: {kind} is not supported, only Service and {OUTRIGGER}/ExternalService are"
        )));
    }
    let Some(port) = reference.port else {
        let whom = if external { "an ExternalService" } else { "a Service" };
        report.error(format!("{path}.port"), format!("must be set for {whom}"));
        return None;
    };
    let port = report.port(&format!("{path}.port"), port)?;
    let namespace =
        reference.namespace.as_deref().or(namespace).unwrap_or(super::DEFAULT_NAMESPACE);
    report.check(path, backend_name(external, namespace, &reference.name, port))
}

/// The target that a reference to a Service or an ExternalService names.
pub(super) fn backend_name(
    external: bool,
    namespace: &str,
    name: &str,
    port: u16,
) -> Result<BackendTarget, FieldError> {
    let name = match external {
        true => DestinationName::external(namespace, name, port),
        false => DestinationName::new(namespace, name, port),
    };
    name.map(BackendTarget::Service)
}

/// 1 unless set.
pub(super) fn weight(path: &str, reference: &Ref, report: &mut Report) -> u32 {
    let weight = reference.weight.unwrap_or(1);
    if !(0..=MAX_WEIGHT).contains(&weight) {
        report.error(
            format!("{path}.weight"),
            format!("{weight} must be between 0 and {MAX_WEIGHT}"),
        );
    }
    u32::try_from(weight).unwrap_or(0)
}

pub(super) fn at_most_backends(path: &str, len: usize, report: &mut Report) {
    report.at_most(&format!("{path}.backendRefs"), len, MAX_BACKENDS);
}

/// The one rule of a TLSRoute or TCPRoute, which have nothing to tell rules apart by.
pub(super) fn stream_backends<R: Serialize>(
    rules: &[R],
    namespace: Option<&str>,
    report: &mut Report,
) -> Vec<TcpBackend> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Rule {
        #[serde(default)]
        backend_refs: Vec<Ref>,
    }
    if rules.len() != 1 {
        let problem = "must have exactly one rule: there are no matches to choose between several";
        report.error("spec.rules", problem);
        return Vec::new();
    }
    let path = "spec.rules[0]";
    let Some(rule) = same_shape::<Rule>(path, &rules[0], report) else { return Vec::new() };
    at_most_backends(path, rule.backend_refs.len(), report);
    let mut backends = Vec::new();
    for (i, reference) in rule.backend_refs.iter().enumerate() {
        let path = format!("{path}.backendRefs[{i}]");
        let weight = weight(&path, reference, report);
        if let Some(target) = target(&path, reference, namespace, report) {
            backends.push(TcpBackend { target, weight });
        }
    }
    backends
}

/// Host names of a route.
pub(super) fn hostnames(hostnames: &[String], report: &mut Report) -> Vec<HostMatch> {
    report.at_most("spec.hostnames", hostnames.len(), bounds::MAX_HOSTS);
    let mut matches = Vec::new();
    for (i, hostname) in hostnames.iter().enumerate() {
        let (suffix, name) = match hostname.strip_prefix("*.") {
            Some(name) => (true, name),
            None => (false, hostname.as_str()),
        };
        if report.check(&format!("spec.hostnames[{i}]"), check_subdomain(name)).is_some() {
            matches.push(if suffix {
                HostMatch::Suffix(format!(".{name}"))
            } else {
                HostMatch::Exact(name.to_owned())
            });
        }
    }
    matches
}

/// Host names of an HTTPRoute or GRPCRoute: kept, though on a Service the dialled name has decided already.
pub(super) fn ignored_hostnames(names: Option<&[String]>, report: &mut Report) -> Vec<HostMatch> {
    let names = names.unwrap_or_default();
    if !names.is_empty() {
        report
            .warn("spec.hostnames", "have no effect: a Service's name decides which routes apply");
    }
    hostnames(names, report)
}

/// Fields of a rule that are accepted and do nothing yet.
pub(super) fn warn_unsupported(path: &str, present: bool, report: &mut Report) {
    if present {
        report.warn(path, "is not supported yet and has no effect");
    }
}
