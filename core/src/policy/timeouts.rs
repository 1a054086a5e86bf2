//! Timeouts of the parts of a call. The whole of it is bounded by its deadline ([`super::deadline`]).

use std::time::Duration;

/// Each is at least 1 ms; None: not bounded by this policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Timeouts {
    /// To open a connection. None: the proxy's `--connect-timeout`.
    pub connect: Option<Duration>,
    /// From sending a request to the head of its response, in each attempt: a slow download does not
    /// trip it.
    pub first_byte: Option<Duration>,
    /// Longest silence of a response body, or of an upgraded connection in both directions.
    pub idle: Option<Duration>,
    /// One attempt as a whole up to the head of its response, its connection included.
    pub attempt: Option<Duration>,
}
