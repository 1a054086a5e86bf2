//! Puts what the watches see in force, in batches: one writer for all kinds.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use kube::core::ApiResource;
use tokio::sync::{Notify, mpsc, watch as cell};

use super::SyncState;
use super::resources::RESOURCES;
use super::watch::{Observation, SeenObject};
use crate::metrics::{KindLabel, Metrics};
use crate::object::{Kind, Object, ObjectId};
use crate::problems::{Problem, Problems};
use crate::publish::Publisher;
use crate::source::event::{self, Event};
use crate::sync::lock;

/// Observations that are put in force together.
const BATCH: usize = 4096;

/// The generation of each object as it was last put in force, for who writes its status.
#[derive(Debug, Default)]
pub struct Generations {
    known: Mutex<HashMap<ObjectId, i64>>,
    changed: Mutex<BTreeSet<ObjectId>>,
    /// In which version each kind is watched.
    resources: Mutex<HashMap<Kind, ApiResource>>,
    /// Told of whatever [`Self::take_changed`] gives.
    pub wake: Notify,
}

impl Generations {
    /// None: there is no such object.
    pub fn of(&self, id: &ObjectId) -> Option<i64> {
        lock(&self.known).get(id).copied()
    }

    /// Objects of another generation than when this was last asked.
    pub fn take_changed(&self) -> BTreeSet<ObjectId> {
        std::mem::take(&mut lock(&self.changed))
    }

    /// Every object that may have a status.
    pub fn all(&self) -> Vec<ObjectId> {
        lock(&self.known).keys().cloned().collect()
    }

    /// Where objects of a kind are; none: nowhere now.
    pub fn resource(&self, kind: Kind) -> Option<ApiResource> {
        lock(&self.resources).get(&kind).cloned()
    }

    pub(super) fn set_resource(&self, kind: Kind, resource: Option<ApiResource>) {
        let mut resources = lock(&self.resources);
        match resource {
            Some(resource) => drop(resources.insert(kind, resource)),
            None => drop(resources.remove(&kind)),
        }
    }

    fn set(&self, new: Vec<(ObjectId, Option<i64>)>) {
        if new.is_empty() {
            return;
        }
        let (mut known, mut changed) = (lock(&self.known), lock(&self.changed));
        for (id, generation) in new {
            let old = match generation {
                Some(generation) => known.insert(id.clone(), generation),
                None => known.remove(&id),
            };
            if old != generation {
                changed.insert(id);
            }
        }
        self.wake.notify_one();
    }
}

#[derive(Debug)]
pub(super) struct Keeper {
    publisher: Arc<Publisher>,
    problems: Arc<Problems>,
    metrics: Arc<Metrics>,
    generations: Arc<Generations>,
    synced: cell::Sender<SyncState>,
    /// Every object that is there.
    known: BTreeMap<ObjectId, KnownObject>,
    /// Of each kind that is being listed: what the list has shown so far.
    listing: HashMap<Kind, BTreeSet<ObjectId>>,
    /// Kinds that are watched and have been listed at least once.
    listed: BTreeSet<Kind>,
    /// Kinds whose definitions were there at the beginning; none: not known yet.
    defined: Option<Vec<Kind>>,
    counts: BTreeMap<Kind, i64>,
}

#[derive(Clone, Copy, Debug, Default)]
struct KnownObject {
    /// A version of it that was right is in force.
    is_in_force: bool,
    /// Something is written down about it in [`Problems`].
    has_problems: bool,
}

/// What one batch changes: of each object the last version counts.
#[derive(Debug, Default)]
struct Batch {
    events: BTreeMap<ObjectId, Option<Object>>,
    generations: BTreeMap<ObjectId, Option<i64>>,
}

impl Keeper {
    pub(super) fn new(
        publisher: Arc<Publisher>,
        problems: Arc<Problems>,
        metrics: Arc<Metrics>,
        generations: Arc<Generations>,
        synced: cell::Sender<SyncState>,
    ) -> Self {
        let keeper = Self {
            publisher,
            problems,
            metrics,
            generations,
            synced,
            known: BTreeMap::new(),
            listing: HashMap::new(),
            listed: BTreeSet::new(),
            defined: None,
            counts: BTreeMap::new(),
        };
        keeper.tell_synced();
        keeper
    }

    /// Goes on until nobody watches any more.
    pub(super) async fn run(mut self, mut observations: mpsc::Receiver<Observation>) {
        let mut seen = Vec::new();
        while observations.recv_many(&mut seen, BATCH).await > 0 {
            let started = Instant::now();
            let mut batch = Batch::default();
            for observation in seen.drain(..) {
                self.take(observation, &mut batch);
            }
            self.commit(batch, started);
            self.tell_synced();
        }
    }

    fn take(&mut self, observation: Observation, batch: &mut Batch) {
        match observation {
            Observation::Defined(kinds) => {
                self.defined.get_or_insert(kinds);
            }
            Observation::Undefined(kind) => {
                self.listing.remove(&kind);
                if let Some(defined) = &mut self.defined {
                    defined.retain(|other| *other != kind);
                }
                self.remove_all_but(kind, &BTreeSet::new(), batch);
            }
            Observation::Listing(kind) => drop(self.listing.insert(kind, BTreeSet::new())),
            Observation::Listed(kind) => {
                if let Some(shown) = self.listing.remove(&kind) {
                    self.remove_all_but(kind, &shown, batch);
                }
                self.listed.insert(kind);
            }
            Observation::Gone(id) => {
                if let Some(shown) = self.listing.get_mut(&id.kind) {
                    shown.remove(&id);
                }
                self.remove(&id, batch);
            }
            Observation::Seen(seen) => self.see(*seen, batch),
        }
    }

    fn see(&mut self, seen: SeenObject, batch: &mut Batch) {
        let SeenObject { id, generation, reading, closed } = seen;
        if let Some(shown) = self.listing.get_mut(&id.kind) {
            shown.insert(id.clone());
        }
        let old = self.known.get(&id).copied();
        if old.is_none() {
            self.count(id.kind, 1);
        }
        let problems = reading.problems.into_iter().map(|(severity, error)| Problem {
            file: PathBuf::new(),
            line: 0,
            severity,
            object: Some(id.clone()),
            field: error.path,
            problem: error.problem,
        });
        let problems: Vec<Problem> = problems.collect();
        let mut known = old.unwrap_or_default();
        let is_wrong = problems.iter().any(|problem| problem.refused().is_some());
        match reading.object {
            Some(object) => {
                known.is_in_force = true;
                batch.events.insert(id.clone(), Some(object));
            }
            // The last good version stays; an AccessPolicy without one lets nobody in.
            None if is_wrong => {
                if let Some(closed) = closed.filter(|_| !known.is_in_force) {
                    batch.events.insert(id.clone(), Some(Object::AccessPolicy(closed)));
                }
            }
            // There, and nothing for the mesh, such as a pod without an address.
            None => {
                known.is_in_force = false;
                batch.events.insert(id.clone(), None);
            }
        }
        if known.has_problems || !problems.is_empty() {
            known.has_problems = !problems.is_empty();
            self.problems.set(&place(&id), problems);
        }
        if has_status(id.kind) {
            batch.generations.insert(id.clone(), Some(generation.unwrap_or_default()));
        }
        self.known.insert(id, known);
    }

    fn remove(&mut self, id: &ObjectId, batch: &mut Batch) {
        let Some(known) = self.known.remove(id) else { return };
        self.count(id.kind, -1);
        if known.has_problems {
            self.problems.set(&place(id), Vec::new());
        }
        if has_status(id.kind) {
            batch.generations.insert(id.clone(), None);
        }
        batch.events.insert(id.clone(), None);
    }

    /// What a whole list does not show is gone.
    fn remove_all_but(&mut self, kind: Kind, shown: &BTreeSet<ObjectId>, batch: &mut Batch) {
        let from = ObjectId { kind, namespace: String::new(), name: String::new() };
        let of_kind = self.known.range(from..).map(|(id, _)| id);
        let of_kind = of_kind.take_while(|id| id.kind == kind);
        let gone: Vec<_> = of_kind.filter(|id| !shown.contains(*id)).cloned().collect();
        for id in gone {
            self.remove(&id, batch);
        }
    }

    fn count(&mut self, kind: Kind, more: i64) {
        let count = self.counts.entry(kind).or_default();
        *count += more;
        let label = KindLabel { kind: kind.as_str().to_owned() };
        self.metrics.objects.get_or_create(&label).set(*count);
    }

    fn commit(&self, batch: Batch, started: Instant) {
        let problems = i64::try_from(self.problems.count()).unwrap_or(i64::MAX);
        self.metrics.problems.set(problems);
        if !batch.events.is_empty() {
            let count = batch.events.len();
            let events = batch.events.into_iter().map(|(id, object)| match object {
                Some(object) => Event::Apply(Box::new(object)),
                None => Event::Remove(id),
            });
            let commit = event::commit(&self.publisher, events);
            let elapsed = started.elapsed();
            self.metrics.load_seconds.observe(elapsed.as_secs_f64());
            tracing::debug!(count, generation = commit.generation, ?elapsed, "objects loaded");
        }
        // After they are in force: a status that names a generation is of that one or a later one.
        self.generations.set(batch.generations.into_iter().collect());
    }

    fn tell_synced(&self) {
        if self.synced.borrow().is_done {
            return;
        }
        let builtin = RESOURCES.iter().filter(|r| r.is_builtin).map(|resource| resource.kind);
        let expected = builtin.chain(self.defined.iter().flatten().copied());
        let missing = expected.filter(|kind| !self.listed.contains(kind));
        let mut missing: Vec<String> = missing.map(|kind| kind.as_str().to_owned()).collect();
        if self.defined.is_none() {
            missing.push("CustomResourceDefinition".to_owned());
        }
        let is_done = missing.is_empty();
        if is_done {
            tracing::info!(objects = self.known.len(), "all objects of the cluster are in force");
        }
        self.synced.send_replace(SyncState { is_done, missing });
    }
}

/// By which its problems are found.
fn place(id: &ObjectId) -> PathBuf {
    PathBuf::from(id.to_string())
}

/// Whether somebody writes a status for it.
fn has_status(kind: Kind) -> bool {
    !matches!(
        kind,
        Kind::Service | Kind::EndpointSlice | Kind::Pod | Kind::Namespace | Kind::ReferenceGrant
    )
}
