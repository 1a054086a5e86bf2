//! A connection's place under the limit.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use crate::listener::role::ListenerLimits;
use crate::observe::metrics::add;
use crate::proxy::worker::Load;
use crate::proxy::{Phase, Proxy};

/// A connection's place under the limit, freed when dropped.
pub struct Slot {
    proxy: Arc<Proxy>,
    load: Arc<Load>,
    ends: Phase,
}

impl Slot {
    /// None: there are as many connections as the listener takes.
    pub fn take(proxy: &Arc<Proxy>, load: &Arc<Load>, limits: &ListenerLimits) -> Option<Self> {
        let gauges = &proxy.metrics.gauges;
        if !proxy.lifecycle.try_open(limits.connections, limits.ends) {
            add(&gauges.connections_refused, 1);
            return None;
        }
        load.connections.fetch_add(1, Relaxed);
        add(&gauges.connections_total, 1);
        gauges.connections_open.fetch_add(1, Relaxed);
        Some(Self { proxy: Arc::clone(proxy), load: Arc::clone(load), ends: limits.ends })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.load.connections.fetch_sub(1, Relaxed);
        self.proxy.lifecycle.closed(self.ends);
        self.proxy.metrics.gauges.connections_open.fetch_sub(1, Relaxed);
    }
}
