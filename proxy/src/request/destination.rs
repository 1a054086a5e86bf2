//! Where a request wants to go: its authority, looked up in what the control plane has told.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use http::header::{self, HeaderName};
use http::uri::Scheme;
use outrigger_core::config::{Protocol, Unmatched};
use outrigger_core::name::{Authority, Host};
use outrigger_core::reason::Reason;

use crate::base::peer::Peer;
use crate::base::refusal::Refusal;
use crate::base::settings::Probe;
use crate::listener::connection::Connection;
use crate::observe::metrics::Label;
use crate::policy::access::PortRules;
use crate::policy::limits::PortLimits;
use crate::proxy::worker::Worker;
use crate::request::exchange::Exchange;
use crate::request::head::Head;
use crate::upstream::fixed::Fixed;
use crate::upstream::store::{Dialed, Live, Resolution};
use crate::wire::headers::HOP;

/// Where a request or a connection goes.
pub enum Target {
    /// A service of the mesh, and how it was dialled.
    Service { live: Arc<Live>, dialed: Arc<Dialed> },
    /// This proxy's own app.
    App {
        address: SocketAddr,
        protocol: Protocol,
        service: Label,
        /// Who may call it; none: everybody.
        rules: Option<Arc<PortRules>>,
        /// How much it takes; none: whatever comes.
        limits: Option<Arc<PortLimits>>,
    },
    /// Outside the mesh, passed through.
    Outside(Authority),
}

impl Target {
    /// What is spoken there, if it is declared.
    pub fn declared(&self) -> Protocol {
        match self {
            Self::Service { live, .. } => live.compiled.protocol,
            Self::App { protocol, .. } => *protocol,
            Self::Outside(_) => Protocol::Detect,
        }
    }

    pub fn label(&self) -> Label {
        match self {
            Self::Service { live, .. } => live.label.get(),
            Self::App { service, .. } => *service,
            Self::Outside(_) => Label::UNKNOWN,
        }
    }
}

/// The destination of an outbound request. Its deadline bounds the wait for a first configuration.
pub async fn outbound(
    connection: &Connection,
    exchange: &mut Exchange,
    head: &Head,
) -> Result<Target, Refusal> {
    let worker = &connection.worker;
    let dialed = match &connection.fixed {
        Fixed::Destination(dialed) if dialed.retired() => {
            worker.dial_authority(&dialed.authority)?
        }
        Fixed::Destination(dialed) => Arc::clone(dialed),
        Fixed::Nothing | Fixed::App(_) => {
            if head.scheme.as_ref().is_some_and(|scheme| *scheme == Scheme::HTTPS) {
                let why = "https in a request to a proxy would be sent on in plaintext: use CONNECT, or http \
                           and an ExternalService with tls";
                return Err(Refusal::new(Reason::BadRequest, why));
            }
            let text = head
                .authority()
                .ok_or_else(|| Refusal::new(Reason::BadRequest, "the request has no host"))?;
            worker.dial(text)?
        }
    };
    let limit = worker.proxy.settings.config_timeout;
    let what = "the configuration of the destination did not come in time";
    let left = exchange.time_left(what)?.unwrap_or(limit);
    let target = {
        let mut resolving = pin!(resolve(worker, dialed, limit.min(left)));
        poll_fn(|cx| {
            let polled = resolving.as_mut().poll(cx);
            exchange.watch(polled, |phases| &mut phases.resolve)
        })
        .await
    };
    if left < limit && target.as_ref().is_err_and(|e| e.reason == Reason::ConfigUnavailable) {
        exchange.time_left(what)?;
    }
    target
}

/// What a dialled authority stands for; waits at most `limit` for a first configuration.
pub async fn resolve(
    worker: &Worker,
    dialed: Arc<Dialed>,
    limit: Duration,
) -> Result<Target, Refusal> {
    dialed.touch(worker.tick());
    let resolution = match dialed.decided() {
        Some(resolution) => resolution,
        None => Box::pin(worker.proxy.store.wait(&dialed, limit)).await,
    };
    match resolution {
        Resolution::Found(live) => Ok(Target::Service { live, dialed }),
        Resolution::Unknown => unmatched(worker, &dialed.authority),
        Resolution::Pending => Err(Refusal::new(
            Reason::ConfigUnavailable,
            format!("no configuration for {} yet", dialed.authority),
        )),
        Resolution::Unsupported(why) => {
            Err(Refusal::new(Reason::ConfigUnsupported, why.to_string()))
        }
    }
}

fn unmatched(worker: &Worker, authority: &Authority) -> Result<Target, Refusal> {
    let mesh = worker.proxy.mesh.load();
    if let Host::Name(name) = &authority.host
        && is_inside(name, &mesh.cluster_domain, &mesh.namespaces)
    {
        return Err(Refusal::new(
            Reason::NoSuchService,
            format!("the mesh has no service {authority}"),
        ));
    }
    if mesh.unmatched == Unmatched::Refuse {
        return Err(Refusal::new(
            Reason::DestinationRefused,
            format!("{authority} is not a service of the mesh"),
        ));
    }
    if let Host::Ip(ip) = authority.host
        && worker.proxy.settings.is_own_listener(SocketAddr::new(ip, authority.port))
    {
        return Err(Refusal::new(Reason::Loop, format!("{authority} is this proxy itself")));
    }
    crate::observe::metrics::add(&worker.proxy.metrics.gauges.unmatched, 1);
    Ok(Target::Outside(authority.clone()))
}

/// A name that only the mesh could know: `a.namespace`, `a.namespace.svc`, `*.<cluster domain>`, and
/// `a.namespace.svc.<any domain>`, since the domain may have been another one. `namespaces` in order, those
/// that the mesh had before among them.
fn is_inside(name: &str, domain: &str, namespaces: &[String]) -> bool {
    let name = name.trim_end_matches('.');
    if name.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.')) {
        return true;
    }
    let known = |label: &str| namespaces.binary_search_by(|one| one.as_str().cmp(label)).is_ok();
    let mut parts = name.splitn(2, '.');
    let Some(mut rest) = parts.next().and(parts.next()) else { return false };
    while let Some((label, after)) = rest.split_once('.') {
        if (after == "svc" || after.starts_with("svc.")) && known(label) {
            return true;
        }
        rest = after;
    }
    known(rest)
}

/// The destination of an inbound request: the app, on a port that it has registered.
pub fn inbound(
    connection: &Connection,
    head: &mut Head,
    has_body: bool,
) -> Result<Target, Refusal> {
    let inbound = connection.worker.proxy.inbound.load();
    if let Fixed::App(address) = connection.fixed {
        let port = inbound.port(address.port())?;
        let (mut rules, mut limits) = (None, None);
        if !is_probe(connection, address.port(), head, has_body) {
            port.admit(connection.peer.get())?;
            (rules, limits) = (port.rules.clone(), port.limits.clone());
        }
        let protocol = port.protocol_or(connection.protocol);
        return Ok(Target::App { address, protocol, service: port.service(None), rules, limits });
    }
    let header = head.headers.remove(HOP).ok_or_else(|| {
        if connection.peer.get() == Peer::Outside && inbound.all_strict() {
            let why = "this is the inbound port of a proxy and accepts no plaintext";
            return Refusal::new(Reason::MtlsRequired, why);
        }
        let why = "this is the inbound port of a proxy and accepts only other proxies";
        Refusal::new(Reason::NotForUs, why)
    })?;
    connection.claims_to_be_mesh();
    let hop = connection
        .last_hop
        .read(&header)
        .ok_or_else(|| Refusal::new(Reason::BadRequest, "malformed x-outrigger-hop header"))?;
    let is_mesh = connection.peer.get() == Peer::Mesh;
    head.deadline_by_policy = hop.by_policy && is_mesh;
    head.trace_by_id = hop.trace_by_id && is_mesh;
    head.absolute = hop.absolute;
    let port = inbound.port(hop.port)?;
    port.admit(connection.peer.get())?;
    let (address, protocol) = (SocketAddr::new(inbound.app, port.port), hop.protocol);
    let (protocol, rules) = (port.protocol_or(protocol), port.rules.clone());
    let limits = port.limits.clone();
    let service = port.service(hop.service.as_deref().filter(|_| is_mesh));
    Ok(Target::App { address, protocol, service, rules, limits })
}

/// The headers of a probe as a kubelet sends it.
const PROBE_HEADERS: [HeaderName; 5] =
    [header::HOST, header::USER_AGENT, header::ACCEPT, header::ACCEPT_ENCODING, header::CONNECTION];
/// The same of a gRPC one.
const GRPC_PROBE_HEADERS: [HeaderName; 6] = [
    header::HOST,
    header::USER_AGENT,
    header::CONTENT_TYPE,
    header::TE,
    HeaderName::from_static("grpc-timeout"),
    HeaderName::from_static("grpc-accept-encoding"),
];
/// What a gRPC probe calls. Its message is the name of a service, and it changes nothing.
const GRPC_PROBE: &str = "/grpc.health.v1.Health/Check";

/// Whether the platform asks how the app is: a GET of exactly what `--probe` names, or the health check of gRPC,
/// with nothing in it that could make the app do something else.
fn is_probe(connection: &Connection, port: u16, head: &Head, has_body: bool) -> bool {
    let settings = &connection.worker.proxy.settings;
    let (asks, usual) = match connection.protocol {
        Protocol::Http1 => (
            head.method == Method::GET && head.authority.is_none() && !has_body,
            &PROBE_HEADERS[..],
        ),
        Protocol::Http2 => (
            head.method == Method::POST && head.path.as_str() == GRPC_PROBE,
            &GRPC_PROBE_HEADERS[..],
        ),
        _ => return false,
    };
    let known = |name| usual.contains(name) || settings.probe_headers.contains(name);
    let listed = |probe: &Probe| probe.port == port && probe.path == head.path.as_str();
    asks && head.upgrade.is_none()
        && settings.probes.iter().any(listed)
        && head.headers.keys().all(known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_mesh_are_told_from_outside_names() {
        let namespaces = ["bank".to_owned()];
        let inside = |name| is_inside(name, "cluster.local", &namespaces);
        assert!(inside("orders.bank"));
        assert!(inside("orders.bank.svc"));
        assert!(inside("x.y.svc.cluster.local"));
        assert!(!inside("example.com"));
        assert!(!inside("bank"));
        assert!(!inside("notcluster.local"));
        assert!(inside("orders.bank.svc.old.domain"));
        assert!(inside("pod.orders.bank.svc.old.domain"));
        assert!(inside("pod.orders.bank"));
        assert!(inside("orders.bank."));
        assert!(!inside("bank.svc"));
        assert!(!inside("bank.svc.example.com"));
        assert!(!inside("orders.bank.example.com"));
        assert!(!inside("svc.example.com"));
    }
}
