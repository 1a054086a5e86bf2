//! What the guards of all services say to anyone who looks: at the admin server and in metrics.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use outrigger_core::policy::breaker;
use outrigger_core::policy::fallback::Degraded;
use outrigger_core::policy::outlier::{Ejection, Outlier};
use serde_json::{Value, json};

use crate::observe::metrics::table::{self, Exposition, Metric};
use crate::upstream::endpoint::guard::{Guard, health};
use crate::upstream::endpoint::{EndpointState, Endpoints};

impl Guard {
    /// For anyone who looks: state, reason, and when it will be tried again.
    pub fn show(&self, endpoints: &[Arc<EndpointState>]) -> Value {
        let now = Instant::now();
        let health = self.show_health(endpoints);
        let in_ms = |at: Instant| at.saturating_duration_since(now).as_millis() as u64;
        let mut state = self.lock();
        let retries_left = state.budget.left(now, self.requests.load(Relaxed));
        let breaker = state.breaker.as_ref().map(|breaker| match breaker.state() {
            breaker::BreakerState::Closed => json!({"state": "closed"}),
            breaker::BreakerState::Open { until, cause, .. } => json!({
                "state": "open", "cause": format!("{cause:?}"), "nextTrialInMs": in_ms(until),
            }),
            breaker::BreakerState::HalfOpen { probing, successes } => json!({
                "state": "half_open", "inTrial": probing, "successes": successes,
            }),
        });
        let id = |key: u64| {
            let endpoint = endpoints.iter().find(|endpoint| endpoint.stable == key);
            endpoint.map_or_else(|| format!("{key:016x}"), |e| e.endpoint.id.to_string())
        };
        let ejected = state.outlier.iter().flat_map(Outlier::ejected).map(|(key, ejection)| {
            match ejection {
                Ejection::Ejected { until, cause } => json!({
                    "endpoint": id(key), "cause": format!("{cause:?}"), "nextTrialInMs": in_ms(until),
                }),
                Ejection::Probing { .. } | Ejection::Active => {
                    json!({"endpoint": id(key), "onTrial": true})
                }
            }
        });
        let ejected: Vec<_> = ejected.collect();
        json!({
            "service": self.name.to_string(),
            "breaker": breaker,
            "ejected": ejected,
            "health": health,
            "pace": self.pacing.show(),
            "retryBudgetLeft": retries_left,
            "panics": self.panics.load(Relaxed),
            "inFlight": self.in_flight.load(Relaxed),
            "waiting": self.waiting.load(Relaxed),
        })
    }

    fn gauges(&self) -> GuardGauges {
        let mut state = self.lock();
        let breaker = state.breaker.as_ref().map(|breaker| match breaker.state() {
            breaker::BreakerState::Closed => 0,
            breaker::BreakerState::HalfOpen { .. } => 1,
            breaker::BreakerState::Open { .. } => 2,
        });
        let ejected = state.outlier.as_ref().map(|outlier| outlier.ejected().count());
        let budget = state.budget.left(Instant::now(), self.requests.load(Relaxed));
        GuardGauges {
            breaker,
            ejected,
            budget,
            panics: self.panics.load(Relaxed),
            paced: self.pacing.counts(),
            retries: self.retries.load(Relaxed),
            spilled: 0,
            warming: None,
        }
    }
}

struct GuardGauges {
    breaker: Option<u8>,
    ejected: Option<usize>,
    budget: u64,
    panics: u64,
    paced: [u64; 2],
    retries: u64,
    spilled: u64,
    warming: Option<u64>,
}

/// One metric of each service that has it.
type GuardMetric = (&'static Metric, fn(&GuardGauges) -> Option<u64>);

const GUARD_METRICS: &[GuardMetric] = &[
    (&table::BREAKER_STATE, |g| g.breaker.map(u64::from)),
    (&table::ENDPOINTS_EJECTED, |g| g.ejected.map(|n| n as u64)),
    (&table::ENDPOINTS_WARMING, |g| g.warming),
    (&table::LB_PANIC, |g| Some(g.panics).filter(|n| *n > 0)),
    (&table::LB_ZONE_SPILLOVER, |g| Some(g.spilled).filter(|n| *n > 0)),
    (&table::PACING_DELAYED, |g| Some(g.paced[0]).filter(|n| *n > 0)),
    (&table::PACING_REFUSED, |g| Some(g.paced[1]).filter(|n| *n > 0)),
    (&table::RETRIES, |g| Some(g.retries)),
    (&table::RETRY_BUDGET_LEFT, |g| Some(g.budget)),
];

/// What the guards of all services count.
pub fn write_metrics(out: &mut Exposition, all: &[Arc<Endpoints>]) {
    for one in all {
        for (kind, count) in Degraded::ALL.iter().zip(&one.guard.degraded) {
            let count = count.load(Relaxed);
            if count > 0 {
                out.add(&table::FALLBACKS, &[&one.name, &kind.as_str()], count);
            }
        }
    }
    for one in all {
        let waited = one.guard.waited_us.load(Relaxed);
        if waited > 0 {
            out.add(&table::QUEUE_WAIT, &[&one.name], seconds(waited));
        }
    }
    health::write_metrics(out, all);
    let gauges = |one: &Endpoints| GuardGauges {
        spilled: one.preference.spilled(),
        warming: one.warming(),
        ..one.guard.gauges()
    };
    let all: Vec<_> = all.iter().map(|one| (&one.name, gauges(one))).collect();
    for (metric, value) in GUARD_METRICS {
        for (service, gauges) in &all {
            if let Some(value) = value(gauges) {
                out.add(metric, &[service], value);
            }
        }
    }
}

fn seconds(micros: u64) -> f64 {
    Duration::from_micros(micros).as_secs_f64()
}
