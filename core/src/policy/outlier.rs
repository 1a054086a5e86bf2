//! Ejecting endpoints that fail while others do not.
//!
//! An ejected endpoint gets nothing for a time, then a single trial, whose success brings it back and
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
/// is over first. One that is out gets nothing before its time is over, and then one trial at a time.
/// One that never failed takes no memory.
#[derive(Clone, Debug)]
pub struct Outlier {
    config: OutlierConfig,
    records: HashMap<u64, Record, foldhash::fast::RandomState>,
}

#[derive(Clone, Debug)]
struct Record {
    tally: Tally,
    standing: Standing,
    /// Ejections that each followed soon after the one before.
    ejections: u32,
    returned: Option<Instant>,
    /// None: there.
    absent_since: Option<Instant>,
    /// Trials so far, so that an answer to an old one is not taken for that of the last.
    trials: u32,
}

/// Where an endpoint stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    In,
    Out {
        until: Instant,
        cause: Cause,
    },
    /// Its time is over. With a trial on the way, another one is let through at this time, should the
    /// first never be answered.
    OnTrial {
        next: Option<Instant>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    TooMany(TooMany),
    TrialFailed,
}

/// Whether an endpoint may be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    Yes,
    /// This once, and the end must be told with this id.
    Trial(TrialId),
    No,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrialId(u32);

/// A change, for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transition {
    pub key: u64,
    pub to: Standing,
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
            if let Standing::Out { until, .. } = &mut record.standing {
                let longest = config.max_ejection.saturating_add(config.max_ejection.part(4));
                *until = (*until).min(now.later(longest));
            }
        }
    }

    /// To be called about once a second and when endpoints come or go, with all that are there.
    pub fn tick(&mut self, now: Instant, present: &[Sent]) -> Vec<Transition> {
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
                transitions.push(Transition { key: *key, to });
            }
        }
        self.make_room(now, present.len(), &mut transitions);
        let soon = self.config.max_ejection;
        self.records.retain(|_, record| !record.is_forgotten(now, soon));
        transitions
    }

    /// Asked when an endpoint is about to be chosen; [`Turn::Trial`] counts as having been.
    pub fn admit(&mut self, now: Instant, key: u64) -> Turn {
        let again = self.config.base_ejection;
        let Some(record) = self.records.get_mut(&key) else { return Turn::Yes };
        record.end_ejection(now);
        match &mut record.standing {
            Standing::In => Turn::Yes,
            Standing::Out { .. } => Turn::No,
            Standing::OnTrial { next } => {
                if next.is_some_and(|next| now < next) {
                    return Turn::No;
                }
                *next = Some(now.later(again));
                record.trials += 1;
                Turn::Trial(TrialId(record.trials))
            }
        }
    }

    /// Not to be chosen now: ejected, or on trial with one request on the way.
    pub fn is_ejected(&self, key: u64, now: Instant) -> bool {
        match self.records.get(&key).map(|record| record.standing) {
            None | Some(Standing::In) => false,
            Some(Standing::Out { until, .. }) => now < until,
            Some(Standing::OnTrial { next }) => next.is_some_and(|next| now < next),
        }
    }

    /// A success now would change nothing, so nobody needs to call [`Self::success`].
    pub fn is_clean(&self, key: u64) -> bool {
        self.records
            .get(&key)
            .is_none_or(|record| record.standing == Standing::In && record.tally.has_no_run())
    }

    pub fn success(
        &mut self,
        now: Instant,
        key: u64,
        trial: Option<TrialId>,
    ) -> Option<Transition> {
        let record = self.records.get_mut(&key)?;
        match record.standing {
            Standing::In => record.tally.success(),
            Standing::OnTrial { .. } if record.is_current(trial) => {
                return Some(record.bring_back(now, key));
            }
            Standing::OnTrial { .. } | Standing::Out { .. } => {}
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
        trial: Option<TrialId>,
    ) -> Option<Transition> {
        let thresholds = self.config.thresholds();
        let record = self.records.entry(sent.key).or_insert_with(Record::new);
        let cause = match record.standing {
            Standing::In => Cause::TooMany(record.tally.failure(thresholds, now, sent.total)?),
            Standing::OnTrial { .. } if record.is_current(trial) => Cause::TrialFailed,
            Standing::OnTrial { .. } | Standing::Out { .. } => return None,
        };
        let was_in = record.standing == Standing::In;
        if was_in && self.out() >= self.most_out(endpoints) {
            return None;
        }
        let config = self.config;
        let record = self.records.get_mut(&sent.key)?;
        let to = record.eject(config, now, random, cause);
        Some(Transition { key: sent.key, to })
    }

    /// A trial has ended without an answer because its caller went away; the next may come at once.
    pub fn abandoned(&mut self, key: u64, trial: TrialId) {
        if let Some(record) = self.records.get_mut(&key)
            && record.is_current(Some(trial))
            && let Standing::OnTrial { next } = &mut record.standing
        {
            *next = None;
        }
    }

    /// Every endpoint that is not in, for whoever looks.
    pub fn ejected(&self) -> impl Iterator<Item = (u64, Standing)> {
        let out = self.records.iter().filter(|(_, record)| record.standing != Standing::In);
        out.map(|(key, record)| (*key, record.standing))
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
    fn make_room(&mut self, now: Instant, endpoints: usize, transitions: &mut Vec<Transition>) {
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
            standing: Standing::In,
            ejections: 0,
            returned: None,
            absent_since: None,
            trials: 0,
        }
    }

    fn is_out(&self) -> bool {
        self.standing != Standing::In && self.absent_since.is_none()
    }

    fn is_current(&self, trial: Option<TrialId>) -> bool {
        trial == Some(TrialId(self.trials))
    }

    /// None: its time is over.
    fn until(&self) -> Option<Instant> {
        match self.standing {
            Standing::Out { until, .. } => Some(until),
            Standing::In | Standing::OnTrial { .. } => None,
        }
    }

    fn end_ejection(&mut self, now: Instant) -> Option<Standing> {
        if self.until().is_none_or(|until| now < until) {
            return None;
        }
        self.standing = Standing::OnTrial { next: None };
        // Whatever an earlier trial still says comes too late.
        self.trials += 1;
        Some(self.standing)
    }

    fn eject(
        &mut self,
        config: OutlierConfig,
        now: Instant,
        random: u64,
        cause: Cause,
    ) -> Standing {
        let soon = |returned| now.saturating_duration_since(returned) <= config.max_ejection;
        if !self.returned.is_none_or(soon) {
            self.ejections = 0;
        }
        let factor = 2u32.saturating_pow(self.ejections);
        let time = config.base_ejection.saturating_mul(factor).min(config.max_ejection);
        self.ejections = self.ejections.saturating_add(1);
        let until = now.later(time.saturating_add(up_to(time.part(4), random)));
        self.standing = Standing::Out { until, cause };
        self.standing
    }

    fn bring_back(&mut self, now: Instant, key: u64) -> Transition {
        self.standing = Standing::In;
        self.returned = Some(now);
        self.tally = Tally::default();
        Transition { key, to: Standing::In }
    }

    fn is_forgotten(&self, now: Instant, soon: Duration) -> bool {
        let since = |then| now.saturating_duration_since(then);
        if let Some(absent) = self.absent_since {
            return since(absent) >= KEEP_ABSENT;
        }
        let doubles = self.returned.is_some_and(|returned| since(returned) <= soon);
        self.standing == Standing::In && self.tally.is_clear() && !doubles
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

    fn fail_twice(outlier: &mut Outlier, now: Instant, key: u64) -> Option<Transition> {
        assert_eq!(outlier.failure(now, sent(key), 0, 4, None), None);
        outlier.failure(now, sent(key), 0, 4, None)
    }

    fn trial(outlier: &mut Outlier, now: Instant, key: u64) -> TrialId {
        match outlier.admit(now, key) {
            Turn::Trial(trial) => trial,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn it_goes_out_is_tried_and_comes_back() {
        let now = Instant::now();
        let mut outlier = Outlier::new(TWO_IN_A_ROW);
        let until = now + SECOND;
        let cause = Cause::TooMany(TooMany::Consecutive(2));
        let out = fail_twice(&mut outlier, now, 1).unwrap();
        assert_eq!(out, Transition { key: 1, to: Standing::Out { until, cause } });
        assert_eq!(outlier.admit(now, 1), Turn::No);
        assert_eq!(outlier.admit(now, 2), Turn::Yes);
        assert_eq!(outlier.success(now, 1, None), None, "of a request from before");

        assert!(outlier.is_ejected(1, now) && !outlier.is_ejected(1, until));
        let due = outlier.tick(until, &FOUR);
        assert_eq!(due, [Transition { key: 1, to: Standing::OnTrial { next: None } }]);
        let first = trial(&mut outlier, until, 1);
        assert_eq!(outlier.admit(until, 1), Turn::No, "one at a time");
        outlier.abandoned(1, first);
        let second = trial(&mut outlier, until, 1);
        assert_eq!(outlier.success(until, 1, Some(first)), None);
        let back = outlier.success(until, 1, Some(second));
        assert_eq!(back, Some(Transition { key: 1, to: Standing::In }));
        assert_eq!(outlier.admit(until, 1), Turn::Yes);
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
            let Some(Transition { to: Standing::Out { until, .. }, .. }) = transition else {
                panic!("{transition:?}")
            };
            times.push((until - now).as_secs());
            now = until;
            let trial = trial(&mut outlier, now, 1);
            transition = outlier.failure(now, sent(1), 0, 4, Some(trial));
        }
        assert_eq!(times, [1, 2, 3, 3]);
        let later = now + SECOND * 4;
        let trial = trial(&mut outlier, later, 1);
        assert!(outlier.success(later, 1, Some(trial)).is_some());
        let much_later = later + SECOND * 4;
        let Some(Transition { to: Standing::Out { until, .. }, .. }) =
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
        assert_eq!(back, [Transition { key: 1, to: Standing::In }]);

        let mut outlier = Outlier::new(OutlierConfig { max_ejected_percent: 100, ..TWO_IN_A_ROW });
        assert!((1..=3).all(|key| fail_twice(&mut outlier, now, key).is_some()));
        assert_eq!(fail_twice(&mut outlier, now, 4), None);
        assert_eq!(outlier.ejected().count(), 3);
    }

    #[test]
    fn whoever_comes_back_finds_its_ejection() {
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
        assert_eq!(outlier.admit(now + SECOND * 500, 1), Turn::No);
        outlier.tick(now + SECOND * 501, &FOUR[1..]);
        outlier.tick(now + SECOND * 501 + KEEP_ABSENT, &FOUR[1..]);
        assert!(outlier.is_empty());
    }
}
