//! Everything the mesh is made of: a synchronous store, and what each change touches.
//!
//! Sources put objects in with [`Index::apply`] and [`Index::remove`]; each call notes in a set of
//! [`Dep`]s what may look different now, and nothing else is computed. [`crate::publish`] takes the
//! set at the end of a commit and asks for what its proxies need. There is no I/O here, no clock
//! and no lock.

mod externals;
mod links;
mod names;
mod policies;
mod references;
mod update;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use outrigger_core::bounds;
use outrigger_core::config::{Endpoint, MeshSettings, MtlsMode, TrustBundle, Unmatched};
use outrigger_core::identity::{SpiffeId, TrustDomain};
use outrigger_core::name::{Authority, DestinationName, EndpointId, check_label};
use outrigger_core::policy::access::Action;

pub use externals::Addresses;
pub use names::{Resolution, Target};

use crate::experiments::Stops;
use crate::object::policy::{FaultInjection, ServerPolicy, TrafficPolicy};
use crate::object::{
    EndpointSlice, KeySource, Kind, Object, ObjectId, Policy, ReferenceGrant, Route, Service,
    ServiceId, Workload,
};
use crate::translate;
use externals::Externals;
use links::{Labels, Links};
use policies::Policies;

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
    /// Which ExternalService has this host and port, in any namespace.
    Dialled(Authority),
    /// The ports of one workload, by uid.
    Inbound(String),
    Settings,
    /// The roots that the mesh believes in.
    Trust,
}

/// What the mesh demands of callers and called ones.
#[derive(Clone, Debug, Default)]
pub struct Security {
    /// None: the mesh runs without identities.
    pub trust_domain: Option<TrustDomain>,
    /// Of ports that nothing else is said about.
    pub mtls: MtlsMode,
    /// Of callers that no rule speaks of.
    pub default_access: Action,
}

#[derive(Debug, Default)]
pub struct Index {
    settings: MeshSettings,
    security: Security,
    trust: Option<TrustBundle>,
    services: BTreeMap<ServiceId, Service>,
    slices: BTreeMap<(String, String), EndpointSlice>,
    slices_of: Links<ServiceId, (String, String)>,
    routes: BTreeMap<ObjectId, Route>,
    /// Routes by the Services that they attach to.
    attached: Links<ServiceId, ObjectId>,
    /// Routes, and TrafficPolicies with fallbacks, by the Services that they send to.
    sending: Links<ServiceId, ObjectId>,
    /// Grants by the namespace that gives them.
    grants: BTreeMap<(String, String), ReferenceGrant>,
    policies: BTreeMap<(String, String), Policy>,
    traffic: Policies<TrafficPolicy>,
    server: Policies<ServerPolicy>,
    faults: Policies<FaultInjection>,
    /// Experiments that a guard has stopped.
    stops: Stops,
    externals: Externals,
    /// Key sets that do not stand in a policy itself.
    keys: BTreeMap<KeySource, String>,
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
    /// That hold something, or did.
    namespaces: BTreeSet<String>,
    /// There were more than are remembered.
    more_namespaces: bool,
    dirty: HashSet<Dep>,
}

impl Index {
    pub fn new(settings: MeshSettings) -> Self {
        Self { settings, ..Self::default() }
    }

    #[must_use]
    pub fn with_security(self, security: Security) -> Self {
        Self { security, ..self }
    }

    pub fn security(&self) -> &Security {
        &self.security
    }

    /// Puts the roots in force that every proxy is told of.
    pub fn set_trust(&mut self, bundle: TrustBundle) {
        if self.trust.as_ref() != Some(&bundle) {
            self.trust = Some(bundle);
            self.dirty.insert(Dep::Trust);
        }
    }

    pub fn trust(&self) -> Option<&TrustBundle> {
        self.trust.as_ref()
    }

    /// The id that a workload's sidecar must prove. It follows from where the workload is and runs
    /// as, never from what it says.
    pub fn identity(&self, workload: &Workload) -> Option<SpiffeId> {
        let trust_domain = self.security.trust_domain.as_ref()?;
        SpiffeId::new(trust_domain, &workload.namespace, &workload.service_account).ok()
    }

    /// Adds an object or puts a new version in the place of the old one.
    pub fn apply(&mut self, object: Object) {
        self.remember(&object.id().namespace);
        match object {
            Object::Service(service) => self.set_service(service.id.clone(), Some(service)),
            Object::EndpointSlice(slice) => {
                self.set_slice((slice.namespace.clone(), slice.name.clone()), Some(slice));
            }
            Object::Route(route) => self.set_route(&route.id.clone(), Some(route)),
            Object::ReferenceGrant(grant) => {
                self.set_grant((grant.namespace.clone(), grant.name.clone()), Some(grant));
            }
            Object::AccessPolicy(policy) => {
                self.set_policy((policy.namespace.clone(), policy.name.clone()), Some(policy));
            }
            Object::TrafficPolicy(policy) => {
                let key = (policy.id.namespace.clone(), policy.id.name.clone());
                self.set_traffic_policy(key, Some(*policy));
            }
            Object::ServerPolicy(policy) => {
                let key = (policy.id.namespace.clone(), policy.id.name.clone());
                self.set_server_policy(key, Some(policy));
            }
            Object::FaultInjection(policy) => {
                let key = (policy.id.namespace.clone(), policy.id.name.clone());
                self.set_fault_injection(key, Some(*policy));
            }
            Object::ExternalService(external) => {
                self.set_external(external.service(), Some(external));
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
            Kind::AccessPolicy => self.set_policy(key, None),
            Kind::TrafficPolicy => self.set_traffic_policy(key, None),
            Kind::ServerPolicy => self.set_server_policy(key, None),
            Kind::FaultInjection => self.set_fault_injection(key, None),
            Kind::ExternalService => {
                self.set_external(ServiceId::external(&key.0, &key.1), None);
            }
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
        self.remember(&workload.namespace);
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

    /// A Service, or an ExternalService as one.
    pub fn service(&self, id: &ServiceId) -> Option<&Service> {
        self.services.get(id).or_else(|| self.externals.service(id))
    }

    /// Services and ExternalServices of a namespace.
    pub fn services_in(&self, namespace: &str) -> impl Iterator<Item = &ServiceId> {
        let all = self.services.keys().chain(self.externals.ids());
        all.filter(move |id| id.namespace == namespace)
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

    pub fn policies(&self) -> impl Iterator<Item = &Policy> {
        self.policies.values()
    }

    /// Policies that are for a workload, whatever port, in name order.
    pub fn policies_of(&self, workload: &Workload) -> impl Iterator<Item = &Policy> {
        self.policies.values().filter(move |policy| policy.is_for(workload))
    }

    /// The key set of a source; none: it has not been read yet.
    pub fn keys<'a>(&'a self, source: &'a KeySource) -> Option<&'a str> {
        match source {
            KeySource::Inline(text) => Some(text),
            KeySource::File(_) | KeySource::External { .. } => {
                self.keys.get(source).map(String::as_str)
            }
        }
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
        let namespaces = self.namespaces.iter().cloned().collect();
        let mut settings = MeshSettings { namespaces, ..self.settings.clone() };
        if self.more_namespaces {
            // Any name may be in one that is not remembered.
            settings.unmatched = Unmatched::Refuse;
        }
        settings
    }

    /// Namespaces that were known before this process began.
    #[must_use]
    pub fn with_namespaces(mut self, namespaces: BTreeSet<String>) -> Self {
        for namespace in namespaces {
            self.remember(&namespace);
        }
        self
    }

    /// Namespaces that another replica knows.
    pub fn learn_namespaces(&mut self, namespaces: &BTreeSet<String>) {
        for namespace in namespaces {
            self.remember(namespace);
        }
    }

    /// Every namespace that holds something, or ever did.
    pub fn known_namespaces(&self) -> &BTreeSet<String> {
        &self.namespaces
    }

    /// What was in the mesh is never looked for outside, so no namespace is ever forgotten.
    fn remember(&mut self, namespace: &str) {
        if self.namespaces.contains(namespace) || check_label(namespace).is_err() {
            return;
        }
        if self.namespaces.len() < bounds::NAMESPACES {
            self.namespaces.insert(namespace.to_owned());
        } else if !std::mem::replace(&mut self.more_namespaces, true) {
            tracing::error!(
                "there are more than {} namespaces: proxies refuse every destination that nobody declared",
                bounds::NAMESPACES
            );
        }
        self.dirty.insert(Dep::Settings);
    }

    pub fn max_endpoints(&self) -> usize {
        self.settings.max_endpoints as usize
    }
}

/// An empty selector selects nothing: the Service's endpoints are written by hand.
fn selects(selector: &BTreeMap<String, String>, workload: &Workload) -> bool {
    !selector.is_empty() && selector.iter().all(|(k, v)| workload.labels.get(k) == Some(v))
}
