//! What the guards of all services say to whoever looks: at the admin server and in metrics.

use std::fmt::{self, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use outrigger_core::policy::breaker;
use outrigger_core::policy::fallback::Degraded;
use outrigger_core::policy::outlier::{Outlier, Standing};
use serde_json::{Value, json};

use super::{Guard, health};
use crate::endpoint::{EndpointState, Endpoints};

impl Guard {
    /// For whoever looks: state, reason, and when it will be tried again.
    pub fn show(&self, endpoints: &[Arc<EndpointState>]) -> Value {
        let now = Instant::now();
        let health = self.show_health(endpoints);
        let in_ms = |at: Instant| at.saturating_duration_since(now).as_millis() as u64;
        let mut machines = self.lock();
        let retries_left = machines.budget.left(now, self.requests.load(Relaxed));
        let breaker = machines.breaker.as_ref().map(|breaker| match breaker.state() {
            breaker::State::Closed => json!({"state": "closed"}),
            breaker::State::Open { until, cause, .. } => json!({
                "state": "open", "cause": format!("{cause:?}"), "nextTrialInMs": in_ms(until),
            }),
            breaker::State::HalfOpen { in_trial, successes } => json!({
                "state": "half_open", "inTrial": in_trial, "successes": successes,
            }),
        });
        let id = |key: u64| {
            let endpoint = endpoints.iter().find(|endpoint| endpoint.stable == key);
            endpoint.map_or_else(|| format!("{key:016x}"), |e| e.endpoint.id.to_string())
        };
        let ejected = machines.outlier.iter().flat_map(Outlier::ejected).map(|(key, standing)| {
            match standing {
                Standing::Out { until, cause } => json!({
                    "endpoint": id(key), "cause": format!("{cause:?}"), "nextTrialInMs": in_ms(until),
                }),
                Standing::OnTrial { .. } | Standing::In => {
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

    fn gauges(&self) -> Gauges {
        let mut machines = self.lock();
        let breaker = machines.breaker.as_ref().map(|breaker| match breaker.state() {
            breaker::State::Closed => 0,
            breaker::State::HalfOpen { .. } => 1,
            breaker::State::Open { .. } => 2,
        });
        let ejected = machines.outlier.as_ref().map(|outlier| outlier.ejected().count());
        let budget = machines.budget.left(Instant::now(), self.requests.load(Relaxed));
        Gauges {
            breaker,
            ejected,
            budget,
            panics: self.panics.load(Relaxed),
            paced: self.pacing.counts(),
            spilled: 0,
            warming: None,
        }
    }
}

struct Gauges {
    breaker: Option<u8>,
    ejected: Option<usize>,
    budget: u64,
    panics: u64,
    paced: [u64; 2],
    spilled: u64,
    warming: Option<u64>,
}

/// In the Prometheus text format. The names of services hold nothing that needs escaping.
pub fn write_metrics(out: &mut String, all: &[Arc<Endpoints>]) -> fmt::Result {
    write_fallbacks(out, all)?;
    health::write_metrics(out, all)?;
    let gauges = |one: &Endpoints| Gauges {
        spilled: one.preference.spilled(),
        warming: one.warming(),
        ..one.guard.gauges()
    };
    let all: Vec<_> = all.iter().map(|one| (&one.name, gauges(one))).collect();
    let mut gauge = |name: &str, help: &str, value: &dyn Fn(&Gauges) -> Option<u64>| {
        let kind = if name.ends_with("_total") { "counter" } else { "gauge" };
        writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}")?;
        for (service, gauges) in &all {
            if let Some(value) = value(gauges) {
                writeln!(out, "{name}{{service=\"{service}\"}} {value}")?;
            }
        }
        Ok(())
    };
    gauge("outrigger_breaker_state", "0 closed, 1 half open, 2 open", &|g| {
        g.breaker.map(u64::from)
    })?;
    gauge("outrigger_endpoints_ejected", "endpoints ejected or on trial", &|g| {
        g.ejected.map(|n| n as u64)
    })?;
    gauge("outrigger_endpoints_warming", "endpoints in their slow start", &|g| g.warming)?;
    gauge(
        "outrigger_panic_choices_total",
        "choices for which ejections or checks were ignored",
        &|g| Some(g.panics).filter(|n| *n > 0),
    )?;
    gauge(
        "outrigger_zone_spilled_total",
        "requests sent to other zones for want of fit endpoints",
        &|g| Some(g.spilled).filter(|n| *n > 0),
    )?;
    gauge(
        "outrigger_paced_requests_total",
        "requests held up for a rate limit of the service",
        &|g| Some(g.paced[0]).filter(|n| *n > 0),
    )?;
    gauge(
        "outrigger_pace_refusals_total",
        "requests refused here since too many were held up already",
        &|g| Some(g.paced[1]).filter(|n| *n > 0),
    )?;
    gauge("outrigger_retry_budget_left", "retries that could be made now", &|g| Some(g.budget))
}

fn write_fallbacks(out: &mut String, all: &[Arc<Endpoints>]) -> fmt::Result {
    let name = "outrigger_fallbacks_total";
    writeln!(out, "# HELP {name} answers given instead of failures\n# TYPE {name} counter")?;
    for one in all {
        for (kind, count) in Degraded::ALL.iter().zip(&one.guard.degraded) {
            let (service, kind, count) = (&one.name, kind.as_str(), count.load(Relaxed));
            if count > 0 {
                writeln!(out, "{name}{{service=\"{service}\",kind=\"{kind}\"}} {count}")?;
            }
        }
    }
    Ok(())
}
