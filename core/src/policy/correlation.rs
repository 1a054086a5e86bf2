//! What an outbound request of an app inherits from the inbound request that the app works on.
//!
//! While an inbound request is in flight, it is remembered by its trace and by its request id. An
//! outbound request that carries one of them belongs to it: first an exact match of trace and span,
//! which the inbound side wrote itself and an app forwards verbatim; then the request id; then the
//! trace alone. Where several match, the latest deadline, the highest priority and the longest way
//! apply: an ambiguous match never ends a request early.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;

use http::HeaderValue;

use super::priority::Priority;

/// An inbound request in flight, as outbound ones see it.
#[derive(Debug, Default)]
pub struct Inflight {
    pub keys: Keys,
    pub deadline: Option<Instant>,
    /// The milliseconds that the app was told; an outbound request with exactly these repeats them.
    pub told_millis: Option<u64>,
    pub priority: Priority,
    /// The services that it has come through ([`super::visits`]).
    pub via: Option<HeaderValue>,
    /// The deadline ended with the head of the response: what goes on after it has none.
    pub deadline_over: AtomicBool,
    /// A call that it led to has failed and was tried again as often as it may be.
    pub exhausted: AtomicBool,
}

/// What a request is recognized by. Zero: it has none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keys {
    pub trace: u128,
    pub span: u64,
    /// A hash of the request id.
    pub request: u64,
}

/// How sure it is that an outbound request belongs to what was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Certainty {
    /// Several inbound requests match.
    Ambiguous,
    /// One does.
    Unique,
}

/// What an outbound request inherits.
#[derive(Clone, Debug)]
pub struct Inherited {
    pub deadline: Option<Instant>,
    pub told_millis: Option<u64>,
    pub priority: Priority,
    pub via: Option<HeaderValue>,
    /// Where to note what becomes of it, if that is certain.
    pub from: Option<Arc<Inflight>>,
}

/// Values by a key that several may share. Each of the two ways to be found has shards of its own.
#[derive(Debug)]
pub struct Index<S = RandomState> {
    slots: HashMap<u128, Slot, S>,
}

#[derive(Debug)]
enum Slot {
    One(u64, Arc<Inflight>),
    Many(Vec<(u64, Arc<Inflight>)>),
}

impl<S: BuildHasher + Default> Default for Index<S> {
    fn default() -> Self {
        Self { slots: HashMap::default() }
    }
}

impl<S: BuildHasher> Index<S> {
    /// `tag` tells apart what shares a key.
    pub fn insert(&mut self, key: u128, tag: u64, value: Arc<Inflight>) {
        use std::collections::hash_map::Entry;
        match self.slots.entry(key) {
            Entry::Vacant(vacant) => {
                vacant.insert(Slot::One(tag, value));
            }
            Entry::Occupied(mut occupied) => match occupied.get_mut() {
                Slot::Many(all) => all.push((tag, value)),
                Slot::One(first, one) => {
                    let both = vec![(*first, Arc::clone(one)), (tag, value)];
                    occupied.insert(Slot::Many(both));
                }
            },
        }
    }

    /// Takes out exactly this value.
    pub fn remove(&mut self, key: u128, value: &Arc<Inflight>) {
        let Some(slot) = self.slots.get_mut(&key) else { return };
        let empty = match slot {
            Slot::One(_, one) => Arc::ptr_eq(one, value),
            Slot::Many(all) => {
                all.retain(|(_, one)| !Arc::ptr_eq(one, value));
                all.is_empty()
            }
        };
        if empty {
            self.slots.remove(&key);
        }
    }

    pub fn find(&self, key: u128) -> Found<'_> {
        match self.slots.get(&key) {
            None => Found { first: None, all: &[] },
            Some(Slot::One(tag, one)) => Found { first: Some((*tag, one)), all: &[] },
            Some(Slot::Many(all)) => Found { first: None, all },
        }
    }

    /// Keys held, for whoever wants to see that none is left behind.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }
}

/// Everything that one key leads to.
#[derive(Clone, Copy, Debug)]
pub struct Found<'a> {
    first: Option<(u64, &'a Arc<Inflight>)>,
    all: &'a [(u64, Arc<Inflight>)],
}

impl<'a> Found<'a> {
    fn iter(self) -> impl Iterator<Item = (u64, &'a Arc<Inflight>)> {
        self.first.into_iter().chain(self.all.iter().map(|(tag, one)| (*tag, one)))
    }

    /// Those with this tag alone.
    pub fn tagged(self, tag: u64) -> Option<Inherited> {
        inherit(self.iter().filter(|(of, _)| *of == tag).map(|(_, one)| one))
    }

    pub fn any(self) -> Option<Inherited> {
        inherit(self.iter().map(|(_, one)| one))
    }
}

fn inherit<'a>(mut found: impl Iterator<Item = &'a Arc<Inflight>>) -> Option<Inherited> {
    let first = found.next()?;
    let mut all = Inherited {
        deadline: first.deadline(),
        told_millis: first.told_millis,
        priority: first.priority,
        via: first.via.clone(),
        from: Some(Arc::clone(first)),
    };
    for other in found {
        // One without a deadline has the latest of all.
        all.deadline = all.deadline.zip(other.deadline()).map(|(a, b)| a.max(b));
        all.told_millis = None;
        all.priority = all.priority.max(other.priority);
        let length = |via: &Option<HeaderValue>| via.as_ref().map_or(0, HeaderValue::len);
        if length(&other.via) > length(&all.via) {
            all.via = other.via.clone();
        }
        all.from = None;
    }
    Some(all)
}

impl Inherited {
    pub fn certainty(&self) -> Certainty {
        if self.from.is_some() { Certainty::Unique } else { Certainty::Ambiguous }
    }
}

impl Inflight {
    fn deadline(&self) -> Option<Instant> {
        self.deadline.filter(|_| !self.deadline_over.load(Relaxed))
    }

    /// Calls from now on inherit no deadline.
    pub fn end_deadline(&self) {
        self.deadline_over.store(true, Relaxed);
    }

    /// A call that it led to has failed for good, so nobody above need try it again.
    pub fn note_exhausted(&self) {
        self.exhausted.store(true, Relaxed);
    }

    pub fn is_exhausted(&self) -> bool {
        self.exhausted.load(Relaxed)
    }
}
