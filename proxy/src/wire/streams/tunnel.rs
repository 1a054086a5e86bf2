//! Bytes on an HTTP/2 stream that has stopped being HTTP (RFC 9113 section 8.5, RFC 8441).

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h2::{RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::wire::streams::prelude::Reading;

/// Most bytes that one write takes.
const WRITE: usize = 16 * 1024;

/// The two halves of a stream as one. Dropping it before both have ended resets the stream.
pub struct Tunnel<D: Buf> {
    send: SendStream<D>,
    receive: Inlet,
    /// Received, and not read yet.
    read: Bytes,
}

/// Where the bytes of a tunnel come from.
pub enum Inlet {
    Stream(RecvStream),
    /// They follow the body of a request.
    Behind(Reading),
}

impl<D: Buf> Tunnel<D> {
    pub fn new(send: SendStream<D>, receive: Inlet) -> Self {
        Self { send, receive, read: Bytes::new() }
    }
}

impl<D: Buf + Unpin> AsyncRead for Tunnel<D> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Inlet::Behind(reading) = &mut self.receive {
            let (stream, read) = ready!(reading.poll_rest(cx)).map_err(io::Error::other)?;
            (self.receive, self.read) = (Inlet::Stream(stream), read);
            // It was given back as it came.
            if !self.read.is_empty() {
                let n = self.read.len().min(buf.remaining());
                buf.put_slice(&self.read.split_to(n));
                return Poll::Ready(Ok(()));
            }
        }
        let this = &mut *self;
        let Inlet::Stream(stream) = &mut this.receive else { return Poll::Pending };
        if this.read.is_empty() {
            loop {
                match ready!(stream.poll_data(cx)) {
                    Some(data) => this.read = data.map_err(io::Error::other)?,
                    None => return Poll::Ready(Ok(())),
                }
                if !this.read.is_empty() {
                    break;
                }
            }
            // One piece at a time is taken: the rest of the window says how many may come.
            let _ended = stream.flow_control().release_capacity(this.read.len());
        }
        let n = this.read.len().min(buf.remaining());
        buf.put_slice(&this.read[..n]);
        this.read.advance(n);
        Poll::Ready(Ok(()))
    }
}

impl<D: Buf + From<Bytes> + Unpin> AsyncWrite for Tunnel<D> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        self.send.reserve_capacity(buf.len().min(WRITE));
        while self.send.capacity() == 0 {
            match ready!(self.send.poll_capacity(cx)) {
                Some(room) => drop(room.map_err(io::Error::other)?),
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            }
        }
        let n = buf.len().min(self.send.capacity()).min(WRITE);
        let data = Bytes::copy_from_slice(&buf[..n]);
        self.send.send_data(data.into(), false).map_err(io::Error::other)?;
        Poll::Ready(Ok(n))
    }

    /// The connection's own task writes.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.send.reserve_capacity(0);
        Poll::Ready(self.send.send_data(Bytes::new().into(), true).map_err(io::Error::other))
    }
}
