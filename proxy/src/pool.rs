//! Connections to apps and proxies, kept per worker so that using one takes no lock.
//!
//! `h1` lends a connection to one request at a time; `h2` lends streams. Both are keyed by address
//! and what is spoken there, so that two endpoints behind one sidecar share connections.

pub mod connect;
pub mod h1;
pub mod h2;

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::rt::Executor;

use crate::metrics::Metrics;
use crate::settings::Settings;

/// Idle time after which a connection to another proxy is closed.
const HOP_IDLE: Duration = Duration::from_secs(60);

/// What is spoken on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Wire {
    Http1,
    Http2,
    /// HTTP/2 to another proxy, carrying requests.
    Hop,
    /// HTTP/2 to another proxy, carrying opaque streams; never shared with requests.
    HopTunnel,
}

impl Wire {
    pub fn is_hop(self) -> bool {
        matches!(self, Self::Hop | Self::HopTunnel)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PoolKey {
    pub address: SocketAddr,
    pub wire: Wire,
}

type Map<T> = RefCell<HashMap<PoolKey, Rc<T>, foldhash::fast::FixedState>>;

/// All pools of a worker.
pub struct Pools {
    h1: Map<h1::Pool>,
    h2: Map<h2::Pool>,
    pub(crate) config: Config,
    pub(crate) metrics: Arc<Metrics>,
}

/// What opening a connection depends on.
#[derive(Clone, Debug)]
pub struct Config {
    pub connect_timeout: Duration,
    pub max_header_bytes: u32,
    pub max_headers: usize,
    pub app_idle: Duration,
}

impl Pools {
    pub fn new(settings: &Settings, metrics: Arc<Metrics>) -> Self {
        Self {
            h1: Map::default(),
            h2: Map::default(),
            config: Config {
                connect_timeout: settings.connect_timeout,
                max_header_bytes: settings.max_header_bytes,
                max_headers: settings.max_headers,
                app_idle: settings.app_idle_timeout,
            },
            metrics,
        }
    }

    pub(crate) fn h1(&self, key: PoolKey) -> Rc<h1::Pool> {
        pool(&self.h1, key)
    }

    pub(crate) fn h2(&self, key: PoolKey) -> Rc<h2::Pool> {
        pool(&self.h2, key)
    }

    /// Closes what has been idle too long and forgets pools that hold nothing.
    pub fn sweep(&self, now: Instant) {
        self.h1.borrow_mut().retain(|_, pool| pool.sweep(now, self.config.app_idle));
        self.h2.borrow_mut().retain(|key, pool| {
            let idle = if key.wire.is_hop() { HOP_IDLE } else { self.config.app_idle };
            pool.sweep(now, idle)
        });
    }
}

fn pool<T: Default>(map: &Map<T>, key: PoolKey) -> Rc<T> {
    if let Some(pool) = map.borrow().get(&key) {
        return Rc::clone(pool);
    }
    Rc::clone(map.borrow_mut().entry(key).or_default())
}

/// Runs hyper's background work on the worker's own thread.
#[derive(Clone, Copy, Debug)]
pub struct LocalExec;

impl<F> Executor<F> for LocalExec
where
    F: Future + 'static,
    F::Output: 'static,
{
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}
