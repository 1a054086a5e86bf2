//! What a proxy lacks: compares what it should have with what it was sent.

use std::collections::HashSet;

use outrigger_core::name::{DestinationName, EndpointId};
use outrigger_proto::wire;

use super::{Endpoints, MARKER_VERSION, Session, marker};
use crate::discovery::outbox::{Outbox, SentDestination, resource};
use crate::index::PortId;
use crate::publish::View;

impl Session {
    pub(super) fn resolve_names(&mut self, view: &mut View, outbox: &mut Outbox) {
        for name in std::mem::take(&mut self.work.names) {
            let Some(state) = self.names.get_mut(&name) else { continue };
            let new = view.index.resolve(&name, &self.proxy.namespace);
            let old = std::mem::replace(&mut state.resolution, new);
            let new = &state.resolution;
            let [old_name, new_name] =
                [&old, new].map(|r| r.target.as_ref().map(|target| target.name.clone()));
            if new_name.is_none() && !state.refused {
                outbox.destinations_removed.push(name.clone());
            }
            state.refused = new_name.is_none();
            for target in [&old, new].into_iter().filter_map(|r| r.target.as_ref()) {
                if old.target != new.target && target.pin.is_some() {
                    self.work.collections.insert(PortId::from(&target.name));
                }
            }
            if let Some(new_name) = &new_name {
                let held = self.destinations.entry(new_name.clone()).or_default();
                if held.names.insert(name.clone()) {
                    // A proxy that still has the destination by this name need not hear it again.
                    held.announce |= !std::mem::take(&mut state.known);
                    self.work.destinations.insert(new_name.clone());
                }
            }
            if let Some(old_name) = old_name.filter(|old| Some(old) != new_name.as_ref()) {
                if let Some(held) = self.destinations.get_mut(&old_name) {
                    held.names.remove(&name);
                }
                self.work.destinations.insert(old_name);
            }
        }
    }

    pub(super) fn refresh_destinations(&mut self, view: &mut View, outbox: &mut Outbox) {
        for name in std::mem::take(&mut self.work.destinations) {
            let kept = self.kept.get_mut(wire::DESTINATION);
            let kept = kept.and_then(|kept| kept.remove(&name.to_string()));
            let wanted = self.destinations.get(&name).is_some_and(|held| !held.names.is_empty());
            let encoded = if wanted { view.destination(&name) } else { None };
            let Some(encoded) = encoded else {
                let had = self.destinations.remove(&name).is_some_and(|held| held.sent.is_some());
                match kept {
                    // Nobody has asked for it yet on this stream, but it is still what it was.
                    Some(version) if self.exists(view, &name) => self.put_back(&name, version),
                    None if !had => {}
                    _ => outbox.destinations_removed.push(name.to_string()),
                }
                self.work.needs = true;
                continue;
            };
            let Some(held) = self.destinations.get_mut(&name) else { continue };
            let version = &encoded.resource.version;
            if let Some(kept) = kept {
                held.acknowledged = Some(kept.clone());
                held.sent = Some(kept);
            }
            if held.sent_endpoints != encoded.endpoints {
                held.sent_endpoints.clone_from(&encoded.endpoints);
                self.work.needs = true;
            }
            if held.sent.as_ref() == Some(version) && !held.announce {
                if held.acknowledged.as_ref() == Some(version) {
                    held.acknowledged_endpoints.clone_from(&encoded.endpoints);
                }
                continue;
            }
            held.announce = false;
            held.refused = None;
            held.sent = Some(version.clone());
            let aliases = held.names.iter().filter(|alias| **alias != encoded.resource.name);
            let aliases = aliases.cloned().collect();
            let resource = resource(wire::DESTINATION, &encoded.resource, aliases);
            let (version, endpoints) = (version.clone(), encoded.endpoints.clone());
            let sent = SentDestination { name, version, endpoints };
            outbox.destinations.push((resource, sent));
        }
    }

    pub(super) fn exists(&self, view: &View, name: &DestinationName) -> bool {
        let found = view.index.resolve(&name.to_string(), &self.proxy.namespace);
        found.target.is_some_and(|target| target.name == *name)
    }

    pub(super) fn put_back(&mut self, name: &DestinationName, version: String) {
        self.kept.entry(wire::DESTINATION).or_default().insert(name.to_string(), version);
    }

    /// Adds collections that a destination, sent or in force, needs, and withdraws the others.
    pub(super) fn refresh_needs(&mut self, outbox: &mut Outbox) {
        if !std::mem::take(&mut self.work.needs) {
            return;
        }
        let held = self.destinations.values();
        let needed = held.flat_map(|h| h.sent_endpoints.iter().chain(&h.acknowledged_endpoints));
        let needed: HashSet<PortId> = needed.chain(&self.explicit).cloned().collect();
        let gone: Vec<_> =
            self.collections.keys().filter(|port| !needed.contains(*port)).cloned().collect();
        for port in gone {
            if let Some(endpoints) = self.collections.remove(&port) {
                let marker = endpoints.complete.then(|| marker(&port));
                outbox.endpoints_removed.extend(endpoints.sent.into_keys().chain(marker));
            }
        }
        for port in needed {
            if !self.collections.contains_key(&port) {
                self.collections.insert(port.clone(), Endpoints::default());
                self.work.collections.insert(port);
            }
        }
    }

    pub(super) fn refresh_collections(&mut self, view: &mut View, outbox: &mut Outbox) {
        let max = view.index.max_endpoints();
        for port in std::mem::take(&mut self.work.collections) {
            let pins = self.pins(&port);
            let Some(state) = self.collections.get_mut(&port) else { continue };
            let marker = marker(&port);
            if let Some(kept) = self.kept.get_mut(wire::ENDPOINT).filter(|kept| !kept.is_empty()) {
                state.complete |= kept.remove(&marker).is_some();
                let prefix = &marker[..marker.len() - 1];
                state.sent.extend(kept.extract_if(|name, _| name.starts_with(prefix)));
            }
            let Some(collection) = view.collection(&port) else {
                outbox.endpoints_removed.extend(std::mem::take(&mut state.sent).into_keys());
                if !std::mem::replace(&mut state.refused, true) {
                    outbox.endpoints_removed.push(marker);
                }
                state.complete = false;
                continue;
            };
            state.refused = false;
            let zone = self.proxy.zone.as_deref();
            let share = collection.share(&self.proxy.id, zone, max, &pins);
            let mut gone = std::mem::take(&mut state.sent);
            for member in share {
                let (name, version) = (&member.resource.name, &member.resource.version);
                if gone.remove(name).as_ref() != Some(version) {
                    let resource = resource(wire::ENDPOINT, &member.resource, Vec::new());
                    outbox.endpoints.push(resource);
                }
                state.sent.insert(name.clone(), version.clone());
            }
            outbox.endpoints_removed.extend(gone.into_keys());
            if !std::mem::replace(&mut state.complete, true) {
                outbox.endpoints.push(wire::Resource {
                    version: MARKER_VERSION.to_owned(),
                    name: marker,
                    resource: Some(wire::Any {
                        type_url: wire::ENDPOINT.to_owned(),
                        value: bytes::Bytes::new(),
                    }),
                    ..Default::default()
                });
            }
        }
    }

    /// Endpoints of a port that the proxy dials by their own names.
    pub(super) fn pins(&self, port: &PortId) -> HashSet<EndpointId> {
        let targets = self.names.values().filter_map(|name| name.resolution.target.as_ref());
        let pinned = targets.filter(|target| PortId::from(&target.name) == *port);
        pinned.filter_map(|target| target.pin.clone()).collect()
    }

    pub(super) fn refresh_singles(&mut self, view: &mut View, outbox: &mut Outbox) {
        for key in std::mem::take(&mut self.work.singles) {
            let Some(single) = self.singles.get_mut(&key) else { continue };
            // Until the workload is there, and where it is another's, there is nothing to see.
            let own = key.0 != wire::INBOUND || self.proxy.owns(view, &key.1);
            match own.then(|| view.single(&key.0, &key.1)).flatten() {
                Some(encoded) => {
                    single.refused = false;
                    let announce = std::mem::take(&mut single.announce);
                    if announce || single.sent.as_ref() != Some(&encoded.version) {
                        single.sent = Some(encoded.version.clone());
                        single.objection = None;
                        outbox.singles.push((key.clone(), resource(&key.0, &encoded, Vec::new())));
                    }
                }
                None => {
                    single.sent = None;
                    single.acknowledged = None;
                    if !std::mem::replace(&mut single.refused, true) {
                        outbox.other.push((key.0, Vec::new(), vec![key.1]));
                    }
                }
            }
        }
    }
}
