//! `Concurrency` and `Queue`: never more at work than the limit, a limit within its bounds that suits
//! the server, and a queue that loses nobody.

use std::collections::BinaryHeap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use outrigger_core::policy::concurrency::{
    Algorithm, Concurrency, ConcurrencyConfig, Full, Limit, Queue, Sample, Ticket,
};
use outrigger_core::policy::priority::Priority;

use crate::support::{Clock, Random, for_each_seed, on_four_threads};

const MILLI: Duration = Duration::from_millis(1);
const PRIORITIES: [Priority; 3] = [Priority::Sheddable, Priority::Default, Priority::Critical];

#[test]
fn never_more_are_at_work_than_the_limit_and_it_stays_within_its_bounds() {
    for_each_seed(2_000, |random| {
        let mut now = Instant::now();
        let mut checked = Checked::new(config(random), now);
        let mut at_work = Vec::new();
        for _ in 0..1_000 {
            now += random.step();
            act(&mut checked, random, now, &mut at_work);
            if random.chance(1) {
                let config = config(random);
                checked.concurrency.reconfigure(config);
                checked.check();
            }
        }
        for entered in at_work {
            checked.leave(now, random, entered);
        }
        assert_eq!(checked.concurrency.in_flight(), 0);
    });
}

#[test]
fn the_same_holds_for_four_threads() {
    for_each_seed(100, |random| {
        let clock = Clock::new();
        let config = config(random);
        let checked = Mutex::new(clock.at(|now| Checked::new(config, now)));
        on_four_threads(random, |random| {
            let mut at_work = Vec::new();
            for _ in 0..500 {
                if random.chance(30) {
                    clock.advance(random.step());
                }
                clock.at(|now| {
                    let mut checked = checked.lock().unwrap();
                    act(&mut checked, random, now, &mut at_work);
                });
            }
        });
    });
}

/// A server that works on so many at a time and lets the others wait in line, under three times the load
/// that it bears.
#[test]
fn an_adaptive_limit_keeps_latency_low_and_the_server_busy() {
    let algorithms = [Algorithm::Gradient, Algorithm::Aimd { latency: MILLI * 20 }];
    for algorithm in algorithms {
        for_each_seed(20, |random| {
            let capacity = random.between(10, 60) as u32;
            let limit = Limit::Adaptive { algorithm, min: 2, max: 1_000 };
            let config = ConcurrencyConfig { limit, max_queue: 0, max_wait: MILLI };
            let mut server = Server::new(capacity, config);
            server.run(random, Duration::from_secs(60));
            server.forget();
            server.run(random, Duration::from_secs(60));
            let full = f64::from(capacity) * 60_000.0 / 10.0;
            let (busy, latency) = (server.done as f64 / full, server.mean_latency_ms());
            let what = format!("{algorithm:?}, capacity {capacity}: {busy:.2}, {latency:.1} ms");
            assert!(busy > 0.75, "the server idles: {what}");
            assert!(latency < 30.0, "10 ms without load: {what}");
            assert!(server.refused > server.done, "most of the load is refused: {what}");
        });
    }
}

/// What it takes without load is measured again from time to time.
#[test]
fn a_server_that_becomes_slower_for_good_is_kept_busy_too() {
    for_each_seed(10, |random| {
        let limit = Limit::Adaptive { algorithm: Algorithm::Gradient, min: 2, max: 1_000 };
        let config = ConcurrencyConfig { limit, max_queue: 0, max_wait: MILLI };
        let mut server = Server::new(40, config);
        server.run(random, Duration::from_secs(60));
        server.slowness = 4;
        server.run(random, Duration::from_secs(240));
        server.forget();
        server.run(random, Duration::from_secs(60));
        let (busy, latency) = (server.done as f64 / 60_000.0, server.mean_latency_ms());
        assert!(busy > 0.75, "the server idles: {busy:.2}, {latency:.1} ms");
        assert!(latency < 120.0, "40 ms without load: {busy:.2}, {latency:.1} ms");
    });
}

#[test]
fn a_queue_loses_nobody_and_keeps_its_order() {
    for_each_seed(3_000, |random| {
        let start = Instant::now();
        let mut now = start;
        let mut queue = Queue::default();
        let mut most = random.between(0, 10) as u32;
        // The same, naively, in the order of arrival.
        let mut list: Vec<(u32, Priority, Instant, Ticket)> = Vec::new();
        for item in 0..300 {
            now += MILLI * random.below(20) as u32;
            match random.below(10) {
                0..5 => {
                    let priority = random.pick(&PRIORITIES);
                    let until = now + MILLI * random.below(100) as u32;
                    let least = list.iter().map(|of| of.1).min();
                    match queue.push(most, priority, until, item) {
                        Ok((ticket, shed)) => {
                            let is_full = list.len() >= most as usize;
                            assert_eq!(shed.is_some(), is_full);
                            if let Some(shed) = shed {
                                let newest = list.iter().rposition(|of| Some(of.1) == least);
                                let newest = list.remove(newest.unwrap());
                                assert!(newest.0 == shed && newest.1 < priority);
                            }
                            list.push((item, priority, until, ticket));
                        }
                        Err(Full(refused)) => {
                            assert_eq!(refused, item);
                            assert!(list.len() >= most as usize);
                            assert!(least.is_none_or(|least| least >= priority));
                        }
                    }
                }
                5..8 => {
                    let popped = queue.pop(now);
                    let in_time = |of: &&(u32, Priority, Instant, Ticket)| now < of.2;
                    let next = list.iter().filter(in_time).map(|of| of.1).max();
                    let next = list.iter().filter(in_time).find(|of| Some(of.1) == next).cloned();
                    assert_eq!(popped, next.map(|of| of.0));
                    // Those that it has passed by on the way are gone.
                    let passed = |of: &(u32, Priority, Instant, Ticket)| {
                        next.is_none_or(|next| (of.1, next.0) > (next.1, of.0) || of.0 == next.0)
                    };
                    list.retain(|of| !(passed(of) && (of.2 <= now || Some(of.0) == popped)));
                }
                8 if !list.is_empty() => {
                    let at = random.below(list.len() as u64) as usize;
                    let (item, .., ticket) = list.remove(at);
                    assert_eq!(queue.remove(ticket), Some(item));
                    assert_eq!(queue.remove(ticket), None);
                }
                _ => {
                    let mut expired = queue.expire(now);
                    expired.sort_unstable();
                    let (over, rest) = list.into_iter().partition(|of| of.2 <= now);
                    list = rest;
                    let over: Vec<(u32, Priority, Instant, Ticket)> = over;
                    assert_eq!(expired, over.iter().map(|of| of.0).collect::<Vec<_>>());
                }
            }
            if random.chance(2) {
                most = random.between(list.len() as u64, 12) as u32;
            }
            assert_eq!(queue.len(), list.len());
        }
        while queue.pop(start).is_some() {}
        assert!(queue.is_empty());
    });
}

fn act(checked: &mut Checked, random: &mut Random, now: Instant, at_work: &mut Vec<Instant>) {
    if random.chance(55) {
        if checked.enter() {
            at_work.push(now);
        }
    } else if !at_work.is_empty() {
        let entered = at_work.swap_remove(random.below(at_work.len() as u64) as usize);
        checked.leave(now, random, entered);
    }
}

fn config(random: &mut Random) -> ConcurrencyConfig {
    let min = random.between(1, 20) as u32;
    let max = min + random.below(50) as u32;
    let latency = MILLI * random.between(1, 200) as u32;
    let limit = match random.below(3) {
        0 => Limit::Static(min),
        1 => Limit::Adaptive { algorithm: Algorithm::Gradient, min, max },
        _ => Limit::Adaptive { algorithm: Algorithm::Aimd { latency }, min, max },
    };
    ConcurrencyConfig { limit, max_queue: 10, max_wait: MILLI * 100 }
}

/// A limit, and what must be true of it.
struct Checked {
    concurrency: Concurrency,
    in_flight: u32,
}

impl Checked {
    fn new(config: ConcurrencyConfig, now: Instant) -> Self {
        Self { concurrency: Concurrency::new(config, now), in_flight: 0 }
    }

    fn enter(&mut self) -> bool {
        let limit = self.concurrency.limit();
        let entered = self.concurrency.enter();
        assert_eq!(entered, self.in_flight < limit);
        self.in_flight += u32::from(entered);
        entered
    }

    fn leave(&mut self, now: Instant, random: &mut Random, entered: Instant) {
        let latency = now - entered;
        let sample = match random.below(10) {
            0 => Sample::None,
            1 => Sample::Overload { entered },
            _ => Sample::Answered { entered, latency },
        };
        self.concurrency.leave(now, sample);
        self.in_flight -= 1;
        self.check();
    }

    fn check(&self) {
        assert_eq!(self.concurrency.in_flight(), self.in_flight);
        let (min, max) = match self.concurrency.config().limit {
            Limit::Static(limit) => (limit, limit),
            Limit::Adaptive { min, max, .. } => (min, max),
        };
        assert!((min..=max).contains(&self.concurrency.limit()));
    }
}

/// It works on `capacity` requests at a time, about 10 ms each, in the order in which they came.
struct Server {
    concurrency: Concurrency,
    /// So many times 10 ms.
    slowness: u32,
    now: Instant,
    /// When each of its places is free.
    places: BinaryHeap<std::cmp::Reverse<Instant>>,
    /// When which request ends, and when it came.
    ends: BinaryHeap<std::cmp::Reverse<(Instant, Instant)>>,
    done: u64,
    refused: u64,
    latency: Duration,
}

impl Server {
    fn new(capacity: u32, config: ConcurrencyConfig) -> Self {
        let now = Instant::now();
        Self {
            concurrency: Concurrency::new(config, now),
            slowness: 1,
            now,
            places: (0..capacity).map(|_| std::cmp::Reverse(now)).collect(),
            ends: BinaryHeap::new(),
            done: 0,
            refused: 0,
            latency: Duration::ZERO,
        }
    }

    fn forget(&mut self) {
        (self.done, self.refused, self.latency) = (0, 0, Duration::ZERO);
    }

    fn mean_latency_ms(&self) -> f64 {
        self.latency.as_secs_f64() * 1_000.0 / self.done as f64
    }

    fn run(&mut self, random: &mut Random, time: Duration) {
        let until = self.now + time;
        let between = MILLI * 10 / self.places.len() as u32 / 3;
        while self.now < until {
            self.now += between * random.below(200) as u32 / 100;
            self.answer();
            if !self.concurrency.enter() {
                self.refused += 1;
                continue;
            }
            let free = self.places.pop().unwrap().0;
            let end =
                free.max(self.now) + MILLI * self.slowness * random.between(50, 150) as u32 / 10;
            self.places.push(std::cmp::Reverse(end));
            self.ends.push(std::cmp::Reverse((end, self.now)));
        }
    }

    fn answer(&mut self) {
        while let Some(std::cmp::Reverse((end, entered))) = self.ends.peek().copied()
            && end <= self.now
        {
            self.ends.pop();
            let latency = end - entered;
            self.done += 1;
            self.latency += latency;
            self.concurrency.leave(end, Sample::Answered { entered, latency });
        }
    }
}
