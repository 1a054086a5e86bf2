//! Connections of the gRPC port: TLS, who is at the other end, and when a connection has to end.
//!
//! With identity in the mesh every connection is TLS 1.3. A client without a certificate is let in
//! for one call only, [`CERTIFY`]. A connection ends in order (its streams are told, then GOAWAY)
//! when its client's certificate ends, is no longer trusted, or has been followed by a newer one
//! under another root, so that the proxy comes back with what it has now.

mod tls;

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use outrigger_core::identity::SpiffeId;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tonic::Status;
use tonic::codegen::Service as _;
use tonic::service::Routes;

use crate::ca::Authority;
use crate::ca::ledger::Connected;
use crate::ca::verify::Verified;
use crate::metrics::Metrics;

pub use tls::Tls;

/// The one call that is served without a client certificate.
pub const CERTIFY: &str = "/outrigger.identity.v1.Identity/Certify";

/// A connection is asked whether it lives, and given up after the timeout: until then a proxy that has
/// vanished holds its name.
const KEEPALIVE: Duration = Duration::from_secs(5);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Streams of one connection: a proxy has two or three.
const MAX_STREAMS: u32 = 128;
/// Bytes of a request's headers; the token is the largest.
const MAX_HEADERS: u32 = 16 * 1024;
/// A handshake that takes longer is not one.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Handshakes at once: each costs a millisecond of a processor.
const MAX_HANDSHAKES: usize = 256;
/// A client without a certificate has this long to ask for one.
const ANONYMOUS: Duration = Duration::from_secs(60);
/// How often it is looked at whether a client is still to be trusted.
const LOOK: Duration = Duration::from_secs(1);
/// How long a connection may take to end after it was told to.
const CLOSE: Duration = Duration::from_secs(2);
/// Pause when the system has no more sockets.
const EXHAUSTED: Duration = Duration::from_millis(100);

/// What is known of the connection that a request came by; every request carries it.
#[derive(Clone, Debug)]
pub struct Connection {
    pub peer: IpAddr,
    caller: ConnectionCaller,
    ending: watch::Receiver<Option<&'static str>>,
}

#[derive(Clone, Debug)]
enum ConnectionCaller {
    /// The mesh runs without identities.
    Plain,
    /// TLS without a client certificate.
    Anonymous,
    Known(Arc<Connected>),
}

impl Connection {
    /// Of a request that came through [`serve`].
    pub fn of<T>(request: &tonic::Request<T>) -> Result<Self, Status> {
        let connection = request.extensions().get::<Self>();
        connection.cloned().ok_or_else(|| Status::internal("the connection is not known"))
    }

    /// Who the caller has proven to be; `None` only in a mesh without identities.
    pub fn identity(&self) -> Result<Option<&SpiffeId>, Status> {
        match &self.caller {
            ConnectionCaller::Plain => Ok(None),
            ConnectionCaller::Known(connected) => Ok(Some(&connected.client.id)),
            ConnectionCaller::Anonymous => Err(Status::unauthenticated(
                "a client certificate is required: without one only Identity/Certify is served",
            )),
        }
    }

    pub fn client(&self) -> Option<&Verified> {
        self.connected().map(|connected| &connected.client)
    }

    pub fn connected(&self) -> Option<&Arc<Connected>> {
        match &self.caller {
            ConnectionCaller::Known(connected) => Some(connected),
            ConnectionCaller::Plain | ConnectionCaller::Anonymous => None,
        }
    }

    /// Completes with the reason when the connection has to end. A connection that ends by itself
    /// is noticed by its streams.
    pub async fn ended(mut self) -> Status {
        let told = self.ending.wait_for(Option::is_some).await.ok().and_then(|why| *why);
        match told {
            Some(why) => Status::unavailable(why),
            None => std::future::pending().await,
        }
    }
}

/// Accepts connections until told to stop, and returns when all of them have ended.
pub async fn serve(
    listener: TcpListener,
    routes: Routes,
    tls: Option<Tls>,
    metrics: Arc<Metrics>,
    mut stopping: watch::Receiver<bool>,
) {
    let handshakes = Arc::new(Semaphore::new(MAX_HANDSHAKES));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stopping.wait_for(|stop| *stop) => break,
            Some(_) = connections.join_next() => continue,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "could not accept a connection");
                tokio::time::sleep(EXHAUSTED).await;
                continue;
            }
        };
        // Without this a response waits for the acknowledgement of the one before: 40 ms each.
        let _ = stream.set_nodelay(true);
        let (routes, stopping) = (routes.clone(), stopping.clone());
        match &tls {
            None => drop(connections.spawn(plain(stream, peer, routes, stopping))),
            Some(tls) => {
                let secured = Secured {
                    tls: tls.clone(),
                    handshakes: handshakes.clone(),
                    metrics: metrics.clone(),
                };
                drop(connections.spawn(secured.run(stream, peer, routes, stopping)));
            }
        }
    }
    while connections.join_next().await.is_some() {}
}

async fn plain(
    stream: TcpStream,
    peer: SocketAddr,
    routes: Routes,
    stopping: watch::Receiver<bool>,
) {
    exchange(stream, peer, ConnectionCaller::Plain, routes, stopped(stopping)).await;
}

struct Secured {
    tls: Tls,
    handshakes: Arc<Semaphore>,
    metrics: Arc<Metrics>,
}

impl Secured {
    async fn run(
        self,
        stream: TcpStream,
        peer: SocketAddr,
        routes: Routes,
        stopping: watch::Receiver<bool>,
    ) {
        let handshake = async {
            let _turn = self.handshakes.acquire().await;
            self.tls.accept(stream).await
        };
        let accepted = match tokio::time::timeout(HANDSHAKE, handshake).await {
            Ok(accepted) => accepted,
            Err(_) => Err("it took too long".to_owned()),
        };
        let (stream, client) = match accepted {
            Ok(accepted) => accepted,
            Err(problem) => {
                self.metrics.handshakes_failed.inc();
                tracing::info!(%peer, problem, "a TLS handshake failed");
                return;
            }
        };
        let authority = self.tls.authority.clone();
        match client {
            None => {
                let end = async {
                    tokio::select! {
                        why = stopped(stopping) => why,
                        () = tokio::time::sleep(ANONYMOUS) => "no client certificate was shown",
                    }
                };
                exchange(stream, peer, ConnectionCaller::Anonymous, routes, end).await;
            }
            Some((client, chain)) => {
                let connected =
                    Arc::new(authority.ledger.connect(client, peer.ip().to_canonical()));
                let end = async {
                    tokio::select! {
                        why = stopped(stopping) => why,
                        why = untrusted(&authority, &connected, &chain) => why,
                    }
                };
                exchange(stream, peer, ConnectionCaller::Known(connected.clone()), routes, end)
                    .await;
            }
        }
    }
}

async fn stopped(mut stopping: watch::Receiver<bool>) -> &'static str {
    // An error means that the server was dropped.
    let _ = stopping.wait_for(|stop| *stop).await;
    "the control plane is shutting down"
}

/// Completes when a client should not be trusted any longer.
async fn untrusted(
    authority: &Authority,
    connected: &Connected,
    chain: &[rustls_pki_types::CertificateDer<'static>],
) -> &'static str {
    let mut changes = authority.changes();
    loop {
        tokio::select! {
            // An error means that the server was dropped.
            _ = changes.changed() => {
                if authority.verify(chain).is_err() {
                    return "the certificate's root is no longer trusted: connect with a new one";
                }
            }
            () = tokio::time::sleep(LOOK) => {}
        }
        if connected.client.not_after <= SystemTime::now() {
            return "the certificate has expired: connect with a new one";
        }
        if connected.is_superseded() {
            return "there is a newer certificate issued under another root: connect with it";
        }
    }
}

/// Serves one connection until it ends or has to.
async fn exchange<I>(
    io: I,
    peer: SocketAddr,
    caller: ConnectionCaller,
    routes: Routes,
    end: impl Future<Output = &'static str>,
) where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (told, ending) = watch::channel(None);
    let connection = Connection { peer: peer.ip().to_canonical(), caller, ending };
    let service = hyper::service::service_fn(move |request: http::Request<Incoming>| {
        answer(routes.clone(), connection.clone(), request)
    });
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADERS);
    let mut served = pin!(builder.serve_connection(TokioIo::new(io), service));
    tokio::select! {
        result = served.as_mut() => {
            if let Err(error) = result {
                tracing::debug!(%peer, %error, "a connection broke");
            }
            return;
        }
        why = end => {
            tracing::debug!(%peer, why, "a connection is told to end");
            told.send_replace(Some(why));
        }
    }
    served.as_mut().graceful_shutdown();
    // What does not end in time is cut.
    let _ = tokio::time::timeout(CLOSE, served).await;
}

async fn answer(
    mut routes: Routes,
    connection: Connection,
    mut request: http::Request<Incoming>,
) -> Result<http::Response<tonic::body::Body>, Infallible> {
    if request.uri().path() != CERTIFY
        && let Err(status) = connection.identity()
    {
        return Ok(status.into_http());
    }
    request.extensions_mut().insert(connection);
    routes.call(request).await
}
