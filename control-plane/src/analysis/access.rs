//! AccessPolicies that are for nobody, name callers that do not exist, or have rules that decide nothing.

use std::collections::{BTreeMap, BTreeSet};

use outrigger_core::policy::access::{AccessRule, Action};

use super::Analysis;
use crate::index::Index;
use crate::object::{Policy, Workload};

/// Rules that are compared with each other at most, in one place.
const MAX_COMPARED: usize = 1_000;

pub(super) fn analyze(analysis: &mut Analysis<'_>) {
    let policies: Vec<Policy> = analysis.access_policies().into_iter().cloned().collect();
    for policy in &policies {
        let mut texts = applies_to(analysis, policy);
        texts.extend(says_nothing(policy));
        texts.extend(callers(analysis, policy));
        let id = policy.id();
        for text in texts {
            analysis.warn(&id, text);
        }
    }
    let mut together: BTreeMap<_, Vec<&Policy>> = BTreeMap::new();
    for policy in &policies {
        let place = (&policy.namespace, &policy.selector, &policy.ports);
        together.entry(place).or_default().push(policy);
    }
    for mut equals in together.into_values() {
        equals.sort_by_key(|policy| (policy.created, &policy.name));
        decided_twice(analysis, &equals);
        needless(analysis, &equals);
    }
}

/// A selector or port that nothing has.
fn applies_to(analysis: &Analysis<'_>, policy: &Policy) -> Vec<String> {
    let (index, namespace) = (analysis.index, &policy.namespace);
    if !analysis.knows_workloads_in(namespace) {
        return Vec::new();
    }
    let uids = index.workloads_of_access(policy);
    let workloads: Vec<&Workload> = uids.iter().filter_map(|uid| index.workload(uid)).collect();
    if workloads.is_empty() {
        return vec![format!(
            "spec.selector: matches no known workload in namespace {namespace}, so the policy \
             protects nothing"
        )];
    }
    let served: Vec<BTreeSet<u16>> = workloads.iter().map(|w| ports_of(index, w)).collect();
    // Where a workload does not say its ports, it may have any.
    if served.iter().any(BTreeSet::is_empty) {
        return Vec::new();
    }
    let ports = policy.ports.iter().enumerate();
    let ports = ports.filter(|(_, port)| served.iter().all(|of_one| !of_one.contains(port)));
    let text = |(i, port): (usize, &u16)| {
        format!(
            "spec.ports[{i}]: no selected workload serves port {port}; use the app's port, not the \
             Service's"
        )
    };
    ports.map(text).collect()
}

/// The ports that a workload says it has; empty: any.
fn ports_of(index: &Index, workload: &Workload) -> BTreeSet<u16> {
    let mut ports: BTreeSet<u16> = workload.ports.iter().map(|port| port.port).collect();
    if workload.ports.is_empty() && workload.pod.is_some() {
        let services = index.selecting(workload).into_iter().filter_map(|id| index.service(id));
        let targets = services.flat_map(|service| &service.ports);
        ports.extend(targets.filter_map(|port| workload.port(&port.target)));
    }
    ports
}

fn says_nothing(policy: &Policy) -> Option<String> {
    if policy.mtls.is_none()
        && policy.default.is_none()
        && policy.rules.is_empty()
        && policy.issuers.is_empty()
    {
        let text = "spec: has no rules, default, mtls or jwt in force, so the policy has no effect";
        return Some(text.to_owned());
    }
    let allows = policy.rules.iter().any(|rule| rule.action == Action::Allow && !rule.audit);
    (policy.default == Some(Action::Allow) && allows).then(|| {
        "spec.default: Allow has no effect together with a rule with the action Allow: a caller \
         that matches no such rule is denied"
            .to_owned()
    })
}

fn callers(analysis: &Analysis<'_>, policy: &Policy) -> Vec<String> {
    let mut texts = Vec::new();
    for (i, rule) in policy.rules.iter().enumerate() {
        let from = rule.from.iter().enumerate().filter(|(_, from)| from.trust_domains.is_empty());
        for (k, from) in from {
            let path = format!("spec.rules[{i}].from[{k}]");
            for (m, account) in from.service_accounts.iter().enumerate() {
                if let Some(problem) = analysis.unknown_account(account) {
                    texts.push(format!("{path}.serviceAccounts[{m}]: {problem}"));
                }
            }
            for (m, namespace) in from.namespaces.iter().enumerate() {
                // The rule that stands for `default: Deny` in audit mode names none.
                let problem = analysis.unknown_namespace(namespace);
                if let Some(problem) = problem.filter(|_| !namespace.is_empty()) {
                    texts.push(format!("{path}.namespaces[{m}]: {problem}"));
                }
            }
        }
    }
    texts
}

/// `mtls` and `default` that another policy for the same workloads and ports says differently.
fn decided_twice(analysis: &mut Analysis<'_>, equals: &[&Policy]) {
    for (i, policy) in equals.iter().enumerate() {
        let earlier = &equals[..i];
        let mtls = earlier
            .iter()
            .find(|other| other.mtls.is_some())
            .filter(|other| policy.mtls.is_some() && other.mtls != policy.mtls);
        let default = earlier
            .iter()
            .find(|other| other.default.is_some())
            .filter(|other| policy.default.is_some() && other.default != policy.default);
        for (field, by) in [("mtls", mtls), ("default", default)] {
            if let Some(by) = by {
                let text = format!(
                    "spec.{field}: overridden by AccessPolicy {}, which sets another value for the \
                     same ports",
                    by.full_name()
                );
                analysis.warn(&policy.id(), text);
            }
        }
    }
}

/// Rules that another rule for the same workloads and ports makes needless.
fn needless(analysis: &mut Analysis<'_>, equals: &[&Policy]) {
    let rules = equals.iter().flat_map(|policy| {
        policy.rules.iter().enumerate().map(move |(i, rule)| (*policy, i, rule))
    });
    let rules: Vec<_> = rules.take(MAX_COMPARED).collect();
    for (at, (policy, i, rule)) in rules.iter().enumerate() {
        let others = rules.iter().enumerate().filter(|(other, _)| *other != at);
        let mut by = others.filter(|(other, (_, _, by))| {
            makes_needless(by, rule) && (*other < at || !makes_needless(rule, by))
        });
        let Some((_, (of, k, other))) = by.next() else { continue };
        let place = match of.name == policy.name {
            true => format!("spec.rules[{k}]"),
            false => format!("spec.rules[{k}] of AccessPolicy {}", of.full_name()),
        };
        let why = match (other.action, rule.action) {
            (Action::Deny, Action::Allow) => "denies everything that it allows",
            (Action::Deny, Action::Deny) => "denies everything that it denies",
            (Action::Allow, _) => "allows everything that it allows",
        };
        analysis.warn(&policy.id(), format!("spec.rules[{i}]: has no effect: {place} {why}"));
    }
}

/// Whether everything that `rule` matches is decided by `by` in any case.
fn makes_needless(by: &AccessRule, rule: &AccessRule) -> bool {
    let decides = by.action == Action::Deny || rule.action == Action::Allow;
    decides
        && by.audit == rule.audit
        && includes(&by.from, &rule.from)
        && includes(&by.to, &rule.to)
        && by.claims.iter().all(|claim| rule.claims.contains(claim))
}

/// Whether one of `all` holds wherever one of `some` does, as far as that can be told; empty: everything.
fn includes<T: PartialEq>(all: &[T], some: &[T]) -> bool {
    all.is_empty() || (!some.is_empty() && some.iter().all(|one| all.contains(one)))
}
