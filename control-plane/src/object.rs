//! Objects as the index holds them: read and checked, in compact form, references not resolved.
//!
//! [`crate::translate`] makes them from manifests, [`crate::index`] keeps them. Nothing here looks
//! at another object.

mod external;
mod id;
pub mod policy;
pub mod registered;
mod slice;
pub mod stopped;
pub mod targets;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use outrigger_core::config::{
    Balancer, HostMatch, HttpRule, MeshAddress, MtlsMode, Protocol, TcpBackend,
};
use outrigger_core::name::{external_name, external_service};
use outrigger_core::policy::access::{AccessRule, Action, TokenIssuer};
use serde::{Serialize, Serializer};

pub use external::{External, ExternalTls};
use registered::Registered;
pub use slice::{EndpointSlice, Readiness, SliceEndpoint};

/// The kinds that this control plane reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    Service,
    EndpointSlice,
    HttpRoute,
    GrpcRoute,
    TlsRoute,
    TcpRoute,
    ReferenceGrant,
    ExternalWorkload,
    AccessPolicy,
    TrafficPolicy,
    ServerPolicy,
    FaultInjection,
    ExternalService,
    /// Of a cluster alone.
    Pod,
    /// Of a cluster alone; without a namespace of its own.
    Namespace,
}

impl Kind {
    /// Those that manifests may hold.
    pub const ALL: [Self; 13] = [
        Self::Service,
        Self::EndpointSlice,
        Self::HttpRoute,
        Self::GrpcRoute,
        Self::TlsRoute,
        Self::TcpRoute,
        Self::ReferenceGrant,
        Self::ExternalWorkload,
        Self::AccessPolicy,
        Self::TrafficPolicy,
        Self::ServerPolicy,
        Self::FaultInjection,
        Self::ExternalService,
    ];

    /// The kind of an object by its `apiVersion` and `kind`; any version of the group will do as
    /// long as its schema is the one read here.
    pub fn of(api_version: &str, kind: &str) -> Option<Self> {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        match (group, version, kind) {
            ("", "v1", "Service") => Some(Self::Service),
            ("discovery.k8s.io", "v1", "EndpointSlice") => Some(Self::EndpointSlice),
            ("gateway.networking.k8s.io", _, "HTTPRoute") => Some(Self::HttpRoute),
            ("gateway.networking.k8s.io", _, "GRPCRoute") => Some(Self::GrpcRoute),
            ("gateway.networking.k8s.io", _, "TLSRoute") => Some(Self::TlsRoute),
            ("gateway.networking.k8s.io", _, "TCPRoute") => Some(Self::TcpRoute),
            ("gateway.networking.k8s.io", _, "ReferenceGrant") => Some(Self::ReferenceGrant),
            ("outrigger.dev", "v1alpha1", "ExternalWorkload") => Some(Self::ExternalWorkload),
            ("outrigger.dev", "v1alpha1", "AccessPolicy") => Some(Self::AccessPolicy),
            ("outrigger.dev", "v1alpha1", "TrafficPolicy") => Some(Self::TrafficPolicy),
            ("outrigger.dev", "v1alpha1", "ServerPolicy") => Some(Self::ServerPolicy),
            ("outrigger.dev", "v1alpha1", "FaultInjection") => Some(Self::FaultInjection),
            ("outrigger.dev", "v1alpha1", "ExternalService") => Some(Self::ExternalService),
            _ => None,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::HttpRoute => "HTTPRoute",
            Self::GrpcRoute => "GRPCRoute",
            Self::TlsRoute => "TLSRoute",
            Self::TcpRoute => "TCPRoute",
            Self::ReferenceGrant => "ReferenceGrant",
            Self::ExternalWorkload => "ExternalWorkload",
            Self::AccessPolicy => "AccessPolicy",
            Self::TrafficPolicy => "TrafficPolicy",
            Self::ServerPolicy => "ServerPolicy",
            Self::FaultInjection => "FaultInjection",
            Self::ExternalService => "ExternalService",
            Self::Pod => "Pod",
            Self::Namespace => "Namespace",
        }
    }
}

/// Names one object: `HTTPRoute bank/canary`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectId {
    pub kind: Kind,
    pub namespace: String,
    pub name: String,
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind.as_str(), self.namespace, self.name)
    }
}

impl Serialize for ObjectId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// `namespace/name` of a Service, or `namespace/external:name` of an ExternalService.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceId {
    pub namespace: String,
    pub name: String,
}

impl ServiceId {
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// That of an ExternalService.
    pub fn external(namespace: &str, name: &str) -> Self {
        Self::new(namespace, external_service(name))
    }

    /// With its kind, as people write it: `Service bank/orders`.
    pub fn describe(&self) -> String {
        match external_name(&self.name) {
            Some(name) => format!("ExternalService {}/{name}", self.namespace),
            None => format!("Service {self}"),
        }
    }
}

impl fmt::Display for ServiceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// An object of any kind.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    Service(Service),
    EndpointSlice(EndpointSlice),
    Route(Route),
    ReferenceGrant(ReferenceGrant),
    ExternalWorkload(Workload),
    AccessPolicy(Policy),
    TrafficPolicy(Box<policy::TrafficPolicy>),
    ServerPolicy(policy::ServerPolicy),
    FaultInjection(Box<policy::FaultInjection>),
    ExternalService(External),
    Pod(Workload),
    /// By name.
    Namespace(String),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    pub id: ServiceId,
    pub cluster_ips: Vec<IpAddr>,
    /// `clusterIP: None`: its endpoints are dialled by their own addresses.
    pub headless: bool,
    /// None or empty: endpoints come from EndpointSlices only.
    pub selector: BTreeMap<String, String>,
    pub ports: Vec<ServicePort>,
    pub balancer: Balancer,
    /// Endpoints that are not ready count too.
    pub publish_not_ready: bool,
    /// Requests stay in the caller's zone while so many percent of its endpoints are fit, unless a policy says
    /// otherwise.
    pub min_healthy_percent: Option<u8>,
    /// Of type ExternalName: the host that its name stands for, in lower case.
    pub alias: Option<String>,
    /// `internalTrafficPolicy: Local`: callers use the endpoints of their own node alone.
    pub same_node_only: bool,
}

impl Service {
    pub fn port(&self, port: u16) -> Option<&ServicePort> {
        self.ports.iter().find(|p| p.port == port)
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct ServicePort {
    pub port: u16,
    /// Empty when the port has no name.
    pub name: String,
    pub target: TargetPort,
    pub protocol: Protocol,
}

#[derive(Clone, Debug, PartialEq)]
pub enum TargetPort {
    Number(u16),
    Name(String),
}

/// An HTTPRoute, GRPCRoute, TLSRoute or TCPRoute.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    pub id: ObjectId,
    /// Seconds since the Unix epoch, 0 when the manifest says nothing.
    pub created: i64,
    /// The Services that it attaches to.
    pub parents: Vec<Parent>,
    /// Backends name Services that may not exist: the index resolves them.
    pub body: RouteBody,
    /// Of each rule of an HTTPRoute; empty for routes that have none.
    pub calls: Vec<policy::RuleCall>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Parent {
    /// Index in `parentRefs`, for field paths.
    pub position: usize,
    pub service: ServiceId,
    pub port: Option<u16>,
    /// Name of a port.
    pub section: Option<String>,
}

impl Parent {
    pub fn attaches_to(&self, port: &ServicePort) -> bool {
        self.port.is_none_or(|p| p == port.port)
            && self.section.as_deref().is_none_or(|name| name == port.name)
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum RouteBody {
    /// `hostnames` are for routes of a Gateway: on a Service the dialled name has decided already.
    Http {
        hostnames: Vec<HostMatch>,
        rules: Vec<HttpRule>,
    },
    Tls {
        hostnames: Vec<HostMatch>,
        backends: Vec<TcpBackend>,
    },
    Tcp {
        backends: Vec<TcpBackend>,
    },
}

/// Lets policies of other namespaces send to Services of its own.
#[derive(Clone, Debug, PartialEq)]
pub struct ReferenceGrant {
    pub namespace: String,
    pub name: String,
    /// Kind and namespace of those that may.
    pub from: Vec<(Kind, String)>,
    /// The Services; `None` for all.
    pub to: Vec<Option<String>>,
}

/// Who may call some workloads: an AccessPolicy.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    pub namespace: String,
    pub name: String,
    /// Seconds since the Unix epoch, 0 when the manifest says nothing.
    pub created: i64,
    /// None: every workload of the namespace.
    pub selector: Option<BTreeMap<String, String>>,
    /// Empty: every port.
    pub ports: Vec<u16>,
    pub mtls: Option<MtlsMode>,
    pub default: Option<Action>,
    pub rules: Vec<AccessRule>,
    pub issuers: Vec<PolicyIssuer>,
    /// It stands in for one that was never right.
    pub closed: Option<Closed>,
}

/// What is known of a policy of which no version is right: where it is, and whether even its namespace is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Closed {
    /// Its namespace is not known, or none: it may be for any workload of the mesh.
    pub everywhere: bool,
}

impl Policy {
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    pub fn is_for(&self, workload: &Workload) -> bool {
        let holds = |(k, v)| workload.labels.get(k) == Some(v);
        let everywhere = self.closed.as_ref().is_some_and(|closed| closed.everywhere);
        (everywhere || workload.namespace == self.namespace)
            && self.selector.as_ref().is_none_or(|selector| selector.iter().all(holds))
    }

    /// What it means that this stands in for a policy; none: it is one itself.
    pub fn closed_because(&self) -> Option<String> {
        let closed = self.closed.as_ref()?;
        let mut whom = match (closed.everywhere, &self.selector) {
            (true, None) => "any workload, since its namespace cannot be read".to_owned(),
            (true, Some(_)) => {
                "workloads that it selects in any namespace, since its own cannot be read"
                    .to_owned()
            }
            (false, None) => format!("any workload of namespace {}", self.namespace),
            (false, Some(_)) => {
                format!("workloads that it selects in namespace {}", self.namespace)
            }
        };
        if !self.ports.is_empty() {
            let ports: Vec<String> = self.ports.iter().map(u16::to_string).collect();
            whom = format!("port {} of {whom}", ports.join(", "));
        }
        Some(format!(
            "no version of this policy has been valid yet: until one is, all calls to {whom} are \
             denied"
        ))
    }

    pub fn is_for_port(&self, port: u16) -> bool {
        self.ports.is_empty() || self.ports.contains(&port)
    }
}

/// An issuer of tokens, its keys still to be had.
#[derive(Clone, Debug, PartialEq)]
pub struct PolicyIssuer {
    pub issuer: TokenIssuer,
    pub source: KeySource,
}

/// Where a JSON Web Key Set comes from.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum KeySource {
    Inline(String),
    /// Relative to the folder of manifests.
    File(PathBuf),
    /// Of an ExternalService.
    External {
        namespace: String,
        name: String,
        path: String,
    },
}

/// A process that serves: a pod, an ExternalWorkload, or one that registered itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    pub namespace: String,
    pub name: String,
    pub service_account: String,
    pub labels: BTreeMap<String, String>,
    pub address: IpAddr,
    /// Empty: any port.
    pub ports: Vec<WorkloadPort>,
    pub mesh: Option<MeshAddress>,
    pub zone: Option<String>,
    /// Only a ready workload is an endpoint. Of a pod: its app is ready, whether or not its proxy is; a slice says
    /// what is an endpoint.
    pub ready: bool,
    /// What a pod has more.
    pub pod: Option<Pod>,
    /// Of an object that a replica has written for a workload that registered with it.
    pub registered: Option<Registered>,
}

/// Pods are endpoints where an EndpointSlice names them, and not by the selectors of Services.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Of the object: a pod that comes after it under the same name has another one.
    pub uid: String,
    /// One or two, the first of which is the workload's.
    pub addresses: Vec<IpAddr>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct WorkloadPort {
    pub port: u16,
    /// Empty when the port has no name.
    pub name: String,
    pub protocol: Protocol,
    /// Whether the app accepts connections there; else it is no endpoint, of a workload that is ready.
    pub open: bool,
}

impl Workload {
    /// Unique in the mesh: a namespace's name can hold no dot.
    pub fn uid(&self) -> String {
        format!("{}.{}", self.namespace, self.name)
    }

    /// The port that a Service's target means here.
    pub fn port(&self, target: &TargetPort) -> Option<u16> {
        match target {
            TargetPort::Number(number) => (self.ports.is_empty()
                || self.ports.iter().any(|p| p.port == *number))
            .then_some(*number),
            TargetPort::Name(name) => self.ports.iter().find(|p| &p.name == name).map(|p| p.port),
        }
    }

    pub fn socket(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.address, port)
    }
}

impl Object {
    pub fn id(&self) -> ObjectId {
        let (kind, namespace, name) = match self {
            Self::Service(o) => (Kind::Service, &o.id.namespace, &o.id.name),
            Self::EndpointSlice(o) => (Kind::EndpointSlice, &o.namespace, &o.name),
            Self::Route(o) => return o.id.clone(),
            Self::TrafficPolicy(o) => return o.id.clone(),
            Self::ServerPolicy(o) => return o.id.clone(),
            Self::FaultInjection(o) => return o.id.clone(),
            Self::ReferenceGrant(o) => (Kind::ReferenceGrant, &o.namespace, &o.name),
            Self::ExternalWorkload(o) => (Kind::ExternalWorkload, &o.namespace, &o.name),
            Self::AccessPolicy(o) => (Kind::AccessPolicy, &o.namespace, &o.name),
            Self::ExternalService(o) => (Kind::ExternalService, &o.namespace, &o.name),
            Self::Pod(o) => (Kind::Pod, &o.namespace, &o.name),
            Self::Namespace(name) => (Kind::Namespace, name, name),
        };
        ObjectId { kind, namespace: namespace.clone(), name: name.clone() }
    }
}
