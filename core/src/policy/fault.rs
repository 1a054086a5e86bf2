//! Faults that are injected into calls: which attempts they hit, and what happens to those.
//!
//! A fault is judged by the wall clock of anyone who injects it, so it ends in time even where the control
//! plane is away. Nothing here knows who calls: [`Fault::is_from`] is asked once, when a configuration is
//! taken over.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};

use super::retry::Failure;
use crate::outcome::{Outcome, classify_grpc, classify_http};

/// Parts that a whole is counted in: hundredths of a percent.
pub const WHOLE: u16 = 10_000;

/// One fault injection, as far as it is about one service or rule.
#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    /// `namespace/name` of its FaultInjection.
    pub name: Arc<str>,
    /// Names what its spec says; another spec is another fault injection.
    pub version: Arc<str>,
    /// Seconds since the Unix epoch: of several the oldest goes first, then by name.
    pub created: i64,
    /// Whose calls it hits. Empty: everybody's.
    pub from: Vec<FaultSource>,
    /// Which requests it hits. Empty: all, and connections that are not looked into.
    pub matches: Vec<RequestMatch>,
    /// Of [`WHOLE`]; at least 1.
    pub share: u16,
    pub kind: FaultAction,
    pub times: Times,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FaultSource {
    pub namespace: String,
    /// None: every account of the namespace.
    pub service_account: Option<String>,
}

/// All that is set must hold.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct RequestMatch {
    pub method: Option<Method>,
    pub path: Option<FaultPath>,
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

/// Compared with the canonical path as the called service gets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FaultPath {
    Exact(String),
    /// Whole leading segments: `/a` matches `/a` and `/a/b`, not `/ab`.
    Prefix(String),
}

/// What happens to an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultAction {
    /// It is made later, by `fixed` and up to `jitter` more.
    Delay { fixed: Duration, jitter: Duration },
    /// It is answered with a status.
    Abort(StatusCode),
    /// A gRPC call is answered with a code; other requests are left alone.
    AbortGrpc(u8),
    /// It breaks without an answer.
    Reset,
    /// No connection comes about.
    Partition,
}

/// When it is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// None: until its end.
    pub start: Option<SystemTime>,
    pub end: SystemTime,
    /// None: all the time between.
    pub schedule: Option<Schedule>,
}

/// In force for `length` at the beginning of each `every`, counted from the start, or in whole multiples
/// since the Unix epoch where there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    pub every: Duration,
    pub length: Duration,
}

/// A request as faults look at it.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    pub method: &'a Method,
    /// As the request names its host: what `Host` is compared with.
    pub authority: &'a str,
    /// In its canonical form.
    pub path: &'a str,
    pub headers: &'a HeaderMap,
    pub grpc: bool,
}

/// The answer that stands for a fault which gives one or breaks the attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: StatusCode,
    /// Of a gRPC call.
    pub grpc: i32,
    /// What retries make of it; none: an answer like any other.
    pub failure: Option<Failure>,
    /// What breakers and ejection make of it.
    pub outcome: Outcome,
}

impl Fault {
    pub fn is_from(&self, namespace: &str, service_account: &str) -> bool {
        self.from.is_empty() || self.from.iter().any(|caller| caller.is(namespace, service_account))
    }

    /// Whether it hits a request; `random` is uniform.
    pub fn hits(&self, request: &Request<'_>, now: SystemTime, random: u64) -> bool {
        let matches = || {
            let grpc_only = matches!(self.kind, FaultAction::AbortGrpc(_));
            (request.grpc || !grpc_only)
                && (self.matches.is_empty() || self.matches.iter().any(|one| one.holds(request)))
        };
        self.is_drawn(random) && self.times.are_now(now) && matches()
    }

    /// Whether it hits a connection that is not looked into: only a partition can.
    pub fn hits_connection(&self, now: SystemTime, random: u64) -> bool {
        let can = self.kind == FaultAction::Partition && self.matches.is_empty();
        can && self.is_drawn(random) && self.times.are_now(now)
    }

    /// What goes first.
    pub fn order(&self) -> (i64, &str) {
        (self.created, &self.name)
    }

    fn is_drawn(&self, random: u64) -> bool {
        // Multiply and shift maps the random number to 0..WHOLE without a division.
        let drawn = (u128::from(random) * u128::from(WHOLE)) >> 64;
        drawn < u128::from(self.share)
    }
}

impl FaultSource {
    pub fn is(&self, namespace: &str, service_account: &str) -> bool {
        let account = self.service_account.as_deref();
        self.namespace == namespace && account.is_none_or(|account| account == service_account)
    }
}

impl RequestMatch {
    fn holds(&self, request: &Request<'_>) -> bool {
        let header = |(name, value): &(HeaderName, HeaderValue)| {
            if *name == header::HOST {
                return request.authority.as_bytes().eq_ignore_ascii_case(value.as_bytes());
            }
            request.headers.get_all(name).iter().any(|has| has == value)
        };
        self.method.as_ref().is_none_or(|method| method == request.method)
            && self.path.as_ref().is_none_or(|path| path.holds(request.path))
            && self.headers.iter().all(header)
    }
}

impl FaultPath {
    fn holds(&self, path: &str) -> bool {
        match self {
            Self::Exact(exact) => exact == path,
            Self::Prefix(prefix) => {
                let rest = path.strip_prefix(prefix.trim_end_matches('/'));
                rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            }
        }
    }
}

impl Times {
    pub fn are_now(&self, now: SystemTime) -> bool {
        if now >= self.end || self.start.is_some_and(|start| now < start) {
            return false;
        }
        let Some(Schedule { every, length }) = self.schedule else { return true };
        let since = now.duration_since(self.start.unwrap_or(SystemTime::UNIX_EPOCH));
        let since = since.unwrap_or_default().as_millis();
        since % every.as_millis().max(1) < length.as_millis()
    }
}

impl FaultAction {
    /// The word in metrics and explanations.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Delay { .. } => "delay",
            Self::Abort(_) | Self::AbortGrpc(_) => "abort",
            Self::Reset => "reset",
            Self::Partition => "partition",
        }
    }

    /// How long an attempt is held up; none: it does not come about.
    pub fn delay(self, random: u64) -> Option<Duration> {
        let Self::Delay { fixed, jitter } = self else { return None };
        let jitter = u64::try_from(jitter.as_micros()).unwrap_or(u64::MAX);
        let drawn = (u128::from(random) * (u128::from(jitter) + 1)) >> 64;
        Some(fixed.saturating_add(Duration::from_micros(drawn as u64)))
    }

    /// What stands for the answer; none for a delay.
    pub fn answer(self, grpc: bool) -> Option<Answer> {
        let plain = |status: StatusCode, code: i32, failure| {
            Some(Answer { status, grpc: code, failure, outcome: Outcome::Failure })
        };
        match self {
            Self::Delay { .. } => None,
            Self::Abort(status) => {
                let code = grpc_code_of(status);
                Some(answered(status, code, grpc))
            }
            Self::AbortGrpc(code) => {
                Some(answered(StatusCode::SERVICE_UNAVAILABLE, code.into(), true))
            }
            Self::Reset => plain(StatusCode::BAD_GATEWAY, UNKNOWN, Some(Failure::Reset)),
            Self::Partition => {
                plain(StatusCode::SERVICE_UNAVAILABLE, UNAVAILABLE, Some(Failure::Unprocessed))
            }
        }
    }
}

/// An answer as the called service would have given it.
fn answered(status: StatusCode, code: i32, grpc: bool) -> Answer {
    let failed = status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS;
    let (failure, outcome) = if grpc {
        (Some(Failure::Grpc(code)), classify_grpc(code))
    } else {
        (failed.then_some(Failure::Status(status)), classify_http(status))
    };
    Answer { status, grpc: code, failure, outcome }
}

/// What gRPC makes of a status without a code of its own
/// (<https://github.com/grpc/grpc/blob/master/doc/http-grpc-status-mapping.md>).
fn grpc_code_of(status: StatusCode) -> i32 {
    match status.as_u16() {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502..=504 => UNAVAILABLE,
        _ => UNKNOWN,
    }
}

const UNKNOWN: i32 = 2;
const UNAVAILABLE: i32 = 14;

impl fmt::Display for FaultSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let account = self.service_account.as_deref().unwrap_or("*");
        write!(f, "{}/{account}", self.namespace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn fault(kind: FaultAction) -> Fault {
        Fault {
            name: "bank/f".into(),
            version: "1".into(),
            created: 0,
            from: Vec::new(),
            matches: Vec::new(),
            share: WHOLE,
            kind,
            times: Times { start: None, end: at(1_000), schedule: None },
        }
    }

    fn request(path: &str, headers: &HeaderMap, grpc: bool, fault: &Fault) -> bool {
        let request = Request { method: &Method::GET, authority: "web.bank", path, headers, grpc };
        fault.hits(&request, at(1), 0)
    }

    #[test]
    fn it_is_in_force_between_start_and_end_and_as_its_schedule_says() {
        let schedule =
            Schedule { every: Duration::from_secs(600), length: Duration::from_secs(60) };
        for (start, schedule, times) in [
            (None, None, vec![(0, true), (999, true), (1_000, false)]),
            (Some(100), None, vec![(99, false), (100, true), (1_000, false)]),
            (
                Some(100),
                Some(schedule),
                vec![
                    (99, false),
                    (100, true),
                    (159, true),
                    (160, false),
                    (700, true),
                    (760, false),
                ],
            ),
            (None, Some(schedule), vec![(0, true), (60, false), (600, true), (660, false)]),
        ] {
            let times_of = Times { start: start.map(at), end: at(1_000), schedule };
            for (second, wanted) in times {
                assert_eq!(times_of.are_now(at(second)), wanted, "{times_of:?} at {second}");
            }
        }
    }

    #[test]
    fn it_hits_the_callers_and_requests_that_it_names() {
        let mut one = fault(FaultAction::Reset);
        assert!(one.is_from("any", "body"));
        let caller = |account: Option<&str>| FaultSource {
            namespace: "bank".to_owned(),
            service_account: account.map(str::to_owned),
        };
        one.from = vec![caller(Some("orders"))];
        assert!(one.is_from("bank", "orders") && !one.is_from("bank", "ledger"));
        one.from = vec![caller(None)];
        assert!(one.is_from("bank", "ledger") && !one.is_from("shop", "ledger"));
        let mut headers = HeaderMap::new();
        assert!(request("/", &headers, false, &one));
        one.matches = vec![RequestMatch {
            method: Some(Method::GET),
            path: Some(FaultPath::Prefix("/prices/".to_owned())),
            headers: vec![(HeaderName::from_static("x-test"), HeaderValue::from_static("1"))],
        }];
        assert!(!request("/prices", &headers, false, &one));
        headers.insert("x-test", HeaderValue::from_static("1"));
        for (path, wanted) in [("/prices", true), ("/prices/a", true), ("/pricesx", false)] {
            assert_eq!(request(path, &headers, false, &one), wanted, "{path}");
        }
        one.matches[0].path = Some(FaultPath::Exact("/prices".to_owned()));
        assert!(!request("/prices/a", &headers, false, &one));
        one.matches[0].path = Some(FaultPath::Prefix("/".to_owned()));
        assert!(request("/any", &headers, false, &one));
    }

    #[test]
    fn only_partitions_hit_what_is_not_looked_into_and_grpc_codes_only_grpc() {
        for (kind, hits) in [(FaultAction::Partition, true), (FaultAction::Reset, false)] {
            assert_eq!(fault(kind).hits_connection(at(1), 0), hits);
        }
        let mut narrow = fault(FaultAction::Partition);
        narrow.matches = vec![RequestMatch::default()];
        assert!(!narrow.hits_connection(at(1), 0));
        let headers = HeaderMap::new();
        let code = fault(FaultAction::AbortGrpc(14));
        assert!(request("/", &headers, true, &code) && !request("/", &headers, false, &code));
    }

    #[test]
    fn its_share_is_exact_in_hundredths_of_a_percent() {
        let mut one = fault(FaultAction::Reset);
        for share in [1, 1_050, WHOLE] {
            one.share = share;
            let step = u64::MAX / u64::from(WHOLE);
            let middle = |i: u16| u64::from(i) * step + step / 2;
            let hit = (0..WHOLE).filter(|i| one.is_drawn(middle(*i))).count();
            assert_eq!(hit, usize::from(share));
        }
    }

    #[test]
    fn answers_are_what_the_service_would_have_said() {
        let status = |code| StatusCode::from_u16(code).unwrap();
        let answer = |kind: FaultAction, grpc| {
            let answer = kind.answer(grpc).unwrap();
            (answer.status.as_u16(), answer.grpc, answer.failure, answer.outcome)
        };
        let unavailable = Some(Failure::Status(status(503)));
        for (kind, grpc, wanted) in [
            (FaultAction::Abort(status(503)), false, (503, 14, unavailable, Outcome::Failure)),
            (FaultAction::Abort(status(404)), false, (404, 12, None, Outcome::Success)),
            (
                FaultAction::Abort(status(503)),
                true,
                (503, 14, Some(Failure::Grpc(14)), Outcome::Failure),
            ),
            (FaultAction::AbortGrpc(5), true, (503, 5, Some(Failure::Grpc(5)), Outcome::Success)),
            (FaultAction::Reset, false, (502, 2, Some(Failure::Reset), Outcome::Failure)),
            (
                FaultAction::Partition,
                false,
                (503, 14, Some(Failure::Unprocessed), Outcome::Failure),
            ),
        ] {
            assert_eq!(answer(kind, grpc), wanted, "{kind:?}");
        }
        let (fixed, jitter) = (Duration::from_millis(200), Duration::from_millis(50));
        let delay = FaultAction::Delay { fixed, jitter };
        assert_eq!(delay.answer(false), None);
        assert_eq!(delay.delay(0), Some(fixed));
        assert_eq!(delay.delay(u64::MAX), Some(fixed + jitter));
    }
}
