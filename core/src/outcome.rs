//! How a response counts: the `outcome` label, and later what breakers and balancing learn from.

use http::StatusCode;

use crate::reason::{Reason, Side};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The server did its work, be the answer yes or no.
    Success,
    /// The server's fault, or that of the way to it.
    Failure,
    /// A proxy did not let it through.
    Refused,
    /// The caller did not wait for the answer.
    Canceled,
}

impl Outcome {
    pub const ALL: [Self; 4] = [Self::Success, Self::Failure, Self::Refused, Self::Canceled];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failure => "failure",
            Self::Refused => "refused",
            Self::Canceled => "canceled",
        }
    }
}

/// What a request that ended for this reason counts as, when its caller waited for the end.
pub fn classify_reason(reason: Reason) -> Outcome {
    match reason.side() {
        Side::Upstream => Outcome::Failure,
        Side::Downstream | Side::Us => Outcome::Refused,
    }
}

/// A 5xx is the server's fault; a 4xx is an answer.
pub fn classify_http(status: StatusCode) -> Outcome {
    if status.is_server_error() { Outcome::Failure } else { Outcome::Success }
}

/// The codes that OpenTelemetry's conventions call a server's error are failures, and so are codes
/// that gRPC does not define. `RESOURCE_EXHAUSTED` is an answer, as 429 is.
pub fn classify_grpc(code: i32) -> Outcome {
    match code {
        OK | INVALID_ARGUMENT | NOT_FOUND | ALREADY_EXISTS | PERMISSION_DENIED
        | RESOURCE_EXHAUSTED | FAILED_PRECONDITION | ABORTED | OUT_OF_RANGE | UNAUTHENTICATED => {
            Outcome::Success
        }
        CANCELLED => Outcome::Canceled,
        _ => Outcome::Failure,
    }
}

/// The name of a gRPC code; `UNDEFINED` for a number that gRPC does not define.
pub fn grpc_code_name(code: i32) -> &'static str {
    match code {
        OK => "OK",
        CANCELLED => "CANCELLED",
        UNKNOWN => "UNKNOWN",
        INVALID_ARGUMENT => "INVALID_ARGUMENT",
        DEADLINE_EXCEEDED => "DEADLINE_EXCEEDED",
        NOT_FOUND => "NOT_FOUND",
        ALREADY_EXISTS => "ALREADY_EXISTS",
        PERMISSION_DENIED => "PERMISSION_DENIED",
        RESOURCE_EXHAUSTED => "RESOURCE_EXHAUSTED",
        FAILED_PRECONDITION => "FAILED_PRECONDITION",
        ABORTED => "ABORTED",
        OUT_OF_RANGE => "OUT_OF_RANGE",
        UNIMPLEMENTED => "UNIMPLEMENTED",
        INTERNAL => "INTERNAL",
        UNAVAILABLE => "UNAVAILABLE",
        DATA_LOSS => "DATA_LOSS",
        UNAUTHENTICATED => "UNAUTHENTICATED",
        _ => "UNDEFINED",
    }
}

/// The gRPC code of a response that the proxy makes itself.
///
/// Many gRPC clients repeat `UNAVAILABLE` on their own, so it stands only where the request was
/// certainly not processed.
pub fn grpc_code_for(reason: Reason) -> i32 {
    match reason {
        Reason::RetriedUnprocessed | Reason::Retried => OK,
        Reason::DownstreamReset => CANCELLED,
        Reason::UpstreamResetAmbiguous | Reason::ResponseTruncated => UNKNOWN,
        Reason::HeaderTimeout
        | Reason::DeadlineExceeded
        | Reason::DeadlineExceededAfterHead
        | Reason::AttemptTimeout
        | Reason::FirstByteTimeout
        | Reason::IdleTimeout
        | Reason::WriteTimeout
        | Reason::RequestBodyTimeout => DEADLINE_EXCEEDED,
        Reason::NotForUs
        | Reason::MtlsRequired
        | Reason::TlsHandshakeFailed
        | Reason::AccessDenied => PERMISSION_DENIED,
        Reason::TokenMissing | Reason::TokenInvalid => UNAUTHENTICATED,
        Reason::HeadersTooLarge | Reason::ConnectionLimit | Reason::RateLimited => {
            RESOURCE_EXHAUSTED
        }
        // Also what gRPC makes of a 404.
        Reason::NoRoute => UNIMPLEMENTED,
        Reason::BadRequest
        | Reason::ProtocolError
        | Reason::UpstreamProtocolError
        | Reason::UpgradeRefused
        | Reason::Loop
        | Reason::HopLimit
        | Reason::InternalError => INTERNAL,
        Reason::NoSuchService
        | Reason::DestinationRefused
        | Reason::DnsError
        // Gateway API asks for it where no backend is valid.
        | Reason::NoBackend
        | Reason::NoEndpoint
        | Reason::EndpointGone
        | Reason::PortNotServed
        | Reason::ConfigUnavailable
        | Reason::ConfigUnsupported
        | Reason::IdentityUnavailable
        | Reason::UpstreamTlsFailed
        | Reason::UpstreamIdentityMismatch
        | Reason::ConnectFailed
        | Reason::ConnectTimeout
        | Reason::UpstreamReset
        | Reason::FaultInjected
        | Reason::BreakerOpen
        | Reason::TooManyInFlight
        | Reason::TooManyNames
        | Reason::Overloaded
        | Reason::Draining => UNAVAILABLE,
    }
}

// https://grpc.io/docs/guides/status-codes/
const OK: i32 = 0;
const CANCELLED: i32 = 1;
const UNKNOWN: i32 = 2;
const INVALID_ARGUMENT: i32 = 3;
const DEADLINE_EXCEEDED: i32 = 4;
const NOT_FOUND: i32 = 5;
const ALREADY_EXISTS: i32 = 6;
const PERMISSION_DENIED: i32 = 7;
const RESOURCE_EXHAUSTED: i32 = 8;
const FAILED_PRECONDITION: i32 = 9;
const ABORTED: i32 = 10;
const OUT_OF_RANGE: i32 = 11;
const UNIMPLEMENTED: i32 = 12;
const INTERNAL: i32 = 13;
const UNAVAILABLE: i32 = 14;
const DATA_LOSS: i32 = 15;
const UNAUTHENTICATED: i32 = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_servers_own_faults_are_failures() {
        assert_eq!(classify_http(StatusCode::NOT_FOUND), Outcome::Success);
        assert_eq!(classify_http(StatusCode::TOO_MANY_REQUESTS), Outcome::Success);
        assert_eq!(classify_http(StatusCode::BAD_GATEWAY), Outcome::Failure);
        let failures: Vec<_> = (0..=17)
            .filter(|code| classify_grpc(*code) == Outcome::Failure)
            .map(grpc_code_name)
            .collect();
        assert_eq!(
            failures,
            [
                "UNKNOWN",
                "DEADLINE_EXCEEDED",
                "UNIMPLEMENTED",
                "INTERNAL",
                "UNAVAILABLE",
                "DATA_LOSS",
                "UNDEFINED"
            ]
        );
        assert_eq!(classify_grpc(CANCELLED), Outcome::Canceled);
    }

    #[test]
    fn what_may_have_been_processed_is_not_unavailable() {
        for reason in [Reason::UpstreamResetAmbiguous, Reason::ResponseTruncated] {
            assert_ne!(grpc_code_for(reason), UNAVAILABLE, "{reason}");
        }
        for reason in Reason::ALL {
            assert_eq!(grpc_code_for(*reason) == OK, reason.status() == StatusCode::OK, "{reason}");
        }
    }
}
