//! Stopped fault injections in the store: one document, to which every replica adds the stops that it has heard of,
//! and from which it takes those of fault injections that begin anew.

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
    last: Mutex<LastComparison>,
}

/// As of the last comparison: what has changed here since then is this replica's to write.
#[derive(Debug)]
struct LastComparison {
    here: Stops,
    document: Stops,
    version: Option<Version>,
}

impl SavedStops {
    /// `read`: what the index began with.
    pub fn new(publisher: Arc<Publisher>, store: Arc<dyn Store>, read: Stops) -> Self {
        let last = LastComparison { here: read, document: Stops::new(), version: None };
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
            tracing::error!(%error, "could not write down which fault injections are stopped");
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
            *last = LastComparison { here: here.clone(), document, version };
        }
        // One of a fault injection that is not here yet may be some day.
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
            tracing::error!(%error, "could not read which fault injections are stopped: they run");
            Stops::new()
        }
    }
}

fn decode(store: &dyn Store, bytes: Option<&[u8]>) -> Stops {
    let stops = bytes.map(serde_json::from_slice).unwrap_or_else(|| Ok(Stops::new()));
    stops.unwrap_or_else(|error| {
        let path = store.place(&Document::secret(NAME));
        tracing::error!(path, %error, "could not read which fault injections are stopped: they run");
        Stops::new()
    })
}

#[cfg(test)]
mod tests {
    use super::super::Stopped;
    use super::*;
    use crate::index::Index;
    use crate::store::dir::Directory;

    fn stops(entries: &[(&str, &str)]) -> Stops {
        let stop = |version: &str| Stopped {
            version: version.to_owned(),
            since: 1,
            by: "bank/orders".to_owned(),
            why: "too slow".to_owned(),
        };
        entries.iter().map(|(name, version)| ((*name).to_owned(), stop(version))).collect()
    }

    #[test]
    fn only_what_changed_here_is_changed_there() {
        let mut document = stops(&[("bank/a", "1"), ("bank/b", "1"), ("bank/c", "2")]);
        let before = stops(&[("bank/a", "1"), ("bank/c", "1"), ("bank/e", "1")]);
        // `a` runs again, `c` has another spec elsewhere, `d` was stopped, nothing became of `e`.
        let now = stops(&[("bank/d", "1"), ("bank/e", "1")]);
        apply(&mut document, &before, &now);
        assert_eq!(document, stops(&[("bank/b", "1"), ("bank/c", "2"), ("bank/d", "1")]));
    }

    #[test]
    fn nothing_is_lost_when_two_write_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let names: Vec<String> = (0..8).map(|number| format!("bank/e{number}")).collect();
        std::thread::scope(|scope| {
            for name in &names {
                let store = Arc::new(Directory::open(folder.path()).unwrap());
                let index = Index::default().with_stops(stops(&[(name, "1")]));
                let publisher = Arc::new(Publisher::new(index));
                scope.spawn(|| SavedStops::new(publisher, store, Stops::new()).sync());
            }
        });
        let store = Directory::open(folder.path()).unwrap();
        assert!(read(&store).keys().eq(&names));
    }
}
