//! The closed list of reasons for everything that a proxy refuses, ends or sends again.
//!
//! The same word stands in `Proxy-Status`, the access log and the `reason` label; `docs/reasons.md`
//! says of each what happened and what to do, and `cargo xtask tidy` checks that it names all.

use http::StatusCode;

/// Who is at fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// The caller.
    Downstream,
    /// This proxy, its configuration or its limits.
    Us,
    /// The called service, or the way to it.
    Upstream,
}

/// Which proxy named a reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NamedBy {
    /// This one.
    Local,
    /// The called one, in its answer.
    Peer,
}

impl NamedBy {
    /// The word in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Peer => "peer",
        }
    }
}

/// A reason, and which proxy named it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cause {
    pub reason: Reason,
    pub named_by: NamedBy,
}

impl Cause {
    pub fn local(reason: Reason) -> Self {
        Self { reason, named_by: NamedBy::Local }
    }

    pub fn peer(reason: Reason) -> Self {
        Self { reason, named_by: NamedBy::Peer }
    }

    /// Nothing has failed in the end: the reason tells of an earlier attempt.
    pub fn is_overcome(&self) -> bool {
        self.reason.status() == StatusCode::OK
    }
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $word:literal, $side:ident, $status:literal, $error:literal, $hint:literal;)*) => {
        /// Why a request or connection did not simply go through.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Reason { $($(#[$doc])* $variant,)* }

        impl Reason {
            /// Every reason, in the order of the documentation.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The word that appears in headers, logs and metrics.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }

            /// The reason that a word stands for, as another proxy sends it.
            pub fn from_word(word: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|reason| reason.as_str() == word)
            }

            pub fn side(self) -> Side {
                match self { $(Self::$variant => Side::$side,)* }
            }

            /// Status of the response that the proxy makes for it.
            pub fn status(self) -> StatusCode {
                let code: u16 = match self { $(Self::$variant => $status,)* };
                StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
            }

            /// The error type of RFC 9209 section 2.3 for `Proxy-Status`.
            pub fn proxy_error(self) -> &'static str {
                match self { $(Self::$variant => $error,)* }
            }

            /// One sentence on what to do, for the body of the response.
            pub fn hint(self) -> &'static str {
                match self { $(Self::$variant => $hint,)* }
            }
        }
    };
}

reasons! {
    // What the caller sent.
    /// The request could not be understood or breaks HTTP.
    BadRequest = "bad_request", Downstream, 400, "http_request_error",
        "fix the request: its target or headers are not valid HTTP";
    /// The request's headers are larger or more than the limit.
    HeadersTooLarge = "headers_too_large", Downstream, 431, "http_request_error",
        "send smaller or fewer headers, or raise --max-header-bytes or --max-headers";
    /// The headers did not arrive within the header read time.
    HeaderTimeout = "header_timeout", Downstream, 408, "http_request_error",
        "send the headers faster, or raise --header-timeout";
    /// The caller went away before the response was complete.
    DownstreamReset = "downstream_reset", Downstream, 499, "http_request_error",
        "the caller closed its connection or cancelled; look at its own timeout";
    /// First bytes are no protocol that the destination accepts.
    ProtocolError = "protocol_error", Downstream, 400, "http_protocol_error",
        "the bytes sent are not the protocol that this port declares; check the port's appProtocol";

    // Where it wanted to go.
    /// The name lies inside the mesh and no service has it.
    NoSuchService = "no_such_service", Us, 502, "destination_not_found",
        "check the name, namespace and port; the control plane's /index lists every service";
    /// The destination is unknown and the mesh refuses what it does not know.
    DestinationRefused = "destination_refused", Us, 502, "destination_ip_prohibited",
        "declare the destination as a Service, or set unmatched to passthrough";
    /// Only an external name's DNS lookup failed.
    DnsError = "dns_error", Upstream, 502, "dns_error",
        "the external name does not resolve; check its spelling and DNS";
    /// The service has routes and none matches the request.
    NoRoute = "no_route", Us, 404, "http_request_denied",
        "no rule of the routes attached to this service matches; add a rule or a catch-all";
    /// The matched rule or the chosen share has no valid backend.
    NoBackend = "no_backend", Us, 500, "destination_unavailable",
        "the matched rule has no valid backendRef; see the route's status";
    /// The service exists and has no ready endpoint.
    NoEndpoint = "no_endpoint", Upstream, 503, "destination_unavailable",
        "no endpoint of the service is ready; check its workloads and the service's selector";
    /// A request to one pinned endpoint that does not exist (any more).
    EndpointGone = "endpoint_gone", Upstream, 503, "destination_unavailable",
        "the addressed endpoint is gone; dial the service instead of one endpoint";
    /// The inbound proxy was asked for a port that its workload has not registered.
    PortNotServed = "port_not_served", Downstream, 502, "destination_not_found",
        "the workload does not serve that port; its registration lists those it does";
    /// A connection or request that this listener is not for.
    NotForUs = "not_for_us", Downstream, 403, "http_request_denied",
        "the outbound port (4740) serves its own app only, the inbound port (4743) its own workload; dial the service";
    /// The configuration of the destination did not arrive in time.
    ConfigUnavailable = "config_unavailable", Us, 503, "proxy_configuration_error",
        "no configuration for this destination arrived in time; check the connection to the control plane";
    /// The control plane uses something that this proxy does not understand.
    ConfigUnsupported = "config_unsupported", Us, 503, "proxy_configuration_error",
        "upgrade this proxy: it does not know a feature that the configuration requires";

    // Who may call.
    /// Plaintext on a port that takes only callers with an identity.
    MtlsRequired = "mtls_required", Downstream, 403, "http_request_denied",
        "this port accepts only callers of the mesh; inject the caller, or set the port's mtls mode to Permissive";
    /// The TLS handshake of a caller failed; the detail names the cause.
    TlsHandshakeFailed = "tls_handshake_failed", Downstream, 403, "tls_protocol_error",
        "the TLS handshake with the caller failed, or its certificate is invalid; the detail names the cause";
    /// The access policy does not let this caller do this.
    AccessDenied = "access_denied", Downstream, 403, "http_request_denied",
        "an AccessPolicy of the called workload denies this; the detail names the policy and rule";
    /// A token is required and none was sent.
    TokenMissing = "token_missing", Downstream, 401, "http_request_denied",
        "send a token of an issuer that the AccessPolicy lists as `Authorization: Bearer`";
    /// A token was sent and is invalid; the detail names the cause.
    TokenInvalid = "token_invalid", Downstream, 401, "http_request_denied",
        "the token is invalid, expired or not for this service; the detail names the cause";
    /// This proxy has no certificate that is valid now.
    IdentityUnavailable = "identity_unavailable", Us, 503, "tls_certificate_error",
        "the proxy has no valid certificate; check its join token and its connection to the control plane";
    /// The TLS handshake with the upstream failed; the detail names the cause.
    UpstreamTlsFailed = "upstream_tls_failed", Upstream, 503, "tls_protocol_error",
        "the TLS handshake with the upstream failed, or its certificate is invalid; the detail names the cause";
    /// The upstream proved another identity than that of the endpoint that was dialled.
    UpstreamIdentityMismatch = "upstream_identity_mismatch", Upstream, 503, "tls_certificate_error",
        "the address now belongs to another workload, or there is a man in the middle";

    // On the way.
    /// No connection could be made: refused or unreachable.
    ConnectFailed = "connect_failed", Upstream, 503, "connection_refused",
        "the endpoint does not accept connections; is it running and listening?";
    /// No connection was made within the connect timeout.
    ConnectTimeout = "connect_timeout", Upstream, 504, "connection_timeout",
        "the endpoint did not answer in time; look at its load and the network";
    /// The upstream closed before anything of the request was processed.
    UpstreamReset = "upstream_reset", Upstream, 503, "connection_terminated",
        "the endpoint closed the connection before it processed the request; it is safe to retry";
    /// The upstream closed and may have processed the request.
    UpstreamResetAmbiguous = "upstream_reset_ambiguous", Upstream, 502, "connection_terminated",
        "the endpoint closed the connection after it received the request, which it may have processed";
    /// The response broke off after its head.
    ResponseTruncated = "response_truncated", Upstream, 502, "http_response_incomplete",
        "the endpoint closed the connection in the middle of its response";
    /// The upstream broke its protocol.
    UpstreamProtocolError = "upstream_protocol_error", Upstream, 502, "http_protocol_error",
        "the endpoint's answer is not valid; check the port's declared protocol";
    /// The upstream did not accept the upgrade or the tunnel.
    UpgradeRefused = "upgrade_refused", Upstream, 502, "http_upgrade_failed",
        "the endpoint did not accept the protocol upgrade";
    /// A request came back to the service that it had been at, or to the proxy that sent it.
    Loop = "loop", Us, 508, "proxy_loop_detected",
        "services call each other in a loop; the detail lists the services on the path";

    /// A fault injection that somebody asked for.
    FaultInjected = "fault_injected", Upstream, 503, "destination_unavailable",
        "a FaultInjection injected this fault; the detail names it; delete it to stop";

    // Time.
    /// The deadline passed before the head of the response.
    DeadlineExceeded = "deadline_exceeded", Upstream, 504, "http_response_timeout",
        "the request's deadline passed; the detail says who started it and what it was waiting for";
    /// The deadline passed in the middle of the response.
    DeadlineExceededAfterHead = "deadline_exceeded_after_head", Upstream, 504, "http_response_timeout",
        "the response did not end before the deadline; give streams no deadline, or a longer one";
    /// One attempt took longer than the policy lets it.
    AttemptTimeout = "attempt_timeout", Upstream, 504, "http_response_timeout",
        "the endpoint did not answer within timeouts.attempt; raise it or make the endpoint faster";
    /// No head of a response came within the policy's time.
    FirstByteTimeout = "first_byte_timeout", Upstream, 504, "http_response_timeout",
        "the endpoint did not begin to answer within timeouts.firstByte";
    /// Nothing of the response came for longer than the policy or the proxy lets it.
    IdleTimeout = "idle_timeout", Upstream, 504, "http_response_incomplete",
        "the response fell silent for longer than timeouts.idle or --stream-idle-timeout";
    /// The caller took none of the response for too long.
    WriteTimeout = "write_timeout", Downstream, 408, "connection_write_timeout",
        "the caller stopped reading its response; look at the caller, or raise --write-timeout";
    /// The caller sent nothing more of its request for too long.
    RequestBodyTimeout = "request_body_timeout", Downstream, 408, "connection_read_timeout",
        "the caller stopped sending its request; look at the caller, or raise --stream-idle-timeout";
    /// It came through more services than any request should.
    HopLimit = "hop_limit", Us, 508, "proxy_loop_detected",
        "services call each other in an endless loop; the detail lists the services on the path";

    // Limits.
    /// More connections than the limit.
    ConnectionLimit = "connection_limit", Us, 503, "proxy_internal_response",
        "raise --max-connections (outbound) or --max-inbound-connections (inbound), or reuse connections";
    /// Too many calls to the service failed lately: the breaker answers at once.
    BreakerOpen = "breaker_open", Us, 503, "proxy_internal_response",
        "calls of the service fail too often; look at the service, and at /policies of this proxy for the next probe";
    /// As many requests to the service or to each of its endpoints are in flight as may be.
    TooManyInFlight = "too_many_in_flight", Us, 503, "proxy_internal_response",
        "the service is slow, or limits.maxInFlight or maxInFlightPerEndpoint is too low";
    /// As many destinations as a proxy holds are in use.
    TooManyNames = "too_many_names", Us, 503, "proxy_internal_response",
        "the app calls more destinations at a time than a proxy holds; call fewer, or run more replicas of the app";
    /// A rate limit of the called port is exceeded.
    RateLimited = "rate_limited", Downstream, 429, "http_request_denied",
        "wait as long as Retry-After says, or raise the limit that the detail names in its ServerPolicy";
    /// The called port works on as many requests as it may, and its queue is no way out.
    Overloaded = "overloaded", Us, 503, "destination_unavailable",
        "the endpoint is over its ServerPolicy limit; add endpoints or raise the limit";
    /// The proxy is shutting down.
    Draining = "draining", Us, 503, "proxy_internal_response",
        "the proxy is shutting down; a new connection reaches another endpoint";
    /// A fault of the proxy's own.
    InternalError = "internal_error", Us, 500, "proxy_internal_error",
        "an internal error of the proxy; please report it with the log lines around it";

    // What went well in the end.
    /// Sent again because the first attempt was provably not processed.
    RetriedUnprocessed = "retried_unprocessed", Upstream, 200, "connection_terminated",
        "the first attempt did not reach the endpoint; it was sent again";
    /// Sent again because a policy asks for it.
    Retried = "retried", Upstream, 200, "http_request_error",
        "an earlier attempt failed and the policy's retries allowed another";
}

impl Reason {
    /// The kind and field of the policy that decides so; none where no policy does, or not alone: routes have timeouts
    /// and retries too, and the mesh an access rule of its own.
    pub fn policy(self) -> Option<&'static str> {
        Some(match self {
            Self::TokenMissing | Self::TokenInvalid => "AccessPolicy spec.jwt",
            Self::FirstByteTimeout => "TrafficPolicy spec.timeouts.firstByte",
            Self::BreakerOpen => "TrafficPolicy spec.breaker",
            Self::TooManyInFlight => "TrafficPolicy spec.limits",
            Self::RateLimited => "ServerPolicy spec.rateLimits",
            Self::Overloaded => "ServerPolicy spec.concurrency",
            Self::FaultInjected => "FaultInjection spec.fault",
            _ => return None,
        })
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::section::{self, Scope};

    #[test]
    fn words_are_distinct_and_statuses_valid() {
        let mut words: Vec<_> = Reason::ALL.iter().map(|r| r.as_str()).collect();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), Reason::ALL.len());
        for reason in Reason::ALL {
            assert!(reason.as_str().bytes().all(|b| b.is_ascii_lowercase() || b == b'_'));
            assert!(!reason.hint().ends_with('.'));
        }
    }

    #[test]
    fn a_policy_that_decides_has_the_section() {
        for decided in Reason::ALL.iter().filter_map(|reason| reason.policy()) {
            let (kind, field) = decided.split_once(" spec.").unwrap_or_default();
            let name = field.split('.').next();
            let section = section::ALL.iter().find(|section| name == Some(section.name));
            match kind {
                "TrafficPolicy" => assert!(section.is_some_and(|s| s.scope != Scope::Port)),
                "ServerPolicy" => assert!(section.is_some_and(|s| s.scope == Scope::Port)),
                _ => assert_eq!(section, None, "{decided}"),
            }
        }
    }
}
