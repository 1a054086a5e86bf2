//! How many retries a service gets: a share of its requests, so that they can't multiply a failure.
//!
//! The share follows Finagle's and Linkerd's `RetryBudget`: a few retries per second for services with
//! little traffic, which are saved up over [`WINDOW`], and beside them a share of what was lately requested.

use std::time::{Duration, Instant};

use super::bucket::{Bucket, Rate};
use super::window::Window;

/// A request earns retries for this long: the time in which a caller would try again. Finagle's default.
pub const WINDOW: Duration = Duration::from_secs(10);

/// Always on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BudgetConfig {
    /// Retries as a share of requests, in percent. 0 to 100.
    pub percent: u8,
    /// Retries per second that are allowed whatever the number of requests. At most 1,000.
    pub min_per_second: u16,
}

/// Retries that may be saved up at most, unless a second brings more: what the default brings in a window.
pub const MOST_SAVED: u32 = 100;

impl BudgetConfig {
    /// Retries that a service without traffic has saved up: those of a window, so that a burst of first
    /// failures on a quiet service is retried.
    pub fn saved(self) -> u32 {
        let each = u32::from(self.min_per_second);
        // A window is ten seconds.
        each.max((each * 10).min(MOST_SAVED))
    }
}

impl Default for BudgetConfig {
    fn default() -> Self {
        // A fifth more load is what a service that is planned sensibly can bear.
        Self { percent: 20, min_per_second: 10 }
    }
}

/// Retries of one service by one process.
///
/// Over any interval of length T, the retries taken are at most `percent` of the requests in this
/// interval and in [`WINDOW`] before it, plus `min_per_second * T` and what was saved up before
/// ([`BudgetConfig::saved`]). With a reconfiguration, by the higher of the numbers. It holds exactly, however often `tick` is called: each retry of the share
/// is paid for by requests of the window before it that no other retry has used.
#[derive(Clone, Debug)]
pub struct Budget {
    config: BudgetConfig,
    /// Requests, and the retries that their share has paid for.
    window: Window,
    least: Bucket,
}

impl Budget {
    /// `total`: requests so far, here as everywhere below; retries are no requests.
    pub fn new(config: BudgetConfig, now: Instant, total: u64) -> Self {
        // The window also holds the running second.
        let window = Window::new(WINDOW.saturating_sub(Duration::from_secs(1)), now, total);
        Self { config, window, least: Bucket::full(now) }
    }

    pub fn reconfigure(&mut self, config: BudgetConfig, now: Instant) {
        if let (Some(old), Some(new)) = (rate(self.config), rate(config)) {
            self.least.reconfigure(old, new, now);
        }
        self.config = config;
    }

    /// To be called about once a second: the share counts only requests that were seen in time.
    pub fn tick(&mut self, now: Instant, total: u64) {
        self.window.tick(now, total);
    }

    /// Takes one retry, if there is one left.
    pub fn try_take(&mut self, now: Instant, total: u64) -> bool {
        self.window.tick(now, total);
        if self.share() > self.window.noted() {
            self.window.note(now, total, 1);
            return true;
        }
        rate(self.config).is_some_and(|rate| self.least.take(rate, now, 0))
    }

    /// Retries that could be taken now.
    pub fn left(&mut self, now: Instant, total: u64) -> u64 {
        self.window.tick(now, total);
        let least = rate(self.config).map_or(0, |rate| self.least.left(rate, now));
        self.share().saturating_sub(self.window.noted()) + u64::from(least)
    }

    pub fn config(&self) -> BudgetConfig {
        self.config
    }

    fn share(&self) -> u64 {
        self.window.requests() * u64::from(self.config.percent) / 100
    }
}

/// None: only the share counts.
fn rate(config: BudgetConfig) -> Option<Rate> {
    let tokens = u32::from(config.min_per_second);
    let burst = config.saved();
    (tokens > 0).then_some(Rate { tokens, period: Duration::from_secs(1), burst })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn taken(budget: &mut Budget, now: Instant, total: u64) -> u64 {
        let left = budget.left(now, total);
        let taken = std::iter::from_fn(|| budget.try_take(now, total).then_some(())).count() as u64;
        assert_eq!(taken, left);
        taken
    }

    #[test]
    fn a_share_of_the_requests_and_a_few_more() {
        let now = Instant::now();
        let mut budget = Budget::new(BudgetConfig::default(), now, 0);
        assert_eq!(taken(&mut budget, now, 0), 100, "the few of a whole window are there");
        assert_eq!(taken(&mut budget, now, 104), 20);
        assert_eq!(taken(&mut budget, now + SECOND, 104), 10, "the few come back every second");
        assert_eq!(taken(&mut budget, now + SECOND, 105), 1);
        // The first second leaves the window, with its 104 requests and 20 retries.
        let later = now + WINDOW;
        assert_eq!(taken(&mut budget, later, 205), 20 - 1 + 90, "nine seconds have passed");
        assert_eq!(taken(&mut budget, later, 305), 20);
    }

    #[test]
    fn nothing_at_all_may_be_allowed() {
        let now = Instant::now();
        let none = BudgetConfig { percent: 0, min_per_second: 0 };
        let mut budget = Budget::new(none, now, 0);
        assert_eq!(taken(&mut budget, now + SECOND, 1_000_000), 0);
        budget.reconfigure(BudgetConfig { percent: 100, min_per_second: 0 }, now);
        assert_eq!(taken(&mut budget, now + SECOND, 1_000_000), 1_000_000);
    }

    #[test]
    fn new_numbers_hold_at_once_and_forget_nothing() {
        let now = Instant::now();
        let mut budget = Budget::new(BudgetConfig { percent: 20, min_per_second: 100 }, now, 0);
        assert_eq!(taken(&mut budget, now, 1_000), 300);
        budget.reconfigure(BudgetConfig { percent: 30, min_per_second: 10 }, now);
        assert_eq!(taken(&mut budget, now, 1_000), 100);
        budget.reconfigure(BudgetConfig { percent: 10, min_per_second: 10 }, now);
        assert_eq!(taken(&mut budget, now, 2_000), 0, "300 of 2,000 were taken");
        assert_eq!(taken(&mut budget, now + SECOND, 2_000), 10);
    }
}
