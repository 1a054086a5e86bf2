//! What a replica says of itself for rotations: its roots, its issuer, and every connection of its proxies.
//! One JSON document of each replica, replaced whole.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::part::{Acknowledged, Open, ReplicaTrust};
use crate::ca::root::RootId;
use crate::store::Version;

pub(super) const NAME: &str = "connections.json";
const FORMAT: u32 = 1;

#[derive(Serialize, Deserialize)]
struct ConnectionsFile {
    format: u32,
    /// Version of the document of roots that is in force.
    roots: Option<String>,
    issuing: Option<String>,
    /// Roots in the user's files.
    wanted: Vec<String>,
    /// Roots of each bundle that a connection names.
    bundles: BTreeMap<String, Vec<String>>,
    connections: Vec<ConnectionLine>,
}

#[derive(Serialize, Deserialize)]
struct ConnectionLine {
    identity: String,
    node: Option<String>,
    peer: String,
    /// Of the certificate that it began with.
    root: String,
    bundle: Option<String>,
}

pub(super) fn encode<'a>(trust: &ReplicaTrust, open: impl Iterator<Item = &'a Open>) -> Vec<u8> {
    let mut bundles = BTreeMap::new();
    let lines = open.map(|open| ConnectionLine {
        identity: open.identity.to_string(),
        node: open.node.clone(),
        peer: open.peer.to_string(),
        root: open.root.full(),
        bundle: open.bundle.as_ref().map(|bundle| {
            let roots = || bundle.roots.iter().map(RootId::full).collect();
            bundles.entry(bundle.version.clone()).or_insert_with(roots);
            bundle.version.clone()
        }),
    });
    let connections = lines.collect();
    let file = ConnectionsFile {
        format: FORMAT,
        roots: trust.roots.as_ref().map(|version| version.as_str().to_owned()),
        issuing: trust.issuing.map(|root| root.full()),
        wanted: trust.wanted.iter().map(RootId::full).collect(),
        bundles,
        connections,
    };
    serde_json::to_vec(&file).expect("invariant: text and numbers are JSON")
}

/// `None` of what is damaged.
pub(super) fn decode(bytes: &[u8]) -> Option<(ReplicaTrust, Vec<Open>)> {
    let file: ConnectionsFile = serde_json::from_slice(bytes).ok()?;
    if file.format != FORMAT {
        return None;
    }
    let roots = |roots: &[String]| -> Option<Vec<RootId>> {
        roots.iter().map(|root| RootId::parse(root)).collect()
    };
    let open = file.connections.into_iter().map(|line| {
        let bundle = match line.bundle {
            Some(version) => {
                let roots = roots(file.bundles.get(&version)?)?;
                Some(Acknowledged { version, roots, at: 0 })
            }
            None => None,
        };
        Some(Open {
            identity: line.identity.parse().ok()?,
            node: line.node,
            peer: line.peer.parse().ok()?,
            root: RootId::parse(&line.root)?,
            bundle,
        })
    });
    let open = open.collect::<Option<_>>()?;
    let issuing = match file.issuing {
        Some(issuing) => Some(RootId::parse(&issuing)?),
        None => None,
    };
    let wanted = roots(&file.wanted)?;
    Some((ReplicaTrust { roots: file.roots.map(Version::new), issuing, wanted }, open))
}
