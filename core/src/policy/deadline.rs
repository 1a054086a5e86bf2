//! One absolute deadline per operation: started once, inherited over every hop, never extended.
//!
//! It travels as `grpc-timeout` for gRPC and as `x-deadline` (milliseconds left) for all HTTP;
//! `x-envoy-expected-rq-timeout-ms` is read too. Each hop writes what is left, so what was spent on the
//! way and in apps is gone from it.

use std::fmt::Write;
use std::time::{Duration, Instant};

/// Digits of `grpc-timeout` (gRPC over HTTP/2: `TimeoutValue`).
const GRPC_DIGITS: usize = 8;
/// Digits of a number of milliseconds: 11 days are more than anybody waits.
const MILLIS_DIGITS: usize = 9;

/// When a request is over, and who says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadline {
    pub at: Instant,
    pub origin: DeadlineSource,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeadlineSource {
    /// The request said so itself.
    Explicit,
    /// From the inbound request that the app works on.
    Inherited,
    /// A policy started it here.
    Policy,
}

/// What a request itself says about the time that it has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct HeaderTimeouts {
    pub grpc: Option<Duration>,
    pub deadline: Option<Duration>,
    pub envoy: Option<Duration>,
}

impl HeaderTimeouts {
    /// The nearest of them: anyone who repeats one must not make it later by leaving another.
    pub fn nearest(self) -> Option<Duration> {
        [self.grpc, self.deadline, self.envoy].into_iter().flatten().min()
    }
}

impl Deadline {
    /// One that another proxy's policy has started: it ends where that policy's would.
    pub fn of_policy(self) -> Self {
        Self { origin: DeadlineSource::Policy, ..self }
    }

    /// The deadline of a request that came at `now`: the nearer one of what it says itself and of what it
    /// inherits, since nobody waits longer than the request that it belongs to. A policy speaks only where
    /// nobody has. A time too far away to be represented is none.
    pub fn begin(
        now: Instant,
        explicit: Option<Duration>,
        inherited: Option<Instant>,
        policy: Option<Duration>,
    ) -> Option<Self> {
        if explicit.is_none() && inherited.is_none() {
            let at = now.checked_add(policy?)?;
            return Some(Self { at, origin: DeadlineSource::Policy });
        }
        let own = explicit.and_then(|left| now.checked_add(left));
        match (own, inherited) {
            (Some(at), inherited) if inherited.is_none_or(|inherited| at <= inherited) => {
                Some(Self { at, origin: DeadlineSource::Explicit })
            }
            (_, inherited) => inherited.map(|at| Self { at, origin: DeadlineSource::Inherited }),
        }
    }

    /// None: it has passed.
    pub fn left(&self, now: Instant) -> Option<Duration> {
        self.at.checked_duration_since(now).filter(|left| !left.is_zero())
    }

    /// Whether it holds beyond the head of the response. One that the mesh started on its own must not
    /// cut what is meant to go on.
    pub fn outlives_head(&self, streaming: bool) -> bool {
        self.origin != DeadlineSource::Policy || !streaming
    }
}

/// `5S`, `100m`: a number of at most 8 digits and a unit. None: not valid.
pub fn parse_grpc_timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    let number = number(digits, GRPC_DIGITS)?;
    Some(match unit {
        b'H' => Duration::from_secs(number * 3_600),
        b'M' => Duration::from_secs(number * 60),
        b'S' => Duration::from_secs(number),
        b'm' => Duration::from_millis(number),
        b'u' => Duration::from_micros(number),
        b'n' => Duration::from_nanos(number),
        _ => return None,
    })
}

/// A whole number of milliseconds. None: not valid.
pub fn parse_millis(value: &[u8]) -> Option<Duration> {
    number(value, MILLIS_DIGITS).map(Duration::from_millis)
}

fn number(digits: &[u8], most: usize) -> Option<u64> {
    let valid = (1..=most).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit);
    valid.then(|| digits.iter().fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0')))
}

/// What is left as `grpc-timeout`, in the finest unit that has room for it, rounded down.
pub fn write_grpc_timeout(left: Duration, out: &mut String) {
    let most = 10u128.pow(GRPC_DIGITS as u32) - 1;
    let units = [(left.as_micros(), 'u'), (left.as_millis(), 'm'), (left.as_secs().into(), 'S')];
    let (number, unit) =
        units.into_iter().find(|(number, _)| *number <= most).unwrap_or((most, 'S'));
    // Writing to a string cannot fail.
    let _ = write!(out, "{number}{unit}");
}

/// What is left as `x-deadline`, rounded down.
pub fn millis(left: Duration) -> u64 {
    let most = 10u64.pow(MILLIS_DIGITS as u32) - 1;
    u64::try_from(left.as_millis()).unwrap_or(most).min(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn headers_are_read_exactly_or_not_at_all() {
        assert_eq!(parse_grpc_timeout(b"1S"), Some(SECOND));
        assert_eq!(parse_grpc_timeout(b"2M"), Some(SECOND * 120));
        assert_eq!(parse_grpc_timeout(b"99999999H").map(|d| d.as_secs()), Some(359_999_996_400));
        assert_eq!(parse_grpc_timeout(b"250m"), Some(SECOND / 4));
        assert_eq!(parse_grpc_timeout(b"1n"), Some(Duration::from_nanos(1)));
        for bad in ["", "S", "1", "1s", "-1S", "+1S", " 1S", "1S ", "123456789S", "1.5S", "1SS"] {
            assert_eq!(parse_grpc_timeout(bad.as_bytes()), None, "{bad}");
        }
        assert_eq!(parse_millis(b"1500"), Some(SECOND * 3 / 2));
        assert_eq!(parse_millis(b"0"), Some(Duration::ZERO));
        for bad in ["", "-1", "1s", "1.5", "1234567890", " 1"] {
            assert_eq!(parse_millis(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn what_is_written_is_valid_and_never_more_than_what_is_left() {
        let mut lengths: Vec<Duration> = (0..60).map(|n| Duration::from_nanos(3 << n)).collect();
        lengths.extend([Duration::ZERO, Duration::MAX, SECOND * 99_999_999]);
        for left in lengths {
            let mut text = String::new();
            write_grpc_timeout(left, &mut text);
            let read = parse_grpc_timeout(text.as_bytes());
            assert!(read.is_some_and(|read| read <= left), "{left:?} {text}");
            let read = parse_millis(millis(left).to_string().as_bytes());
            assert!(read.is_some_and(|read| read <= left), "{left:?}");
        }
        let mut text = String::new();
        write_grpc_timeout(SECOND, &mut text);
        assert_eq!(text, "1000000u");
    }

    #[test]
    fn the_nearer_of_the_requests_own_and_the_inherited_holds_then_a_policy() {
        let now = Instant::now();
        let begin = |explicit, inherited, policy| Deadline::begin(now, explicit, inherited, policy);
        let inherited = Some(now + SECOND);
        let nine = Some(SECOND * 9);
        for (explicit, inherited, at, origin) in [
            (Some(SECOND / 2), inherited, now + SECOND / 2, DeadlineSource::Explicit),
            (Some(SECOND), inherited, now + SECOND, DeadlineSource::Explicit),
            (Some(SECOND * 30), inherited, now + SECOND, DeadlineSource::Inherited),
            (Some(Duration::MAX), inherited, now + SECOND, DeadlineSource::Inherited),
            (Some(SECOND * 30), None, now + SECOND * 30, DeadlineSource::Explicit),
            (None, inherited, now + SECOND, DeadlineSource::Inherited),
            (None, None, now + SECOND * 9, DeadlineSource::Policy),
        ] {
            let begun = begin(explicit, inherited, nine).unwrap();
            assert_eq!((begun.at, begun.origin), (at, origin), "{explicit:?} {inherited:?}");
        }
        assert_eq!(begin(None, None, None), None);
        assert_eq!(begin(Some(Duration::MAX), None, nine), None, "as good as none");
        let (own, policy) = (begin(Some(SECOND), None, None), begin(None, None, nine));
        let (own, policy) = (own.unwrap(), policy.unwrap());
        assert_eq!(policy.left(now + SECOND * 9), None);
        assert_eq!(policy.left(now + SECOND * 8), Some(SECOND));
        assert!(own.outlives_head(true) && !policy.outlives_head(true));
    }

    #[test]
    fn of_several_headers_the_nearest_holds() {
        let told = HeaderTimeouts { grpc: Some(SECOND * 2), deadline: Some(SECOND), envoy: None };
        assert_eq!(told.nearest(), Some(SECOND));
        assert_eq!(HeaderTimeouts::default().nearest(), None);
    }
}
