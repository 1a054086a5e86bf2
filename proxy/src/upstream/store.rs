//! What this process knows about destinations: dialled authority -> live destination.
//!
//! Workers read it without locks but to dial a name for the first time; `discovery` alone changes what
//! a name stands for. Nothing here talks to the network.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU32};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use outrigger_core::compile::{Compiled, CompiledBackend, CompiledRule};
use outrigger_core::name::{Authority, DestinationName, Host};
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use crate::base::sync::lock;
use crate::observe::metrics::{HeldLabel, Label, Metrics};
use crate::upstream::endpoint::Endpoints;

/// Names held at one time. Below the 10,240 that the control plane lets one proxy subscribe to
/// (`MAX_SUBSCRIPTIONS`), which include what every proxy subscribes to besides.
pub const MAX_NAMES: usize = 9_900;
/// Of those, how many of the least recently used make room at once: finding them is one look at all, so
/// that a new name costs the same whatever is held.
const EVICTED_AT_ONCE: usize = MAX_NAMES / 16;

/// Every destination that the app has dialled, at most [`MAX_NAMES`].
pub struct Store {
    names: Mutex<NameTable>,
    backends: Mutex<HashMap<DestinationName, Arc<Endpoints>>>,
    /// Wakes anyone who waits for a first configuration.
    changed: Notify,
    /// There are [`Changes`].
    dialled: Notify,
    /// One's own.
    zone: Option<String>,
}

/// What is held by name, and what discovery has not heard of yet: never more than twice the names.
#[derive(Default)]
struct NameTable {
    held: HashMap<Authority, Arc<Dialed>>,
    added: HashSet<Authority>,
    dropped: HashSet<Authority>,
    /// At this tick every name was in use.
    full_at: Option<u32>,
}

/// What has happened to the names held since the last look: first what was dropped, then what was added,
/// which may be the same name.
#[derive(Default)]
pub struct Changes {
    pub dropped: Vec<Authority>,
    pub added: Vec<Authority>,
}

/// [`MAX_NAMES`] names are in use now.
#[derive(Debug)]
pub struct Full;

/// One authority that the app dials. The handle stays valid while the configuration behind it
/// changes.
pub struct Dialed {
    pub authority: Authority,
    resolution: ArcSwap<Resolution>,
    /// [`Store`] ticks; see [`Dialed::touch`].
    last_used: AtomicU32,
    /// Requests that wait for its first configuration.
    waiting: AtomicU32,
    /// No longer in the store: caches must look it up again.
    retired: AtomicBool,
}

/// What the control plane says about an authority.
#[derive(Clone, Default)]
pub enum Resolution {
    /// Nothing yet.
    #[default]
    Pending,
    Found(Arc<Live>),
    /// It has no such destination.
    Unknown,
    /// It has one that this build does not understand, and there is no earlier one.
    Unsupported(Arc<str>),
}

/// A destination's configuration, compiled, with the endpoints of all its backends.
pub struct Live {
    pub compiled: Compiled,
    pub label: HeldLabel,
    /// Same order as `compiled.backends`.
    pub backends: Vec<Arc<Endpoints>>,
    /// Labels of the routes, by the address of their name.
    routes: HashMap<usize, HeldLabel, foldhash::fast::FixedState>,
}

impl Store {
    pub fn new(zone: Option<String>) -> Self {
        Self {
            names: Mutex::default(),
            backends: Mutex::default(),
            changed: Notify::new(),
            dialled: Notify::new(),
            zone,
        }
    }

    /// The handle of an authority; the first call has it subscribed to. Where too many are held, those
    /// that were used longest ago are dropped; names used at `tick` (seconds since start) never are.
    pub fn dial(&self, authority: &Authority, tick: u32) -> Result<Arc<Dialed>, Full> {
        let mut names = lock(&self.names);
        if let Some(found) = names.held.get(authority) {
            return Ok(Arc::clone(found));
        }
        if names.held.len() >= MAX_NAMES {
            names.make_room(tick)?;
        }
        let new = Arc::new(Dialed {
            authority: authority.clone(),
            resolution: ArcSwap::default(),
            last_used: AtomicU32::new(tick),
            waiting: AtomicU32::new(0),
            retired: AtomicBool::new(false),
        });
        names.held.insert(authority.clone(), Arc::clone(&new));
        names.added.insert(authority.clone());
        drop(names);
        self.dialled.notify_one();
        Ok(new)
    }

    /// Completes when [`Store::changes`] has something to tell.
    pub async fn dialled(&self) {
        self.dialled.notified().await;
    }

    /// Which names were added and dropped since the last call.
    pub fn changes(&self) -> Changes {
        let mut names = lock(&self.names);
        Changes { dropped: names.dropped.drain().collect(), added: names.added.drain().collect() }
    }

    /// The endpoints of a service, shared by every destination that routes to it.
    pub fn endpoints(&self, name: &DestinationName, metrics: &Metrics) -> Arc<Endpoints> {
        let mut backends = lock(&self.backends);
        let endpoints = backends
            .entry(name.clone())
            .or_insert_with(|| Arc::new(Endpoints::new(name.clone(), self.zone.clone(), metrics)));
        Arc::clone(endpoints)
    }

    /// Every service that some destination sends to, in name order.
    pub fn all_endpoints(&self) -> Vec<Arc<Endpoints>> {
        let mut all: Vec<_> = lock(&self.backends).values().cloned().collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// Joins a compiled destination with the endpoints that it needs.
    pub fn live(&self, compiled: Compiled, metrics: &Metrics) -> Live {
        let backend = |backend: &CompiledBackend| {
            let endpoints = self.endpoints(&backend.name, metrics);
            endpoints.guard.reconfigure(&backend.policy);
            endpoints.guard.check_as(backend.policy.health.as_ref(), backend.protocol);
            endpoints.preference.reconfigure(backend.policy.preference);
            endpoints.watches.reconfigure(&backend.policy.stop_rules);
            endpoints
        };
        let backends = compiled.backends.iter().map(backend).collect();
        let routes = compiled
            .route_names()
            .map(|name| (name.as_ptr() as usize, metrics.label(name)))
            .collect();
        let label = metrics.label(&compiled.name.without_consumer().to_string());
        Live { compiled, label, backends, routes }
    }

    /// Tells what the control plane said about `authority`.
    pub fn resolve(&self, authority: &Authority, resolution: Resolution) {
        if let Some(dialed) = lock(&self.names).held.get(authority) {
            dialed.resolution.store(Arc::new(resolution));
        }
    }

    /// Lets everybody look again who waits for a first configuration.
    pub fn notify(&self) {
        self.changed.notify_waiters();
    }

    /// Ends when the control plane has said something, from now on.
    pub fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }

    /// Drops authorities last used before `tick - idle`; [`Store::changes`] tells which.
    pub fn retire(&self, tick: u32, idle: u32) {
        let mut names = lock(&self.names);
        let unused = |dialed: &&Arc<Dialed>| {
            tick.saturating_sub(dialed.last_used.load(Relaxed)) >= idle && dialed.is_idle()
        };
        let retired: Vec<_> = names.held.values().filter(unused).cloned().collect();
        for dialed in &retired {
            names.drop_name(dialed);
        }
    }

    /// Drops the endpoints of services that no destination uses, and gives the names back.
    pub fn drop_unused_endpoints(&self) -> Vec<DestinationName> {
        let mut dropped = Vec::new();
        lock(&self.backends).retain(|name, endpoints| {
            let keep = Arc::strong_count(endpoints) > 1;
            if !keep {
                dropped.push(name.clone());
            }
            keep
        });
        dropped
    }

    /// Everything dialled, in name order, for the admin server.
    pub fn snapshot(&self) -> Vec<Arc<Dialed>> {
        let mut all: Vec<_> = lock(&self.names).held.values().cloned().collect();
        all.sort_by(|a, b| a.authority.cmp(&b.authority));
        all
    }

    /// Waits until `dialed` is decided, at most for `limit`.
    pub async fn wait(&self, dialed: &Dialed, limit: Duration) -> Resolution {
        let decided = async {
            loop {
                let changed = self.changed.notified();
                if let Some(resolution) = dialed.decided() {
                    return resolution;
                }
                changed.await;
            }
        };
        let _waiting = ConfigWaiter::new(dialed);
        tokio::time::timeout(limit, decided).await.unwrap_or(Resolution::Pending)
    }
}

impl NameTable {
    fn make_room(&mut self, tick: u32) -> Result<(), Full> {
        if self.full_at == Some(tick) {
            return Err(Full);
        }
        let used = |dialed: &Arc<Dialed>| dialed.last_used.load(Relaxed);
        let idle = |dialed: &&Arc<Dialed>| used(dialed) < tick && dialed.is_idle();
        let mut idle: Vec<(u32, Arc<Dialed>)> =
            self.held.values().filter(idle).map(|dialed| (used(dialed), dialed.clone())).collect();
        if idle.is_empty() {
            self.full_at = Some(tick);
            return Err(Full);
        }
        if idle.len() > EVICTED_AT_ONCE {
            idle.select_nth_unstable_by_key(EVICTED_AT_ONCE, |(used, _)| *used);
            idle.truncate(EVICTED_AT_ONCE);
        }
        for (_, dialed) in &idle {
            self.drop_name(dialed);
        }
        Ok(())
    }

    fn drop_name(&mut self, dialed: &Dialed) {
        dialed.retired.store(true, Relaxed);
        self.held.remove(&dialed.authority);
        // What discovery has not heard of it need not drop.
        if !self.added.remove(&dialed.authority) {
            self.dropped.insert(dialed.authority.clone());
        }
    }
}

/// Counts a request that waits for a name's first configuration.
struct ConfigWaiter<'a>(&'a Dialed);

impl<'a> ConfigWaiter<'a> {
    fn new(dialed: &'a Dialed) -> Self {
        dialed.waiting.fetch_add(1, Relaxed);
        Self(dialed)
    }
}

impl Drop for ConfigWaiter<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Relaxed);
    }
}

impl Dialed {
    /// The resolution, if a request can act on it.
    pub fn decided(&self) -> Option<Resolution> {
        let resolution = self.resolution.load();
        match &**resolution {
            Resolution::Pending => None,
            Resolution::Found(live) if !live.complete() => None,
            other => Some(other.clone()),
        }
    }

    pub fn resolution(&self) -> Resolution {
        (**self.resolution.load()).clone()
    }

    pub fn is_found(&self) -> bool {
        matches!(**self.resolution.load(), Resolution::Found(_))
    }

    pub fn is_unknown(&self) -> bool {
        matches!(**self.resolution.load(), Resolution::Unknown)
    }

    /// Nobody waits for it.
    fn is_idle(&self) -> bool {
        self.waiting.load(Relaxed) == 0
    }

    pub fn retired(&self) -> bool {
        self.retired.load(Relaxed)
    }

    /// Notes use at `tick` (seconds since start), without writing when nothing changes.
    pub fn touch(&self, tick: u32) {
        if self.last_used.load(Relaxed) != tick {
            self.last_used.store(tick, Relaxed);
        }
    }

    /// `<hostname>.<service>...`: the hostname, where the authority names one instance of `service`.
    pub fn instance_of(&self, service: &str) -> Option<&str> {
        let Host::Name(name) = &self.authority.host else { return None };
        let names = |rest: &str| rest.is_empty() || rest.starts_with('.');
        // Nearly all requests: the service itself.
        if name.strip_prefix(service).is_some_and(names) {
            return None;
        }
        let (first, rest) = name.split_once('.')?;
        rest.strip_prefix(service).is_some_and(names).then_some(first)
    }
}

impl Live {
    /// Whether an app has dialled one instance of the service by its own address. The routes of a service belong to
    /// its name and its cluster address (GEP-1294), not to its instances.
    pub fn is_instance(&self, authority: &Authority) -> bool {
        let Host::Ip(ip) = authority.host else { return false };
        let address = SocketAddr::new(ip, authority.port);
        self.backends.first().is_some_and(|own| !own.is_outside && own.load().at(address).is_some())
    }

    pub fn route_label(&self, rule: &CompiledRule) -> Label {
        self.route_label_of(&rule.route)
    }

    #[inline]
    pub fn route_label_of(&self, route: &Arc<str>) -> Label {
        self.routes.get(&(route.as_ptr() as usize)).map_or(Label::NONE, HeldLabel::get)
    }

    fn complete(&self) -> bool {
        self.backends.iter().all(|backend| backend.load().complete)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(n: usize) -> Authority {
        Authority::parse(&format!("h{n}.example.com:80"), None).unwrap()
    }

    #[test]
    fn names_are_bounded_and_the_least_recently_used_make_room() {
        let store = Store::new(None);
        // One request waits for the name that was used longest ago.
        let awaited = store.dial(&name(MAX_NAMES - 1), 0).unwrap();
        let waiting = ConfigWaiter::new(&awaited);
        for n in 0..MAX_NAMES {
            store.dial(&name(n), 1).unwrap();
        }
        assert_eq!(store.changes().added.len(), MAX_NAMES);
        let full = store.dial(&name(MAX_NAMES), 1);
        assert!(full.is_err(), "all of them are in use this second, or waited for");
        // The first half is used again.
        for n in 0..MAX_NAMES / 2 {
            store.dial(&name(n), 2).unwrap().touch(2);
        }
        // Room is made for more than one at a time.
        store.dial(&name(MAX_NAMES), 3).unwrap();
        assert_eq!(store.snapshot().len(), MAX_NAMES - EVICTED_AT_ONCE + 1);
        for n in 1..MAX_NAMES / 2 - 2 * EVICTED_AT_ONCE {
            store.dial(&name(MAX_NAMES + n), 3).unwrap();
        }
        let changes = store.changes();
        let first_half = (0..MAX_NAMES / 2).map(name).collect::<HashSet<_>>();
        assert!(changes.dropped.iter().all(|dropped| !first_half.contains(dropped)));
        assert!(!awaited.retired() && !changes.dropped.contains(&awaited.authority));
        assert!(store.snapshot().len() <= MAX_NAMES);
        drop(waiting);
        // A name dropped and dialled again is told as both, in this order.
        let again = changes.dropped[0].clone();
        store.dial(&again, 4).unwrap();
        assert_eq!(store.changes().added, [again]);
    }

    #[test]
    fn what_was_never_told_need_not_be_dropped() {
        let store = Store::new(None);
        let dialed = store.dial(&name(1), 1).unwrap();
        store.retire(700, 600);
        assert!(dialed.retired());
        let changes = store.changes();
        assert!(changes.added.is_empty() && changes.dropped.is_empty());
        store.dial(&name(1), 700).unwrap();
        store.changes();
        store.retire(1_400, 600);
        assert_eq!(store.changes().dropped, [name(1)]);
    }
}
