//! Opening the upstream side of an opaque connection: straight to the app, or as a CONNECT stream
//! through the far proxy.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderValue, Method, Request, Uri};
use outrigger_core::balance;
use outrigger_core::compile::{StreamRouting, Target as Backend};
use outrigger_core::config::{Balancer, HashKey, MeshAddress};
use outrigger_core::outcome::Outcome;
use outrigger_core::reason::{Reason, Side};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

use super::Labels;
use crate::endpoint::{Choice, EndpointState, coarse_ms};
use crate::guard::{Attempt, Trials};
use crate::http::attempt::take_endpoint;
use crate::http::body::RequestBody;
use crate::http::destination::Target;
use crate::http::fallback::explained;
use crate::http::fault::refuse_connection;
use crate::http::headers::CHECK;
use crate::http::respond::Refusal;
use crate::metrics::{Label, add};
use crate::pool::{PoolKey, Wire, connect, h2};
use crate::store::{Dialed, Live};
use crate::streams::{Switched, WireBody};
use crate::worker::Worker;

/// Endpoints tried before the connection is given up: nothing was sent to any of them.
const MAX_ATTEMPTS: usize = 3;

/// The upstream side.
pub struct Opened {
    pub io: UpstreamIo,
    pub labels: Labels,
    pub attempt: Option<Attempt>,
    /// The longest silence that policy allows.
    pub idle: Option<Duration>,
}

pub struct UpstreamIo {
    /// Read while listening who speaks first.
    read_ahead: Bytes,
    kind: Kind,
}

enum Kind {
    Direct(connect::Opened),
    /// Holds its stream's place on the connection.
    Hop(Box<Switched>, #[expect(dead_code, reason = "counted until dropped")] h2::Lease),
}

/// Opens the upstream. `tls` is set when the client began TLS, with the server name it gave.
pub async fn dial(
    worker: &Rc<Worker>,
    target: &Target,
    remote: SocketAddr,
    tls: Option<Option<&str>>,
) -> Result<Opened, Refusal> {
    let (live, dialed) = match target {
        Target::Service { live, dialed } => (live, dialed),
        Target::App { address, service, .. } => {
            let io = UpstreamIo::direct(worker.connect(*address).await?);
            let labels = Labels { service: *service, route: Label::NONE, peer: Label::UNKNOWN };
            return Ok(Opened { io, labels, attempt: None, idle: None });
        }
        Target::Outside(authority) => {
            let address = worker.lookup(authority, None).await?;
            let io = UpstreamIo::direct(worker.connect(address).await?);
            let (service, peer) = (Label::UNKNOWN, Label::UNKNOWN);
            let labels = Labels { service, route: Label::NONE, peer };
            return Ok(Opened { io, labels, attempt: None, idle: None });
        }
    };
    let (backend, route) = match live.is_instance(&dialed.authority) {
        true => (0, Label::NONE),
        false => backend_of(worker, live, tls)?,
    };
    let mut tried = Vec::new();
    loop {
        let (endpoint, trials) = choose(worker, live, dialed, backend, remote, &tried)?;
        let now = Instant::now();
        let mut attempt = Attempt::begin(&live.backends[backend], &endpoint, trials, now);
        let labels = Labels { service: live.backends[backend].label, route, peer: endpoint.peer };
        let faults = &live.compiled.backends[backend].policy.faults;
        let opened = match refuse_connection(worker, faults) {
            Some(refusal) => Err(refusal),
            None => open(worker, &endpoint, tls.is_none()).await,
        };
        match opened {
            Ok(io) => {
                // What is said on it is not looked into: it stands.
                attempt.answered();
                attempt.judge(Outcome::Success, || worker.random());
                let idle = live.compiled.call.timeouts.idle;
                return Ok(Opened { io, labels, attempt: Some(attempt), idle });
            }
            Err(refusal) => {
                if refusal.reason.side() == Side::Upstream {
                    attempt.judge(Outcome::Failure, || worker.random());
                    endpoint.load.observe_failure(coarse_ms(Instant::now()));
                }
                tried.push(endpoint.key);
                if tried.len() >= MAX_ATTEMPTS {
                    return Err(refusal);
                }
                add(&worker.proxy.metrics.gauges.retries, 1);
            }
        }
    }
}

fn backend_of(
    worker: &Worker,
    live: &Live,
    tls: Option<Option<&str>>,
) -> Result<(usize, Label), Refusal> {
    let routing = match tls {
        Some(server_name) => live.compiled.route_tls(server_name),
        None => live.compiled.route_tcp(),
    };
    match routing {
        StreamRouting::Direct => Ok((0, Label::NONE)),
        StreamRouting::NoMatch => Err(Refusal::new(
            Reason::NoRoute,
            format!("no TLS route names the server {:?}", tls.flatten().unwrap_or_default()),
        )),
        StreamRouting::Split { route, split } => {
            let share = split.pick(worker.random());
            let share = share
                .ok_or_else(|| Refusal::new(Reason::NoBackend, "the route has no backends"))?;
            match &share.target {
                Backend::Backend(backend) => Ok((*backend, live.route_label_of(route))),
                Backend::Invalid(why) => Err(Refusal::new(Reason::NoBackend, why.to_string())),
            }
        }
    }
}

fn choose(
    worker: &Worker,
    live: &Live,
    dialed: &Dialed,
    backend: usize,
    remote: SocketAddr,
    tried: &[u64],
) -> Result<(Arc<EndpointState>, Trials), Refusal> {
    let balancer = &live.compiled.backends[backend].balancer;
    let hash = match balancer {
        Balancer::RingHash(HashKey::Source) => {
            Some(balance::hash(remote.ip().to_string().as_bytes()))
        }
        _ => None,
    };
    let now_ms = coarse_ms(Instant::now());
    let choice = Choice { random: worker.random(), now_ms, balancer, hash, tried };
    take_endpoint(live, dialed, backend, &choice)
}

/// `plain`: the client has not begun TLS itself, so that this proxy may where that is asked for.
async fn open(
    worker: &Rc<Worker>,
    endpoint: &EndpointState,
    plain: bool,
) -> Result<UpstreamIo, Refusal> {
    let Some(mesh) = &endpoint.endpoint.mesh else {
        if !endpoint.is_outside {
            add(&worker.proxy.metrics.gauges.unmeshed, 1);
        }
        let address = endpoint.endpoint.address;
        if plain && endpoint.expected.is_outside() {
            let (expected, opening) = (endpoint.expected, worker.pools.opening());
            let opened = connect::connect_outside(address, expected, None, opening).await?;
            return Ok(UpstreamIo::direct(opened));
        }
        return Ok(UpstreamIo::direct(worker.connect(address).await?));
    };
    connect_through(worker, endpoint, mesh, false).await
}

/// Whether the app behind the endpoint's proxy takes a connection, of which no byte is used.
pub async fn check(
    worker: &Rc<Worker>,
    endpoint: &EndpointState,
    mesh: &MeshAddress,
) -> Result<(), Refusal> {
    connect_through(worker, endpoint, mesh, true).await.map(drop)
}

/// Through the endpoint's proxy, which has reached the app when this ends well.
async fn connect_through(
    worker: &Rc<Worker>,
    endpoint: &EndpointState,
    mesh: &MeshAddress,
    check: bool,
) -> Result<UpstreamIo, Refusal> {
    let key = PoolKey { address: mesh.address, wire: Wire::HopTunnel, expected: endpoint.expected };
    let lease = worker.pools.lease_h2(key, Instant::now()).await?;
    let failed =
        |why: String| Refusal::new(Reason::UpstreamReset, format!("{}: {why}", mesh.address));
    let mut request = Request::new(RequestBody::Empty);
    *request.method_mut() = Method::CONNECT;
    if check {
        request.headers_mut().insert(CHECK, HeaderValue::from_static("1"));
    }
    let authority = endpoint.endpoint.address.to_string();
    *request.uri_mut() =
        Uri::builder().authority(authority).build().map_err(|e| failed(e.to_string()))?;
    let response =
        lease.send(request, true, None).await.map_err(|e| failed(e.error.to_string()))?;
    let (head, body) = response.into_parts();
    let WireBody::Switched(switched) = body else {
        let why = explained(&head.headers).map_or("no reason given", Reason::as_str);
        return Err(failed(format!("the far proxy answered {}: {why}", head.status)));
    };
    Ok(UpstreamIo { read_ahead: Bytes::new(), kind: Kind::Hop(switched, lease) })
}

impl Opened {
    /// Waits for the server's first bytes, which stay to be read. False: it closed without a word.
    pub async fn speaks(&mut self) -> bool {
        let mut first = BytesMut::with_capacity(1024);
        let read = match &mut self.io.kind {
            Kind::Direct(stream) => stream.read_buf(&mut first).await,
            Kind::Hop(hop, _) => hop.tunnel.read_buf(&mut first).await,
        };
        self.io.read_ahead = first.freeze();
        read.is_ok_and(|n| n > 0)
    }
}

impl UpstreamIo {
    pub fn direct(stream: connect::Opened) -> Self {
        Self { read_ahead: Bytes::new(), kind: Kind::Direct(stream) }
    }
}

impl AsyncRead for UpstreamIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.read_ahead.is_empty() {
            let n = self.read_ahead.len().min(buf.remaining());
            buf.put_slice(&self.read_ahead[..n]);
            self.read_ahead.advance(n);
            return Poll::Ready(Ok(()));
        }
        match &mut self.kind {
            Kind::Direct(stream) => Pin::new(stream).poll_read(cx, buf),
            Kind::Hop(hop, _) => Pin::new(&mut hop.tunnel).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for UpstreamIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.kind {
            Kind::Direct(stream) => Pin::new(stream).poll_write(cx, buf),
            Kind::Hop(hop, _) => Pin::new(&mut hop.tunnel).poll_write(cx, buf),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.kind {
            Kind::Direct(stream) => Pin::new(stream).poll_flush(cx),
            Kind::Hop(hop, _) => Pin::new(&mut hop.tunnel).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.kind {
            Kind::Direct(stream) => Pin::new(stream).poll_shutdown(cx),
            Kind::Hop(hop, _) => Pin::new(&mut hop.tunnel).poll_shutdown(cx),
        }
    }
}
