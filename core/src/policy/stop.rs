//! When a fault injection has to stop: a condition on some edge of the mesh, and the machine that watches it.
//!
//! It is given what has been counted so far about once a second and looks at the difference over its
//! window. The caller of the edge watches; who injects need not be anywhere near.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::fault::{FaultSource, Times};

/// Stops a fault injection when calls between two workloads suffer.
#[derive(Clone, Debug, PartialEq)]
pub struct StopRule {
    /// `namespace/name` of the FaultInjection.
    pub name: Arc<str>,
    /// Of its spec.
    pub version: Arc<str>,
    /// Whose calls are watched; it watches them itself.
    pub from: FaultSource,
    /// Fewer good answers than that are a breach. None: not looked at.
    pub min_success_percent: Option<u8>,
    /// More than one of a hundred requests that took longer is a breach. None: not looked at.
    pub max_p99: Option<Duration>,
    /// In whole seconds.
    pub window: Duration,
    /// Minimum requests in the window; below this the rate is not evaluated.
    pub min_requests: u32,
    /// When the fault injection may be in force; before and after, nothing is watched.
    pub times: Times,
}

/// Requests that have ended so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub requests: u64,
    pub failures: u64,
    /// Those that took longer than [`StopRule::max_p99`].
    pub slow: u64,
}

/// Why a fault injection has to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Breach {
    Failures { failures: u64, requests: u64, min_success_percent: u8 },
    Slow { slow: u64, requests: u64, max_p99: Duration },
}

/// Watches one rule.
#[derive(Debug)]
pub struct Watch {
    rule: StopRule,
    /// The oldest in front; one of them is a whole window old or older once there have been so many.
    samples: VecDeque<(Instant, Totals)>,
}

impl Watch {
    pub fn new(rule: StopRule) -> Self {
        Self { rule, samples: VecDeque::new() }
    }

    pub fn rule(&self) -> &StopRule {
        &self.rule
    }

    /// About once a second. What came before the fault injection began is not looked at.
    pub fn tick(&mut self, now: Instant, wall: SystemTime, totals: Totals) -> Option<Breach> {
        let Times { start, end, .. } = self.rule.times;
        if wall >= end || start.is_some_and(|start| wall < start) {
            self.samples.clear();
            return None;
        }
        self.samples.push_back((now, totals));
        let window = self.rule.window;
        let is_old = |sample: &(Instant, Totals)| now.saturating_duration_since(sample.0) >= window;
        while self.samples.get(1).is_some_and(is_old) {
            self.samples.pop_front();
        }
        let (_, before) = self.samples.front()?;
        self.breach(Totals {
            requests: totals.requests.saturating_sub(before.requests),
            failures: totals.failures.saturating_sub(before.failures),
            slow: totals.slow.saturating_sub(before.slow),
        })
    }

    fn breach(&self, seen: Totals) -> Option<Breach> {
        let Totals { requests, failures, slow } = seen;
        if requests < u64::from(self.rule.min_requests) {
            return None;
        }
        if let Some(min_success_percent) = self.rule.min_success_percent
            && failures * 100 > requests * (100 - u64::from(min_success_percent.min(100)))
        {
            return Some(Breach::Failures { failures, requests, min_success_percent });
        }
        if let Some(max_p99) = self.rule.max_p99
            && slow * 100 > requests
        {
            return Some(Breach::Slow { slow, requests, max_p99 });
        }
        None
    }
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failures { failures, requests, min_success_percent } => write!(
                f,
                "{failures} of {requests} requests failed; minSuccessPercent is {min_success_percent}"
            ),
            Self::Slow { slow, requests, max_p99 } => write!(
                f,
                "{slow} of {requests} requests took longer than maxP99, which is {max_p99:?}"
            ),
        }
    }
}
