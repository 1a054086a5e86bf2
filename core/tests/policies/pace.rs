//! `Pace` against a real `RateLimit`: callers that share a limit and want more than it gives are seldom
//! refused by it, get most of what it gives, and are free of it when it has gone.

use std::time::{Duration, Instant};

use outrigger_core::policy::pace::{self, LONGEST_WAIT, Pace, PaceTurn, Tight};
use outrigger_core::policy::priority::Priority;
use outrigger_core::policy::rate_limit::{Key, RateDecision, RateLimit, RateLimitConfig, Strategy};

use crate::support::{Random, for_each_seed};

/// What became of a run's requests.
#[derive(Default)]
struct Sums {
    admitted: u64,
    refused: u64,
    held_back: u64,
}

/// Callers that together want `load` times the limit, for ten seconds. `paced`: they keep to it.
fn run(random: &mut Random, callers: usize, requests: u32, load: f64, paced: bool) -> Sums {
    let start = Instant::now();
    let config = RateLimitConfig {
        name: "all".to_owned(),
        requests,
        period: Duration::from_secs(1),
        burst: requests,
        strategy: Strategy::Volume,
        key: Key::Caller,
    };
    let mut policy = String::new();
    config.write_policy(&mut policy);
    let mut limit = RateLimit::new(config.clone(), start);
    let mut paces: Vec<Option<Pace>> = vec![None; callers];
    let (mut sums, mut on_their_way) = (Sums::default(), Vec::new());
    let step = Duration::from_secs_f64(1.0 / (f64::from(requests) * load));
    let mut now = start;
    while now < start + Duration::from_secs(10) {
        now += step.mul_f64(0.5 + random.below(1_000) as f64 / 1_000.0);
        let caller = random.below(callers as u64) as usize;
        let turn = match &mut paces[caller] {
            Some(pace) => pace.turn(now, None),
            None => PaceTurn::Now,
        };
        match turn {
            PaceTurn::Now => on_their_way.push((now, caller)),
            PaceTurn::At(at) => {
                assert!(at - now <= LONGEST_WAIT);
                on_their_way.push((at, caller));
            }
            PaceTurn::Never(_) => sums.held_back += 1,
        }
        on_their_way.sort();
        while let Some((at, caller)) = on_their_way.first().copied().filter(|(at, _)| *at <= now) {
            on_their_way.remove(0);
            let decision = limit.admit(at, 0, Priority::Default);
            let (quota, refused) = match decision {
                RateDecision::Admit(quota) => (quota, false),
                RateDecision::Refuse { quota, .. } => (quota, true),
            };
            *(if refused { &mut sums.refused } else { &mut sums.admitted }) += 1;
            let mut told = String::new();
            config.write_limit(quota, &mut told);
            let left = pace::left(&told, "all").unwrap_or_default();
            let known = paces[caller].take();
            paces[caller] = match known {
                Some(mut pace) => {
                    if refused {
                        pace.refused(at);
                    }
                    pace.left(left).then_some(pace)
                }
                None if paced => {
                    pace::tight(&told, &policy).and_then(|tight| Pace::new(&tight, at))
                }
                None => None,
            };
        }
    }
    sums
}

#[test]
fn callers_that_want_too_much_are_seldom_refused_and_get_most_of_the_limit() {
    for_each_seed(200, |random| {
        let (callers, requests) = (1 + random.below(5) as usize, 20 + random.below(200) as u32);
        let load = 1.5 + random.below(30) as f64 / 10.0;
        let free = run(random, callers, requests, load, false);
        let paced = run(random, callers, requests, load, true);
        let what = format!("{callers} callers, {requests} a second, load {load}");
        assert!(free.refused > free.admitted / 4, "{what}");
        assert!(paced.refused * 3 < free.refused, "{what}: {} {}", paced.refused, free.refused);
        assert!(
            paced.admitted as f64 > free.admitted as f64 * 0.65,
            "{what}: {} of {}",
            paced.admitted,
            free.admitted
        );
        assert!(paced.held_back > 0, "{what}");
    });
}

#[test]
fn turns_are_never_closer_than_the_gap_nor_later_than_anybody_may_wait() {
    for_each_seed(2_000, |random| {
        let start = Instant::now();
        let gap = Duration::from_micros(100 + random.below(900_000));
        let limit = Tight { name: "all", gap, enough: 1 };
        let mut pace = Pace::new(&limit, start).unwrap();
        let (mut now, mut last) = (start, None::<Instant>);
        for _ in 0..300 {
            now += random.step();
            if random.chance(5) {
                pace.refused(now);
            }
            assert!(pace.gap() <= Duration::from_secs(1));
            let least = pace.gap();
            let at = match pace.turn(now, None) {
                PaceTurn::Now => now,
                PaceTurn::At(at) => at,
                PaceTurn::Never(wait) => {
                    assert!(wait > LONGEST_WAIT);
                    continue;
                }
            };
            assert!(at >= now && at - now <= LONGEST_WAIT);
            if let Some(last) = last {
                assert!(at >= last + gap.min(least), "{gap:?}");
            }
            last = Some(at);
        }
    });
}
