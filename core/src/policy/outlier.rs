//! Ejecting endpoints that fail while others do not.

use std::time::Duration;

use super::breaker::FailureRate;

/// At least one of `consecutive_failures` and `failure_rate` is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutlierConfig {
    /// Failures in a row that eject an endpoint. At least 1.
    pub consecutive_failures: Option<u32>,
    pub failure_rate: Option<FailureRate>,
    /// Time of the first ejection; it doubles with each that follows soon, up to `max_ejection`, and up
    /// to a quarter more is added by chance. At least 100 ms.
    pub base_ejection: Duration,
    pub max_ejection: Duration,
    /// Endpoints of the service that may be ejected at a time, in percent, rounded down, but never all.
    /// 1 to 100.
    pub max_ejected_percent: u8,
}
