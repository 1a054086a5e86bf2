//! How many copies of requests are on their way.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use outrigger_core::name::DestinationName;

use crate::base::sync::lock;

/// Copies on their way to one service at one time; more are not sent. A shadow need not see all.
const MAX_AT_A_TIME: usize = 64;

/// How many copies are on their way, by the service that gets them.
#[derive(Default)]
pub struct Mirrors(Mutex<HashMap<DestinationName, usize>>);

/// A copy's place among them, until dropped.
pub(crate) struct MirrorPermit {
    mirrors: Arc<Mirrors>,
    shadow: DestinationName,
}

impl MirrorPermit {
    pub(crate) fn take(mirrors: &Arc<Mirrors>, shadow: &DestinationName) -> Option<Self> {
        let mut all = lock(&mirrors.0);
        let count = all.entry(shadow.clone()).or_default();
        if *count >= MAX_AT_A_TIME {
            return None;
        }
        *count += 1;
        Some(Self { mirrors: Arc::clone(mirrors), shadow: shadow.clone() })
    }
}

impl Drop for MirrorPermit {
    fn drop(&mut self) {
        let mut all = lock(&self.mirrors.0);
        if let Some(count) = all.get_mut(&self.shadow) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.shadow);
            }
        }
    }
}
