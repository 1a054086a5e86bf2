//! What an outbound request of an app inherits from the inbound request that the app works on.
//!
//! While an inbound request is in flight, it is remembered by its trace and by its request id. An
//! outbound request that carries one of them belongs to it: first an exact match of trace and span,
//! which the inbound side wrote itself and an app forwards verbatim; then the request id; then the
//! trace alone.
//!
//! Anybody can send an id that somebody else uses. So an id that an external client chose matches nothing, and
//! where requests of several callers match, nothing is inherited but how far one of them has come, so that a loop
//! ends: the request stays as the app sent it.
//! Several of one caller are taken for copies of one request: the latest deadline, the longest way and a priority
//! that all have are inherited.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;

use http::HeaderValue;

use super::priority::Priority;
use super::visits;

/// An inbound request in flight, as outbound ones see it.
#[derive(Debug, Default)]
pub struct Inflight {
    pub keys: RequestKeys,
    /// Flags of its trace.
    pub flags: u8,
    /// Who sent it; requests with equal values come from one caller.
    pub caller: u64,
    /// It did not come over the mesh: its trace id is an external client's, and matches only with the span that was
    /// given here.
    pub is_external: bool,
    pub deadline: Option<Instant>,
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
pub struct RequestKeys {
    pub trace: u128,
    pub span: u64,
    /// A hash of the request id.
    pub request: u64,
}

/// Requests under one key of which each is looked at, about 1 µs of work; with more, a match is ambiguous.
const MAX_COPIES: usize = 16;

/// What an outbound request inherits.
#[derive(Clone, Debug)]
pub struct Inherited {
    pub deadline: Option<Instant>,
    pub priority: Priority,
    pub via: Option<HeaderValue>,
    /// Where to note what becomes of it, if that is certain.
    pub from: Option<Arc<Inflight>>,
}

/// Requests by a key that several may share. Each of the two ways to be found has shards of its own.
#[derive(Debug)]
pub struct Index<S = RandomState> {
    slots: HashMap<u128, InflightSlot, S>,
}

#[derive(Debug)]
enum InflightSlot {
    One(u64, Arc<Inflight>),
    /// By their addresses: a caller may send thousands with one id, each of which leaves by itself.
    Many(HashMap<usize, (u64, Arc<Inflight>)>),
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
                vacant.insert(InflightSlot::One(tag, value));
            }
            Entry::Occupied(mut occupied) => match occupied.get_mut() {
                InflightSlot::Many(all) => {
                    all.insert(address(&value), (tag, value));
                }
                InflightSlot::One(first, one) => {
                    let first = (address(one), (*first, Arc::clone(one)));
                    let both = HashMap::from([first, (address(&value), (tag, value))]);
                    occupied.insert(InflightSlot::Many(both));
                }
            },
        }
    }

    /// Takes out exactly this value.
    pub fn remove(&mut self, key: u128, value: &Arc<Inflight>) {
        let Some(slot) = self.slots.get_mut(&key) else { return };
        let empty = match slot {
            InflightSlot::One(_, one) => Arc::ptr_eq(one, value),
            InflightSlot::Many(all) => {
                all.remove(&address(value));
                all.is_empty()
            }
        };
        if empty {
            self.slots.remove(&key);
        }
    }

    /// What a request inherits that has this key and this tag. None: nobody's, or it is not certain whose.
    pub fn exact(&self, key: u128, tag: u64) -> Option<Inherited> {
        match self.slots.get(&key)? {
            InflightSlot::One(of, one) => (*of == tag).then(|| inherit_one(one)),
            InflightSlot::Many(all) => {
                inherit(all.values().filter(|(of, _)| *of == tag).map(|(_, one)| one))
            }
        }
    }

    /// What a request inherits that has this key alone, which external clients choose at will. None: as above.
    pub fn any(&self, key: u128) -> Option<Inherited> {
        match self.slots.get(&key)? {
            InflightSlot::One(_, one) => (!one.is_external).then(|| inherit_one(one)),
            InflightSlot::Many(all) => {
                inherit(all.values().map(|(_, one)| one).filter(|one| !one.is_external))
            }
        }
    }

    /// How far the requests have come that have this key, where it is not certain whose a request is: the most of some of
    /// them. In a loop each time around adds one.
    pub fn hops(&self, key: u128) -> usize {
        let Some(InflightSlot::Many(all)) = self.slots.get(&key) else { return 0 };
        let ours = all.values().map(|(_, one)| one).filter(|one| !one.is_external);
        ours.take(MAX_COPIES).map(|one| visits::hops(one.via.as_ref())).max().unwrap_or(0)
    }

    /// Keys held, for anyone who wants to see that none is left behind.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }
}

impl Inherited {
    /// Of a request of which is known how far it may have come, and nothing else.
    pub fn after(hops: usize) -> Option<Self> {
        let via = Some(visits::unnamed(hops)?);
        Some(Self { deadline: None, priority: Priority::default(), via, from: None })
    }
}

fn address(value: &Arc<Inflight>) -> usize {
    Arc::as_ptr(value).addr()
}

fn inherit_one(one: &Arc<Inflight>) -> Inherited {
    Inherited {
        deadline: one.deadline(),
        priority: one.priority,
        via: one.via.clone(),
        from: Some(Arc::clone(one)),
    }
}

fn length(via: &Option<HeaderValue>) -> usize {
    via.as_ref().map_or(0, HeaderValue::len)
}

/// What takes nothing away from any of them, if one caller sent them.
fn inherit<'a>(found: impl Iterator<Item = &'a Arc<Inflight>>) -> Option<Inherited> {
    let mut found = found.enumerate();
    let (_, first) = found.next()?;
    let mut all = inherit_one(first);
    for (at, other) in found {
        if at >= MAX_COPIES || other.caller != first.caller {
            return None;
        }
        // Copies come one after the other, each with a little less time; one without a deadline has the
        // latest of all.
        all.deadline = all.deadline.zip(other.deadline()).map(|(a, b)| a.max(b));
        if all.priority != other.priority {
            all.priority = Priority::default();
        }
        // The longest one ends request loops; only proxies with the caller's own identity wrote it.
        if length(&other.via) > length(&all.via) {
            all.via = other.via.clone();
        }
        all.from = None;
    }
    Some(all)
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
