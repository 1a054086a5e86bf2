//! Which endpoints may be chosen now: those that are neither ejected nor unhealthy nor full.
//!
//! What is ignored when too few would be left is decided in `core/src/policy/preference.rs`.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use outrigger_core::policy::outlier::Eligibility;
use outrigger_core::policy::preference::{Fit, Ignored, ignored};

use crate::upstream::endpoint::guard::{Guard, ProbeIds, UNLIMITED};
use crate::upstream::endpoint::{EndpointState, NoChoice};

impl Guard {
    /// Whether endpoints have to be looked at one by one before one is chosen.
    pub fn is_choosy(&self) -> bool {
        !self.endpoints_clean.load(Relaxed)
            || !self.all_well.load(Relaxed)
            || self.max_per_endpoint.load(Relaxed) != UNLIMITED
    }

    /// Those of `all` that may be chosen now; at least one.
    pub fn choosable<'a>(
        &self,
        all: &[&'a Arc<EndpointState>],
    ) -> Result<Vec<&'a Arc<EndpointState>>, NoChoice> {
        let now = Instant::now();
        let state = self.lock();
        let outlier = state.outlier.as_ref();
        let ejected = |endpoint: &EndpointState| {
            outlier.is_some_and(|outlier| outlier.is_ejected(endpoint.stable, now))
        };
        let well = |endpoint: &EndpointState| !state.unhealthy.contains(&endpoint.stable);
        let mut fit = Fit { all: all.len(), well: 0, fit: 0 };
        for endpoint in all.iter().filter(|endpoint| well(endpoint)) {
            fit.well += 1;
            fit.fit += usize::from(!ejected(endpoint));
        }
        let ignored = ignored(fit, state.panic_threshold);
        if ignored != Ignored::default() {
            self.panics.fetch_add(1, Relaxed);
        }
        let may = |endpoint: &EndpointState| {
            (ignored.checks || well(endpoint)) && (ignored.ejections || !ejected(endpoint))
        };
        let mut left: Vec<_> = all.iter().copied().filter(|endpoint| may(endpoint)).collect();
        if left.is_empty() {
            return Err(if all.is_empty() { NoChoice::None } else { NoChoice::Unfit });
        }
        let most = self.max_per_endpoint.load(Relaxed);
        left.retain(|endpoint| endpoint.load.in_flight() < most);
        if left.is_empty() { Err(NoChoice::Busy) } else { Ok(left) }
    }

    /// An endpoint has been chosen.
    pub fn chosen(&self, endpoint: &EndpointState, probes: &mut ProbeIds) {
        if self.endpoints_clean.load(Relaxed) {
            return;
        }
        if let Some(outlier) = &mut self.lock().outlier
            && let Eligibility::Probe(id) = outlier.admit(Instant::now(), endpoint.stable)
        {
            probes.0.get_or_insert_default().endpoint = Some(id);
        }
    }

    /// Those endpoints are unhealthy, and no others.
    pub(crate) fn set_unhealthy(&self, failing: BTreeSet<u64>) {
        let all_well = failing.is_empty();
        self.lock().unhealthy = failing;
        self.all_well.store(all_well, Relaxed);
    }
}
