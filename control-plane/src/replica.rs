//! One control plane among those that share a store: its name, its documents, and whether others live.
//!
//! A replica keeps a lease in its own name for as long as it runs. Others take it for dead when that has run
//! out, or was given back. The documents of the replica `control-plane`, which is what one is called unless a
//! flag says otherwise, lie where they have always been; those of others in `replicas/<name>/`.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use outrigger_core::name::check_label;

use crate::store::{Document, Store, StoreError, Version};
use crate::sync::lock;

/// What a replica is called when nobody names it.
pub const DEFAULT: &str = "control-plane";
const FOLDER: &str = "replicas/";

/// Attempts to write a document that nobody else should write.
const MAX_ATTEMPTS: usize = 10;

/// A DNS label: lower-case letters, digits and `-`, at most 63.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplicaName(String);

/// How often replicas look at each other and say that they live.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Others' documents are looked at so often: so late is what is taken over from them.
    pub poll: Duration,
    /// The own lease is taken again so often.
    pub renew: Duration,
    /// And runs out after this: so long a replica that has died counts as alive.
    pub expiry: Duration,
    /// Documents of one that has been away for so long are removed when nothing in them is needed.
    pub forget: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            poll: Duration::from_secs(1),
            renew: Duration::from_secs(5),
            expiry: Duration::from_secs(15),
            forget: Duration::from_secs(600),
        }
    }
}

/// This process among those that share a store.
#[derive(Debug)]
pub struct Replica {
    pub name: ReplicaName,
    pub store: Arc<dyn Store>,
    pub timing: Timing,
}

impl Replica {
    pub fn new(name: ReplicaName, store: Arc<dyn Store>, timing: Timing) -> Self {
        Self { name, store, timing }
    }

    /// Takes the lease that says that this replica lives.
    pub fn renew(&self) -> Result<(), StoreError> {
        self.store.acquire(&self.name.lease(), self.name.as_str(), self.timing.expiry)
    }

    /// Keeps the lease. One that could not be renewed is tried again at the next turn.
    pub async fn run(self: Arc<Self>) {
        loop {
            let replica = self.clone();
            let renewed = tokio::task::spawn_blocking(move || replica.renew()).await;
            if let Ok(Err(error)) = renewed {
                tracing::error!(%error, "could not tell other replicas that this one lives");
            }
            tokio::time::sleep(self.timing.renew).await;
        }
    }

    /// Says that this replica is no more.
    pub fn leave(&self) {
        if let Err(error) = self.store.release(&self.name.lease(), self.name.as_str()) {
            tracing::warn!(%error, "could not tell other replicas that this one ends");
        }
    }

    /// Every other replica that has left a document or a lease here, alive or not.
    pub fn others(&self) -> Result<Vec<ReplicaName>, StoreError> {
        let names = self.store.list(FOLDER)?;
        let names = names.iter().filter_map(|name| name.strip_prefix(FOLDER)?.split('/').next());
        let mut names: BTreeSet<ReplicaName> = names.filter_map(|name| name.parse().ok()).collect();
        names.insert(ReplicaName::default());
        names.remove(&self.name);
        Ok(names.into_iter().collect())
    }

    /// Whether another replica's lease has not run out.
    pub fn is_alive(&self, other: &ReplicaName) -> Result<bool, StoreError> {
        Ok(self.store.holder(&other.lease())?.is_some())
    }
}

/// A document that this replica alone writes.
#[derive(Debug)]
pub struct Own {
    replica: Arc<Replica>,
    document: Document,
    /// As this process read or wrote it.
    version: Mutex<Option<Version>>,
}

impl Own {
    pub fn new(replica: Arc<Replica>, name: &str) -> Self {
        let document = replica.name.document(name);
        Self { replica, document, version: Mutex::new(None) }
    }

    /// What was written last, by this process or the one before.
    pub fn read(&self) -> Result<Option<Vec<u8>>, StoreError> {
        let stored = self.replica.store.read(&self.document)?;
        *lock(&self.version) = stored.as_ref().map(|stored| stored.version.clone());
        Ok(stored.map(|stored| stored.bytes))
    }

    /// Where it is, for people.
    pub fn place(&self) -> String {
        self.replica.store.place(&self.document)
    }

    /// Replaces it by what `make` gives. When another process has written it all the same, that is said, and
    /// `make` is asked once more with what is there.
    pub fn write(&self, mut make: impl FnMut(Option<&[u8]>) -> Vec<u8>) -> Result<(), StoreError> {
        let store = &self.replica.store;
        let mut version = lock(&self.version);
        let mut there = None;
        let mut attempts = 0;
        loop {
            attempts += 1;
            match store.write(&self.document, &make(there.as_deref()), version.as_ref()) {
                Ok(written) => {
                    *version = Some(written);
                    return Ok(());
                }
                Err(error) if error.is_conflict() && attempts < MAX_ATTEMPTS => {
                    let stored = store.read(&self.document)?;
                    if stored.is_some() {
                        let (name, place) = (self.replica.name.as_str(), self.place());
                        tracing::error!(
                            replica = name,
                            place,
                            "another control plane uses the same name and state: give each its own --replica"
                        );
                    }
                    *version = stored.as_ref().map(|stored| stored.version.clone());
                    there = stored.map(|stored| stored.bytes);
                }
                Err(error) => return Err(error),
            }
        }
    }
}

impl ReplicaName {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn is_default(&self) -> bool {
        self.0 == DEFAULT
    }

    /// A document of this replica.
    pub fn document(&self, name: &str) -> Document {
        match self.is_default() {
            true => Document::secret(name),
            false => Document::secret(format!("{FOLDER}{self}/{name}")),
        }
    }

    fn lease(&self) -> String {
        format!("replica-{self}")
    }
}

impl Default for ReplicaName {
    fn default() -> Self {
        Self(DEFAULT.to_owned())
    }
}

impl FromStr for ReplicaName {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        check_label(name).map_err(|error| error.to_string())?;
        Ok(Self(name.to_owned()))
    }
}

impl fmt::Display for ReplicaName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
