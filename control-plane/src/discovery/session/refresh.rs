//! What a proxy lacks: compares what it should have with what it was sent.

use std::collections::{HashMap, HashSet};

use outrigger_core::name::{DestinationName, EndpointId};
use outrigger_proto::wire;

use super::{Endpoints, Held, MARKER_VERSION, MAX_NAME, Session, marker};
use crate::discovery::outbox::{Outbox, SentDestination, resource};
use crate::index::{Dep, PortId, Resolution, Target};
use crate::publish::View;

/// Aliases that are sent with one resource: together below a quarter of a response.
const MAX_ALIASES: usize = wire::MAX_RESPONSE / 8 / MAX_NAME;

impl Session {
    pub(super) fn resolve_names(&mut self, view: &mut View, outbox: &mut Outbox) {
        for name in std::mem::take(&mut self.work.names) {
            if !self.names.contains_key(&name) {
                continue;
            }
            let new = view.index.resolve(&name, &self.proxy.namespace);
            let target = new.target.clone();
            let old = self.set_resolution(&name, new);
            let Some(state) = self.names.get_mut(&name) else { continue };
            let new_name = target.as_ref().map(|target| &target.name);
            if new_name.is_none() && !state.refused {
                outbox.destinations_removed.push(name.clone());
            }
            state.refused = new_name.is_none();
            if let Some(new_name) = new_name {
                let known = std::mem::take(&mut state.known);
                let held = self.hold(new_name);
                if held.names.insert(name.clone()) {
                    // A proxy that still has the destination by this name need not hear it again.
                    if !known {
                        held.announce = true;
                        held.unannounced.insert(name.clone());
                    }
                    self.work.destinations.insert(new_name.clone());
                }
            }
            let old_name = old.target.map(|target| target.name);
            if let Some(old_name) = old_name.filter(|old| Some(old) != new_name) {
                if let Some(held) = self.destinations.get_mut(&old_name) {
                    held.names.remove(&name);
                    held.unannounced.remove(&name);
                    if let Some(new_name) = new_name {
                        let successors = self.retiring.entry(old_name.clone()).or_default();
                        successors.insert(new_name.clone());
                    }
                }
                self.work.destinations.insert(old_name);
            }
        }
    }

    /// Puts what a name means in the place of what it meant, which is given back.
    pub(super) fn set_resolution(&mut self, name: &str, new: Resolution) -> Resolution {
        let Some(state) = self.names.get_mut(name) else { return Resolution::default() };
        self.interests.replace(&state.resolution.deps, &new.deps);
        let old = std::mem::replace(&mut state.resolution, new);
        for dep in &old.deps {
            if let Some(names) = self.names_by.get_mut(dep) {
                names.remove(name);
                if names.is_empty() {
                    self.names_by.remove(dep);
                }
            }
        }
        let new = &state.resolution;
        for dep in &new.deps {
            self.names_by.entry(dep.clone()).or_default().insert(name.to_owned());
        }
        if old.target == new.target {
            return old;
        }
        let pin = |target: &Option<Target>| {
            let target = target.as_ref()?;
            Some((PortId::from(&target.name), target.pin.clone()?))
        };
        if let Some((port, id)) = pin(&new.target) {
            *self.pins.entry(port.clone()).or_default().entry(id).or_default() += 1;
            self.work.collections.insert(port);
        }
        if let Some((port, id)) = pin(&old.target) {
            if let Some(of_port) = self.pins.get_mut(&port) {
                if let Some(count) = of_port.get_mut(&id) {
                    *count -= 1;
                }
                of_port.retain(|of, count| *of != id || *count > 0);
                if of_port.is_empty() {
                    self.pins.remove(&port);
                }
            }
            self.work.collections.insert(port);
        }
        old
    }

    fn hold(&mut self, name: &DestinationName) -> &mut Held {
        if !self.destinations.contains_key(name) {
            self.interests.add(&Dep::Service(PortId::from(name).service));
        }
        self.destinations.entry(name.clone()).or_default()
    }

    /// The proxy no longer has a destination, or is about to be told so.
    pub(super) fn drop_destination(&mut self, name: &DestinationName) -> Option<Held> {
        let held = self.destinations.remove(name)?;
        self.interests.remove(&Dep::Service(PortId::from(name).service));
        self.needed.replace(&held.sent_endpoints, &[]);
        self.needed.replace(&held.acknowledged_endpoints, &[]);
        self.retiring.remove(name);
        self.retire_after(name);
        Some(held)
    }

    /// Whether a destination that nothing leads to has to go on until its successors are in force: the
    /// proxy may refuse them.
    fn must_go_on(&mut self, name: &DestinationName) -> bool {
        let Some(successors) = self.retiring.get_mut(name) else { return false };
        let destinations = &self.destinations;
        let waits = |held: &Held| held.acknowledged.is_none();
        successors.retain(|successor| destinations.get(successor).is_some_and(waits));
        let sent = destinations.get(name).is_some_and(|held| held.sent.is_some());
        if successors.is_empty() || !sent {
            self.retiring.remove(name);
            return false;
        }
        true
    }

    pub(super) fn refresh_destinations(&mut self, view: &mut View, outbox: &mut Outbox) {
        // Until nothing is left: what goes may let others go.
        while let Some(name) = self.work.destinations.pop_first() {
            let kept = self.kept.get_mut(wire::DESTINATION);
            let kept = kept.and_then(|kept| kept.remove(&name.to_string()));
            let wanted = self.destinations.get(&name).is_some_and(|held| !held.names.is_empty());
            let encoded = if wanted { view.destination(&name) } else { None };
            let Some(encoded) = encoded else {
                if kept.is_none() && !wanted && self.must_go_on(&name) {
                    continue;
                }
                let had = self.drop_destination(&name).is_some_and(|held| held.sent.is_some());
                match kept {
                    // Nobody has asked for it yet on this stream, but it is still what it was.
                    Some(version) if self.exists(view, &name) => self.put_back(&name, version),
                    None if !had => {}
                    _ => outbox.destinations_removed.push(name.to_string()),
                }
                continue;
            };
            self.retiring.remove(&name);
            let Some(held) = self.destinations.get_mut(&name) else { continue };
            let version = &encoded.resource.version;
            if let Some(kept) = kept {
                held.acknowledged = Some(kept.clone());
                held.sent = Some(kept);
            }
            self.needed.replace(&held.sent_endpoints, &encoded.endpoints);
            held.sent_endpoints.clone_from(&encoded.endpoints);
            let same = held.sent.as_ref() == Some(version);
            if same && !held.announce {
                if held.acknowledged.as_ref() == Some(version) {
                    self.needed.replace(&held.acknowledged_endpoints, &encoded.endpoints);
                    held.acknowledged_endpoints.clone_from(&encoded.endpoints);
                    self.retire_after(&name);
                }
                continue;
            }
            held.announce = false;
            held.refused = None;
            held.sent = Some(version.clone());
            // A proxy goes on knowing it by the names that it was told, so many are not told again.
            let new = std::mem::take(&mut held.unannounced);
            let names =
                if same || held.names.len() > MAX_ALIASES { new } else { held.names.clone() };
            let mut aliases: Vec<_> =
                names.into_iter().filter(|alias| *alias != encoded.resource.name).collect();
            loop {
                let more = aliases.split_off(aliases.len().min(MAX_ALIASES));
                let resource = resource(wire::DESTINATION, &encoded.resource, aliases);
                let (version, endpoints) = (version.clone(), encoded.endpoints.clone());
                let sent = SentDestination { name: name.clone(), version, endpoints };
                outbox.destinations.push((resource, sent));
                aliases = more;
                if aliases.is_empty() {
                    break;
                }
            }
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
        let (begun, ceased) = self.needed.changes();
        for port in ceased {
            if let Some(endpoints) = self.collections.remove(&port) {
                let marker = endpoints.complete.then(|| marker(&port));
                outbox.endpoints_removed.extend(endpoints.sent.into_keys().chain(marker));
            }
            self.interests.remove(&Dep::Endpoints(port));
        }
        for port in begun {
            self.interests.add(&Dep::Endpoints(port.clone()));
            self.collections.insert(port.clone(), Endpoints::default());
            self.work.collections.insert(port);
        }
    }

    pub(super) fn refresh_collections(&mut self, view: &mut View, outbox: &mut Outbox) {
        let max = view.index.max_endpoints();
        for port in std::mem::take(&mut self.work.collections) {
            let pins = self.pins.get(&port).into_iter().flat_map(HashMap::keys);
            let pins: HashSet<EndpointId> = pins.cloned().collect();
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
