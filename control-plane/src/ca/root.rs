//! Root certificates: what the mesh trusts, and under which of them is issued.

use std::fmt;
use std::time::{Duration, SystemTime};

use outrigger_core::identity::TrustDomain;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose,
    SanType,
};
use rustls_pki_types::{CertificateDer, TrustAnchor};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

/// How long a self-made root lives: longer than anybody wants to think about it, while a rotation
/// costs nothing.
const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// A new certificate is valid from a little before now on, for clocks that are behind.
pub(super) const BACKDATED: Duration = Duration::from_secs(30);
/// Hexadecimal digits by which a root is shown.
const SHOWN: usize = 16;

/// SHA-256 of a root certificate in DER.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RootId([u8; 32]);

/// A certificate that chains may end at.
pub struct Root {
    pub id: RootId,
    pub certificate: CertificateDer<'static>,
    pub(super) anchor: TrustAnchor<'static>,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
    /// In PEM. A root that only others issue under has none here.
    pub(super) key: Option<String>,
}

impl Root {
    /// Makes a new root and its key.
    pub(super) fn generate(trust_domain: &TrustDomain, now: SystemTime) -> Result<Self, String> {
        let key = KeyPair::generate().map_err(|error| format!("no key could be made: {error}"))?;
        let mut tag = [0; 4];
        getrandom::fill(&mut tag).map_err(|error| error.to_string())?;
        let mut params = CertificateParams::default();
        let mut name = DistinguishedName::new();
        // Two roots of one mesh must not have the same name.
        name.push(DnType::CommonName, format!("{trust_domain} root {}", hex(&tag)));
        params.distinguished_name = name;
        let uri = format!("spiffe://{trust_domain}").try_into();
        params.subject_alt_names =
            vec![SanType::URI(uri.map_err(|e: rcgen::Error| e.to_string())?)];
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = OffsetDateTime::from(now - BACKDATED);
        params.not_after = OffsetDateTime::from(now + ROOT_LIFETIME);
        let certificate = params.self_signed(&key).map_err(|error| error.to_string())?;
        Self::new(certificate.der().clone(), Some(key.serialize_pem()))
    }

    /// Reads a root certificate in DER.
    pub(super) fn new(
        certificate: CertificateDer<'static>,
        key: Option<String>,
    ) -> Result<Self, String> {
        let (not_before, not_after) = authority_validity(&certificate)?;
        let anchor = webpki::anchor_from_trusted_cert(&certificate)
            .map_err(|error| format!("cannot be a root: {error}"))?
            .to_owned();
        let id = RootId(Sha256::digest(&certificate).into());
        Ok(Self { id, anchor, not_before, not_after, key, certificate })
    }

    pub fn has_key(&self) -> bool {
        self.key.is_some()
    }

    pub fn pem(&self) -> String {
        let block = pem::Pem::new("CERTIFICATE", self.certificate.to_vec());
        pem::encode_config(&block, pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF))
    }
}

impl fmt::Debug for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Root({})", self.id)
    }
}

impl RootId {
    pub fn bytes(&self) -> [u8; 32] {
        self.0
    }

    /// All 64 hexadecimal digits.
    pub fn full(&self) -> String {
        hex(&self.0)
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut bytes = [0; 32];
        if text.len() != 2 * bytes.len() || !text.is_ascii() {
            return None;
        }
        for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        Some(Self(bytes))
    }
}

impl fmt::Display for RootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.full()[..SHOWN])
    }
}

impl fmt::Debug for RootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// From when and until when the certificate of an authority holds.
pub(super) fn authority_validity(
    certificate: &CertificateDer<'_>,
) -> Result<(SystemTime, SystemTime), String> {
    let (rest, parsed) = X509Certificate::from_der(certificate)
        .map_err(|_| "is not an X.509 certificate".to_owned())?;
    if !rest.is_empty() {
        return Err("has bytes behind its end".to_owned());
    }
    if !parsed.is_ca() {
        return Err("is not the certificate of an authority (CA:TRUE is missing)".to_owned());
    }
    let validity = parsed.validity();
    Ok((validity.not_before.to_datetime().into(), validity.not_after.to_datetime().into()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
