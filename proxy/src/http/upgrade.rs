//! Where a connection or stream stops being HTTP: `Upgrade` (RFC 9110 section 7.8), extended CONNECT
//! (RFC 8441) and plain CONNECT.

use std::rc::Rc;
use std::time::Duration;

use http::header::{self, HeaderName, HeaderValue};
use http::request::Parts;
use http::{Method, Response, StatusCode, Version};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use outrigger_core::config::Protocol;
use outrigger_core::name::Authority;
use outrigger_core::reason::Reason;
use tokio::sync::oneshot;

use super::deadline::told;
use super::destination::{self, Target};
use super::exchange::Exchange;
use super::head::Head;
use super::headers;
use super::respond::Refusal;
use super::server::Connection;
use crate::io::{Duplex, Transport};
use crate::metrics::{Direction, Label};
use crate::peer::{self, Fixed, Origin, Peer};
use crate::stream;
use crate::stream::relay::{self, Early, Limits};
use crate::streams::WireBody;
use crate::streams::tunnel::Tunnel;
use crate::watch::{ConnectionWatch, Standing};

const SEC_WEBSOCKET_ACCEPT: HeaderName = header::SEC_WEBSOCKET_ACCEPT;

/// The caller's side of a change of protocol.
pub struct Switch {
    /// What `Upgrade` or `:protocol` names; none for a plain CONNECT.
    pub token: Option<HeaderValue>,
    caller: Caller,
    version: Version,
}

/// Where the caller's side of a request comes from, once the request has stopped being HTTP.
pub enum Caller {
    Http1(OnUpgrade),
    Http2(oneshot::Receiver<Tunnel>),
}

impl Caller {
    /// None: the caller has gone.
    async fn bytes(self) -> Option<Box<dyn Duplex>> {
        match self {
            Self::Http1(caller) => Some(Box::new(TokioIo::new(caller.await.ok()?))),
            Self::Http2(caller) => Some(Box::new(caller.await.ok()?)),
        }
    }
}

/// Takes the caller's side from a request that wants to change protocols.
pub fn wanted(head: &Parts, caller: Option<Caller>) -> Option<Box<Switch>> {
    let caller = caller?;
    let token = headers::upgrade_of(head);
    let wants = token.is_some() || head.method == Method::CONNECT;
    // Boxed: rare, and the future of every request would carry its size.
    wants.then(|| Box::new(Switch { token, caller, version: head.version }))
}

/// A CONNECT that names a destination, not a protocol.
pub fn is_tunnel(head: &Parts) -> bool {
    head.method == Method::CONNECT && head.extensions.get::<h2::ext::Protocol>().is_none()
}

/// Joins the two sides of a change that the upstream has accepted, and makes the caller's answer.
pub fn join(
    connection: &Rc<Connection>,
    exchange: &Exchange,
    switch: Switch,
    response: Response<WireBody>,
    idle: Option<Duration>,
) -> Response<()> {
    let (mut head, body) = response.into_parts();
    let upstream = hyper::upgrade::on(Response::from_parts(head.clone(), body));
    let direction = connection.direction;
    let Switch { token, caller, version } = switch;
    let connection = Rc::clone(connection);
    let (protocol, service) = (exchange.protocol, exchange.service);
    // A deadline that a policy started has ended with the head.
    let deadline = exchange.deadline.filter(|deadline| deadline.outlives_head(true));
    let limits = Limits { idle, until: deadline.map(|deadline| deadline.at) };
    tokio::task::spawn_local(async move {
        let (Some(caller), Ok(upstream)) = futures::join!(caller.bytes(), upstream) else {
            return;
        };
        let ended = relay::relay(caller, TokioIo::new(upstream), limits).await;
        let worker = &connection.worker;
        worker.proxy.metrics.count_bytes(ended.received, ended.sent);
        if let Some(Early::Over(reason)) = ended.early {
            let refusal = Refusal::new(reason, "it was open for as long as it may be");
            worker.refuse_stream(direction, protocol, service, &refusal, connection.remote);
        }
    });
    if version == Version::HTTP_2 {
        head.status = StatusCode::OK;
        // Callers on HTTP/2 know no such header; the one at the far end of a hop may need it.
        if direction == Direction::Outbound {
            head.headers.remove(SEC_WEBSOCKET_ACCEPT);
        }
    } else {
        head.status = StatusCode::SWITCHING_PROTOCOLS;
        head.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        if let Some(token) = token {
            head.headers.insert(header::UPGRADE, token);
        }
    }
    head.headers.remove(header::CONTENT_LENGTH);
    let mut answer = Response::new(());
    *answer.status_mut() = head.status;
    *answer.headers_mut() = head.headers;
    answer
}

/// CONNECT, from the app or from another proxy.
pub async fn tunnel(
    connection: &Rc<Connection>,
    exchange: &mut Exchange,
    head: &Option<Head>,
    switch: Option<Box<Switch>>,
) -> Result<Response<()>, Refusal> {
    let (Some(head), Some(switch)) = (head, switch) else {
        return Err(Refusal::new(Reason::BadRequest, "this CONNECT cannot become a tunnel"));
    };
    match connection.direction {
        Direction::Outbound => outbound_tunnel(connection, exchange, head, switch).await,
        Direction::Inbound => inbound_tunnel(connection, exchange, head, switch).await,
    }
}

/// CONNECT from the app: what flows inside is treated as a connection of its own.
async fn outbound_tunnel(
    connection: &Rc<Connection>,
    exchange: &mut Exchange,
    head: &Head,
    switch: Box<Switch>,
) -> Result<Response<()>, Refusal> {
    let worker = &connection.worker;
    let text = head.authority.as_ref().map(|a| a.as_str()).unwrap_or_default();
    let authority = Authority::parse(text, None)
        .map_err(|e| Refusal::new(Reason::BadRequest, e.to_string()))?;
    let dialed =
        worker.dial_authority(&authority.in_namespace(&worker.proxy.settings.namespace))?;
    let limit = worker.proxy.settings.config_timeout;
    let target = destination::resolve(worker, std::sync::Arc::clone(&dialed), limit).await?;
    if let Target::Service { live, .. } = &target {
        exchange.service = live.label;
    }
    let left = told(&head.headers).nearest();
    let tunnel = peer::Tunnel { until: left.and_then(|left| exchange.began.checked_add(left)) };
    let caller = switch.caller;
    let (worker, remote, slot) =
        (Rc::clone(worker), connection.remote, Rc::clone(&connection.slot));
    tokio::task::spawn_local(async move {
        let Some(caller) = caller.bytes().await else { return };
        let transport = Transport::Tunnel(caller);
        let fixed = Fixed::Destination(dialed);
        let (direction, peer) = (Direction::Outbound, Peer::App);
        let tunnel = Some(tunnel);
        let origin = Origin { direction, peer, caller: None, remote, fixed, tunnel, slot };
        stream::serve(worker, transport, origin, target).await;
    });
    exchange.tunneled = true;
    Ok(Response::new(()))
}

/// CONNECT from another proxy: opaque bytes for one of the app's ports.
async fn inbound_tunnel(
    connection: &Rc<Connection>,
    exchange: &mut Exchange,
    head: &Head,
    switch: Box<Switch>,
) -> Result<Response<()>, Refusal> {
    let worker = &connection.worker;
    connection.claims_to_be_mesh();
    let port = head.authority.as_ref().and_then(|a| a.port_u16()).unwrap_or(0);
    let inbound = worker.proxy.inbound.load_full();
    let served = inbound.port(port)?;
    served.admit(connection.peer.get())?;
    exchange.service = served.service;
    if let Some(rules) = &served.rules {
        rules.stream(worker, connection.caller.as_deref(), connection.remote.ip())?;
    }
    exchange.protocol = Protocol::Tcp;
    let address = std::net::SocketAddr::new(inbound.app, port);
    let app = worker.connect(address).await?;
    let caller = switch.caller;
    let (connection, service) = (Rc::clone(connection), served.service);
    tokio::task::spawn_local(async move {
        let worker = &connection.worker;
        let Some(caller) = caller.bytes().await else { return };
        let labels =
            stream::Labels { service, route: Label::NONE, peer: connection.caller_label() };
        let began = std::time::Instant::now();
        let standing = Standing {
            peer: connection.peer.get(),
            caller: connection.caller.clone(),
            remote: connection.remote.ip(),
            port: Some(port),
            opaque: true,
        };
        let watch = ConnectionWatch::new(true);
        let registered = worker.connections.enter(Direction::Inbound, watch, standing);
        tokio::select! {
            ended = relay::relay(caller, app, Limits::default()) => {
                let from = (Direction::Inbound, connection.remote);
                stream::record(worker, from, Protocol::Tcp, labels, began, &ended);
            }
            reason = registered.is_cut() => {
                let refusal = Refusal::new(reason, "the stream may stay no longer");
                let remote = connection.remote;
                worker.refuse_stream(Direction::Inbound, Protocol::Tcp, service, &refusal, remote);
            }
        }
    });
    exchange.tunneled = true;
    Ok(Response::new(()))
}
