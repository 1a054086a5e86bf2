//! `Watch`: a fault injection stops when its edge suffers over the window, and for nothing else.

use std::collections::VecDeque;
use std::time::{Duration, Instant, SystemTime};

use outrigger_core::policy::fault::{FaultSource, Times};
use outrigger_core::policy::stop::{Breach, StopRule, Totals, Watch};

use crate::support::for_each_seed;

fn rule(window: u64, min_requests: u32) -> StopRule {
    StopRule {
        name: "bank/f".into(),
        version: "1".into(),
        from: FaultSource { namespace: "bank".to_owned(), service_account: None },
        min_success_percent: Some(95),
        max_p99: Some(Duration::from_millis(500)),
        window: Duration::from_secs(window),
        min_requests,
        times: Times {
            start: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(10)),
            end: SystemTime::UNIX_EPOCH + Duration::from_secs(60),
            schedule: None,
        },
    }
}

/// What a window of whole ticks says, counted again from every request in it.
#[test]
fn it_breaks_exactly_when_its_window_does() {
    for_each_seed(2_000, |random| {
        let window = 1 + random.below(12);
        let min_requests = 1 + random.below(40) as u32;
        let mut watch = Watch::new(rule(window, min_requests));
        let began = Instant::now();
        let mut totals = Totals::default();
        // Of the ticks in the fault injection: what came between each and the one before.
        let mut steps: VecDeque<Totals> = VecDeque::new();
        let (failing, slowing) = (random.below(12), random.below(4));
        for second in 0..70u64 {
            let mut step = Totals::default();
            for _ in 0..random.below(10) {
                step.requests += 1;
                step.failures += u64::from(random.below(100) < failing);
                step.slow += u64::from(random.below(100) < slowing);
            }
            totals.requests += step.requests;
            totals.failures += step.failures;
            totals.slow += step.slow;
            let at = Duration::from_secs(second);
            let breach = watch.tick(began + at, SystemTime::UNIX_EPOCH + at, totals);
            if !(10..60).contains(&second) {
                assert_eq!(breach, None, "outside of the experiment");
                continue;
            }
            if second > 10 {
                steps.push_back(step);
            }
            if steps.len() as u64 > window {
                steps.pop_front();
            }
            let sum = |of: fn(&Totals) -> u64| steps.iter().map(of).sum::<u64>();
            let (requests, failures) = (sum(|t| t.requests), sum(|t| t.failures));
            let slow = sum(|t| t.slow);
            let enough = requests >= u64::from(min_requests);
            let failed = enough && failures * 100 > requests * 5;
            let slowed = enough && slow * 100 > requests;
            let found = breach.map(|breach| matches!(breach, Breach::Failures { .. }));
            let wanted = if failed { Some(true) } else { slowed.then_some(false) };
            assert_eq!(found, wanted, "second {second}: {steps:?}");
        }
    });
}

#[test]
fn a_breach_says_what_was_seen() {
    let breach = Breach::Failures { failures: 7, requests: 40, min_success_percent: 95 };
    assert_eq!(breach.to_string(), "7 of 40 requests failed; minSuccessPercent is 95");
    let breach = Breach::Slow { slow: 3, requests: 40, max_p99: Duration::from_millis(500) };
    assert_eq!(breach.to_string(), "3 of 40 requests took longer than maxP99, which is 500ms");
}
