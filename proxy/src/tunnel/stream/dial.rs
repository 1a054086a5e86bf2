//! Opening the upstream side of an opaque connection: straight to the app, or as a CONNECT stream
//! through the far proxy.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Method, Request, Uri};
use outrigger_core::balance;
use outrigger_core::compile::{StreamRouting, Target as Backend};
use outrigger_core::config::{Balancer, HashKey, MeshAddress, Protocol};
use outrigger_core::outcome::Outcome;
use outrigger_core::reason::{NamedBy, Reason, Side};
use tokio::io::AsyncReadExt;

use crate::base::clock::coarse_ms;
use crate::base::refusal::{Refusal, is_unprocessed};
use crate::call::fault::refuse_connection;
use crate::call::target::said;
use crate::call::upstream::take_endpoint;
use crate::observe::metrics::{Label, add};
use crate::proxy::worker::Worker;
use crate::request::destination::Target;
use crate::tunnel::stream::Labels;
use crate::upstream::endpoint::guard::{Attempt, ProbeIds};
use crate::upstream::endpoint::{Choice, EndpointState};
use crate::upstream::pool::{PoolKey, connect, h2};
use crate::upstream::store::{Dialed, Live};
use crate::wire::Wire;
use crate::wire::body::RequestBody;
use crate::wire::headers::{CHECK, HOP, explained};
use crate::wire::io::{Io, Transport, delegate_io};
use crate::wire::streams::WireBody;

/// Endpoints tried before the connection is given up: nothing was sent to any of them.
const MAX_ATTEMPTS: usize = 3;

/// The upstream side.
pub struct DialedUpstream {
    pub io: UpstreamIo,
    pub labels: Labels,
    pub attempt: Option<Attempt>,
    /// The longest silence that policy allows.
    pub idle: Option<Duration>,
}

/// The bytes of the upstream side, and what is held while they flow.
pub struct UpstreamIo {
    io: Io,
    _held: HeldUpstream,
}

delegate_io!(UpstreamIo, io);

#[expect(dead_code, reason = "counted until dropped")]
enum HeldUpstream {
    Connection(connect::OpenCount),
    /// A stream's place on its connection.
    Stream(h2::H2Lease),
}

/// Opens the upstream. `tls` is set when the client began TLS, with the server name it gave.
pub async fn dial(
    worker: &Rc<Worker>,
    target: &Target,
    remote: SocketAddr,
    tls: Option<Option<&str>>,
) -> Result<DialedUpstream, Refusal> {
    let (live, dialed) = match target {
        Target::Service { live, dialed } => (live, dialed),
        Target::App { address, service, .. } => {
            let io = UpstreamIo::direct(worker.connect(*address).await?);
            let labels = Labels { service: *service, route: Label::NONE, peer: Label::UNKNOWN };
            return Ok(DialedUpstream { io, labels, attempt: None, idle: None });
        }
        Target::Outside(authority) => {
            let address = worker.lookup(authority, None).await?;
            let io = UpstreamIo::direct(worker.connect(address).await?);
            let (service, peer) = (Label::UNKNOWN, Label::UNKNOWN);
            let labels = Labels { service, route: Label::NONE, peer };
            return Ok(DialedUpstream { io, labels, attempt: None, idle: None });
        }
    };
    let (backend, route) = match live.is_instance(&dialed.authority) {
        true => (0, Label::NONE),
        false => backend_of(worker, live, tls)?,
    };
    let mut tried = Vec::new();
    loop {
        let (endpoint, probes) = choose(worker, live, dialed, backend, remote, &tried)?;
        let now = Instant::now();
        let mut attempt = Attempt::begin(&live.backends[backend], &endpoint, probes, now);
        let labels = Labels {
            service: live.backends[backend].label.get(),
            route,
            peer: endpoint.peer.get(),
        };
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
                return Ok(DialedUpstream { io, labels, attempt: Some(attempt), idle });
            }
            Err(refusal) => {
                if refusal.reason.side() == Side::Upstream {
                    attempt.judge(Outcome::Failure, || worker.random());
                    endpoint.load.observe_failure(coarse_ms(Instant::now()));
                }
                tried.push(endpoint.key);
                let for_good = refusal.named_by == NamedBy::Peer && !is_unprocessed(refusal.reason);
                if for_good || tried.len() >= MAX_ATTEMPTS {
                    return Err(refusal);
                }
                add(&live.backends[backend].guard.retries, 1);
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
) -> Result<(Arc<EndpointState>, ProbeIds), Refusal> {
    let balancer = &live.compiled.backends[backend].balancer;
    let hash = match balancer {
        Balancer::RingHash(HashKey::Source) => {
            Some(balance::hash(remote.ip().to_string().as_bytes()))
        }
        _ => None,
    };
    let now_ms = coarse_ms(Instant::now());
    let choice = Choice { balancer, hash, ..Choice::by_load(worker.random(), now_ms, tried) };
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
    // For the name of the service: where to connect is in the target.
    request.headers_mut().insert(HOP, endpoint.hop_header(Protocol::Tcp, false, false));
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
        let Some(reason) = explained(&head.headers) else {
            return Err(failed(format!("the called proxy answered {}", head.status)));
        };
        let detail = said(&head.headers).map_or_else(|| mesh.address.to_string(), String::from);
        return Err(Refusal { named_by: NamedBy::Peer, ..Refusal::new(reason, detail) });
    };
    let io = Io::new(Transport::Tunnel(Box::new(switched.tunnel)), Bytes::new());
    Ok(UpstreamIo { io, _held: HeldUpstream::Stream(lease) })
}

impl DialedUpstream {
    /// Waits for the server's first bytes, which stay to be read. False: it closed without a word.
    pub async fn speaks(&mut self) -> bool {
        let mut first = BytesMut::with_capacity(1024);
        let read = self.io.read_buf(&mut first).await;
        self.io.io.unread(first.freeze());
        read.is_ok_and(|n| n > 0)
    }
}

impl UpstreamIo {
    pub fn direct(opened: connect::OpenedConnection) -> Self {
        let (transport, count) = opened.into_parts();
        Self { io: Io::new(transport, Bytes::new()), _held: HeldUpstream::Connection(count) }
    }
}
