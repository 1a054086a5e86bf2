//! `targetRefs`: what a policy is for, as far as it can be told without the index.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use outrigger_core::name::{check_label, external_service};
use outrigger_core::policy::bounds;

use super::{Report, check_subdomain, created, identity};
use crate::kinds::TargetRef;
use crate::object::policy::{Attached, PolicyTarget, PortRef};
use crate::object::{Kind, ObjectId};

const GATEWAY: &str = "gateway.networking.k8s.io";
pub(super) const OUTRIGGER: &str = super::GROUP;

/// Which targets a kind of policy may have.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Allowed {
    ServicesAndRoutes,
    Services,
}

/// Puts a policy together from what it is for and what it says.
pub(super) fn attached<S>(
    kind: Kind,
    meta: &ObjectMeta,
    refs: &[TargetRef],
    allowed: Allowed,
    sections: S,
    report: &mut Report,
) -> Attached<S> {
    let (namespace, name) = identity(meta, report);
    if refs.is_empty() {
        report.error("spec.targetRefs", "is empty: set at least one target");
    }
    report.at_most("spec.targetRefs", refs.len(), bounds::MAX_TARGETS);
    let mut targets: Vec<PolicyTarget> = Vec::with_capacity(refs.len());
    for (i, raw) in refs.iter().enumerate() {
        let path = format!("spec.targetRefs[{i}]");
        let Some(target) = target(raw, &path, &namespace, allowed, report) else { continue };
        if targets.contains(&target) {
            report.error(path, "is a duplicate target");
        }
        targets.push(target);
    }
    let id = ObjectId { kind, namespace, name };
    Attached { id, created: created(meta), targets, sections }
}

fn target(
    raw: &TargetRef,
    path: &str,
    namespace: &str,
    allowed: Allowed,
    report: &mut Report,
) -> Option<PolicyTarget> {
    let section = raw.section_name.as_deref();
    if section == Some("") {
        report.error(format!("{path}.sectionName"), "is empty");
    }
    let target = match (raw.group.as_str(), raw.kind.as_str()) {
        ("" | "core", "Service") => {
            report.check(&format!("{path}.name"), check_label(&raw.name));
            PolicyTarget::Service { name: raw.name.clone(), port: port(raw, path, report) }
        }
        ("" | "core", "Namespace") => {
            if raw.name != namespace {
                let problem =
                    format!("{:?} is not the policy's own namespace, {namespace}", raw.name);
                report.error(format!("{path}.name"), problem);
            }
            if section.is_some() {
                report.error(format!("{path}.sectionName"), "a Namespace has no sections");
            }
            PolicyTarget::Namespace
        }
        (GATEWAY, kind @ ("HTTPRoute" | "GRPCRoute")) if allowed == Allowed::ServicesAndRoutes => {
            report.check(&format!("{path}.name"), check_subdomain(&raw.name));
            let kind = if kind == "HTTPRoute" { Kind::HttpRoute } else { Kind::GrpcRoute };
            PolicyTarget::Route { kind, name: raw.name.clone(), rule: section.map(str::to_owned) }
        }
        (OUTRIGGER, "ExternalService") if allowed == Allowed::ServicesAndRoutes => {
            report.check(&format!("{path}.name"), check_subdomain(&raw.name));
            if section.is_some() {
                report.error(format!("{path}.sectionName"), "an ExternalService has no sections");
            }
            PolicyTarget::Service { name: external_service(&raw.name), port: None }
        }
        (group, kind) => {
            let (at, problem) = misplaced(group, kind, allowed);
            report.error(format!("{path}.{at}"), problem);
            return None;
        }
    };
    if raw.port.is_some()
        && (raw.kind != "Service" || !matches!(target, PolicyTarget::Service { .. }))
    {
        report.error(format!("{path}.port"), "only a Service has ports");
    }
    Some(target)
}

fn port(raw: &TargetRef, path: &str, report: &mut Report) -> Option<PortRef> {
    match (&raw.section_name, raw.port) {
        (Some(_), Some(_)) => {
            let problem = "cannot be combined with sectionName: both name a port";
            report.error(format!("{path}.port"), problem);
            None
        }
        (Some(name), None) => Some(PortRef::Name(name.clone())),
        (None, Some(port)) => report.port(&format!("{path}.port"), port).map(PortRef::Number),
        (None, None) => None,
    }
}

/// Which field makes a target impossible, and why.
fn misplaced(group: &str, kind: &str, allowed: Allowed) -> (&'static str, String) {
    let right = match kind {
        "Service" | "Namespace" => Some(""),
        "HTTPRoute" | "GRPCRoute" if allowed == Allowed::ServicesAndRoutes => Some(GATEWAY),
        "ExternalService" if allowed == Allowed::ServicesAndRoutes => Some(OUTRIGGER),
        _ => None,
    };
    match right {
        Some(right) => ("group", format!("{group:?} must be {right:?} for {kind}")),
        None if allowed == Allowed::Services => {
            ("kind", format!("{kind:?} is not Service or Namespace"))
        }
        None => {
            let kinds = "Service, ExternalService, HTTPRoute, GRPCRoute or Namespace";
            ("kind", format!("{kind:?} is not {kinds}"))
        }
    }
}
