//! How many retries a service gets: a share of its requests, so that they can't multiply a failure.

/// Always on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BudgetConfig {
    /// Retries as a share of requests, in percent. 0 to 100.
    pub percent: u8,
    /// Retries per second that are allowed whatever the number of requests. At most 1,000.
    pub min_per_second: u16,
}

impl Default for BudgetConfig {
    fn default() -> Self {
        // A fifth more load is what a service that is planned sensibly can bear.
        Self { percent: 20, min_per_second: 10 }
    }
}
