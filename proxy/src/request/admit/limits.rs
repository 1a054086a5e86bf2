//! What a port lets in: its rate limits, then its limit of requests at a time, asked once per request
//! after the access rules. The state machines are in `core/src/policy/{rate_limit,concurrency}.rs`; one of
//! each serves the whole process and outlives every change of configuration ([`crate::policy::limits::known`]).

use std::borrow::Cow;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::HeaderValue;
use outrigger_core::path::{canonical, without_parameters};
use outrigger_core::policy::rate_limit::{Key, Quota, RateDecision, RateLimitConfig};
use outrigger_core::reason::Reason;
use outrigger_core::time::short;

use crate::base::refusal::Refusal;
use crate::observe::record::micros;
use crate::policy::limits::gate::{Gate, Permit};
use crate::policy::limits::{Limited, PortLimits, PortRate, Rate};
use crate::request::exchange::Exchange;
use crate::request::head::Head;

/// What an overloaded port asks callers to wait: its queue is about as long.
const OVERLOADED_WAIT: Duration = Duration::from_secs(1);

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
            let key = key_of(rate, &config.key, exchange, head);
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
            rate.give_back(key_of(rate, &config.key, exchange, head));
        }
    }
}

/// Waits for a turn, at most until the deadline.
async fn wait(gate: &Arc<Gate>, exchange: &mut Exchange) -> Result<Permit, Refusal> {
    let until = exchange.deadline.map(|deadline| deadline.at);
    let began = Instant::now();
    let waited = gate.wait(exchange.priority, until).await;
    exchange.phases.queue = micros(began.elapsed());
    let what = "the deadline passed in the queue of the port's concurrency limit";
    waited.map_err(|why| match exchange.time_left(what) {
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

/// What a limit counts a request under.
fn key_of(rate: &Rate, key: &Key, exchange: &Exchange, head: &Head) -> u64 {
    let connection = &exchange.connection;
    match key {
        Key::Caller => match &connection.caller {
            Some(caller) => rate.hasher.hash_one(caller.proof.id.as_str()),
            None => rate.hasher.hash_one(connection.remote.ip()),
        },
        // Requests without the header share one key, and so do those that have several, of which it is not
        // known which one the app reads.
        Key::Header(name) => {
            let several = head.headers.get_all(name).iter().nth(1).is_some();
            rate.hasher.hash_one(head.value(name).filter(|_| !several))
        }
        // Spellings of one path share a key, as do all that servers read differently.
        Key::Path => {
            let path = canonical(head.path.path()).unwrap_or(Cow::Borrowed("*"));
            let bare = without_parameters(&path).map_or(path, Cow::Owned);
            rate.hasher.hash_one(bare.trim_end_matches('/'))
        }
    }
}
