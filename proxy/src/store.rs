//! What this process knows about destinations: dialled authority -> live destination.
//!
//! Workers read it without locks; `discovery` alone changes it. Nothing here talks to the network.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use outrigger_core::compile::{Compiled, CompiledBackend, Rule};
use outrigger_core::name::{Authority, DestinationName, Host};
use tokio::sync::{Notify, futures::Notified, mpsc};

use crate::endpoint::Endpoints;
use crate::metrics::{Label, Metrics};

/// Every destination that the app has dialled.
pub struct Store {
    dialed: Mutex<HashMap<Authority, Arc<Dialed>>>,
    backends: Mutex<HashMap<DestinationName, Arc<Endpoints>>>,
    /// Wakes whoever waits for a first configuration.
    changed: Notify,
    wanted: mpsc::UnboundedSender<Authority>,
    /// One's own.
    zone: Option<String>,
}

/// One authority that the app dials. The handle stays valid while the configuration behind it
/// changes.
pub struct Dialed {
    pub authority: Authority,
    resolution: ArcSwap<Resolution>,
    /// [`Store`] ticks; see [`Dialed::touch`].
    last_used: AtomicU32,
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
    pub label: Label,
    /// Same order as `compiled.backends`.
    pub backends: Vec<Arc<Endpoints>>,
    /// Labels of the routes, by the address of their name.
    routes: HashMap<usize, Label, foldhash::fast::FixedState>,
}

impl Store {
    /// `wanted` gets each authority that is dialled for the first time.
    pub fn new(wanted: mpsc::UnboundedSender<Authority>, zone: Option<String>) -> Self {
        Self {
            dialed: Mutex::default(),
            backends: Mutex::default(),
            changed: Notify::new(),
            wanted,
            zone,
        }
    }

    /// The handle of an authority; the first call subscribes to it.
    pub fn dial(&self, authority: &Authority) -> Arc<Dialed> {
        let mut dialed = lock(&self.dialed);
        if let Some(found) = dialed.get(authority) {
            return Arc::clone(found);
        }
        let new = Arc::new(Dialed {
            authority: authority.clone(),
            resolution: ArcSwap::default(),
            last_used: AtomicU32::new(0),
            retired: AtomicBool::new(false),
        });
        dialed.insert(authority.clone(), Arc::clone(&new));
        // Fails only when discovery has ended, at exit.
        let _ = self.wanted.send(authority.clone());
        new
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
        if let Some(dialed) = lock(&self.dialed).get(authority) {
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

    /// Forgets authorities last used before `tick - idle`, and gives them back.
    pub fn retire(&self, tick: u32, idle: u32) -> Vec<Authority> {
        let mut retired = Vec::new();
        lock(&self.dialed).retain(|authority, dialed| {
            let keep = tick.saturating_sub(dialed.last_used.load(Relaxed)) < idle;
            if !keep {
                dialed.retired.store(true, Relaxed);
                retired.push(authority.clone());
            }
            keep
        });
        retired
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
        let mut all: Vec<_> = lock(&self.dialed).values().cloned().collect();
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
        tokio::time::timeout(limit, decided).await.unwrap_or(Resolution::Pending)
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
    pub fn route_label(&self, rule: &Rule) -> Label {
        self.route_label_of(&rule.route)
    }

    pub fn route_label_of(&self, route: &Arc<str>) -> Label {
        self.routes.get(&(route.as_ptr() as usize)).copied().unwrap_or(Label::NONE)
    }

    fn complete(&self) -> bool {
        self.backends.iter().all(|backend| backend.load().complete)
    }
}

/// A poisoned lock means that a thread panicked; the map itself is always whole.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
