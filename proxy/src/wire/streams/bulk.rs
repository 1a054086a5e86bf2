//! How much of what a connection of HTTP/2 carries belongs to long bodies.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use super::LONG;

/// Bytes of long bodies in a second from which on a connection is busy with them: each of its streams may have a window
/// of them on its way, and what else it carries waits behind.
const BUSY: u64 = 1024 * 1024;

/// Of one connection. Its bodies must be `Send` for hyper's sake; only one thread ever uses it.
#[derive(Default)]
pub struct BulkMeter {
    /// Bytes since the last sweep, and between that and the one before.
    now: AtomicU64,
    before: AtomicU64,
}

impl BulkMeter {
    /// A piece of a body has been moved.
    #[inline(always)]
    pub fn passed(&self, bytes: usize) {
        if bytes >= LONG {
            self.now.store(self.now.load(Relaxed).saturating_add(bytes as u64), Relaxed);
        }
    }

    pub fn is_busy(&self) -> bool {
        self.rate() >= BUSY
    }

    /// Bytes of long bodies in about the last second.
    pub fn rate(&self) -> u64 {
        self.now.load(Relaxed).max(self.before.load(Relaxed))
    }

    /// Once a second.
    pub fn sweep(&self) {
        self.before.store(self.now.swap(0, Relaxed), Relaxed);
    }
}
