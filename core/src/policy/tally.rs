//! When failures are too many: in a row, or as a share of requests. What a breaker and an ejection
//! have in common.

use std::time::Instant;

use super::breaker::FailureRate;
use super::window::Window;

/// What made it too many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TooMany {
    /// So many in a row.
    Consecutive(u32),
    /// So many of the requests in the window.
    Rate { failures: u64, requests: u64 },
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Thresholds {
    pub consecutive: Option<u32>,
    pub rate: Option<FailureRate>,
}

/// Failures of one service or endpoint.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    consecutive: u32,
    /// None: nothing has been seen since it began anew.
    window: Option<Window>,
}

impl Tally {
    /// Applies new thresholds to what has been counted.
    pub fn reconfigure(&mut self, thresholds: Thresholds) {
        match (&mut self.window, thresholds.rate) {
            (Some(window), Some(rate)) => window.resize(rate.window),
            (window, None) => *window = None,
            (None, Some(_)) => {}
        }
        if thresholds.consecutive.is_none() {
            self.consecutive = 0;
        }
    }

    pub fn tick(&mut self, thresholds: Thresholds, now: Instant, total: u64) {
        if let Some(rate) = thresholds.rate {
            let window = self.window.get_or_insert_with(|| Window::new(rate.window, now, total));
            window.tick(now, total);
        }
    }

    pub fn success(&mut self) {
        self.consecutive = 0;
    }

    pub fn failure(&mut self, thresholds: Thresholds, now: Instant, total: u64) -> Option<TooMany> {
        if let Some(limit) = thresholds.consecutive {
            self.consecutive = self.consecutive.saturating_add(1);
            if self.consecutive >= limit {
                return Some(TooMany::Consecutive(self.consecutive));
            }
        }
        let rate = thresholds.rate?;
        let window = self.window.get_or_insert_with(|| Window::new(rate.window, now, total));
        window.note(now, total, 1);
        let failures = window.noted();
        // Failures of requests that have left the window already.
        let requests = window.requests().max(failures);
        let enough = requests >= u64::from(rate.min_requests);
        let too_many = failures * 100 >= u64::from(rate.percent) * requests;
        (enough && too_many).then_some(TooMany::Rate { failures, requests })
    }

    /// A success now would change nothing.
    pub fn has_no_run(&self) -> bool {
        self.consecutive == 0
    }

    /// Nothing is counted any more.
    pub fn is_clear(&self) -> bool {
        self.consecutive == 0 && self.window.as_ref().is_none_or(|window| window.noted() == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const NONE: Thresholds = Thresholds { consecutive: None, rate: None };

    fn rate(percent: u8, min_requests: u32) -> Thresholds {
        let window = Duration::from_secs(10);
        Thresholds { rate: Some(FailureRate { percent, window, min_requests }), ..NONE }
    }

    #[test]
    fn a_success_ends_a_run_of_failures() {
        let now = Instant::now();
        let three = Thresholds { consecutive: Some(3), ..NONE };
        let mut tally = Tally::default();
        assert_eq!(tally.failure(three, now, 1), None);
        assert_eq!(tally.failure(three, now, 2), None);
        tally.success();
        assert!(tally.is_clear());
        assert_eq!(tally.failure(three, now, 4), None);
        assert_eq!(tally.failure(three, now, 5), None);
        assert_eq!(tally.failure(three, now, 6), Some(TooMany::Consecutive(3)));
    }

    #[test]
    fn a_share_counts_from_the_least_number_on() {
        let now = Instant::now();
        let half = rate(50, 10);
        let mut tally = Tally::default();
        tally.tick(half, now, 0);
        for total in 1..10 {
            assert_eq!(tally.failure(half, now, total), None, "{total} requests prove nothing");
        }
        let all = Some(TooMany::Rate { failures: 10, requests: 10 });
        assert_eq!(tally.failure(half, now, 10), all);
        let mut tally = Tally::default();
        tally.tick(half, now, 0);
        for _ in 0..9 {
            assert_eq!(tally.failure(half, now, 20), None);
        }
        let half_of_all = Some(TooMany::Rate { failures: 10, requests: 20 });
        assert_eq!(tally.failure(half, now, 20), half_of_all);
        tally.tick(half, now + Duration::from_secs(11), 20);
        assert!(tally.is_clear());
    }

    #[test]
    fn failures_of_long_gone_requests_are_requests_too() {
        let now = Instant::now();
        let full = rate(100, 5);
        let mut tally = Tally::default();
        tally.tick(full, now, 0);
        tally.tick(full, now, 5);
        let late = now + Duration::from_secs(60);
        for _ in 0..4 {
            assert_eq!(tally.failure(full, late, 5), None);
        }
        let all = Some(TooMany::Rate { failures: 5, requests: 5 });
        assert_eq!(tally.failure(full, late, 5), all);
    }
}
