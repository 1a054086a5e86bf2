//! From an accepted connection to requests, with our limits, drain and watch: hyper's server of HTTP/1.1,
//! and [`crate::serve::http2`].

use std::cell::Cell;
use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use futures::FutureExt;
use http::header::{CONNECTION, HeaderValue};
use http::{HeaderMap, Method, Request, Response, StatusCode, Version};
use http_body::Body;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use outrigger_core::config::Protocol;
use outrigger_core::reason::Reason;

use crate::answer::body::ResponseBody;
use crate::listener::connection::Connection;
use crate::listener::origin::Origin;
use crate::listener::role::ListenerLimits;
use crate::proxy::connections::{ConnectionTrust, Registered};
use crate::proxy::worker::Worker;
use crate::serve::http2::Serving;
use crate::serve::request;
use crate::tunnel::upgrade::CallerHalf as Side;
use crate::wire::headers::{HeaderScan, expects_continue};
use crate::wire::hop::LastHop;
use crate::wire::http1::{Asked, Http1Wire, Link};
use crate::wire::io::Io;
use crate::wire::streams::WireBody;
use crate::wire::watch::ConnectionWatch;

impl Connection {
    fn new(worker: Rc<Worker>, protocol: Protocol, origin: Origin) -> Self {
        let Origin { listener, peer, caller, remote, fixed, tunnel: _, slot } = origin;
        let watch = ConnectionWatch::new(protocol == Protocol::Http2);
        if listener.limits.first_byte.is_some() && protocol == Protocol::Http2 {
            // Who has proved an identity says nothing for no longer than anybody else.
            watch.bytes_arrived();
        }
        let link = (protocol == Protocol::Http1).then(Link::default);
        let peer = Cell::new(peer);
        let last_hop = LastHop::default();
        Self {
            worker,
            listener,
            peer,
            caller,
            remote,
            fixed,
            slot,
            protocol,
            watch,
            link,
            last_hop,
        }
    }

    /// Serves the connection to its end. `protocol` is `Http1` or `Http2`.
    pub fn serve(
        worker: Rc<Worker>,
        io: Io,
        protocol: Protocol,
        origin: Origin,
    ) -> impl Future<Output = ()> {
        // Not in the future, which would carry on what is taken apart here beside its parts.
        let trust = ConnectionTrust::of(&origin);
        let connection = Rc::new(Self::new(Rc::clone(&worker), protocol, origin));
        let (listener, remote) = (Arc::clone(&connection.listener), connection.remote);
        let watch = Arc::clone(&connection.watch);
        let ListenerLimits { ends, idle, .. } = listener.limits;
        let io = io.watched(Arc::clone(&watch));
        let registered = worker.connections.enter((ends, idle), Arc::clone(&watch), trust);
        async move {
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
                serve_http1(&connection, io, &registered).await
            };
            if let Err(reason) = ended {
                worker.refused(listener.direction(), protocol, reason, remote);
            }
        }
    }
}

/// Serves HTTP/1.1 to its end. Between exchanges that are more than a moment apart the connection is a socket and
/// nothing else: hyper's state and buffers are there for those that have something to say.
async fn serve_http1(
    connection: &Rc<Connection>,
    mut io: Io,
    registered: &Registered,
) -> Result<(), Reason> {
    let watch = &connection.watch;
    loop {
        // Boxed, so that an idle connection does not carry its size.
        match Box::pin(exchanges(connection, io, registered)).await? {
            Some(idle) => io = idle,
            None => return Ok(()),
        }
        let mut drained = false;
        drive(registered, watch, |cx, shutdown| {
            let readable = io.poll_readable(cx);
            drained = shutdown && readable.is_pending();
            if drained { Poll::Ready(Ok(())) } else { readable.map(Ok) }
        })
        .await?;
        if drained {
            return Ok(());
        }
    }
}

/// Serves requests until the connection is over, or idle: then it is returned, with what has been read of it.
async fn exchanges(
    connection: &Rc<Connection>,
    io: Io,
    registered: &Registered,
) -> Result<Option<Io>, Reason> {
    let (worker, watch) = (&connection.worker, &connection.watch);
    let link = connection.link.clone().unwrap_or_default();
    let service = service_fn(|request: Request<Incoming>| {
        let (mut head, body) = request.into_parts();
        let caller = head.extensions.remove::<OnUpgrade>().map(Side::Http1);
        let informs = head.version == Version::HTTP_11;
        let tracked = worker.exchanges.begin(Some(Arc::clone(watch)));
        let number = link.asked(Asked {
            progress: Arc::clone(tracked.progress()),
            holds_back: informs && holds_back(&head.headers, &body),
            informs,
            has_body: !body.is_end_stream(),
        });
        let body = Some(WireBody::request(body, &link, number));
        let (link, connects) = (&link, head.method == Method::CONNECT);
        let connections = &worker.connections;
        let seen = HeaderScan::of(&head.headers);
        // Not an async block around it: that would hold the future twice.
        request::handle(Rc::clone(connection), head, seen, body, caller, tracked).map(
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
    let can_rest = io.tells_readable();
    let wire = TokioIo::new(Http1Wire::new(io, link.clone()));
    let builder = match connection.may_reach_http1() {
        true => &worker.http.h1_cased,
        false => &worker.http.h1,
    };
    let mut serving = builder.serve_connection(wire, service).with_upgrades();
    let mut rests = false;
    let ended = drive(registered, watch, |cx, shutdown| {
        if shutdown {
            // A request that has arrived is answered, as the last one.
            if let Poll::Ready(ended) = Pin::new(&mut serving).poll(cx) {
                return Poll::Ready(ended.map_err(|error| reason_of(&error)));
            }
            Pin::new(&mut serving).graceful_shutdown();
        }
        if link.cut(cx.waker()).is_some() {
            // The exchange says why when it is dropped.
            return Poll::Ready(Ok(()));
        }
        let polled = Pin::new(&mut serving).poll(cx).map_err(|error| reason_of(&error));
        rests = can_rest && polled.is_pending() && watch.is_idle() && link.is_quiet();
        if rests { Poll::Ready(Ok(())) } else { polled }
    })
    .await;
    if ended == Err(Reason::HeaderTimeout) {
        link.head_is_late();
        // Writes as much as the socket takes at once: nobody waits for who was too slow.
        let _over = (&mut serving).now_or_never();
    }
    ended?;
    let parts = if rests { serving.into_parts() } else { None };
    Ok(parts.map(|parts| parts.io.into_inner().into_io(parts.read_buf)))
}

/// Whether the caller waits for leave to send its body: without one it waits for nothing (RFC 9110 section 10.1.1).
fn holds_back(headers: &HeaderMap, body: &Incoming) -> bool {
    !body.is_end_stream() && expects_continue(headers)
}

/// The answer is the last one on its connection.
fn say_last(response: &mut Response<ResponseBody>) {
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
}

/// Tells a connection of HTTP/1.1 what the head of an answer makes of it.
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
