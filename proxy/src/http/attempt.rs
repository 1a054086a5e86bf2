//! One try: an endpoint, a connection to it, the request written in its protocol, the head of the
//! answer.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::{self, HeaderMap, HeaderValue};
use http::request::Parts;
use http::uri::{Authority, InvalidUri, PathAndQuery, Scheme};
use http::{Method, Request, Response, Uri, Version};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use outrigger_core::balance;
use outrigger_core::compile::Filters;
use outrigger_core::config::{Balancer, HashKey, Protocol};
use outrigger_core::filter::{modify_headers, rewrite_path};
use outrigger_core::name::Host;
use outrigger_core::policy::CallPolicy;
use outrigger_core::reason::Reason;

use super::body::RequestBody;
use super::context;
use super::deadline::{Clock, poll_within};
use super::exchange::{Exchange, Lease};
use super::headers::{HOP, UNPROCESSED};
use super::respond::Refusal;
use super::server::Connection;
use super::upgrade::Switch;
use crate::endpoint::{Choice, EndpointState, Endpoints, NoChoice, coarse_ms};
use crate::guard::{Attempt, Trials};
use crate::metrics::add;
use crate::pool::connect::ConnectError;
use crate::pool::{PoolKey, Wire, h2};
use crate::store::{Dialed, Live};
use crate::tls::Expected;
use crate::worker::Worker;

const WEBSOCKET_KEY: HeaderValue = HeaderValue::from_static("b3V0cmlnZ2VyLXByb3h5IQ==");

/// The head of a request, free of how it came in, so that it can be written as any wire wants it.
#[derive(Clone)]
pub struct Head {
    pub method: Method,
    pub path: PathAndQuery,
    /// From the request's target; none when only the Host header names it.
    pub authority: Option<Authority>,
    pub headers: HeaderMap,
    /// The token of the protocol that the request wants to change to.
    pub upgrade: Option<HeaderValue>,
}

/// How the target is reached, the same for every try.
pub enum Way<'a> {
    Service { live: &'a Live, dialed: &'a Dialed, backend: usize, hash: Option<u64> },
    App { address: SocketAddr, protocol: Protocol },
    Outside { address: SocketAddr, protocol: Protocol },
}

/// Where one try goes.
pub struct Hop {
    /// What its breaker and its endpoint make of the try.
    trials: Trials,
    pub address: SocketAddr,
    pub wire: Wire,
    expected: Expected,
    endpoint: Option<Arc<EndpointState>>,
    /// What the far proxy shall speak to the app.
    protocol: Protocol,
}

/// A try that brought no answer.
pub struct Failed {
    pub reason: Reason,
    pub detail: String,
    /// Somebody may have acted on the request.
    pub processed: bool,
}

impl Head {
    pub fn new(parts: Parts, switch: Option<&Switch>) -> Self {
        let uri = parts.uri.into_parts();
        Self {
            method: parts.method,
            path: uri.path_and_query.unwrap_or_else(|| PathAndQuery::from_static("/")),
            authority: uri.authority,
            headers: parts.headers,
            upgrade: switch.and_then(|switch| switch.token.clone()),
        }
    }

    /// The host that the request names: its target's authority, else its Host header.
    pub fn authority(&self) -> Option<&str> {
        match &self.authority {
            Some(authority) => Some(authority.as_str()),
            None => self.headers.get(header::HOST)?.to_str().ok(),
        }
    }

    /// Another path with the query that came.
    pub fn path_as(&self, path: &str) -> Result<PathAndQuery, InvalidUri> {
        match self.path.query() {
            Some(query) => PathAndQuery::try_from(format!("{path}?{query}")),
            None => PathAndQuery::try_from(path),
        }
    }

    /// Applies what a rule or a backend changes about requests.
    pub fn apply(&mut self, filters: &Filters, prefix: Option<&str>) -> Result<(), Refusal> {
        for modifier in &filters.request_headers {
            modify_headers(modifier, &mut self.headers);
        }
        let Some(rewrite) = &filters.rewrite else { return Ok(()) };
        let broken = |why: String| Refusal::new(Reason::BadRequest, why);
        if let Some(path) = &rewrite.path {
            self.path = rewrite_path(path, prefix, self.path.path(), self.path.query())
                .map_err(|e| broken(e.to_string()))?;
        }
        if let Some(host) = &rewrite.host {
            let authority =
                Authority::try_from(host.as_str()).map_err(|e| broken(e.to_string()))?;
            self.authority = Some(authority);
        }
        Ok(())
    }

    /// The request as `hop` wants it written.
    fn into_request(self, hop: &Hop, body: RequestBody) -> Result<Request<RequestBody>, Refusal> {
        let mut request = Request::new(body);
        *request.method_mut() = self.method;
        *request.headers_mut() = self.headers;
        let headers = request.headers_mut();
        if hop.wire == Wire::Http1 {
            if let Some(authority) = &self.authority {
                let host = HeaderValue::from_str(authority.as_str());
                headers.insert(header::HOST, host.map_err(|_| bad_authority())?);
            }
            join_cookies(headers);
            if let Some(token) = self.upgrade {
                headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
                headers.insert(header::UPGRADE, token);
                // A caller on HTTP/2 sends none (RFC 8441); it proves only that the app understood.
                headers.entry("sec-websocket-key").or_insert(WEBSOCKET_KEY);
                *request.method_mut() = Method::GET;
            }
            *request.uri_mut() = Uri::from(self.path);
            return Ok(request);
        }
        let host = headers.remove(header::HOST);
        let authority = match (self.authority, host) {
            (Some(authority), _) => authority,
            (None, Some(host)) => {
                Authority::try_from(host.as_bytes()).map_err(|_| bad_authority())?
            }
            (None, None) => return Err(bad_authority()),
        };
        if hop.wire == Wire::Hop {
            headers.insert(HOP, hop.header());
        }
        if let Some(token) = self.upgrade {
            let token = token.to_str().map_err(|_| bad_authority())?;
            *request.method_mut() = Method::CONNECT;
            request.extensions_mut().insert(hyper::ext::Protocol::from(token));
        }
        let mut uri = http::uri::Parts::default();
        uri.scheme = Some(Scheme::HTTP);
        uri.authority = Some(authority);
        uri.path_and_query = Some(self.path);
        *request.uri_mut() = Uri::from_parts(uri).map_err(|_| bad_authority())?;
        *request.version_mut() = Version::HTTP_2;
        Ok(request)
    }
}

fn bad_authority() -> Refusal {
    Refusal::new(Reason::BadRequest, "the request's host is not a valid authority")
}

/// HTTP/2 may split cookies; HTTP/1.1 wants one header (RFC 9113 section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let mut cookies = headers.get_all(header::COOKIE).iter();
    let (Some(first), Some(second)) = (cookies.next(), cookies.next()) else { return };
    let mut joined = first.as_bytes().to_vec();
    for cookie in std::iter::once(second).chain(cookies) {
        joined.extend_from_slice(b"; ");
        joined.extend_from_slice(cookie.as_bytes());
    }
    if let Ok(joined) = HeaderValue::from_bytes(&joined) {
        headers.insert(header::COOKIE, joined);
    }
}

impl<'a> Way<'a> {
    /// Of the service that it leads to, if the mesh has it.
    pub fn endpoints(&self) -> Option<&'a Arc<Endpoints>> {
        match self {
            Self::Service { live, backend, .. } => Some(&live.backends[*backend]),
            Self::App { .. } | Self::Outside { .. } => None,
        }
    }

    /// To a backend of a service of the mesh.
    pub fn service(
        connection: &Connection,
        live: &'a Live,
        dialed: &'a Dialed,
        backend: usize,
        head: &Head,
    ) -> Self {
        let hash = match &live.compiled.backends[backend].balancer {
            Balancer::RingHash(key) => hash_of(key, connection, head),
            Balancer::PowerOfTwo | Balancer::RoundRobin => None,
        };
        Self::Service { live, dialed, backend, hash }
    }
}

/// None when the request has no such header or cookie: then any endpoint will do.
fn hash_of(key: &HashKey, connection: &Connection, head: &Head) -> Option<u64> {
    match key {
        HashKey::Source => Some(balance::hash(connection.remote.ip().to_string().as_bytes())),
        HashKey::Header(name) => Some(balance::hash(head.headers.get(name)?.as_bytes())),
        HashKey::Cookie(name) => head
            .headers
            .get_all(header::COOKIE)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(';'))
            .filter_map(|pair| pair.trim().split_once('='))
            .find(|(cookie, _)| cookie == name)
            .map(|(_, value)| balance::hash(value.as_bytes())),
    }
}

/// Chooses where the next try goes.
pub fn choose(
    worker: &Worker,
    exchange: &mut Exchange,
    way: &Way<'_>,
    upgrade: bool,
    tried: &[u64],
) -> Result<Hop, Refusal> {
    let (live, dialed, backend, hash) = match way {
        Way::Service { live, dialed, backend, hash } => (*live, *dialed, *backend, *hash),
        Way::App { address, protocol } | Way::Outside { address, protocol } => {
            let wire = wire_of(*protocol, exchange.connection.protocol, upgrade);
            exchange.endpoint = Some(*address);
            let (address, expected) = (*address, Expected::NONE);
            let (trials, protocol) = (Trials::default(), *protocol);
            return Ok(Hop { trials, address, wire, expected, endpoint: None, protocol });
        }
    };
    let config = &live.compiled.backends[backend];
    let endpoints = &live.backends[backend];
    exchange.service = endpoints.label;
    let choice = Choice {
        random: worker.random(),
        now_ms: exchange.began_ms(),
        balancer: &config.balancer,
        hash,
        tried,
    };
    let (endpoint, trials) = take_endpoint(live, dialed, backend, &choice)?;
    exchange.peer = endpoint.peer;
    let callers = exchange.protocol;
    let protocol = if config.protocol.is_http() { config.protocol } else { callers };
    if endpoint.endpoint.mesh.is_none() {
        add(&worker.proxy.metrics.gauges.unmeshed, 1);
    }
    exchange.endpoint = Some(endpoint.endpoint.address);
    Ok(Hop { trials, ..Hop::to(endpoint, protocol, callers, upgrade) })
}

/// An endpoint that its service's breaker lets one more try go to.
pub fn take_endpoint(
    live: &Live,
    dialed: &Dialed,
    backend: usize,
    choice: &Choice<'_>,
) -> Result<(Arc<EndpointState>, Trials), Refusal> {
    let guard = &live.backends[backend].guard;
    let mut trials = guard.admit()?;
    let endpoint =
        endpoint_of(live, dialed, backend, choice).inspect_err(|_| guard.unused(&trials))?;
    guard.chosen(&endpoint, &mut trials);
    Ok((endpoint, trials))
}

/// The endpoint for a request or connection: the instance that was dialled, or a balanced choice.
fn endpoint_of(
    live: &Live,
    dialed: &Dialed,
    backend: usize,
    choice: &Choice<'_>,
) -> Result<Arc<EndpointState>, Refusal> {
    let endpoints = &live.backends[backend];
    // A pin holds for the service itself: a route to another backend knows no such instance.
    if backend == 0 {
        match &dialed.authority.host {
            Host::Ip(ip) => {
                let address = SocketAddr::new(*ip, dialed.authority.port);
                if let Some(endpoint) = endpoints.load().at(address) {
                    return Ok(Arc::clone(endpoint));
                }
            }
            Host::Name(_) => {
                if let Some(instance) = dialed.instance_of(&live.compiled.name.service) {
                    return endpoints.load().named(instance).cloned().ok_or_else(|| {
                        Refusal::new(Reason::EndpointGone, format!("no instance {instance}"))
                    });
                }
            }
        }
    }
    endpoints.choose(choice).map_err(|why| match why {
        NoChoice::None => {
            Refusal::new(Reason::NoEndpoint, format!("{} has no ready instance", endpoints.name))
        }
        NoChoice::Busy => Refusal::new(
            Reason::TooManyInFlight,
            format!("every instance of {} has as much as it may", endpoints.name),
        ),
    })
}

fn wire_of(protocol: Protocol, callers: Protocol, upgrade: bool) -> Wire {
    match (protocol, callers) {
        // An upgrade is an HTTP/1.1 matter whatever else the port speaks.
        _ if upgrade => Wire::Http1,
        (Protocol::Http1, _) => Wire::Http1,
        (Protocol::Http2 | Protocol::Grpc, _) => Wire::Http2,
        (_, Protocol::Http2 | Protocol::Grpc) => Wire::Http2,
        _ => Wire::Http1,
    }
}

/// Sends the request once, taking its head unless it is kept for another try. On success the exchange
/// holds the connection.
#[expect(
    clippy::too_many_arguments,
    reason = "what one try needs, lent so that futures stay small"
)]
pub async fn send(
    worker: &Rc<Worker>,
    exchange: &mut Exchange,
    way: &Way<'_>,
    hop: &mut Hop,
    call: &CallPolicy,
    (head, keep): (&mut Option<Head>, bool),
    body: RequestBody,
    repeatable: bool,
) -> Result<Response<Incoming>, Failed> {
    let began = if exchange.attempts == 1 { exchange.began } else { Instant::now() };
    let limits = &call.timeouts;
    let end = limits.attempt.and_then(|limit| began.checked_add(limit));
    if let (Way::Service { live, .. }, Some(head)) = (way, head.as_mut()) {
        let streams = (call, head.upgrade.is_some());
        context::send_along(exchange, live, hop, &mut head.headers, streams, end, began);
    }
    let mut clock = Clock::at(earlier(end, began, limits.connect));
    exchange.attempt = match (way.endpoints(), &hop.endpoint) {
        (Some(endpoints), Some(endpoint)) => {
            Some(Attempt::begin(endpoints, endpoint, std::mem::take(&mut hop.trials)))
        }
        _ => None,
    };
    let key = hop.key();
    let sent = if hop.wire == Wire::Http1 {
        let mut lease = {
            let mut leasing = pin!(worker.pools.lease_h1(key, repeatable, began));
            let leased = poll_fn(|cx| poll_within(leasing.as_mut(), &mut clock, cx)).await;
            leased.ok_or_else(|| timed_out(hop, Waited::Connection))??
        };
        let mut sending = pin!(lease.send(write(head, keep, hop, body)?));
        exchange.lease = Some(Lease::H1(lease));
        first_byte(&mut clock, end, limits.first_byte);
        poll_fn(|cx| poll_within(sending.as_mut(), &mut clock, cx)).await
    } else {
        let lease = {
            let mut leasing = pin!(worker.pools.lease_h2(key, began));
            let leased = poll_fn(|cx| poll_within(leasing.as_mut(), &mut clock, cx)).await;
            leased.ok_or_else(|| timed_out(hop, Waited::Connection))??
        };
        if head.as_ref().is_some_and(|head| head.upgrade.is_some()) {
            Box::pin(upgradable(worker, hop, &lease)).await?;
        }
        let mut sending = pin!(lease.send(write(head, keep, hop, body)?));
        exchange.lease = Some(Lease::H2(lease));
        first_byte(&mut clock, end, limits.first_byte);
        poll_fn(|cx| poll_within(sending.as_mut(), &mut clock, cx)).await
    };
    let sent = sent.ok_or_else(|| timed_out(hop, waited(began, end)))?;
    let response = sent.map_err(|error| failure(hop, error))?;
    if let Some(endpoint) = &hop.endpoint {
        let now = Instant::now();
        let latency = now.saturating_duration_since(began).as_micros();
        endpoint.load.observe(coarse_ms(now), u32::try_from(latency).unwrap_or(u32::MAX));
    }
    Ok(response)
}

/// What a try that ran out of time waited for.
#[derive(Clone, Copy)]
enum Waited {
    Connection,
    FirstByte,
    Attempt,
}

/// The earlier of `end` and `limit` from `now` on.
fn earlier(end: Option<Instant>, now: Instant, limit: Option<Duration>) -> Option<Instant> {
    let limit = limit.and_then(|limit| now.checked_add(limit));
    end.into_iter().chain(limit).min()
}

fn first_byte(clock: &mut Clock, end: Option<Instant>, limit: Option<Duration>) {
    let at = match limit {
        Some(_) => earlier(end, Instant::now(), limit),
        None => end,
    };
    clock.set(at);
}

fn waited(began: Instant, end: Option<Instant>) -> Waited {
    match end {
        Some(end) if Instant::now().max(began) >= end => Waited::Attempt,
        Some(_) | None => Waited::FirstByte,
    }
}

fn timed_out(hop: &Hop, waited: Waited) -> Failed {
    let (reason, what) = match waited {
        Waited::Connection => (Reason::ConnectTimeout, "no connection"),
        Waited::FirstByte => (Reason::FirstByteTimeout, "no response"),
        Waited::Attempt => (Reason::AttemptTimeout, "no response in this attempt"),
    };
    let processed = !matches!(waited, Waited::Connection);
    Failed {
        reason,
        detail: format!("{}: {what} within the policy's timeout", hop.address),
        processed,
    }
}

fn write(
    head: &mut Option<Head>,
    keep: bool,
    hop: &Hop,
    body: RequestBody,
) -> Result<Request<RequestBody>, Refusal> {
    let head = if keep { head.clone() } else { head.take() };
    let head = head.ok_or_else(|| Refusal::new(Reason::InternalError, "the request is gone"))?;
    head.into_request(hop, body)
}

async fn upgradable(worker: &Worker, hop: &Hop, lease: &h2::Lease) -> Result<(), Failed> {
    if lease.takes_upgrades(worker.proxy.settings.connect_timeout).await {
        return Ok(());
    }
    let detail = format!("{}: takes no extended CONNECT", hop.address);
    Err(Failed::unprocessed(Reason::UpgradeRefused, detail))
}

/// Why the far proxy says that nobody processed the request, if it says so.
pub fn unprocessed(hop: &Hop, response: &Response<Incoming>) -> Option<Reason> {
    if !hop.wire.is_hop() {
        return None;
    }
    let word = response.headers().get(UNPROCESSED)?;
    Reason::from_word(word.to_str().ok()?)
}

/// What an error of hyper's says about whether the request was processed.
fn failure(hop: &Hop, mut error: TrySendError<Request<RequestBody>>) -> Failed {
    let unsent = error.take_message().is_some();
    let error = error.into_error();
    let h2 = std::error::Error::source(&error).and_then(|e| e.downcast_ref::<::h2::Error>());
    let refused = h2.is_some_and(|e| {
        // Refused by name, or beyond the last id of a graceful GOAWAY (RFC 9113 section 8.7).
        (e.is_reset() && e.reason() == Some(::h2::Reason::REFUSED_STREAM))
            || (e.is_go_away() && e.is_remote() && e.reason() == Some(::h2::Reason::NO_ERROR))
    });
    let detail = format!("{}: {}", hop.address, chain(&error));
    if unsent || refused {
        return Failed::unprocessed(Reason::UpstreamReset, detail);
    }
    let reason = if error.is_parse() {
        Reason::UpstreamProtocolError
    } else {
        Reason::UpstreamResetAmbiguous
    };
    Failed { reason, detail, processed: true }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

impl Hop {
    /// Through the endpoint's proxy, or straight to its app when it has none.
    fn to(
        endpoint: Arc<EndpointState>,
        protocol: Protocol,
        callers: Protocol,
        upgrade: bool,
    ) -> Self {
        let (address, wire) = match &endpoint.endpoint.mesh {
            Some(mesh) => (mesh.address, Wire::Hop),
            None => (endpoint.endpoint.address, wire_of(protocol, callers, upgrade)),
        };
        let (trials, expected) = (Trials::default(), endpoint.expected);
        Self { trials, address, wire, expected, endpoint: Some(endpoint), protocol }
    }

    fn key(&self) -> PoolKey {
        PoolKey { address: self.address, wire: self.wire, expected: self.expected }
    }

    /// So that the next try, and the next request, turn elsewhere.
    pub fn note_failure(&self, tried: &mut Vec<u64>) {
        if let Some(endpoint) = &self.endpoint {
            endpoint.load.observe_failure(coarse_ms(Instant::now()));
            tried.push(endpoint.key);
        }
    }

    fn header(&self) -> HeaderValue {
        match &self.endpoint {
            Some(endpoint) => endpoint.hop_header(self.protocol),
            None => HeaderValue::from_static(""),
        }
    }
}

impl Failed {
    pub fn unprocessed(reason: Reason, detail: String) -> Self {
        Self { reason, detail, processed: false }
    }
}

impl From<ConnectError> for Failed {
    fn from(error: ConnectError) -> Self {
        Self::unprocessed(error.reason, error.detail.to_string())
    }
}

/// A request that can't be written was refused before anything was sent.
impl From<Refusal> for Failed {
    fn from(refusal: Refusal) -> Self {
        Self::unprocessed(refusal.reason, refusal.detail.into_owned())
    }
}

impl From<Failed> for Refusal {
    fn from(failed: Failed) -> Self {
        Self::new(failed.reason, failed.detail)
    }
}

/// Sends a copy of a request to a backend, once. None: it could not be sent.
pub async fn copy(
    worker: &Rc<Worker>,
    live: &Live,
    backend: usize,
    callers: Protocol,
    head: Head,
    body: RequestBody,
) -> Option<(Response<Incoming>, Lease)> {
    let choice = Choice {
        random: worker.random(),
        now_ms: coarse_ms(Instant::now()),
        balancer: &Balancer::PowerOfTwo,
        hash: None,
        tried: &[],
    };
    let endpoint = live.backends[backend].choose(&choice).ok()?;
    let declared = live.compiled.backends[backend].protocol;
    let protocol = if declared.is_http() { declared } else { callers };
    let hop = Hop::to(endpoint, protocol, callers, false);
    let key = hop.key();
    let now = Instant::now();
    let request = head.into_request(&hop, body).ok()?;
    if hop.wire == Wire::Http1 {
        let mut lease = worker.pools.lease_h1(key, false, now).await.ok()?;
        let response = lease.send(request).await.ok()?;
        return Some((response, Lease::H1(lease)));
    }
    let lease = worker.pools.lease_h2(key, now).await.ok()?;
    let response = lease.send(request).await.ok()?;
    Some((response, Lease::H2(lease)))
}
