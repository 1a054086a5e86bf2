//! An open connection, as the ledger knows it.

use std::sync::Arc;

use super::part::{Acknowledged, NodeId, Open};
use super::{Ledger, unix_millis};
use crate::ca::root::RootId;
use crate::ca::verify::Verified;

/// An open connection with a client certificate; dropping it takes it out of the ledger.
#[derive(Debug)]
pub struct Connected {
    pub(super) ledger: Arc<Ledger>,
    pub(super) number: u64,
    pub client: Verified,
}

impl Connected {
    /// Says which node this is, once its discovery stream has said so.
    pub fn is_node(&self, node: &str) {
        if let Some(open) = self.ledger.lock().open.get_mut(&self.number) {
            open.node = Some(node.to_owned());
        }
        self.ledger.note_connections();
    }

    /// Notes the bundle that the proxy has in force. `roots` are those of the version, if it is
    /// one that is known.
    pub fn acknowledge(&self, version: &str, roots: Option<Vec<RootId>>) {
        let mut inner = self.ledger.lock();
        let Some(id) = self.id(inner.open.get(&self.number)) else { return };
        let newest = inner.newest(&id);
        let before = newest.as_ref().and_then(|node| node.bundle.clone());
        // Later than what other replicas have noted, whatever the clocks say.
        let at = before.as_ref().map_or(0, |before| before.at + 1).max(unix_millis());
        let same = before.clone().filter(|before| before.version == version);
        let known = roots.map(|roots| Acknowledged { version: version.to_owned(), roots, at });
        let bundle = same.or(known);
        if let Some(open) = inner.open.get_mut(&self.number) {
            open.bundle.clone_from(&bundle);
        }
        if bundle.is_some()
            && bundle != before
            && let Some(mut node) = newest
        {
            // A certificate that another replica has issued is noted here as well.
            node.bundle = bundle;
            inner.nodes.insert(id, node);
            self.ledger.note_change(&mut inner);
        }
        drop(inner);
        self.ledger.note_connections();
    }

    /// Whether its node has got a newer certificate under another root: it had better come again.
    pub fn is_superseded(&self) -> bool {
        let inner = self.ledger.lock();
        let id = self.id(inner.open.get(&self.number));
        let newest = id.and_then(|id| inner.newest(&id));
        newest.is_some_and(|newest| newest.root != self.client.root)
    }

    fn id(&self, open: Option<&Open>) -> Option<NodeId> {
        open.and_then(Open::id)
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.ledger.lock().open.remove(&self.number);
        self.ledger.note_connections();
    }
}
