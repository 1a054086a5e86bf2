//! Client-side protection of one service port: retry budget, breaker, ejected and unhealthy endpoints, bulkheads.
//!
//! One per backend and process, beside its endpoints; the state machines are in `core/src/policy/`. A healthy
//! request reads a few atomics and takes no lock.

mod fitness;
mod health;
mod latencies;
pub(crate) mod pace;
mod permit;
mod show;

use std::collections::BTreeSet;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Instant;

use outrigger_core::name::DestinationName;
use outrigger_core::outcome::Outcome;
use outrigger_core::policy::BackendPolicy;
use outrigger_core::policy::breaker::{self, Admission, Breaker};
use outrigger_core::policy::budget::Budget;
use outrigger_core::policy::fallback::Degraded;
use outrigger_core::policy::limits::LimitsConfig;
use outrigger_core::policy::outlier::{self, Ejection, Outlier};
use outrigger_core::reason::Reason;
use tokio::sync::Notify;

pub use health::{Check, Health};
pub use latencies::Latencies;
pub use permit::{InFlightPermit, acquire_in_flight};
pub use show::write_metrics;

use crate::base::refusal::Refusal;
use crate::base::sync::lock;
use crate::upstream::endpoint::{EndpointState, Endpoints};

/// What the limits' atomics hold where nothing is limited.
const UNLIMITED: u32 = u32::MAX;

pub struct Guard {
    name: DestinationName,
    /// Requests so far, each once however often it was tried.
    requests: AtomicU64,
    /// Attempts so far.
    attempts: AtomicU64,
    /// The breaker is closed and nothing has failed since the last success.
    breaker_clean: AtomicBool,
    /// No endpoint has failed lately.
    endpoints_clean: AtomicBool,
    /// No endpoint is unhealthy by its checks.
    all_well: AtomicBool,
    /// What is known by checks.
    health: Health,
    /// What is obeyed of the service's own rate limits.
    pub(crate) pacing: pace::Pacing,
    state: Mutex<PolicyState>,
    in_flight: AtomicU32,
    waiting: AtomicU32,
    max_in_flight: AtomicU32,
    max_pending: AtomicU32,
    max_per_endpoint: AtomicU32,
    room: Notify,
    /// Made when a policy first asks for them.
    latencies: OnceLock<Box<Latencies>>,
    /// Attempts after the first.
    pub(crate) retries: AtomicU64,
    /// Microseconds that requests have waited here, for a place or by pacing.
    pub(crate) waited_us: AtomicU64,
    /// Answers given instead of failures of this service.
    degraded: [AtomicU64; Degraded::ALL.len()],
    /// Choices for which ejections or checks were ignored, because too few endpoints were left.
    panics: AtomicU64,
}

struct PolicyState {
    budget: Budget,
    breaker: Option<Breaker>,
    outlier: Option<Outlier>,
    /// Endpoints that are unhealthy by their checks, by their stable keys.
    unhealthy: BTreeSet<u64>,
    /// Percent; 0: ejections and checks always count.
    panic_threshold: Option<u8>,
}

/// The probes that one attempt is, if any. Boxed: nearly every attempt is none, and many keep room for it.
#[derive(Default)]
pub struct ProbeIds(Option<Box<Ids>>);

#[derive(Clone, Copy, Default)]
struct Ids {
    breaker: Option<breaker::BreakerProbeId>,
    endpoint: Option<outlier::EndpointProbeId>,
}

impl ProbeIds {
    fn ids(&self) -> Ids {
        self.0.as_deref().copied().unwrap_or_default()
    }
}

/// One attempt under way: it counts as in flight at its endpoint, and what becomes of it is told once.
pub struct Attempt {
    endpoints: Arc<Endpoints>,
    endpoint: Arc<EndpointState>,
    probes: ProbeIds,
    judged: bool,
    /// When it was sent; none: an answer has come, and taught how long it took.
    unanswered_since: Option<Instant>,
}

impl Attempt {
    /// Of its endpoint.
    pub fn zone(&self) -> Option<&str> {
        self.endpoint.endpoint.zone.as_deref()
    }

    pub fn begin(
        endpoints: &Arc<Endpoints>,
        endpoint: &Arc<EndpointState>,
        probes: ProbeIds,
        now: Instant,
    ) -> Self {
        endpoint.load.began();
        let (endpoints, endpoint) = (Arc::clone(endpoints), Arc::clone(endpoint));
        Self { endpoints, endpoint, probes, judged: false, unanswered_since: Some(now) }
    }

    /// An answer has come.
    pub fn answered(&mut self) {
        self.unanswered_since = None;
    }

    pub fn judge(&mut self, outcome: Outcome, random: impl FnOnce() -> u64) {
        if std::mem::replace(&mut self.judged, true) {
            return;
        }
        let guard = &self.endpoints.guard;
        match outcome {
            Outcome::Success => guard.success(&self.endpoint, self.probes.ids()),
            Outcome::Failure => {
                let endpoints = self.endpoints.load().endpoints.len();
                guard.failure(&self.endpoint, self.probes.ids(), endpoints, random());
            }
            Outcome::Refused | Outcome::Canceled => {
                guard.abandoned(&self.endpoint, self.probes.ids());
            }
        }
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        self.endpoint.load.ended();
        if let Some(began) = self.unanswered_since {
            // Given up, for a deadline or because another attempt was quicker.
            self.endpoint.load.observe_at_least(began, Instant::now());
        }
        self.judge(Outcome::Canceled, || 0);
    }
}

impl Guard {
    pub fn new(name: DestinationName) -> Self {
        let budget = Budget::new(BackendPolicy::default().budget, Instant::now(), 0);
        Self {
            name,
            requests: AtomicU64::new(0),
            attempts: AtomicU64::new(0),
            breaker_clean: AtomicBool::new(true),
            endpoints_clean: AtomicBool::new(true),
            all_well: AtomicBool::new(true),
            health: Health::default(),
            pacing: pace::Pacing::default(),
            retries: AtomicU64::new(0),
            waited_us: AtomicU64::new(0),
            state: Mutex::new(PolicyState {
                budget,
                breaker: None,
                outlier: None,
                unhealthy: BTreeSet::new(),
                panic_threshold: None,
            }),
            in_flight: AtomicU32::new(0),
            waiting: AtomicU32::new(0),
            max_in_flight: AtomicU32::new(UNLIMITED),
            max_pending: AtomicU32::new(0),
            max_per_endpoint: AtomicU32::new(UNLIMITED),
            room: Notify::new(),
            latencies: OnceLock::new(),
            degraded: Default::default(),
            panics: AtomicU64::new(0),
        }
    }

    /// Puts a policy in force. What the state machines have learnt stays.
    pub fn reconfigure(&self, policy: &BackendPolicy) {
        let now = Instant::now();
        let mut state = self.lock();
        state.budget.reconfigure(policy.budget, now);
        state.breaker = match (state.breaker.take(), policy.breaker) {
            (_, None) => None,
            (None, Some(config)) => Some(Breaker::new(config, now, self.attempts.load(Relaxed))),
            (Some(mut breaker), Some(config)) => {
                breaker.reconfigure(config);
                Some(breaker)
            }
        };
        state.outlier = match (state.outlier.take(), policy.outlier) {
            (_, None) => None,
            (None, Some(config)) => Some(Outlier::new(config)),
            (Some(mut outlier), Some(config)) => {
                outlier.reconfigure(config, now);
                Some(outlier)
            }
        };
        state.panic_threshold = policy.preference.panic_threshold;
        self.publish(&state);
        let LimitsConfig { max_in_flight, max_pending, max_in_flight_per_endpoint } = policy.limits;
        self.max_in_flight.store(max_in_flight.unwrap_or(UNLIMITED), Relaxed);
        self.max_pending.store(max_pending.unwrap_or(0), Relaxed);
        self.max_per_endpoint.store(max_in_flight_per_endpoint.unwrap_or(UNLIMITED), Relaxed);
        // A wider limit has room for anyone who waits.
        self.room.notify_waiters();
    }

    /// A request begins.
    pub fn request(&self) {
        self.requests.fetch_add(1, Relaxed);
    }

    /// A caller got something else instead of a failure.
    pub fn degraded(&self, kind: Degraded) {
        self.degraded[kind as usize].fetch_add(1, Relaxed);
    }

    pub fn latencies(&self) -> &Latencies {
        self.latencies.get_or_init(Box::default)
    }

    /// Takes one retry out of the budget.
    pub fn may_retry(&self) -> bool {
        self.lock().budget.try_take(Instant::now(), self.requests.load(Relaxed))
    }

    /// An attempt begins; refused while the breaker is open.
    pub fn admit(&self) -> Result<ProbeIds, Refusal> {
        self.attempts.fetch_add(1, Relaxed);
        if self.breaker_clean.load(Relaxed) {
            return Ok(ProbeIds::default());
        }
        let now = Instant::now();
        let mut state = self.lock();
        let Some(breaker) = &mut state.breaker else { return Ok(ProbeIds::default()) };
        let (admission, transition) = breaker.admit(now);
        drop(state);
        self.log(transition);
        match admission {
            Admission::Pass => Ok(ProbeIds::default()),
            Admission::Probe(id) => {
                Ok(ProbeIds(Some(Box::new(Ids { breaker: Some(id), endpoint: None }))))
            }
            Admission::Refuse { retry_at } => {
                let left = retry_at.saturating_duration_since(now);
                let detail = format!(
                    "too many calls to {} failed; the next probe is in {} ms",
                    self.name,
                    left.as_millis()
                );
                Err(Refusal {
                    retry_after: Some(left),
                    ..Refusal::new(Reason::BreakerOpen, detail)
                })
            }
        }
    }

    /// An attempt was answered.
    fn success(&self, endpoint: &EndpointState, probes: Ids) {
        let clean = self.breaker_clean.load(Relaxed) && self.endpoints_clean.load(Relaxed);
        if clean && probes.breaker.is_none() && probes.endpoint.is_none() {
            return;
        }
        let now = Instant::now();
        let mut state = self.lock();
        let breaker = state.breaker.as_mut().and_then(|b| b.success(probes.breaker));
        let outlier = state.outlier.as_mut();
        let returned = outlier.and_then(|o| o.success(now, endpoint.stable, probes.endpoint));
        self.publish(&state);
        drop(state);
        self.log(breaker);
        self.log_endpoint(endpoint, returned);
    }

    /// An attempt has failed. `endpoints`: how many the service has.
    fn failure(&self, endpoint: &EndpointState, probes: Ids, endpoints: usize, random: u64) {
        let now = Instant::now();
        let mut state = self.lock();
        if state.breaker.is_none() && state.outlier.is_none() {
            return;
        }
        let attempts = self.attempts.load(Relaxed);
        let breaker = state.breaker.as_mut();
        let breaker = breaker.and_then(|b| b.failure(now, attempts, random, probes.breaker));
        let sent = outlier::Sent { key: endpoint.stable, total: endpoint.load.sent() };
        let outlier = state.outlier.as_mut();
        let ejected =
            outlier.and_then(|o| o.failure(now, sent, random, endpoints, probes.endpoint));
        self.publish(&state);
        drop(state);
        self.log(breaker);
        self.log_endpoint(endpoint, ejected);
    }

    /// An attempt has not been made after all.
    pub fn unused(&self, probes: &ProbeIds) {
        if let (Some(breaker), Some(id)) = (&mut self.lock().breaker, probes.ids().breaker) {
            breaker.abandoned(id);
        }
    }

    /// An attempt has ended and proved nothing.
    fn abandoned(&self, endpoint: &EndpointState, probes: Ids) {
        if probes.breaker.is_none() && probes.endpoint.is_none() {
            return;
        }
        let mut state = self.lock();
        if let (Some(breaker), Some(id)) = (&mut state.breaker, probes.breaker) {
            breaker.abandoned(id);
        }
        if let (Some(outlier), Some(id)) = (&mut state.outlier, probes.endpoint) {
            outlier.abandoned(endpoint.stable, id);
        }
    }

    /// About once a second: time passes for the state machines.
    pub fn tick(&self, now: Instant, endpoints: &[Arc<EndpointState>]) {
        if let Some(latencies) = self.latencies.get() {
            latencies.tick();
        }
        let mut state = self.lock();
        state.budget.tick(now, self.requests.load(Relaxed));
        let attempts = self.attempts.load(Relaxed);
        let breaker = state.breaker.as_mut().and_then(|breaker| breaker.tick(now, attempts));
        let mut moved = Vec::new();
        if let Some(outlier) = &mut state.outlier
            && !outlier.is_empty()
        {
            let sent =
                |e: &Arc<EndpointState>| outlier::Sent { key: e.stable, total: e.load.sent() };
            let present: Vec<_> = endpoints.iter().map(sent).collect();
            moved = outlier.tick(now, &present);
        }
        self.publish(&state);
        drop(state);
        self.log(breaker);
        for transition in moved {
            if let Some(endpoint) = endpoints.iter().find(|e| e.stable == transition.key) {
                self.log_endpoint(endpoint, Some(transition));
            }
        }
    }

    fn publish(&self, state: &PolicyState) {
        let breaker = state.breaker.as_ref();
        self.breaker_clean.store(breaker.is_none_or(Breaker::is_closed_and_clean), Relaxed);
        let outlier = state.outlier.as_ref();
        self.endpoints_clean.store(outlier.is_none_or(Outlier::is_empty), Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, PolicyState> {
        lock(&self.state)
    }

    fn log(&self, transition: Option<breaker::BreakerChange>) {
        let Some(breaker::BreakerChange { from, to }) = transition else { return };
        let (service, from) = (self.name.to_string(), from.as_str());
        match to {
            breaker::BreakerState::Open { until, cause, .. } => {
                let retry_in_ms = until.saturating_duration_since(Instant::now()).as_millis();
                tracing::warn!(service, from, ?cause, retry_in_ms, "breaker open");
            }
            breaker::BreakerState::HalfOpen { .. } => {
                tracing::info!(service, from, "breaker half open");
            }
            breaker::BreakerState::Closed => tracing::info!(service, from, "breaker closed"),
        }
    }

    fn log_endpoint(&self, endpoint: &EndpointState, transition: Option<outlier::EjectionChange>) {
        let Some(outlier::EjectionChange { to, .. }) = transition else { return };
        let (service, id) = (self.name.to_string(), endpoint.endpoint.id.to_string());
        match to {
            Ejection::Ejected { until, cause } => {
                let for_ms = until.saturating_duration_since(Instant::now()).as_millis();
                tracing::warn!(service, endpoint = id, ?cause, for_ms, "endpoint ejected");
            }
            Ejection::Probing { .. } => {
                // What it was like before says nothing: the probe shall come soon.
                endpoint.load.forget();
                tracing::info!(service, endpoint = id, "endpoint on probe");
            }
            Ejection::Active => tracing::info!(service, endpoint = id, "endpoint reinstated"),
        }
    }
}
