//! The edges of the mesh as callers report them: what happened on each lately, and what is usual there.
//!
//! Memory is bounded: [`MAX_EDGES`], and of each the last minute and its baseline, about 10 KB when every hour of the
//! week is known.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use outrigger_core::graph::TICK;
use outrigger_core::graph::baseline::{Baseline, HOURS, Tick};
use outrigger_core::graph::latency::Latencies;

/// Edges of the mesh, and of them those that callers of one namespace may make.
pub const MAX_EDGES: usize = 10_000;
pub const MAX_EDGES_OF_NAMESPACE: usize = 2_000;
/// Ticks over which rates are shown: a minute.
pub const SHOWN: usize = 12;
/// An edge that nobody has used for so long is forgotten.
const FORGOTTEN: Duration = Duration::from_secs(14 * 24 * 3_600);
/// A caller that has been gone for so many ticks makes no calls, for sure: others would have taken over by then.
const GONE: u64 = 12;
/// Distinct routes, accounts, versions, zones, protocols or reasons kept of an edge.
const MAX_WORDS: usize = 16;
const HOUR: u64 = 3_600;

/// The node that stands for callers without an identity.
pub const UNKNOWN: &str = "unknown";

/// From an app, as `namespace/name`, to a service port, as `namespace/service:port`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EdgeId {
    pub from: Arc<str>,
    pub service: Arc<str>,
}

/// Who reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Of the app: `namespace/name`.
    pub app: Arc<str>,
    pub namespace: Arc<str>,
    /// `namespace/name`.
    pub account: Arc<str>,
    pub version: Arc<str>,
    pub zone: Arc<str>,
}

/// What happened on an edge.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Traffic {
    pub succeeded: u64,
    pub failed: u64,
    pub refused: u64,
    pub canceled: u64,
    /// Of those that succeeded.
    pub latencies: Latencies,
    /// Why others did not: reason, and who named it.
    pub reasons: BTreeMap<(Arc<str>, Arc<str>), u64>,
}

/// A report of one edge.
#[derive(Clone, Debug)]
pub struct EdgeReport {
    pub service: Arc<str>,
    pub route: Arc<str>,
    pub protocol: Arc<str>,
    pub from_outside: bool,
    pub traffic: Traffic,
}

/// One edge.
#[derive(Debug, Default)]
pub struct Edge {
    /// The app whose proxies report it.
    pub reporter: Arc<str>,
    pub accounts: Words,
    pub versions: Words,
    pub zones: Words,
    pub routes: Words,
    pub protocols: Words,
    /// Seconds since the Unix epoch.
    pub first_seen: u64,
    pub last_seen: u64,
    /// Since the last tick.
    pub(super) running: Traffic,
    /// The last ticks, newest last.
    pub(super) window: VecDeque<Traffic>,
    pub baseline: Baseline,
}

/// A few texts.
pub type Words = BTreeSet<Arc<str>>;

/// All edges.
#[derive(Debug, Default)]
pub struct Edges {
    edges: BTreeMap<EdgeId, Edge>,
    of_namespace: HashMap<Arc<str>, usize>,
    /// By app.
    reporters: HashMap<Arc<str>, ReportStreams>,
    /// When the graph began, in seconds since the Unix epoch.
    pub since: u64,
    ticks: u64,
    /// Reports of edges for which there was no room.
    pub left_out: u64,
}

/// Streams by which the proxies of an app report.
#[derive(Clone, Copy, Debug, Default)]
struct ReportStreams {
    streams: usize,
    /// The tick in which the last one ended.
    left: u64,
}

impl Traffic {
    pub fn requests(&self) -> u64 {
        [self.succeeded, self.failed, self.refused, self.canceled]
            .into_iter()
            .fold(0, u64::saturating_add)
    }

    /// Those that are judged: a caller that goes away says nothing about the service.
    pub fn judged(&self) -> u64 {
        self.requests().saturating_sub(self.canceled)
    }

    pub fn merge(&mut self, other: &Self) {
        for (mine, more) in [
            (&mut self.succeeded, other.succeeded),
            (&mut self.failed, other.failed),
            (&mut self.refused, other.refused),
            (&mut self.canceled, other.canceled),
        ] {
            *mine = mine.saturating_add(more);
        }
        self.latencies.merge(&other.latencies);
        for (why, n) in &other.reasons {
            if self.reasons.len() < MAX_WORDS || self.reasons.contains_key(why) {
                let known = self.reasons.entry(why.clone()).or_default();
                *known = known.saturating_add(*n);
            }
        }
    }
}

impl Edge {
    /// What happened in the last whole minute.
    pub fn lately(&self) -> Traffic {
        let mut all = Traffic::default();
        self.window.iter().for_each(|traffic| all.merge(traffic));
        all
    }

    /// The time that [`Self::lately`] is about.
    pub fn length(&self) -> Duration {
        TICK * u32::try_from(self.window.len()).unwrap_or(u32::MAX)
    }

    fn note(&mut self, source: &Source, report: &EdgeReport) {
        if !report.from_outside {
            remember(&mut self.accounts, &source.account);
            remember(&mut self.versions, &source.version);
            remember(&mut self.zones, &source.zone);
        }
        remember(&mut self.routes, &report.route);
        remember(&mut self.protocols, &report.protocol);
    }
}

fn remember(words: &mut Words, word: &Arc<str>) {
    if !word.is_empty() && words.len() < MAX_WORDS && !words.contains(word) {
        words.insert(word.clone());
    }
}

impl Edges {
    /// With what is known of an earlier process.
    pub fn new(since: u64, known: impl IntoIterator<Item = (EdgeId, Edge)>) -> Self {
        let mut edges = Self { since, ..Self::default() };
        for (id, edge) in known {
            if edges.has_room(namespace(&id.from)) {
                edges.insert(id, edge);
            }
        }
        edges
    }

    pub fn iter(&self) -> impl Iterator<Item = (&EdgeId, &Edge)> {
        self.edges.iter()
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.edges.len()
    }

    /// The proxies of an app have one stream more by which they report.
    pub fn connect(&mut self, app: &Arc<str>) {
        self.reporters.entry(app.clone()).or_default().streams += 1;
    }

    /// One of them has ended.
    pub fn disconnect(&mut self, app: &Arc<str>) {
        if let Some(connected) = self.reporters.get_mut(app) {
            connected.streams = connected.streams.saturating_sub(1);
            connected.left = self.ticks;
        }
    }

    /// Takes a report over. `now`: seconds since the Unix epoch.
    pub fn report(&mut self, source: &Source, report: &EdgeReport, now: u64) {
        let from = if report.from_outside { Arc::from(UNKNOWN) } else { source.app.clone() };
        let id = EdgeId { from, service: report.service.clone() };
        if !self.edges.contains_key(&id) {
            if !self.has_room(&source.namespace) {
                self.left_out += 1;
                return;
            }
            let reporter = source.app.clone();
            let edge = Edge { reporter, first_seen: now, last_seen: now, ..Edge::default() };
            self.insert(id.clone(), edge);
        }
        let Some(edge) = self.edges.get_mut(&id) else { return };
        edge.note(source, report);
        if report.traffic.requests() > 0 {
            edge.last_seen = now;
        }
        edge.running.merge(&report.traffic);
    }

    fn has_room(&self, namespace: &str) -> bool {
        let of_namespace = self.of_namespace.get(namespace).copied().unwrap_or_default();
        self.edges.len() < MAX_EDGES && of_namespace < MAX_EDGES_OF_NAMESPACE
    }

    fn insert(&mut self, id: EdgeId, edge: Edge) {
        *self.of_namespace.entry(Arc::from(namespace(&edge.reporter))).or_default() += 1;
        self.edges.insert(id, edge);
    }

    /// Lets [`TICK`] pass. `now`: seconds since the Unix epoch.
    pub fn tick(&mut self, now: u64) {
        self.ticks += 1;
        let (ticks, reporters) = (self.ticks, &self.reporters);
        let hour = (now / HOUR % u64::from(HOURS)) as u8;
        for edge in self.edges.values_mut() {
            let traffic = std::mem::take(&mut edge.running);
            // What nobody reports is not known to be nothing.
            let reported = match reporters.get(&edge.reporter) {
                Some(connected) => connected.streams > 0 || ticks > connected.left + GONE,
                None => ticks > GONE,
            };
            edge.baseline.tick(
                hour,
                Tick {
                    requests: traffic.judged(),
                    failures: traffic.failed.saturating_add(traffic.refused),
                    latencies: traffic.latencies.clone(),
                    reported: reported || traffic.requests() > 0,
                },
            );
            if edge.window.len() >= SHOWN {
                edge.window.pop_front();
            }
            edge.window.push_back(traffic);
        }
        self.forget(now);
    }

    fn forget(&mut self, now: u64) {
        let forgotten = now.saturating_sub(FORGOTTEN.as_secs());
        let of_namespace = &mut self.of_namespace;
        self.edges.retain(|_, edge| {
            let keep = edge.last_seen >= forgotten;
            if !keep && let Some(n) = of_namespace.get_mut(namespace(&edge.reporter)) {
                *n = n.saturating_sub(1);
            }
            keep
        });
        of_namespace.retain(|_, n| *n > 0);
        let (edges, ticks) = (&self.edges, self.ticks);
        if ticks.is_multiple_of(u64::from(GONE as u32)) {
            let used: BTreeSet<&Arc<str>> = edges.values().map(|edge| &edge.reporter).collect();
            self.reporters.retain(|app, connected| connected.streams > 0 || used.contains(app));
        }
    }
}

/// Of `namespace/name`.
pub fn namespace(name: &str) -> &str {
    name.split_once('/').map_or(name, |(namespace, _)| namespace)
}

#[cfg(test)]
mod tests {
    use outrigger_core::graph::baseline::{ENOUGH, Symptom};

    use super::*;

    fn source(namespace: &str, app: &str) -> Source {
        Source {
            app: format!("{namespace}/{app}").into(),
            namespace: namespace.into(),
            account: format!("{namespace}/{app}").into(),
            version: "v1".into(),
            zone: "a".into(),
        }
    }

    fn report(service: &str, succeeded: u64) -> EdgeReport {
        EdgeReport {
            service: service.into(),
            route: "".into(),
            protocol: "http1".into(),
            from_outside: false,
            traffic: Traffic { succeeded, ..Traffic::default() },
        }
    }

    fn drops(edges: &Edges) -> usize {
        let all = edges.iter().flat_map(|(_, edge)| edge.baseline.unusual().collect::<Vec<_>>());
        all.filter(|unusual| unusual.symptom == Symptom::TrafficDrop).count()
    }

    #[test]
    fn silence_is_unusual_but_not_that_of_a_caller_that_is_not_heard() {
        let orders = source("bank", "orders");
        let mut edges = Edges::default();
        edges.connect(&orders.app);
        let mut now = 0;
        let mut tick = |edges: &mut Edges| {
            now += 5;
            edges.tick(now);
        };
        for _ in 0..2 * ENOUGH {
            edges.report(&orders, &report("bank/fees:80", 100), 1);
            tick(&mut edges);
        }
        // The stream breaks and comes back in time.
        edges.disconnect(&orders.app);
        for _ in 0..GONE {
            tick(&mut edges);
        }
        assert_eq!(drops(&edges), 0);
        edges.connect(&orders.app);
        for _ in 0..6 {
            edges.report(&orders, &report("bank/fees:80", 100), 1);
            tick(&mut edges);
        }
        assert_eq!(drops(&edges), 0);
        for _ in 0..6 {
            tick(&mut edges);
        }
        assert_eq!(drops(&edges), 1);
        assert_eq!(edges.edges.len(), 1);
    }

    #[test]
    fn edges_are_bounded_by_namespace_and_forgotten_after_two_weeks() {
        let (noisy, orders) = (source("noisy", "app"), source("bank", "orders"));
        let mut edges = Edges::default();
        for i in 0..MAX_EDGES_OF_NAMESPACE + 5 {
            edges.report(&noisy, &report(&format!("noisy/s{i}:80"), 1), 1_000);
        }
        assert_eq!((edges.count(), edges.left_out), (MAX_EDGES_OF_NAMESPACE, 5));
        edges.report(&orders, &report("bank/fees:80", 1), 2_000);
        assert_eq!(edges.count(), MAX_EDGES_OF_NAMESPACE + 1);
        edges.tick(1_500 + FORGOTTEN.as_secs());
        assert_eq!(edges.count(), 1);
        edges.report(&noisy, &report("noisy/again:80", 1), 3_000);
        assert_eq!(edges.count(), 2, "there is room again");
    }

    #[test]
    fn what_callers_make_up_is_bounded() {
        let mut edges = Edges::default();
        for i in 0..1_000 {
            let orders = Source {
                version: format!("v{i}").into(),
                zone: format!("z{i}").into(),
                ..source("bank", "orders")
            };
            let mut report = report("bank/fees:80", 1);
            report.route = format!("r{i}").into();
            report.traffic.reasons.insert((format!("why{i}").into(), "local".into()), 1);
            edges.report(&orders, &report, 1);
        }
        let (_, edge) = edges.iter().next().unwrap();
        let words = [&edge.versions, &edge.zones, &edge.routes].map(BTreeSet::len);
        assert_eq!(words, [MAX_WORDS; 3]);
        assert_eq!(edge.running.reasons.len(), MAX_WORDS);
    }
}
