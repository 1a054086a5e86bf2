//! Checks of endpoints: what any series of results makes of an endpoint, and when checks are made.

use std::time::{Duration, Instant};

use outrigger_core::policy::health::{
    CheckResult, HealthConfig, HealthProbe, HealthState, PANIC_PERCENT,
};
use outrigger_core::policy::preference::{Fit, ignored};

use crate::support::{Random, for_each_seed};

fn any_config(random: &mut Random) -> HealthConfig {
    HealthConfig {
        probe: HealthProbe::Tcp,
        interval: Duration::from_millis(random.between(100, 600_000)),
        timeout: Duration::from_millis(random.between(10, 60_000)),
        unhealthy_after: random.between(1, 6) as u8,
        healthy_after: random.between(1, 6) as u8,
    }
}

/// What the last clear results of a series say, counted anew from its beginning.
fn expected(config: &HealthConfig, results: &[bool]) -> bool {
    let (mut well, mut against) = (true, 0);
    for good in results {
        against = if *good == well { 0 } else { against + 1 };
        let enough = if well { config.unhealthy_after } else { config.healthy_after };
        if against == enough {
            (well, against) = (*good, 0);
        }
    }
    well
}

#[test]
fn an_endpoint_is_what_its_checks_in_a_row_say() {
    for_each_seed(2_000, |random| {
        let config = any_config(random);
        let mut now = Instant::now();
        let mut vitals = HealthState::new(&config, now, random.next());
        let (mut results, mut since) = (Vec::new(), now);
        let failing = random.between(0, 100);
        for _ in 0..200 {
            now += random.step();
            let before = vitals.is_healthy();
            let found = match (random.chance(10), random.chance(failing)) {
                (true, _) => CheckResult::Inconclusive,
                (false, true) => CheckResult::Unhealthy,
                (false, false) => CheckResult::Healthy,
            };
            vitals.begin(&config, now, random.next());
            let moved = vitals.note(&config, now, found);
            if found != CheckResult::Inconclusive {
                results.push(found == CheckResult::Healthy);
            }
            assert_eq!(vitals.is_healthy(), expected(&config, &results));
            // Told exactly when it changes.
            let changed = before != vitals.is_healthy();
            assert_eq!(moved, changed.then(|| vitals.is_healthy()));
            since = if changed { now } else { since };
            assert_eq!(vitals.since(), since);
        }
    });
}

#[test]
fn checks_keep_their_pace_and_never_overlap() {
    for_each_seed(1_000, |random| {
        let config = any_config(random);
        let began = Instant::now();
        let mut vitals = HealthState::new(&config, began, random.next());
        let first = vitals.due().unwrap();
        assert!(first < began + config.interval);
        let mut now = first;
        for _ in 0..50 {
            let start = now;
            vitals.begin(&config, start, random.next());
            assert_eq!(vitals.due(), None, "one is under way");
            let took = config.timeout.mul_f64(random.between(0, 1_000) as f64 / 1_000.0);
            vitals.note(&config, start + took, CheckResult::Healthy);
            let due = vitals.due().unwrap();
            assert!(due >= start + config.interval * 9 / 10, "too early");
            assert!(due <= start + config.interval * 11 / 10 + Duration::from_nanos(2), "too late");
            now = due.max(start + took);
        }
    });
}

#[test]
fn a_choice_is_never_left_without_endpoints_by_checks_alone() {
    for_each_seed(5_000, |random| {
        let all = random.between(1, 20) as usize;
        let failing: Vec<bool> = (0..all).map(|_| random.chance(50)).collect();
        // Never all of them, as ejections have it.
        let mut out: Vec<bool> = (0..all).map(|_| random.chance(40)).collect();
        out[random.below(all as u64) as usize] = false;
        let well = failing.iter().filter(|failing| !**failing).count();
        let both = |i: usize| !failing[i] && !out[i];
        let fit = (0..all).filter(|i| both(*i)).count();
        let ignored = ignored(Fit { all, well, fit }, None);
        assert!(!ignored.ejections);
        let left = (0..all).filter(|i| (ignored.checks || !failing[*i]) && !out[*i]).count();
        assert!(left > 0, "{failing:?} {out:?}");
        if well * 100 >= all * usize::from(PANIC_PERCENT) && fit > 0 {
            assert!(!ignored.checks);
        }
    });
}
