//! A second attempt while the first one is still waiting: what cuts the tail of latency where one instance in
//! many is slow now and then.
//!
//! It is an attempt like any other: it takes one of the budget and one of `max_attempts`, and is only made where
//! twice does no harm. [`bucket`] and [`bucket_end`] are the scale of the latencies that are kept to know the
//! 95th percentile.

use std::time::Duration;

/// When the second attempt is made. At least 1 ms, at most a minute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HedgeConfig {
    After(Duration),
    /// After the observed 95th percentile of the service, and never earlier than `min`.
    AfterP95 {
        min: Duration,
    },
}

/// What became of a hedge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hedged {
    Won,
    Lost,
    NoBudget,
}

impl Hedged {
    pub const ALL: [Self; 3] = [Self::Won, Self::Lost, Self::NoBudget];

    /// The word in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Won => "won",
            Self::Lost => "lost",
            Self::NoBudget => "no_budget",
        }
    }
}

/// Buckets of latencies: four to each doubling, up to 71 minutes.
pub const BUCKETS: usize = 124;
/// Fewer latencies say nothing about their 95th percentile.
pub const LEAST: u64 = 20;

/// The bucket of a latency in microseconds.
pub fn bucket(us: u32) -> usize {
    if us < 4 {
        return us as usize;
    }
    let octave = us.ilog2();
    4 * (octave as usize - 1) + ((us >> (octave - 2)) & 3) as usize
}

/// The first latency in microseconds above a bucket.
pub fn bucket_end(bucket: usize) -> u64 {
    match bucket {
        0..4 => bucket as u64 + 1,
        _ => (4 + bucket as u64 % 4 + 1) << (bucket / 4 - 1),
    }
}

/// The 95th percentile of what is in the buckets, rounded up to the end of its bucket.
pub fn p95(counts: &[u64; BUCKETS]) -> Option<Duration> {
    let total: u64 = counts.iter().sum();
    if total < LEAST {
        return None;
    }
    let rank = total - total / 20;
    let mut upto = 0;
    let at = counts.iter().position(|count| {
        upto += count;
        upto >= rank
    })?;
    Some(Duration::from_micros(bucket_end(at)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_follow_each_other_and_hold_what_belongs_to_them() {
        let mut last = 0;
        for us in (0..100_000).chain((0..32).flat_map(|bit| [(1u32 << bit) - 1, 1 << bit])) {
            let at = bucket(us);
            assert!(at < BUCKETS && u64::from(us) < bucket_end(at), "{us}");
            assert!(at == 0 || u64::from(us) >= bucket_end(at - 1), "{us}");
            last = last.max(at);
        }
        assert_eq!(bucket(u32::MAX), BUCKETS - 1);
        assert!(last < BUCKETS);
    }

    #[test]
    fn the_percentile_is_at_most_a_quarter_too_high() {
        let mut counts = [0; BUCKETS];
        for us in 1..=1_000u32 {
            counts[bucket(us * 10)] += 1;
        }
        let found = p95(&counts).unwrap().as_micros();
        assert!((9_500..=11_900).contains(&found), "{found}");
        assert_eq!(p95(&[0; BUCKETS]), None);
    }
}
