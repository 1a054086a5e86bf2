//! Where records go: every sink that wants one gets it, and none is waited for.
//!
//! A record is made when some sink wants it and not before. What a sink has no room for is dropped and counted:
//! requests never wait for anyone who looks at them.

use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use outrigger_logging::Record as _;

use crate::observe::metrics::add;
use crate::observe::metrics::table::{self, Exposition};
use crate::observe::record::{Ending, Record};

/// Most sinks of a process: one bit each.
const MAX_SINKS: usize = 8;
/// Bytes of records that wait in a sink: a path may be as long as a head.
pub const MAX_BYTES: usize = 4 * 1024 * 1024;

/// Anyone who reads records. Called on workers, so it never blocks.
pub trait Sink: Send + Sync {
    /// As metrics label it.
    fn name(&self) -> &'static str;

    /// Whether it wants the record of an exchange that has ended so: never while it is off. `random`: for sinks
    /// that want a share.
    fn wants(&self, ending: &Ending<'_>, random: &dyn Fn() -> u64) -> bool;

    /// Takes a record. False: there is no room for it.
    fn take(&self, record: Box<Record>) -> bool;
}

/// Records that wait in a sink, in the order in which they came.
#[derive(Default)]
pub struct Waiting {
    pub records: VecDeque<Box<Record>>,
    pub bytes: usize,
}

impl Waiting {
    /// Whether there is room for it, of `most` and of [`MAX_BYTES`].
    pub fn fits(&self, record: &Record, most: usize) -> bool {
        self.records.len() < most && self.bytes.saturating_add(record.size()) <= MAX_BYTES
    }

    pub fn push(&mut self, record: Box<Record>) {
        self.bytes = self.bytes.saturating_add(record.size());
        self.records.push_back(record);
    }

    pub fn pop(&mut self) -> Option<Box<Record>> {
        let record = self.records.pop_front()?;
        self.bytes = self.bytes.saturating_sub(record.size());
        Some(record)
    }
}

/// All sinks of the process.
#[derive(Default)]
pub struct Bus {
    sinks: Vec<(Box<dyn Sink>, AtomicU64)>,
}

/// The sinks that want a record, at least one.
#[derive(Clone, Copy, Debug)]
pub struct Wanted(u8);

impl Bus {
    /// # Panics
    ///
    /// With more than 8 sinks.
    pub fn new(sinks: Vec<Box<dyn Sink>>) -> Self {
        assert!(sinks.len() <= MAX_SINKS, "{} sinks", sinks.len());
        Self { sinks: sinks.into_iter().map(|sink| (sink, AtomicU64::new(0))).collect() }
    }

    /// Who wants the record of an exchange that has ended so. None: it need not be made.
    #[inline]
    pub fn wanted(&self, ending: &Ending<'_>, random: &dyn Fn() -> u64) -> Option<Wanted> {
        // Drawn once, so that sinks that want the same share want the same requests.
        let drawn = Cell::new(None);
        let random = || {
            let number = drawn.get().unwrap_or_else(random);
            drawn.set(Some(number));
            number
        };
        let mut wanted = 0;
        for (at, (sink, _)) in self.sinks.iter().enumerate() {
            wanted |= u8::from(sink.wants(ending, &random)) << at;
        }
        (wanted != 0).then_some(Wanted(wanted))
    }

    /// Gives the record to those who want it.
    pub fn publish(&self, Wanted(mut wanted): Wanted, record: Box<Record>) {
        let mut record = Some(record);
        while let Some((sink, dropped)) = self.sinks.get(wanted.trailing_zeros() as usize) {
            // The bit that has just been looked at.
            wanted &= wanted.wrapping_sub(1);
            let own = if wanted == 0 { record.take() } else { record.clone() };
            if !own.is_some_and(|own| sink.take(own)) {
                add(dropped, 1);
            }
        }
    }

    pub fn expose(&self, out: &mut Exposition) {
        for (sink, dropped) in &self.sinks {
            out.add(&table::RECORDS_DROPPED, &[&sink.name()], dropped.load(Relaxed));
        }
    }
}

#[cfg(test)]
mod tests {
    use outrigger_core::outcome::Outcome;
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::base::direction::Direction;
    use crate::base::sync::lock;

    struct Probe {
        name: &'static str,
        on: bool,
        errors_only: bool,
        room: usize,
        taken: Arc<Mutex<Vec<u64>>>,
    }

    impl Sink for Probe {
        fn name(&self) -> &'static str {
            self.name
        }

        fn wants(&self, ending: &Ending<'_>, _random: &dyn Fn() -> u64) -> bool {
            self.on && (!self.errors_only || ending.outcome != Outcome::Success)
        }

        fn take(&self, record: Box<Record>) -> bool {
            let mut taken = lock(&self.taken);
            let fits = taken.len() < self.room;
            if fits {
                taken.push(record.bytes);
            }
            fits
        }
    }

    fn probe(name: &'static str, on: bool, errors_only: bool, room: usize) -> Probe {
        Probe { name, on, errors_only, room, taken: Arc::default() }
    }

    fn ending(outcome: Outcome) -> Ending<'static> {
        Ending::new(Direction::Inbound, outcome, None)
    }

    fn record(bytes: u64) -> Box<Record> {
        Box::new(Record { bytes, ..Record::example() })
    }

    #[test]
    fn each_sink_gets_what_it_wants_and_what_does_not_fit_is_counted() {
        let (all, errors, full) = (
            probe("all", true, false, 99),
            probe("errors", true, true, 99),
            probe("full", true, false, 1),
        );
        let seen = [&all, &errors, &full].map(|sink| Arc::clone(&sink.taken));
        let bus = Bus::new(vec![Box::new(all), Box::new(errors), Box::new(full)]);
        for (bytes, outcome) in
            [(1, Outcome::Success), (2, Outcome::Failure), (3, Outcome::Success)]
        {
            let wanted = bus.wanted(&ending(outcome), &|| 0).unwrap();
            bus.publish(wanted, record(bytes));
        }
        let seen = seen.map(|taken| lock(&taken).clone());
        assert_eq!(seen, [vec![1, 2, 3], vec![2], vec![1]]);
        let mut out = Exposition::default();
        bus.expose(&mut out);
        let text = out.into_text();
        for line in ["{sink=\"all\"} 0", "{sink=\"errors\"} 0", "{sink=\"full\"} 2"] {
            assert!(text.contains(&format!("outrigger_records_dropped_total{line}")), "{text}");
        }
    }

    #[test]
    fn nothing_is_made_for_sinks_that_are_off_or_want_nothing() {
        let bus = Bus::new(vec![Box::new(probe("off", false, false, 9))]);
        assert!(
            bus.wanted(&ending(Outcome::Failure), &|| unreachable!("nobody needs a number"))
                .is_none()
        );
        let bus = Bus::new(vec![
            Box::new(probe("off", false, false, 9)),
            Box::new(probe("errors", true, true, 9)),
        ]);
        assert!(bus.wanted(&ending(Outcome::Success), &|| 0).is_none());
        assert!(bus.wanted(&ending(Outcome::Failure), &|| 0).is_some());
    }
}
