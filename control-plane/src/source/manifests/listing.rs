//! What there is in the folder: files of manifests, and the folders to watch.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Symbolic links to folders may form a cycle.
const MAX_DEPTH: usize = 16;

/// What there is in the folder.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub(super) files: BTreeMap<PathBuf, ManifestStamp>,
    /// Links to nothing with the name of a manifest.
    pub(super) dangling: BTreeSet<PathBuf>,
    /// Folders to watch, with symbolic links resolved, and the path by which their files are
    /// known; none where only links lead.
    pub(super) folders: BTreeMap<PathBuf, Option<PathBuf>>,
}

impl Listing {
    pub(super) fn of(root: &Path) -> io::Result<Self> {
        let mut listing = Self::default();
        listing.folder(root, MAX_DEPTH)?;
        if fs::symlink_metadata(root)?.is_symlink()
            && let Some(parent) = root.parent()
        {
            // The root itself may be made to point elsewhere.
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            listing.folders.entry(parent.canonicalize()?).or_default();
        }
        Ok(listing)
    }

    fn folder(&mut self, path: &Path, depth: usize) -> io::Result<()> {
        let real = path.canonicalize()?;
        if depth == 0 || self.folders.get(&real).is_some_and(Option::is_some) {
            return Ok(());
        }
        self.folders.insert(real, Some(path.to_owned()));
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            let name = entry.file_name();
            if name.as_encoded_bytes().starts_with(b".") {
                continue;
            }
            let path = entry.path();
            // Follows links; what vanishes while we look will be noticed again.
            let Ok(meta) = fs::metadata(&path) else {
                if is_manifest(&path) && fs::symlink_metadata(&path).is_ok_and(|m| m.is_symlink()) {
                    self.dangling.insert(path);
                }
                continue;
            };
            if meta.is_dir() {
                self.folder(&path, depth - 1)?;
            } else if meta.is_file() && is_manifest(&path) {
                if entry.file_type()?.is_symlink()
                    && let Ok(target) = path.canonicalize()
                    && let Some(parent) = target.parent()
                {
                    self.folders.entry(parent.to_owned()).or_default();
                }
                self.files.insert(path, ManifestStamp::from(&meta));
            }
        }
        Ok(())
    }
}

/// Whether a file is one of ours by its name; editors' backup and swap files are not.
pub(super) fn is_manifest(path: &Path) -> bool {
    let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
    let extension = path.extension().and_then(|extension| extension.to_str());
    !hidden && matches!(extension, Some("yaml" | "yml" | "json"))
}

/// Differs when the content may differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ManifestStamp {
    pub(super) inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl ManifestStamp {
    /// Whether it was written less than `age` ago.
    pub(super) fn is_younger_than(&self, age: Duration) -> bool {
        let (seconds, nanos) = self.modified;
        let seconds = u64::try_from(seconds).unwrap_or(0);
        let nanos = u32::try_from(nanos).unwrap_or(0).min(999_999_999);
        let written = UNIX_EPOCH.checked_add(Duration::new(seconds, nanos));
        // What comes from the future is as old as anything.
        let since = written.and_then(|written| SystemTime::now().duration_since(written).ok());
        since.is_some_and(|since| since < age)
    }
}

impl From<&Metadata> for ManifestStamp {
    fn from(meta: &Metadata) -> Self {
        Self {
            inode: meta.ino(),
            size: meta.len(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }
}
