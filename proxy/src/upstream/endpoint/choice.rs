//! Choosing an endpoint where not all of them are alike: some are ejected, unhealthy or full, some have been tried in
//! vain, some are new, some stand in another zone.
//!
//! The numbers are in `core/src/policy/preference.rs`. A service without any of this never comes here.

use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU32, AtomicU64};
use std::time::Duration;

use outrigger_core::balance;
use outrigger_core::config::Balancer;
use outrigger_core::policy::preference::{PreferenceConfig, WHOLE, is_within, own_share, warmth};

use crate::upstream::endpoint::guard::Guard;
use crate::upstream::endpoint::{Choice, EndpointSet, EndpointState, NoChoice};

/// How a service's endpoints are preferred, as requests read it.
#[derive(Default)]
pub struct Preference {
    /// Milliseconds; 0: no slow start.
    slow_start: AtomicU32,
    /// Coarse milliseconds until which some endpoint is new; 0: none is.
    warming_until: AtomicU32,
    /// Percent; 0: zones do not matter.
    min_healthy: AtomicU32,
    /// Requests that went to another zone because too little of one's own is fit.
    spilled: AtomicU64,
}

impl Preference {
    pub fn reconfigure(&self, config: PreferenceConfig) {
        let slow_start = config.slow_start.map_or(0, |time| time.as_millis() as u32);
        self.slow_start.store(slow_start, Relaxed);
        self.min_healthy.store(config.min_healthy_percent.map_or(0, u32::from), Relaxed);
    }

    /// An endpoint has come. Returns when, for its share; 0: it has all of it.
    pub fn joined(&self, now_ms: u32) -> u32 {
        let window = self.slow_start.load(Relaxed);
        if window == 0 {
            return 0;
        }
        let now_ms = now_ms.max(1);
        self.warming_until.fetch_max(now_ms.saturating_add(window), Release);
        now_ms
    }

    pub fn spilled(&self) -> u64 {
        self.spilled.load(Relaxed)
    }

    pub fn slow_start(&self) -> Option<Duration> {
        let window = self.slow_start.load(Relaxed);
        (window > 0).then(|| Duration::from_millis(window.into()))
    }

    /// Whether endpoints have to be looked at one by one.
    pub fn is_choosy(&self, now_ms: u32) -> bool {
        self.min_healthy.load(Relaxed) > 0
            || (now_ms < self.warming_until.load(Acquire) && self.slow_start.load(Relaxed) > 0)
    }

    /// Of what an endpoint would get otherwise.
    pub fn warmth(&self, endpoint: &EndpointState, now_ms: u32) -> u16 {
        let window = self.slow_start.load(Relaxed);
        if endpoint.joined_ms == 0 || window == 0 {
            return outrigger_core::policy::preference::WHOLE;
        }
        let age = now_ms.saturating_sub(endpoint.joined_ms);
        warmth(Duration::from_millis(age.into()), Duration::from_millis(window.into()))
    }

    /// Those of one's own zone, or those of others, as the share of one's own says.
    fn of_zone<'a>(
        &self,
        all: &[Arc<EndpointState>],
        fit: Vec<&'a Arc<EndpointState>>,
        random: u64,
    ) -> Vec<&'a Arc<EndpointState>> {
        let min_percent = self.min_healthy.load(Relaxed).min(100) as u8;
        if min_percent == 0 {
            return fit;
        }
        let own = all.iter().filter(|endpoint| endpoint.is_near).count();
        let near = fit.iter().filter(|endpoint| endpoint.is_near).count();
        if own == 0 || near == fit.len() {
            return fit;
        }
        let stays = is_within(own_share(near, own, fit.len() - near, min_percent), random);
        if !stays {
            self.spilled.fetch_add(1, Relaxed);
        }
        fit.into_iter().filter(|endpoint| endpoint.is_near == stays).collect()
    }
}

/// One endpoint of those that may be chosen.
pub(crate) fn choose(
    set: &EndpointSet,
    guard: &Guard,
    preference: &Preference,
    turn: &AtomicU64,
    choice: &Choice<'_>,
) -> Result<Arc<EndpointState>, NoChoice> {
    let all = &set.endpoints;
    let mut left: Vec<_> = all.iter().collect();
    if guard.is_choosy() {
        left = guard.choosable(&left)?;
    }
    left = preference.of_zone(all, left, other(choice.random, 1));
    let untried: Vec<_> = left.iter().filter(|e| !choice.tried.contains(&e.key)).copied().collect();
    let untried = spare_full(untried, choice);
    // All were tried: the least loaded deserves another chance more than the caller an error.
    let mut left = if untried.is_empty() { left } else { untried };
    let least_loaded = |left: &[&Arc<EndpointState>], random: u64| {
        balance::power_of_two(left.len(), random, |i| left[i].load.cost(choice.now_ms))
    };
    if left.is_empty() {
        return Err(NoChoice::None);
    }
    let at = if left.len() == all.len() {
        set.pick(choice, turn).ok_or(NoChoice::None)?
    } else {
        least_loaded(&left, choice.random)
    };
    let chosen = left[at];
    let by_load = match choice.balancer {
        Balancer::PowerOfTwo => true,
        Balancer::RingHash(_) => choice.hash.is_none(),
        Balancer::RoundRobin => false,
    };
    let mut warmth = preference.warmth(chosen, choice.now_ms);
    if by_load {
        // Who fails looks less loaded than it is.
        warmth = warmth.min(chosen.load.share(choice.now_ms));
    }
    if left.len() == 1 || is_within(warmth, other(choice.random, 2)) {
        return Ok(Arc::clone(chosen));
    }
    // What a new one does not get yet, the others share.
    left.swap_remove(at);
    Ok(Arc::clone(left[least_loaded(&left, other(choice.random, 3))]))
}

/// Of requests that could go elsewhere, those that an endpoint that asks for fewer still gets: so that it
/// is seen when it has room again.
const SHARE_OF_FULL: u16 = WHOLE / 16;

/// Without the endpoints that ask for fewer requests, where there are others.
fn spare_full<'a>(
    left: Vec<&'a Arc<EndpointState>>,
    choice: &Choice<'_>,
) -> Vec<&'a Arc<EndpointState>> {
    let full = |endpoint: &&Arc<EndpointState>| endpoint.load.is_full(choice.now_ms);
    if is_within(SHARE_OF_FULL, other(choice.random, 4)) || left.iter().all(full) {
        return left;
    }
    left.into_iter().filter(|endpoint| !full(endpoint)).collect()
}

/// A further random number of the same draw (SplitMix64).
fn other(random: u64, n: u64) -> u64 {
    let mut z = random.wrapping_add(n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
