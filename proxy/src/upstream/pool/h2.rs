//! HTTP/2 connections, lent by the stream.
//!
//! Requests go out as [`crate::upstream::pool::stream`] says, and so do CONNECT and what is upgraded: a tunnel keeps its
//! stream until it ends. h2 does not refuse what is beyond the peer's stream limit, so streams are counted
//! here.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::{Either, LocalBoxFuture, Shared, ready};
use h2::client::{self, SendRequest};
use http::{Request, Response};
use outrigger_core::reason::Reason;
use tokio::sync::Notify;

use crate::tls::handshake::Proof;
use crate::tls::verify::Trust;
use crate::upstream::pool::connect::{ConnectError, OpenedConnection, connect_hop, connect_to};
use crate::upstream::pool::stream::{SendError, Sending};
use crate::upstream::pool::{Connector, PoolKey, Pools};
use crate::wire::body::RequestBody;
use crate::wire::progress::Progress;
use crate::wire::server::max_frame;
use crate::wire::streams::batched::Batched;
use crate::wire::streams::first::{FirstBytes, is_http2};
use crate::wire::streams::shared::SharedByStreams;
use crate::wire::streams::{Upward, WireBody};

/// Streams in flight on a connection from which on another is opened. Up to there one connection is
/// filled: the more streams share it, the fewer system calls each costs.
const BUSY_STREAMS: u32 = 128;
/// Connections of one worker to one address while each has room for more streams.
const MAX_CONNECTIONS: usize = 4;
/// The same while long bodies keep all of them busy, so that small requests need not wait behind them. More gain
/// nothing: bodies come to be on all of them.
const BULK_CONNECTIONS: usize = 2;
/// How long after such a connection was opened, or could not be, the next one is tried.
const BULK_AGAIN: Duration = Duration::from_secs(1);
/// The same when every stream of all of them is taken, as long-lived ones may do.
const MAX_FULL_CONNECTIONS: usize = 64;
/// Connections that a request opens in vain, because the peer takes no stream on them.
const MAX_OPENED: usize = 3;
/// Streams on one connection, whatever the peer allows.
const MAX_STREAMS: u32 = 256;
/// The same before it has said what it allows.
const STREAMS_AT_FIRST: usize = 100;
/// What one stalled stream may hold.
const STREAM_WINDOW: u32 = 256 * 1024;
/// So large that it never binds: every stream at its limit fits.
const CONNECTION_WINDOW: u32 = MAX_STREAMS * STREAM_WINDOW;

/// A connection takes no new streams this many seconds before either side's certificate ends, so that
/// the server side, whose clock may be ahead, never has to turn one away.
const LEAVE_EARLY: u64 = 2;

type Driven = client::Connection<FirstBytes<Batched<OpenedConnection>, FirstLook>, Upward>;
/// Whether it is a server of HTTP/2 at all.
type FirstLook = Box<dyn FnOnce(&[u8]) -> io::Result<()>>;
type Connecting = Shared<LocalBoxFuture<'static, Result<Rc<H2Connection>, ConnectError>>>;

#[derive(Default)]
pub struct H2Pool {
    connections: RefCell<Vec<Rc<H2Connection>>>,
    connecting: RefCell<Option<Connecting>>,
    /// When one was last opened because of long bodies.
    grown_for_bulk: Cell<Option<Instant>>,
    /// A stream ended or a connection opened.
    room: Notify,
}

/// What the peer allows.
struct PeerSettings {
    max_streams: Cell<usize>,
    /// It has said something: it is there, and speaks HTTP/2.
    heard: Rc<Cell<bool>>,
    /// It has ended or is about to: it takes no new stream.
    closed: Cell<bool>,
    /// The peer is trusted no longer, and what was in flight has had its time.
    cut: Cell<bool>,
    /// Of the task that runs the connection.
    reader: RefCell<Option<Waker>>,
}

pub struct H2Connection {
    sender: RefCell<SendRequest<Upward>>,
    peer: Rc<PeerSettings>,
    streams: Cell<u32>,
    opened: Instant,
    used: Cell<Instant>,
    /// It has carried a request.
    reused: Cell<bool>,
    proof: Option<Proof>,
    /// Microseconds of its TLS handshake; 0 without one.
    tls: u32,
    shared: Rc<SharedByStreams>,
}

/// One stream of a connection, counted until dropped.
pub struct H2Lease {
    connection: Rc<H2Connection>,
    pool: Rc<H2Pool>,
    /// Microseconds of the TLS handshake that the request has waited for; 0: for none.
    pub tls: u32,
}

impl Pools {
    /// A stream on the first connection that is not busy, opening one when all are.
    pub async fn lease_h2(&self, key: PoolKey, now: Instant) -> Result<H2Lease, ConnectError> {
        let pool = self.h2(key);
        if let Some(lease) = pool.try_lease(now)
            && !lease.connection.is_busy()
        {
            return Ok(lease);
        }
        // Boxed: rare, and the future of every request would carry its size.
        Box::pin(self.lease_busy_h2(key, pool, now)).await
    }

    async fn lease_busy_h2(
        &self,
        key: PoolKey,
        pool: Rc<H2Pool>,
        now: Instant,
    ) -> Result<H2Lease, ConnectError> {
        let failed = |reason, why| {
            Err(ConnectError { reason, detail: format!("{}: {why}", key.address).into() })
        };
        let mut opened = 0;
        loop {
            if let Some(mut lease) = pool.try_lease(now) {
                if opened > 0 {
                    lease.tls = lease.connection.tls;
                }
                if lease.connection.streams.get() > BUSY_STREAMS {
                    // One that has not said anything yet may be all that is missing.
                    if !pool.awaits_one(now, self.opening.config.connect_timeout) {
                        self.grow(&pool, key, MAX_CONNECTIONS);
                    }
                } else if lease.connection.shared.bulk.is_busy() && pool.may_grow_for_bulk(now) {
                    self.grow(&pool, key, BULK_CONNECTIONS);
                }
                return Ok(lease);
            }
            if opened == MAX_OPENED {
                let why = "the peer closes each HTTP/2 connection before it takes a request";
                return failed(Reason::ConnectFailed, why);
            }
            match self.grow(&pool, key, MAX_FULL_CONNECTIONS) {
                Some(connecting) => {
                    drop(connecting.await?);
                    opened += 1;
                }
                // Every connection is full: wait for a stream to end.
                None => {
                    let waited = pool.room.notified();
                    let limit = self.opening.config.connect_timeout;
                    if tokio::time::timeout(limit, waited).await.is_err() {
                        // Of what this proxy may have in flight there.
                        return failed(Reason::TooManyInFlight, "no free HTTP/2 stream");
                    }
                }
            }
        }
    }

    /// Starts opening one more connection, or joins the opening under way. `None`: there are `most`.
    fn grow(&self, pool: &Rc<H2Pool>, key: PoolKey, most: usize) -> Option<Connecting> {
        if let Some(connecting) = &*pool.connecting.borrow() {
            return Some(connecting.clone());
        }
        if pool.connections.borrow().len() >= most {
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

async fn open(key: PoolKey, opening: &Connector) -> Result<Rc<H2Connection>, ConnectError> {
    let config = &opening.config;
    let mut stream = if key.wire.is_hop() {
        connect_hop(key.address, key.expected, opening).await?
    } else {
        connect_to(key, opening).await?
    };
    let (proof, tls) = (stream.proof.take(), stream.tls);
    let heard = Rc::<Cell<bool>>::default();
    let shared = Rc::<SharedByStreams>::default();
    let handshake =
        handshake(stream, config.max_header_bytes, Rc::clone(&heard), Rc::clone(&shared));
    let failed = |reason, why: String| ConnectError {
        reason,
        detail: format!("{}: {why}", key.address).into(),
    };
    let (sender, driven) = tokio::time::timeout(config.connect_timeout, handshake)
        .await
        .map_err(|_| failed(Reason::ConnectTimeout, "no HTTP/2 handshake".to_owned()))?
        .map_err(|error| failed(Reason::ConnectFailed, error.to_string()))?;
    let peer = Rc::new(PeerSettings {
        max_streams: Cell::new(driven.max_concurrent_send_streams()),
        heard,
        closed: Cell::new(false),
        cut: Cell::new(false),
        reader: RefCell::new(None),
    });
    let connection = Rc::new(H2Connection {
        sender: RefCell::new(sender),
        peer: Rc::clone(&peer),
        streams: Cell::new(0),
        opened: Instant::now(),
        used: Cell::new(Instant::now()),
        reused: Cell::new(false),
        proof,
        tls,
        shared,
    });
    tokio::task::spawn_local(drive(driven, peer, Rc::downgrade(&connection)));
    Ok(connection)
}

async fn handshake(
    stream: OpenedConnection,
    max_header_bytes: u32,
    heard: Rc<Cell<bool>>,
    shared: Rc<SharedByStreams>,
) -> Result<(SendRequest<Upward>, Box<Driven>), h2::Error> {
    let look: FirstLook = Box::new(move |bytes| {
        is_http2(bytes)?;
        heard.set(true);
        Ok(())
    });
    let holds = stream.holds();
    let (sender, connection) = client::Builder::new()
        .enable_push(false)
        .initial_max_send_streams(STREAMS_AT_FIRST)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(max_header_bytes)
        .max_frame_size(max_frame(max_header_bytes))
        .max_send_buffer_size(STREAM_WINDOW as usize)
        .handshake(FirstBytes::new(Batched::new(stream, holds, shared), look))
        .await?;
    Ok((sender, Box::new(connection)))
}

/// Runs the connection to its end, noting what the peer's SETTINGS say and when it goes away.
async fn drive(mut driven: Box<Driven>, peer: Rc<PeerSettings>, connection: Weak<H2Connection>) {
    poll_fn(|cx| {
        peer.reader.borrow_mut().get_or_insert_with(|| cx.waker().clone());
        if peer.cut.get() {
            return Poll::Ready(());
        }
        // Its errors reach the users of the sender.
        let polled = Pin::new(&mut driven).poll(cx).map(drop);
        peer.max_streams.set(driven.max_concurrent_send_streams());
        if let Some(connection) = connection.upgrade() {
            peer.closed.set(polled.is_ready() || connection.is_closing());
        }
        polled
    })
    .await;
    peer.closed.set(true);
}

impl H2Pool {
    fn try_lease(self: &Rc<Self>, now: Instant) -> Option<H2Lease> {
        let mut connections = self.connections.borrow_mut();
        if connections.iter().any(|c| c.is_closed()) {
            connections.retain(|c| !c.is_closed());
        }
        let open = || connections.iter().filter(|c| c.has_room());
        // One that has not said anything yet may never do: it takes what no other one can.
        let heard = || open().filter(|c| c.peer.heard.get());
        let calm = heard().find(|c| !c.is_busy());
        let least = || heard().min_by_key(|c| c.load());
        let best = calm.or_else(least).or_else(|| open().min_by_key(|c| c.load()))?;
        best.streams.set(best.streams.get() + 1);
        best.used.set(now);
        Some(H2Lease { connection: Rc::clone(best), pool: Rc::clone(self), tls: 0 })
    }

    /// Whether a connection has been opened that may say something yet.
    fn awaits_one(&self, now: Instant, limit: Duration) -> bool {
        let connections = self.connections.borrow();
        let mut silent = connections.iter().filter(|connection| !connection.peer.heard.get());
        silent.any(|connection| now.saturating_duration_since(connection.opened) < limit)
    }

    /// Whether a connection is opened now because of long bodies: a peer that allows no more of them is not asked for one
    /// with each request.
    fn may_grow_for_bulk(&self, now: Instant) -> bool {
        let since = |last: Instant| now.saturating_duration_since(last);
        let may = self.grown_for_bulk.get().is_none_or(|last| since(last) >= BULK_AGAIN);
        if may {
            self.grown_for_bulk.set(Some(now));
        }
        may
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
        connections.iter().for_each(|c| c.shared.bulk.sweep());
        connections.retain(|c| {
            let idle = c.streams.get() == 0 && now.saturating_duration_since(c.used.get()) >= limit;
            !idle && !c.is_closed()
        });
        !connections.is_empty() || self.connecting.borrow().is_some()
    }
}

impl H2Connection {
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

    /// Whether another connection is the better one.
    fn is_busy(&self) -> bool {
        self.streams.get() > BUSY_STREAMS || self.shared.bulk.is_busy()
    }

    /// Of two connections the one with less takes the next request.
    fn load(&self) -> (bool, u64, u32) {
        let streams = self.streams.get();
        (streams > BUSY_STREAMS, self.shared.bulk.rate(), streams)
    }

    fn is_closed(&self) -> bool {
        self.peer.closed.get()
    }

    /// Whether a GOAWAY or an error has come. Of the sender that is only copied from nothing waits, so
    /// that this is never pending.
    fn is_closing(&self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        matches!(self.sender.borrow_mut().poll_ready(&mut cx), Poll::Ready(Err(_)))
    }

    fn has_room(&self) -> bool {
        let allowed = self.peer.max_streams.get();
        (self.streams.get() as usize) < allowed.min(MAX_STREAMS as usize)
    }
}

impl H2Lease {
    /// Whether its connection has carried no request yet.
    pub fn is_first(&self) -> bool {
        !self.connection.reused.get()
    }

    /// Queues the request at once; the future is its answer. `switches`: its stream may stop being HTTP.
    /// `progress`: who is told of informational responses.
    pub fn send(
        &self,
        request: Request<RequestBody>,
        switches: bool,
        progress: Option<&Arc<Progress>>,
    ) -> impl Future<Output = Result<Response<WireBody>, SendError>> + use<> {
        let reused = self.connection.reused.replace(true);
        // A copy: the sender itself would take no further request while this one waits for the peer to
        // allow its stream.
        let mut sender = self.connection.sender.borrow().clone();
        let begun = match switches {
            false => Sending::begin(&mut sender, request, reused),
            true => Sending::begin_switch(&mut sender, request, reused),
        };
        let shared = &self.connection.shared;
        shared.last.let_go();
        match begun {
            Ok(sending) => Either::Left(sending.informing(progress).sharing(shared)),
            Err(error) => Either::Right(ready(Err(error))),
        }
    }
}

impl Drop for H2Lease {
    fn drop(&mut self) {
        self.connection.streams.set(self.connection.streams.get() - 1);
        self.pool.room.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use clap::Parser;
    use tokio::io::{AsyncWriteExt, DuplexStream, duplex};
    use tokio::task::LocalSet;

    use super::*;
    use crate::base::settings::Settings;
    use crate::observe::metrics::Metrics;
    use crate::tls::Expected;
    use crate::wire::Wire;

    /// SETTINGS, and GOAWAY with nothing processed (RFC 9113 sections 6.5 and 6.8).
    const GOAWAY: &[u8] =
        &[0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

    /// Pools whose connections `serving` makes.
    fn pools_to(serving: impl Fn(SocketAddr) -> DuplexStream + 'static) -> (Pools, PoolKey) {
        let settings = Settings::parse_from(["outrigger-proxy"]);
        let metrics = Arc::new(Metrics::new(1));
        let pools = Pools::new(&settings, metrics, None, Rc::default());
        assert!(pools.opening.memory.set(Box::new(serving)).is_ok());
        let address = SocketAddr::from(([127, 0, 0, 1], 9));
        (pools, PoolKey { address, wire: Wire::Http2, expected: Expected::NONE })
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_peer_that_closes_each_connection_is_given_up() {
        let whole = async {
            let opened = Rc::new(Cell::new(0));
            let count = Rc::clone(&opened);
            let closing = move |_| {
                count.set(count.get() + 1);
                // Too little for what either side says first: nobody leases a stream before both have
                // been heard out.
                let (ours, theirs) = duplex(GOAWAY.len() - 8);
                let (mut reads, mut writes) = tokio::io::split(theirs);
                tokio::task::spawn_local(async move {
                    let said = async { writes.write_all(GOAWAY).await };
                    let mut all = tokio::io::sink();
                    let _ = futures::join!(said, tokio::io::copy(&mut reads, &mut all));
                });
                ours
            };
            let (pools, key) = pools_to(closing);
            let leasing = pools.lease_h2(key, Instant::now());
            let leased = tokio::time::timeout(Duration::from_secs(5), leasing).await;
            let error = leased.expect("it ends").map(drop).expect_err("a stream of a closed one");
            assert_eq!(error.reason, Reason::ConnectFailed);
            assert_eq!(opened.get(), MAX_OPENED);
        };
        LocalSet::new().run_until(whole).await;
    }

    /// Of a peer that is slow to say something, one connection more was opened for each request.
    #[tokio::test(flavor = "current_thread")]
    async fn one_more_connection_is_opened_at_a_time_while_it_may_be_heard_from() {
        let whole = async {
            let opened = Rc::new(Cell::new(0));
            let count = Rc::clone(&opened);
            let serving = move |_| {
                count.set(count.get() + 1);
                let (ours, theirs) = duplex(64 * 1024);
                let second = count.get() == 2;
                tokio::task::spawn_local(async move {
                    if second {
                        // Says nothing.
                        std::future::pending::<()>().await;
                    }
                    let mut server = h2::server::handshake(theirs).await.unwrap();
                    while server.accept().await.is_some() {}
                });
                ours
            };
            let (pools, key) = pools_to(serving);
            let mut leases = Vec::new();
            let mut lease = async |now| {
                leases.push(pools.lease_h2(key, now).await.unwrap());
                for _ in 0..20 {
                    tokio::task::yield_now().await;
                }
            };
            for _ in 0..BUSY_STREAMS + 20 {
                lease(Instant::now()).await;
            }
            assert_eq!(opened.get(), 2);
            let limit = pools.opening.config.connect_timeout;
            for _ in 0..20 {
                lease(Instant::now().checked_add(limit).unwrap()).await;
            }
            assert_eq!(opened.get(), 3);
        };
        LocalSet::new().run_until(whole).await;
    }

    #[tokio::test(flavor = "current_thread")]
    async fn new_requests_stay_clear_of_connections_that_are_busy_with_long_bodies() {
        let whole = async {
            let serving = |_| {
                let (ours, theirs) = duplex(64 * 1024);
                tokio::task::spawn_local(async move {
                    let mut server = h2::server::handshake(theirs).await.unwrap();
                    while server.accept().await.is_some() {}
                });
                ours
            };
            let (pools, key) = pools_to(serving);
            let lease_at = async |now| pools.lease_h2(key, now).await.unwrap();
            let lease = async || lease_at(Instant::now()).await;
            let pool = pools.h2(key);
            let count = || pool.connections.borrow().len();
            let same = |a: &H2Lease, b: &H2Lease| Rc::ptr_eq(&a.connection, &b.connection);
            let first = lease().await;
            while !first.connection.peer.heard.get() {
                tokio::task::yield_now().await;
            }
            first.connection.shared.bulk.passed(1024);
            assert!(same(&first, &lease().await) && count() == 1);
            let long = || (0..64).for_each(|_| first.connection.shared.bulk.passed(64 * 1024));
            long();
            // It does not wait for another connection, which is opened meanwhile.
            assert!(same(&first, &lease().await));
            while count() == 1 {
                tokio::task::yield_now().await;
            }
            // Nor goes it to one of which nothing has been heard.
            let second = Rc::clone(&pool.connections.borrow()[1]);
            second.peer.heard.set(false);
            assert!(same(&first, &lease().await));
            second.peer.heard.set(true);
            assert!(!same(&first, &lease().await));
            // One that is closed again is not opened again at once.
            second.peer.closed.set(true);
            for _ in 0..20 {
                assert!(same(&first, &lease().await));
                tokio::task::yield_now().await;
            }
            assert_eq!(count(), 1);
            let later = Instant::now().checked_add(BULK_AGAIN).unwrap();
            assert!(same(&first, &lease_at(later).await));
            while count() == 1 || !pool.connections.borrow()[1].peer.heard.get() {
                tokio::task::yield_now().await;
            }
            // However many have long bodies, there are few.
            for _ in 0..20 {
                pool.connections.borrow().iter().for_each(|c| {
                    (0..64).for_each(|_| c.shared.bulk.passed(64 * 1024));
                });
                lease().await;
                tokio::task::yield_now().await;
            }
            assert_eq!(count(), BULK_CONNECTIONS);
            // The one with the least.
            long();
            assert!(!same(&first, &lease().await));
            // And when they are over, all is as before.
            for _ in 0..2 {
                assert!(pool.sweep(Instant::now(), Duration::from_secs(60)));
            }
            assert!(same(&first, &lease().await));
        };
        LocalSet::new().run_until(whole).await;
    }
}
