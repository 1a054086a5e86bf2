//! Workloads that make themselves known: the stream that registers one and says how it is.
//!
//! An endpoint is published only while its workload is Ready. Draining withdraws it and answers
//! when every proxy that knew it has acknowledged that; a cleanly closed stream withdraws it at
//! once, a broken one after the grace period. Anyone who holds a name keeps it while it is alive: another one
//! gets it only when the holder's stream has ended and it had time to come back. [`registrar`] is the gRPC
//! service, [`saved`] keeps registrations over a restart, [`others`] are those of other replicas, [`objects`]
//! writes each as an ExternalWorkload in a cluster, [`session`] tells one process from another.

mod entry;
pub mod objects;
mod others;
mod registrar;
mod saved;
mod session;

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use outrigger_core::address::LocalEndpoints;
use outrigger_core::bounds;
use outrigger_proto::mesh::Health;
use tokio::sync::{oneshot, watch};
use tonic::Status;

use entry::{Entry, Link};
use others::{OtherReplicas, Versions};
pub use registrar::Registrar;
use saved::{SavedRegistration, SavedStream};
use session::SessionHash;

use crate::index::PortId;
use crate::metrics::Metrics;
use crate::object::Workload;
use crate::publish::{Commit, Publisher};
use crate::replica::{Own, Replica};
use crate::sync::lock;

/// How long proxies have to acknowledge that an endpoint is gone.
const ACKNOWLEDGED: Duration = Duration::from_secs(5);
/// Every workload registered at this replica, connected or within its grace period, and those of others.
#[derive(Debug)]
pub struct Registrations {
    publisher: Arc<Publisher>,
    metrics: Arc<Metrics>,
    entries: Mutex<HashMap<String, Entry>>,
    /// Locked after the entries, never before.
    others: Mutex<OtherReplicas>,
    /// Versions of others' documents; locked while these are read.
    looking: Mutex<Versions>,
    next_stream: AtomicU64,
    grace: Duration,
    local: LocalEndpoints,
    replica: Arc<Replica>,
    saved: Own,
    changed: watch::Sender<()>,
}

/// A stream that speaks for a workload.
struct WorkloadSpeaker {
    stream: u64,
    /// Ends when another stream does, with a reason if the name is somebody else's.
    replaced: oneshot::Receiver<RegistrationRefused>,
}

/// Why a workload is not registered.
#[derive(Debug, thiserror::Error)]
enum RegistrationRefused {
    #[error(
        "name: {0} is registered by another proxy, which keeps it while it is alive: give each proxy a name \
         of its own"
    )]
    Held(String),
    #[error(
        "name: {0} is an ExternalWorkload that no registration has made: give the workload another name, or \
         remove that object"
    )]
    Taken(String),
    #[error("at most {} workloads can be registered", bounds::WORKLOADS)]
    TooMany,
    #[error(
        "at most {} workloads of one service account can be registered",
        bounds::WORKLOADS_OF_ACCOUNT
    )]
    TooManyOfAccount,
}

impl From<RegistrationRefused> for Status {
    fn from(refused: RegistrationRefused) -> Self {
        let text = refused.to_string();
        match refused {
            RegistrationRefused::Held(_) | RegistrationRefused::Taken(_) => {
                Self::already_exists(text)
            }
            RegistrationRefused::TooMany | RegistrationRefused::TooManyOfAccount => {
                Self::resource_exhausted(text)
            }
        }
    }
}

impl Registrations {
    /// Reads what was registered before the last stop and puts it into the index.
    pub fn open(
        publisher: Arc<Publisher>,
        metrics: Arc<Metrics>,
        replica: Arc<Replica>,
        grace: Duration,
        local: LocalEndpoints,
    ) -> Self {
        let saved = Own::new(replica.clone(), saved::NAME);
        let link = || Link::Broken(Instant::now(), unix_millis());
        let entries = read(&saved, local).into_iter().map(|saved| {
            let SavedRegistration { workload, health, closed, session, stream } = saved;
            let SavedStream { since, .. } = stream;
            let entry = Entry { workload, health, closed, session, stream: 0, since, link: link() };
            (entry.workload.uid(), entry)
        });
        let registrations = Self {
            publisher,
            metrics,
            entries: Mutex::new(entries.collect()),
            others: Mutex::new(OtherReplicas::new(grace)),
            looking: Mutex::default(),
            // 0 is the stream of what was read from disk.
            next_stream: AtomicU64::new(1),
            grace,
            local,
            replica,
            saved,
            changed: watch::Sender::new(()),
        };
        registrations.publisher.commit(|index| {
            for entry in registrations.entries().values() {
                index.register(entry.published());
            }
        });
        registrations.look_at_others();
        registrations.note_change();
        registrations
    }

    /// Writes changes to the store, takes over those of others, and lets go of what was in the store and has not
    /// been heard from.
    pub async fn run(self: Arc<Self>) {
        let forget = async {
            tokio::time::sleep(self.grace).await;
            let silent: Vec<String> = {
                let entries = self.entries();
                let silent = entries.iter().filter(|(_, e)| e.stream == 0 && !e.connected());
                silent.map(|(uid, _)| uid.clone()).collect()
            };
            for uid in silent {
                tracing::info!(uid, "workload did not come back after the restart");
                self.remove(&uid, 0);
            }
        };
        let write = async {
            let mut changed = self.changed.subscribe();
            changed.mark_changed();
            while changed.changed().await.is_ok() {
                let registrations = self.clone();
                let written = tokio::task::spawn_blocking(move || registrations.flush()).await;
                if !matches!(written, Ok(true)) {
                    // Until the store is back.
                    tokio::time::sleep(self.replica.timing.poll).await;
                    changed.mark_changed();
                }
            }
        };
        let look = async {
            loop {
                tokio::time::sleep(self.replica.timing.poll).await;
                let registrations = self.clone();
                let _ = tokio::task::spawn_blocking(move || registrations.look_at_others()).await;
            }
        };
        tokio::join!(forget, write, look);
    }

    /// Which endpoints on the callers' own machines are taken.
    fn local(&self) -> LocalEndpoints {
        self.local
    }

    /// Puts a registration in force, unless its name is somebody else's who is alive.
    fn register(
        &self,
        workload: Workload,
        session: Option<SessionHash>,
    ) -> Result<WorkloadSpeaker, RegistrationRefused> {
        let stream = self.next_stream.fetch_add(1, Ordering::Relaxed);
        let uid = workload.uid();
        if self.publisher.view().index.is_taken(&uid) {
            tracing::warn!(uid, "a workload was refused: its name is an ExternalWorkload's");
            return Err(RegistrationRefused::Taken(uid));
        }
        let mut entries = self.entries();
        let before = entries.get(&uid);
        let elsewhere = self.others().find(&uid, Instant::now());
        let held = before.is_some_and(|e| e.is_held_against(session.as_ref(), Instant::now()))
            || elsewhere.as_ref().is_some_and(|other| other.is_held_against(session.as_ref()));
        if held {
            tracing::warn!(uid, "a workload was refused: its name is another proxy's");
            return Err(RegistrationRefused::Held(uid));
        }
        if before.is_none() && elsewhere.is_none() {
            room_for(&workload, &entries, &self.others())?;
        }
        // A proxy that lost its stream comes back as it was: nothing flaps in between.
        let before = before.map(|e| (&e.workload, e.health, &e.closed, e.since));
        let elsewhere = elsewhere.as_ref().map(|e| (&e.workload, e.health, &e.closed, e.since));
        let inherited = before
            .or(elsewhere)
            .filter(|(old, health, ..)| **old == workload && *health == Health::Ready);
        let (health, closed) = inherited
            .map_or((Health::Starting, BTreeSet::new()), |(_, health, closed, _)| {
                (health, closed.clone())
            });
        // Later than any other of the same name, whatever the clocks say.
        let known = before.into_iter().chain(elsewhere).map(|found| found.3);
        let since = known.map(|since| since.saturating_add(1)).fold(unix_millis(), u64::max);
        let (open, replaced) = oneshot::channel();
        let link = Link::Open(open);
        let entry = Entry { workload, health, closed, session, stream, since, link };
        self.publisher.commit(|index| index.register(entry.published()));
        self.others().hide(&uid);
        entries.insert(uid, entry);
        drop(entries);
        self.note_change();
        Ok(WorkloadSpeaker { stream, replaced })
    }

    /// Notes what a stream says of its workload's health. For Draining, completes when the
    /// endpoint is gone everywhere. `closed`: ports on which the app accepts no connection.
    fn set_health(
        &self,
        uid: &str,
        stream: u64,
        health: Health,
        closed: BTreeSet<u16>,
    ) -> Option<Drain> {
        let mut entries = self.entries();
        let entry = entries.get_mut(uid).filter(|entry| entry.stream == stream)?;
        let ports = &entry.workload.ports;
        entry.closed = closed.into_iter().filter(|n| ports.iter().any(|p| p.port == *n)).collect();
        entry.health = health;
        let published = entry.published();
        let (ports, commit) = self.publisher.commit(|index| {
            let mut ports = Vec::new();
            for id in index.selecting(&published) {
                let service_ports = index.service(id).into_iter().flat_map(|s| &s.ports);
                ports.extend(service_ports.map(|p| PortId::new(id, p.port)));
            }
            index.register(published);
            ports
        });
        drop(entries);
        self.note_change();
        let publisher = self.publisher.clone();
        // Proxies of other replicas hear of it that much later.
        let elsewhere = self.others().any_alive().then_some(self.replica.timing.poll * 2);
        Some(Drain { publisher, ports, commit, elsewhere: elsewhere.unwrap_or_default() })
    }

    /// Whether the health that the stream inherited from an earlier one still holds.
    fn forget_inherited_health(&self, uid: &str, stream: u64) {
        let ready = self.entries().get(uid).is_some_and(|entry| entry.health == Health::Ready);
        if ready {
            self.set_health(uid, stream, Health::Starting, BTreeSet::new());
        }
    }

    fn break_off(self: Arc<Self>, uid: String, stream: u64) {
        if let Some(entry) = self.entries().get_mut(&uid).filter(|e| e.stream == stream) {
            entry.link = Link::Broken(Instant::now(), unix_millis());
        }
        self.note_change();
        tokio::spawn(async move {
            tokio::time::sleep(self.grace).await;
            self.remove(&uid, stream);
        });
    }

    /// Removes a workload unless another stream speaks for it by now.
    fn remove(&self, uid: &str, stream: u64) {
        self.end(uid, stream, None);
    }

    /// The same; `why` is told the proxy.
    fn end(&self, uid: &str, stream: u64, why: Option<RegistrationRefused>) {
        let mut entries = self.entries();
        if entries.get(uid).is_none_or(|entry| entry.stream != stream) {
            return;
        }
        if let (Some(why), Some(Entry { link: Link::Open(told), .. })) = (why, entries.remove(uid))
        {
            let _ = told.send(why);
        }
        let elsewhere = self.others().show(uid, Instant::now());
        self.publisher.commit(|index| match elsewhere {
            Some(workload) => index.register(workload),
            None => index.deregister(uid),
        });
        drop(entries);
        tracing::info!(uid, "workload removed");
        self.note_change();
    }

    fn note_change(&self) {
        let count = self.entries().len();
        self.metrics.workloads.set(i64::try_from(count).unwrap_or(i64::MAX));
        self.changed.send_replace(());
    }

    /// Writes what is registered now; false: it could not be written.
    pub fn flush(&self) -> bool {
        let mut entries: Vec<_> = self.entries().values().map(Entry::to_saved).collect();
        entries.sort_by_key(|saved| saved.workload.uid());
        if let Err(error) = self.saved.write(|_| saved::encode(&entries)) {
            tracing::error!(%error, "could not write registrations to the store");
            return false;
        }
        true
    }

    /// What the admin server shows of a workload.
    pub fn describe(&self, uid: &str) -> Option<(&'static str, bool)> {
        let entries = self.entries();
        if let Some(entry) = entries.get(uid) {
            return Some((word(entry.health), entry.connected()));
        }
        let found = self.others().find(uid, Instant::now())?;
        Some((word(found.health), found.is_open()))
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        lock(&self.entries)
    }

    fn others(&self) -> MutexGuard<'_, OtherReplicas> {
        lock(&self.others)
    }
}

/// Anyone who holds a token could otherwise fill the index with made-up workloads.
fn room_for(
    workload: &Workload,
    entries: &HashMap<String, Entry>,
    others: &OtherReplicas,
) -> Result<(), RegistrationRefused> {
    let now = Instant::now();
    let count = entries.len() + others.all(entries, now).count();
    if count >= bounds::WORKLOADS {
        return Err(RegistrationRefused::TooMany);
    }
    let same = |other: &&Workload| {
        other.namespace == workload.namespace && other.service_account == workload.service_account
    };
    let all = || entries.values().map(|entry| &entry.workload).chain(others.all(entries, now));
    if count >= bounds::WORKLOADS_OF_ACCOUNT
        && all().filter(same).count() >= bounds::WORKLOADS_OF_ACCOUNT
    {
        return Err(RegistrationRefused::TooManyOfAccount);
    }
    Ok(())
}

/// What was registered at this replica; nothing if there is no document or it is damaged.
fn read(saved: &Own, local: LocalEndpoints) -> Vec<SavedRegistration> {
    match saved.read() {
        Ok(None) => Vec::new(),
        Ok(Some(bytes)) => saved::decode(&bytes, local).unwrap_or_else(|| {
            tracing::error!(
                path = saved.place(),
                "the file of registrations is damaged and ignored; workloads register again"
            );
            Vec::new()
        }),
        Err(error) => {
            tracing::error!(%error, "could not read registrations");
            Vec::new()
        }
    }
}

fn unix_millis() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// An endpoint on its way out.
struct Drain {
    publisher: Arc<Publisher>,
    ports: Vec<PortId>,
    commit: Commit,
    /// How long other replicas need to hear of it.
    elsewhere: Duration,
}

impl Drain {
    async fn finished(self) {
        let settled = self.publisher.settled(self.commit, &self.ports);
        let settled = tokio::time::timeout(ACKNOWLEDGED, settled);
        let (settled, ()) = tokio::join!(settled, tokio::time::sleep(self.elsewhere));
        if settled.is_err() {
            tracing::warn!("not every proxy has acknowledged the removal of an endpoint in time");
        }
    }
}

fn word(health: Health) -> &'static str {
    match health {
        Health::Unspecified => "unspecified",
        Health::Starting => "starting",
        Health::Ready => "ready",
        Health::Draining => "draining",
        Health::Unhealthy => "unhealthy",
    }
}
