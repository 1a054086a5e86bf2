//! Workloads that make themselves known: the stream that registers one and says how it is.
//!
//! An endpoint is published only while its workload is Ready. Draining withdraws it and answers
//! when every proxy that knew it has acknowledged that; a cleanly closed stream withdraws it at
//! once, a broken one after the grace period. [`registrar`] is the gRPC service, [`saved`] keeps
//! registrations over a restart.

mod registrar;
mod saved;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use outrigger_proto::mesh::Health;
use tokio::sync::Notify;

pub use registrar::Registrar;

use crate::index::PortId;
use crate::metrics::Metrics;
use crate::object::Workload;
use crate::publish::{Commit, Publisher, lock};

/// How long proxies have to acknowledge that an endpoint is gone.
const ACKNOWLEDGED: Duration = Duration::from_secs(5);

/// Every registered workload, connected or within its grace period.
#[derive(Debug)]
pub struct Registrations {
    publisher: Arc<Publisher>,
    metrics: Arc<Metrics>,
    entries: Mutex<HashMap<String, Entry>>,
    next_stream: AtomicU64,
    grace: Duration,
    state_dir: PathBuf,
    changed: Notify,
}

#[derive(Clone, Debug)]
struct Entry {
    workload: Workload,
    health: Health,
    /// The stream that speaks for it; an older one's end means nothing.
    stream: u64,
    connected: bool,
}

impl Registrations {
    /// Reads what was registered before the last stop and puts it into the index.
    pub fn open(
        publisher: Arc<Publisher>,
        metrics: Arc<Metrics>,
        state_dir: PathBuf,
        grace: Duration,
    ) -> Self {
        let saved = saved::read(&state_dir);
        let entries = saved.into_iter().map(|(workload, health)| {
            let entry = Entry { workload, health, stream: 0, connected: false };
            (entry.workload.uid(), entry)
        });
        let registrations = Self {
            publisher,
            metrics,
            entries: Mutex::new(entries.collect()),
            // 0 is the stream of what was read from disk.
            next_stream: AtomicU64::new(1),
            grace,
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
                let silent = entries.iter().filter(|(_, e)| e.stream == 0 && !e.connected);
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
                let entries: Vec<_> = {
                    let entries = self.entries();
                    entries.values().map(|e| (e.workload.clone(), e.health)).collect()
                };
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

    /// Puts a registration in force and gives the number of the stream that speaks for it.
    fn register(&self, workload: Workload) -> u64 {
        let stream = self.next_stream.fetch_add(1, Ordering::Relaxed);
        let uid = workload.uid();
        let mut entries = self.entries();
        let before = entries.get(&uid);
        // One that comes again exactly as it was, addresses and ports included, is the same proxy
        // with a newer certificate, or back before its lost connection was noticed.
        if before.is_some_and(|entry| entry.connected && entry.workload != workload) {
            tracing::warn!(
                uid,
                "a workload registered while an earlier stream of the same name is open; the \
                 earlier one no longer counts: do two proxies share a name?"
            );
        }
        // A proxy that lost its stream comes back as it was: nothing flaps in between.
        let same = before.filter(|e| e.workload == workload && e.health == Health::Ready);
        let health = same.map_or(Health::Starting, |entry| entry.health);
        let entry = Entry { workload, health, stream, connected: true };
        self.publisher.commit(|index| index.register(entry.published()));
        entries.insert(uid, entry);
        drop(entries);
        self.note_change();
        stream
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
            entry.connected = false;
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
        let entries: Vec<_> =
            self.entries().values().map(|e| (e.workload.clone(), e.health)).collect();
        if let Err(error) = saved::write(&self.state_dir, &entries) {
            tracing::error!(%error, "could not write registrations to the state directory");
        }
    }

    /// What the admin server shows of a workload.
    pub fn describe(&self, uid: &str) -> Option<(&'static str, bool)> {
        self.entries().get(uid).map(|entry| (word(entry.health), entry.connected))
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
