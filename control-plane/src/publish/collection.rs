//! The endpoints of one port as they travel, and each proxy's share of them.

use std::collections::HashSet;
use std::sync::Arc;

use imbl::OrdMap;
use outrigger_core::balance::subset::{self, Rank};
use outrigger_core::config::Endpoint;
use outrigger_core::error::FieldError;
use outrigger_core::name::EndpointId;
use outrigger_proto::convert;
use prost::Message;

use super::{Encoded, fit};
use crate::index::{Index, PortId, Touched};

/// The endpoints of one port. A copy shares everything with the original.
#[derive(Clone, Debug, Default)]
pub struct Collection {
    pub members: OrdMap<EndpointId, Arc<Member>>,
    /// Each proxy is told of those on its own node alone.
    same_node_only: bool,
}

#[derive(Debug)]
pub struct Member {
    pub id: EndpointId,
    /// Hashes of its zone and of its id, which each proxy ranks it by.
    zone: Option<u64>,
    hash: u64,
    /// Hash of its node's name, where a proxy is told of its own node's alone.
    node: Option<u64>,
    pub resource: Encoded,
}

impl Member {
    /// As a proxy will read it.
    fn new(endpoint: Endpoint, node: Option<&str>) -> Result<Self, FieldError> {
        let name = convert::endpoint::name(&endpoint);
        let wire = convert::endpoint::to_wire(&endpoint);
        fit::check_len(wire.encoded_len())?;
        convert::endpoint::from_wire(&name, &wire)?;
        Ok(Self {
            hash: subset::hash_of(&endpoint.id.to_string()),
            zone: endpoint.zone.as_deref().map(subset::hash_of),
            id: endpoint.id,
            node: node.map(subset::hash_of),
            resource: Encoded::new(&name, wire.encode_to_vec()),
        })
    }

    fn rank(&self, seed: u64, zone: Option<u64>) -> Rank {
        Rank::new(seed, zone.is_some() && self.zone == zone, self.hash)
    }
}

/// Where a proxy's share of a large collection ends: a member ranked below is none of its business.
#[derive(Clone, Copy, Debug)]
pub struct Cut {
    seed: u64,
    zone: Option<u64>,
    least: Rank,
}

impl Cut {
    pub(super) fn reaches(&self, member: &Member) -> bool {
        member.rank(self.seed, self.zone) >= self.least
    }
}

/// Who a share is for, and where that proxy runs.
#[derive(Clone, Copy, Debug)]
pub struct ShareOwner<'a> {
    /// The workload's uid.
    pub proxy: &'a str,
    pub zone: Option<&'a str>,
    pub node: Option<&'a str>,
}

/// What one proxy is told of.
#[derive(Debug)]
pub struct Share {
    /// In the order of their ids.
    pub members: Vec<Arc<Member>>,
    /// None: everything concerns it.
    pub cut: Option<Cut>,
}

/// How many members were encoded, of how many looked at.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Effort {
    pub(super) examined: u64,
    pub(super) encoded: u64,
}

impl Collection {
    /// Puts a collection together, or an old one right; members that are as they were are shared with it.
    /// `None` when there is no such port. An endpoint that proxies would refuse is left out, and disturbs no
    /// other.
    pub(super) fn update<'a>(
        index: &Index,
        port: &PortId,
        old: Option<&Self>,
        touched: impl Iterator<Item = &'a Touched>,
        effort: &mut Effort,
    ) -> Option<Self> {
        let mut uids = HashSet::new();
        let mut all = old.is_none();
        for touched in touched {
            match touched {
                Touched::All => all = true,
                Touched::Workloads(some) => uids.extend(some),
            }
        }
        let before = old.cloned().unwrap_or_default();
        let same_node_only = index.service(&port.service)?.same_node_only;
        let node = |endpoint: &Endpoint| {
            let uid = &endpoint.id.workload;
            same_node_only.then(|| index.node_of(&port.service, uid)).flatten()
        };
        if all {
            let mut new = Self { same_node_only, ..Self::default() };
            for endpoint in index.endpoints(port)? {
                let node = node(&endpoint);
                new.put(endpoint, node, &before, effort);
            }
            return Some(new);
        }
        index.service(&port.service)?.port(port.port)?;
        let mut new = before.clone();
        for uid in uids {
            for id in before.of_workload(uid) {
                new.members.remove(&id);
            }
            for (_, endpoint) in index.endpoints_of(port, uid) {
                let node = node(&endpoint);
                new.put(endpoint, node, &before, effort);
            }
        }
        Some(new)
    }

    fn put(&mut self, endpoint: Endpoint, node: Option<&str>, before: &Self, effort: &mut Effort) {
        effort.examined += 1;
        let id = endpoint.id.clone();
        match Member::new(endpoint, node) {
            Ok(member) => {
                let same = before.members.get(&id);
                let same = same.filter(|same| same.resource.body == member.resource.body);
                let same = same.filter(|same| same.node == member.node);
                effort.encoded += u64::from(same.is_none());
                let member = same.cloned().unwrap_or_else(|| Arc::new(member));
                self.members.insert(id, member);
            }
            Err(problem) => {
                tracing::warn!(endpoint = %id, %problem, "an endpoint is left out");
            }
        }
    }

    fn of_workload(&self, uid: &str) -> Vec<EndpointId> {
        let from = EndpointId { workload: uid.to_owned(), port: 0 };
        let range = self.members.range(from..).map(|(id, _)| id);
        range.take_while(|id| id.workload == uid).cloned().collect()
    }

    /// Members that are in one of two versions only, of some workloads.
    pub(super) fn differences<'a>(
        &self,
        other: &Self,
        touched: impl Iterator<Item = &'a Touched>,
    ) -> Option<Vec<Arc<Member>>> {
        let mut found = Vec::new();
        for touched in touched {
            let Touched::Workloads(uids) = touched else { return None };
            for uid in uids {
                let ids: HashSet<_> =
                    self.of_workload(uid).into_iter().chain(other.of_workload(uid)).collect();
                for id in ids {
                    let (a, b) = (self.members.get(&id), other.members.get(&id));
                    if a.map(Arc::as_ptr) != b.map(Arc::as_ptr) {
                        found.extend(a.into_iter().chain(b).cloned());
                    }
                }
            }
        }
        Some(found)
    }

    /// The share of one proxy: at most `max`, and `pins` whatever happens.
    pub fn share(&self, of: &ShareOwner<'_>, max: usize, pins: &HashSet<EndpointId>) -> Share {
        let node = of.node.map(subset::hash_of);
        if self.same_node_only {
            let own = |member: &&Arc<Member>| {
                (node.is_some() && member.node == node) || pins.contains(&member.id)
            };
            // As many as fit on one node.
            return Share {
                members: self.members.values().filter(own).cloned().collect(),
                cut: None,
            };
        }
        if self.members.len() <= max {
            return Share { members: self.members.values().cloned().collect(), cut: None };
        }
        let (seed, zone) = (subset::hash_of(of.proxy), of.zone.map(subset::hash_of));
        let ranked = self.members.values().map(|member| (member.rank(seed, zone), member));
        let chosen = subset::best(ranked, max, |member| &member.id);
        let least = chosen.iter().map(|(rank, _)| *rank).min();
        // Of its own size, not in the room that choosing took.
        let mut members: Vec<_> = chosen.iter().map(|(_, member)| Arc::clone(member)).collect();
        let cut = least.map(|least| Cut { seed, zone, least });
        if pins.is_empty() {
            members.sort_unstable_by(|a, b| a.id.cmp(&b.id));
            return Share { members, cut };
        }
        members.extend(pins.iter().filter_map(|id| self.members.get(id)).cloned());
        members.sort_unstable_by(|a, b| a.id.cmp(&b.id));
        members.dedup_by(|a, b| a.id == b.id);
        // A member of any rank may be one that was meant.
        Share { members, cut: None }
    }
}
