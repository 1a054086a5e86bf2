//! The copy of key, chain and bundle that lets a proxy start while the control plane is away. Only
//! its owner may read it; it is replaced whole or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::Bytes;
use outrigger_core::config::TrustBundle;
use outrigger_proto::convert::trust;
use outrigger_proto::mesh;
use prost::Message;
use rustls::pki_types::CertificateDer;
use tracing::warn;

use crate::base::disk::{LatestWriter, decode, encode};

/// Nobody but the owner.
const MODE: u32 = 0o600;

#[derive(Clone, PartialEq, Message)]
pub struct SavedIdentity {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
    #[prost(bytes = "bytes", repeated, tag = "2")]
    chain: Vec<Bytes>,
    #[prost(message, optional, tag = "3")]
    bundle: Option<mesh::TrustBundle>,
    /// When the certificate came, in seconds since 1970.
    #[prost(uint64, tag = "4")]
    pub since: u64,
}

impl SavedIdentity {
    pub fn new(key: &[u8], chain: &[CertificateDer<'_>], bundle: &TrustBundle, since: u64) -> Self {
        Self {
            key: Bytes::copy_from_slice(key),
            chain: chain.iter().map(|der| Bytes::copy_from_slice(der)).collect(),
            bundle: Some(trust::to_wire(bundle)),
            since,
        }
    }

    pub fn parts(self) -> Result<(Vec<u8>, Vec<CertificateDer<'static>>, TrustBundle), String> {
        let bundle = self.bundle.ok_or("it has no trust bundle")?;
        let bundle = trust::from_wire(&bundle).map_err(|e| format!("bundle.{e}"))?;
        let chain = self.chain.iter().map(|der| CertificateDer::from(der.to_vec())).collect();
        Ok((self.key.to_vec(), chain, bundle))
    }
}

/// The file, and the thread that writes it.
pub struct DiskCopy {
    path: PathBuf,
    writer: LatestWriter<SavedIdentity>,
    /// The last copy was written, or was good when it was read.
    good: Arc<AtomicBool>,
}

impl DiskCopy {
    pub fn new(path: PathBuf) -> io::Result<Self> {
        let good = Arc::new(AtomicBool::new(false));
        let (file, is_good) = (path.clone(), Arc::clone(&good));
        let writer = LatestWriter::new("identity", move |kept: SavedIdentity| {
            let stored = store(&file, &kept);
            is_good.store(stored.is_ok(), Relaxed);
            if let Err(error) = stored {
                warn!(path = %file.display(), %error, "cannot keep the identity on disk");
            }
        })?;
        Ok(Self { path, writer, good })
    }

    pub fn store(&self, kept: SavedIdentity) {
        self.writer.put(kept);
    }

    /// None when there is none or it is damaged, which is logged.
    pub fn load(&self) -> Option<SavedIdentity> {
        load(&self.path)
    }

    pub fn is_good(&self) -> bool {
        self.good.load(Relaxed)
    }

    /// Waits until all is written, at most for `limit`; whether it is.
    pub async fn finish(&self, limit: Duration) -> bool {
        self.writer.finish(limit).await && self.is_good()
    }
}

fn store(path: &Path, kept: &SavedIdentity) -> io::Result<()> {
    let new = path.with_extension("new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // Made anew, so that the mode is ours from the first byte on.
    let mut file = OpenOptions::new().write(true).create_new(true).mode(MODE).open(&new)?;
    file.write_all(&encode(kept))?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    match path.parent() {
        Some(dir) => File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

fn load(path: &Path) -> Option<SavedIdentity> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => {
            warn!(path = %path.display(), %error, "cannot read the identity on disk, starting without");
            return None;
        }
    };
    decode(&bytes)
        .inspect_err(|why| warn!(path = %path.display(), why, "cannot use the identity on disk, starting without"))
        .ok()
}
