//! One certificate under one bundle, compiled for both sides of a handshake.
//!
//! Immutable: a renewed certificate or another bundle makes a new one, and every ticket and session
//! goes with the old.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use outrigger_core::identity::SpiffeId;
use rustls::client::Resumption;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::TLS13;
use rustls::{ClientConfig, ServerConfig};
use sha2::{Digest, Sha256};

use crate::base::sync::lock;
use crate::tls::sessions::{Sessions, Tickets};
use crate::tls::verify::{
    ClientVerifier, RequiredIdentity, Role, ServerVerifier, Trust, Untrusted,
};
use crate::tls::{ALPN, provider, unix_now};

/// This proxy's own proof, and whom it trusts.
pub struct Credentials {
    pub id: SpiffeId,
    /// Seconds since 1970.
    pub not_before: u64,
    pub not_after: u64,
    /// SHA-256 of the leaf, which tells one certificate from the next.
    pub leaf: [u8; 32],
    /// SHA-256 of the root that the certificate was issued under; none: under none of the bundle.
    pub root: Option<[u8; 32]>,
    pub trust: Arc<Trust>,
    pub server: Arc<ServerConfig>,
    key: Arc<SingleCertAndKey>,
    callers: Mutex<HashMap<SpiffeId, Arc<ClientCredentials>>>,
}

/// For calling proxies of one identity.
pub struct ClientCredentials {
    pub config: Arc<ClientConfig>,
    pub sessions: Arc<Sessions>,
    pub demand: RequiredIdentity,
}

/// Why a certificate that was issued cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    #[error("the issued certificate: {0}")]
    Certificate(#[from] Untrusted),
    #[error("the issued certificate: {0}")]
    Tls(#[from] rustls::Error),
    #[error("a certificate for {found} was issued where {expected} was asked for")]
    OtherIdentity { found: String, expected: String },
}

impl Credentials {
    /// `id`: the namespace and account that the certificate must be for.
    pub fn new(
        chain: &[CertificateDer<'static>],
        key: PrivateKeyDer<'static>,
        trust: Arc<Trust>,
        id: (&str, &str),
    ) -> Result<Self, Unusable> {
        let leaf = chain.first().ok_or(Untrusted::Missing)?;
        let named = crate::tls::verify::spiffe_id(leaf)?;
        if (named.namespace(), named.service_account()) != id {
            let expected = format!("ns/{}/sa/{}", id.0, id.1);
            return Err(Unusable::OtherIdentity { found: named.to_string(), expected });
        }
        let (not_before, mut not_after) = crate::tls::verify::validity(leaf)?;
        // Of use for as long as it lasts, whatever the bundle says by now: renewal is under way then.
        let verified = trust.verify(chain, Role::Client, unix_now()).ok();
        if let Some(verified) = &verified {
            not_after = verified.not_after;
        }
        let key = CertifiedKey::from_der(chain.to_vec(), key, &provider())?;
        let key = Arc::new(SingleCertAndKey::from(key));
        let verifier = Arc::new(ClientVerifier { trust: Arc::clone(&trust) });
        let mut server = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::<SingleCertAndKey>::clone(&key));
        server.alpn_protocols = alpn();
        // Each connection leaves the ticket of the one that will replace it.
        server.send_tls13_tickets = 1;
        server.ticketer = Arc::new(Tickets::new(not_after)?);
        // Tickets are the only way: nothing of a session stays here.
        server.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        Ok(Self {
            id: named,
            not_before,
            not_after,
            leaf: Sha256::digest(leaf).into(),
            root: verified.map(|verified| verified.root),
            trust,
            server: Arc::new(server),
            key,
            callers: Mutex::default(),
        })
    }

    pub fn ended(&self, now: u64) -> bool {
        now >= self.not_after
    }

    /// The configuration for calling `id`, made on first use.
    pub fn caller(&self, id: &SpiffeId) -> Result<Arc<ClientCredentials>, rustls::Error> {
        let mut callers = lock(&self.callers);
        if let Some(caller) = callers.get(id) {
            return Ok(Arc::clone(caller));
        }
        let demand = RequiredIdentity::Exactly(id.clone());
        let caller =
            Arc::new(ClientCredentials::new(Some(self), Arc::clone(&self.trust), demand, &ALPN)?);
        callers.insert(id.clone(), Arc::clone(&caller));
        Ok(caller)
    }
}

impl ClientCredentials {
    /// `own`: what to answer when asked for a certificate.
    pub fn new(
        own: Option<&Credentials>,
        trust: Arc<Trust>,
        demand: RequiredIdentity,
        alpn: &[&[u8]],
    ) -> Result<Self, rustls::Error> {
        let verifier = ServerVerifier { trust, demand: demand.clone() };
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let sessions = Arc::new(Sessions::new(own.map_or(0, |own| own.not_after)));
        let mut config = match own {
            Some(own) => {
                builder.with_client_cert_resolver(Arc::<SingleCertAndKey>::clone(&own.key))
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        // The name is only what tickets are filed under.
        config.enable_sni = false;
        config.resumption = match own {
            Some(_) => Resumption::store(Arc::<Sessions>::clone(&sessions)),
            None => Resumption::disabled(),
        };
        Ok(Self { config: Arc::new(config), sessions, demand })
    }
}

fn alpn() -> Vec<Vec<u8>> {
    ALPN.iter().map(|name| name.to_vec()).collect()
}
