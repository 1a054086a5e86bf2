//! Everything the mesh is made of: a synchronous store, and what each change touches.
//!
//! Sources put objects in with [`Index::apply`] and [`Index::remove`]; each call notes in a set of
//! [`Dep`]s what may look different now, and nothing else is computed: what a change costs follows from what
//! it touches, not from what there is. [`crate::publish`] takes the set at the end of a commit. Everything is
//! kept in persistent maps, so that a copy costs next to nothing: each commit leaves one behind for its
//! readers, which never changes. There is no I/O here, no clock and no lock.

mod changes;
mod endpoints;
mod externals;
mod links;
mod names;
mod namespaces;
mod policies;
mod references;
mod registered;
mod update;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use imbl::{OrdMap, OrdSet};
use outrigger_core::config::{MeshSettings, MtlsMode, TrustBundle};
use outrigger_core::identity::{SpiffeId, TrustDomain};
use outrigger_core::name::{Authority, DestinationName, EndpointId};
use outrigger_core::policy::access::Action;

pub use externals::Addresses;
pub use names::{Resolution, Target};
pub use namespaces::NAMESPACES_TOGETHER;

use crate::object::policy::{FaultInjection, ServerPolicy, TrafficPolicy};
use crate::object::stopped::Stops;
use crate::object::{
    EndpointSlice, KeySource, Kind, Object, ObjectId, Policy, ReferenceGrant, Route, Service,
    ServiceId, Workload,
};
use externals::Externals;
use links::{Labels, Links};
use namespaces::Namespaces;
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
    /// The roots that the mesh trusts.
    Trust,
}

/// What the mesh demands of callers and called ones.
#[derive(Clone, Debug, Default)]
pub struct Security {
    /// None: the mesh runs without identities.
    pub trust_domain: Option<TrustDomain>,
    /// Of ports that nothing else is said about.
    pub mtls: MtlsMode,
    /// Of callers that match no rule.
    pub default_access: Action,
}

/// Namespace and name.
pub type Key = (String, String);

/// What has changed of a Service's endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Touched {
    /// Any of them.
    All,
    /// Those of some workloads, by uid.
    Workloads(BTreeSet<String>),
}

#[derive(Clone, Debug, Default)]
pub struct Index {
    settings: Arc<MeshSettings>,
    security: Arc<Security>,
    trust: Option<Arc<TrustBundle>>,
    services: OrdMap<ServiceId, Arc<Service>>,
    slices: OrdMap<Key, Arc<EndpointSlice>>,
    slices_of: Links<ServiceId, Key>,
    /// Slices by each uid that they hold, hashed.
    holders: Links<u64, Arc<Key>>,
    /// Uids of slices' endpoints by the Service and the host name that they have.
    hostnames: Links<(ServiceId, String), String>,
    routes: OrdMap<ObjectId, Arc<Route>>,
    /// Routes by the Services that they attach to.
    attached: Links<ServiceId, ObjectId>,
    /// Routes, and TrafficPolicies with fallbacks, by the Services that they send to.
    sending: Links<ServiceId, ObjectId>,
    /// Grants by the namespace that gives them.
    grants: OrdMap<Key, Arc<ReferenceGrant>>,
    policies: OrdMap<Key, Arc<Policy>>,
    /// Policies by one pair of their selector.
    policies_by: Labels<Key>,
    /// Policies for every workload of a namespace.
    policies_for_all: Links<String, Key>,
    /// Policies whose namespace is not known: they may be for any workload.
    policies_everywhere: OrdSet<Key>,
    /// Policies by the key sets that they need.
    key_sources: Links<KeySource, Key>,
    traffic: Policies<TrafficPolicy>,
    server: Policies<ServerPolicy>,
    faults: Policies<FaultInjection>,
    /// FaultInjections by the Service that their guard watches.
    watching: Links<ServiceId, Key>,
    /// Fault injections that a guard has stopped.
    stops: Arc<Stops>,
    externals: Externals,
    /// Key sets that do not stand in a policy itself.
    keys: OrdMap<KeySource, Arc<str>>,
    external: OrdMap<String, Arc<Workload>>,
    registered: OrdMap<String, Arc<Workload>>,
    /// This process among those that write objects for workloads that registered with them; none: nobody does.
    replica: Option<Arc<str>>,
    /// Objects that this one has written.
    own_objects: OrdMap<String, Arc<Workload>>,
    /// Pods as workloads.
    pods_as_workloads: OrdMap<String, Arc<Workload>>,
    /// Uids of workloads by the uid of the pod that they are.
    pod_uids: OrdMap<String, String>,
    /// Uids of the workloads that pods are by each of their addresses.
    pod_addresses: Links<IpAddr, String>,
    /// Uids of workloads by each of their labels.
    workloads_by: Labels<String>,
    /// Services by one pair of their selector.
    selectors_by: Labels<ServiceId>,
    cluster_ips: Links<IpAddr, ServiceId>,
    /// Endpoints of headless Services by address.
    pods: Links<SocketAddr, (PortId, EndpointId)>,
    pods_of: OrdMap<(PortId, EndpointId), SocketAddr>,
    namespaces: Namespaces,
    dirty: HashSet<Dep>,
    /// Addresses of endpoints that have come, gone or changed: names that somebody may have dialled.
    moved: HashSet<IpAddr>,
    /// Of the Services in it whose endpoints are dirty: which of them.
    touched: HashMap<ServiceId, Touched>,
    /// See [`Index::take_changed`].
    changed: HashSet<ObjectId>,
}

impl Index {
    pub fn new(settings: MeshSettings) -> Self {
        Self { settings: settings.into(), ..Self::default() }
    }

    #[must_use]
    pub fn with_security(self, security: Security) -> Self {
        Self { security: security.into(), ..self }
    }

    pub fn security(&self) -> &Security {
        &self.security
    }

    /// Puts the roots in force that every proxy is told of.
    pub fn set_trust(&mut self, bundle: TrustBundle) {
        if self.trust.as_deref() != Some(&bundle) {
            self.trust = Some(bundle.into());
            self.dirty.insert(Dep::Trust);
        }
    }

    pub fn trust(&self) -> Option<&TrustBundle> {
        self.trust.as_deref()
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
                self.set_traffic_policy(&key, Some(*policy));
            }
            Object::ServerPolicy(policy) => {
                let key = (policy.id.namespace.clone(), policy.id.name.clone());
                self.set_server_policy(&key, Some(policy));
            }
            Object::FaultInjection(policy) => {
                let key = (policy.id.namespace.clone(), policy.id.name.clone());
                self.set_fault_injection(&key, Some(*policy));
            }
            Object::ExternalService(external) => {
                self.set_external(external.service(), Some(external));
            }
            Object::ExternalWorkload(workload) => {
                self.set_external_workload(&workload.uid(), Some(workload));
            }
            Object::Pod(workload) => {
                self.change_workload(&workload.uid(), |index| index.set_pod(workload));
            }
            // That it is there is remembered already.
            Object::Namespace(_) => {}
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
            Kind::TrafficPolicy => self.set_traffic_policy(&key, None),
            Kind::ServerPolicy => self.set_server_policy(&key, None),
            Kind::FaultInjection => self.set_fault_injection(&key, None),
            Kind::ExternalService => {
                self.set_external(ServiceId::external(&key.0, &key.1), None);
            }
            Kind::ExternalWorkload => {
                let uid = format!("{}.{}", id.namespace, id.name);
                self.set_external_workload(&uid, None);
            }
            Kind::Pod => {
                let uid = format!("{}.{}", id.namespace, id.name);
                self.change_workload(&uid, |index| index.remove_pod(&uid));
            }
            // Its names stay the mesh's.
            Kind::Namespace => {}
        }
    }

    /// A Service, or an ExternalService as one.
    pub fn service(&self, id: &ServiceId) -> Option<&Service> {
        let inside = self.services.get(id).map(|service| &**service);
        inside.or_else(|| self.externals.service(id))
    }

    /// Services and ExternalServices of a namespace.
    pub fn services_in(&self, namespace: &str) -> impl Iterator<Item = &ServiceId> {
        let from = ServiceId::new(namespace, "");
        let services = self.services.range(from.clone()..).map(|(id, _)| id);
        let services = services.take_while(move |id| id.namespace == from.namespace);
        services.chain(self.externals.ids_in(namespace))
    }

    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.services.values().map(|service| &**service)
    }

    pub fn slices(&self) -> impl Iterator<Item = &EndpointSlice> {
        self.slices.values().map(|slice| &**slice)
    }

    pub fn slices_of(&self, service: &ServiceId) -> impl Iterator<Item = &EndpointSlice> {
        self.slices_of.of(service).filter_map(|key| self.slices.get(key)).map(|slice| &**slice)
    }

    pub fn routes(&self) -> impl Iterator<Item = &Route> {
        self.routes.values().map(|route| &**route)
    }

    /// Routes that name the Service as a parent, in name order.
    pub fn routes_of(&self, service: &ServiceId) -> impl Iterator<Item = &Route> {
        self.attached.of(service).filter_map(|id| self.route(id))
    }

    pub fn grants(&self) -> impl Iterator<Item = &ReferenceGrant> {
        self.grants.values().map(|grant| &**grant)
    }

    /// The key set of a source; none: it has not been read yet.
    pub fn keys<'a>(&'a self, source: &'a KeySource) -> Option<&'a str> {
        match source {
            KeySource::Inline(text) => Some(text),
            KeySource::File(_) | KeySource::External { .. } => {
                self.keys.get(source).map(|keys| &**keys)
            }
        }
    }

    /// Registered workloads, ExternalWorkloads that none of them hides, and pods that none of both hides.
    pub fn workloads(&self) -> impl Iterator<Item = &Workload> {
        let all = [&self.registered, &self.external, &self.pods_as_workloads];
        all.into_iter().enumerate().flat_map(move |(i, source)| {
            let seen = move |uid: &String| all[..i].iter().any(|hiding| hiding.contains_key(uid));
            source.iter().filter(move |(uid, _)| !seen(uid)).map(|(_, workload)| &**workload)
        })
    }

    /// Those of a namespace.
    pub fn workloads_in(&self, namespace: &str) -> impl Iterator<Item = &Workload> {
        // No namespace holds a dot: uids of one stand together.
        let from = format!("{namespace}.");
        let prefix = from.clone();
        let all = [&self.registered, &self.external, &self.pods_as_workloads];
        all.into_iter().enumerate().flat_map(move |(i, source)| {
            let prefix = prefix.clone();
            let range = source.range(from.clone()..);
            range
                .take_while(move |(uid, _)| uid.starts_with(&prefix))
                .filter(move |(uid, _)| all[..i].iter().all(|hiding| !hiding.contains_key(*uid)))
                .map(|(_, workload)| &**workload)
        })
    }

    pub fn workload(&self, uid: &str) -> Option<&Workload> {
        let found = self.registered.get(uid).or_else(|| self.external.get(uid));
        found.or_else(|| self.pods_as_workloads.get(uid)).map(|workload| &**workload)
    }

    /// The pod of a uid.
    pub fn pod(&self, uid: &str) -> Option<&Workload> {
        let found = self.pods_as_workloads.get(self.pod_uids.get(uid)?);
        found.map(|workload| &**workload)
    }

    fn set_pod(&mut self, workload: Workload) {
        let uid = workload.uid();
        self.remove_pod(&uid);
        if let Some(pod) = &workload.pod {
            self.pod_uids.insert(pod.uid.clone(), uid.clone());
            for address in &pod.addresses {
                self.pod_addresses.link(*address, uid.clone());
            }
        }
        self.pods_as_workloads.insert(uid, workload.into());
    }

    fn remove_pod(&mut self, uid: &str) {
        if let Some(pod) = self.pods_as_workloads.remove(uid).and_then(|old| old.pod.clone()) {
            self.pod_uids.remove(&pod.uid);
            for address in &pod.addresses {
                self.pod_addresses.unlink(address, &uid.to_owned());
            }
        }
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

    pub fn max_endpoints(&self) -> usize {
        self.settings.max_endpoints as usize
    }
}

/// An empty selector selects nothing: the Service's endpoints are written by hand.
fn selects(selector: &BTreeMap<String, String>, workload: &Workload) -> bool {
    !selector.is_empty() && selector.iter().all(|(k, v)| workload.labels.get(k) == Some(v))
}
