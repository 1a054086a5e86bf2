//! What a port lets in: its rate limits, then its limit of requests at a time, asked once per request
//! after the access rules. The state machines are in `core/src/policy/{rate_limit,concurrency}.rs`; one of
//! each serves the whole process and outlives every change of configuration ([`known`]).

pub mod gate;
pub mod known;

use std::borrow::Cow;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::StatusCode;
use http::header::{HeaderMap, HeaderValue};
use outrigger_core::path::{canonical, without_parameters};
use outrigger_core::policy::priority::Priority;
use outrigger_core::policy::rate_limit::{Key, Quota, RateDecision, RateLimit, RateLimitConfig};
use outrigger_core::reason::Reason;
use outrigger_core::time::{Later, short};

use self::gate::{Gate, Permit};
use super::exchange::Exchange;
use super::head::Head;
use super::respond::Refusal;
use crate::guard::{RATE_LIMIT, RATE_LIMIT_POLICY};
use crate::metrics::add;
use crate::record::micros;

/// How often keys that were not seen for long are dropped.
const FORGET_EVERY: Duration = Duration::from_secs(10);
/// What an overloaded port asks callers to wait: its queue is about as long.
const OVERLOADED_WAIT: Duration = Duration::from_secs(1);

/// The limits of one port, as one configuration has them.
#[derive(Debug)]
pub struct PortLimits {
    rates: Vec<PortRate>,
    /// `RateLimit-Policy`.
    policy: Option<HeaderValue>,
    gate: Option<Arc<Gate>>,
}

#[derive(Debug)]
struct PortRate {
    config: RateLimitConfig,
    rate: Arc<Rate>,
}

/// One rate limit of the process.
#[derive(Debug)]
pub struct Rate {
    /// And when it is to forget keys next.
    limit: Mutex<(RateLimit, Instant)>,
    /// Tells keys apart without anybody being able to choose two that collide.
    hasher: RandomState,
    pub admitted: AtomicU64,
    pub refused: AtomicU64,
}

/// What the limits made of one request.
#[derive(Debug, Default)]
pub struct Limited {
    quota: Option<HeaderValue>,
    policy: Option<HeaderValue>,
    permit: Option<Permit>,
}

impl PortLimits {
    /// Lets a request in, at once or when its turn comes, or refuses it.
    pub async fn admit(&self, exchange: &mut Exchange, head: &Head) -> Result<(), Refusal> {
        let mut limited = Box::<Limited>::default();
        let rated = self.rate(exchange, head, &mut limited);
        if rated.is_ok()
            && let Some(gate) = &self.gate
        {
            match gate.enter(exchange.priority) {
                Some(permit) => limited.permit = Some(permit),
                None => match Box::pin(wait(gate, exchange)).await {
                    Ok(permit) => limited.permit = Some(permit),
                    Err(refusal) => {
                        self.give_back(exchange, head, self.rates.len());
                        exchange.limited = Some(limited);
                        return Err(refusal);
                    }
                },
            }
        }
        exchange.limited = Some(limited);
        rated
    }

    fn rate(&self, exchange: &Exchange, head: &Head, limited: &mut Limited) -> Result<(), Refusal> {
        let mut quotas = String::new();
        for (i, PortRate { config, rate }) in self.rates.iter().enumerate() {
            let key = rate.key(&config.key, exchange, head);
            match rate.decide(exchange.began, key, exchange.priority) {
                RateDecision::Admit(quota) => {
                    write_quota(config, quota, &mut quotas);
                    // Anyone who knows the rule can keep to it before it is refused.
                    if quota.left < config.requests / 10 {
                        limited.policy.clone_from(&self.policy);
                    }
                }
                RateDecision::Refuse { quota, retry_after } => {
                    self.give_back(exchange, head, i);
                    quotas.clear();
                    write_quota(config, quota, &mut quotas);
                    limited.quota = HeaderValue::try_from(quotas).ok();
                    limited.policy.clone_from(&self.policy);
                    return Err(refusal(config, retry_after));
                }
            }
        }
        if !quotas.is_empty() {
            limited.quota = HeaderValue::try_from(quotas).ok();
        }
        Ok(())
    }

    /// Undoes what the first `count` limits have admitted.
    fn give_back(&self, exchange: &Exchange, head: &Head, count: usize) {
        for PortRate { config, rate } in &self.rates[..count] {
            rate.give_back(rate.key(&config.key, exchange, head));
        }
    }
}

/// Waits for a turn, at most until the deadline.
async fn wait(gate: &Arc<Gate>, exchange: &mut Exchange) -> Result<Permit, Refusal> {
    let until = exchange.deadline.map(|deadline| deadline.at);
    let began = Instant::now();
    let waited = gate.wait(exchange.priority, until).await;
    exchange.phases.queue = micros(began.elapsed());
    waited.map_err(|why| match exchange.time_left("it was queued at the port's limit") {
        Err(late) => late,
        Ok(_) => {
            Refusal { retry_after: Some(OVERLOADED_WAIT), ..Refusal::new(Reason::Overloaded, why) }
        }
    })
}

fn write_quota(config: &RateLimitConfig, quota: Quota, out: &mut String) {
    if !out.is_empty() {
        out.push_str(", ");
    }
    config.write_limit(quota, out);
}

fn refusal(config: &RateLimitConfig, wait: Duration) -> Refusal {
    let RateLimitConfig { name, requests, period, .. } = config;
    let (period, wait_text) = (short(*period), short(wait));
    let why =
        format!("rate limit \"{name}\" ({requests} per {period}) exceeded; retry in {wait_text}");
    Refusal { retry_after: Some(wait), ..Refusal::new(Reason::RateLimited, why) }
}

impl Rate {
    fn new(config: RateLimitConfig, now: Instant) -> Self {
        Self {
            limit: Mutex::new((RateLimit::new(config, now), now.later(FORGET_EVERY))),
            hasher: RandomState::new(),
            admitted: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        }
    }

    fn decide(&self, now: Instant, key: u64, priority: Priority) -> RateDecision {
        let decision = self.with(now, |limit| limit.admit(now, key, priority));
        match decision {
            RateDecision::Admit(_) => add(&self.admitted, 1),
            RateDecision::Refuse { .. } => add(&self.refused, 1),
        }
        decision
    }

    /// Another limit has refused the request.
    fn give_back(&self, key: u64) {
        let mut locked = self.limit.lock().unwrap_or_else(PoisonError::into_inner);
        locked.0.give_back(key);
        self.admitted.fetch_sub(1, Relaxed);
    }

    /// Lends the machine, after it has forgotten what can be forgotten.
    fn with<T>(&self, now: Instant, act: impl FnOnce(&mut RateLimit) -> T) -> T {
        let mut locked = self.limit.lock().unwrap_or_else(PoisonError::into_inner);
        let (limit, forget_at) = &mut *locked;
        if now >= *forget_at {
            limit.tick(now);
            *forget_at = now.later(FORGET_EVERY);
        }
        act(limit)
    }

    fn key(&self, key: &Key, exchange: &Exchange, head: &Head) -> u64 {
        let connection = &exchange.connection;
        match key {
            Key::Caller => match &connection.caller {
                Some(caller) => self.hasher.hash_one(caller.proof.id.as_str()),
                None => self.hasher.hash_one(connection.remote.ip()),
            },
            // Requests without the header share one key, and so do those that have several, of which it is not
            // known which one the app reads.
            Key::Header(name) => {
                let several = head.headers.get_all(name).iter().nth(1).is_some();
                self.hasher.hash_one(head.value(name).filter(|_| !several))
            }
            // Spellings of one path share a key, as do all that servers read differently.
            Key::Path => {
                let path = canonical(head.path.path()).unwrap_or(Cow::Borrowed("*"));
                let bare = without_parameters(&path).map_or(path, Cow::Owned);
                self.hasher.hash_one(bare.trim_end_matches('/'))
            }
        }
    }
}

impl Limited {
    /// Notes that the head of the app's answer has come, and tells the caller what is left.
    pub fn answered(&mut self, status: StatusCode, headers: &mut HeaderMap) {
        // How fast it fails says nothing about how much it can bear.
        if let Some(permit) = &mut self.permit
            && !status.is_server_error()
        {
            permit.answered(Instant::now());
        }
        self.write(headers);
    }

    /// The same where the proxy answers itself.
    pub fn refused(&mut self, reason: Reason, headers: &mut HeaderMap) {
        let too_late = matches!(
            reason,
            Reason::DeadlineExceeded | Reason::AttemptTimeout | Reason::FirstByteTimeout
        );
        if too_late && let Some(permit) = &mut self.permit {
            permit.overloaded();
        }
        self.write(headers);
    }

    fn write(&mut self, headers: &mut HeaderMap) {
        let own = [(RATE_LIMIT, self.quota.take()), (RATE_LIMIT_POLICY, self.policy.take())];
        for (name, value) in own {
            if let Some(value) = value {
                // An app's own limits stay beside ours: both are lists.
                headers.append(name, value);
            }
        }
    }
}
