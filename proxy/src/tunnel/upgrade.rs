//! Where a connection or stream stops being HTTP: `Upgrade` (RFC 9110 section 7.8), extended CONNECT
//! (RFC 8441) and plain CONNECT.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::request::Parts;
use http::{Method, Response, StatusCode, Version};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use outrigger_core::config::Protocol;
use outrigger_core::name::Authority;
use outrigger_core::reason::Reason;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;

use crate::base::direction::Direction;
use crate::base::peer::Peer;
use crate::base::refusal::Refusal;
use crate::listener::connection::Connection;
use crate::listener::origin as peer;
use crate::listener::origin::Origin;
use crate::listener::role::Routing;
use crate::observe::metrics::Label;
use crate::request::destination::{self, Target};
use crate::request::exchange::{Exchange, TunnelHold};
use crate::request::head::Head;
use crate::tunnel::stream;
use crate::tunnel::stream::relay::{self, Early, RelayLimits};
use crate::upstream::fixed::Fixed;
use crate::wire::deadline::told;
use crate::wire::headers::{self, HOP};
use crate::wire::hop::parse_hop;
use crate::wire::io::{Duplex, Transport};
use crate::wire::streams::WireBody;
use crate::wire::streams::tunnel::Tunnel;

const SEC_WEBSOCKET_ACCEPT: HeaderName = header::SEC_WEBSOCKET_ACCEPT;

/// The caller's side of a change of protocol.
pub struct Switch {
    /// What `Upgrade` or `:protocol` names; of a plain CONNECT [`headers::CONNECT`].
    pub token: HeaderValue,
    caller: CallerHalf,
    asked: UpgradeKind,
}

/// How the change was asked for, and is therefore granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum UpgradeKind {
    /// By `Upgrade` on HTTP/1.1: 101.
    Upgrade,
    /// By CONNECT, plain or extended: any success, so that no other answer may be one.
    Connect,
    /// By another proxy in the mesh's own words, [`headers::UPGRADE`].
    Hop,
}

/// Where the caller's side of a request comes from, once the request has stopped being HTTP.
pub enum CallerHalf {
    Http1(OnUpgrade),
    Http2(oneshot::Receiver<Tunnel<Bytes>>),
}

impl CallerHalf {
    /// None: the caller has gone.
    async fn bytes(self) -> Option<Box<dyn Duplex>> {
        match self {
            Self::Http1(caller) => Some(Box::new(TokioIo::new(caller.await.ok()?))),
            Self::Http2(caller) => Some(Box::new(caller.await.ok()?)),
        }
    }
}

/// Takes the caller's side from a request that wants to change protocols.
pub fn wanted(head: &Parts, caller: Option<CallerHalf>) -> Option<Box<Switch>> {
    let caller = caller?;
    let token = headers::upgrade_of(head)?;
    // Boxed: rare, and the future of every request would carry its size.
    let asked = match (head.version, &head.method) {
        (_, &Method::CONNECT) => UpgradeKind::Connect,
        (Version::HTTP_2, _) => UpgradeKind::Hop,
        _ => UpgradeKind::Upgrade,
    };
    Some(Box::new(Switch { token, caller, asked }))
}

/// A CONNECT for this proxy: from the app, which uses it as a forward proxy, or from another proxy, which has
/// a stream of bytes for one of the app's ports. Any other one is for the server that the connection goes to.
pub fn is_tunnel(connection: &Connection, head: &Parts) -> bool {
    head.method == Method::CONNECT
        && head.extensions.get::<h2::ext::Protocol>().is_none()
        && matches!(connection.fixed, Fixed::Nothing)
}

/// The protocol that the upstream has changed to, if it has.
pub fn accepted(switch: &Switch, response: &Response<WireBody>) -> Option<HeaderValue> {
    let token = match response.body() {
        WireBody::Switched(switched) => switched.token.clone(),
        _ if switch.token == headers::CONNECT => {
            return response.status().is_success().then_some(headers::CONNECT);
        }
        _ if response.status() != StatusCode::SWITCHING_PROTOCOLS => return None,
        _ => response.headers().get(header::UPGRADE).cloned(),
    };
    Some(token.unwrap_or_else(|| switch.token.clone()))
}

/// An answer of an upstream that goes on as it was. Over CONNECT no success may say so.
pub fn declined(
    switch: &Switch,
    response: Response<WireBody>,
) -> Result<Response<WireBody>, Refusal> {
    if switch.asked == UpgradeKind::Connect && response.status().is_success() {
        let why = format!("the upstream answered {} and stays at HTTP", response.status());
        return Err(Refusal::new(Reason::UpgradeRefused, why));
    }
    Ok(response)
}

/// Joins the two sides of a change that the upstream has accepted, and makes the caller's answer. What the
/// request holds of the upstream and of limits stays held until the last byte.
pub fn join(
    connection: &Rc<Connection>,
    exchange: &mut Exchange,
    switch: Switch,
    token: HeaderValue,
    response: Response<WireBody>,
    idle: Option<Duration>,
) -> Response<()> {
    let (mut head, body) = response.into_parts();
    let held = exchange.hold(head.status, &mut head.headers);
    let Switch { caller, asked, .. } = switch;
    let limits = {
        // A deadline that a policy started has ended with the head.
        let deadline = exchange.deadline.filter(|deadline| deadline.outlives_head(true));
        RelayLimits { idle, until: deadline.map(|deadline| deadline.at) }
    };
    let mut answer = Response::new(());
    let headers = &mut head.headers;
    headers.remove(header::CONTENT_LENGTH);
    match asked {
        UpgradeKind::Upgrade => {
            *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            headers.insert(header::UPGRADE, token);
        }
        // Callers on HTTP/2 know no such header.
        UpgradeKind::Connect => drop(headers.remove(SEC_WEBSOCKET_ACCEPT)),
        UpgradeKind::Hop => drop(headers.insert(headers::UPGRADE, token)),
    }
    *answer.headers_mut() = std::mem::take(headers);
    let joining = Joining {
        connection: Rc::clone(connection),
        protocol: exchange.protocol,
        service: exchange.service,
        port: exchange
            .endpoint
            .filter(|_| connection.listener.routing == Routing::OwnPorts)
            .map(|app| app.port()),
        limits,
        held,
    };
    match body {
        WireBody::Switched(switched) => {
            tokio::task::spawn_local(joining.run(caller, async { Some(switched.tunnel) }));
        }
        body => {
            let upstream = hyper::upgrade::on(Response::from_parts(head, body));
            let upstream = async { upstream.await.ok().map(TokioIo::new) };
            tokio::task::spawn_local(joining.run(caller, upstream));
        }
    }
    answer
}

/// Two sides that speak something else than HTTP from now on.
struct Joining {
    connection: Rc<Connection>,
    protocol: Protocol,
    service: Label,
    /// Of the app, where the caller is not: its right to stay is looked at again.
    port: Option<u16>,
    limits: RelayLimits,
    held: TunnelHold,
}

impl Joining {
    async fn run<U: AsyncRead + AsyncWrite + Unpin>(
        self,
        caller: CallerHalf,
        upstream: impl Future<Output = Option<U>>,
    ) {
        let (Some(caller), Some(upstream)) = futures::join!(caller.bytes(), upstream) else {
            return;
        };
        let Connection { worker, listener, remote, .. } = &*self.connection;
        let registered = self.port.map(|port| self.connection.enter_stream(port, false));
        let cut = async {
            match &registered {
                Some(registered) => registered.is_cut().await,
                None => std::future::pending().await,
            }
        };
        let refuse = |reason, why: &'static str| {
            let refusal = Refusal::new(reason, why);
            worker.refuse_stream(
                listener.direction(),
                self.protocol,
                self.service,
                &refusal,
                *remote,
            );
        };
        tokio::select! {
            ended = relay::relay(caller, upstream, self.limits) => {
                drop(self.held);
                worker.proxy.metrics.count_bytes(ended.received, ended.sent);
                if let Some(Early::Over(reason)) = ended.early {
                    refuse(reason, "the connection reached its maximum duration");
                }
            }
            reason = cut => refuse(reason, "the stream is no longer allowed"),
        }
    }
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
    match connection.listener.routing {
        Routing::Destinations => outbound_tunnel(connection, exchange, head, switch).await,
        Routing::OwnPorts => inbound_tunnel(connection, exchange, head, switch).await,
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
    let target = destination::resolve(worker, Arc::clone(&dialed), limit).await?;
    if let Target::Service { live, .. } = &target {
        exchange.service = live.label.get();
    }
    let left = told(&head.headers).nearest();
    let tunnel =
        peer::ConnectTunnel { until: left.and_then(|left| exchange.began.checked_add(left)) };
    let caller = switch.caller;
    let (worker, remote, slot) =
        (Rc::clone(worker), connection.remote, Rc::clone(&connection.slot));
    let listener = Arc::clone(&connection.listener);
    tokio::task::spawn_local(async move {
        let Some(caller) = caller.bytes().await else { return };
        let transport = Transport::Tunnel(caller);
        let fixed = Fixed::Destination(dialed);
        let (peer, tunnel) = (listener.peer(), Some(tunnel));
        let origin = Origin { listener, peer, caller: None, remote, fixed, tunnel, slot };
        if let Some(serving) = stream::serve(worker, transport, origin, target).await {
            serving.await;
        }
    });
    exchange.tunneled = true;
    Ok(Response::new(()))
}

/// CONNECT from another proxy: opaque bytes for one of the app's ports, unless it is one of HTTP.
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
    if connection.peer.get() != Peer::Mesh {
        return Err(Refusal::new(
            Reason::NotForUs,
            "opaque streams are accepted only from other proxies",
        ));
    }
    let check = head.headers.contains_key(headers::CHECK);
    if !check {
        served.admit_opaque()?;
    }
    let hop = head.headers.get(&HOP).and_then(|hop| parse_hop(hop.as_bytes()));
    exchange.service = served.service(hop.as_ref().and_then(|hop| hop.service.as_deref()));
    if let Some(rules) = &served.rules {
        rules.stream(worker, connection.caller.as_deref(), connection.remote.ip())?;
    }
    exchange.protocol = Protocol::Tcp;
    let address = std::net::SocketAddr::new(inbound.app, port);
    let app = worker.connect(address).await?;
    if check {
        exchange.tunneled = true;
        return Ok(Response::new(()));
    }
    let caller = switch.caller;
    let (connection, service) = (Rc::clone(connection), exchange.service);
    tokio::task::spawn_local(async move {
        let worker = &connection.worker;
        let Some(caller) = caller.bytes().await else { return };
        let labels =
            stream::Labels { service, route: Label::NONE, peer: connection.caller_label() };
        let began = std::time::Instant::now();
        let registered = connection.enter_stream(port, true);
        tokio::select! {
            ended = relay::relay(caller, app, RelayLimits::default()) => {
                let from = (Direction::Inbound, connection.remote);
                stream::record(worker, from, Protocol::Tcp, labels, began, &ended);
            }
            reason = registered.is_cut() => {
                let refusal = Refusal::new(reason, "the stream is no longer allowed");
                let remote = connection.remote;
                worker.refuse_stream(Direction::Inbound, Protocol::Tcp, service, &refusal, remote);
            }
        }
    });
    exchange.tunneled = true;
    Ok(Response::new(()))
}
