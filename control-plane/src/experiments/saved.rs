//! Stopped experiments in the store: one document, to which every replica adds the stops that it has heard of,
//! and from which it takes those of experiments that begin anew.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::Stops;
use crate::publish::Publisher;
use crate::store::{self, Document, Store, StoreError, Version};
use crate::sync::lock;

const NAME: &str = "stopped-experiments.json";
/// How often document and index are compared; a new stop is written at once.
const SYNC: Duration = Duration::from_secs(5);

/// The copy in the store.
#[derive(Debug)]
pub struct SavedStops {
    publisher: Arc<Publisher>,
    store: Arc<dyn Store>,
    last: Mutex<Last>,
}

/// As of the last comparison: what has changed here since then is this replica's to write.
#[derive(Debug)]
struct Last {
    here: Stops,
    document: Stops,
    version: Option<Version>,
}

impl SavedStops {
    /// `read`: what the index began with.
    pub fn new(publisher: Arc<Publisher>, store: Arc<dyn Store>, read: Stops) -> Self {
        let last = Last { here: read, document: Stops::new(), version: None };
        Self { publisher, store, last: Mutex::new(last) }
    }

    /// Keeps document and index alike.
    pub async fn keep(self: Arc<Self>) {
        loop {
            tokio::time::sleep(SYNC).await;
            let saved = self.clone();
            let _ = tokio::task::spawn_blocking(move || saved.sync()).await;
        }
    }

    /// Writes what has changed here, and takes over what others have written.
    pub fn sync(&self) {
        if let Err(error) = self.try_sync() {
            tracing::error!(%error, "could not write down which experiments are stopped");
        }
    }

    fn try_sync(&self) -> Result<(), StoreError> {
        let mut last = lock(&self.last);
        let mut here = self.publisher.view().index.stops().clone();
        let version = self.store.version(&Document::secret(NAME))?;
        if here != last.here || version != last.version {
            let mut document = Stops::new();
            let version = store::update(&*self.store, &Document::secret(NAME), |bytes| {
                document = decode(&*self.store, bytes);
                let before = document.clone();
                apply(&mut document, &last.here, &here);
                (document != before).then(|| serde_json::to_vec(&document).ok()).flatten()
            })?;
            *last = Last { here: here.clone(), document, version };
        }
        // One of an experiment that is not here yet may be some day.
        let missing: Stops = {
            let view = self.publisher.view();
            let missing = last.document.iter();
            let missing = missing.filter(|(name, stop)| view.index.misses_stop(name, stop));
            missing.map(|(name, stop)| (name.clone(), stop.clone())).collect()
        };
        if !missing.is_empty() {
            self.publisher.commit(|index| {
                for (name, stop) in missing {
                    if index.take_stop(&name, stop.clone()) {
                        here.insert(name, stop);
                    }
                }
            });
            last.here = here;
        }
        Ok(())
    }
}

/// Does to `document` what was done here between `before` and `now`.
fn apply(document: &mut Stops, before: &Stops, now: &Stops) {
    for (name, old) in before {
        if now.get(name) != Some(old) && document.get(name) == Some(old) {
            document.remove(name);
        }
    }
    for (name, new) in now {
        if before.get(name) != Some(new) {
            document.insert(name.clone(), new.clone());
        }
    }
}

/// What was stopped, or nothing if there is no document or it is damaged.
pub fn read(store: &dyn Store) -> Stops {
    match store.read(&Document::secret(NAME)) {
        Ok(stored) => decode(store, stored.as_ref().map(|stored| &*stored.bytes)),
        Err(error) => {
            tracing::error!(%error, "could not read which experiments are stopped: they run");
            Stops::new()
        }
    }
}

fn decode(store: &dyn Store, bytes: Option<&[u8]>) -> Stops {
    let stops = bytes.map(serde_json::from_slice).unwrap_or_else(|| Ok(Stops::new()));
    stops.unwrap_or_else(|error| {
        let path = store.place(&Document::secret(NAME));
        tracing::error!(path, %error, "could not read which experiments are stopped: they run");
        Stops::new()
    })
}
