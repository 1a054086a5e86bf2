//! `ServerPolicy`: what a workload lets in. docs/resilience.md says what each section does.

use kube::CustomResource;
use outrigger_core::policy::bounds;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::schema::{
    default, default_duration, duration, exactly_one, header, items, label, number, rule_at,
    stated_default, unique, within,
};
use super::target_ref::{SERVED, some_section, targets};
use super::{TargetRef, defaults};

/// Limits on the requests that the workloads of a Service accept. Every field but `targetRefs` is a section: of
/// several policies for the same port, the most specific one that has a section decides it.
#[derive(CustomResource, Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[kube(
    group = "outrigger.dev",
    version = "v1alpha1",
    kind = "ServerPolicy",
    plural = "serverpolicies",
    shortname = "svp",
    category = "outrigger",
    namespaced,
    doc = "Limits on the requests that the workloads of a Service accept"
)]
#[schemars(transform = some_section)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServerPolicySpec {
    /// Targets: Services (or one port) of its own namespace, or that namespace. Example: `[{kind: Service,
    /// name: orders}]`.
    #[schemars(transform = targets(SERVED))]
    pub target_refs: Vec<TargetRef>,
    /// Rate limits, all of which must admit a request; a request that one refuses gets 429. Their names are unique.
    #[schemars(transform = items(0, bounds::MAX_RATE_LIMITS), transform = unique("name"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limits: Option<Vec<ServerRateLimit>>,
    /// Maximum requests in flight at a port, and the queue for more; requests beyond the queue get 503. Unset: no
    /// limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<ServerConcurrency>,
}

/// A number of requests per time. Example: `{name: all, requests: 1000, period: 1s}`.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[schemars(transform = rule_at(
    "key",
    "!has(self.key) || self.strategy in ['UncommonFirst', 'PerKey']",
    "has no effect with this strategy: only PerKey and UncommonFirst tell requests apart",
))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServerRateLimit {
    /// Name that appears in `RateLimit` headers, metrics and logs. Example: `each-caller`.
    #[schemars(transform = label)]
    pub name: String,
    /// Requests in each `period`. Example: `1000`.
    #[schemars(transform = number(&bounds::REQUESTS))]
    pub requests: u32,
    /// Time in which that many requests are admitted. Example: `1s`.
    #[schemars(transform = duration(&bounds::PERIOD))]
    pub period: String,
    /// Requests that are admitted at once: the size of the token bucket. Example: `2000`.
    #[schemars(transform = number(&bounds::REQUESTS), transform = stated_default("as `requests`"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<u32>,
    /// Which requests are refused first.
    #[serde(default)]
    pub strategy: ServerStrategy,
    /// What tells requests apart, for the strategies PerKey and UncommonFirst: exactly one of `caller`, `header` and
    /// `path`. Unset: the caller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<ServerKey>,
}

#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, JsonSchema)]
pub enum ServerStrategy {
    /// Any request when the bucket is empty.
    #[default]
    Volume,
    /// Sheddable requests before default ones, critical ones last.
    LowPriorityFirst,
    /// Requests whose keys were seen least.
    UncommonFirst,
    /// Each key has a limit of its own.
    PerKey,
}

#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum ServerKey {
    /// The verified identity of the caller, else its address. Example: `{}`.
    Caller(Nothing),
    /// The value of a header. Example: `x-tenant`.
    #[schemars(transform = within(header))]
    Header(String),
    /// The canonical path. Example: `{}`.
    Path(Nothing),
}

#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Nothing {}

/// Exactly one of `static` and `adaptive` sets the limit.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[schemars(transform = exactly_one(&["static", "adaptive"]))]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct ServerConcurrency {
    /// A fixed number of requests in flight. Example: `100`.
    #[schemars(transform = number(&bounds::CONCURRENCY))]
    #[serde(rename = "static", skip_serializing_if = "Option::is_none")]
    pub fixed: Option<u32>,
    /// A number of requests in flight that adapts to their latency.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adaptive: Option<ServerAdaptive>,
    /// Maximum queued requests; 0: none.
    #[schemars(transform = number(&bounds::QUEUE), transform = default(defaults::MAX_QUEUE))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_queue: Option<u32>,
    /// Maximum time that a request is queued.
    #[schemars(transform = duration(&bounds::WAIT), transform = default_duration(defaults::MAX_WAIT))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_wait: Option<String>,
}

/// A limit that is derived from latency. Example: `{algorithm: Aimd, latency: 100ms, max: 100}`.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[schemars(transform = rule_at(
    "latency",
    "self.algorithm != 'Gradient' || !has(self.latency)",
    "has no effect with Gradient",
), transform = rule_at(
    "latency",
    "self.algorithm != 'Aimd' || has(self.latency)",
    "must be set for Aimd",
), transform = rule_at(
    "max",
    "!has(self.max) || self.max >= self.min",
    "must not be less than min",
))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServerAdaptive {
    /// How the limit is derived.
    pub algorithm: ServerAlgorithm,
    /// Target latency of Aimd; not for Gradient. Example: `100ms`.
    #[schemars(transform = duration(&bounds::LATENCY))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency: Option<String>,
    /// Lower bound of the limit, in requests in flight.
    #[schemars(transform = number(&bounds::CONCURRENCY), transform = default(defaults::ADAPTIVE_MIN))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<u32>,
    /// Upper bound of the limit, in requests in flight.
    #[schemars(transform = number(&bounds::CONCURRENCY), transform = stated_default(format!(
        "{}, or `min` if that is more", defaults::ADAPTIVE_MAX
    )))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<u32>,
}

#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, JsonSchema)]
pub enum ServerAlgorithm {
    /// Follows the ratio of the latency without load to the current latency.
    Gradient,
    /// Increases by one per measuring round, and decreases by a tenth when the latency exceeds `latency`.
    Aimd,
}
