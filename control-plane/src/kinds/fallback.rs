//! `fallbacks` of a `TrafficPolicy`: what a caller gets instead of a failure.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One answer to give instead of a failure: exactly one of `backend`, `route` and `static`.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct TrafficFallback {
    /// For which failures; unset: for all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub when: Option<Vec<TrafficFailureClass>>,
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

/// A Service.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrafficFallbackBackend {
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
