//! `Breaker`: nothing passes while it is open, few while it is half open, and it closes again.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use outrigger_core::policy::breaker::{
    Admission, Breaker, BreakerChange, BreakerConfig, BreakerProbeId, BreakerState, FailureRate,
    OpenCause, OpenTime,
};
use outrigger_core::policy::tally::TooMany;

use crate::support::{Clock, Random, for_each_seed, on_four_threads};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn it_keeps_its_word_and_closes_when_all_is_well() {
    for_each_seed(4_000, |random| {
        let mut now = Instant::now();
        let mut checked = Checked::new(config(random), now);
        let mut in_flight = Vec::new();
        let mut failing = 50;
        for _ in 0..400 {
            now += random.step();
            act(&mut checked, random, now, &mut in_flight, failing);
            if random.chance(3) {
                failing = random.pick(&[0, 5, 50, 100]);
            }
            if random.chance(1) {
                checked.reconfigure(config(random));
            }
        }
        // Nothing fails any more, and it closes within a few open times.
        checked.reconfigure(BreakerConfig { trials: 3, ..checked.breaker.config() });
        for _ in 0..10 {
            now += SECOND * 61;
            for _ in 0..5 {
                if let Some(probe) = checked.admit(now) {
                    checked.success(probe);
                }
            }
        }
        assert_eq!(checked.breaker.state(), BreakerState::Closed);
        assert!(checked.breaker.is_closed_and_clean());
    });
}

#[test]
fn the_same_holds_for_four_threads() {
    for_each_seed(100, |random| {
        let clock = Clock::new();
        let config = config(random);
        let checked = Mutex::new(clock.at(|now| Checked::new(config, now)));
        on_four_threads(random, |random| {
            let mut in_flight = Vec::new();
            for _ in 0..300 {
                if random.chance(30) {
                    clock.advance(random.step());
                }
                clock.at(|now| {
                    let mut checked = checked.lock().unwrap();
                    act(&mut checked, random, now, &mut in_flight, 60);
                });
            }
        });
    });
}

/// One step of a caller: a request begins, ends well or badly, or is given up.
fn act(
    checked: &mut Checked,
    random: &mut Random,
    now: Instant,
    in_flight: &mut Vec<Option<BreakerProbeId>>,
    failing: u64,
) {
    if random.chance(10) {
        checked.tick(now);
    }
    if random.chance(50) {
        in_flight.extend(checked.admit(now));
        return;
    }
    if in_flight.is_empty() {
        return;
    }
    let probe = in_flight.swap_remove(random.below(in_flight.len() as u64) as usize);
    match probe {
        Some(probe) if random.chance(15) => checked.abandoned(probe),
        _ if random.chance(failing) => checked.failure(now, random.next(), probe),
        _ => checked.success(probe),
    }
}

fn config(random: &mut Random) -> BreakerConfig {
    let (consecutive, rate) = random.pick(&[(true, false), (false, true), (true, true)]);
    let rate = rate.then(|| FailureRate {
        percent: random.between(1, 100) as u8,
        window: SECOND * random.between(1, 20) as u32,
        min_requests: random.between(1, 20) as u32,
    });
    let base = Duration::from_millis(random.between(1, 5_000));
    let open = match random.chance(30) {
        true => OpenTime::Fixed(base),
        false => OpenTime::Backoff { base, max: base * random.between(1, 12) as u32 },
    };
    BreakerConfig {
        consecutive_failures: consecutive.then(|| random.between(1, 6) as u32),
        failure_rate: rate,
        open,
        trials: random.between(1, 3) as u32,
    }
}

/// A breaker, and what must be true of it.
struct Checked {
    breaker: Breaker,
    total: u64,
    /// When failures came in the closed state.
    failures: Vec<Instant>,
    in_a_row: u32,
    /// Probes on the way and successes since it became half open; answers to earlier ones are none.
    trials: Vec<BreakerProbeId>,
    successes: u32,
    last_probe: Option<Instant>,
    last_open: Duration,
    /// As long as it may be open next time.
    longest: Duration,
}

impl Checked {
    fn new(config: BreakerConfig, now: Instant) -> Self {
        Self {
            breaker: Breaker::new(config, now, 0),
            total: 0,
            failures: Vec::new(),
            in_a_row: 0,
            trials: Vec::new(),
            successes: 0,
            last_probe: None,
            last_open: Duration::ZERO,
            longest: Duration::MAX,
        }
    }

    fn reconfigure(&mut self, config: BreakerConfig) {
        let before = (self.breaker.state(), self.breaker.config());
        self.breaker.reconfigure(config);
        assert_eq!(before.0.as_str(), self.breaker.state().as_str(), "numbers change no state");
        if before.1.consecutive_failures.is_none() || config.consecutive_failures.is_none() {
            self.in_a_row = 0;
        }
        self.longest = Duration::MAX;
    }

    fn tick(&mut self, now: Instant) {
        let transition = self.breaker.tick(now, self.total);
        self.follow(now, transition);
    }

    /// Some: it passed.
    fn admit(&mut self, now: Instant) -> Option<Option<BreakerProbeId>> {
        let (admission, transition) = self.breaker.admit(now);
        self.follow(now, transition);
        match (admission, self.breaker.state()) {
            (Admission::Pass, BreakerState::Closed) => {
                self.total += 1;
                Some(None)
            }
            (Admission::Refuse { retry_at }, BreakerState::Open { until, .. }) => {
                assert!(now < until && retry_at == until);
                None
            }
            (Admission::Refuse { retry_at }, BreakerState::HalfOpen { .. }) => {
                assert!(retry_at > now && retry_at <= now + self.last_open);
                None
            }
            (Admission::Probe(probe), BreakerState::HalfOpen { .. }) => {
                let free = self.trials.len() < self.breaker.config().trials as usize;
                let waited = self.last_probe.is_none_or(|last| now >= last + self.last_open);
                assert!(free || waited, "{} trials at a time", self.trials.len() + 1);
                self.trials.push(probe);
                self.last_probe = Some(now);
                self.total += 1;
                Some(Some(probe))
            }
            other => panic!("{other:?}"),
        }
    }

    fn success(&mut self, probe: Option<BreakerProbeId>) {
        let counts = self.take(probe);
        self.successes += u32::from(counts);
        if self.breaker.state() == BreakerState::Closed {
            self.in_a_row = 0;
        }
        if let Some(BreakerChange { from, to }) = self.breaker.success(probe) {
            assert!(
                counts
                    && matches!(from, BreakerState::HalfOpen { .. })
                    && to == BreakerState::Closed
            );
            assert!(self.successes >= self.breaker.config().trials);
            (self.in_a_row, self.longest) = (0, Duration::MAX);
            self.failures.clear();
        }
    }

    fn failure(&mut self, now: Instant, random: u64, probe: Option<BreakerProbeId>) {
        let counts = self.take(probe);
        let before = self.breaker.state();
        if before == BreakerState::Closed {
            self.failures.push(now);
            self.in_a_row += 1;
        }
        let transition = self.breaker.failure(now, self.total, random, probe);
        match transition.map(|transition| transition.to) {
            None => {
                assert!(!counts, "a failed probe opens it");
                let limit = self.breaker.config().consecutive_failures;
                let too_many = limit.is_some_and(|limit| self.in_a_row >= limit);
                assert!(before != BreakerState::Closed || !too_many, "{} in a row", self.in_a_row);
            }
            Some(BreakerState::Open { since, until, cause }) => {
                assert_eq!(since, now);
                self.check_cause(now, cause, counts, before);
                self.check_time(until - since, before == BreakerState::Closed);
            }
            Some(other) => panic!("{other:?}"),
        }
    }

    fn abandoned(&mut self, probe: BreakerProbeId) {
        self.take(Some(probe));
        self.breaker.abandoned(probe);
    }

    /// Whether this was a probe whose answer counts.
    fn take(&mut self, probe: Option<BreakerProbeId>) -> bool {
        let at = self.trials.iter().position(|of| Some(*of) == probe);
        let counts = matches!(self.breaker.state(), BreakerState::HalfOpen { .. });
        at.map(|at| self.trials.swap_remove(at)).is_some() && counts
    }

    fn follow(&mut self, now: Instant, transition: Option<BreakerChange>) {
        if let Some(BreakerChange { from, to }) = transition {
            let BreakerState::Open { until, .. } = from else { panic!("{from:?}") };
            assert!(now >= until && matches!(to, BreakerState::HalfOpen { .. }));
            self.trials.clear();
            (self.successes, self.last_probe) = (0, None);
        }
    }

    fn check_cause(&self, now: Instant, cause: OpenCause, probe: bool, before: BreakerState) {
        let config = self.breaker.config();
        match cause {
            OpenCause::ProbeFailed => assert!(probe && before != BreakerState::Closed),
            OpenCause::TooMany(TooMany::Consecutive(count)) => {
                assert!(before == BreakerState::Closed && count == self.in_a_row);
                assert!(count >= config.consecutive_failures.unwrap());
            }
            OpenCause::TooMany(TooMany::Rate { failures, requests }) => {
                let rate = config.failure_rate.unwrap();
                assert!(before == BreakerState::Closed && failures <= requests);
                assert!(requests >= u64::from(rate.min_requests));
                assert!(failures * 100 >= requests * u64::from(rate.percent));
                let recent = |at: &&Instant| now - **at <= rate.window + SECOND;
                assert!(failures <= self.failures.iter().filter(recent).count() as u64);
                assert!(requests <= self.total.max(failures));
            }
        }
    }

    fn check_time(&mut self, time: Duration, first: bool) {
        match self.breaker.config().open {
            OpenTime::Fixed(fixed) => assert_eq!(time, fixed),
            OpenTime::Backoff { base, max } => {
                let longest = if first { base.min(max) } else { self.longest.min(max) };
                assert!(time >= base.min(max) / 2 - Duration::from_nanos(1) && time <= longest);
                self.longest = longest.max(base).saturating_mul(2);
            }
        }
        self.last_open = time;
    }
}
