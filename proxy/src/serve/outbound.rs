//! Connections of this proxy's own app: as an explicit proxy, redirected, or listened for.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use outrigger_core::config::Protocol;
use outrigger_core::detect::Detected;
use outrigger_core::name::Authority;
use outrigger_core::reason::Reason;
use tokio::net::TcpStream;

use crate::base::refusal::Refusal;
use crate::listener::connection::{Connection, ServingFuture};
use crate::listener::origin::Origin;
use crate::listener::original::original_destination;
use crate::listener::role::Listener;
use crate::listener::slot::Slot;
use crate::listener::sniff::{Sniffer, Spoke};
use crate::observe::metrics::Label;
use crate::proxy::worker::Worker;
use crate::request::destination::resolve;
use crate::tunnel::stream;
use crate::upstream::fixed::Fixed;
use crate::wire::io::Transport;

/// Serves a connection until it is over, or known to be HTTP. `destination`: of a listener that has one.
#[must_use = "what is left of an HTTP connection is served by what this returns"]
pub async fn serve(
    worker: Rc<Worker>,
    stream: TcpStream,
    remote: SocketAddr,
    (listener, slot): (Arc<Listener>, Rc<Slot>),
    destination: Option<Authority>,
) -> ServingFuture {
    let original = original_destination(&stream, &worker.proxy.settings);
    let direction = listener.direction();
    let refuse = |reason, detail: String| {
        let refusal = Refusal::new(reason, detail);
        worker.refuse_stream(direction, Protocol::Detect, Label::UNKNOWN, &refusal, remote);
        None
    };
    if original.is_none() && !remote.ip().to_canonical().is_loopback() {
        let why = "the outbound port accepts only the app of this proxy";
        return refuse(Reason::NotForUs, why.to_owned());
    }
    let listener = if original.is_some() { listener.redirected() } else { listener };
    match destination.or(original.map(Authority::from)) {
        Some(authority) => {
            let dialed = match worker.dial_authority(&authority) {
                Ok(dialed) => dialed,
                Err(refusal) => return refuse(refusal.reason, refusal.detail.into_owned()),
            };
            match resolve(&worker, Arc::clone(&dialed), worker.proxy.settings.config_timeout).await
            {
                Ok(target) => {
                    let fixed = Fixed::Destination(dialed);
                    let origin = origin(listener, remote, fixed, slot);
                    stream::serve(worker, Transport::Tcp(stream), origin, target).await
                }
                Err(refusal) => refuse(refusal.reason, refusal.detail.into_owned()),
            }
        }
        None => explicit(worker, stream, origin(listener, remote, Fixed::Nothing, slot)).await,
    }
}

fn origin(listener: Arc<Listener>, remote: SocketAddr, fixed: Fixed, slot: Rc<Slot>) -> Origin {
    let peer = listener.peer();
    Origin { listener, peer, caller: None, remote, fixed, tunnel: None, slot }
}

/// A forward proxy: each request names its destination.
async fn explicit(worker: Rc<Worker>, stream: TcpStream, origin: Origin) -> ServingFuture {
    let (listener, remote) = (Arc::clone(&origin.listener), origin.remote);
    let mut sniffer = Sniffer::new(Transport::Tcp(stream));
    let protocol = match worker
        .listen(&mut sniffer, listener.limits.first_byte, listener.limits.ends)
        .await
    {
        Spoke::Client(Detected::Http1) => Protocol::Http1,
        Spoke::Client(Detected::Http2) => Protocol::Http2,
        // To be told what is wrong with it.
        Spoke::Client(Detected::Opaque) if sniffer.resembles_request() => Protocol::Http1,
        Spoke::Gone | Spoke::Nobody => return None,
        Spoke::TooSlow => {
            worker.refused(listener.direction(), Protocol::Detect, Reason::HeaderTimeout, remote);
            return None;
        }
        Spoke::Client(_) => {
            worker.refused(listener.direction(), Protocol::Detect, Reason::ProtocolError, remote);
            return None;
        }
    };
    Some(Box::pin(Connection::serve(worker, sniffer.into_io(), protocol, origin)))
}
