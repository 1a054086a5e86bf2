//! THE request path: one straight line from the head of a request to its answer.
//!
//! Each phase is one call. Policies of later versions are one more line here and one file in
//! `core/src/policy/`. Read next: [`super::attempt`] for a single try.

use std::rc::Rc;

use http::header::HeaderValue;
use http::request::Parts;
use http::{Method, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use outrigger_core::compile::{Filters, HttpRouting, Matched};
use outrigger_core::filter::{modify_headers, redirect_location};
use outrigger_core::reason::{Reason, Side};
use outrigger_core::route::RequestView;

use super::attempt::{self, Failed, Head, Way};
use super::body::{RequestBody, ResponseBody};
use super::destination::{self, Target};
use super::exchange::Exchange;
use super::respond::Refusal;
use super::server::Connection;
use super::{headers, mirror, respond, upgrade};
use crate::metrics::{Direction, add};
use crate::store::Live;

/// Tries of one request while nobody has processed it, the first included. There is no policy for
/// it yet; three reach a live replica past two dead ones.
const MAX_ATTEMPTS: u8 = 3;
/// Tries of an idempotent request that may have been processed.
const MAX_AMBIGUOUS_ATTEMPTS: u8 = 2;

/// What a request leads to, when it is not refused.
enum Answer {
    Upstream(Response<Incoming>),
    Redirect(StatusCode, HeaderValue),
    /// The connection or stream stops being HTTP.
    Switched(Response<()>),
}

/// Serves one request. Dropping the future means that the caller went away.
pub async fn handle(
    connection: Rc<Connection>,
    request: Request<Incoming>,
) -> Response<ResponseBody> {
    let version = request.version();
    let mut exchange = Exchange::begin(Rc::clone(&connection), &request);
    match serve(&connection, &mut exchange, request).await {
        Ok(Answer::Upstream(response)) => respond::upstream(response, exchange, version),
        Ok(Answer::Redirect(status, location)) => respond::redirect(status, location, exchange),
        Ok(Answer::Switched(response)) => respond::switched(response, exchange),
        Err(refusal) => respond::refuse(refusal, exchange),
    }
}

async fn serve(
    connection: &Rc<Connection>,
    exchange: &mut Exchange,
    request: Request<Incoming>,
) -> Result<Answer, Refusal> {
    let (mut head, body) = request.into_parts();
    let switch = upgrade::wanted(&mut head);
    headers::check(&head)?;
    let target = match connection.direction {
        Direction::Outbound => {
            headers::clean_request(&mut head.headers, connection.peer.get());
            if upgrade::is_tunnel(&head) {
                return upgrade::outbound_tunnel(connection, exchange, &head, switch)
                    .await
                    .map(Answer::Switched);
            }
            destination::outbound(connection, &head).await?
        }
        Direction::Inbound => {
            if upgrade::is_tunnel(&head) {
                return upgrade::inbound_tunnel(connection, exchange, &head, switch)
                    .await
                    .map(Answer::Switched);
            }
            let target = destination::inbound(connection, &mut head)?;
            headers::clean_request(&mut head.headers, connection.peer.get());
            target
        }
    };
    identify(connection, exchange, &mut head);
    let proxy = &connection.worker.proxy;
    let body = RequestBody::new(body, &proxy.metrics, proxy.settings.max_buffered_bytes);
    match &target {
        Target::Service { live, dialed } => {
            exchange.service = live.label;
            match route(connection, exchange, live, &head)? {
                Routed::Redirect(status, location) => Ok(Answer::Redirect(status, location)),
                Routed::Backend { backend, matched, share } => {
                    let filters = matched.as_ref().map(|matched| &matched.rule.filters);
                    let prefix = matched.as_ref().and_then(|matched| matched.prefix);
                    let mut head = Head::new(head, switch.as_ref());
                    for filters in filters.into_iter().chain(share) {
                        head.apply(filters, prefix)?;
                        mirror::send(connection, live, filters, &head, &body);
                    }
                    let way = Way::service(connection, live, dialed, backend, &head);
                    let mut response = attempts(connection, exchange, way, head, body).await?;
                    headers::clean_response(response.headers_mut());
                    for filters in filters.into_iter().chain(share) {
                        for modifier in &filters.response_headers {
                            modify_headers(modifier, response.headers_mut());
                        }
                    }
                    answer(connection, response, switch)
                }
            }
        }
        Target::App { address, protocol, service } => {
            exchange.service = *service;
            let way = Way::App { address: *address, protocol: *protocol };
            let head = Head::new(head, switch.as_ref());
            let mut response = attempts(connection, exchange, way, head, body).await?;
            headers::clean_response(response.headers_mut());
            answer(connection, response, switch)
        }
        Target::Outside(authority) => {
            let address = connection.worker.lookup(authority).await?;
            let way = Way::Outside { address, protocol: exchange.protocol };
            let head = Head::new(head, switch.as_ref());
            let mut response = attempts(connection, exchange, way, head, body).await?;
            headers::clean_response(response.headers_mut());
            answer(connection, response, switch)
        }
    }
}

/// Gives the request what it is followed by: a request id and a place in a trace.
fn identify(connection: &Connection, exchange: &mut Exchange, head: &mut Parts) {
    let worker = &connection.worker;
    let id = headers::request_id(&mut head.headers, || [worker.random(), worker.random()]);
    exchange.request_id = Some(id);
    exchange.trace_id = headers::trace(&mut head.headers, || worker.random());
}

/// What the routes say about a request.
enum Routed<'a> {
    Redirect(StatusCode, HeaderValue),
    Backend { backend: usize, matched: Option<Matched<'a>>, share: Option<&'a Filters> },
}

fn route<'a>(
    connection: &Connection,
    exchange: &mut Exchange,
    live: &'a Live,
    head: &Parts,
) -> Result<Routed<'a>, Refusal> {
    let authority = destination::authority_of(head).unwrap_or_default();
    let (host, port) = split_port(authority);
    let view = RequestView {
        host,
        path: head.uri.path(),
        query: head.uri.query(),
        method: &head.method,
        headers: &head.headers,
    };
    let matched = match live.compiled.route_http(&view) {
        HttpRouting::Direct => {
            return Ok(Routed::Backend { backend: 0, matched: None, share: None });
        }
        HttpRouting::Rule(matched) => matched,
        HttpRouting::NoMatch => {
            let what = format!("no rule matches {} {}", head.method, head.uri.path());
            return Err(Refusal::new(Reason::NoRoute, what));
        }
    };
    exchange.route = live.route_label(matched.rule);
    if let Some(redirect) = &matched.rule.filters.redirect {
        let (path, query) = (head.uri.path(), head.uri.query());
        let location = redirect_location(redirect, matched.prefix, "http", host, port, path, query)
            .map_err(|e| Refusal::new(Reason::BadRequest, e.to_string()))?;
        return Ok(Routed::Redirect(redirect.status, location));
    }
    let share = matched.rule.split.pick(connection.worker.random());
    let share = share.ok_or_else(|| Refusal::new(Reason::NoBackend, "the rule has no backends"))?;
    match &share.target {
        outrigger_core::compile::Target::Backend(backend) => {
            let filters = (!share.filters.is_empty()).then_some(&share.filters);
            Ok(Routed::Backend { backend: *backend, matched: Some(matched), share: filters })
        }
        outrigger_core::compile::Target::Invalid(why) => {
            Err(Refusal::new(Reason::NoBackend, why.to_string()))
        }
    }
}

fn split_port(authority: &str) -> (&str, Option<u16>) {
    match authority.rsplit_once(':') {
        Some((host, port)) if !host.ends_with(':') && !port.contains(']') => {
            (host, port.parse().ok())
        }
        _ => (authority, None),
    }
}

/// Tries until somebody has processed the request.
async fn attempts(
    connection: &Rc<Connection>,
    exchange: &mut Exchange,
    way: Way<'_>,
    head: Head,
    body: RequestBody,
) -> Result<Response<Incoming>, Refusal> {
    let worker = &connection.worker;
    let idempotent = is_idempotent(&head.method);
    let mut tried = Vec::new();
    let (mut head, mut body) = (Some(head), Some(body));
    loop {
        let (Some(current), Some(sending)) = (head.take(), body.take()) else {
            return Err(Refusal::new(Reason::InternalError, "an attempt lost its request"));
        };
        exchange.attempts += 1;
        let hop = attempt::choose(worker, exchange, &way, current.upgrade.is_some(), &tried)?;
        let spare = sending.again();
        let keep = spare.is_some() && exchange.attempts < MAX_ATTEMPTS;
        let saved = keep.then(|| current.clone());
        let failed = match attempt::send(worker, exchange, &hop, current, sending, idempotent).await
        {
            Ok(response) => match attempt::unprocessed(&hop, &response) {
                None => {
                    if let Some(spare) = &spare {
                        spare.commit();
                    }
                    return Ok(response);
                }
                // Its own words are the best answer, unless another endpoint gives a better one.
                Some(reason) => match again(exchange, saved, spare, MAX_ATTEMPTS) {
                    Some(next) => {
                        (head, body) = next;
                        let detail = format!("{}: {reason}", hop.address);
                        Failed::unprocessed(reason, detail)
                    }
                    None => {
                        exchange.reason = Some(reason);
                        return Ok(response);
                    }
                },
            },
            Err(failed) => {
                let limit = match failed.processed {
                    _ if failed.reason.side() == Side::Downstream => 1,
                    false => MAX_ATTEMPTS,
                    true if idempotent => MAX_AMBIGUOUS_ATTEMPTS,
                    true => 1,
                };
                match again(exchange, saved, spare, limit) {
                    Some(next) => (head, body) = next,
                    None => return Err(failed.into()),
                }
                failed
            }
        };
        hop.note_failure(&mut tried);
        exchange.lease = None;
        exchange.in_flight = None;
        exchange.reason = Some(Reason::RetriedUnprocessed);
        exchange.detail = Some(failed.detail.into());
        add(&worker.proxy.metrics.gauges.retries, 1);
    }
}

type Next = (Option<Head>, Option<RequestBody>);

/// The request once more, if it was kept and may be sent again.
fn again(
    exchange: &Exchange,
    head: Option<Head>,
    body: Option<RequestBody>,
    limit: u8,
) -> Option<Next> {
    let allowed = exchange.attempts < limit && head.is_some();
    let body = body.and_then(|body| body.again()).filter(|_| allowed)?;
    Some((head, Some(body)))
}

/// RFC 9110 section 9.2.2.
fn is_idempotent(method: &Method) -> bool {
    matches!(
        *method,
        Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::DELETE | Method::TRACE
    )
}

fn answer(
    connection: &Rc<Connection>,
    response: Response<Incoming>,
    switch: Option<upgrade::Switch>,
) -> Result<Answer, Refusal> {
    let Some(switch) = switch else { return Ok(Answer::Upstream(response)) };
    let switched = match response.version() {
        Version::HTTP_2 => response.status() == StatusCode::OK,
        _ => response.status() == StatusCode::SWITCHING_PROTOCOLS,
    };
    if !switched {
        return Ok(Answer::Upstream(response));
    }
    Ok(Answer::Switched(upgrade::join(connection, switch, response)))
}
