//! What the control plane tells a proxy, as plain values.
//!
//! These types are the meeting point of both sides: `control-plane/src/translate/` makes them,
//! `proto` carries them, [`crate::compile`] turns them into what a request reads. A value of these
//! types has been checked: constructors in [`crate::name`] and the conversions in `proto` are where
//! bad input stops.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http::{HeaderName, HeaderValue, Method, StatusCode};

use crate::identity::{SpiffeId, TrustDomain};
use crate::name::{DestinationName, EndpointId};
use crate::policy::access::Access;
use crate::policy::cors::CorsConfig;
use crate::policy::section;
use crate::policy::{BackendPolicy, CallPolicy, ServerPolicy};
use crate::telemetry::Telemetry;

/// Features of the wire format that this build understands, beside those of policies ([`section`]).
const FEATURES: [&str; 8] = [
    "access.v1",
    "balancer.ring-hash",
    "cors.v1",
    "external-tls.v1",
    "faults.v1",
    "http.filters.v1",
    "policy.v1",
    "tls.sni",
];

/// Every feature of the wire format that this build understands. A resource that lists another one in
/// its `requires` is refused as a whole: never half understood.
pub fn features() -> impl Iterator<Item = &'static str> {
    FEATURES.into_iter().chain(section::ALL.iter().filter_map(|section| section.feature))
}

/// One port of one service as its callers see it: how it is spoken to and where requests go.
#[derive(Clone, Debug, PartialEq)]
pub struct Destination {
    pub name: DestinationName,
    pub protocol: Protocol,
    /// How endpoints of this service are chosen when a request goes to the service itself.
    pub balancer: Balancer,
    /// How requests are called that match no rule, and whose rule says nothing itself.
    pub call: CallPolicy,
    /// Client-side protection of the service itself.
    pub policy: BackendPolicy,
    /// Every other service that a route below sends to.
    pub backends: Vec<Backend>,
    /// HTTP and gRPC routes, in no particular order: `compile` applies Gateway API precedence.
    /// Empty: every request goes to the service itself. Not empty: what no rule matches gets 404.
    pub http_routes: Vec<HttpRoute>,
    /// TLS routes by server name. Empty: every TLS connection goes to the service itself.
    pub tls_routes: Vec<TlsRoute>,
    /// Backends of the TCP route, if one is attached.
    pub tcp_route: Option<TcpRoute>,
}

/// A service that a route sends to, other than the destination itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Backend {
    pub name: DestinationName,
    pub protocol: Protocol,
    pub balancer: Balancer,
    pub policy: BackendPolicy,
}

/// What an application speaks on a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Protocol {
    /// Not declared: decided from the first bytes of each connection.
    #[default]
    Detect,
    Http1,
    Http2,
    Grpc,
    /// TLS started by the app, passed through by server name.
    Tls,
    /// Opaque bytes; the server may speak first.
    Tcp,
}

impl Protocol {
    /// Whether requests, not bytes, are routed.
    pub fn is_http(self) -> bool {
        matches!(self, Self::Http1 | Self::Http2 | Self::Grpc)
    }

    /// What an `appProtocol` declares: Kubernetes' prefixed names, IANA names and what people write for them.
    /// None: it is not known.
    pub fn from_app_protocol(name: &str) -> Option<Self> {
        match name.to_ascii_lowercase().as_str() {
            "http" | "http1" | "http/1.1" | "kubernetes.io/ws" | "ws" => Some(Self::Http1),
            "kubernetes.io/h2c" | "h2c" | "http2" => Some(Self::Http2),
            "grpc" => Some(Self::Grpc),
            "tls" | "https" | "kubernetes.io/wss" | "wss" => Some(Self::Tls),
            "tcp" => Some(Self::Tcp),
            _ => None,
        }
    }

    /// What a port's name declares, alone (`grpc`) or as a prefix (`grpc-orders`).
    pub fn from_port_name(name: &str) -> Self {
        match name.split_once('-').map_or(name, |(prefix, _)| prefix) {
            "http" => Self::Http1,
            "http2" | "h2c" => Self::Http2,
            "grpc" => Self::Grpc,
            "tls" | "https" => Self::Tls,
            "tcp" => Self::Tcp,
            _ => Self::Detect,
        }
    }

    /// The word used in metrics, logs and the hop header.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Detect => "detect",
            Self::Http1 => "h1",
            Self::Http2 => "h2",
            Self::Grpc => "grpc",
            Self::Tls => "tls",
            Self::Tcp => "tcp",
        }
    }
}

/// How one endpoint of several is chosen for a request.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub enum Balancer {
    /// The better of two random endpoints by peak-EWMA latency times requests in flight.
    #[default]
    PowerOfTwo,
    RoundRobin,
    /// Consistent hashing on a property of the request.
    RingHash(HashKey),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum HashKey {
    Header(HeaderName),
    Cookie(String),
    /// The address of the caller's connection.
    Source,
}

/// One HTTPRoute or GRPCRoute.
#[derive(Clone, Debug, PartialEq)]
pub struct HttpRoute {
    /// `namespace/name`, used as the `route` label.
    pub name: String,
    /// Creation time in seconds since the Unix epoch: the older route wins a tie.
    pub created: i64,
    /// Empty matches every host. Ignored by Gateway API for Service parents, so translation leaves
    /// it empty there.
    pub hostnames: Vec<HostMatch>,
    pub rules: Vec<HttpRule>,
}

/// `example.com`, or `*.example.com` for one or more labels below it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum HostMatch {
    Exact(String),
    /// Holds `.example.com`.
    Suffix(String),
}

#[derive(Clone, Debug, PartialEq)]
pub struct HttpRule {
    /// The rule's own name in the route, if it has one.
    pub name: Option<String>,
    /// Any of them. Empty matches everything.
    pub matches: Vec<HttpMatch>,
    pub filters: Vec<Filter>,
    /// None: as [`Destination::call`] says.
    pub call: Option<CallPolicy>,
    /// Empty without a redirect: 500, `no_backend` (Gateway API).
    pub backends: Vec<WeightedBackend>,
}

/// All conditions of one match must hold.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct HttpMatch {
    pub path: Option<PathMatch>,
    pub method: Option<Method>,
    pub headers: Vec<HeaderMatch>,
    pub query: Vec<QueryMatch>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathMatch {
    Exact(String),
    /// Whole path segments: `/a` matches `/a` and `/a/b`, not `/ab`.
    Prefix(String),
    /// Must match the whole path. The syntax is that of the `regex` crate (RE2-like).
    Regex(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ValueMatch {
    Exact(String),
    /// Must match the whole value.
    Regex(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderMatch {
    pub name: HeaderName,
    pub value: ValueMatch,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueryMatch {
    pub name: String,
    pub value: ValueMatch,
}

#[derive(Clone, Debug, PartialEq)]
pub struct WeightedBackend {
    pub target: BackendTarget,
    /// Share of the requests: this over the sum of the rule's weights. 0 sends none.
    pub weight: u32,
    /// Applied after the rule's filters, only when this backend is chosen.
    pub filters: Vec<Filter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum BackendTarget {
    /// The destination itself, or one listed in [`Destination::backends`].
    Service(DestinationName),
    /// The reference does not resolve: its share of requests gets 500 with this explanation.
    Invalid(String),
}

#[derive(Clone, Debug, PartialEq)]
pub enum Filter {
    RequestHeaders(HeaderModifier),
    ResponseHeaders(HeaderModifier),
    Redirect(Redirect),
    Rewrite(Rewrite),
    Mirror(Mirror),
    Cors(CorsConfig),
}

/// Applied in the order set, add, remove.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct HeaderModifier {
    pub set: Vec<(HeaderName, HeaderValue)>,
    pub add: Vec<(HeaderName, HeaderValue)>,
    pub remove: Vec<HeaderName>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    /// `http` or `https`; none keeps the request's.
    pub scheme: Option<String>,
    pub host: Option<String>,
    pub port: Option<u16>,
    pub path: Option<PathModifier>,
    /// One of 301, 302, 303, 307, 308.
    pub status: StatusCode,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rewrite {
    pub host: Option<String>,
    pub path: Option<PathModifier>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathModifier {
    /// Replaces the whole path.
    Full(String),
    /// Replaces the prefix that the match named; only valid with a prefix match.
    Prefix(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    pub target: BackendTarget,
    /// The share of requests mirrored, as `numerator / denominator`.
    pub numerator: u32,
    pub denominator: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsRoute {
    pub name: String,
    pub created: i64,
    /// Server names; empty matches every one.
    pub hostnames: Vec<HostMatch>,
    pub backends: Vec<TcpBackend>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcpRoute {
    pub name: String,
    pub backends: Vec<TcpBackend>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcpBackend {
    pub target: BackendTarget,
    pub weight: u32,
}

/// One address that serves a destination.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    pub destination: DestinationName,
    pub id: EndpointId,
    /// Where the app listens.
    pub address: SocketAddr,
    /// How its sidecar is reached; none: plaintext straight to `address`.
    pub mesh: Option<MeshAddress>,
    /// Topology zone, for locality preference.
    pub zone: Option<String>,
    /// Host name below the service (`hostname` of an EndpointSlice endpoint), so that
    /// `<hostname>.<service>.<namespace>` reaches exactly this endpoint.
    pub hostname: Option<String>,
    /// `namespace/service-account` of the workload when known: the `peer` label.
    pub workload: Option<String>,
    /// The calling proxy begins TLS with it; only ever outside the mesh.
    pub tls: Option<Arc<OutsideTls>>,
}

/// TLS to what lies outside the mesh.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct OutsideTls {
    /// Host name or IP address that the certificate must be for; a name is sent as SNI.
    pub server_name: String,
    /// In DER; empty: those of the calling proxy's system.
    pub roots: Vec<Vec<u8>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct MeshAddress {
    /// The inbound port of the endpoint's sidecar.
    pub address: SocketAddr,
    /// Version of the hop protocol that it speaks; 1 is the only one.
    pub hop_version: u32,
    /// The id that the sidecar must prove; none where the mesh runs without identities.
    pub identity: Option<SpiffeId>,
}

/// This workload's own ports, as its inbound proxy needs them.
#[derive(Clone, Debug, PartialEq)]
pub struct Inbound {
    /// The workload's uid.
    pub workload: String,
    /// Addresses on which the app may be reached.
    pub addresses: Vec<IpAddr>,
    pub ports: Vec<InboundPort>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct InboundPort {
    pub port: u16,
    pub protocol: Protocol,
    /// The services that select this port, in name order. One that a caller names is the `service` label, else
    /// the first.
    pub services: Vec<DestinationName>,
    pub mtls: MtlsMode,
    /// None: everybody may do everything.
    pub access: Option<Access>,
    /// None: whatever comes is let in.
    pub server: Option<ServerPolicy>,
}

/// Whether a port takes plaintext from outside the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum MtlsMode {
    /// Plaintext is let in, counted and visible, as an unauthenticated caller.
    #[default]
    Permissive,
    /// Only callers with a certificate from the trust bundle.
    Strict,
}

/// The roots that the mesh trusts. Certificates stay in DER here: reading them is the business
/// of anyone who does I/O.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustBundle {
    pub trust_domain: TrustDomain,
    /// In DER, the one that issues first; never empty.
    pub roots: Vec<Vec<u8>>,
    /// SHA-256 of the root under which certificates are issued now.
    pub issuing_root: [u8; 32],
}

/// Settings of the whole mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeshSettings {
    /// `cluster.local` unless set: the suffix of service names.
    pub cluster_domain: String,
    /// What happens to a destination that nobody knows.
    pub unmatched: Unmatched,
    /// At most this many endpoints of a service are sent to one proxy (default 100).
    pub max_endpoints: u32,
    /// Every namespace that the mesh has or ever had, in order: a name below one of them that does not
    /// exist is `no_such_service`, never passed through. At most [`crate::bounds::NAMESPACES`].
    pub namespaces: Vec<String>,
    pub telemetry: Telemetry,
}

impl Default for MeshSettings {
    fn default() -> Self {
        Self {
            cluster_domain: "cluster.local".to_owned(),
            unmatched: Unmatched::Passthrough,
            max_endpoints: 100,
            namespaces: Vec::new(),
            telemetry: Telemetry::default(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Unmatched {
    /// Connect to where the app wanted to go, counted as `unmatched`.
    #[default]
    Passthrough,
    /// Refuse with `destination_refused`.
    Refuse,
}
