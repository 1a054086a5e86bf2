//! Whether a chain of certificates holds now, under which root, and whose it is.

use std::time::{SystemTime, UNIX_EPOCH};

use outrigger_core::identity::{SpiffeId, TrustDomain};
use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;

use super::root::{Root, RootId};
use crate::grant::{self, Grant};

/// What a chain proves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    pub id: SpiffeId,
    pub root: RootId,
    /// The leaf's end.
    pub not_after: SystemTime,
    /// What its owner may register.
    pub grant: Grant,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    #[error("there is no certificate")]
    Missing,
    #[error("the certificate has expired")]
    Expired,
    #[error("the certificate is not valid yet: do the clocks differ?")]
    NotYetValid,
    #[error("no root of the trust bundle issued the certificate")]
    UnknownRoot,
    #[error("the certificate is for the trust domain {0}, not for this one")]
    TrustDomain(String),
    #[error("the certificate does not name one workload: {0}")]
    Identity(String),
    #[error("the certificate is invalid: {0}")]
    Invalid(String),
}

/// Verifies a client's chain, the leaf first.
pub fn client(
    chain: &[CertificateDer<'_>],
    trust_domain: &TrustDomain,
    roots: &[std::sync::Arc<Root>],
    now: SystemTime,
) -> Result<Verified, VerifyError> {
    let (leaf, intermediates) = chain.split_first().ok_or(VerifyError::Missing)?;
    let root = path(leaf, intermediates, roots, now)?;
    let (id, not_after, grant) = identity(leaf)?;
    if id.trust_domain() != trust_domain.as_str() {
        return Err(VerifyError::TrustDomain(id.trust_domain().to_owned()));
    }
    Ok(Verified { id, root, not_after, grant })
}

/// The root that the path ends at.
fn path(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    roots: &[std::sync::Arc<Root>],
    now: SystemTime,
) -> Result<RootId, VerifyError> {
    let invalid = |error: webpki::Error| VerifyError::Invalid(error.to_string());
    let leaf = EndEntityCert::try_from(leaf).map_err(invalid)?;
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut problem = VerifyError::UnknownRoot;
    // One root at a time tells exactly which one it was, also when two have the same name.
    for root in roots.iter().filter(|root| root.not_before <= now && now < root.not_after) {
        let anchors = std::slice::from_ref(&root.anchor);
        match leaf.verify_for_usage(
            webpki::ALL_VERIFICATION_ALGS,
            anchors,
            intermediates,
            UnixTime::since_unix_epoch(since),
            KeyUsage::client_auth(),
            None,
            None,
        ) {
            Ok(_) => return Ok(root.id),
            Err(webpki::Error::CertExpired { .. }) => problem = VerifyError::Expired,
            Err(webpki::Error::CertNotValidYet { .. }) => problem = VerifyError::NotYetValid,
            Err(webpki::Error::UnknownIssuer) => {}
            Err(error) if problem == VerifyError::UnknownRoot => problem = invalid(error),
            Err(_) => {}
        }
    }
    Err(problem)
}

/// The one name of a leaf, which must be a URI of the exact form, the leaf's end, and its grant.
fn identity(leaf: &CertificateDer<'_>) -> Result<(SpiffeId, SystemTime, Grant), VerifyError> {
    let (_, parsed) = X509Certificate::from_der(leaf)
        .map_err(|_| VerifyError::Invalid("it is not X.509".to_owned()))?;
    let mut names = Vec::new();
    let mut grant = Grant::default();
    for extension in parsed.extensions() {
        if let ParsedExtension::SubjectAlternativeName(san) = extension.parsed_extension() {
            names.extend(&san.general_names);
        }
        if extension.oid.iter().is_some_and(|parts| parts.eq(grant::OID)) {
            // One that is not understood must not become one that binds nothing.
            grant = Grant::from_extension(extension.value)
                .ok_or_else(|| VerifyError::Invalid("its grant is damaged".to_owned()))?;
        }
    }
    let [GeneralName::URI(uri)] = names[..] else {
        let problem = format!("it has {} names, and exactly one URI is allowed", names.len());
        return Err(VerifyError::Identity(problem));
    };
    let id = uri.parse().map_err(|error| VerifyError::Identity(format!("{error}")))?;
    Ok((id, parsed.validity().not_after.to_datetime().into(), grant))
}
