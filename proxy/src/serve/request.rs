//! THE request path: one straight line from the head of a request to its answer.
//!
//! Each phase is one call. Policies of later versions are one more line here and one file in
//! `core/src/policy/`. Read next: [`crate::call::attempt`] for a single attempt.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::request::Parts;
use http::{HeaderMap, Method, Response, StatusCode, Version};
use http_body::Body;
use outrigger_core::compile::Filters;
use outrigger_core::filter::modify_headers;
use outrigger_core::name::Authority;
use outrigger_core::policy::CallPolicy;
use outrigger_core::reason::Reason;

use crate::answer::body::ResponseBody;
use crate::answer::respond;
use crate::base::peer::Peer;
use crate::base::refusal::Refusal;
use crate::call::cache::{Caching, is_framed};
use crate::call::fallback::{self, DEGRADED, FallbackContext, FallbackResult};
use crate::call::upstream::{Call, Upstream};
use crate::call::{attempts, mirror};
use crate::listener::connection::Connection;
use crate::listener::role::Routing;
use crate::observe::correlation::Remembered;
use crate::policy::cache::Cache;
use crate::request::destination::{self, Target};
use crate::request::exchange::{Exchange, is_grpc};
use crate::request::head::{Head, head_already_sent};
use crate::request::route::{Routed, route};
use crate::request::{admit, context};
use crate::tunnel::upgrade;
use crate::upstream::fixed::Fixed;
use crate::upstream::store::Live;
use crate::wire::body::RequestBody;
use crate::wire::deadline::{Bounds, Clock, poll_within};
use crate::wire::headers::{self, HeaderScan};
use crate::wire::progress::Tracked;
use crate::wire::streams::WireBody;

/// What a request leads to, when it is not refused.
enum Served {
    Upstream(Response<WireBody>),
    /// Given instead of a failure.
    Own(Box<Response<Bytes>>),
    /// Without a body, and no backend was asked for it: a redirect, or the answer to a preflight.
    Routes(StatusCode, HeaderMap),
    /// The connection or stream stops being HTTP.
    Switched(Response<()>),
}

/// Serves one request. Dropping the future means that the caller went away. `seen`: in its headers. `caller`: where its
/// side comes from if the request stops being HTTP.
///
/// Every HTTP/2 stream allocates this future and every HTTP/1.1 connection keeps room for one, so large
/// values live here once and are lent down the path.
pub fn handle(
    connection: Rc<Connection>,
    parts: Parts,
    seen: HeaderScan,
    body: Option<WireBody>,
    caller: Option<upgrade::CallerHalf>,
    tracked: Tracked,
) -> impl Future<Output = Response<ResponseBody>> {
    let version = parts.version;
    // Boxed: it travels with the request and its response through many hands. Into memory that is there already, so
    // that it is not copied.
    let room = Box::new_uninit();
    let begun = Exchange::begin(Rc::clone(&connection), &parts, seen, tracked);
    let mut exchange = Box::write(room, begun);
    let mut switch = upgrade::wanted(&parts, caller);
    let checked = admit::head(&connection, &parts, seen);
    let tunnel = upgrade::is_tunnel(&connection, &parts);
    let mut body = body.map_or(RequestBody::Empty, |body| {
        RequestBody::new(body, &connection.worker.bodies, exchange.tracked.progress())
    });
    let mut head = Head::new(parts, switch.as_ref().map(|switch| &switch.token));
    head.absolute = connection.is_bound() && version < Version::HTTP_2 && head.scheme.is_some();
    let mut head = Some(head);
    async move {
        let served = match checked {
            Err(refusal) => Err(refusal),
            Ok(()) if tunnel => {
                let tunnel = upgrade::tunnel(&connection, &mut exchange, &head, switch.take());
                Box::pin(tunnel).await.map(Served::Switched)
            }
            Ok(()) => {
                serve(&connection, &mut exchange, (&mut head, seen), &mut body, &mut switch).await
            }
        };
        match served {
            Ok(Served::Upstream(response)) => respond::upstream(response, exchange, version),
            Ok(Served::Own(response)) => respond::instead(*response, exchange),
            Ok(Served::Routes(status, headers)) => respond::routes(status, headers, exchange),
            Ok(Served::Switched(response)) => respond::switched(response, exchange),
            Err(refusal) => respond::refuse(refusal, exchange),
        }
    }
}

async fn serve(
    connection: &Rc<Connection>,
    exchange: &mut Exchange,
    (slot, seen): (&mut Option<Head>, HeaderScan),
    body: &mut RequestBody,
    switch: &mut Option<Box<upgrade::Switch>>,
) -> Result<Served, Refusal> {
    let head = slot.as_mut().ok_or_else(head_already_sent)?;
    let target = match connection.listener.routing {
        Routing::Destinations => {
            headers::clean_request(&mut head.headers, connection.peer.get(), seen);
            context::inherit(connection, exchange, head, seen)?;
            destination::outbound(connection, exchange, head).await?
        }
        Routing::OwnPorts => own_app(connection, exchange, (head, seen), !body.is_end_stream())?,
    };
    let mut routed = Routed::default();
    let mut policy = &connection.worker.call;
    let upstream = match &target {
        Target::Service { live, dialed } => {
            routed = match route(connection, exchange, (live, &dialed.authority), head)? {
                Ok(routed) => routed,
                Err((status, headers)) => return Ok(Served::Routes(status, headers)),
            };
            policy = routed.apply(connection, exchange, live, head, body)?;
            Upstream::service(connection, live, dialed, routed.backend, head)
        }
        Target::App { address, protocol, service, rules, limits } => {
            exchange.service = *service;
            if let Some(rules) = rules {
                rules.request(connection, head)?;
            }
            if let Some(limits) = limits {
                limits.admit(exchange, head).await?;
            }
            Upstream::App { address: *address, protocol: *protocol }
        }
        Target::Outside(authority) => {
            exchange.rare.get_or_insert_default().host = Some(authority.to_string().into());
            let address = outside(connection, exchange, authority).await?;
            Upstream::Outside { address, protocol: exchange.protocol }
        }
    };
    let mut clock = Clock::at(exchange.deadline.map(|deadline| deadline.at));
    exchange.time_left("the deadline passed before the request was sent")?;
    let cache = &connection.worker.proxy.cache;
    let caching = caching(cache, policy, &upstream, slot.as_ref(), body);
    if let Some(mut response) = caching.as_ref().and_then(|caching| caching.fresh(cache)) {
        exchange.cache_hit = true;
        finish(connection, exchange, &routed, response.headers_mut());
        return Ok(Served::Own(response));
    }
    let replay_head = fallback::replay_head(policy, slot.as_ref());
    let call = Call { connection, upstream: &upstream, policy, body };
    let answered = {
        let progress = Arc::clone(exchange.tracked.progress());
        let mut attempting = pin!(attempts::run(&call, exchange, slot));
        poll_fn(|cx| match poll_within(attempting.as_mut(), &mut clock, cx) {
            Poll::Pending => progress.poll_ended(cx).map(|()| None),
            ready => ready,
        })
        .await
    };
    let answered = answered.unwrap_or_else(|| Err(late(exchange)));
    let mut response = match replay_head {
        None => answered?,
        Some(replay_head) => {
            let (clock, caching) = (&mut clock, caching.as_deref());
            let fallback_context = FallbackContext { call: &call, clock, caching };
            // Boxed: rare, and the future of every request would carry its size.
            match Box::pin(fallback_context.replace(exchange, replay_head, answered)).await? {
                FallbackResult::Upstream(response) => response,
                FallbackResult::Own(mut response) => {
                    finish(connection, exchange, &routed, response.headers_mut());
                    return Ok(Served::Own(response));
                }
            }
        }
    };
    let accepted = switch.as_deref().and_then(|switch| upgrade::accepted(switch, &response));
    exchange.tracked.progress().touch();
    exchange.bounds = bounds(exchange, policy, clock, accepted.is_some(), &response);
    let framed = caching.is_some() && is_framed(&response);
    clean(exchange, &upstream, &mut response);
    let caching = caching.filter(|_| exchange.degraded.is_none());
    exchange.recorder = caching.and_then(|caching| caching.answered(cache, &response, framed));
    upstream.keep_session(exchange, response.headers_mut());
    finish(connection, exchange, &routed, response.headers_mut());
    answer(connection, exchange, (switch.take(), accepted), response, policy.timeouts.idle)
}

/// The address of a name outside of the mesh.
fn outside<'a>(
    connection: &'a Connection,
    exchange: &'a mut Exchange,
    authority: &'a Authority,
) -> impl Future<Output = Result<SocketAddr, Refusal>> + 'a {
    let mut looking = Box::pin(connection.worker.lookup(authority, exchange.deadline));
    poll_fn(move |cx| {
        let polled = looking.as_mut().poll(cx);
        exchange.watch(polled, |phases| &mut phases.resolve)
    })
}

/// None: the call has no cache, or the request nothing to do with it.
fn caching(
    cache: &Cache,
    call: &CallPolicy,
    upstream: &Upstream<'_>,
    head: Option<&Head>,
    body: &RequestBody,
) -> Option<Box<Caching>> {
    let has_body = !matches!(body, RequestBody::Empty);
    Caching::begin(cache, call.cache.as_ref()?, upstream, head?, has_body)
}

/// The app beside this proxy, for a request of somebody else's.
fn own_app(
    connection: &Connection,
    exchange: &mut Exchange,
    (head, seen): (&mut Head, HeaderScan),
    has_body: bool,
) -> Result<Target, Refusal> {
    let target = destination::inbound(connection, head, has_body)?;
    if head.method == Method::CONNECT {
        admit::connect(connection, &target)?;
    }
    headers::clean_request(&mut head.headers, connection.peer.get(), seen);
    connection.forward_caller(&mut head.headers);
    context::remember(connection, exchange, head, seen)?;
    // The others have been taken out where they were read.
    if seen.has(HeaderScan::OTHER_INTERNAL)
        || (seen.has(HeaderScan::INTERNAL) && matches!(connection.fixed, Fixed::App(_)))
    {
        // Read by now, and not for the app.
        headers::strip_internal(&mut head.headers, true);
    }
    Ok(target)
}

/// What the caller gets of an upstream's answer. `accepted`: the protocol that it has changed to.
#[inline]
fn answer(
    connection: &Rc<Connection>,
    exchange: &mut Exchange,
    (switch, accepted): (Option<Box<upgrade::Switch>>, Option<HeaderValue>),
    response: Response<WireBody>,
    idle: Option<Duration>,
) -> Result<Served, Refusal> {
    match (switch, accepted) {
        (None, _) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
            let why = "the upstream changes protocols and nobody asked for that";
            Err(Refusal { processed: true, ..Refusal::new(Reason::UpstreamProtocolError, why) })
        }
        (None, _) => Ok(Served::Upstream(response)),
        (Some(switch), None) => upgrade::declined(&switch, response).map(Served::Upstream),
        (Some(switch), Some(token)) => {
            let joined = upgrade::join(connection, exchange, *switch, token, response, idle);
            Ok(Served::Switched(joined))
        }
    }
}

/// Takes out of the head of an answer what is for this proxy, and obeys it.
#[inline]
fn clean(exchange: &Exchange, upstream: &Upstream<'_>, response: &mut Response<WireBody>) {
    let has_quota = headers::clean_response(response.headers_mut());
    if let Some(endpoints) = upstream.endpoints().filter(|_| exchange.degraded.is_none()) {
        endpoints.limits_said(has_quota, response.status(), response.headers());
    }
}

/// What we say to the caller in the head of an answer, and what its rule changes about it.
#[inline]
fn finish(
    connection: &Connection,
    exchange: &Exchange,
    routed: &Routed<'_>,
    headers: &mut HeaderMap,
) {
    if exchange.remembered.as_ref().is_some_and(Remembered::is_exhausted)
        && connection.peer.get() == Peer::Mesh
    {
        headers.insert(headers::EXHAUSTED, HeaderValue::from_static("1"));
    }
    if let Some(degraded) = exchange.degraded {
        headers.insert(DEGRADED, HeaderValue::from_static(degraded.as_str()));
    }
    if let Some(grant) = &routed.cors {
        grant.write(headers);
    }
    for modifier in routed.filters().flat_map(|filters| &filters.response_headers) {
        modify_headers(modifier, headers);
        headers::keep_connection_out(headers, false);
    }
}

/// The deadline has passed in the middle of an attempt or of the pause before one.
fn late(exchange: &Exchange) -> Refusal {
    if let Some(reason) = exchange.tracked.progress().ended() {
        let why = match reason {
            Reason::UpstreamProtocolError => "it sent too many informational responses",
            _ => "no data in either direction for too long",
        };
        return Refusal { processed: true, ..Refusal::new(reason, why) };
    }
    exchange
        .time_left("the deadline passed before the response")
        .err()
        .unwrap_or_else(head_already_sent)
}

/// What bounds the body of the response. A deadline that the mesh started on its own ends with the head
/// of what is meant to go on.
fn bounds(
    exchange: &Exchange,
    call: &CallPolicy,
    mut clock: Clock,
    switches: bool,
    response: &Response<WireBody>,
) -> Option<Box<Bounds>> {
    let none = exchange.deadline.is_none() && call.timeouts.idle.is_none();
    if none || response.body().is_end_stream() {
        return None;
    }
    let streams = call.streaming
        || switches
        || response
            .headers()
            .get(header::CONTENT_TYPE)
            .is_some_and(|value| value.as_bytes().starts_with(b"text/event-stream"));
    if exchange.deadline.is_some_and(|deadline| !deadline.outlives_head(streams)) {
        clock.set(None);
        if let Some(remembered) = &exchange.remembered {
            remembered.end_deadline();
        }
    }
    let progress = exchange.tracked.progress();
    progress.set_deadline(clock.until());
    progress.set_idle(call.timeouts.idle);
    Bounds::new(clock, call.timeouts.idle, exchange.is_grpc())
}

impl<'a> Routed<'a> {
    /// Does to the request what the rule and the backend say, and returns how it is called.
    pub(crate) fn apply(
        &mut self,
        connection: &Rc<Connection>,
        exchange: &mut Exchange,
        live: &'a Arc<Live>,
        head: &mut Head,
        body: &RequestBody,
    ) -> Result<&'a CallPolicy, Refusal> {
        let rule = self.matched.as_ref().map(|matched| matched.rule);
        let call = rule.map_or(&live.compiled.call, |rule| &rule.call);
        let id = rule.map_or(0, |rule| rule.id);
        context::start(exchange, live, self.backend, id, call, head)?;
        if let Some(path) = self.path.take()
            && self.filters().any(Filters::rewrites_path)
        {
            head.path = path;
        }
        for filters in self.filters() {
            head.apply(filters, self.prefix())?;
            exchange.sends_grpc = is_grpc(&head.headers);
            let filters = (filters, call.max_visits);
            mirror::send(connection, exchange, live, filters, head, body);
        }
        Ok(call)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size<A, B, C, D, E, F, G: Future>(_: fn(A, B, C, D, E, F) -> G) -> usize {
        size_of::<G>()
    }

    /// hyper keeps room for one such future with every HTTP/1.1 connection, idle or not.
    #[test]
    fn the_future_of_a_request_stays_small() {
        let size = size(handle);
        assert!(size <= 2 * 1024, "{size} bytes");
    }
}
