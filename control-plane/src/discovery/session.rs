//! One proxy's discovery stream as a state machine: what it asked for, what it was sent, what it
//! has acknowledged.
//!
//! [`Session::receive`] takes a request (see [`receive`]), [`Session::pump`] compares what the
//! proxy has with what it should have (see [`refresh`]) and gives the responses that close the gap.
//! Nothing here waits or sends.
//!
//! A subscription to a name implies the endpoints of the destination and of all its backends.
//! Updates are make before break: endpoints of new backends go out before the destination that
//! routes to them, and endpoints that are no longer needed are withdrawn only when the destination
//! that let go of them is acknowledged.

mod counted;
mod few;
mod interests;
mod receive;
mod refresh;
mod report;
mod show;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use counted::Counted;
use few::Few;
use interests::Interests;
use outrigger_core::bounds;
use outrigger_core::identity::SpiffeId;
use outrigger_core::name::{DestinationName, EndpointId};
use outrigger_proto::convert;
use outrigger_proto::wire::{self, DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node};
use report::{Unreported, of_service};
use tonic::Status;

use super::outbox::{Outbox, Sent};
use crate::index::{Dep, PortId};
use crate::publish::{Dirty, EncodedDestination, Member, ShareOwner, View};

/// Names that one proxy may be subscribed to; an app calls dozens of destinations. A proxy holds at most 9,900
/// (`MAX_NAMES`); the rest is headroom for names being exchanged.
pub const MAX_SUBSCRIPTIONS: usize = 10_240;
/// Bytes of one name: the longest host name and port, or a canonical name, fits twice.
pub const MAX_NAME: usize = bounds::NAME;
/// Responses that may wait for their acknowledgement before the stream pauses.
const MAX_IN_FLIGHT: usize = 64;
/// Refusals remembered for the admin server.
const MAX_NACKS: usize = 16;
/// Characters of a refusal's reason that are kept.
const MAX_REASON: usize = bounds::REASON;
/// Names that are resolved at once; other streams have their turn before the next ones.
const NAMES_AT_ONCE: usize = 512;
/// Version of the resource that marks a collection as complete; it has no content.
const MARKER_VERSION: &str = "1";

/// There is one for every proxy: what it holds many of is small, and shared with the others where it can be.
#[derive(Debug)]
pub struct Session {
    pub proxy: Proxy,
    /// By dialled name.
    names: BTreeMap<Arc<str>, Name>,
    interests: Interests,
    /// Endpoints that are dialled by names of their own, with how many names each has.
    pins: HashMap<PortId, HashMap<EndpointId, usize>>,
    destinations: BTreeMap<Arc<DestinationName>, HeldDestination>,
    /// Destinations that no name leads to any more, kept until what names were moved to is acknowledged.
    retiring: BTreeMap<DestinationName, BTreeSet<DestinationName>>,
    collections: BTreeMap<Arc<PortId>, Endpoints>,
    /// Collections that a destination, sent or in force, or a subscription of its own needs.
    needed: Counted<Arc<PortId>>,
    /// Collections asked for by name.
    explicit: BTreeSet<Arc<PortId>>,
    /// By type and name.
    singles: BTreeMap<(String, String), Single>,
    /// Versions of the further parts of the settings that the proxy was sent.
    settings_parts: Vec<Option<Arc<str>>>,
    /// Versions that the proxy kept from an earlier stream and that nothing has asked for yet.
    kept: HashMap<&'static str, BTreeMap<String, String>>,
    work: Work,
    unreported: Unreported,
    /// It has been said that there are too many subscriptions.
    full: bool,
    in_flight: BTreeMap<u64, InFlight>,
    last_nonce: u64,
    /// The commit up to which everything has been sent.
    sent_generation: u64,
    pub nacks: VecDeque<Nack>,
    pub counts: SessionCounts,
}

/// What a proxy says about itself in its first request.
#[derive(Clone, Debug)]
pub struct Proxy {
    /// The workload's uid.
    pub id: String,
    pub namespace: String,
    pub zone: Option<String>,
    pub node: Option<String>,
    pub version: String,
    /// What it has proven; none in a mesh without identities.
    pub identity: Option<SpiffeId>,
}

#[derive(Debug, Default)]
struct Name {
    target: Option<NameTarget>,
    /// What its meaning depends on.
    deps: Box<[Arc<Dep>]>,
    /// The proxy has it from an earlier stream.
    known: bool,
    /// Told that nothing has this name.
    refused: bool,
}

/// What a name means.
#[derive(Clone, Debug, PartialEq, Eq)]
struct NameTarget {
    name: Arc<DestinationName>,
    /// The one endpoint that was meant.
    pin: Option<Box<EndpointId>>,
}

/// A destination that the proxy has or is about to get.
#[derive(Debug, Default)]
struct HeldDestination {
    /// What the proxy dials it by.
    names: Few<Arc<str>>,
    /// Send it although its version is known: the proxy asked again, or does not know it by a name.
    announce: bool,
    /// Names that the proxy does not know it by.
    unannounced: Option<Box<Few<Arc<str>>>>,
    sent: Option<Arc<EncodedDestination>>,
    acknowledged: Option<Arc<EncodedDestination>>,
    /// Why the proxy refused the version sent last, if it did.
    refused: Option<Box<str>>,
}

impl HeldDestination {
    fn unannounce(&mut self, name: Arc<str>) {
        self.announce = true;
        self.unannounced.get_or_insert_default().insert(name);
    }

    fn forget_name(&mut self, name: &str) {
        self.names.remove(name);
        if let Some(unannounced) = &mut self.unannounced {
            unannounced.remove(name);
        }
    }
}

/// Whose endpoints a version needs.
fn endpoints_of(version: &Option<Arc<EncodedDestination>>) -> &[Arc<PortId>] {
    version.as_ref().map_or(&[], |version| &version.endpoints)
}

fn version_of(version: &Option<Arc<EncodedDestination>>) -> Option<&str> {
    version.as_ref().map(|version| &*version.resource.version)
}

#[derive(Debug, Default)]
struct Endpoints {
    /// In the order of their ids.
    sent: Vec<Arc<Member>>,
    complete: bool,
    /// The publisher knows that everything of it concerns the proxy.
    whole: bool,
    /// Told that there is no such port.
    refused: bool,
}

#[derive(Debug, Default)]
struct Single {
    sent: Option<Arc<str>>,
    acknowledged: Option<Arc<str>>,
    refused: bool,
    /// Why the proxy refused the version sent last, if it did.
    objection: Option<String>,
    announce: bool,
    /// The stream depends on it.
    subscribed: bool,
}

/// What the next pump has to look at.
#[derive(Debug, Default)]
struct Work {
    names: BTreeSet<Arc<str>>,
    destinations: BTreeSet<Arc<DestinationName>>,
    collections: BTreeSet<Arc<PortId>>,
    singles: BTreeSet<(String, String)>,
    /// Of types or names that are nothing here.
    unknown: Vec<(String, Vec<String>)>,
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
pub struct SessionCounts {
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
            interests: Interests::default(),
            pins: HashMap::new(),
            destinations: BTreeMap::new(),
            retiring: BTreeMap::new(),
            collections: BTreeMap::new(),
            needed: Counted::default(),
            explicit: BTreeSet::new(),
            singles: BTreeMap::new(),
            settings_parts: Vec::new(),
            kept: HashMap::new(),
            work: Work::default(),
            unreported: Unreported::default(),
            full: false,
            in_flight: BTreeMap::new(),
            last_nonce: 0,
            sent_generation: 0,
            nacks: VecDeque::new(),
            counts: SessionCounts::default(),
        }
    }

    /// Takes one request: an acknowledgement, subscriptions, or both.
    pub fn receive(&mut self, mut request: DeltaDiscoveryRequest) {
        request.initial_resource_versions.retain(|name, _| name.len() <= MAX_NAME);
        self.settle(&request);
        match request.type_url.as_str() {
            wire::DESTINATION => {
                // Names that come along with what the proxy kept are known by it; a name that it
                // does not know yet it asks for apart.
                let known = !request.initial_resource_versions.is_empty();
                self.keep(wire::DESTINATION, request.initial_resource_versions);
                self.unsubscribe_names(&request.resource_names_unsubscribe);
                self.subscribe_names(request.resource_names_subscribe, known);
            }
            wire::ENDPOINT => {
                self.keep(wire::ENDPOINT, request.initial_resource_versions);
                self.unsubscribe_collections(&request.resource_names_unsubscribe);
                self.subscribe_collections(request.resource_names_subscribe);
            }
            wire::INBOUND | wire::MESH_SETTINGS | wire::TRUST_BUNDLE => {
                self.subscribe_singles(request);
            }
            _ => {
                // A newer proxy may know types that this build does not: none of them exists.
                if !request.resource_names_subscribe.is_empty() {
                    self.work.unknown.push((request.type_url, request.resource_names_subscribe));
                }
            }
        }
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
        for dep in &dirty.deps {
            self.work.names.extend(self.interests.names(dep).cloned());
            match &**dep {
                Dep::Service(id) => {
                    let of_service = of_service(&self.destinations, id).map(|(name, _)| name);
                    self.work.destinations.extend(of_service.cloned());
                }
                Dep::Endpoints(port) => {
                    let held = self.collections.get_key_value(port);
                    self.work.collections.extend(held.map(|(port, _)| port.clone()));
                }
                Dep::Inbound(_) | Dep::Settings | Dep::Trust => {
                    let singles = self.singles.keys().filter(|key| single_dep(key) == **dep);
                    self.work.singles.extend(singles.cloned());
                }
                Dep::Ip(_) | Dep::Dialled(_) => {}
            }
        }
    }

    /// Works out what the proxy lacks and gives it, in the order in which it has to be sent.
    pub fn pump(&mut self, view: &mut View<'_>, nanos: u128) -> Vec<DeltaDiscoveryResponse> {
        let mut outbox = Outbox::default();
        self.resolve_names(view, &mut outbox);
        self.refresh_destinations(view, &mut outbox);
        self.refresh_needs(view, &mut outbox);
        self.refresh_collections(view, &mut outbox);
        self.refresh_singles(view, &mut outbox);
        for (type_url, names) in std::mem::take(&mut self.work.unknown) {
            outbox.other.push((type_url, Vec::new(), names));
        }
        if !self.has_more() {
            self.sent_generation = view.told;
        }
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

    /// Whether there was more to do than is done at once.
    pub fn has_more(&self) -> bool {
        !self.work.names.is_empty()
    }

    /// What the stream no longer depends on, since last asked.
    pub fn interest_changes(&mut self) -> Vec<Arc<Dep>> {
        self.interests.take_ended()
    }

    /// Everything that the stream depends on; it is over.
    pub fn take_interests(&mut self) -> Vec<Arc<Dep>> {
        self.interests.take()
    }

    /// The version of the trust bundle that the proxy has in force, as far as it has said.
    pub fn acknowledged_trust(&self) -> Option<&str> {
        let key = (wire::TRUST_BUNDLE.to_owned(), wire::TRUST_BUNDLE_NAME.to_owned());
        self.singles.get(&key)?.acknowledged.as_deref()
    }

    /// The last generation whose effects have been acknowledged.
    pub fn acknowledged_generation(&self) -> u64 {
        match self.in_flight.values().map(|response| response.generation).min() {
            Some(oldest) => oldest.saturating_sub(1),
            None => self.sent_generation,
        }
    }
}

fn marker(port: &PortId) -> String {
    convert::endpoint::collection(&port.destination())
}

fn single_dep((type_url, name): &(String, String)) -> Dep {
    match type_url.as_str() {
        wire::INBOUND => Dep::Inbound(name.clone()),
        wire::TRUST_BUNDLE => Dep::Trust,
        _ => Dep::Settings,
    }
}

impl Proxy {
    fn place(&self) -> ShareOwner<'_> {
        let (zone, node) = (self.zone.as_deref(), self.node.as_deref());
        ShareOwner { proxy: &self.id, zone, node }
    }

    /// Whether a workload is one of the proxy's proven identity.
    fn owns(&self, view: &View<'_>, uid: &str) -> bool {
        let Some(identity) = &self.identity else { return true };
        let workload = view.index.workload(uid);
        workload.is_some_and(|workload| view.index.identity(workload).as_ref() == Some(identity))
    }

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
        let place = node.locality.clone().unwrap_or_default();
        let set = |text: String| Some(text).filter(|text| !text.is_empty());
        Ok(Self {
            id: node.id.clone(),
            namespace,
            zone: set(place.zone),
            // As Envoy has it: the part of a zone.
            node: set(place.sub_zone),
            version: node.user_agent_version.clone(),
            identity: None,
        })
    }
}
