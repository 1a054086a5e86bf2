//! How much of a request body waits to be written on HTTP/1.1.
//!
//! hyper takes as much of a body at once as it may read of an answer, far more than a server that reads nothing should
//! make the proxy hold. So a body gives its next piece only when most of what came before has been written.

use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};

use futures::task::AtomicWaker;

/// Bytes not yet written with which a body waits.
const ENOUGH: usize = 64 * 1024;

/// What one connection has taken of bodies and not yet written. Shared with hyper, which asks for `Send`; only one
/// thread ever uses it.
#[derive(Default)]
pub struct Unwritten {
    bytes: AtomicUsize,
    /// Of the body that waits.
    waiting: AtomicWaker,
}

impl Unwritten {
    /// The connection has written so many bytes, heads among them.
    #[inline]
    pub fn written(&self, bytes: usize) {
        let before = self.bytes.load(Relaxed);
        if before == 0 {
            return;
        }
        let now = before.saturating_sub(bytes);
        self.bytes.store(now, Relaxed);
        if now < ENOUGH && before >= ENOUGH {
            self.waiting.wake();
        }
    }

    /// Another request begins, before which everything has been written. hyper drops what a body has beyond its length.
    pub fn reset(&self) {
        self.bytes.store(0, Relaxed);
    }

    /// So many bytes of a body have been taken.
    pub fn taken(&self, bytes: usize) {
        self.bytes.store(self.bytes.load(Relaxed).saturating_add(bytes), Relaxed);
    }

    /// Waits until the body may give its next piece.
    pub fn poll_room(&self, cx: &Context<'_>) -> Poll<()> {
        if self.bytes.load(Relaxed) < ENOUGH {
            return Poll::Ready(());
        }
        self.waiting.register(cx.waker());
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::task::{Wake, Waker};

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    #[test]
    fn a_body_waits_while_much_is_unwritten_and_is_woken_by_the_write_that_makes_room() {
        let (unwritten, woken) = (Unwritten::default(), Arc::new(Woken::default()));
        let waker = Waker::from(Arc::clone(&woken));
        let cx = Context::from_waker(&waker);
        // A head.
        unwritten.written(200);
        for round in 1..=2 {
            unwritten.taken(ENOUGH - 1);
            assert!(unwritten.poll_room(&cx).is_ready());
            unwritten.taken(ENOUGH);
            assert!(unwritten.poll_room(&cx).is_pending());
            unwritten.written(ENOUGH - 1);
            assert_eq!(woken.0.load(Relaxed), round - 1);
            unwritten.written(1);
            assert_eq!(woken.0.load(Relaxed), round);
            assert!(unwritten.poll_room(&cx).is_ready());
            // And more, which was no body.
            unwritten.written(2 * ENOUGH);
        }
    }
}
