//! Which endpoints of a service are preferred: new ones a little less, those of one's own zone first, and
//! failing ones only when too few others are left.
//!
//! Pure numbers; the proxy keeps the endpoints. Shares are parts of [`WHOLE`].

use std::time::Duration;

use super::health::PANIC_PERCENT;

/// Parts that a whole is counted in: hundredths of a percent.
pub const WHOLE: u16 = 10_000;
/// Of what a warm endpoint gets, for one that has just come: enough to warm it up, not enough to hurt.
const COLD: u16 = WHOLE / 10;

/// How a service's endpoints are preferred; none of it is set unless a policy does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PreferenceConfig {
    /// A new endpoint's share grows to its full one within this time.
    pub slow_start: Option<Duration>,
    /// When fewer than so many percent of the endpoints are fit, fitness is ignored ([`ignored`]).
    pub panic_threshold: Option<u8>,
    /// One's own zone first, while at least so many percent of its endpoints are fit.
    pub min_healthy_percent: Option<u8>,
}

/// The share of an endpoint that came `age` ago, of what it would get otherwise: a tenth at first, then
/// evenly more.
pub fn warmth(age: Duration, window: Duration) -> u16 {
    if age >= window {
        return WHOLE;
    }
    let grown = u128::from(WHOLE - COLD) * age.as_micros() / window.as_micros().max(1);
    COLD + grown as u16
}

/// Whether so few endpoints are fit that avoiding the others would overload these.
pub fn is_panic(fit: usize, all: usize, threshold: u8) -> bool {
    fit * 100 < all * usize::from(threshold)
}

/// How many of a service's endpoints nothing speaks against.
#[derive(Clone, Copy, Debug)]
pub struct Fit {
    pub all: usize,
    /// Well by their checks.
    pub well: usize,
    /// Well, and not ejected.
    pub fit: usize,
}

/// What is not looked at in a choice of endpoints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ignored {
    pub checks: bool,
    pub ejections: bool,
}

/// What has to be ignored, so that those that are left are not buried. `threshold` is for both, where a
/// policy names one. Ejections have a limit of their own, and without a threshold need no other.
pub fn ignored(fit: Fit, threshold: Option<u8>) -> Ignored {
    if let Some(threshold) = threshold {
        let panic = is_panic(fit.fit, fit.all, threshold);
        return Ignored { checks: panic, ejections: panic };
    }
    // Those that are well may be the ones that are ejected.
    let checks = fit.well < fit.all && (fit.fit == 0 || is_panic(fit.well, fit.all, PANIC_PERCENT));
    Ignored { checks, ejections: false }
}

/// The share of requests that stays in one's own zone, where `fit` of its `all` endpoints are fit and
/// `elsewhere` are in other zones: what is missing to `min_percent` spills over.
pub fn own_share(fit: usize, all: usize, elsewhere: usize, min_percent: u8) -> u16 {
    if fit == 0 {
        return 0;
    }
    let needed = all * usize::from(min_percent);
    if elsewhere == 0 || fit * 100 >= needed {
        return WHOLE;
    }
    (fit * 100 * usize::from(WHOLE) / needed.max(1)) as u16
}

/// Whether a uniformly random number falls within a share.
pub fn is_within(share: u16, random: u64) -> bool {
    let drawn = (u128::from(random) * u128::from(WHOLE)) >> 64;
    drawn < u128::from(share)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_endpoint_warms_up_evenly() {
        let window = Duration::from_secs(30);
        for (seconds, share) in [(0, 1_000), (10, 4_000), (15, 5_500), (30, WHOLE), (99, WHOLE)] {
            assert_eq!(warmth(Duration::from_secs(seconds), window), share, "{seconds}");
        }
    }

    #[test]
    fn ones_own_zone_keeps_what_it_can_serve() {
        for (fit, all, elsewhere, share) in [
            (10, 10, 10, WHOLE),
            (7, 10, 10, WHOLE),
            (6, 10, 10, 8_571),
            (1, 10, 1, 1_428),
            (1, 10, 0, WHOLE),
            (0, 10, 10, 0),
            (0, 0, 10, 0),
            (1, 1, 9, WHOLE),
        ] {
            assert_eq!(own_share(fit, all, elsewhere, 70), share, "{fit} of {all}, {elsewhere}");
        }
    }

    #[test]
    fn few_fit_endpoints_are_not_buried() {
        assert!(!is_panic(5, 10, 50) && is_panic(4, 10, 50));
        assert!(!is_panic(0, 0, 50) && !is_panic(0, 10, 0));
    }

    #[test]
    fn checks_are_ignored_sooner_than_ejections() {
        for (all, well, fit, threshold, checks, ejections) in [
            (4, 4, 2, None, false, false),
            (4, 2, 2, None, false, false),
            (4, 1, 1, None, true, false),
            (4, 0, 0, None, true, false),
            // The two that are well are ejected, the two that are not ejected are not well.
            (4, 2, 0, None, true, false),
            (1, 1, 0, None, false, false),
            (4, 1, 1, Some(25), false, false),
            (4, 2, 1, Some(50), true, true),
            (4, 0, 0, Some(0), false, false),
            (0, 0, 0, None, false, false),
        ] {
            let got = ignored(Fit { all, well, fit }, threshold);
            assert_eq!(got, Ignored { checks, ejections }, "{all} {well} {fit} {threshold:?}");
        }
    }
}
