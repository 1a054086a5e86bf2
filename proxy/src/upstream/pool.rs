//! Connections to apps and proxies, kept per worker so that using one takes no lock.
//!
//! `h1` lends a connection to one request at a time; `h2` lends streams. Both are keyed by address
//! and what is spoken there, so that two endpoints behind one sidecar share connections.

pub mod connect;
pub mod h1;
pub mod h2;
pub mod stream;

use std::cell::{OnceCell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::DuplexStream;

use crate::base::settings::Settings;
use crate::observe::metrics::Metrics;
use crate::tls::identity::Identity;
use crate::tls::pace::Pace;
use crate::tls::verify::Trust;
use crate::tls::{Expected, unix_now};
use crate::wire::Wire;
use crate::wire::reads::WideReads;

/// Idle time after which a connection to another proxy is closed.
const HOP_IDLE: Duration = Duration::from_secs(60);

/// How much longer than an exchange may stand still the kernel keeps the connection of an app that takes
/// nothing.
const APP_GRACE: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PoolKey {
    pub address: SocketAddr,
    pub wire: Wire,
    /// The identity that the other side must prove; asked for on a hop alone.
    pub expected: Expected,
}

type Map<T> = RefCell<HashMap<PoolKey, Rc<T>, foldhash::fast::FixedState>>;

/// All pools of a worker.
pub struct Pools {
    h1: Map<h1::H1Pool>,
    h2: Map<h2::H2Pool>,
    pub(crate) opening: Rc<Connector>,
}

/// What opening a connection takes.
pub struct Connector {
    pub config: Config,
    pub metrics: Arc<Metrics>,
    pub identity: Option<Arc<Identity>>,
    pub pace: Rc<Pace>,
    /// Connections that won a race and wait to be used.
    pub raced: connect::RacedConnections,
    pub wide_reads: WideReads,
    /// In place of the network, for who measures or tests this proxy inside of a process.
    pub memory: OnceCell<Network>,
}

/// What answers at an address; only for connections in plaintext.
pub type Network = Box<dyn Fn(SocketAddr) -> DuplexStream>;

/// What opening a connection depends on.
#[derive(Clone, Debug)]
pub struct Config {
    pub connect_timeout: Duration,
    pub max_header_bytes: u32,
    pub max_headers: usize,
    pub app_idle: Duration,
    /// How long an app may take none of what was sent, to the kernel; none: as it likes.
    pub app_gone: Option<Duration>,
    /// This proxy's own listeners, which it must not dial; another proxy's hop may lead to the inbound one.
    pub own_inbound: SocketAddr,
    pub own_entrances: Vec<SocketAddr>,
}

impl Pools {
    pub fn new(
        settings: &Settings,
        metrics: Arc<Metrics>,
        identity: Option<Arc<Identity>>,
        pace: Rc<Pace>,
    ) -> Self {
        let config = Config {
            connect_timeout: settings.connect_timeout,
            max_header_bytes: settings.max_header_bytes,
            max_headers: settings.max_headers,
            app_idle: settings.app_idle_timeout,
            // Exchanges that stand still go first, and say why.
            app_gone: (!settings.stream_idle_timeout.is_zero())
                .then(|| settings.stream_idle_timeout.saturating_add(APP_GRACE)),
            own_inbound: settings.inbound,
            own_entrances: settings.own_entrances().collect(),
        };
        Self {
            h1: Map::default(),
            h2: Map::default(),
            opening: Rc::new(Connector {
                config,
                metrics,
                identity,
                pace,
                raced: connect::RacedConnections::default(),
                wide_reads: WideReads::default(),
                memory: OnceCell::new(),
            }),
        }
    }

    pub fn opening(&self) -> &Connector {
        &self.opening
    }

    pub(crate) fn h1(&self, key: PoolKey) -> Rc<h1::H1Pool> {
        pool(&self.h1, key)
    }

    pub(crate) fn h2(&self, key: PoolKey) -> Rc<h2::H2Pool> {
        pool(&self.h2, key)
    }

    /// Closes what has been idle too long and forgets pools that hold nothing.
    pub fn sweep(&self, now: Instant) {
        self.opening.raced.sweep(now);
        self.h1.borrow_mut().retain(|_, pool| {
            // A pool whose connections are all in use is no empty one.
            pool.sweep(now, self.opening.config.app_idle) || Rc::strong_count(pool) > 1
        });
        self.h2.borrow_mut().retain(|key, pool| {
            let idle = if key.wire.is_hop() { HOP_IDLE } else { self.opening.config.app_idle };
            pool.sweep(now, idle) || Rc::strong_count(pool) > 1
        });
    }
}

impl Pools {
    /// Takes no new streams on connections whose proof is about to end or holds no longer. `trust`:
    /// a bundle that has come since the last time, and how long what is in flight may go on then.
    pub fn review(&self, trust: Option<(&Trust, Duration)>) {
        let now = unix_now();
        for (_, pool) in self.h2.borrow().iter().filter(|(key, _)| key.wire.is_hop()) {
            pool.review(now, trust);
        }
    }
}

fn pool<T: Default>(map: &Map<T>, key: PoolKey) -> Rc<T> {
    if let Some(pool) = map.borrow().get(&key) {
        return Rc::clone(pool);
    }
    Rc::clone(map.borrow_mut().entry(key).or_default())
}
