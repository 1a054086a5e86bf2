//! Fault injections that a guard has stopped.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Since when, why and by whom a fault injection is stopped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stopped {
    /// Of the spec that was stopped.
    pub version: String,
    /// Seconds since the Unix epoch.
    pub since: u64,
    pub by: String,
    pub why: String,
}

/// By `namespace/name`.
pub type Stops = BTreeMap<String, Stopped>;
