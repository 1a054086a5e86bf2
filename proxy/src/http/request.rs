//! THE request path: one straight line from the head of a request to its answer.
//!
//! Each phase is one call. Policies of later versions are one more line here and one file in
//! `core/src/policy/`. Read next: [`super::attempt`] for a single try.

use std::borrow::Cow;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, Method, Response, StatusCode, Version};
use http_body::Body;
use outrigger_core::compile::{self, Filters, HttpRouting, Matched};
use outrigger_core::filter::modify_headers;
use outrigger_core::name::Authority;
use outrigger_core::path::canonical;
use outrigger_core::policy::CallPolicy;
use outrigger_core::policy::cors::Grant;
use outrigger_core::reason::Reason;
use outrigger_core::route::RequestView;

use super::attempt::Way;
use super::body::RequestBody;
use super::cache::{Caching, is_framed};
use super::deadline::{Bounds, Clock, poll_within};
use super::destination::{self, Target};
use super::exchange::Exchange;
use super::fallback::{self, DEGRADED, Fallen, Given};
use super::head::Head;
use super::respond::Refusal;
use super::response_body::ResponseBody;
use super::route_answer::{self, RouteAnswer};
use super::server::Connection;
use super::{admit, attempts, context, headers, mirror, respond, upgrade};
use crate::cache::Cache;
use crate::correlation::Remembered;
use crate::metrics::Direction;
use crate::peer::Peer;
use crate::progress::Tracked;
use crate::store::Live;
use crate::streams::WireBody;

/// What a request leads to, when it is not refused.
enum Answer {
    Upstream(Response<WireBody>),
    /// Given instead of a failure.
    Own(Box<Response<Bytes>>),
    /// Without a body, and no backend was asked for it: a redirect, or the answer to a preflight.
    Routes(StatusCode, HeaderMap),
    /// The connection or stream stops being HTTP.
    Switched(Response<()>),
}

/// Serves one request. Dropping the future means that the caller went away. `caller`: where its side comes
/// from if the request stops being HTTP.
///
/// Every HTTP/2 stream allocates this future and every HTTP/1.1 connection keeps room for one, so large
/// values live here once and are lent down the path.
pub fn handle(
    connection: Rc<Connection>,
    parts: Parts,
    body: Option<WireBody>,
    caller: Option<upgrade::Caller>,
    tracked: Tracked,
) -> impl Future<Output = Response<ResponseBody>> {
    let version = parts.version;
    // Boxed: it travels with the request and its response through many hands.
    let mut exchange = Box::new(Exchange::begin(Rc::clone(&connection), &parts, tracked));
    let mut switch = upgrade::wanted(&parts, caller);
    let checked = admit::head(&connection, &parts);
    let tunnel = upgrade::is_tunnel(&connection, &parts);
    let mut body = body.map_or(RequestBody::Empty, |body| {
        RequestBody::new(body, &connection.worker, exchange.tracked.progress())
    });
    let mut head = Head::new(parts, switch.as_deref());
    head.absolute = connection.is_bound() && version < Version::HTTP_2 && head.scheme.is_some();
    let mut head = Some(head);
    async move {
        let served = match checked {
            Err(refusal) => Err(refusal),
            Ok(()) if tunnel => {
                let tunnel = upgrade::tunnel(&connection, &mut exchange, &head, switch.take());
                Box::pin(tunnel).await.map(Answer::Switched)
            }
            Ok(()) => serve(&connection, &mut exchange, &mut head, &mut body, &mut switch).await,
        };
        match served {
            Ok(Answer::Upstream(response)) => respond::upstream(response, exchange, version),
            Ok(Answer::Own(response)) => respond::instead(*response, exchange),
            Ok(Answer::Routes(status, headers)) => respond::routes(status, headers, exchange),
            Ok(Answer::Switched(response)) => respond::switched(response, exchange),
            Err(refusal) => respond::refuse(refusal, exchange),
        }
    }
}

async fn serve(
    connection: &Rc<Connection>,
    exchange: &mut Exchange,
    slot: &mut Option<Head>,
    body: &mut RequestBody,
    switch: &mut Option<Box<upgrade::Switch>>,
) -> Result<Answer, Refusal> {
    let head = slot.as_mut().ok_or_else(lost)?;
    let target = match connection.direction {
        Direction::Outbound => {
            let says = headers::clean_request(&mut head.headers, connection.peer.get());
            context::inherit(connection, exchange, head, says)?;
            destination::outbound(connection, exchange, head).await?
        }
        Direction::Inbound => own_app(connection, exchange, head, !body.is_end_stream())?,
    };
    let mut routed = Routed::default();
    let mut call = &connection.worker.call;
    let way = match &target {
        Target::Service { live, dialed } => {
            routed = match route(connection, exchange, (live, &dialed.authority), head)? {
                Ok(routed) => routed,
                Err((status, headers)) => return Ok(Answer::Routes(status, headers)),
            };
            call = routed.apply(connection, exchange, live, head, body)?;
            Way::service(connection, live, dialed, routed.backend, head)
        }
        Target::App { address, protocol, service, rules, limits } => {
            exchange.service = *service;
            if let Some(rules) = rules {
                rules.request(connection, head)?;
            }
            if let Some(limits) = limits {
                limits.admit(exchange, head).await?;
            }
            Way::App { address: *address, protocol: *protocol }
        }
        Target::Outside(authority) => {
            let address = Box::pin(connection.worker.lookup(authority, exchange.deadline)).await?;
            Way::Outside { address, protocol: exchange.protocol }
        }
    };
    let mut clock = Clock::at(exchange.deadline.map(|deadline| deadline.at));
    exchange.time_left("it had passed before the request was sent")?;
    let cache = &connection.worker.proxy.cache;
    let caching = caching(cache, call, &way, slot.as_ref(), body);
    if let Some(mut response) = caching.as_ref().and_then(|caching| caching.fresh(cache)) {
        exchange.cache_hit = true;
        finish(connection, exchange, &routed, response.headers_mut());
        return Ok(Answer::Own(response));
    }
    let spare = fallback::spare(call, slot.as_ref());
    let answered = {
        let progress = Arc::clone(exchange.tracked.progress());
        let mut tries = pin!(attempts::run(connection, exchange, &way, call, slot, body));
        poll_fn(|cx| match poll_within(tries.as_mut(), &mut clock, cx) {
            Poll::Pending => progress.poll_ended(cx).map(|()| None),
            ready => ready,
        })
        .await
    };
    let answered = answered.unwrap_or_else(|| Err(late(exchange)));
    let mut response = match spare {
        None => answered?,
        Some(spare) => {
            let (clock, caching) = (&mut clock, caching.as_deref());
            let fallen = Fallen { connection, way: &way, call, body, clock, caching };
            // Boxed: rare, and the future of every request would carry its size.
            match Box::pin(fallen.replace(exchange, spare, answered)).await? {
                Given::Upstream(response) => response,
                Given::Own(mut response) => {
                    finish(connection, exchange, &routed, response.headers_mut());
                    return Ok(Answer::Own(response));
                }
            }
        }
    };
    let accepted = switch.as_deref().and_then(|switch| upgrade::accepted(switch, &response));
    exchange.tracked.progress().touch();
    exchange.bounds = bounds(exchange, call, clock, accepted.is_some(), &response);
    let framed = caching.is_some() && is_framed(&response);
    clean(exchange, &way, &mut response);
    let caching = caching.filter(|_| exchange.degraded.is_none());
    exchange.keeping = caching.and_then(|caching| caching.answered(cache, &response, framed));
    finish(connection, exchange, &routed, response.headers_mut());
    answer(connection, exchange, (switch.take(), accepted), response, call.timeouts.idle)
}

/// None: the call has no cache, or the request nothing to do with it.
fn caching(
    cache: &Cache,
    call: &CallPolicy,
    way: &Way<'_>,
    head: Option<&Head>,
    body: &RequestBody,
) -> Option<Box<Caching>> {
    let has_body = !matches!(body, RequestBody::Empty);
    Caching::begin(cache, call.cache.as_ref()?, way, head?, has_body)
}

/// The app beside this proxy, for a request of somebody else's.
fn own_app(
    connection: &Connection,
    exchange: &mut Exchange,
    head: &mut Head,
    has_body: bool,
) -> Result<Target, Refusal> {
    let target = destination::inbound(connection, head, has_body)?;
    if head.method == Method::CONNECT {
        admit::connect(connection, &target)?;
    }
    let says = headers::clean_request(&mut head.headers, connection.peer.get());
    connection.forward_caller(&mut head.headers);
    context::remember(connection, exchange, head, says)?;
    if says.internal {
        // Read by now, and not for the app.
        headers::strip_internal(&mut head.headers, true);
    }
    Ok(target)
}

/// What the caller gets of an upstream's answer. `accepted`: the protocol that it has changed to.
fn answer(
    connection: &Rc<Connection>,
    exchange: &mut Exchange,
    (switch, accepted): (Option<Box<upgrade::Switch>>, Option<HeaderValue>),
    response: Response<WireBody>,
    idle: Option<Duration>,
) -> Result<Answer, Refusal> {
    match (switch, accepted) {
        (None, _) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
            let why = "the upstream changes protocols and nobody asked for that";
            Err(Refusal { processed: true, ..Refusal::new(Reason::UpstreamProtocolError, why) })
        }
        (None, _) => Ok(Answer::Upstream(response)),
        (Some(switch), None) => upgrade::declined(&switch, response).map(Answer::Upstream),
        (Some(switch), Some(token)) => {
            let joined = upgrade::join(connection, exchange, *switch, token, response, idle);
            Ok(Answer::Switched(joined))
        }
    }
}

/// Takes out of the head of an answer what is for this proxy, and obeys it.
fn clean(exchange: &Exchange, way: &Way<'_>, response: &mut Response<WireBody>) {
    let has_quota = headers::clean_response(response.headers_mut());
    if let Some(endpoints) = way.endpoints().filter(|_| exchange.degraded.is_none()) {
        endpoints.limits_said(has_quota, response.status(), response.headers());
    }
}

/// What we say to the caller in the head of an answer, and what its rule changes about it.
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

pub(super) fn lost() -> Refusal {
    Refusal::new(Reason::InternalError, "an attempt lost its request")
}

/// The deadline has passed in the middle of an attempt or of the pause before one.
fn late(exchange: &Exchange) -> Refusal {
    if let Some(reason) = exchange.tracked.progress().ended() {
        let why = match reason {
            Reason::UpstreamProtocolError => "it sent informational responses without end",
            _ => "nothing has moved for too long",
        };
        return Refusal { processed: true, ..Refusal::new(reason, why) };
    }
    exchange.time_left("no response had come when it passed").err().unwrap_or_else(lost)
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

/// Where the routes send a request, and what they change about it.
#[derive(Default)]
struct Routed<'a> {
    backend: usize,
    /// The canonical path, where it is not the one that came: the app gets that as it came, unless a
    /// rule rewrites it.
    path: Option<PathAndQuery>,
    matched: Option<Matched<'a>>,
    /// The chosen backend's own filters.
    share: Option<&'a Filters>,
    /// What its answer says to a browser.
    cors: Option<Box<Grant>>,
}

impl<'a> Routed<'a> {
    fn filters(&self) -> impl Iterator<Item = &'a Filters> {
        let rule = self.matched.as_ref().map(|matched| &matched.rule.filters);
        rule.into_iter().chain(self.share)
    }

    fn prefix(&self) -> Option<&'a str> {
        self.matched.as_ref().and_then(|matched| matched.prefix)
    }

    /// Does to the request what the rule and the backend say, and returns how it is called.
    fn apply(
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
            let filters = (filters, call.max_visits);
            mirror::send(connection, exchange, live, filters, head, body);
        }
        Ok(call)
    }
}

fn route<'a>(
    connection: &Connection,
    exchange: &mut Exchange,
    (live, dialed): (&'a Live, &Authority),
    head: &Head,
) -> Result<Result<Routed<'a>, RouteAnswer>, Refusal> {
    exchange.service = live.label;
    if live.compiled.has_http_routes() && live.is_instance(dialed) {
        return Ok(Ok(Routed::default()));
    }
    let (host, port) = split_port(head.authority().unwrap_or_default());
    // One that servers read differently is matched as it came: only access rules must be sure.
    let path = match live.compiled.has_http_routes() {
        true => canonical(head.path.path()).unwrap_or(Cow::Borrowed(head.path.path())),
        false => Cow::Borrowed(head.path.path()),
    };
    let view = RequestView {
        authority: head.authority().unwrap_or_default(),
        host,
        path: &path,
        query: head.path.query(),
        method: &head.method,
        headers: &head.headers,
    };
    if let Some(answer) = route_answer::preflight(&live.compiled, &view) {
        return Ok(Err(answer));
    }
    let matched = match live.compiled.route_http(&view) {
        HttpRouting::Direct => return Ok(Ok(Routed::default())),
        HttpRouting::Rule(matched) => matched,
        HttpRouting::NoMatch => {
            let what = format!("no rule matches {} {}", head.method, head.path.path());
            return Err(Refusal::new(Reason::NoRoute, what));
        }
    };
    exchange.route = live.route_label(matched.rule);
    let of_rule = &matched.rule.filters;
    if let Some(answer) = route_answer::of(of_rule, matched.prefix, &view, port)? {
        return Ok(Err(answer));
    }
    let share = matched.rule.split.pick(connection.worker.random());
    let share = share.ok_or_else(|| Refusal::new(Reason::NoBackend, "the rule has no backends"))?;
    match &share.target {
        compile::Target::Backend(backend) => {
            let filters = (!share.filters.is_empty()).then_some(&share.filters);
            if let Some(own) = filters
                && let Some(answer) = route_answer::of(own, matched.prefix, &view, port)?
            {
                return Ok(Err(answer));
            }
            let cors = filters.and_then(|own| route_answer::grant(own, &view));
            let cors = cors.or_else(|| route_answer::grant(of_rule, &view)).map(Box::new);
            let path = match path {
                Cow::Borrowed(_) => None,
                Cow::Owned(path) => head.path_as(&path).ok(),
            };
            Ok(Ok(Routed { backend: *backend, path, matched: Some(matched), share: filters, cors }))
        }
        compile::Target::Invalid(why) => Err(Refusal::new(Reason::NoBackend, why.to_string())),
    }
}

fn split_port(authority: &str) -> (&str, Option<u16>) {
    let colon = authority.bytes().rposition(|byte| byte == b':');
    match colon.map(|at| (&authority[..at], &authority[at + 1..])) {
        Some((host, port)) if !host.ends_with(':') && !port.contains(']') => {
            (host, port.parse().ok())
        }
        _ => (authority, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size<A, B, C, D, E, F: Future>(_: fn(A, B, C, D, E) -> F) -> usize {
        size_of::<F>()
    }

    /// hyper keeps room for one such future with every HTTP/1.1 connection, idle or not.
    #[test]
    fn the_future_of_a_request_stays_small() {
        let size = size(handle);
        assert!(size <= 2 * 1024, "{size} bytes");
    }
}
