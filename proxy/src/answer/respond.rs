//! What goes back to the caller: the upstream's answer, or one of our own that explains itself.

use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{HeaderMap, Response, StatusCode, Version};
use outrigger_core::outcome::grpc_code_for;
use outrigger_core::policy::rate_limit::seconds_up;
use outrigger_core::reason::{Reason, Side};

use crate::answer::body::ResponseBody;
use crate::base::peer::Peer;
use crate::base::refusal::{Refusal, grpc_message, is_unprocessed, proxy_status};
use crate::listener::role::ListenerRole;
use crate::request::exchange::Exchange;
use crate::wire::headers::{PROXY_STATUS, REASON, REQUEST_ID, UNPROCESSED};
use crate::wire::streams::WireBody;

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
    let to_mesh = exchange.connection.listener.role == ListenerRole::Mesh
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
