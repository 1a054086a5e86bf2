//! Ejecting endpoints that fail while others do not.
//!
//! An ejected endpoint gets nothing for a time, then a single probe, whose success brings it back and
//! whose failure ejects it for longer.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::breaker::FailureRate;
use super::retry::up_to;
use super::tally::{Tally, Thresholds, TooMany};
use crate::time::{Later, Part};

/// An endpoint that is gone may come back within this time and finds its ejection. As long as any
/// unused state is kept.
const KEEP_ABSENT: Duration = Duration::from_secs(600);

/// At least one of `consecutive_failures` and `failure_rate` is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutlierConfig {
    /// Failures in a row that eject an endpoint. At least 1.
    pub consecutive_failures: Option<u32>,
    pub failure_rate: Option<FailureRate>,
    /// Time of the first ejection; it doubles with each that follows soon, up to `max_ejection`, and up
    /// to a quarter more is added by chance. At least 100 ms.
    pub base_ejection: Duration,
    pub max_ejection: Duration,
    /// Endpoints of the service that may be ejected at a time, in percent, rounded down, but never all.
    /// 1 to 100.
    pub max_ejected_percent: u8,
}

/// The endpoints of one service that have failed lately, by a key that names the endpoint for ever.
///
/// Guarantees: of the endpoints that the last `tick` named, never more than the configured share are
/// out at a time, and never all; where endpoints left, the next `tick` brings back those whose time
/// is over first. One that is out gets nothing before its time is over, and then one probe at a time.
/// One that never failed takes no memory.
#[derive(Clone, Debug)]
pub struct Outlier {
    config: OutlierConfig,
    records: HashMap<u64, Record, foldhash::fast::RandomState>,
}

#[derive(Clone, Debug)]
struct Record {
    tally: Tally,
    ejection: Ejection,
    /// Ejections that each followed soon after the one before.
    ejections: u32,
    returned: Option<Instant>,
    /// None: there.
    absent_since: Option<Instant>,
    /// Probes so far, so that an answer to an old one is not taken for that of the last.
    probes: u32,
}

/// Where an endpoint stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ejection {
    Active,
    Ejected {
        until: Instant,
        cause: EjectionCause,
    },
    /// Its time is over. With a probe on the way, another one is let through at this time, should the
    /// first never be answered.
    Probing {
        next: Option<Instant>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EjectionCause {
    TooMany(TooMany),
    ProbeFailed,
}

/// Whether an endpoint may be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Eligibility {
    Yes,
    /// This once, and the end must be told with this id.
    Probe(EndpointProbeId),
    No,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndpointProbeId(u32);

/// A change, for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EjectionChange {
    pub key: u64,
    pub to: Ejection,
}

/// One endpoint in an event: its key and the requests that it has been sent so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    pub key: u64,
    pub total: u64,
}

impl Outlier {
    pub fn new(config: OutlierConfig) -> Self {
        Self { config, records: HashMap::default() }
    }

    /// Applies other numbers to what has been counted; ejections go on, at most as long as the new
    /// numbers could make them.
    pub fn reconfigure(&mut self, config: OutlierConfig, now: Instant) {
        self.config = config;
        for record in self.records.values_mut() {
            record.tally.reconfigure(config.thresholds());
            if let Ejection::Ejected { until, .. } = &mut record.ejection {
                let longest = config.max_ejection.saturating_add(config.max_ejection.part(4));
                *until = (*until).min(now.later(longest));
            }
        }
    }

    /// To be called about once a second and when endpoints come or go, with all that are there.
    pub fn tick(&mut self, now: Instant, present: &[Sent]) -> Vec<EjectionChange> {
        let mut transitions = Vec::new();
        let thresholds = self.config.thresholds();
        if self.records.is_empty() {
            return transitions;
        }
        for (key, record) in &mut self.records {
            match present.iter().find(|sent| sent.key == *key) {
                Some(sent) => {
                    record.absent_since = None;
                    record.tally.tick(thresholds, now, sent.total);
                }
                None => {
                    record.absent_since.get_or_insert(now);
                }
            }
            if let Some(to) = record.end_ejection(now) {
                transitions.push(EjectionChange { key: *key, to });
            }
        }
        self.make_room(now, present.len(), &mut transitions);
        let soon = self.config.max_ejection;
        self.records.retain(|_, record| !record.is_forgotten(now, soon));
        transitions
    }

    /// Asked when an endpoint is about to be chosen; [`Eligibility::Probe`] counts as having been.
    pub fn admit(&mut self, now: Instant, key: u64) -> Eligibility {
        let again = self.config.base_ejection;
        let Some(record) = self.records.get_mut(&key) else { return Eligibility::Yes };
        record.end_ejection(now);
        match &mut record.ejection {
            Ejection::Active => Eligibility::Yes,
            Ejection::Ejected { .. } => Eligibility::No,
            Ejection::Probing { next } => {
                if next.is_some_and(|next| now < next) {
                    return Eligibility::No;
                }
                *next = Some(now.later(again));
                record.probes += 1;
                Eligibility::Probe(EndpointProbeId(record.probes))
            }
        }
    }

    /// Not to be chosen now: ejected, or being probed with one request on the way.
    pub fn is_ejected(&self, key: u64, now: Instant) -> bool {
        match self.records.get(&key).map(|record| record.ejection) {
            None | Some(Ejection::Active) => false,
            Some(Ejection::Ejected { until, .. }) => now < until,
            Some(Ejection::Probing { next }) => next.is_some_and(|next| now < next),
        }
    }

    /// A success now would change nothing, so nobody needs to call [`Self::success`].
    pub fn is_clean(&self, key: u64) -> bool {
        self.records
            .get(&key)
            .is_none_or(|record| record.ejection == Ejection::Active && record.tally.has_no_run())
    }

    pub fn success(
        &mut self,
        now: Instant,
        key: u64,
        probe: Option<EndpointProbeId>,
    ) -> Option<EjectionChange> {
        let record = self.records.get_mut(&key)?;
        match record.ejection {
            Ejection::Active => record.tally.success(),
            Ejection::Probing { .. } if record.is_current(probe) => {
                return Some(record.bring_back(now, key));
            }
            Ejection::Probing { .. } | Ejection::Ejected { .. } => {}
        }
        None
    }

    /// `endpoints`: how many there are now. `random` spreads the time of an ejection.
    pub fn failure(
        &mut self,
        now: Instant,
        sent: Sent,
        random: u64,
        endpoints: usize,
        probe: Option<EndpointProbeId>,
    ) -> Option<EjectionChange> {
        let thresholds = self.config.thresholds();
        let record = self.records.entry(sent.key).or_insert_with(Record::new);
        let cause = match record.ejection {
            Ejection::Active => {
                EjectionCause::TooMany(record.tally.failure(thresholds, now, sent.total)?)
            }
            Ejection::Probing { .. } if record.is_current(probe) => EjectionCause::ProbeFailed,
            Ejection::Probing { .. } | Ejection::Ejected { .. } => return None,
        };
        let was_in = record.ejection == Ejection::Active;
        if was_in && self.out() >= self.most_out(endpoints) {
            return None;
        }
        let config = self.config;
        let record = self.records.get_mut(&sent.key)?;
        let to = record.eject(config, now, random, cause);
        Some(EjectionChange { key: sent.key, to })
    }

    /// A probe has ended without an answer because its caller went away; the next may come at once.
    pub fn abandoned(&mut self, key: u64, probe: EndpointProbeId) {
        if let Some(record) = self.records.get_mut(&key)
            && record.is_current(Some(probe))
            && let Ejection::Probing { next } = &mut record.ejection
        {
            *next = None;
        }
    }

    /// Every endpoint that is not in, for anyone who looks.
    pub fn ejected(&self) -> impl Iterator<Item = (u64, Ejection)> {
        let out = self.records.iter().filter(|(_, record)| record.ejection != Ejection::Active);
        out.map(|(key, record)| (*key, record.ejection))
    }

    /// Endpoints that are remembered, so that one can see that none is left behind.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    pub fn config(&self) -> OutlierConfig {
        self.config
    }

    fn out(&self) -> usize {
        self.records.values().filter(|record| record.is_out()).count()
    }

    fn most_out(&self, endpoints: usize) -> usize {
        let share = endpoints * usize::from(self.config.max_ejected_percent) / 100;
        share.min(endpoints.saturating_sub(1))
    }

    /// Brings back what is too many since endpoints left, those first whose time is over first.
    fn make_room(&mut self, now: Instant, endpoints: usize, transitions: &mut Vec<EjectionChange>) {
        let too_many = self.out().saturating_sub(self.most_out(endpoints));
        if too_many == 0 {
            return;
        }
        let out = self.records.iter_mut().filter(|(_, record)| record.is_out());
        let mut out: Vec<_> = out.map(|(key, record)| (record.until(), *key, record)).collect();
        out.sort_unstable_by_key(|(until, key, _)| (*until, *key));
        for (_, key, record) in out.into_iter().take(too_many) {
            transitions.push(record.bring_back(now, key));
        }
    }
}

impl Record {
    fn new() -> Self {
        Self {
            tally: Tally::default(),
            ejection: Ejection::Active,
            ejections: 0,
            returned: None,
            absent_since: None,
            probes: 0,
        }
    }

    fn is_out(&self) -> bool {
        self.ejection != Ejection::Active && self.absent_since.is_none()
    }

    fn is_current(&self, probe: Option<EndpointProbeId>) -> bool {
        probe == Some(EndpointProbeId(self.probes))
    }

    /// None: its time is over.
    fn until(&self) -> Option<Instant> {
        match self.ejection {
            Ejection::Ejected { until, .. } => Some(until),
            Ejection::Active | Ejection::Probing { .. } => None,
        }
    }

    fn end_ejection(&mut self, now: Instant) -> Option<Ejection> {
        if self.until().is_none_or(|until| now < until) {
            return None;
        }
        self.ejection = Ejection::Probing { next: None };
        // Whatever an earlier probe still says comes too late.
        self.probes += 1;
        Some(self.ejection)
    }

    fn eject(
        &mut self,
        config: OutlierConfig,
        now: Instant,
        random: u64,
        cause: EjectionCause,
    ) -> Ejection {
        let soon = |returned| now.saturating_duration_since(returned) <= config.max_ejection;
        if !self.returned.is_none_or(soon) {
            self.ejections = 0;
        }
        let factor = 2u32.saturating_pow(self.ejections);
        let time = config.base_ejection.saturating_mul(factor).min(config.max_ejection);
        self.ejections = self.ejections.saturating_add(1);
        let until = now.later(time.saturating_add(up_to(time.part(4), random)));
        self.ejection = Ejection::Ejected { until, cause };
        self.ejection
    }

    fn bring_back(&mut self, now: Instant, key: u64) -> EjectionChange {
        self.ejection = Ejection::Active;
        self.returned = Some(now);
        self.tally = Tally::default();
        EjectionChange { key, to: Ejection::Active }
    }

    fn is_forgotten(&self, now: Instant, soon: Duration) -> bool {
        let since = |then| now.saturating_duration_since(then);
        if let Some(absent) = self.absent_since {
            return since(absent) >= KEEP_ABSENT;
        }
        let doubles = self.returned.is_some_and(|returned| since(returned) <= soon);
        self.ejection == Ejection::Active && self.tally.is_clear() && !doubles
    }
}

impl OutlierConfig {
    fn thresholds(self) -> Thresholds {
        Thresholds { consecutive: self.consecutive_failures, rate: self.failure_rate }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const TWO_IN_A_ROW: OutlierConfig = OutlierConfig {
        consecutive_failures: Some(2),
        failure_rate: None,
        base_ejection: SECOND,
        max_ejection: Duration::from_secs(3),
        max_ejected_percent: 50,
    };
    const FOUR: [Sent; 4] = [sent(1), sent(2), sent(3), sent(4)];

    const fn sent(key: u64) -> Sent {
        Sent { key, total: 0 }
    }

    fn fail_twice(outlier: &mut Outlier, now: Instant, key: u64) -> Option<EjectionChange> {
        assert_eq!(outlier.failure(now, sent(key), 0, 4, None), None);
        outlier.failure(now, sent(key), 0, 4, None)
    }

    fn probe(outlier: &mut Outlier, now: Instant, key: u64) -> EndpointProbeId {
        match outlier.admit(now, key) {
            Eligibility::Probe(probe) => probe,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn it_goes_out_is_tried_and_comes_back() {
        let now = Instant::now();
        let mut outlier = Outlier::new(TWO_IN_A_ROW);
        let until = now + SECOND;
        let cause = EjectionCause::TooMany(TooMany::Consecutive(2));
        let out = fail_twice(&mut outlier, now, 1).unwrap();
        assert_eq!(out, EjectionChange { key: 1, to: Ejection::Ejected { until, cause } });
        assert_eq!(outlier.admit(now, 1), Eligibility::No);
        assert_eq!(outlier.admit(now, 2), Eligibility::Yes);
        assert_eq!(outlier.success(now, 1, None), None, "of a request from before");

        assert!(outlier.is_ejected(1, now) && !outlier.is_ejected(1, until));
        let due = outlier.tick(until, &FOUR);
        assert_eq!(due, [EjectionChange { key: 1, to: Ejection::Probing { next: None } }]);
        let first = probe(&mut outlier, until, 1);
        assert_eq!(outlier.admit(until, 1), Eligibility::No, "one at a time");
        outlier.abandoned(1, first);
        let second = probe(&mut outlier, until, 1);
        assert_eq!(outlier.success(until, 1, Some(first)), None);
        let back = outlier.success(until, 1, Some(second));
        assert_eq!(back, Some(EjectionChange { key: 1, to: Ejection::Active }));
        assert_eq!(outlier.admit(until, 1), Eligibility::Yes);
        assert_eq!(outlier.len(), 1, "an ejection soon would be longer");
        outlier.tick(until + SECOND * 4, &FOUR);
        assert!(outlier.is_empty());
    }

    #[test]
    fn each_ejection_that_follows_soon_is_longer() {
        let mut now = Instant::now();
        let mut outlier = Outlier::new(TWO_IN_A_ROW);
        let mut transition = fail_twice(&mut outlier, now, 1);
        let mut times = Vec::new();
        for _ in 0..4 {
            let Some(EjectionChange { to: Ejection::Ejected { until, .. }, .. }) = transition
            else {
                panic!("{transition:?}")
            };
            times.push((until - now).as_secs());
            now = until;
            let probe = probe(&mut outlier, now, 1);
            transition = outlier.failure(now, sent(1), 0, 4, Some(probe));
        }
        assert_eq!(times, [1, 2, 3, 3]);
        let later = now + SECOND * 4;
        let probe = probe(&mut outlier, later, 1);
        assert!(outlier.success(later, 1, Some(probe)).is_some());
        let much_later = later + SECOND * 4;
        let Some(EjectionChange { to: Ejection::Ejected { until, .. }, .. }) =
            fail_twice(&mut outlier, much_later, 1)
        else {
            panic!("not ejected")
        };
        assert_eq!(until - much_later, SECOND);
    }

    #[test]
    fn never_more_than_the_share_and_never_all() {
        let now = Instant::now();
        let mut outlier = Outlier::new(TWO_IN_A_ROW);
        assert!(fail_twice(&mut outlier, now, 1).is_some());
        assert!(fail_twice(&mut outlier, now, 2).is_some());
        assert_eq!(fail_twice(&mut outlier, now, 3), None, "half of four are out");
        let back = outlier.tick(now, &[sent(1), sent(2)]);
        assert_eq!(back, [EjectionChange { key: 1, to: Ejection::Active }]);

        let mut outlier = Outlier::new(OutlierConfig { max_ejected_percent: 100, ..TWO_IN_A_ROW });
        assert!((1..=3).all(|key| fail_twice(&mut outlier, now, key).is_some()));
        assert_eq!(fail_twice(&mut outlier, now, 4), None);
        assert_eq!(outlier.ejected().count(), 3);
    }

    #[test]
    fn an_endpoint_that_comes_back_finds_its_ejection() {
        let now = Instant::now();
        let long = OutlierConfig {
            max_ejection: SECOND * 900,
            base_ejection: SECOND * 900,
            ..TWO_IN_A_ROW
        };
        let mut outlier = Outlier::new(long);
        assert!(fail_twice(&mut outlier, now, 1).is_some());
        assert!(outlier.tick(now + SECOND, &FOUR[1..]).is_empty());
        assert!(outlier.tick(now + SECOND * 500, &FOUR).is_empty());
        assert_eq!(outlier.admit(now + SECOND * 500, 1), Eligibility::No);
        outlier.tick(now + SECOND * 501, &FOUR[1..]);
        outlier.tick(now + SECOND * 501 + KEEP_ABSENT, &FOUR[1..]);
        assert!(outlier.is_empty());
    }
}
