//! Everything the mesh is made of: a synchronous store, and what each change touches.
//!
//! Sources put objects in with [`Index::apply`] and [`Index::remove`]; each call notes in a set of
//! [`Dep`]s what may look different now, and nothing else is computed. [`crate::publish`] takes the
//! set at the end of a commit and asks for what its proxies need. There is no I/O here, no clock
//! and no lock.

mod links;
mod names;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use outrigger_core::config::{BackendTarget, Endpoint, MeshSettings};
use outrigger_core::error::FieldError;
use outrigger_core::name::{DestinationName, EndpointId};

pub use names::{Resolution, Target};

use crate::object::{
    EndpointSlice, Kind, Object, ObjectId, ReferenceGrant, Route, Service, ServiceId, Workload,
};
use crate::translate::{self, destination};
use links::{Labels, Links};

/// One port of one Service: what a collection of endpoints belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortId {
    pub service: ServiceId,
    pub port: u16,
}

impl PortId {
    pub fn new(service: &ServiceId, port: u16) -> Self {
        Self { service: service.clone(), port }
    }

    /// The destination that every caller without routes of its own sees.
    pub fn destination(&self) -> DestinationName {
        DestinationName {
            namespace: self.service.namespace.clone(),
            service: self.service.name.clone(),
            port: self.port,
            consumer: None,
        }
    }
}

impl From<&DestinationName> for PortId {
    fn from(name: &DestinationName) -> Self {
        let service = ServiceId::new(name.namespace.clone(), name.service.clone());
        Self { service, port: name.port }
    }
}

impl fmt::Display for PortId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.service, self.port)
    }
}

/// Something that what a proxy was told may depend on.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Dep {
    /// Whether the Service exists, its ports, its routes, and those of its backends.
    Service(ServiceId),
    /// The endpoints of one port.
    Endpoints(PortId),
    /// What an address stands for.
    Ip(IpAddr),
    /// The ports of one workload, by uid.
    Inbound(String),
    Settings,
}

#[derive(Debug, Default)]
pub struct Index {
    settings: MeshSettings,
    services: BTreeMap<ServiceId, Service>,
    slices: HashMap<(String, String), EndpointSlice>,
    slices_of: Links<ServiceId, (String, String)>,
    routes: BTreeMap<ObjectId, Route>,
    /// Routes by the Services that they attach to.
    attached: Links<ServiceId, ObjectId>,
    /// Routes by the Services that they send to.
    sending: Links<ServiceId, ObjectId>,
    /// Grants by the namespace that gives them.
    grants: BTreeMap<(String, String), ReferenceGrant>,
    external: BTreeMap<String, Workload>,
    registered: BTreeMap<String, Workload>,
    /// Uids of workloads by each of their labels.
    workloads_by: Labels<String>,
    /// Services by one pair of their selector.
    selectors_by: Labels<ServiceId>,
    cluster_ips: Links<IpAddr, ServiceId>,
    /// Endpoints of headless Services by address.
    pods: Links<SocketAddr, (PortId, EndpointId)>,
    pods_of: HashMap<PortId, Vec<(SocketAddr, EndpointId)>>,
    /// How many Services each namespace holds.
    namespaces: BTreeMap<String, usize>,
    dirty: HashSet<Dep>,
}

impl Index {
    pub fn new(settings: MeshSettings) -> Self {
        Self { settings, ..Self::default() }
    }

    /// Adds an object or puts a new version in the place of the old one.
    pub fn apply(&mut self, object: Object) {
        match object {
            Object::Service(service) => self.set_service(service.id.clone(), Some(service)),
            Object::EndpointSlice(slice) => {
                self.set_slice((slice.namespace.clone(), slice.name.clone()), Some(slice));
            }
            Object::Route(route) => self.set_route(&route.id.clone(), Some(route)),
            Object::ReferenceGrant(grant) => {
                self.set_grant((grant.namespace.clone(), grant.name.clone()), Some(grant));
            }
            Object::ExternalWorkload(workload) => {
                self.change_workload(&workload.uid(), |index| {
                    index.external.insert(workload.uid(), workload);
                });
            }
        }
    }

    pub fn remove(&mut self, id: &ObjectId) {
        let key = (id.namespace.clone(), id.name.clone());
        match id.kind {
            Kind::Service => {
                self.set_service(ServiceId::new(key.0, key.1), None);
            }
            Kind::EndpointSlice => self.set_slice(key, None),
            Kind::HttpRoute | Kind::GrpcRoute | Kind::TlsRoute | Kind::TcpRoute => {
                self.set_route(id, None);
            }
            Kind::ReferenceGrant => self.set_grant(key, None),
            Kind::ExternalWorkload => {
                let uid = format!("{}.{}", id.namespace, id.name);
                self.change_workload(&uid, |index| {
                    index.external.remove(&uid);
                });
            }
        }
    }

    /// Adds or replaces a workload that registered itself. It hides an ExternalWorkload of the
    /// same name: what is alive knows better.
    pub fn register(&mut self, workload: Workload) {
        let uid = workload.uid();
        if self.registered.get(&uid) != Some(&workload) {
            self.change_workload(&uid.clone(), |index| {
                index.registered.insert(uid, workload);
            });
        }
    }

    pub fn deregister(&mut self, uid: &str) {
        if self.registered.contains_key(uid) {
            self.change_workload(uid, |index| {
                index.registered.remove(uid);
            });
        }
    }

    /// What the changes since the last call touched.
    pub fn take_dirty(&mut self) -> HashSet<Dep> {
        std::mem::take(&mut self.dirty)
    }

    pub fn service(&self, id: &ServiceId) -> Option<&Service> {
        self.services.get(id)
    }

    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.services.values()
    }

    pub fn slices(&self) -> impl Iterator<Item = &EndpointSlice> {
        self.slices.values()
    }

    pub fn slices_of(&self, service: &ServiceId) -> impl Iterator<Item = &EndpointSlice> {
        self.slices_of.of(service).filter_map(|key| self.slices.get(key))
    }

    pub fn routes(&self) -> impl Iterator<Item = &Route> {
        self.routes.values()
    }

    /// Routes that name the Service as a parent, in name order.
    pub fn routes_of(&self, service: &ServiceId) -> impl Iterator<Item = &Route> {
        self.attached.of(service).filter_map(|id| self.routes.get(id))
    }

    pub fn grants(&self) -> impl Iterator<Item = &ReferenceGrant> {
        self.grants.values()
    }

    /// Registered workloads, and ExternalWorkloads that none of them hides.
    pub fn workloads(&self) -> impl Iterator<Item = &Workload> {
        let external = self.external.iter();
        let external = external.filter(|(uid, _)| !self.registered.contains_key(*uid));
        self.registered.values().chain(external.map(|(_, workload)| workload))
    }

    pub fn workload(&self, uid: &str) -> Option<&Workload> {
        self.registered.get(uid).or_else(|| self.external.get(uid))
    }

    pub fn is_registered(&self, uid: &str) -> bool {
        self.registered.contains_key(uid)
    }

    /// Workloads that a Service's selector matches, ready or not.
    pub fn selected<'a>(&'a self, service: &'a Service) -> impl Iterator<Item = &'a Workload> {
        let namespace = &service.id.namespace;
        let first = service.selector.iter().next();
        let uids = first.into_iter().flat_map(|(k, v)| self.workloads_by.of(namespace, k, v));
        uids.filter_map(|uid| self.workload(uid))
            .filter(|workload| selects(&service.selector, workload))
    }

    /// Services whose selector matches a workload, in name order.
    pub fn selecting(&self, workload: &Workload) -> BTreeSet<&ServiceId> {
        let namespace = &workload.namespace;
        let candidates = workload.labels.iter();
        let candidates = candidates.flat_map(|(k, v)| self.selectors_by.of(namespace, k, v));
        candidates
            .filter(|id| {
                self.services.get(*id).is_some_and(|service| selects(&service.selector, workload))
            })
            .collect()
    }

    /// Every endpoint of a port; `None` when there is no such port.
    pub fn endpoints(&self, port: &PortId) -> Option<Vec<Endpoint>> {
        translate::endpoints::build(self, port)
    }

    pub fn settings(&self) -> MeshSettings {
        let namespaces = self.namespaces.keys().cloned().collect();
        MeshSettings { namespaces, ..self.settings.clone() }
    }

    pub fn max_endpoints(&self) -> usize {
        self.settings.max_endpoints as usize
    }

    /// Whether a backend that a route names can be sent to, and why not.
    pub fn resolve_backend(&self, route: &Route, to: &DestinationName) -> Result<(), FieldError> {
        let id = ServiceId::new(to.namespace.clone(), to.service.clone());
        let own = to.namespace == route.id.namespace
            || route.parents.iter().any(|parent| parent.service == id);
        if !own && !self.granted(route, &id) {
            let (kind, from) = (route.id.kind.as_str(), &route.id.namespace);
            return Err(FieldError::at(
                "namespace",
                format!(
                    "no ReferenceGrant in namespace {} lets an {kind} of namespace {from} send to \
                     Service {}",
                    to.namespace, to.service
                ),
            ));
        }
        let Some(service) = self.services.get(&id) else {
            return Err(FieldError::at("name", format!("there is no Service {id}")));
        };
        if service.port(to.port).is_none() {
            let ports: Vec<_> = service.ports.iter().map(|p| p.port.to_string()).collect();
            let ports = ports.join(", ");
            let problem = format!("Service {id} has no port {} (it has {ports})", to.port);
            return Err(FieldError::at("port", problem));
        }
        Ok(())
    }

    fn granted(&self, route: &Route, to: &ServiceId) -> bool {
        let from = (to.namespace.clone(), String::new());
        let grants = self.grants.range(from..).take_while(|((ns, _), _)| *ns == to.namespace);
        grants.map(|(_, grant)| grant).any(|grant| {
            grant.from.iter().any(|(kind, ns)| *kind == route.id.kind && *ns == route.id.namespace)
                && grant.to.iter().any(|name| name.as_ref().is_none_or(|name| *name == to.name))
        })
    }

    fn set_service(&mut self, id: ServiceId, new: Option<Service>) {
        let old = self.services.remove(&id);
        if old == new {
            if let Some(old) = old {
                self.services.insert(id, old);
            }
            return;
        }
        let both = || old.iter().chain(&new);
        let ports: BTreeSet<u16> = both().flat_map(|s| &s.ports).map(|p| p.port).collect();
        let ips: BTreeSet<IpAddr> = both().flat_map(|s| s.cluster_ips.iter().copied()).collect();
        let mut inbounds: BTreeSet<String> = BTreeSet::new();
        if let Some(old) = &old {
            inbounds.extend(self.selected(old).map(Workload::uid));
            for ip in &old.cluster_ips {
                self.cluster_ips.unlink(ip, &id);
            }
            if let Some((k, v)) = old.selector.iter().next() {
                self.selectors_by.unlink(&id.namespace, k, v, &id);
            }
        }
        self.count_namespace(&id.namespace, old.is_some(), new.is_some());
        if let Some(new) = new {
            for ip in &new.cluster_ips {
                self.cluster_ips.link(*ip, id.clone());
            }
            if let Some((k, v)) = new.selector.iter().next() {
                self.selectors_by.link(&id.namespace, k, v, id.clone());
            }
            inbounds.extend(self.selected(&new).map(Workload::uid));
            self.services.insert(id.clone(), new);
        }
        self.touch_parents_of_backend(&id);
        self.dirty.extend(inbounds.into_iter().map(Dep::Inbound));
        self.dirty.extend(ips.into_iter().map(Dep::Ip));
        for port in ports {
            self.touch_endpoints(PortId::new(&id, port));
        }
        self.dirty.insert(Dep::Service(id));
    }

    fn count_namespace(&mut self, namespace: &str, was: bool, is: bool) {
        let before = self.namespaces.contains_key(namespace);
        let count = self.namespaces.entry(namespace.to_owned()).or_default();
        *count = *count + usize::from(is) - usize::from(was);
        if *count == 0 {
            self.namespaces.remove(namespace);
        }
        if before != self.namespaces.contains_key(namespace) {
            self.dirty.insert(Dep::Settings);
        }
    }

    fn set_slice(&mut self, key: (String, String), new: Option<EndpointSlice>) {
        let old = self.slices.remove(&key);
        let changed = old != new;
        let mut services = BTreeSet::new();
        if let Some(old) = old {
            self.slices_of.unlink(&old.service, &key);
            services.insert(old.service);
        }
        if let Some(new) = new {
            self.slices_of.link(new.service.clone(), key.clone());
            services.insert(new.service.clone());
            self.slices.insert(key, new);
        }
        if changed {
            for service in services {
                self.touch_all_endpoints(&service);
            }
        }
    }

    fn set_route(&mut self, id: &ObjectId, new: Option<Route>) {
        let old = self.routes.remove(id);
        let changed = old != new;
        if let Some(old) = old {
            for parent in &old.parents {
                self.attached.unlink(&parent.service, id);
                self.touch_if(changed, &parent.service);
            }
            for backend in backends(&old) {
                self.sending.unlink(&backend, id);
            }
        }
        if let Some(new) = new {
            for parent in &new.parents {
                self.attached.link(parent.service.clone(), id.clone());
                self.touch_if(changed, &parent.service);
            }
            for backend in backends(&new) {
                self.sending.link(backend, id.clone());
            }
            self.routes.insert(id.clone(), new);
        }
    }

    fn touch_if(&mut self, changed: bool, service: &ServiceId) {
        if changed {
            self.dirty.insert(Dep::Service(service.clone()));
        }
    }

    fn set_grant(&mut self, key: (String, String), new: Option<ReferenceGrant>) {
        let namespace = key.0.clone();
        let old = self.grants.remove(&key);
        let changed = old != new;
        if let Some(new) = new {
            self.grants.insert(key, new);
        }
        if changed {
            let backends = self.sending.keys().filter(|service| service.namespace == namespace);
            for backend in backends.cloned().collect::<Vec<_>>() {
                self.touch_parents_of_backend(&backend);
            }
        }
    }

    /// Runs `change` on the workload `uid` and notes what looked or looks different.
    fn change_workload(&mut self, uid: &str, change: impl FnOnce(&mut Self)) {
        let old = self.workload(uid).cloned();
        change(self);
        let new = self.workload(uid).cloned();
        if old == new {
            return;
        }
        let mut services: BTreeSet<ServiceId> = BTreeSet::new();
        if let Some(old) = &old {
            services.extend(self.selecting(old).into_iter().cloned());
            for (k, v) in &old.labels {
                self.workloads_by.unlink(&old.namespace, k, v, &uid.to_owned());
            }
        }
        if let Some(new) = &new {
            services.extend(self.selecting(new).into_iter().cloned());
            for (k, v) in &new.labels {
                self.workloads_by.link(&new.namespace, k, v, uid.to_owned());
            }
        }
        // Health is nothing that a workload's own ports depend on.
        let same_ports = match (&old, &new) {
            (Some(old), Some(new)) => Workload { ready: old.ready, ..new.clone() } == *old,
            _ => false,
        };
        if !same_ports {
            self.dirty.insert(Dep::Inbound(uid.to_owned()));
        }
        for service in services {
            self.touch_all_endpoints(&service);
        }
    }

    fn touch_parents_of_backend(&mut self, backend: &ServiceId) {
        let routes = self.sending.of(backend).filter_map(|id| self.routes.get(id));
        let parents = routes.flat_map(|route| &route.parents);
        self.dirty.extend(parents.map(|parent| Dep::Service(parent.service.clone())));
    }

    fn touch_all_endpoints(&mut self, service: &ServiceId) {
        let ports = self.services.get(service).into_iter().flat_map(|s| &s.ports);
        for port in ports.map(|p| PortId::new(service, p.port)).collect::<Vec<_>>() {
            self.touch_endpoints(port);
        }
    }

    /// The endpoints of a port may have changed; a headless Service's are names, too.
    fn touch_endpoints(&mut self, port: PortId) {
        let headless = self.services.get(&port.service).is_some_and(|s| s.headless);
        let endpoints = if headless { self.endpoints(&port) } else { None };
        let new: Vec<_> =
            endpoints.into_iter().flatten().map(|e| (canonical(e.address), e.id)).collect();
        let old = self.pods_of.remove(&port).unwrap_or_default();
        if new != old {
            for (address, id) in &old {
                self.pods.unlink(address, &(port.clone(), id.clone()));
                self.dirty.insert(Dep::Ip(address.ip()));
            }
            for (address, id) in &new {
                self.pods.link(*address, (port.clone(), id.clone()));
                self.dirty.insert(Dep::Ip(address.ip()));
            }
        }
        if !new.is_empty() {
            self.pods_of.insert(port.clone(), new);
        }
        self.dirty.insert(Dep::Endpoints(port));
    }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// An empty selector selects nothing: the Service's endpoints are written by hand.
fn selects(selector: &BTreeMap<String, String>, workload: &Workload) -> bool {
    !selector.is_empty() && selector.iter().all(|(k, v)| workload.labels.get(k) == Some(v))
}

/// The Services that a route sends to.
fn backends(route: &Route) -> BTreeSet<ServiceId> {
    let mut services = BTreeSet::new();
    destination::for_each_target(&route.body, &mut |_, target| {
        if let BackendTarget::Service(name) = target {
            services.insert(ServiceId::new(name.namespace.clone(), name.service.clone()));
        }
    });
    services
}
