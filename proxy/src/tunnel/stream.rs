//! Connections whose protocol is not known yet, and those that are never looked into.
//!
//! Declared protocols decide at once. Otherwise the client's first bytes do; when it is silent the
//! upstream is dialled too, and whichever side speaks first decides. Read next: [`crate::listener::sniff`], [`dial`],
//! [`relay`].

pub mod dial;
pub mod relay;

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use dial::DialedUpstream;
use outrigger_core::config::Protocol;
use outrigger_core::detect::Detected;
use outrigger_core::outcome::Outcome;
use outrigger_core::reason::{Cause, Reason};
use relay::{Early, RelayLimits, RelaySide, Relayed};

use crate::base::direction::Direction;
use crate::base::refusal::Refusal;
use crate::listener::connection::{Connection, ServingFuture};
use crate::listener::origin::Origin;
use crate::listener::role::ListenerTrust;
use crate::listener::sniff::{Sniffer, Spoke};
use crate::observe::metrics::{CountKey, Label, SeriesKey, Status};
use crate::proxy::connections::ConnectionTrust;
use crate::proxy::worker::Worker;
use crate::request::destination::Target;
use crate::wire::io::{Io, Transport};
use crate::wire::watch::ConnectionWatch;

/// A client that says nothing for this long may be waiting for the server to speak first.
const SILENCE: Duration = Duration::from_millis(50);

/// First bytes that no protocol's are after so long, or might still become anybody's, are passed on as
/// they are: a short word without the end of a line may be all that a client says.
const UNCLEAR: Duration = Duration::from_millis(200);

/// The labels of a relayed connection.
#[derive(Clone, Copy)]
pub struct Labels {
    pub service: Label,
    pub route: Label,
    pub peer: Label,
}

/// Serves a connection until it is over, or known to be HTTP.
#[must_use = "what is left of an HTTP connection is served by what this returns"]
pub async fn serve(
    worker: Rc<Worker>,
    transport: Transport,
    origin: Origin,
    target: Target,
) -> ServingFuture {
    let declared = target.declared();
    let (direction, remote) = (origin.listener.direction(), origin.remote);
    let sniffer = Sniffer::new(transport);
    let ended = match declared {
        Protocol::Tcp => opaque(&worker, &origin, &target, sniffer).await.map(|()| None),
        Protocol::Detect => detect(&worker, origin, &target, sniffer).await,
        Protocol::Http1 | Protocol::Http2 | Protocol::Grpc | Protocol::Tls => {
            client_first(&worker, origin, &target, sniffer).await
        }
    };
    ended.unwrap_or_else(|refusal| {
        worker.refuse_stream(direction, declared, target.label(), &refusal, remote);
        None
    })
}

/// The protocol is declared and the client speaks first in it.
async fn client_first(
    worker: &Rc<Worker>,
    origin: Origin,
    target: &Target,
    mut sniffer: Sniffer,
) -> Result<ServingFuture, Refusal> {
    // The app may open connections for later; nobody else holds a place by saying nothing.
    let limits = origin.listener.limits;
    match worker.listen(&mut sniffer, limits.first_byte, limits.ends).await {
        Spoke::Nobody => Err(Refusal::new(Reason::HeaderTimeout, "no bytes arrived in time")),
        spoke => decide(worker, origin, target, sniffer, spoke).await,
    }
}

/// Nothing is declared: the side that speaks first decides.
async fn detect(
    worker: &Rc<Worker>,
    origin: Origin,
    target: &Target,
    mut sniffer: Sniffer,
) -> Result<ServingFuture, Refusal> {
    let evidence = &worker.proxy.server_first;
    let silence = if evidence.expects(target.label()) { Duration::ZERO } else { SILENCE };
    // Where routes want to look into HTTP, slow HTTP must not pass for something else.
    let limit = if wants_http(target) { worker.proxy.settings.header_timeout } else { UNCLEAR };
    let ends = origin.listener.limits.ends;
    let mut spoke = worker.listen_within(&mut sniffer, Some(silence), limit, ends).await;
    if matches!(spoke, Spoke::Nobody) {
        // Silence alone is no verdict: ask the server too.
        let mut opened = dial_in_time(worker, target, &origin, None).await?;
        let server_spoke = tokio::select! {
            spoke = opened.speaks() => spoke,
            () = sniffer.readable() => false,
        };
        if server_spoke {
            check_opaque(worker, &origin, target)?;
            evidence.remember(target.label());
            Box::pin(relay_to(worker, &origin, Protocol::Tcp, sniffer.into_io(), opened)).await;
            return Ok(None);
        }
        evidence.contradict(target.label());
        spoke = worker.listen_within(&mut sniffer, None, limit, ends).await;
        if matches!(spoke, Spoke::Client(Detected::Opaque) | Spoke::TooSlow) && !wants_http(target)
        {
            check_opaque(worker, &origin, target)?;
            Box::pin(relay_to(worker, &origin, Protocol::Tcp, sniffer.into_io(), opened)).await;
            return Ok(None);
        }
    }
    decide(worker, origin, target, sniffer, spoke).await
}

/// Serves what the client's first bytes turned out to be.
async fn decide(
    worker: &Rc<Worker>,
    origin: Origin,
    target: &Target,
    sniffer: Sniffer,
    spoke: Spoke,
) -> Result<ServingFuture, Refusal> {
    let declared = target.declared();
    let tls = declared == Protocol::Tls;
    match spoke {
        Spoke::Gone => Ok(None),
        Spoke::Client(Detected::Http1) if !tls => {
            Ok(serve_http(worker, sniffer.into_io(), Protocol::Http1, origin))
        }
        // To be told what is wrong with it.
        Spoke::Client(Detected::Opaque)
            if (declared == Protocol::Http1 && sniffer.resembles_request())
                || (declared == Protocol::Detect && sniffer.names_http()) =>
        {
            Ok(serve_http(worker, sniffer.into_io(), Protocol::Http1, origin))
        }
        Spoke::Client(Detected::Http2) if !tls => {
            Ok(serve_http(worker, sniffer.into_io(), Protocol::Http2, origin))
        }
        Spoke::Client(Detected::Tls { server_name }) if !declared.is_http() => {
            check_caller(worker, &origin, target)?;
            let name = Some(server_name.as_deref());
            let opened = dial_in_time(worker, target, &origin, name).await?;
            Box::pin(relay_to(worker, &origin, Protocol::Tls, sniffer.into_io(), opened)).await;
            Ok(None)
        }
        Spoke::TooSlow if declared == Protocol::Detect && !wants_http(target) => {
            Box::pin(opaque(worker, &origin, target, sniffer)).await.map(|()| None)
        }
        Spoke::Client(_) | Spoke::Nobody if declared == Protocol::Detect => {
            Box::pin(opaque(worker, &origin, target, sniffer)).await.map(|()| None)
        }
        Spoke::Client(_) | Spoke::Nobody => Err(Refusal::new(
            Reason::ProtocolError,
            format!("the first bytes are not {}", declared.as_str()),
        )),
        Spoke::TooSlow => {
            let why = "the first bytes did not identify a protocol in time";
            Err(Refusal::new(Reason::HeaderTimeout, why))
        }
    }
}

fn serve_http(worker: &Rc<Worker>, io: Io, protocol: Protocol, origin: Origin) -> ServingFuture {
    Some(Box::pin(Connection::serve(Rc::clone(worker), io, protocol, origin)))
}

async fn opaque(
    worker: &Rc<Worker>,
    origin: &Origin,
    target: &Target,
    sniffer: Sniffer,
) -> Result<(), Refusal> {
    check_opaque(worker, origin, target)?;
    let opened = dial_in_time(worker, target, origin, None).await?;
    Box::pin(relay_to(worker, origin, Protocol::Tcp, sniffer.into_io(), opened)).await;
    Ok(())
}

/// Dials within the time that a CONNECT has. Boxed, as relaying is: an HTTP connection should not carry
/// its size.
async fn dial_in_time(
    worker: &Rc<Worker>,
    target: &Target,
    origin: &Origin,
    tls: Option<Option<&str>>,
) -> Result<DialedUpstream, Refusal> {
    let dialling = Box::pin(dial::dial(worker, target, origin.remote, tls));
    let Some(until) = origin.tunnel.and_then(|tunnel| tunnel.until) else {
        return dialling.await;
    };
    let why = "the deadline passed before a connection was made";
    let late = || Refusal::new(Reason::DeadlineExceeded, why);
    tokio::time::timeout_at(until.into(), dialling).await.unwrap_or_else(|_| Err(late()))
}

/// Refuses to relay blindly what a route wants to look into, and whom a policy does not let in.
fn check_opaque(worker: &Worker, origin: &Origin, target: &Target) -> Result<(), Refusal> {
    check_caller(worker, origin, target)?;
    if wants_http(target) {
        let why = "HTTP routes are attached to this service and the bytes are not HTTP";
        return Err(Refusal::new(Reason::ProtocolError, why));
    }
    Ok(())
}

/// Whether routes are attached that look into HTTP.
fn wants_http(target: &Target) -> bool {
    matches!(target, Target::Service { live, .. } if live.compiled.has_http_routes())
}

fn check_caller(worker: &Worker, origin: &Origin, target: &Target) -> Result<(), Refusal> {
    match target {
        Target::App { protocol: Protocol::Detect, limits: Some(_), .. } => {
            let why = "requests to this port are limited, and these bytes are none";
            Err(Refusal::new(Reason::ProtocolError, why))
        }
        Target::App { rules: Some(rules), .. } => {
            rules.stream(worker, origin.caller.as_deref(), origin.remote.ip())
        }
        _ => Ok(()),
    }
}

/// Boxed by its callers.
async fn relay_to(
    worker: &Rc<Worker>,
    origin: &Origin,
    protocol: Protocol,
    caller: Io,
    opened: DialedUpstream,
) {
    let began = Instant::now();
    let DialedUpstream { io, labels, attempt: _attempt, idle } = opened;
    let mut limits = RelayLimits::default();
    if let Some(tunnel) = &origin.tunnel {
        limits = RelayLimits { idle, until: tunnel.until };
    }
    let relaying = relay::relay(caller, io, limits);
    let from = (origin.listener.direction(), origin.remote);
    if origin.listener.trust == ListenerTrust::OwnApp {
        let ended = relaying.await;
        return record(worker, from, protocol, labels, began, &ended);
    }
    let watch = ConnectionWatch::new(true);
    let registered = worker.connections.enter(
        (origin.listener.limits.ends, None),
        watch,
        ConnectionTrust::of_stream(origin),
    );
    tokio::select! {
        ended = relaying => record(worker, from, protocol, labels, began, &ended),
        reason = registered.is_cut() => {
            let refusal = Refusal::new(reason, "the connection is no longer allowed");
            let (direction, remote) = from;
            worker.refuse_stream(direction, protocol, labels.service, &refusal, remote);
        }
    }
}

/// Counts a relayed connection that has ended.
pub fn record(
    worker: &Worker,
    (direction, remote): (Direction, SocketAddr),
    protocol: Protocol,
    labels: Labels,
    began: Instant,
    ended: &Relayed,
) {
    worker.proxy.metrics.count_bytes(ended.received, ended.sent);
    let key =
        SeriesKey { direction, service: labels.service, route: labels.route, peer: labels.peer };
    let (outcome, reason) = match ended.early {
        None => (Outcome::Success, None),
        Some(Early::Broken(RelaySide::Caller)) => {
            (Outcome::Canceled, Some(Reason::DownstreamReset))
        }
        Some(Early::Broken(RelaySide::Upstream)) => {
            (Outcome::Failure, Some(Reason::UpstreamResetAmbiguous))
        }
        Some(Early::Over(reason)) => {
            let refusal = Refusal::new(reason, "the connection reached its maximum duration");
            return worker.refuse_stream(direction, protocol, labels.service, &refusal, remote);
        }
    };
    let count =
        CountKey { protocol, outcome, status: Status::Stream, cause: reason.map(Cause::local) };
    worker.metrics.record(key, count, began.elapsed(), 0);
}
