//! Workloads that make themselves known: the stream that registers one and says how it is.
//!
//! An endpoint is published only while its workload is Ready. Draining withdraws it and answers
//! when every proxy that knew it has acknowledged that; a cleanly closed stream withdraws it at
//! once, a broken one after the grace period. Whoever holds a name keeps it while it is alive: another one
//! gets it only when the holder's stream has ended and it had time to come back. [`registrar`] is the gRPC
//! service, [`saved`] keeps registrations over a restart, [`session`] tells one process from another.

mod registrar;
mod saved;
mod session;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use outrigger_core::address::LocalEndpoints;
use outrigger_core::bounds;
use outrigger_proto::mesh::Health;
use tokio::sync::{Notify, oneshot};
use tonic::Status;

pub use registrar::Registrar;
use session::Session;

use crate::index::PortId;
use crate::metrics::Metrics;
use crate::object::Workload;
use crate::publish::{Commit, Publisher};
use crate::sync::lock;

/// How long proxies have to acknowledge that an endpoint is gone.
const ACKNOWLEDGED: Duration = Duration::from_secs(5);
/// How long a name is kept for its holder after its stream has broken: a proxy that is alive is back by then,
/// since it waits for 2 s at most between two tries.
const COMES_BACK: Duration = Duration::from_secs(5);

/// Every registered workload, connected or within its grace period.
#[derive(Debug)]
pub struct Registrations {
    publisher: Arc<Publisher>,
    metrics: Arc<Metrics>,
    entries: Mutex<HashMap<String, Entry>>,
    next_stream: AtomicU64,
    grace: Duration,
    local: LocalEndpoints,
    state_dir: PathBuf,
    changed: Notify,
}

#[derive(Debug)]
struct Entry {
    workload: Workload,
    health: Health,
    /// The process that holds the name.
    session: Option<Session>,
    /// The stream that speaks for it; an older one's end means nothing.
    stream: u64,
    link: Link,
}

/// Whether a workload is heard from.
#[derive(Debug)]
enum Link {
    /// Dropped when another stream speaks for it.
    Open(#[expect(dead_code, reason = "its end is what counts")] oneshot::Sender<()>),
    /// Since when its stream is no more.
    Broken(Instant),
}

/// A stream that speaks for a workload.
struct Speaker {
    stream: u64,
    /// Ends when another stream does.
    replaced: oneshot::Receiver<()>,
}

/// Why a workload is not registered.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error(
        "name: {0} is registered by another proxy, which keeps it while it is alive: give each proxy a name \
         of its own"
    )]
    Held(String),
    #[error("at most {} workloads can be registered", bounds::WORKLOADS)]
    TooMany,
    #[error(
        "at most {} workloads of one service account can be registered",
        bounds::WORKLOADS_OF_ACCOUNT
    )]
    TooManyOfAccount,
}

impl From<Refused> for Status {
    fn from(refused: Refused) -> Self {
        let text = refused.to_string();
        match refused {
            Refused::Held(_) => Self::already_exists(text),
            Refused::TooMany | Refused::TooManyOfAccount => Self::resource_exhausted(text),
        }
    }
}

impl Registrations {
    /// Reads what was registered before the last stop and puts it into the index.
    pub fn open(
        publisher: Arc<Publisher>,
        metrics: Arc<Metrics>,
        state_dir: PathBuf,
        grace: Duration,
        local: LocalEndpoints,
    ) -> Self {
        let now = Instant::now();
        let entries = saved::read(&state_dir, local).into_iter().map(|saved| {
            let saved::Saved { workload, health, session } = saved;
            let entry = Entry { workload, health, session, stream: 0, link: Link::Broken(now) };
            (entry.workload.uid(), entry)
        });
        let registrations = Self {
            publisher,
            metrics,
            entries: Mutex::new(entries.collect()),
            // 0 is the stream of what was read from disk.
            next_stream: AtomicU64::new(1),
            grace,
            local,
            state_dir,
            changed: Notify::new(),
        };
        registrations.publisher.commit(|index| {
            for entry in registrations.entries().values() {
                index.register(entry.published());
            }
        });
        registrations.note_change();
        registrations
    }

    /// Writes changes to disk, and lets go of what was on disk and has not been heard from.
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
            loop {
                self.changed.notified().await;
                let entries: Vec<_> = self.entries().values().map(Entry::to_saved).collect();
                let state_dir = self.state_dir.clone();
                let written =
                    tokio::task::spawn_blocking(move || saved::write(&state_dir, &entries));
                if let Ok(Err(error)) = written.await {
                    tracing::error!(%error, "could not write registrations to the state directory");
                }
            }
        };
        tokio::join!(forget, write);
    }

    /// Which endpoints on the callers' own machines are taken.
    fn local(&self) -> LocalEndpoints {
        self.local
    }

    /// Puts a registration in force, unless its name is somebody else's who is alive.
    fn register(&self, workload: Workload, session: Option<Session>) -> Result<Speaker, Refused> {
        let stream = self.next_stream.fetch_add(1, Ordering::Relaxed);
        let uid = workload.uid();
        let mut entries = self.entries();
        let before = entries.get(&uid);
        match before {
            Some(entry) if entry.is_held_against(session.as_ref(), Instant::now()) => {
                tracing::warn!(uid, "a workload was refused: its name is another proxy's");
                return Err(Refused::Held(uid));
            }
            Some(_) => {}
            None => room_for(&workload, &entries)?,
        }
        // A proxy that lost its stream comes back as it was: nothing flaps in between.
        let same = before.filter(|e| e.workload == workload && e.health == Health::Ready);
        let health = same.map_or(Health::Starting, |entry| entry.health);
        let (open, replaced) = oneshot::channel();
        let entry = Entry { workload, health, session, stream, link: Link::Open(open) };
        self.publisher.commit(|index| index.register(entry.published()));
        entries.insert(uid, entry);
        drop(entries);
        self.note_change();
        Ok(Speaker { stream, replaced })
    }

    /// Notes what a stream says of its workload's health. For Draining, completes when the
    /// endpoint is gone everywhere.
    fn set_health(&self, uid: &str, stream: u64, health: Health) -> Option<Drain> {
        let mut entries = self.entries();
        let entry = entries.get_mut(uid).filter(|entry| entry.stream == stream)?;
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
        Some(Drain { publisher, ports, commit })
    }

    /// Whether the health that the stream inherited from an earlier one still holds.
    fn forget_inherited_health(&self, uid: &str, stream: u64) {
        let ready = self.entries().get(uid).is_some_and(|entry| entry.health == Health::Ready);
        if ready {
            self.set_health(uid, stream, Health::Starting);
        }
    }

    fn break_off(self: Arc<Self>, uid: String, stream: u64) {
        if let Some(entry) = self.entries().get_mut(&uid).filter(|e| e.stream == stream) {
            entry.link = Link::Broken(Instant::now());
        }
        tokio::spawn(async move {
            tokio::time::sleep(self.grace).await;
            self.remove(&uid, stream);
        });
    }

    /// Removes a workload unless another stream speaks for it by now.
    fn remove(&self, uid: &str, stream: u64) {
        let mut entries = self.entries();
        if entries.get(uid).is_none_or(|entry| entry.stream != stream) {
            return;
        }
        entries.remove(uid);
        self.publisher.commit(|index| index.deregister(uid));
        drop(entries);
        tracing::info!(uid, "workload removed");
        self.note_change();
    }

    fn note_change(&self) {
        let count = self.entries().len();
        self.metrics.workloads.set(i64::try_from(count).unwrap_or(i64::MAX));
        self.changed.notify_one();
    }

    /// Writes the last state before the process ends.
    pub fn flush(&self) {
        let entries: Vec<_> = self.entries().values().map(Entry::to_saved).collect();
        if let Err(error) = saved::write(&self.state_dir, &entries) {
            tracing::error!(%error, "could not write registrations to the state directory");
        }
    }

    /// What the admin server shows of a workload.
    pub fn describe(&self, uid: &str) -> Option<(&'static str, bool)> {
        self.entries().get(uid).map(|entry| (word(entry.health), entry.connected()))
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        lock(&self.entries)
    }
}

impl Entry {
    /// The workload as the index has it.
    fn published(&self) -> Workload {
        Workload { ready: self.health == Health::Ready, ..self.workload.clone() }
    }

    fn connected(&self) -> bool {
        matches!(self.link, Link::Open(_))
    }

    /// Whether the name is not to be had for `session`: its holder is another one, and alive.
    fn is_held_against(&self, session: Option<&Session>, now: Instant) -> bool {
        if session.is_some() && session == self.session.as_ref() {
            return false;
        }
        match self.link {
            Link::Open(_) => true,
            // It has said good-bye.
            Link::Broken(_) if self.health == Health::Draining => false,
            Link::Broken(since) => now.saturating_duration_since(since) < COMES_BACK,
        }
    }

    fn to_saved(&self) -> saved::Saved {
        let (workload, session) = (self.workload.clone(), self.session.clone());
        saved::Saved { workload, health: self.health, session }
    }
}

/// Whoever holds a token could otherwise fill the index with made-up workloads.
fn room_for(workload: &Workload, entries: &HashMap<String, Entry>) -> Result<(), Refused> {
    if entries.len() >= bounds::WORKLOADS {
        return Err(Refused::TooMany);
    }
    let same = |entry: &&Entry| {
        entry.workload.namespace == workload.namespace
            && entry.workload.service_account == workload.service_account
    };
    if entries.len() >= bounds::WORKLOADS_OF_ACCOUNT
        && entries.values().filter(same).count() >= bounds::WORKLOADS_OF_ACCOUNT
    {
        return Err(Refused::TooManyOfAccount);
    }
    Ok(())
}

/// An endpoint on its way out.
struct Drain {
    publisher: Arc<Publisher>,
    ports: Vec<PortId>,
    commit: Commit,
}

impl Drain {
    async fn finished(self) {
        let settled = self.publisher.settled(self.commit, &self.ports);
        if tokio::time::timeout(ACKNOWLEDGED, settled).await.is_err() {
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
