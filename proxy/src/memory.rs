//! When freed memory goes back to the system.
//!
//! To return a page and to touch it again costs 25 to 40 microseconds each time under nested
//! virtualization, and a busy worker touches hundreds of them again at once: requests then wait for
//! milliseconds. So memory stays with a worker while it is busy and goes back when it rests.

use std::cell::Cell;
use std::ffi::{c_int, c_long};

/// How long the allocator keeps freed pages of a process that never rests.
const KEEP_MS: c_long = 30_000;
/// `mi_option_purge_delay` in mimalloc's mimalloc.h, in milliseconds; the crate does not name it.
const PURGE_DELAY: c_int = 15;
/// Seconds without a request after which a worker has nothing more to give: until then the connections that
/// a burst needed have been closed (`--app-idle-timeout`).
const RESTS: u32 = 8;

/// What one worker has to spare.
#[derive(Default)]
pub struct Spare {
    /// Seconds without a request.
    idle: Cell<u32>,
}

/// Lets busy workers keep what they have freed. To be called once, before there is load.
pub fn keep_while_busy() {
    #[expect(unsafe_code, reason = "the allocator's options are set in C")]
    // SAFETY: stores a number in a table of atomics that is as long as all options; `PURGE_DELAY` is one.
    unsafe {
        libmimalloc_sys::mi_option_set(PURGE_DELAY, KEEP_MS);
    }
}

impl Spare {
    /// Once a second, on the worker's thread. `busy`: a request has ended since the last time.
    pub fn sweep(&self, busy: bool) {
        let idle = if busy { 0 } else { self.idle.get().saturating_add(1) };
        self.idle.set(idle);
        if (1..=RESTS).contains(&idle) {
            #[expect(unsafe_code, reason = "the allocator collects in C")]
            // SAFETY: frees only what nobody holds any more, of the calling thread and of the free pages of all.
            unsafe {
                libmimalloc_sys::mi_collect(true);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_option_is_the_one_that_is_meant() {
        // Its default tells it from its neighbours, should a release of mimalloc renumber them.
        #[expect(unsafe_code, reason = "the allocator's options are read in C")]
        // SAFETY: reads a number from the same table.
        let before = unsafe { libmimalloc_sys::mi_option_get(PURGE_DELAY) };
        assert_eq!(before, 1_000);
    }

    #[test]
    fn a_worker_gives_back_while_it_begins_to_rest_and_starts_anew_when_it_was_busy() {
        let spare = Spare::default();
        for _ in 0..RESTS + 3 {
            spare.sweep(false);
        }
        assert_eq!(spare.idle.get(), RESTS + 3);
        spare.sweep(true);
        assert_eq!(spare.idle.get(), 0);
    }
}
