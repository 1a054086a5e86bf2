//! What h2 reads and writes of long bodies, in few large pieces.
//!
//! h2 flushes after every long DATA frame, its task runs as soon as there is one, and it reads one frame at a time. Each
//! of these would be a system call, and often wakes the other side.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::yield_now;

use super::LONG;
use super::shared::SharedByStreams;

/// With so many bytes nothing is put off any more.
const ENOUGH: usize = 256 * 1024;
/// The same of what is held here, and copied for it.
const ENOUGH_HELD: usize = 64 * 1024;

/// Bytes of a read behind one that was full.
const READ: usize = 64 * 1024;

thread_local! {
    /// Where they lie before they are asked for.
    static AHEAD: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ].into());
}

/// Bytes that a connection reads, and as many that it writes, before the others, and what has come for them meanwhile,
/// have their turn. A server's connection may have one more for each stream that waits to be accepted.
const TURN: usize = 256 * 1024;

/// Puts a flush that follows a long write off to the next one that finds nothing new, with which h2 ends each of its turns:
/// the frames of a turn leave together. Should none come, the task has another turn once those that are ready have had theirs. Small
/// messages leave at once, and take with them what waits.
pub struct Batched<T> {
    io: T,
    /// Whether the transport itself holds what is not flushed.
    holds: bool,
    /// What this does in its place.
    held: Vec<u8>,
    /// Bytes since the last flush, whether that was put off or not.
    fresh: usize,
    /// Bytes whose flush was put off.
    waiting: usize,
    /// Read and not yet asked for.
    ahead: Bytes,
    /// The last read was full: there is more.
    full: bool,
    /// Bytes of this turn.
    read: usize,
    written: usize,
    /// Is told what has been written.
    shared: Rc<SharedByStreams>,
}

impl<T> Batched<T> {
    /// `holds`: whether `io` writes only when it is flushed, or holds as much as it may.
    pub fn new(io: T, holds: bool, shared: Rc<SharedByStreams>) -> Self {
        Self {
            io,
            holds,
            held: Vec::new(),
            fresh: 0,
            waiting: 0,
            ahead: Bytes::new(),
            full: false,
            read: 0,
            written: 0,
            shared,
        }
    }

    fn enough(&self) -> usize {
        if self.holds { ENOUGH } else { ENOUGH_HELD }
    }

    fn wrote(&mut self, polled: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(n)) = polled {
            self.fresh = self.fresh.saturating_add(n);
            self.written = self.written.saturating_add(n);
            self.shared.queue.written(n);
        }
        polled
    }
}

/// Wakes the task when the others that are ready have had their turn and the system's events have been looked for.
#[cold]
fn wake_later(cx: &mut Context<'_>) {
    let _pending = pin!(yield_now()).poll(cx);
}

/// Pending once in a while, however much there is to move.
fn poll_turn(moved: &mut usize, cx: &mut Context<'_>) -> Poll<()> {
    if *moved < TURN {
        return Poll::Ready(());
    }
    *moved = 0;
    wake_later(cx);
    Poll::Pending
}

impl<T: AsyncWrite + Unpin> Batched<T> {
    fn poll_write_held(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.held.is_empty() {
            let n = ready!(Pin::new(&mut self.io).poll_write(cx, &self.held))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.held.drain(..n);
        }
        // Its memory would stay as long as the connection.
        self.held = Vec::new();
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Batched<T> {
    #[inline]
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(poll_turn(&mut self.read, cx));
        let before = buf.filled().len();
        let polled = self.poll_read_on(cx, buf);
        match polled {
            Poll::Ready(_) => self.read = self.read.saturating_add(buf.filled().len() - before),
            // h2 reads first in each of its turns.
            Poll::Pending => (self.read, self.written) = (0, 0),
        }
        polled
    }
}

impl<T: AsyncRead + Unpin> Batched<T> {
    #[inline]
    fn poll_read_on(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self;
        if this.ahead.is_empty() && !(this.full && buf.remaining() < READ) {
            ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
            this.full = !this.holds && buf.remaining() == 0;
            return Poll::Ready(Ok(()));
        }
        if this.ahead.is_empty() {
            return AHEAD.with_borrow_mut(|memory| {
                let mut read = ReadBuf::new(memory);
                ready!(Pin::new(&mut this.io).poll_read(cx, &mut read))?;
                this.full = read.remaining() == 0;
                let (now, later) = read.filled().split_at(buf.remaining().min(read.filled().len()));
                buf.put_slice(now);
                if !later.is_empty() {
                    this.ahead = Bytes::copy_from_slice(later);
                }
                Poll::Ready(Ok(()))
            });
        }
        let n = this.ahead.len().min(buf.remaining());
        buf.put_slice(&this.ahead[..n]);
        this.ahead.advance(n);
        if this.ahead.is_empty() {
            this.ahead = Bytes::new();
            this.full = true;
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Batched<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(poll_turn(&mut self.written, cx));
        let this = &mut *self;
        let bytes: usize = bufs.iter().map(|buf| buf.len()).sum();
        let polled = if this.holds || (this.held.is_empty() && !(LONG..READ).contains(&bytes)) {
            Pin::new(&mut this.io).poll_write_vectored(cx, bufs)
        } else if this.held.len().saturating_add(bytes) > ENOUGH_HELD {
            ready!(this.poll_write_held(cx))?;
            Pin::new(&mut this.io).poll_write_vectored(cx, bufs)
        } else {
            if this.held.capacity() == 0 {
                this.held.reserve_exact(ENOUGH_HELD);
            }
            bufs.iter().for_each(|buf| this.held.extend_from_slice(buf));
            Poll::Ready(Ok(bytes))
        };
        this.wrote(polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let fresh = std::mem::take(&mut this.fresh);
        if fresh == 0 {
            this.shared.queue.all_written();
        } else {
            this.waiting = this.waiting.saturating_add(fresh);
            // The next one is not put off, if nothing is written: h2 ends each of its turns with a flush. Then nothing is
            // left to be written, either.
            if fresh >= LONG && this.waiting < this.enough() {
                wake_later(cx);
                return Poll::Ready(Ok(()));
            }
            if this.shared.queue.is_used() {
                wake_later(cx);
            }
        }
        this.waiting = 0;
        ready!(this.poll_write_held(cx))?;
        Pin::new(&mut this.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_write_held(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;
    use std::sync::atomic::Ordering::Relaxed;
    use std::task::{Wake, Waker};

    use tokio::io::{AsyncReadExt, AsyncWriteExt, BufWriter, DuplexStream};

    use super::*;

    #[tokio::test]
    async fn a_long_write_waits_for_a_turn_that_adds_nothing_a_small_one_or_enough() {
        let (ours, theirs) = tokio::io::duplex(1024 * 1024);
        // Holds what is not flushed, as TLS does.
        let holding = BufWriter::with_capacity(512 * 1024, ours);
        puts_off(Batched::new(holding, true, Rc::default()), theirs).await;
        let (ours, theirs) = tokio::io::duplex(1024 * 1024);
        puts_off(Batched::new(ours, false, Rc::default()), theirs).await;
    }

    async fn puts_off<T: AsyncWrite + Unpin>(mut batched: Batched<T>, mut theirs: DuplexStream) {
        let enough = batched.enough();
        let mut cx = Context::from_waker(Waker::noop());
        let mut write = |bytes: usize| {
            // A turn of its own.
            (batched.read, batched.written) = (0, 0);
            let polled = Pin::new(&mut batched).poll_write(&mut cx, &vec![7; bytes]);
            assert!(matches!(polled, Poll::Ready(Ok(n)) if n == bytes) || bytes == 0);
            assert!(Pin::new(&mut batched).poll_flush(&mut cx).is_ready());
        };
        let mut arrived = async || {
            let mut read = vec![0; 1024 * 1024];
            let mut read = ReadBuf::new(&mut read);
            poll_fn(|cx| {
                // What is not there yet does not come.
                let _pending = Pin::new(&mut theirs).poll_read(cx, &mut read);
                Poll::Ready(())
            })
            .await;
            read.filled().len()
        };
        write(LONG);
        assert_eq!(arrived().await, 0);
        write(0);
        assert_eq!(arrived().await, LONG);
        write(LONG);
        write(LONG);
        write(1);
        assert_eq!(arrived().await, 2 * LONG + 1);
        for _ in 1..enough / LONG {
            write(LONG);
            assert_eq!(arrived().await, 0);
        }
        write(LONG);
        assert_eq!(arrived().await, enough);
    }

    /// What was given to h2 for a stream that is reset is never written, and all others would wait for it.
    #[tokio::test]
    async fn a_flush_that_finds_nothing_new_makes_room_for_others_and_comes_by_itself() {
        let (ours, _theirs) = tokio::io::duplex(1024);
        let shared = Rc::<SharedByStreams>::default();
        let mut batched = Batched::new(ours, false, Rc::clone(&shared));
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        let mut cx = Context::from_waker(&waker);
        assert!(shared.queue.poll_give(LONG, &mut None, &mut cx).is_ready());
        assert!(Pin::new(&mut batched).poll_write(&mut cx, b"other").is_ready());
        assert!(Pin::new(&mut batched).poll_flush(&mut cx).is_ready());
        assert!(shared.queue.is_used());
        yield_now().await;
        assert_eq!(woken.0.load(Relaxed), 1);
        assert!(Pin::new(&mut batched).poll_flush(&mut cx).is_ready());
        assert!(!shared.queue.is_used());
    }

    #[tokio::test]
    async fn however_much_there_is_to_move_others_have_their_turn() {
        let (ours, mut theirs) = tokio::io::duplex(16 * TURN);
        theirs.write_all(&vec![7; 4 * TURN]).await.unwrap();
        let mut batched = Batched::new(ours, true, Rc::default());
        let mut piece = vec![0; LONG];
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        let mut cx = Context::from_waker(&waker);
        let (mut read, mut written) = (0, 0);
        for turn in 1..=4 {
            while Pin::new(&mut batched)
                .poll_read(&mut cx, &mut ReadBuf::new(&mut piece))
                .is_ready()
            {
                read += LONG;
                assert!(read <= turn * TURN);
            }
            assert_eq!(read, turn * TURN);
            // Not yet: the runtime looks for events first.
            assert_eq!(woken.0.load(Relaxed), turn - 1);
            yield_now().await;
            assert_eq!(woken.0.load(Relaxed), turn);
        }
        for turn in 1..=4 {
            while Pin::new(&mut batched).poll_write(&mut cx, &piece).is_ready() {
                written += LONG;
                assert!(written <= turn * TURN);
            }
            assert_eq!(written, turn * TURN);
            yield_now().await;
            assert_eq!(woken.0.load(Relaxed), 4 + turn);
        }
    }

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    #[tokio::test]
    async fn bytes_arrive_whole_and_in_order_through_a_pipe_that_is_often_full() {
        for (pipe, write, read) in
            [(1_000, 20_000, 9), (100_000, 20_000, 70_000), (9_000, 70_000, 8_192)]
        {
            let (ours, theirs) = tokio::io::duplex(pipe);
            let (mut ours, mut theirs) = (
                Batched::new(ours, false, Rc::default()),
                Batched::new(theirs, false, Rc::default()),
            );
            let all: Vec<u8> = (0..300_000_u32).map(|n| (n / 7) as u8 ^ (n >> 9) as u8).collect();
            let writing = async {
                for (i, part) in all.chunks(write).enumerate() {
                    ours.write_all(&part[..part.len() / 3]).await.unwrap();
                    ours.write_all(&part[part.len() / 3..]).await.unwrap();
                    if i % 3 == 0 {
                        ours.flush().await.unwrap();
                    }
                }
                ours.shutdown().await.unwrap();
            };
            let reading = async {
                let (mut got, mut part) = (Vec::new(), vec![0; read]);
                loop {
                    match theirs.read(&mut part).await.unwrap() {
                        0 => return got,
                        n => got.extend_from_slice(&part[..n]),
                    }
                }
            };
            let ((), got) = tokio::join!(writing, reading);
            assert!(got == all, "{} of {} bytes through {pipe}", got.len(), all.len());
        }
    }
}
