//! What is known of one connection while it carries requests.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU32};

/// No head is being read.
const IDLE: u32 = u32::MAX;

/// Sweeps after which a connection of HTTP/1.1 counts as idle: between one second and two.
const MOMENT: u32 = 1;

/// What a worker knows of one connection. Shared with the connection's [`crate::wire::io::Io`], which
/// must be `Send` for hyper's sake, hence the atomics; only one thread ever uses them.
pub struct ConnectionWatch {
    /// Sweeps since the first byte of a head that is not complete yet, or [`IDLE`].
    head_age: AtomicU32,
    /// Requests between their head and the end of their response.
    in_flight: AtomicU32,
    /// Sweeps since a request last began or ended.
    idle_age: AtomicU32,
    /// HTTP/2: heads cannot be told from other frames once a request has been seen.
    multiplexed: bool,
    seen_request: AtomicBool,
    expired: AtomicBool,
    /// Bytes have gone in either direction since somebody asked.
    moved: AtomicBool,
    /// The peer takes no more bytes.
    blocked: AtomicBool,
    /// Sweeps since then.
    blocked_age: AtomicU32,
    /// It has taken none for too long.
    stuck: AtomicBool,
}

impl ConnectionWatch {
    pub fn new(multiplexed: bool) -> Arc<Self> {
        Arc::new(Self {
            head_age: AtomicU32::new(IDLE),
            in_flight: AtomicU32::new(0),
            idle_age: AtomicU32::new(0),
            multiplexed,
            seen_request: AtomicBool::new(false),
            expired: AtomicBool::new(false),
            moved: AtomicBool::new(false),
            blocked: AtomicBool::new(false),
            blocked_age: AtomicU32::new(0),
            stuck: AtomicBool::new(false),
        })
    }

    /// Bytes were read: with no request in flight they begin a head.
    pub fn bytes_arrived(&self) {
        self.moved.store(true, Relaxed);
        if self.in_flight.load(Relaxed) == 0
            && self.head_age.load(Relaxed) == IDLE
            && !(self.multiplexed && self.seen_request.load(Relaxed))
        {
            self.head_age.store(0, Relaxed);
        }
    }

    /// The peer was offered bytes, and took some or not.
    pub fn wrote(&self, took: bool) {
        self.blocked.store(!took, Relaxed);
        if took {
            self.moved.store(true, Relaxed);
            self.blocked_age.store(0, Relaxed);
        }
    }

    /// Whether bytes have gone in either direction since the last call.
    pub fn take_moved(&self) -> bool {
        self.moved.swap(false, Relaxed)
    }

    /// Whether the peer takes no bytes at the moment.
    pub fn is_blocked(&self) -> bool {
        self.blocked.load(Relaxed)
    }

    /// Whether the peer has taken no bytes for too long: the connection must be dropped.
    pub fn is_stuck(&self) -> bool {
        self.stuck.load(Relaxed)
    }

    /// A head is complete.
    pub fn request_began(&self) {
        self.head_age.store(IDLE, Relaxed);
        self.seen_request.store(true, Relaxed);
        self.idle_age.store(0, Relaxed);
        self.in_flight.store(self.in_flight.load(Relaxed) + 1, Relaxed);
    }

    pub fn request_ended(&self) {
        self.idle_age.store(0, Relaxed);
        self.in_flight.store(self.in_flight.load(Relaxed).saturating_sub(1), Relaxed);
    }

    /// Whether the head took longer than the limit: the connection must be dropped.
    pub fn expired(&self) -> bool {
        self.expired.load(Relaxed)
    }

    /// Whether nothing has been in flight for longer than `limit` sweeps.
    pub(crate) fn has_idled(&self, limit: u32) -> bool {
        self.idle_age.load(Relaxed) > limit
    }

    /// Whether nothing has come of the next request for more than a moment.
    pub fn is_idle(&self) -> bool {
        self.has_idled(MOMENT) && self.head_age.load(Relaxed) == IDLE
    }

    /// Ages what there is by one. True: the connection's task must look at it.
    pub(crate) fn sweep(&self, limit: u32, write_limit: Option<u32>) -> bool {
        let idle = match self.in_flight.load(Relaxed) {
            0 => self.idle_age.load(Relaxed).saturating_add(1),
            _ => 0,
        };
        self.idle_age.store(idle, Relaxed);
        let becomes_idle = !self.multiplexed && idle == MOMENT + 1;
        if self.blocked.load(Relaxed) {
            let age = self.blocked_age.load(Relaxed).saturating_add(1);
            self.blocked_age.store(age, Relaxed);
            // Exchanges that end for the same reason go first, and are told of one by one.
            if write_limit.is_some_and(|limit| age > limit.saturating_add(1)) {
                self.stuck.store(true, Relaxed);
                return true;
            }
        }
        match self.head_age.load(Relaxed) {
            IDLE => becomes_idle,
            age if age >= limit => {
                self.expired.store(true, Relaxed);
                true
            }
            age => {
                self.head_age.store(age + 1, Relaxed);
                false
            }
        }
    }
}
