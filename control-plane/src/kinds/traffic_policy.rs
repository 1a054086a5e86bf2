//! `TrafficPolicy`: how a service is called. docs/resilience.md says what each section does and why its
//! defaults are what they are; the bounds are in `outrigger_core::policy::bounds`.
//!
//! Durations are those of the Gateway API (GEP-2257), as in `1m30s` or `250ms`.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{TargetRef, TrafficCache, TrafficFallback, TrafficHedge};

/// How the services and routes that it targets are called. Every field but `targetRefs` is a section:
/// of several policies for the same call, the most specific one that has a section decides it.
#[derive(CustomResource, Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[kube(
    group = "outrigger.dev",
    version = "v1alpha1",
    kind = "TrafficPolicy",
    plural = "trafficpolicies",
    namespaced,
    doc = "How services are called"
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrafficPolicySpec {
    /// What it is for: Services (or one port), HTTPRoutes and GRPCRoutes (or one rule) of its own
    /// namespace, or that namespace.
    pub target_refs: Vec<TargetRef>,
    /// Time that a request has as a whole which brings no deadline of its own. `0s`: any time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<String>,
    /// The deadline that this mesh started ends with the head of the response.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub streaming: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeouts: Option<TrafficTimeouts>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retries: Option<TrafficRetries>,
    /// Not for routes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_budget: Option<TrafficRetryBudget>,
    /// Not for routes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub breaker: Option<TrafficBreaker>,
    /// Not for routes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outlier_ejection: Option<TrafficOutlierEjection>,
    /// Not for routes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<TrafficLimits>,
    /// Unset: endpoints are not checked. Not for routes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_check: Option<TrafficHealthCheck>,
    /// Not for routes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slow_start: Option<TrafficSlowStart>,
    /// Percent of the endpoints: when fewer are fit, ejections and checks are ignored. Not for routes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub panic_threshold: Option<u32>,
    /// Not for routes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone_preference: Option<TrafficZonePreference>,
    /// Of requests that bring none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<TrafficPriority>,
    /// How often a service may see the same request on its way (1 unless set).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_visits: Option<u32>,
    /// Unset: no second try is made while one waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hedge: Option<TrafficHedge>,
    /// Unset: no answer is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<TrafficCache>,
    /// What a caller gets instead of a failure: the first that is for it and can be given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallbacks: Option<Vec<TrafficFallback>>,
}

/// Endpoints are asked how they are: exactly one of `http`, `grpc` and `tcp`.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct TrafficHealthCheck {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<TrafficHttpCheck>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grpc: Option<TrafficGrpcCheck>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp: Option<TrafficTcpCheck>,
    /// From one check to the next (5s unless set).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval: Option<String>,
    /// Of a check as a whole (1s unless set).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<String>,
    /// Bad checks in a row that make an endpoint unhealthy (3 unless set).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unhealthy_after: Option<u32>,
    /// Good checks in a row that make it healthy again (2 unless set).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthy_after: Option<u32>,
}

/// GET; 2xx is good.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrafficHttpCheck {
    pub path: String,
}

/// `grpc.health.v1.Health/Check`; SERVING is good.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct TrafficGrpcCheck {
    /// Empty or unset: the server as a whole.
    pub service: String,
}

/// A connection is good.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TrafficTcpCheck {}

/// A new endpoint's share grows from a tenth to its full one.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrafficSlowStart {
    pub window: String,
}

/// Endpoints of the caller's own zone come first.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct TrafficZonePreference {
    /// With fewer of the zone's endpoints fit, the missing share goes to other zones (70 unless set).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_healthy_percent: Option<u32>,
}

/// Each bounds one part of a call; what is unset is not bounded.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct TrafficTimeouts {
    /// To open a connection; unset: the proxy's `--connect-timeout`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connect: Option<String>,
    /// From sending a request to the head of its response, in each attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_byte: Option<String>,
    /// Longest silence of a response, of an upgraded connection or of a CONNECT.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle: Option<String>,
    /// One attempt up to the head of its response, its connection included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempt: Option<String>,
}

/// Which failed attempts are made again, beyond those that provably nobody processed.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct TrafficRetries {
    /// Tries of one request, the first included (2 unless set).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_attempts: Option<u32>,
    pub when: TrafficRetryWhen,
    /// Also requests whose method is not idempotent and that have no idempotency key.
    pub non_idempotent: bool,
    /// The pause before the next try; unset: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backoff: Option<TrafficBackoff>,
    /// Bytes of a body kept so that it can be sent again (65536 unless set).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_replay_bytes: Option<u32>,
}

#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct TrafficRetryWhen {
    /// 429 and 500 to 599.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub statuses: Vec<u32>,
    /// Names of gRPC status codes, as in `UNAVAILABLE`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub grpc: Vec<GrpcCode>,
    /// The connection or stream ended after the request was sent and before a response.
    pub reset: bool,
    /// A timeout of the attempt passed.
    pub timeout: bool,
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

/// The pause doubles from `base` to `max` and is drawn as `jitter` says.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrafficBackoff {
    pub base: String,
    /// Ten times `base` unless set, at most 1m.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<String>,
    /// Full unless set.
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

/// How many retries a caller has for the service.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct TrafficRetryBudget {
    /// Share of its requests (20 unless set).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub percent: Option<u32>,
    /// Allowed whatever the number of requests (10 unless set).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_per_second: Option<u32>,
}

/// Opens when calls of the service fail; then a caller is answered at once.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct TrafficBreaker {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consecutive_failures: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure_rate: Option<TrafficFailureRate>,
    /// `{base: 5s, max: 60s}` unless set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub open: Option<TrafficOpen>,
    /// Trials at a time, and successes in a row that close it (1 unless set).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trials: Option<u32>,
}

/// Failures as a share of requests.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrafficFailureRate {
    pub percent: u32,
    /// In whole seconds (10s unless set).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<String>,
    /// Fewer requests in the window prove nothing (20 unless set).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_requests: Option<u32>,
}

/// How long a breaker stays open: always the same time, or a growing one with jitter.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct TrafficOpen {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fixed: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<String>,
}

/// Leaves endpoints out that fail while others do not.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct TrafficOutlierEjection {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consecutive_failures: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure_rate: Option<TrafficFailureRate>,
    /// 30s unless set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_ejection: Option<String>,
    /// 5m unless set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_ejection: Option<String>,
    /// 50 unless set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_ejected_percent: Option<u32>,
}

/// How much of the service a caller's proxy takes at a time.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct TrafficLimits {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_in_flight: Option<u32>,
    /// Requests that may wait for one of those in flight to end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_pending: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_in_flight_per_endpoint: Option<u32>,
}

#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, JsonSchema)]
pub enum TrafficPriority {
    Critical,
    Default,
    /// Goes first when there is too much.
    Sheddable,
}
