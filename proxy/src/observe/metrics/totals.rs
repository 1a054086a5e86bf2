//! What has ended so far between this workload and one service, for anyone who watches over it.

use std::time::Duration;

use outrigger_core::outcome::Outcome;
use outrigger_core::policy::stop::Totals;

use crate::base::direction::Direction;
use crate::base::sync::lock;
use crate::observe::metrics::{Label, Metrics, SeriesCounts};

impl Metrics {
    /// Of calls to `service`: how many ended, how many of them badly, and how many took longer.
    pub fn totals(&self, service: Label, longer: Option<Duration>) -> Totals {
        let mut totals = Totals::default();
        for worker in &self.workers {
            for one in &lock(worker).series {
                if one.key.direction == Direction::Outbound && one.key.service == service {
                    add(&mut totals, &lock(&one.inner), longer);
                }
            }
        }
        totals
    }
}

fn add(totals: &mut Totals, counts: &SeriesCounts, longer: Option<Duration>) {
    for (key, n) in &counts.requests {
        totals.requests += n;
        // Who went away says nothing about the service.
        if matches!(key.outcome, Outcome::Failure | Outcome::Refused) {
            totals.failures += n;
        }
    }
    let Some(longer) = longer else { return };
    let us = u64::try_from(longer.as_micros()).unwrap_or(u64::MAX);
    for histogram in [&counts.success, &counts.failure].into_iter().flatten() {
        totals.slow += histogram.len().saturating_sub(histogram.count_between(0, us));
    }
}
