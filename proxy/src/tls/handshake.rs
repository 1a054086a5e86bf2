//! The two ends of a handshake: from a TCP connection to one whose peer has proved who it is.
//!
//! Whatever the handshake itself has found, the peer's chain is judged once more when it is over, by
//! the bundle and clock of that moment: a resumed session proves only what was true when it began.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use outrigger_core::identity::SpiffeId;
use outrigger_core::reason::Reason;
use rustls::pki_types::{CertificateDer, DnsName, ServerName};
use rustls::{CommonState, HandshakeKind};
use tokio::io::AsyncBufReadExt;
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, client};

use crate::observe::metrics::add;
use crate::tls::credentials::{ClientCredentials, Credentials};
use crate::tls::identity::Identity;
use crate::tls::pace::Pace;
use crate::tls::unix_now;
use crate::tls::verify::{Role, Trust, Untrusted, VerifiedChain};
use crate::wire::tls::TlsStream;

/// Why a handshake failed that was not complete within its limit.
const TIMED_OUT: &str = "the TLS handshake timed out";

/// Who is at the other end, and for how long that may be trusted.
#[derive(Clone, Debug)]
pub struct Proof {
    pub id: SpiffeId,
    /// The first end of either side's certificate, in seconds since 1970.
    pub until: u64,
    role: Role,
    chain: Arc<[CertificateDer<'static>]>,
}

impl Proof {
    /// Whether the chain still holds under another bundle. Its end is a matter of its own: see
    /// [`Proof::until`].
    pub fn holds(&self, trust: &Trust) -> bool {
        trust.verify(&self.chain, self.role, self.until).is_ok()
    }
}

/// Why there is no connection.
#[derive(Debug)]
pub struct HandshakeFailure {
    pub reason: Reason,
    pub detail: String,
}

impl HandshakeFailure {
    fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into() }
    }
}

/// The server side.
pub async fn accept(
    identity: &Identity,
    pace: &Rc<Pace>,
    stream: TcpStream,
    limit: Duration,
) -> Result<(Box<TlsStream>, Proof), HandshakeFailure> {
    let own = identity
        .current()
        .map_err(|why| HandshakeFailure::new(Reason::IdentityUnavailable, why))?;
    let result = async {
        let accepting = TlsAcceptor::from(Arc::clone(&own.server)).accept(stream);
        let stream = tokio::time::timeout(limit, pace.run(accepting))
            .await
            .map_err(|_| HandshakeFailure::new(Reason::TlsHandshakeFailed, TIMED_OUT))?
            .map_err(|e| HandshakeFailure::new(Reason::TlsHandshakeFailed, describe(&e).1))?;
        let (tcp, session) = stream.into_inner();
        let proof = prove(identity, &own, &session, Role::Client)
            .map_err(|e| HandshakeFailure::new(Reason::TlsHandshakeFailed, e.to_string()))?;
        Ok((Box::new(TlsStream::new(tcp, session)), proof))
    }
    .await;
    let counts = identity.counts();
    match &result {
        Ok((stream, _)) if resumed(stream.session()) => add(&counts.accepted_resumed, 1),
        Ok(_) => add(&counts.accepted_full, 1),
        Err(_) => add(&counts.accept_failed, 1),
    }
    result
}

/// The client side: succeeds only when the server side, too, has accepted this proxy.
pub async fn connect(
    identity: &Identity,
    pace: &Rc<Pace>,
    stream: TcpStream,
    address: SocketAddr,
    expected: &SpiffeId,
    limit: Duration,
) -> Result<(Box<TlsStream>, Proof), ConnectRefused> {
    let failed =
        |reason, detail: String| ConnectRefused::For(HandshakeFailure::new(reason, detail));
    let own = identity.current().map_err(|why| failed(Reason::IdentityUnavailable, why))?;
    let caller =
        own.caller(expected).map_err(|e| failed(Reason::IdentityUnavailable, e.to_string()))?;
    let name = filed_under(address);
    let counts = identity.counts();
    let result = tokio::time::timeout(limit, async {
        let connector = TlsConnector::from(Arc::clone(&caller.config));
        let stream = pace.run(connector.connect(name.clone(), stream)).await.map_err(|e| {
            let (reason, why) = describe(&e);
            failed(reason, why)
        })?;
        finish(identity, &own, &caller, stream, &name).await
    })
    .await
    .unwrap_or_else(|_| Err(failed(Reason::UpstreamTlsFailed, TIMED_OUT.to_owned())));
    match &result {
        Ok((stream, _)) if resumed(stream.session()) => add(&counts.connected_resumed, 1),
        Ok(_) => add(&counts.connected_full, 1),
        Err(ConnectRefused::Stale) => {}
        Err(ConnectRefused::For(_)) => add(&counts.connect_failed, 1),
    }
    result
}

/// Why a server side was not reached.
#[derive(Debug)]
pub enum ConnectRefused {
    For(HandshakeFailure),
    /// A resumed session whose proof no longer holds, forgotten by now: a new connection begins from
    /// nothing.
    Stale,
}

async fn finish(
    identity: &Identity,
    own: &Credentials,
    caller: &ClientCredentials,
    mut stream: client::TlsStream<TcpStream>,
    name: &ServerName<'static>,
) -> Result<(Box<TlsStream>, Proof), ConnectRefused> {
    let state = stream.get_ref().1;
    let was_resumed = resumed(state);
    let proof = prove(identity, own, state, Role::Server)
        .and_then(|proof| caller.demand.check(&proof.id).map(|()| proof));
    let proof = match proof {
        Ok(proof) => proof,
        Err(_) if was_resumed => {
            caller.sessions.forget(name);
            return Err(ConnectRefused::Stale);
        }
        Err(untrusted) => {
            let (reason, why) = (reason_of(&untrusted), untrusted.to_string());
            return Err(ConnectRefused::For(HandshakeFailure::new(reason, why)));
        }
    };
    caller.sessions.proved(name, proof.until);
    // In TLS 1.3 this side is done before the other has judged its certificate. The first words of
    // HTTP/2 are the other's consent; without waiting for them a refusal would look like a request
    // that got lost.
    match stream.fill_buf().await {
        Ok([]) => Err(ConnectRefused::For(HandshakeFailure::new(
            Reason::UpstreamTlsFailed,
            "the called proxy closed the connection after the handshake",
        ))),
        Ok(_) => {
            let (tcp, session) = stream.into_inner();
            Ok((Box::new(TlsStream::new(tcp, session)), proof))
        }
        Err(error) => {
            caller.sessions.forget(name);
            let (reason, why) = describe(&error);
            Err(ConnectRefused::For(HandshakeFailure::new(reason, why)))
        }
    }
}

fn resumed(state: &CommonState) -> bool {
    state.handshake_kind() == Some(HandshakeKind::Resumed)
}

/// Judges the peer's chain by the bundle in force now.
fn prove(
    identity: &Identity,
    own: &Credentials,
    state: &CommonState,
    role: Role,
) -> Result<Proof, Untrusted> {
    let chain = state.peer_certificates().ok_or(Untrusted::Missing)?;
    let trust = identity.trust().unwrap_or_else(|| Arc::clone(&own.trust));
    let VerifiedChain { id, not_after, .. } = trust.verify(chain, role, unix_now())?;
    Ok(Proof { id, until: not_after.min(own.not_after), role, chain: chain.into() })
}

/// The name that tickets of an address are filed under. It is never sent.
fn filed_under(address: SocketAddr) -> ServerName<'static> {
    let ip = match address.ip() {
        IpAddr::V4(ip) => u128::from(u32::from(ip)),
        IpAddr::V6(ip) => u128::from(ip),
    };
    let name = format!("p{}-{ip:x}.hop", address.port());
    match DnsName::try_from(name) {
        Ok(name) => ServerName::DnsName(name),
        Err(_) => ServerName::IpAddress(address.ip().into()),
    }
}

fn reason_of(untrusted: &Untrusted) -> Reason {
    match untrusted {
        Untrusted::OtherIdentity { .. } => Reason::UpstreamIdentityMismatch,
        _ => Reason::UpstreamTlsFailed,
    }
}

/// What went wrong, in our words; the reason is the client side's.
pub fn describe(error: &io::Error) -> (Reason, String) {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let why = match tls {
        None if error.kind() == io::ErrorKind::UnexpectedEof => {
            "the other side closed the connection during the handshake".to_owned()
        }
        None => error.to_string(),
        Some(rustls::Error::NoCertificatesPresented) => "no client certificate".to_owned(),
        Some(rustls::Error::AlertReceived(alert)) => {
            format!("the other side refused this proxy: {alert:?}")
        }
        Some(rustls::Error::InvalidCertificate(problem)) => match Untrusted::of(problem) {
            Some(untrusted) => return (reason_of(&untrusted), untrusted.to_string()),
            None => problem.to_string(),
        },
        Some(other) => other.to_string(),
    };
    (Reason::UpstreamTlsFailed, why)
}

#[cfg(test)]
mod tests;
