//! `FaultInjection`: an experiment on calls. docs/resilience.md says how it is done; the bounds are in
//! `outrigger_core::policy::bounds`.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{GrpcCode, Nothing, TargetRef};

/// What goes wrong on purpose, for whom, how often and how long.
#[derive(CustomResource, Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[kube(
    group = "outrigger.dev",
    version = "v1alpha1",
    kind = "FaultInjection",
    plural = "faultinjections",
    namespaced,
    doc = "An experiment: faults in calls, for a time"
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FaultInjectionSpec {
    /// What it is for: Services (or one port), HTTPRoutes and GRPCRoutes (or one rule) of its own
    /// namespace, or that namespace.
    pub target_refs: Vec<TargetRef>,
    /// Whose calls it hits. Empty: everybody's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<FaultCaller>,
    /// Which requests it hits: those that one of them describes. Empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub matches: Vec<FaultMatch>,
    /// Of the tries that it could hit, with two decimals at most.
    pub percent: f64,
    pub fault: FaultKind,
    /// As in `2026-11-22T10:00:00Z`. Unset: at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<String>,
    /// At most 24 hours after the start, or from now.
    pub end: String,
    /// Unset: all the time between start and end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<FaultSchedule>,
    /// Stops it for everybody when calls between two workloads suffer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guard: Option<FaultGuard>,
}

/// What is watched while the experiment is in force: the calls of one workload to one port. One of
/// `minSuccessPercent` and `maxP99` is set.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FaultGuard {
    /// Whose calls; its proxies watch them.
    pub from: FaultCaller,
    pub to: FaultGuardTarget,
    /// Fewer good answers stop it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_success_percent: Option<u32>,
    /// More than one of a hundred requests that take longer stop it.
    #[serde(default, rename = "maxP99", skip_serializing_if = "Option::is_none")]
    pub max_p99: Option<String>,
    /// 10s unless set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<String>,
    /// Fewer requests in the window prove nothing (20 unless set).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_requests: Option<u32>,
}

/// A port of a Service of the experiment's own namespace.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FaultGuardTarget {
    #[serde(default)]
    pub group: String,
    pub kind: String,
    pub name: String,
    pub port: i32,
}

#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FaultCaller {
    pub namespace: String,
    /// Unset: every account of the namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_account: Option<String>,
}

/// All that is set must hold.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct FaultMatch {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<FaultPath>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<FaultHeader>,
}

/// Compared with the canonical path as the called service gets it.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FaultPath {
    /// PathPrefix unless set.
    #[serde(rename = "type", default)]
    pub kind: FaultPathType,
    pub value: String,
}

#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, JsonSchema)]
pub enum FaultPathType {
    Exact,
    /// Whole segments: `/a` is `/a` and `/a/b`, not `/ab`.
    #[default]
    PathPrefix,
}

#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FaultHeader {
    pub name: String,
    pub value: String,
}

/// What happens to a try.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum FaultKind {
    /// It is made later.
    Delay(FaultDelay),
    /// It is answered without being made.
    Abort(FaultAbort),
    /// The connection breaks without an answer.
    Reset(Nothing),
    /// No connection comes about. The only fault for connections that are not looked into.
    Partition(Nothing),
}

#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FaultDelay {
    pub fixed: String,
    /// Up to so much more, by chance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jitter: Option<String>,
}

#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum FaultAbort {
    /// 400 to 599.
    Status(u32),
    /// gRPC calls only.
    Grpc(GrpcCode),
}

/// In force for `for` at the beginning of each `every`, counted from the start, or in whole multiples of
/// UTC where there is none.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FaultSchedule {
    pub every: String,
    #[serde(rename = "for")]
    pub length: String,
}
