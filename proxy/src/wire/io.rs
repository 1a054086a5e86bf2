//! An accepted or opened byte stream: bytes already read for detection, then the socket.
//!
//! Counts bytes and notes when the head of an HTTP/1.1 request begins, so that a slow head can be
//! ended without a timer per request. Knows nothing of protocols.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::net::TcpStream;

use crate::wire::tls::TlsStream;
use crate::wire::watch::ConnectionWatch;

/// Where the bytes come from and go to.
pub enum Transport {
    Tcp(TcpStream),
    /// Either side of it.
    Tls(Box<TlsStream>),
    /// The inside of a CONNECT or an upgrade.
    Tunnel(Box<dyn Duplex>),
    /// Without a socket, for who measures or tests this proxy inside of a process.
    Memory(DuplexStream),
}

/// The same for whatever a transport is.
macro_rules! each {
    ($transport:expr, $stream:ident => $call:expr) => {
        match $transport {
            Transport::Tcp($stream) => $call,
            Transport::Tls($stream) => $call,
            Transport::Tunnel($stream) => $call,
            Transport::Memory($stream) => $call,
        }
    };
}

/// Reads and writes of a type are those of one of its fields.
macro_rules! delegate_io {
    ($type:ty, $field:ident) => {
        impl tokio::io::AsyncRead for $type {
            #[inline]
            fn poll_read(
                mut self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
                buf: &mut tokio::io::ReadBuf<'_>,
            ) -> std::task::Poll<std::io::Result<()>> {
                std::pin::Pin::new(&mut self.$field).poll_read(cx, buf)
            }
        }

        impl tokio::io::AsyncWrite for $type {
            #[inline]
            fn poll_write(
                mut self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
                buf: &[u8],
            ) -> std::task::Poll<std::io::Result<usize>> {
                std::pin::Pin::new(&mut self.$field).poll_write(cx, buf)
            }

            #[inline]
            fn poll_write_vectored(
                mut self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
                bufs: &[std::io::IoSlice<'_>],
            ) -> std::task::Poll<std::io::Result<usize>> {
                std::pin::Pin::new(&mut self.$field).poll_write_vectored(cx, bufs)
            }

            #[inline]
            fn is_write_vectored(&self) -> bool {
                self.$field.is_write_vectored()
            }

            #[inline(always)]
            fn poll_flush(
                mut self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
            ) -> std::task::Poll<std::io::Result<()>> {
                std::pin::Pin::new(&mut self.$field).poll_flush(cx)
            }

            #[inline]
            fn poll_shutdown(
                mut self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
            ) -> std::task::Poll<std::io::Result<()>> {
                std::pin::Pin::new(&mut self.$field).poll_shutdown(cx)
            }
        }
    };
}
pub(crate) use delegate_io;

impl AsyncRead for Transport {
    #[inline(always)]
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        each!(self.get_mut(), stream => Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for Transport {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        each!(self.get_mut(), stream => Pin::new(stream).poll_write(cx, buf))
    }

    #[inline(always)]
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(self.get_mut(), stream => Pin::new(stream).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        each!(self, stream => stream.is_write_vectored())
    }

    #[inline(always)]
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            // These keep nothing back, and are asked several times for each request.
            Self::Tcp(_) | Self::Memory(_) => Poll::Ready(Ok(())),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tunnel(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self.get_mut(), stream => Pin::new(stream).poll_shutdown(cx))
    }
}

impl Transport {
    /// Whether it writes only when it is flushed, or holds as much as it may.
    pub fn holds(&self) -> bool {
        matches!(self, Self::Tls(_))
    }

    /// Bytes that have gone to the socket, of a transport that takes more than that.
    #[inline(always)]
    fn written(&self) -> Option<u64> {
        match self {
            Self::Tls(stream) => Some(stream.written()),
            Self::Tcp(_) | Self::Tunnel(_) | Self::Memory(_) => None,
        }
    }
}

/// Bytes both ways.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// A transport with what detection has already taken from it.
pub struct Io {
    read_ahead: Bytes,
    transport: Transport,
    watch: Option<Arc<ConnectionWatch>>,
}

impl Io {
    pub fn new(transport: Transport, read_ahead: Bytes) -> Self {
        Self { read_ahead, transport, watch: None }
    }

    /// Puts back what was read before anything else was.
    pub fn unread(&mut self, bytes: Bytes) {
        if let Some(watch) = &self.watch {
            watch.bytes_arrived();
        }
        self.read_ahead = bytes;
    }

    pub fn tcp(stream: TcpStream) -> Self {
        Self::new(Transport::Tcp(stream), Bytes::new())
    }

    /// How many bytes there are to read, at most one, without taking them; 0: the peer has closed its half.
    /// Pending for ever where a transport does not tell.
    pub fn poll_peek(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        match &mut self.transport {
            _ if !self.read_ahead.is_empty() => Poll::Ready(Ok(1)),
            Transport::Tcp(stream) => stream.poll_peek(cx, &mut ReadBuf::new(&mut [0])),
            Transport::Tls(_) | Transport::Tunnel(_) | Transport::Memory(_) => Poll::Pending,
        }
    }

    /// Whether it writes only when it is flushed, or holds as much as it may.
    pub fn holds(&self) -> bool {
        self.transport.holds()
    }

    /// Whether [`Io::poll_readable`] ever says so.
    pub fn tells_readable(&self) -> bool {
        matches!(self.transport, Transport::Tcp(_))
    }

    /// Waits, without a buffer, until there may be something to read or the peer has gone. Pending for ever where a
    /// transport does not tell.
    pub fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &self.transport {
            _ if !self.read_ahead.is_empty() => Poll::Ready(()),
            // An error shows again at the next read.
            Transport::Tcp(stream) => stream.poll_read_ready(cx).map(drop),
            Transport::Tls(_) | Transport::Tunnel(_) | Transport::Memory(_) => Poll::Pending,
        }
    }

    /// Tells the watch what became of bytes that were offered. `before`: what the transport had written until then.
    #[inline(always)]
    fn wrote<T>(&self, before: u64, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if let Some(watch) = &self.watch {
            let took = match self.transport.written() {
                // To take bytes without writing them says nothing of the peer.
                Some(now) => now != before,
                None => polled.is_ready(),
            };
            if took {
                watch.wrote(true);
            }
            if polled.is_pending() {
                watch.wrote(false);
            }
        }
        polled
    }

    /// Lets `watch` see when bytes arrive.
    #[must_use]
    pub fn watched(mut self, watch: Arc<ConnectionWatch>) -> Self {
        if !self.read_ahead.is_empty() {
            watch.bytes_arrived();
        }
        self.watch = Some(watch);
        self
    }
}

impl AsyncRead for Io {
    #[inline]
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.read_ahead.is_empty() {
            let n = self.read_ahead.len().min(buf.remaining());
            buf.put_slice(&self.read_ahead[..n]);
            self.read_ahead.advance(n);
            if self.read_ahead.is_empty() {
                // Its buffer would stay as long as the connection.
                self.read_ahead = Bytes::new();
            }
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.transport).poll_read(cx, buf);
        if let Some(watch) = &self.watch
            && buf.filled().len() > before
        {
            watch.bytes_arrived();
        }
        polled
    }
}

impl AsyncWrite for Io {
    #[inline]
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let before = self.transport.written().unwrap_or_default();
        let polled = Pin::new(&mut self.transport).poll_write(cx, buf);
        self.wrote(before, polled)
    }

    #[inline]
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let before = self.transport.written().unwrap_or_default();
        let polled = Pin::new(&mut self.transport).poll_write_vectored(cx, bufs);
        self.wrote(before, polled)
    }

    #[inline]
    fn is_write_vectored(&self) -> bool {
        self.transport.is_write_vectored()
    }

    #[inline(always)]
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(before) = self.transport.written() else {
            return Pin::new(&mut self.transport).poll_flush(cx);
        };
        let polled = Pin::new(&mut self.transport).poll_flush(cx);
        self.wrote(before, polled)
    }

    #[inline]
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let before = self.transport.written().unwrap_or_default();
        let polled = Pin::new(&mut self.transport).poll_shutdown(cx);
        self.wrote(before, polled)
    }
}
