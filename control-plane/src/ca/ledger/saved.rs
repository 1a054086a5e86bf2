//! The ledger on disk: one JSON file, replaced whole.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::{Acknowledged, Node, NodeId};
use crate::ca::root::RootId;
use crate::ca::store::replace;

const FILE: &str = "certificates.json";
const FORMAT: u32 = 1;

#[derive(Serialize, Deserialize)]
struct File {
    format: u32,
    lost_until: Option<u64>,
    nodes: Vec<Line>,
}

#[derive(Serialize, Deserialize)]
struct Line {
    node: String,
    identity: String,
    root: String,
    not_after: u64,
    bundle: Option<Bundle>,
}

#[derive(Serialize, Deserialize)]
struct Bundle {
    version: String,
    roots: Vec<String>,
}

type Nodes = BTreeMap<NodeId, Node>;

/// What was written last, nothing if there is no file yet, and `None` if it is damaged.
pub(super) fn read(state_dir: &Path) -> io::Result<Option<(Nodes, Option<SystemTime>)>> {
    match fs::read(state_dir.join(FILE)) {
        Ok(bytes) => Ok(decode(&bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Some((Nodes::new(), None))),
        Err(error) => Err(error),
    }
}

pub(super) fn write(
    state_dir: &Path,
    nodes: &Nodes,
    lost_until: Option<SystemTime>,
) -> io::Result<()> {
    let lines = nodes.iter().map(|(id, node)| Line {
        node: id.node.clone(),
        identity: id.identity.to_string(),
        root: node.root.full(),
        not_after: seconds(node.not_after),
        bundle: node.bundle.as_ref().map(|bundle| Bundle {
            version: bundle.version.clone(),
            roots: bundle.roots.iter().map(RootId::full).collect(),
        }),
    });
    let lost_until = lost_until.map(seconds);
    let file = File { format: FORMAT, lost_until, nodes: lines.collect() };
    replace(state_dir, FILE, &serde_json::to_vec(&file)?, 0o600)
}

fn decode(bytes: &[u8]) -> Option<(Nodes, Option<SystemTime>)> {
    let file: File = serde_json::from_slice(bytes).ok()?;
    if file.format != FORMAT {
        return None;
    }
    let nodes = file.nodes.into_iter().map(|line| {
        let bundle = line.bundle.map(|bundle| {
            let roots = bundle.roots.iter().map(|root| RootId::parse(root));
            Some(Acknowledged { version: bundle.version, roots: roots.collect::<Option<_>>()? })
        });
        let node = Node {
            root: RootId::parse(&line.root)?,
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
