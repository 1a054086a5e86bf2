//! Services whose server was seen to speak first, so that their clients need not wait.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::base::sync::lock;
use crate::observe::metrics::Label;

/// How long positive evidence holds.
const MEMORY: Duration = Duration::from_secs(600);
/// Services from which on those that were seen too long ago are dropped.
const MANY: usize = 1_000;

#[derive(Default)]
pub struct ServerFirst(Mutex<HashMap<Label, Instant>>);

impl ServerFirst {
    pub fn expects(&self, service: Label) -> bool {
        let seen = lock(&self.0);
        seen.get(&service).is_some_and(|at| at.elapsed() < MEMORY)
    }

    pub fn remember(&self, service: Label) {
        if service != Label::UNKNOWN {
            let mut seen = lock(&self.0);
            if seen.len() >= MANY {
                seen.retain(|_, at| at.elapsed() < MEMORY);
            }
            seen.insert(service, Instant::now());
        }
    }

    /// The client spoke first after all.
    pub fn contradict(&self, service: Label) {
        lock(&self.0).remove(&service);
    }
}
