//! Who depends on what, and what has been encoded of it: one topic for everything that somebody depends on.
//!
//! Sharded, and locked for a look-up only. Whatever takes time (encoding, comparing, choosing) happens
//! outside with what was taken out, and is put back if nothing has happened meanwhile.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::{Arc, Mutex, MutexGuard};

use foldhash::quality::RandomState;
use outrigger_core::name::DestinationName;

use super::collection::{Collection, Cut};
use super::handle::Handle;
use super::{Encoded, EncodedDestination, EncodedInbound};
use crate::index::{Dep, Touched};
use crate::sync::lock;

/// Enough that two threads seldom want the same one.
const SHARDS: usize = 64;
/// Changes of a collection that are remembered one by one until somebody wants it; beyond, it is put together
/// anew.
const MAX_PENDING: usize = 256;

#[derive(Debug)]
pub(super) struct Topics {
    shards: Box<[Mutex<Shard>]>,
    hasher: RandomState,
}

type Shard = HashMap<Arc<Dep>, Topic, RandomState>;

#[derive(Debug)]
pub(super) struct Topic {
    dep: Arc<Dep>,
    /// The last generation that touched it, as far as anybody was there to see it.
    changed: u64,
    /// In the order of their ids.
    subscribers: Vec<Arc<Handle>>,
    /// Of a collection too large for everybody: where each one's share ends, by the subscriber's id.
    pub(super) cuts: HashMap<u64, Cut>,
    pub(super) value: Value,
}

/// What has been encoded. Each with the generation that it was made from.
#[derive(Debug, Default)]
pub(super) enum Value {
    #[default]
    None,
    /// By name: a Service has ports, and consumers with routes of their own.
    Destinations(HashMap<Arc<DestinationName>, Arc<EncodedDestination>>),
    Collection(Cached),
    Inbound(Arc<EncodedInbound>),
    /// In parts.
    Settings(Arc<[Arc<Encoded>]>),
    Trust(Arc<Encoded>),
}

impl Value {
    /// Whether proxies would not take some part of it.
    pub(super) fn has_left_out(&self) -> bool {
        match self {
            Self::Destinations(known) => known.values().any(|one| !one.left_out.is_empty()),
            Self::Inbound(known) => !known.left_out.is_empty(),
            Self::None | Self::Collection(_) | Self::Settings(_) | Self::Trust(_) => false,
        }
    }
}

/// A collection, and what has changed since it was made.
#[derive(Clone, Debug)]
pub(super) struct Cached {
    pub(super) made: u64,
    pub(super) collection: Arc<Collection>,
    pending: Vec<(u64, Touched)>,
}

impl Cached {
    pub(super) fn new(made: u64, collection: Arc<Collection>) -> Self {
        Self { made, collection, pending: Vec::new() }
    }

    pub(super) fn is_fresh(&self) -> bool {
        self.pending.is_empty()
    }

    /// Everything that has to be looked at again.
    pub(super) fn pending(&self) -> impl Iterator<Item = &Touched> {
        self.pending.iter().map(|(_, touched)| touched)
    }
}

/// A topic that has just been touched, to be told to its subscribers.
#[derive(Debug)]
pub(super) struct TouchedTopic {
    pub(super) dep: Arc<Dep>,
    pub(super) subscribers: Vec<Arc<Handle>>,
    /// Of those whose share is cut from a large collection.
    pub(super) cuts: HashMap<u64, Cut>,
    /// The collection as it was.
    pub(super) before: Option<Cached>,
    /// Parts of what it held were left out.
    pub(super) had_left_out: bool,
}

impl Topics {
    pub(super) fn new() -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Self { shards, hasher: RandomState::default() }
    }

    fn shard(&self, dep: &Dep) -> MutexGuard<'_, Shard> {
        let hash = self.hasher.hash_one(dep) as usize;
        lock(&self.shards[hash % SHARDS])
    }

    /// Gives the topic's own copy of the key, for all subscribers to share. `newest` is asked once the topic can be
    /// touched, so that whatever is older than its answer, and may have missed the topic, does not count as current.
    pub(super) fn subscribe(
        &self,
        dep: &Dep,
        handle: &Arc<Handle>,
        newest: impl FnOnce() -> u64,
    ) -> Arc<Dep> {
        let mut shard = self.shard(dep);
        if !shard.contains_key(dep) {
            let dep = Arc::new(dep.clone());
            let topic = Topic {
                dep: dep.clone(),
                changed: newest(),
                subscribers: Vec::new(),
                cuts: HashMap::new(),
                value: Value::None,
            };
            shard.insert(dep, topic);
        }
        let topic = shard.get_mut(dep).expect("invariant: put there above");
        if let Err(at) = topic.position(handle.id) {
            topic.subscribers.insert(at, handle.clone());
        }
        topic.dep.clone()
    }

    /// What nobody needs is encoded again when somebody does. Gives whether parts of what is gone were left out.
    pub(super) fn unsubscribe(&self, dep: &Dep, handle: &Handle) -> bool {
        let mut shard = self.shard(dep);
        let Some(topic) = shard.get_mut(dep) else { return false };
        if let Ok(at) = topic.position(handle.id) {
            topic.subscribers.remove(at);
            topic.cuts.remove(&handle.id);
        }
        let unused = if topic.subscribers.is_empty() { shard.remove(dep) } else { None };
        drop(shard);
        // Megabytes, perhaps: freed outside the lock.
        unused.is_some_and(|topic| topic.value.has_left_out())
    }

    /// Notes that a commit has touched it. None: nobody depends on it.
    pub(super) fn touch(
        &self,
        dep: &Dep,
        generation: u64,
        touched: Option<&Touched>,
    ) -> Option<TouchedTopic> {
        let mut shard = self.shard(dep);
        let topic = shard.get_mut(dep)?;
        topic.changed = topic.changed.max(generation);
        let mut before = None;
        let old = match &mut topic.value {
            Value::Collection(cached) => {
                cached.pending.push((generation, touched.cloned().unwrap_or(Touched::All)));
                if cached.pending.len() > MAX_PENDING {
                    cached.pending = vec![(generation, Touched::All)];
                }
                before = (!topic.cuts.is_empty()).then(|| cached.clone());
                Value::None
            }
            value => std::mem::take(value),
        };
        let (dep, subscribers, cuts) =
            (topic.dep.clone(), topic.subscribers.clone(), topic.cuts.clone());
        drop(shard);
        let had_left_out = old.has_left_out();
        drop(old);
        Some(TouchedTopic { dep, subscribers, cuts, before, had_left_out })
    }

    /// Looks at a topic; none: nobody depends on it.
    pub(super) fn with<R>(&self, dep: &Dep, look: impl FnOnce(&mut Topic) -> R) -> Option<R> {
        self.shard(dep).get_mut(dep).map(look)
    }

    pub(super) fn subscribers(&self, dep: &Dep) -> Vec<Arc<Handle>> {
        self.with(dep, |topic| topic.subscribers.clone()).unwrap_or_default()
    }
}

impl Topic {
    fn position(&self, id: u64) -> Result<usize, usize> {
        self.subscribers.binary_search_by_key(&id, |handle| handle.id)
    }

    /// Whether something made from that generation is still right.
    pub(super) fn is_current(&self, made: u64) -> bool {
        made >= self.changed
    }

    /// Keeps a collection unless a newer one is there, and forgets what it has taken in.
    pub(super) fn keep_collection(&mut self, made: u64, collection: &Arc<Collection>) {
        let changed = self.changed;
        match &mut self.value {
            Value::Collection(known) if known.made > made => {}
            Value::Collection(known) => {
                known.made = made;
                known.collection = collection.clone();
                known.pending.retain(|(generation, _)| *generation > made);
            }
            value => {
                let mut new = Cached::new(made, collection.clone());
                if changed > made {
                    new.pending.push((changed, Touched::All));
                }
                *value = Value::Collection(new);
            }
        }
    }
}
