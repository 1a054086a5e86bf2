//! The authority on disk: roots with their keys, and under which of them is issued.
//!
//! One file that only its owner can read, replaced whole, so that a step of a rotation has either
//! happened or not. A damaged file stops the start: a new root in its place would be believed by
//! nobody.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use outrigger_core::identity::TrustDomain;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};

use super::root::{Root, RootId};

/// In the folder `ca` of the state directory.
const FOLDER: &str = "ca";
const FILE: &str = "roots.json";
const FORMAT: u32 = 1;
/// Where proxies' operators take the roots from.
const BUNDLE: &str = "trust-bundle.pem";

#[derive(Serialize, Deserialize)]
struct Saved {
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

/// What was in force when the last process ended.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) roots: Vec<Arc<Root>>,
    pub(super) issuing: RootId,
}

pub(super) fn read(state_dir: &Path, domain: &TrustDomain) -> io::Result<Option<Stored>> {
    let path = state_dir.join(FOLDER).join(FILE);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let shown = path.display();
    let wrong = |problem: String| io::Error::new(io::ErrorKind::InvalidData, problem);
    let saved: Saved = serde_json::from_slice(&bytes)
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
    Ok(Some(Stored { roots, issuing }))
}

pub(super) fn write(
    state_dir: &Path,
    domain: &TrustDomain,
    roots: &[Arc<Root>],
    issuing: RootId,
) -> io::Result<()> {
    let saved = Saved {
        format: FORMAT,
        trust_domain: domain.to_string(),
        issuing: issuing.full(),
        roots: roots
            .iter()
            .map(|root| SavedRoot { certificate: root.pem(), key: root.key.clone() })
            .collect(),
    };
    let folder = state_dir.join(FOLDER);
    DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
    replace(&folder, FILE, &serde_json::to_vec_pretty(&saved)?, 0o600)
}

/// Writes the roots for whoever starts proxies.
pub(super) fn write_bundle(state_dir: &Path, roots: &[Arc<Root>]) -> io::Result<()> {
    let pem: String = roots.iter().map(|root| root.pem()).collect();
    replace(state_dir, BUNDLE, pem.as_bytes(), 0o644)
}

/// Puts a file in the place of another; a crash leaves one of the two, whole.
pub(super) fn replace(folder: &Path, name: &str, bytes: &[u8], mode: u32) -> io::Result<()> {
    let temporary = folder.join(format!("{name}.new"));
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&temporary)?;
    // What was left over by a crash may have other permissions.
    file.set_permissions(Permissions::from_mode(mode))?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, folder.join(name))?;
    File::open(folder)?.sync_all()
}
