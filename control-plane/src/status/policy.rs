//! Status of TrafficPolicies, ServerPolicies and FaultInjections: whether what they are for exists, and what
//! they lost to others.

use std::collections::BTreeSet;

use outrigger_core::config::BackendTarget;
use outrigger_core::policy::bounds;
use outrigger_core::policy::section::{self, Scope, Section};

use super::ObjectStatus;
use crate::index::Index;
use crate::object::policy::{
    Attached, FaultInjection, PolicyTarget, RuleCall, Sections, ServerPolicy, TrafficPolicy,
};
use crate::object::targets::for_each_fallback;
use crate::object::{ObjectId, Route, RouteBody, ServiceId};
use crate::translate::effective::{self, ApplicablePolicy};

pub(super) fn traffic(index: &Index, id: &ObjectId) -> Option<ObjectStatus> {
    let policy = index.traffic_policy(id)?;
    let mut unresolved = unresolved_targets(index, policy);
    unresolved.extend(unresolved_fallbacks(index, policy));
    let status = status(index, policy, lost_calls(index, policy));
    Some(ObjectStatus { resolved_refs: unresolved.into(), ..status })
}

pub(super) fn faults(index: &Index, id: &ObjectId) -> Option<ObjectStatus> {
    let policy = index.fault_injection(id)?;
    let stopped = index.stopped(policy).cloned();
    Some(ObjectStatus { stopped, ..status(index, policy, too_many(index, policy)) })
}

pub(super) fn server(index: &Index, id: &ObjectId) -> Option<ObjectStatus> {
    let policy = index.server_policy(id)?;
    Some(status(index, policy, lost_ports(index, policy)))
}

/// Every target that does not exist.
pub(super) fn unresolved(index: &Index) -> impl Iterator<Item = (ObjectId, String)> + '_ {
    let line = |id: &ObjectId, problem: String| (id.clone(), problem);
    let traffic = index.traffic_policies().flat_map(move |policy| {
        let fallbacks = unresolved_fallbacks(index, policy);
        let all = unresolved_targets(index, policy).into_iter().chain(fallbacks);
        all.map(move |p| line(&policy.id, p))
    });
    let server = index.server_policies().flat_map(move |policy| {
        unresolved_targets(index, policy).into_iter().map(move |p| line(&policy.id, p))
    });
    let faults = index.fault_injections().flat_map(move |policy| {
        unresolved_targets(index, policy).into_iter().map(move |p| line(&policy.id, p))
    });
    traffic.chain(server).chain(faults)
}

fn status<S>(index: &Index, policy: &Attached<S>, overridden: BTreeSet<String>) -> ObjectStatus {
    ObjectStatus {
        resolved_refs: unresolved_targets(index, policy).into(),
        overridden: overridden.into_iter().collect(),
        ..ObjectStatus::of_nothing(&policy.id)
    }
}

fn unresolved_targets<S>(index: &Index, policy: &Attached<S>) -> Vec<String> {
    let targets = policy.targets.iter().enumerate();
    let problems = targets.filter_map(|(i, target)| {
        let (field, problem) = unresolved_target(index, policy, target)?;
        Some(format!("spec.targetRefs[{i}].{field}: {problem}"))
    });
    problems.collect()
}

fn unresolved_fallbacks(index: &Index, policy: &TrafficPolicy) -> Vec<String> {
    let mut problems = Vec::new();
    let mut fallbacks = policy.sections.fallbacks.clone().unwrap_or_default();
    for_each_fallback(&mut fallbacks, &mut |path, target| {
        if let BackendTarget::Service(name) = target
            && let Err(problem) = index.check_reference(&policy.id, name)
        {
            problems.push(problem.under(path).to_string());
        }
    });
    problems
}

fn unresolved_target<S>(
    index: &Index,
    policy: &Attached<S>,
    target: &PolicyTarget,
) -> Option<(&'static str, String)> {
    use crate::object::policy::PortRef;
    match target {
        PolicyTarget::Namespace => None,
        PolicyTarget::Service { name, port } => {
            let id = ServiceId::new(policy.namespace(), name.clone());
            let Some(service) = index.service(&id) else {
                return Some(("name", format!("there is no {}", id.describe())));
            };
            let port = port.as_ref()?;
            if service.ports.iter().any(|of| port.is(of)) {
                return None;
            }
            Some(match port {
                PortRef::Name(name) => {
                    ("sectionName", format!("Service {id} has no port {name:?}"))
                }
                PortRef::Number(number) => ("port", format!("Service {id} has no port {number}")),
            })
        }
        PolicyTarget::Route { kind, name, rule } => {
            let (namespace, name) = (policy.namespace().to_owned(), name.clone());
            let id = ObjectId { kind: *kind, namespace, name };
            let Some(route) = index.route(&id) else {
                return Some(("name", format!("there is no {id}")));
            };
            let rule = rule.as_ref()?;
            if rules(route).any(|(_, name)| name == Some(rule)) {
                return None;
            }
            Some(("sectionName", format!("{id} has no rule {rule:?}")))
        }
    }
}

/// The rules of a route with their names.
fn rules(route: &Route) -> impl Iterator<Item = (usize, Option<&str>)> {
    let rules = match &route.body {
        RouteBody::Http { rules, .. } => rules.as_slice(),
        RouteBody::Tls { .. } | RouteBody::Tcp { .. } => &[],
    };
    rules.iter().enumerate().map(|(i, rule)| (i, rule.name.as_deref()))
}

/// The Services whose callers a policy speaks to.
pub(super) fn services<S>(index: &Index, policy: &Attached<S>) -> BTreeSet<ServiceId> {
    let routed = policy.routes().filter_map(|id| index.route(&id));
    let routed = routed.flat_map(|route| route.parents.iter().map(|p| p.service.clone()));
    routed.chain(spoken_of(index, policy)).collect()
}

/// Those of them of which it speaks whatever route leads there.
pub(super) fn spoken_of<S>(index: &Index, policy: &Attached<S>) -> BTreeSet<ServiceId> {
    let whole = policy.is_for_namespace().then(|| index.services_in(policy.namespace()));
    policy.services().chain(whole.into_iter().flatten().cloned()).collect()
}

/// Sections of a TrafficPolicy that somebody more specific or older decides, and where.
fn lost_calls(index: &Index, policy: &TrafficPolicy) -> BTreeSet<String> {
    let mut lost = BTreeSet::new();
    for id in services(index, policy) {
        let Some(service) = index.service(&id) else { continue };
        for port in &service.ports {
            let of_port = effective::of_port(index, &id, port);
            note_lost(policy, &of_port, &|_| true, &mut lost);
            let attached = index.routes_of(&id);
            let attached = attached
                .filter(|r| r.parents.iter().any(|p| p.service == id && p.attaches_to(port)));
            for route in attached {
                for (i, rule) in rules(route) {
                    let mut speakers = effective::of_rule(index, &route.id, rule);
                    speakers.extend(effective::of_port(index, &id, port));
                    let own = route.calls.get(i).cloned().unwrap_or_default();
                    note_lost_to_rule(policy, &speakers, (&route.id, i, &own), &mut lost);
                }
            }
        }
    }
    lost
}

/// Where there are so many fault injections that this one is left out.
fn too_many(index: &Index, policy: &FaultInjection) -> BTreeSet<String> {
    let beyond = |all: Vec<&FaultInjection>| {
        all.iter().skip(bounds::MAX_FAULTS).any(|other| other.id == policy.id)
    };
    let most = bounds::MAX_FAULTS;
    let mut lost = BTreeSet::new();
    for id in services(index, policy) {
        let Some(service) = index.service(&id) else { continue };
        for port in &service.ports {
            if beyond(effective::port_faults(index, &id, port)) {
                let port = port.port;
                lost.insert(format!("spec: left out at {id}:{port}, which has {most} older ones"));
            }
        }
    }
    for route in policy.routes().filter_map(|id| index.route(&id)) {
        for (i, rule) in rules(route) {
            if beyond(effective::rule_faults(index, &route.id, rule)) {
                let route = &route.id;
                lost.insert(format!(
                    "spec: left out at {route} (spec.rules[{i}]), which has {most} older ones"
                ));
            }
        }
    }
    lost
}

/// What a rule itself says is more specific than any policy.
fn note_lost_to_rule(
    policy: &TrafficPolicy,
    speakers: &[ApplicablePolicy<'_, crate::object::policy::TrafficSections>],
    (route, i, own): (&ObjectId, usize, &RuleCall),
    lost: &mut BTreeSet<String>,
) {
    if speakers.iter().all(|speaker| speaker.policy.id != policy.id) {
        return;
    }
    let fields = [
        (&section::DEADLINE, own.deadline.is_some(), "timeouts.request"),
        (&section::RETRIES, own.retries.is_some(), "retry"),
    ];
    for (section, said, field) in fields {
        if said && policy.sections.has(section) {
            let name = section.name;
            lost.insert(format!("spec.{name}: overridden by {route} (spec.rules[{i}].{field})"));
        }
    }
    let attempt = policy.sections.timeouts.is_some_and(|timeouts| timeouts.attempt.is_some());
    if own.attempt.is_some() && attempt {
        lost.insert(format!(
            "spec.timeouts.attempt: overridden by {route} (spec.rules[{i}].timeouts.backendRequest)"
        ));
    }
    // A service is protected whatever route leads there.
    let open = |section: &Section| {
        section.scope != Scope::Backend
            && !fields.iter().any(|(of, said, _)| *said && *of == section)
    };
    note_lost(policy, speakers, &open, lost);
}

/// Sections of a ServerPolicy that another one decides for some port.
fn lost_ports(index: &Index, policy: &ServerPolicy) -> BTreeSet<String> {
    let mut lost = BTreeSet::new();
    for workload in index.workloads_of(policy).iter().filter_map(|uid| index.workload(uid)) {
        let mut ports: BTreeSet<u16> = workload.ports.iter().map(|port| port.port).collect();
        let services = index.selecting(workload).into_iter().filter_map(|id| index.service(id));
        let targets = services.flat_map(|service| &service.ports);
        ports.extend(targets.filter_map(|port| workload.port(&port.target)));
        for port in ports {
            let speakers = effective::of_workload(index, workload, port);
            note_lost(policy, &speakers, &|_| true, &mut lost);
        }
    }
    lost
}

/// Of the sections that `of` keeps, those of `policy` that a speaker in front of it has, too.
fn note_lost<S: Sections>(
    policy: &Attached<S>,
    speakers: &[ApplicablePolicy<'_, S>],
    of: &dyn Fn(&Section) -> bool,
    lost: &mut BTreeSet<String>,
) {
    let Some(at) = speakers.iter().position(|speaker| speaker.policy.id == policy.id) else {
        return;
    };
    for section in policy.sections.sections().filter(|section| of(section)) {
        let winner = speakers[..at].iter().find(|s| s.policy.sections.has(section));
        if let Some(ApplicablePolicy { policy: by, target, .. }) = winner {
            let (name, target) = (section.name, by.describe(target));
            lost.insert(format!("spec.{name}: overridden by {} ({target})", by.id));
        }
    }
}
