//! Opening a connection within a limit, with TLS where the other side must prove who it is, and
//! saying why it failed.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use outrigger_core::reason::Reason;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

use crate::base::local::reaches;
use crate::base::refusal::Refusal;
use crate::observe::metrics::{Metrics, add};
use crate::observe::record::micros;
use crate::tls::Expected;
use crate::tls::handshake::{self, ConnectRefused, Proof};
use crate::upstream::pool::{Connector, PoolKey};
use crate::wire::Wire;
use crate::wire::io::{Transport, delegate_io};

/// How often the kernel probes a silent connection. Probing in HTTP/2 would cost a lock and a clock reading
/// per frame.
const PROBE: Duration = Duration::from_secs(10);
/// How long the kernel waits for another proxy to acknowledge what was sent: it reads whatever comes, so that
/// one that does not has gone. Apps may pause for longer without being gone, and to the kernel a full buffer
/// of a peer that pauses is the same.
const GONE: Duration = Duration::from_secs(20);

/// How long an address has for itself before the next one is tried beside it (RFC 8305 section 8).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);
/// Connections that won a race and wait at one time, and for how long: the racing request comes at once.
const MAX_RACED: usize = 16;
const RACED_FOR: Duration = Duration::from_secs(1);

/// Nothing was sent: another endpoint may be tried.
#[derive(Clone, Debug)]
pub struct ConnectError {
    pub reason: Reason,
    pub detail: Arc<str>,
}

/// A connection that this proxy opened, counted while it lives.
pub struct OpenedConnection {
    transport: Transport,
    /// Who is at the other end, where that was asked for.
    pub proof: Option<Proof>,
    /// Microseconds of its TLS handshake; 0 without one.
    pub tls: u32,
    count: OpenCount,
}

delegate_io!(OpenedConnection, transport);

/// Counts an open connection until it is dropped.
pub struct OpenCount(Arc<Metrics>);

impl Drop for OpenCount {
    fn drop(&mut self) {
        self.0.gauges.upstream_connections_open.fetch_sub(1, Relaxed);
    }
}

/// In plaintext, to an app.
pub async fn connect(
    address: SocketAddr,
    opening: &Connector,
) -> Result<OpenedConnection, ConnectError> {
    refuse_own(address, opening, false)?;
    connect_plain(address, opening, opening.config.app_gone).await
}

async fn connect_plain(
    address: SocketAddr,
    opening: &Connector,
    gone: Option<Duration>,
) -> Result<OpenedConnection, ConnectError> {
    let stream = match opening.memory.get() {
        None => Transport::Tcp(dial(address, opening, gone).await?),
        Some(network) => Transport::Memory(network(address)),
    };
    Ok(OpenedConnection::new(stream, None, &opening.metrics))
}

/// To what `key` says, no other proxy: with TLS to what lies outside and asks for it.
pub async fn connect_to(
    key: PoolKey,
    opening: &Connector,
) -> Result<OpenedConnection, ConnectError> {
    connect_outside(key.address, key.expected, Some(key.wire), opening).await
}

/// The same; `wire` is none for bytes that are not looked into.
pub async fn connect_outside(
    address: SocketAddr,
    expected: Expected,
    wire: Option<Wire>,
    opening: &Connector,
) -> Result<OpenedConnection, ConnectError> {
    let Some(outside) = expected.named_outside() else { return connect(address, opening).await };
    refuse_own(address, opening, false)?;
    let limit = opening.config.connect_timeout;
    let stream = dial(address, opening, opening.config.app_gone).await?;
    let began = Instant::now();
    let connecting = tokio::time::timeout(limit, outside.connect(&opening.pace, stream, wire));
    let connected =
        connecting.await.unwrap_or_else(|_| Err("the TLS handshake timed out".to_owned()));
    let stream = connected.map_err(|why| {
        let (reason, detail) = (Reason::UpstreamTlsFailed, format!("{address}: {why}").into());
        ConnectError { reason, detail }
    })?;
    let opened = OpenedConnection::new(Transport::Tls(stream), None, &opening.metrics);
    Ok(OpenedConnection { tls: micros(began.elapsed()), ..opened })
}

/// To another proxy, which must prove to be whom `expected` names.
pub async fn connect_hop(
    address: SocketAddr,
    expected: Expected,
    opening: &Connector,
) -> Result<OpenedConnection, ConnectError> {
    refuse_own(address, opening, true)?;
    let refuse =
        |reason, why: &str| ConnectError { reason, detail: format!("{address}: {why}").into() };
    let (identity, id) = match (&opening.identity, expected.id()) {
        (None, None) => return connect_plain(address, opening, Some(GONE)).await,
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
        let stream = dial(address, opening, Some(GONE)).await?;
        let (pace, began) = (&opening.pace, Instant::now());
        match handshake::connect(identity, pace, stream, address, &id, limit).await {
            Ok((stream, proof)) => {
                let opened =
                    OpenedConnection::new(Transport::Tls(stream), Some(proof), &opening.metrics);
                return Ok(OpenedConnection { tls: micros(began.elapsed()), ..opened });
            }
            // At most once: the ticket that led here is gone.
            Err(ConnectRefused::Stale) => {}
            Err(ConnectRefused::For(failed)) => return Err(refuse(failed.reason, &failed.detail)),
        }
    }
}

/// A connection to this proxy itself would go round for ever. `hop`: as another proxy, of which one may be the
/// app's own.
fn refuse_own(address: SocketAddr, opening: &Connector, hop: bool) -> Result<(), ConnectError> {
    let config = &opening.config;
    let mut own = config.own_entrances.iter().chain((!hop).then_some(&config.own_inbound));
    if opening.memory.get().is_none() && own.any(|listener| reaches(*listener, address)) {
        let detail = format!("{address} is this proxy itself").into();
        return Err(ConnectError { reason: Reason::Loop, detail });
    }
    Ok(())
}

/// Connections that won a race and wait to be used, few and not for long.
#[derive(Default)]
pub struct RacedConnections(RefCell<Vec<(Instant, SocketAddr, TcpStream)>>);

impl RacedConnections {
    fn put(&self, address: SocketAddr, stream: TcpStream) {
        let now = Instant::now();
        self.sweep(now);
        let mut all = self.0.borrow_mut();
        if all.len() < MAX_RACED {
            all.push((now, address, stream));
        }
    }

    fn take(&self, address: SocketAddr) -> Option<TcpStream> {
        let mut all = self.0.borrow_mut();
        let at = all.iter().position(|(_, raced, _)| *raced == address)?;
        Some(all.swap_remove(at).2)
    }

    /// Closes those that nobody came for.
    pub fn sweep(&self, now: Instant) {
        self.0.borrow_mut().retain(|(at, ..)| now.saturating_duration_since(*at) < RACED_FOR);
    }
}

/// Of several addresses of one name the first that takes a connection, which the next dial of it gets.
/// The error is that of the last one.
pub async fn race(
    addresses: &[SocketAddr],
    opening: &Connector,
) -> Result<SocketAddr, ConnectError> {
    let (address, stream) =
        first_of(addresses, |address| dial_new(address, opening, opening.config.app_gone)).await?;
    opening.raced.put(address, stream);
    Ok(address)
}

/// Tries each next address when the one before has failed, or has not answered for a moment (RFC 8305
/// section 5).
async fn first_of<T, F: Future<Output = Result<T, ConnectError>>>(
    addresses: &[SocketAddr],
    dial: impl Fn(SocketAddr) -> F,
) -> Result<(SocketAddr, T), ConnectError> {
    let mut left = addresses.iter().copied();
    let mut dials = FuturesUnordered::new();
    let mut last = ConnectError { reason: Reason::DnsError, detail: "no address".into() };
    loop {
        match left.next() {
            Some(address) => {
                let dialling = dial(address);
                dials.push(async move { (address, dialling.await) });
            }
            None if dials.is_empty() => return Err(last),
            None => {}
        }
        let ended = match left.len() {
            0 => dials.next().await,
            _ => tokio::time::timeout(ATTEMPT_DELAY, dials.next()).await.unwrap_or_default(),
        };
        match ended {
            Some((address, Ok(stream))) => return Ok((address, stream)),
            Some((_, Err(error))) => last = error,
            None => {}
        }
    }
}

/// `gone`: how long the kernel waits for what was sent to be acknowledged; none: as it likes.
async fn dial(
    address: SocketAddr,
    opening: &Connector,
    gone: Option<Duration>,
) -> Result<TcpStream, ConnectError> {
    match opening.raced.take(address) {
        Some(stream) => Ok(stream),
        None => dial_new(address, opening, gone).await,
    }
}

async fn dial_new(
    address: SocketAddr,
    opening: &Connector,
    gone: Option<Duration>,
) -> Result<TcpStream, ConnectError> {
    let limit = opening.config.connect_timeout;
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
    let _ = socket.set_tcp_user_timeout(gone);
    Ok(stream)
}

impl OpenedConnection {
    fn new(transport: Transport, proof: Option<Proof>, metrics: &Arc<Metrics>) -> Self {
        add(&metrics.gauges.upstream_connections_total, 1);
        metrics.gauges.upstream_connections_open.fetch_add(1, Relaxed);
        Self { transport, proof, tls: 0, count: OpenCount(Arc::clone(metrics)) }
    }

    /// Whether it writes only when it is flushed, or holds as much as it may.
    pub fn holds(&self) -> bool {
        self.transport.holds()
    }

    /// For bytes that are not looked into.
    pub fn into_parts(self) -> (Transport, OpenCount) {
        (self.transport, self.count)
    }
}

impl From<ConnectError> for Refusal {
    fn from(error: ConnectError) -> Self {
        Self::new(error.reason, error.detail.to_string())
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::rc::Rc;

    use clap::Parser;

    use tokio::io::AsyncWriteExt;
    use tokio::runtime::{Builder, LocalOptions};

    use super::*;
    use crate::base::settings::Settings;
    use crate::tls::identity::Identity;
    use crate::tls::testing::{Ca, Leaf, bundle, id};
    use crate::tls::unix_now;
    use crate::upstream::pool::Pools;

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    /// Which of some addresses wins, and after how long. Of a port below 10 nothing is ever heard, one
    /// below 20 refuses, others take the connection.
    async fn winner(ports: &[u16]) -> (Result<u16, Reason>, Duration) {
        let addresses: Vec<_> = ports.iter().copied().map(address).collect();
        let began = Instant::now();
        let won = first_of(&addresses, |address| async move {
            match address.port() {
                ..10 => pending().await,
                10..20 => {
                    let detail = address.to_string().into();
                    Err(ConnectError { reason: Reason::ConnectFailed, detail })
                }
                _ => Ok(()),
            }
        });
        let won = won.await.map(|(address, ())| address.port()).map_err(|error| error.reason);
        (won, began.elapsed())
    }

    #[tokio::test]
    async fn of_several_addresses_one_that_works_is_used_soon() {
        for (ports, want) in [
            (&[80, 81][..], Ok(80)),
            (&[10, 80], Ok(80)),
            (&[10, 11, 12, 80], Ok(80)),
            (&[10, 11], Err(Reason::ConnectFailed)),
            (&[], Err(Reason::DnsError)),
        ] {
            let (won, took) = winner(ports).await;
            assert_eq!(won, want, "{ports:?}");
            assert!(took < ATTEMPT_DELAY, "{ports:?}: {took:?}");
        }
        let (won, took) = winner(&[1, 10, 80]).await;
        assert_eq!(won, Ok(80), "the first one is silent");
        assert!(took >= ATTEMPT_DELAY && took < ATTEMPT_DELAY * 4, "{took:?}");
    }

    /// How long the kernel waits for the other side to take what was sent; none: as it likes.
    fn gone(opened: Result<OpenedConnection, ConnectError>) -> Option<Duration> {
        let opened = opened.unwrap();
        let stream = match &opened.transport {
            Transport::Tcp(stream) => stream,
            Transport::Tls(stream) => stream.tcp(),
            Transport::Memory(_) | Transport::Tunnel(_) => panic!("no socket"),
        };
        SockRef::from(stream).tcp_user_timeout().unwrap()
    }

    #[tokio::test]
    async fn an_app_may_pause_for_longer_than_another_proxy() {
        let listener = tokio::net::TcpListener::bind(address(0)).await.unwrap();
        let at = listener.local_addr().unwrap();
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        // Some time after exchanges that stand still have been ended, and said why.
        for (idle, app) in [("5m", seconds(310)), ("15s", seconds(25)), ("0s", None)] {
            let flags = ["outrigger-proxy", "--stream-idle-timeout", idle];
            let metrics = Arc::new(Metrics::new(1));
            let pools = Pools::new(&Settings::parse_from(flags), metrics, None, Rc::default());
            let opening = pools.opening();
            assert_eq!(gone(connect(at, opening).await), app, "{idle}");
            let bytes = connect_outside(at, Expected::NONE, None, opening).await;
            assert_eq!(gone(bytes), app, "{idle}");
            race(&[at], opening).await.unwrap();
            assert_eq!(gone(connect(at, opening).await), app, "{idle}: of several addresses");
            let hop = connect_hop(at, Expected::NONE, opening).await;
            assert_eq!(gone(hop), Some(GONE), "{idle}: another proxy reads whatever comes");
        }
    }

    #[test]
    fn another_proxy_that_proves_its_identity_may_pause_no_longer() {
        let ca = Ca::new("root");
        let identity = |account: &str| {
            let identity = Identity::testing("bank", account);
            let (key, chain) = ca.issue(Leaf::of(id(account).as_str()));
            identity.install(key, chain, bundle(&[&ca]), unix_now()).unwrap();
            Arc::new(identity)
        };
        let settings = Settings::parse_from(["outrigger-proxy"]);
        let metrics = Arc::new(Metrics::new(1));
        let pools = Pools::new(&settings, metrics, Some(identity("shop")), Rc::default());
        let orders = identity("orders");
        let opened = async {
            let listener = tokio::net::TcpListener::bind(address(0)).await.unwrap();
            let at = listener.local_addr().unwrap();
            let called = async {
                let (stream, _) = listener.accept().await.unwrap();
                let limit = Duration::from_secs(5);
                let accepted = handshake::accept(&orders, &pools.opening.pace, stream, limit).await;
                let (mut stream, _) = accepted.unwrap();
                // What HTTP/2 says first.
                stream.write_all(b"settings").await.unwrap();
                stream.flush().await.unwrap();
                stream
            };
            let expected = Expected::of(Some(&id("orders")));
            futures::join!(called, connect_hop(at, expected, pools.opening())).1
        };
        let mut builder = Builder::new_current_thread();
        let runtime = builder.enable_all().build_local(LocalOptions::default()).unwrap();
        assert_eq!(gone(runtime.block_on(opened)), Some(GONE));
    }

    #[tokio::test]
    async fn a_connection_that_won_is_used_once_and_closed_if_nobody_comes() {
        let listener = tokio::net::TcpListener::bind(address(0)).await.unwrap();
        let at = listener.local_addr().unwrap();
        let raced = RacedConnections::default();
        raced.put(at, TcpStream::connect(at).await.unwrap());
        assert!(raced.take(address(1)).is_none());
        assert!(raced.take(at).is_some());
        assert!(raced.take(at).is_none());
        raced.put(at, TcpStream::connect(at).await.unwrap());
        raced.sweep(Instant::now().checked_add(RACED_FOR).unwrap());
        assert!(raced.take(at).is_none());
    }
}
