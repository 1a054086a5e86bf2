//! HTTP/1.1 connections, lent to one request at a time.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use http::{Request, Response};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;

use super::connect::{ConnectError, connect_to};
use super::stream::{SendError, UpstreamBody};
use super::{PoolKey, Pools};
use crate::http::body::RequestBody;

/// Idle connections kept for one address.
const MAX_IDLE: usize = 128;
/// A request that cannot be sent again takes no connection that was idle longer: the server may be
/// closing it at this moment.
const FRESH_ENOUGH: Duration = Duration::from_secs(1);
/// How many connections are looked at before a new one is opened. The newest may still be finishing
/// its last response.
const LOOK_AT: usize = 4;

#[derive(Default)]
pub struct Pool {
    /// The most recently used last.
    idle: RefCell<VecDeque<Idle>>,
}

struct Idle {
    sender: http1::SendRequest<RequestBody>,
    since: Instant,
}

/// A connection that belongs to one request until [`Lease::release`]. Dropping it instead closes
/// the connection.
pub struct Lease {
    sender: http1::SendRequest<RequestBody>,
    pool: Rc<Pool>,
    /// Whether it has carried a request before.
    pub reused: bool,
}

impl Pools {
    /// An idle connection, or a new one. `repeatable`: the request could be sent again.
    pub async fn lease_h1(
        &self,
        key: PoolKey,
        repeatable: bool,
        now: Instant,
    ) -> Result<Lease, ConnectError> {
        let pool = self.h1(key);
        if let Some(sender) = pool.take(repeatable, now) {
            return Ok(Lease { sender, pool, reused: true });
        }
        // Boxed: rare, and the future of every request would carry its size.
        Box::pin(self.open_h1(key, pool)).await
    }

    /// A new connection, whatever is idle.
    pub async fn fresh_h1(&self, key: PoolKey) -> Result<Lease, ConnectError> {
        self.open_h1(key, self.h1(key)).await
    }

    async fn open_h1(&self, key: PoolKey, pool: Rc<Pool>) -> Result<Lease, ConnectError> {
        let stream = connect_to(key, &self.opening).await?;
        let (sender, connection) = http1::Builder::new()
            .max_headers(self.opening.config.max_headers)
            .max_buf_size((self.opening.config.max_header_bytes as usize).max(8_192))
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| ConnectError {
                reason: outrigger_core::reason::Reason::ConnectFailed,
                detail: format!("{}: {error}", key.address).into(),
            })?;
        // Its errors reach whoever uses the sender.
        tokio::task::spawn_local(async move { drop(connection.with_upgrades().await) });
        Ok(Lease { sender, pool, reused: false })
    }
}

impl Pool {
    fn take(&self, repeatable: bool, now: Instant) -> Option<http1::SendRequest<RequestBody>> {
        let mut idle = self.idle.borrow_mut();
        idle.retain(|one| !one.sender.is_closed());
        let from = idle.len().saturating_sub(LOOK_AT);
        let fits = |one: &Idle| {
            one.sender.is_ready()
                && (repeatable || now.saturating_duration_since(one.since) < FRESH_ENOUGH)
        };
        let at = (from..idle.len()).rev().find(|at| fits(&idle[*at]))?;
        idle.remove(at).map(|one| one.sender)
    }

    /// Whether the pool is worth keeping.
    pub fn sweep(&self, now: Instant, limit: Duration) -> bool {
        let mut idle = self.idle.borrow_mut();
        idle.retain(|one| {
            !one.sender.is_closed() && now.saturating_duration_since(one.since) < limit
        });
        !idle.is_empty()
    }
}

impl Lease {
    /// Queues the request at once; the future is its answer.
    pub fn send(
        &mut self,
        request: Request<RequestBody>,
    ) -> impl Future<Output = Result<Response<UpstreamBody>, SendError>> + use<> {
        let sent = self.sender.try_send_request(request);
        sent.map(|sent| Ok(sent?.map(UpstreamBody::Hyper)))
    }

    /// The response has been read whole: the next request may use the connection.
    pub fn release(self, now: Instant) {
        if self.sender.is_closed() {
            return;
        }
        let mut idle = self.pool.idle.borrow_mut();
        if idle.len() >= MAX_IDLE {
            idle.pop_front();
        }
        idle.push_back(Idle { sender: self.sender, since: now });
    }
}
