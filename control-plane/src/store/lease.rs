//! Leases as documents, for a store that has nothing better.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::{Document, Store, StoreError, Stored};

/// Attempts to take a lease that others take, or give back, at the same time.
const MAX_ATTEMPTS: usize = 10;

/// Who has a lease, and until when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldLease {
    pub holder: String,
    pub until: SystemTime,
}

#[derive(Serialize, Deserialize)]
struct SavedLease {
    holder: String,
    /// Milliseconds since the Unix epoch.
    until: u64,
}

/// What a lease's document holds; a damaged one is nobody's.
fn read(store: &dyn Store, document: &Document) -> Result<Option<(Stored, HeldLease)>, StoreError> {
    let Some(stored) = store.read(document)? else { return Ok(None) };
    let saved = serde_json::from_slice(&stored.bytes).ok().and_then(|saved: SavedLease| {
        let until = UNIX_EPOCH.checked_add(Duration::from_millis(saved.until))?;
        Some(HeldLease { holder: saved.holder, until })
    });
    let held = saved.unwrap_or(HeldLease { holder: String::new(), until: UNIX_EPOCH });
    Ok(Some((stored, held)))
}

pub(super) fn acquire(
    store: &dyn Store,
    document: &Document,
    lease: &str,
    holder: &str,
    lifetime: Duration,
) -> Result<(), StoreError> {
    let mut attempts = 0;
    loop {
        attempts += 1;
        let now = SystemTime::now();
        let before = read(store, document)?;
        if let Some((_, held)) = &before
            && held.holder != holder
            && held.until > now
        {
            let (lease, holder) = (lease.to_owned(), held.holder.clone());
            return Err(StoreError::Leased { lease, holder });
        }
        let until = (now + lifetime).duration_since(UNIX_EPOCH).unwrap_or_default();
        let until = u64::try_from(until.as_millis()).unwrap_or(u64::MAX);
        let saved = SavedLease { holder: holder.to_owned(), until };
        let bytes = serde_json::to_vec(&saved).map_err(|error| StoreError::Io {
            place: store.place(document),
            error: error.into(),
        })?;
        match store.write(document, &bytes, before.as_ref().map(|(stored, _)| &stored.version)) {
            Err(error) if error.is_conflict() && attempts < MAX_ATTEMPTS => {}
            written => return written.map(drop),
        }
    }
}

pub(super) fn release(
    store: &dyn Store,
    document: &Document,
    holder: &str,
) -> Result<(), StoreError> {
    match read(store, document)? {
        Some((stored, held)) if held.holder == holder => store.remove(document, &stored.version),
        _ => Ok(()),
    }
}

pub(super) fn holder(
    store: &dyn Store,
    document: &Document,
) -> Result<Option<HeldLease>, StoreError> {
    let held = read(store, document)?.map(|(_, held)| held);
    Ok(held.filter(|held| held.until > SystemTime::now()))
}
