//! Meshes of twelve services, simulated: a fault two hops deep is named and its culprit ranks first, and without a
//! fault nothing is unusual.

use std::collections::BTreeMap;

use outrigger_core::graph::TICK;
use outrigger_core::graph::baseline::{Baseline, HOURS, Symptom, Tick, Unusual};
use outrigger_core::graph::culprit::{UnusualEdge, rank};
use outrigger_core::graph::latency::bucket_of;

const SERVICES: usize = 12;
const SEEDS: u64 = 20;
/// Ticks in which a mesh is watched before something happens: 10 min.
const BEFORE: u32 = 120;
/// Ticks in which it has to be named: 30 s.
const NAMED: u32 = 6;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn between(&mut self, from: f64, to: f64) -> f64 {
        from + (to - from) * self.share()
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// Of a normal distribution, nearly (Irwin-Hall).
    fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.share()).sum::<f64>() - 6.0
    }
}

#[derive(Clone)]
struct Service {
    /// Whom it calls for a request, and how often.
    calls: Vec<(usize, f64)>,
    own_ms: f64,
    spread: f64,
    fails: f64,
}

#[derive(Clone, Copy)]
struct Fault {
    service: usize,
    fails: f64,
    slower: f64,
}

struct Mesh {
    random: Random,
    services: Vec<Service>,
    /// Requests per tick at the gateway.
    rate: f64,
    fault: Option<Fault>,
    edges: BTreeMap<(usize, usize), Baseline>,
    ticks: u32,
}

/// Service 0 is the gateway; its caller is none of them.
const LOAD: usize = SERVICES;

impl Mesh {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let mut services: Vec<Service> = (0..SERVICES)
            .map(|_| Service {
                calls: Vec::new(),
                own_ms: random.between(0.5, 20.0),
                spread: random.between(0.2, 0.7),
                fails: random.between(0.0, 0.004),
            })
            .collect();
        // The first three are called by the gateway, the others by one or two of those before them.
        for to in 1..SERVICES {
            let callers = if to < 4 { 1 } else { 1 + random.below(2) };
            for _ in 0..callers {
                let from = if to < 4 { 0 } else { 1 + random.below(to - 1) };
                let share = if random.below(2) == 0 { 1.0 } else { random.between(0.4, 1.0) };
                if services[from].calls.iter().all(|(known, _)| *known != to) {
                    services[from].calls.push((to, share));
                }
            }
        }
        let rate = random.between(150.0, 500.0);
        Self { random, services, rate, fault: None, edges: BTreeMap::new(), ticks: 0 }
    }

    /// A service that one calls whom the gateway calls, and what is wrong with it.
    fn fault(&mut self) -> Fault {
        let services = &self.services;
        let second = |first: &(usize, f64)| services[first.0].calls.iter().map(|(to, _)| *to);
        let deep: Vec<usize> = services[0].calls.iter().flat_map(second).collect();
        let service = deep[self.random.below(deep.len())];
        let kind = self.random.below(3);
        let fails = if kind == 1 { 0.0 } else { self.random.between(0.2, 0.9) };
        let slower = if kind == 0 { 1.0 } else { self.random.between(8.0, 30.0) };
        Fault { service, fails, slower }
    }

    /// Lets a request through, and tells whether it succeeded and in how many milliseconds.
    fn call(
        &mut self,
        from: usize,
        to: usize,
        seen: &mut BTreeMap<(usize, usize), Tick>,
    ) -> (bool, f64) {
        let service = self.services[to].clone();
        let fault = self.fault.filter(|fault| fault.service == to);
        let mut ms = service.own_ms * (service.spread * self.random.normal()).exp();
        ms *= fault.map_or(1.0, |fault| fault.slower);
        let mut good = self.random.share() >= service.fails
            && fault.is_none_or(|fault| self.random.share() >= fault.fails);
        for (next, share) in service.calls {
            // The app gives up at the first failure.
            if !good {
                break;
            }
            if self.random.share() < share {
                let (called, took) = self.call(to, next, seen);
                good &= called;
                ms += took;
            }
        }
        let tick = seen.entry((from, to)).or_default();
        tick.requests += 1;
        if good {
            tick.latencies.add(bucket_of((ms * 1_000.0) as u64), 1);
        } else {
            tick.failures += 1;
        }
        (good, ms)
    }

    fn tick(&mut self) {
        // Traffic breathes, and comes in clusters.
        let wave = 1.0 + 0.3 * (f64::from(self.ticks) / 60.0).sin();
        let requests = self.rate * wave * (1.0 + 0.1 * self.random.normal()).max(0.2);
        let mut seen = BTreeMap::new();
        for _ in 0..requests as u32 {
            self.call(LOAD, 0, &mut seen);
        }
        for edge in seen.keys() {
            self.edges.entry(*edge).or_default();
        }
        let hour = u64::from(self.ticks) * TICK.as_secs() / 3_600 % u64::from(HOURS);
        for (edge, baseline) in &mut self.edges {
            let tick = seen.remove(edge).unwrap_or_default();
            baseline.tick(hour as u8, Tick { reported: true, ..tick });
        }
        self.ticks += 1;
    }

    /// What is unusual, the culprit first.
    fn unusual(&self) -> Vec<(usize, usize, Vec<Unusual>)> {
        let all: Vec<_> = self
            .edges
            .iter()
            .map(|((from, to), baseline)| {
                let unusual: Vec<_> = baseline.unusual().collect();
                (*from, *to, [from, to].map(usize::to_string), unusual)
            })
            .filter(|(.., unusual)| !unusual.is_empty())
            .collect();
        let edges: Vec<_> = all
            .iter()
            .map(|(_, _, [from, to], unusual)| UnusualEdge { from, to, unusual })
            .collect();
        let ranked = rank(&edges).into_iter().map(|at| &all[at]);
        ranked.map(|(from, to, _, unusual)| (*from, *to, unusual.clone())).collect()
    }
}

#[test]
fn a_fault_two_hops_deep_is_named_in_half_a_minute_and_its_culprit_ranks_first() {
    let (mut named, mut first) = (0, 0);
    for seed in 0..SEEDS {
        let mut mesh = Mesh::new(seed);
        (0..BEFORE).for_each(|_| mesh.tick());
        assert!(mesh.unusual().is_empty(), "seed {seed}: {:?}", mesh.unusual());
        let fault = mesh.fault();
        mesh.fault = Some(fault);
        // Callers report at the end of a tick: half of one of them passes before the first report, on average.
        (0..NAMED - 1).for_each(|_| mesh.tick());
        let unusual = mesh.unusual();
        named += u32::from(unusual.iter().any(|(_, to, _)| *to == fault.service));
        first += u32::from(unusual.first().is_some_and(|(_, to, _)| *to == fault.service));
        println!(
            "seed {seed}: {} fails {:.2} slower {:.1}: {unusual:?}",
            fault.service, fault.fails, fault.slower
        );
    }
    println!("named {named}, first {first} of {SEEDS}");
    assert!(named >= 19 && first >= 19, "named {named}, first {first} of {SEEDS}");
}

#[test]
fn without_a_fault_nothing_is_unusual() {
    for seed in 0..SEEDS {
        let mut mesh = Mesh::new(1_000 + seed);
        for tick in 0..6 * BEFORE {
            mesh.tick();
            assert!(mesh.unusual().is_empty(), "seed {seed}, tick {tick}: {:?}", mesh.unusual());
        }
    }
}

#[test]
fn a_service_that_nobody_calls_any_more_is_named_and_the_first_silence_is_the_culprit() {
    for seed in 0..SEEDS {
        let mut mesh = Mesh::new(2_000 + seed);
        (0..BEFORE).for_each(|_| mesh.tick());
        mesh.rate = 0.0;
        (0..NAMED).for_each(|_| mesh.tick());
        let unusual = mesh.unusual();
        let (from, to, what) = unusual.first().expect("silence is unusual");
        assert_eq!((*from, *to, what[0].symptom), (LOAD, 0, Symptom::TrafficDrop), "seed {seed}");
    }
}
