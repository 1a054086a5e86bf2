//! The bounds of every number in a policy, once, for anyone who reads one: from a manifest or the wire.
//!
//! [`number`], [`duration`] and the functions beside them check one value; the `check` of a section
//! says whether its values make sense together. Paths are added by anyone who knows the field's name.

use std::fmt::Debug;
use std::ops::RangeInclusive;
use std::time::Duration;

use http::uri::PathAndQuery;
use http::{HeaderValue, StatusCode};

use super::ServerPolicy;
use super::breaker::{BreakerConfig, FailureRate, OpenTime};
use super::cache::CacheConfig;
use super::concurrency::{ConcurrencyConfig, Limit};
use super::fault::Schedule;
use super::limits::LimitsConfig;
use super::outlier::OutlierConfig;
use super::retry::{Backoff, RetryConfig};
use super::stop::StopRule;
use crate::error::FieldError;
use crate::name::check_label;

pub type Numbers = RangeInclusive<u32>;
pub type Durations = RangeInclusive<Duration>;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const MINUTE: Duration = Duration::from_secs(60);
/// More of anything is a slip of the pen, and sums of it stay far from overflowing.
const PLENTY: u32 = 1_000_000;

/// Digits of each number of a duration, and numbers of one (GEP-2257).
pub const DURATION_DIGITS: usize = 5;
pub const DURATION_PARTS: usize = 4;

pub const PORT: Numbers = 1..=65_535;
/// Version of the protocol between two proxies.
pub const HOP_VERSION: Numbers = 1..=PLENTY;
/// Targets of one policy: the bound of the Gateway API's own policies.
pub const MAX_TARGETS: usize = 16;
/// Host names of one route or of one entry of an access rule.
pub const MAX_HOSTS: usize = 16;
/// Seconds that an issuer's clock may differ by: more would make `exp` and `nbf` meaningless.
pub const CLOCK_SKEW: Numbers = 0..=300;

/// Of a deadline and of each timeout; what takes longer than a day is nobody's request.
pub const TIMEOUT: Durations = Duration::from_millis(1)..=DAY;
/// A way that sees the same service more often than there may be hops has no meaning.
pub const VISITS: Numbers = 1..=32;

pub const ATTEMPTS: Numbers = 1..=10;
pub const REPLAY_BYTES: Numbers = 0..=1024 * 1024;
/// Of the first pause and of the longest.
pub const BACKOFF: Durations = Duration::from_millis(1)..=MINUTE;
/// gRPC status codes that are failures.
pub const GRPC: Numbers = 1..=16;
/// Statuses that may be tried again, and the one below them: what says that the server, not the request, is
/// the trouble.
pub const RETRY_STATUSES: Numbers = 500..=599;
pub const TOO_MANY_REQUESTS: u32 = 429;
/// There are no more of them.
pub const MAX_STATUSES: usize = 101;
pub const MAX_GRPC: usize = 16;

pub const BUDGET_PERCENT: Numbers = 0..=100;
pub const BUDGET_PER_SECOND: Numbers = 0..=1_000;

pub const FAILURES: Numbers = 1..=PLENTY;
pub const PERCENT: Numbers = 1..=100;
pub const MIN_REQUESTS: Numbers = 1..=PLENTY;
pub const WINDOW: Durations = Duration::from_secs(1)..=Duration::from_secs(300);
/// How long a breaker stays open and an endpoint ejected: long enough to be seen, short enough to be
/// waited for.
pub const OPEN: Durations = Duration::from_millis(100)..=Duration::from_secs(60 * 60);
pub const TRIALS: Numbers = 1..=100;

/// Of a new endpoint's slow start.
pub const SLOW_START: Durations = Duration::from_secs(1)..=Duration::from_secs(60 * 60);
/// Of a panic threshold; 0: fitness always counts.
pub const PANIC: Numbers = 0..=100;

/// Between checks of an endpoint; every caller of a service makes its own.
pub const CHECK_INTERVAL: Durations = Duration::from_millis(100)..=Duration::from_secs(10 * 60);
pub const CHECK_TIMEOUT: Durations = Duration::from_millis(10)..=MINUTE;
/// Checks in a row that change what an endpoint is.
pub const CHECKS: Numbers = 1..=100;
/// Bytes of a gRPC service's name.
pub const SERVICE_BYTES: usize = 256;

pub const IN_FLIGHT: Numbers = 1..=PLENTY;
pub const PENDING: Numbers = 0..=PLENTY;

/// Of the wait before a second attempt.
pub const HEDGE: Durations = Duration::from_millis(1)..=MINUTE;
/// Of the time that an answer is kept, fresh and for failures. 0: not at all.
pub const KEPT: Durations = Duration::ZERO..=DAY;
pub const ENTRY_BYTES: Numbers = 1..=1024 * 1024;
/// Each one that sends may take as long as an attempt.
pub const MAX_FALLBACKS: usize = 8;
/// Statuses of a static answer.
pub const STATIC_STATUS: Numbers = 200..=599;
/// Bytes of a static answer: every proxy that calls the service keeps it.
pub const STATIC_BYTES: usize = 8 * 1024;
/// Bytes of a path, as in routes.
pub const PATH_BYTES: usize = 1024;

pub const REQUESTS: Numbers = 1..=PLENTY;
pub const PERIOD: Durations = Duration::from_secs(1)..=Duration::from_secs(60 * 60);
/// Each one is asked for every request.
pub const MAX_RATE_LIMITS: usize = 16;

pub const CONCURRENCY: Numbers = 1..=PLENTY;
pub const QUEUE: Numbers = 0..=100_000;
/// 0: nobody waits.
pub const WAIT: Durations = Duration::ZERO..=Duration::from_secs(10);
/// Fault injections that may apply to one service or rule; each is looked at for every attempt.
pub const MAX_FAULTS: usize = 16;
/// Of a fault, in hundredths of a percent.
pub const SHARE: Numbers = 1..=10_000;
pub const MAX_CALLERS: usize = 16;
pub const MAX_MATCHES: usize = 16;
pub const MAX_HEADERS: usize = 16;
/// Of an injected delay, its jitter apart.
pub const DELAY: Durations = Duration::from_millis(1)..=MINUTE;
pub const DELAY_JITTER: Durations = Duration::ZERO..=MINUTE;
/// Statuses that a fault may answer with: what says that something went wrong.
pub const ABORT_STATUS: Numbers = 400..=599;
/// A fault injection that is forgotten ends on the same day.
pub const EXPERIMENT: Duration = DAY;
/// Fault injections whose guards may watch one service.
pub const MAX_STOP_RULES: usize = 16;
pub const SCHEDULE: Durations = Duration::from_secs(1)..=DAY;

/// Addresses of an ExternalService; each caller gets them all.
pub const MAX_OUTSIDE: usize = 64;
/// Bytes of an ExternalService's own roots in PEM: each of its endpoints carries them.
pub const ROOTS_BYTES: usize = 16 * 1024;

/// Of the latency that an adaptive limit keeps to.
pub const LATENCY: Durations = Duration::from_millis(1)..=MINUTE;

/// `value` comes as it was written, whatever its sign and width: that is how it is reported.
pub fn number<T: TryFrom<u32>>(
    value: impl TryInto<u32> + Copy + Debug,
    bounds: &Numbers,
) -> Result<T, FieldError> {
    let inside = value.try_into().ok().filter(|value| bounds.contains(value));
    inside.and_then(|value| T::try_from(value).ok()).ok_or_else(|| outside(&value, bounds))
}

pub fn duration(value: Duration, bounds: &Durations) -> Result<Duration, FieldError> {
    if bounds.contains(&value) { Ok(value) } else { Err(outside(&value, bounds)) }
}

/// Of a sliding window, which is counted in seconds.
pub fn window(value: Duration) -> Result<Duration, FieldError> {
    if value.subsec_nanos() != 0 {
        return Err(FieldError::here(format!("{value:?} is not in whole seconds")));
    }
    duration(value, &WINDOW)
}

/// A status that may be tried again: what says that the server, not the request, is the trouble.
pub fn status(value: impl TryInto<u16> + Copy + Debug) -> Result<StatusCode, FieldError> {
    let retried = |code: &u16| {
        let code = u32::from(*code);
        code == TOO_MANY_REQUESTS || RETRY_STATUSES.contains(&code)
    };
    let code = value.try_into().ok().filter(retried);
    code.and_then(|code| StatusCode::from_u16(code).ok()).ok_or_else(|| {
        let (least, most) = (RETRY_STATUSES.start(), RETRY_STATUSES.end());
        let problem = format!("is not {TOO_MANY_REQUESTS} or between {least} and {most}");
        FieldError::here(format!("{value:?} {problem}"))
    })
}

/// Of a static answer.
pub fn static_status(value: u32) -> Result<StatusCode, FieldError> {
    let code = u16::try_from(value).ok().filter(|_| STATIC_STATUS.contains(&value));
    code.and_then(|code| StatusCode::from_u16(code).ok()).ok_or_else(|| {
        let (least, most) = (STATIC_STATUS.start(), STATIC_STATUS.end());
        FieldError::here(format!("{value} is not between {least} and {most}"))
    })
}

pub fn content_type(text: &str) -> Result<HeaderValue, FieldError> {
    let value = HeaderValue::from_str(text).ok().filter(|_| text.contains('/'));
    value.ok_or_else(|| FieldError::here(format!("{text:?} is not a media type")))
}

pub fn static_body(text: &str) -> Result<String, FieldError> {
    if text.len() <= STATIC_BYTES {
        return Ok(text.to_owned());
    }
    Err(FieldError::here(format!("has {} bytes, at most {STATIC_BYTES} are allowed", text.len())))
}

/// A path with or without a query, to be asked for instead of another one.
pub fn path(text: &str) -> Result<PathAndQuery, FieldError> {
    let wrong = |problem: &str| Err(FieldError::here(format!("{text:?} {problem}")));
    if !text.starts_with('/') {
        return wrong("must begin with \"/\"");
    }
    if text.len() > PATH_BYTES {
        return Err(FieldError::here(format!("has more than {PATH_BYTES} bytes")));
    }
    match PathAndQuery::try_from(text) {
        Ok(path) if !text.contains('#') => Ok(path),
        _ => wrong("is not a path"),
    }
}

/// A gRPC service as its health is asked for; empty: the server as a whole.
pub fn grpc_service(text: &str) -> Result<String, FieldError> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/');
    if text.len() <= SERVICE_BYTES && text.chars().all(good) {
        return Ok(text.to_owned());
    }
    let problem = format!("is not the name of a gRPC service of at most {SERVICE_BYTES} bytes");
    Err(FieldError::here(problem))
}

pub fn at_most(len: usize, most: usize) -> Result<(), FieldError> {
    if len <= most {
        return Ok(());
    }
    Err(FieldError::here(format!("has {len} items, at most {most} are allowed")))
}

fn outside<T: Debug>(value: &impl Debug, bounds: &RangeInclusive<T>) -> FieldError {
    let (least, most) = (bounds.start(), bounds.end());
    FieldError::here(format!("{value:?} must be between {least:?} and {most:?}"))
}

impl CacheConfig {
    pub fn check(&self) -> Result<(), FieldError> {
        if self.ttl.is_zero() && self.stale_on_error.is_zero() {
            return Err(FieldError::here("stores nothing: ttl and staleOnError are both 0"));
        }
        Ok(())
    }
}

impl RetryConfig {
    pub fn check(&self) -> Result<(), FieldError> {
        self.backoff.map_or(Ok(()), |backoff| backoff.check().map_err(|e| e.under("backoff")))
    }
}

impl Backoff {
    fn check(&self) -> Result<(), FieldError> {
        ascending("max", self.max, "base", self.base)
    }
}

impl BreakerConfig {
    pub fn check(&self) -> Result<(), FieldError> {
        opens(self.consecutive_failures, self.failure_rate)?;
        match self.open {
            OpenTime::Fixed(_) => Ok(()),
            OpenTime::Backoff { base, max } => {
                ascending("max", max, "base", base).map_err(|e| e.under("open"))
            }
        }
    }
}

impl OutlierConfig {
    pub fn check(&self) -> Result<(), FieldError> {
        opens(self.consecutive_failures, self.failure_rate)?;
        ascending("maxEjection", self.max_ejection, "baseEjection", self.base_ejection)
    }
}

impl LimitsConfig {
    pub fn check(&self) -> Result<(), FieldError> {
        if self.max_pending.is_some() && self.max_in_flight.is_none() {
            return Err(FieldError::at("maxPending", "has no effect without maxInFlight"));
        }
        Ok(())
    }
}

impl Schedule {
    pub fn check(&self) -> Result<(), FieldError> {
        if self.length < self.every {
            return Ok(());
        }
        let (length, every) = (self.length, self.every);
        Err(FieldError::at("for", format!("{length:?} is not less than every, which is {every:?}")))
    }
}

impl StopRule {
    pub fn check(&self) -> Result<(), FieldError> {
        if self.min_success_percent.is_none() && self.max_p99.is_none() {
            return Err(FieldError::here("needs minSuccessPercent, maxP99 or both"));
        }
        Ok(())
    }
}

impl ConcurrencyConfig {
    pub fn check(&self) -> Result<(), FieldError> {
        match self.limit {
            Limit::Static(_) => Ok(()),
            Limit::Adaptive { min, max, .. } => {
                ascending("max", max, "min", min).map_err(|e| e.under("adaptive"))
            }
        }
    }
}

impl ServerPolicy {
    /// Names tell the limits apart in headers, metrics and logs.
    pub fn check(&self) -> Result<(), FieldError> {
        let limits = &self.rate_limits;
        at_most(limits.len(), MAX_RATE_LIMITS).map_err(|e| e.under("rateLimits"))?;
        for (i, limit) in limits.iter().enumerate() {
            let twice = limits[..i].iter().any(|other| other.name == limit.name);
            let unique = if twice {
                Err(FieldError::here(format!("{:?} is the name of another limit", limit.name)))
            } else {
                check_label(&limit.name)
            };
            unique.map_err(|e| e.under(format!("rateLimits[{i}].name")))?;
        }
        Ok(())
    }
}

fn opens(consecutive: Option<u32>, rate: Option<FailureRate>) -> Result<(), FieldError> {
    if consecutive.is_none() && rate.is_none() {
        return Err(FieldError::here("needs consecutiveFailures, failureRate or both"));
    }
    Ok(())
}

fn ascending<T: PartialOrd + Debug + Copy>(
    name: &str,
    value: T,
    least_name: &str,
    least: T,
) -> Result<(), FieldError> {
    if value >= least {
        return Ok(());
    }
    Err(FieldError::at(name, format!("{value:?} is less than {least_name}, which is {least:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_at_the_bounds_are_inside() {
        assert_eq!(number::<u8>(1, &ATTEMPTS), Ok(1));
        assert_eq!(number::<u8>(10, &ATTEMPTS), Ok(10));
        let error = number::<u8>(11, &ATTEMPTS).unwrap_err();
        assert_eq!(error.to_string(), "11 must be between 1 and 10");
        assert!(number::<u8>(266, &ATTEMPTS).is_err());
        assert_eq!(duration(DAY, &TIMEOUT), Ok(DAY));
        let error = duration(Duration::ZERO, &TIMEOUT).unwrap_err();
        assert_eq!(error.to_string(), "0ns must be between 1ms and 86400s");
        assert!(window(Duration::from_millis(1_500)).is_err());
        for (code, allowed) in [(428, false), (429, true), (499, false), (500, true), (599, true)] {
            assert_eq!(status(code).is_ok(), allowed, "{code}");
        }
        assert!(status(66_036).is_err());
        assert!(status(-36).unwrap_err().problem.starts_with("-36 is not"));
        let error = number::<u8>(-1i64, &ATTEMPTS).unwrap_err();
        assert_eq!(error.to_string(), "-1 must be between 1 and 10");
        let error = number::<u32>(1u64 << 40, &FAILURES).unwrap_err();
        assert_eq!(error.to_string(), "1099511627776 must be between 1 and 1000000");
    }
}
