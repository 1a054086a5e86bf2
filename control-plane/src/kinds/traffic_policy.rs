//! `TrafficPolicy`: how a service is called. docs/resilience.md says what each section does and why its
//! defaults are what they are.
//!
//! Durations are those of the Gateway API (GEP-2257), as in `1m30s` or `250ms`. What protects the called service is in
//! [`super::traffic_protection`].

use kube::CustomResource;
use outrigger_core::policy::retry::{DEFAULT_ATTEMPTS, DEFAULT_REPLAY_BYTES, RetryConfig};
use outrigger_core::policy::{CallPolicy, bounds, session};
use schemars::{JsonSchema, Schema};
use serde::{Deserialize, Serialize};

use super::schema::{
    bounded, default, duration, duration_or_zero, each, items, length, number, rule, rule_at,
    some_field, stated_default, text,
};
use super::target_ref::{CALLED, not_for_routes, some_section, targets};
use super::{
    TargetRef, TrafficBreaker, TrafficCache, TrafficFallback, TrafficHealthCheck, TrafficHedge,
    TrafficLimits, TrafficOutlierEjection, TrafficRetryBudget, TrafficSlowStart,
    TrafficZonePreference, defaults,
};

/// How the services and routes that it targets are called. Every field but `targetRefs` is a section:
/// of several policies for the same call, the most specific one that has a section decides it. Durations are written
/// as in `1m30s` or `250ms`.
#[derive(CustomResource, Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[kube(
    group = "outrigger.dev",
    version = "v1alpha1",
    kind = "TrafficPolicy",
    plural = "trafficpolicies",
    shortname = "tp",
    category = "outrigger",
    namespaced,
    doc = "How services are called"
)]
#[schemars(transform = some_section, transform = not_for_routes)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrafficPolicySpec {
    /// Targets: Services and ExternalServices (or one port), HTTPRoutes and GRPCRoutes (or one rule) of its
    /// own namespace, or that namespace. Example: `[{kind: Service, name: orders}]`.
    #[schemars(transform = targets(CALLED))]
    pub target_refs: Vec<TargetRef>,
    /// Total time of a request without a deadline of its own. `0s`: no limit. Unset: no limit. Example: `2s`.
    #[schemars(transform = duration_or_zero(&bounds::TIMEOUT))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<String>,
    /// A deadline that the mesh started ends with the head of the response, for streaming responses. Unset: `false`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub streaming: Option<bool>,
    /// Timeouts. Unset: none but those of the proxy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeouts: Option<TrafficTimeouts>,
    /// Retries. Unset: only requests that provably were not processed are retried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retries: Option<TrafficRetries>,
    /// Retry budget. Not for routes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_budget: Option<TrafficRetryBudget>,
    /// Circuit breaker. Unset: none. Not for routes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub breaker: Option<TrafficBreaker>,
    /// Outlier ejection. Unset: no endpoint is ejected. Not for routes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outlier_ejection: Option<TrafficOutlierEjection>,
    /// Limits on requests in flight. Unset: none. Not for routes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<TrafficLimits>,
    /// Active health checks. Unset: none. Not for routes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_check: Option<TrafficHealthCheck>,
    /// Slow start of new endpoints. Unset: they get their full share at once. Not for routes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slow_start: Option<TrafficSlowStart>,
    /// Panic threshold, in percent of the endpoints: when fewer are neither ejected nor unhealthy, ejections and
    /// health checks are ignored. 0: never. Unset: only health checks are ignored, when fewer than half are healthy.
    /// Not for routes. Example: `50`.
    #[schemars(transform = number(&bounds::PANIC))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub panic_threshold: Option<u32>,
    /// Zone preference. Unset: zones are ignored. Not for routes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone_preference: Option<TrafficZonePreference>,
    /// Session persistence. Unset: each request of a client goes to any endpoint. Not for routes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_persistence: Option<TrafficSessionPersistence>,
    /// Priority of requests without the header `x-outrigger-priority`. Unset: Default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<TrafficPriority>,
    /// How often the same request may visit a service on its call path; one visit more gets 508. Example: `3`.
    #[schemars(transform = number(&bounds::VISITS), transform = stated_default(CallPolicy::default().max_visits))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_visits: Option<u32>,
    /// Hedging. Unset: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hedge: Option<TrafficHedge>,
    /// Response cache. Unset: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<TrafficCache>,
    /// What a caller gets instead of a failure: the first entry that matches the failure and is possible. Unset: the
    /// failure.
    #[schemars(transform = items(1, bounds::MAX_FALLBACKS))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallbacks: Option<Vec<TrafficFallback>>,
}

/// The requests of one client go to one endpoint, as long as it exists and is neither ejected nor unhealthy. A cookie
/// or header of the last response names the endpoint, and the client sends it back (GEP-1619). Example:
/// `{sessionName: basket}`.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[schemars(transform = rule_at(
    "absoluteTimeout",
    "!has(self.absoluteTimeout) || !has(self.type) || self.type == 'Cookie'",
    "is for cookies",
))]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct TrafficSessionPersistence {
    /// Name of the cookie or header.
    #[schemars(transform = length(1, session::MAX_NAME), transform = default(session::DEFAULT_NAME))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_name: Option<String>,
    /// What names the endpoint.
    #[serde(default)]
    pub r#type: TrafficSessionType,
    /// Lifetime of the cookie. Unset: a session cookie. Example: `8h`.
    #[schemars(transform = duration(&session::LIFETIME))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub absolute_timeout: Option<String>,
}

#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, JsonSchema)]
pub enum TrafficSessionType {
    /// A cookie, which browsers and most clients send back by themselves.
    #[default]
    Cookie,
    /// A header, which the client has to send back.
    Header,
}

/// Each limits one part of a call; an unset one sets no limit here. Example: `{connect: 1s, attempt: 500ms}`.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[schemars(transform = some_field)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct TrafficTimeouts {
    /// Time to open a connection. Unset: the proxy's `--connect-timeout`. Example: `1s`.
    #[schemars(transform = duration(&bounds::TIMEOUT))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connect: Option<String>,
    /// Time from sending a request to the head of its response, in each attempt. Example: `1s`.
    #[schemars(transform = duration(&bounds::TIMEOUT))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_byte: Option<String>,
    /// Idle timeout of a response, of an upgraded connection or of a CONNECT. Example: `30s`.
    #[schemars(transform = duration(&bounds::TIMEOUT))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle: Option<String>,
    /// Time of one attempt up to the head of its response, its connection included. Example: `500ms`.
    #[schemars(transform = duration(&bounds::TIMEOUT))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempt: Option<String>,
}

/// A failed attempt is retried if `when` names its failure, the request is idempotent (RFC 9110 section 9.2.2), has
/// an `idempotency-key`, or `nonIdempotent` is set, its whole body was buffered, and the retry budget allows it.
/// Example: `{maxAttempts: 3, when: {statuses: [503], reset: true}, backoff: {base: 25ms}}`.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[schemars(transform = no_effect_alone)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct TrafficRetries {
    /// Attempts of one request, the first included; 1: no retries.
    #[schemars(transform = number(&bounds::ATTEMPTS), transform = default(DEFAULT_ATTEMPTS))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_attempts: Option<u32>,
    /// Failures that are retried. Unset: only requests that provably were not processed are retried.
    pub when: TrafficRetryWhen,
    /// Also retries requests whose method is not idempotent and that have no `idempotency-key`: the app tolerates
    /// duplicates.
    pub non_idempotent: bool,
    /// Pause before the next attempt, with exponential backoff. Unset: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backoff: Option<TrafficBackoff>,
    /// Bytes of a request's body that are buffered for retries; a request with a longer body is not retried.
    #[schemars(transform = number(&bounds::REPLAY_BYTES), transform = default(DEFAULT_REPLAY_BYTES))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_replay_bytes: Option<u32>,
}

fn no_effect_alone(schema: &mut Schema) {
    let replay = RetryConfig::default().max_replay_bytes;
    let holds = format!(
        "self.maxAttempts != 1 || !(self.nonIdempotent || has(self.backoff) || self.maxReplayBytes != {replay} || \
         has(self.when) && (self.when.reset || self.when.timeout || \
         has(self.when.statuses) && self.when.statuses.size() > 0 || \
         has(self.when.grpc) && self.when.grpc.size() > 0))"
    );
    let says = "is 1: there are no retries, and the other fields have no effect";
    rule_at("maxAttempts", holds, says)(schema);
}

/// How an attempt failed. Example: `{statuses: [502, 503], grpc: [UNAVAILABLE], reset: true}`.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct TrafficRetryWhen {
    /// Statuses of responses; only statuses that are the server's fault. Example: `[502, 503]`.
    #[schemars(transform = items(0, bounds::MAX_STATUSES), transform = each(retried_status))]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub statuses: Vec<u32>,
    /// Names of gRPC status codes of responses without messages. Example: `[UNAVAILABLE]`.
    #[schemars(transform = items(0, bounds::MAX_GRPC))]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub grpc: Vec<GrpcCode>,
    /// The connection or stream ended after the request was sent and before a response.
    pub reset: bool,
    /// A timeout of the attempt passed (`timeouts.firstByte` or `timeouts.attempt`).
    pub timeout: bool,
}

fn retried_status(schema: &mut Schema) {
    let (too_many, least) = (bounds::TOO_MANY_REQUESTS, *bounds::RETRY_STATUSES.start());
    let most = *bounds::RETRY_STATUSES.end();
    number(&(too_many..=most))(schema);
    let holds = format!("self == {too_many} || self >= {least}");
    rule(holds, format!("is not {too_many} or between {least} and {most}"))(schema);
    bounded(format!("{too_many}, {least} to {most}"))(schema);
}

/// A gRPC status code other than OK.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum GrpcCode {
    Cancelled = 1,
    Unknown = 2,
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    NotFound = 5,
    AlreadyExists = 6,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    FailedPrecondition = 9,
    Aborted = 10,
    OutOfRange = 11,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
    DataLoss = 15,
    Unauthenticated = 16,
}

/// The pause doubles from `base` to `max`, with `jitter`. Example: `{base: 25ms, max: 250ms}`.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[schemars(transform = rule_at(
    "max",
    "!has(self.max) || duration(self.max) >= duration(self.base)",
    "must not be less than base",
))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrafficBackoff {
    /// First pause. Example: `25ms`.
    #[schemars(transform = duration(&bounds::BACKOFF))]
    pub base: String,
    /// Longest pause. Example: `250ms`.
    #[schemars(transform = duration(&bounds::BACKOFF), transform = stated_default(format!(
        "{} times `base`, at most {}", defaults::BACKOFF_GROWTH, text(*bounds::BACKOFF.end())
    )))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<String>,
    /// How a pause is randomized.
    #[serde(default)]
    pub jitter: TrafficJitter,
}

#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, JsonSchema)]
pub enum TrafficJitter {
    /// A random time between 0 and the pause.
    #[default]
    Full,
    /// The pause, and a random time of up to half of it.
    Additive,
    /// A random time between `base` and three times the previous pause.
    Decorrelated,
}

#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, JsonSchema)]
pub enum TrafficPriority {
    /// Refused last under overload.
    Critical,
    /// The same as requests without a priority.
    Default,
    /// Refused first under overload.
    Sheddable,
}
