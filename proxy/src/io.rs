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

use crate::watch::ConnectionWatch;

/// Where the bytes come from.
pub enum Transport {
    Tcp(TcpStream),
    /// From a caller that has proved who it is.
    Tls(Box<tokio_rustls::server::TlsStream<TcpStream>>),
    /// The inside of a CONNECT or an upgrade.
    Tunnel(Box<dyn Duplex>),
    /// Without a socket, for who measures or tests this proxy inside of a process.
    Memory(DuplexStream),
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

    fn wrote<T>(&self, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if let Some(watch) = &self.watch {
            watch.wrote(polled.is_ready());
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
        let polled = match &mut self.transport {
            Transport::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Transport::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
            Transport::Tunnel(stream) => Pin::new(stream).poll_read(cx, buf),
            Transport::Memory(stream) => Pin::new(stream).poll_read(cx, buf),
        };
        if let Some(watch) = &self.watch
            && buf.filled().len() > before
        {
            watch.bytes_arrived();
        }
        polled
    }
}

impl AsyncWrite for Io {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = match &mut self.transport {
            Transport::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Transport::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
            Transport::Tunnel(stream) => Pin::new(stream).poll_write(cx, buf),
            Transport::Memory(stream) => Pin::new(stream).poll_write(cx, buf),
        };
        self.wrote(polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = match &mut self.transport {
            Transport::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Transport::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Transport::Tunnel(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Transport::Memory(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        };
        self.wrote(polled)
    }

    fn is_write_vectored(&self) -> bool {
        match &self.transport {
            Transport::Tcp(stream) => stream.is_write_vectored(),
            Transport::Tls(stream) => stream.is_write_vectored(),
            Transport::Tunnel(stream) => stream.is_write_vectored(),
            Transport::Memory(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.transport {
            Transport::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Transport::Tls(stream) => Pin::new(stream).poll_flush(cx),
            Transport::Tunnel(stream) => Pin::new(stream).poll_flush(cx),
            Transport::Memory(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.transport {
            Transport::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Transport::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
            Transport::Tunnel(stream) => Pin::new(stream).poll_shutdown(cx),
            Transport::Memory(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
