//! Where a request wants to go: its authority, looked up in what the control plane has told.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use outrigger_core::config::{Protocol, Unmatched};
use outrigger_core::name::{Authority, Host};
use outrigger_core::reason::Reason;

use super::authorize::PortRules;
use super::exchange::Exchange;
use super::head::Head;
use super::headers::HOP;
use super::limits::PortLimits;
use super::respond::Refusal;
use super::server::Connection;
use crate::metrics::Label;
use crate::peer::{Fixed, Peer};
use crate::store::{Dialed, Live, Resolution};
use crate::worker::Worker;

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
            Self::Service { live, .. } => live.label,
            Self::App { service, .. } => *service,
            Self::Outside(_) => Label::UNKNOWN,
        }
    }
}

/// The destination of an outbound request. Its deadline bounds the wait for a first configuration.
pub async fn outbound(
    connection: &Connection,
    exchange: &Exchange,
    head: &Head,
) -> Result<Target, Refusal> {
    let worker = &connection.worker;
    let dialed = match &connection.fixed {
        Fixed::Destination(dialed) if dialed.retired() => {
            worker.dial_authority(&dialed.authority)?
        }
        Fixed::Destination(dialed) => Arc::clone(dialed),
        Fixed::Nothing | Fixed::App(_) => {
            let text = head
                .authority()
                .ok_or_else(|| Refusal::new(Reason::BadRequest, "the request names no host"))?;
            worker.dial(text)?
        }
    };
    let limit = worker.proxy.settings.config_timeout;
    let what = "the configuration of the destination did not come in time";
    let left = exchange.time_left(what)?.unwrap_or(limit);
    let target = resolve(worker, dialed, limit.min(left)).await;
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
    crate::metrics::add(&worker.proxy.metrics.gauges.unmatched, 1);
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
pub fn inbound(connection: &Connection, head: &mut Head) -> Result<Target, Refusal> {
    let inbound = connection.worker.proxy.inbound.load();
    if let Fixed::App(address) = connection.fixed {
        let port = inbound.port(address.port())?;
        let (mut rules, mut limits) = (None, None);
        if !is_probe(connection, address.port(), head) {
            port.admit(connection.peer.get())?;
            (rules, limits) = (port.rules.clone(), port.limits.clone());
        }
        let protocol = port.protocol_or(connection.protocol);
        return Ok(Target::App { address, protocol, service: port.service, rules, limits });
    }
    let hop = head.headers.remove(HOP).ok_or_else(|| {
        if connection.peer.get() == Peer::Outside && inbound.all_strict() {
            let why = "this is the inbound port of a proxy, and it takes no plaintext";
            return Refusal::new(Reason::MtlsRequired, why);
        }
        Refusal::new(Reason::NotForUs, "this is the inbound port of a proxy, for other proxies")
    })?;
    connection.claims_to_be_mesh();
    let (port, protocol, by_policy) = parse_hop(hop.to_str().unwrap_or_default())
        .ok_or_else(|| Refusal::new(Reason::BadRequest, "malformed x-outrigger-hop header"))?;
    head.deadline_by_policy = by_policy && connection.peer.get() == Peer::Mesh;
    let port = inbound.port(port)?;
    port.admit(connection.peer.get())?;
    let address = SocketAddr::new(inbound.app, port.port);
    let (protocol, rules) = (port.protocol_or(protocol), port.rules.clone());
    let limits = port.limits.clone();
    Ok(Target::App { address, protocol, service: port.service, rules, limits })
}

/// Whether the platform asks how the app is: exactly what `--probe` names.
fn is_probe(connection: &Connection, port: u16, head: &Head) -> bool {
    let probes = &connection.worker.proxy.settings.probes;
    matches!(head.method, Method::GET | Method::HEAD)
        && head.upgrade.is_none()
        && probes.iter().any(|probe| probe.port == port && probe.path == head.path.as_str())
}

/// `1;port=8080;proto=h1`, and `;deadline=policy` where a policy started the deadline. A later version
/// may add parameters, never change these.
fn parse_hop(text: &str) -> Option<(u16, Protocol, bool)> {
    let mut parts = text.split(';');
    (parts.next()? == "1").then_some(())?;
    let (mut port, mut protocol, mut by_policy) = (None, None, false);
    for part in parts {
        match part.trim().split_once('=')? {
            ("port", value) => port = value.parse().ok(),
            ("proto", "h1") => protocol = Some(Protocol::Http1),
            ("proto", "h2") => protocol = Some(Protocol::Http2),
            ("proto", "grpc") => protocol = Some(Protocol::Grpc),
            ("proto", _) => return None,
            ("deadline", value) => by_policy = value == "policy",
            _ => {}
        }
    }
    Some((port?, protocol?, by_policy))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hop_headers_parse_or_are_refused() {
        assert_eq!(parse_hop("1;port=80;proto=h1"), Some((80, Protocol::Http1, false)));
        assert_eq!(parse_hop("1;port=80;proto=grpc;new=1"), Some((80, Protocol::Grpc, false)));
        let by_policy = parse_hop("1;port=80;proto=h2;deadline=policy");
        assert_eq!(by_policy, Some((80, Protocol::Http2, true)));
        for bad in ["", "2;port=80;proto=h1", "1;port=80", "1;port=x;proto=h1", "1;port=1;proto=q"]
        {
            assert_eq!(parse_hop(bad), None, "{bad}");
        }
    }

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
