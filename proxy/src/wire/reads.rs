//! How much of a long body is read at once.
//!
//! Each read of a body on HTTP/1.1 becomes a piece that goes through the proxy by itself, and wakes the server that sends
//! it: the larger the pieces, the less a body costs. But a reader that stalls holds several of them. So pieces are long
//! only on connections that have shown to bring bodies which are taken, and on few of a worker's connections at a time.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::wire::writes::Unwritten;

/// Bytes of a read, at most, one below 64 KiB: hyper takes a full read for a reason to make room for more.
const USUAL: usize = 64 * 1024 - 1;
/// The same of a connection that may read more.
pub const MAX_READ: usize = 256 * 1024;
/// Bytes in long pieces after which that is so. More than the system's buffers between here and a reader that takes
/// nothing: only a reader gets a connection there.
const PROVEN: u64 = 8 * 1024 * 1024;
/// Connections of a worker that read more at a time. Each may hold some 600 KiB more if its reader stalls.
const MAX_WIDE: u32 = 16;

/// How many connections of a worker read more at the moment.
pub type WideReads = Arc<AtomicU32>;

/// What one connection reads at once. Shared with hyper, which asks for `Send`; only one thread ever uses it.
#[derive(Default)]
pub struct ReadSize {
    wide: AtomicBool,
    /// Bytes that have been taken in long pieces.
    passed: AtomicU64,
    all: WideReads,
}

impl ReadSize {
    pub fn new(all: WideReads) -> Arc<Self> {
        Arc::new(Self { wide: AtomicBool::new(false), passed: AtomicU64::new(0), all })
    }

    /// A long piece has been taken by whom the body is for.
    pub fn passed(&self, bytes: usize) {
        let passed = self.passed.load(Relaxed).saturating_add(bytes as u64);
        self.passed.store(passed, Relaxed);
        if passed >= PROVEN && !self.wide.load(Relaxed) && self.all.load(Relaxed) < MAX_WIDE {
            self.all.fetch_add(1, Relaxed);
            self.wide.store(true, Relaxed);
        }
    }

    /// The body is over.
    pub fn over(&self) {
        if self.wide.swap(false, Relaxed) {
            self.all.fetch_sub(1, Relaxed);
        }
    }

    fn limit(&self) -> usize {
        if self.wide.load(Relaxed) { MAX_READ } else { USUAL }
    }
}

impl Drop for ReadSize {
    fn drop(&mut self) {
        self.over();
    }
}

/// A connection to an HTTP/1.1 server, whose reads are limited and whose writes are counted.
pub struct SizedReads<T> {
    io: T,
    size: Arc<ReadSize>,
    unwritten: Arc<Unwritten>,
}

impl<T> SizedReads<T> {
    pub fn new(io: T, size: Arc<ReadSize>, unwritten: Arc<Unwritten>) -> Self {
        Self { io, size, unwritten }
    }

    fn wrote(&self, polled: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = polled {
            self.unwritten.written(bytes);
        }
        polled
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for SizedReads<T> {
    #[inline]
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let limit = self.size.limit();
        if buf.remaining() <= limit {
            return Pin::new(&mut self.io).poll_read(cx, buf);
        }
        let mut part = buf.take(limit);
        let polled = Pin::new(&mut self.io).poll_read(cx, &mut part);
        let n = part.filled().len();
        #[expect(
            unsafe_code,
            reason = "zeroing 64 KiB for each read costs as much as copying them"
        )]
        // SAFETY: `part` is the unfilled part of `buf`, and its first `n` bytes have just been filled.
        unsafe {
            buf.assume_init(n);
        }
        buf.advance(n);
        polled
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for SizedReads<T> {
    #[inline]
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write(cx, buf);
        self.wrote(polled)
    }

    #[inline]
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.wrote(polled)
    }

    #[inline]
    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    #[inline]
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    #[inline]
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_connections_read_more_and_only_proven_ones() {
        let all = WideReads::default();
        let sizes: Vec<_> = (0..=MAX_WIDE).map(|_| ReadSize::new(Arc::clone(&all))).collect();
        for size in &sizes {
            size.passed(PROVEN as usize - 1);
            assert_eq!(size.limit(), USUAL);
            size.passed(1);
        }
        let wide = || sizes.iter().filter(|size| size.limit() == MAX_READ).count();
        assert_eq!(wide(), MAX_WIDE as usize);
        // A place is free as soon as a body is over, for anyone who asks first.
        sizes[0].over();
        assert_eq!(wide(), MAX_WIDE as usize - 1);
        sizes[MAX_WIDE as usize].passed(1);
        assert_eq!(wide(), MAX_WIDE as usize);
        drop(sizes);
        assert_eq!(all.load(Relaxed), 0);
    }
}
