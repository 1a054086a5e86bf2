//! Certificates in the store: one JSON document of each replica, replaced whole.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::part::{Acknowledged, Node, NodeId};
use crate::ca::root::RootId;

pub(super) const NAME: &str = "certificates.json";
const FORMAT: u32 = 1;

#[derive(Serialize, Deserialize)]
struct LedgerFile {
    format: u32,
    lost_until: Option<u64>,
    nodes: Vec<NodeLine>,
}

#[derive(Serialize, Deserialize)]
struct NodeLine {
    node: String,
    identity: String,
    root: String,
    /// Milliseconds; missing in what earlier versions wrote.
    #[serde(default)]
    issued: u64,
    not_after: u64,
    bundle: Option<SavedBundle>,
}

#[derive(Serialize, Deserialize)]
struct SavedBundle {
    version: String,
    roots: Vec<String>,
    /// Milliseconds; missing in what earlier versions wrote.
    #[serde(default)]
    at: u64,
}

pub(super) type Nodes = BTreeMap<NodeId, Node>;

pub(super) fn encode(nodes: &Nodes, lost_until: Option<SystemTime>) -> Vec<u8> {
    let lines = nodes.iter().map(|(id, node)| NodeLine {
        node: id.node.clone(),
        identity: id.identity.to_string(),
        root: node.root.full(),
        issued: node.issued,
        not_after: seconds(node.not_after),
        bundle: node.bundle.as_ref().map(|bundle| SavedBundle {
            version: bundle.version.clone(),
            roots: bundle.roots.iter().map(RootId::full).collect(),
            at: bundle.at,
        }),
    });
    let lost_until = lost_until.map(seconds);
    let file = LedgerFile { format: FORMAT, lost_until, nodes: lines.collect() };
    serde_json::to_vec(&file).expect("invariant: text and numbers are JSON")
}

/// `None` of what is damaged.
pub(super) fn decode(bytes: &[u8]) -> Option<(Nodes, Option<SystemTime>)> {
    let file: LedgerFile = serde_json::from_slice(bytes).ok()?;
    if file.format != FORMAT {
        return None;
    }
    let nodes = file.nodes.into_iter().map(|line| {
        let bundle = line.bundle.map(|bundle| {
            let roots = bundle.roots.iter().map(|root| RootId::parse(root));
            let roots = roots.collect::<Option<_>>()?;
            Some(Acknowledged { version: bundle.version, roots, at: bundle.at })
        });
        let node = Node {
            root: RootId::parse(&line.root)?,
            issued: line.issued,
            not_after: time(line.not_after)?,
            bundle: match bundle {
                Some(bundle) => Some(bundle?),
                None => None,
            },
        };
        Some((NodeId { identity: line.identity.parse().ok()?, node: line.node }, node))
    });
    let lost_until = match file.lost_until {
        Some(until) => Some(time(until)?),
        None => None,
    };
    Some((nodes.collect::<Option<_>>()?, lost_until))
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn time(seconds: u64) -> Option<SystemTime> {
    UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}
