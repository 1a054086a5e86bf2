//! A store in a directory of one machine: a document is a file.
//!
//! A write is whole: a temporary file, synced, renamed over the old one, and the folder synced. So a reader
//! sees the old content or the new, and needs no lock. Writers take `store.lock` for as long as they compare
//! and rename; the system gives it back when a process dies. A version is a hash of the content, so what
//! people put there by hand, or an older program, has one as well.

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use super::{Document, HeldLease, Store, StoreError, Stored, Version, lease};
use crate::sync::lock;

const LOCK: &str = "store.lock";
const LEASES: &str = "leases";
/// What a file is called until it is whole.
const TEMPORARY: &str = ".new";
/// A writer holds the lock for a few syncs of the disk. One that was stopped in between would hold up all
/// others for ever.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two attempts to lock.
const AGAIN: Duration = Duration::from_millis(2);
/// Files of this age are known by their metadata alone: two changes within one tick of the system's clock
/// can look alike.
const SETTLED: Duration = Duration::from_secs(1);

/// The implementation of [`Store`].
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    /// Threads of this process queue here, other processes at the lock file.
    writing: Mutex<()>,
    known: Mutex<HashMap<String, (DocumentStamp, Version)>>,
}

/// What changes when a file is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct DocumentStamp {
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Directory {
    /// Opens the directory, and makes it if there is none.
    pub fn open(path: &Path) -> io::Result<Self> {
        fs::create_dir_all(path)?;
        Ok(Self {
            path: path.to_owned(),
            writing: Mutex::new(()),
            known: Mutex::new(HashMap::new()),
        })
    }

    fn file(&self, document: &Document) -> PathBuf {
        self.path.join(document.name())
    }

    /// The lock of writers, which ends with the file.
    #[expect(
        clippy::disallowed_methods,
        reason = "the system wakes nobody who waits for a lock with a limit"
    )]
    fn locked(&self) -> io::Result<File> {
        let path = self.path.join(LOCK);
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(false).mode(0o600).open(path)?;
        let started = Instant::now();
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(file),
                Err(Errno::WOULDBLOCK | Errno::INTR) if started.elapsed() < PATIENCE => {
                    std::thread::sleep(AGAIN);
                }
                Err(Errno::WOULDBLOCK) => {
                    return Err(io::Error::new(
                        io::ErrorKind::TimedOut,
                        format!("another process has held {LOCK} for {PATIENCE:?}: is it stopped?"),
                    ));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Runs `change` while nobody else writes, if the document's version is `expected`.
    fn exchange<T>(
        &self,
        document: &Document,
        expected: Option<&Version>,
        change: impl FnOnce(Option<Stored>) -> io::Result<T>,
    ) -> Result<T, StoreError> {
        let failed = |error| self.failed(document, error);
        let _turn = lock(&self.writing);
        let _locked = self.locked().map_err(failed)?;
        let before = self.read(document)?;
        if before.as_ref().map(|stored| &stored.version) != expected {
            return Err(StoreError::Conflict(self.place(document)));
        }
        change(before).map_err(failed)
    }

    fn failed(&self, document: &Document, error: io::Error) -> StoreError {
        StoreError::Io { place: self.place(document), error }
    }
}

impl Store for Directory {
    fn read(&self, document: &Document) -> Result<Option<Stored>, StoreError> {
        let path = self.file(document);
        let read = File::open(&path).and_then(|mut file| {
            let stamp = DocumentStamp::of(&file.metadata()?);
            let mut bytes = Vec::new();
            io::Read::read_to_end(&mut file, &mut bytes)?;
            Ok((stamp, bytes))
        });
        let (stamp, bytes) = match read {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.failed(document, error)),
        };
        let version = version_of(&bytes);
        lock(&self.known).insert(document.name().to_owned(), (stamp, version.clone()));
        Ok(Some(Stored { bytes, version }))
    }

    fn version(&self, document: &Document) -> Result<Option<Version>, StoreError> {
        let metadata = match fs::metadata(self.file(document)) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.failed(document, error)),
        };
        let stamp = DocumentStamp::of(&metadata);
        if stamp.is_settled(SystemTime::now())
            && let Some((known, version)) = lock(&self.known).get(document.name())
            && *known == stamp
        {
            return Ok(Some(version.clone()));
        }
        Ok(self.read(document)?.map(|stored| stored.version))
    }

    fn write(
        &self,
        document: &Document,
        bytes: &[u8],
        expected: Option<&Version>,
    ) -> Result<Version, StoreError> {
        self.exchange(document, expected, |before| {
            if before.is_none_or(|before| before.bytes != bytes) {
                let mode = if document.is_secret() { 0o600 } else { 0o644 };
                replace(&self.file(document), bytes, mode)?;
            }
            Ok(version_of(bytes))
        })
    }

    fn remove(&self, document: &Document, expected: &Version) -> Result<(), StoreError> {
        if self.version(document)?.is_none() {
            return Ok(());
        }
        let path = self.file(document);
        self.exchange(document, Some(expected), |_| {
            fs::remove_file(&path)?;
            lock(&self.known).remove(document.name());
            let folder = path.parent().unwrap_or(&self.path);
            File::open(folder)?.sync_all()?;
            if folder != self.path {
                // A folder with something in it stays.
                let _ = fs::remove_dir(folder);
            }
            Ok(())
        })
    }

    fn list(&self, folder: &str) -> Result<Vec<String>, StoreError> {
        let mut names = Vec::new();
        let listed = list(&self.path.join(folder), folder, &mut names);
        listed.map_err(|error| self.failed(&Document::secret(folder), error))?;
        names.sort();
        Ok(names)
    }

    fn acquire(&self, name: &str, holder: &str, lifetime: Duration) -> Result<(), StoreError> {
        lease::acquire(self, &lease_document(name), name, holder, lifetime)
    }

    fn release(&self, name: &str, holder: &str) -> Result<(), StoreError> {
        lease::release(self, &lease_document(name), holder)
    }

    fn holder(&self, name: &str) -> Result<Option<HeldLease>, StoreError> {
        lease::holder(self, &lease_document(name))
    }

    fn place(&self, document: &Document) -> String {
        self.file(document).display().to_string()
    }
}

impl DocumentStamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    fn is_settled(&self, now: SystemTime) -> bool {
        let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let changed = Duration::from_secs(u64::try_from(self.changed.0).unwrap_or_default());
        now.saturating_sub(changed) > SETTLED + Duration::from_secs(1)
    }
}

fn lease_document(name: &str) -> Document {
    Document::secret(format!("{LEASES}/{name}.json"))
}

fn version_of(bytes: &[u8]) -> Version {
    let hash = Sha256::digest(bytes);
    Version::new(hash[..16].iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}

/// Puts a file in the place of another; a crash leaves one of the two, whole.
fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    if !folder.is_dir() {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        File::open(folder.parent().unwrap_or(folder))?.sync_all()?;
    }
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(TEMPORARY);
    let temporary = PathBuf::from(temporary);
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&temporary)?;
    // What was left over by a crash may have other permissions.
    file.set_permissions(Permissions::from_mode(mode))?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    File::open(folder)?.sync_all()
}

fn list(folder: &Path, prefix: &str, names: &mut Vec<String>) -> io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        let kind = entry.file_type()?;
        let Some(name) = entry.file_name().to_str().map(|name| format!("{prefix}{name}")) else {
            continue;
        };
        if kind.is_dir() {
            list(&entry.path(), &format!("{name}/"), names)?;
        } else if kind.is_file() && !name.ends_with(TEMPORARY) {
            names.push(name);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
