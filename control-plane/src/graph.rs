//! The graph of the mesh: who calls whom, how it goes, what is unusual about it, and where cycles are.
//!
//! Proxies report every few seconds what they called ([`report`]), [`edges`] holds it, [`page`] shows it. Of several
//! replicas one keeps the graph, by a lease; the others refuse reports, so that proxies come to it. What is usual
//! is kept over restarts ([`saved`]).

pub mod cycles;
pub mod edges;
pub mod formats;
pub mod nodes;
pub mod page;
pub mod report;
mod saved;
pub mod taps;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use outrigger_core::graph::TICK;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tonic::Status;

use self::edges::{EdgeReport, Edges, Source};
use self::page::{GraphPage, ShownUnusual};
use self::taps::Taps;
use crate::metrics::{Metrics, UnusualLabels};
use crate::publish::Publisher;
use crate::replica::Replica;
use crate::sync::lock;

const LEASE: &str = "graph";
/// How often what is usual is written down.
const SAVE: Duration = Duration::from_secs(600);
/// Series of the one metric of what is unusual.
const MAX_UNUSUAL: usize = 100;

/// The graph, for everybody who reports or looks.
#[derive(Debug)]
pub struct Graph {
    publisher: Arc<Publisher>,
    metrics: Arc<Metrics>,
    replica: Option<Arc<Replica>>,
    edges: Mutex<Edges>,
    /// Who wants to see single requests.
    pub taps: Arc<Taps>,
    /// Whether this replica keeps the graph.
    kept: watch::Sender<bool>,
}

/// Resolves when the graph is no longer kept here.
pub struct GivenAway(watch::Receiver<bool>);

impl GivenAway {
    pub async fn wait(&mut self) {
        // An error means that the server was dropped.
        let _ = self.0.wait_for(|kept| !kept).await;
    }
}

/// Seconds since the Unix epoch.
fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

impl Graph {
    /// With what was kept, unless another replica keeps the graph. `replica`: none keeps nothing over restarts, and
    /// shares nothing with others.
    pub async fn open(
        publisher: Arc<Publisher>,
        metrics: Arc<Metrics>,
        replica: Option<Arc<Replica>>,
    ) -> Arc<Self> {
        let edges = Mutex::new(Edges::new(now(), []));
        let kept = watch::Sender::new(replica.is_none());
        let graph =
            Arc::new(Self { publisher, metrics, replica, edges, taps: Arc::default(), kept });
        graph.begin().await;
        graph
    }

    /// # Errors
    ///
    /// When another replica keeps the graph.
    pub fn given_away(&self) -> Result<GivenAway, Status> {
        let kept = self.kept.subscribe();
        let is_kept = *kept.borrow();
        if is_kept { Ok(GivenAway(kept)) } else { Err(Self::elsewhere()) }
    }

    /// What a proxy is told whose report belongs to another replica.
    fn elsewhere() -> Status {
        Status::unavailable("another replica of the control plane keeps the graph")
    }

    fn connect(&self, app: &Arc<str>) {
        lock(&self.edges).connect(app);
    }

    fn disconnect(&self, app: &Arc<str>) {
        lock(&self.edges).disconnect(app);
    }

    fn report(&self, source: &Source, reports: &[EdgeReport], now: u64) {
        let mut edges = lock(&self.edges);
        for report in reports {
            edges.report(source, report, now);
        }
    }

    /// What there is to see; none: another replica keeps the graph.
    pub fn page(&self) -> Option<GraphPage> {
        let kept = *self.kept.borrow();
        kept.then(|| page::page(&lock(&self.edges), &self.publisher.view().index, now()))
    }

    /// Who keeps the graph, for people.
    pub fn keeper(&self) -> Option<String> {
        let holder = self.replica.as_ref()?.store.holder(LEASE).ok()??;
        Some(holder.holder)
    }

    /// Lets time pass, for as long as the process lives.
    pub async fn run(self: Arc<Self>) {
        tokio::join!(self.clone().keep(), self.watch());
    }

    /// Keeps the lease, or tries to get it.
    async fn keep(self: Arc<Self>) {
        let Some(replica) = &self.replica else { return };
        loop {
            tokio::time::sleep(replica.timing.renew).await;
            self.begin().await;
        }
    }

    async fn begin(self: &Arc<Self>) {
        let graph = self.clone();
        let _ = tokio::task::spawn_blocking(move || graph.try_keep()).await;
    }

    /// Looks once a tick at what is unusual.
    async fn watch(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut told = BTreeSet::new();
        let mut since_saved = Duration::ZERO;
        loop {
            ticks.tick().await;
            if !*self.kept.borrow() {
                self.metrics.unusual.clear();
                continue;
            }
            let graph = self.clone();
            let unusual = tokio::task::spawn_blocking(move || graph.tick()).await;
            self.tell(&unusual.unwrap_or_default(), &mut told);
            since_saved += TICK;
            if since_saved >= SAVE {
                since_saved = Duration::ZERO;
                let graph = self.clone();
                let _ = tokio::task::spawn_blocking(move || graph.save()).await;
            }
        }
    }

    /// Takes the lease, or takes it again; with it comes what was kept.
    fn try_keep(&self) {
        let Some(replica) = &self.replica else { return };
        let expiry = replica.timing.expiry;
        let holds = replica.store.acquire(LEASE, replica.name.as_str(), expiry).is_ok();
        if holds != *self.kept.borrow() {
            *lock(&self.edges) = match holds {
                true => saved::read(&*replica.store, now()),
                false => Edges::new(now(), []),
            };
            tracing::debug!(holds, "whether this replica keeps the graph has changed");
            self.kept.send_replace(holds);
        }
    }

    fn tick(&self) -> Vec<ShownUnusual> {
        let now = now();
        let view = self.publisher.view();
        let mut edges = lock(&self.edges);
        edges.tick(now);
        self.metrics.graph_edges.set(i64::try_from(edges.count()).unwrap_or(i64::MAX));
        page::unusual(&edges, &view.index, now)
    }

    /// Says what has become unusual, or usual again, and sets the metric.
    fn tell(&self, unusual: &[ShownUnusual], told: &mut BTreeSet<(String, String, &'static str)>) {
        self.metrics.unusual.clear();
        let mut is_now = BTreeSet::new();
        for one in unusual.iter().take(MAX_UNUSUAL) {
            let ShownUnusual { from, service, symptom, culprit, usual, now, .. } = one;
            let labels = UnusualLabels {
                from: from.clone(),
                service: service.clone(),
                symptom,
                culprit: if *culprit { "true" } else { "false" },
            };
            self.metrics.unusual.get_or_create(&labels).set(1);
            let key = (from.clone(), service.clone(), *symptom);
            if !told.contains(&key) {
                tracing::warn!(
                    from,
                    service,
                    symptom,
                    usual,
                    now,
                    culprit,
                    "an edge deviates from its baseline: see /graph"
                );
            }
            is_now.insert(key);
        }
        for (from, service, symptom) in told.difference(&is_now) {
            tracing::info!(from, service, symptom, "an edge matches its baseline again");
        }
        *told = is_now;
    }

    /// Writes down what is usual, if it is kept here. Blocks.
    pub fn save(&self) {
        let Some(replica) = &self.replica else { return };
        if *self.kept.borrow() {
            let documents = saved::documents(&lock(&self.edges));
            if let Err(error) = saved::write(&*replica.store, documents) {
                tracing::error!(%error, "could not save the baselines of the graph");
            }
        }
    }

    /// Gives the graph to another replica. Blocks.
    pub fn leave(&self) {
        self.save();
        if let Some(replica) = &self.replica {
            // It runs out by itself.
            let _ = replica.store.release(LEASE, replica.name.as_str());
        }
    }
}
