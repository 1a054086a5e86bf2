//! How much of long bodies waits inside of h2 for its connection to write it.
//!
//! h2 takes as much of each stream as the peer's window and its own buffer have room for. Of many streams that is far more
//! than the connection writes at a time, and what they hold in the end lies scattered among it. So long pieces are
//! given to h2 in the order in which they come, as those before them are written.

use std::cell::Cell;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};

/// Bytes of long pieces that wait for one connection, about: all that is written counts as theirs. What it writes in two
/// turns: with one it would be out of work before its streams have had theirs.
const MOST: u32 = 512 * 1024;

/// Of one connection.
pub struct WriteQueue {
    room: Arc<Semaphore>,
    /// Bytes that h2 has been given and has not written.
    given: Cell<usize>,
}

/// A piece that waits for those before it. Dropping it gives its place up.
pub type Place = Pin<Box<dyn Future<Output = Result<OwnedSemaphorePermit, AcquireError>>>>;

impl Default for WriteQueue {
    fn default() -> Self {
        Self { room: Arc::new(Semaphore::new(MOST as usize)), given: Cell::new(0) }
    }
}

impl WriteQueue {
    /// Ready with how many of so many bytes h2 may be given, which has to be done then.
    pub fn poll_give(
        &self,
        bytes: usize,
        place: &mut Option<Place>,
        cx: &mut Context<'_>,
    ) -> Poll<usize> {
        // What is longer goes in parts.
        let asked = u32::try_from(bytes).unwrap_or(MOST).min(MOST);
        let free = || Arc::clone(&self.room).try_acquire_many_owned(asked).ok();
        let room = match place.is_none().then(free).flatten() {
            Some(room) => room,
            None => {
                let wait = || Box::pin(Arc::clone(&self.room).acquire_many_owned(asked)) as Place;
                let polled = place.get_or_insert_with(wait).as_mut().poll(cx);
                let Poll::Ready(Ok(room)) = polled else { return Poll::Pending };
                *place = None;
                room
            }
        };
        let room_for = room.num_permits();
        self.given.set(self.given.get().saturating_add(room_for));
        room.forget();
        Poll::Ready(room_for.min(bytes))
    }

    /// Whether h2 may hold something.
    #[inline(always)]
    pub fn is_used(&self) -> bool {
        self.given.get() > 0
    }

    /// The connection has written so many bytes, others' among them.
    #[inline(always)]
    pub fn written(&self, bytes: usize) {
        if self.is_used() {
            self.free(bytes);
        }
    }

    /// h2 has nothing more to write. It writes nothing of a stream that was reset.
    #[inline(always)]
    pub fn all_written(&self) {
        self.written(usize::MAX);
    }

    fn free(&self, bytes: usize) {
        let bytes = bytes.min(self.given.get());
        self.given.set(self.given.get() - bytes);
        self.room.add_permits(bytes);
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    #[test]
    fn pieces_go_in_the_order_in_which_they_came_as_there_is_room() {
        let queue = WriteQueue::default();
        let mut cx = Context::from_waker(Waker::noop());
        let mut give = |bytes, place: &mut _| queue.poll_give(bytes, place, &mut cx).is_ready();
        let [mut first, mut second, mut third] = [None, None, None];
        // Longer than all of the room, which it gets.
        assert!(give(1024 * 1024, &mut first));
        assert!(!give(MOST as usize, &mut second) && !give(1, &mut third));
        queue.written(MOST as usize / 2);
        assert!(!give(1, &mut third) && !give(MOST as usize, &mut second));
        // It goes away, and what is left of its room is for the next one.
        second = None;
        assert!(give(1, &mut third) && second.is_none());
        // Streams that are reset are never written.
        assert!(queue.is_used());
        queue.all_written();
        assert!(!queue.is_used() && give(MOST as usize, &mut first));
    }
}
