//! Which failed attempts are made again, and when.
//!
//! What provably nobody has processed may be sent again by anyone. Everything else only where a policy
//! says so, and then only if processing it twice does no harm, or the policy accepts the harm.

use std::time::{Duration, SystemTime};

use crate::time::Part;
use http::{Method, StatusCode};

/// Attempts of one request, the first included, while nobody has processed it and no policy says
/// otherwise: once more.
pub const DEFAULT_ATTEMPTS: u8 = 2;
/// Bytes of one request's body kept so that it can be sent again, unless a policy says otherwise.
pub const DEFAULT_REPLAY_BYTES: u32 = 64 * 1024;

/// The default retries only what provably was not processed, at most once, without a pause.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetryConfig {
    /// Attempts of one request, the first included; 1 never sends again. 1 to 10.
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
    /// The pause, and a random time of up to half of it.
    Additive,
    /// A random time between `base` and three times the previous pause.
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

/// How an attempt has failed, or what answer it got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Certainly not processed: no connection, a refused stream, beyond the last id of a GOAWAY, or
    /// another proxy says so.
    Unprocessed,
    /// The connection or the stream ended before a response.
    Reset,
    /// The attempt's own timeout passed.
    Timeout,
    Status(StatusCode),
    /// A gRPC status without messages.
    Grpc(i32),
}

/// Whether a request can be sent once more at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replay {
    /// [`is_idempotent`].
    pub idempotent: bool,
    /// All of the body that attempts have taken so far is still there.
    pub kept: bool,
}

/// Why a failed attempt is not made again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Skip {
    /// No policy asks for it. The normal case, which needs no mention.
    NotConfigured,
    /// It was tried as often as the policy allows.
    AttemptsUsed,
    /// A proxy further on has tried as often as it may.
    Exhausted,
    /// It may have been processed, and twice could do harm.
    NotIdempotent,
    /// The body was longer than what is kept.
    BodyTooLarge,
    /// No memory was left to keep the body.
    NoMemory,
    /// The service's retry budget is used up.
    NoBudget,
    /// The deadline is nearer than the pause, or `Retry-After` asks for longer.
    NoTime,
}

impl Skip {
    pub const ALL: [Self; 8] = [
        Self::NotConfigured,
        Self::AttemptsUsed,
        Self::Exhausted,
        Self::NotIdempotent,
        Self::BodyTooLarge,
        Self::NoMemory,
        Self::NoBudget,
        Self::NoTime,
    ];

    /// The word in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotConfigured => "not_configured",
            Self::AttemptsUsed => "attempts_used",
            Self::Exhausted => "exhausted",
            Self::NotIdempotent => "not_idempotent",
            Self::BodyTooLarge => "body_too_large",
            Self::NoMemory => "no_memory",
            Self::NoBudget => "no_budget",
            Self::NoTime => "no_time",
        }
    }

    /// It would have been tried again if not enough attempts had been made already: then nobody above should
    /// try it again either.
    pub fn exhausts(self) -> bool {
        matches!(self, Self::AttemptsUsed | Self::Exhausted | Self::NoBudget)
    }
}

/// Whether a failed attempt may be made again, budget and time apart. `attempts_made` counts the failed
/// one. `exhausted_below`: the answer says that a proxy further on has tried as often as it may.
///
/// A request that may have been processed and is not idempotent passes only with
/// [`RetryConfig::non_idempotent`]; nothing passes without its whole body.
pub fn judge(
    config: &RetryConfig,
    failure: Failure,
    attempts_made: u8,
    replay: Replay,
    exhausted_below: bool,
) -> Result<(), Skip> {
    let harmless = match failure {
        Failure::Unprocessed => true,
        _ if !config.on.includes(failure) => return Err(Skip::NotConfigured),
        _ => replay.idempotent || config.non_idempotent,
    };
    if exhausted_below {
        return Err(Skip::Exhausted);
    }
    if attempts_made >= config.max_attempts {
        return Err(Skip::AttemptsUsed);
    }
    if !harmless {
        return Err(Skip::NotIdempotent);
    }
    if !replay.kept {
        return Err(Skip::BodyTooLarge);
    }
    Ok(())
}

impl RetryOn {
    /// Whether a policy asks to try again after such a failure.
    pub fn includes(&self, failure: Failure) -> bool {
        match failure {
            Failure::Unprocessed => true,
            Failure::Reset => self.reset,
            Failure::Timeout => self.timeout,
            Failure::Status(status) => self.statuses.contains(&status),
            Failure::Grpc(code) => self.grpc.iter().any(|on| i32::from(*on) == code),
        }
    }
}

/// Whether doing it twice is the same as doing it once: by its method (RFC 9110 section 9.2.2), or
/// because an `idempotency-key` lets the server see that it is the same.
pub fn is_idempotent(method: &Method, has_idempotency_key: bool) -> bool {
    has_idempotency_key
        || matches!(
            *method,
            Method::GET
                | Method::HEAD
                | Method::PUT
                | Method::DELETE
                | Method::OPTIONS
                | Method::TRACE
        )
}

/// How long to wait after attempt `attempt` (the first is 1) has failed. `last`: the pause before it,
/// zero before the first.
pub fn pause(config: &RetryConfig, attempt: u8, last: Duration, random: u64) -> Duration {
    let Some(Backoff { base, max, jitter }) = config.backoff else { return Duration::ZERO };
    let factor = 2u32.saturating_pow(u32::from(attempt.saturating_sub(1)));
    let whole = base.saturating_mul(factor).min(max);
    match jitter {
        Jitter::Full => up_to(whole, random),
        Jitter::Additive => whole.saturating_add(up_to(whole.part(2), random)),
        Jitter::Decorrelated => {
            let most = last.max(base).saturating_mul(3).min(max);
            base.saturating_add(up_to(most.saturating_sub(base), random))
        }
    }
}

/// How long a `Retry-After` asks to wait (RFC 9110 section 10.2.3): a number of seconds, or a date. None:
/// it is neither. A date that has passed asks for nothing.
pub fn retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    if !value.is_empty() && value.bytes().all(|digit| digit.is_ascii_digit()) {
        // Longer than anybody waits is all the same.
        return Some(Duration::from_secs(value.parse().unwrap_or(u64::from(u32::MAX))));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

/// An even share of `most` by chance: from nothing to all of it.
pub(super) fn up_to(most: Duration, random: u64) -> Duration {
    let nanos = most.as_nanos().saturating_mul(u128::from(random)) / u128::from(u64::MAX);
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: Replay = Replay { idempotent: true, kept: true };
    const BAD_GATEWAY: Failure = Failure::Status(StatusCode::BAD_GATEWAY);

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn config() -> RetryConfig {
        let on = RetryOn {
            statuses: vec![StatusCode::BAD_GATEWAY, StatusCode::SERVICE_UNAVAILABLE],
            grpc: vec![14],
            reset: true,
            timeout: true,
        };
        RetryConfig { max_attempts: 3, on, ..RetryConfig::default() }
    }

    #[test]
    fn without_a_policy_only_what_nobody_processed_is_sent_once_more() {
        let config = RetryConfig::default();
        let post = Replay { idempotent: false, ..GOOD };
        assert_eq!(judge(&config, Failure::Unprocessed, 1, post, false), Ok(()));
        assert_eq!(judge(&config, Failure::Unprocessed, 2, post, false), Err(Skip::AttemptsUsed));
        let not_kept = Replay { kept: false, ..GOOD };
        let skipped = judge(&config, Failure::Unprocessed, 1, not_kept, false);
        assert_eq!(skipped, Err(Skip::BodyTooLarge));
        for failure in [Failure::Reset, Failure::Timeout, BAD_GATEWAY, Failure::Grpc(14)] {
            assert_eq!(judge(&config, failure, 1, GOOD, false), Err(Skip::NotConfigured));
        }
    }

    #[test]
    fn a_policy_names_what_is_tried_again() {
        let config = config();
        for failure in [Failure::Reset, Failure::Timeout, BAD_GATEWAY, Failure::Grpc(14)] {
            assert_eq!(judge(&config, failure, 2, GOOD, false), Ok(()), "{failure:?}");
            assert_eq!(judge(&config, failure, 3, GOOD, false), Err(Skip::AttemptsUsed));
            assert_eq!(judge(&config, failure, 1, GOOD, true), Err(Skip::Exhausted));
        }
        let other = Failure::Status(StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(judge(&config, other, 1, GOOD, false), Err(Skip::NotConfigured));
        assert_eq!(judge(&config, Failure::Grpc(-1), 1, GOOD, false), Err(Skip::NotConfigured));
    }

    #[test]
    fn what_could_do_harm_twice_is_sent_again_only_by_explicit_choice() {
        let mut config = config();
        let post = Replay { idempotent: false, ..GOOD };
        for failure in [Failure::Reset, Failure::Timeout, BAD_GATEWAY, Failure::Grpc(14)] {
            config.non_idempotent = false;
            assert_eq!(judge(&config, failure, 1, post, false), Err(Skip::NotIdempotent));
            config.non_idempotent = true;
            assert_eq!(judge(&config, failure, 1, post, false), Ok(()));
        }
        let of = |method: Method| is_idempotent(&method, false);
        assert!(of(Method::GET) && of(Method::PUT) && of(Method::DELETE) && of(Method::HEAD));
        assert!(!of(Method::POST) && !of(Method::PATCH) && !of(Method::CONNECT));
        assert!(is_idempotent(&Method::POST, true));
    }

    #[test]
    fn pauses_grow_and_are_drawn() {
        let pauses = |jitter, random| -> Vec<u64> {
            let backoff = Some(Backoff { base: millis(25), max: millis(150), jitter });
            let config = RetryConfig { backoff, ..RetryConfig::default() };
            let mut last = Duration::ZERO;
            let next = |attempt| {
                last = pause(&config, attempt, last, random);
                last.as_millis() as u64
            };
            (1..=5).map(next).collect()
        };
        assert_eq!(pauses(Jitter::Full, 0), [0, 0, 0, 0, 0]);
        assert_eq!(pauses(Jitter::Full, u64::MAX), [25, 50, 100, 150, 150]);
        assert_eq!(pauses(Jitter::Additive, 0), [25, 50, 100, 150, 150]);
        assert_eq!(pauses(Jitter::Additive, u64::MAX), [37, 75, 150, 225, 225]);
        assert_eq!(pauses(Jitter::Decorrelated, 0), [25, 25, 25, 25, 25]);
        assert_eq!(pauses(Jitter::Decorrelated, u64::MAX), [75, 150, 150, 150, 150]);
        assert_eq!(pause(&RetryConfig::default(), 9, millis(5), u64::MAX), Duration::ZERO);
    }

    #[test]
    fn retry_after_is_a_number_or_a_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_770);
        let ask = |value| retry_after(value, now).map(|wait| wait.as_secs());
        assert_eq!(ask("120"), Some(120));
        assert_eq!(ask(" 0 "), Some(0));
        assert_eq!(ask("99999999999999999999"), Some(u64::from(u32::MAX)));
        assert_eq!(ask("Sun, 06 Nov 1994 08:49:37 GMT"), Some(7));
        assert_eq!(ask("Sun, 06 Nov 1994 08:49:30 GMT"), Some(0));
        assert_eq!(ask("Sun, 06 Nov 1994 08:49:00 GMT"), Some(0));
        for bad in ["", "-1", "1.5", "soon", "1s", "+1"] {
            assert_eq!(ask(bad), None, "{bad}");
        }
    }
}
