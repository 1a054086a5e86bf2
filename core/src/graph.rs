//! Who calls whom, and what is unusual about it: the sketch of latencies in which callers report an edge, what is
//! usual on one, and which of several unusual edges is the culprit.
//!
//! An edge is everything that one workload calls at one service port. Time is counted in ticks of [`TICK`].

pub mod baseline;
pub mod culprit;
pub mod latency;

use std::time::Duration;

/// How often callers report what they did, and what is unusual is looked for.
pub const TICK: Duration = Duration::from_secs(5);
