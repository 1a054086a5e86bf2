//! What a stream is told by the publisher: which of the things that it depends on have changed.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use foldhash::quality::RandomState;
use tokio::sync::{Notify, watch};

use super::Commit;
use crate::index::Dep;
use crate::sync::lock;

/// The publisher's side of a stream.
#[derive(Debug)]
pub struct Handle {
    pub(super) id: u64,
    pub wake: Notify,
    dirty: Mutex<Dirty>,
    /// The newest commit that the stream was told of.
    told: AtomicU64,
    /// The last generation whose effects the proxy has acknowledged.
    acknowledged: watch::Sender<u64>,
}

/// What happened since the stream last looked: a set and not a queue, so that who is slow holds back nothing
/// and grows nothing.
#[derive(Debug, Default)]
pub struct Dirty {
    pub deps: HashSet<Arc<Dep>, RandomState>,
    /// The newest commit among them, for `system_version_info`.
    pub newest: Option<Commit>,
    /// When the oldest of them was committed, for the latency histogram.
    pub since: Option<Instant>,
}

impl Handle {
    pub(super) fn new(id: u64) -> Self {
        Self {
            id,
            wake: Notify::new(),
            dirty: Mutex::default(),
            told: AtomicU64::new(0),
            acknowledged: watch::Sender::new(0),
        }
    }

    /// Notes that something has changed. The stream is still to be woken.
    pub(super) fn tell(&self, dep: Arc<Dep>, commit: Commit) {
        let mut dirty = lock(&self.dirty);
        dirty.deps.insert(dep);
        dirty.newest = dirty.newest.filter(|newest| newest.generation > commit.generation);
        dirty.newest.get_or_insert(commit);
        dirty.since.get_or_insert(commit.at);
        self.told.fetch_max(commit.generation, Ordering::Release);
    }

    pub fn take_dirty(&self) -> Dirty {
        std::mem::take(&mut lock(&self.dirty))
    }

    pub fn acknowledge(&self, generation: u64) {
        self.acknowledged.send_if_modified(|seen| {
            let newer = generation > *seen;
            *seen = generation.max(*seen);
            newer
        });
    }

    /// Completes when the proxy has acknowledged a commit, if it had to be told of it.
    pub(super) async fn settled(&self, commit: Commit) {
        if self.told.load(Ordering::Acquire) < commit.generation {
            return;
        }
        let mut acknowledged = self.acknowledged.subscribe();
        // An error means that the stream is gone, which is as good.
        let _ = acknowledged.wait_for(|seen| *seen >= commit.generation).await;
    }
}
