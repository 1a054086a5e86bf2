//! What the server's side of HTTP/2 says first, in one piece.
//!
//! h2 writes its settings and flushes; then it reads the client's, which have often come by then, writes
//! its window and its consent, and flushes once more. Each flush is a TLS record, a system call and
//! a packet, for every connection.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// `PRI * HTTP/2.0...` (RFC 9113 section 3.4), which h2 reads by itself, before any frame.
const PREFACE: usize = 24;

/// Holds back what is written before the client's preface has been read, until the flush after that or
/// until there is nothing to read: a client may wait for the server's first words.
pub struct HoldUntilPreface<T> {
    io: T,
    /// Of the preface.
    unread: usize,
    held: Vec<u8>,
}

impl<T> HoldUntilPreface<T> {
    pub fn new(io: T) -> Self {
        Self { io, unread: PREFACE, held: Vec::new() }
    }

    fn holds(&self) -> bool {
        self.unread > 0 || !self.held.is_empty()
    }
}

impl<T: AsyncWrite + Unpin> HoldUntilPreface<T> {
    #[inline]
    fn poll_release(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.held.capacity() {
            0 => Poll::Ready(Ok(())),
            _ => self.poll_write_held(cx),
        }
    }

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

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for HoldUntilPreface<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.unread == 0 {
            return Pin::new(&mut self.io).poll_read(cx, buf);
        }
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(cx, buf);
        self.unread = self.unread.saturating_sub(buf.filled().len() - before);
        if polled.is_pending() {
            ready!(self.poll_release(cx))?;
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
        }
        polled
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for HoldUntilPreface<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.holds() {
            self.held.extend_from_slice(buf);
            return Poll::Ready(Ok(buf.len()));
        }
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.holds() {
            let first = bufs.iter().find(|buf| !buf.is_empty());
            return self.poll_write(cx, first.map_or(&[][..], |buf| buf));
        }
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.unread > 0 {
            return Poll::Ready(Ok(()));
        }
        ready!(self.poll_release(cx))?;
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_release(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use bytes::Bytes;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    const HELLO: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    const SETTINGS: u8 = 4;
    const WINDOW_UPDATE: u8 = 8;

    /// Counts writes.
    struct Counted {
        io: DuplexStream,
        writes: Rc<Cell<usize>>,
    }

    impl AsyncRead for Counted {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Pin::new(&mut self.io).poll_read(cx, buf)
        }
    }

    impl AsyncWrite for Counted {
        fn poll_write(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.writes.set(self.writes.get() + 1);
            Pin::new(&mut self.io).poll_write(cx, buf)
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.io).poll_flush(cx)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.io).poll_shutdown(cx)
        }
    }

    async fn handshake<T: AsyncRead + AsyncWrite + Unpin>(
        io: T,
    ) -> h2::server::Connection<HoldUntilPreface<T>, Bytes> {
        let mut builder = h2::server::Builder::new();
        builder.initial_connection_window_size(1024 * 1024);
        builder.handshake(HoldUntilPreface::new(io)).await.unwrap()
    }

    /// The type of the next frame, and whether it is an acknowledgement.
    async fn frame(io: &mut DuplexStream) -> (u8, bool) {
        let mut head = [0; 9];
        io.read_exact(&mut head).await.unwrap();
        let mut rest = vec![0; usize::from(u16::from_be_bytes([head[1], head[2]]))];
        io.read_exact(&mut rest).await.unwrap();
        (head[3], head[4] == 1)
    }

    #[tokio::test]
    async fn what_is_said_first_leaves_in_one_piece() {
        let (mut ours, theirs) = duplex(1024);
        ours.write_all(HELLO).await.unwrap();
        let writes = Rc::new(Cell::new(0));
        let counted = Counted { io: theirs, writes: Rc::clone(&writes) };
        let mut server = handshake(counted).await;
        assert!(futures::poll!(std::future::poll_fn(|cx| server.poll_accept(cx))).is_pending());
        assert_eq!(frame(&mut ours).await, (SETTINGS, false));
        assert_eq!(frame(&mut ours).await, (SETTINGS, true));
        assert_eq!(frame(&mut ours).await, (WINDOW_UPDATE, false));
        assert_eq!(writes.get(), 1);
    }

    #[tokio::test]
    async fn a_client_that_waits_for_the_first_words_gets_them() {
        for early in [0, 10, 24] {
            let (mut ours, theirs) = duplex(1024);
            let serving = tokio::spawn(async move {
                let mut server = handshake(theirs).await;
                while server.accept().await.is_some() {}
            });
            ours.write_all(&HELLO[..early]).await.unwrap();
            assert_eq!(frame(&mut ours).await, (SETTINGS, false), "{early}");
            ours.write_all(&HELLO[early..]).await.unwrap();
            while frame(&mut ours).await != (SETTINGS, true) {}
            drop(ours);
            serving.await.unwrap();
        }
    }
}
