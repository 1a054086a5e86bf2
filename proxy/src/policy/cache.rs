//! Answers that are kept, one store for the process.
//!
//! It knows nothing of HTTP's rules ([`outrigger_core::policy::cache`]) and only keeps within its bytes:
//! what was used least recently goes first. Asked only where a policy has a cache.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::header::HeaderName;
use http::{HeaderMap, HeaderValue};
use outrigger_core::policy::cache::{Cached, Shared, same};

use crate::base::sync::lock;
use crate::observe::metrics::table::{self, Exposition};

/// What an entry costs beside its texts: maps, pointers and the like, roughly.
const OVERHEAD: usize = 512;
/// Answers to the same URI that differ by what they vary by; with more, the oldest one goes.
const MAX_VARIANTS: usize = 32;

/// One answer, whole.
#[derive(Debug)]
pub struct CachedResponse {
    pub headers: HeaderMap,
    pub body: Bytes,
    /// The headers that chose it, and what they said.
    pub names: Vec<HeaderName>,
    pub request: HeaderMap,
    pub stored: Instant,
    /// Its age when it came.
    pub age: Duration,
    pub fresh: Duration,
    /// After `fresh`, instead of a failure.
    pub stale: Duration,
    pub shared: Shared,
}

impl CachedResponse {
    pub fn is_fresh(&self, now: Instant) -> bool {
        self.old(now) < self.fresh
    }

    /// Whether it may still be given instead of a failure.
    pub fn is_usable(&self, now: Instant) -> bool {
        self.old(now) < self.fresh.saturating_add(self.stale)
    }

    pub fn age(&self, now: Instant) -> Duration {
        self.age.saturating_add(self.old(now))
    }

    fn old(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.stored)
    }

    fn bytes(&self, key: &str) -> usize {
        let of = |headers: &HeaderMap| -> usize {
            headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 64).sum()
        };
        OVERHEAD + key.len() + self.body.len() + of(&self.headers) + of(&self.request)
    }
}

/// How often the store was asked and what came of it.
#[derive(Default)]
pub struct CacheCounts {
    pub hits: AtomicU64,
    pub misses: AtomicU64,
    pub stored: AtomicU64,
}

pub struct Cache {
    limit: usize,
    inner: Mutex<CacheInner>,
    pub counts: CacheCounts,
}

#[derive(Default)]
struct CacheInner {
    entries: HashMap<Arc<str>, Vec<CacheSlot>>,
    /// Keys by when an entry of theirs was used.
    order: BTreeMap<u64, Arc<str>>,
    turn: u64,
    bytes: usize,
}

struct CacheSlot {
    entry: Arc<CachedResponse>,
    bytes: usize,
    /// Its place in `order`.
    turn: u64,
}

impl Cache {
    pub fn new(limit: usize) -> Self {
        Self { limit, inner: Mutex::default(), counts: CacheCounts::default() }
    }

    /// The answer that such a request got before, if it may still be given.
    pub fn find(
        &self,
        key: &str,
        request: &HeaderMap,
        now: Instant,
    ) -> Option<Arc<CachedResponse>> {
        let mut shelves = self.lock();
        let shelves = &mut *shelves;
        let (key, kept) = shelves.entries.get_key_value(key)?;
        let at =
            kept.iter().position(|kept| same(&kept.entry.names, &kept.entry.request, request))?;
        let key = Arc::clone(key);
        if !kept[at].entry.is_usable(now) {
            shelves.remove(&key, at);
            return None;
        }
        let turn = shelves.next_turn();
        let kept = &mut shelves.entries.get_mut(&key)?[at];
        shelves.order.remove(&kept.turn);
        kept.turn = turn;
        shelves.order.insert(turn, key);
        Some(Arc::clone(&kept.entry))
    }

    /// Keeps an answer in the place of the one before.
    pub fn store(&self, key: &str, entry: CachedResponse) {
        let bytes = entry.bytes(key);
        if bytes > self.limit {
            return;
        }
        let mut shelves = self.lock();
        let shelves = &mut *shelves;
        let key: Arc<str> = match shelves.entries.get_key_value(key) {
            Some((key, _)) => Arc::clone(key),
            None => Arc::from(key),
        };
        // Only the newest answer says what answers depend on.
        while let Some(at) = outdated(shelves.entries.get(&key), &entry.names) {
            shelves.remove(&key, at);
        }
        let before = shelves.entries.get(&key).map_or(&[][..], Vec::as_slice);
        let same = |kept: &CacheSlot| same(&entry.names, &entry.request, &kept.entry.request);
        let replaced = before.iter().position(same);
        if let Some(at) = replaced.or_else(|| (before.len() >= MAX_VARIANTS).then_some(0)) {
            shelves.remove(&key, at);
        }
        let turn = shelves.next_turn();
        let kept = CacheSlot { entry: Arc::new(entry), bytes, turn };
        shelves.entries.entry(Arc::clone(&key)).or_default().push(kept);
        shelves.order.insert(turn, key);
        shelves.bytes += bytes;
        self.counts.stored.fetch_add(1, Relaxed);
        while shelves.bytes > self.limit && shelves.drop_oldest() {}
    }

    /// What was kept under a key is no longer true.
    pub fn forget(&self, key: &str) {
        let mut shelves = self.lock();
        let Some((key, kept)) = shelves.entries.remove_entry(key) else { return };
        drop(key);
        for kept in kept {
            shelves.order.remove(&kept.turn);
            shelves.bytes -= kept.bytes;
        }
    }

    /// Bytes and answers that are kept.
    pub fn size(&self) -> (usize, usize) {
        let shelves = self.lock();
        (shelves.bytes, shelves.order.len())
    }

    /// In the Prometheus text format.
    pub fn expose(&self, out: &mut Exposition) {
        for (result, count) in [("hit", &self.counts.hits), ("miss", &self.counts.misses)] {
            out.add(&table::CACHE_REQUESTS, &[&result], count.load(Relaxed));
        }
        out.add(&table::CACHE_STORED, &[], self.counts.stored.load(Relaxed));
        let (bytes, entries) = self.size();
        out.add(&table::CACHE_BYTES, &[], bytes);
        out.add(&table::CACHE_ENTRIES, &[], entries);
    }

    fn lock(&self) -> MutexGuard<'_, CacheInner> {
        lock(&self.inner)
    }
}

fn outdated(kept: Option<&Vec<CacheSlot>>, names: &[HeaderName]) -> Option<usize> {
    kept?.iter().position(|kept| kept.entry.names != names)
}

impl CacheInner {
    fn next_turn(&mut self) -> u64 {
        self.turn += 1;
        self.turn
    }

    fn remove(&mut self, key: &Arc<str>, at: usize) {
        let Some(kept) = self.entries.get_mut(key) else { return };
        let gone = kept.remove(at);
        if kept.is_empty() {
            self.entries.remove(key);
        }
        self.order.remove(&gone.turn);
        self.bytes -= gone.bytes;
    }

    fn drop_oldest(&mut self) -> bool {
        let Some((turn, key)) = self.order.pop_first() else { return false };
        let kept = self.entries.get(&key).map_or(&[][..], Vec::as_slice);
        if let Some(at) = kept.iter().position(|kept| kept.turn == turn) {
            self.remove(&key, at);
        }
        true
    }
}

/// An answer that is being kept while it passes.
pub struct Recorder {
    pub(crate) key: Box<str>,
    pub(crate) headers: HeaderMap,
    pub(crate) names: Vec<HeaderName>,
    pub(crate) request: HeaderMap,
    pub(crate) kept: Cached,
    pub(crate) most: usize,
    pub(crate) body: BytesMut,
    pub(crate) came: Instant,
}

impl Recorder {
    /// A frame of the body; none: trailers. False: it is not kept after all.
    pub fn frame(&mut self, data: Option<&Bytes>) -> bool {
        let Some(data) = data else { return false };
        if self.body.len() + data.len() > self.most {
            return false;
        }
        self.body.extend_from_slice(data);
        true
    }

    /// The answer was whole.
    pub fn store(self, cache: &Cache) {
        let Cached { fresh, stale, age, shared } = self.kept;
        let entry = CachedResponse {
            headers: compact(&self.headers),
            body: Vec::from(self.body).into_boxed_slice().into(),
            names: self.names,
            request: compact(&self.request),
            stored: self.came,
            age,
            fresh,
            stale,
            shared,
        };
        cache.store(&self.key, entry);
    }
}

/// The same in memory of its own: values read from a connection hold the whole buffer that they came in.
fn compact(headers: &HeaderMap) -> HeaderMap {
    let own = |value: &HeaderValue| HeaderValue::from_bytes(value.as_bytes()).ok();
    headers.iter().filter_map(|(name, value)| Some((name.clone(), own(value)?))).collect()
}

#[cfg(test)]
mod tests {
    use http::header::{ACCEPT, HeaderValue};

    use super::*;

    /// An answer that said `Age: 18446744073709551615` ended the process when it was given again.
    #[test]
    fn an_age_beyond_all_time_has_an_end() {
        let mut entry = entry(1, None);
        (entry.age, entry.fresh, entry.stale) = (Duration::MAX, Duration::MAX, Duration::MAX);
        let later = entry.stored.checked_add(Duration::from_secs(3)).unwrap();
        assert_eq!(entry.age(later), Duration::MAX);
        assert!(entry.is_fresh(later) && entry.is_usable(later));
    }

    fn entry(body: usize, accept: Option<&'static str>) -> CachedResponse {
        let mut request = HeaderMap::new();
        if let Some(value) = accept {
            request.insert(ACCEPT, HeaderValue::from_static(value));
        }
        CachedResponse {
            headers: HeaderMap::new(),
            body: vec![b'x'; body].into(),
            names: accept.map(|_| ACCEPT).into_iter().collect(),
            request,
            stored: Instant::now(),
            age: Duration::ZERO,
            fresh: Duration::from_secs(5),
            stale: Duration::from_secs(5),
            shared: Shared::default(),
        }
    }

    #[test]
    fn what_is_used_least_makes_room_and_the_bytes_are_never_passed() {
        let cache = Cache::new(10 * (OVERHEAD + 100));
        let none = HeaderMap::new();
        for i in 0..1_000 {
            cache.store(&format!("k{i:03}"), entry(96, None));
            assert!(cache.size().0 <= cache.limit);
            assert!(cache.find("k000", &none, Instant::now()).is_some(), "it is used, {i}");
        }
        assert_eq!(cache.size().1, 10);
        assert!(cache.find("k500", &none, Instant::now()).is_none());
        cache.store("huge", entry(1_000_000, None));
        assert!(cache.find("huge", &none, Instant::now()).is_none());
        for i in 0..1_000 {
            cache.forget(&format!("k{i:03}"));
        }
        assert_eq!(cache.size(), (0, 0));
    }

    #[test]
    fn variants_are_told_apart_replaced_and_bounded() {
        let cache = Cache::new(1 << 20);
        let now = Instant::now();
        for (body, accept) in [(1, "a"), (2, "b"), (3, "a")] {
            cache.store("k", entry(body, Some(accept)));
        }
        let found = |accept: &'static str| {
            let request = entry(0, Some(accept)).request;
            cache.find("k", &request, now).map(|entry| entry.body.len())
        };
        assert_eq!((found("a"), found("b"), found("c")), (Some(3), Some(2), None));
        for i in 0..100usize {
            let mut one = entry(i, Some("x"));
            one.request.insert(ACCEPT, HeaderValue::from(i));
            cache.store("k", one);
        }
        assert_eq!(cache.size().1, MAX_VARIANTS);
    }

    #[test]
    fn what_is_too_old_even_for_a_failure_is_gone() {
        let cache = Cache::new(1 << 20);
        cache.store("k", entry(1, None));
        let at = |seconds| Instant::now() + Duration::from_secs(seconds);
        let none = HeaderMap::new();
        assert!(cache.find("k", &none, at(1)).is_some_and(|entry| entry.is_fresh(at(1))));
        assert!(cache.find("k", &none, at(7)).is_some_and(|entry| !entry.is_fresh(at(7))));
        assert!(cache.find("k", &none, at(11)).is_none());
        assert_eq!(cache.size(), (0, 0));
    }
}
