//! How many requests a port takes in a time, from all or from each caller.

use std::time::Duration;

use http::HeaderName;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RateLimitConfig {
    /// Names the limit in `RateLimit` headers, metrics and logs.
    pub name: String,
    /// Requests per `period`. At least 1.
    pub requests: u32,
    /// 1 s to 1 h.
    pub period: Duration,
    /// Requests that may come at once. At least 1; `requests` unless set.
    pub burst: u32,
    pub strategy: Strategy,
    /// What tells requests apart; requests of one key share a limit with [`Strategy::PerKey`].
    pub key: Key,
}

/// Whom it hits when there is too much.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Strategy {
    /// Whoever comes when the volume is exhausted.
    #[default]
    Volume,
    /// Sheddable requests when half of the burst is left, default ones when a tenth is, critical ones
    /// when nothing is.
    LowPriorityFirst,
    /// When the volume is exhausted, the keys that were seen least in the last period.
    UncommonFirst,
    /// Each key has the whole limit for itself.
    PerKey,
}

/// What requests are told apart by.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Key {
    /// The proven identity, else the address.
    #[default]
    Caller,
    Header(HeaderName),
    /// The canonical path.
    Path,
}
