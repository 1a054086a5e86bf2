//! TrafficPolicies, ServerPolicies and FaultInjections that apply to nothing, or lose to their equals.

use std::collections::BTreeMap;

use super::Analysis;
use crate::object::policy::{Attached, PolicyTarget, Sections};
use crate::object::{ObjectId, ServiceId};

pub(super) fn analyze(analysis: &mut Analysis<'_>) {
    let index = analysis.index;
    equals(analysis, index.traffic_policies());
    equals(analysis, index.server_policies());
    for policy in index.traffic_policies() {
        empty_namespace(analysis, policy);
    }
    for policy in index.server_policies() {
        empty_namespace(analysis, policy);
        let known = analysis.knows_workloads_in(policy.namespace());
        let resolved = policy.services().any(|id| index.service(&id).is_some());
        if known && resolved && index.workloads_of(policy).is_empty() {
            let text = "spec.targetRefs: no known workload is behind these Services, so the policy \
                        limits nothing";
            analysis.warn(&policy.id, text.to_owned());
        }
    }
    for policy in index.fault_injections() {
        empty_namespace(analysis, policy);
        let fault = &policy.sections.fault;
        for (i, from) in fault.from.iter().enumerate() {
            let problem = match &from.service_account {
                Some(name) => analysis.unknown_account(&format!("{}/{name}", from.namespace)),
                None => analysis.unknown_namespace(&from.namespace),
            };
            if let Some(problem) = problem {
                analysis.warn(&policy.id, format!("spec.from[{i}]: {problem}"));
            }
        }
    }
}

fn empty_namespace<S>(analysis: &mut Analysis<'_>, policy: &Attached<S>) {
    if policy.is_for_namespace() && analysis.index.services_in(policy.namespace()).next().is_none()
    {
        let namespace = policy.namespace();
        let text = format!(
            "spec.targetRefs: namespace {namespace} has no Service, so the policy has no effect"
        );
        analysis.warn(&policy.id, text);
    }
}

/// Reports sections that another policy has for the very same target: the oldest decides, then the first by
/// name. That a more specific policy decides is how policies are meant to be used.
fn equals<'a, S: Sections + 'a>(
    analysis: &mut Analysis<'_>,
    policies: impl Iterator<Item = &'a Attached<S>>,
) {
    let mut all: Vec<&Attached<S>> = policies.collect();
    all.sort_by_key(|policy| (policy.created, &policy.id.name));
    let mut first: BTreeMap<(String, &str), &ObjectId> = BTreeMap::new();
    for policy in all {
        for target in &policy.targets {
            for section in policy.sections.sections() {
                let key = (described(policy.namespace(), target), section.name);
                match first.get(&key) {
                    None => drop(first.insert(key, &policy.id)),
                    Some(by) if **by == policy.id => {}
                    Some(by) => {
                        let (target, name) = key;
                        let text = format!(
                            "spec.{name}: overridden by {by}, which also sets it for {target}"
                        );
                        analysis.warn(&policy.id, text);
                    }
                }
            }
        }
    }
}

fn described(namespace: &str, target: &PolicyTarget) -> String {
    use crate::object::policy::PortRef;
    match target {
        PolicyTarget::Namespace => format!("Namespace {namespace}"),
        PolicyTarget::Service { name, port } => {
            let id = ServiceId::new(namespace, name.clone()).describe();
            match port {
                None => id,
                Some(PortRef::Name(name)) => format!("{id} port {name:?}"),
                Some(PortRef::Number(number)) => format!("{id} port {number}"),
            }
        }
        PolicyTarget::Route { kind, name, rule } => {
            let route = format!("{} {namespace}/{name}", kind.as_str());
            rule.as_ref().map_or(route.clone(), |rule| format!("{route} rule {rule:?}"))
        }
    }
}
