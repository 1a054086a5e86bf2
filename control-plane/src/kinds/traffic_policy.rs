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
    /// What it is for: Services and ExternalServices (or one port), HTTPRoutes and GRPCRoutes (or one rule) of its
    /// own namespace, or that namespace. Example: `[{kind: Service, name: orders}]`.
    #[schemars(transform = targets(CALLED))]
    pub target_refs: Vec<TargetRef>,
    /// Time that a request has as a whole which brings no deadline of its own. `0s`: any time. Unset: any time.
    /// Example: `2s`.
    #[schemars(transform = duration_or_zero(&bounds::TIMEOUT))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<String>,
    /// The deadline that this mesh started ends with the head of the response, for responses that are streams.
    /// Unset: `false`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub streaming: Option<bool>,
    /// Timeouts. Unset: none but those of the proxy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeouts: Option<TrafficTimeouts>,
    /// Retries. Unset: only what provably nobody processed is sent again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retries: Option<TrafficRetries>,
    /// Retry budget. Not for routes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_budget: Option<TrafficRetryBudget>,
    /// Circuit breaker. Unset: there is none. Not for routes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub breaker: Option<TrafficBreaker>,
    /// Outlier ejection. Unset: no endpoint is ejected. Not for routes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outlier_ejection: Option<TrafficOutlierEjection>,
    /// Limits of what is in flight. Unset: there are none. Not for routes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<TrafficLimits>,
    /// Health checks. Unset: there are none. Not for routes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_check: Option<TrafficHealthCheck>,
    /// Warm-up of new endpoints. Unset: they have their full share at once. Not for routes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slow_start: Option<TrafficSlowStart>,
    /// Percent of the endpoints: when fewer are neither ejected nor unhealthy, ejections and checks are ignored. 0:
    /// they never are. Unset: checks alone are, when fewer than half are healthy. Not for routes. Example: `50`.
    #[schemars(transform = number(&bounds::PANIC))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub panic_threshold: Option<u32>,
    /// Zone preference. Unset: zones are ignored. Not for routes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone_preference: Option<TrafficZonePreference>,
    /// Session persistence. Unset: requests of one client go to any endpoint. Not for routes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_persistence: Option<TrafficSessionPersistence>,
    /// Priority of requests that bring none in `x-outrigger-priority`. Unset: Default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<TrafficPriority>,
    /// How often a service may see the same request on its way; once more, and it ends with 508. Example: `3`.
    #[schemars(transform = number(&bounds::VISITS), transform = stated_default(CallPolicy::default().max_visits))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_visits: Option<u32>,
    /// Hedging. Unset: no second attempt is made while one waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hedge: Option<TrafficHedge>,
    /// Cache. Unset: no answer is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<TrafficCache>,
    /// What a caller gets instead of a failure: the first entry that is for it and can be given. Unset: the failure.
    #[schemars(transform = items(1, bounds::MAX_FALLBACKS))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallbacks: Option<Vec<TrafficFallback>>,
}

/// The requests of one client go to one endpoint, as long as it is there and neither ejected nor unhealthy. The client
/// carries it, in a cookie or a header of the last answer (GEP-1619). Example: `{sessionName: basket}`.
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
    /// What carries the endpoint.
    #[serde(default)]
    pub r#type: TrafficSessionType,
    /// Time that the client may keep the cookie. Unset: to the end of its own session. Example: `8h`.
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

/// Each bounds one part of a call; what is unset is not bounded here. Example: `{connect: 1s, attempt: 500ms}`.
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
    /// Longest silence of a response, of an upgraded connection or of a CONNECT. Example: `30s`.
    #[schemars(transform = duration(&bounds::TIMEOUT))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle: Option<String>,
    /// Time of one attempt up to the head of its response, its connection included. Example: `500ms`.
    #[schemars(transform = duration(&bounds::TIMEOUT))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempt: Option<String>,
}

/// An attempt is made again if `when` names how it failed, the request is idempotent (RFC 9110 section 9.2.2), has an
/// `idempotency-key`, or `nonIdempotent` is set, its body was kept whole, and the retry budget allows it. Example:
/// `{maxAttempts: 3, when: {statuses: [503], reset: true}, backoff: {base: 25ms}}`.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[schemars(transform = no_effect_alone)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct TrafficRetries {
    /// Attempts of one request, the first included; 1: nothing is sent again.
    #[schemars(transform = number(&bounds::ATTEMPTS), transform = default(DEFAULT_ATTEMPTS))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_attempts: Option<u32>,
    /// Failures that are tried again. Unset: none but those that provably nobody processed.
    pub when: TrafficRetryWhen,
    /// Also requests whose method is not idempotent and that have no `idempotency-key`: the app can take them twice.
    pub non_idempotent: bool,
    /// Pause before the next attempt. Unset: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backoff: Option<TrafficBackoff>,
    /// Bytes of a request's body kept so that it can be sent again; with a longer one nothing is.
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
    let says = "is 1: nothing is sent again, and the other fields have no effect";
    rule_at("maxAttempts", holds, says)(schema);
}

/// How an attempt failed. Example: `{statuses: [502, 503], grpc: [UNAVAILABLE], reset: true}`.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct TrafficRetryWhen {
    /// Statuses of responses: those that say that the server, not the request, is the trouble. Example: `[502, 503]`.
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

/// The pause doubles from `base` to `max` and is drawn as `jitter` says. Example: `{base: 25ms, max: 250ms}`.
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
    /// How chance changes a pause.
    #[serde(default)]
    pub jitter: TrafficJitter,
}

#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, JsonSchema)]
pub enum TrafficJitter {
    /// Anything between nothing and the pause.
    #[default]
    Full,
    /// The pause, and up to half of it more.
    Additive,
    /// Anything between `base` and three times the last pause.
    Decorrelated,
}

#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, JsonSchema)]
pub enum TrafficPriority {
    /// Goes last when there is too much.
    Critical,
    /// As requests without a priority.
    Default,
    /// Goes first when there is too much.
    Sheddable,
}
