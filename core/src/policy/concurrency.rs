//! How many requests a port works on at a time, and who waits.
//!
//! More requests at a time than a server can work on make all of them slow, and those that nobody waits
//! for any more keep it from those that somebody does. So it gets what it can bear; a few wait, the
//! important first; the rest is refused at once.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::priority::Priority;
use crate::time::Later;

/// A round gathers at least so many answers, so that chance does not rule.
const ROUND_ANSWERS: u32 = 20;
/// ... and lasts at least so long (100 ms, as Envoy's adaptive concurrency filter).
const ROUND_TIME: Duration = Duration::from_millis(100);
/// Latency may be so much higher than without load before the limit falls (Netflix's Gradient2: 1.5).
const TOLERANCE: f64 = 1.5;
/// Weight of one round in the latency without load, so that a lucky one does not set it.
const UNLOADED_WEIGHT: f64 = 0.2;
/// How often the latency without load is measured again, at half of the limit: a server may have become
/// slower for good (30 s, as Envoy's).
const PROBE_EVERY: Duration = Duration::from_secs(30);
/// A probe without enough answers ends after this.
const PROBE_TIME: Duration = Duration::from_secs(5);
/// What AIMD keeps of the limit when there is trouble (Netflix's: 0.9).
const AIMD_DECREASE: f64 = 0.9;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConcurrencyConfig {
    pub limit: Limit,
    /// Requests that wait for their turn. 0: none; they are refused at once.
    pub max_queue: u32,
    /// Longest wait; a request whose deadline is nearer waits only that long. At most 10 s.
    pub max_wait: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// At least 1.
    Static(u32),
    /// Learnt from latency, between `min` (at least 1) and `max`.
    Adaptive { algorithm: Algorithm, min: u32, max: u32 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// Follows the ratio of the latency without load to the current latency.
    Gradient,
    /// One more per round without trouble, a tenth less when latency passes `latency`.
    Aimd { latency: Duration },
}

/// Requests at work at one port.
///
/// Guarantees: [`Concurrency::enter`] lets nobody in while as many are at work as [`Concurrency::limit`]
/// says, and that is always between the configured bounds.
#[derive(Clone, Debug)]
pub struct Concurrency {
    config: ConcurrencyConfig,
    in_flight: u32,
    limit: f64,
    round: Round,
    gradient: Gradient,
    /// AIMD: after a decrease, those that came in before it say nothing new.
    deaf_until: Instant,
}

/// What is known of one round of answers.
#[derive(Clone, Copy, Debug)]
struct Round {
    since: Instant,
    answers: u32,
    seconds: f64,
    overload: bool,
    most_in_flight: u32,
}

#[derive(Clone, Copy, Debug)]
struct Gradient {
    /// Latency without load in seconds; zero: not measured yet.
    unloaded: f64,
    probe: LimitProbe,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum LimitProbe {
    Next {
        at: Instant,
    },
    /// With the limit to return to.
    On {
        since: Instant,
        limit: f64,
    },
}

/// What the end of a request says about the load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sample {
    /// It has been answered. With when it came in and how long that took.
    Answered { entered: Instant, latency: Duration },
    /// It was not answered in time, or the server said that it is overloaded.
    Overload { entered: Instant },
    /// Nothing: the caller went away, or the server was not reached.
    None,
}

impl Concurrency {
    /// An adaptive limit begins at its least.
    pub fn new(config: ConcurrencyConfig, now: Instant) -> Self {
        let probe = LimitProbe::Next { at: now.later(PROBE_EVERY) };
        Self {
            config,
            in_flight: 0,
            limit: f64::from(bounds(config.limit).0),
            round: Round::new(now, 0),
            gradient: Gradient { unloaded: 0.0, probe },
            deaf_until: now,
        }
    }

    /// Applies other numbers; what was learnt is kept as far as they allow it.
    pub fn reconfigure(&mut self, config: ConcurrencyConfig) {
        self.config = config;
        let (least, most) = bounds(config.limit);
        self.limit = self.limit.max(f64::from(least)).min(f64::from(most));
        if let LimitProbe::On { limit, .. } = &mut self.gradient.probe {
            *limit = limit.max(f64::from(least)).min(f64::from(most));
        }
    }

    /// True: it is at work, and its end must be told by [`Self::leave`].
    pub fn enter(&mut self) -> bool {
        let free = self.in_flight < self.limit();
        if free {
            self.in_flight += 1;
            self.round.most_in_flight = self.round.most_in_flight.max(self.in_flight);
        }
        free
    }

    pub fn leave(&mut self, now: Instant, sample: Sample) {
        self.in_flight = self.in_flight.saturating_sub(1);
        let Limit::Adaptive { algorithm, min, max } = self.config.limit else { return };
        let entered = match sample {
            Sample::None => return,
            Sample::Overload { entered } | Sample::Answered { entered, .. } => entered,
        };
        let since = match (algorithm, self.gradient.probe) {
            // Those from before came in under the full load.
            (Algorithm::Gradient, LimitProbe::On { since, .. }) => since,
            (Algorithm::Gradient, LimitProbe::Next { .. }) => entered,
            (Algorithm::Aimd { .. }, _) => self.deaf_until,
        };
        if entered >= since {
            self.round.add(sample);
        }
        let bounds = (f64::from(min), f64::from(max));
        match algorithm {
            Algorithm::Gradient => self.follow_gradient(now, bounds),
            Algorithm::Aimd { latency } => self.follow_aimd(now, latency, bounds),
        }
    }

    pub fn limit(&self) -> u32 {
        self.limit as u32
    }

    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    pub fn config(&self) -> ConcurrencyConfig {
        self.config
    }

    /// After Netflix's Gradient2, except that the latency without load is measured and not averaged over
    /// all loads: an average follows a lasting overload.
    fn follow_gradient(&mut self, now: Instant, (min, max): (f64, f64)) {
        let complete = self.round.is_complete(now);
        if let LimitProbe::On { since, limit } = self.gradient.probe {
            if complete {
                self.gradient.unloaded = self.round.mean();
            }
            if complete || now >= since.later(PROBE_TIME) {
                self.limit = limit.max(min).min(max);
                self.gradient.probe = LimitProbe::Next { at: now.later(PROBE_EVERY) };
                self.round = Round::new(now, self.in_flight);
            }
            return;
        }
        if !complete {
            return;
        }
        let mean = self.round.mean();
        let unloaded = &mut self.gradient.unloaded;
        if *unloaded == 0.0 {
            *unloaded = mean;
        } else if mean < *unloaded {
            *unloaded += (mean - *unloaded) * UNLOADED_WEIGHT;
        }
        // A half at most, however slow a round was.
        let gradient = (TOLERANCE * *unloaded / mean.max(f64::MIN_POSITIVE)).clamp(0.5, 1.0);
        let gradient = if self.round.overload { gradient.min(AIMD_DECREASE) } else { gradient };
        let is_used = f64::from(self.round.most_in_flight) * 2.0 >= self.limit;
        let target = self.limit * gradient + self.limit.sqrt();
        if target < self.limit || is_used {
            self.limit = target.max(min).min(max);
        }
        self.round = Round::new(now, self.in_flight);
        if matches!(self.gradient.probe, LimitProbe::Next { at } if now >= at) {
            let limit = self.limit;
            self.gradient.probe = LimitProbe::On { since: now, limit };
            self.limit = (limit / 2.0).max(min);
        }
    }

    fn follow_aimd(&mut self, now: Instant, latency: Duration, (min, max): (f64, f64)) {
        if self.round.overload {
            self.decrease(now, min);
        } else if self.round.is_complete(now) {
            if self.round.mean() > latency.as_secs_f64() {
                self.decrease(now, min);
                return;
            }
            if f64::from(self.round.most_in_flight) * 2.0 >= self.limit {
                self.limit = (self.limit + 1.0).min(max);
            }
            self.round = Round::new(now, self.in_flight);
        }
    }

    fn decrease(&mut self, now: Instant, min: f64) {
        self.limit = (self.limit * AIMD_DECREASE).max(min);
        self.deaf_until = now;
        self.round = Round::new(now, self.in_flight);
    }
}

impl Round {
    fn new(since: Instant, in_flight: u32) -> Self {
        Self { since, answers: 0, seconds: 0.0, overload: false, most_in_flight: in_flight }
    }

    fn add(&mut self, sample: Sample) {
        match sample {
            Sample::Answered { latency, .. } => {
                self.answers = self.answers.saturating_add(1);
                self.seconds += latency.as_secs_f64();
            }
            Sample::Overload { .. } => self.overload = true,
            Sample::None => {}
        }
    }

    fn is_complete(&self, now: Instant) -> bool {
        self.answers >= ROUND_ANSWERS && now.saturating_duration_since(self.since) >= ROUND_TIME
    }

    fn mean(&self) -> f64 {
        self.seconds / f64::from(self.answers.max(1))
    }
}

fn bounds(limit: Limit) -> (u32, u32) {
    match limit {
        Limit::Static(limit) => (limit, limit),
        Limit::Adaptive { min, max, .. } => (min, max.max(min)),
    }
}

/// Who waits for a turn: the important first, then those that came first.
///
/// Guarantees: never more wait than allowed; [`Queue::pop`] never returns one whose time is over.
#[derive(Debug)]
pub struct Queue<T> {
    /// By priority, in its order.
    lines: [VecDeque<Waiting<T>>; 3],
    next: u64,
}

#[derive(Debug)]
struct Waiting<T> {
    number: u64,
    until: Instant,
    item: T,
}

/// A place in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    priority: Priority,
    number: u64,
}

/// The queue is full, and nobody in it is less important: the item comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full<T>(pub T);

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self { lines: Default::default(), next: 0 }
    }
}

impl<T> Queue<T> {
    /// Takes a place, at most until `until`. In a full queue the newest of the least important makes
    /// room, if it is less important; it is returned beside the ticket and must be refused.
    pub fn push(
        &mut self,
        most: u32,
        priority: Priority,
        until: Instant,
        item: T,
    ) -> Result<(Ticket, Option<T>), Full<T>> {
        let mut shed = None;
        if self.len() >= most as usize {
            let below = self.lines[..place(priority)].iter_mut();
            let Some(line) = below.into_iter().find(|line| !line.is_empty()) else {
                return Err(Full(item));
            };
            // With `most` lowered meanwhile, the queue shrinks by itself.
            shed = line.pop_back().map(|waiting| waiting.item);
        }
        let number = self.next;
        self.next += 1;
        self.lines[place(priority)].push_back(Waiting { number, until, item });
        Ok((Ticket { priority, number }, shed))
    }

    /// Whose turn it is. Those whose time is over are dropped on the way.
    pub fn pop(&mut self, now: Instant) -> Option<T> {
        for line in self.lines.iter_mut().rev() {
            while let Some(first) = line.pop_front() {
                if now < first.until {
                    return Some(first.item);
                }
            }
        }
        None
    }

    /// Gives a place up. None: it has been popped, shed or expired.
    pub fn remove(&mut self, ticket: Ticket) -> Option<T> {
        let line = &mut self.lines[place(ticket.priority)];
        let at = line.binary_search_by_key(&ticket.number, |waiting| waiting.number).ok()?;
        line.remove(at).map(|waiting| waiting.item)
    }

    /// Takes out everybody whose time is over.
    pub fn expire(&mut self, now: Instant) -> Vec<T> {
        let mut expired = Vec::new();
        for line in &mut self.lines {
            if line.iter().any(|waiting| waiting.until <= now) {
                let (over, rest) =
                    std::mem::take(line).into_iter().partition(|waiting| waiting.until <= now);
                let over: VecDeque<_> = over;
                *line = rest;
                expired.extend(over.into_iter().map(|waiting| waiting.item));
            }
        }
        expired
    }

    pub fn len(&self) -> usize {
        self.lines.iter().map(VecDeque::len).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

fn place(priority: Priority) -> usize {
    match priority {
        Priority::Sheddable => 0,
        Priority::Default => 1,
        Priority::Critical => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn config(limit: Limit) -> ConcurrencyConfig {
        ConcurrencyConfig { limit, max_queue: 10, max_wait: SECOND }
    }

    fn adaptive(algorithm: Algorithm) -> Concurrency {
        let limit = Limit::Adaptive { algorithm, min: 4, max: 100 };
        Concurrency::new(config(limit), Instant::now())
    }

    /// Rounds of as many requests at a time as the limit lets in, against a server that works on
    /// `capacity` at a time, 10 ms each.
    fn saturate(
        concurrency: &mut Concurrency,
        start: Instant,
        rounds: u32,
        capacity: u32,
    ) -> Instant {
        let mut now = start;
        for _ in 0..rounds {
            let entered = std::iter::from_fn(|| concurrency.enter().then_some(())).count() as u32;
            let latency = Duration::from_millis(10) * entered.div_ceil(capacity).max(1);
            let answered = Sample::Answered { entered: now, latency };
            now += latency;
            (0..entered).for_each(|_| concurrency.leave(now, answered));
        }
        now
    }

    #[test]
    fn a_static_limit_is_one() {
        let now = Instant::now();
        let mut concurrency = Concurrency::new(config(Limit::Static(2)), now);
        assert!(concurrency.enter() && concurrency.enter());
        assert!(!concurrency.enter());
        concurrency.leave(now, Sample::None);
        assert!(concurrency.enter());
        concurrency.reconfigure(config(Limit::Static(1)));
        concurrency.leave(now, Sample::None);
        assert!(!concurrency.enter(), "one is still at work");
        concurrency.leave(now, Sample::None);
        assert!(concurrency.enter());
    }

    #[test]
    fn the_gradient_finds_what_a_server_can_bear_and_keeps_to_it() {
        let mut concurrency = adaptive(Algorithm::Gradient);
        let mut now = Instant::now();
        for _ in 0..20 {
            now = saturate(&mut concurrency, now, 500, 30);
            assert!(concurrency.limit() < 100, "a lasting overload must not become normal");
        }
        assert!(concurrency.limit() > 20, "{}", concurrency.limit());
        saturate(&mut concurrency, now, 10_000, 1_000);
        assert_eq!(concurrency.limit(), 100, "a server that bears more gets more");
    }

    #[test]
    fn aimd_stays_about_the_latency_that_is_asked_for() {
        let mut concurrency = adaptive(Algorithm::Aimd { latency: Duration::from_millis(15) });
        let now = saturate(&mut concurrency, Instant::now(), 5_000, 30);
        assert!((20..45).contains(&concurrency.limit()), "{}", concurrency.limit());
        let before = concurrency.limit();
        for entered in [now, now - SECOND] {
            assert!(concurrency.enter());
            concurrency.leave(now, Sample::Overload { entered });
        }
        let after = concurrency.limit();
        assert!(after < before && after >= before * 8 / 10, "{before} {after}: once, not twice");
    }

    #[test]
    fn a_limit_that_nobody_needs_does_not_grow() {
        for algorithm in [Algorithm::Gradient, Algorithm::Aimd { latency: SECOND }] {
            let mut concurrency = adaptive(algorithm);
            let mut now = Instant::now();
            for _ in 0..5_000 {
                assert!(concurrency.enter());
                let entered = now;
                now += SECOND / 100;
                concurrency.leave(now, Sample::Answered { entered, latency: SECOND / 100 });
            }
            assert_eq!(concurrency.limit(), 4);
        }
    }

    #[test]
    fn the_important_wait_least_and_the_newest_of_the_others_is_shed() {
        let now = Instant::now();
        let until = now + SECOND;
        let mut queue = Queue::default();
        for (priority, name) in [(Priority::Default, "d1"), (Priority::Sheddable, "s1")] {
            assert!(queue.push(4, priority, until, name).is_ok());
        }
        assert!(queue.push(4, Priority::Critical, until, "c1").is_ok());
        let (ticket, _) = queue.push(4, Priority::Default, until, "d2").unwrap();
        assert_eq!(queue.push(4, Priority::Sheddable, until, "s2"), Err(Full("s2")));
        assert_eq!(queue.push(4, Priority::Default, until, "d3").unwrap().1, Some("s1"));
        assert_eq!(queue.push(4, Priority::Default, until, "d4"), Err(Full("d4")));
        assert_eq!(queue.push(4, Priority::Critical, until, "c2").unwrap().1, Some("d3"));
        assert_eq!(queue.remove(ticket), Some("d2"));
        assert_eq!(queue.remove(ticket), None);
        let order: Vec<_> = std::iter::from_fn(|| queue.pop(now)).collect();
        assert_eq!(order, ["c1", "c2", "d1"]);
        assert!(queue.is_empty());
    }

    #[test]
    fn nobody_gets_a_turn_after_its_time() {
        let now = Instant::now();
        let mut queue = Queue::default();
        for (millis, name) in [(10, "a"), (30, "b"), (10, "c"), (30, "d")] {
            let until = now + Duration::from_millis(millis);
            assert!(queue.push(9, Priority::Default, until, name).is_ok());
        }
        assert_eq!(queue.expire(now + Duration::from_millis(10)), ["a", "c"]);
        assert_eq!(queue.pop(now + Duration::from_millis(29)), Some("b"));
        assert_eq!(queue.pop(now + Duration::from_millis(30)), None);
        assert!(queue.is_empty());
    }
}
