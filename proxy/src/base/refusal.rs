//! Why something is not served, and how that is said.

use std::borrow::Cow;
use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderValue};
use outrigger_core::outcome::grpc_code_for;
use outrigger_core::policy::fault::Answer;
use outrigger_core::reason::{Cause, NamedBy, Reason};

/// Why a request is not served. It knows its side and status through its reason.
#[derive(Debug)]
pub struct Refusal {
    pub reason: Reason,
    /// Which proxy says so.
    pub named_by: NamedBy,
    pub detail: Cow<'static, str>,
    /// When it makes sense to ask again.
    pub retry_after: Option<Duration>,
    /// A fault injection did it, and how it is answered.
    pub injected: Option<Box<Injected>>,
    /// Somebody may have acted on the request.
    pub processed: bool,
}

impl Refusal {
    pub fn new(reason: Reason, detail: impl Into<Cow<'static, str>>) -> Self {
        Self {
            reason,
            named_by: NamedBy::Local,
            detail: detail.into(),
            retry_after: None,
            injected: None,
            processed: false,
        }
    }

    pub fn cause(&self) -> Cause {
        Cause { reason: self.reason, named_by: self.named_by }
    }
}

/// A fault injection that stands in for an answer.
#[derive(Debug)]
pub struct Injected {
    /// `namespace/name`.
    pub name: Arc<str>,
    pub answer: Answer,
}

/// A whole answer on HTTP/1.1 to what could not be read as a request. The connection ends with it.
pub fn bare(reason: Reason, detail: &str) -> Vec<u8> {
    let body = format!("outrigger: {reason}: {detail}\n{}\n", reason.hint());
    let status = reason.status();
    let mut out = format!(
        "HTTP/1.1 {} {}\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: {}\r\ndate: {}\r\nconnection: close\r\n",
        status.as_str(),
        status.canonical_reason().unwrap_or_default(),
        body.len(),
        httpdate::fmt_http_date(SystemTime::now()),
    )
    .into_bytes();
    if let Some(value) = proxy_status(reason, detail) {
        out.extend_from_slice(b"proxy-status: ");
        out.extend_from_slice(value.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(body.as_bytes());
    out
}

/// Reasons for which nothing of the request reached the app, so that the caller's proxy may try
/// another endpoint whatever the method.
pub fn is_unprocessed(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::ConnectFailed
            | Reason::ConnectTimeout
            | Reason::UpstreamReset
            | Reason::PortNotServed
            | Reason::ConfigUnavailable
            | Reason::ConnectionLimit
            | Reason::Draining
            | Reason::Overloaded
    )
}

/// `outrigger; error=connection_refused; details="connect_failed: ..."`
pub(crate) fn proxy_status(reason: Reason, detail: &str) -> Option<HeaderValue> {
    let mut text = format!("outrigger; error={}; details=\"{reason}", reason.proxy_error());
    if !detail.is_empty() {
        text.push_str(": ");
    }
    for c in detail.chars() {
        match c {
            '"' | '\\' => {
                text.push('\\');
                text.push(c);
            }
            ' '..='~' => text.push(c),
            // A structured field string holds printable ASCII only (RFC 8941 section 3.3.3).
            _ => text.push('?'),
        }
    }
    text.push('"');
    HeaderValue::from_str(&text).ok()
}

/// Percent-encoded as gRPC wants its message.
pub(crate) fn grpc_message(reason: Reason, detail: &str) -> String {
    let mut out = String::new();
    for byte in format!("{reason}: {detail}; {}", reason.hint()).bytes() {
        if (0x20..=0x7e).contains(&byte) && byte != b'%' {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

/// The end of a gRPC response that has begun and cannot be finished.
pub fn late_trailers(reason: Reason, detail: &dyn std::fmt::Display) -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(2);
    trailers.insert("grpc-status", HeaderValue::from(grpc_code_for(reason)));
    if let Ok(message) = HeaderValue::try_from(grpc_message(reason, &detail.to_string())) {
        trailers.insert("grpc-message", message);
    }
    trailers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxy_status_is_a_valid_structured_field_whatever_the_detail_holds() {
        let value = proxy_status(Reason::NoSuchService, "no \"x\\y\"\r\nü").unwrap();
        assert_eq!(
            value,
            r#"outrigger; error=destination_not_found; details="no_such_service: no \"x\\y\"???""#
        );
    }

    #[test]
    fn grpc_messages_are_percent_encoded() {
        assert!(grpc_message(Reason::NoRoute, "100%\n").starts_with("no_route: 100%25%0A; "));
    }
}
