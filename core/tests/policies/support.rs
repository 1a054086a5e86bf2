//! Seeds, chance, and a clock that several threads share.

use std::sync::RwLock;
use std::time::{Duration, Instant};

/// Runs a schedule for each of so many seeds, or for `OUTRIGGER_SEED` alone.
pub fn for_each_seed(seeds: u64, run: impl Fn(&mut Random)) {
    let fixed = std::env::var("OUTRIGGER_SEED").ok().map(|seed| seed.parse().unwrap());
    for seed in fixed.map_or(0..seeds, |seed: u64| seed..seed + 1) {
        let _shown = ShownOnPanic(seed);
        run(&mut Random(seed));
    }
}

struct ShownOnPanic(u64);

impl Drop for ShownOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("OUTRIGGER_SEED={}", self.0);
        }
    }
}

/// SplitMix64: small, good enough, and the same everywhere.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// `n` is at least 1.
    pub fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(n)) >> 64) as u64
    }

    pub fn between(&mut self, least: u64, most: u64) -> u64 {
        least + self.below(most - least + 1)
    }

    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }

    /// Short steps mostly, so that many things happen at once, and long silences now and then.
    pub fn step(&mut self) -> Duration {
        Duration::from_micros(match self.below(100) {
            0..30 => 0,
            30..80 => self.below(20_000),
            80..98 => self.below(500_000),
            _ => self.below(30_000_000),
        })
    }
}

/// Several threads see the same moment, so that what they write down about it is exact.
pub struct Clock(RwLock<Instant>);

impl Clock {
    pub fn new() -> Self {
        Self(RwLock::new(Instant::now()))
    }

    /// Time stands still meanwhile.
    pub fn at<T>(&self, act: impl FnOnce(Instant) -> T) -> T {
        let now = self.0.read().unwrap();
        act(*now)
    }

    pub fn advance(&self, by: Duration) {
        *self.0.write().unwrap() += by;
    }
}

/// Four threads, each with its own chance.
pub fn on_four_threads(random: &mut Random, run: impl Fn(&mut Random) + Sync) {
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let mut random = Random(random.next());
            let run = &run;
            scope.spawn(move || run(&mut random));
        }
    });
}
