//! What a client has been sent, in no more detail than it needs to ask as a proxy does: names and
//! versions, no bodies.

use std::collections::{BTreeMap, HashMap, HashSet};

use outrigger_proto::wire::{self, DeltaDiscoveryRequest, DeltaDiscoveryResponse, Locality, Node};
use prost_types::value::Kind;

use crate::Plan;

/// As a proxy does, so that no request is too large.
const NAMES_AT_ONCE: usize = 2_000;

#[derive(Debug, Default)]
pub struct Holdings {
    settings: Option<String>,
    /// Dialled name to the destination's own.
    resolved: HashMap<String, String>,
    /// Versions by name.
    destinations: HashMap<String, String>,
    /// Likewise; the marker that ends a collection is among them.
    endpoints: HashMap<String, String>,
    /// How many steps have been asked for.
    pub asked: usize,
    /// Names that are not answered yet on this stream.
    pending: HashSet<String>,
}

impl Holdings {
    /// What a new stream begins with, as a proxy's does: what is held, then what is wanted.
    pub fn first(&mut self, plan: &Plan) -> Vec<DeltaDiscoveryRequest> {
        self.asked = self.asked.max(1);
        let settings = self.settings.iter();
        let settings =
            settings.map(|version| (wire::MESH_SETTINGS_NAME.to_owned(), version.clone()));
        let mesh = vec![wire::MESH_SETTINGS_NAME.to_owned()];
        let mut requests = vec![
            subscribe(wire::MESH_SETTINGS, mesh, settings.collect()),
            subscribe(wire::INBOUND, vec![plan.id.clone()], BTreeMap::new()),
        ];
        let endpoints: Vec<_> = self.endpoints.iter().collect();
        for some in endpoints.chunks(NAMES_AT_ONCE) {
            let versions = some.iter().map(|(name, version)| ((*name).clone(), (*version).clone()));
            requests.push(subscribe(wire::ENDPOINT, Vec::new(), versions.collect()));
        }
        let names = plan.steps.iter().take(self.asked).flatten().cloned();
        let (known, unknown): (Vec<_>, Vec<_>) =
            names.partition(|name| self.resolved.contains_key(name));
        for names in known.chunks(NAMES_AT_ONCE) {
            let versions = names.iter().filter_map(|name| {
                let name = self.resolved.get(name)?;
                Some((name.clone(), self.destinations.get(name)?.clone()))
            });
            requests.push(subscribe(wire::DESTINATION, names.to_vec(), versions.collect()));
        }
        for names in unknown.chunks(NAMES_AT_ONCE) {
            requests.push(subscribe(wire::DESTINATION, names.to_vec(), BTreeMap::new()));
        }
        self.pending = unknown.into_iter().collect();
        requests[0].node = Some(node(plan));
        requests
    }

    /// What the next step asks for; none: there are no more.
    pub fn next(&mut self, plan: &Plan) -> Option<Vec<DeltaDiscoveryRequest>> {
        let names = plan.steps.get(self.asked)?;
        self.asked += 1;
        self.pending = names.iter().cloned().collect();
        let requests = names.chunks(NAMES_AT_ONCE);
        let ask = |names: &[String]| subscribe(wire::DESTINATION, names.to_vec(), BTreeMap::new());
        Some(requests.map(ask).collect())
    }

    /// Takes over what came; the request acknowledges it.
    pub fn apply(&mut self, response: DeltaDiscoveryResponse) -> DeltaDiscoveryRequest {
        for resource in response.resources {
            match response.type_url.as_str() {
                wire::DESTINATION => {
                    for alias in resource.aliases {
                        self.resolved.insert(alias, resource.name.clone());
                    }
                    self.destinations.insert(resource.name, resource.version);
                }
                wire::ENDPOINT => drop(self.endpoints.insert(resource.name, resource.version)),
                wire::MESH_SETTINGS => self.settings = Some(resource.version),
                _ => {}
            }
        }
        for name in &response.removed_resources {
            match response.type_url.as_str() {
                wire::DESTINATION => {
                    self.pending.remove(name);
                    self.resolved.remove(name);
                    self.destinations.remove(name);
                }
                wire::ENDPOINT => drop(self.endpoints.remove(name)),
                _ => {}
            }
        }
        let Self { pending, resolved, destinations, endpoints, .. } = self;
        pending.retain(|name| {
            let whole = resolved.get(name).is_some_and(|destination| {
                destinations.contains_key(destination)
                    && endpoints.contains_key(&format!("{destination}/*"))
            });
            !whole
        });
        DeltaDiscoveryRequest {
            type_url: response.type_url,
            response_nonce: response.nonce,
            ..Default::default()
        }
    }

    /// Everything that has been asked for is there, or is known not to be.
    pub fn is_complete(&self) -> bool {
        self.pending.is_empty() && self.settings.is_some()
    }

    pub fn holds(&self, endpoint: &str) -> bool {
        self.endpoints.contains_key(endpoint)
    }

    /// Names of endpoints that begin so, without markers.
    pub fn endpoints<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a str> {
        let names = self.endpoints.keys().map(String::as_str);
        names.filter(move |name| name.starts_with(prefix) && !name.ends_with("/*"))
    }
}

fn subscribe(
    type_url: &str,
    names: Vec<String>,
    versions: BTreeMap<String, String>,
) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: type_url.to_owned(),
        resource_names_subscribe: names,
        initial_resource_versions: versions.into_iter().collect(),
        ..Default::default()
    }
}

fn node(plan: &Plan) -> Node {
    let namespace = prost_types::Value { kind: Some(Kind::StringValue(plan.namespace.clone())) };
    let fields = [(wire::NODE_NAMESPACE.to_owned(), namespace)].into();
    Node {
        id: plan.id.clone(),
        cluster: format!("{}/default", plan.namespace),
        metadata: Some(prost_types::Struct { fields }),
        locality: Some(Locality { zone: plan.zone.clone(), ..Default::default() }),
        user_agent_name: "outrigger-proxy".to_owned(),
        user_agent_version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}
