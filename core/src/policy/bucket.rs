//! A bucket of tokens, counted exactly: no rounding, whatever the rate.

use std::time::{Duration, Instant};

/// `tokens` come in each `period`, and `burst` at most lie there.
///
/// In any interval of length T at most `burst + tokens * T / period` are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rate {
    pub tokens: u32,
    pub period: Duration,
    pub burst: u32,
}

impl Rate {
    /// What one token weighs. In this unit, `tokens` come in each nanosecond.
    fn weight(self) -> u128 {
        self.period.as_nanos().max(1)
    }
}

/// What is missing from a full bucket. The rate comes with each call, so a new one holds at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bucket {
    missing: u128,
    at: Instant,
}

impl Bucket {
    pub fn full(now: Instant) -> Self {
        Self { missing: 0, at: now }
    }

    /// Whole tokens that are there.
    pub fn left(&mut self, rate: Rate, now: Instant) -> u32 {
        self.refill(rate, now);
        let taken = self.missing.div_ceil(rate.weight());
        rate.burst.saturating_sub(u32::try_from(taken).unwrap_or(u32::MAX))
    }

    /// Takes one if more than `reserve` are there.
    pub fn take(&mut self, rate: Rate, now: Instant, reserve: u32) -> bool {
        let enough = self.left(rate, now) > reserve;
        if enough {
            self.missing += rate.weight();
        }
        enough
    }

    /// Puts one back that was taken for nothing.
    pub fn give_back(&mut self, rate: Rate) {
        self.missing = self.missing.saturating_sub(rate.weight());
    }

    /// Until one can be taken that leaves `reserve`; zero if one can be now.
    pub fn wait(&mut self, rate: Rate, now: Instant, reserve: u32) -> Duration {
        self.refill(rate, now);
        let may_miss = u128::from(rate.burst.saturating_sub(reserve).max(1) - 1) * rate.weight();
        time_for(self.missing.saturating_sub(may_miss), rate)
    }

    /// Until it is full.
    pub fn until_full(&mut self, rate: Rate, now: Instant) -> Duration {
        self.refill(rate, now);
        time_for(self.missing, rate)
    }

    /// Keeps the tokens that are there, as far as a new burst has room: a change makes none.
    pub fn reconfigure(&mut self, old: Rate, new: Rate, now: Instant) {
        self.refill(old, now);
        let left = (u128::from(old.burst) * old.weight()).saturating_sub(self.missing);
        let left = left.saturating_mul(new.weight()) / old.weight();
        self.missing = (u128::from(new.burst) * new.weight()).saturating_sub(left);
    }

    fn refill(&mut self, rate: Rate, now: Instant) {
        let passed = now.saturating_duration_since(self.at);
        self.missing = self.missing.saturating_sub(passed.as_nanos() * u128::from(rate.tokens));
        self.at = self.at.max(now);
    }
}

fn time_for(missing: u128, rate: Rate) -> Duration {
    let nanos = missing.div_ceil(u128::from(rate.tokens.max(1)));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn tokens_come_back_exactly_when_announced() {
        let rate = Rate { tokens: 3, period: SECOND, burst: 2 };
        let start = Instant::now();
        let mut bucket = Bucket::full(start);
        assert!(bucket.take(rate, start, 0) && bucket.take(rate, start, 0));
        assert!(!bucket.take(rate, start, 0));
        let wait = bucket.wait(rate, start, 0);
        assert_eq!(wait, Duration::from_nanos(333_333_334));
        let early = start + wait - Duration::from_nanos(1);
        assert!(!bucket.take(rate, early, 0));
        assert!(bucket.take(rate, start + wait, 0));
        assert_eq!(bucket.left(rate, start + SECOND), 2, "three have come and one was taken");
        assert_eq!(bucket.until_full(rate, start + SECOND), Duration::ZERO);
    }

    #[test]
    fn a_reserve_is_left_alone() {
        let rate = Rate { tokens: 1, period: SECOND, burst: 4 };
        let start = Instant::now();
        let mut bucket = Bucket::full(start);
        assert!(bucket.take(rate, start, 2) && bucket.take(rate, start, 2));
        assert!(!bucket.take(rate, start, 2));
        assert_eq!(bucket.wait(rate, start, 2), SECOND);
        assert_eq!(bucket.wait(rate, start, 0), Duration::ZERO);
        assert!(bucket.take(rate, start, 0));
        bucket.give_back(rate);
        assert_eq!(bucket.left(rate, start), 2);
    }

    #[test]
    fn a_new_rate_makes_no_tokens() {
        let start = Instant::now();
        let old = Rate { tokens: 100, period: SECOND, burst: 100 };
        let mut bucket = Bucket::full(start);
        for _ in 0..60 {
            assert!(bucket.take(old, start, 0));
        }
        let new = Rate { tokens: 10, period: SECOND * 60, burst: 100 };
        bucket.reconfigure(old, new, start);
        assert_eq!(bucket.left(new, start), 40);
        let small = Rate { burst: 50, ..new };
        bucket.reconfigure(new, small, start);
        assert_eq!(bucket.left(small, start), 40);
        let none = Rate { burst: 1, ..small };
        bucket.reconfigure(small, none, start);
        assert!(bucket.take(none, start, 0));
        bucket.reconfigure(none, small, start);
        assert_eq!(bucket.left(small, start), 0);
        assert_eq!(bucket.wait(small, start, 0), SECOND * 6);
    }
}
