//! `FaultInjection`: faults in calls. docs/resilience.md says how it is done.

use kube::CustomResource;
use outrigger_core::policy::bounds;
use schemars::{JsonSchema, Schema};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::schema::{
    at_least_one, bounded, default, default_duration, duration, header, instant, items, label,
    method, number, pattern, port, rule, rule_at, some_field, subdomain, text, window, within,
};
use super::target_ref::{CALLED, targets};
use super::{GrpcCode, Nothing, TargetRef, defaults};

/// Injects faults into calls: which fault, for which callers, for what share of attempts and how long.
#[derive(CustomResource, Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[kube(
    group = "outrigger.dev",
    version = "v1alpha1",
    kind = "FaultInjection",
    plural = "faultinjections",
    shortname = "fi",
    category = "outrigger",
    namespaced,
    doc = "Faults injected into calls for a limited time"
)]
#[schemars(transform = ends)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FaultInjectionSpec {
    /// Targets: Services and ExternalServices (or one port), HTTPRoutes and GRPCRoutes (or one rule) of its
    /// own namespace, or that namespace. Example: `[{kind: Service, name: market-data}]`.
    #[schemars(transform = targets(CALLED))]
    pub target_refs: Vec<TargetRef>,
    /// Callers whose calls it affects. Empty: all. Example: `[{namespace: bank, serviceAccount: holdings}]`.
    #[schemars(transform = items(0, bounds::MAX_CALLERS))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<FaultCaller>,
    /// Requests that it affects: those that match an entry. Empty: all. Example: `[{method: GET}]`.
    #[schemars(transform = items(0, bounds::MAX_MATCHES))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub matches: Vec<FaultMatch>,
    /// Percent of the matching attempts that get the fault, with at most two decimals. Example: `10`, `0.25`.
    #[schemars(transform = share)]
    pub percent: f64,
    /// What happens to an attempt: exactly one of `delay`, `abort`, `reset` and `partition`.
    pub fault: FaultKind,
    /// Start time. Unset: at once. Example: `2026-11-22T10:00:00Z`.
    #[schemars(transform = instant)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<String>,
    /// End time: at most 24 hours after the start, or after it was applied. Example: `2026-11-22T10:30:00Z`.
    #[schemars(transform = instant)]
    pub end: String,
    /// When it is active between start and end. Unset: all the time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<FaultSchedule>,
    /// Stops the fault injection for all callers when the guarded calls degrade. Unset: no guard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guard: Option<FaultGuard>,
}

fn ends(schema: &mut Schema) {
    let longest = text(bounds::EXPERIMENT);
    rule_at("end", "!has(self.start) || self.end > self.start", "is not after start")(schema);
    let holds = format!("!has(self.start) || self.end - self.start <= duration('{longest}')");
    rule_at("end", holds, format!("is more than {longest} from start"))(schema);
}

/// Of the attempts, in hundredths of a percent. An API server takes the bounds of a schema for whole numbers where the
/// value is one, so that the least share is a rule.
fn share(schema: &mut Schema) {
    let hundredths = |share: u32| f64::from(share) / 100.0;
    let (least, most) = (hundredths(*bounds::SHARE.start()), hundredths(*bounds::SHARE.end()));
    schema.insert("minimum".to_owned(), json!(0));
    schema.insert("maximum".to_owned(), json!(most));
    let between = format!("must be between {least} and {most}");
    rule(format!("self >= {least:?}"), between)(schema);
    let rest = "self * 100.0 - double(int(self * 100.0 + 0.5))";
    let holds = format!("{rest} < 0.000001 && {rest} > -0.000001");
    rule(holds, "has more than two decimals")(schema);
    bounded(format!("{least} to {most}"))(schema);
}

/// The guarded calls, from one workload to one port, and when they count as degraded. At least one of
/// `minSuccessPercent` and `maxP99` is set.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[schemars(transform = at_least_one(&["minSuccessPercent", "maxP99"]))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FaultGuard {
    /// The caller, whose proxies watch the calls. Example: `{namespace: bank, serviceAccount: gateway}`.
    pub from: FaultCaller,
    /// The called port. Example: `{kind: Service, name: holdings, port: 8000}`.
    pub to: FaultGuardTarget,
    /// Minimum percentage of successful requests; below it the fault injection stops. Example: `95`.
    #[schemars(transform = number(&bounds::PERCENT))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_success_percent: Option<u32>,
    /// Maximum 99th percentile of the latency; above it the fault injection stops. Example: `500ms`.
    #[schemars(transform = duration(&bounds::LATENCY))]
    #[serde(default, rename = "maxP99", skip_serializing_if = "Option::is_none")]
    pub max_p99: Option<String>,
    /// Sliding window over which both are measured, in whole seconds.
    #[schemars(transform = window(), transform = default_duration(defaults::WINDOW))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<String>,
    /// Minimum requests in the window; below this the rate is not evaluated.
    #[schemars(transform = number(&bounds::MIN_REQUESTS), transform = default(defaults::MIN_REQUESTS))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_requests: Option<u32>,
}

/// A port of a Service of the fault injection's own namespace.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[schemars(transform = rule_at(
    "kind", "self.kind == 'Service' && self.group in ['', 'core']", "is not Service",
))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FaultGuardTarget {
    /// API group: empty (or `core`).
    #[schemars(transform = default(""))]
    #[serde(default)]
    pub group: String,
    /// Kind: `Service`.
    pub kind: String,
    /// Name of the Service. Example: `holdings`.
    #[schemars(transform = label)]
    pub name: String,
    /// Number of its port. Example: `8000`.
    #[schemars(transform = port())]
    pub port: i32,
}

/// A caller, by its identity.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FaultCaller {
    /// Namespace of the caller. Example: `bank`.
    #[schemars(transform = label)]
    pub namespace: String,
    /// Service account of the caller. Unset: every account of the namespace. Example: `holdings`.
    #[schemars(transform = subdomain)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_account: Option<String>,
}

/// Requests, by method, path and headers: all fields that are set must match.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[schemars(transform = some_field)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct FaultMatch {
    /// Method. Example: `GET`.
    #[schemars(transform = method)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// Path. Example: `{value: /prices}`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<FaultPath>,
    /// Headers, all of which must be present with these values. Example: `[{name: x-test, value: "1"}]`.
    #[schemars(transform = items(0, bounds::MAX_HEADERS))]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<FaultHeader>,
}

/// A path, compared with the canonical path as the called service gets it.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FaultPath {
    /// How the path is compared.
    #[serde(rename = "type", default)]
    pub kind: FaultPathType,
    /// The path to compare with. Example: `/prices`.
    #[schemars(transform = pattern("^/", "begins with `/`"), transform = rule(
        r"!self.matches('//|/\\./|/\\.\\./|%2f|%2F|#|/\\.\\.?$')",
        "must not contain //, /./, /../, %2f or #",
    ))]
    pub value: String,
}

#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, JsonSchema)]
pub enum FaultPathType {
    /// The whole path.
    Exact,
    /// Whole leading segments: `/a` matches `/a` and `/a/b`, not `/ab`.
    #[default]
    PathPrefix,
}

/// A header with a value.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FaultHeader {
    /// Name of the header, case-insensitive. Example: `x-test`.
    #[schemars(transform = header)]
    pub name: String,
    /// The whole value. Example: `"1"`.
    #[schemars(transform = pattern("^[^\\x00-\\x08\\x0A-\\x1F\\x7F]*$", "no control characters"))]
    pub value: String,
}

#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum FaultKind {
    /// The attempt is delayed. Example: `{fixed: 200ms}`.
    Delay(FaultDelay),
    /// The attempt is not sent; the proxy answers with exactly one of `status` and `grpc`. Example: `{status: 503}`.
    Abort(FaultAbort),
    /// The connection is reset without a response. Example: `{}`.
    Reset(Nothing),
    /// Connections fail; the only fault that applies to opaque connections. Example: `{}`.
    Partition(Nothing),
}

#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FaultDelay {
    /// Delay of an attempt. Example: `200ms`.
    #[schemars(transform = duration(&bounds::DELAY))]
    pub fixed: String,
    /// Maximum random delay added to `fixed`. Example: `50ms`.
    #[schemars(transform = duration(&bounds::DELAY_JITTER), transform = default("0s"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jitter: Option<String>,
}

#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum FaultAbort {
    /// Status of the response; a gRPC call gets the gRPC code that the status maps to. Example: `503`.
    #[schemars(transform = within(number(&bounds::ABORT_STATUS)))]
    Status(u32),
    /// gRPC status code, for gRPC calls only. Example: `UNAVAILABLE`.
    Grpc(GrpcCode),
}

/// In force for `for` at the beginning of each `every`, counted from the start, or in whole multiples of
/// UTC where there is none. Example: `{every: 10m, for: 1m}`.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[schemars(transform = rule_at(
    "for", "duration(self.__for__) < duration(self.every)", "must be less than every",
))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FaultSchedule {
    /// Time from one beginning to the next. Example: `10m`.
    #[schemars(transform = duration(&bounds::SCHEDULE))]
    pub every: String,
    /// Time that it is in force from each beginning. Example: `1m`.
    #[schemars(transform = duration(&bounds::SCHEDULE))]
    #[serde(rename = "for")]
    pub length: String,
}
