//! The endpoints of one port as they travel, and each proxy's share of them.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use outrigger_core::balance::subset;
use outrigger_core::config::Endpoint;
use outrigger_core::error::FieldError;
use outrigger_core::name::EndpointId;
use outrigger_proto::convert;
use prost::Message;

use super::{Encoded, fit};

/// The endpoints of one port.
#[derive(Debug, Default)]
pub struct Collection {
    pub members: BTreeMap<EndpointId, Arc<Member>>,
}

#[derive(Debug)]
pub struct Member {
    endpoint: Endpoint,
    pub resource: Encoded,
}

impl Member {
    /// As a proxy will read it.
    fn new(endpoint: Endpoint) -> Result<Self, FieldError> {
        let name = convert::endpoint::name(&endpoint);
        let wire = convert::endpoint::to_wire(&endpoint);
        fit::check_len(wire.encoded_len())?;
        convert::endpoint::from_wire(&name, &wire)?;
        Ok(Self { endpoint, resource: Encoded::new(name, wire.encode_to_vec()) })
    }
}

impl Collection {
    /// Encodes what changed since `old` and shares the rest with it. An endpoint that proxies would
    /// refuse is left out, and disturbs no other.
    pub(super) fn update(endpoints: Vec<Endpoint>, old: Option<&Self>) -> Self {
        let members = endpoints.into_iter().filter_map(|endpoint| {
            let id = endpoint.id.clone();
            let same = old.and_then(|old| old.members.get(&id)).filter(|m| m.endpoint == endpoint);
            if let Some(same) = same {
                return Some((id, Arc::clone(same)));
            }
            let name = convert::endpoint::name(&endpoint);
            match Member::new(endpoint) {
                Ok(member) => Some((id, Arc::new(member))),
                Err(problem) => {
                    tracing::warn!(endpoint = name, %problem, "an endpoint is left out");
                    None
                }
            }
        });
        Self { members: members.collect() }
    }

    /// The share of one proxy: at most `max`, and `pins` whatever happens.
    pub fn share<'a>(
        &'a self,
        proxy: &str,
        zone: Option<&str>,
        max: usize,
        pins: &'a HashSet<EndpointId>,
    ) -> Vec<&'a Arc<Member>> {
        if self.members.len() <= max {
            return self.members.values().collect();
        }
        let ids: Vec<String> = self.members.keys().map(EndpointId::to_string).collect();
        let members: Vec<_> = self.members.values().collect();
        let zones = members.iter().map(|member| member.endpoint.zone.as_deref());
        let candidates: Vec<_> = ids.iter().map(String::as_str).zip(zones).collect();
        let mut share: Vec<_> = subset(proxy, zone, &candidates, max)
            .into_iter()
            .map(|i| members[i])
            .filter(|member| !pins.contains(&member.endpoint.id))
            .collect();
        share.extend(pins.iter().filter_map(|id| self.members.get(id)));
        share
    }
}
