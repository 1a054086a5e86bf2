//! Services whose server was seen to speak first, so that their clients need not wait.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::metrics::Label;

/// How long positive evidence holds.
const MEMORY: Duration = Duration::from_secs(600);

#[derive(Default)]
pub struct ServerFirst(Mutex<HashMap<Label, Instant>>);

impl ServerFirst {
    pub fn expects(&self, service: Label) -> bool {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.get(&service).is_some_and(|at| at.elapsed() < MEMORY)
    }

    pub fn remember(&self, service: Label) {
        if service != Label::UNKNOWN {
            let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            seen.insert(service, Instant::now());
        }
    }

    /// The client spoke first after all.
    pub fn contradict(&self, service: Label) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&service);
    }
}
