//! The record of one exchange: everything that is known of a request or connection when it is over. The access
//! log reads it; metrics count it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::uri::PathAndQuery;
use http::{HeaderName, HeaderValue, Method, StatusCode};
use outrigger_core::config::Protocol;
use outrigger_core::outcome::Outcome;
use outrigger_core::policy::retry::Skip;
use outrigger_core::reason::Cause;

use crate::base::direction::Direction;
use crate::observe::metrics::{Label, Status};

/// A request or connection that has ended.
#[derive(Clone)]
pub struct Record {
    pub direction: Direction,
    pub service: Arc<str>,
    pub route: Arc<str>,
    pub peer: Arc<str>,
    pub protocol: Protocol,
    pub outcome: Outcome,
    pub status: Status,
    /// Why it did not simply go through.
    pub cause: Option<Cause>,
    pub detail: Option<Box<str>>,
    /// Nobody was asked.
    pub cache_hit: bool,
    /// What was given instead of a failure.
    pub degraded: Option<&'static str>,
    pub method: Option<Method>,
    /// Without its query, which may hold secrets. Memory of its own, as all: a record waits, and the request's head
    /// was read into a buffer that is far larger.
    pub path: Option<Box<str>>,
    pub request_id: Option<Box<str>>,
    pub trace: TraceContext,
    /// When it ended.
    pub ended: SystemTime,
    /// Of the answer, where it was one of HTTP.
    pub code: Option<StatusCode>,
    /// When the attempt that was answered began, after the request did.
    pub attempt_began: Duration,
    /// Of the last attempt, as the following ones.
    pub endpoint: Option<SocketAddr>,
    /// Of the endpoint.
    pub zone: Option<Box<str>>,
    pub chosen_by: Option<ChosenBy>,
    /// What was spoken to it.
    pub upstream_protocol: Option<&'static str>,
    /// Why it was not made again; none: it did not fail.
    pub not_retried: Option<Skip>,
    /// The fault injection that hit it.
    pub injected: Option<Arc<str>>,
    /// Attempts made.
    pub attempts: u8,
    pub rare: Option<Box<Rare>>,
    pub phases: Phases,
    /// Milliseconds left at the end; below 0: so many too late.
    pub deadline_left_ms: Option<i64>,
    pub duration: Duration,
    /// Of the body of the response, to the caller.
    pub bytes: u64,
}

impl Record {
    /// Of what nothing is known but how it ended.
    pub fn new(
        direction: Direction,
        service: Arc<str>,
        protocol: Protocol,
        outcome: Outcome,
        status: Status,
    ) -> Self {
        Self {
            direction,
            service,
            route: Arc::from(""),
            peer: Arc::from("unknown"),
            protocol,
            outcome,
            status,
            cause: None,
            detail: None,
            cache_hit: false,
            degraded: None,
            method: None,
            path: None,
            request_id: None,
            trace: TraceContext::default(),
            ended: SystemTime::now(),
            code: None,
            attempt_began: Duration::ZERO,
            endpoint: None,
            zone: None,
            chosen_by: None,
            upstream_protocol: None,
            not_retried: None,
            injected: None,
            attempts: 0,
            rare: None,
            phases: Phases::default(),
            deadline_left_ms: None,
            duration: Duration::ZERO,
            bytes: 0,
        }
    }

    /// Attempts before the last one.
    pub fn earlier(&self) -> &[Attempted] {
        self.rare.as_ref().map_or(&[], |rare| &rare.earlier)
    }

    /// The span of the exchange as a whole; 0: it is in no trace.
    pub fn span(&self) -> u64 {
        match self.direction {
            Direction::Outbound if !self.earlier().is_empty() => self.trace.request_span(),
            Direction::Inbound | Direction::Outbound => self.trace.sent,
        }
    }

    /// Of a request that simply went through.
    #[cfg(test)]
    pub fn example() -> Self {
        let service = "bank/orders:80".into();
        Self::new(Direction::Inbound, service, Protocol::Http1, Outcome::Success, Status::Http(200))
    }
}

/// A request's place in its trace. All zero: it is in none.
#[derive(Clone, Copy, Debug, Default)]
pub struct TraceContext {
    pub id: u128,
    /// The span that the request came with; 0: its trace began with it.
    pub received: u64,
    /// The span that it is sent on with; 0: as it came.
    pub sent: u64,
    /// As they are sent on.
    pub flags: u8,
}

/// The flag of a trace that somebody records (Trace Context section 3.2.2.5.1).
pub const SAMPLED: u8 = 1;

impl TraceContext {
    pub fn is_sampled(&self) -> bool {
        self.flags & SAMPLED != 0
    }

    /// The span of an attempt, from 1 on.
    pub fn span_of(&self, attempt: u8) -> u64 {
        match attempt {
            0 | 1 => self.sent,
            n => self.derived(u64::from(n)),
        }
    }

    /// The span of the request itself, where it was made of several attempts.
    pub fn request_span(&self) -> u64 {
        self.derived(u64::MAX)
    }

    /// As good as random, and another one for each `n`.
    fn derived(&self, n: u64) -> u64 {
        let mixed = (self.sent ^ n).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed ^ mixed >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9) | 1
    }
}

/// How an exchange has ended, for sinks to decide whether they want to know more.
#[derive(Clone, Copy, Debug)]
pub struct Ending<'a> {
    pub direction: Direction,
    pub outcome: Outcome,
    pub duration: Duration,
    /// It has a place in a trace with a span of its own.
    pub traced: bool,
    pub method: Option<&'a Method>,
    pub path: Option<&'a PathAndQuery>,
    /// Of the answer, where it was one of HTTP.
    pub code: Option<StatusCode>,
    pub cause: Option<Cause>,
}

impl Ending<'_> {
    /// Of what nothing is known but how it ended.
    pub fn new(direction: Direction, outcome: Outcome, cause: Option<Cause>) -> Self {
        let (duration, traced) = (Duration::ZERO, false);
        Self { direction, outcome, duration, traced, method: None, path: None, code: None, cause }
    }
}

/// What nearly no exchange has: boxed, so that others pay one word for it.
#[derive(Clone, Debug, Default)]
pub struct Rare {
    /// Attempts besides the one that was answered, oldest first.
    pub earlier: Vec<Attempted>,
    /// Headers of the request as it came, that taps have asked for.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Where a request was passed through to, `host:port`, as the mesh has no service there.
    pub host: Option<Box<str>>,
}

/// An attempt whose answer the caller did not get.
#[derive(Clone, Debug)]
pub struct Attempted {
    pub endpoint: Option<SocketAddr>,
    /// The peer that the endpoint is.
    pub peer: Label,
    /// Of the endpoint.
    pub zone: Option<Box<str>>,
    pub chosen_by: Option<ChosenBy>,
    /// What was spoken to it.
    pub upstream_protocol: Option<&'static str>,
    /// Of its answer, if there was one.
    pub status: Option<StatusCode>,
    /// Why it failed; none: the app's own answer, or it was given up for another one.
    pub cause: Option<Cause>,
    /// Of the body of the request, that its connection has had.
    pub request_bytes: u64,
    /// When it began, after the request did.
    pub began: Duration,
    pub duration: Duration,
    pub end: AttemptEnd,
}

/// Why an attempt went to its endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChosenBy {
    /// The less loaded of two.
    Load,
    /// It was its turn.
    RoundRobin,
    /// By a property of the request.
    Hash,
    /// The client's session is there.
    Session,
    /// It was dialled itself.
    Address,
}

impl ChosenBy {
    /// The word in the access log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Load => "load",
            Self::RoundRobin => "round_robin",
            Self::Hash => "hash",
            Self::Session => "session",
            Self::Address => "address",
        }
    }
}

/// What followed an attempt that was not the last one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttemptEnd {
    /// It failed, and the request was sent again.
    Retried,
    /// Another attempt, made while it was waiting, answered first.
    Outrun,
    /// It failed, and a fallback was tried.
    FellBack,
}

impl AttemptEnd {
    /// The word in the access log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Retried => "retried",
            Self::Outrun => "outrun",
            Self::FellBack => "fell_back",
        }
    }
}

/// Microseconds that an exchange spent waiting, by what for. Zero: it did not wait, or for less than 1 us.
#[derive(Clone, Copy, Debug, Default)]
pub struct Phases {
    /// For a limit of the service or of the port.
    pub queue: u32,
    /// For configuration or an address.
    pub resolve: u32,
    /// For connections, TLS handshakes included.
    pub connect: u32,
    /// Of that, for the TLS handshake of a connection that was opened for it.
    pub tls: u32,
    /// From the beginning to the head of the response.
    pub first_byte: u32,
    /// The wait that is going on, and when it began since the beginning.
    pending: Option<(Wait, u32)>,
}

/// What an exchange waits for.
pub type Wait = fn(&mut Phases) -> &mut u32;

impl Phases {
    /// The exchange waits, `since_began` after its beginning. Called again during one wait, it changes nothing.
    pub fn wait(&mut self, wait: Wait, since_began: impl FnOnce() -> Duration) {
        if self.pending.is_none() {
            self.pending = Some((wait, micros(since_began())));
        }
    }

    /// Whether a wait is going on.
    pub fn is_waiting(&self) -> bool {
        self.pending.is_some()
    }

    /// The wait is over, if there is one: with what was waited for, or with the exchange.
    pub fn settle(&mut self, since_began: Duration) {
        if let Some((wait, since)) = self.pending.take() {
            let waited = micros(since_began).saturating_sub(since);
            let total = wait(self);
            *total = total.saturating_add(waited);
        }
    }
}

/// At most an hour and a bit, which is as good as for ever.
pub fn micros(duration: Duration) -> u32 {
    // Narrow arithmetic: this is done for every request.
    let seconds = u32::try_from(duration.as_secs()).ok().and_then(|s| s.checked_mul(1_000_000));
    seconds.and_then(|us| us.checked_add(duration.subsec_micros())).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_counts_from_its_first_poll_and_once() {
        let ms = Duration::from_millis;
        let mut phases = Phases::default();
        assert!(!phases.is_waiting());
        phases.wait(|phases| &mut phases.connect, || ms(2));
        phases.wait(|phases| &mut phases.resolve, || ms(5));
        assert!(phases.is_waiting());
        phases.settle(ms(9));
        phases.settle(ms(20));
        assert!(!phases.is_waiting());
        assert_eq!((phases.connect, phases.resolve), (7_000, 0));
    }
}
