//! Latencies in a few bytes: counts by buckets that grow by a fifth each.

use std::time::Duration;

/// Buckets of each doubling of the latency: the edges of a bucket are 19 % apart (2^(1/4)).
const PER_DOUBLING: f64 = 4.0;
/// The last bucket, which holds whatever takes longer than an hour and a bit.
pub const LAST_BUCKET: u8 = 127;

/// A sketch of latencies, in which a quantile is off by at most 19 %.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Latencies {
    /// Buckets that hold something, with how many, ordered.
    buckets: Vec<(u8, u64)>,
}

/// The bucket of a latency in microseconds; whatever is below one belongs to the first.
pub fn bucket_of(us: u64) -> u8 {
    let bucket = (us.max(1) as f64).log2() * PER_DOUBLING;
    (bucket as u8).min(LAST_BUCKET)
}

/// The latency at a place between the lower edges of buckets.
pub fn latency_at(bucket: f64) -> Duration {
    Duration::from_secs_f64((bucket / PER_DOUBLING).exp2() / 1e6)
}

impl Latencies {
    pub fn is_empty(&self) -> bool {
        self.buckets.is_empty()
    }

    /// Adds so many to a bucket; to the last one, where there is no such bucket.
    pub fn add(&mut self, bucket: u8, n: u64) {
        if n == 0 {
            return;
        }
        let bucket = bucket.min(LAST_BUCKET);
        match self.buckets.binary_search_by_key(&bucket, |(bucket, _)| *bucket) {
            Ok(at) => self.buckets[at].1 = self.buckets[at].1.saturating_add(n),
            Err(at) => self.buckets.insert(at, (bucket, n)),
        }
    }

    pub fn merge(&mut self, other: &Self) {
        for (bucket, n) in &other.buckets {
            self.add(*bucket, *n);
        }
    }

    /// What there is more than in `before`, as it was earlier.
    pub fn since(&self, before: &Self) -> Self {
        let more = |(bucket, n): &(u8, u64)| {
            let at = before.buckets.binary_search_by_key(bucket, |(bucket, _)| *bucket);
            let more = n.saturating_sub(at.map_or(0, |at| before.buckets[at].1));
            (more > 0).then_some((*bucket, more))
        };
        Self { buckets: self.buckets.iter().filter_map(more).collect() }
    }

    /// Buckets that hold something, with how many, ordered.
    pub fn buckets(&self) -> &[(u8, u64)] {
        &self.buckets
    }

    pub fn count(&self) -> u64 {
        self.buckets.iter().fold(0, |sum, (_, n)| sum.saturating_add(*n))
    }

    /// How many are in buckets from this place on.
    pub fn count_from(&self, bucket: f64) -> u64 {
        let from = self.buckets.iter().filter(|(at, _)| f64::from(*at) >= bucket);
        from.fold(0, |sum, (_, n)| sum.saturating_add(*n))
    }

    /// The bucket that holds the quantile, from 0 to 1.
    pub fn bucket_at(&self, quantile: f64) -> Option<u8> {
        let wanted = (self.count() as f64 * quantile).ceil().max(1.0) as u64;
        let mut seen: u64 = 0;
        self.buckets.iter().find_map(|(bucket, n)| {
            seen = seen.saturating_add(*n);
            (seen >= wanted).then_some(*bucket)
        })
    }

    /// The latency at the quantile, from 0 to 1, in the middle of its bucket.
    pub fn quantile(&self, quantile: f64) -> Option<Duration> {
        self.bucket_at(quantile).map(|bucket| latency_at(f64::from(bucket) + 0.5))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_off_by_less_than_a_fifth() {
        let mut latencies = Latencies::default();
        assert_eq!(latencies.quantile(0.5), None);
        for us in 1..=100_000 {
            latencies.add(bucket_of(us), 1);
        }
        for (quantile, us) in [(0.5, 50_000.0), (0.95, 95_000.0), (0.99, 99_000.0)] {
            let off = latencies.quantile(quantile).unwrap().as_secs_f64() * 1e6 / us;
            assert!((0.84..1.19).contains(&off), "{quantile}: {off}");
        }
    }

    #[test]
    fn any_latency_has_a_bucket() {
        assert_eq!(bucket_of(0), 0);
        assert_eq!(bucket_of(1), 0);
        assert_eq!(bucket_of(2), 4);
        assert_eq!(bucket_of(u64::MAX), LAST_BUCKET);
        let mut latencies = Latencies::default();
        latencies.add(255, u64::MAX);
        latencies.add(255, 1);
        assert_eq!(latencies.count(), u64::MAX);
        assert_eq!(latencies.bucket_at(1.0), Some(LAST_BUCKET));
    }

    #[test]
    fn what_came_since_is_the_difference() {
        let mut before = Latencies::default();
        before.add(3, 2);
        let mut now = before.clone();
        now.add(3, 1);
        now.add(9, 4);
        let since = now.since(&before);
        assert_eq!(since.buckets(), [(3, 1), (9, 4)]);
        assert!(now.since(&now).is_empty());
        before.merge(&since);
        assert_eq!(before, now);
        assert_eq!(now.count_from(4.0), 4);
    }
}
