//! What a worker does: serves what is accepted, and once a second looks at all that is open.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use crate::base::peer::Peer;
use crate::listener::accept::Accepted;
use crate::listener::role::Routing;
use crate::proxy::connections::sweeps;
use crate::proxy::worker::Worker;
use crate::serve::{inbound, outbound};
use crate::tls::unix_now;

impl Worker {
    /// Serves what is accepted until the proxy has closed every connection.
    pub async fn run(self: Rc<Self>, mut accepted: mpsc::UnboundedReceiver<Accepted>) {
        let mut phase = self.proxy.lifecycle.subscribe();
        let mut sweep = tokio::time::interval(Duration::from_secs(1));
        sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Some(accepted) = accepted.recv() => self.serve(accepted),
                _ = sweep.tick() => self.sweep(),
                changed = phase.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let phase = *phase.borrow_and_update();
                    self.connections.advance(phase);
                }
            }
        }
    }

    fn serve(self: &Rc<Self>, accepted: Accepted) {
        self.idle_purge.connected();
        let worker = Rc::clone(self);
        tokio::task::spawn_local(async move {
            let Accepted { stream, remote, listener, destination, slot } = accepted;
            let slot = Rc::new(slot);
            let Ok(stream) = tokio::net::TcpStream::from_std(stream) else { return };
            // Each boxed, and the first gone when the second begins: most connections are HTTP, and idle.
            let served = match listener.routing {
                Routing::Destinations => {
                    let listens = (listener, slot);
                    Box::pin(outbound::serve(worker, stream, remote, listens, destination)).await
                }
                Routing::OwnPorts => {
                    Box::pin(inbound::serve(worker, stream, remote, (listener, slot))).await
                }
            };
            if let Some(serving) = served {
                serving.await;
            }
        });
    }

    fn sweep(&self) {
        self.tick.set(self.tick.get() + 1);
        let settings = &self.proxy.settings;
        self.connections.sweep(sweeps(settings.header_timeout), self.stall_limits.write);
        self.exchanges.sweep(Instant::now(), self.stall_limits);
        self.pools.sweep(Instant::now());
        self.review();
        self.idle_purge.sweep(self.metrics.take_recorded());
        self.metrics.sweep();
    }

    /// Judges every open connection by the certificates, roots and ports of now. What may stay no
    /// longer is told so, and ends after what it has in flight.
    fn review(&self) {
        let grace = self.proxy.settings.drain_timeout;
        let mut trust = None;
        if let Some(identity) = &self.proxy.identity {
            let generation = identity.generation();
            if self.reviewed.replace(generation) != generation {
                trust = identity.trust();
            }
            self.pools.review(trust.as_deref().map(|trust| (trust, grace)));
        }
        let (now, inbound) = (unix_now(), self.proxy.inbound.load_full());
        let ports_changed = !Arc::ptr_eq(&inbound, &self.reviewed_ports.borrow());
        if ports_changed {
            *self.reviewed_ports.borrow_mut() = Arc::clone(&inbound);
        }
        let grace = u32::try_from(grace.as_secs()).unwrap_or(u32::MAX).max(1);
        self.connections.review(grace, |connection| match connection.peer {
            Peer::App => connection.outbound(),
            Peer::Mesh | Peer::Outside => {
                inbound::review(connection, &inbound, ports_changed, trust.as_deref(), now)
            }
        });
    }
}
