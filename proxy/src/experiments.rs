//! Experiments (FaultInjections) in this process: which of them are about this caller, and how often each
//! has hit.
//!
//! What a fault does to a try is in [`crate::http::fault`]; whether it hits is decided in
//! `core/src/policy/fault.rs`.

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use outrigger_core::config::Destination;
use outrigger_core::policy::fault::Fault;
use serde_json::{Value, json};

use crate::settings::Settings;

/// Experiments that are counted by name; further ones are counted together.
const MAX_COUNTED: usize = 1_000;

#[derive(Default)]
pub struct Experiments {
    /// Tries hit, by name of the experiment and kind of its fault. Locked only when one hits.
    hits: Mutex<BTreeMap<(Arc<str>, &'static str), u64>>,
}

impl Experiments {
    /// A try is hit.
    pub fn hit(&self, fault: &Fault) {
        let mut hits = self.lock();
        let kind = fault.kind.as_str();
        let mut key = (Arc::clone(&fault.name), kind);
        if hits.len() >= MAX_COUNTED && !hits.contains_key(&key) {
            key = ("other".into(), kind);
        }
        *hits.entry(key).or_default() += 1;
    }

    /// For whoever looks: what has hit so far.
    pub fn show(&self) -> Vec<Value> {
        let line = |((name, kind), hits): (&(Arc<str>, &str), &u64)| json!({"experiment": **name, "kind": kind, "hits": hits});
        self.lock().iter().map(line).collect()
    }

    /// In the Prometheus text format. Names hold nothing that needs escaping.
    pub fn expose(&self, out: &mut String) -> fmt::Result {
        let name = "outrigger_faults_injected_total";
        writeln!(out, "# HELP {name} tries hit by experiments\n# TYPE {name} counter")?;
        for ((fault, kind), hits) in self.lock().iter() {
            writeln!(out, "{name}{{fault=\"{fault}\",kind=\"{kind}\"}} {hits}")?;
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(Arc<str>, &'static str), u64>> {
        self.hits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Leaves only the experiments that are about this workload's calls: once, so that no request asks.
pub fn keep_own(destination: &mut Destination, settings: &Settings) {
    let own = |fault: &Fault| fault.is_from(&settings.namespace, &settings.service_account);
    destination.call.faults.retain(own);
    destination.policy.faults.retain(own);
    for backend in &mut destination.backends {
        backend.policy.faults.retain(own);
    }
    let rules = destination.http_routes.iter_mut().flat_map(|route| &mut route.rules);
    for call in rules.filter_map(|rule| rule.call.as_mut()) {
        call.faults.retain(own);
    }
}
