//! Active checks of endpoints: who answers them badly several times in a row gets no requests until it
//! answers well several times in a row.
//!
//! [`HealthState`] is what one endpoint's checks have shown and when the next one is due. Anyone who makes the
//! checks tells it; an endpoint that nothing is known of is taken for well.

use std::time::{Duration, Instant};

use crate::time::{Later, Part};
use http::uri::PathAndQuery;

/// When less of a service's endpoints is well by its checks, the checks are ignored unless a policy names
/// another share: it is likelier that the checks are wrong than that most of a service is.
pub const PANIC_PERCENT: u8 = 50;
/// Checks of many callers, and of one caller's many endpoints, shall not fall on the same moment: each
/// pause is up to a tenth shorter or longer.
const JITTER_PERCENT: u32 = 10;

/// How the endpoints of a service are checked.
#[derive(Clone, Debug, PartialEq)]
pub struct HealthConfig {
    pub probe: HealthProbe,
    /// From the beginning of a check to that of the next one, which waits for the end of the first.
    pub interval: Duration,
    /// Of a check as a whole, its connection included.
    pub timeout: Duration,
    /// Consecutive failed checks that make an endpoint unhealthy. At least 1.
    pub unhealthy_after: u8,
    /// Consecutive successful checks that make it healthy again. At least 1.
    pub healthy_after: u8,
}

/// What is asked, and of whom.
#[derive(Clone, Debug, PartialEq)]
pub enum HealthProbe {
    /// GET; 2xx is good.
    Http(PathAndQuery),
    /// `grpc.health.v1.Health/Check` of a service by name; SERVING is good.
    Grpc(String),
    /// A connection to the app is good.
    Tcp,
}

/// What one check found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckResult {
    Healthy,
    Unhealthy,
    /// Somebody before the app had too much to do to ask it: this says nothing about the app.
    Inconclusive,
}

impl CheckResult {
    pub const ALL: [Self; 3] = [Self::Healthy, Self::Unhealthy, Self::Inconclusive];

    /// The word in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "good",
            Self::Unhealthy => "bad",
            Self::Inconclusive => "unclear",
        }
    }
}

/// What is known of one endpoint by its checks.
#[derive(Clone, Debug)]
pub struct HealthState {
    healthy: bool,
    /// Checks in a row that speak against `well`.
    against: u8,
    /// It is as it is since then.
    since: Instant,
    next: Instant,
    under_way: bool,
}

impl HealthState {
    /// Well until proven otherwise. Its first check comes at random within the first interval.
    pub fn new(config: &HealthConfig, now: Instant, random: u64) -> Self {
        let next = now.later(share(config.interval, random));
        Self { healthy: true, against: 0, since: now, next, under_way: false }
    }

    pub fn is_healthy(&self) -> bool {
        self.healthy
    }

    pub fn since(&self) -> Instant {
        self.since
    }

    /// When the next check may begin; none while one is under way.
    pub fn due(&self) -> Option<Instant> {
        (!self.under_way).then_some(self.next)
    }

    /// A check begins.
    pub fn begin(&mut self, config: &HealthConfig, now: Instant, random: u64) {
        self.under_way = true;
        let jitter = config.interval.saturating_mul(JITTER_PERCENT).part(100);
        let least = config.interval.saturating_sub(jitter);
        self.next = now.later(least.saturating_add(share(jitter.saturating_mul(2), random)));
    }

    /// The check has ended. Returns what the endpoint is from now on, if that has changed.
    pub fn note(
        &mut self,
        config: &HealthConfig,
        now: Instant,
        found: CheckResult,
    ) -> Option<bool> {
        self.under_way = false;
        let good = match found {
            CheckResult::Healthy => true,
            CheckResult::Unhealthy => false,
            CheckResult::Inconclusive => return None,
        };
        if good == self.healthy {
            self.against = 0;
            return None;
        }
        self.against = self.against.saturating_add(1);
        let enough = if self.healthy { config.unhealthy_after } else { config.healthy_after };
        if self.against < enough {
            return None;
        }
        (self.healthy, self.against, self.since) = (good, 0, now);
        Some(good)
    }

    /// The configuration is another one from now on. What was found stands; what had begun to speak
    /// against it counts no more.
    pub fn reconfigure(&mut self, config: &HealthConfig, now: Instant, random: u64) {
        self.against = 0;
        self.next = self.next.min(now.later(share(config.interval, random)));
    }
}

/// A uniformly random part of `whole`.
fn share(whole: Duration, random: u64) -> Duration {
    let nanos = (whole.as_nanos().min(u128::from(u64::MAX)) * u128::from(random)) >> 64;
    Duration::from_nanos(nanos as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> HealthConfig {
        HealthConfig {
            probe: HealthProbe::Tcp,
            interval: Duration::from_secs(5),
            timeout: Duration::from_secs(1),
            unhealthy_after: 3,
            healthy_after: 2,
        }
    }

    #[test]
    fn only_results_in_a_row_change_what_an_endpoint_is() {
        let (config, now) = (config(), Instant::now());
        let mut vitals = HealthState::new(&config, now, 0);
        let mut see = |found| vitals.note(&config, now, found);
        use CheckResult::{Healthy, Inconclusive, Unhealthy};
        for found in [Unhealthy, Unhealthy, Healthy, Unhealthy, Inconclusive, Unhealthy] {
            assert_eq!(see(found), None, "{found:?}");
        }
        assert_eq!(see(Unhealthy), Some(false));
        assert_eq!(see(Unhealthy), None);
        assert_eq!(see(Healthy), None);
        assert_eq!(see(Unhealthy), None);
        assert_eq!(see(Healthy), None);
        assert_eq!(see(Healthy), Some(true));
        assert_eq!(see(Unhealthy), None);
        assert!(vitals.is_healthy());
    }

    #[test]
    fn a_shorter_interval_holds_at_once() {
        let (mut config, now) = (config(), Instant::now());
        let mut vitals = HealthState::new(&config, now, u64::MAX);
        config.interval = Duration::from_millis(100);
        vitals.reconfigure(&config, now, u64::MAX);
        assert!(vitals.due().unwrap() <= now + config.interval);
    }
}
