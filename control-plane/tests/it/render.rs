//! Policies as text for snapshots: only what differs from saying nothing.

use std::fmt::Debug;

use outrigger_core::policy::fault::Fault;
use outrigger_core::policy::stop::StopRule;
use outrigger_core::policy::{BackendPolicy, CallPolicy, ServerPolicy};

pub(crate) fn call(policy: &CallPolicy) -> String {
    let plain = CallPolicy::default();
    line([
        part("deadline", &policy.deadline, &plain.deadline),
        part("streaming", &policy.streaming, &plain.streaming),
        part("timeouts", &policy.timeouts, &plain.timeouts),
        part("retries", &policy.retries, &plain.retries),
        part("priority", &policy.priority, &plain.priority),
        part("visits", &policy.max_visits, &plain.max_visits),
        part("hedge", &policy.hedge, &plain.hedge),
        part("cache", &policy.cache, &plain.cache),
        part("fallbacks", &policy.fallbacks, &plain.fallbacks),
        faults(&policy.faults),
    ])
}

pub(crate) fn backend(policy: &BackendPolicy) -> String {
    let plain = BackendPolicy::default();
    line([
        part("budget", &policy.budget, &plain.budget),
        part("breaker", &policy.breaker, &plain.breaker),
        part("outlier", &policy.outlier, &plain.outlier),
        part("limits", &policy.limits, &plain.limits),
        part("health", &policy.health, &plain.health),
        part("preference", &policy.preference, &plain.preference),
        faults(&policy.faults),
        stop_rules(&policy.stop_rules),
    ])
}

pub(crate) fn server(policy: &ServerPolicy) -> String {
    let plain = ServerPolicy::default();
    line([
        part("rate limits", &policy.rate_limits, &plain.rate_limits),
        part("concurrency", &policy.concurrency, &plain.concurrency),
    ])
}

/// Without version, which is a hash.
fn faults(all: &[Fault]) -> Option<String> {
    let each = all.iter().map(|fault| {
        let Fault { name, from, matches, share, kind, times, .. } = fault;
        format!("{name}: {share} of {from:?} {matches:?} {kind:?} {times:?}")
    });
    let each: Vec<_> = each.collect();
    (!each.is_empty()).then(|| format!("faults {each:?}"))
}

fn stop_rules(all: &[StopRule]) -> Option<String> {
    let each = all.iter().map(|rule| {
        let StopRule { name, from, min_success_percent, max_p99, window, min_requests, .. } = rule;
        format!("{name}: {from} {min_success_percent:?} {max_p99:?} {window:?} of {min_requests}")
    });
    let each: Vec<_> = each.collect();
    (!each.is_empty()).then(|| format!("stops {each:?}"))
}

fn part<T: Debug + PartialEq>(name: &str, value: &T, plain: &T) -> Option<String> {
    (value != plain).then(|| format!("{name} {value:?}"))
}

fn line<const N: usize>(parts: [Option<String>; N]) -> String {
    parts.into_iter().flatten().collect::<Vec<_>>().join("; ")
}
