//! The authority in the store: roots with their keys, and under which of them is issued.
//!
//! One document, replaced whole, so that a step of a rotation has either happened or not. A damaged one
//! stops the start: a new root in its place would be trusted by nobody.

use std::io;
use std::sync::Arc;

use outrigger_core::identity::TrustDomain;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};

use super::root::{Root, RootId};
use crate::store::{Document, Store, StoreError, Version, update};

const ROOTS: &str = "ca/roots.json";
const FORMAT: u32 = 1;
/// Where proxies' operators take the roots from.
const BUNDLE: &str = "trust-bundle.pem";

#[derive(Serialize, Deserialize)]
struct SavedTrust {
    format: u32,
    trust_domain: String,
    issuing: String,
    roots: Vec<SavedRoot>,
}

#[derive(Serialize, Deserialize)]
struct SavedRoot {
    certificate: String,
    key: Option<String>,
}

/// What is in force, or was when the last process ended.
#[derive(Debug)]
pub(super) struct StoredTrust {
    pub(super) roots: Vec<Arc<Root>>,
    pub(super) issuing: RootId,
    pub(super) version: Version,
}

pub(super) fn roots() -> Document {
    Document::secret(ROOTS)
}

pub(super) fn read(store: &dyn Store, domain: &TrustDomain) -> io::Result<Option<StoredTrust>> {
    let Some(stored) = store.read(&roots())? else { return Ok(None) };
    let shown = store.place(&roots());
    let wrong = |problem: String| io::Error::new(io::ErrorKind::InvalidData, problem);
    let saved: SavedTrust = serde_json::from_slice(&stored.bytes)
        .map_err(|error| wrong(format!("{shown} is damaged ({error}): restore it from a copy")))?;
    if saved.format != FORMAT {
        return Err(wrong(format!("{shown} was written by another version of this program")));
    }
    if saved.trust_domain != domain.as_str() {
        return Err(wrong(format!(
            "{shown} is for the trust domain {}, and --trust-domain says {domain}",
            saved.trust_domain
        )));
    }
    let mut roots = Vec::new();
    for root in saved.roots {
        let certificate = CertificateDer::from_pem_slice(root.certificate.as_bytes())
            .map_err(|error| error.to_string())
            .and_then(|certificate| Root::new(certificate, root.key));
        let damaged = |problem| wrong(format!("{shown} holds a certificate that {problem}"));
        roots.push(Arc::new(certificate.map_err(damaged)?));
    }
    let issuing = RootId::parse(&saved.issuing).filter(|id| roots.iter().any(|r| r.id == *id));
    let issuing =
        issuing.ok_or_else(|| wrong(format!("{shown} names an issuing root it lacks")))?;
    Ok(Some(StoredTrust { roots, issuing, version: stored.version }))
}

/// Writes what is in force, if nobody else has written since `expected`.
pub(super) fn write(
    store: &dyn Store,
    domain: &TrustDomain,
    roots: &[Arc<Root>],
    issuing: RootId,
    expected: Option<&Version>,
) -> Result<Version, StoreError> {
    let saved = SavedTrust {
        format: FORMAT,
        trust_domain: domain.to_string(),
        issuing: issuing.full(),
        roots: roots
            .iter()
            .map(|root| SavedRoot { certificate: root.pem(), key: root.key.clone() })
            .collect(),
    };
    let document = self::roots();
    let bytes = serde_json::to_vec_pretty(&saved)
        .map_err(|error| StoreError::Io { place: store.place(&document), error: error.into() })?;
    store.write(&document, &bytes, expected)
}

/// Writes the roots for anyone who starts proxies.
pub(super) fn write_bundle(store: &dyn Store, roots: &[Arc<Root>]) -> Result<(), StoreError> {
    let pem: String = roots.iter().map(|root| root.pem()).collect();
    let changed =
        |before: Option<&[u8]>| (before != Some(pem.as_bytes())).then(|| pem.clone().into_bytes());
    update(store, &Document::public(BUNDLE), changed).map(drop)
}
