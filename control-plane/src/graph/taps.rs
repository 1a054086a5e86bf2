//! Taps that are on: which proxies are told of them, and what these show.
//!
//! A proxy is told of a tap as the answer to its reports ([`super::report`]) and sends what matches, filtered and limited
//! already. Who may open one is decided in [`crate::tap`].

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU64, AtomicUsize};

use bytes::Bytes;
use outrigger_core::tap::{LINE_BYTES, Tap};
use outrigger_proto::convert;
use outrigger_proto::graph;
use serde_json::{Map, Value};
use tokio::sync::{mpsc, watch};

use super::edges::Source;

/// Taps that are on at one time, and those of one namespace: who may see that one cannot keep others from theirs.
const MAX_TAPS: usize = 16;
const MAX_OF_NAMESPACE: usize = 4;
/// Lines that wait for the reader of a tap; others are dropped and counted.
const WAITING: usize = 256;

/// All taps that are on.
#[derive(Debug, Default)]
pub struct Taps {
    active: watch::Sender<Arc<Vec<Arc<ActiveTap>>>>,
    last: AtomicU64,
}

/// Whose requests a tap shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TapTarget {
    pub namespace: String,
    /// The app, as the graph names it, or one workload; none: all of the namespace.
    pub workload: Option<String>,
}

/// A tap that is on.
#[derive(Debug)]
pub struct ActiveTap {
    pub target: TapTarget,
    wire: graph::Tap,
    lines: mpsc::Sender<Bytes>,
    /// Proxies that have been told of it.
    proxies: AtomicUsize,
    /// Requests that proxies have counted and not sent.
    not_shown: AtomicU64,
}

impl TapTarget {
    fn is(&self, source: &Source, workload: &str) -> bool {
        *source.namespace == *self.namespace
            && self.workload.as_deref().is_none_or(|name| {
                let app = source.app.split_once('/').map(|(_, app)| app);
                name == workload || app == Some(name)
            })
    }
}

/// A tap, for as long as this lives.
#[derive(Debug)]
pub struct OpenTap {
    taps: Arc<Taps>,
    pub active: Arc<ActiveTap>,
    pub lines: mpsc::Receiver<Bytes>,
}

impl Drop for OpenTap {
    fn drop(&mut self) {
        self.taps.change(|active| active.retain(|known| !Arc::ptr_eq(known, &self.active)));
    }
}

/// Counts a proxy as one that a tap has reached.
#[derive(Debug)]
pub struct Reached(Arc<ActiveTap>);

impl Reached {
    fn new(active: Arc<ActiveTap>) -> Self {
        active.proxies.fetch_add(1, Relaxed);
        Self(active)
    }
}

impl Drop for Reached {
    fn drop(&mut self) {
        self.0.proxies.fetch_sub(1, Relaxed);
    }
}

impl ActiveTap {
    pub fn proxies(&self) -> usize {
        self.proxies.load(Relaxed)
    }

    /// Requests that matched and were not shown until now.
    pub fn not_shown(&self) -> u64 {
        self.not_shown.load(Relaxed)
    }
}

impl Taps {
    /// None: there are [`MAX_TAPS`] already, or [`MAX_OF_NAMESPACE`].
    pub fn open(self: &Arc<Self>, target: TapTarget, tap: Tap) -> Option<OpenTap> {
        let (sender, lines) = mpsc::channel(WAITING);
        let id = self.last.fetch_add(1, Relaxed).wrapping_add(1);
        let active = Arc::new(ActiveTap {
            target,
            wire: convert::tap::to_wire(&Tap { id, ..tap }),
            lines: sender,
            proxies: AtomicUsize::new(0),
            not_shown: AtomicU64::new(0),
        });
        let mut fits = false;
        self.change(|all| {
            let namespace = &active.target.namespace;
            let same = all.iter().filter(|known| known.target.namespace == *namespace).count();
            fits = all.len() < MAX_TAPS && same < MAX_OF_NAMESPACE;
            if fits {
                all.push(active.clone());
            }
        });
        fits.then(|| OpenTap { taps: self.clone(), active, lines })
    }

    fn change(&self, change: impl FnOnce(&mut Vec<Arc<ActiveTap>>)) {
        self.active.send_modify(|active| change(Arc::make_mut(active)));
    }

    /// Tells when taps change; says so at once if there are any.
    pub fn changes(&self) -> watch::Receiver<Arc<Vec<Arc<ActiveTap>>>> {
        let mut changes = self.active.subscribe();
        if !changes.borrow().is_empty() {
            changes.mark_changed();
        }
        changes
    }

    /// What a proxy is to be told, and that it counts as reached.
    pub fn of(
        active: &[Arc<ActiveTap>],
        source: &Source,
        workload: &str,
    ) -> (graph::Taps, Vec<Reached>) {
        let concerned = active.iter().filter(|active| active.target.is(source, workload));
        let concerned: Vec<_> = concerned.cloned().map(Reached::new).collect();
        let taps = concerned.iter().map(|reached| reached.0.wire.clone()).collect();
        (graph::Taps { taps }, concerned)
    }

    /// Takes over what a proxy shows; what was not asked of it is left out.
    pub fn take(&self, source: &Source, workload: &str, shown: &graph::TappedRequests) {
        let active = self.active.borrow().clone();
        let tap = active.iter().find(|active| active.wire.id == shown.tap);
        let Some(tap) = tap.filter(|tap| tap.target.is(source, workload)) else { return };
        let mut missing = shown.not_shown;
        for line in &shown.lines {
            let line = read(line, source, workload);
            if line.is_none_or(|line| tap.lines.try_send(line).is_err()) {
                missing = missing.saturating_add(1);
            }
        }
        // It cannot be made to begin anew by a proxy that lies.
        let _ = tap
            .not_shown
            .fetch_update(Relaxed, Relaxed, |known| Some(known.saturating_add(missing)));
    }
}

/// A line as it is shown: a JSON object that says which workload it is of.
fn read(line: &str, source: &Source, workload: &str) -> Option<Bytes> {
    if line.len() > LINE_BYTES {
        return None;
    }
    let mut line: Map<String, Value> = serde_json::from_str(line).ok()?;
    let workload = format!("{}/{workload}", source.namespace);
    line.insert("workload".to_owned(), Value::String(workload));
    let mut text = serde_json::to_vec(&line).ok()?;
    text.push(b'\n');
    Some(text.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(app: &str) -> Source {
        let namespace = app.split_once('/').map_or(app, |(namespace, _)| namespace);
        Source {
            app: app.into(),
            namespace: namespace.into(),
            account: format!("{namespace}/default").into(),
            version: "".into(),
            zone: "".into(),
        }
    }

    fn target(workload: Option<&str>) -> TapTarget {
        TapTarget { namespace: "bank".to_owned(), workload: workload.map(str::to_owned) }
    }

    fn shown(tap: u64, lines: &[&str]) -> graph::TappedRequests {
        let lines = lines.iter().map(|line| (*line).to_owned()).collect();
        graph::TappedRequests { tap, lines, not_shown: 2, ..Default::default() }
    }

    #[test]
    fn proxies_are_told_of_taps_that_concern_them_for_as_long_as_they_are_open() {
        let taps = Arc::new(Taps::default());
        let changes = taps.changes();
        assert!(!changes.has_changed().unwrap());
        let open = [None, Some("orders"), Some("orders-1"), Some("fees")]
            .map(|workload| taps.open(target(workload), Tap::default()).unwrap());
        assert!(changes.has_changed().unwrap());
        let told = |app: &str, workload: &str| {
            let active = taps.changes().borrow().clone();
            let (told, reached) = Taps::of(&active, &source(app), workload);
            let counts: Vec<_> = open.iter().map(|open| open.active.proxies()).collect();
            drop(reached);
            (told.taps.len(), counts)
        };
        assert_eq!(told("bank/orders", "orders-1"), (3, vec![1, 1, 1, 0]));
        assert_eq!(told("bank/orders", "orders-2"), (2, vec![1, 1, 0, 0]));
        assert_eq!(told("shop/orders", "orders-1"), (0, vec![0; 4]));
        drop(open);
        assert!(taps.changes().borrow().is_empty());
        let open =
            |namespace: String| taps.open(TapTarget { namespace, workload: None }, Tap::default());
        let all: Vec<_> = (0..2 * MAX_TAPS).filter_map(|i| open(format!("n{}", i % 8))).collect();
        assert_eq!(all.len(), MAX_TAPS);
        assert!(open("other".to_owned()).is_none());
        drop(all);
        let one: Vec<_> = (0..MAX_TAPS).filter_map(|_| open("bank".to_owned())).collect();
        assert_eq!(one.len(), MAX_OF_NAMESPACE);
        assert!(open("other".to_owned()).is_some());
    }

    #[test]
    fn only_lines_that_were_asked_for_are_shown_and_the_rest_is_counted() {
        let taps = Arc::new(Taps::default());
        let mut open = taps.open(target(Some("orders")), Tap::default()).unwrap();
        let id = open.active.wire.id;
        let orders = source("bank/orders");
        taps.take(&source("bank/fees"), "fees-1", &shown(id, &["{}"]));
        taps.take(&orders, "orders-1", &shown(id + 1, &["{}"]));
        assert!(open.lines.try_recv().is_err());
        assert_eq!(open.active.not_shown(), 0);
        let long = format!("{{\"a\": \"{}\"}}", "x".repeat(LINE_BYTES));
        let lines = [r#"{"a": "b\n", "workload": "bank/fees-1"}"#, "[]", "{", "", &long];
        taps.take(&orders, "orders-1", &shown(id, &lines));
        let line = open.lines.try_recv().unwrap();
        assert_eq!(line, &b"{\"a\":\"b\\n\",\"workload\":\"bank/orders-1\"}\n"[..]);
        assert!(open.lines.try_recv().is_err());
        assert_eq!(open.active.not_shown(), 6);
        // Nobody reads.
        let many = vec!["{}"; WAITING + 7];
        taps.take(&orders, "orders-1", &shown(id, &many));
        assert_eq!(open.active.not_shown(), 6 + 2 + 7);
        let liar = graph::TappedRequests { not_shown: u64::MAX, ..shown(id, &[]) };
        taps.take(&orders, "orders-1", &liar);
        assert_eq!(open.active.not_shown(), u64::MAX);
    }
}
