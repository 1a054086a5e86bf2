//! How many requests a port takes in a time, from all or from each caller.
//!
//! A bucket holds `burst` tokens at most and gets `requests` in each `period`; who finds none is refused
//! and told when to come back. The strategies differ in who may take the last tokens.

use std::fmt::Write;
use std::time::{Duration, Instant};

use http::HeaderName;

use super::bucket::{Bucket, Rate};
use super::lru::Lru;
use super::priority::Priority;

/// Keys that one limit remembers, about 1 MB of them. Then the one seen least recently is forgotten.
pub const MOST_KEYS: usize = 10_000;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RateLimitConfig {
    /// Names the limit in `RateLimit` headers, metrics and logs.
    pub name: String,
    /// Requests per `period`. At least 1.
    pub requests: u32,
    /// 1 s to 1 h.
    pub period: Duration,
    /// Requests that may come at once. At least 1; `requests` unless set.
    pub burst: u32,
    pub strategy: Strategy,
    /// What tells requests apart; requests of one key share a limit with [`Strategy::PerKey`].
    pub key: Key,
}

/// Whom it hits when there is too much.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Strategy {
    /// Any request when the bucket is empty.
    #[default]
    Volume,
    /// Sheddable requests when half of the burst is left, default ones when a tenth is, critical ones
    /// when nothing is.
    LowPriorityFirst,
    /// Keys that were seen less in the last period than the average one, when half of the burst is
    /// left; the others when nothing is. A flood does not make a key common before the next period.
    UncommonFirst,
    /// Each key has a limit of its own.
    PerKey,
}

/// What requests are told apart by.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Key {
    /// The proven identity, else the address.
    #[default]
    Caller,
    Header(HeaderName),
    /// The canonical path.
    Path,
}

/// One limit of one port.
///
/// Over any interval of length T, at most `burst + requests * T / period` are admitted (with
/// [`Strategy::PerKey`], of each key that was not forgotten meanwhile); with a reconfiguration, by the
/// higher of the numbers. It holds exactly.
#[derive(Clone, Debug)]
pub struct RateLimit {
    config: RateLimitConfig,
    bucket: Bucket,
    keys: RateKeys,
}

/// What is remembered of keys.
#[derive(Clone, Debug)]
enum RateKeys {
    None,
    Buckets(Lru<Bucket>),
    Counts(Counts),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RateDecision {
    Admit(Quota),
    Refuse {
        quota: Quota,
        /// The same request would be admitted then, if nothing else came.
        retry_after: Duration,
    },
}

/// What a caller may still send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// Requests that it could send at once.
    pub left: u32,
    /// Until all of the burst is there again, if nobody sends.
    pub reset: Duration,
}

impl RateLimit {
    pub fn new(config: RateLimitConfig, now: Instant) -> Self {
        let keys = RateKeys::new(config.strategy, now);
        Self { config, bucket: Bucket::full(now), keys }
    }

    /// Applies other numbers; a larger burst fills up at the new rate. A new strategy or key begins with
    /// no key known.
    pub fn reconfigure(&mut self, config: RateLimitConfig, now: Instant) {
        let (old, new) = (self.config.rate(), config.rate());
        if (self.config.strategy, &self.config.key) != (config.strategy, &config.key) {
            self.keys = RateKeys::new(config.strategy, now);
        }
        if old != new {
            self.bucket.reconfigure(old, new, now);
            if let RateKeys::Buckets(buckets) = &mut self.keys {
                buckets.values_mut().for_each(|bucket| bucket.reconfigure(old, new, now));
            }
        }
        self.config = config;
    }

    /// Decides about a request. `key`: a hash of what [`RateLimitConfig::key`] tells it apart by.
    pub fn admit(&mut self, now: Instant, key: u64, priority: Priority) -> RateDecision {
        let rate = self.config.rate();
        let reserve = match self.config.strategy {
            Strategy::Volume | Strategy::PerKey => 0,
            Strategy::LowPriorityFirst => match priority {
                Priority::Sheddable => rate.burst / 2,
                Priority::Default => rate.burst / 10,
                Priority::Critical => 0,
            },
            Strategy::UncommonFirst => {
                let counts =
                    if let RateKeys::Counts(counts) = &mut self.keys { Some(counts) } else { None };
                let is_common = counts.is_some_and(|counts| counts.see(key, now, rate.period));
                if is_common { 0 } else { rate.burst / 2 }
            }
        };
        let bucket = match &mut self.keys {
            RateKeys::Buckets(buckets) => buckets.get_or_insert_with(key, || Bucket::full(now)),
            RateKeys::None | RateKeys::Counts(_) => &mut self.bucket,
        };
        let admitted = bucket.take(rate, now, reserve);
        let left = bucket.left(rate, now).saturating_sub(reserve);
        let quota = Quota { left, reset: bucket.until_full(rate, now) };
        if admitted {
            RateDecision::Admit(quota)
        } else {
            RateDecision::Refuse { quota, retry_after: bucket.wait(rate, now, reserve) }
        }
    }

    /// Undoes an admission: another limit has refused the request.
    pub fn give_back(&mut self, key: u64) {
        let rate = self.config.rate();
        match &mut self.keys {
            RateKeys::Buckets(buckets) => {
                if let Some(bucket) = buckets.peek_mut(key) {
                    bucket.give_back(rate);
                }
            }
            RateKeys::None | RateKeys::Counts(_) => self.bucket.give_back(rate),
        }
    }

    /// To be called now and then: forgets keys that have not been seen for so long that it makes no
    /// difference.
    pub fn tick(&mut self, now: Instant) {
        let rate = self.config.rate();
        match &mut self.keys {
            RateKeys::None => {}
            RateKeys::Buckets(buckets) => {
                buckets.drop_oldest_while(|bucket| bucket.until_full(rate, now).is_zero());
            }
            RateKeys::Counts(counts) => counts.forget(now, rate.period),
        }
    }

    /// Requests that could be admitted now, of highest priority and a key never seen; of each such key
    /// with [`Strategy::PerKey`].
    pub fn left(&mut self, now: Instant) -> u32 {
        self.bucket.left(self.config.rate(), now)
    }

    /// Keys that are remembered.
    pub fn keys(&self) -> usize {
        match &self.keys {
            RateKeys::None => 0,
            RateKeys::Buckets(buckets) => buckets.len(),
            RateKeys::Counts(counts) => counts.seen.len(),
        }
    }

    pub fn config(&self) -> &RateLimitConfig {
        &self.config
    }
}

impl RateKeys {
    fn new(strategy: Strategy, now: Instant) -> Self {
        match strategy {
            Strategy::Volume | Strategy::LowPriorityFirst => Self::None,
            Strategy::PerKey => Self::Buckets(Lru::new(MOST_KEYS)),
            Strategy::UncommonFirst => Self::Counts(Counts::new(now)),
        }
    }
}

impl RateLimitConfig {
    fn rate(&self) -> Rate {
        Rate { tokens: self.requests, period: self.period, burst: self.burst }
    }

    /// Its item of a `RateLimit-Policy` header (draft-ietf-httpapi-ratelimit-headers-10); with a partition
    /// key where the requests of one caller are told apart.
    pub fn write_policy(&self, out: &mut String) {
        write_name(&self.name, out);
        let seconds = self.period.as_secs() + u64::from(self.period.subsec_nanos() > 0);
        // Writing to a string cannot fail.
        let _ = write!(out, ";q={};w={seconds}", self.requests);
        let apart = matches!(self.strategy, Strategy::PerKey | Strategy::UncommonFirst);
        // Bytes in base64: `header`, `path`.
        match &self.key {
            Key::Header(_) if apart => out.push_str(";pk=:aGVhZGVy:"),
            Key::Path if apart => out.push_str(";pk=:cGF0aA==:"),
            Key::Caller | Key::Header(_) | Key::Path => {}
        }
    }

    /// Its item of a `RateLimit` header.
    pub fn write_limit(&self, quota: Quota, out: &mut String) {
        write_name(&self.name, out);
        let _ = write!(out, ";r={};t={}", quota.left, seconds_up(quota.reset));
    }
}

/// Whole seconds, rounded up: anyone who waits so long has waited long enough.
pub fn seconds_up(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

/// A string of RFC 9651 section 3.3.3, which holds visible ASCII only.
fn write_name(name: &str, out: &mut String) {
    out.push('"');
    for letter in name.chars() {
        match letter {
            '"' | '\\' => out.extend(['\\', letter]),
            ' '..='~' => out.push(letter),
            _ => out.push('?'),
        }
    }
    out.push('"');
}

/// How often each key was seen, in this period and the last.
#[derive(Clone, Debug)]
struct Counts {
    start: Instant,
    period: u64,
    seen: Lru<Seen>,
    /// Of all keys.
    now: Sum,
    last: Sum,
}

#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    period: u64,
    now: u32,
    last: u32,
}

#[derive(Clone, Copy, Debug, Default)]
struct Sum {
    requests: u64,
    keys: u64,
}

impl Counts {
    fn new(start: Instant) -> Self {
        let (now, last) = (Sum::default(), Sum::default());
        Self { start, period: 0, seen: Lru::new(MOST_KEYS), now, last }
    }

    /// Counts a request and says whether its key was as common as the average one.
    fn see(&mut self, key: u64, now: Instant, period: Duration) -> bool {
        self.turn(now, period);
        let current = self.period;
        let seen = self.seen.get_or_insert_with(key, Seen::default);
        seen.turn(current);
        self.now.keys += u64::from(seen.now == 0);
        self.now.requests += 1;
        seen.now = seen.now.saturating_add(1);
        u64::from(seen.last) * self.last.keys >= self.last.requests
    }

    fn turn(&mut self, now: Instant, period: Duration) {
        let passed = now.saturating_duration_since(self.start).as_nanos();
        let number = u64::try_from(passed / period.as_nanos().max(1)).unwrap_or(u64::MAX);
        if number > self.period {
            let last = std::mem::take(&mut self.now);
            self.last = if number == self.period + 1 { last } else { Sum::default() };
            self.period = number;
        }
    }

    fn forget(&mut self, now: Instant, period: Duration) {
        self.turn(now, period);
        let current = self.period;
        self.seen.drop_oldest_while(|seen| seen.period + 1 < current);
    }
}

impl Seen {
    fn turn(&mut self, current: u64) {
        if current > self.period {
            self.last = if current == self.period + 1 { self.now } else { 0 };
            self.now = 0;
            self.period = current;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn limit(strategy: Strategy, burst: u32) -> RateLimitConfig {
        let name = "all".to_owned();
        RateLimitConfig { name, requests: 10, period: SECOND, burst, strategy, key: Key::Caller }
    }

    /// Admissions of as many requests as come through at `now`.
    fn admitted(limit: &mut RateLimit, now: Instant, key: u64, priority: Priority) -> u32 {
        let mut count = 0;
        while let RateDecision::Admit(quota) = limit.admit(now, key, priority) {
            count += 1;
            assert!(quota.left < 1_000_000);
        }
        count
    }

    #[test]
    fn who_comes_too_late_is_told_when_to_come_back() {
        let now = Instant::now();
        let mut limit = RateLimit::new(limit(Strategy::Volume, 20), now);
        let first = RateDecision::Admit(Quota { left: 19, reset: SECOND / 10 });
        assert_eq!(limit.admit(now, 1, Priority::Default), first);
        assert_eq!(admitted(&mut limit, now, 2, Priority::Sheddable), 19);
        let refused = limit.admit(now, 1, Priority::Critical);
        let quota = Quota { left: 0, reset: SECOND * 2 };
        assert_eq!(refused, RateDecision::Refuse { quota, retry_after: SECOND / 10 });
        assert_eq!(admitted(&mut limit, now + SECOND / 10, 1, Priority::Default), 1);
        limit.give_back(1);
        assert_eq!(admitted(&mut limit, now + SECOND / 10, 1, Priority::Default), 1);
    }

    #[test]
    fn the_less_important_leave_some_for_the_others() {
        let now = Instant::now();
        let mut limit = RateLimit::new(limit(Strategy::LowPriorityFirst, 20), now);
        assert_eq!(admitted(&mut limit, now, 1, Priority::Sheddable), 10);
        assert_eq!(admitted(&mut limit, now, 1, Priority::Default), 8);
        assert_eq!(admitted(&mut limit, now, 1, Priority::Critical), 2);
        let refused = limit.admit(now, 1, Priority::Sheddable);
        let quota = Quota { left: 0, reset: SECOND * 2 };
        assert_eq!(refused, RateDecision::Refuse { quota, retry_after: SECOND / 10 * 11 });
    }

    #[test]
    fn an_uncommon_caller_leaves_some_for_the_regulars() {
        let now = Instant::now();
        let mut limit = RateLimit::new(limit(Strategy::UncommonFirst, 20), now);
        for _ in 0..5 {
            assert!(matches!(limit.admit(now, 1, Priority::Default), RateDecision::Admit(_)));
        }
        assert_eq!(admitted(&mut limit, now, 2, Priority::Default), 15, "nobody is known yet");
        let next = now + SECOND;
        assert!(matches!(limit.admit(next, 1, Priority::Default), RateDecision::Refuse { .. }));
        assert_eq!(admitted(&mut limit, next, 2, Priority::Default), 10);
        limit.tick(now + SECOND * 2);
        assert_eq!(limit.keys(), 2);
        limit.tick(now + SECOND * 3);
        assert_eq!(limit.keys(), 0);
    }

    #[test]
    fn each_key_has_its_own_and_is_forgotten_when_that_changes_nothing() {
        let now = Instant::now();
        let mut limit = RateLimit::new(limit(Strategy::PerKey, 20), now);
        assert_eq!(admitted(&mut limit, now, 1, Priority::Default), 20);
        assert_eq!(admitted(&mut limit, now, 2, Priority::Sheddable), 20);
        limit.tick(now + SECOND);
        assert_eq!(limit.keys(), 2);
        assert_eq!(admitted(&mut limit, now + SECOND, 2, Priority::Default), 10);
        limit.tick(now + SECOND * 2);
        assert_eq!(limit.keys(), 1);
        for key in 0..20_000 {
            limit.admit(now + SECOND * 2, key, Priority::Default);
        }
        assert_eq!(limit.keys(), MOST_KEYS);
        limit.tick(now + SECOND * 9);
        assert_eq!(limit.keys(), 0);
    }

    #[test]
    fn other_numbers_hold_at_once() {
        let now = Instant::now();
        let mut limit = RateLimit::new(limit(Strategy::PerKey, 20), now);
        assert_eq!(admitted(&mut limit, now, 1, Priority::Default), 20);
        limit.reconfigure(RateLimitConfig { burst: 30, ..limit.config().clone() }, now);
        assert_eq!(admitted(&mut limit, now, 1, Priority::Default), 0);
        assert_eq!(admitted(&mut limit, now, 2, Priority::Default), 30);
        limit.reconfigure(RateLimitConfig { requests: 1, burst: 1, ..limit.config().clone() }, now);
        assert_eq!(admitted(&mut limit, now, 1, Priority::Default), 0);
        assert_eq!(admitted(&mut limit, now + SECOND, 1, Priority::Default), 1);
        let volume = Strategy::Volume;
        limit.reconfigure(RateLimitConfig { strategy: volume, ..limit.config().clone() }, now);
        assert_eq!(limit.keys(), 0);
    }

    #[test]
    fn headers_are_structured_fields() {
        let mut config = limit(Strategy::Volume, 20);
        config.name = "a \"b\" \\ ü".to_owned();
        config.period = SECOND * 3 / 2;
        let mut text = String::new();
        config.write_policy(&mut text);
        assert_eq!(text, r#""a \"b\" \\ ?";q=10;w=2"#);
        let mut text = String::new();
        config.write_limit(Quota { left: 3, reset: SECOND / 2 }, &mut text);
        assert_eq!(text, r#""a \"b\" \\ ?";r=3;t=1"#);
    }
}
