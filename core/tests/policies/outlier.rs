//! `Outlier`: never more out than the cap, never all, nothing before its time, and no memory of the
//! healthy.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use outrigger_core::policy::breaker::FailureRate;
use outrigger_core::policy::outlier::{
    Ejection, EjectionChange, Eligibility, EndpointProbeId, Outlier, OutlierConfig, Sent,
};

use crate::support::{Random, for_each_seed};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn it_keeps_its_word_while_endpoints_come_and_go() {
    for_each_seed(3_000, |random| {
        let mut world = World::new(random);
        for _ in 0..400 {
            let step = random.step();
            world.advance(step);
            match random.below(100) {
                0..2 => world.come_or_go(random),
                2..4 => world.turn_bad_or_good(random),
                4 => world.reconfigure(config(random)),
                5..55 => world.begin(random),
                _ => world.end(random),
            }
            world.check();
        }
        // All is well now, and in the end nobody is remembered.
        world.reconfigure(OutlierConfig { max_ejection: SECOND * 300, ..world.outlier.config() });
        world.bad.clear();
        for _ in 0..200 {
            world.advance(SECOND * 10);
            for _ in 0..world.present.len() * 3 {
                world.begin(random);
                world.end(random);
            }
        }
        world.in_flight.clear();
        world.advance(SECOND * 400);
        world.advance(SECOND * 700);
        assert_eq!(world.outlier.ejected().count(), 0);
        assert!(world.outlier.is_empty(), "{} are remembered", world.outlier.len());
    });
}

struct World {
    now: Instant,
    outlier: Outlier,
    /// By key, with the requests that each was sent.
    present: BTreeMap<u64, u64>,
    bad: Vec<u64>,
    in_flight: Vec<(u64, Option<EndpointProbeId>)>,
    next_key: u64,
    /// When anyone who is out may be tried, and the last probe began.
    out: BTreeMap<u64, Instant>,
    last_probe: BTreeMap<u64, Instant>,
}

impl World {
    fn new(random: &mut Random) -> Self {
        let keys = random.between(1, 12);
        Self {
            now: Instant::now(),
            outlier: Outlier::new(config(random)),
            present: (0..keys).map(|key| (key, 0)).collect(),
            bad: Vec::new(),
            in_flight: Vec::new(),
            next_key: keys,
            out: BTreeMap::new(),
            last_probe: BTreeMap::new(),
        }
    }

    fn advance(&mut self, by: Duration) {
        self.now += by;
        self.tick();
    }

    fn tick(&mut self) {
        let present: Vec<Sent> =
            self.present.iter().map(|(key, total)| Sent { key: *key, total: *total }).collect();
        for transition in self.outlier.tick(self.now, &present) {
            self.follow(transition);
        }
    }

    fn come_or_go(&mut self, random: &mut Random) {
        if random.chance(50) && self.present.len() > 1 {
            let key = self.any(random);
            self.present.remove(&key);
        } else {
            // A new one, or one that was there before.
            let key = random.below(self.next_key + 1);
            self.next_key = self.next_key.max(key + 1);
            self.present.entry(key).or_default();
        }
        self.tick();
    }

    fn turn_bad_or_good(&mut self, random: &mut Random) {
        let key = self.any(random);
        match self.bad.iter().position(|of| *of == key) {
            Some(at) => {
                self.bad.swap_remove(at);
            }
            None => self.bad.push(key),
        }
    }

    fn reconfigure(&mut self, config: OutlierConfig) {
        self.outlier.reconfigure(config, self.now);
        self.out.clear();
        self.last_probe.clear();
        for (key, to) in self.outlier.ejected().collect::<Vec<_>>() {
            self.follow(EjectionChange { key, to });
        }
        self.tick();
    }

    fn any(&self, random: &mut Random) -> u64 {
        let at = random.below(self.present.len() as u64) as usize;
        *self.present.keys().nth(at).unwrap()
    }

    fn begin(&mut self, random: &mut Random) {
        let key = self.any(random);
        let was_ejected = self.outlier.is_ejected(key, self.now);
        let turn = self.outlier.admit(self.now, key);
        assert_eq!(was_ejected, turn == Eligibility::No);
        let until = self.out.get(&key);
        let probe = match turn {
            Eligibility::No => {
                assert!(until.is_some(), "refused though it is in");
                return;
            }
            Eligibility::Yes => {
                assert!(until.is_none(), "chosen though it is out");
                None
            }
            Eligibility::Probe(probe) => {
                assert!(until.is_some_and(|until| self.now >= *until), "tried before its time");
                let again = self.outlier.config().base_ejection;
                let last = self.last_probe.insert(key, self.now);
                assert!(last.is_none_or(|last| self.now >= last + again), "two trials at a time");
                Some(probe)
            }
        };
        *self.present.get_mut(&key).unwrap() += 1;
        self.in_flight.push((key, probe));
    }

    fn end(&mut self, random: &mut Random) {
        if self.in_flight.is_empty() {
            return;
        }
        let at = random.below(self.in_flight.len() as u64) as usize;
        let (key, probe) = self.in_flight.swap_remove(at);
        if let Some(probe) = probe
            && random.chance(10)
        {
            let before = self.outlier.ejected().find(|(of, _)| *of == key);
            self.outlier.abandoned(key, probe);
            if self.outlier.ejected().find(|(of, _)| *of == key) != before {
                self.last_probe.remove(&key);
            }
            return;
        }
        let failing = if self.bad.contains(&key) { 90 } else { 0 };
        let transition = if random.chance(failing) {
            // One that has left is no endpoint any more.
            let Some(total) = self.present.get(&key) else { return };
            let sent = Sent { key, total: *total };
            let count = self.present.len();
            self.outlier.failure(self.now, sent, random.next(), count, probe)
        } else {
            let clean = self.outlier.is_clean(key);
            let transition = self.outlier.success(self.now, key, probe);
            assert!(!clean || transition.is_none());
            transition
        };
        if let Some(transition) = transition {
            self.follow(transition);
        }
    }

    fn follow(&mut self, EjectionChange { key, to }: EjectionChange) {
        let config = self.outlier.config();
        match to {
            Ejection::Active => {
                self.out.remove(&key);
                self.last_probe.remove(&key);
            }
            Ejection::Ejected { until, .. } => {
                let time = until - self.now;
                assert!(time <= config.max_ejection + config.max_ejection / 4);
                self.out.insert(key, until);
                self.last_probe.remove(&key);
            }
            Ejection::Probing { next } => {
                let due = self.out.entry(key).or_insert(self.now);
                *due = (*due).min(self.now);
                if let Some(next) = next {
                    let last = next.checked_sub(config.base_ejection);
                    self.last_probe.extend(last.map(|last| (key, last.min(self.now))));
                }
            }
        }
    }

    fn check(&self) {
        let here = |key: &u64| self.present.contains_key(key);
        let out = self.outlier.ejected().filter(|(key, _)| here(key)).count();
        let share = usize::from(self.outlier.config().max_ejected_percent);
        assert!(out <= self.present.len() * share / 100, "{out} of {}", self.present.len());
        assert!(out < self.present.len(), "never all");
        assert!(self.outlier.len() <= self.next_key as usize);
    }
}

fn config(random: &mut Random) -> OutlierConfig {
    let (consecutive, rate) = random.pick(&[(true, false), (false, true), (true, true)]);
    let base = Duration::from_millis(random.between(100, 10_000));
    OutlierConfig {
        consecutive_failures: consecutive.then(|| random.between(1, 5) as u32),
        failure_rate: rate.then(|| FailureRate {
            percent: random.between(1, 100) as u8,
            window: SECOND * random.between(1, 20) as u32,
            min_requests: random.between(1, 10) as u32,
        }),
        base_ejection: base,
        max_ejection: base * random.between(1, 10) as u32,
        max_ejected_percent: random.between(1, 100) as u8,
    }
}
