//! How many requests a port works on at a time, and who waits.

use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConcurrencyConfig {
    pub limit: Limit,
    /// Requests that wait for their turn. 0: none; they are refused at once.
    pub max_queue: u32,
    /// Longest wait; a request whose deadline is nearer waits only that long. At most 10 s.
    pub max_wait: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// At least 1.
    Static(u32),
    /// Learnt from latency, between `min` (at least 1) and `max`.
    Adaptive { algorithm: Algorithm, min: u32, max: u32 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// Follows the ratio of the latency without load to the latency now.
    Gradient,
    /// One more per round without trouble, a tenth less when latency passes `latency`.
    Aimd { latency: Duration },
}
