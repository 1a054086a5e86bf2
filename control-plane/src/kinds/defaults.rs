//! What holds where an object leaves a field out, once: for translation, the schemas and the reference.
//!
//! Defaults that proxies share (retries, their budget) are in `outrigger_core::policy`, with what they configure.

use std::time::Duration;

use http::StatusCode;

/// How long a breaker stays open at first: long enough for a restart that goes well.
pub const OPEN_BASE: Duration = Duration::from_secs(5);
/// And at the longest: short enough that nobody forgets it.
pub const OPEN_MAX: Duration = Duration::from_secs(60);
/// Half-open probes of a breaker at a time.
pub const TRIALS: u32 = 1;
/// Of a failure rate: a few requests a second are enough to judge by.
pub const WINDOW: Duration = Duration::from_secs(10);
pub const MIN_REQUESTS: u32 = 20;
/// Envoy's, which operators know.
pub const BASE_EJECTION: Duration = Duration::from_secs(30);
pub const MAX_EJECTION: Duration = Duration::from_secs(300);
/// With more gone, those that are left would carry more than twice their load.
pub const MAX_EJECTED_PERCENT: u8 = 50;

/// The longest pause between attempts, as a multiple of the first.
pub const BACKOFF_GROWTH: u32 = 10;

/// Often enough that a broken endpoint is out after some 15 s, seldom enough that a hundred callers are
/// twenty requests a second.
pub const CHECK_INTERVAL: Duration = Duration::from_secs(5);
pub const CHECK_TIMEOUT: Duration = Duration::from_secs(1);
/// One lost packet or one long pause is no failure.
pub const UNHEALTHY_AFTER: u32 = 3;
pub const HEALTHY_AFTER: u32 = 2;

/// Envoy's default overprovisioning (140 %) comes to the same: three of ten may be gone.
pub const MIN_HEALTHY_PERCENT: u32 = 70;

/// What is answered within this needs no second attempt.
pub const HEDGE_MIN: Duration = Duration::from_millis(5);
/// Of a static fallback.
pub const STATIC_STATUS: StatusCode = StatusCode::OK;
/// Of a fallback's backend.
pub const BACKEND_KIND: &str = "Service";

/// Enough to bridge a burst; a longer queue only makes everybody late.
pub const MAX_QUEUE: u32 = 50;
pub const MAX_WAIT: Duration = Duration::from_millis(100);
/// Of an adaptive limit: never so few that a pause of one request stops the port.
pub const ADAPTIVE_MIN: u32 = 4;
pub const ADAPTIVE_MAX: u32 = 200;

/// Seconds that an issuer's clock may differ by.
pub const CLOCK_SKEW_SECONDS: u32 = 30;
/// The protocol between two proxies, where a workload names no version.
pub const HOP_VERSION: u32 = 1;
/// The account of a workload that names none, as in Kubernetes.
pub const ACCOUNT: &str = "default";
