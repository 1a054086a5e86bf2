//! How long a service takes to answer, as its callers have seen it lately. Kept only while a policy asks for
//! its 95th percentile.

use std::array;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize};
use std::time::Duration;

use outrigger_core::policy::hedge::{BUCKETS, bucket, p95};

/// Ticks of about a second that one of the two windows is filled; what is told is of both.
const TICKS: u32 = 15;

pub struct Latencies {
    windows: [[AtomicU32; BUCKETS]; 2],
    current: AtomicUsize,
    ticks: AtomicU32,
    /// Microseconds as of the last tick; 0: not known.
    p95: AtomicU64,
}

impl Default for Latencies {
    fn default() -> Self {
        Self {
            windows: array::from_fn(|_| array::from_fn(|_| AtomicU32::new(0))),
            current: AtomicUsize::new(0),
            ticks: AtomicU32::new(0),
            p95: AtomicU64::new(0),
        }
    }
}

impl Latencies {
    pub fn observe(&self, latency: Duration) {
        let us = u32::try_from(latency.as_micros()).unwrap_or(u32::MAX);
        let window = &self.windows[self.current.load(Relaxed) % 2];
        window[bucket(us)].fetch_add(1, Relaxed);
    }

    pub fn p95(&self) -> Option<Duration> {
        let us = self.p95.load(Relaxed);
        (us > 0).then(|| Duration::from_micros(us))
    }

    pub fn tick(&self) {
        let [one, other] = &self.windows;
        let counts =
            array::from_fn(|i| u64::from(one[i].load(Relaxed)) + u64::from(other[i].load(Relaxed)));
        let us = p95(&counts).map_or(0, |time| time.as_micros() as u64);
        self.p95.store(us, Relaxed);
        if self.ticks.fetch_add(1, Relaxed) % TICKS == TICKS - 1 {
            let next = self.current.load(Relaxed) + 1;
            for count in &self.windows[next % 2] {
                count.store(0, Relaxed);
            }
            self.current.store(next, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_old_is_forgotten() {
        let latencies = Latencies::default();
        assert_eq!(latencies.p95(), None);
        for _ in 0..100 {
            latencies.observe(Duration::from_millis(10));
        }
        latencies.tick();
        let found = latencies.p95().expect("it is known");
        assert!((10..13).contains(&found.as_millis()), "{found:?}");
        for _ in 0..2 * TICKS + 1 {
            latencies.tick();
        }
        assert_eq!(latencies.p95(), None);
    }
}
