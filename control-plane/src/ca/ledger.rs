//! Who has which certificate: the newest one of each node, and what each node trusts.
//!
//! A rotation of the root asks this before each step ([`review`]). Each replica keeps its own part in the
//! store: certificates that it has issued, and what its proxies have acknowledged ([`saved`]), so that a restart
//! forgets nobody who may still be out there; and which connections are open ([`connections`]). It reads the
//! parts of the others.

mod connected;
mod connections;
mod part;
mod review;
mod saved;

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::{Notify, watch};

pub use connected::Connected;
pub use part::{Acknowledged, Node, NodeId, ReplicaTrust};
use part::{Open, OtherParts};
pub use review::{LedgerLine, Other};
use saved::Nodes;

use super::root::RootId;
use super::verify::Verified;
use crate::replica::{Own, Replica, ReplicaName};
use crate::store::{StoreError, Version};
use crate::sync::lock;

/// Nodes of one identity: more replicas of one service than any mesh here has. Anyone who holds a
/// token could otherwise fill the ledger with made-up nodes.
const MAX_NODES: usize = 10_000;
/// Between two writes of connections: a thousand proxies that come back at once are a few writes.
const CONNECTIONS: Duration = Duration::from_millis(200);

#[derive(Debug)]
pub struct Ledger {
    inner: Mutex<Inner>,
    replica: Arc<Replica>,
    lifetime: Duration,
    certificates: Own,
    connections: Own,
    changed: Notify,
    connections_changed: Notify,
    /// The change up to which everything is in the store, or was tried.
    written: watch::Sender<u64>,
    /// What was read of others; locked while it is read.
    seen: Mutex<BTreeMap<ReplicaName, SeenReplica>>,
}

#[derive(Debug, Default)]
struct Inner {
    nodes: Nodes,
    /// By number of connection.
    open: BTreeMap<u64, Open>,
    next_connection: u64,
    changes: u64,
    /// The ledger was lost; what it held may be valid until then.
    lost_until: Option<SystemTime>,
    /// The last write failed.
    is_unwritten: bool,
    trust: ReplicaTrust,
    others: OtherParts,
}

/// What was read last of another replica.
#[derive(Debug, Default)]
struct SeenReplica {
    certificates: Option<Version>,
    connections: Option<Version>,
    /// Since when it is taken for dead.
    gone: Option<Instant>,
}

impl Ledger {
    /// Reads what the last process knew, and what others know. Certificates live at most `lifetime`.
    pub(super) fn open(
        replica: Arc<Replica>,
        lifetime: Duration,
        now: SystemTime,
    ) -> io::Result<Arc<Self>> {
        let certificates = Own::new(replica.clone(), saved::NAME);
        let connections = Own::new(replica.clone(), connections::NAME);
        let bytes = certificates.read()?;
        // Connections do not survive a process; what is there is replaced.
        connections.read()?;
        let read = bytes.map_or(Some((Nodes::new(), None)), |bytes| saved::decode(&bytes));
        let (mut nodes, lost_until) = read.unwrap_or_else(|| lost(now + lifetime));
        nodes.retain(|_, node| node.not_after > now);
        let ledger = Self {
            inner: Mutex::new(Inner { nodes, lost_until, ..Inner::default() }),
            replica,
            lifetime,
            certificates,
            connections,
            changed: Notify::new(),
            connections_changed: Notify::new(),
            written: watch::Sender::new(0),
            seen: Mutex::default(),
        };
        ledger.refresh()?;
        Ok(Arc::new(ledger))
    }

    /// Writes changes to the store, many at once when they come fast.
    pub async fn run(self: Arc<Self>) {
        let certificates = async {
            loop {
                self.changed.notified().await;
                let (ledger, changes) = (self.clone(), self.lock().changes);
                let _ = tokio::task::spawn_blocking(move || ledger.write_certificates()).await;
                self.written.send_replace(changes);
            }
        };
        let connections = async {
            loop {
                self.connections_changed.notified().await;
                let ledger = self.clone();
                let _ = tokio::task::spawn_blocking(move || ledger.write_connections()).await;
                tokio::time::sleep(CONNECTIONS).await;
            }
        };
        tokio::join!(certificates, connections);
    }

    /// Writes the ledger now.
    pub fn flush(&self) {
        self.write_certificates();
        self.write_connections();
    }

    fn write_certificates(&self) {
        let written = self.certificates.write(|there| {
            let mut inner = self.lock();
            let now = SystemTime::now();
            // Another process of the same name: what it has issued counts as well.
            for (id, node) in
                there.and_then(saved::decode).map(|(nodes, _)| nodes).into_iter().flatten()
            {
                inner.nodes.entry(id).or_insert_with(|| node.clone()).merge(&node);
            }
            inner.nodes.retain(|_, node| node.not_after > now);
            inner.lost_until = inner.lost_until.filter(|until| *until > now);
            let (nodes, lost_until) = (inner.nodes.clone(), inner.lost_until);
            drop(inner);
            saved::encode(&nodes, lost_until)
        });
        self.lock().is_unwritten = written.is_err();
        if let Err(error) = written {
            tracing::error!(%error, "could not write the ledger to the store");
        }
    }

    fn write_connections(&self) {
        let written = self.connections.write(|_| {
            let inner = self.lock();
            let (trust, open) = (inner.trust.clone(), inner.open.clone());
            drop(inner);
            connections::encode(&trust, open.values())
        });
        if let Err(error) = written {
            tracing::error!(%error, "could not write which proxies are connected to the store");
        }
    }

    /// Says what is in force here, for others.
    pub(super) fn stand(&self, trust: ReplicaTrust) {
        let mut inner = self.lock();
        if inner.trust != trust {
            inner.trust = trust;
            drop(inner);
            self.note_connections();
        }
    }

    /// Reads what other replicas have written since the last look.
    pub(super) fn refresh(&self) -> Result<(), StoreError> {
        let (now, instant) = (SystemTime::now(), Instant::now());
        let mut all_seen = lock(&self.seen);
        for other in self.replica.others()? {
            let seen = all_seen.entry(other.clone()).or_default();
            let is_alive = self.replica.is_alive(&other)?;
            seen.gone = if is_alive { None } else { seen.gone.or(Some(instant)) };
            let nodes = self.read_other(&other, saved::NAME, &mut seen.certificates)?;
            let connections = self.read_other(&other, connections::NAME, &mut seen.connections)?;
            let mut inner = self.lock();
            let part = inner.others.entry(other.clone()).or_default();
            part.is_alive = is_alive;
            if let Some(bytes) = nodes {
                let read = bytes.map_or(Some((Nodes::new(), None)), |bytes| saved::decode(&bytes));
                (part.nodes, part.lost_until) = read.unwrap_or_else(|| lost(now + self.lifetime));
            }
            if let Some(bytes) = connections {
                // A damaged document is that of a replica which has taken over nothing.
                let read = bytes.map(|bytes| connections::decode(&bytes).unwrap_or_default());
                let (trust, open) = read.unzip();
                (part.trust, part.open) = (trust, open.unwrap_or_default());
            }
            let is_over = seen.gone.is_some_and(|gone| {
                instant.saturating_duration_since(gone) > self.replica.timing.forget
            });
            if is_over && !part.is_needed(now) {
                inner.others.remove(&other);
                drop(inner);
                self.forget(&other, seen)?;
            }
        }
        Ok(())
    }

    /// A document of another replica, if it has changed: its content, or that it is gone.
    fn read_other(
        &self,
        other: &ReplicaName,
        name: &str,
        seen: &mut Option<Version>,
    ) -> Result<Option<Option<Vec<u8>>>, StoreError> {
        let document = other.document(name);
        if self.replica.store.version(&document)? == *seen {
            return Ok(None);
        }
        let stored = self.replica.store.read(&document)?;
        *seen = stored.as_ref().map(|stored| stored.version.clone());
        Ok(Some(stored.map(|stored| stored.bytes)))
    }

    /// Removes the documents of a replica that has been away for long and whose certificates have ended.
    fn forget(&self, other: &ReplicaName, seen: &mut SeenReplica) -> Result<(), StoreError> {
        for (name, version) in
            [(saved::NAME, &mut seen.certificates), (connections::NAME, &mut seen.connections)]
        {
            if let Some(version) = version.take() {
                self.replica.store.remove(&other.document(name), &version)?;
            }
        }
        Ok(())
    }

    /// Notes a new certificate; `false` when its identity has too many nodes.
    pub(super) fn record(
        &self,
        id: NodeId,
        root: RootId,
        not_after: SystemTime,
        now: SystemTime,
    ) -> bool {
        let mut inner = self.lock();
        let newest = inner.newest(&id);
        if newest.is_none() && inner.nodes_of(&id) >= MAX_NODES {
            inner.nodes.retain(|_, node| node.not_after > now);
            if inner.nodes_of(&id) >= MAX_NODES {
                return false;
            }
        }
        // Later than any other of this node, whatever the clocks say.
        let issued = newest.as_ref().map_or(0, |node| node.issued + 1).max(unix_millis());
        let bundle = newest.and_then(|node| node.bundle);
        inner.nodes.insert(id, Node { root, issued, not_after, bundle });
        self.note_change(&mut inner);
        true
    }

    /// Completes when everything noted so far is in the store, or could not be written.
    pub async fn persisted(&self) {
        let changes = self.lock().changes;
        // The sender lives as long as this.
        let _ = self.written.subscribe().wait_for(|written| *written >= changes).await;
    }

    /// Whether something noted is not in the store.
    pub(super) fn is_unwritten(&self) -> bool {
        self.lock().is_unwritten
    }

    pub fn node(&self, id: &NodeId) -> Option<Node> {
        self.lock().newest(id)
    }

    /// The roots of a bundle that somebody has acknowledged, at whatever replica.
    pub(super) fn roots_of(&self, version: &str) -> Option<Vec<RootId>> {
        let inner = self.lock();
        let others = inner.others.values().flat_map(|part| part.nodes.values());
        let mut bundles = others.filter_map(|node| node.bundle.as_ref());
        bundles.find(|bundle| bundle.version == version).map(|bundle| bundle.roots.clone())
    }

    /// Notes a connection that has proven who it is.
    pub fn connect(self: &Arc<Self>, client: Verified, peer: IpAddr) -> Connected {
        let mut inner = self.lock();
        let number = inner.next_connection;
        inner.next_connection += 1;
        let (identity, root) = (client.id.clone(), client.root);
        inner.open.insert(number, Open { identity, root, peer, node: None, bundle: None });
        drop(inner);
        self.note_connections();
        Connected { ledger: self.clone(), number, client }
    }

    fn note_change(&self, inner: &mut Inner) {
        inner.changes += 1;
        self.changed.notify_one();
    }

    fn note_connections(&self) {
        self.connections_changed.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }
}

impl Inner {
    /// How many nodes the identity has, over all parts.
    fn nodes_of(&self, id: &NodeId) -> usize {
        let of = |nodes: &Nodes, count: &dyn Fn(&NodeId) -> bool| {
            let from = NodeId { identity: id.identity.clone(), node: String::new() };
            let nodes = nodes.range(from..).map(|(other, _)| other);
            nodes.take_while(|other| other.identity == id.identity).filter(|o| count(o)).count()
        };
        let others = self.others.values().map(|part| {
            // One that both have is one.
            of(&part.nodes, &|other| !self.nodes.contains_key(other))
        });
        of(&self.nodes, &|_| true) + others.sum::<usize>()
    }
}

/// What is left of a ledger that is damaged.
fn lost(until: SystemTime) -> (Nodes, Option<SystemTime>) {
    tracing::error!(
        "the ledger of certificates is damaged: no root can be removed until the last earlier \
         certificate has expired"
    );
    (Nodes::new(), Some(until))
}

fn unix_millis() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// A time for people: RFC 3339, whole seconds, UTC.
pub fn shown(time: SystemTime) -> String {
    let time = time::OffsetDateTime::from(time);
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z",
        time.year(),
        u8::from(time.month()),
        time.day(),
        time.hour(),
        time.minute(),
        time.second()
    )
}
