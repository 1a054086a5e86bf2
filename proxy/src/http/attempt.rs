//! One try: an endpoint, a connection to it, the request written in its protocol, the head of the
//! answer.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::{self, HeaderValue};
use http::{Request, Response};
use outrigger_core::balance;
use outrigger_core::config::{Balancer, HashKey, Protocol};
use outrigger_core::name::Host;
use outrigger_core::outcome::Outcome;
use outrigger_core::policy::CallPolicy;
use outrigger_core::reason::Reason;
use outrigger_core::time::Later;

use super::body::RequestBody;
use super::context;
use super::deadline::{Clock, poll_within};
use super::exchange::{Exchange, Lease};
use super::failed::{Failed, Waited, failure, timed_out};
use super::fault;
use super::head::Head;
use super::headers::UNPROCESSED;
use super::respond::Refusal;
use super::server::Connection;
use super::verdict::Verdict;
use crate::endpoint::{Choice, EndpointState, Endpoints, NoChoice, coarse_ms};
use crate::guard::{Attempt, Trials};
use crate::local::is_private;
use crate::metrics::add;
use crate::pool::h1::Reuse;
use crate::pool::{PoolKey, Wire};
use crate::store::{Dialed, Live};
use crate::streams::WireBody;
use crate::tls::Expected;
use crate::worker::Worker;

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
    /// To where the mesh has no service.
    unmatched: bool,
}

/// Which endpoint a try went to, and how.
pub(super) struct Mark {
    endpoint: u64,
    wire: Wire,
    protocol: Protocol,
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
        HashKey::Header(name) => Some(balance::hash(head.value(name)?)),
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
            let unmatched = matches!(way, Way::Outside { .. });
            return Ok(Hop {
                trials,
                address,
                wire,
                expected,
                endpoint: None,
                protocol,
                unmatched,
            });
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
    if endpoint.endpoint.mesh.is_none() && !endpoint.is_outside {
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
            Host::Ip(ip) if !endpoints.is_outside => {
                let address = SocketAddr::new(*ip, dialed.authority.port);
                if let Some(endpoint) = endpoints.load().at(address) {
                    return Ok(Arc::clone(endpoint));
                }
            }
            Host::Ip(_) => {}
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
        NoChoice::Unfit => Refusal::new(
            Reason::NoEndpoint,
            format!("every instance of {} is ejected or unhealthy", endpoints.name),
        ),
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
    reuse: Reuse,
) -> Result<Response<WireBody>, Failed> {
    let began = if exchange.attempts == 1 { exchange.began } else { Instant::now() };
    let limits = &call.timeouts;
    let end = limits.attempt.and_then(|limit| began.checked_add(limit));
    if let (Way::Service { live, .. }, Some(head)) = (way, head.as_mut()) {
        let streams = (call, head.upgrade.is_some());
        context::send_along(exchange, live, hop, head, streams, end, began);
    }
    exchange.attempt = hop.begin(way, began);
    let mut held = Duration::ZERO;
    if fault::is_possible(way, call) {
        let until = earlier(end, began, limits.first_byte);
        let (calls, head) = ((way, call), head.as_ref());
        let injecting = Box::pin(fault::inject(worker, exchange, calls, head, until));
        held = injecting.await?.ok_or_else(|| timed_out(hop, waited(began, end)))?;
    }
    let mut clock = Clock::at(earlier(end, began.later(held), limits.connect));
    let first_byte_limit = limits.first_byte.map(|limit| limit.saturating_sub(held));
    let key = hop.key();
    let keeps_case = exchange.connection.protocol == Protocol::Http1;
    let sent = if hop.wire == Wire::Http1 {
        let mut lease = {
            let mut leasing = pin!(worker.pools.lease_h1(key, reuse, keeps_case, began));
            let leased = poll_fn(|cx| poll_within(leasing.as_mut(), &mut clock, cx)).await;
            leased.ok_or_else(|| timed_out(hop, Waited::Connection))??
        };
        // Boxed: it is far larger than all else, and the future of every request would carry its size.
        let mut sending =
            Box::pin(lease.send(write(head, keep, hop, body)?, Some(exchange.tracked.progress())));
        exchange.lease = Some(Lease::H1(lease));
        first_byte(&mut clock, end, first_byte_limit);
        poll_fn(|cx| poll_within(sending.as_mut(), &mut clock, cx)).await
    } else {
        let lease = {
            let mut leasing = pin!(worker.pools.lease_h2(key, began));
            let leased = poll_fn(|cx| poll_within(leasing.as_mut(), &mut clock, cx)).await;
            leased.ok_or_else(|| timed_out(hop, Waited::Connection))??
        };
        let switches = head.as_ref().is_some_and(|head| head.upgrade.is_some());
        let mut sending = pin!(lease.send(
            write(head, keep, hop, body)?,
            switches,
            Some(exchange.tracked.progress())
        ));
        exchange.lease = Some(Lease::H2(lease));
        first_byte(&mut clock, end, first_byte_limit);
        poll_fn(|cx| poll_within(sending.as_mut(), &mut clock, cx)).await
    };
    let sent = sent.ok_or_else(|| timed_out(hop, waited(began, end)))?;
    let response = sent.map_err(|error| failure(hop, error))?;
    hop.learn(exchange.is_grpc(), way, exchange.attempt.as_mut(), began, &response);
    Ok(response)
}

/// The earlier of `end` and `limit` from `now` on.
pub(super) fn earlier(
    end: Option<Instant>,
    now: Instant,
    limit: Option<Duration>,
) -> Option<Instant> {
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

fn write(
    head: &mut Option<Head>,
    keep: bool,
    hop: &Hop,
    body: RequestBody,
) -> Result<Request<RequestBody>, Refusal> {
    let head = if keep { head.as_mut().map(Head::lend) } else { head.take() };
    let head = head.ok_or_else(|| Refusal::new(Reason::InternalError, "the request is gone"))?;
    head.into_request(hop, body)
}

/// Why the far proxy says that nobody processed the request, if it says so.
pub fn unprocessed(hop: &Hop, response: &Response<WireBody>) -> Option<Reason> {
    if !hop.wire.is_hop() {
        return None;
    }
    let word = response.headers().get(UNPROCESSED)?;
    Reason::from_word(word.to_str().ok()?)
}

impl Hop {
    /// Learns from the head of an answer how quick and how fit the endpoint is.
    pub(super) fn learn(
        &self,
        grpc: bool,
        way: &Way<'_>,
        attempt: Option<&mut Attempt>,
        began: Instant,
        response: &Response<WireBody>,
    ) {
        let (Some(endpoint), Some(attempt)) = (&self.endpoint, attempt) else { return };
        attempt.answered();
        let now = Instant::now();
        let latency = now.saturating_duration_since(began).as_micros();
        let (latency, now_ms) = (u32::try_from(latency).unwrap_or(u32::MAX), coarse_ms(now));
        match Verdict::of(response, grpc, self.wire.is_hop()) {
            Verdict::Healthy => endpoint.load.observe_answer(now_ms, latency),
            Verdict::Failed => {
                if let Some(endpoints) = way.endpoints() {
                    endpoints.failed(endpoint, began, now);
                }
            }
            verdict => {
                if let (Verdict::Full(time), Some(endpoints)) = (verdict, way.endpoints()) {
                    endpoints.set_full(endpoint, now_ms, time);
                }
                attempt.judge(Outcome::Refused, || 0);
            }
        }
    }

    /// Through the endpoint's proxy, or straight to its app when it has none.
    pub(super) fn to(
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
        let (endpoint, unmatched) = (Some(endpoint), false);
        Self { trials, address, wire, expected, endpoint, protocol, unmatched }
    }

    pub(super) fn key(&self) -> PoolKey {
        PoolKey { address: self.address, wire: self.wire, expected: self.expected }
    }

    /// To somebody who is not of the mesh and is told nothing of it.
    pub(super) fn is_outside(&self) -> bool {
        self.endpoint.as_ref().is_some_and(|endpoint| endpoint.is_outside)
    }

    /// To where it might be somebody's admin server that answers.
    pub(super) fn is_proxied(&self) -> bool {
        self.unmatched && is_private(self.address.ip())
    }

    /// This proxy speaks TLS to somebody outside.
    pub(super) fn begins_tls(&self) -> bool {
        self.expected.is_outside()
    }

    /// What a second try beside this one has to know of it.
    pub(super) fn mark(&self) -> Option<Mark> {
        let (wire, protocol) = (self.wire, self.protocol);
        self.endpoint.as_ref().map(|endpoint| Mark { endpoint: endpoint.key, wire, protocol })
    }

    /// Another endpoint of the same service that is reached in the same way, for a second try beside a
    /// first one. None: there is none that may be asked now.
    pub(super) fn beside(
        first: &Mark,
        worker: &Worker,
        way: &Way<'_>,
        callers: Protocol,
    ) -> Option<Self> {
        let Way::Service { live, dialed, backend, .. } = *way else { return None };
        let choice = Choice {
            random: worker.random(),
            now_ms: coarse_ms(Instant::now()),
            balancer: &Balancer::PowerOfTwo,
            hash: None,
            tried: &[first.endpoint],
        };
        let (endpoint, trials) = take_endpoint(live, dialed, backend, &choice).ok()?;
        let other = endpoint.key != first.endpoint;
        let hop = Self { trials, ..Self::to(endpoint, first.protocol, callers, false) };
        if !other || hop.wire != first.wire {
            hop.unused(way);
            return None;
        }
        Some(hop)
    }

    /// The try is not made after all.
    pub(super) fn unused(&self, way: &Way<'_>) {
        if let Some(endpoints) = way.endpoints() {
            endpoints.guard.unused(&self.trials);
        }
    }

    /// The try as its endpoint and its service's breaker count it.
    pub(super) fn begin(&mut self, way: &Way<'_>, now: Instant) -> Option<Attempt> {
        let (endpoints, endpoint) = (way.endpoints()?, self.endpoint.as_ref()?);
        Some(Attempt::begin(endpoints, endpoint, std::mem::take(&mut self.trials), now))
    }

    pub(super) fn endpoint(&self) -> Option<&Arc<EndpointState>> {
        self.endpoint.as_ref()
    }

    /// So that the next try, and the next request, turn elsewhere.
    /// `unreachable`: nothing could be sent to it, which its latency does not show.
    pub fn note_failure(&self, tried: &mut Vec<u64>, unreachable: bool) {
        if let Some(endpoint) = &self.endpoint {
            if unreachable {
                endpoint.load.observe_failure(coarse_ms(Instant::now()));
            }
            tried.push(endpoint.key);
        }
    }

    pub(super) fn header(&self, deadline_by_policy: bool, absolute: bool) -> HeaderValue {
        let Some(endpoint) = &self.endpoint else { return HeaderValue::from_static("") };
        let header = endpoint.hop_header(self.protocol, deadline_by_policy);
        if !absolute {
            return header;
        }
        let longer = [header.as_bytes(), b";form=absolute"].concat();
        HeaderValue::from_bytes(&longer).unwrap_or(header)
    }
}
