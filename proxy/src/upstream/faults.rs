//! Fault injections (FaultInjections) in this process: which of them are about this caller, how often each has
//! hit, and what this workload watches over so that they stop in time.
//!
//! What a fault does to an attempt is in [`crate::call::fault`]; whether it hits is decided in
//! `core/src/policy/fault.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::time::{Instant, SystemTime};

use outrigger_core::config::Destination;
use outrigger_core::policy::fault::Fault;
use outrigger_core::policy::stop::{Breach, StopRule};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::base::settings::Settings;
use crate::base::sync::lock;
use crate::observe::metrics::Metrics;
use crate::observe::metrics::table::{self, Exposition};
use crate::upstream::endpoint::Endpoints;

/// Fault injections that are counted by name; further ones are counted together.
const MAX_COUNTED: usize = 1_000;

pub struct FaultInjections {
    /// Attempts hit, by name of the fault injection and kind of its fault. Locked only when one hits.
    hits: Mutex<BTreeMap<(Arc<str>, &'static str), u64>>,
    /// Names and versions of those that this process has stopped, whatever the control plane says.
    stopped: Mutex<BTreeSet<(Arc<str>, Arc<str>)>>,
    any_stopped: AtomicBool,
    stops: mpsc::UnboundedSender<Stop>,
}

impl FaultInjections {
    /// With what the control plane has to be told.
    pub fn new() -> (Self, mpsc::UnboundedReceiver<Stop>) {
        let (stops, told) = mpsc::unbounded_channel();
        let (hits, stopped, any_stopped) = Default::default();
        (Self { hits, stopped, any_stopped, stops }, told)
    }

    pub fn is_stopped(&self, fault: &Fault) -> bool {
        let key = || (Arc::clone(&fault.name), Arc::clone(&fault.version));
        self.any_stopped.load(Relaxed) && lock(&self.stopped).contains(&key())
    }

    /// About once a second: looks whether calls to a service suffer so much that fault injections must stop.
    pub fn watch(&self, metrics: &Metrics, service: &Endpoints, now: Instant) {
        let wall = SystemTime::now();
        for watch in lock(&service.watches.0).iter_mut() {
            let totals = metrics.totals(service.label.get(), watch.rule().max_p99);
            if let Some(breach) = watch.tick(now, wall, totals) {
                self.stop(watch.rule(), &service.name.to_string(), &breach);
            }
        }
    }

    fn stop(&self, rule: &StopRule, service: &str, breach: &Breach) {
        let key = (Arc::clone(&rule.name), Arc::clone(&rule.version));
        if !lock(&self.stopped).insert(key) {
            return;
        }
        self.any_stopped.store(true, Relaxed);
        let reason = format!("calls of {} to {service}: {breach}", rule.from);
        tracing::warn!(fault_injection = &*rule.name, reason, "a fault injection has to stop");
        // Without a control plane there is nobody to tell.
        let _ = self.stops.send(Stop { rule: rule.clone(), reason });
    }

    /// An attempt is hit.
    pub fn hit(&self, fault: &Fault) {
        let mut hits = lock(&self.hits);
        let kind = fault.kind.as_str();
        let mut key = (Arc::clone(&fault.name), kind);
        if hits.len() >= MAX_COUNTED && !hits.contains_key(&key) {
            key = ("other".into(), kind);
        }
        *hits.entry(key).or_default() += 1;
    }

    /// For anyone who looks: what has hit so far.
    pub fn show(&self) -> Vec<Value> {
        let line = |((name, kind), hits): (&(Arc<str>, &str), &u64)| json!({"faultInjection": **name, "kind": kind, "hits": hits});
        lock(&self.hits).iter().map(line).collect()
    }

    /// In the Prometheus text format. Names hold nothing that needs escaping.
    pub fn expose(&self, out: &mut Exposition) {
        for ((fault, kind), hits) in lock(&self.hits).iter() {
            out.add(&table::FAULTS_INJECTED, &[fault, kind], hits);
        }
    }
}

/// Leaves only the fault injections that are about this workload's calls, and those that it watches over: once,
/// so that no request asks.
pub fn keep_own(destination: &mut Destination, settings: &Settings) {
    let (namespace, account) = (&*settings.namespace, &*settings.service_account);
    let own = |fault: &Fault| fault.is_from(namespace, account);
    destination.call.faults.retain(own);
    let backends = destination.backends.iter_mut().map(|backend| &mut backend.policy);
    for policy in backends.chain([&mut destination.policy]) {
        policy.faults.retain(own);
        policy.stop_rules.retain(|rule| rule.from.is(namespace, account));
    }
    let rules = destination.http_routes.iter_mut().flat_map(|route| &mut route.rules);
    for call in rules.filter_map(|rule| rule.call.as_mut()) {
        call.faults.retain(own);
    }
}

/// A fault injection that has to stop, and why.
#[derive(Debug)]
pub struct Stop {
    pub rule: StopRule,
    pub reason: String,
}
