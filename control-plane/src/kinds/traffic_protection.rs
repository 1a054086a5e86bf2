//! Sections of a `TrafficPolicy` that protect what is called, whatever route leads there.

use outrigger_core::policy::bounds;
use outrigger_core::policy::budget::BudgetConfig;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::defaults;
use super::schema::{
    ascends, at_least_one, default, default_duration, duration, number, rule, rule_at, some_field,
    stated_default, text, window,
};

/// The share of a new endpoint grows from a tenth to the full one. Example: `{window: 30s}`.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrafficSlowStart {
    /// Time in which it grows. Example: `30s`.
    #[schemars(transform = duration(&bounds::SLOW_START))]
    pub window: String,
}

/// Endpoints in the caller's own zone are preferred. Example: `{minHealthyPercent: 70}`.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct TrafficZonePreference {
    /// Percent of the zone's endpoints: when fewer are healthy, the missing share goes to other zones.
    #[schemars(transform = number(&bounds::PERCENT), transform = default(defaults::MIN_HEALTHY_PERCENT))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_healthy_percent: Option<u32>,
}

/// The retries that a calling proxy may make to the service, as a share of its requests. Example: `{percent: 10,
/// minPerSecond: 5}`.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct TrafficRetryBudget {
    /// Retries, as a percentage of the proxy's requests to the service.
    #[schemars(transform = number(&bounds::BUDGET_PERCENT), transform = default(BudgetConfig::default().percent))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub percent: Option<u32>,
    /// Retries per second that are allowed whatever the number of requests.
    #[schemars(transform = number(&bounds::BUDGET_PER_SECOND), transform = default(BudgetConfig::default().min_per_second))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_per_second: Option<u32>,
}

/// Opens when calls of the service fail; while it is open, calls get 503 at once. At least one of
/// `consecutiveFailures` and `failureRate` sets when. Example: `{consecutiveFailures: 5, open: {fixed: 30s}}`.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[schemars(transform = at_least_one(&["consecutiveFailures", "failureRate"]))]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct TrafficBreaker {
    /// Consecutive failures that open it. Example: `5`.
    #[schemars(transform = number(&bounds::FAILURES))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consecutive_failures: Option<u32>,
    /// Failure rate that opens it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure_rate: Option<TrafficFailureRate>,
    /// Time that it stays open.
    #[schemars(transform = stated_default(format!(
        "`{{base: {}, max: {}}}`", text(defaults::OPEN_BASE), text(defaults::OPEN_MAX)
    )))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub open: Option<TrafficOpen>,
    /// Concurrent half-open probes, and consecutive successes that close it.
    #[schemars(transform = number(&bounds::TRIALS), transform = default(defaults::TRIALS))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trials: Option<u32>,
}

/// Failures, as a share of requests. Example: `{percent: 50}`.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrafficFailureRate {
    /// Percent of the requests in the window that fail. Example: `50`.
    #[schemars(transform = number(&bounds::PERCENT))]
    pub percent: u32,
    /// Sliding window, in whole seconds.
    #[schemars(transform = window(), transform = default_duration(defaults::WINDOW))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<String>,
    /// Minimum requests in the window; below this the rate is not evaluated.
    #[schemars(transform = number(&bounds::MIN_REQUESTS), transform = default(defaults::MIN_REQUESTS))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_requests: Option<u32>,
}

/// How long a breaker stays open: always the same time (`fixed`), or one that doubles with each failed probe from
/// `base` to `max`, with jitter. Example: `{fixed: 30s}`.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[schemars(transform = some_field, transform = rule(
    "!has(self.fixed) || !has(self.base) && !has(self.max)",
    "sets both fixed and a growing time: set only one",
), transform = rule_at(
    "max",
    format!("has(self.fixed) || {}", ascends("base", defaults::OPEN_BASE, "max")),
    "must not be less than base",
))]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct TrafficOpen {
    /// Always this time. Example: `30s`.
    #[schemars(transform = duration(&bounds::OPEN))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fixed: Option<String>,
    /// Time after the first failure.
    #[schemars(transform = duration(&bounds::OPEN), transform = stated_default(text(defaults::OPEN_BASE)))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base: Option<String>,
    /// Longest time.
    #[schemars(transform = duration(&bounds::OPEN), transform = stated_default(format!(
        "{}, or `base` if that is more", text(defaults::OPEN_MAX)
    )))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<String>,
}

/// Ejects endpoints that fail while others do not. At least one of `consecutiveFailures` and `failureRate` sets when.
/// Example: `{consecutiveFailures: 5, baseEjection: 10s}`.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[schemars(transform = at_least_one(&["consecutiveFailures", "failureRate"]),
    transform = rule_at(
    "maxEjection",
    ascends("baseEjection", defaults::BASE_EJECTION, "maxEjection"),
    "must not be less than baseEjection",
))]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct TrafficOutlierEjection {
    /// Consecutive failures that eject an endpoint. Example: `5`.
    #[schemars(transform = number(&bounds::FAILURES))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consecutive_failures: Option<u32>,
    /// Failure rate that ejects an endpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure_rate: Option<TrafficFailureRate>,
    /// Duration of the first ejection; it doubles with each further ejection that follows soon.
    #[schemars(transform = duration(&bounds::OPEN), transform = default_duration(defaults::BASE_EJECTION))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_ejection: Option<String>,
    /// Longest ejection.
    #[schemars(transform = duration(&bounds::OPEN), transform = stated_default(format!(
        "{}, or `baseEjection` if that is more", text(defaults::MAX_EJECTION)
    )))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_ejection: Option<String>,
    /// Maximum percentage of the endpoints that are ejected; never all of them.
    #[schemars(transform = number(&bounds::PERCENT), transform = default(defaults::MAX_EJECTED_PERCENT))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_ejected_percent: Option<u32>,
}

/// Limits on one calling proxy's requests in flight to the service. Example: `{maxInFlight: 100, maxPending: 10}`.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[schemars(transform = some_field, transform = rule_at(
    "maxPending",
    "!has(self.maxPending) || has(self.maxInFlight)",
    "has no effect without maxInFlight",
))]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct TrafficLimits {
    /// Maximum requests in flight to the service; further ones get 503. Unset: no limit. Example: `100`.
    #[schemars(transform = number(&bounds::IN_FLIGHT))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_in_flight: Option<u32>,
    /// Maximum requests that are queued while the limit is reached. Unset: none. Example: `10`.
    #[schemars(transform = number(&bounds::PENDING))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_pending: Option<u32>,
    /// Maximum requests in flight to one endpoint; others are used while any is below it. Unset: no limit. Example:
    /// `50`.
    #[schemars(transform = number(&bounds::IN_FLIGHT))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_in_flight_per_endpoint: Option<u32>,
}
