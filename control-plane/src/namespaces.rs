//! The namespaces that the mesh has ever had, in the store: a name in one of them is never looked up outside,
//! also when the last thing in it is gone and the control plane has been restarted since.
//!
//! Replicas add to one document and take nothing out: what one knows, all know about a second later.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::publish::Publisher;
use crate::store::{self, Document, Store, StoreError, Version};

const NAME: &str = "namespaces.json";

/// What was known before the last stop; nothing if there is no document or it is damaged.
pub fn read(store: &dyn Store) -> BTreeSet<String> {
    let document = Document::secret(NAME);
    match store.read(&document) {
        Ok(stored) => decode(store, stored.as_ref().map(|stored| &*stored.bytes)),
        Err(error) => {
            failed(&error);
            BTreeSet::new()
        }
    }
}

/// Keeps document and index alike, looking at both once per `interval`.
pub async fn keep(publisher: Arc<Publisher>, store: Arc<dyn Store>, interval: Duration) {
    let mut synced = SyncedNamespaces::default();
    loop {
        tokio::time::sleep(interval).await;
        let (publisher, store, before) = (publisher.clone(), store.clone(), synced.clone());
        let step = tokio::task::spawn_blocking(move || sync(&publisher, &*store, &before)).await;
        match step {
            Ok(Ok(Some(now))) => synced = now,
            Ok(Ok(None)) | Err(_) => {}
            Ok(Err(error)) => failed(&error),
        }
    }
}

/// What document and index had in common, and the document's version then.
#[derive(Clone, Debug, Default)]
struct SyncedNamespaces {
    names: BTreeSet<String>,
    version: Option<Version>,
}

fn sync(
    publisher: &Publisher,
    store: &dyn Store,
    before: &SyncedNamespaces,
) -> Result<Option<SyncedNamespaces>, StoreError> {
    let known = publisher.view().index.known_namespaces();
    let version = store.version(&Document::secret(NAME))?;
    if version == before.version && known.is_subset(&before.names) {
        return Ok(None);
    }
    let (names, version) = write(store, &known)?;
    if !names.is_subset(&known) {
        publisher.commit(|index| index.learn_namespaces(&names));
    }
    Ok(Some(SyncedNamespaces { names, version }))
}

/// Adds what is known to the document, and gives all that is in it.
pub fn write(
    store: &dyn Store,
    known: &BTreeSet<String>,
) -> Result<(BTreeSet<String>, Option<Version>), StoreError> {
    let mut all = BTreeSet::new();
    let version = store::update(store, &Document::secret(NAME), |bytes| {
        all = decode(store, bytes);
        if known.is_subset(&all) && bytes.is_some() {
            return None;
        }
        all.extend(known.iter().cloned());
        serde_json::to_vec(&all).ok()
    })?;
    Ok((all, version))
}

fn decode(store: &dyn Store, bytes: Option<&[u8]>) -> BTreeSet<String> {
    let names = bytes.map(serde_json::from_slice).unwrap_or_else(|| Ok(BTreeSet::new()));
    names.unwrap_or_else(|error| {
        let path = store.place(&Document::secret(NAME));
        tracing::error!(
            path, %error,
            "could not read which namespaces there were: proxies remember those that they were told of"
        );
        BTreeSet::new()
    })
}

fn failed(error: &StoreError) {
    tracing::error!(%error, "could not write down which namespaces there are");
}
