//! Preference: what a choice of endpoints gives to new ones and to one's own zone, over many requests.

use std::time::Duration;

use outrigger_core::policy::preference::{WHOLE, is_panic, is_within, own_share, warmth};

use crate::support::for_each_seed;

#[test]
fn a_new_endpoint_never_gets_less_than_before_nor_more_than_its_age_allows() {
    for_each_seed(2_000, |random| {
        let window = Duration::from_millis(random.between(1_000, 3_600_000));
        let mut age = Duration::ZERO;
        let mut last = 0;
        while last < WHOLE {
            let share = warmth(age, window);
            assert!(share >= last.max(WHOLE / 10), "{age:?} of {window:?}");
            let line = 0.1 + 0.9 * age.as_secs_f64() / window.as_secs_f64();
            assert!(f64::from(share) <= line * f64::from(WHOLE) + 1.0, "{age:?} of {window:?}");
            last = share;
            age += window.mul_f64(random.between(1, 200) as f64 / 1_000.0);
        }
        assert!(age >= window);
    });
}

#[test]
fn what_spills_over_is_what_ones_own_zone_lacks() {
    for_each_seed(200, |random| {
        let all = random.between(1, 40) as usize;
        let fit = random.below(all as u64 + 1) as usize;
        let elsewhere = random.below(40) as usize;
        let percent = random.between(1, 100) as u8;
        let share = own_share(fit, all, elsewhere, percent);
        let wanted = match (fit, elsewhere) {
            (0, _) => 0.0,
            (_, 0) => 1.0,
            _ => (fit as f64 / all as f64 / (f64::from(percent) / 100.0)).min(1.0),
        };
        assert!((f64::from(share) / f64::from(WHOLE) - wanted).abs() < 0.001);
        // And that is what a run of requests gets.
        let n = 20_000;
        let own = (0..n).filter(|_| is_within(share, random.next())).count();
        assert!((own as f64 / f64::from(n) - wanted).abs() < 0.03, "{own} of {n}, {wanted}");
        // One fit endpoint more never keeps less in the zone, and never begins a panic.
        if fit < all {
            assert!(own_share(fit + 1, all, elsewhere, percent) >= share);
            assert!(is_panic(fit, all, percent) || !is_panic(fit + 1, all, percent));
        }
    });
}
