//! What a caller gets instead of a failure: an answer that was kept, another service's, a reduced one, or
//! a fixed one.
//!
//! A failure has a [`Class`]; the first [`Fallback`] that is for its class and that can be given, is.
//! What the caller or this proxy refuses on purpose (a bad request, a loop, access denied) has no class
//! and is never replaced. A request goes elsewhere only if that can do no harm: [`may_send`].

use http::uri::PathAndQuery;
use http::{HeaderValue, StatusCode};

use super::retry::{Failure, Replay};
use crate::config::BackendTarget;
use crate::outcome::{Outcome, classify_grpc};
use crate::reason::Reason;

/// One answer to give instead of a failure.
#[derive(Clone, Debug, PartialEq)]
pub struct Fallback {
    pub when: Classes,
    pub give: Give,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Give {
    /// The answer that was kept, stale or not.
    Cached,
    /// The response of another service to the same request.
    Backend(BackendTarget),
    /// The response of the same service to another path; for GET and HEAD. The query is kept unless the path
    /// has its own.
    Route(PathAndQuery),
    /// Not for gRPC calls.
    Static(Static),
}

/// An answer that is always the same.
#[derive(Clone, Debug, PartialEq)]
pub struct Static {
    /// 200 to 599.
    pub status: StatusCode,
    pub content_type: Option<HeaderValue>,
    /// At most 8 KiB.
    pub body: String,
}

/// What kind of failure a caller would see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// Nobody answered: no instance, no connection, a reset, an open breaker.
    Unavailable,
    /// The timeout of an attempt or the deadline passed.
    Timeout,
    /// Refused because of overload.
    Overloaded,
    /// The server responded with an error of its own.
    ServerError,
}

impl Class {
    pub const ALL: [Self; 4] =
        [Self::Unavailable, Self::Timeout, Self::Overloaded, Self::ServerError];
}

/// A set of classes; the default holds all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Classes(u8);

impl Default for Classes {
    fn default() -> Self {
        Self::of(&Class::ALL)
    }
}

impl Classes {
    pub fn of(classes: &[Class]) -> Self {
        Self(classes.iter().fold(0, |set, class| set | 1 << *class as u8))
    }

    pub fn has(self, class: Class) -> bool {
        self.0 & (1 << class as u8) != 0
    }

    pub fn iter(self) -> impl Iterator<Item = Class> {
        Class::ALL.into_iter().filter(move |class| self.has(*class))
    }
}

/// How an answer is less than what was asked for: a word in headers, logs and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Degraded {
    Cached,
    Backend,
    Route,
    Static,
}

impl Degraded {
    pub const ALL: [Self; 4] = [Self::Cached, Self::Backend, Self::Route, Self::Static];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cached => "cached",
            Self::Backend => "backend",
            Self::Route => "route",
            Self::Static => "static",
        }
    }
}

impl Give {
    pub fn kind(&self) -> Degraded {
        match self {
            Self::Cached => Degraded::Cached,
            Self::Backend(_) => Degraded::Backend,
            Self::Route(_) => Degraded::Route,
            Self::Static(_) => Degraded::Static,
        }
    }

    /// Whether giving it means to send the request once more.
    pub fn sends(&self) -> bool {
        match self {
            Self::Backend(_) | Self::Route(_) => true,
            Self::Cached | Self::Static(_) => false,
        }
    }
}

/// Whether a failed request may be sent to somebody else. `processed`: somebody may have acted on it.
pub fn may_send(processed: bool, replay: Replay, non_idempotent: bool) -> bool {
    replay.kept && (!processed || replay.idempotent || non_idempotent)
}

impl Class {
    /// Of a failure that a proxy explains. None: it is not replaced.
    pub fn of_reason(reason: Reason) -> Option<Self> {
        match reason {
            Reason::NoEndpoint
            | Reason::EndpointGone
            | Reason::DnsError
            | Reason::PortNotServed
            | Reason::ConfigUnavailable
            | Reason::IdentityUnavailable
            | Reason::UpstreamTlsFailed
            | Reason::UpstreamIdentityMismatch
            | Reason::ConnectFailed
            | Reason::ConnectTimeout
            | Reason::UpstreamReset
            | Reason::UpstreamResetAmbiguous
            | Reason::UpstreamProtocolError
            | Reason::ResponseTruncated
            | Reason::BreakerOpen
            | Reason::Draining => Some(Self::Unavailable),
            Reason::DeadlineExceeded
            | Reason::DeadlineExceededAfterHead
            | Reason::AttemptTimeout
            | Reason::FirstByteTimeout
            | Reason::IdleTimeout => Some(Self::Timeout),
            Reason::RateLimited
            | Reason::Overloaded
            | Reason::TooManyInFlight
            | Reason::TooManyNames
            | Reason::ConnectionLimit => Some(Self::Overloaded),
            // What it is like is known where it is injected: [`Class::of_failure`].
            Reason::FaultInjected => Some(Self::ServerError),
            Reason::BadRequest
            | Reason::HeadersTooLarge
            | Reason::HeaderTimeout
            | Reason::WriteTimeout
            | Reason::RequestBodyTimeout
            | Reason::DownstreamReset
            | Reason::ProtocolError
            | Reason::NoSuchService
            | Reason::DestinationRefused
            | Reason::NoRoute
            | Reason::NoBackend
            | Reason::NotForUs
            | Reason::ConfigUnsupported
            | Reason::MtlsRequired
            | Reason::TlsHandshakeFailed
            | Reason::AccessDenied
            | Reason::TokenMissing
            | Reason::TokenInvalid
            | Reason::UpgradeRefused
            | Reason::Loop
            | Reason::HopLimit
            | Reason::InternalError
            | Reason::RetriedUnprocessed
            | Reason::Retried => None,
        }
    }

    /// Of an attempt that a fault injection ended.
    pub fn of_failure(failure: Failure) -> Option<Self> {
        match failure {
            Failure::Unprocessed | Failure::Reset => Some(Self::Unavailable),
            Failure::Timeout => Some(Self::Timeout),
            Failure::Status(status) => Self::of_status(status),
            Failure::Grpc(code) => Self::of_grpc(code),
        }
    }

    /// Of an answer that no proxy explains. None: it is not a failure, or one that is meant (508).
    pub fn of_status(status: StatusCode) -> Option<Self> {
        match status {
            StatusCode::TOO_MANY_REQUESTS => Some(Self::Overloaded),
            StatusCode::GATEWAY_TIMEOUT => Some(Self::Timeout),
            StatusCode::LOOP_DETECTED => None,
            status if status.is_server_error() => Some(Self::ServerError),
            _ => None,
        }
    }

    /// The same for a gRPC status.
    pub fn of_grpc(code: i32) -> Option<Self> {
        match code {
            4 => Some(Self::Timeout),
            8 => Some(Self::Overloaded),
            code => (classify_grpc(code) == Outcome::Failure).then_some(Self::ServerError),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failure_has_the_class_that_its_caller_would_give_it() {
        for (status, class) in [
            (200, None),
            (404, None),
            (429, Some(Class::Overloaded)),
            (500, Some(Class::ServerError)),
            (503, Some(Class::ServerError)),
            (504, Some(Class::Timeout)),
            (508, None),
        ] {
            assert_eq!(Class::of_status(StatusCode::from_u16(status).unwrap()), class, "{status}");
        }
        for (code, class) in [
            (0, None),
            (1, None),
            (4, Some(Class::Timeout)),
            (5, None),
            (8, Some(Class::Overloaded)),
            (13, Some(Class::ServerError)),
            (14, Some(Class::ServerError)),
        ] {
            assert_eq!(Class::of_grpc(code), class, "{code}");
        }
    }

    #[test]
    fn refusals_of_the_callers_making_are_not_replaced() {
        use crate::reason::Side;
        // The caller may be early or at the wrong port, and still be served by somebody else.
        let elsewhere = [Reason::RateLimited, Reason::PortNotServed];
        for reason in Reason::ALL.iter().filter(|reason| !elsewhere.contains(reason)) {
            let replaced = Class::of_reason(*reason).is_some();
            assert!(!(replaced && reason.side() == Side::Downstream), "{reason}");
            assert!(!(replaced && reason.status() == StatusCode::OK), "{reason}");
        }
    }

    #[test]
    fn what_may_have_been_processed_goes_elsewhere_only_where_twice_does_no_harm() {
        for (processed, idempotent, kept, non_idempotent, may) in [
            (false, false, true, false, true),
            (false, false, false, false, false),
            (true, false, true, false, false),
            (true, true, true, false, true),
            (true, false, true, true, true),
            (true, true, false, true, false),
        ] {
            let replay = Replay { idempotent, kept };
            assert_eq!(may_send(processed, replay, non_idempotent), may);
        }
    }

    #[test]
    fn a_set_of_classes_holds_what_it_was_made_of() {
        let set = Classes::of(&[Class::Timeout, Class::ServerError]);
        assert_eq!(set.iter().collect::<Vec<_>>(), [Class::Timeout, Class::ServerError]);
        assert_eq!(Classes::default().iter().count(), Class::ALL.len());
    }
}
