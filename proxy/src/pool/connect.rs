//! Opening a connection within a limit, with TLS where the other side must prove who it is, and
//! saying why it failed.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};
use std::time::Duration;

use outrigger_core::reason::Reason;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client;

use super::{Opening, PoolKey, Wire};
use crate::metrics::{Metrics, add};
use crate::tls::Expected;
use crate::tls::handshake::{self, Proof, Refused};

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
    stream: Stream,
    /// Who is at the other end, where that was asked for.
    pub proof: Option<Proof>,
    _count: Count,
}

enum Stream {
    Tcp(TcpStream),
    Tls(Box<client::TlsStream<TcpStream>>),
    Memory(DuplexStream),
}

struct Count(Arc<Metrics>);

impl Drop for Count {
    fn drop(&mut self) {
        self.0.gauges.upstream_connections_open.fetch_sub(1, Relaxed);
    }
}

/// In plaintext: to an app, or to a proxy in a mesh without identities.
pub async fn connect(address: SocketAddr, opening: &Opening) -> Result<Opened, ConnectError> {
    let stream = match opening.memory.get() {
        None => Stream::Tcp(dial(address, opening.config.connect_timeout).await?),
        Some(network) => Stream::Memory(network(address)),
    };
    Ok(Opened::new(stream, None, &opening.metrics))
}

/// To what `key` says, no other proxy: with TLS to what lies outside and asks for it.
pub async fn connect_to(key: PoolKey, opening: &Opening) -> Result<Opened, ConnectError> {
    connect_outside(key.address, key.expected, Some(key.wire), opening).await
}

/// The same; `wire` is none for bytes that are not looked into.
pub async fn connect_outside(
    address: SocketAddr,
    expected: Expected,
    wire: Option<Wire>,
    opening: &Opening,
) -> Result<Opened, ConnectError> {
    let Some(outside) = expected.named_outside() else { return connect(address, opening).await };
    let limit = opening.config.connect_timeout;
    let stream = dial(address, limit).await?;
    let connecting = tokio::time::timeout(limit, outside.connect(&opening.pace, stream, wire));
    let connected = connecting.await.unwrap_or_else(|_| Err("no handshake in time".to_owned()));
    let stream = connected.map_err(|why| {
        let (reason, detail) = (Reason::UpstreamTlsFailed, format!("{address}: {why}").into());
        ConnectError { reason, detail }
    })?;
    Ok(Opened::new(Stream::Tls(stream), None, &opening.metrics))
}

/// To another proxy, which must prove to be whom `expected` names.
pub async fn connect_hop(
    address: SocketAddr,
    expected: Expected,
    opening: &Opening,
) -> Result<Opened, ConnectError> {
    let refuse =
        |reason, why: &str| ConnectError { reason, detail: format!("{address}: {why}").into() };
    let (identity, id) = match (&opening.identity, expected.id()) {
        (None, None) => return connect(address, opening).await,
        (Some(identity), Some(id)) => (identity, id),
        (Some(_), None) => {
            let why = "the control plane names no identity for this endpoint's proxy";
            return Err(refuse(Reason::UpstreamTlsFailed, why));
        }
        (None, Some(_)) => {
            let why = "this proxy runs without identity and the endpoint's proxy has one";
            return Err(refuse(Reason::IdentityUnavailable, why));
        }
    };
    let limit = opening.config.connect_timeout;
    // Known before anything is dialled.
    identity.current().map_err(|why| refuse(Reason::IdentityUnavailable, &why))?;
    loop {
        let stream = dial(address, limit).await?;
        let pace = &opening.pace;
        match handshake::connect(identity, pace, stream, address, &id, limit).await {
            Ok((stream, proof)) => {
                return Ok(Opened::new(Stream::Tls(stream), Some(proof), &opening.metrics));
            }
            // At most once: the ticket that led here is gone.
            Err(Refused::Stale) => {}
            Err(Refused::For(failed)) => return Err(refuse(failed.reason, &failed.detail)),
        }
    }
}

async fn dial(address: SocketAddr, limit: Duration) -> Result<TcpStream, ConnectError> {
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
    Ok(stream)
}

impl Opened {
    fn new(stream: Stream, proof: Option<Proof>, metrics: &Arc<Metrics>) -> Self {
        add(&metrics.gauges.upstream_connections_total, 1);
        metrics.gauges.upstream_connections_open.fetch_add(1, Relaxed);
        Self { stream, proof, _count: Count(Arc::clone(metrics)) }
    }
}

impl AsyncRead for Opened {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Memory(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Opened {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Stream::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Stream::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
            Stream::Memory(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Stream::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Stream::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Stream::Memory(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Stream::Tcp(stream) => stream.is_write_vectored(),
            Stream::Tls(stream) => stream.is_write_vectored(),
            Stream::Memory(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Memory(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Memory(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
