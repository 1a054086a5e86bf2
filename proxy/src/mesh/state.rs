//! The disk copy of the configuration: one directory per proxy instance, locked, checksummed,
//! written atomically.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use prost::Message;
use rustix::fs::{FlockOperation, flock};
use tracing::warn;

use crate::base::disk::{decode, encode};

/// What is worth keeping over a restart.
#[derive(Clone, PartialEq, Message)]
pub struct Saved {
    #[prost(string, repeated, tag = "1")]
    pub wanted: Vec<String>,
    #[prost(message, repeated, tag = "2")]
    pub resources: Vec<SavedResource>,
    /// Every namespace that the mesh was ever said to have.
    #[prost(string, repeated, tag = "3")]
    pub namespaces: Vec<String>,
    /// There were more.
    #[prost(bool, tag = "4")]
    pub more_namespaces: bool,
}

#[derive(Clone, PartialEq, Message)]
pub struct SavedResource {
    #[prost(string, tag = "1")]
    pub type_url: String,
    #[prost(string, tag = "2")]
    pub name: String,
    #[prost(string, tag = "3")]
    pub version: String,
    #[prost(bytes = "bytes", tag = "4")]
    pub value: Bytes,
    #[prost(string, repeated, tag = "5")]
    pub aliases: Vec<String>,
}

pub struct StateDir {
    dir: PathBuf,
    _lock: File,
}

impl StateDir {
    /// Opens and locks the directory, making it where it is missing.
    pub fn open(dir: &Path) -> io::Result<Self> {
        let named =
            |e: io::Error| io::Error::new(e.kind(), format!("--state-dir {}: {e}", dir.display()));
        fs::create_dir_all(dir).map_err(named)?;
        let lock = File::create(dir.join("lock")).map_err(named)?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|_| {
            let why = "another proxy uses it; give each proxy a directory of its own";
            named(io::Error::new(io::ErrorKind::WouldBlock, why))
        })?;
        Ok(Self { dir: dir.to_owned(), _lock: lock })
    }

    /// The last copy. None when there is none or it is damaged, which is logged: starting without it
    /// is better than not starting.
    pub fn load(&self) -> Option<Saved> {
        let path = self.file();
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                warn!(path = %path.display(), %error, "cannot read the disk copy, starting without");
                return None;
            }
        };
        decode(&bytes)
            .inspect_err(|why| warn!(path = %path.display(), why, "cannot use the disk copy, starting without"))
            .ok()
    }

    pub fn store(&self, saved: &Saved) -> io::Result<()> {
        let new = self.dir.join("config.new");
        let mut file = File::create(&new)?;
        file.write_all(&encode(saved))?;
        file.sync_all()?;
        fs::rename(&new, self.file())?;
        File::open(&self.dir)?.sync_all()
    }

    fn file(&self) -> PathBuf {
        self.dir.join("config")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_copy_is_told_from_a_good_one() {
        let saved = Saved { wanted: vec!["a.b:80".to_owned()], ..Saved::default() };
        let good = encode(&saved);
        assert_eq!(decode(&good), Ok(saved));
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert!(decode::<Saved>(&bad).is_err(), "a flip at {at} goes unnoticed");
            assert!(decode::<Saved>(&good[..at]).is_err(), "a cut at {at} goes unnoticed");
        }
    }

    #[test]
    fn a_directory_belongs_to_one_proxy() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path();
        let first = StateDir::open(dir).unwrap();
        assert!(StateDir::open(dir).is_err());
        let saved = Saved { wanted: vec!["a.b:80".to_owned()], ..Saved::default() };
        first.store(&saved).unwrap();
        drop(first);
        assert_eq!(StateDir::open(dir).unwrap().load(), Some(saved));
    }
}
