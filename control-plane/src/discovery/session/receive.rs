//! What a request changes in a session: acknowledgements, subscriptions, what the proxy kept.

use std::collections::BTreeMap;

use outrigger_proto::convert;
use outrigger_proto::wire::{self, DeltaDiscoveryRequest};
use tonic::Status;

use super::{Endpoints, InFlight, MAX_NACKS, MAX_REASON, Nack, Name, Session};
use crate::discovery::outbox::SentDestination;
use crate::index::PortId;

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
            for SentDestination { name, version, .. } in sent.destinations {
                let held = self.destinations.get_mut(&name);
                if let Some(held) = held.filter(|held| held.sent.as_ref() == Some(&version)) {
                    held.refused = Some(reason.clone());
                }
            }
            for (key, version) in sent.singles {
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
        for SentDestination { name, version, endpoints } in sent.destinations {
            if let Some(held) = self.destinations.get_mut(&name) {
                held.acknowledged = Some(version);
                // What the old version needed may be let go now.
                self.work.needs |= held.acknowledged_endpoints != endpoints;
                held.acknowledged_endpoints = endpoints;
            }
        }
        for (key, version) in sent.singles {
            if let Some(single) = self.singles.get_mut(&key) {
                single.acknowledged = Some(version);
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
                self.work.destinations.insert(name);
            }
        } else {
            let known = self.collections.keys().cloned();
            self.work.collections.extend(known);
        }
        self.kept.entry(type_url).or_default().extend(versions);
    }

    pub(super) fn subscribe_names(
        &mut self,
        names: Vec<String>,
        known: bool,
    ) -> Result<(), Status> {
        for name in names {
            if name == "*" {
                return Err(Status::invalid_argument(
                    "there is no wildcard subscription: subscribe to the names that the app dials",
                ));
            }
            let state = self.names.entry(name.clone()).or_default();
            // Asking again means not having it.
            state.refused = false;
            state.known = known;
            if let Some(target) = &state.resolution.target
                && let Some(held) = self.destinations.get_mut(&target.name)
            {
                held.announce = true;
                self.work.destinations.insert(target.name.clone());
            }
            self.work.names.insert(name);
        }
        Ok(())
    }

    pub(super) fn unsubscribe_names(&mut self, names: &[String]) {
        for name in names {
            let Some(Name { resolution, .. }) = self.names.remove(name) else { continue };
            self.work.names.remove(name);
            let Some(target) = resolution.target else { continue };
            if let Some(held) = self.destinations.get_mut(&target.name) {
                held.names.remove(name);
                if held.names.is_empty() {
                    // The proxy has let go of it itself: nothing to say.
                    self.destinations.remove(&target.name);
                    self.work.destinations.remove(&target.name);
                }
            }
            self.work.needs = true;
        }
    }

    pub(super) fn subscribe_collections(&mut self, names: Vec<String>) {
        for name in names {
            match convert::endpoint::parse_name(&name) {
                Ok((destination, None)) => {
                    let port = PortId::from(&destination);
                    if let Some(endpoints) = self.collections.get_mut(&port) {
                        *endpoints = Endpoints::default();
                        self.work.collections.insert(port.clone());
                    }
                    self.explicit.insert(port);
                    self.work.needs = true;
                }
                _ => self.work.unknown.push((wire::ENDPOINT.to_owned(), vec![name])),
            }
        }
    }

    pub(super) fn unsubscribe_collections(&mut self, names: &[String]) {
        for name in names {
            if let Ok((destination, None)) = convert::endpoint::parse_name(name) {
                self.explicit.remove(&PortId::from(&destination));
                self.work.needs = true;
            }
        }
    }

    pub(super) fn subscribe_singles(&mut self, mut request: DeltaDiscoveryRequest) {
        for name in &request.resource_names_unsubscribe {
            self.singles.remove(&(request.type_url.clone(), name.clone()));
        }
        for name in request.resource_names_subscribe {
            let own = request.type_url != wire::INBOUND || name == self.proxy.id;
            if !own {
                // Another workload's ports are nobody else's business.
                self.work.unknown.push((request.type_url.clone(), vec![name]));
                continue;
            }
            let key = (request.type_url.clone(), name);
            let known = request.initial_resource_versions.remove(&key.1);
            let single = self.singles.entry(key.clone()).or_default();
            single.announce |= known.is_none();
            single.refused = false;
            single.sent = known.clone().or(single.sent.take());
            single.acknowledged = known;
            self.work.singles.insert(key);
        }
    }
}
