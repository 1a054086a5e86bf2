//! What is usual on an edge by the hour of the week, and what is not.
//!
//! Each tick is compared with what is usual, and taught to it when nothing is unusual. An edge is compared with the
//! same hour of earlier weeks once enough of them is known, until then with what it did lately. Nothing is said
//! before [`ENOUGH`] ticks, of fewer than [`MIN_REQUESTS`] requests, or of anything that lasts for less than
//! [`BEGINS`] ticks: an alarm that goes off for nothing is worse than one that comes a little later.

use std::fmt;

use super::latency::Latencies;

/// Hours of a week, from Thursday 0:00 UTC on, as the clock of Unix has them.
pub const HOURS: u8 = 168;
/// Ticks before what is usual is known: 2 min.
pub const ENOUGH: u32 = 24;
/// The same for one hour of the week: half of it.
const ENOUGH_OF_HOUR: u32 = 360;
/// Ticks over which what is usual is averaged: an hour lately, and four weeks of one hour.
const MEMORY: u32 = 720;
const MEMORY_OF_HOUR: u32 = 4 * 720;
/// Ticks that are looked at together: the shorter window where it has enough requests.
const WINDOWS: [usize; 2] = [2, 6];
/// Fewer requests in a window than this say nothing.
pub const MIN_REQUESTS: f64 = 20.0;
/// Fewer failures, or slow requests, neither.
const MIN_EVENTS: f64 = 5.0;
/// Ticks in a row after which something unusual is told: 15 s.
pub const BEGINS: u8 = 3;
/// Usual ticks in a row after which it is over: half a minute.
pub const ENDS: u8 = 6;
/// Standard deviations from what is usual. An edge is judged four times in 5 s, for years, among thousands.
const DEVIATIONS: f64 = 6.0;
/// So much larger a share of requests must fail, besides twice the usual one.
const MORE_FAILURES: f64 = 0.01;
/// Usually one in twenty requests takes longer than the 95th percentile.
const ABOVE_P95: f64 = 0.05;
/// Unusual: so many take 1.7 times as long (three buckets) and more.
const SLOW_SHARE: f64 = 0.15;
const SLOW_BUCKETS: f64 = 3.0;
/// A drop and a surge of traffic, as shares of the usual.
const DROP: f64 = 0.4;
const SURGE: f64 = 3.0;
/// Standard deviations of a drop: less than nothing cannot come, so that few requests are never 6 too few.
const DROP_DEVIATIONS: f64 = 4.0;
/// Ticks near each other resemble each other: the variance of a window is so many times that of as many others.
const ALIKE: f64 = 2.0;
/// What lasts longer than this many ticks becomes what is usual: an hour, where only what was done lately is known,
/// else a day.
const ADOPTED: u32 = 720;
const ADOPTED_OF_HOUR: u32 = 24 * 720;

/// What can be unusual on an edge, what is most likely a cause first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Symptom {
    /// More requests fail.
    Failures,
    /// Those that succeed take longer.
    Latency,
    /// There are far more requests.
    TrafficSurge,
    /// There are far fewer, or none.
    TrafficDrop,
}

impl Symptom {
    pub const ALL: [Self; 4] =
        [Self::Failures, Self::Latency, Self::TrafficSurge, Self::TrafficDrop];

    /// The word in metrics and in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Failures => "failures",
            Self::Latency => "latency",
            Self::TrafficSurge => "traffic_surge",
            Self::TrafficDrop => "traffic_drop",
        }
    }
}

impl fmt::Display for Symptom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What happened on an edge in one tick.
#[derive(Clone, Debug, Default)]
pub struct Tick {
    pub requests: u64,
    /// Of them, those that failed or were refused.
    pub failures: u64,
    /// Of those that succeeded.
    pub latencies: Latencies,
    /// A caller was there to report. Else nothing is known, and nothing is judged or learnt.
    pub reported: bool,
}

/// Something unusual that goes on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Unusual {
    pub symptom: Symptom,
    /// Ticks since it began.
    pub ticks: u32,
    /// What is usual, and what it is now: shares of requests, seconds, or requests per second.
    pub usual: f64,
    pub now: f64,
    /// By how many standard deviations they differ.
    pub deviations: f64,
}

/// What is usual on one edge.
#[derive(Clone, Debug, Default)]
pub struct Baseline {
    lately: Usual,
    /// Those of which something is known, ordered.
    hours: Vec<(u8, Usual)>,
    /// The last ones, newest last.
    window: Vec<Tick>,
    symptoms: [Course; Symptom::ALL.len()],
}

/// Averages of ticks, with variances.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usual {
    /// Ticks that it was learnt from, up to its memory.
    pub ticks: u32,
    /// Requests per tick.
    pub rate: Average,
    /// The share of requests that fail.
    pub failures: Average,
    /// Bucket of the 95th percentile.
    pub p95: Average,
}

/// A mean that forgets, and the mean square of what differs from it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Average {
    pub mean: f32,
    pub variance: f32,
    /// How much it was learnt from: ticks without requests say nothing of latencies.
    pub weight: f32,
}

/// The course of a symptom.
#[derive(Clone, Copy, Debug, Default)]
struct Course {
    /// Unusual ticks, or while it goes on usual ones, in a row.
    streak: u8,
    /// Ticks since it began; 0: it does not go on.
    ticks: u32,
    last: Option<Difference>,
}

#[derive(Clone, Copy, Debug)]
struct Difference {
    usual: f64,
    now: f64,
    deviations: f64,
}

impl Average {
    fn learn(&mut self, value: f64, weight: f64, memory: u32) {
        if weight <= 0.0 {
            return;
        }
        let known = (f64::from(self.weight) + weight).min(f64::from(memory));
        let (mean, part) = (f64::from(self.mean), weight / known);
        let off = value - mean;
        self.mean = (mean + part * off) as f32;
        // Welford's update with a weight that forgets.
        self.variance = ((1.0 - part) * (f64::from(self.variance) + part * off * off)) as f32;
        self.weight = known as f32;
    }

    fn mean(&self) -> f64 {
        f64::from(self.mean)
    }

    fn variance(&self) -> f64 {
        f64::from(self.variance)
    }
}

impl Usual {
    fn learn(&mut self, tick: &Tick, memory: u32) {
        self.ticks = self.ticks.saturating_add(1).min(memory);
        let requests = tick.requests as f64;
        self.rate.learn(requests, 1.0, memory);
        if tick.requests > 0 {
            // A tick of few requests says less.
            let weight = (requests / MIN_REQUESTS).min(1.0);
            self.failures.learn(tick.failures as f64 / requests, weight, memory);
        }
        if let Some(p95) = tick.latencies.bucket_at(1.0 - ABOVE_P95) {
            let weight = (tick.latencies.count() as f64 / MIN_REQUESTS).min(1.0);
            self.p95.learn(f64::from(p95), weight, memory);
        }
    }
}

impl Baseline {
    /// With what was known of hours of the week, by hour; anything that is no hour is left out.
    pub fn new(lately: Usual, hours: impl IntoIterator<Item = (u8, Usual)>) -> Self {
        let mut hours: Vec<_> = hours.into_iter().filter(|(hour, _)| *hour < HOURS).collect();
        hours.sort_by_key(|(hour, _)| *hour);
        hours.dedup_by_key(|(hour, _)| *hour);
        Self { lately, hours, ..Self::default() }
    }

    /// What is known of lately, and of hours of the week, ordered.
    pub fn known(&self) -> (Usual, &[(u8, Usual)]) {
        (self.lately, &self.hours)
    }

    /// What goes on that is unusual.
    pub fn unusual(&self) -> impl Iterator<Item = Unusual> {
        Symptom::ALL.into_iter().zip(&self.symptoms).filter_map(|(symptom, course)| {
            let Difference { usual, now, deviations } = course.last?;
            let ticks = course.ticks;
            (ticks > 0).then_some(Unusual { symptom, ticks, usual, now, deviations })
        })
    }

    /// Lets a tick pass. `hour`: of the week.
    pub fn tick(&mut self, hour: u8, tick: Tick) {
        if !tick.reported {
            // Ticks before the gap say nothing of those after it.
            self.window.clear();
            return;
        }
        if self.window.len() >= WINDOWS[WINDOWS.len() - 1] {
            self.window.remove(0);
        }
        self.window.push(tick);
        let of_hour = self.hours.iter().find(|(at, _)| *at == hour).map(|(_, usual)| *usual);
        let of_hour = of_hour.filter(|usual| usual.ticks >= ENOUGH_OF_HOUR);
        let mut is_usual = true;
        let mut longest = 0;
        for symptom in Symptom::ALL {
            let difference = self.difference(symptom, of_hour);
            let course = &mut self.symptoms[symptom as usize];
            course.pass(difference);
            is_usual &= difference.is_none() && course.ticks == 0;
            longest = longest.max(course.ticks);
        }
        if is_usual {
            self.learn(hour);
        }
        if longest > if of_hour.is_some() { ADOPTED_OF_HOUR } else { ADOPTED } {
            // It is what is usual by now: learnt anew.
            let hours = self.hours.drain(..).filter(|(at, _)| *at != hour).collect();
            *self = Self { hours, ..Self::default() };
        }
    }

    fn learn(&mut self, hour: u8) {
        let Some(tick) = self.window.last() else { return };
        self.lately.learn(tick, MEMORY);
        if hour >= HOURS {
            return;
        }
        let at = match self.hours.binary_search_by_key(&hour, |(hour, _)| *hour) {
            Ok(at) => at,
            Err(at) => {
                self.hours.insert(at, (hour, Usual::default()));
                at
            }
        };
        self.hours[at].1.learn(tick, MEMORY_OF_HOUR);
    }

    /// How what happened lately differs from what is usual, if it does.
    fn difference(&self, symptom: Symptom, of_hour: Option<Usual>) -> Option<Difference> {
        if self.lately.ticks < ENOUGH {
            return None;
        }
        match symptom {
            Symptom::Failures | Symptom::Latency => {
                // Of failures and latency there can be less at another hour, and what is usual of both is fine.
                let both = [Some(self.lately), of_hour];
                let mut found = None;
                for usual in both.into_iter().flatten() {
                    let difference = match symptom {
                        Symptom::Failures => self.failures(&usual),
                        _ => self.latency(&usual),
                    };
                    found = Some(difference?);
                }
                found
            }
            // Traffic follows the hour.
            Symptom::TrafficSurge | Symptom::TrafficDrop => {
                self.traffic(symptom, &of_hour.unwrap_or(self.lately))
            }
        }
    }

    /// The shortest window that has enough of what is counted, as ticks and how much it is.
    fn window(&self, count: impl Fn(&Tick) -> u64) -> Option<(&[Tick], f64)> {
        WINDOWS.into_iter().find_map(|ticks| {
            let window = self.window.get(self.window.len().checked_sub(ticks)?..)?;
            let counted = window.iter().map(&count).fold(0, u64::saturating_add) as f64;
            (counted >= MIN_REQUESTS).then_some((window, counted))
        })
    }

    fn failures(&self, usual: &Usual) -> Option<Difference> {
        let (window, requests) = self.window(|tick| tick.requests)?;
        let failures = window.iter().fold(0, |sum, tick| tick.failures.saturating_add(sum)) as f64;
        let share = usual.failures.mean().clamp(0.0, 1.0);
        // Failures come in bursts: what a tick usually differs from the mean by counts beside pure chance.
        let chance = requests * share * (1.0 - share);
        let bursts = requests * requests * usual.failures.variance() / window.len() as f64;
        let deviations = (failures - requests * share) / (chance + bursts + 1.0).sqrt();
        let now = failures / requests;
        let is_unusual =
            failures >= MIN_EVENTS && now > 2.0 * share + MORE_FAILURES && deviations > DEVIATIONS;
        is_unusual.then_some(Difference { usual: share, now, deviations })
    }

    fn latency(&self, usual: &Usual) -> Option<Difference> {
        if usual.p95.weight < ENOUGH as f32 / 2.0 {
            return None;
        }
        let (window, requests) = self.window(|tick| tick.latencies.count())?;
        let usually = usual.p95.mean() + 0.5;
        let slow_from = usually + SLOW_BUCKETS + 3.0 * usual.p95.variance().sqrt();
        let slow = window.iter().map(|tick| tick.latencies.count_from(slow_from));
        let slow = slow.fold(0, u64::saturating_add) as f64;
        let chance = requests * ABOVE_P95 * (1.0 - ABOVE_P95);
        let deviations = (slow - requests * ABOVE_P95) / (chance + 1.0).sqrt();
        let is_unusual =
            slow >= MIN_EVENTS && slow / requests > SLOW_SHARE && deviations > DEVIATIONS;
        is_unusual.then(|| {
            let mut all = Latencies::default();
            window.iter().for_each(|tick| all.merge(&tick.latencies));
            let seconds = |bucket| super::latency::latency_at(bucket).as_secs_f64();
            let now = f64::from(all.bucket_at(1.0 - ABOVE_P95).unwrap_or_default()) + 0.5;
            Difference { usual: seconds(usually), now: seconds(now), deviations }
        })
    }

    fn traffic(&self, symptom: Symptom, usual: &Usual) -> Option<Difference> {
        let rate = usual.rate.mean();
        WINDOWS.into_iter().find_map(|ticks| {
            let window = self.window.get(self.window.len().checked_sub(ticks)?..)?;
            let counted =
                window.iter().map(|tick| tick.requests).fold(0, u64::saturating_add) as f64;
            let length = ticks as f64;
            let expected = rate * length;
            let enough = if symptom == Symptom::TrafficDrop { expected } else { counted };
            if enough < MIN_REQUESTS {
                return None;
            }
            let variance = (usual.rate.variance() * length * ALIKE).max(expected) + 1.0;
            let deviations = (counted - expected) / variance.sqrt();
            let is_unusual = match symptom {
                Symptom::TrafficDrop => counted < DROP * expected && deviations < -DROP_DEVIATIONS,
                _ => counted > SURGE * expected && deviations > DEVIATIONS,
            };
            let per_second = length * super::TICK.as_secs_f64();
            is_unusual.then_some(Difference {
                usual: expected / per_second,
                now: counted / per_second,
                deviations: deviations.abs(),
            })
        })
    }
}

impl Course {
    fn pass(&mut self, difference: Option<Difference>) {
        let goes_on = self.ticks > 0;
        self.streak =
            if difference.is_some() == goes_on { 0 } else { self.streak.saturating_add(1) };
        if goes_on {
            self.ticks = self.ticks.saturating_add(1);
        }
        if difference.is_some() {
            self.last = difference;
        }
        match goes_on {
            false if self.streak >= BEGINS => {
                *self = Self { streak: 0, ticks: u32::from(BEGINS), ..*self }
            }
            true if self.streak >= ENDS => *self = Self::default(),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tick(requests: u64, failures: u64) -> Tick {
        Tick { requests, failures, latencies: Latencies::default(), reported: true }
    }

    fn symptoms(baseline: &Baseline) -> Vec<Symptom> {
        baseline.unusual().map(|one| one.symptom).collect()
    }

    #[test]
    fn what_is_unusual_begins_after_three_ticks_and_ends_after_six_usual_ones() {
        let mut edge = Baseline::default();
        (0..ENOUGH).for_each(|_| edge.tick(0, tick(100, 0)));
        for ticks in 1..=5 {
            edge.tick(0, tick(100, 50));
            let begun = ticks >= BEGINS;
            assert_eq!(symptoms(&edge).contains(&Symptom::Failures), begun, "{ticks}");
        }
        let one = edge.unusual().next().unwrap();
        assert_eq!((one.ticks, one.usual, one.now), (5, 0.0, 0.5));
        // The window holds the last failures for one tick more.
        for ticks in 1..=ENDS + 1 {
            assert_eq!(symptoms(&edge), [Symptom::Failures], "{ticks}");
            edge.tick(0, tick(100, 0));
        }
        assert_eq!(symptoms(&edge), []);
        // Two ticks in a row are none.
        (0..20).for_each(|at| edge.tick(0, tick(100, if at % 8 < 1 { 50 } else { 0 })));
        assert_eq!(symptoms(&edge), []);
    }

    #[test]
    fn what_lasts_becomes_usual_and_is_not_learnt_before() {
        let mut edge = Baseline::default();
        (0..ENOUGH).for_each(|_| edge.tick(0, tick(100, 0)));
        // Half of them fail, for nearly an hour.
        (0..ADOPTED - 10).for_each(|_| edge.tick(0, tick(100, 50)));
        assert_eq!(symptoms(&edge), [Symptom::Failures]);
        assert_eq!(edge.known().0.failures.mean, 0.0);
        (0..20 + ENOUGH).for_each(|_| edge.tick(0, tick(100, 50)));
        assert_eq!(symptoms(&edge), []);
        assert!((edge.known().0.failures.mean - 0.5).abs() < 0.01);
    }

    #[test]
    fn traffic_is_compared_with_the_same_hour_once_that_is_known() {
        let (night, day) = (3, 12);
        let mut edge = Baseline::default();
        (0..MEMORY).for_each(|_| edge.tick(night, tick(10, 0)));
        // The first day is a surge, until it has lasted for an hour.
        (0..2 * MEMORY).for_each(|_| edge.tick(day, tick(1_000, 0)));
        let known = edge.known().1.iter().map(|(hour, usual)| (*hour, usual.rate.mean as u64));
        let known: Vec<_> = known.collect();
        assert_eq!(known[0], (night, 10));
        // Nights are quiet, whatever was done lately. A day like a night is not usual.
        (0..60).for_each(|_| edge.tick(night, tick(10, 0)));
        assert_eq!(symptoms(&edge), []);
        (0..10).for_each(|_| edge.tick(day, tick(10, 0)));
        assert_eq!(symptoms(&edge), [Symptom::TrafficDrop]);
    }

    #[test]
    fn what_nobody_reports_is_neither_judged_nor_learnt() {
        let mut edge = Baseline::default();
        (0..ENOUGH).for_each(|_| edge.tick(0, tick(100, 0)));
        let before = edge.known().0;
        (0..60).for_each(|_| edge.tick(0, Tick::default()));
        assert_eq!((symptoms(&edge), edge.known().0), (vec![], before));
    }
}
