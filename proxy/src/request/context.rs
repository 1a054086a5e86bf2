//! What follows a request over hops and through apps: its trace, deadline, priority and the way it came.
//!
//! The inbound side remembers it while the app works on the request ([`remember`]); an outbound request
//! of the same app inherits it ([`inherit`]), so that an app need forward no more than its trace or
//! request id. The nearer deadline holds; another priority is what a request says itself.

use std::time::{Duration, Instant};

use http::header::{HeaderMap, HeaderValue};
use outrigger_core::balance::hash;
use outrigger_core::policy::CallPolicy;
use outrigger_core::policy::correlation::{Inflight, RequestKeys};
use outrigger_core::policy::deadline::{Deadline, DeadlineSource, HeaderTimeouts};
use outrigger_core::policy::priority::Priority;
use outrigger_core::policy::visits::{self, VisitStop};
use outrigger_core::reason::Reason;

use crate::base::peer::Peer;
use crate::base::refusal::Refusal;
use crate::listener::connection::Connection;
use crate::observe::record::TraceContext;
use crate::request::exchange::Exchange;
use crate::request::head::Head;
use crate::upstream::store::Live;
use crate::upstream::target::AttemptTarget;
use crate::wire::deadline::{exceeded, tell, told};
use crate::wire::headers::{HeaderScan, PRIORITY, VIA};
use crate::wire::trace;

/// An inbound request: what it carries is remembered until it ends.
pub fn remember(
    connection: &Connection,
    exchange: &mut Exchange,
    head: &mut Head,
    seen: HeaderScan,
) -> Result<(), Refusal> {
    let is_external = connection.peer.get() != Peer::Mesh;
    let worker = &connection.worker;
    let sampling = worker.proxy.traces.sampling();
    let headers = &mut head.headers;
    let (id, has_id) = trace::request_id(headers, seen, || worker.random());
    let by_id = !is_external || !has_id;
    let request = if by_id { worker.proxy.correlation.hash(id.as_bytes()) } else { 0 };
    let mut trace = trace::continued(headers, seen, sampling, || worker.random());
    if let Some(sampler) = sampling.filter(|_| trace.id == 0) {
        let begun = if head.trace_by_id { trace::of_id(&id, sampler) } else { None };
        trace = match begun {
            Some(begun) => trace::continued_by_id(headers, begun, || worker.random()),
            None => trace::begin(headers, sampler, None, || worker.random()),
        };
    }
    exchange.request_id = Some(id);
    exchange.trace = trace;
    if seen.has(HeaderScan::TIME) {
        exchange.deadline = Deadline::begin(exchange.began, told(headers).nearest(), None, None);
        if head.deadline_by_policy {
            exchange.deadline = exchange.deadline.map(Deadline::of_policy);
        }
    }
    if let Some(left) = exchange.time_left("the deadline passed before arrival")? {
        tell(headers, left, exchange.is_grpc());
    }
    let mut via = None;
    if seen.has(HeaderScan::INTERNAL) {
        let said = if seen.has(HeaderScan::PRIORITY) { priority(headers) } else { None };
        exchange.priority = said.unwrap_or_default();
        // For proxies alone: the app cannot make anything of it.
        let way = if seen.has(HeaderScan::VIA) { headers.remove(VIA) } else { None };
        via = way.filter(visits::is_valid);
    }
    let proxy = &connection.worker.proxy;
    // What an app repeats verbatim.
    let span = if trace.sent == 0 { trace.received } else { trace.sent };
    let mut keys = RequestKeys { trace: trace.id, span, request };
    if is_external && trace.sent == 0 {
        // All of it is the external client's own.
        keys.trace = 0;
    }
    let inflight = Inflight {
        keys,
        flags: trace.flags,
        caller: connection.caller_key(),
        is_external,
        deadline: exchange.deadline.map(|deadline| deadline.at),
        priority: exchange.priority,
        via,
        ..Inflight::default()
    };
    exchange.remembered = proxy.correlation.remember(inflight);
    Ok(())
}

/// An outbound request: what the inbound request that it belongs to carries.
pub fn inherit(
    connection: &Connection,
    exchange: &mut Exchange,
    head: &mut Head,
    seen: HeaderScan,
) -> Result<(), Refusal> {
    let correlation = &connection.worker.proxy.correlation;
    let worker = &connection.worker;
    let sampling = worker.proxy.traces.sampling();
    let (id, has_id) = trace::request_id(&mut head.headers, seen, || worker.random());
    let mut request = 0;
    if has_id && !correlation.is_empty() {
        request = correlation.hash(id.as_bytes());
    }
    let mut trace = trace::continued(&mut head.headers, seen, sampling, || worker.random());
    let found = correlation.find(RequestKeys { trace: trace.id, span: trace.received, request });
    if let Some(sampler) = sampling.filter(|_| trace.id == 0) {
        let parent = found.as_ref().and_then(|found| trace_of(found.from.as_deref()?));
        // One that begins here, with an id of ours, need not be said to another proxy.
        let begun = if has_id || parent.is_some() { None } else { trace::of_id(&id, sampler) };
        head.trace_by_id = begun.is_some();
        trace = begun.unwrap_or_else(|| {
            trace::begin(&mut head.headers, sampler, parent, || worker.random())
        });
    }
    // A span that the app made and does not record would be missing on the way; the callee's own is there.
    if sampling.is_some() && !trace.is_sampled() {
        let parent = found.as_ref().and_then(|found| trace_of(found.from.as_deref()?));
        let parent = parent.filter(|parent| parent.id == trace.id && parent.sent != 0);
        trace.received = parent.map_or(trace.received, |parent| parent.sent);
    }
    (exchange.request_id, exchange.has_own_id) = (Some(id), !has_id);
    exchange.trace = trace;
    let told =
        if seen.has(HeaderScan::TIME) { told(&head.headers) } else { HeaderTimeouts::default() };
    let explicit = told.nearest();
    let own = if seen.has(HeaderScan::PRIORITY) { priority(&head.headers) } else { None };
    exchange.priority = own.unwrap_or_default();
    let mut inherited = None;
    if let Some(found) = found {
        inherited = found.deadline;
        exchange.priority = own.unwrap_or(found.priority);
        exchange.via = found.via;
        exchange.inherited = found.from;
    }
    exchange.deadline = Deadline::begin(exchange.began, explicit, inherited, None);
    exchange.time_left("the deadline passed before the request was sent").map(drop)
}

/// What a policy adds once it is known where the request goes, and whether it has been there before.
pub fn start(
    exchange: &mut Exchange,
    live: &Live,
    backend: usize,
    rule: u32,
    call: &CallPolicy,
    head: &Head,
) -> Result<(), Refusal> {
    if exchange.deadline.is_none() && call.deadline.is_some() {
        exchange.deadline = Deadline::begin(exchange.began, None, None, call.deadline);
    }
    if let Some(priority) = call.priority
        && exchange.priority == Priority::Default
        && !head.headers.contains_key(PRIORITY)
    {
        exchange.priority = priority;
    }
    if exchange.via.is_none() && !live.backends[backend].has_mesh() {
        return Ok(());
    }
    let what = hash(head.method.as_str().as_bytes()) ^ hash(head.path.path().as_bytes());
    exchange.visit = rule ^ what as u32;
    if exchange.via.is_some() {
        let service = &live.compiled.backends[0].label;
        let upstream =
            visits::visit(exchange.via.as_ref(), service, exchange.visit, call.max_visits);
        exchange.via = Some(upstream.map_err(stopped)?);
    }
    Ok(())
}

/// Writes what the next hop has to know into one attempt. `limit`: the attempt's own, if it has one.
pub fn send_along(
    exchange: &Exchange,
    live: &Live,
    target: &AttemptTarget,
    head: &mut Head,
    (call, streams): (&CallPolicy, bool),
    limit: Option<Instant>,
    now: Instant,
) {
    let headers = &mut head.headers;
    if exchange.attempts > 1 && exchange.is_recorded() {
        trace::again(headers, &exchange.trace, exchange.attempts);
    } else if head.trace_by_id && !target.wire.is_hop() {
        trace::say(headers, &exchange.trace);
    }
    // A server that is told of a time would end its stream by it.
    let streams = streams || call.streaming;
    let deadline = exchange.deadline.filter(|deadline| deadline.outlives_head(streams));
    let limit = limit.filter(|_| !streams);
    if let Some(end) = deadline.map(|deadline| deadline.at).into_iter().chain(limit).min() {
        // Below a millisecond it is refused before.
        let left = end.saturating_duration_since(now).max(Duration::from_millis(1));
        tell(headers, left, exchange.is_grpc());
    }
    if !target.wire.is_hop() {
        // An earlier attempt may have gone to a proxy.
        if exchange.attempts > 1 {
            headers.remove(VIA);
        }
        return;
    }
    head.deadline_by_policy =
        deadline.is_some_and(|deadline| deadline.origin == DeadlineSource::Policy);
    if exchange.priority != Priority::Default {
        headers.insert(PRIORITY, HeaderValue::from_static(exchange.priority.as_str()));
    }
    let service = &live.compiled.backends[0].label;
    let upstream = match &exchange.via {
        Some(upstream) => Ok(upstream.clone()),
        None => exchange.connection.worker.visits.first(service, exchange.visit),
    };
    if let Ok(upstream) = upstream {
        headers.insert(VIA, upstream);
    }
}

/// The trace of the inbound request that an outbound one belongs to, if it is in one.
fn trace_of(inflight: &Inflight) -> Option<TraceContext> {
    let RequestKeys { trace: id, span: sent, .. } = inflight.keys;
    (id != 0).then_some(TraceContext { id, received: 0, sent, flags: inflight.flags })
}

/// A word that nobody knows says nothing.
fn priority(headers: &HeaderMap) -> Option<Priority> {
    headers.get(PRIORITY)?.to_str().ok()?.parse().ok()
}

fn stopped(stop: VisitStop) -> Refusal {
    match stop {
        VisitStop::Loop(services) => {
            Refusal::new(Reason::Loop, format!("request loop: {services}"))
        }
        VisitStop::TooFar(services) => {
            let limit = visits::HOP_LIMIT;
            Refusal::new(Reason::HopLimit, format!("passed through {limit} services: {services}"))
        }
    }
}

impl Exchange {
    /// None: no deadline. An error when it has passed.
    pub fn time_left(&self, what: &'static str) -> Result<Option<Duration>, Refusal> {
        let Some(deadline) = &self.deadline else { return Ok(None) };
        let now = Instant::now();
        deadline.left(now).map(Some).ok_or_else(|| exceeded(deadline, now, what))
    }
}
