//! The inbound requests in flight, so that outbound ones of the same app inherit what they carry.
//!
//! One table for the process, in shards; `core/src/policy/correlation.rs` decides what matches.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use outrigger_core::policy::correlation::{Index, Inflight, Inherited, RequestKeys};

use crate::observe::metrics::{Metrics, add};

/// Requests remembered at one time; beyond it none are added.
const MAX_ENTRIES: u64 = 100_000;
/// More than workers, so that two rarely want the same one.
const SHARDS: usize = 16;

type Shard = Mutex<Index<foldhash::fast::RandomState>>;

pub struct Correlation {
    traces: [Shard; SHARDS],
    requests: [Shard; SHARDS],
    /// Keyed, so that callers cannot choose request ids that collide.
    hasher: RandomState,
    metrics: Arc<Metrics>,
}

/// A request's place in the table; to be given back to [`Correlation::forget`].
pub struct Remembered(Arc<Inflight>);

impl Remembered {
    /// The deadline has ended with the head of the response.
    pub fn end_deadline(&self) {
        self.0.end_deadline();
    }

    /// Whether a call that the request led to has failed for good.
    pub fn is_exhausted(&self) -> bool {
        self.0.is_exhausted()
    }
}

impl Correlation {
    pub fn new(metrics: Arc<Metrics>) -> Self {
        let (traces, requests, hasher) = Default::default();
        Self { traces, requests, hasher, metrics }
    }

    pub fn is_empty(&self) -> bool {
        self.entries().load(Relaxed) == 0
    }

    fn entries(&self) -> &AtomicU64 {
        &self.metrics.gauges.correlation_entries
    }

    /// The key of a request id; 0 stands for none.
    pub fn hash(&self, request_id: &[u8]) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        // Its bytes alone: nothing else is hashed that could be taken for the end of one.
        hasher.write(request_id);
        hasher.finish().max(1)
    }

    /// Remembers an inbound request. None: nothing identifies it, or the table is full.
    pub fn remember(&self, inflight: Inflight) -> Option<Remembered> {
        if inflight.keys.trace == 0 && inflight.keys.request == 0 {
            return None;
        }
        if self.entries().fetch_add(1, Relaxed) >= MAX_ENTRIES {
            self.entries().fetch_sub(1, Relaxed);
            add(&self.metrics.gauges.correlation_full, 1);
            return None;
        }
        let inflight = Arc::new(inflight);
        let keys = inflight.keys;
        let one = || Arc::clone(&inflight);
        if keys.trace != 0 {
            shard(&self.traces, keys.trace as u64).insert(keys.trace, keys.span, one());
        }
        if keys.request != 0 {
            shard(&self.requests, keys.request).insert(keys.request.into(), 0, one());
        }
        Some(Remembered(inflight))
    }

    pub fn forget(&self, remembered: &Remembered) {
        let Remembered(inflight) = remembered;
        let keys = inflight.keys;
        if keys.trace != 0 {
            shard(&self.traces, keys.trace as u64).remove(keys.trace, inflight);
        }
        if keys.request != 0 {
            shard(&self.requests, keys.request).remove(keys.request.into(), inflight);
        }
        self.entries().fetch_sub(1, Relaxed);
    }

    /// What an outbound request inherits: an exact match first, then its request id, then its trace.
    pub fn find(&self, keys: RequestKeys) -> Option<Inherited> {
        if self.is_empty() {
            return None;
        }
        self.find_certain(keys).or_else(|| {
            let of_trace = match keys.trace {
                0 => 0,
                trace => shard(&self.traces, trace as u64).hops(trace),
            };
            let of_request = match keys.request {
                0 => 0,
                request => shard(&self.requests, request).hops(request.into()),
            };
            Inherited::after(of_trace.max(of_request))
        })
    }

    fn find_certain(&self, keys: RequestKeys) -> Option<Inherited> {
        let trace = |keys: RequestKeys| shard(&self.traces, keys.trace as u64);
        if keys.trace != 0
            && let Some(exact) = trace(keys).exact(keys.trace, keys.span)
        {
            return Some(exact);
        }
        if keys.request != 0
            && let Some(found) = shard(&self.requests, keys.request).any(keys.request.into())
        {
            return Some(found);
        }
        if keys.trace == 0 {
            return None;
        }
        trace(keys).any(keys.trace)
    }
}

fn shard(shards: &[Shard; SHARDS], key: u64) -> MutexGuard<'_, Index<foldhash::fast::RandomState>> {
    // The ids of some tracers are not random in their lowest bits.
    let at = (key ^ (key >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 60;
    shards[at as usize].lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use outrigger_core::policy::visits;

    use super::*;

    #[test]
    fn what_is_exact_comes_first_and_nothing_stays_behind() {
        let table = Correlation::new(Arc::new(Metrics::new(1)));
        let now = Instant::now();
        let remember = |caller, trace, span, id: &str, seconds| {
            let keys = RequestKeys { trace, span, request: table.hash(id.as_bytes()) };
            let deadline = Some(now + Duration::from_secs(seconds));
            let inflight = Inflight { keys, caller, deadline, ..Inflight::default() };
            table.remember(inflight).unwrap()
        };
        let all = [
            remember(1, 1, 1, "a", 1),
            remember(1, 1, 2, "b", 2),
            remember(1, 2, 3, "b", 3),
            remember(2, 3, 4, "a", 4),
        ];
        let found = |trace, span, id: Option<&str>| {
            let request = id.map_or(0, |id| table.hash(id.as_bytes()));
            let found = table.find(RequestKeys { trace, span, request })?;
            let left = found.deadline.unwrap() - now;
            Some((left.as_secs(), found.from.is_some()))
        };
        assert_eq!(found(1, 1, Some("b")), Some((1, true)), "trace and span");
        assert_eq!(found(1, 9, Some("b")), Some((3, false)), "the latest of both, of one caller");
        assert_eq!(found(0, 0, Some("a")), None, "two callers sent it");
        assert_eq!(found(3, 9, Some("a")), Some((4, true)), "the trace tells them apart");
        assert_eq!(found(1, 9, None), Some((2, false)), "the trace alone");
        assert_eq!(found(0, 0, Some("c")), None);
        for one in &all {
            table.forget(one);
        }
        assert_eq!(found(1, 1, Some("a")), None);
        assert!(table.is_empty());
        let untraced = remember(1, 0, 0, "d", 4);
        assert_eq!(found(0, 0, Some("d")), Some((4, true)));
        assert!(table.traces.iter().all(|shard| shard.lock().unwrap().is_empty()), "in no trace");
        table.forget(&untraced);
        let empty = |shards: &[Shard]| shards.iter().all(|s| s.lock().unwrap().is_empty());
        assert!(empty(&table.traces) && empty(&table.requests));
    }

    #[test]
    fn how_far_it_has_come_is_inherited_even_where_several_callers_match() {
        let table = Correlation::new(Arc::new(Metrics::new(1)));
        let remember = |caller, hops, is_external| {
            let keys = RequestKeys { trace: 0, span: 0, request: table.hash(b"a") };
            let via = visits::unnamed(hops);
            let deadline = Some(Instant::now());
            let inflight =
                Inflight { keys, caller, is_external, via, deadline, ..Inflight::default() };
            table.remember(inflight).unwrap()
        };
        let find = || table.find(RequestKeys { request: table.hash(b"a"), ..Default::default() });
        let hops = || visits::hops(find().unwrap().via.as_ref());
        let _one = remember(1, 0, false);
        let _two = remember(2, 0, false);
        assert!(find().is_none(), "nothing is known of either");
        let _around = remember(2, 3, false);
        assert_eq!((hops(), find().unwrap().deadline), (3, None));
        let _outside = remember(3, 9, true);
        assert_eq!(hops(), 3, "external clients have no say");
        // One caller with more copies than are looked at.
        let _copies: Vec<_> = (0..40).map(|_| remember(2, 4, false)).collect();
        assert!((3..=4).contains(&hops()));
        assert!(find().unwrap().from.is_none());
    }

    /// An external client that guessed or repeated an id took a deadline away from somebody else, or gave its own.
    #[test]
    fn what_external_clients_choose_matches_nothing_and_takes_nothing_away() {
        let table = Correlation::new(Arc::new(Metrics::new(1)));
        let deadline = Some(Instant::now() + Duration::from_secs(1));
        let request = table.hash(b"a");
        let outside = |deadline| {
            let keys = RequestKeys { trace: 1, span: 77, request: 0 };
            let inflight = Inflight { keys, is_external: true, deadline, ..Inflight::default() };
            table.remember(inflight).unwrap()
        };
        let _first = outside(deadline);
        let find = |span, request| table.find(RequestKeys { trace: 1, span, request });
        assert!(find(9, request).is_none(), "neither its id nor its trace is trusted");
        assert!(find(77, 0).is_some(), "what the app was given is");
        let keys = RequestKeys { trace: 1, span: 5, request };
        let victim = Inflight { keys, caller: 3, deadline, ..Inflight::default() };
        let _victim = table.remember(victim).unwrap();
        let _second = outside(None);
        for span in [5, 9] {
            for request in [request, 0] {
                assert!(find(span, request).is_some_and(|found| found.deadline == deadline));
            }
        }
        let unknown = Inflight { is_external: true, ..Inflight::default() };
        assert!(table.remember(unknown).is_none(), "it could never be found");
    }

    /// Each removal looked through all that shared the key, which made it quadratic.
    #[test]
    fn thousands_under_one_id_come_and_go_quickly() {
        let table = Correlation::new(Arc::new(Metrics::new(1)));
        let keys = RequestKeys { trace: 1, span: 1, request: 1 };
        let began = Instant::now();
        let all: Vec<_> = (0..50_000)
            .map(|_| table.remember(Inflight { keys, ..Inflight::default() }).unwrap())
            .collect();
        assert!((0..1_000).all(|_| table.find(RequestKeys { trace: 0, ..keys }).is_none()));
        for one in &all {
            table.forget(one);
        }
        assert!(table.is_empty());
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    }

    #[test]
    fn a_full_table_adds_nothing() {
        let table = Correlation::new(Arc::new(Metrics::new(1)));
        let remember = |n: u64| {
            let keys = RequestKeys { trace: u128::from(n) + 1, span: 1, request: n + 1 };
            table.remember(Inflight { keys, ..Inflight::default() })
        };
        let held: Vec<_> = (0..MAX_ENTRIES).map(|n| remember(n).unwrap()).collect();
        assert!(remember(MAX_ENTRIES).is_none());
        assert_eq!(table.metrics.gauges.correlation_full.load(Relaxed), 1);
        table.forget(&held[0]);
        assert!(remember(MAX_ENTRIES).is_some());
    }
}
