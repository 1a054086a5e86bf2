//! What holds in the end: of each section of a policy, what the most specific one says.
//!
//! For a call the order is: the rule of the HTTPRoute itself, then policies for the rule, the route,
//! the Service's port, the Service, the Namespace. Of equals the oldest decides, then the first by
//! name. [`crate::status`] says to each policy what it lost, and to whom.

use outrigger_core::config::{BackendTarget, HttpRule};
use outrigger_core::policy::bounds;
use outrigger_core::policy::fallback::Fallback;
use outrigger_core::policy::fault::Fault;
use outrigger_core::policy::preference::PreferenceConfig;
use outrigger_core::policy::stop::StopRule;
use outrigger_core::policy::{BackendPolicy, CallPolicy, ServerPolicy};

use crate::index::Index;
use crate::object::policy::{
    Attached, FaultInjection, PolicyTarget, Rank, RuleCall, ServerSections, TrafficSections,
};
use crate::object::targets::for_each_fallback;
use crate::object::{ObjectId, Route, ServiceId, ServicePort, Workload};

/// A policy that applies to a call or port, and through which of its targets.
#[derive(Debug)]
pub struct ApplicablePolicy<'a, S> {
    pub policy: &'a Attached<S>,
    pub target: &'a PolicyTarget,
    rank: Rank,
}

/// TrafficPolicies that apply to a port of a Service, the one that is asked first in front.
pub fn of_port<'a>(
    index: &'a Index,
    service: &ServiceId,
    port: &ServicePort,
) -> Vec<ApplicablePolicy<'a, TrafficSections>> {
    let policies = index.traffic_policies_of(service);
    in_order(policies.filter_map(|policy| {
        let (rank, target) = policy.for_port(service, port)?;
        Some(ApplicablePolicy { policy, target, rank })
    }))
}

/// TrafficPolicies that apply to a rule of a route, the one that is asked first in front.
pub fn of_rule<'a>(
    index: &'a Index,
    route: &ObjectId,
    rule: Option<&str>,
) -> Vec<ApplicablePolicy<'a, TrafficSections>> {
    let policies = index.traffic_policies_of_route(route);
    in_order(policies.filter_map(|policy| {
        let (rank, target) = policy.for_rule(route, rule)?;
        Some(ApplicablePolicy { policy, target, rank })
    }))
}

/// ServerPolicies that apply to a port of a workload, the one that is asked first in front.
pub fn of_workload<'a>(
    index: &'a Index,
    workload: &Workload,
    port: u16,
) -> Vec<ApplicablePolicy<'a, ServerSections>> {
    // The ports of Services that lead there; a port that none leads to has its namespace only.
    let services: Vec<_> = index
        .selecting(workload)
        .into_iter()
        .filter_map(|id| index.service(id))
        .flat_map(|service| service.ports.iter().map(move |of| (&service.id, of)))
        .filter(|(_, of)| workload.port(&of.target) == Some(port))
        .collect();
    let ids = services.iter().map(|(id, _)| *id);
    let policies = index.server_policies_of(&workload.namespace, ids);
    in_order(policies.filter_map(|policy| {
        let through = services.iter().filter_map(|(id, of)| policy.for_port(id, of));
        let whole = policy.targets.iter().find(|target| **target == PolicyTarget::Namespace);
        let whole = whole.map(|target| (Rank::Namespace, target));
        let (rank, target) = through.chain(whole).min_by_key(|(rank, _)| *rank)?;
        Some(ApplicablePolicy { policy, target, rank })
    }))
}

fn in_order<'a, S>(
    speakers: impl Iterator<Item = ApplicablePolicy<'a, S>>,
) -> Vec<ApplicablePolicy<'a, S>> {
    let mut speakers: Vec<_> = speakers.collect();
    speakers.sort_by_key(|speaker| (speaker.rank, speaker.policy.created, &speaker.policy.id));
    speakers
}

/// How requests to a port are called that match no rule.
pub fn call(index: &Index, service: &ServiceId, port: &ServicePort) -> CallPolicy {
    put_together(index, &RuleCall::default(), &of_port(index, service, port), Vec::new())
}

/// How requests of one rule are called; none: as the port's others.
pub fn rule_call(
    index: &Index,
    service: &ServiceId,
    port: &ServicePort,
    route: &Route,
    (i, rule): (usize, &HttpRule),
) -> Option<CallPolicy> {
    let own = route.calls.get(i).cloned().unwrap_or_default();
    let mut speakers = of_rule(index, &route.id, rule.name.as_deref());
    let faults = rule_faults(index, &route.id, rule.name.as_deref());
    let faults: Vec<_> = sent(&faults);
    if speakers.is_empty() && own == RuleCall::default() && faults.is_empty() {
        return None;
    }
    speakers.extend(of_port(index, service, port));
    Some(put_together(index, &own, &speakers, faults))
}

fn put_together(
    index: &Index,
    own: &RuleCall,
    speakers: &[ApplicablePolicy<'_, TrafficSections>],
    faults: Vec<Fault>,
) -> CallPolicy {
    let plain = CallPolicy::default();
    let deadline = own.deadline.or_else(|| first(speakers, |said| said.deadline));
    let mut timeouts = first(speakers, |said| said.timeouts).unwrap_or_default();
    if let Some(attempt) = own.attempt {
        timeouts.attempt = Some(attempt).filter(|time| !time.is_zero());
    }
    let retries = own.retries.clone();
    CallPolicy {
        deadline: deadline.filter(|time| !time.is_zero()),
        streaming: first(speakers, |said| said.streaming).unwrap_or(plain.streaming),
        timeouts,
        retries: retries
            .or_else(|| first(speakers, |said| said.retries.clone()))
            .unwrap_or(plain.retries),
        priority: first(speakers, |said| said.priority),
        max_visits: first(speakers, |said| said.max_visits).unwrap_or(plain.max_visits),
        hedge: first(speakers, |said| said.hedge),
        cache: first(speakers, |said| said.cache),
        fallbacks: fallbacks(index, speakers),
        faults,
    }
}

/// References that do not resolve are replaced by their explanation: the next fallback is given then.
fn fallbacks(index: &Index, speakers: &[ApplicablePolicy<'_, TrafficSections>]) -> Vec<Fallback> {
    let said = speakers.iter().find_map(|speaker| {
        let said = speaker.policy.sections.fallbacks.clone()?;
        Some((speaker.policy, said))
    });
    let Some((policy, mut said)) = said else { return Vec::new() };
    for_each_fallback(&mut said, &mut |path, target| {
        let BackendTarget::Service(name) = target else { return };
        if let Err(problem) = index.check_reference(&policy.id, name) {
            *target = BackendTarget::Invalid(problem.under(path).to_string());
        }
    });
    said
}

/// Client-side protection of a port of a Service.
pub fn backend(index: &Index, service: &ServiceId, port: &ServicePort) -> BackendPolicy {
    let speakers = of_port(index, service, port);
    BackendPolicy {
        budget: first(&speakers, |said| said.budget).unwrap_or_default(),
        breaker: first(&speakers, |said| said.breaker),
        outlier: first(&speakers, |said| said.outlier),
        limits: first(&speakers, |said| said.limits).unwrap_or_default(),
        health: first(&speakers, |said| said.health.clone()),
        preference: PreferenceConfig {
            slow_start: first(&speakers, |said| said.slow_start),
            panic_threshold: first(&speakers, |said| said.panic_threshold),
            min_healthy_percent: first(&speakers, |said| said.zones)
                .or_else(|| index.service(service)?.min_healthy_percent),
        },
        session: first(&speakers, |said| said.session.clone()),
        faults: sent(&port_faults(index, service, port)),
        stop_rules: stop_rules(index, service, port),
    }
}

/// Fault injections that are for a port of a Service, whatever route leads there, the first in front.
pub fn port_faults<'a>(
    index: &'a Index,
    service: &ServiceId,
    port: &ServicePort,
) -> Vec<&'a FaultInjection> {
    let all = index.fault_injections_of(service);
    by_age(all.filter(|policy| policy.for_port(service, port).is_some() && index.runs(policy)))
}

/// Fault injections that are for a rule of a route, the first in front.
pub fn rule_faults<'a>(
    index: &'a Index,
    route: &ObjectId,
    rule: Option<&str>,
) -> Vec<&'a FaultInjection> {
    let all = index.fault_injections_of_route(route);
    by_age(all.filter(|policy| policy.for_rule(route, rule).is_some() && index.runs(policy)))
}

/// Of fault injections whose guards watch a port.
fn stop_rules(index: &Index, service: &ServiceId, port: &ServicePort) -> Vec<StopRule> {
    let running = index.fault_injections_watching(service).filter(|one| index.runs(one));
    let guards = running.filter_map(|policy| policy.sections.guard.as_ref());
    let of_port = guards.filter(|guard| guard.port == port.port);
    of_port.map(|guard| guard.rule.clone()).take(bounds::MAX_STOP_RULES).collect()
}

fn by_age<'a>(all: impl Iterator<Item = &'a FaultInjection>) -> Vec<&'a FaultInjection> {
    let mut all: Vec<_> = all.collect();
    all.sort_by_key(|policy| policy.sections.fault.order());
    all
}

/// Those that proxies are told of; `status` says which are too many.
fn sent(all: &[&FaultInjection]) -> Vec<Fault> {
    all.iter().take(bounds::MAX_FAULTS).map(|policy| policy.sections.fault.clone()).collect()
}

/// What a port of a workload lets in; none: whatever comes.
pub fn server(index: &Index, workload: &Workload, port: u16) -> Option<ServerPolicy> {
    let speakers = of_workload(index, workload, port);
    let policy = ServerPolicy {
        rate_limits: first(&speakers, |said| said.rate_limits.clone()).unwrap_or_default(),
        concurrency: first(&speakers, |said| said.concurrency),
    };
    (policy != ServerPolicy::default()).then_some(policy)
}

fn first<S, T>(speakers: &[ApplicablePolicy<'_, S>], said: impl Fn(&S) -> Option<T>) -> Option<T> {
    speakers.iter().find_map(|speaker| said(&speaker.policy.sections))
}
