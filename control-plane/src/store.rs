//! What outlives a process: named documents behind one [`Store`], which several replicas share.
//!
//! A document is small, read and written whole, and has a [`Version`]. Anyone who writes says which version it
//! read: when another one is there by now, nothing is written ([`StoreError::Conflict`]), and the writer
//! reads again. A store is a directory ([`dir`]) or a namespace of a Kubernetes cluster, with its Secrets,
//! ConfigMaps and Leases ([`cluster`]). Everything blocks: call it where blocking is allowed.
//!
//! # Who writes what
//!
//! | document | written by |
//! |---|---|
//! | `join-token.key` | the first replica; never again |
//! | `ca/roots.json`, `trust-bundle.pem` | any replica, one at a time: a step of a rotation holds the lease `rotation` |
//! | `stopped-experiments.json`, `namespaces.json` | any replica at any time, by [`update`]: what others wrote is kept |
//! | `graph-0.json` to `graph-7.json` | the replica that holds the lease `graph` |
//! | `certificates.json`, `connections.json`, `registrations` | the replica that they belong to (see [`crate::replica`]); others read them, and remove them when their owner has been away for long and nothing in them is needed |
//!
//! # How late a reader may be
//!
//! Replicas look at each other's documents every second ([`crate::replica::Timing`]).
//!
//! - Roots and issuer, registrations, namespaces: a second, and the time to write.
//! - Stopped fault injections: 5 s. Each proxy also obeys its own guard.
//! - Which connections are open elsewhere and what they have acknowledged: as of 0.3 s ago when a step asks,
//!   since a step reads every replica's documents anew. A replica that has died counts as connected until its
//!   lease has run out: 15 s.
//! - Certificates: not at all. They are in the store before anybody gets them, and none is handed out that a
//!   step of another replica has not seen ([`crate::ca::Authority::confirm`]).
//!
//! # What a step of a rotation must know
//!
//! Of every replica that is alive: which roots it has in force, under which one it issues, which roots its
//! own files hold, and what each proxy connected to it has acknowledged. Of every replica, also one that is no
//! more: the certificates that it has issued and that have not ended.

pub mod cluster;
pub mod dir;
mod lease;

use std::fmt;
use std::io;
use std::time::{Duration, SystemTime};

pub use lease::HeldLease;

/// Attempts of [`update`]: each fails only because somebody else succeeded.
const MAX_ATTEMPTS: usize = 100;

/// A place for documents that several processes share. Leases run by the clocks of those who take them:
/// these must agree within a second or two.
pub trait Store: fmt::Debug + Send + Sync {
    /// What the document holds, or nothing when there is none.
    fn read(&self, document: &Document) -> Result<Option<Stored>, StoreError>;

    /// The version that [`Self::read`] would give; cheap when nothing has changed.
    fn version(&self, document: &Document) -> Result<Option<Version>, StoreError>;

    /// Replaces the document if its version is `expected`; with `None`, creates it if there is none. After
    /// this every reader sees it, whatever becomes of this machine; after an error, the old one or the new
    /// one, whole.
    ///
    /// # Errors
    ///
    /// [`StoreError::Conflict`] when another version is there: then nothing was written.
    fn write(
        &self,
        document: &Document,
        bytes: &[u8],
        expected: Option<&Version>,
    ) -> Result<Version, StoreError>;

    /// Removes the document if its version is `expected`. One that is gone already is no error.
    ///
    /// # Errors
    ///
    /// [`StoreError::Conflict`] when another version is there.
    fn remove(&self, document: &Document, expected: &Version) -> Result<(), StoreError>;

    /// The names of the documents that begin with `folder`, which ends in `/`.
    fn list(&self, folder: &str) -> Result<Vec<String>, StoreError>;

    /// Takes a lease, or takes it again, until `lifetime` from now. One that has run out is anybody's.
    ///
    /// # Errors
    ///
    /// [`StoreError::Leased`] while it is another one's.
    fn acquire(&self, lease: &str, holder: &str, lifetime: Duration) -> Result<(), StoreError>;

    /// Gives a lease back, if it is the holder's.
    fn release(&self, lease: &str, holder: &str) -> Result<(), StoreError>;

    /// Who has a lease that has not run out.
    fn holder(&self, lease: &str) -> Result<Option<HeldLease>, StoreError>;

    /// Where a document is, for people.
    fn place(&self, document: &Document) -> String;
}

/// The name of a document, and who may read it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Document {
    name: String,
    is_secret: bool,
}

/// A document as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    pub bytes: Vec<u8>,
    pub version: Version,
}

/// Tells one content of a document from another; says nothing about which one is newer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Version(String);

/// Why a document could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{0} was changed by somebody else at the same time")]
    Conflict(String),
    #[error("the lease {lease} is held by {holder}")]
    Leased { lease: String, holder: String },
    #[error("{place}: {error}")]
    Io { place: String, error: io::Error },
}

impl Document {
    /// Only for this store's owner.
    pub fn secret(name: impl Into<String>) -> Self {
        Self { name: name.into(), is_secret: true }
    }

    /// For everybody on the machine or in the namespace.
    pub fn public(name: impl Into<String>) -> Self {
        Self { name: name.into(), is_secret: false }
    }

    /// Words of letters, digits, `.` and `-`, between `/`.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn is_secret(&self) -> bool {
        self.is_secret
    }
}

impl Version {
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl StoreError {
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Conflict(_))
    }
}

impl From<StoreError> for io::Error {
    fn from(error: StoreError) -> Self {
        let kind = match &error {
            StoreError::Conflict(_) | StoreError::Leased { .. } => io::ErrorKind::ResourceBusy,
            StoreError::Io { error, .. } => error.kind(),
        };
        Self::new(kind, error.to_string())
    }
}

/// Reads a document, changes it and writes it, until nobody else has come in between. `change` gives the
/// whole new content, or `None` when there is nothing to write. Returns the version that is there now.
pub fn update(
    store: &dyn Store,
    document: &Document,
    mut change: impl FnMut(Option<&[u8]>) -> Option<Vec<u8>>,
) -> Result<Option<Version>, StoreError> {
    let mut attempts = 0;
    loop {
        attempts += 1;
        let before = store.read(document)?;
        let Some(bytes) = change(before.as_ref().map(|stored| &*stored.bytes)) else {
            return Ok(before.map(|stored| stored.version));
        };
        match store.write(document, &bytes, before.as_ref().map(|stored| &stored.version)) {
            Err(error) if error.is_conflict() && attempts < MAX_ATTEMPTS => {}
            written => return written.map(Some),
        }
    }
}

/// Gives what is there, or puts `make` there; the first one wins, and everybody gets the same.
pub fn create(
    store: &dyn Store,
    document: &Document,
    make: impl FnOnce() -> io::Result<Vec<u8>>,
) -> Result<Vec<u8>, StoreError> {
    let io = |error| StoreError::Io { place: store.place(document), error };
    if let Some(stored) = store.read(document)? {
        return Ok(stored.bytes);
    }
    let made = make().map_err(io)?;
    match store.write(document, &made, None) {
        Ok(_) => Ok(made),
        Err(error) if error.is_conflict() => {
            let stored = store.read(document)?;
            stored.map(|stored| stored.bytes).ok_or(error)
        }
        Err(error) => Err(error),
    }
}

/// A lease that is given back when it is dropped.
#[derive(Debug)]
pub struct Lease<'a> {
    store: &'a dyn Store,
    name: &'a str,
    holder: &'a str,
    until: SystemTime,
}

impl<'a> Lease<'a> {
    pub fn acquire(
        store: &'a dyn Store,
        name: &'a str,
        holder: &'a str,
        lifetime: Duration,
    ) -> Result<Self, StoreError> {
        let until = SystemTime::now() + lifetime;
        store.acquire(name, holder, lifetime)?;
        Ok(Self { store, name, holder, until })
    }

    /// Whether it is certainly held still.
    pub fn is_valid(&self) -> bool {
        SystemTime::now() < self.until
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.store.release(self.name, self.holder) {
            tracing::warn!(lease = self.name, %error, "a lease could not be given back and runs out");
        }
    }
}
