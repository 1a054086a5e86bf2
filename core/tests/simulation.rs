//! A seeded simulation of balancing while endpoints come, go and change their speed.
//!
//! Time is virtual. A failing run prints its seed; `OUTRIGGER_SEED=<seed>` replays it.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a broken test may panic, with its seed"
)]

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use outrigger_core::balance::{Ring, ewma, hash, power_of_two, round_robin, subset};

/// Seeds of a normal run; any seed must do.
const SEEDS: std::ops::Range<u64> = 0..8;
const SECOND: u64 = 1_000_000;

#[test]
fn power_of_two_spreads_and_avoids_the_slow() {
    for_each_seed(|seed| {
        let mut world = World::new(seed);
        let names: Vec<String> = (0..10).map(|i| format!("bank.app-{i}:80")).collect();
        for name in &names {
            world.add(name, 2_000);
        }
        world.get(&names[0]).latency_us = 20_000;
        world.run(20 * SECOND, 2_000);

        let served = world.served();
        let others: Vec<u64> = names[1..].iter().map(|name| served[name]).collect();
        let mean = others.iter().sum::<u64>() / others.len() as u64;
        for (name, count) in names[1..].iter().zip(&others) {
            assert!((mean * 7 / 10..=mean * 13 / 10).contains(count), "{name} {count} of {mean}");
        }
        let slow = served[&names[0]];
        assert!(slow * 3 < mean, "ten times slower got {slow}, the others {mean}");
        assert!(slow > 0, "a slow endpoint is tried from time to time");
    });
}

#[test]
fn an_endpoint_that_recovers_gets_its_share_back() {
    for_each_seed(|seed| {
        let mut world = World::new(seed);
        let names: Vec<String> = (0..4).map(|i| format!("bank.app-{i}:80")).collect();
        for name in &names {
            world.add(name, 1_000);
        }
        world.get(&names[0]).latency_us = 500_000;
        world.run(10 * SECOND, 1_000);
        let before = world.served();
        assert!(before[&names[0]] * 20 < before[&names[1]], "{before:?}");
        world.get(&names[0]).latency_us = 1_000;
        world.run(120 * SECOND, 1_000);
        world.forget();
        world.run(20 * SECOND, 1_000);
        let after = world.served();
        assert!(after[&names[0]] * 2 > after[&names[1]], "{after:?}");
    });
}

#[test]
fn a_new_endpoint_is_tried_and_not_flooded() {
    for_each_seed(|seed| {
        let mut world = World::new(seed);
        for i in 0..5 {
            world.add(&format!("bank.app-{i}:80"), 10_000);
        }
        world.run(5 * SECOND, 2_000);
        world.forget();
        // It takes a second to warm up.
        world.add("bank.new:80", SECOND as u32);
        world.run(SECOND / 2, 2_000);
        assert_eq!(world.get("bank.new:80").most_in_flight, 1, "one attempt until it has answered");
        world.get("bank.new:80").latency_us = 10_000;
        world.run(60 * SECOND, 2_000);
        world.forget();
        world.run(10 * SECOND, 2_000);
        let served = world.served();
        assert!(served["bank.new:80"] * 2 > served["bank.app-0:80"], "{served:?}");
    });
}

#[test]
fn no_request_goes_to_an_endpoint_that_left() {
    for_each_seed(|seed| {
        let mut world = World::new(seed);
        for i in 0..20 {
            world.add(&format!("bank.app-{i}:80"), 3_000);
        }
        for next in 20..120 {
            world.run(SECOND / 10, 5_000);
            // `run` itself checks that what it picks is there.
            match world.random.below(3) {
                0 => world.remove_any(),
                1 => world.add(&format!("bank.app-{next}:80"), 3_000),
                _ => {
                    let latency = 1_000 + world.random.below(20_000) as u32;
                    let name = world.any_name();
                    world.get(&name).latency_us = latency;
                }
            }
        }
        assert!(world.endpoints.len() > 1);
        let busiest = world.endpoints.values().map(|e| e.most_in_flight).max().unwrap();
        assert!(busiest < 100, "{busiest} requests at once at one endpoint");
    });
}

#[test]
fn round_robin_is_even() {
    let mut counts = [0; 7];
    for turn in 0..7_000 {
        counts[round_robin(turn, 7)] += 1;
    }
    assert_eq!(counts, [1_000; 7]);
}

#[test]
fn a_ring_moves_few_keys_and_is_even() {
    for_each_seed(|seed| {
        let mut random = Random(seed);
        let count = 5 + random.below(60) as usize;
        let names: Vec<String> = (0..count).map(|i| format!("{seed}.app-{i}:80")).collect();
        let ids: Vec<&str> = names.iter().map(String::as_str).collect();
        let keys: Vec<u64> = (0..20_000u64).map(|key| hash(&key.to_be_bytes())).collect();
        let ring = Ring::new(&ids);

        let gone = random.below(count as u64) as usize;
        let left: Vec<&str> = ids.iter().copied().filter(|id| *id != ids[gone]).collect();
        let smaller = Ring::new(&left);
        let mut counts = vec![0usize; count];
        for key in &keys {
            let before = ids[ring.pick(*key)];
            let after = left[smaller.pick(*key)];
            counts[ring.pick(*key)] += 1;
            assert!(before == after || before == ids[gone], "only keys of the lost one move");
        }
        let fair = keys.len() / count;
        assert!(counts[gone] < fair * 3 / 2, "{} keys moved, 1/n are {fair}", counts[gone]);
        for (id, count) in ids.iter().zip(&counts) {
            assert!((fair / 2..fair * 3 / 2).contains(count), "{id} has {count}, 1/n are {fair}");
        }
    });
}

#[test]
fn a_subset_is_stable_and_the_subsets_are_even() {
    for_each_seed(|seed| {
        let mut random = Random(seed);
        let mut names: Vec<String> = (0..500).map(|i| format!("bank.app-{i}:80")).collect();
        let zones = [Some("z1"), Some("z2"), Some("z3"), None];
        let zone_of = |name: &str| zones[(hash(name.as_bytes()) % 4) as usize];
        let choose = |proxy: &str, zone: Option<&str>, names: &[String]| -> Vec<String> {
            let all: Vec<_> = names.iter().map(|n| (n.as_str(), zone_of(n))).collect();
            subset(proxy, zone, &all, 20).into_iter().map(|i| names[i].clone()).collect()
        };

        for step in 0..50 {
            let before = choose("bank.web-1", None, &names);
            assert_eq!(before.len(), 20);
            if random.below(2) == 0 {
                names.remove(random.below(names.len() as u64) as usize);
            } else {
                names.push(format!("bank.late-{step}:80"));
            }
            let after = choose("bank.web-1", None, &names);
            let lost = before.iter().filter(|name| !after.contains(name)).count();
            assert!(lost <= 1, "one change of the service replaced {lost} of the subset");
        }

        let near = choose("bank.web-1", Some("z2"), &names);
        assert!(near.iter().all(|name| zone_of(name) == Some("z2")), "own zone first: {near:?}");

        let mut chosen: BTreeMap<String, u64> = BTreeMap::new();
        for proxy in 0..500 {
            for name in choose(&format!("bank.web-{proxy}"), None, &names) {
                *chosen.entry(name).or_default() += 1;
            }
        }
        let most = chosen.values().max().unwrap();
        assert!(*most < 50 && chosen.len() == names.len(), "20 expected each, {most} at most");
    });
}

fn for_each_seed(run: impl Fn(u64)) {
    let fixed = std::env::var("OUTRIGGER_SEED").ok().map(|seed| seed.parse().unwrap());
    for seed in fixed.map_or(SEEDS, |seed| seed..seed + 1) {
        println!("OUTRIGGER_SEED={seed}");
        run(seed);
    }
}

/// One caller's view of a service, in virtual time.
struct World {
    now_us: u64,
    random: Random,
    endpoints: BTreeMap<String, Endpoint>,
    /// What the caller chooses from: its last config.
    snapshot: Vec<String>,
    answers: BinaryHeap<Reverse<(u64, String, u64)>>,
}

#[derive(Default)]
struct Endpoint {
    latency_us: u32,
    state: u64,
    in_flight: u32,
    most_in_flight: u32,
    served: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        Self {
            now_us: 0,
            random: Random(seed),
            endpoints: BTreeMap::new(),
            snapshot: Vec::new(),
            answers: BinaryHeap::new(),
        }
    }

    fn add(&mut self, name: &str, latency_us: u32) {
        self.endpoints.insert(name.to_owned(), Endpoint { latency_us, ..Endpoint::default() });
        self.apply();
    }

    fn remove_any(&mut self) {
        if self.endpoints.len() > 2 {
            let name = self.any_name();
            self.endpoints.remove(&name);
            self.apply();
        }
    }

    fn apply(&mut self) {
        self.snapshot = self.endpoints.keys().cloned().collect();
    }

    fn any_name(&mut self) -> String {
        let at = self.random.below(self.snapshot.len() as u64) as usize;
        self.snapshot[at].clone()
    }

    fn get(&mut self, name: &str) -> &mut Endpoint {
        self.endpoints.get_mut(name).unwrap()
    }

    fn served(&self) -> BTreeMap<String, u64> {
        self.endpoints.iter().map(|(name, e)| (name.clone(), e.served)).collect()
    }

    fn forget(&mut self) {
        for endpoint in self.endpoints.values_mut() {
            endpoint.served = 0;
        }
    }

    /// Sends `rate` requests per second at random moments for a while.
    fn run(&mut self, for_us: u64, rate: u64) {
        let until = self.now_us + for_us;
        loop {
            self.now_us += self.random.below(2 * SECOND / rate) + 1;
            if self.now_us >= until {
                self.now_us = until;
                return;
            }
            self.deliver_answers();
            self.send();
        }
    }

    fn deliver_answers(&mut self) {
        while let Some(Reverse((at, name, sent))) = self.answers.pop() {
            if at > self.now_us {
                self.answers.push(Reverse((at, name, sent)));
                return;
            }
            // An endpoint that left finishes what it had.
            if let Some(endpoint) = self.endpoints.get_mut(&name) {
                endpoint.in_flight = endpoint.in_flight.saturating_sub(1);
                endpoint.served += 1;
                let took = (at - sent) as u32;
                endpoint.state = ewma::observe(endpoint.state, (at / 1_000) as u32, took);
            }
        }
    }

    fn send(&mut self) {
        let now_ms = (self.now_us / 1_000) as u32;
        let chosen = power_of_two(self.snapshot.len(), self.random.next(), |i| {
            let endpoint = &self.endpoints[&self.snapshot[i]];
            ewma::load(endpoint.state, now_ms, endpoint.in_flight)
        });
        let name = &self.snapshot[chosen];
        let endpoint = self.endpoints.get_mut(name).expect("picked an endpoint that has left");
        endpoint.in_flight += 1;
        endpoint.most_in_flight = endpoint.most_in_flight.max(endpoint.in_flight);
        // Some answers take up to half as long again.
        let jitter = self.random.below(u64::from(endpoint.latency_us) / 2 + 1);
        let at = self.now_us + u64::from(endpoint.latency_us) + jitter;
        self.answers.push(Reverse((at, name.clone(), self.now_us)));
    }
}

/// SplitMix64: small, good enough, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(n)) >> 64) as u64
    }
}
