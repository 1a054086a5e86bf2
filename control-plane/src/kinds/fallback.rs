//! `hedge`, `cache` and `fallbacks` of a `TrafficPolicy`: what a caller gets instead of a failure.

use outrigger_core::policy::bounds;
use outrigger_core::policy::cache::DEFAULT_ENTRY_BYTES;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::defaults;
use super::schema::{
    default, default_duration, duration, exactly_one, label, length, not_empty, number, pattern,
    port, rule, rule_at, subdomain,
};

/// A second attempt at another endpoint while the first one is pending: exactly one of `after` and `afterP95`. The
/// first successful response wins. Example: `{afterP95: {min: 5ms}}`.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[schemars(transform = exactly_one(&["after", "afterP95"]))]
#[serde(default, deny_unknown_fields)]
pub struct TrafficHedge {
    /// Delay after the first attempt. Example: `50ms`.
    #[schemars(transform = duration(&bounds::HEDGE))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// After the 95th percentile of the service's latency in the last 15 to 30 seconds. Example: `{}`.
    #[serde(rename = "afterP95", skip_serializing_if = "Option::is_none")]
    pub after_p95: Option<TrafficHedgeP95>,
}

#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TrafficHedgeP95 {
    /// Minimum delay.
    #[schemars(transform = duration(&bounds::HEDGE), transform = default_duration(defaults::HEDGE_MIN))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min: Option<String>,
}

/// Responses to GET that the caller's proxy stores and serves (RFC 9111, as a shared cache). Example: `{ttl: 5s,
/// staleOnError: 10m}`.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[schemars(transform = rule(
    "duration(self.ttl) > duration('0s') || \
     has(self.staleOnError) && duration(self.staleOnError) > duration('0s')",
    "stores nothing: ttl and staleOnError are both 0",
))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrafficCache {
    /// How long a stored response is served; its own `Cache-Control` and `Expires` can only shorten this. `0s`: it is
    /// stored for `fallbacks` only. Example: `5s`.
    #[schemars(transform = duration(&bounds::KEPT))]
    pub ttl: String,
    /// How long after that the fallback `cached` may serve it instead of a failure. Example: `10m`.
    #[schemars(transform = duration(&bounds::KEPT), transform = default("0s"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stale_on_error: Option<String>,
    /// Maximum bytes of a response's body; a longer one is not stored.
    #[schemars(transform = number(&bounds::ENTRY_BYTES), transform = default(DEFAULT_ENTRY_BYTES))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_entry_bytes: Option<u32>,
}

/// A response instead of a failure: exactly one of `cached`, `backend`, `route` and `static`.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[schemars(transform = exactly_one(&["cached", "backend", "route", "static"]))]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct TrafficFallback {
    /// Failures that it applies to. Unset: all. Example: `[Unavailable, Timeout]`.
    #[schemars(transform = not_empty)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub when: Option<Vec<TrafficFailureClass>>,
    /// The stored response; needs `cache`. Example: `{}`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cached: Option<TrafficFallbackCached>,
    /// The response of another service to the same request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<TrafficFallbackBackend>,
    /// The response of the same service to another path; for GET and HEAD.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route: Option<TrafficFallbackRoute>,
    /// A fixed response; not for gRPC.
    #[serde(rename = "static", skip_serializing_if = "Option::is_none")]
    pub fixed: Option<TrafficFallbackStatic>,
}

#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, JsonSchema)]
pub enum TrafficFailureClass {
    /// No response: no endpoint, no connection, a reset or an open breaker.
    Unavailable,
    /// The timeout of an attempt or the deadline passed.
    Timeout,
    /// Refused because of overload.
    Overloaded,
    /// The server responded with an error of its own.
    ServerError,
}

#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TrafficFallbackCached {}

/// A port of a Service, or of an ExternalService. Example: `{name: market-data-backup, port: 8000}`.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[schemars(transform = rule_at(
    "kind",
    "self.kind == 'ExternalService' ? has(self.group) && self.group == 'outrigger.dev' : \
     (self.kind == 'Service' && (!has(self.group) || self.group in ['', 'core']))",
    "is not Service, or ExternalService of the group outrigger.dev",
))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrafficFallbackBackend {
    /// API group: empty for a Service, `outrigger.dev` for an ExternalService.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// Kind: `Service` or `ExternalService`.
    #[schemars(transform = default(defaults::BACKEND_KIND))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Name. Example: `market-data-backup`.
    #[schemars(transform = subdomain)]
    pub name: String,
    /// Namespace; another one than the policy's own needs a ReferenceGrant there. Unset: the policy's own.
    #[schemars(transform = label)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Number of the port. Example: `8000`.
    #[schemars(transform = port())]
    pub port: i32,
}

#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrafficFallbackRoute {
    /// Path to request instead; the request's query is kept unless the path has its own. Example:
    /// `/prices/summary`.
    #[schemars(transform = pattern("^/[^#]*$", "begins with `/`"), transform = length(1, bounds::PATH_BYTES))]
    pub path: String,
}

/// Example: `{status: 200, contentType: application/json, body: "[]"}`.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct TrafficFallbackStatic {
    /// Status of the response.
    #[schemars(transform = number(&bounds::STATIC_STATUS), transform = default(defaults::STATIC_STATUS.as_u16()))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u32>,
    /// Media type of the body (`content-type`). Unset: no header. Example: `application/json`.
    #[schemars(transform = pattern("^[ -~]*/[ -~]*$", "a media type"))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
    /// Body of the response. Unset: empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
}
