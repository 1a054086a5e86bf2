//! One active check of one endpoint, on the way that a request to it would take: through its proxy, where
//! it has one, to the app.
//!
//! It is no request of the app's: no breaker, budget, limit or latency hears of it, and no fault is injected.

use std::rc::Rc;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{self, HeaderValue};
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, Method, Response, StatusCode};
use http_body_util::BodyExt;
use outrigger_core::config::Protocol;
use outrigger_core::name::DestinationName;
use outrigger_core::policy::health::{CheckResult, HealthProbe};
use outrigger_core::reason::Reason;
use prost::Message;
use tokio::sync::mpsc;

use crate::base::refusal::Refusal;
use crate::call::failed::{FailedAttempt, failure};
use crate::proxy::worker::Worker;
use crate::request::exchange::Lease;
use crate::request::head::Head;
use crate::tunnel::stream::dial;
use crate::upstream::endpoint::guard::Check;
use crate::upstream::target::AttemptTarget;
use crate::wire::Wire;
use crate::wire::body::{Piece, RequestBody};
use crate::wire::error::BodyError;
use crate::wire::headers::{GRPC_STATUS, explained};
use crate::wire::streams::WireBody;

/// Bytes of an answer that are read: what follows is not waited for.
const MAX_BODY: usize = 16 * 1024;
const CHECK_METHOD: &str = "/grpc.health.v1.Health/Check";
const USER_AGENT: HeaderValue = HeaderValue::from_static("outrigger-health-check");
/// Length of what precedes a gRPC message: a flag and its length.
const GRPC_PREFIX: usize = 5;
/// `grpc.health.v1.HealthCheckResponse.ServingStatus`.
const SERVING: i32 = 1;

/// Of `grpc.health.v1`.
#[derive(Clone, PartialEq, Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// What a check found, and in words.
type Finding = (CheckResult, String);

/// Makes a check, within its time.
pub async fn make(worker: &Rc<Worker>, service: &DestinationName, check: &Check) -> Finding {
    let asking = async {
        match &check.config.probe {
            HealthProbe::Http(path) => http(worker, service, check, path).await,
            HealthProbe::Grpc(name) => grpc(worker, service, check, name).await,
            HealthProbe::Tcp => tcp(worker, check).await,
        }
    };
    let limit = check.config.timeout;
    match tokio::time::timeout(limit, asking).await {
        Ok(Ok(finding)) => finding,
        Ok(Err(failed)) => {
            let found = if is_busy(failed.reason) {
                CheckResult::Inconclusive
            } else {
                CheckResult::Unhealthy
            };
            (found, format!("{}: {}", failed.reason, failed.detail))
        }
        Err(_) => (CheckResult::Unhealthy, format!("no answer in {limit:?}")),
    }
}

async fn http(
    worker: &Rc<Worker>,
    service: &DestinationName,
    check: &Check,
    path: &PathAndQuery,
) -> Result<Finding, FailedAttempt> {
    let declared = check.protocol;
    let protocol = if declared.is_http() { declared } else { Protocol::Http1 };
    let head = head(service, check, Method::GET, path.clone())?;
    let ways = (protocol, Protocol::Http1);
    let (response, lease) = ask(worker, check, ways, head, &|| RequestBody::Empty).await?;
    let said = format!("answered {}", response.status().as_u16());
    if !response.status().is_success() {
        let refused = refused(response.headers(), lease.is_hop);
        return Ok(refused.unwrap_or((CheckResult::Unhealthy, said)));
    }
    read(response.into_body()).await?;
    Ok((CheckResult::Healthy, said))
}

async fn grpc(
    worker: &Rc<Worker>,
    service: &DestinationName,
    check: &Check,
    name: &str,
) -> Result<Finding, FailedAttempt> {
    let path = PathAndQuery::from_static(CHECK_METHOD);
    let mut head = head(service, check, Method::POST, path)?;
    let kind = HeaderValue::from_static("application/grpc");
    head.headers.insert(header::CONTENT_TYPE, kind);
    head.headers.insert(header::TE, HeaderValue::from_static("trailers"));
    let message = framed(&HealthCheckRequest { service: name.to_owned() });
    let ways = (Protocol::Grpc, Protocol::Grpc);
    let body = || whole(message.clone());
    let (response, lease) = ask(worker, check, ways, head, &body).await?;
    if response.status() != StatusCode::OK {
        let said = format!("answered {}", response.status().as_u16());
        return Ok(
            refused(response.headers(), lease.is_hop).unwrap_or((CheckResult::Unhealthy, said))
        );
    }
    let own = response.headers().get(GRPC_STATUS).cloned();
    if own.is_some()
        && let Some(refused) = refused(response.headers(), lease.is_hop)
    {
        return Ok(refused);
    }
    let (body, trailers) = read(response.into_body()).await?;
    let status = own.or_else(|| trailers?.get(GRPC_STATUS).cloned());
    Ok(serving(status.as_ref(), &body))
}

/// What a gRPC server says of itself.
fn serving(status: Option<&HeaderValue>, body: &[u8]) -> Finding {
    match status.and_then(|status| status.to_str().ok()) {
        Some("0") => {}
        Some(code) => return (CheckResult::Unhealthy, format!("answered grpc-status {code}")),
        None => return (CheckResult::Unhealthy, "answered without a grpc-status".to_owned()),
    }
    let message = body.get(GRPC_PREFIX..).unwrap_or_default();
    let is_plain = body.first() == Some(&0);
    match HealthCheckResponse::decode(message) {
        Ok(HealthCheckResponse { status: SERVING }) if is_plain => {
            (CheckResult::Healthy, "answered SERVING".to_owned())
        }
        Ok(HealthCheckResponse { status }) if is_plain => {
            let word = match status {
                2 => "NOT_SERVING",
                3 => "SERVICE_UNKNOWN",
                _ => "UNKNOWN",
            };
            (CheckResult::Unhealthy, format!("answered {word}"))
        }
        Ok(_) | Err(_) => (CheckResult::Unhealthy, "answered no HealthCheckResponse".to_owned()),
    }
}

/// A gRPC message as it goes over the wire, not compressed.
fn framed(message: &impl Message) -> Bytes {
    let mut framed = BytesMut::with_capacity(GRPC_PREFIX + message.encoded_len());
    framed.put_u8(0);
    framed.put_u32(message.encoded_len() as u32);
    framed.extend_from_slice(&message.encode_to_vec());
    framed.freeze()
}

/// A body that is all there.
fn whole(bytes: Bytes) -> RequestBody {
    let (sender, receiver) = mpsc::channel(2);
    // There is room for both.
    for piece in [Piece::Data(bytes), Piece::End] {
        let _ = sender.try_send(piece);
    }
    RequestBody::Mirror(receiver)
}

async fn tcp(worker: &Rc<Worker>, check: &Check) -> Result<Finding, FailedAttempt> {
    let endpoint = &check.endpoint;
    match &endpoint.endpoint.mesh {
        None => drop(worker.connect(endpoint.endpoint.address).await.map_err(Refusal::from)?),
        Some(mesh) => dial::check(worker, endpoint, mesh).await?,
    }
    Ok((CheckResult::Healthy, "took a connection".to_owned()))
}

fn head(
    service: &DestinationName,
    check: &Check,
    method: Method,
    path: PathAndQuery,
) -> Result<Head, Refusal> {
    let endpoint = &check.endpoint.endpoint;
    let name = match &endpoint.tls {
        Some(tls) if !tls.server_name.contains(':') => {
            format!("{}:{}", tls.server_name, service.port)
        }
        // What lies outside knows no name of the mesh.
        Some(_) | None if service.is_external() => endpoint.address.to_string(),
        Some(_) | None => format!("{}.{}:{}", service.service, service.namespace, service.port),
    };
    let authority = Authority::try_from(name);
    let authority = authority.map_err(|e| Refusal::new(Reason::InternalError, e.to_string()))?;
    let mut head = Head::own(method, path, authority);
    head.headers.insert(header::USER_AGENT, USER_AGENT);
    Ok(head)
}

/// The connection of a check, held while its answer is read.
struct CheckConnection {
    is_hop: bool,
    #[expect(dead_code, reason = "holds its place until dropped")]
    lease: Lease,
}

/// Sends a check, and gets the head of its answer. What has not been sent after all, because a connection
/// was just going away, is sent once more.
async fn ask(
    worker: &Rc<Worker>,
    check: &Check,
    (protocol, callers): (Protocol, Protocol),
    head: Head,
    body: &dyn Fn() -> RequestBody,
) -> Result<(Response<WireBody>, CheckConnection), FailedAttempt> {
    let target = AttemptTarget::to(Arc::clone(&check.endpoint), protocol, callers, false);
    let (key, is_hop) = (target.key(), target.wire.is_hop());
    let mut again = true;
    loop {
        let request = head.clone().into_request(&target, body(), &worker.hosts)?;
        let (sent, lease) = if target.wire == Wire::Http1 {
            // A connection of its own: an idle one may just be closed by the app, which is no illness.
            let mut lease = worker.pools.fresh_h1(key).await?;
            (lease.send(request, None).await, Lease::H1(lease))
        } else {
            let lease = worker.pools.lease_h2(key, std::time::Instant::now()).await?;
            (lease.send(request, false, None).await, Lease::H2(lease))
        };
        match sent.map_err(|error| failure(&target, error)) {
            Ok(response) => return Ok((response, CheckConnection { is_hop, lease })),
            Err(failed) if failed.processed || !std::mem::take(&mut again) => return Err(failed),
            Err(_) => {}
        }
    }
}

/// Somebody on the way answered in the app's place: why.
fn refused(headers: &HeaderMap, is_hop: bool) -> Option<Finding> {
    let reason = explained(headers).filter(|_| is_hop)?;
    let found = if is_busy(reason) { CheckResult::Inconclusive } else { CheckResult::Unhealthy };
    Some((found, format!("refused by its proxy: {reason}")))
}

/// The app was not asked because there is too much to do: to leave it out would make that worse.
fn is_busy(reason: Reason) -> bool {
    matches!(reason, Reason::RateLimited | Reason::Overloaded)
}

/// The beginning of an answer's body, and its trailers if they follow.
async fn read(mut body: WireBody) -> Result<(Bytes, Option<HeaderMap>), FailedAttempt> {
    let mut read = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let broken = |error: BodyError| {
            let detail = format!("the answer broke off: {error}");
            FailedAttempt::unprocessed(Reason::UpstreamResetAmbiguous, detail)
        };
        match frame.map_err(broken)?.into_data() {
            Ok(data) => read.extend_from_slice(&data),
            Err(frame) => return Ok((read.freeze(), frame.into_trailers().ok())),
        }
        if read.len() > MAX_BODY {
            break;
        }
    }
    Ok((read.freeze(), None))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_serving_is_good() {
        let ok = HeaderValue::from_static("0");
        let message = |status| framed(&HealthCheckResponse { status });
        let found = |status: Option<&HeaderValue>, body: &[u8]| serving(status, body).0;
        assert_eq!(found(Some(&ok), &message(SERVING)), CheckResult::Healthy);
        let not_found = HeaderValue::from_static("5");
        let compressed = [&[1], &message(SERVING)[1..]].concat();
        for (status, body) in [
            (Some(&ok), &message(2)[..]),
            (Some(&ok), &message(0)[..]),
            (Some(&ok), &[]),
            (Some(&ok), &[0, 0, 0, 0, 9, 0xff]),
            (Some(&ok), &compressed),
            (Some(&not_found), &message(SERVING)),
            (None, &message(SERVING)),
        ] {
            assert_eq!(found(status, body), CheckResult::Unhealthy, "{status:?} {body:?}");
        }
    }
}
