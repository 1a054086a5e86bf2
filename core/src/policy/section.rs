//! The one table of sections of TrafficPolicy and ServerPolicy. What people write, what a section is decided for and
//! which feature of the wire it needs follow from it: admission, overriding, status, definitions and conversions ask it.
//!
//! Of several policies for the same call or port the most specific one that has a section decides it, whatever
//! section it is.

use super::{BackendPolicy, CallPolicy};

/// What a section is decided for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The requests of a rule, or of a service without routes: for routes too.
    Call,
    /// A service port, whatever route leads there: not for routes.
    Backend,
    /// A port of the workloads that serve.
    Port,
}

/// A section of a policy.
#[derive(Debug, PartialEq, Eq)]
pub struct Section {
    /// As it is written in manifests.
    pub name: &'static str,
    pub scope: Scope,
    /// Of the wire format, which an older proxy may not know; none: it is in the first one.
    pub feature: Option<&'static str>,
}

macro_rules! sections {
    ($($id:ident = $name:literal, $scope:ident, $feature:expr;)*) => {
        $(pub static $id: Section = Section {
            name: $name,
            scope: Scope::$scope,
            feature: $feature,
        };)*

        /// Every section, in the order of the documentation.
        pub static ALL: &[&Section] = &[$(&$id),*];
    };
}

sections! {
    DEADLINE = "deadline", Call, None;
    STREAMING = "streaming", Call, None;
    TIMEOUTS = "timeouts", Call, None;
    RETRIES = "retries", Call, None;
    RETRY_BUDGET = "retryBudget", Backend, None;
    BREAKER = "breaker", Backend, None;
    OUTLIER_EJECTION = "outlierEjection", Backend, None;
    LIMITS = "limits", Backend, None;
    HEALTH_CHECK = "healthCheck", Backend, Some("health.v1");
    SLOW_START = "slowStart", Backend, Some("health.v1");
    PANIC_THRESHOLD = "panicThreshold", Backend, Some("health.v1");
    ZONE_PREFERENCE = "zonePreference", Backend, Some("zones.v1");
    SESSION_PERSISTENCE = "sessionPersistence", Backend, Some("sessions.v1");
    PRIORITY = "priority", Call, None;
    MAX_VISITS = "maxVisits", Call, None;
    HEDGE = "hedge", Call, Some("hedge.v1");
    CACHE = "cache", Call, Some("cache.v1");
    FALLBACKS = "fallbacks", Call, Some("fallbacks.v1");
    RATE_LIMITS = "rateLimits", Port, None;
    CONCURRENCY = "concurrency", Port, None;
}

/// The sections of a call that need a feature and are used.
pub fn of_call(call: &CallPolicy) -> impl Iterator<Item = &'static Section> {
    used([
        (&CACHE, call.cache.is_some()),
        (&FALLBACKS, !call.fallbacks.is_empty()),
        (&HEDGE, call.hedge.is_some()),
    ])
}

/// The same of a service port.
pub fn of_backend(policy: &BackendPolicy) -> impl Iterator<Item = &'static Section> {
    let preference = &policy.preference;
    used([
        (&HEALTH_CHECK, policy.health.is_some()),
        (&SLOW_START, preference.slow_start.is_some()),
        (&PANIC_THRESHOLD, preference.panic_threshold.is_some()),
        (&ZONE_PREFERENCE, preference.min_healthy_percent.is_some()),
        (&SESSION_PERSISTENCE, policy.session.is_some()),
    ])
}

fn used<const N: usize>(
    sections: [(&'static Section, bool); N],
) -> impl Iterator<Item = &'static Section> {
    sections.into_iter().filter(|(_, is_used)| *is_used).map(|(section, _)| section)
}

/// Names of the sections that are decided for `scope`.
pub fn names(scope: Scope) -> Vec<&'static str> {
    ALL.iter().filter(|section| section.scope == scope).map(|section| section.name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_distinct() {
        for (i, section) in ALL.iter().enumerate() {
            assert!(ALL[..i].iter().all(|other| other.name != section.name), "{}", section.name);
        }
    }
}
