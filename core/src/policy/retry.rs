//! Which failed attempts are made again, and when.

use std::time::Duration;

use http::StatusCode;

/// Tries of one request, the first included, while nobody has processed it and no policy says
/// otherwise: once more.
pub const DEFAULT_ATTEMPTS: u8 = 2;
/// Bytes of one request's body kept so that it can be sent again, unless a policy says otherwise.
pub const DEFAULT_REPLAY_BYTES: u32 = 64 * 1024;

/// The default retries only what provably was not processed, at most once, without a pause.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetryConfig {
    /// Tries of one request, the first included; 1 never sends again. 1 to 10.
    pub max_attempts: u8,
    pub on: RetryOn,
    /// Also requests whose method is not idempotent (RFC 9110 section 9.2.2) and that have no
    /// `idempotency-key` header. Without it those are sent again only if provably not processed.
    pub non_idempotent: bool,
    pub backoff: Option<Backoff>,
    /// Bytes of a body kept so that it can be sent again; a longer one is not sent again. At most 1 MiB.
    pub max_replay_bytes: u32,
}

/// What is tried again beyond what provably was not processed. Empty: nothing else.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct RetryOn {
    /// Statuses of responses: 429 and 500 to 599.
    pub statuses: Vec<StatusCode>,
    /// gRPC status codes of responses without messages, 1 to 16.
    pub grpc: Vec<u8>,
    /// The connection ended, or the stream was reset, after the request was sent and before a response.
    pub reset: bool,
    /// The attempt's own timeout passed.
    pub timeout: bool,
}

/// The pause before attempt `n + 1` is drawn from `base * 2^(n - 1)`, at most `max`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// At least 1 ms.
    pub base: Duration,
    /// At least `base`, at most 60 s.
    pub max: Duration,
    pub jitter: Jitter,
}

/// How the pause is drawn (Exponential Backoff And Jitter, AWS Architecture Blog, 2015).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Jitter {
    /// Anything between 0 and the pause.
    #[default]
    Full,
    /// The pause, and up to half of it more.
    Additive,
    /// Anything between `base` and three times the last pause.
    Decorrelated,
}

impl Default for RetryConfig {
    fn default() -> Self {
        Self {
            max_attempts: DEFAULT_ATTEMPTS,
            on: RetryOn::default(),
            non_idempotent: false,
            backoff: None,
            max_replay_bytes: DEFAULT_REPLAY_BYTES,
        }
    }
}
