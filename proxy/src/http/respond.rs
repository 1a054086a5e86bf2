//! What goes back to the caller: the upstream's answer, or one of our own that explains itself.

use std::borrow::Cow;
use std::fmt::Write;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{HeaderMap, Response, StatusCode, Version};
use outrigger_core::outcome::grpc_code_for;
use outrigger_core::policy::rate_limit::seconds_up;
use outrigger_core::reason::{Cause, NamedBy, Reason, Side};

use super::exchange::Exchange;
use super::fault::Injected;
use super::headers::{PROXY_STATUS, REASON, REQUEST_ID, UNPROCESSED};
use super::response_body::ResponseBody;
use crate::metrics::Direction;
use crate::peer::Peer;
use crate::pool::connect::ConnectError;
use crate::streams::WireBody;

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

impl From<ConnectError> for Refusal {
    fn from(error: ConnectError) -> Self {
        Self::new(error.reason, error.detail.to_string())
    }
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

/// Passes the upstream's answer on.
pub fn upstream(
    mut response: Response<WireBody>,
    mut exchange: Box<Exchange>,
    version: Version,
) -> Response<ResponseBody> {
    exchange.head(response.status(), response.headers());
    exchange.answered();
    if let Some(limited) = &mut exchange.limited {
        limited.answered(response.status(), response.headers_mut());
    }
    // hyper writes the version of the connection; a 1.0 answer must not close a 1.1 caller.
    *response.version_mut() = version;
    response.map(|body| ResponseBody::upstream(body, exchange))
}

/// An answer of our own in place of the upstream's.
pub fn instead(response: Response<Bytes>, mut exchange: Box<Exchange>) -> Response<ResponseBody> {
    exchange.status = Some(response.status());
    exchange.sent(response.body().len());
    response.map(|body| ResponseBody::own(body, exchange))
}

/// An answer without a body that the routes themselves give, such as a redirect.
pub fn routes(
    status: StatusCode,
    headers: HeaderMap,
    exchange: Box<Exchange>,
) -> Response<ResponseBody> {
    let mut exchange = exchange;
    exchange.status = Some(status);
    let mut response = Response::new(ResponseBody::own(Bytes::new(), exchange));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

/// The last word of HTTP before a connection or stream carries something else.
pub fn switched(head: Response<()>, mut exchange: Box<Exchange>) -> Response<ResponseBody> {
    exchange.status = Some(head.status());
    head.map(|()| ResponseBody::own(Bytes::new(), exchange))
}

/// Our own answer to what can't be served: `Proxy-Status` (RFC 9209) and a body for people.
pub fn refuse(refusal: Refusal, mut exchange: Box<Exchange>) -> Response<ResponseBody> {
    exchange.cause = Some(refusal.cause());
    let Refusal { reason, detail, mut retry_after, injected, .. } = refusal;
    let (mut own, mut code) = (reason.status(), grpc_code_for(reason));
    match injected {
        Some(injected) => {
            exchange.stand_in(&injected.answer);
            (own, code) = (injected.answer.status, injected.answer.grpc);
        }
        None => exchange.end_attempt(reason.side() == Side::Upstream),
    }
    let proxy_status = proxy_status(reason, &detail);
    let to_mesh = exchange.connection.direction == Direction::Inbound
        && exchange.connection.peer.get() == Peer::Mesh;
    let request_id = exchange.request_id.clone();
    let grpc = exchange.is_grpc();
    let status = if grpc { StatusCode::OK } else { own };
    exchange.status = Some(own);

    let mut builder = Response::builder().status(status);
    if grpc {
        // A "trailers-only" answer (gRPC over HTTP/2): the status is in the head.
        builder = builder
            .header(header::CONTENT_TYPE, "application/grpc")
            .header("grpc-status", code)
            .header("grpc-message", grpc_message(reason, &detail));
    } else {
        builder = builder.header(header::CONTENT_TYPE, "text/plain; charset=utf-8");
    }
    if to_mesh {
        builder = builder.header(REASON, reason.as_str());
    }
    if to_mesh && is_unprocessed(reason) {
        builder = builder.header(UNPROCESSED, reason.as_str());
    }
    let body = if grpc {
        Bytes::new()
    } else {
        format!("outrigger: {reason}: {detail}\n{}\n", reason.hint()).into()
    };
    exchange.detail = Some(detail.into());
    let mut limited = exchange.limited.take();
    let mut response = Response::new(ResponseBody::own(body, exchange));
    // Every part is ours and valid, so the builder cannot fail; an error would lose only headers.
    if let Ok(head) = builder.body(()) {
        *response.status_mut() = head.status();
        *response.headers_mut() = head.into_parts().0.headers;
    }
    if let Some(value) = proxy_status {
        response.headers_mut().insert(PROXY_STATUS, value);
    }
    if let Some(id) = request_id {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    if let Some(limited) = &mut limited {
        limited.refused(reason, response.headers_mut());
    }
    if reason == Reason::Draining {
        retry_after = Some(Duration::from_secs(1));
    }
    if let Some(after) = retry_after {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds_up(after)));
    }
    response
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
fn proxy_status(reason: Reason, detail: &str) -> Option<HeaderValue> {
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
fn grpc_message(reason: Reason, detail: &str) -> String {
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
