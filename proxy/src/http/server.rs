//! From an accepted connection to requests, with our limits, drain and watch: hyper's server of HTTP/1.1,
//! and [`super::http2`].

use std::cell::Cell;
use std::convert::Infallible;
use std::future::poll_fn;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Poll;

use futures::FutureExt;
use h2::server;
use http::header::{CONNECTION, HeaderName, HeaderValue};
use http::request::Parts;
use http::{HeaderMap, Method, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use outrigger_core::config::Protocol;
use outrigger_core::reason::Reason;

use super::headers::{self, CLIENT_CERT};
use super::http1::{Http1Wire, Link};
use super::http2::Serving;
use super::request;
use super::response_body::ResponseBody;
use super::upgrade::CallerHalf as Side;
use crate::accept::Slot;
use crate::io::Io;
use crate::metrics::{Direction, Label, add};
use crate::peer::{Fixed, MeshCaller, Origin, Peer};
use crate::settings::Settings;
use crate::store::Resolution;
use crate::streams::WireBody;
use crate::watch::{Address, ConnectionTrust, ConnectionWatch, Registered};
use crate::worker::Worker;

/// What one stalled stream may hold; the same on both sides of a hop.
const STREAM_WINDOW: u32 = 256 * 1024;
/// Streams of one hop connection, whatever --max-streams says of others.
const HOP_STREAMS: u32 = 256;
/// Streams of a hop that were reset before they were looked at, from which on the connection ends.
/// Many callers share a hop: h2's own 20 would let a burst of them that give up harm the others.
const HOP_RESETS: usize = 1_024;
/// Small, since every idle connection keeps it.
const H1_BUFFER: usize = 8 * 1024;

/// An HTTP connection that somebody opened to this proxy.
pub struct Connection {
    pub worker: Rc<Worker>,
    pub direction: Direction,
    /// Fixed at accept, except that in a mesh without identities an inbound connection becomes a mesh
    /// peer with its first request's hop header.
    pub peer: Cell<Peer>,
    /// Who has proved to call.
    pub caller: Option<Rc<MeshCaller>>,
    pub remote: SocketAddr,
    pub fixed: Fixed,
    pub slot: Rc<Slot>,
    /// `Http1` or `Http2`.
    pub protocol: Protocol,
    watch: Arc<ConnectionWatch>,
    /// Of HTTP/1.1, where one exchange follows the other.
    link: Option<Link>,
}

/// The builders of servers, made once per worker.
pub struct Builders {
    h1: http1::Builder,
    /// Keeps the case of header names, which costs some allocations for each request.
    h1_cased: http1::Builder,
    h2: server::Builder,
    h2_hop: server::Builder,
}

impl Builders {
    pub fn new(settings: &Settings) -> Self {
        let mut h1 = http1::Builder::new();
        // A caller that closes its half has asked all that it wants to; `Wire` finds out who has gone.
        h1.half_close(true)
            .max_headers(settings.max_headers)
            .max_header_size(settings.max_header_bytes as usize)
            .max_buf_size((settings.max_header_bytes as usize).max(H1_BUFFER) + H1_BUFFER);
        let mut h2_hop = h2_builder(settings, HOP_STREAMS);
        h2_hop.max_pending_accept_reset_streams(HOP_RESETS);
        let mut h1_cased = h1.clone();
        h1_cased.preserve_header_case(true);
        Self { h1, h1_cased, h2: h2_builder(settings, settings.max_streams), h2_hop }
    }
}

/// h2's limit of headers is twice ours, so that what exceeds ours is a request that is refused, told of and
/// counted like any other; h2's own answer beyond its limit is a bare 431.
fn h2_builder(settings: &Settings, streams: u32) -> server::Builder {
    let mut h2 = server::Builder::new();
    h2.initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(streams.saturating_mul(STREAM_WINDOW).min(1 << 30))
        .max_concurrent_streams(streams)
        .max_header_list_size(settings.max_header_bytes.saturating_mul(2))
        .max_send_buffer_size(STREAM_WINDOW as usize)
        .enable_connect_protocol();
    h2
}

impl Connection {
    /// Serves the connection to its end. `protocol` is `Http1` or `Http2`.
    pub async fn serve(worker: Rc<Worker>, io: Io, protocol: Protocol, origin: Origin) {
        let standing = ConnectionTrust::of(&origin);
        let Origin { direction, peer, caller, remote, fixed, tunnel: _, slot } = origin;
        let watch = ConnectionWatch::new(protocol == Protocol::Http2);
        if direction == Direction::Inbound && protocol == Protocol::Http2 {
            // Who has proved an identity says nothing for no longer than anybody else.
            watch.bytes_arrived();
        }
        let io = io.watched(Arc::clone(&watch));
        let registered = worker.connections.enter(direction, Arc::clone(&watch), standing);
        let connection = Rc::new(Self {
            worker: Rc::clone(&worker),
            direction,
            peer: Cell::new(peer),
            caller,
            remote,
            fixed,
            slot,
            protocol,
            watch: Arc::clone(&watch),
            link: (protocol == Protocol::Http1).then(Link::default),
        });
        let ended = if protocol == Protocol::Http2 {
            let builder = match connection.is_hop() {
                true => &worker.http.h2_hop,
                false => &worker.http.h2,
            };
            // Boxed: an HTTP/1.1 connection should not carry its size.
            let mut serving = Box::new(Serving::begin(builder, io));
            drive(&registered, &watch, |cx, shutdown| {
                if shutdown {
                    serving.leave();
                }
                serving.poll(&connection, cx).map_err(|error| reason_of_http2(&error))
            })
            .await
        } else {
            let link = connection.link.clone().unwrap_or_default();
            let service = service_fn(|request: Request<Incoming>| {
                let (mut head, body) = request.into_parts();
                let caller = head.extensions.remove::<OnUpgrade>().map(Side::Http1);
                let body = Some(WireBody::hyper(body));
                let tracked = worker.exchanges.begin(Some(Arc::clone(&watch)));
                let informs = head.version == Version::HTTP_11;
                let holds_back = informs && headers::expects_continue(&head.headers);
                link.asked(Arc::clone(tracked.progress()), holds_back, informs);
                let (link, connects) = (&link, head.method == Method::CONNECT);
                let connections = &worker.connections;
                // Not an async block around it: that would hold the future twice.
                request::handle(Rc::clone(&connection), head, body, caller, tracked).map(
                    move |mut response| {
                        let switches = connects && response.status().is_success();
                        if connections.announces_end() && !switches {
                            say_last(&mut response);
                        }
                        answered(link, connects, &mut response);
                        Ok::<_, Infallible>(response)
                    },
                )
            });
            let wire = TokioIo::new(Http1Wire::new(io, link.clone()));
            let builder = match connection.may_reach_http1() {
                true => &worker.http.h1_cased,
                false => &worker.http.h1,
            };
            let serving = builder.serve_connection(wire, service);
            let mut serving = pin!(serving.with_upgrades());
            let ended = drive(&registered, &watch, |cx, shutdown| {
                if shutdown {
                    serving.as_mut().graceful_shutdown();
                }
                if link.cut(cx.waker()).is_some() {
                    // The exchange says why when it is dropped.
                    return Poll::Ready(Ok(()));
                }
                serving.as_mut().poll(cx).map_err(|error| reason_of(&error))
            })
            .await;
            if ended == Err(Reason::HeaderTimeout) {
                link.head_is_late();
                // Writes as much as the socket takes at once: nobody waits for who was too slow.
                let _over = serving.as_mut().now_or_never();
            }
            ended
        };
        if let Err(reason) = ended {
            worker.refused(direction, protocol, reason, remote);
        }
    }

    /// Whether another proxy has opened it, which speaks for many: who has proved to be one, or without
    /// identities anyone who comes to the hop's own port.
    fn is_hop(&self) -> bool {
        match &self.worker.proxy.identity {
            Some(_) => self.peer.get() == Peer::Mesh,
            None => self.direction == Direction::Inbound && matches!(self.fixed, Fixed::Nothing),
        }
    }

    /// Whether its requests may go to somebody who speaks HTTP/1.1, as far as that is known before they come:
    /// between proxies header names have no case.
    fn may_reach_http1(&self) -> bool {
        let Fixed::Destination(dialed) = &self.fixed else { return true };
        match dialed.decided() {
            Some(Resolution::Found(live)) => !live.backends.iter().all(|one| one.has_mesh()),
            _ => true,
        }
    }

    /// The peer speaks as proxies do. That is trusted only where nobody could prove it.
    pub fn claims_to_be_mesh(&self) {
        match &self.worker.proxy.identity {
            None => self.peer.set(Peer::Mesh),
            Some(identity) if self.peer.get() == Peer::Outside => {
                add(&identity.counts().plaintext_inbound, 1);
            }
            Some(_) => {}
        }
    }

    /// Whether the other end is a proxy that passes upgrades on in the mesh's own words.
    pub fn takes_hop_upgrades(&self) -> bool {
        let trusted = self.peer.get() == Peer::Mesh || self.worker.proxy.identity.is_none();
        self.direction == Direction::Inbound && trusted
    }

    /// The `peer` label of what the other end asks for.
    pub fn caller_label(&self) -> Label {
        self.caller.as_ref().map_or(Label::UNKNOWN, |caller| caller.label)
    }

    /// Equal for two connections only if one caller opened both: by identity, and where nobody has one by
    /// address.
    pub fn caller_key(&self) -> u64 {
        match (&self.caller, self.remote.ip()) {
            (Some(caller), _) => caller.key,
            (None, IpAddr::V4(ip)) => ip.to_bits().into(),
            (None, IpAddr::V6(ip)) => (ip.to_bits() ^ (ip.to_bits() >> 64)) as u64,
        }
    }

    /// Tells the app who called, where it is to be told.
    pub fn forward_caller(&self, headers: &mut HeaderMap) {
        if let Some(caller) = &self.caller
            && let Some(forwarded) = &caller.forwarded
        {
            headers.insert(CLIENT_CERT, forwarded.clone());
        }
    }

    /// Whether a request's headers are within `--max-header-bytes`, counted as HTTP/2 does (RFC 9113
    /// section 6.5.2). HTTP/1.1's are counted as they are read.
    pub fn takes_headers(&self, head: &Parts) -> bool {
        let limit = self.worker.proxy.settings.max_header_bytes as usize;
        let field =
            |(name, value): (&HeaderName, &HeaderValue)| name.as_str().len() + value.len() + 32;
        let target = head.uri.path_and_query().map_or(0, |target| target.as_str().len());
        self.protocol != Protocol::Http2
            || target + head.headers.iter().map(field).sum::<usize>() <= limit
    }

    /// Registers a stream of bytes that came out of this connection, for one of the app's ports, so that its
    /// right to stay is looked at whenever the connection's would be.
    /// `opaque`: it was never a request.
    pub fn enter_stream(&self, port: u16, opaque: bool) -> Registered {
        let standing = ConnectionTrust {
            peer: self.peer.get(),
            caller: self.caller.clone(),
            remote: self.remote.ip(),
            port: Some(port),
            opaque,
            address: Address::default(),
        };
        let watch = ConnectionWatch::new(true);
        watch.request_began();
        self.worker.connections.enter(self.direction, watch, standing)
    }

    /// Whether everything on it goes to one destination, to which the app speaks as it likes.
    pub fn is_bound(&self) -> bool {
        matches!(self.fixed, Fixed::Destination(_))
    }

    pub fn request_began(&self) {
        self.watch.request_began();
        self.worker.load.streams.fetch_add(1, Relaxed);
    }

    pub fn request_ended(&self) {
        if let Some(link) = &self.link {
            link.over();
        }
        self.watch.request_ended();
        self.worker.load.streams.fetch_sub(1, Relaxed);
    }
}

/// Tells a connection of HTTP/1.1 what the head of an answer makes of it.
/// The answer is the last one on its connection.
fn say_last(response: &mut Response<ResponseBody>) {
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
}

fn answered(link: &Link, connects: bool, response: &mut Response<ResponseBody>) {
    let status = response.status();
    if connects && !status.is_success() {
        // What follows was meant for the tunnel, and must not be read as requests.
        say_last(response);
    }
    match status == StatusCode::SWITCHING_PROTOCOLS || (connects && status.is_success()) {
        true => link.switched(),
        false => link.answering(),
    }
}

/// Polls a connection until it ends, telling it once when the proxy drains. The error is a reason
/// to count; an ordinary disconnect is none.
async fn drive(
    registered: &Registered,
    watch: &ConnectionWatch,
    mut poll: impl FnMut(&mut std::task::Context<'_>, bool) -> Poll<Result<(), Option<Reason>>>,
) -> Result<(), Reason> {
    let mut told = false;
    poll_fn(|cx| {
        registered.set_waker(cx.waker());
        if watch.expired() {
            return Poll::Ready(Err(Reason::HeaderTimeout));
        }
        if watch.is_stuck() {
            return Poll::Ready(Err(Reason::WriteTimeout));
        }
        if let Some(reason) = registered.cut() {
            return Poll::Ready(Err(reason));
        }
        let shutdown = !told && registered.draining();
        told |= shutdown;
        poll(cx, shutdown).map(|ended| ended.or_else(|reason| reason.map_or(Ok(()), Err)))
    })
    .await
}

fn reason_of(error: &hyper::Error) -> Option<Reason> {
    if error.is_parse_too_large() {
        Some(Reason::HeadersTooLarge)
    } else if error.is_parse() {
        Some(Reason::BadRequest)
    } else if error.is_timeout() {
        Some(Reason::HeaderTimeout)
    } else {
        None
    }
}

fn reason_of_http2(error: &h2::Error) -> Option<Reason> {
    let reason = error.reason()?;
    (error.is_library() && reason != h2::Reason::NO_ERROR).then_some(Reason::ProtocolError)
}
