//! The allocator, and when freed memory goes back to the system.
//!
//! A request makes some dozens of short-lived allocations of up to 3 KB, most of which glibc's per-thread
//! cache does not take. Hence mimalloc.
//!
//! To return a page and to touch it again costs 25 to 40 microseconds each time under nested
//! virtualization, and a busy worker touches hundreds of them again at once: requests then wait for
//! milliseconds. So memory stays with a worker while it is busy and goes back when it rests.

use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;
use std::ffi::{c_int, c_long, c_void};

/// How long the allocator keeps freed pages of a process that never rests.
const KEEP_MS: c_long = 30_000;
/// `mi_option_purge_delay` in mimalloc's mimalloc.h, in milliseconds; the crate does not name it.
const PURGE_DELAY: c_int = 15;
/// Seconds without a request or a new connection after which a worker has nothing more to give: until then
/// the connections that a burst needed have been closed (`--app-idle-timeout`).
const IDLE_PURGES: u32 = 8;

/// What every block of mimalloc is aligned to that is as large (`MI_MAX_ALIGN_SIZE`).
const USUAL_ALIGN: usize = 16;
/// Up to here mimalloc finds blocks by a table (`MI_SMALL_SIZE_MAX`).
const SMALL: usize = 1024;

/// mimalloc, asked for an alignment only where its blocks have it not by themselves. To ask for one takes
/// its slow way and a larger block, unless the size is a power of two.
pub struct Allocator;

impl Allocator {
    /// Whether a block of that size has the alignment by itself.
    fn is_usual(layout: Layout) -> bool {
        layout.align() <= USUAL_ALIGN && layout.align() <= layout.size()
    }

    /// A size whose blocks have the alignment.
    fn rounded(layout: Layout) -> usize {
        let size = layout.size().max(layout.align());
        if size <= SMALL { size.next_power_of_two() } else { size }
    }
}

#[expect(unsafe_code, reason = "an allocator is")]
// SAFETY: mimalloc's blocks are as large as asked for, or larger, and are aligned: to what it is asked for,
// and without being asked to 16 bytes, or to the largest power of two in their size if they are smaller. It
// frees and moves them whatever they were asked for with.
unsafe impl GlobalAlloc for Allocator {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        unsafe {
            if Self::is_usual(layout) {
                return libmimalloc_sys::mi_malloc(layout.size()).cast();
            }
            libmimalloc_sys::mi_malloc_aligned(Self::rounded(layout), layout.align()).cast()
        }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        unsafe {
            if Self::is_usual(layout) {
                return libmimalloc_sys::mi_zalloc(layout.size()).cast();
            }
            libmimalloc_sys::mi_zalloc_aligned(layout.size(), layout.align()).cast()
        }
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, _: Layout) {
        unsafe { libmimalloc_sys::mi_free(block.cast()) }
    }

    #[inline]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let block = block.cast::<c_void>();
        unsafe {
            if layout.align() <= USUAL_ALIGN && layout.align() <= size {
                return libmimalloc_sys::mi_realloc(block, size).cast();
            }
            libmimalloc_sys::mi_realloc_aligned(block, size, layout.align()).cast()
        }
    }
}

/// When one worker gives freed memory back.
#[derive(Default)]
pub struct IdlePurge {
    /// Seconds without a request or a new connection.
    idle: Cell<u32>,
    /// A connection has begun since the last sweep.
    connected: Cell<bool>,
}

/// Lets busy workers keep what they have freed. To be called once, before there is load.
pub fn set_purge_delay() {
    #[expect(unsafe_code, reason = "the allocator's options are set in C")]
    // SAFETY: stores a number in a table of atomics that is as long as all options; `PURGE_DELAY` is one.
    unsafe {
        libmimalloc_sys::mi_option_set(PURGE_DELAY, KEEP_MS);
    }
}

impl IdlePurge {
    /// A connection begins.
    pub fn connected(&self) {
        self.connected.set(true);
    }

    /// Once a second, on the worker's thread. `busy`: a request has ended since the last time.
    pub fn sweep(&self, busy: bool) {
        let busy = self.connected.take() || busy;
        let idle = if busy { 0 } else { self.idle.get().saturating_add(1) };
        self.idle.set(idle);
        if (1..=IDLE_PURGES).contains(&idle) {
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

    /// As a container of bytes and words would use it: made, grown, shrunk, given back.
    #[test]
    #[expect(unsafe_code, reason = "an allocator is used by hand")]
    fn blocks_are_aligned_and_keep_their_bytes() {
        for align in (0..=12).map(|bits| 1 << bits) {
            for size in (1..=130).chain([384, 448, 1_000, 1_024, 1_025, 1_392, 5_000, 70_000]) {
                let layout = Layout::from_size_align(size, align).unwrap();
                let larger = Layout::from_size_align(2 * size + 1, align).unwrap();
                let is_aligned = |block: *mut u8| block.addr().is_multiple_of(align);
                // SAFETY: each block is used within its size and given back once, with its own layout.
                unsafe {
                    let zeroed = Allocator.alloc_zeroed(layout);
                    assert!(is_aligned(zeroed), "{layout:?}");
                    assert!(std::slice::from_raw_parts(zeroed, size).iter().all(|byte| *byte == 0));
                    let block = Allocator.alloc(layout);
                    assert!(is_aligned(block), "{layout:?}");
                    block.write_bytes(7, size);
                    let block = Allocator.realloc(block, layout, larger.size());
                    assert!(is_aligned(block), "{layout:?}");
                    assert!(std::slice::from_raw_parts(block, size).iter().all(|byte| *byte == 7));
                    block.write_bytes(9, larger.size());
                    let block = Allocator.realloc(block, larger, size);
                    assert!(is_aligned(block), "{layout:?}");
                    assert!(std::slice::from_raw_parts(block, size).iter().all(|byte| *byte == 9));
                    assert!(std::slice::from_raw_parts(zeroed, size).iter().all(|byte| *byte == 0));
                    Allocator.dealloc(block, layout);
                    Allocator.dealloc(zeroed, layout);
                }
            }
        }
    }

    #[test]
    fn a_worker_gives_back_while_it_begins_to_rest_and_starts_anew_when_it_was_busy() {
        let purge = IdlePurge::default();
        for _ in 0..IDLE_PURGES + 3 {
            purge.sweep(false);
        }
        assert_eq!(purge.idle.get(), IDLE_PURGES + 3);
        purge.sweep(true);
        assert_eq!(purge.idle.get(), 0);
        purge.connected();
        purge.sweep(false);
        assert_eq!(purge.idle.get(), 0);
        purge.sweep(false);
        assert_eq!(purge.idle.get(), 1);
    }
}
