//! What active checks have found out about the endpoints of one service.
//!
//! [`crate::health`] makes them and tells what they found; what that makes of an endpoint is decided in
//! `core/src/policy/health.rs`.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use outrigger_core::config::Protocol;
use outrigger_core::policy::health::{CheckResult, HealthConfig, HealthProbe, HealthState};
use serde_json::{Value, json};

use crate::base::sync::lock;
use crate::observe::metrics::table::{self, Exposition};
use crate::upstream::endpoint::guard::Guard;
use crate::upstream::endpoint::{EndpointState, Endpoints};

#[derive(Default)]
pub struct Health {
    /// A policy asks for checks.
    on: AtomicBool,
    /// Checks that have ended.
    found: [AtomicU64; CheckResult::ALL.len()],
    checks: Mutex<Option<Checks>>,
}

struct Checks {
    config: Arc<HealthConfig>,
    /// What the service is declared to speak.
    protocol: Protocol,
    endpoints: HashMap<u64, CheckedEndpoint>,
    /// Tells endpoints that are still there from others.
    round: u64,
}

struct CheckedEndpoint {
    vitals: HealthState,
    /// What its last check found, for people.
    said: Box<str>,
    round: u64,
}

/// A check that is to be made now.
pub struct Check {
    pub endpoint: Arc<EndpointState>,
    pub config: Arc<HealthConfig>,
    /// What the service is declared to speak.
    pub protocol: Protocol,
}

impl Guard {
    /// Endpoints are checked like this from now on, or not at all.
    pub fn check_as(&self, config: Option<&HealthConfig>, protocol: Protocol) {
        let mut checks = self.health.lock();
        let Some(config) = config else {
            if checks.take().is_some() {
                self.health.on.store(false, Relaxed);
                self.set_unhealthy(BTreeSet::new());
            }
            return;
        };
        match &mut *checks {
            None => {
                let config = Arc::new(config.clone());
                *checks = Some(Checks { config, protocol, endpoints: HashMap::new(), round: 0 });
                self.health.on.store(true, Relaxed);
            }
            Some(checks) => {
                checks.protocol = protocol;
                if *checks.config == *config {
                    return;
                }
                checks.config = Arc::new(config.clone());
                let now = Instant::now();
                for (key, known) in &mut checks.endpoints {
                    known.vitals.reconfigure(config, now, *key);
                }
            }
        }
    }

    /// Begins the checks that are due. Also: when the next one is.
    pub fn due_checks(
        &self,
        endpoints: &[Arc<EndpointState>],
        now: Instant,
        random: impl Fn() -> u64,
    ) -> (Vec<Check>, Option<Instant>) {
        let (mut due, mut next) = (Vec::new(), None::<Instant>);
        if !self.health.on.load(Relaxed) {
            return (due, next);
        }
        let mut checks = self.health.lock();
        let Some(checks) = &mut *checks else { return (due, next) };
        checks.round += 1;
        let (config, round) = (Arc::clone(&checks.config), checks.round);
        for endpoint in endpoints {
            let known =
                checks.endpoints.entry(endpoint.stable).or_insert_with(|| CheckedEndpoint {
                    vitals: HealthState::new(&config, now, random()),
                    said: "not checked yet".into(),
                    round,
                });
            known.round = round;
            if known.vitals.due().is_some_and(|at| at <= now) {
                known.vitals.begin(&config, now, random());
                let (endpoint, config) = (Arc::clone(endpoint), Arc::clone(&config));
                due.push(Check { endpoint, config, protocol: checks.protocol });
            }
            next = next.into_iter().chain(known.vitals.due()).min();
        }
        if checks.endpoints.len() > endpoints.len() {
            checks.endpoints.retain(|_, known| known.round == round);
            self.set_unhealthy(checks.unhealthy());
        }
        (due, next)
    }

    /// A check has ended. `said`: what it found, for people.
    pub fn checked(&self, check: &Check, found: CheckResult, said: String) {
        self.health.found[found as usize].fetch_add(1, Relaxed);
        let mut checks = self.health.lock();
        let Some(checks) = &mut *checks else { return };
        // What was asked under other rules says nothing now.
        let current = Arc::ptr_eq(&checks.config, &check.config);
        let found = if current { found } else { CheckResult::Inconclusive };
        let Some(known) = checks.endpoints.get_mut(&check.endpoint.stable) else { return };
        known.said = said.into();
        let moved = known.vitals.note(&check.config, Instant::now(), found);
        let Some(well) = moved else { return };
        let (service, id) = (self.name.to_string(), check.endpoint.endpoint.id.to_string());
        if well {
            // What it was like before says nothing: it shall get its share.
            check.endpoint.load.forget();
            tracing::info!(service, endpoint = id, "endpoint healthy again");
        } else {
            tracing::warn!(service, endpoint = id, why = &*known.said, "endpoint unhealthy");
        }
        self.set_unhealthy(checks.unhealthy());
    }

    /// Whether its endpoints are checked.
    pub fn is_checked(&self) -> bool {
        self.health.on.load(Relaxed)
    }

    /// For anyone who looks: what each endpoint is, since when, and what its last check found.
    pub(crate) fn show_health(&self, endpoints: &[Arc<EndpointState>]) -> Option<Value> {
        let checks = self.health.lock();
        let checks = checks.as_ref()?;
        let line = |endpoint: &Arc<EndpointState>| {
            let known = checks.endpoints.get(&endpoint.stable)?;
            Some(json!({
                "endpoint": endpoint.endpoint.id.to_string(),
                "healthy": known.vitals.is_healthy(),
                "forMs": known.vitals.since().elapsed().as_millis() as u64,
                "lastCheck": *known.said,
            }))
        };
        let probe = match &checks.config.probe {
            HealthProbe::Http(path) => format!("http {path}"),
            HealthProbe::Grpc(service) => format!("grpc {service:?}"),
            HealthProbe::Tcp => "tcp".to_owned(),
        };
        Some(json!({
            "probe": probe,
            "endpoints": endpoints.iter().filter_map(line).collect::<Vec<_>>(),
        }))
    }
}

impl Checks {
    fn unhealthy(&self) -> BTreeSet<u64> {
        let failing = self.endpoints.iter().filter(|(_, known)| !known.vitals.is_healthy());
        failing.map(|(key, _)| *key).collect()
    }
}

impl Health {
    fn lock(&self) -> MutexGuard<'_, Option<Checks>> {
        lock(&self.checks)
    }
}

/// In the Prometheus text format, of services that are or were checked.
pub(crate) fn write_metrics(out: &mut Exposition, all: &[Arc<Endpoints>]) {
    for one in all {
        let checks = one.guard.health.lock();
        let Some(checks) = &*checks else { continue };
        let unhealthy = checks.unhealthy().len();
        let healthy = checks.endpoints.len() - unhealthy;
        out.add(&table::ENDPOINTS_CHECKED, &[&one.name, &"healthy"], healthy);
        out.add(&table::ENDPOINTS_CHECKED, &[&one.name, &"unhealthy"], unhealthy);
    }
    for one in all {
        for (result, count) in CheckResult::ALL.iter().zip(&one.guard.health.found) {
            let count = count.load(Relaxed);
            if count > 0 {
                out.add(&table::HEALTH_CHECKS, &[&one.name, &result.as_str()], count);
            }
        }
    }
}
