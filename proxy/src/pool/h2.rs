//! HTTP/2 connections, lent by the stream.
//!
//! Requests go out as [`super::stream`] says. Tunnels and what is upgraded to one have connections of
//! their own, which hyper runs, since it joins a stream's two halves to one. Neither looks at the peer's
//! stream limit, so streams are counted here.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::rc::Weak;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::{Either, LocalBoxFuture, Shared, ready};
use http::{Request, Response};
use hyper::client::conn::http2;
use hyper_util::rt::TokioIo;
use outrigger_core::reason::Reason;
use tokio::sync::Notify;

use super::connect::{ConnectError, Opened, connect_hop, connect_to};
use super::stream::{SendError, Sending};
use super::{LocalExec, Opening, PoolKey, Pools, Wire};
use crate::http::body::RequestBody;
use crate::streams::{Upward, WireBody};
use crate::tls::handshake::Proof;
use crate::tls::verify::Trust;

/// Streams in flight on a connection from which on another is opened. Up to there one connection is
/// filled: the more streams share it, the fewer system calls each costs.
const BUSY_STREAMS: u32 = 128;
/// Connections of one worker to one address.
const MAX_CONNECTIONS: usize = 4;
/// Streams on one connection, whatever the peer allows.
const MAX_STREAMS: u32 = 256;
/// The same before it has said what it allows.
const STREAMS_AT_FIRST: usize = 100;
/// What one stalled stream may hold.
const STREAM_WINDOW: u32 = 256 * 1024;
/// So large that it never binds: every stream at its limit fits.
const CONNECTION_WINDOW: u32 = MAX_STREAMS * STREAM_WINDOW;

/// A connection takes no new streams this many seconds before either side's certificate ends, so that
/// the called side, whose clock may be ahead, never has to turn one away.
const LEAVE_EARLY: u64 = 2;

type Connecting = Shared<LocalBoxFuture<'static, Result<Rc<Connection>, ConnectError>>>;

#[derive(Default)]
pub struct Pool {
    connections: RefCell<Vec<Rc<Connection>>>,
    connecting: RefCell<Option<Connecting>>,
    /// A stream ended or a connection opened.
    room: Notify,
}

/// What runs a connection until it ends.
enum Driven {
    Requests(Box<h2::client::Connection<Opened, Upward>>),
    Tunnels(http2::Connection<TokioIo<Opened>, RequestBody, LocalExec>),
}

/// Where the connection takes requests.
enum Sender {
    Requests(h2::client::SendRequest<Upward>),
    Tunnels(http2::SendRequest<RequestBody>),
}

/// What the peer allows.
struct PeerSettings {
    max_streams: Cell<usize>,
    takes_upgrades: Cell<bool>,
    /// It has ended or is about to: it takes no new stream.
    closed: Cell<bool>,
    /// The peer is believed no longer, and what was in flight has had its time.
    cut: Cell<bool>,
    /// Of the task that reads them: hyper reads frames in another one, which does not wake it.
    reader: RefCell<Option<Waker>>,
}

pub struct Connection {
    sender: RefCell<Sender>,
    peer: Rc<PeerSettings>,
    streams: Cell<u32>,
    used: Cell<Instant>,
    proof: Option<Proof>,
}

/// One stream of a connection, counted until dropped.
pub struct Lease {
    connection: Rc<Connection>,
    pool: Rc<Pool>,
}

impl Pools {
    /// A stream on the first connection that is not busy, opening one when all are.
    pub async fn lease_h2(&self, key: PoolKey, now: Instant) -> Result<Lease, ConnectError> {
        let pool = self.h2(key);
        if let Some(lease) = pool.try_lease(now)
            && lease.connection.streams.get() <= BUSY_STREAMS
        {
            return Ok(lease);
        }
        // Boxed: rare, and the future of every request would carry its size.
        Box::pin(self.lease_busy_h2(key, pool, now)).await
    }

    async fn lease_busy_h2(
        &self,
        key: PoolKey,
        pool: Rc<Pool>,
        now: Instant,
    ) -> Result<Lease, ConnectError> {
        loop {
            if let Some(lease) = pool.try_lease(now) {
                if lease.connection.streams.get() > BUSY_STREAMS {
                    self.grow(&pool, key);
                }
                return Ok(lease);
            }
            match self.grow(&pool, key) {
                Some(connecting) => drop(connecting.await?),
                // Every connection is full: wait for a stream to end.
                None => {
                    let waited = pool.room.notified();
                    if tokio::time::timeout(self.opening.config.connect_timeout, waited)
                        .await
                        .is_err()
                    {
                        return Err(ConnectError {
                            reason: Reason::ConnectTimeout,
                            detail: format!("{}: no free HTTP/2 stream", key.address).into(),
                        });
                    }
                }
            }
        }
    }

    /// Starts opening one more connection, or joins the opening under way. `None`: at the limit.
    fn grow(&self, pool: &Rc<Pool>, key: PoolKey) -> Option<Connecting> {
        if let Some(connecting) = &*pool.connecting.borrow() {
            return Some(connecting.clone());
        }
        if pool.connections.borrow().len() >= MAX_CONNECTIONS {
            return None;
        }
        let pool_ = Rc::clone(pool);
        let opening = Rc::clone(&self.opening);
        let connecting = async move {
            let result = open(key, &opening).await;
            pool_.connecting.borrow_mut().take();
            if let Ok(connection) = &result {
                pool_.connections.borrow_mut().push(Rc::clone(connection));
            }
            pool_.room.notify_waiters();
            result
        }
        .boxed_local()
        .shared();
        *pool.connecting.borrow_mut() = Some(connecting.clone());
        // Goes on even if the request that began it is cancelled.
        tokio::task::spawn_local(connecting.clone());
        Some(connecting)
    }
}

async fn open(key: PoolKey, opening: &Opening) -> Result<Rc<Connection>, ConnectError> {
    let config = &opening.config;
    let mut stream = if key.wire.is_hop() {
        connect_hop(key.address, key.expected, opening).await?
    } else {
        connect_to(key, opening).await?
    };
    let proof = stream.proof.take();
    let handshake = handshake(key.wire, stream, config.max_header_bytes);
    let failed = |reason, why: String| ConnectError {
        reason,
        detail: format!("{}: {why}", key.address).into(),
    };
    let (sender, driven) = tokio::time::timeout(config.connect_timeout, handshake)
        .await
        .map_err(|_| failed(Reason::ConnectTimeout, "no HTTP/2 handshake".to_owned()))?
        .map_err(|why| failed(Reason::ConnectFailed, why))?;
    let peer = Rc::new(PeerSettings {
        max_streams: Cell::new(driven.max_streams()),
        takes_upgrades: Cell::new(false),
        closed: Cell::new(false),
        cut: Cell::new(false),
        reader: RefCell::new(None),
    });
    let connection = Rc::new(Connection {
        sender: RefCell::new(sender),
        peer: Rc::clone(&peer),
        streams: Cell::new(0),
        used: Cell::new(Instant::now()),
        proof,
    });
    tokio::task::spawn_local(drive(driven, peer, Rc::downgrade(&connection)));
    Ok(connection)
}

async fn handshake(
    wire: Wire,
    stream: Opened,
    max_header_bytes: u32,
) -> Result<(Sender, Driven), String> {
    if wire == Wire::HopTunnel {
        let (sender, connection) = http2::Builder::new(LocalExec)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(max_header_bytes)
            .max_send_buf_size(STREAM_WINDOW as usize)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| error.to_string())?;
        return Ok((Sender::Tunnels(sender), Driven::Tunnels(connection)));
    }
    let (sender, connection) = h2::client::Builder::new()
        .enable_push(false)
        .initial_max_send_streams(STREAMS_AT_FIRST)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(max_header_bytes)
        .max_send_buffer_size(STREAM_WINDOW as usize)
        .handshake(stream)
        .await
        .map_err(|error| error.to_string())?;
    Ok((Sender::Requests(sender), Driven::Requests(Box::new(connection))))
}

impl Driven {
    fn max_streams(&self) -> usize {
        match self {
            Self::Requests(connection) => connection.max_concurrent_send_streams(),
            Self::Tunnels(connection) => connection.current_max_send_streams(),
        }
    }

    /// Ready when it has ended; its errors reach whoever uses the sender.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::Requests(connection) => Pin::new(connection).poll(cx).map(drop),
            Self::Tunnels(connection) => Pin::new(connection).poll(cx).map(drop),
        }
    }
}

/// Runs the connection to its end, noting what the peer's SETTINGS say and when it goes away.
async fn drive(mut driven: Driven, peer: Rc<PeerSettings>, connection: Weak<Connection>) {
    poll_fn(|cx| {
        peer.reader.borrow_mut().get_or_insert_with(|| cx.waker().clone());
        if peer.cut.get() {
            return Poll::Ready(());
        }
        let polled = driven.poll(cx);
        peer.max_streams.set(driven.max_streams());
        if let Driven::Tunnels(driven) = &driven {
            peer.takes_upgrades.set(driven.is_extended_connect_protocol_enabled());
        }
        if let Some(connection) = connection.upgrade() {
            peer.closed.set(polled.is_ready() || connection.is_closing());
        }
        polled
    })
    .await;
    peer.closed.set(true);
}

impl Pool {
    fn try_lease(self: &Rc<Self>, now: Instant) -> Option<Lease> {
        let mut connections = self.connections.borrow_mut();
        if connections.iter().any(|c| c.is_closed()) {
            connections.retain(|c| !c.is_closed());
        }
        let calm = connections.iter().find(|c| c.streams.get() < BUSY_STREAMS && c.has_room());
        let least = || connections.iter().filter(|c| c.has_room()).min_by_key(|c| c.streams.get());
        let best = calm.or_else(least)?;
        best.streams.set(best.streams.get() + 1);
        best.used.set(now);
        Some(Lease { connection: Rc::clone(best), pool: Rc::clone(self) })
    }

    /// Forgets connections whose proof is about to end or holds no longer: what is in flight on them
    /// goes on, after a bundle that does not cover them for `grace` only.
    pub fn review(&self, now: u64, trust: Option<(&Trust, Duration)>) {
        self.connections.borrow_mut().retain(|connection| {
            let Some(proof) = &connection.proof else { return true };
            if let Some((trust, grace)) = trust
                && !proof.holds(trust)
            {
                connection.cut_after(grace);
                return false;
            }
            now + LEAVE_EARLY < proof.until
        });
    }

    /// Whether the pool is worth keeping.
    pub fn sweep(&self, now: Instant, limit: Duration) -> bool {
        let mut connections = self.connections.borrow_mut();
        connections.retain(|c| {
            let idle = c.streams.get() == 0 && now.saturating_duration_since(c.used.get()) >= limit;
            !idle && !c.is_closed()
        });
        !connections.is_empty() || self.connecting.borrow().is_some()
    }
}

impl Connection {
    fn cut_after(&self, grace: Duration) {
        let peer = Rc::clone(&self.peer);
        tokio::task::spawn_local(async move {
            tokio::time::sleep(grace).await;
            peer.cut.set(true);
            if let Some(reader) = &*peer.reader.borrow() {
                reader.wake_by_ref();
            }
        });
    }

    fn is_closed(&self) -> bool {
        self.peer.closed.get()
            || matches!(&*self.sender.borrow(), Sender::Tunnels(sender) if sender.is_closed())
    }

    /// Whether a GOAWAY or an error has come. Of the sender that is only copied from nothing waits, so
    /// that this is never pending.
    fn is_closing(&self) -> bool {
        match &mut *self.sender.borrow_mut() {
            Sender::Requests(sender) => {
                let mut cx = Context::from_waker(Waker::noop());
                matches!(sender.poll_ready(&mut cx), Poll::Ready(Err(_)))
            }
            Sender::Tunnels(_) => false,
        }
    }

    fn has_room(&self) -> bool {
        let allowed = self.peer.max_streams.get();
        (self.streams.get() as usize) < allowed.min(MAX_STREAMS as usize)
    }
}

impl Lease {
    /// Queues the request at once; the future is its answer.
    pub fn send(
        &self,
        request: Request<RequestBody>,
    ) -> impl Future<Output = Result<Response<WireBody>, SendError>> + use<> {
        match &mut *self.connection.sender.borrow_mut() {
            // A copy: the sender itself would take no further request while this one waits for the
            // peer to allow its stream.
            Sender::Requests(sender) => match Sending::begin(&mut sender.clone(), request) {
                Ok(sending) => Either::Left(sending),
                Err(error) => Either::Right(ready(Err(error)).boxed_local()),
            },
            Sender::Tunnels(sender) => {
                let sent = sender.try_send_request(request);
                Either::Right(sent.map(|sent| Ok(sent?.map(WireBody::Hyper))).boxed_local())
            }
        }
    }

    /// Whether the peer takes extended CONNECT; it says so in its first frame, so this waits for
    /// that, at most for `limit`.
    pub async fn takes_upgrades(&self, limit: Duration) -> bool {
        let peer = &self.connection.peer;
        let enabled = || peer.takes_upgrades.get();
        let wait = async {
            while !enabled() {
                if let Some(reader) = &*peer.reader.borrow() {
                    reader.wake_by_ref();
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        enabled() || tokio::time::timeout(limit, wait).await.is_ok()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.connection.streams.set(self.connection.streams.get() - 1);
        self.pool.room.notify_one();
    }
}
