//! Everything received from the control plane, and putting it in force.
//!
//! Synchronous and without I/O: a response goes in, problems come out, and `store` has changed. A
//! resource that is not understood leaves its last good version in force, and what it was to replace.

mod names;
mod namespaces;
mod refused;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use names::SubscribedNames;
use namespaces::Namespaces;
use outrigger_core::compile::compile;
use outrigger_core::config::{Endpoint, MeshSettings, Unmatched};
use outrigger_core::error::FieldError;
use outrigger_core::name::{Authority, DestinationName, EndpointId};
use outrigger_proto::convert::{self, is_unsupported};
use outrigger_proto::{mesh, wire};
use prost::Message;
use refused::RefusedDestinations;

use crate::mesh::state::{Saved, SavedResource};
use crate::proxy::Proxy;
use crate::upstream::faults;
use crate::upstream::store::{Live, Resolution};

pub struct Holdings {
    proxy: Arc<Proxy>,
    /// What the app has dialled.
    wanted: BTreeSet<Authority>,
    /// Dialled name to canonical name.
    resolved: SubscribedNames,
    destinations: BTreeMap<String, HeldDestination>,
    refused: RefusedDestinations,
    endpoints: HashMap<DestinationName, Collection>,
    inbound: Option<HeldResource>,
    settings: Option<HeldResource>,
    namespaces: Namespaces,
    trust: Option<HeldResource>,
    changed: bool,
}

/// A resource as it came, for the disk copy and for `initial_resource_versions`.
#[derive(Clone)]
struct HeldResource {
    version: String,
    bytes: Bytes,
}

struct HeldDestination {
    held: HeldResource,
    live: Arc<Live>,
}

#[derive(Default)]
struct Collection {
    endpoints: BTreeMap<EndpointId, (HeldResource, Endpoint)>,
    /// Version of the marker that ends the collection, once it has come.
    complete: Option<String>,
}

impl Holdings {
    pub fn new(proxy: Arc<Proxy>) -> Self {
        Self {
            wanted: BTreeSet::new(),
            resolved: SubscribedNames::default(),
            destinations: BTreeMap::new(),
            refused: RefusedDestinations::default(),
            endpoints: HashMap::new(),
            inbound: None,
            settings: None,
            namespaces: Namespaces::with(&proxy.settings.namespace),
            trust: None,
            changed: false,
            proxy,
        }
    }

    /// The app has dialled `authority`.
    pub fn want(&mut self, authority: Authority) {
        self.changed |= self.wanted.insert(authority);
    }

    /// Puts a response in force. Returns what was refused, as `resource: field.path: problem`.
    pub fn apply(
        &mut self,
        type_url: &str,
        resources: &[wire::Resource],
        removed: &[String],
    ) -> Vec<String> {
        self.changed = true;
        let mut problems = Vec::new();
        let mut touched = BTreeSet::new();
        for resource in resources {
            let applied = match type_url {
                wire::DESTINATION => self.destination(resource),
                wire::ENDPOINT => self.endpoint(resource, &mut touched),
                wire::INBOUND => self.inbound(resource).inspect_err(|_| self.close_unknown()),
                wire::MESH_SETTINGS => {
                    self.settings(resource).inspect_err(|_| self.refuse_unknown())
                }
                wire::TRUST_BUNDLE => self.trust(resource),
                other => Err(FieldError::here(format!("unknown resource type {other}"))),
            };
            if let Err(error) = applied {
                problems.push(format!("{}: {error}", resource.name));
            }
        }
        let needed = match type_url {
            wire::ENDPOINT => self.still_needed(removed),
            _ => BTreeSet::new(),
        };
        for name in removed {
            match type_url {
                wire::DESTINATION => self.remove_destination(name),
                wire::ENDPOINT => self.remove_endpoint(name, &needed, &mut touched),
                // A workload or mesh without them keeps what it has.
                _ => {}
            }
        }
        for name in touched {
            self.publish(&name);
        }
        self.proxy.store.notify();
        problems
    }

    fn destination(&mut self, resource: &wire::Resource) -> Result<(), FieldError> {
        let held = held(resource)?;
        let compiled = mesh::Destination::decode(held.bytes.clone())
            .map_err(|e| FieldError::here(format!("not a Destination: {e}")))
            .and_then(|wire| convert::destination::from_wire(&wire))
            .and_then(|mut config| {
                if config.name.to_string() != resource.name {
                    let problem = format!("{} is named {}", config.name, resource.name);
                    return Err(FieldError::at("name", problem));
                }
                faults::keep_own(&mut config, &self.proxy.settings);
                compile(&config)
            });
        // A name may have been dropped since it was asked for.
        let aliases: Vec<Authority> = resource
            .aliases
            .iter()
            .filter_map(|alias| Authority::parse(alias, None).ok())
            .filter(|alias| self.wanted.contains(alias))
            .collect();
        let compiled = match compiled {
            Ok(compiled) => compiled,
            Err(error) => {
                if is_unsupported(&error) && !self.destinations.contains_key(&resource.name) {
                    let why: Arc<str> = format!("{}: {error}", resource.name).into();
                    for alias in &aliases {
                        let unsupported = Resolution::Unsupported(Arc::clone(&why));
                        self.proxy.store.resolve(alias, unsupported);
                    }
                }
                self.refused.add(&resource.name, aliases);
                return Err(error);
            }
        };
        for alias in aliases {
            self.resolved.insert(alias, &resource.name);
        }
        self.refused.taken(&resource.name);
        if !self.resolved.has(&resource.name) {
            // Every name was dropped since it was asked for.
            self.destinations.remove(&resource.name);
            self.drop_replaced();
            return Ok(());
        }
        let live = Arc::new(self.proxy.store.live(compiled, &self.proxy.metrics));
        let held = HeldDestination { held, live: Arc::clone(&live) };
        let old = self.destinations.insert(resource.name.clone(), held);
        self.drop_replaced();
        for authority in self.resolved.of(&resource.name) {
            self.proxy.store.resolve(authority, Resolution::Found(Arc::clone(&live)));
        }
        drop(old);
        Ok(())
    }

    fn endpoint(
        &mut self,
        resource: &wire::Resource,
        touched: &mut BTreeSet<DestinationName>,
    ) -> Result<(), FieldError> {
        let (destination, id) = convert::endpoint::parse_name(&resource.name)?;
        let collection = self.endpoints.entry(destination.clone()).or_default();
        match id {
            None => collection.complete = Some(resource.version.clone()),
            Some(id) => {
                let held = held(resource)?;
                let wire = mesh::Endpoint::decode(held.bytes.clone())
                    .map_err(|e| FieldError::here(format!("not an Endpoint: {e}")))?;
                let endpoint = convert::endpoint::from_wire(&resource.name, &wire)?;
                collection.endpoints.insert(id, (held, endpoint));
            }
        }
        touched.insert(destination);
        Ok(())
    }

    fn remove_endpoint(
        &mut self,
        name: &str,
        needed: &BTreeSet<DestinationName>,
        touched: &mut BTreeSet<DestinationName>,
    ) {
        let Ok((destination, id)) = convert::endpoint::parse_name(name) else { return };
        if needed.contains(&destination) {
            return;
        }
        match id {
            None => drop(self.endpoints.remove(&destination)),
            Some(id) => {
                if let Some(collection) = self.endpoints.get_mut(&destination) {
                    collection.endpoints.remove(&id);
                }
            }
        }
        touched.insert(destination);
    }

    /// Puts a collection of endpoints in force as a whole.
    fn publish(&self, name: &DestinationName) {
        let (endpoints, complete) = match self.endpoints.get(name) {
            Some(collection) => (
                collection.endpoints.values().map(|(_, endpoint)| endpoint.clone()).collect(),
                collection.complete.is_some(),
            ),
            None => (Vec::new(), false),
        };
        let metrics = &self.proxy.metrics;
        self.proxy.store.endpoints(name, metrics).replace(endpoints, complete, metrics);
    }

    fn inbound(&mut self, resource: &wire::Resource) -> Result<(), FieldError> {
        let held = held(resource)?;
        let wire = mesh::Inbound::decode(held.bytes.clone())
            .map_err(|e| FieldError::here(format!("not an Inbound: {e}")))?;
        let inbound = convert::inbound::from_wire(&wire)?;
        let proxy = &self.proxy;
        let ports = proxy.inbound_ports(&inbound)?;
        proxy.inbound.store(Arc::new(ports));
        self.inbound = Some(held);
        Ok(())
    }

    /// Who may call is written in a way that is not understood, and was never understood before.
    fn close_unknown(&self) {
        if self.inbound.is_none() {
            let closed = self.proxy.inbound.load().closed();
            self.proxy.inbound.store(Arc::new(closed));
        }
    }

    fn settings(&mut self, resource: &wire::Resource) -> Result<(), FieldError> {
        let held = held(resource)?;
        let wire = mesh::MeshSettings::decode(held.bytes.clone())
            .map_err(|e| FieldError::here(format!("not MeshSettings: {e}")))?;
        let settings = convert::settings::from_wire(&wire)?;
        if resource.name != wire::MESH_SETTINGS_NAME {
            // A further part of them, which only adds namespaces.
            self.namespaces.add_part(&resource.name, &held.version, settings.namespaces);
            let mesh = MeshSettings::clone(&self.proxy.mesh.load());
            self.proxy.mesh.store(Arc::new(self.namespaces.complete(mesh)));
            return Ok(());
        }
        self.proxy.configure_telemetry(&settings.telemetry);
        self.proxy.mesh.store(Arc::new(self.namespaces.complete(settings)));
        self.settings = Some(held);
        Ok(())
    }

    /// What is inside the mesh is written in a way that is not understood, and was never understood before.
    fn refuse_unknown(&self) {
        if self.settings.is_none() {
            let mesh = MeshSettings::clone(&self.proxy.mesh.load());
            self.proxy.mesh.store(Arc::new(MeshSettings { unmatched: Unmatched::Refuse, ..mesh }));
        }
    }

    fn trust(&mut self, resource: &wire::Resource) -> Result<(), FieldError> {
        let held = held(resource)?;
        let wire = mesh::TrustBundle::decode(held.bytes.clone())
            .map_err(|e| FieldError::here(format!("not a TrustBundle: {e}")))?;
        let bundle = convert::trust::from_wire(&wire)?;
        if let Some(identity) = &self.proxy.identity {
            identity.set_bundle(&bundle)?;
        }
        self.trust = Some(held);
        Ok(())
    }

    /// Forgets names that the store holds no more, and what only they led to.
    pub fn forget(&mut self, dropped: &[Authority]) {
        if dropped.is_empty() {
            return;
        }
        self.changed = true;
        for authority in dropped {
            self.wanted.remove(authority);
            self.resolved.remove(authority);
            self.refused.forget(authority);
        }
        self.drop_replaced();
        if self.destinations.len() > self.resolved.destinations() {
            let resolved = &self.resolved;
            self.destinations.retain(|name, _| resolved.has(name));
        }
        for name in self.proxy.store.drop_unused_endpoints() {
            self.endpoints.remove(&name);
        }
    }

    /// Name to version of everything held of a type.
    pub fn versions(&self, type_url: &str) -> BTreeMap<String, String> {
        let held = self.each().filter(|resource| resource.type_url == type_url);
        let held = held.map(|resource| (resource.name, resource.version));
        let parts = self.namespaces.parts().filter(|_| type_url == wire::MESH_SETTINGS);
        held.chain(parts).collect()
    }

    /// Dialled names that lead somewhere, and the versions of where they lead, in pieces of at most
    /// `most` names.
    pub fn resolved_names(&self, most: usize) -> Vec<(Vec<String>, BTreeMap<String, String>)> {
        let resolved: Vec<(&Authority, &String)> = self.resolved.iter().collect();
        let piece = |piece: &[(&Authority, &String)]| {
            let version = |name: &String| Some(self.destinations.get(name)?.held.version.clone());
            let versions =
                piece.iter().filter_map(|(_, name)| Some(((*name).clone(), version(name)?)));
            (piece.iter().map(|(name, _)| name.to_string()).collect(), versions.collect())
        };
        resolved.chunks(most).map(piece).collect()
    }

    pub fn unresolved_names(&self) -> Vec<String> {
        let unresolved = self.wanted.iter().filter(|name| !self.resolved.contains(name));
        unresolved.map(ToString::to_string).collect()
    }

    /// What the disk copy should hold, if that has changed since the last call.
    pub fn changed(&mut self) -> Option<Saved> {
        let (namespaces, more_namespaces) = self.namespaces.saved();
        std::mem::take(&mut self.changed).then(|| Saved {
            wanted: self.wanted.iter().map(ToString::to_string).collect(),
            resources: self.each().collect(),
            namespaces,
            more_namespaces,
        })
    }

    /// Everything held, in an order in which it can be applied.
    fn each(&self) -> impl Iterator<Item = SavedResource> {
        let saved = |type_url: &str, name: String, held: &HeldResource, aliases| SavedResource {
            type_url: type_url.to_owned(),
            name,
            version: held.version.clone(),
            value: held.bytes.clone(),
            aliases,
        };
        let settings = self.settings.iter().map(move |held| {
            saved(wire::MESH_SETTINGS, wire::MESH_SETTINGS_NAME.to_owned(), held, Vec::new())
        });
        let trust = self.trust.iter().map(move |held| {
            saved(wire::TRUST_BUNDLE, wire::TRUST_BUNDLE_NAME.to_owned(), held, Vec::new())
        });
        let uid = self.proxy.settings.uid();
        let inbound = self
            .inbound
            .iter()
            .map(move |held| saved(wire::INBOUND, uid.clone(), held, Vec::new()));
        let endpoints = self.endpoints.iter().flat_map(move |(destination, collection)| {
            let marker = collection.complete.as_ref().map(|version| {
                let held = HeldResource { version: version.clone(), bytes: Bytes::new() };
                let name = convert::endpoint::collection(destination);
                saved(wire::ENDPOINT, name, &held, Vec::new())
            });
            let each = collection.endpoints.values().map(move |(held, endpoint)| {
                saved(wire::ENDPOINT, convert::endpoint::name(endpoint), held, Vec::new())
            });
            each.chain(marker)
        });
        let destinations = self.destinations.iter().map(move |(name, destination)| {
            let aliases = self.resolved.of(name).map(ToString::to_string).collect();
            saved(wire::DESTINATION, name.clone(), &destination.held, aliases)
        });
        settings.chain(trust).chain(inbound).chain(endpoints).chain(destinations)
    }

    /// Puts a disk copy in force. Returns how many destinations and endpoints it held.
    pub fn restore(&mut self, saved: &Saved) -> (usize, usize) {
        for name in &saved.wanted {
            if let Ok(authority) = Authority::parse(name, None) {
                // A copy of more names than are held is cut: the rest is dialled anew.
                if self.proxy.store.dial(&authority, 0).is_ok() {
                    self.want(authority);
                }
            }
        }
        drop(self.proxy.store.changes());
        self.namespaces.add(saved.namespaces.iter().cloned(), saved.more_namespaces);
        let mesh = MeshSettings::clone(&self.proxy.mesh.load());
        self.proxy.mesh.store(Arc::new(self.namespaces.complete(mesh)));
        for resource in &saved.resources {
            let any =
                wire::Any { type_url: resource.type_url.clone(), value: resource.value.clone() };
            let wired = wire::Resource {
                version: resource.version.clone(),
                resource: Some(any),
                name: resource.name.clone(),
                aliases: resource.aliases.clone(),
                ..Default::default()
            };
            for problem in self.apply(&resource.type_url, &[wired], &[]) {
                tracing::warn!(problem, "left out of the restored configuration");
            }
        }
        self.changed = false;
        (self.destinations.len(), self.endpoints.values().map(|c| c.endpoints.len()).sum())
    }

    /// Dialled and canonical names with versions, for the admin server.
    pub fn live(&self) -> impl Iterator<Item = (&String, &str, &Arc<Live>)> {
        self.destinations.iter().map(|(name, d)| (name, d.held.version.as_str(), &d.live))
    }
}

fn held(resource: &wire::Resource) -> Result<HeldResource, FieldError> {
    let body = resource.resource.as_ref().ok_or_else(|| FieldError::here("it has no body"))?;
    Ok(HeldResource { version: resource.version.clone(), bytes: body.value.clone() })
}

#[cfg(test)]
mod tests;
