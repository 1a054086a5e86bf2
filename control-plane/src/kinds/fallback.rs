//! `hedge`, `cache` and `fallbacks` of a `TrafficPolicy`: what a caller gets instead of a failure.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A second try while the first one waits: exactly one of `after` and `afterP95`.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TrafficHedge {
    /// After this time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// After the observed 95th percentile of the service.
    #[serde(rename = "afterP95", skip_serializing_if = "Option::is_none")]
    pub after_p95: Option<TrafficHedgeP95>,
}

#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TrafficHedgeP95 {
    /// Never earlier than this (5ms unless set).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min: Option<String>,
}

/// Answers to GET that are kept and given again (RFC 9111, as a shared cache).
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrafficCache {
    /// How long an answer is given again without asking; what it says itself can only shorten this. `0s`:
    /// it is kept for `fallbacks` alone.
    pub ttl: String,
    /// For so long after that it may be given instead of a failure (`0s` unless set).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stale_on_error: Option<String>,
    /// Bytes of one answer's body (65536 unless set).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_entry_bytes: Option<u32>,
}

/// One answer to give instead of a failure: exactly one of `cached`, `backend`, `route` and `static`.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct TrafficFallback {
    /// For which failures; unset: for all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub when: Option<Vec<TrafficFailureClass>>,
    /// The answer that was kept; needs `cache`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cached: Option<TrafficFallbackCached>,
    /// The answer of another service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<TrafficFallbackBackend>,
    /// The same service's answer to another path; for GET and HEAD.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route: Option<TrafficFallbackRoute>,
    /// An answer that is always the same; not for gRPC.
    #[serde(rename = "static", skip_serializing_if = "Option::is_none")]
    pub fixed: Option<TrafficFallbackStatic>,
}

#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, JsonSchema)]
pub enum TrafficFailureClass {
    /// Nobody answered: no instance, no connection, a reset, an open breaker.
    Unavailable,
    /// An attempt's timeout or the deadline passed.
    Timeout,
    /// Somebody refused it because there is too much to do.
    Overloaded,
    /// The server's own failure.
    ServerError,
}

/// Says nothing more.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TrafficFallbackCached {}

/// A Service, or an ExternalService.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrafficFallbackBackend {
    /// Empty for a Service, `outrigger.dev` for an ExternalService.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// `Service` unless set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    pub name: String,
    /// The policy's own unless set; another one needs a ReferenceGrant there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    pub port: i32,
}

#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrafficFallbackRoute {
    /// The request's query is kept unless the path has its own.
    pub path: String,
}

#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct TrafficFallbackStatic {
    /// 200 unless set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
    /// At most 8 KiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
}
