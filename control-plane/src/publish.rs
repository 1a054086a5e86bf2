//! From commits to the index to the streams that need to know; each resource is encoded once.
//!
//! [`Publisher::commit`] is the only way to change the index. It marks what was touched on the
//! streams that depend on it, as a set and not as a queue: a slow proxy holds back nothing and
//! grows nothing. A woken stream comes back with [`Publisher::view`] and takes the newest state.
//! See [`crate::discovery`] for the streams.

mod collection;
mod fit;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use outrigger_core::name::DestinationName;
use outrigger_proto::{convert, wire};
use prost::Message;
use tokio::sync::{Notify, watch};

pub use collection::{Collection, Member};
pub use fit::{LeftOut, MAX_RESOURCE, Part};

use crate::discovery::Session;
use crate::index::{Dep, Index, PortId};
use crate::object::ServiceId;
use crate::sync::lock;
use crate::translate::{destination, inbound};

/// One resource as it travels: the body is shared by everyone who gets it.
#[derive(Debug)]
pub struct Encoded {
    pub name: String,
    pub version: String,
    pub body: Bytes,
}

impl Encoded {
    fn new(name: String, body: Vec<u8>) -> Self {
        Self { name, version: convert::version(&body), body: body.into() }
    }
}

#[derive(Debug)]
pub struct EncodedDestination {
    pub resource: Encoded,
    /// Whose endpoints it needs: its own and its backends'.
    pub endpoints: Vec<PortId>,
    /// What proxies would not take of it.
    pub left_out: Vec<LeftOut>,
}

#[derive(Debug)]
struct EncodedInbound {
    resource: Arc<Encoded>,
    left_out: Vec<LeftOut>,
}

/// One change of the index.
#[derive(Clone, Copy, Debug)]
pub struct Commit {
    /// Counts commits that changed something.
    pub generation: u64,
    /// Nanoseconds since the Unix epoch.
    pub nanos: u128,
    at: Instant,
}

/// What a stream is told by the publisher and by itself.
#[derive(Debug)]
pub struct Handle {
    id: u64,
    pub session: Mutex<Session>,
    pub wake: Notify,
    dirty: Mutex<Dirty>,
    /// The last generation whose effects the proxy has acknowledged.
    acknowledged: watch::Sender<u64>,
}

/// What happened since the stream last looked.
#[derive(Debug, Default)]
pub struct Dirty {
    pub deps: HashSet<Dep>,
    /// The newest commit among them, for `system_version_info`.
    pub newest: Option<Commit>,
    /// When the oldest of them was committed, for the latency histogram.
    pub since: Option<Instant>,
}

impl Handle {
    pub fn acknowledge(&self, generation: u64) {
        self.acknowledged.send_if_modified(|seen| {
            let newer = generation > *seen;
            *seen = generation.max(*seen);
            newer
        });
    }

    pub fn session(&self) -> MutexGuard<'_, Session> {
        lock(&self.session)
    }

    pub fn take_dirty(&self) -> Dirty {
        std::mem::take(&mut lock(&self.dirty))
    }
}

#[derive(Debug)]
pub struct Publisher {
    inner: Mutex<View>,
}

/// The index, what has been encoded of it, and who waits for what; held under one lock.
#[derive(Debug)]
pub struct View {
    pub index: Index,
    pub commit: Commit,
    /// By Service, so that a change of one forgets all its ports and consumers at once.
    destinations: HashMap<ServiceId, HashMap<DestinationName, Arc<EncodedDestination>>>,
    collections: HashMap<PortId, CachedCollection>,
    inbounds: HashMap<String, EncodedInbound>,
    settings: Option<Arc<Encoded>>,
    trust: Option<Arc<Encoded>>,
    streams: BTreeMap<u64, Arc<Handle>>,
    interests: HashMap<Dep, HashSet<u64>>,
    next_stream: u64,
}

#[derive(Debug)]
struct CachedCollection {
    collection: Arc<Collection>,
    /// Still as the index has it.
    fresh: bool,
}

impl Publisher {
    pub fn new(index: Index) -> Self {
        let commit = Commit { generation: 0, nanos: unix_nanos(), at: Instant::now() };
        let view = View {
            index,
            commit,
            destinations: HashMap::new(),
            collections: HashMap::new(),
            inbounds: HashMap::new(),
            settings: None,
            trust: None,
            streams: BTreeMap::new(),
            interests: HashMap::new(),
            next_stream: 0,
        };
        Self { inner: Mutex::new(view) }
    }

    /// Changes the index and wakes whoever depends on what changed.
    pub fn commit<R>(&self, change: impl FnOnce(&mut Index) -> R) -> (R, Commit) {
        let mut view = self.view();
        let result = change(&mut view.index);
        let dirty = view.index.take_dirty();
        if dirty.is_empty() {
            return (result, view.commit);
        }
        let generation = view.commit.generation + 1;
        let commit = Commit { generation, nanos: unix_nanos(), at: Instant::now() };
        view.commit = commit;
        let mut woken = HashSet::new();
        for dep in dirty {
            view.forget(&dep);
            for id in view.interests.get(&dep).into_iter().flatten() {
                if let Some(handle) = view.streams.get(id) {
                    let mut state = lock(&handle.dirty);
                    state.deps.insert(dep.clone());
                    state.newest = Some(commit);
                    state.since.get_or_insert(commit.at);
                    woken.insert(*id);
                }
            }
        }
        for id in woken {
            if let Some(handle) = view.streams.get(&id) {
                handle.wake.notify_one();
            }
        }
        (result, commit)
    }

    /// The current state, locked: not to be held across anything slow.
    pub fn view(&self) -> MutexGuard<'_, View> {
        lock(&self.inner)
    }

    pub fn connect(&self, session: Session) -> Arc<Handle> {
        let mut view = self.view();
        let id = view.next_stream;
        view.next_stream += 1;
        let handle = Arc::new(Handle {
            id,
            session: Mutex::new(session),
            wake: Notify::new(),
            dirty: Mutex::default(),
            acknowledged: watch::Sender::new(0),
        });
        view.streams.insert(id, handle.clone());
        handle
    }

    pub fn disconnect(&self, handle: &Handle) {
        let mut view = self.view();
        let interests = handle.session().take_interests();
        view.change_interests(handle, &[], &interests);
        view.streams.remove(&handle.id);
        drop(view);
        // Whoever waits for this stream waits in vain.
        handle.acknowledge(u64::MAX);
    }

    /// Completes when every proxy that knows endpoints of `ports` has acknowledged `commit`.
    pub async fn settled(&self, commit: Commit, ports: &[PortId]) {
        let waiting: Vec<watch::Receiver<u64>> = {
            let view = self.view();
            let deps = ports.iter().map(|port| Dep::Endpoints(port.clone()));
            let ids: HashSet<u64> =
                deps.filter_map(|dep| view.interests.get(&dep)).flatten().copied().collect();
            let handles = ids.iter().filter_map(|id| view.streams.get(id));
            handles.map(|handle| handle.acknowledged.subscribe()).collect()
        };
        for mut acknowledged in waiting {
            // An error means that the stream is gone, which is as good.
            let _ = acknowledged.wait_for(|seen| *seen >= commit.generation).await;
        }
    }
}

impl View {
    pub fn streams(&self) -> impl Iterator<Item = &Arc<Handle>> {
        self.streams.values()
    }

    /// `None` when there is no such Service or port, or nothing of it can be sent.
    pub fn destination(&mut self, name: &DestinationName) -> Option<Arc<EncodedDestination>> {
        let port = PortId::from(name);
        if let Some(known) = self.destinations.get(&port.service).and_then(|d| d.get(name)) {
            return Some(known.clone());
        }
        let value = destination::build(&self.index, name)?;
        let backends = value.backends.iter().map(|backend| PortId::from(&backend.name));
        let endpoints = std::iter::once(port.clone()).chain(backends).collect();
        let fit::Fitted { body, left_out } = fit::destination(&value);
        warn(name, &left_out);
        let resource = Encoded::new(name.to_string(), body?);
        let encoded = Arc::new(EncodedDestination { resource, endpoints, left_out });
        self.destinations.entry(port.service).or_default().insert(name.clone(), encoded.clone());
        Some(encoded)
    }

    /// `None` when there is no such Service or port.
    pub fn collection(&mut self, port: &PortId) -> Option<Arc<Collection>> {
        let old = self.collections.get(port);
        if let Some(cached) = old.filter(|cached| cached.fresh) {
            return Some(cached.collection.clone());
        }
        let Some(endpoints) = self.index.endpoints(port) else {
            self.collections.remove(port);
            return None;
        };
        let collection = Collection::update(endpoints, old.map(|cached| &*cached.collection));
        let collection = Arc::new(collection);
        let cached = CachedCollection { collection: collection.clone(), fresh: true };
        self.collections.insert(port.clone(), cached);
        Some(collection)
    }

    /// A resource that is alone of its kind for a proxy: its `Inbound`, the mesh's settings, the
    /// trust bundle.
    pub fn single(&mut self, type_url: &str, name: &str) -> Option<Arc<Encoded>> {
        match type_url {
            wire::INBOUND => {
                if let Some(known) = self.inbounds.get(name) {
                    return Some(known.resource.clone());
                }
                let fit::Fitted { body, left_out } =
                    fit::inbound(&inbound::build(&self.index, name)?);
                warn(&name, &left_out);
                let resource = Arc::new(Encoded::new(name.to_owned(), body?));
                let encoded = EncodedInbound { resource: resource.clone(), left_out };
                self.inbounds.insert(name.to_owned(), encoded);
                Some(resource)
            }
            wire::MESH_SETTINGS if name == wire::MESH_SETTINGS_NAME => {
                let index = &self.index;
                let encoded = self.settings.get_or_insert_with(|| {
                    let value = convert::settings::to_wire(&index.settings());
                    Arc::new(Encoded::new(name.to_owned(), value.encode_to_vec()))
                });
                Some(encoded.clone())
            }
            wire::TRUST_BUNDLE if name == wire::TRUST_BUNDLE_NAME => {
                if self.trust.is_none() {
                    let value = convert::trust::to_wire(self.index.trust()?);
                    let value = value.encode_to_vec();
                    self.trust = Some(Arc::new(Encoded::new(name.to_owned(), value)));
                }
                self.trust.clone()
            }
            _ => None,
        }
    }

    /// What proxies would not take of the destinations that somebody has, by its Service and port.
    pub fn left_out(&self) -> impl Iterator<Item = (&DestinationName, &LeftOut)> {
        let all = self.destinations.values().flatten();
        all.flat_map(|(name, encoded)| encoded.left_out.iter().map(move |what| (name, what)))
    }

    /// The same of workloads' own ports, by the workload's uid.
    pub fn left_out_inbound(&self) -> impl Iterator<Item = (&str, &LeftOut)> {
        let all = self.inbounds.iter();
        all.flat_map(|(uid, encoded)| encoded.left_out.iter().map(move |what| (&**uid, what)))
    }

    /// Notes what a stream has begun to depend on and what it no longer depends on.
    pub fn change_interests(&mut self, handle: &Handle, begun: &[Dep], ended: &[Dep]) {
        for dep in ended {
            if let Some(ids) = self.interests.get_mut(dep) {
                ids.remove(&handle.id);
                if ids.is_empty() {
                    self.interests.remove(dep);
                    // What nobody needs is encoded again when somebody does.
                    self.release(dep);
                }
            }
        }
        for dep in begun {
            self.interests.entry(dep.clone()).or_default().insert(handle.id);
        }
    }

    fn release(&mut self, dep: &Dep) {
        match dep {
            Dep::Endpoints(port) => drop(self.collections.remove(port)),
            other => self.forget(other),
        }
    }

    fn forget(&mut self, dep: &Dep) {
        match dep {
            Dep::Service(id) => drop(self.destinations.remove(id)),
            Dep::Endpoints(port) => {
                if let Some(cached) = self.collections.get_mut(port) {
                    cached.fresh = false;
                }
            }
            Dep::Inbound(uid) => drop(self.inbounds.remove(uid)),
            Dep::Settings => self.settings = None,
            Dep::Trust => self.trust = None,
            Dep::Ip(_) | Dep::Dialled(_) => {}
        }
    }
}

fn warn(resource: &dyn std::fmt::Display, left_out: &[LeftOut]) {
    for LeftOut { part, problem } in left_out {
        tracing::warn!(%resource, ?part, %problem, "a part that proxies would refuse is left out");
    }
}

fn unix_nanos() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos())
}
