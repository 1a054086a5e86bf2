//! `healthCheck` of a `TrafficPolicy`: endpoints are asked how they are.

use outrigger_core::policy::bounds;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::defaults;
use super::schema::{default, default_duration, duration, exactly_one, length, number, pattern};

/// Active health checks by exactly one of `http`, `grpc` and `tcp`; unhealthy endpoints get no requests.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[schemars(transform = exactly_one(&["http", "grpc", "tcp"]))]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct TrafficHealthCheck {
    /// GET of a path; a 2xx response succeeds. Example: `{path: /healthz}`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<TrafficHttpCheck>,
    /// `grpc.health.v1.Health/Check`; SERVING succeeds. Example: `{}`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grpc: Option<TrafficGrpcCheck>,
    /// A TCP connection; an accepted one succeeds. Example: `{}`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp: Option<TrafficTcpCheck>,
    /// Interval between two checks of an endpoint, with a jitter of a tenth.
    #[schemars(transform = duration(&bounds::CHECK_INTERVAL), transform = default_duration(defaults::CHECK_INTERVAL))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval: Option<String>,
    /// Timeout of one check as a whole.
    #[schemars(transform = duration(&bounds::CHECK_TIMEOUT), transform = default_duration(defaults::CHECK_TIMEOUT))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<String>,
    /// Consecutive failed checks that make an endpoint unhealthy.
    #[schemars(transform = number(&bounds::CHECKS), transform = default(defaults::UNHEALTHY_AFTER))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unhealthy_after: Option<u32>,
    /// Consecutive successful checks that make it healthy again.
    #[schemars(transform = number(&bounds::CHECKS), transform = default(defaults::HEALTHY_AFTER))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthy_after: Option<u32>,
}

#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrafficHttpCheck {
    /// Path, with or without a query. Example: `/healthz`.
    #[schemars(transform = pattern("^/[^#]*$", "begins with `/`"), transform = length(1, bounds::PATH_BYTES))]
    pub path: String,
}

#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct TrafficGrpcCheck {
    /// gRPC service to check; empty: the server as a whole. Example: `bank.v1.Ledger`.
    #[schemars(transform = pattern("^[0-9A-Za-z._/-]*$", "a gRPC service's name"),
        transform = length(0, bounds::SERVICE_BYTES))]
    pub service: String,
}

#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TrafficTcpCheck {}
