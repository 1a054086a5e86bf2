//! Opening a TCP connection within a limit, and saying why it failed.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};
use std::time::Duration;

use outrigger_core::reason::Reason;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::metrics::{Metrics, add};

/// How often the kernel probes a silent connection, and how long it waits for what was sent to be
/// acknowledged. Probing in HTTP/2 would cost a lock and a clock reading per frame.
const PROBE: Duration = Duration::from_secs(10);
const GONE: Duration = Duration::from_secs(20);

/// Nothing was sent: another endpoint may be tried.
#[derive(Clone, Debug)]
pub struct ConnectError {
    pub reason: Reason,
    pub detail: Arc<str>,
}

/// A connection that this proxy opened, counted while it lives.
pub struct Opened {
    pub stream: TcpStream,
    _count: Count,
}

struct Count(Arc<Metrics>);

impl Drop for Count {
    fn drop(&mut self) {
        self.0.gauges.upstream_connections_open.fetch_sub(1, Relaxed);
    }
}

pub async fn connect(
    address: SocketAddr,
    limit: Duration,
    metrics: &Arc<Metrics>,
) -> Result<Opened, ConnectError> {
    let stream = match tokio::time::timeout(limit, TcpStream::connect(address)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            let detail = format!("{address}: {error}").into();
            return Err(ConnectError { reason: Reason::ConnectFailed, detail });
        }
        Err(_) => {
            let detail = format!("{address}: no answer in {limit:?}").into();
            return Err(ConnectError { reason: Reason::ConnectTimeout, detail });
        }
    };
    // Without them small writes wait for the peer's acknowledgement, and a host that vanished is
    // noticed late; a failure costs only that.
    let _ = stream.set_nodelay(true);
    let socket = SockRef::from(&stream);
    let _ = socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(PROBE).with_interval(PROBE));
    let _ = socket.set_tcp_user_timeout(Some(GONE));
    add(&metrics.gauges.upstream_connections_total, 1);
    metrics.gauges.upstream_connections_open.fetch_add(1, Relaxed);
    Ok(Opened { stream, _count: Count(Arc::clone(metrics)) })
}

impl AsyncRead for Opened {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Opened {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
