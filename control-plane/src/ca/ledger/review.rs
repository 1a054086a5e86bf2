//! What a step of a rotation asks the ledger, over the parts of all replicas.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use super::part::{Acknowledged, LedgerPart, Node, NodeId, Open};
use super::{Inner, Ledger, shown};
use crate::ca::root::RootId;
use crate::replica::ReplicaName;
use crate::store::Version;

/// One line of the ledger, for people.
#[derive(Clone, Debug)]
pub struct LedgerLine {
    pub id: NodeId,
    pub node: Node,
    pub connected: bool,
}

/// Another replica, for people.
#[derive(Clone, Debug)]
pub struct Other {
    pub name: ReplicaName,
    pub is_alive: bool,
    /// Whether it has the newest roots in force.
    pub is_current: bool,
    /// Open connections.
    pub connections: usize,
}

impl Ledger {
    /// Every unexpired certificate.
    pub fn lines(&self, now: SystemTime) -> Vec<LedgerLine> {
        let inner = self.lock();
        let open: BTreeSet<NodeId> = inner.all_open().filter_map(|(_, open)| open.id()).collect();
        let nodes = inner.all_nodes().into_iter().filter(|(_, node)| node.not_after > now);
        nodes.map(|(id, node)| LedgerLine { connected: open.contains(&id), id, node }).collect()
    }

    /// Every other replica with identities, as it was at the last look.
    pub fn others(&self) -> Vec<Other> {
        let inner = self.lock();
        let others = inner.others.iter().filter_map(|(name, part)| {
            let trust = part.trust.as_ref()?;
            Some(Other {
                name: name.clone(),
                is_alive: part.is_alive,
                is_current: trust.roots == inner.trust.roots,
                connections: part.open.len(),
            })
        });
        others.collect()
    }

    /// Whether there is, or was, another replica.
    pub(in crate::ca) fn has_others(&self) -> bool {
        self.lock().others.values().any(|part| part.trust.is_some())
    }

    /// Whether another replica is alive.
    pub(in crate::ca) fn any_alive(&self) -> bool {
        self.lock().alive().next().is_some()
    }

    /// Replicas that are alive and have other roots in force than those of `version`, as lines.
    pub(in crate::ca) fn behind(&self, version: Option<&Version>) -> Vec<String> {
        let inner = self.lock();
        let behind = inner.alive().filter(|(_, part)| {
            part.trust.as_ref().is_some_and(|trust| trust.roots.as_ref() != version)
        });
        let line = |name| format!("replica {name} has not loaded the newest roots yet");
        behind.map(|(name, _)| line(name)).collect()
    }

    /// Who could not verify a certificate under `root`, as lines that name them.
    pub(in crate::ca) fn without(
        &self,
        root: RootId,
        now: SystemTime,
        absent_too: bool,
    ) -> Vec<String> {
        let inner = self.lock();
        let trusts = |bundle: Option<&Acknowledged>| {
            bundle.is_some_and(|bundle| bundle.roots.contains(&root))
        };
        // A node that has come back may have its old connection open still: the better one counts.
        let mut connected: BTreeMap<NodeId, (bool, String)> = BTreeMap::new();
        for (replica, open) in inner.all_open() {
            let Some(id) = open.id() else { continue };
            let at = self.at(&inner, replica);
            let entry = connected.entry(id).or_insert((false, at));
            entry.0 |= trusts(open.bundle.as_ref());
        }
        let mut lines = Vec::new();
        for (id, (_, at)) in connected.iter().filter(|(_, (trusts, _))| !trusts) {
            lines.push(format!("{id} is connected{at} and has not acknowledged it"));
        }
        if !absent_too {
            return lines;
        }
        for (id, node) in inner.all_nodes() {
            if node.not_after > now && !connected.contains_key(&id) && !trusts(node.bundle.as_ref())
            {
                let end = shown(node.not_after);
                lines.push(format!(
                    "{id} is not connected and has not acknowledged it; its certificate expires \
                     {end}"
                ));
            }
        }
        lines
    }

    /// Who still needs `root` to be trusted, as lines that name them.
    pub(in crate::ca) fn under(
        &self,
        root: RootId,
        now: SystemTime,
        absent_too: bool,
    ) -> Vec<String> {
        let inner = self.lock();
        let open: BTreeSet<NodeId> = inner.all_open().filter_map(|(_, open)| open.id()).collect();
        let mut lines = Vec::new();
        for (id, node) in inner.all_nodes() {
            if node.root == root && node.not_after > now && (absent_too || open.contains(&id)) {
                let end = shown(node.not_after);
                lines.push(format!(
                    "the newest certificate of {id} is issued under it and expires {end}"
                ));
            }
        }
        for (replica, open) in inner.all_open().filter(|(_, open)| open.root == root) {
            let who = match open.id() {
                Some(id) => id.to_string(),
                None => format!("{} at {}", open.identity, open.peer),
            };
            let at = self.at(&inner, replica);
            lines.push(format!("{who} is connected{at} with a certificate issued under it"));
        }
        for (name, part) in inner.alive() {
            let Some(trust) = &part.trust else { continue };
            if trust.issuing == Some(root) {
                lines.push(format!("replica {name} issues under it"));
            }
            if trust.wanted.contains(&root) {
                lines.push(format!("the files of replica {name} contain it"));
            }
        }
        let lost = inner.others.values().map(|part| part.lost_until);
        let lost = lost.chain([inner.lost_until]).flatten().max();
        if let Some(until) = lost.filter(|until| absent_too && *until > now) {
            let until = shown(until);
            lines.push(format!(
                "the ledger was damaged and lost; a certificate that it listed may be valid until \
                 {until}"
            ));
        }
        lines
    }

    /// Where a connection is, when there is more than one place.
    fn at(&self, inner: &Inner, replica: Option<&ReplicaName>) -> String {
        match inner.alive().next() {
            Some(_) => format!(" to replica {}", replica.unwrap_or(&self.replica.name)),
            None => String::new(),
        }
    }
}

impl Inner {
    fn alive(&self) -> impl Iterator<Item = (&ReplicaName, &LedgerPart)> {
        self.others.iter().filter(|(_, part)| part.is_alive && part.trust.is_some())
    }

    /// Open connections, and at which other replica they are.
    fn all_open(&self) -> impl Iterator<Item = (Option<&ReplicaName>, &Open)> {
        let others = self.alive().flat_map(|(name, part)| part.open.iter().map(move |o| (name, o)));
        self.open.values().map(|open| (None, open)).chain(others.map(|(n, o)| (Some(n), o)))
    }

    /// The newest certificate of a node, over all parts.
    pub(super) fn newest(&self, id: &NodeId) -> Option<Node> {
        let parts = self.others.values().filter_map(|part| part.nodes.get(id));
        self.nodes.get(id).into_iter().chain(parts).cloned().reduce(|mut newest, node| {
            newest.merge(&node);
            newest
        })
    }

    fn all_nodes(&self) -> BTreeMap<NodeId, Node> {
        let mut all = self.nodes.clone();
        for (id, node) in self.others.values().flat_map(|part| &part.nodes) {
            match all.get_mut(id) {
                Some(newest) => newest.merge(node),
                None => drop(all.insert(id.clone(), node.clone())),
            }
        }
        all
    }
}
