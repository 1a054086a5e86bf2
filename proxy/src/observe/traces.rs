//! Traces: which exchanges are recorded as spans, and holding these until they are sent.
//!
//! A worker hands over records and waits for nothing; once a second a task takes them away, makes spans of them
//! ([`spans`]) and sends them ([`otlp`]). Records of a trace that nobody chose are held for some seconds: should
//! another exchange of the same trace fail or take long meanwhile, they are sent with it, so that a failed
//! request is seen whole, with the calls that led to it.

pub mod otlp;
mod spans;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use outrigger_core::outcome::Outcome;
use outrigger_core::telemetry::{self, Sampler};

use crate::base::sync::lock;
use crate::observe::bus::{Sink, Waiting};
use crate::observe::metrics::table::{self, Exposition};
use crate::observe::record::{AttemptEnd, Ending, Record, TraceContext};

/// Records that wait for being sent, and beyond which others are dropped.
const MAX_CHOSEN: usize = 2_048;
/// Records that may still be chosen; a new one takes the place of the oldest.
const MAX_UNDECIDED: usize = 2_048;
/// How long a record may still be chosen, and how long a trace stays chosen after its last exchange that was.
const UNDECIDED_FOR: Duration = Duration::from_secs(5);
const CHOSEN_FOR: Duration = Duration::from_secs(30);
/// Traces that are chosen at one time; those beyond are recorded without what was not drawn.
const MAX_TRACES: usize = 4_096;

/// The sink for traces.
#[derive(Default)]
pub struct Traces {
    /// Whether there are settings: asked for each request.
    on: AtomicBool,
    /// None: nothing is recorded.
    settings: ArcSwapOption<telemetry::Traces>,
    held: Mutex<Held>,
    sent: AtomicU64,
    failed: AtomicU64,
}

#[derive(Default)]
struct Held {
    chosen: Waiting,
    undecided: Waiting,
    /// Traces of which something was chosen that was not drawn, and when last.
    traces: HashMap<u128, SystemTime, foldhash::fast::RandomState>,
}

impl Traces {
    /// Changes what is recorded from now on.
    pub fn configure(&self, settings: Option<&telemetry::Traces>) {
        if self.settings.load().as_deref() == settings {
            return;
        }
        self.settings.store(settings.cloned().map(Arc::new));
        self.on.store(settings.is_some(), Relaxed);
        if settings.is_none() {
            *lock(&self.held) = Held::default();
        }
    }

    /// None: nothing is recorded.
    pub fn settings(&self) -> Option<Arc<telemetry::Traces>> {
        self.settings.load_full()
    }

    /// How it is decided what is recorded, if anything is.
    #[inline]
    pub fn sampling(&self) -> Option<Sampler> {
        if self.is_on() { self.sampler() } else { None }
    }

    fn sampler(&self) -> Option<Sampler> {
        self.settings.load().as_deref().map(telemetry::Traces::sampler)
    }

    #[inline]
    pub fn is_on(&self) -> bool {
        self.on.load(Relaxed)
    }

    /// Whether a request is recorded that has ended so.
    pub fn records(&self, trace: &TraceContext, outcome: Outcome, duration: Duration) -> bool {
        if !self.is_on() || trace.is_sampled() {
            return self.is_on();
        }
        self.settings.load().as_deref().is_some_and(|settings| settings.keeps(outcome, duration))
    }

    /// Takes what is to be sent now.
    pub fn drain(&self, now: SystemTime) -> Vec<Box<Record>> {
        let mut held = lock(&self.held);
        let Held { chosen, undecided, traces } = &mut *held;
        traces.retain(|_, last| is_younger(*last, now, CHOSEN_FOR));
        let mut out = Vec::from(std::mem::take(chosen).records);
        // Made anew, so that what a burst took is given back.
        for record in std::mem::take(undecided).records {
            if traces.contains_key(&record.trace.id) {
                out.push(record);
            } else if is_younger(record.ended, now, UNDECIDED_FOR) {
                undecided.push(record);
            }
        }
        out
    }

    /// Counts spans: sent, or refused by the collector or lost on the way.
    pub(crate) fn count(&self, sent: usize, failed: usize) {
        self.sent.fetch_add(sent as u64, Relaxed);
        self.failed.fetch_add(failed as u64, Relaxed);
    }

    pub fn expose(&self, out: &mut Exposition) {
        for (result, counter) in [("sent", &self.sent), ("failed", &self.failed)] {
            out.add(&table::SPANS, &[&result], counter.load(Relaxed));
        }
    }
}

fn is_younger(at: SystemTime, now: SystemTime, age: Duration) -> bool {
    // The clock may have been set back: then it is.
    now.duration_since(at).unwrap_or_default() < age
}

/// Whether its callee has a failure on record: the way there would be missing.
fn has_failed_attempt(record: &Record) -> bool {
    record.earlier().iter().any(|attempt| attempt.end != AttemptEnd::Outrun)
}

impl Sink for Arc<Traces> {
    fn name(&self) -> &'static str {
        "traces"
    }

    fn wants(&self, ending: &Ending<'_>, _random: &dyn Fn() -> u64) -> bool {
        ending.traced && self.is_on()
    }

    fn take(&self, record: Box<Record>) -> bool {
        let settings = self.settings.load();
        let Some(settings) = settings.as_deref() else { return true };
        let drawn = record.trace.is_sampled();
        let mut held = lock(&self.held);
        let keeps = settings.keeps(record.outcome, record.duration)
            || settings.errors && has_failed_attempt(&record);
        if !drawn && !keeps {
            while !held.undecided.fits(&record, MAX_UNDECIDED) && held.undecided.pop().is_some() {}
            held.undecided.push(record);
            return true;
        }
        if !drawn && (held.traces.len() < MAX_TRACES || held.traces.contains_key(&record.trace.id))
        {
            held.traces.insert(record.trace.id, record.ended);
        }
        let fits = held.chosen.fits(&record, MAX_CHOSEN);
        if fits {
            held.chosen.push(record);
        }
        fits
    }
}

#[cfg(test)]
mod tests {
    use outrigger_core::telemetry::{Collector, OtlpProtocol, Ratio};

    use super::*;
    use crate::base::direction::Direction;
    use crate::observe::bus::MAX_BYTES;
    use crate::observe::record::SAMPLED;

    fn traces() -> Arc<Traces> {
        let traces = Arc::new(Traces::default());
        traces.configure(Some(&telemetry::Traces {
            collector: Collector {
                address: "http://127.0.0.1:1".to_owned(),
                protocol: OtlpProtocol::Grpc,
            },
            ratio: Ratio::default(),
            parent: true,
            errors: true,
            slower_than: Some(Duration::from_secs(1)),
        }));
        traces
    }

    fn record(id: u128, flags: u8, outcome: Outcome) -> Box<Record> {
        let trace = TraceContext { id, received: 1, sent: 2, flags };
        Box::new(Record { trace, outcome, ..Record::example() })
    }

    fn ids(records: &[Box<Record>]) -> Vec<u128> {
        records.iter().map(|record| record.trace.id).collect()
    }

    #[test]
    fn what_fails_brings_along_what_its_trace_has_done_before_and_after() {
        let traces = traces();
        assert!(traces.take(record(1, 0, Outcome::Success)));
        assert!(traces.take(record(2, 0, Outcome::Success)));
        assert!(traces.take(record(3, SAMPLED, Outcome::Success)));
        assert!(traces.take(record(1, 0, Outcome::Failure)));
        let now = SystemTime::now();
        assert_eq!(ids(&traces.drain(now)), [3, 1, 1]);
        assert!(traces.take(record(1, 0, Outcome::Success)));
        assert_eq!(ids(&traces.drain(now)), [1]);
        let mut slow = record(2, 0, Outcome::Success);
        slow.duration = Duration::from_secs(2);
        assert!(traces.take(slow));
        assert_eq!(ids(&traces.drain(now)), [2, 2]);
        // Nobody remembers for ever.
        assert!(traces.take(record(4, 0, Outcome::Success)));
        assert!(traces.drain(now + CHOSEN_FOR).is_empty());
        assert!(traces.take(record(4, 0, Outcome::Failure)));
        assert_eq!(ids(&traces.drain(now)), [4]);
    }

    #[test]
    fn what_is_held_is_bounded_and_drops_are_told_of() {
        let traces = traces();
        for id in 1..=2 * MAX_UNDECIDED as u128 {
            assert!(traces.take(record(id, 0, Outcome::Success)));
        }
        for id in 0..MAX_CHOSEN as u128 {
            assert!(traces.take(record(id, 0, Outcome::Failure)));
        }
        assert!(!traces.take(record(1, SAMPLED, Outcome::Success)));
        let held = lock(&traces.held);
        let [undecided, chosen] = [&held.undecided, &held.chosen];
        assert_eq!((undecided.records.len(), chosen.records.len()), (MAX_UNDECIDED, MAX_CHOSEN));
        assert_eq!(undecided.records[0].trace.id, MAX_UNDECIDED as u128 + 1);
        assert!(held.traces.len() <= MAX_TRACES);
    }

    #[test]
    fn long_paths_take_the_place_of_more_records() {
        let traces = traces();
        let long = |outcome| {
            let mut record = record(1, 0, outcome);
            record.path = Some("/x".repeat(32 * 1024).into());
            record
        };
        let taken = (0..200).filter(|_| traces.take(long(Outcome::Failure))).count();
        assert!((60..64).contains(&taken), "{taken}");
        (0..200).for_each(|_| assert!(traces.take(long(Outcome::Success))));
        let held = lock(&traces.held);
        for waiting in [&held.undecided, &held.chosen] {
            assert!((60..64).contains(&waiting.records.len()), "{}", waiting.records.len());
            assert!(waiting.bytes <= MAX_BYTES);
        }
    }

    #[test]
    fn nothing_is_held_for_nobody() {
        let traces = traces();
        let untraced = Ending::new(Direction::Inbound, Outcome::Success, None);
        let ending = Ending { traced: true, ..untraced };
        assert!(traces.wants(&ending, &|| 0));
        assert!(!traces.wants(&untraced, &|| 0));
        assert!(traces.take(record(1, SAMPLED, Outcome::Success)));
        traces.configure(None);
        assert!(!traces.wants(&ending, &|| 0));
        assert!(traces.drain(SystemTime::now()).is_empty());
    }
}
