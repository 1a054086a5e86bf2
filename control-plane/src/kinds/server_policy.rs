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

/// What the workloads behind a Service let in. Every field but `targetRefs` is a section: of several
/// policies for the same port, the most specific one that has a section decides it.
#[derive(CustomResource, Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[kube(
    group = "outrigger.dev",
    version = "v1alpha1",
    kind = "ServerPolicy",
    plural = "serverpolicies",
    shortname = "svp",
    category = "outrigger",
    namespaced,
    doc = "What the workloads behind a Service let in"
)]
#[schemars(transform = some_section)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServerPolicySpec {
    /// What it is for: Services (or one port) of its own namespace, or that namespace. Example: `[{kind: Service,
    /// name: orders}]`.
    #[schemars(transform = targets(SERVED))]
    pub target_refs: Vec<TargetRef>,
    /// Rate limits, all of which must let a request in; what they refuse gets 429. Their names are unique.
    #[schemars(transform = items(0, bounds::MAX_RATE_LIMITS), transform = unique("name"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limits: Option<Vec<ServerRateLimit>>,
    /// How many requests a port works on at a time, and who waits; what has no place gets 503. Unset: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<ServerConcurrency>,
}

/// How many requests in a time. Example: `{name: all, requests: 1000, period: 1s}`.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[schemars(transform = rule_at(
    "key",
    "!has(self.key) || self.strategy in ['UncommonFirst', 'PerKey']",
    "has no effect with this strategy: only PerKey and UncommonFirst tell requests apart",
))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServerRateLimit {
    /// Name that stands in `RateLimit` headers, metrics and logs. Example: `each-caller`.
    #[schemars(transform = label)]
    pub name: String,
    /// Requests in each `period`. Example: `1000`.
    #[schemars(transform = number(&bounds::REQUESTS))]
    pub requests: u32,
    /// Time in which so many requests are let in. Example: `1s`.
    #[schemars(transform = duration(&bounds::PERIOD))]
    pub period: String,
    /// Requests that may come at once. Example: `2000`.
    #[schemars(transform = number(&bounds::REQUESTS), transform = stated_default("as `requests`"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<u32>,
    /// Whom the limit hits.
    #[serde(default)]
    pub strategy: ServerStrategy,
    /// What tells requests apart, for the strategies PerKey and UncommonFirst: exactly one of `caller`, `header` and
    /// `path`. Unset: the caller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<ServerKey>,
}

#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, JsonSchema)]
pub enum ServerStrategy {
    /// Anyone who comes when the volume is exhausted.
    #[default]
    Volume,
    /// Sheddable requests before default ones, critical ones last.
    LowPriorityFirst,
    /// Those whose keys were seen least.
    UncommonFirst,
    /// Each key has the whole limit for itself.
    PerKey,
}

#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum ServerKey {
    /// The proven identity of the caller, else its address. Example: `{}`.
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

/// Exactly one of `static` and `adaptive` says how many.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[schemars(transform = exactly_one(&["static", "adaptive"]))]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct ServerConcurrency {
    /// Requests at a time, always the same number. Example: `100`.
    #[schemars(transform = number(&bounds::CONCURRENCY))]
    #[serde(rename = "static", skip_serializing_if = "Option::is_none")]
    pub fixed: Option<u32>,
    /// Requests at a time, as many as their latency allows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adaptive: Option<ServerAdaptive>,
    /// Requests that may wait for one of those at work to end; 0: none.
    #[schemars(transform = number(&bounds::QUEUE), transform = default(defaults::MAX_QUEUE))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_queue: Option<u32>,
    /// Longest wait of a request.
    #[schemars(transform = duration(&bounds::WAIT), transform = default_duration(defaults::MAX_WAIT))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_wait: Option<String>,
}

/// A limit that is learnt from latency. Example: `{algorithm: Aimd, latency: 100ms, max: 100}`.
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
    /// How the limit is learnt.
    pub algorithm: ServerAlgorithm,
    /// Latency that Aimd keeps to; not for Gradient. Example: `100ms`.
    #[schemars(transform = duration(&bounds::LATENCY))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency: Option<String>,
    /// Least that the limit falls to, in requests at a time.
    #[schemars(transform = number(&bounds::CONCURRENCY), transform = default(defaults::ADAPTIVE_MIN))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<u32>,
    /// Most that the limit rises to, in requests at a time.
    #[schemars(transform = number(&bounds::CONCURRENCY), transform = stated_default(format!(
        "{}, or `min` if that is more", defaults::ADAPTIVE_MAX
    )))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<u32>,
}

#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, JsonSchema)]
pub enum ServerAlgorithm {
    /// Follows the ratio of the latency without load to the latency now.
    Gradient,
    /// One more per round without trouble, a tenth less when the latency passes `latency`.
    Aimd,
}
