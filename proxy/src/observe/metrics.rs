//! Counting requests: one set of series per worker, merged when somebody asks.
//!
//! A request finds its set through interned labels, so recording costs one small hash look-up, a
//! lock that nobody contends, and two additions. `expose` turns the sets into Prometheus text.

mod label;
mod protobuf;
pub mod table;
mod totals;

pub use self::label::{HeldLabel, Label};
pub use self::protobuf::{native_buckets, seconds_of};

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU32, AtomicU64};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use hdrhistogram::Histogram;
use http::StatusCode;
use outrigger_core::config::Protocol;
use outrigger_core::outcome::Outcome;
use outrigger_core::policy::hedge::Hedged;
use outrigger_core::policy::retry::Skip;
use outrigger_core::reason::Cause;

use crate::base::direction::Direction;
use crate::base::sync::lock;
use crate::observe::metrics::label::Interner;
use crate::observe::metrics::table::Exemplar;

/// Series sets of the process beyond which everything is counted as `other`, so that what callers
/// send can't fill memory.
pub(crate) const MAX_SERIES: usize = 500;
/// Sweeps, one a second, after which a set in which nothing was counted is given back.
const IDLE_SWEEPS: u32 = 30 * 60;
/// Longest latency told apart from longer ones, in microseconds (one hour).
const MAX_LATENCY_US: u64 = 3_600_000_000;
/// Two significant digits: 10 KB a histogram, where three would take 139.
const DIGITS: u8 = 2;

/// Stands for every gRPC code that gRPC does not define.
const UNDEFINED: i32 = -1;

/// What a series set is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SeriesKey {
    pub direction: Direction,
    pub service: Label,
    pub route: Label,
    pub peer: Label,
}

/// How a request ended, as its counter is labelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CountKey {
    pub protocol: Protocol,
    pub outcome: Outcome,
    pub status: Status,
    pub cause: Option<Cause>,
}

/// The `status` label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Status {
    /// An HTTP status code; of those that no registry names the first digit, see [`Status::of`].
    Http(u16),
    /// A gRPC status code, from 0 to 16, or [`UNDEFINED`]. See [`Status::grpc`].
    Grpc(i32),
    /// Bytes, not requests.
    Stream,
    /// The caller went away before it had one.
    None,
}

impl Status {
    /// Codes without a meaning of their own are one for each hundred: an app can say as many as there are numbers,
    /// and each would be counted by itself.
    pub fn of(status: StatusCode) -> Self {
        let code = status.as_u16();
        Self::Http(if status.canonical_reason().is_some() { code } else { code / 100 })
    }

    /// The `code` label: the number of the status, or what stands for those without a meaning.
    pub fn code(self) -> Cow<'static, str> {
        match self {
            Self::Http(code @ 100..) => code.to_string().into(),
            Self::Grpc(code) if code != UNDEFINED => code.to_string().into(),
            Self::Http(_) | Self::Grpc(_) => "other".into(),
            Self::Stream | Self::None => "".into(),
        }
    }

    /// Of the code that a server says. Those that gRPC does not define are one: an app can say as many as there are
    /// numbers, and each would be counted by itself.
    pub fn grpc(code: i32) -> Self {
        Self::Grpc(if (0..=16).contains(&code) { code } else { UNDEFINED })
    }
}

/// All counting of the process.
pub struct Metrics {
    labels: Mutex<Interner>,
    /// Sets admitted under [`MAX_SERIES`].
    pub(crate) admitted: Mutex<HashSet<SeriesKey>>,
    pub(crate) workers: Vec<Mutex<WorkerSeries>>,
    pub gauges: Gauges,
}

/// The series of one worker.
#[derive(Default)]
pub(crate) struct WorkerSeries {
    pub(crate) series: Vec<Arc<Series>>,
    /// Requests of series that were given back.
    pub(crate) given_back: u64,
}

/// Process-wide counters and gauges that are not about one service.
#[derive(Default)]
pub struct Gauges {
    pub connections_open: AtomicU64,
    pub connections_total: AtomicU64,
    pub upstream_connections_total: AtomicU64,
    pub upstream_connections_open: AtomicU64,
    pub connections_refused: AtomicU64,
    pub bytes_received: AtomicU64,
    pub bytes_sent: AtomicU64,
    /// Attempts that a policy wanted and that were not made, by [`Skip`].
    pub retries_skipped: [AtomicU64; Skip::ALL.len()],
    /// Second attempts while the first one waited, by [`Hedged`].
    pub hedges: [AtomicU64; Hedged::ALL.len()],
    pub unmatched: AtomicU64,
    pub unmeshed: AtomicU64,
    /// Requests and streams that a policy in audit mode would have refused.
    pub access_audited: AtomicU64,
    pub mirrors: AtomicU64,
    pub mirrors_dropped: AtomicU64,
    pub buffered_bytes: AtomicU64,
    /// Inbound requests in flight that outbound ones can inherit from.
    pub correlation_entries: AtomicU64,
    /// Inbound requests that outbound ones cannot inherit from, because the table was full.
    pub correlation_full: AtomicU64,
    pub discovery_connected: AtomicU64,
    pub discovery_responses: AtomicU64,
    pub discovery_nacks: AtomicU64,
    pub discovery_reconnects: AtomicU64,
    /// 1 while the control plane has this workload.
    pub registered: AtomicU64,
    pub registrations_refused: AtomicU64,
}

/// One worker's counts for one key.
pub struct Series {
    pub key: SeriesKey,
    pub(crate) inner: Mutex<SeriesCounts>,
    /// Sweeps since something was counted.
    idle: AtomicU32,
}

#[derive(Clone, Default)]
pub(crate) struct SeriesCounts {
    /// A handful of entries: a scan beats a hash.
    pub(crate) requests: Vec<(CountKey, u64)>,
    pub(crate) success: Option<Box<Histogram<u32>>>,
    pub(crate) failure: Option<Box<Histogram<u32>>>,
    /// Microseconds, for the histograms' `_sum`.
    pub(crate) success_sum: u64,
    pub(crate) failure_sum: u64,
    /// By bucket of success and failure; none: no trace was recorded.
    pub(crate) exemplars: Option<Box<[Exemplars; 2]>>,
}

/// The last recorded trace of each bucket.
pub(crate) type Exemplars = [Option<Exemplar>; EDGES_US.len() + 1];

/// Upper edges of the latency buckets, in microseconds: 0.5 ms to 10 s.
pub(crate) const EDGES_US: [u64; 14] = [
    500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    2_500_000, 5_000_000, 10_000_000,
];

impl Metrics {
    pub fn new(workers: usize) -> Self {
        Self {
            labels: Mutex::default(),
            admitted: Mutex::default(),
            workers: (0..workers).map(|_| Mutex::default()).collect(),
            gauges: Gauges::default(),
        }
    }

    /// Interns a label text. Configuration makes labels, never the content of a request.
    pub fn label(&self, text: &str) -> HeldLabel {
        lock(&self.labels).intern(text)
    }

    /// Once a minute, off the workers: gives back labels that nobody holds and that no series has had for
    /// half an hour.
    pub fn sweep_labels(&self) {
        let in_series: HashSet<Label> = lock(&self.admitted)
            .iter()
            .flat_map(|key| [key.service, key.route, key.peer])
            .collect();
        lock(&self.labels).sweep(|label| in_series.contains(&label));
    }

    /// Body or stream bytes from and to callers.
    pub fn count_bytes(&self, received: u64, sent: u64) {
        add(&self.gauges.bytes_received, received);
        add(&self.gauges.bytes_sent, sent);
    }

    pub fn texts<const N: usize>(&self, of: [Label; N]) -> [Arc<str>; N] {
        let labels = lock(&self.labels);
        of.map(|label| labels.text(label))
    }

    pub fn text(&self, label: Label) -> Arc<str> {
        lock(&self.labels).text(label)
    }

    /// The key itself, or `other` when there are too many.
    fn admit(&self, key: SeriesKey) -> SeriesKey {
        let mut admitted = lock(&self.admitted);
        if admitted.contains(&key) {
            return key;
        }
        if admitted.len() < MAX_SERIES {
            admitted.insert(key);
            return key;
        }
        SeriesKey { service: Label::OTHER, route: Label::OTHER, peer: Label::OTHER, ..key }
    }
}

impl Metrics {
    /// Makes room for other sets, where no worker has these any more.
    fn dismiss(&self, given_back: &[Arc<Series>]) {
        let mut admitted = lock(&self.admitted);
        for one in given_back {
            let has = |worker: &Mutex<WorkerSeries>| {
                lock(worker).series.iter().any(|other| other.key == one.key)
            };
            if !self.workers.iter().any(has) {
                admitted.remove(&one.key);
            }
        }
    }
}

/// A worker's way to its own series.
pub struct WorkerMetrics {
    metrics: Arc<Metrics>,
    worker: usize,
    known: RefCell<HashMap<SeriesKey, Arc<Series>, foldhash::fast::FixedState>>,
    /// The one that was counted in last, and most often is again.
    last: RefCell<Option<Arc<Series>>>,
    recorded: Cell<bool>,
}

impl WorkerMetrics {
    pub fn new(metrics: Arc<Metrics>, worker: usize) -> Self {
        let (known, last, recorded) = Default::default();
        Self { metrics, worker, known, last, recorded }
    }

    /// Counts one request or connection that has ended. `trace_id`: if its trace is recorded; 0: it is not.
    pub fn record(&self, key: SeriesKey, count: CountKey, latency: Duration, trace_id: u128) {
        self.recorded.set(true);
        let mut last = self.last.borrow_mut();
        if last.as_ref().is_none_or(|last| last.key != key) {
            *last = Some(self.series(key));
        }
        if let Some(series) = &*last {
            series.record(count, latency, trace_id);
        }
    }

    /// Whether anything has ended since the last time.
    pub fn take_recorded(&self) -> bool {
        self.recorded.take()
    }

    /// Once a second, on the worker's thread: gives back series in which nothing was counted for [`IDLE_SWEEPS`].
    pub fn sweep(&self) {
        let given_back = {
            let mut all = lock(&self.metrics.workers[self.worker]);
            let idle: Vec<_> = all
                .series
                .extract_if(.., |one| one.idle.fetch_add(1, Relaxed) >= IDLE_SWEEPS)
                .collect();
            let sum =
                |one: &Arc<Series>| lock(&one.inner).requests.iter().map(|(_, n)| n).sum::<u64>();
            all.given_back += idle.iter().map(sum).sum::<u64>();
            idle
        };
        if given_back.is_empty() {
            return;
        }
        let gone = |key: &SeriesKey| given_back.iter().any(|one| one.key == *key);
        self.known.borrow_mut().retain(|_, series| !gone(&series.key));
        self.last.take();
        self.metrics.dismiss(&given_back);
    }

    fn series(&self, key: SeriesKey) -> Arc<Series> {
        if let Some(series) = self.known.borrow().get(&key) {
            return Arc::clone(series);
        }
        let admitted = self.metrics.admit(key);
        let mut known = self.known.borrow_mut();
        let series = Arc::clone(known.entry(admitted).or_insert_with(|| {
            let (inner, idle) = (Mutex::default(), AtomicU32::new(0));
            let series = Arc::new(Series { key: admitted, inner, idle });
            lock(&self.metrics.workers[self.worker]).series.push(Arc::clone(&series));
            series
        }));
        // Keys are made of labels that configuration brought, but their combinations could be many.
        if known.len() < 4 * MAX_SERIES {
            known.insert(key, Arc::clone(&series));
        }
        series
    }
}

impl Series {
    fn record(&self, count: CountKey, latency: Duration, trace_id: u128) {
        let us = u64::try_from(latency.as_micros()).unwrap_or(MAX_LATENCY_US).min(MAX_LATENCY_US);
        self.idle.store(0, Relaxed);
        let mut counts = lock(&self.inner);
        match counts.requests.iter_mut().find(|(key, _)| *key == count) {
            Some((_, n)) => *n += 1,
            None => counts.requests.push((count, 1)),
        }
        let counts = &mut *counts;
        let (histogram, sum) = match count.outcome {
            Outcome::Success => (&mut counts.success, &mut counts.success_sum),
            Outcome::Failure | Outcome::Refused | Outcome::Canceled => {
                (&mut counts.failure, &mut counts.failure_sum)
            }
        };
        *sum += us;
        if histogram.is_none() {
            *histogram = Histogram::new_with_bounds(1, MAX_LATENCY_US, DIGITS).ok().map(Box::new);
        }
        if let Some(histogram) = histogram {
            histogram.saturating_record(us.max(1));
        }
        if trace_id != 0 {
            let exemplar = Exemplar { trace_id, latency_us: us, at: SystemTime::now() };
            let bucket = EDGES_US.iter().position(|edge| us <= *edge).unwrap_or(EDGES_US.len());
            let all = counts.exemplars.get_or_insert_default();
            all[usize::from(count.outcome != Outcome::Success)][bucket] = Some(exemplar);
        }
    }
}

/// Adds to a counter of [`Gauges`].
pub fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(metrics: &Metrics, service: &str) -> SeriesKey {
        SeriesKey {
            direction: Direction::Outbound,
            service: metrics.label(service).get(),
            route: Label::NONE,
            peer: Label::UNKNOWN,
        }
    }

    const OK: CountKey = CountKey {
        protocol: Protocol::Http1,
        outcome: Outcome::Success,
        status: Status::Http(200),
        cause: None,
    };

    #[test]
    fn series_beyond_the_cap_are_counted_as_other() {
        let metrics = Arc::new(Metrics::new(1));
        let worker = WorkerMetrics::new(Arc::clone(&metrics), 0);
        for i in 0..MAX_SERIES + 10 {
            worker.record(key(&metrics, &format!("s{i}")), OK, Duration::from_millis(1), 0);
        }
        let all = lock(&metrics.workers[0]);
        assert_eq!(all.series.len(), MAX_SERIES + 1);
        let other = all.series.iter().find(|s| s.key.service == Label::OTHER).unwrap();
        assert_eq!(lock(&other.inner).requests, [(OK, 10)]);
    }

    #[test]
    fn statuses_without_a_meaning_are_counted_as_one_for_each_hundred() {
        let all = (100..1_000).filter_map(|code| StatusCode::from_u16(code).ok()).map(Status::of);
        let kinds: HashSet<Status> = all.collect();
        assert!(kinds.len() < 80, "{}", kinds.len());
        for (code, class, label) in
            [(200, "2xx", "200"), (503, "5xx", "503"), (599, "5xx", "other")]
        {
            let status = Status::of(StatusCode::from_u16(code).unwrap());
            assert_eq!((status.to_string().as_str(), &*status.code()), (class, label));
        }
        assert_eq!((&*Status::grpc(14).code(), &*Status::grpc(99).code()), ("14", "other"));
    }

    #[test]
    fn codes_that_grpc_does_not_define_are_counted_as_one() {
        let metrics = Arc::new(Metrics::new(1));
        let worker = WorkerMetrics::new(Arc::clone(&metrics), 0);
        for code in -1_000..1_000 {
            let count = CountKey { status: Status::grpc(code), ..OK };
            worker.record(key(&metrics, "s"), count, Duration::ZERO, 0);
        }
        let all = lock(&metrics.workers[0]);
        assert_eq!(lock(&all.series[0].inner).requests.len(), 18);
    }

    #[test]
    fn latencies_of_failures_stand_apart() {
        let metrics = Arc::new(Metrics::new(1));
        let worker = WorkerMetrics::new(Arc::clone(&metrics), 0);
        let failed = CountKey { outcome: Outcome::Failure, status: Status::Http(503), ..OK };
        worker.record(key(&metrics, "s"), OK, Duration::from_millis(1), 0);
        worker.record(key(&metrics, "s"), failed, Duration::from_secs(1), 0);
        let all = lock(&metrics.workers[0]);
        let counts = lock(&all.series[0].inner);
        assert_eq!(counts.success.as_ref().unwrap().len(), 1);
        assert!(counts.failure.as_ref().unwrap().max() >= 990_000);
    }
    #[test]
    fn series_that_nobody_touches_are_given_back_and_make_room() {
        let metrics = Arc::new(Metrics::new(2));
        let workers = [0, 1].map(|worker| WorkerMetrics::new(Arc::clone(&metrics), worker));
        let (busy, idle) = (key(&metrics, "busy"), key(&metrics, "idle"));
        for worker in &workers {
            worker.record(idle, OK, Duration::ZERO, 0);
        }
        for _ in 0..=IDLE_SWEEPS {
            workers[0].record(busy, OK, Duration::ZERO, 0);
            workers[0].sweep();
        }
        let keys = |worker: usize| -> Vec<_> {
            lock(&metrics.workers[worker]).series.iter().map(|one| one.key).collect()
        };
        assert_eq!((keys(0), keys(1)), (vec![busy], vec![idle]));
        assert!(lock(&metrics.admitted).contains(&idle), "the other worker has it still");
        assert_eq!(lock(&metrics.workers[0]).given_back, 1);
        for _ in 0..=IDLE_SWEEPS {
            workers[1].sweep();
        }
        assert!(!lock(&metrics.admitted).contains(&idle));
        // What is counted again begins anew.
        workers[0].record(idle, OK, Duration::ZERO, 0);
        assert_eq!(keys(0), [busy, idle]);
        assert!(lock(&metrics.admitted).contains(&idle));
    }
}
