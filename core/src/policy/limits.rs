//! Bulkheads: how much of one service a caller's proxy takes at a time.

/// None: not limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct LimitsConfig {
    /// Requests in flight to the whole service. At least 1.
    pub max_in_flight: Option<u32>,
    /// Requests that wait for one of those in flight to end; the others are refused at once. None: 0.
    /// Has no effect without `max_in_flight`.
    pub max_pending: Option<u32>,
    /// Requests in flight to one endpoint; another one is taken while there is one. At least 1.
    pub max_in_flight_per_endpoint: Option<u32>,
}
