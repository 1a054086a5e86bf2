//! `RateLimit`: never more than the limit over any interval, and never less than it could be.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use outrigger_core::policy::priority::Priority;
use outrigger_core::policy::rate_limit::{Key, RateDecision, RateLimit, RateLimitConfig, Strategy};

use crate::support::{Clock, Random, for_each_seed, on_four_threads};

const SECOND: Duration = Duration::from_secs(1);
const PRIORITIES: [Priority; 3] = [Priority::Sheddable, Priority::Default, Priority::Critical];

#[test]
fn no_interval_has_more_than_the_limit_and_nobody_is_refused_for_nothing() {
    for_each_seed(3_000, |random| {
        let start = Instant::now();
        let mut now = start;
        let config = config(random);
        let mut limit = RateLimit::new(config.clone(), now);
        let mut logs = Logs::default();
        for _ in 0..400 {
            now += random.step();
            let (key, priority) = (random.below(4), random.pick(&PRIORITIES));
            match limit.admit(now, key, priority) {
                RateDecision::Admit(quota) => {
                    assert!(quota.left < config.burst);
                    if random.chance(5) {
                        limit.give_back(key);
                    } else {
                        logs.note(&config, key, now - start);
                    }
                }
                RateDecision::Refuse { quota, retry_after } => {
                    assert_eq!(quota.left, 0);
                    check_retry_after(&limit, now, key, priority, retry_after);
                    if priority == Priority::Critical && !is_uncommon_first(&config) {
                        assert!(logs.would_be_too_many(&config, key, now - start));
                    }
                }
            }
            if random.chance(5) {
                limit.tick(now);
            }
        }
        logs.check(&config);
        limit.tick(now + config.period * 2 * config.burst);
        limit.tick(now + config.period * 2 * config.burst + SECOND);
        assert_eq!(limit.keys(), 0, "nobody is remembered in the end");
    });
}

#[test]
fn new_numbers_let_in_no_more_than_the_higher_ones() {
    for_each_seed(2_000, |random| {
        let start = Instant::now();
        let mut now = start;
        let mut most = config(random);
        let mut limit = RateLimit::new(most.clone(), now);
        let mut logs = Logs::default();
        for _ in 0..400 {
            now += random.step();
            let key = random.below(3);
            if let RateDecision::Admit(_) = limit.admit(now, key, Priority::Critical) {
                logs.note(&most, key, now - start);
            }
            if random.chance(2) {
                let (requests, burst) = (random.between(1, 60), random.between(1, 60));
                let requests = requests as u32;
                let burst = burst as u32;
                limit.reconfigure(RateLimitConfig { requests, burst, ..most.clone() }, now);
                most = RateLimitConfig {
                    requests: requests.max(most.requests),
                    burst: burst.max(most.burst),
                    ..most
                };
            }
        }
        logs.check(&most);
    });
}

#[test]
fn the_same_holds_for_four_threads() {
    for_each_seed(100, |random| {
        let clock = Clock::new();
        let start = clock.at(|now| now);
        let config = config(random);
        let limit = Mutex::new(RateLimit::new(config.clone(), start));
        let all = Mutex::new(Logs::default());
        on_four_threads(random, |random| {
            let mut logs = Logs::default();
            for _ in 0..500 {
                if random.chance(10) {
                    clock.advance(random.step());
                }
                clock.at(|now| {
                    let key = random.below(4);
                    let priority = random.pick(&PRIORITIES);
                    let decision = limit.lock().unwrap().admit(now, key, priority);
                    if let RateDecision::Admit(_) = decision {
                        logs.note(&config, key, now - start);
                    }
                });
            }
            all.lock().unwrap().append(logs);
        });
        all.into_inner().unwrap().check(&config);
    });
}

fn config(random: &mut Random) -> RateLimitConfig {
    RateLimitConfig {
        name: "all".to_owned(),
        requests: random.between(1, 60) as u32,
        period: Duration::from_millis(random.pick(&[1_000, 1_001, 3_333, 10_000])),
        burst: random.between(1, 60) as u32,
        strategy: random.pick(&[
            Strategy::Volume,
            Strategy::LowPriorityFirst,
            Strategy::UncommonFirst,
            Strategy::PerKey,
        ]),
        key: Key::Caller,
    }
}

fn is_uncommon_first(config: &RateLimitConfig) -> bool {
    config.strategy == Strategy::UncommonFirst
}

/// What it promises is exact if nobody else comes.
fn check_retry_after(
    limit: &RateLimit,
    now: Instant,
    key: u64,
    priority: Priority,
    retry_after: Duration,
) {
    assert!(!retry_after.is_zero());
    if is_uncommon_first(limit.config()) {
        // A key may be common by then, and come through earlier.
        return;
    }
    let early = now + retry_after - Duration::from_nanos(1);
    let admits = |at| matches!(limit.clone().admit(at, key, priority), RateDecision::Admit(_));
    assert!(!admits(early) && admits(now + retry_after));
}

/// When requests were admitted, since the start: of each key, or of all.
#[derive(Default)]
struct Logs(BTreeMap<u64, Vec<Duration>>);

impl Logs {
    fn note(&mut self, config: &RateLimitConfig, key: u64, at: Duration) {
        self.0.entry(of(config, key)).or_default().push(at);
    }

    fn append(&mut self, other: Self) {
        for (key, mut log) in other.0 {
            let own = self.0.entry(key).or_default();
            own.append(&mut log);
            own.sort_unstable();
        }
    }

    /// For every interval that begins and ends with an admission; no rounding.
    fn check(&self, config: &RateLimitConfig) {
        for log in self.0.values() {
            assert!(!exceeds(config, log), "too many in an interval");
        }
    }

    fn would_be_too_many(&self, config: &RateLimitConfig, key: u64, at: Duration) -> bool {
        let mut log = self.0.get(&of(config, key)).cloned().unwrap_or_default();
        log.push(at);
        exceeds(config, &log)
    }
}

fn of(config: &RateLimitConfig, key: u64) -> u64 {
    if config.strategy == Strategy::PerKey { key } else { 0 }
}

fn exceeds(config: &RateLimitConfig, log: &[Duration]) -> bool {
    let period = config.period.as_nanos() as i128;
    let burst = i128::from(config.burst) * period;
    // The tightest of all intervals that end here begins where this is least.
    let mut least = i128::MAX;
    (0i128..).zip(log).any(|(before, at)| {
        let refilled = at.as_nanos() as i128 * i128::from(config.requests);
        least = least.min(before * period - refilled);
        (before + 1) * period - refilled - burst > least
    })
}
