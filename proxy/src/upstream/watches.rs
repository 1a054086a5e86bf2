//! What a workload watches over so that fault injections stop in time.

use std::sync::Mutex;

use outrigger_core::policy::stop::{StopRule, Watch};

use crate::base::sync::lock;

/// Fault injections that stop when calls to one service suffer.
#[derive(Default)]
pub struct Watches(pub(crate) Mutex<Vec<Watch>>);

impl Watches {
    /// What has been seen for a rule that stays is kept.
    pub fn reconfigure(&self, rules: &[StopRule]) {
        let mut watches = lock(&self.0);
        if rules.is_empty() && watches.is_empty() {
            return;
        }
        let mut old = std::mem::take(&mut *watches);
        *watches = rules
            .iter()
            .map(|rule| match old.iter().position(|watch| watch.rule() == rule) {
                Some(at) => old.swap_remove(at),
                None => Watch::new(rule.clone()),
            })
            .collect();
    }
}
