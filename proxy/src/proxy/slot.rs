//! A connection's place under the limit.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

use crate::base::direction::Direction;
use crate::observe::metrics::add;
use crate::proxy::Proxy;

/// A connection's place under the limit, freed when dropped.
pub struct Slot {
    proxy: Arc<Proxy>,
    load: Arc<Load>,
    direction: Direction,
}

impl Slot {
    /// None: there are as many connections of this direction as the settings allow.
    pub fn take(proxy: &Arc<Proxy>, load: &Arc<Load>, direction: Direction) -> Option<Self> {
        let gauges = &proxy.metrics.gauges;
        if !proxy.lifecycle.try_open(proxy.settings.connection_limit(direction), direction) {
            add(&gauges.connections_refused, 1);
            return None;
        }
        load.connections.fetch_add(1, Relaxed);
        add(&gauges.connections_total, 1);
        gauges.connections_open.fetch_add(1, Relaxed);
        Some(Self { proxy: Arc::clone(proxy), load: Arc::clone(load), direction })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.load.connections.fetch_sub(1, Relaxed);
        self.proxy.lifecycle.closed(self.direction);
        self.proxy.metrics.gauges.connections_open.fetch_sub(1, Relaxed);
    }
}

/// How busy a worker is, for anyone who hands out connections.
#[derive(Default)]
pub struct Load {
    pub connections: AtomicUsize,
    pub streams: AtomicUsize,
}

impl Load {
    /// What a worker is chosen by: relaxed, since a slightly stale choice does no harm.
    pub fn total(&self) -> usize {
        self.connections.load(Relaxed) + self.streams.load(Relaxed)
    }
}
