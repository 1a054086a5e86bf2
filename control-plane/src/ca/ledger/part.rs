//! What the ledger is made of: one part of each replica.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::time::SystemTime;

use outrigger_core::identity::SpiffeId;

use crate::ca::root::RootId;
use crate::replica::ReplicaName;
use crate::store::Version;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeId {
    pub identity: SpiffeId,
    pub node: String,
}

/// The newest certificate of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub root: RootId,
    /// Milliseconds since the Unix epoch; later than any other of the same node.
    pub issued: u64,
    pub not_after: SystemTime,
    pub bundle: Option<Acknowledged>,
}

/// A bundle that a node has taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acknowledged {
    pub version: String,
    pub roots: Vec<RootId>,
    /// Milliseconds since the Unix epoch; later than any other of the same node.
    pub at: u64,
}

/// A connection that is open.
#[derive(Clone, Debug)]
pub(super) struct Open {
    pub(super) identity: SpiffeId,
    /// Known once it has a discovery stream.
    pub(super) node: Option<String>,
    pub(super) peer: IpAddr,
    /// Of the certificate that it began with.
    pub(super) root: RootId,
    pub(super) bundle: Option<Acknowledged>,
}

/// What a replica has in force.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplicaTrust {
    /// Version of the document of roots.
    pub roots: Option<Version>,
    pub issuing: Option<RootId>,
    /// Roots in its user's files: none of them may go.
    pub wanted: Vec<RootId>,
}

/// What is known of one replica.
#[derive(Debug, Default)]
pub(super) struct LedgerPart {
    pub(super) nodes: BTreeMap<NodeId, Node>,
    /// Certificates were lost; what was there may be valid until then.
    pub(super) lost_until: Option<SystemTime>,
    /// Nothing of one without identities.
    pub(super) trust: Option<ReplicaTrust>,
    pub(super) open: Vec<Open>,
    /// Connections of one that is not are no more.
    pub(super) is_alive: bool,
}

/// The parts of all replicas but this one.
pub(super) type OtherParts = BTreeMap<ReplicaName, LedgerPart>;

impl Node {
    /// Puts the newer certificate and the later acknowledgement together.
    pub(super) fn merge(&mut self, other: &Self) {
        let at = |node: &Self| node.bundle.as_ref().map(|bundle| bundle.at);
        let bundle = if at(other) > at(self) { other.bundle.clone() } else { self.bundle.take() };
        if (other.issued, other.not_after) > (self.issued, self.not_after) {
            *self = other.clone();
        }
        self.bundle = bundle;
    }
}

impl Open {
    pub(super) fn id(&self) -> Option<NodeId> {
        let node = self.node.clone()?;
        Some(NodeId { identity: self.identity.clone(), node })
    }
}

impl LedgerPart {
    /// Whether a certificate of it may be valid still.
    pub(super) fn is_needed(&self, now: SystemTime) -> bool {
        self.nodes.values().any(|node| node.not_after > now)
            || self.lost_until.is_some_and(|until| until > now)
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.node, self.identity)
    }
}
