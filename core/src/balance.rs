//! Choosing one endpoint of several: power of two choices, round robin, ring hash.
//!
//! The machines here know indexes and loads, not sockets. Random numbers and hashes come in as
//! arguments, so a simulation can replay a run. Hashes are our own and fixed for all time: every
//! proxy of every version must send the same key to the same endpoint.

pub mod subset;

pub use subset::subset;

/// The less loaded of two different endpoints picked at random; `n` is at least 1.
///
/// Two choices get most of what the full comparison would, without every caller running to the
/// same endpoint (Mitzenmacher, The Power of Two Choices in Randomized Load Balancing, 2001).
pub fn power_of_two(n: usize, random: u64, load: impl Fn(usize) -> f32) -> usize {
    if n < 2 {
        return 0;
    }
    let below = |random: u64, n: usize| (((random & 0xffff_ffff) * n as u64) >> 32) as usize;
    let first = below(random >> 32, n);
    let mut second = below(random, n - 1);
    if second >= first {
        second += 1;
    }
    if load(second) < load(first) { second } else { first }
}

/// Each in its turn; `n` is at least 1.
pub fn round_robin(counter: u64, n: usize) -> usize {
    (counter % n.max(1) as u64) as usize
}

/// Latency of one endpoint as a peak-sensitive, exponentially decaying average.
///
/// The state is one number, so that the proxy can keep it in an atomic: the cost in microseconds
/// as the bits of an `f32`, then the time of the last change in milliseconds. A slow answer counts
/// at once and whole, fast ones win back trust slowly (Finagle's peak EWMA). 0 is an endpoint that
/// has never answered.
pub mod ewma {
    /// After this time without news a cost has lost 63 % of its weight. Finagle's default.
    const DECAY_MS: f32 = 10_000.0;
    /// Cost of an endpoint that has never answered: quicker than most, so that it gets its chance.
    const FRESH_US: f32 = 100.0;
    /// Cost per request in flight of an endpoint that has never answered, once it has one: it is
    /// tried, and nobody queues up at it before the answer is there.
    const FRESH_BUSY_US: f32 = 1_000_000.0;
    /// No cost is below this, so that a state is never mistaken for a fresh one.
    const LEAST_US: f32 = 1.0;

    /// The state after an answer that took `latency_us`.
    pub fn observe(packed: u64, now_ms: u32, latency_us: u32) -> u64 {
        let (cost, stamp) = unpack(packed);
        let latency = latency_us as f32;
        let (cost, stamp) = if packed == 0 {
            (latency, now_ms)
        } else if latency >= cost * weight(stamp, now_ms) {
            (latency, newer(stamp, now_ms))
        } else {
            let weight = weight(stamp, now_ms);
            (cost * weight + latency * (1.0 - weight), newer(stamp, now_ms))
        };
        pack(cost.max(LEAST_US), stamp)
    }

    /// The cost in microseconds by now: what has not been heard of for long is worth a new attempt.
    pub fn cost(packed: u64, now_ms: u32) -> f32 {
        if packed == 0 {
            return FRESH_US;
        }
        let (cost, stamp) = unpack(packed);
        (cost * weight(stamp, now_ms)).max(LEAST_US)
    }

    /// What [`super::power_of_two`] compares: the cost times the requests that would be in flight.
    pub fn load(packed: u64, now_ms: u32, in_flight: u32) -> f32 {
        if packed == 0 && in_flight > 0 {
            return FRESH_BUSY_US * in_flight as f32;
        }
        cost(packed, now_ms) * (in_flight as f32 + 1.0)
    }

    pub(super) fn pack(cost: f32, stamp: u32) -> u64 {
        u64::from(cost.to_bits()) << 32 | u64::from(stamp)
    }

    pub(super) fn unpack(packed: u64) -> (f32, u32) {
        (f32::from_bits((packed >> 32) as u32), packed as u32)
    }

    /// Milliseconds since `stamp`; 0 where another worker's clock reading was a little later. The
    /// counter comes round after 49 days, which this survives.
    fn elapsed(stamp: u32, now_ms: u32) -> u32 {
        let elapsed = now_ms.wrapping_sub(stamp);
        if elapsed > u32::MAX / 2 { 0 } else { elapsed }
    }

    pub(super) fn newer(stamp: u32, now_ms: u32) -> u32 {
        stamp.wrapping_add(elapsed(stamp, now_ms))
    }

    pub(super) fn weight(stamp: u32, now_ms: u32) -> f32 {
        (-(elapsed(stamp, now_ms) as f32) / DECAY_MS).exp()
    }
}

/// How much of what an endpoint answers is failures, and what it shall get for that.
///
/// A failure is often quicker than an answer, so that latency and requests in flight make who fails look
/// good. The state is one number, as in [`ewma`]: the share of failures as the bits of an `f32`, then the time
/// of the last change. 0 is an endpoint that has never failed.
pub mod failures {
    use super::ewma::{newer, pack, unpack, weight};

    /// What one answer changes.
    const STEP: f32 = 0.1;
    /// After a failure of an endpoint that has never answered well.
    const FIRST: f32 = 0.5;
    /// What one that only fails still gets, so that its recovery is seen.
    pub const LEAST_SHARE: f32 = 1.0 / 16.0;

    /// The state after an answer. `known`: the endpoint has answered well before.
    pub fn observe(packed: u64, now_ms: u32, failed: bool, known: bool) -> u64 {
        if packed == 0 && !failed {
            return 0;
        }
        let (rate, stamp) = if packed == 0 { (0.0, now_ms) } else { unpack(packed) };
        let rate = rate * weight(stamp, now_ms) * (1.0 - STEP) + if failed { STEP } else { 0.0 };
        let rate = if failed && !known { rate.max(FIRST) } else { rate };
        pack(rate, newer(stamp, now_ms))
    }

    /// The share of failures by now, 0 to 1.
    pub fn rate(packed: u64, now_ms: u32) -> f32 {
        if packed == 0 {
            return 0.0;
        }
        let (rate, stamp) = unpack(packed);
        rate * weight(stamp, now_ms)
    }

    /// Of what it would get otherwise, 0 to 1.
    pub fn share(packed: u64, now_ms: u32) -> f32 {
        let well = 1.0 - rate(packed, now_ms);
        (well * well).max(LEAST_SHARE)
    }
}

/// Consistent hashing: a key stays with its endpoint while others come and go.
#[derive(Clone, Debug)]
pub struct Ring {
    /// Sorted points, each with the index of its endpoint.
    points: Vec<(u64, u32)>,
}

/// Points of one endpoint on a ring. 160 (libketama's number) keep the busiest of 100 endpoints
/// within about 25 % of the average.
const POINTS: u64 = 160;

impl Ring {
    /// A ring of endpoints by their ids; the order of `ids` does not change who gets which key.
    pub fn new(ids: &[&str]) -> Self {
        let mut points = Vec::with_capacity(ids.len() * POINTS as usize);
        for (index, id) in (0u32..).zip(ids) {
            let seed = hash(id.as_bytes());
            points.extend((0..POINTS).map(|i| (combine(seed, i), index)));
        }
        points.sort_unstable_by_key(|(point, index)| (*point, ids[*index as usize]));
        Self { points }
    }

    /// The index in `ids` for a key's hash; 0 on an empty ring.
    pub fn pick(&self, hash: u64) -> usize {
        let at = self.points.partition_point(|(point, _)| *point < hash);
        let around = self.points.get(at).or_else(|| self.points.first());
        around.map_or(0, |(_, index)| *index as usize)
    }
}

/// FNV-1a with a final mix, so that similar keys land far apart.
pub fn hash(bytes: &[u8]) -> u64 {
    let fnv = bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    mix(fnv)
}

fn combine(a: u64, b: u64) -> u64 {
    mix(a ^ mix(b.wrapping_add(0x9e37_79b9_7f4a_7c15)))
}

/// The finalizer of MurmurHash3.
fn mix(mut value: u64) -> u64 {
    value = (value ^ value >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
    value = (value ^ value >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    value ^ value >> 33
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_fails_gets_less_by_as_much_as_it_fails_and_recovers() {
        let (mut always, mut sometimes) = (0, 0);
        for ms in 0..2_000 {
            always = failures::observe(always, ms, true, true);
            sometimes = failures::observe(sometimes, ms, ms % 100 == 99, true);
        }
        assert!((failures::share(always, 2_000) - failures::LEAST_SHARE).abs() < 0.01);
        assert!(failures::share(sometimes, 2_000) > 0.75);
        assert!(
            failures::share(failures::observe(0, 0, true, false), 0) < 0.3,
            "it knows nothing better"
        );
        assert!(failures::share(always, 32_000) > 0.9, "what was long ago counts no more");
        let recovered = (0..50).fold(always, |f, n| failures::observe(f, 2_000 + n, false, true));
        assert!(failures::share(recovered, 2_050) > 0.95);
        assert_eq!(failures::share(0, 0), 1.0);
    }

    #[test]
    fn two_different_endpoints_are_compared() {
        assert_eq!(power_of_two(1, u64::MAX, |_| 0.0), 0);
        for random in [0, 1, u64::MAX, 0x8000_0000_0000_0000, 0xffff_ffff, 0x1234_5678_9abc_def0] {
            for n in [2, 3, 7, 100] {
                let seen = std::cell::RefCell::new(Vec::new());
                power_of_two(n, random, |i| {
                    seen.borrow_mut().push(i);
                    0.0
                });
                let seen = seen.into_inner();
                assert_eq!(seen.len(), 2);
                assert!(seen[0] != seen[1] && seen.iter().all(|i| *i < n), "{seen:?} of {n}");
            }
            assert_eq!(power_of_two(2, random, |i| [5.0, 1.0][i]), 1);
            assert_eq!(power_of_two(2, random, |i| [1.0, 5.0][i]), 0);
        }
    }

    #[test]
    fn every_endpoint_has_its_turn() {
        let turns: Vec<_> = (4..10).map(|turn| round_robin(turn, 3)).collect();
        assert_eq!(turns, [1, 2, 0, 1, 2, 0]);
        assert_eq!(round_robin(5, 1), 0);
    }

    #[test]
    fn a_slow_answer_counts_at_once_and_is_forgotten_slowly() {
        let fast = ewma::observe(0, 1_000, 1_000);
        assert_eq!(ewma::cost(fast, 1_000), 1_000.0);
        let slow = ewma::observe(fast, 1_010, 50_000);
        assert_eq!(ewma::cost(slow, 1_010), 50_000.0);
        let mut state = slow;
        for i in 0..10 {
            state = ewma::observe(state, 1_020 + i * 10, 1_000);
        }
        assert!(ewma::cost(state, 1_120) > 45_000.0, "ten fast answers must not hide it");
        // One decay time without any news.
        let rested = ewma::cost(slow, 11_010);
        assert!((18_000.0..19_000.0).contains(&rested), "{rested}");
        assert_eq!(ewma::cost(slow, 1_000_000), 1.0);
    }

    #[test]
    fn time_may_come_round_and_go_back_a_little() {
        let state = ewma::observe(0, u32::MAX - 10, 1_000);
        assert!((ewma::cost(state, 89) - 990.0).abs() < 1.0);
        assert_eq!(ewma::cost(state, u32::MAX - 20), 1_000.0);
        let earlier = ewma::observe(state, u32::MAX - 20, 2_000);
        assert_eq!(ewma::cost(earlier, u32::MAX - 10), 2_000.0);
    }

    #[test]
    fn a_fresh_endpoint_gets_one_request_and_no_queue() {
        let known = ewma::observe(0, 0, 20_000);
        assert!(ewma::load(0, 0, 0) < ewma::load(known, 0, 0));
        assert!(ewma::load(0, 0, 1) > ewma::load(known, 0, 5));
        let answered_at_once = ewma::observe(0, 0, 0);
        assert_ne!(answered_at_once, 0, "never mistaken for a fresh one");
    }

    /// Other versions of the proxy must agree, so these numbers never change.
    #[test]
    fn hashes_are_fixed_for_all_time() {
        assert_eq!(hash(b""), 0xefd0_1f60_ba99_2926);
        assert_eq!(hash(b"bank.orders-1:8080"), 0xed2e_0998_b1f1_b045);
        let ring = Ring::new(&["a:1", "b:1", "c:1"]);
        let picks: Vec<_> = (0..8).map(|i| ring.pick(hash(&[i]))).collect();
        assert_eq!(picks, [2, 2, 0, 1, 2, 0, 1, 1]);
    }

    #[test]
    fn a_ring_does_not_depend_on_the_order_of_endpoints() {
        let ids = ["a:1", "b:1", "c:1", "d:1"];
        let turned = ["c:1", "d:1", "a:1", "b:1"];
        let (one, other) = (Ring::new(&ids), Ring::new(&turned));
        for key in 0..1000u64 {
            let key = hash(&key.to_be_bytes());
            assert_eq!(ids[one.pick(key)], turned[other.pick(key)]);
        }
        assert_eq!(Ring::new(&[]).pick(7), 0);
    }

    #[test]
    fn a_subset_prefers_its_own_zone() {
        let candidates = [
            ("a", Some("z1")),
            ("b", Some("z2")),
            ("c", Some("z1")),
            ("d", None),
            ("e", Some("z2")),
        ];
        assert_eq!(subset("p", Some("z2"), &candidates, 2), [1, 4]);
        let three = subset("p", Some("z2"), &candidates, 3);
        assert!(three.len() == 3 && three.contains(&1) && three.contains(&4), "{three:?}");
        assert_eq!(subset("p", None, &candidates, 5), [0, 1, 2, 3, 4]);
        assert_eq!(subset("p", Some("z1"), &candidates, 9), [0, 1, 2, 3, 4]);
        assert_eq!(subset("p", None, &candidates, 0), [0usize; 0]);
    }
}
