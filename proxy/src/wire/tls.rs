//! A TLS connection whose handshake is over, read and written in large pieces.
//!
//! rustls asks a socket for 4 KiB at a time, so that each record of 16 KiB would take five system calls. Here a
//! read takes what its caller has room for, into memory that all connections of a thread share: an idle connection
//! has no buffer. What was read beyond that room, a part of 64 KiB at most, waits with the connection.

use std::cell::RefCell;
use std::io::{self, BufRead, IoSlice, Write};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use rustls::Connection;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Bytes of one read, at least: a whole record, whatever the caller has room for (RFC 8446 section 5.2).
const MIN_READ: usize = 16 * 1024 + 256 + 5;
/// And at most.
const MAX_READ: usize = 64 * 1024;
/// Bytes that are encrypted and not yet written: what `streams::batched` collects, with its frame.
const MAX_UNWRITTEN: usize = 272 * 1024;

thread_local! {
    /// Where bytes lie between the socket and rustls.
    static READ: RefCell<Box<[u8]>> = RefCell::new(vec![0; MAX_READ].into());
}

/// Either side of a TLS connection, after its handshake.
pub struct TlsStream {
    tcp: TcpStream,
    session: Connection,
    /// Read from the socket before there was room for it.
    read_ahead: Bytes,
    /// What the next read fails with: bytes before it were good.
    failed: Option<io::Error>,
    closed: bool,
    /// Bytes that the socket has taken.
    written: u64,
}

impl TlsStream {
    pub fn new(tcp: TcpStream, session: impl Into<Connection>) -> Self {
        let mut session = session.into();
        session.set_buffer_limit(Some(MAX_UNWRITTEN));
        Self { tcp, session, read_ahead: Bytes::new(), failed: None, closed: false, written: 0 }
    }

    pub fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    /// Bytes that the socket has taken; those of the handshake do not count.
    pub fn written(&self) -> u64 {
        self.written
    }

    pub fn session(&self) -> &Connection {
        &self.session
    }

    /// Reads once from the socket and decrypts as much as there is room for; the rest is kept.
    fn poll_socket(&mut self, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        READ.with_borrow_mut(|memory| {
            let room = out.remaining().clamp(MIN_READ, MAX_READ);
            let mut read = ReadBuf::new(&mut memory[..room]);
            ready!(Pin::new(&mut self.tcp).poll_read(cx, &mut read))?;
            let mut read = read.filled();
            if read.is_empty() {
                // rustls is told of the end, and tells a proper one from a connection that was cut.
                self.session.read_tls(&mut read)?;
            }
            self.decrypt(cx, &mut read, out);
            if !read.is_empty() {
                self.read_ahead = Bytes::copy_from_slice(read);
            }
            Poll::Ready(Ok(()))
        })
    }

    /// Decrypts until nothing is left or there is no more room.
    fn decrypt(&mut self, cx: &mut Context<'_>, read: &mut &[u8], out: &mut ReadBuf<'_>) {
        while out.remaining() > 0 && !read.is_empty() {
            // What is decrypted is taken first: rustls reads on only then.
            match self.session.read_tls(read) {
                Ok(1..) => {}
                // The peer has ended its half: what follows is nobody's.
                Ok(0) => {
                    *read = &[];
                    return;
                }
                Err(error) => return self.fail(error, read),
            }
            if let Err(error) = self.session.process_new_packets() {
                // The peer is told why, as far as it takes that at once.
                let _told = self.poll_write_records(cx);
                return self.fail(io::Error::new(io::ErrorKind::InvalidData, error), read);
            }
            if self.take(out).is_err() {
                // It comes again when the next read asks for more.
                return;
            }
        }
    }

    /// Nothing that follows is of use.
    fn fail(&mut self, error: io::Error, read: &mut &[u8]) {
        self.failed = Some(error);
        *read = &[];
    }

    /// Takes what is decrypted; true: the peer has ended its half properly.
    fn take(&mut self, out: &mut ReadBuf<'_>) -> io::Result<bool> {
        let mut reader = self.session.reader();
        while out.remaining() > 0 {
            let n = match reader.fill_buf() {
                Ok([]) => return Ok(true),
                Ok(plain) => {
                    let n = plain.len().min(out.remaining());
                    out.put_slice(&plain[..n]);
                    n
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            };
            reader.consume(n);
        }
        Ok(false)
    }

    /// Writes what is encrypted.
    fn poll_write_records(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.session.wants_write() {
            let mut socket = Socket { tcp: &mut self.tcp, cx };
            match self.session.write_tls(&mut socket) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(n) => self.written = self.written.wrapping_add(n as u64),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for TlsStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = out.filled().len();
        loop {
            let taken = this.take(out);
            if out.filled().len() > before || out.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
            if taken? {
                return Poll::Ready(Ok(()));
            }
            if let Some(error) = this.failed.take() {
                return Poll::Ready(Err(error));
            }
            if this.read_ahead.is_empty() {
                ready!(this.poll_socket(cx, out))?;
            } else {
                let mut ahead = std::mem::take(&mut this.read_ahead);
                let mut rest = &ahead[..];
                this.decrypt(cx, &mut rest, out);
                let left = rest.len();
                ahead.advance(ahead.len() - left);
                if left > 0 {
                    this.read_ahead = ahead;
                }
            }
        }
    }
}

impl AsyncWrite for TlsStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if bufs.iter().all(|buf| buf.is_empty()) {
            return Poll::Ready(Ok(0));
        }
        loop {
            // In whole records across the pieces; they go out with a flush, or when rustls holds as much as it may.
            let written = this.session.writer().write_vectored(bufs)?;
            if written > 0 {
                return Poll::Ready(Ok(written));
            }
            ready!(this.poll_write_records(cx))?;
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_write_records(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !std::mem::replace(&mut this.closed, true) {
            this.session.send_close_notify();
        }
        ready!(this.poll_write_records(cx))?;
        Poll::Ready(match ready!(Pin::new(&mut this.tcp).poll_shutdown(cx)) {
            // The peer has gone already.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
            shut => shut,
        })
    }
}

/// The socket as rustls writes to it.
struct Socket<'a, 'b> {
    tcp: &'a mut TcpStream,
    cx: &'a mut Context<'b>,
}

impl Write for Socket<'_, '_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(buf)])
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        match Pin::new(&mut *self.tcp).poll_write_vectored(self.cx, bufs) {
            Poll::Ready(written) => written,
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
