//! Workloads that other replicas have registered, as their documents say.
//!
//! They are in the index like one's own, about a second late. A name that two proxies have claimed at two
//! replicas within that second belongs to the one who was there first: each replica sees the other's claim, both
//! decide alike, and the later stream is ended with ALREADY_EXISTS. A proxy that has moved from one replica to
//! another is known there at once by its session, and its entry of before goes.
//!
//! In a cluster each workload is an object as well ([`super::objects`]): once that is seen, it is what the index
//! shows, and the document only says whose the name is.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::{Duration, Instant};

use outrigger_core::address::LocalEndpoints;
use outrigger_proto::mesh::Health;

use super::entry::{self, COMES_BACK, Entry, Link};
use super::saved::{self, SavedRegistration};
use super::session::SessionHash;
use super::{RegistrationRefused, Registrations, unix_millis};
use crate::object::Workload;
use crate::replica::{Replica, ReplicaName};
use crate::store::{StoreError, Version};
use crate::sync::lock;

/// What other replicas have registered.
#[derive(Debug)]
pub(super) struct OtherReplicas {
    replicas: HashMap<ReplicaName, Theirs>,
    /// What of it is in the index now.
    shown: HashMap<String, Workload>,
    /// Those of which the index has seen another replica's object.
    objects: HashSet<String>,
    grace: Duration,
}

/// The documents that were read last.
pub(super) type Versions = HashMap<ReplicaName, Version>;

/// One replica's.
#[derive(Debug, Default)]
struct Theirs {
    entries: HashMap<String, SavedRegistration>,
    /// Since when the replica is taken for dead.
    gone: Option<Instant>,
}

/// What is new at one replica.
struct ReplicaNews {
    replica: ReplicaName,
    is_alive: bool,
    /// Of a document that has changed.
    entries: Option<Vec<SavedRegistration>>,
}

/// A workload as another replica knows it.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) workload: Workload,
    pub(super) health: Health,
    pub(super) closed: BTreeSet<u16>,
    pub(super) since: u64,
    session: Option<SessionHash>,
    /// How long its stream has been no more.
    broken: Option<Duration>,
}

/// What two claims to one name are weighed by.
#[derive(Debug)]
struct Claim<'a> {
    session: Option<&'a SessionHash>,
    since: u64,
    is_open: bool,
    replica: &'a ReplicaName,
}

impl OtherReplicas {
    pub(super) fn new(grace: Duration) -> Self {
        Self { replicas: HashMap::new(), shown: HashMap::new(), objects: HashSet::new(), grace }
    }

    /// The workload that goes by this name elsewhere.
    pub(super) fn find(&self, uid: &str, now: Instant) -> Option<Found> {
        let (_, theirs, saved) = self.best(uid, now)?;
        let broken = match (theirs.gone, saved.stream.broken) {
            (Some(gone), _) => Some(now.saturating_duration_since(gone)),
            (None, 0) => None,
            (None, at) => Some(Duration::from_millis(unix_millis().saturating_sub(at))),
        };
        Some(Found {
            workload: saved.workload.clone(),
            health: saved.health,
            closed: saved.closed.clone(),
            since: saved.stream.since,
            session: saved.session.clone(),
            broken,
        })
    }

    /// Of several replicas that have it, the one whose claim counts.
    fn best(&self, uid: &str, now: Instant) -> Option<(&ReplicaName, &Theirs, &SavedRegistration)> {
        let replicas = self.replicas.iter().filter(|(_, theirs)| self.counts(theirs, now));
        let found =
            replicas.filter_map(|(name, theirs)| Some((name, theirs, theirs.entries.get(uid)?)));
        found.reduce(|a, b| match Claim::of(b).outranks(&Claim::of(a)) {
            true => b,
            false => a,
        })
    }

    /// A name is this replica's own from now on.
    pub(super) fn hide(&mut self, uid: &str) {
        self.shown.remove(uid);
    }

    /// A name is this replica's own no longer: what the index shows instead.
    pub(super) fn show(&mut self, uid: &str, now: Instant) -> Option<Workload> {
        let (_, _, saved) = self.best(uid, now).filter(|_| !self.objects.contains(uid))?;
        let workload = published(saved);
        self.shown.insert(uid.to_owned(), workload.clone());
        Some(workload)
    }

    /// Every workload that another replica has registered and this one has not.
    pub(super) fn all(
        &self,
        own: &HashMap<String, Entry>,
        now: Instant,
    ) -> impl Iterator<Item = &Workload> {
        let replicas = self.replicas.values().filter(move |theirs| self.counts(theirs, now));
        let entries = replicas.flat_map(|theirs| &theirs.entries);
        // One that has moved is at two replicas for a moment.
        let entries: HashMap<&String, &SavedRegistration> =
            entries.filter(|(uid, _)| !own.contains_key(*uid)).collect();
        entries.into_values().map(|saved| &saved.workload)
    }

    fn counts(&self, theirs: &Theirs, now: Instant) -> bool {
        theirs.gone.is_none_or(|gone| now.saturating_duration_since(gone) < self.grace)
    }

    /// How long a replica has been dead; zero: it is alive, and `None`: it has left nothing here.
    pub(super) fn gone(&self, replica: &ReplicaName, now: Instant) -> Option<Duration> {
        let theirs = self.replicas.get(replica)?;
        Some(theirs.gone.map_or(Duration::ZERO, |gone| now.saturating_duration_since(gone)))
    }

    /// Notes of which workloads there are objects.
    fn note_objects(&mut self, is_object: impl Fn(&str) -> bool) {
        let names = self.replicas.values().flat_map(|theirs| theirs.entries.keys());
        // One whose object has gone stays noted: its document is about to say the same.
        let noted = names.filter(|uid| self.objects.contains(*uid) || is_object(uid));
        self.objects = noted.cloned().collect();
    }

    pub(super) fn any_alive(&self) -> bool {
        self.replicas.values().any(|theirs| theirs.gone.is_none())
    }

    fn take(&mut self, news: ReplicaNews, now: Instant) {
        let theirs = self.replicas.entry(news.replica).or_default();
        theirs.gone = if news.is_alive { None } else { theirs.gone.or(Some(now)) };
        if let Some(entries) = news.entries {
            let entries = entries.into_iter().map(|saved| (saved.workload.uid(), saved));
            theirs.entries = entries.collect();
        }
    }

    /// Lets go of own entries whose name is another replica's.
    fn resolve(&self, own: &ReplicaName, entries: &mut HashMap<String, Entry>, now: Instant) {
        let lost = entries.iter().filter(|(uid, entry)| {
            let mine = Claim {
                session: entry.session.as_ref(),
                since: entry.since,
                is_open: entry.connected(),
                replica: own,
            };
            self.best(uid, now).is_some_and(|best| Claim::of(best).outranks(&mine))
        });
        let lost: Vec<String> = lost.map(|(uid, _)| uid.clone()).collect();
        for uid in lost {
            let Some(entry) = entries.remove(&uid) else { continue };
            tracing::info!(uid, "a workload is registered at another replica by now");
            let same = self.best(&uid, now).is_some_and(|(_, _, saved)| {
                saved.session.is_some() && saved.session == entry.session
            });
            if let (Link::Open(told), false) = (entry.link, same) {
                tracing::warn!(uid, "its name was another proxy's, at another replica");
                let _ = told.send(RegistrationRefused::Held(uid));
            }
        }
    }

    /// What the index has to take and to drop.
    fn differences(
        &mut self,
        own: &HashMap<String, Entry>,
        now: Instant,
    ) -> (Vec<Workload>, Vec<String>) {
        let names = self.replicas.values().flat_map(|theirs| theirs.entries.keys());
        let names: BTreeSet<&String> = names.filter(|uid| !own.contains_key(*uid)).collect();
        let names = names.into_iter().filter(|uid| !self.objects.contains(*uid));
        let wanted = names.filter_map(|uid| {
            let (_, _, saved) = self.best(uid, now)?;
            Some((uid.clone(), published(saved)))
        });
        let wanted: HashMap<String, Workload> = wanted.collect();
        let changed =
            wanted.iter().filter(|(uid, workload)| self.shown.get(*uid) != Some(workload));
        let changed = changed.map(|(_, workload)| workload.clone()).collect();
        let removed = self.shown.keys();
        let removed = removed.filter(|uid| !wanted.contains_key(*uid) && !own.contains_key(*uid));
        let removed = removed.cloned().collect();
        self.shown = wanted;
        (changed, removed)
    }

    /// Replicas that have been gone for so long that nothing of theirs counts.
    fn forgotten(&self, after: Duration, now: Instant) -> Vec<ReplicaName> {
        let gone = |theirs: &Theirs| {
            theirs.gone.is_some_and(|gone| now.saturating_duration_since(gone) > after)
        };
        let names = self.replicas.iter().filter(|(_, theirs)| gone(theirs));
        names.map(|(name, _)| name.clone()).collect()
    }
}

impl Found {
    pub(super) fn is_open(&self) -> bool {
        self.broken.is_none()
    }

    /// Whether the name is not to be had for `session`: as [`Entry::is_held_against`].
    pub(super) fn is_held_against(&self, session: Option<&SessionHash>) -> bool {
        if session.is_some() && session == self.session.as_ref() {
            return false;
        }
        match self.broken {
            None => true,
            Some(_) if self.health == Health::Draining => false,
            Some(broken) => broken < COMES_BACK,
        }
    }
}

impl<'a> Claim<'a> {
    fn of((replica, theirs, saved): (&'a ReplicaName, &'a Theirs, &'a SavedRegistration)) -> Self {
        Self {
            session: saved.session.as_ref(),
            since: saved.stream.since,
            is_open: saved.stream.broken == 0 && theirs.gone.is_none(),
            replica,
        }
    }

    /// Of one process the later claim counts; of two the one that is alive, or else the earlier one.
    fn outranks(&self, other: &Self) -> bool {
        let same = self.session.is_some() && self.session == other.session;
        let order = match (same, self.is_open, other.is_open) {
            (false, true, false) => return true,
            (false, false, true) => return false,
            (false, true, true) => other.since.cmp(&self.since),
            (true, ..) | (false, false, false) => self.since.cmp(&other.since),
        };
        order.then_with(|| other.replica.cmp(self.replica)).is_gt()
    }
}

impl Registrations {
    /// Takes over what other replicas have registered since the last look.
    pub(super) fn look_at_others(&self) {
        if let Err(error) = self.try_look() {
            tracing::error!(%error, "could not read the registrations of other replicas");
        }
    }

    fn try_look(&self) -> Result<(), StoreError> {
        let mut versions = lock(&self.looking);
        let mut news = Vec::new();
        for other in self.replica.others()? {
            news.push(read(&self.replica, other, &mut versions, self.local)?);
        }
        let (now, after) = (Instant::now(), self.replica.timing.forget.max(self.grace));
        let forgotten = {
            let mut entries = self.entries();
            let mut others = self.others();
            for news in news {
                others.take(news, now);
            }
            let index = self.publisher.view().index.clone();
            others.note_objects(|uid| index.is_object_of_other(uid));
            let before = entries.len();
            others.resolve(&self.replica.name, &mut entries, now);
            let lost = entries.len() < before;
            let (changed, removed) = others.differences(&entries, now);
            let forgotten = others.forgotten(after, now);
            drop(others);
            if !changed.is_empty() || !removed.is_empty() {
                self.publisher.commit(|index| {
                    for uid in &removed {
                        index.deregister(uid);
                    }
                    for workload in changed {
                        index.register(workload);
                    }
                });
            }
            drop(entries);
            if lost {
                self.note_change();
            }
            forgotten
        };
        for other in forgotten {
            if let Some(version) = versions.get(&other) {
                self.replica.store.remove(&other.document(saved::NAME), version)?;
            }
        }
        Ok(())
    }
}

/// Reads the document of one replica, if it has changed.
fn read(
    replica: &Replica,
    other: ReplicaName,
    versions: &mut Versions,
    local: LocalEndpoints,
) -> Result<ReplicaNews, StoreError> {
    let document = other.document(saved::NAME);
    let is_alive = replica.is_alive(&other)?;
    let version = replica.store.version(&document)?;
    if version.as_ref() == versions.get(&other) {
        return Ok(ReplicaNews { replica: other, is_alive, entries: None });
    }
    let stored = replica.store.read(&document)?;
    let entries = match &stored {
        None => Vec::new(),
        Some(stored) => saved::decode(&stored.bytes, local).unwrap_or_else(|| {
            let path = replica.store.place(&document);
            tracing::error!(path, "the registrations of another replica are damaged and ignored");
            Vec::new()
        }),
    };
    match stored {
        Some(stored) => drop(versions.insert(other.clone(), stored.version)),
        None => drop(versions.remove(&other)),
    }
    Ok(ReplicaNews { replica: other, is_alive, entries: Some(entries) })
}

fn published(saved: &SavedRegistration) -> Workload {
    entry::published(&saved.workload, saved.health, &saved.closed)
}
