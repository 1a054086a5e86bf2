//! Who has which certificate: the newest one of each node, and what each node believes in.
//!
//! A rotation of the root asks this before each step. The newest certificates are kept in the state
//! directory, so that a restart of the control plane forgets nobody who may still be out there;
//! connections are known only while they are open.

mod saved;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use outrigger_core::identity::SpiffeId;
use tokio::sync::{Notify, watch};

use super::root::RootId;
use super::verify::Verified;
use crate::sync::lock;

/// Nodes of one identity: more replicas of one service than any mesh here has. Whoever holds a
/// token could otherwise fill the ledger with made-up nodes.
const MAX_NODES: usize = 10_000;

#[derive(Debug)]
pub struct Ledger {
    inner: Mutex<Inner>,
    state_dir: PathBuf,
    changed: Notify,
    /// The change up to which everything is on disk, or was tried.
    written: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Inner {
    nodes: BTreeMap<NodeId, Node>,
    /// By number of connection.
    open: BTreeMap<u64, Open>,
    next_connection: u64,
    changes: u64,
    /// The ledger was lost; what it held may be valid until then.
    lost_until: Option<SystemTime>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeId {
    pub identity: SpiffeId,
    pub node: String,
}

/// The newest certificate of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub root: RootId,
    pub not_after: SystemTime,
    pub bundle: Option<Acknowledged>,
}

/// A bundle that a node has taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acknowledged {
    pub version: String,
    pub roots: Vec<RootId>,
}

#[derive(Debug)]
struct Open {
    client: Verified,
    peer: IpAddr,
    /// Known once it has a discovery stream.
    node: Option<String>,
    bundle: Option<Acknowledged>,
}

/// An open connection with a client certificate; dropping it takes it out of the ledger.
#[derive(Debug)]
pub struct Connected {
    ledger: Arc<Ledger>,
    number: u64,
    pub client: Verified,
}

/// One line of the ledger, for people.
#[derive(Clone, Debug)]
pub struct Line {
    pub id: NodeId,
    pub node: Node,
    pub connected: bool,
}

impl Ledger {
    /// Reads what the last process knew. Certificates live at most `lifetime`.
    pub(super) fn open(
        state_dir: &Path,
        lifetime: Duration,
        now: SystemTime,
    ) -> io::Result<Arc<Self>> {
        let (mut nodes, lost_until) = match saved::read(state_dir)? {
            Some(saved) => saved,
            None => {
                tracing::error!(
                    "the ledger of certificates is damaged: until the last certificate of before \
                     has ended no root can be removed"
                );
                (BTreeMap::new(), Some(now + lifetime))
            }
        };
        nodes.retain(|_, node| node.not_after > now);
        let inner = Inner { nodes, lost_until, ..Inner::default() };
        Ok(Arc::new(Self {
            inner: Mutex::new(inner),
            state_dir: state_dir.to_owned(),
            changed: Notify::new(),
            written: watch::Sender::new(0),
        }))
    }

    /// Writes changes to disk, many at once when they come fast.
    pub async fn run(self: Arc<Self>) {
        loop {
            self.changed.notified().await;
            let (ledger, changes) = (self.clone(), self.lock().changes);
            let _ = tokio::task::spawn_blocking(move || ledger.flush()).await;
            self.written.send_replace(changes);
        }
    }

    /// Writes the ledger now.
    pub fn flush(&self) {
        let (nodes, lost_until) = {
            let mut inner = self.lock();
            let now = SystemTime::now();
            inner.nodes.retain(|_, node| node.not_after > now);
            inner.lost_until = inner.lost_until.filter(|until| *until > now);
            (inner.nodes.clone(), inner.lost_until)
        };
        if let Err(error) = saved::write(&self.state_dir, &nodes, lost_until) {
            tracing::error!(%error, "could not write the ledger to the state directory");
        }
    }

    /// Notes a new certificate; `false` when its identity has too many nodes.
    pub(super) fn record(&self, id: NodeId, new: &Node, now: SystemTime) -> bool {
        let mut inner = self.lock();
        if !inner.nodes.contains_key(&id) {
            let same = |inner: &Inner| {
                let from = NodeId { identity: id.identity.clone(), node: String::new() };
                let nodes = inner.nodes.range(from..);
                nodes.take_while(|(other, _)| other.identity == id.identity).count()
            };
            if same(&inner) >= MAX_NODES {
                inner.nodes.retain(|_, node| node.not_after > now);
                if same(&inner) >= MAX_NODES {
                    return false;
                }
            }
        }
        let bundle = inner.nodes.get(&id).and_then(|old| old.bundle.clone());
        inner.nodes.insert(id, Node { bundle: new.bundle.clone().or(bundle), ..new.clone() });
        self.note_change(&mut inner);
        true
    }

    /// Completes when everything noted so far is on disk, or could not be written.
    pub async fn persisted(&self) {
        let changes = self.lock().changes;
        // The sender lives as long as this.
        let _ = self.written.subscribe().wait_for(|written| *written >= changes).await;
    }

    pub fn node(&self, id: &NodeId) -> Option<Node> {
        self.lock().nodes.get(id).cloned()
    }

    /// Notes a connection that has proven who it is.
    pub fn connect(self: &Arc<Self>, client: Verified, peer: IpAddr) -> Connected {
        let mut inner = self.lock();
        let number = inner.next_connection;
        inner.next_connection += 1;
        let open = Open { client: client.clone(), peer, node: None, bundle: None };
        inner.open.insert(number, open);
        drop(inner);
        Connected { ledger: self.clone(), number, client }
    }

    /// Every unexpired certificate.
    pub fn lines(&self, now: SystemTime) -> Vec<Line> {
        let inner = self.lock();
        let open: BTreeSet<NodeId> = inner.open.values().filter_map(Open::id).collect();
        let nodes = inner.nodes.iter().filter(|(_, node)| node.not_after > now);
        nodes
            .map(|(id, node)| Line {
                id: id.clone(),
                node: node.clone(),
                connected: open.contains(id),
            })
            .collect()
    }

    /// Who could not verify a certificate under `root`, as lines that name them.
    pub(super) fn without(&self, root: RootId, now: SystemTime, absent_too: bool) -> Vec<String> {
        let inner = self.lock();
        let believes = |bundle: Option<&Acknowledged>| {
            bundle.is_some_and(|bundle| bundle.roots.contains(&root))
        };
        // A node that has come back may have its old connection open still: the better one counts.
        let mut connected: BTreeMap<NodeId, bool> = BTreeMap::new();
        for open in inner.open.values() {
            if let Some(id) = open.id() {
                *connected.entry(id).or_default() |= believes(open.bundle.as_ref());
            }
        }
        let mut lines = Vec::new();
        for (id, _) in connected.iter().filter(|(_, believes)| !**believes) {
            lines.push(format!("{id} is connected and has not acknowledged it"));
        }
        for (id, node) in inner.nodes.iter().filter(|_| absent_too) {
            if node.not_after > now
                && !connected.contains_key(id)
                && !believes(node.bundle.as_ref())
            {
                let end = shown(node.not_after);
                lines.push(format!(
                    "{id} is not connected and has not acknowledged it; its certificate ends {end}"
                ));
            }
        }
        lines
    }

    /// Who still needs `root` to be believed, as lines that name them.
    pub(super) fn under(&self, root: RootId, now: SystemTime, absent_too: bool) -> Vec<String> {
        let inner = self.lock();
        let open: BTreeSet<NodeId> = inner.open.values().filter_map(Open::id).collect();
        let mut lines = Vec::new();
        for (id, node) in &inner.nodes {
            if node.root == root && node.not_after > now && (absent_too || open.contains(id)) {
                let end = shown(node.not_after);
                lines.push(format!("{id} has its newest certificate under it, until {end}"));
            }
        }
        for open in inner.open.values().filter(|open| open.client.root == root) {
            let who = match open.id() {
                Some(id) => id.to_string(),
                None => format!("{} at {}", open.client.id, open.peer),
            };
            lines.push(format!("{who} is connected with a certificate under it"));
        }
        if let Some(until) = inner.lost_until.filter(|until| absent_too && *until > now) {
            let until = shown(until);
            lines.push(format!(
                "the ledger was damaged and lost; a certificate that it held may last until {until}"
            ));
        }
        lines
    }

    fn note_change(&self, inner: &mut Inner) {
        inner.changes += 1;
        self.changed.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }
}

impl Open {
    fn id(&self) -> Option<NodeId> {
        let node = self.node.clone()?;
        Some(NodeId { identity: self.client.id.clone(), node })
    }
}

impl Connected {
    /// Says which node this is, once its discovery stream has said so.
    pub fn is_node(&self, node: &str) {
        if let Some(open) = self.ledger.lock().open.get_mut(&self.number) {
            open.node = Some(node.to_owned());
        }
    }

    /// Notes the bundle that the proxy has in force. `roots` are those of the version, if it is
    /// one that this process knows.
    pub fn acknowledge(&self, version: &str, roots: Option<Vec<RootId>>) {
        let mut inner = self.ledger.lock();
        let Some(id) = inner.open.get(&self.number).and_then(Open::id) else { return };
        let before = inner.nodes.get(&id).and_then(|node| node.bundle.clone());
        let same = before.clone().filter(|before| before.version == version);
        let known = roots.map(|roots| Acknowledged { version: version.to_owned(), roots });
        let bundle = known.or(same);
        if let Some(open) = inner.open.get_mut(&self.number) {
            open.bundle.clone_from(&bundle);
        }
        if bundle.is_some()
            && bundle != before
            && let Some(node) = inner.nodes.get_mut(&id)
        {
            node.bundle = bundle;
            self.ledger.note_change(&mut inner);
        }
    }

    /// Whether its node has got a newer certificate under another root: it had better come again.
    pub fn is_superseded(&self) -> bool {
        let inner = self.ledger.lock();
        let id = inner.open.get(&self.number).and_then(Open::id);
        let newest = id.and_then(|id| inner.nodes.get(&id));
        newest.is_some_and(|newest| newest.root != self.client.root)
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.ledger.lock().open.remove(&self.number);
    }
}

impl std::fmt::Display for NodeId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.node, self.identity)
    }
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
