//! What a proxy lacks: compares what it should have with what it was sent.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use outrigger_core::name::{DestinationName, EndpointId};
use outrigger_proto::wire;

use super::{
    Endpoints, HeldDestination, MARKER_VERSION, MAX_NAME, NAMES_AT_ONCE, NameTarget, Session,
    endpoints_of, marker, single_dep, version_of,
};
use crate::discovery::outbox::{Outbox, resource};
use crate::index::{Dep, PortId, Resolution};
use crate::publish::{EncodedDestination, View};

/// Aliases that are sent with one resource: together below a quarter of a response.
const MAX_ALIASES: usize = wire::MAX_RESPONSE / 8 / MAX_NAME;

impl Session {
    pub(super) fn resolve_names(&mut self, view: &mut View<'_>, outbox: &mut Outbox) {
        for _ in 0..NAMES_AT_ONCE {
            let Some(name) = self.work.names.pop_first() else { break };
            if !self.names.contains_key(&name) {
                continue;
            }
            let new = view.index.resolve(&name, &self.proxy.namespace);
            let old = self.set_resolution(&name, new, view);
            let Some(state) = self.names.get_mut(&name) else { continue };
            let target = state.target.clone();
            if target.is_none() && !state.refused {
                outbox.destinations_removed.push(name.to_string());
            }
            state.refused = target.is_none();
            let new_name = target.map(|target| target.name);
            if let Some(new_name) = &new_name {
                let known = std::mem::take(&mut state.known);
                let held = self.hold(new_name, view);
                if held.names.insert(name.clone()) {
                    // A proxy that still has the destination by this name need not hear it again.
                    if !known {
                        held.unannounce(name.clone());
                    }
                    self.work.destinations.insert(new_name.clone());
                }
            }
            let old_name = old.map(|target| target.name);
            if let Some(old_name) = old_name.filter(|old| Some(old) != new_name.as_ref()) {
                if let Some(held) = self.destinations.get_mut(&old_name) {
                    held.forget_name(&name);
                    if let Some(new_name) = &new_name {
                        let successors = self.retiring.entry((*old_name).clone()).or_default();
                        successors.insert((**new_name).clone());
                    }
                }
                self.work.destinations.insert(old_name);
            }
        }
    }

    /// Puts what a name means in the place of what it meant, which is given back.
    fn set_resolution(
        &mut self,
        name: &Arc<str>,
        new: Resolution,
        view: &mut View<'_>,
    ) -> Option<NameTarget> {
        // Begun before the old ones end: what is in both goes on.
        let deps = new.deps.iter().map(|dep| self.interests.add_name(dep, name, view)).collect();
        let target = new.target.map(|target| {
            let known = self.destinations.get_key_value(&target.name);
            let known = known.map(|(name, _)| name.clone());
            let shared = || view.destination(&target.name).map(|whole| whole.name.clone());
            let shared = known.or_else(shared);
            let pin = target.pin.map(Box::new);
            NameTarget { name: shared.unwrap_or_else(|| Arc::new(target.name)), pin }
        });
        let state = self.names.get_mut(name)?;
        let old_deps: Box<[Arc<Dep>]> = std::mem::replace(&mut state.deps, deps);
        let old = std::mem::replace(&mut state.target, target.clone());
        let still: HashSet<Arc<Dep>> = state.deps.iter().cloned().collect();
        for dep in &old_deps {
            match still.contains(dep) {
                true => self.interests.remove(dep),
                false => self.interests.remove_name(dep, name),
            }
        }
        if old != target {
            self.move_pin(old.as_ref(), target.as_ref());
        }
        old
    }

    /// Notes which endpoint is dialled by a name of its own.
    pub(super) fn move_pin(&mut self, old: Option<&NameTarget>, new: Option<&NameTarget>) {
        let pin = |target: Option<&NameTarget>| {
            let target = target?;
            Some((PortId::from(&*target.name), (**target.pin.as_ref()?).clone()))
        };
        if let Some((port, id)) = pin(new) {
            *self.pins.entry(port.clone()).or_default().entry(id).or_default() += 1;
            self.work.collections.insert(Arc::new(port));
        }
        if let Some((port, id)) = pin(old) {
            if let Some(of_port) = self.pins.get_mut(&port) {
                if let Some(count) = of_port.get_mut(&id) {
                    *count -= 1;
                }
                of_port.retain(|of, count| *of != id || *count > 0);
                if of_port.is_empty() {
                    self.pins.remove(&port);
                }
            }
            self.work.collections.insert(Arc::new(port));
        }
    }

    fn hold(&mut self, name: &Arc<DestinationName>, view: &View<'_>) -> &mut HeldDestination {
        if !self.destinations.contains_key(name) {
            self.interests.add(&Dep::Service(PortId::from(&**name).service), view);
        }
        self.destinations.entry(name.clone()).or_default()
    }

    /// The proxy no longer has a destination, or is about to be told so.
    pub(super) fn drop_destination(&mut self, name: &DestinationName) -> Option<HeldDestination> {
        let (name, held) = self.destinations.remove_entry(name)?;
        self.interests.remove(&Dep::Service(PortId::from(&*name).service));
        self.needed.replace(endpoints_of(&held.sent), &[]);
        self.needed.replace(endpoints_of(&held.acknowledged), &[]);
        self.retiring.remove(&*name);
        self.retire_after(&name);
        self.unreported.destinations.insert(name);
        Some(held)
    }

    /// Whether a destination that nothing leads to has to go on until its successors are in force: the
    /// proxy may refuse them.
    fn must_go_on(&mut self, name: &DestinationName) -> bool {
        let Some(successors) = self.retiring.get_mut(name) else { return false };
        let destinations = &self.destinations;
        let waits = |held: &HeldDestination| held.acknowledged.is_none();
        successors.retain(|successor| destinations.get(successor).is_some_and(waits));
        let sent = destinations.get(name).is_some_and(|held| held.sent.is_some());
        if successors.is_empty() || !sent {
            self.retiring.remove(name);
            return false;
        }
        true
    }

    pub(super) fn refresh_destinations(&mut self, view: &mut View<'_>, outbox: &mut Outbox) {
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
            self.retiring.remove(&*name);
            self.unreported.destinations.insert(name.clone());
            let Some(held) = self.destinations.get_mut(&name) else { continue };
            if let Some(kept) = kept {
                let kept = Arc::new(EncodedDestination::kept(&name, &kept));
                held.acknowledged = Some(kept.clone());
                held.sent = Some(kept);
            }
            let new = Some(encoded.clone());
            let same = version_of(&held.sent) == version_of(&new);
            self.needed.replace(endpoints_of(&held.sent), &encoded.endpoints);
            held.sent.clone_from(&new);
            if same && !held.announce {
                if version_of(&held.acknowledged) == version_of(&new) {
                    self.needed.replace(endpoints_of(&held.acknowledged), &encoded.endpoints);
                    held.acknowledged = new;
                    self.retire_after(&name);
                }
                continue;
            }
            held.announce = false;
            held.refused = None;
            // A proxy goes on knowing it by the names that it was told, so many are not told again.
            let unannounced = held.unannounced.take().unwrap_or_default();
            let names =
                if same || held.names.len() > MAX_ALIASES { &*unannounced } else { &held.names };
            let aliases = names.iter().map(|alias| alias.to_string());
            let mut aliases: Vec<_> =
                aliases.filter(|alias| **alias != *encoded.resource.name).collect();
            loop {
                let more = aliases.split_off(aliases.len().min(MAX_ALIASES));
                let resource = resource(wire::DESTINATION, &encoded.resource, aliases);
                outbox.destinations.push((resource, encoded.clone()));
                aliases = more;
                if aliases.is_empty() {
                    break;
                }
            }
        }
    }

    pub(super) fn exists(&self, view: &View<'_>, name: &DestinationName) -> bool {
        let found = view.index.resolve(&name.to_string(), &self.proxy.namespace);
        found.target.is_some_and(|target| target.name == *name)
    }

    pub(super) fn put_back(&mut self, name: &DestinationName, version: String) {
        self.kept.entry(wire::DESTINATION).or_default().insert(name.to_string(), version);
    }

    /// Adds collections that a destination, sent or in force, needs, and withdraws the others.
    pub(super) fn refresh_needs(&mut self, view: &View<'_>, outbox: &mut Outbox) {
        let (begun, ceased) = self.needed.changes();
        for port in ceased {
            if let Some(endpoints) = self.collections.remove(&port) {
                let marker = endpoints.complete.then(|| marker(&port));
                let names = endpoints.sent.iter().map(|member| member.resource.name.to_string());
                outbox.endpoints_removed.extend(names.chain(marker));
            }
            self.interests.remove(&Dep::Endpoints((*port).clone()));
        }
        for port in begun {
            self.interests.add(&Dep::Endpoints((*port).clone()), view);
            self.collections.insert(port.clone(), Endpoints::default());
            self.work.collections.insert(port);
        }
    }

    pub(super) fn refresh_collections(&mut self, view: &mut View<'_>, outbox: &mut Outbox) {
        let max = view.index.max_endpoints();
        for port in std::mem::take(&mut self.work.collections) {
            let pins = self.pins.get(&port).into_iter().flat_map(HashMap::keys);
            let pins: HashSet<EndpointId> = pins.cloned().collect();
            let Some(state) = self.collections.get_mut(&port) else { continue };
            let kept = self.kept.get_mut(wire::ENDPOINT).filter(|all| !all.is_empty());
            let mut kept = kept.map(|all| state.take_kept(&port, all)).unwrap_or_default();
            let before = std::mem::take(&mut state.sent);
            let Some(collection) = view.collection(&port) else {
                let names = before.iter().map(|member| member.resource.name.to_string());
                outbox.endpoints_removed.extend(names.chain(kept.into_keys()));
                if !std::mem::replace(&mut state.refused, true) {
                    outbox.endpoints_removed.push(marker(&port));
                }
                state.complete = false;
                continue;
            };
            state.refused = false;
            let share = collection.share(&self.proxy.place(), max, &pins);
            if share.cut.is_some() || !state.whole {
                state.whole = share.cut.is_none();
                view.set_cut(&port, &collection, share.cut);
            }
            let mut gone = before.iter().peekable();
            for member in &share.members {
                while let Some(old) = gone.next_if(|old| old.id < member.id) {
                    outbox.endpoints_removed.push(old.resource.name.to_string());
                }
                let sent = gone.next_if(|old| old.id == member.id);
                let kept = kept.remove(&*member.resource.name);
                let is_known = match (kept, sent) {
                    (Some(version), _) => *version == *member.resource.version,
                    (None, Some(sent)) => {
                        Arc::ptr_eq(sent, member)
                            || sent.resource.version == member.resource.version
                    }
                    (None, None) => false,
                };
                if !is_known {
                    let resource = resource(wire::ENDPOINT, &member.resource, Vec::new());
                    outbox.endpoints.push(resource);
                }
            }
            let rest = gone.map(|old| old.resource.name.to_string());
            outbox.endpoints_removed.extend(rest.chain(kept.into_keys()));
            state.sent = share.members;
            if !std::mem::replace(&mut state.complete, true) {
                outbox.endpoints.push(wire::Resource {
                    version: MARKER_VERSION.to_owned(),
                    name: marker(&port),
                    resource: Some(wire::Any {
                        type_url: wire::ENDPOINT.to_owned(),
                        value: bytes::Bytes::new(),
                    }),
                    ..Default::default()
                });
            }
        }
    }

    pub(super) fn refresh_singles(&mut self, view: &mut View<'_>, outbox: &mut Outbox) {
        for key in std::mem::take(&mut self.work.singles) {
            let Some(single) = self.singles.get_mut(&key) else { continue };
            self.unreported.inbound |= key.0 == wire::INBOUND;
            if !std::mem::replace(&mut single.subscribed, true) {
                self.interests.add(&single_dep(&key), view);
            }
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
                    if key.0 == wire::MESH_SETTINGS {
                        self.refresh_settings_parts(view, outbox);
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

    /// Namespaces beyond those that travel with the settings themselves; none is ever taken back.
    fn refresh_settings_parts(&mut self, view: &View<'_>, outbox: &mut Outbox) {
        let parts = view.settings();
        self.settings_parts.resize(parts.len().saturating_sub(1), None);
        for (sent, part) in self.settings_parts.iter_mut().zip(parts.iter().skip(1)) {
            if sent.as_ref() != Some(&part.version) {
                *sent = Some(part.version.clone());
                let key = (wire::MESH_SETTINGS.to_owned(), part.name.to_string());
                let resource = resource(wire::MESH_SETTINGS, part, Vec::new());
                outbox.singles.push((key, resource));
            }
        }
    }
}

impl Endpoints {
    /// What the proxy has of a port from an earlier stream: versions by name, which are taken from those of all
    /// ports.
    fn take_kept(
        &mut self,
        port: &PortId,
        all: &mut BTreeMap<String, String>,
    ) -> BTreeMap<String, String> {
        let marker = marker(port);
        self.complete |= all.remove(&marker).is_some();
        let prefix = &marker[..marker.len() - 1];
        let range = all.range(prefix.to_owned()..);
        let range = range.take_while(|(name, _)| name.starts_with(prefix));
        let names: Vec<String> = range.map(|(name, _)| name.clone()).collect();
        names.iter().filter_map(|name| all.remove_entry(name)).collect()
    }
}
