//! The breaker between one caller and one service: opens when calls fail, answers at once while open.
//!
//! Closed is healthy. Open refuses everything; when its time is over it is half open and lets through a
//! few trials, which close it or open it again for longer.

use std::time::{Duration, Instant};

use super::tally::{Tally, Thresholds, TooMany};
use crate::time::{Later, Part};

/// At least one of `consecutive_failures` and `failure_rate` is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BreakerConfig {
    /// Failures in a row that open it. At least 1.
    pub consecutive_failures: Option<u32>,
    pub failure_rate: Option<FailureRate>,
    pub open: OpenTime,
    /// Probes at a time while half open, and as many successes in a row close it. 1 to 100.
    pub trials: u32,
}

/// Failures as a share of requests over a sliding window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailureRate {
    /// 1 to 100.
    pub percent: u8,
    /// 1 s to 5 min, in whole seconds.
    pub window: Duration,
    /// Minimum requests in the window; below this the rate is not evaluated. At least 1.
    pub min_requests: u32,
}

/// How long it stays open before the next probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenTime {
    Fixed(Duration),
    /// Doubles with each failed probe, up to `max`, and is drawn from its upper half.
    Backoff {
        base: Duration,
        max: Duration,
    },
}

/// Guarantees: while it is open, nothing passes before `until`. While it is half open, at most `trials`
/// requests pass at a time, and one more each time that the open time has gone by without an answer to
/// any. Only trials close it, `trials` successes in a row of them; a failed one opens it again. What
/// belongs to requests from before it opened changes nothing.
#[derive(Clone, Debug)]
pub struct Breaker {
    config: BreakerConfig,
    tally: Tally,
    state: BreakerState,
    /// Times that it has opened since it was closed.
    openings: u32,
    /// Half-open periods so far: an answer to a probe of an earlier one comes too late.
    period: u64,
    /// When a half-open one lets another probe pass though none has been answered.
    renew_at: Instant,
    open_for: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerState {
    Closed,
    Open { since: Instant, until: Instant, cause: OpenCause },
    HalfOpen { probing: u32, successes: u32 },
}

/// Why it opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenCause {
    TooMany(TooMany),
    ProbeFailed,
}

/// What a request may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    Pass,
    /// It passes, and its end must be told with this id.
    Probe(BreakerProbeId),
    Refuse {
        /// When it makes sense to ask again.
        retry_at: Instant,
    },
}

/// The half-open period that a probe belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BreakerProbeId(u64);

/// A change of state, for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BreakerChange {
    pub from: BreakerState,
    pub to: BreakerState,
}

impl Breaker {
    /// A closed one. `total`: requests let through so far, here as everywhere below.
    pub fn new(config: BreakerConfig, now: Instant, total: u64) -> Self {
        let mut tally = Tally::default();
        tally.tick(config.thresholds(), now, total);
        Self {
            config,
            tally,
            state: BreakerState::Closed,
            openings: 0,
            period: 0,
            renew_at: now,
            open_for: Duration::ZERO,
        }
    }

    /// Applies other numbers to what has been counted; an open one stays open, at most as long as the
    /// new numbers could keep it.
    pub fn reconfigure(&mut self, config: BreakerConfig) {
        self.config = config;
        self.tally.reconfigure(config.thresholds());
        if let BreakerState::Open { since, until, .. } = &mut self.state {
            let longest = match config.open {
                OpenTime::Fixed(time) => time,
                OpenTime::Backoff { max, .. } => max,
            };
            *until = (*until).min(since.later(longest));
        }
    }

    /// To be called about once a second, so that requests are counted where they belong and a breaker
    /// without requests shows that its time is over.
    pub fn tick(&mut self, now: Instant, total: u64) -> Option<BreakerChange> {
        self.tally.tick(self.config.thresholds(), now, total);
        self.half_open(now)
    }

    pub fn admit(&mut self, now: Instant) -> (Admission, Option<BreakerChange>) {
        let transition = self.half_open(now);
        let admission = match &mut self.state {
            BreakerState::Closed => Admission::Pass,
            BreakerState::Open { until, .. } => Admission::Refuse { retry_at: *until },
            BreakerState::HalfOpen { probing, .. } => {
                if *probing < self.config.trials || now >= self.renew_at {
                    *probing += 1;
                    self.renew_at = now.later(self.open_for);
                    Admission::Probe(BreakerProbeId(self.period))
                } else {
                    Admission::Refuse { retry_at: self.renew_at }
                }
            }
        };
        (admission, transition)
    }

    /// A request has been answered. Needs no call while [`Self::is_closed_and_clean`].
    pub fn success(&mut self, probe: Option<BreakerProbeId>) -> Option<BreakerChange> {
        match &mut self.state {
            BreakerState::Closed => {
                self.tally.success();
                None
            }
            BreakerState::HalfOpen { probing, successes }
                if probe == Some(BreakerProbeId(self.period)) =>
            {
                *probing = probing.saturating_sub(1);
                *successes += 1;
                if *successes < self.config.trials {
                    return None;
                }
                self.openings = 0;
                self.tally = Tally::default();
                Some(self.become_state(BreakerState::Closed))
            }
            BreakerState::HalfOpen { .. } | BreakerState::Open { .. } => None,
        }
    }

    /// A request has failed. `random` spreads how long it stays open, so that callers do not come back
    /// all at once.
    pub fn failure(
        &mut self,
        now: Instant,
        total: u64,
        random: u64,
        probe: Option<BreakerProbeId>,
    ) -> Option<BreakerChange> {
        let cause = match self.state {
            BreakerState::Closed => {
                OpenCause::TooMany(self.tally.failure(self.config.thresholds(), now, total)?)
            }
            BreakerState::HalfOpen { .. } if probe == Some(BreakerProbeId(self.period)) => {
                OpenCause::ProbeFailed
            }
            BreakerState::HalfOpen { .. } | BreakerState::Open { .. } => return None,
        };
        self.open_for = open_time(self.config.open, self.openings, random);
        self.openings = self.openings.saturating_add(1);
        let until = now.later(self.open_for);
        Some(self.become_state(BreakerState::Open { since: now, until, cause }))
    }

    /// A probe has ended without an answer because its caller went away: that proves nothing, and
    /// another may take its place.
    pub fn abandoned(&mut self, probe: BreakerProbeId) {
        if let BreakerState::HalfOpen { probing, .. } = &mut self.state
            && probe == BreakerProbeId(self.period)
        {
            *probing = probing.saturating_sub(1);
        }
    }

    pub fn state(&self) -> BreakerState {
        self.state
    }

    pub fn config(&self) -> BreakerConfig {
        self.config
    }

    /// A success now would change nothing.
    pub fn is_closed_and_clean(&self) -> bool {
        self.state == BreakerState::Closed && self.tally.has_no_run()
    }

    fn half_open(&mut self, now: Instant) -> Option<BreakerChange> {
        match self.state {
            BreakerState::Open { until, .. } if now >= until => {
                self.period += 1;
                self.renew_at = now;
                Some(self.become_state(BreakerState::HalfOpen { probing: 0, successes: 0 }))
            }
            _ => None,
        }
    }

    fn become_state(&mut self, to: BreakerState) -> BreakerChange {
        let from = std::mem::replace(&mut self.state, to);
        BreakerChange { from, to }
    }
}

impl BreakerState {
    /// The word in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open { .. } => "open",
            Self::HalfOpen { .. } => "half_open",
        }
    }
}

impl BreakerConfig {
    fn thresholds(self) -> Thresholds {
        Thresholds { consecutive: self.consecutive_failures, rate: self.failure_rate }
    }
}

/// `openings`: times that it has opened in a row before.
fn open_time(open: OpenTime, openings: u32, random: u64) -> Duration {
    match open {
        OpenTime::Fixed(time) => time,
        OpenTime::Backoff { base, max } => {
            let factor = 2u32.saturating_pow(openings);
            let half = base.saturating_mul(factor).min(max).part(2);
            half.saturating_add(super::retry::up_to(half, random))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const THREE_IN_A_ROW: BreakerConfig = BreakerConfig {
        consecutive_failures: Some(3),
        failure_rate: None,
        open: OpenTime::Fixed(SECOND),
        trials: 2,
    };

    fn opened(config: BreakerConfig, now: Instant) -> Breaker {
        let mut breaker = Breaker::new(config, now, 0);
        assert_eq!(breaker.failure(now, 1, 0, None), None);
        assert_eq!(breaker.failure(now, 2, 0, None), None);
        let opening = breaker.failure(now, 3, 0, None).unwrap();
        assert_eq!(opening.from, BreakerState::Closed);
        assert_eq!(opening.to, breaker.state());
        breaker
    }

    fn probe(breaker: &mut Breaker, now: Instant) -> BreakerProbeId {
        match breaker.admit(now).0 {
            Admission::Probe(probe) => probe,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn it_opens_refuses_probes_and_closes() {
        let now = Instant::now();
        let mut breaker = opened(THREE_IN_A_ROW, now);
        let cause = OpenCause::TooMany(TooMany::Consecutive(3));
        let until = now + SECOND;
        assert_eq!(breaker.state(), BreakerState::Open { since: now, until, cause });
        assert_eq!(breaker.admit(now).0, Admission::Refuse { retry_at: until });
        assert_eq!(breaker.success(None), None, "of a request from before");
        assert_eq!(breaker.tick(until, 3).map(|t| t.to.as_str()), Some("half_open"));

        let (one, other) = (probe(&mut breaker, until), probe(&mut breaker, until));
        assert_eq!(breaker.admit(until).0, Admission::Refuse { retry_at: until + SECOND });
        assert_eq!(breaker.success(None), None, "no probe");
        assert_eq!(breaker.success(Some(one)), None);
        assert_eq!(breaker.success(Some(other)).map(|t| t.to), Some(BreakerState::Closed));
        assert!(breaker.is_closed_and_clean());
        assert_eq!(breaker.admit(until), (Admission::Pass, None));
    }

    #[test]
    fn a_failed_trial_opens_it_and_late_answers_change_nothing() {
        let now = Instant::now();
        let mut breaker = opened(THREE_IN_A_ROW, now);
        let later = now + SECOND;
        let (one, other) = (probe(&mut breaker, later), probe(&mut breaker, later));
        let opening = breaker.failure(later, 5, 0, Some(one)).unwrap();
        let until = later + SECOND;
        let open = BreakerState::Open { since: later, until, cause: OpenCause::ProbeFailed };
        assert_eq!(opening.to, open);
        assert_eq!(breaker.failure(later, 5, 0, Some(other)), None);
        let again = probe(&mut breaker, until);
        assert_eq!(breaker.success(Some(other)), None);
        assert_eq!(breaker.state(), BreakerState::HalfOpen { probing: 1, successes: 0 });
        breaker.abandoned(other);
        assert_eq!(breaker.state(), BreakerState::HalfOpen { probing: 1, successes: 0 });
        breaker.abandoned(again);
        assert_eq!(breaker.state(), BreakerState::HalfOpen { probing: 0, successes: 0 });
    }

    #[test]
    fn trials_that_hang_do_not_block_it_for_ever() {
        let now = Instant::now();
        let mut breaker = opened(BreakerConfig { trials: 1, ..THREE_IN_A_ROW }, now);
        let later = now + SECOND;
        let _hanging = probe(&mut breaker, later);
        assert_eq!(breaker.admit(later).0, Admission::Refuse { retry_at: later + SECOND });
        let second = probe(&mut breaker, later + SECOND);
        let closing = breaker.success(Some(second)).map(|t| t.to);
        assert_eq!(closing, Some(BreakerState::Closed));
    }

    #[test]
    fn it_stays_open_for_longer_each_time_up_to_the_most() {
        let open = OpenTime::Backoff { base: SECOND, max: SECOND * 5 };
        let times = |random| -> Vec<u128> {
            (0..5).map(|openings| open_time(open, openings, random).as_millis()).collect()
        };
        assert_eq!(times(0), [500, 1_000, 2_000, 2_500, 2_500]);
        assert_eq!(times(u64::MAX), [1_000, 2_000, 4_000, 5_000, 5_000]);
        assert_eq!(open_time(open, u32::MAX, u64::MAX), SECOND * 5);
    }

    #[test]
    fn other_numbers_change_no_state() {
        let now = Instant::now();
        let long = BreakerConfig { open: OpenTime::Fixed(SECOND * 60), ..THREE_IN_A_ROW };
        let mut breaker = opened(long, now);
        breaker.reconfigure(THREE_IN_A_ROW);
        assert_eq!(breaker.admit(now).0, Admission::Refuse { retry_at: now + SECOND });
        breaker.reconfigure(long);
        assert_eq!(breaker.admit(now).0, Admission::Refuse { retry_at: now + SECOND });

        let mut breaker = Breaker::new(THREE_IN_A_ROW, now, 0);
        assert_eq!(breaker.failure(now, 1, 0, None), None);
        assert!(!breaker.is_closed_and_clean());
        breaker.reconfigure(BreakerConfig { consecutive_failures: Some(2), ..long });
        assert!(breaker.failure(now, 2, 0, None).is_some());
    }
}
