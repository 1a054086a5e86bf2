//! What a request changes in a session: acknowledgements, subscriptions, what the proxy kept.

use std::collections::BTreeMap;
use std::sync::Arc;

use outrigger_core::bounds;
use outrigger_core::name::DestinationName;
use outrigger_proto::convert;
use outrigger_proto::wire::{self, DeltaDiscoveryRequest};

use super::{
    Endpoints, InFlight, MAX_NACKS, MAX_NAME, MAX_REASON, MAX_SUBSCRIPTIONS, Nack, Session,
    endpoints_of, single_dep, version_of,
};
use crate::index::PortId;
use crate::publish::EncodedDestination;

impl Session {
    /// Takes an acknowledgement or refusal of an earlier response.
    pub(super) fn settle(&mut self, request: &DeltaDiscoveryRequest) {
        let nonce = request.response_nonce.parse::<u64>().ok();
        let Some(InFlight { sent, .. }) = nonce.and_then(|nonce| self.in_flight.remove(&nonce))
        else {
            return;
        };
        if let Some(detail) = &request.error_detail {
            self.counts.nacks += 1;
            if self.nacks.len() == MAX_NACKS {
                self.nacks.pop_front();
            }
            let reason: String = detail.message.chars().take(MAX_REASON).collect();
            // Who names what was refused has taken the rest.
            let named = |name: &str| reason.contains(&format!("{name}: "));
            let some = sent.names.iter().any(|name| named(name));
            for one in sent.destinations {
                if some && !named(&one.name.to_string()) {
                    self.acknowledge(one);
                    continue;
                }
                self.unreported.destinations.insert(one.name.clone());
                let held = self.destinations.get_mut(&one.name);
                let version = Some(&*one.resource.version);
                if let Some(held) = held.filter(|held| version_of(&held.sent) == version) {
                    held.refused = Some(reason.as_str().into());
                }
            }
            for (key, version) in sent.singles {
                self.unreported.inbound |= key.0 == wire::INBOUND;
                let single = self.singles.get_mut(&key);
                if let Some(single) = single.filter(|s| s.sent.as_ref() == Some(&version)) {
                    single.objection = Some(reason.clone());
                }
            }
            let (type_url, resources) = (request.type_url.clone(), sent.names);
            self.nacks.push_back(Nack { type_url, resources, reason });
            return;
        }
        self.counts.acks += 1;
        for one in sent.destinations {
            self.acknowledge(one);
        }
        for (key, version) in sent.singles {
            self.unreported.inbound |= key.0 == wire::INBOUND;
            if let Some(single) = self.singles.get_mut(&key) {
                single.acknowledged = Some(version);
            }
        }
    }

    fn acknowledge(&mut self, sent: Arc<EncodedDestination>) {
        let name = sent.name.clone();
        self.unreported.destinations.insert(name.clone());
        let Some(held) = self.destinations.get_mut(&name) else { return };
        // What the old version needed may be let go now.
        self.needed.replace(endpoints_of(&held.acknowledged), &sent.endpoints);
        held.acknowledged = Some(sent);
        self.retire_after(&name);
    }

    /// `name` is in force at the proxy, or nothing that anybody waits for: what it has replaced may go.
    pub(super) fn retire_after(&mut self, name: &DestinationName) {
        for (old, successors) in &mut self.retiring {
            if successors.remove(name) && successors.is_empty() {
                self.work.destinations.insert(Arc::new(old.clone()));
            }
        }
    }

    pub(super) fn keep(&mut self, type_url: &'static str, versions: BTreeMap<String, String>) {
        if versions.is_empty() {
            return;
        }
        if type_url == wire::DESTINATION {
            for name in versions.keys().filter_map(|name| name.parse().ok()) {
                // Checked even when no dialled name leads to it any more.
                self.work.destinations.insert(Arc::new(name));
            }
        } else {
            let known = self.collections.keys().cloned();
            self.work.collections.extend(known);
        }
        let kept = self.kept.entry(type_url).or_default();
        // What does not fit is sent again, as if it had been lost.
        let room = bounds::VERSIONS.saturating_sub(kept.len());
        kept.extend(versions.into_iter().take(room));
    }

    pub(super) fn subscribe_names(&mut self, names: Vec<String>, known: bool) {
        for name in names {
            let held = self.names.get_key_value(&*name).map(|(name, _)| name.clone());
            if held.is_none() && !self.has_room(&name) {
                self.work.unknown.push((wire::DESTINATION.to_owned(), vec![name]));
                continue;
            }
            let name = held.unwrap_or_else(|| name.into());
            let state = self.names.entry(name.clone()).or_default();
            // Asking again means not having it.
            state.refused = false;
            state.known = known;
            if let Some(target) = &state.target
                && let Some(held) = self.destinations.get_mut(&target.name)
            {
                held.unannounce(name.clone());
                self.work.destinations.insert(target.name.clone());
            }
            self.work.names.insert(name);
        }
    }

    /// Whether one more name may be subscribed to. One that may not is answered as what nobody knows,
    /// and disturbs no other.
    fn has_room(&mut self, name: &str) -> bool {
        let proxy = &self.proxy.id;
        if name == "*" {
            tracing::warn!(proxy, "there is no wildcard subscription: it is answered as unknown");
            return false;
        }
        if name.len() > MAX_NAME {
            let bytes = name.len();
            tracing::warn!(proxy, bytes, "a name has more than {MAX_NAME} bytes: it is unknown");
            return false;
        }
        let held = self.names.len() + self.explicit.len() + self.singles.len();
        let room = held < MAX_SUBSCRIPTIONS;
        if !room && !std::mem::replace(&mut self.full, true) {
            tracing::warn!(
                proxy,
                "the proxy is subscribed to {MAX_SUBSCRIPTIONS} names: others are unknown to it"
            );
        }
        room
    }

    pub(super) fn unsubscribe_names(&mut self, names: &[String]) {
        for name in names {
            let Some(state) = self.names.remove(&**name) else { continue };
            for dep in &state.deps {
                self.interests.remove_name(dep, name);
            }
            self.work.names.remove(&**name);
            self.move_pin(state.target.as_ref(), None);
            let Some(target) = state.target else { continue };
            let Some(held) = self.destinations.get_mut(&target.name) else { continue };
            held.forget_name(name);
            if held.names.is_empty() {
                // The proxy has let go of it itself: nothing to say.
                self.drop_destination(&target.name);
                self.work.destinations.remove(&target.name);
            }
        }
    }

    pub(super) fn subscribe_collections(&mut self, names: Vec<String>) {
        for name in names {
            let port = match convert::endpoint::parse_name(&name) {
                Ok((destination, None)) => Some(PortId::from(&destination)),
                _ => None,
            };
            let port = port.filter(|port| self.explicit.contains(port) || self.has_room(&name));
            let Some(port) = port else {
                self.work.unknown.push((wire::ENDPOINT.to_owned(), vec![name]));
                continue;
            };
            let port = Arc::new(port);
            if let Some(endpoints) = self.collections.get_mut(&port) {
                *endpoints = Endpoints::default();
                self.work.collections.insert(port.clone());
            }
            if self.explicit.insert(port.clone()) {
                self.needed.add(&port);
            }
        }
    }

    pub(super) fn unsubscribe_collections(&mut self, names: &[String]) {
        for name in names {
            if let Ok((destination, None)) = convert::endpoint::parse_name(name) {
                let port = Arc::new(PortId::from(&destination));
                if self.explicit.remove(&port) {
                    self.needed.remove(&port);
                }
            }
        }
    }

    pub(super) fn subscribe_singles(&mut self, mut request: DeltaDiscoveryRequest) {
        self.unreported.inbound |= request.type_url == wire::INBOUND;
        for name in &request.resource_names_unsubscribe {
            let key = (request.type_url.clone(), name.clone());
            if self.singles.remove(&key).is_some_and(|single| single.subscribed) {
                self.interests.remove(&single_dep(&key));
            }
        }
        let asks = !request.resource_names_subscribe.is_empty();
        for name in request.resource_names_subscribe {
            let own = request.type_url != wire::INBOUND || name == self.proxy.id;
            let key = (request.type_url.clone(), name);
            // Another workload's ports are nobody else's business.
            if !own || !(self.singles.contains_key(&key) || self.has_room(&key.1)) {
                self.work.unknown.push((key.0, vec![key.1]));
                continue;
            }
            let known = request.initial_resource_versions.remove(&key.1).map(Arc::<str>::from);
            let single = self.singles.entry(key.clone()).or_default();
            single.announce |= known.is_none();
            single.refused = false;
            single.sent = known.clone().or(single.sent.take());
            single.acknowledged = known;
            self.work.singles.insert(key);
        }
        if request.type_url == wire::MESH_SETTINGS && asks {
            // What is left are parts that come without being asked for.
            let parts = request.initial_resource_versions;
            let known = |part| parts.get(&wire::settings_part(part)).map(|v| Arc::from(&**v));
            self.settings_parts = (1..=parts.len()).map(known).collect();
        }
    }
}
