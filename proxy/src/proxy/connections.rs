//! The live connections of one worker: which must end because the proxy drains, because a request's
//! head takes too long, or because they may stay no longer.
//!
//! One sweep per second serves every connection, so that a request costs no timer. The unit of time
//! here is therefore the sweep.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

use outrigger_core::reason::Reason;

use crate::base::peer::Peer;
use crate::proxy::Phase;
use crate::tls::caller::MeshCaller;
use crate::upstream::store::Dialed;
use crate::wire::watch::ConnectionWatch;

/// Every live HTTP connection of a worker.
#[derive(Default)]
pub struct Connections {
    entries: RefCell<Vec<Option<ConnectionEntry>>>,
    free: RefCell<Vec<usize>>,
    phase: Cell<Phase>,
}

/// What a connection's right to stay rests on.
pub struct ConnectionTrust {
    pub peer: Peer,
    pub caller: Option<Rc<MeshCaller>>,
    pub remote: IpAddr,
    /// The app's port, where the whole connection goes to one.
    pub port: Option<u16>,
    /// Bytes that are not looked into: no later request will be judged by itself.
    pub opaque: bool,
    pub address: Address,
}

/// What an app has dialled with a whole connection, if that is what it did.
#[derive(Default)]
pub struct Address {
    pub(crate) dialed: Option<Arc<Dialed>>,
    /// It has been a service.
    pub(crate) found: Cell<bool>,
}

impl ConnectionTrust {
    /// Whether requests may go on to come on a connection that an app has opened to one address. Once nothing of the
    /// mesh has that address any more, the app must look up again what it wants: it would else talk for ever to
    /// an address that nobody has.
    pub fn outbound(&self) -> Review {
        let Address { dialed, found } = &self.address;
        let Some(dialed) = dialed.as_ref().filter(|_| !self.opaque) else {
            return Review::Keep;
        };
        if found.get() && dialed.is_unknown() {
            return Review::Drain;
        }
        found.set(found.get() || dialed.is_found());
        Review::Keep
    }
}

/// What becomes of an open connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Review {
    Keep,
    /// It ends after what it has in flight, however long that takes.
    Drain,
    /// It ends after what it has in flight, and soon.
    Terminate(Reason),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Open,
    Draining,
    /// With the reviews left until it is cut.
    Terminating(Reason, u32),
}

struct ConnectionEntry {
    ends: Phase,
    /// Sweeps without a request after which it ends.
    idle: Option<u32>,
    watch: Arc<ConnectionWatch>,
    trust: ConnectionTrust,
    stage: Stage,
    /// Of the connection's task, from its first poll on.
    waker: Option<Waker>,
}

impl Connections {
    /// Adds a connection; dropping the result removes it.
    pub fn enter(
        self: &Rc<Self>,
        (ends, idle): (Phase, Option<Duration>),
        watch: Arc<ConnectionWatch>,
        trust: ConnectionTrust,
    ) -> Registered {
        let entry = Some(ConnectionEntry {
            ends,
            idle: idle.map(sweeps),
            watch,
            trust,
            stage: Stage::Open,
            waker: None,
        });
        let mut entries = self.entries.borrow_mut();
        let slot = match self.free.borrow_mut().pop() {
            Some(slot) => {
                entries[slot] = entry;
                slot
            }
            None => {
                entries.push(entry);
                entries.len() - 1
            }
        };
        Registered { connections: Rc::clone(self), ends, slot }
    }

    /// The process has come to `phase`: connections that end in it do so after what they have in flight.
    pub fn advance(&self, phase: Phase) {
        self.phase.set(phase);
        for entry in self.entries.borrow().iter().flatten().filter(|entry| entry.ends <= phase) {
            entry.wake();
        }
    }

    /// Whether every answer on HTTP/1.1 says that it is the last one on its connection: a client that is told does not
    /// write another request while the connection is being closed, which nobody would read.
    pub fn announces_end(&self) -> bool {
        self.phase.get() >= Phase::Leaving
    }

    /// Judges every connection anew. What must end soon is cut at the review
    /// `grace` later.
    pub fn review(&self, grace: u32, judge: impl Fn(&ConnectionTrust) -> Review) {
        for entry in self.entries.borrow_mut().iter_mut().flatten() {
            let stage = match (entry.stage, judge(&entry.trust)) {
                (Stage::Terminating(reason, left), _) => {
                    Stage::Terminating(reason, left.saturating_sub(1))
                }
                (_, Review::Terminate(reason)) => Stage::Terminating(reason, grace),
                (Stage::Draining, _) | (_, Review::Drain) => Stage::Draining,
                (Stage::Open, Review::Keep) => Stage::Open,
            };
            if stage != std::mem::replace(&mut entry.stage, stage) {
                entry.wake();
            }
        }
    }

    /// Ages every head that is being read by one and ends those older than `limit` sweeps; likewise peers
    /// that take no bytes for more than `write_limit`. Inbound HTTP
    /// connections without a request for longer than `idle` sweeps end as if drained; of bytes that
    /// nobody looks into nobody knows what silence means.
    pub fn sweep(&self, limit: u32, write_limit: Option<u32>) {
        for entry in self.entries.borrow_mut().iter_mut().flatten() {
            let late = entry.watch.sweep(limit, write_limit);
            let leaves = !entry.trust.opaque
                && entry.stage == Stage::Open
                && entry.idle.is_some_and(|idle| entry.watch.has_idled(idle));
            if leaves {
                entry.stage = Stage::Draining;
            }
            if late || leaves {
                entry.wake();
            }
        }
    }
}

impl ConnectionEntry {
    fn wake(&self) {
        if let Some(waker) = &self.waker {
            waker.wake_by_ref();
        }
    }
}

/// A connection's place in [`Connections`].
pub struct Registered {
    connections: Rc<Connections>,
    ends: Phase,
    slot: usize,
}

impl Registered {
    /// Called from the connection's task, so that drain and sweep can wake it.
    pub fn set_waker(&self, waker: &Waker) {
        if let Some(Some(entry)) = self.connections.entries.borrow_mut().get_mut(self.slot)
            && entry.waker.is_none()
        {
            entry.waker = Some(waker.clone());
        }
    }

    /// Whether the connection shall end after what it has in flight.
    pub fn draining(&self) -> bool {
        self.connections.phase.get() >= self.ends
            || self.stage().is_some_and(|stage| stage != Stage::Open)
    }

    /// Why the connection ends now, whatever is in flight.
    pub fn cut(&self) -> Option<Reason> {
        match self.stage()? {
            Stage::Terminating(reason, 0) => Some(reason),
            Stage::Open | Stage::Draining | Stage::Terminating(..) => None,
        }
    }

    /// Completes when the connection is cut. Called from the connection's task.
    pub async fn is_cut(&self) -> Reason {
        poll_fn(|cx| {
            self.set_waker(cx.waker());
            self.cut().map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }

    fn stage(&self) -> Option<Stage> {
        let entries = self.connections.entries.borrow();
        entries.get(self.slot)?.as_ref().map(|entry| entry.stage)
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.connections.entries.borrow_mut()[self.slot] = None;
        self.connections.free.borrow_mut().push(self.slot);
    }
}

/// As many sweeps as a time takes, at least one.
pub fn sweeps(time: Duration) -> u32 {
    u32::try_from(time.as_secs()).unwrap_or(u32::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const INBOUND: (Phase, Option<Duration>) = (Phase::Finishing, Some(IDLE));
    const OUTBOUND: (Phase, Option<Duration>) = (Phase::Closing, None);
    const IDLE: Duration = Duration::from_secs(3);

    fn enter(connections: &Rc<Connections>, limits: (Phase, Option<Duration>)) -> Registered {
        let trust = ConnectionTrust {
            peer: if limits == INBOUND { Peer::Outside } else { Peer::App },
            caller: None,
            remote: IpAddr::from([127, 0, 0, 1]),
            port: None,
            opaque: false,
            address: Address::default(),
        };
        connections.enter(limits, ConnectionWatch::new(false), trust)
    }

    #[test]
    fn a_head_expires_only_while_it_is_incomplete() {
        let connections = Rc::new(Connections::default());
        let watch = ConnectionWatch::new(false);
        let trust = ConnectionTrust {
            peer: Peer::Outside,
            caller: None,
            remote: IpAddr::from([127, 0, 0, 1]),
            port: None,
            opaque: false,
            address: Address::default(),
        };
        let _entered = connections.enter(INBOUND, Arc::clone(&watch), trust);
        for _ in 0..9 {
            connections.sweep(2, None);
        }
        assert!(!watch.expired(), "an idle connection is no slow head");
        watch.bytes_arrived();
        connections.sweep(2, None);
        watch.request_began();
        connections.sweep(2, None);
        watch.bytes_arrived();
        connections.sweep(2, None);
        connections.sweep(2, None);
        assert!(!watch.expired(), "body bytes are no head");
        watch.request_ended();
        watch.bytes_arrived();
        for _ in 0..3 {
            connections.sweep(2, None);
        }
        assert!(watch.expired());
    }

    #[test]
    fn an_inbound_connection_without_requests_ends_and_the_apps_own_stays() {
        let connections = Rc::new(Connections::default());
        let watch = ConnectionWatch::new(true);
        let trust = || ConnectionTrust {
            peer: Peer::Outside,
            caller: None,
            remote: IpAddr::from([127, 0, 0, 1]),
            port: None,
            opaque: false,
            address: Address::default(),
        };
        let busy = connections.enter(INBOUND, Arc::clone(&watch), trust());
        let idle = enter(&connections, INBOUND);
        let own = enter(&connections, OUTBOUND);
        let stream = ConnectionTrust { opaque: true, ..trust() };
        let stream = connections.enter(INBOUND, ConnectionWatch::new(true), stream);
        watch.request_began();
        for _ in 0..3 {
            connections.sweep(9, None);
        }
        assert!(!idle.draining(), "not yet");
        connections.sweep(9, None);
        assert!(idle.draining() && idle.cut().is_none());
        assert!(!busy.draining() && !own.draining() && !stream.draining());
        watch.request_ended();
        for _ in 0..4 {
            connections.sweep(9, None);
        }
        assert!(busy.draining());
    }

    #[test]
    fn the_app_can_call_others_while_it_is_being_drained() {
        let connections = Rc::new(Connections::default());
        let inbound = enter(&connections, INBOUND);
        let outbound = enter(&connections, OUTBOUND);
        connections.advance(Phase::Finishing);
        assert!(inbound.draining() && !outbound.draining());
        connections.advance(Phase::Closing);
        assert!(outbound.draining());
    }

    #[test]
    fn a_connection_that_may_stay_no_longer_ends_gracefully_and_is_cut_after_a_grace() {
        let connections = Rc::new(Connections::default());
        let one = enter(&connections, INBOUND);
        let other = enter(&connections, OUTBOUND);
        let review = |verdict| {
            connections.review(2, |trust| match trust.peer {
                Peer::App => Review::Keep,
                Peer::Mesh | Peer::Outside => verdict,
            });
        };
        review(Review::Keep);
        assert!(!one.draining());
        review(Review::Terminate(Reason::MtlsRequired));
        assert!(one.draining() && one.cut().is_none());
        // It has been told: a later change of mind comes too late.
        review(Review::Keep);
        assert_eq!(one.cut(), None);
        review(Review::Keep);
        assert_eq!(one.cut(), Some(Reason::MtlsRequired));
        assert!(!other.draining());
    }

    #[test]
    fn slots_are_used_again() {
        let connections = Rc::new(Connections::default());
        let first = enter(&connections, INBOUND);
        drop(first);
        let _second = enter(&connections, INBOUND);
        assert_eq!(connections.entries.borrow().len(), 1);
    }
}
