//! HTTP/1.1 connections, lent to one request at a time.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use http::header::{HeaderMap, TRANSFER_ENCODING};
use http::{Request, Response};
use hyper::client::conn::http1;
use hyper::ext::on_informational;
use hyper_util::rt::TokioIo;
use outrigger_core::time::Part;
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::upstream::pool::connect::{ConnectError, connect_to};
use crate::upstream::pool::stream::SendError;
use crate::upstream::pool::{PoolKey, Pools};
use crate::wire::body::RequestBody;
use crate::wire::body::paced::PacedBody;
use crate::wire::error::BodyError;
use crate::wire::headers::clean_response;
use crate::wire::progress::Progress;
use crate::wire::reads::{MAX_READ, ReadSize, SizedReads};
use crate::wire::streams::WireBody;
use crate::wire::writes::Unwritten;

/// Idle connections kept for one address.
const MAX_IDLE: usize = 128;
/// A request that cannot be sent again takes no connection that was idle for longer, unless it is known
/// that this server leaves them open for longer still: it may be closing it at this moment. Servers'
/// own limits are 2 s (gunicorn) and more.
const FRESH_ENOUGH: Duration = Duration::from_secs(1);
/// How far such a request stays below an idle time that connections are known to survive. As long as the
/// sweep by which that is found out.
const MARGIN: Duration = Duration::from_secs(1);
/// Connections that are opened to one address at once while others are in use. After a pause of ours or
/// of the app many requests are due together: most are served by what is open before their own
/// connection would be, and each of those costs the app more than the request does.
const OPENING_AT_ONCE: usize = 4;
/// How long a request waits for a connection that is given back before it opens one nevertheless.
const PATIENCE: Duration = Duration::from_millis(2);

/// The way to a connection, how much it reads at once, and what it has still to write.
struct Sender {
    requests: http1::SendRequest<RequestBody>,
    reads: Arc<ReadSize>,
    unwritten: Arc<Unwritten>,
}

/// Which idle connections a request may take. The server may be closing one at the same moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reuse {
    /// The request can be sent once more.
    Any,
    /// Only those that the server surely leaves open.
    Safe,
    Never,
}

#[derive(Default)]
pub struct H1Pool {
    /// The most recently used last.
    idle: RefCell<VecDeque<Idle>>,
    /// How many are being opened.
    opening: Cell<usize>,
    /// Requests that wait: for a connection, or with none for their turn to open one.
    waiting: RefCell<VecDeque<oneshot::Sender<Option<Sender>>>>,
    /// The longest idle time after which a connection was still open.
    survived: Cell<Duration>,
    /// The shortest one after which the server had closed one.
    closes_after: Cell<Option<Duration>>,
}

struct Idle {
    sender: Sender,
    since: Instant,
}

/// A connection that belongs to one request until [`H1Lease::release`]. Dropping it instead closes
/// the connection.
pub struct H1Lease {
    sender: Sender,
    pool: Rc<H1Pool>,
    /// For how long it was idle before; none: it is new.
    idle: Option<Duration>,
    /// Microseconds of the TLS handshake that the request has waited for; 0: for none.
    pub tls: u32,
}

/// One of the connections that are being opened. Its end lets the next request try.
struct Dialing<'a>(&'a H1Pool);

impl Pools {
    /// An idle connection, or a new one. `keeps_case`: on a new one the case of header names is kept, of
    /// use to callers on HTTP/1.1 alone and not free.
    pub async fn lease_h1(
        &self,
        key: PoolKey,
        reuse: Reuse,
        keeps_case: bool,
        now: Instant,
    ) -> Result<H1Lease, ConnectError> {
        let pool = self.h1(key);
        if reuse == Reuse::Never {
            return Box::pin(self.open_h1(key, keeps_case, pool)).await;
        }
        if let Some((sender, idle)) = pool.take(reuse == Reuse::Any, now) {
            return Ok(H1Lease { sender, pool, idle: Some(idle), tls: 0 });
        }
        // Boxed: rare, and the future of every request would carry its size.
        Box::pin(self.await_or_open_h1(key, keeps_case, pool)).await
    }

    /// A new connection, whatever is idle.
    pub async fn fresh_h1(&self, key: PoolKey) -> Result<H1Lease, ConnectError> {
        self.open_h1(key, false, self.h1(key)).await
    }

    async fn await_or_open_h1(
        &self,
        key: PoolKey,
        keeps_case: bool,
        pool: Rc<H1Pool>,
    ) -> Result<H1Lease, ConnectError> {
        if pool.opening.get() >= OPENING_AT_ONCE
            && let Some(sender) = pool.given_back().await
        {
            return Ok(H1Lease { sender, pool, idle: Some(Duration::ZERO), tls: 0 });
        }
        self.open_h1(key, keeps_case, pool).await
    }

    async fn open_h1(
        &self,
        key: PoolKey,
        keeps_case: bool,
        pool: Rc<H1Pool>,
    ) -> Result<H1Lease, ConnectError> {
        let (sender, tls) = {
            let _dialing = Dialing::begin(&pool);
            let stream = connect_to(key, &self.opening).await?;
            let tls = stream.tls;
            let reads = ReadSize::new(Arc::clone(&self.opening.wide_reads));
            let unwritten = Arc::<Unwritten>::default();
            let max_header_bytes = (self.opening.config.max_header_bytes as usize).max(8_192);
            let (requests, connection) = http1::Builder::new()
                .preserve_header_case(keeps_case)
                .max_headers(self.opening.config.max_headers)
                .max_header_size(max_header_bytes)
                .max_buf_size(max_header_bytes.max(MAX_READ))
                .handshake(TokioIo::new(SizedReads::new(
                    stream,
                    Arc::clone(&reads),
                    Arc::clone(&unwritten),
                )))
                .await
                .map_err(|error| ConnectError {
                    reason: outrigger_core::reason::Reason::ConnectFailed,
                    detail: format!("{}: {error}", key.address).into(),
                })?;
            // Its errors reach anyone who uses the sender.
            tokio::task::spawn_local(async move { drop(connection.with_upgrades().await) });
            (Sender { requests, reads, unwritten }, tls)
        };
        Ok(H1Lease { sender, pool, idle: None, tls })
    }
}

impl H1Pool {
    /// The most recently used one that is ready: those just given back may still be finishing their
    /// last response.
    fn take(&self, repeatable: bool, now: Instant) -> Option<(Sender, Duration)> {
        let mut idle = self.idle.borrow_mut();
        for at in (0..idle.len()).rev() {
            let one = &idle[at];
            let age = now.saturating_duration_since(one.since);
            if one.sender.requests.is_closed() {
                idle.remove(at);
                self.closed_after(age);
                continue;
            }
            if !repeatable && !self.is_open_after(age) {
                return None;
            }
            if one.sender.requests.is_ready() {
                return idle.remove(at).map(|one| (one.sender, age));
            }
        }
        None
    }

    /// Whether the server surely leaves a connection open that has been idle for so long.
    fn is_open_after(&self, idle: Duration) -> bool {
        if self.closes_after.get().is_some_and(|limit| idle >= limit.part(2)) {
            return false;
        }
        idle < FRESH_ENOUGH || idle.saturating_add(MARGIN) <= self.survived.get()
    }

    /// The server has closed a connection that had been idle for so long, or a little less.
    fn closed_after(&self, idle: Duration) {
        self.closes_after.set(Some(self.closes_after.get().map_or(idle, |limit| limit.min(idle))));
        self.survived.set(self.survived.get().min(idle));
    }

    /// A connection that another request has done with; none: it is time to open one.
    async fn given_back(&self) -> Option<Sender> {
        let (turn, given) = oneshot::channel();
        self.waiting.borrow_mut().push_back(turn);
        let ready = async {
            let mut sender = given.await.ok().flatten()?;
            sender.requests.ready().await.ok()?;
            Some(sender)
        };
        timeout(PATIENCE, ready).await.ok().flatten()
    }

    /// Hands a connection to the request that has waited longest; gives it back if none waits.
    fn give(&self, sender: Sender) -> Option<Sender> {
        let mut waiting = self.waiting.borrow_mut();
        let mut offer = Some(sender);
        while let Some(next) = waiting.pop_front() {
            match next.send(offer) {
                Ok(()) => return None,
                Err(refused) => offer = refused,
            }
        }
        offer
    }

    /// Whether the pool is worth keeping.
    pub fn sweep(&self, now: Instant, limit: Duration) -> bool {
        self.waiting.borrow_mut().retain(|waiting| !waiting.is_closed());
        let mut idle = self.idle.borrow_mut();
        idle.retain(|one| {
            let age = now.saturating_duration_since(one.since);
            if one.sender.requests.is_closed() {
                self.closed_after(age);
                return false;
            }
            self.survived.set(self.survived.get().max(age));
            age < limit
        });
        self.opening.get() > 0 || !idle.is_empty()
    }
}

impl<'a> Dialing<'a> {
    fn begin(pool: &'a H1Pool) -> Self {
        pool.opening.set(pool.opening.get() + 1);
        Self(pool)
    }
}

impl Drop for Dialing<'_> {
    fn drop(&mut self) {
        self.0.opening.set(self.0.opening.get() - 1);
        let mut waiting = self.0.waiting.borrow_mut();
        while let Some(next) = waiting.pop_front() {
            if next.send(None).is_ok() {
                return;
            }
        }
    }
}

impl H1Lease {
    /// Queues the request at once; the future is its answer. `progress`: who is told of informational
    /// responses.
    pub fn send(
        &mut self,
        mut request: Request<RequestBody>,
        progress: Option<&Arc<Progress>>,
    ) -> impl Future<Output = Result<Response<WireBody>, SendError>> + use<> {
        if let Some(progress) = progress.map(Arc::clone) {
            on_informational(&mut request, move |response| {
                let mut told = Response::new(());
                *told.status_mut() = response.status();
                told.headers_mut().clone_from(response.headers());
                clean_response(told.headers_mut());
                progress.touch();
                progress.inform(told);
            });
        }
        if !matches!(request.body(), RequestBody::Empty) {
            let unwritten = Arc::clone(&self.sender.unwritten);
            unwritten.reset();
            let body = std::mem::take(request.body_mut());
            *request.body_mut() = RequestBody::Paced(Box::new(PacedBody::new(body, unwritten)));
        }
        let sent = self.sender.requests.try_send_request(request);
        let (pool, idle) = (Rc::clone(&self.pool), self.idle);
        let reads = Arc::clone(&self.sender.reads);
        sent.map(move |sent| match sent {
            Ok(response) if is_chunked_at_most(response.headers()) => {
                Ok(response.map(|body| WireBody::response(body, reads)))
            }
            Ok(_) => {
                Err(SendError { error: BodyError::TransferCoding, unsent: false, reused: false })
            }
            Err(error) => {
                if let Some(idle) = idle {
                    pool.closed_after(idle);
                }
                Err(SendError { reused: idle.is_some(), ..SendError::from(error) })
            }
        })
    }

    /// The response has been read whole: the next request may use the connection.
    pub fn release(self, now: Instant) {
        if self.sender.requests.is_closed() {
            return;
        }
        let Some(sender) = self.pool.give(self.sender) else { return };
        let mut idle = self.pool.idle.borrow_mut();
        if idle.len() >= MAX_IDLE {
            idle.pop_front();
        }
        idle.push_back(Idle { sender, since: now });
    }
}

/// Whether a body is framed by what this proxy can undo (RFC 9112 section 6.1): it asks for nothing else.
fn is_chunked_at_most(headers: &HeaderMap) -> bool {
    headers.get(TRANSFER_ENCODING).is_none_or(|coding| {
        coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked")
            && headers.get_all(TRANSFER_ENCODING).iter().nth(1).is_none()
    })
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use tokio::io::DuplexStream;
    use tokio::task::LocalSet;

    use super::*;

    /// A connection with nothing on it, and the server's end.
    async fn connection() -> (Sender, DuplexStream) {
        let (ours, theirs) = tokio::io::duplex(1024);
        let (mut requests, connection) = http1::handshake(TokioIo::new(ours)).await.unwrap();
        tokio::task::spawn_local(connection);
        requests.ready().await.unwrap();
        (Sender { requests, reads: Arc::default(), unwritten: Arc::default() }, theirs)
    }

    fn release(pool: &Rc<H1Pool>, sender: Sender, now: Instant) {
        H1Lease { sender, pool: Rc::clone(pool), idle: None, tls: 0 }.release(now);
    }

    fn run(test: impl Future<Output = ()>) {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_time().build().unwrap();
        runtime.block_on(LocalSet::new().run_until(test));
    }

    #[test]
    fn what_cannot_be_repeated_stays_below_the_idle_limit_of_the_server() {
        run(async {
            let (pool, now) = (Rc::new(H1Pool::default()), Instant::now());
            let after = |millis| now + Duration::from_millis(millis);
            let (sender, _server) = connection().await;
            release(&pool, sender, now);
            assert!(pool.take(false, after(1_500)).is_none(), "nobody knows this server yet");
            pool.sweep(after(3_000), Duration::from_secs(60));
            let (sender, _) = pool.take(false, after(1_500)).expect("it was open for 3 s");
            release(&pool, sender, now);
            assert!(pool.take(false, after(2_500)).is_none(), "too near to what is known");

            let (closed, server) = connection().await;
            release(&pool, closed, now);
            drop(server);
            tokio::task::yield_now().await;
            assert!(
                pool.take(false, after(1_500)).is_none(),
                "it may be closing the other one too"
            );
            assert!(
                pool.take(true, after(1_500)).is_some(),
                "what can be repeated may find that out"
            );
        });
    }

    #[test]
    fn a_request_that_fails_teaches_the_idle_limit() {
        run(async {
            let (pool, now) = (Rc::new(H1Pool::default()), Instant::now());
            pool.survived.set(Duration::from_secs(9));
            let (sender, server) = connection().await;
            let (idle, pool_) = (Some(Duration::from_millis(800)), Rc::clone(&pool));
            let mut lease = H1Lease { sender, pool: pool_, idle, tls: 0 };
            let sending = lease.send(Request::new(RequestBody::Empty), None);
            drop(server);
            assert!(sending.await.is_err_and(|error| error.reused));
            let (sender, _server) = connection().await;
            release(&pool, sender, now);
            assert!(pool.take(false, now + Duration::from_millis(500)).is_none());
            assert!(pool.take(false, now + Duration::from_millis(300)).is_some());
        });
    }

    #[test]
    fn a_request_that_waits_gets_what_is_given_back_first() {
        run(async {
            let pool = Rc::new(H1Pool::default());
            let (sender, _server) = connection().await;
            // The first gives up before there is anything.
            assert!(pool.given_back().now_or_never().is_none());
            assert_eq!(pool.waiting.borrow().len(), 1);
            let (waits, gives) = (pool.given_back(), async {
                release(&pool, sender, Instant::now());
            });
            let (given, ()) = tokio::join!(waits, gives);
            assert!(given.is_some());
            assert!(pool.idle.borrow().is_empty(), "it has one owner");
        });
    }

    #[test]
    fn who_waits_opens_its_own_when_another_is_open_or_patience_ends() {
        run(async {
            let pool = H1Pool::default();
            let dialing = Dialing::begin(&pool);
            let mut waits = pin!(pool.given_back());
            assert!(waits.as_mut().now_or_never().is_none());
            drop(dialing);
            assert!(waits.now_or_never().is_some_and(|given| given.is_none()));
            assert_eq!(pool.opening.get(), 0);

            let began = Instant::now();
            let waited = timeout(Duration::from_secs(10), pool.given_back()).await;
            assert!(waited.expect("patience ends").is_none());
            assert!(began.elapsed() >= PATIENCE);
        });
    }
}
