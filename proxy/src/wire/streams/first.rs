//! A look at the first bytes that the other side of a connection says.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Where a frame has its type (RFC 9113 section 4.1): all types that there are lie below the printable characters.
const FRAME_TYPE: usize = 3;
/// Bytes of what came instead that are shown.
const SHOWN: usize = 60;
/// The kind of the error: nothing else that reads from a connection has it.
pub const NOT_HTTP2: io::ErrorKind = io::ErrorKind::Unsupported;

/// Passes everything on, and fails the first read if `look` does not like what it gave.
pub struct FirstBytes<T, F> {
    io: T,
    look: Option<F>,
}

impl<T, F: FnOnce(&[u8]) -> io::Result<()>> FirstBytes<T, F> {
    pub fn new(io: T, look: F) -> Self {
        Self { io, look: Some(look) }
    }
}

/// Whether a server speaks HTTP/2, by the beginning of its first frame.
///
/// # Errors
/// [`NOT_HTTP2`], which names what came instead.
pub fn is_http2(bytes: &[u8]) -> io::Result<()> {
    let kind = bytes.get(FRAME_TYPE);
    // Fewer bytes are a frame that is still coming.
    if kind.is_none_or(|kind| *kind < b' ') {
        return Ok(());
    }
    let line = bytes.split(|byte| matches!(byte, b'\r' | b'\n')).next().unwrap_or_default();
    let shown = line[..line.len().min(SHOWN)].escape_ascii();
    let what = if bytes.starts_with(b"HTTP/") { "HTTP/1" } else { "something else" };
    let why = format!("it speaks {what} where HTTP/2 is expected: its first words are \"{shown}\"");
    Err(io::Error::new(NOT_HTTP2, why))
}

impl<T, F> AsyncRead for FirstBytes<T, F>
where
    T: AsyncRead + Unpin,
    F: FnOnce(&[u8]) -> io::Result<()> + Unpin,
{
    #[inline]
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.look.is_none() {
            return Pin::new(&mut self.io).poll_read(cx, into);
        }
        let before = into.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, into))?;
        let new = &into.filled()[before..];
        Poll::Ready(match self.look.take_if(|_| !new.is_empty()) {
            Some(look) => look(new),
            None => Ok(()),
        })
    }
}

impl<T: AsyncWrite + Unpin, F: Unpin> AsyncWrite for FirstBytes<T, F> {
    #[inline]
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    #[inline]
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, pieces)
    }

    #[inline]
    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    #[inline]
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    #[test]
    fn what_is_no_http2_is_shown() {
        assert!(is_http2(&[0, 0, 18, 4, 0, 0, 0, 0, 0]).is_ok());
        assert!(is_http2(&[0, 0]).is_ok(), "still coming");
        assert!(is_http2(&[0, 0, 8, 7, 0, 0, 0, 0, 0]).is_ok(), "it goes away at once");
        let said = |bytes: &[u8]| is_http2(bytes).unwrap_err().to_string();
        let http1 = said(b"HTTP/1.1 400 Bad Request\r\nserver: x\r\n\r\n");
        assert!(
            http1.contains("HTTP/1 where") && http1.ends_with("\"HTTP/1.1 400 Bad Request\""),
            "{http1}"
        );
        let other = said(b"220 mail.example.com \x1b[31m ESMTP\r\n");
        assert!(other.contains("something else") && other.contains("\\x1b[31m"), "{other}");
        assert!(said(&[b'a'; 4_000]).len() < 200);
    }

    #[tokio::test]
    async fn only_the_first_bytes_are_looked_at() {
        let (ours, theirs) = tokio::io::duplex(64);
        let mut stream = FirstBytes::new(ours, is_http2);
        let (_, mut theirs) = tokio::io::split(theirs);
        let write = async {
            use tokio::io::AsyncWriteExt;
            theirs.write_all(&[0, 0, 0, 4]).await.unwrap();
            tokio::task::yield_now().await;
            theirs.write_all(b"HTTP/1.1").await.unwrap();
            theirs.shutdown().await.unwrap();
        };
        let mut read = Vec::new();
        let (_, result) = tokio::join!(write, stream.read_to_end(&mut read));
        assert_eq!(result.unwrap(), 12);
    }
}
