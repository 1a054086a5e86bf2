//! What limits of requests remember.

pub mod gate;
pub mod known;
use std::hash::RandomState;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderValue, StatusCode};
use outrigger_core::policy::priority::Priority;
use outrigger_core::policy::rate_limit::{RateDecision, RateLimit, RateLimitConfig};
use outrigger_core::reason::Reason;
use outrigger_core::time::Later;

use crate::base::sync::lock;
use crate::observe::metrics::add;
use crate::policy::limits::gate::{Gate, Permit};
use crate::upstream::endpoint::guard::pace::{RATE_LIMIT, RATE_LIMIT_POLICY};

/// How often keys that were not seen for long are dropped.
const FORGET_EVERY: Duration = Duration::from_secs(10);

/// The limits of one port, as one configuration has them.
#[derive(Debug)]
pub struct PortLimits {
    pub(crate) rates: Vec<PortRate>,
    /// `RateLimit-Policy`.
    pub(crate) policy: Option<HeaderValue>,
    pub(crate) gate: Option<Arc<Gate>>,
}

#[derive(Debug)]
pub(crate) struct PortRate {
    pub(crate) config: RateLimitConfig,
    pub(crate) rate: Arc<Rate>,
}

/// One rate limit of the process.
#[derive(Debug)]
pub struct Rate {
    /// And when it is to forget keys next.
    pub(crate) limit: Mutex<(RateLimit, Instant)>,
    /// Tells keys apart without anybody being able to choose two that collide.
    pub(crate) hasher: RandomState,
    pub admitted: AtomicU64,
    pub refused: AtomicU64,
}

impl Rate {
    pub(crate) fn new(config: RateLimitConfig, now: Instant) -> Self {
        Self {
            limit: Mutex::new((RateLimit::new(config, now), now.later(FORGET_EVERY))),
            hasher: RandomState::new(),
            admitted: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        }
    }

    pub(crate) fn decide(&self, now: Instant, key: u64, priority: Priority) -> RateDecision {
        let decision = self.with(now, |limit| limit.admit(now, key, priority));
        match decision {
            RateDecision::Admit(_) => add(&self.admitted, 1),
            RateDecision::Refuse { .. } => add(&self.refused, 1),
        }
        decision
    }

    /// Another limit has refused the request.
    pub(crate) fn give_back(&self, key: u64) {
        let mut locked = lock(&self.limit);
        locked.0.give_back(key);
        self.admitted.fetch_sub(1, Relaxed);
    }

    /// Lends the machine, after it has forgotten what can be forgotten.
    pub(crate) fn with<T>(&self, now: Instant, act: impl FnOnce(&mut RateLimit) -> T) -> T {
        let mut locked = lock(&self.limit);
        let (limit, forget_at) = &mut *locked;
        if now >= *forget_at {
            limit.tick(now);
            *forget_at = now.later(FORGET_EVERY);
        }
        act(limit)
    }
}

/// What the limits made of one request.
#[derive(Debug, Default)]
pub struct Limited {
    pub(crate) quota: Option<HeaderValue>,
    pub(crate) policy: Option<HeaderValue>,
    pub(crate) permit: Option<Permit>,
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
