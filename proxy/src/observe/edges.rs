//! What this workload called since the last time somebody asked, by service port: for the graph of the mesh.
//!
//! All of it is read from the metrics, so that requests pay nothing.

use std::collections::HashMap;

use hdrhistogram::Histogram;
use outrigger_core::config::Protocol;
use outrigger_core::graph::latency::{Latencies, bucket_of};
use outrigger_core::outcome::Outcome;
use outrigger_core::reason::Cause;

use crate::base::direction::Direction;
use crate::base::sync::lock;
use crate::observe::metrics::{CountKey, Label, Metrics, SeriesCounts, SeriesKey};

/// What is counted together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EdgeKey {
    pub service: Label,
    pub route: Label,
    pub protocol: Protocol,
    /// Not a call of this workload, but one that it got from a caller that nobody knows.
    pub from_outside: bool,
}

/// What has ended on an edge.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EdgeCounts {
    /// With why they ended so, if for a reason.
    pub ended: Vec<(Outcome, Option<Cause>, u64)>,
    /// Of those that succeeded.
    pub latencies: Latencies,
}

/// All edges, as they were told last.
#[derive(Default)]
pub struct Edges {
    told: HashMap<EdgeKey, EdgeCounts>,
}

impl EdgeCounts {
    pub fn count(&self, outcome: Outcome) -> u64 {
        self.ended.iter().filter(|(of, ..)| *of == outcome).map(|(.., n)| n).sum()
    }

    fn add(&mut self, outcome: Outcome, cause: Option<Cause>, n: u64) {
        match self.ended.iter_mut().find(|(of, why, _)| (*of, *why) == (outcome, cause)) {
            Some((.., known)) => *known += n,
            None => self.ended.push((outcome, cause, n)),
        }
    }

    /// What there is more than `before`. Series that were given back take their counts along: then less.
    fn since(&self, before: &Self) -> Self {
        let more = |(outcome, cause, n): &(Outcome, Option<Cause>, u64)| {
            let known = before.ended.iter().find(|(of, why, _)| (of, why) == (outcome, cause));
            let more = n.saturating_sub(known.map_or(0, |(.., n)| *n));
            (more > 0).then_some((*outcome, *cause, more))
        };
        Self {
            ended: self.ended.iter().filter_map(more).collect(),
            latencies: self.latencies.since(&before.latencies),
        }
    }
}

impl Edges {
    /// What has ended since the last time, on edges where anything has.
    pub fn take(&mut self, metrics: &Metrics) -> Vec<(EdgeKey, EdgeCounts)> {
        let mut now: HashMap<EdgeKey, EdgeCounts> = HashMap::new();
        for worker in &metrics.workers {
            for series in &lock(worker).series {
                add(&mut now, series.key, &lock(&series.inner));
            }
        }
        let mut changes = Vec::new();
        for (key, counts) in &now {
            let change = match self.told.get(key) {
                Some(before) => counts.since(before),
                None => counts.clone(),
            };
            if !change.ended.is_empty() {
                changes.push((*key, change));
            }
        }
        self.told = now;
        changes
    }
}

fn add(now: &mut HashMap<EdgeKey, EdgeCounts>, series: SeriesKey, counts: &SeriesCounts) {
    let from_outside = match series.direction {
        Direction::Outbound => false,
        Direction::Inbound if series.peer == Label::UNKNOWN => true,
        // Its caller tells.
        Direction::Inbound => return,
    };
    let SeriesKey { service, route, .. } = series;
    let key = |protocol| EdgeKey { service, route, protocol, from_outside };
    for (CountKey { protocol, outcome, cause, .. }, n) in &counts.requests {
        now.entry(key(*protocol)).or_default().add(*outcome, *cause, *n);
    }
    // Latencies are not known by protocol: a service port has one, and a second one takes what is the first one's.
    if let (Some(histogram), Some((first, _))) = (&counts.success, counts.requests.first()) {
        add_latencies(&mut now.entry(key(first.protocol)).or_default().latencies, histogram);
    }
}

fn add_latencies(latencies: &mut Latencies, histogram: &Histogram<u32>) {
    for value in histogram.iter_recorded() {
        latencies.add(bucket_of(value.value_iterated_to()), value.count_at_value().into());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use outrigger_core::reason::Reason;

    use super::*;
    use crate::observe::metrics::{Status, WorkerMetrics};

    struct Bed {
        metrics: Arc<Metrics>,
        workers: [WorkerMetrics; 2],
        edges: Edges,
    }

    impl Bed {
        fn new() -> Self {
            let metrics = Arc::new(Metrics::new(2));
            let workers = [0, 1].map(|worker| WorkerMetrics::new(Arc::clone(&metrics), worker));
            Self { metrics, workers, edges: Edges::default() }
        }

        fn record(&self, worker: usize, key: SeriesKey, cause: Option<Cause>, latency: Duration) {
            let outcome = if cause.is_some() { Outcome::Failure } else { Outcome::Success };
            let (protocol, status) = (Protocol::Http1, Status::Http(200));
            let count = CountKey { protocol, outcome, status, cause };
            self.workers[worker].record(key, count, latency, 0);
        }

        fn take(&mut self) -> Vec<(EdgeKey, EdgeCounts)> {
            self.edges.take(&self.metrics)
        }
    }

    fn key(direction: Direction, service: Label, peer: Label) -> SeriesKey {
        SeriesKey { direction, service, route: Label::NONE, peer }
    }

    #[test]
    fn each_change_is_told_once_and_over_all_workers_and_peers() {
        let mut bed = Bed::new();
        let texts = ["bank/fees:80", "bank/a", "bank/b"];
        let [fees, a, b] = texts.map(|text| bed.metrics.label(text).get());
        let ms = Duration::from_millis;
        bed.record(0, key(Direction::Outbound, fees, a), None, ms(3));
        bed.record(1, key(Direction::Outbound, fees, b), None, ms(40));
        let refused = Some(Cause::local(Reason::DestinationRefused));
        bed.record(1, key(Direction::Outbound, fees, b), refused, ms(1));
        // Its caller tells of it.
        bed.record(1, key(Direction::Inbound, fees, a), None, ms(1));
        let [(edge, counts)] = &bed.take()[..] else { panic!("one edge") };
        assert_eq!((edge.service, edge.from_outside), (fees, false));
        assert_eq!(counts.count(Outcome::Success), 2);
        assert_eq!(counts.count(Outcome::Failure), 1);
        assert_eq!(counts.latencies.count(), 2);
        assert_eq!(counts.latencies.bucket_at(1.0), Some(bucket_of(40_000)));
        assert_eq!(bed.take(), []);
        bed.record(0, key(Direction::Outbound, fees, b), None, ms(3));
        let [(_, counts)] = &bed.take()[..] else { panic!("one edge") };
        assert_eq!((counts.count(Outcome::Success), counts.count(Outcome::Failure)), (1, 0));
        assert_eq!(counts.latencies.buckets(), [(bucket_of(3_000), 1)]);
    }

    #[test]
    fn callers_that_nobody_knows_are_told_by_who_is_called() {
        let mut bed = Bed::new();
        let gateway = bed.metrics.label("bank/gateway:80").get();
        bed.record(0, key(Direction::Inbound, gateway, Label::UNKNOWN), None, Duration::ZERO);
        let [(edge, _)] = &bed.take()[..] else { panic!("one edge") };
        assert!(edge.from_outside);
    }

    #[test]
    fn counts_that_were_given_back_are_no_new_ones() {
        let mut bed = Bed::new();
        let texts = ["bank/fees:80", "bank/a", "bank/b"];
        let [fees, a, b] = texts.map(|text| bed.metrics.label(text).get());
        for _ in 0..1_000 {
            bed.record(0, key(Direction::Outbound, fees, a), None, Duration::ZERO);
        }
        bed.record(0, key(Direction::Outbound, fees, b), None, Duration::ZERO);
        bed.take();
        lock(&bed.metrics.workers[0]).series.retain(|series| series.key.peer == b);
        assert_eq!(bed.take(), []);
    }
}
