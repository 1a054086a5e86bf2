//! `Budget`: never more retries than the budget, over any interval.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use outrigger_core::policy::budget::{Budget, BudgetConfig, WINDOW};

use crate::support::{Clock, Random, for_each_seed, on_four_threads};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn no_interval_has_more_retries_than_its_requests_pay_for() {
    for_each_seed(3_000, |random| {
        let start = Instant::now();
        let mut now = start;
        let mut most = config(random);
        let mut budget = Budget::new(most, now, 0);
        let ticks = random.chance(70);
        let changes = random.chance(30);
        let mut log = Log::default();
        for _ in 0..400 {
            advance(&mut budget, &mut now, random.step(), log.requests.len() as u64, ticks);
            let bursts = random.pick(&[0, 0, 1, 3, 50]);
            log.requests.extend((0..bursts).map(|_| now - start));
            for _ in 0..random.pick(&[0, 1, 1, 20]) {
                let total = log.requests.len() as u64;
                let left = budget.left(now, total);
                let taken = budget.try_take(now, total);
                assert_eq!(taken, left > 0, "what is left can be taken");
                if taken {
                    log.retries.push(now - start);
                } else if ticks && !changes {
                    log.check_not_stingy(now - start, most);
                }
            }
            if changes && random.chance(2) {
                let other = config(random);
                budget.reconfigure(other, now);
                most.percent = most.percent.max(other.percent);
                most.min_per_second = most.min_per_second.max(other.min_per_second);
            }
        }
        log.check(most);
    });
}

#[test]
fn the_same_holds_for_four_threads() {
    for_each_seed(100, |random| {
        let clock = Clock::new();
        let start = clock.at(|now| now);
        let config = config(random);
        let budget = Mutex::new(Budget::new(config, start, 0));
        let total = AtomicU64::new(0);
        let log = Mutex::new(Log::default());
        on_four_threads(random, |random| {
            let mut own = Log::default();
            for _ in 0..500 {
                match random.below(10) {
                    0 => clock.advance(random.step()),
                    1..6 => clock.at(|now| {
                        total.fetch_add(1, Relaxed);
                        own.requests.push(now - start);
                    }),
                    _ => clock.at(|now| {
                        // Read before the lock is held, so often older than what others have shown.
                        let total = total.load(Relaxed);
                        if budget.lock().unwrap().try_take(now, total) {
                            own.retries.push(now - start);
                        }
                    }),
                }
            }
            let mut log = log.lock().unwrap();
            log.requests.append(&mut own.requests);
            log.retries.append(&mut own.retries);
        });
        let mut log = log.into_inner().unwrap();
        log.requests.sort_unstable();
        log.retries.sort_unstable();
        log.check(config);
    });
}

fn config(random: &mut Random) -> BudgetConfig {
    BudgetConfig {
        percent: random.pick(&[0, 1, 7, 20, 50, 100]),
        min_per_second: random.pick(&[0, 1, 3, 10]),
    }
}

fn advance(budget: &mut Budget, now: &mut Instant, by: Duration, total: u64, ticks: bool) {
    let until = *now + by;
    while ticks && *now + SECOND < until {
        *now += SECOND;
        budget.tick(*now, total);
    }
    *now = until;
    if ticks {
        budget.tick(*now, total);
    }
}

/// When something happened, since the start and in order.
#[derive(Default)]
struct Log {
    requests: Vec<Duration>,
    retries: Vec<Duration>,
}

impl Log {
    /// For every interval that begins and ends with a retry, in percent and nanoseconds: no rounding.
    fn check(&self, config: BudgetConfig) {
        let second = SECOND.as_nanos() as i128;
        let percent = i128::from(config.percent) * second;
        let least = i128::from(config.min_per_second) * 100;
        let saved = i128::from(config.saved()) * 100;
        let requests_until = |at: Duration| self.requests.partition_point(|of| *of <= at) as i128;
        let requests_before = |at: Duration| self.requests.partition_point(|of| *of < at) as i128;
        // The tightest of all intervals that end here begins where this is least.
        let mut lowest = i128::MAX;
        for (before, at) in (0i128..).zip(&self.retries) {
            let begin = match at.checked_sub(WINDOW) {
                Some(begin) => requests_before(begin),
                None => 0,
            };
            let elapsed = at.as_nanos() as i128 * least;
            lowest = lowest.min(before * 100 * second - begin * percent - elapsed);
            let paid = requests_until(*at) * percent + elapsed + saved * second;
            let taken = (before + 1) * 100 * second;
            assert!(taken - paid <= lowest, "too many retries in an interval until {at:?}");
        }
    }

    /// Anyone who is refused has used up what the requests of the last seconds surely pay for.
    fn check_not_stingy(&self, now: Duration, config: BudgetConfig) {
        let since = |list: &[Duration], time: Duration| {
            let begin = now.saturating_sub(time);
            (list.len() - list.partition_point(|at| *at < begin)) as u64
        };
        let surely = since(&self.requests, WINDOW - SECOND * 2);
        let taken = since(&self.retries, WINDOW);
        let share = surely * u64::from(config.percent) / 100;
        assert!(taken >= share, "refused after {taken} of {share}");
    }
}
