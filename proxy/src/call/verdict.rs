//! What the head of an answer says about its attempt: whether it failed, in which way, and whether that is
//! the endpoint's fault. Decides nothing about what the caller gets.
//!
//! A proxy on the way names in `Proxy-Status` what its status stands for; the name counts, not the status.
//! Read next: [`crate::call::attempts`] for what follows from it.

use std::time::{Duration, SystemTime};

use http::header::{HeaderMap, HeaderName, RETRY_AFTER};
use http::{Response, StatusCode};
use outrigger_core::policy::retry::{self, Failure};
use outrigger_core::reason::{Reason, Side};

use crate::wire::headers::{GRPC_STATUS, explained};

/// gRPC's own way to say when to come back, in milliseconds (gRFC A6).
const PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");
const RESOURCE_EXHAUSTED: i32 = 8;
/// How long an endpoint gets no requests that does not say when it has room again.
const DEFAULT_FULL: Duration = Duration::from_secs(1);
/// The longest time for which one is taken to be full without being asked again.
const LONGEST_FULL: Duration = Duration::from_secs(60);

/// What an answer says about the endpoint that gave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Healthy,
    /// It is at fault.
    Failed,
    /// It has more to do than it can, and asks for fewer requests for so long.
    Full(Duration),
    /// Somebody else is at fault, such as the caller or a limit on the way.
    Neutral,
}

impl Verdict {
    /// Of the head of an answer. `hop`: another proxy of the mesh has sent it.
    pub fn of<B>(response: &Response<B>, grpc: bool, target: bool) -> Self {
        let (status, headers) = (response.status(), response.headers());
        let code = if grpc { grpc_code(headers) } else { None };
        let failed = status.is_server_error() || code.is_some_and(|code| code != 0);
        if !failed && status != StatusCode::TOO_MANY_REQUESTS {
            return Self::Healthy;
        }
        match explained(headers).filter(|_| target) {
            Some(Reason::Overloaded | Reason::RateLimited) => return Self::Full(asked(headers)),
            Some(Reason::DeadlineExceeded | Reason::InternalError) | None => {}
            Some(reason) => match reason.side() {
                Side::Upstream => return Self::Failed,
                Side::Us | Side::Downstream => return Self::Neutral,
            },
        }
        let full = match code {
            Some(code) => code == RESOURCE_EXHAUSTED,
            None => {
                status == StatusCode::TOO_MANY_REQUESTS
                    || (status == StatusCode::SERVICE_UNAVAILABLE
                        && headers.contains_key(RETRY_AFTER))
            }
        };
        match code {
            _ if full => Self::Full(asked(headers)),
            Some(code) if !is_server_fault(code) => Self::Healthy,
            Some(_) | None => Self::Failed,
        }
    }
}

/// The failure that another proxy names, where it is more than its status.
pub fn named(headers: &HeaderMap) -> Option<Failure> {
    match explained(headers)? {
        Reason::UpstreamResetAmbiguous
        | Reason::ResponseTruncated
        | Reason::UpstreamProtocolError => Some(Failure::Reset),
        Reason::AttemptTimeout | Reason::FirstByteTimeout => Some(Failure::Timeout),
        _ => None,
    }
}

pub fn grpc_code(headers: &HeaderMap) -> Option<i32> {
    headers.get(GRPC_STATUS)?.to_str().ok()?.parse().ok()
}

fn is_server_fault(code: i32) -> bool {
    outrigger_core::outcome::classify_grpc(code) == outrigger_core::outcome::Outcome::Failure
}

/// For how long an answer asks for no requests.
fn asked(headers: &HeaderMap) -> Duration {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let pushback = text(PUSHBACK).and_then(|value| value.trim().parse().ok());
    let after = pushback.map(Duration::from_millis).or_else(|| {
        text(RETRY_AFTER).and_then(|value| retry::retry_after(value, SystemTime::now()))
    });
    after.unwrap_or(DEFAULT_FULL).min(LONGEST_FULL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_judged_by_what_it_stands_for() {
        let full = |seconds| Verdict::Full(Duration::from_secs(seconds));
        let says = |word: &str| format!("outrigger; error=x; details=\"{word}: y\"");
        type Row<'a> = (u16, &'a [(&'a str, &'a str)], bool, Verdict);
        let table: [Row<'_>; 16] = [
            (200, &[], false, Verdict::Healthy),
            (404, &[], false, Verdict::Healthy),
            (500, &[], false, Verdict::Failed),
            (503, &[], false, Verdict::Failed),
            (503, &[("retry-after", "7")], false, full(7)),
            (503, &[("retry-after", "99999999999999999999")], false, full(60)),
            (429, &[], false, full(1)),
            (429, &[("retry-after", "3")], false, full(3)),
            (500, &[("retry-after", "3")], false, Verdict::Failed),
            (200, &[("grpc-status", "8")], false, full(1)),
            (200, &[("grpc-status", "8"), ("grpc-retry-pushback-ms", "2000")], false, full(2)),
            (200, &[("grpc-status", "5")], false, Verdict::Healthy),
            (200, &[("grpc-status", "14")], false, Verdict::Failed),
            (508, &[("proxy-status", &says("loop"))], true, Verdict::Neutral),
            (503, &[("proxy-status", &says("overloaded"))], true, full(1)),
            (502, &[("proxy-status", &says("upstream_reset_ambiguous"))], true, Verdict::Failed),
        ];
        for (status, headers, target, verdict) in table {
            let mut response = Response::builder().status(status);
            for (name, value) in headers {
                response = response.header(*name, *value);
            }
            let response = response.body(()).unwrap();
            let grpc = response.headers().contains_key("grpc-status");
            assert_eq!(Verdict::of(&response, grpc, target), verdict, "{response:?}");
        }
    }
}
