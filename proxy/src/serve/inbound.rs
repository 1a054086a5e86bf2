//! Connections to this proxy's own app: from other proxies, or redirected from anybody.
//!
//! Who the caller is becomes clear here, once: a handshake proves it, and plaintext proves nothing.
//! Without identities in the mesh a caller is trusted by its first request.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use outrigger_core::config::Protocol;
use outrigger_core::detect::Detected;
use outrigger_core::reason::Reason;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::base::direction::Direction;
use crate::base::peer::Peer;
use crate::base::refusal::Refusal;
use crate::listener::connection::{Connection, ServingFuture};
use crate::listener::origin::Origin;
use crate::listener::original::original_destination;
use crate::listener::role::Listener;
use crate::listener::slot::Slot;
use crate::listener::sniff::{Sniffer, Spoke};
use crate::observe::metrics::{Label, add};
use crate::policy::inbound_ports::{InboundPort, InboundPorts};
use crate::proxy::Phase;
use crate::proxy::connections::{ConnectionTrust, Review};
use crate::proxy::worker::Worker;
use crate::request::destination::Target;
use crate::tls::caller::MeshCaller;
use crate::tls::handshake;
use crate::tls::identity::Identity;
use crate::tls::verify::Trust;
use crate::tunnel::stream;
use crate::upstream::fixed::Fixed;
use crate::wire::io::{Io, Transport};

/// First byte of every TLS connection (RFC 8446 section 5.1) and of no HTTP one.
const TLS_HANDSHAKE: u8 = 22;

/// Serves a connection until it is over, or known to be HTTP.
#[must_use = "what is left of an HTTP connection is served by what this returns"]
pub async fn serve(
    worker: Rc<Worker>,
    stream: TcpStream,
    remote: SocketAddr,
    (listener, slot): (Arc<Listener>, Rc<Slot>),
) -> ServingFuture {
    let original = original_destination(&stream, &worker.proxy.settings);
    let mut origin = Origin {
        peer: listener.peer(),
        listener,
        caller: None,
        remote,
        fixed: Fixed::Nothing,
        tunnel: None,
        slot,
    };
    if let Some(address) = original {
        origin.listener = origin.listener.redirected();
        // Anyone who routes a network through this host reaches its own addresses and no others.
        if !worker.is_own(address.ip()) {
            let why = format!("{address} is not an address of this workload");
            let refusal = Refusal::new(Reason::NotForUs, why);
            return refuse(&worker, Label::UNKNOWN, &refusal, remote);
        }
        let ports = worker.proxy.inbound.load_full();
        match ports.port(address.port()) {
            Ok(port) => {
                origin.fixed = Fixed::App(address);
                let port = port.clone();
                return redirected(worker, stream, origin, address, port).await;
            }
            Err(refusal) => return refuse(&worker, Label::UNKNOWN, &refusal, remote),
        }
    }
    let Some(identity) = worker.proxy.identity.clone() else {
        return plaintext(worker, stream, origin).await;
    };
    let limit = worker.proxy.settings.first_byte_timeout;
    let first = match timeout(limit, first_byte(&worker, &stream)).await {
        Ok(first) => first,
        Err(_) => return silent(&worker, remote),
    };
    match first {
        Some(TLS_HANDSHAKE) => authenticated(worker, &identity, stream, origin).await,
        Some(_) => plaintext(worker, stream, origin).await,
        None => None,
    }
}

/// A caller outside the mesh, on its way to one of the app's ports.
async fn redirected(
    worker: Rc<Worker>,
    stream: TcpStream,
    origin: Origin,
    address: SocketAddr,
    port: InboundPort,
) -> ServingFuture {
    let (protocol, service, remote) = (port.declared(), port.service(None), origin.remote);
    if !port.strict() {
        if let Some(identity) = &worker.proxy.identity {
            add(&identity.counts().plaintext_inbound, 1);
        }
        let (rules, limits) = (port.rules, port.limits);
        let target = Target::App { address, protocol, service, rules, limits };
        return stream::serve(worker, Transport::Tcp(stream), origin, target).await;
    }
    // A request can be told why it is refused, and may be a probe, which is not.
    let mut sniffer = Sniffer::new(Transport::Tcp(stream));
    let spoke = match protocol {
        Protocol::Tcp => Spoke::Nobody,
        _ => {
            let limit = worker.proxy.settings.first_byte_timeout;
            worker.listen(&mut sniffer, Some(limit), origin.listener.limits.ends).await
        }
    };
    match http_of(&spoke) {
        Some(protocol) => {
            Some(Box::pin(Connection::serve(worker, sniffer.into_io(), protocol, origin)))
        }
        None if matches!(spoke, Spoke::Gone) => None,
        None => {
            let refusal = port.admit(Peer::Outside).err()?;
            refuse(&worker, service, &refusal, remote)
        }
    }
}

/// Another proxy, or who wants to pass for one.
async fn authenticated(
    worker: Rc<Worker>,
    identity: &Identity,
    stream: TcpStream,
    mut origin: Origin,
) -> ServingFuture {
    let limit = worker.proxy.settings.header_timeout;
    // Boxed: a connection should not carry the size of its handshake for life.
    let accepting = Box::pin(handshake::accept(identity, &worker.pace, stream, limit));
    let (stream, proof) = match accepting.await {
        Ok(accepted) => accepted,
        Err(failed) => {
            let refusal = Refusal::new(failed.reason, failed.detail);
            return refuse(&worker, Label::UNKNOWN, &refusal, origin.remote);
        }
    };
    let own = identity.current().ok().filter(|_| worker.proxy.settings.forward_client_identity);
    let own = own.as_ref().map(|own| &own.id);
    origin.peer = Peer::Mesh;
    origin.caller = Some(Rc::new(MeshCaller::new(proof, &worker.proxy.metrics, own)));
    let io = Io::new(Transport::Tls(stream), bytes::Bytes::new());
    Some(Box::pin(Connection::serve(worker, io, Protocol::Http2, origin)))
}

/// In a mesh without identities another proxy; in one with them, somebody outside.
async fn plaintext(worker: Rc<Worker>, stream: TcpStream, origin: Origin) -> ServingFuture {
    let remote = origin.remote;
    let mut sniffer = Sniffer::new(Transport::Tcp(stream));
    let limit = worker.proxy.settings.first_byte_timeout;
    let spoke = worker.listen(&mut sniffer, Some(limit), origin.listener.limits.ends).await;
    // A proxy's hop is HTTP/2; HTTP/1.1 is let in only to be told so.
    if let Some(protocol) = http_of(&spoke) {
        return Some(Box::pin(Connection::serve(worker, sniffer.into_io(), protocol, origin)));
    }
    let reason = match spoke {
        Spoke::Gone => return None,
        Spoke::Nobody => return silent(&worker, remote),
        _ if worker.proxy.identity.is_some() && worker.proxy.inbound.load().all_strict() => {
            Reason::MtlsRequired
        }
        Spoke::TooSlow => Reason::HeaderTimeout,
        Spoke::Client(_) => Reason::ProtocolError,
    };
    worker.refused(Direction::Inbound, Protocol::Detect, reason, remote);
    None
}

/// Nobody holds a place by saying nothing.
fn silent(worker: &Worker, remote: SocketAddr) -> ServingFuture {
    worker.refused(Direction::Inbound, Protocol::Detect, Reason::HeaderTimeout, remote);
    None
}

fn http_of(spoke: &Spoke) -> Option<Protocol> {
    match spoke {
        Spoke::Client(Detected::Http1) => Some(Protocol::Http1),
        Spoke::Client(Detected::Http2) => Some(Protocol::Http2),
        _ => None,
    }
}

/// Waits for the connection's first byte and leaves it there. None: it will not come.
async fn first_byte(worker: &Worker, stream: &TcpStream) -> Option<u8> {
    let mut first = [0];
    tokio::select! {
        peeked = stream.peek(&mut first) => match peeked {
            Ok(0) | Err(_) => None,
            Ok(_) => Some(first[0]),
        },
        () = worker.proxy.lifecycle.reached(Phase::Finishing) => None,
    }
}

fn refuse(worker: &Worker, service: Label, refusal: &Refusal, remote: SocketAddr) -> ServingFuture {
    worker.refuse_stream(Direction::Inbound, Protocol::Detect, service, refusal, remote);
    None
}

/// Whether an open connection may stay. `trust`: a bundle that has come since the last time.
pub fn review(
    connection: &ConnectionTrust,
    ports: &InboundPorts,
    ports_changed: bool,
    trust: Option<&Trust>,
    now: u64,
) -> Review {
    if ports_changed && is_denied(connection, ports) {
        return Review::Terminate(Reason::AccessDenied);
    }
    if let Some(caller) = &connection.caller {
        if trust.is_some_and(|trust| !caller.proof.holds(trust)) {
            return Review::Terminate(Reason::TlsHandshakeFailed);
        }
        return if now >= caller.proof.until { Review::Drain } else { Review::Keep };
    }
    let strict = match connection.port {
        Some(port) => ports.port(port).is_ok_and(InboundPort::strict),
        None => ports.all_strict(),
    };
    if strict && connection.peer != Peer::Mesh {
        return Review::Terminate(Reason::MtlsRequired);
    }
    Review::Keep
}

/// Whether the rules of now leave a caller nothing on this connection. A request is judged when it
/// comes; a stream of bytes has only this.
fn is_denied(connection: &ConnectionTrust, ports: &InboundPorts) -> bool {
    let caller = connection.caller.as_deref();
    match connection.port {
        None => ports.is_denied(caller, connection.remote),
        Some(port) => match ports.port(port).map(|port| port.rules.as_ref()) {
            Ok(Some(rules)) if connection.opaque => {
                !rules.would_allow_stream(caller, connection.remote)
            }
            Ok(Some(rules)) => !rules.could_allow(caller, connection.remote),
            Ok(None) | Err(_) => false,
        },
    }
}
