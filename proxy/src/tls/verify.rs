//! Whether a chain of certificates proves an identity under a bundle of roots, at a time.
//!
//! Pure but for a memo of signatures that were found good: the same bytes under the same roots need
//! no second look, their dates do.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use outrigger_core::config::TrustBundle;
use outrigger_core::error::FieldError;
use outrigger_core::identity::{SpiffeId, TrustDomain};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, PeerIncompatible,
    SignatureScheme,
};
use sha2::{Digest, Sha256};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::base::sync::lock;

/// Chains remembered as good under one bundle; then the memo starts anew.
const MAX_MEMO: usize = 4_096;
/// Certificates looked at in one chain. Ours have two.
const MAX_CHAIN: usize = 8;

/// Why a chain proves nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Untrusted {
    #[error("no certificate")]
    Missing,
    #[error("the certificate cannot be read: {0}")]
    Malformed(String),
    #[error("the certificate expired {} s ago", now.saturating_sub(*not_after))]
    Expired { not_after: u64, now: u64 },
    #[error("the certificate is not valid for another {} s; compare the clocks", not_before.saturating_sub(*now))]
    NotYetValid { not_before: u64, now: u64 },
    #[error("no root of the trust bundle issued the certificate")]
    UnknownRoot,
    #[error("the certificate's usage does not allow this: {0}")]
    Purpose(String),
    #[error("the certificate names {0}, and exactly one URI is allowed")]
    Names(String),
    #[error("the certificate's URI: {0}")]
    NotSpiffe(String),
    #[error("trust domain {found} where {expected} was expected")]
    OtherDomain { found: String, expected: String },
    #[error("{found} where {expected} was expected")]
    OtherIdentity { found: String, expected: String },
}

/// What a good chain proves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedChain {
    pub id: SpiffeId,
    pub not_before: u64,
    /// The first end of any certificate on the way to the root.
    pub not_after: u64,
    /// SHA-256 of the root at its end.
    pub root: [u8; 32],
}

/// Which side the chain came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    Client,
    Server,
}

/// The roots to trust.
pub struct Trust {
    /// None before the first bundle: the file of roots names no trust domain.
    pub domain: Option<TrustDomain>,
    /// SHA-256 of the root that issues now.
    pub issuing: Option<[u8; 32]>,
    anchors: Vec<TrustAnchor<'static>>,
    /// SHA-256 of each root, in the order of `anchors`.
    pub roots: Vec<[u8; 32]>,
    memo: Mutex<HashMap<[u8; 32], VerifiedChain>>,
}

impl Trust {
    pub fn new(bundle: &TrustBundle) -> Result<Self, FieldError> {
        let mut trust = Self::of_roots(bundle.roots.iter().map(Vec::as_slice))?;
        trust.domain = Some(bundle.trust_domain.clone());
        trust.issuing = Some(bundle.issuing_root);
        Ok(trust)
    }

    /// Roots alone, in DER.
    pub fn of_roots<'a>(roots: impl Iterator<Item = &'a [u8]>) -> Result<Self, FieldError> {
        let mut trust = Self {
            domain: None,
            issuing: None,
            anchors: Vec::new(),
            roots: Vec::new(),
            memo: Mutex::default(),
        };
        for (i, root) in roots.enumerate() {
            let der = CertificateDer::from_slice(root);
            let anchor = anchor_from_trusted_cert(&der).map_err(|e| {
                FieldError::at(format!("roots[{i}]"), format!("is not a root certificate: {e}"))
            })?;
            trust.anchors.push(anchor.to_owned());
            trust.roots.push(Sha256::digest(root).into());
        }
        if trust.anchors.is_empty() {
            return Err(FieldError::at("roots", "there is none: nobody could be trusted"));
        }
        Ok(trust)
    }

    /// What `chain` (the leaf first) proves at `now`, in seconds since 1970.
    pub fn verify(
        &self,
        chain: &[CertificateDer<'_>],
        role: Role,
        now: u64,
    ) -> Result<VerifiedChain, Untrusted> {
        let mut hash = Sha256::new();
        hash.update([role as u8]);
        for certificate in chain {
            hash.update((certificate.len() as u64).to_be_bytes());
            hash.update(certificate);
        }
        let key: [u8; 32] = hash.finalize().into();
        let known = lock(&self.memo).get(&key).cloned();
        if let Some(verified) = known {
            return verified.at(now);
        }
        let verified = self.verify_afresh(chain, role, now)?;
        let mut memo = lock(&self.memo);
        if memo.len() >= MAX_MEMO {
            memo.clear();
        }
        memo.insert(key, verified.clone());
        drop(memo);
        verified.at(now)
    }

    fn verify_afresh(
        &self,
        chain: &[CertificateDer<'_>],
        role: Role,
        now: u64,
    ) -> Result<VerifiedChain, Untrusted> {
        let [leaf, intermediates @ ..] = chain else { return Err(Untrusted::Missing) };
        if chain.len() > MAX_CHAIN {
            let why = format!("{} certificates, at most {MAX_CHAIN} are read", chain.len());
            return Err(Untrusted::Malformed(why));
        }
        let end_entity = EndEntityCert::try_from(leaf).map_err(|e| untrusted(e, now))?;
        let usage = match role {
            Role::Client => KeyUsage::client_auth(),
            Role::Server => KeyUsage::server_auth(),
        };
        let path = end_entity
            .verify_for_usage(
                algorithms().all,
                &self.anchors,
                intermediates,
                UnixTime::since_unix_epoch(Duration::from_secs(now)),
                usage,
                None,
                None,
            )
            .map_err(|e| untrusted(e, now))?;
        let at = self.anchors.iter().position(|anchor| std::ptr::eq(anchor, path.anchor()));
        let root = at.and_then(|at| self.roots.get(at)).copied().ok_or(Untrusted::UnknownRoot)?;
        let (not_before, mut not_after) = validity(leaf)?;
        for intermediate in path.intermediate_certificates() {
            not_after = not_after.min(validity(&intermediate.der())?.1);
        }
        let id = spiffe_id(leaf)?;
        if let Some(expected) = &self.domain
            && id.trust_domain() != expected.as_str()
        {
            let found = id.trust_domain().to_owned();
            return Err(Untrusted::OtherDomain { found, expected: expected.to_string() });
        }
        Ok(VerifiedChain { id, not_before, not_after, root })
    }
}

impl VerifiedChain {
    fn at(self, now: u64) -> Result<Self, Untrusted> {
        if now < self.not_before {
            return Err(Untrusted::NotYetValid { not_before: self.not_before, now });
        }
        if now > self.not_after {
            return Err(Untrusted::Expired { not_after: self.not_after, now });
        }
        Ok(self)
    }
}

/// The identity that a certificate names: exactly one URI and nothing else in exactly one
/// subjectAltName extension, of exactly our form.
pub fn spiffe_id(certificate: &[u8]) -> Result<SpiffeId, Untrusted> {
    let certificate = parse(certificate)?;
    let names = certificate
        .subject_alternative_name()
        .map_err(|e| Untrusted::Malformed(format!("subjectAltName: {e}")))?
        .ok_or_else(|| Untrusted::Names("nothing".to_owned()))?;
    match names.value.general_names.as_slice() {
        [GeneralName::URI(uri)] => uri.parse().map_err(|e: FieldError| {
            // What an attacker wrote is shown escaped and never at length.
            let text: String = e.to_string().chars().take(200).collect();
            Untrusted::NotSpiffe(text)
        }),
        [] => Err(Untrusted::Names("nothing".to_owned())),
        [GeneralName::DNSName(_)] => Err(Untrusted::Names("a DNS name".to_owned())),
        [_] => Err(Untrusted::Names("something else".to_owned())),
        many => Err(Untrusted::Names(format!("{} names", many.len()))),
    }
}

/// From and to when a certificate is valid, in seconds since 1970.
pub fn validity(certificate: &[u8]) -> Result<(u64, u64), Untrusted> {
    let certificate = parse(certificate)?;
    let seconds = |time: i64| u64::try_from(time).unwrap_or(0);
    let validity = certificate.validity();
    Ok((seconds(validity.not_before.timestamp()), seconds(validity.not_after.timestamp())))
}

fn parse(der: &[u8]) -> Result<X509Certificate<'_>, Untrusted> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) => Err(Untrusted::Malformed("bytes follow it".to_owned())),
        Err(error) => Err(Untrusted::Malformed(error.to_string())),
    }
}

fn untrusted(error: webpki::Error, now: u64) -> Untrusted {
    use webpki::Error as E;
    match error {
        E::CertExpired { not_after, .. } => {
            Untrusted::Expired { not_after: not_after.as_secs(), now }
        }
        E::CertNotValidYet { not_before, .. } => {
            Untrusted::NotYetValid { not_before: not_before.as_secs(), now }
        }
        // A root of the same name with another key: it is not the issuer.
        E::UnknownIssuer | E::InvalidSignatureForPublicKey => Untrusted::UnknownRoot,
        E::CaUsedAsEndEntity | E::EndEntityUsedAsCa | E::RequiredEkuNotFoundContext(_) => {
            Untrusted::Purpose(error.to_string())
        }
        error => Untrusted::Malformed(error.to_string()),
    }
}

fn algorithms() -> WebPkiSupportedAlgorithms {
    crate::tls::provider().signature_verification_algorithms
}

impl From<Untrusted> for rustls::Error {
    /// The peer hears the kind in its alert where TLS has a word for it.
    fn from(untrusted: Untrusted) -> Self {
        let time = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        Self::InvalidCertificate(match untrusted {
            Untrusted::Expired { not_after, now } => {
                CertificateError::ExpiredContext { time: time(now), not_after: time(not_after) }
            }
            Untrusted::UnknownRoot => CertificateError::UnknownIssuer,
            other => CertificateError::Other(OtherError(Arc::new(other))),
        })
    }
}

impl Untrusted {
    /// The way back, for the words of a log.
    pub fn of(error: &CertificateError) -> Option<Self> {
        match error {
            CertificateError::ExpiredContext { time, not_after } => {
                Some(Self::Expired { not_after: not_after.as_secs(), now: time.as_secs() })
            }
            CertificateError::UnknownIssuer => Some(Self::UnknownRoot),
            CertificateError::Other(OtherError(other)) => other.downcast_ref::<Self>().cloned(),
            _ => None,
        }
    }
}

/// Whom a server side must prove to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequiredIdentity {
    Exactly(SpiffeId),
    /// The control plane of the bundle's trust domain.
    ControlPlane,
}

impl RequiredIdentity {
    pub fn check(&self, id: &SpiffeId) -> Result<(), Untrusted> {
        let expected = match self {
            Self::Exactly(expected) if expected == id => return Ok(()),
            Self::ControlPlane if id.is_control_plane() => return Ok(()),
            Self::Exactly(expected) => expected.to_string(),
            Self::ControlPlane => "the control plane".to_owned(),
        };
        Err(Untrusted::OtherIdentity { found: id.to_string(), expected })
    }
}

/// Judges called proxies, for anyone who calls them.
pub struct ServerVerifier {
    pub trust: Arc<Trust>,
    pub demand: RequiredIdentity,
}

/// Judges callers, for anyone who is called.
pub struct ClientVerifier {
    pub trust: Arc<Trust>,
}

fn joined<'a>(
    leaf: &CertificateDer<'a>,
    intermediates: &[CertificateDer<'a>],
) -> Vec<CertificateDer<'a>> {
    std::iter::once(leaf).chain(intermediates).cloned().collect()
}

impl ServerCertVerifier for ServerVerifier {
    // The name dialled means nothing here: the identity is what counts.
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let chain = joined(end_entity, intermediates);
        let verified = self.trust.verify(&chain, Role::Server, now.as_secs())?;
        self.demand.check(&verified.id)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        algorithms().supported_schemes()
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // Every peer has one certificate: a hint would only cost bytes.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let chain = joined(end_entity, intermediates);
        self.trust.verify(&chain, Role::Client, now.as_secs())?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        algorithms().supported_schemes()
    }
}

impl std::fmt::Debug for ServerVerifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CalledVerifier({:?})", self.demand)
    }
}

impl std::fmt::Debug for ClientVerifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CallerVerifier")
    }
}

#[cfg(test)]
mod tests;
