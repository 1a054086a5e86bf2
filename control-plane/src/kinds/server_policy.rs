//! `ServerPolicy`: what a workload lets in. docs/resilience.md says what each section does; the bounds
//! are in `outrigger_core::policy::bounds`.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::TargetRef;

/// What the workloads behind a Service let in. Every field but `targetRefs` is a section: of several
/// policies for the same port, the most specific one that has a section decides it.
#[derive(CustomResource, Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[kube(
    group = "outrigger.dev",
    version = "v1alpha1",
    kind = "ServerPolicy",
    plural = "serverpolicies",
    namespaced,
    doc = "What the workloads behind a Service let in"
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServerPolicySpec {
    /// What it is for: Services (or one port) of its own namespace, or that namespace.
    pub target_refs: Vec<TargetRef>,
    /// All of them must let a request in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limits: Option<Vec<ServerRateLimit>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<ServerConcurrency>,
}

/// How many requests in a time.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServerRateLimit {
    /// Stands in `RateLimit` headers, metrics and logs.
    pub name: String,
    pub requests: u32,
    pub period: String,
    /// Requests that may come at once (`requests` unless set).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<u32>,
    /// Volume unless set.
    #[serde(default)]
    pub strategy: ServerStrategy,
    /// What tells requests apart; for the strategies PerKey and UncommonFirst. The caller unless set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<ServerKey>,
}

/// Whom the limit hits.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, JsonSchema)]
pub enum ServerStrategy {
    /// Whoever comes when the volume is exhausted.
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
    /// The proven identity, else the address.
    Caller(Nothing),
    /// The value of a header.
    Header(String),
    /// The canonical path.
    Path(Nothing),
}

/// `{}`.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Nothing {}

/// How many requests at a time, and who waits. One of `static` and `adaptive` is set.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct ServerConcurrency {
    #[serde(rename = "static", skip_serializing_if = "Option::is_none")]
    pub fixed: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adaptive: Option<ServerAdaptive>,
    /// Requests that may wait (50 unless set); 0: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_queue: Option<u32>,
    /// Longest wait (100ms unless set).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_wait: Option<String>,
}

/// A limit that is learnt from latency.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServerAdaptive {
    pub algorithm: ServerAlgorithm,
    /// For Aimd: the latency that it keeps to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency: Option<String>,
    /// 4 unless set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<u32>,
    /// 200 unless set.
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
