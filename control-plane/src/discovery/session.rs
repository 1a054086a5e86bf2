//! One proxy's discovery stream as a state machine: what it asked for, what it was sent, what it
//! has acknowledged.
//!
//! [`Session::receive`] takes a request, [`Session::pump`] compares what the proxy has with what
//! it should have and gives the responses that close the gap. Nothing here waits or sends.
//!
//! A subscription to a name implies the endpoints of the destination and of all its backends.
//! Updates are make before break: endpoints of new backends go out before the destination that
//! routes to them, and endpoints that are no longer needed are withdrawn only when the destination
//! that let go of them is acknowledged.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};

use outrigger_core::name::{DestinationName, EndpointId};
use outrigger_proto::wire::{self, DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use outrigger_proto::{convert, wire::Node};
use serde_json::{Value, json};
use tonic::Status;

use super::outbox::{Outbox, Sent, SentDestination, resource};
use crate::index::{Dep, PortId, Resolution};
use crate::publish::{Dirty, View};

/// Names that one proxy may be subscribed to; an app calls dozens of destinations.
pub const MAX_SUBSCRIPTIONS: usize = 10_000;
/// Bytes of one name: the longest host name and port, or a canonical name, fits twice.
pub const MAX_NAME: usize = 512;
/// Responses that may wait for their acknowledgement before the stream pauses.
const MAX_IN_FLIGHT: usize = 64;
/// Refusals remembered for the admin server.
const MAX_NACKS: usize = 16;
/// Version of the resource that marks a collection as complete; it has no content.
const MARKER_VERSION: &str = "1";

#[derive(Debug)]
pub struct Session {
    pub proxy: Proxy,
    /// By dialled name.
    names: BTreeMap<String, Name>,
    destinations: BTreeMap<DestinationName, Held>,
    collections: BTreeMap<PortId, Endpoints>,
    /// Collections asked for by name.
    explicit: BTreeSet<PortId>,
    /// By type and name.
    singles: BTreeMap<(String, String), Single>,
    /// Versions that the proxy kept from an earlier stream and that nothing has asked for yet.
    kept: HashMap<&'static str, HashMap<String, String>>,
    work: Work,
    interests: HashSet<Dep>,
    in_flight: BTreeMap<u64, InFlight>,
    last_nonce: u64,
    /// The commit up to which everything has been sent.
    sent_generation: u64,
    pub nacks: VecDeque<Nack>,
    pub counts: Counts,
}

/// What a proxy says about itself in its first request.
#[derive(Clone, Debug)]
pub struct Proxy {
    /// The workload's uid.
    pub id: String,
    pub namespace: String,
    pub zone: Option<String>,
    pub version: String,
}

#[derive(Debug, Default)]
struct Name {
    resolution: Resolution,
    /// Told that nothing has this name.
    refused: bool,
}

/// A destination that the proxy has or is about to get.
#[derive(Debug, Default)]
struct Held {
    /// What the proxy dials it by.
    names: BTreeSet<String>,
    /// Send it although its version is known: a name was added, or the proxy asked again.
    announce: bool,
    sent: Option<String>,
    sent_endpoints: Vec<PortId>,
    acknowledged: Option<String>,
    /// Whose endpoints the version in force at the proxy needs.
    acknowledged_endpoints: Vec<PortId>,
}

#[derive(Debug, Default)]
struct Endpoints {
    /// Name to version.
    sent: BTreeMap<String, String>,
    complete: bool,
    /// Told that there is no such port.
    refused: bool,
}

#[derive(Debug, Default)]
struct Single {
    sent: Option<String>,
    acknowledged: Option<String>,
    refused: bool,
    announce: bool,
}

/// What the next pump has to look at.
#[derive(Debug, Default)]
struct Work {
    names: BTreeSet<String>,
    destinations: BTreeSet<DestinationName>,
    collections: BTreeSet<PortId>,
    singles: BTreeSet<(String, String)>,
    /// Which collections are needed has to be worked out again.
    needs: bool,
    /// Of types or names that are nothing here.
    unknown: Vec<(String, Vec<String>)>,
}

impl Work {
    fn is_empty(&self) -> bool {
        self.names.is_empty()
            && self.destinations.is_empty()
            && self.collections.is_empty()
            && self.singles.is_empty()
            && self.unknown.is_empty()
            && !self.needs
    }
}

#[derive(Debug)]
struct InFlight {
    generation: u64,
    sent: Sent,
}

/// A response that the proxy refused.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Nack {
    pub type_url: String,
    pub resources: Vec<String>,
    pub reason: String,
}

#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub struct Counts {
    pub responses: u64,
    pub resources: u64,
    pub removed: u64,
    pub acks: u64,
    pub nacks: u64,
}

impl Session {
    pub fn new(proxy: Proxy) -> Self {
        Self {
            proxy,
            names: BTreeMap::new(),
            destinations: BTreeMap::new(),
            collections: BTreeMap::new(),
            explicit: BTreeSet::new(),
            singles: BTreeMap::new(),
            kept: HashMap::new(),
            work: Work::default(),
            interests: HashSet::new(),
            in_flight: BTreeMap::new(),
            last_nonce: 0,
            sent_generation: 0,
            nacks: VecDeque::new(),
            counts: Counts::default(),
        }
    }

    /// Takes one request: an acknowledgement, subscriptions, or both. An error ends the stream.
    pub fn receive(&mut self, request: DeltaDiscoveryRequest) -> Result<(), Status> {
        let subscribe = &request.resource_names_subscribe;
        let long = subscribe.iter().chain(request.initial_resource_versions.keys());
        if let Some(name) = long.into_iter().find(|name| name.len() > MAX_NAME) {
            return Err(Status::invalid_argument(format!(
                "a resource name has {} bytes, at most {MAX_NAME} are allowed",
                name.len()
            )));
        }
        let held = self.names.len() + self.explicit.len() + self.singles.len();
        if held + subscribe.len() > MAX_SUBSCRIPTIONS {
            return Err(Status::resource_exhausted(format!(
                "a proxy may subscribe to at most {MAX_SUBSCRIPTIONS} names: drop unused ones"
            )));
        }
        self.settle(&request);
        match request.type_url.as_str() {
            wire::DESTINATION => {
                self.keep(wire::DESTINATION, request.initial_resource_versions);
                self.unsubscribe_names(&request.resource_names_unsubscribe);
                self.subscribe_names(request.resource_names_subscribe)
            }
            wire::ENDPOINT => {
                self.keep(wire::ENDPOINT, request.initial_resource_versions);
                self.unsubscribe_collections(&request.resource_names_unsubscribe);
                self.subscribe_collections(request.resource_names_subscribe);
                Ok(())
            }
            wire::INBOUND | wire::MESH_SETTINGS => {
                self.subscribe_singles(request);
                Ok(())
            }
            _ => {
                // A newer proxy may know types that this build does not: none of them exists.
                if !request.resource_names_subscribe.is_empty() {
                    self.work.unknown.push((request.type_url, request.resource_names_subscribe));
                }
                Ok(())
            }
        }
    }

    /// Whether a pump would find something to do, and may.
    pub fn has_work(&self) -> bool {
        !self.work.is_empty() && !self.is_paused()
    }

    /// A proxy that acknowledges nothing is sent nothing more.
    pub fn is_paused(&self) -> bool {
        self.in_flight.len() >= MAX_IN_FLIGHT
    }

    /// Notes what changed; the next pump looks at it.
    pub fn touch(&mut self, dirty: &Dirty) {
        if dirty.deps.is_empty() {
            return;
        }
        for (name, state) in &self.names {
            if state.resolution.deps.iter().any(|dep| dirty.deps.contains(dep)) {
                self.work.names.insert(name.clone());
            }
        }
        for name in self.destinations.keys() {
            if dirty.deps.contains(&Dep::Service(PortId::from(name).service)) {
                self.work.destinations.insert(name.clone());
            }
        }
        for dep in &dirty.deps {
            match dep {
                Dep::Endpoints(port) if self.collections.contains_key(port) => {
                    self.work.collections.insert(port.clone());
                }
                Dep::Inbound(_) | Dep::Settings => {
                    let singles = self.singles.keys().filter(|key| single_dep(key) == *dep);
                    self.work.singles.extend(singles.cloned());
                }
                _ => {}
            }
        }
    }

    /// Works out what the proxy lacks and gives it, in the order in which it has to be sent.
    pub fn pump(&mut self, view: &mut View, nanos: u128) -> Vec<DeltaDiscoveryResponse> {
        let mut outbox = Outbox::default();
        self.resolve_names(view, &mut outbox);
        self.refresh_destinations(view, &mut outbox);
        self.refresh_needs(&mut outbox);
        self.refresh_collections(view, &mut outbox);
        self.refresh_singles(view, &mut outbox);
        for (type_url, names) in std::mem::take(&mut self.work.unknown) {
            outbox.other.push((type_url, Vec::new(), names));
        }
        self.sent_generation = view.commit.generation;
        let mut responses = Vec::new();
        for (mut response, sent) in outbox.into_responses() {
            self.last_nonce += 1;
            response.nonce = self.last_nonce.to_string();
            response.system_version_info = nanos.to_string();
            self.counts.responses += 1;
            self.counts.resources += response.resources.len() as u64;
            self.counts.removed += response.removed_resources.len() as u64;
            let in_flight = InFlight { generation: self.sent_generation, sent };
            self.in_flight.insert(self.last_nonce, in_flight);
            responses.push(response);
        }
        responses
    }

    /// What the stream depends on now, and what it did when last asked.
    pub fn update_interests(&mut self) -> (HashSet<Dep>, &HashSet<Dep>) {
        let names = self.names.values().flat_map(|name| name.resolution.deps.iter().cloned());
        let mut interests: HashSet<Dep> = names.collect();
        let destinations = self.destinations.keys();
        interests.extend(destinations.map(|name| Dep::Service(PortId::from(name).service)));
        interests.extend(self.collections.keys().cloned().map(Dep::Endpoints));
        interests.extend(self.singles.keys().map(single_dep));
        let old = std::mem::replace(&mut self.interests, interests);
        (old, &self.interests)
    }

    pub fn take_interests(&mut self) -> HashSet<Dep> {
        std::mem::take(&mut self.interests)
    }

    /// The last generation whose effects have been acknowledged.
    pub fn acknowledged_generation(&self) -> u64 {
        match self.in_flight.values().map(|response| response.generation).min() {
            Some(oldest) => oldest.saturating_sub(1),
            None => self.sent_generation,
        }
    }

    /// The destinations that the proxy was sent, and whether it has acknowledged what it was sent
    /// last.
    pub fn acknowledged(&self) -> impl Iterator<Item = (&DestinationName, bool)> {
        let sent = self.destinations.iter().filter(|(_, held)| held.sent.is_some());
        sent.map(|(name, held)| (name, held.sent == held.acknowledged))
    }

    /// What the admin server shows.
    pub fn describe(&self) -> Value {
        let names = self.names.iter().map(|(name, state)| {
            let target = state.resolution.target.as_ref();
            json!({
                "name": name,
                "destination": target.map(|target| target.name.to_string()),
                "pinned": target.and_then(|t| t.pin.as_ref()).map(ToString::to_string),
            })
        });
        let destinations = self.destinations.iter().map(|(name, held)| {
            json!({
                "name": name.to_string(), "sent": held.sent, "acknowledged": held.acknowledged,
            })
        });
        let collections = self.collections.iter().map(
            |(port, endpoints)| json!({ "name": marker(port), "endpoints": endpoints.sent.len() }),
        );
        let others = self.singles.iter().map(|((type_url, name), single)| {
            json!({
                "type": type_url, "name": name, "sent": single.sent,
                "acknowledged": single.acknowledged,
            })
        });
        json!({
            "id": self.proxy.id,
            "namespace": self.proxy.namespace,
            "zone": self.proxy.zone,
            "version": self.proxy.version,
            "subscriptions": names.collect::<Vec<_>>(),
            "destinations": destinations.collect::<Vec<_>>(),
            "collections": collections.collect::<Vec<_>>(),
            "resources": others.collect::<Vec<_>>(),
            "generation": self.acknowledged_generation(),
            "unacknowledged": self.in_flight.len(),
            "counts": self.counts,
            "nacks": self.nacks,
        })
    }

    /// Takes an acknowledgement or refusal of an earlier response.
    fn settle(&mut self, request: &DeltaDiscoveryRequest) {
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
            self.nacks.push_back(Nack {
                type_url: request.type_url.clone(),
                resources: sent.names,
                reason: detail.message.chars().take(1024).collect(),
            });
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

    fn keep(&mut self, type_url: &'static str, versions: BTreeMap<String, String>) {
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

    fn subscribe_names(&mut self, names: Vec<String>) -> Result<(), Status> {
        for name in names {
            if name == "*" {
                return Err(Status::invalid_argument(
                    "there is no wildcard subscription: subscribe to the names that the app dials",
                ));
            }
            let state = self.names.entry(name.clone()).or_default();
            // Asking again means not having it.
            state.refused = false;
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

    fn unsubscribe_names(&mut self, names: &[String]) {
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

    fn subscribe_collections(&mut self, names: Vec<String>) {
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

    fn unsubscribe_collections(&mut self, names: &[String]) {
        for name in names {
            if let Ok((destination, None)) = convert::endpoint::parse_name(name) {
                self.explicit.remove(&PortId::from(&destination));
                self.work.needs = true;
            }
        }
    }

    fn subscribe_singles(&mut self, mut request: DeltaDiscoveryRequest) {
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

    fn resolve_names(&mut self, view: &mut View, outbox: &mut Outbox) {
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
                    // A proxy that still has the destination by this name says so.
                    let kept = self.kept.get(wire::DESTINATION);
                    held.announce |= !kept.is_some_and(|kept| kept.contains_key(&name));
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

    fn refresh_destinations(&mut self, view: &mut View, outbox: &mut Outbox) {
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
            held.sent = Some(version.clone());
            let aliases = held.names.iter().filter(|alias| **alias != encoded.resource.name);
            let aliases = aliases.cloned().collect();
            let resource = resource(wire::DESTINATION, &encoded.resource, aliases);
            let (version, endpoints) = (version.clone(), encoded.endpoints.clone());
            let sent = SentDestination { name, version, endpoints };
            outbox.destinations.push((resource, sent));
        }
    }

    fn exists(&self, view: &View, name: &DestinationName) -> bool {
        let found = view.index.resolve(&name.to_string(), &self.proxy.namespace);
        found.target.is_some_and(|target| target.name == *name)
    }

    fn put_back(&mut self, name: &DestinationName, version: String) {
        self.kept.entry(wire::DESTINATION).or_default().insert(name.to_string(), version);
    }

    /// Adds collections that a destination, sent or in force, needs, and withdraws the others.
    fn refresh_needs(&mut self, outbox: &mut Outbox) {
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

    fn refresh_collections(&mut self, view: &mut View, outbox: &mut Outbox) {
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
    fn pins(&self, port: &PortId) -> HashSet<EndpointId> {
        let targets = self.names.values().filter_map(|name| name.resolution.target.as_ref());
        let pinned = targets.filter(|target| PortId::from(&target.name) == *port);
        pinned.filter_map(|target| target.pin.clone()).collect()
    }

    fn refresh_singles(&mut self, view: &mut View, outbox: &mut Outbox) {
        for key in std::mem::take(&mut self.work.singles) {
            let Some(single) = self.singles.get_mut(&key) else { continue };
            match view.single(&key.0, &key.1) {
                Some(encoded) => {
                    single.refused = false;
                    let announce = std::mem::take(&mut single.announce);
                    if announce || single.sent.as_ref() != Some(&encoded.version) {
                        single.sent = Some(encoded.version.clone());
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

fn marker(port: &PortId) -> String {
    convert::endpoint::collection(&port.destination())
}

fn single_dep((type_url, name): &(String, String)) -> Dep {
    if type_url == wire::INBOUND { Dep::Inbound(name.clone()) } else { Dep::Settings }
}

impl Proxy {
    /// Reads the node of the first request.
    pub fn from_node(node: &Node) -> Result<Self, Status> {
        if node.id.is_empty() || node.id.len() > MAX_NAME {
            return Err(Status::invalid_argument(format!(
                "node.id: must be the workload's uid, 1 to {MAX_NAME} bytes"
            )));
        }
        let metadata = node.metadata.as_ref().and_then(|m| m.fields.get(wire::NODE_NAMESPACE));
        let namespace = match metadata.and_then(|value| value.kind.as_ref()) {
            Some(prost_types::value::Kind::StringValue(namespace)) => namespace.clone(),
            _ => String::new(),
        };
        if let Err(problem) = outrigger_core::name::check_label(&namespace) {
            let problem = problem.under("node.metadata.namespace");
            return Err(Status::invalid_argument(problem.to_string()));
        }
        let zone = node.locality.as_ref().map(|locality| locality.zone.clone());
        Ok(Self {
            id: node.id.clone(),
            namespace,
            zone: zone.filter(|zone| !zone.is_empty()),
            version: node.user_agent_version.clone(),
        })
    }
}
