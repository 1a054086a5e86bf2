//! The breaker between one caller and one service: opens when calls fail, answers at once while open.

use std::time::Duration;

/// At least one of `consecutive_failures` and `failure_rate` is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BreakerConfig {
    /// Failures in a row that open it. At least 1.
    pub consecutive_failures: Option<u32>,
    pub failure_rate: Option<FailureRate>,
    pub open: OpenTime,
    /// Trials at a time while half open, and as many successes in a row close it. 1 to 100.
    pub trials: u32,
}

/// Failures as a share of requests over a sliding window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailureRate {
    /// 1 to 100.
    pub percent: u8,
    /// 1 s to 5 min, in whole seconds.
    pub window: Duration,
    /// Fewer requests in the window prove nothing. At least 1.
    pub min_requests: u32,
}

/// How long it stays open before the next trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenTime {
    Fixed(Duration),
    /// Doubles with each failed trial, up to `max`, and is drawn from its upper half.
    Backoff {
        base: Duration,
        max: Duration,
    },
}
