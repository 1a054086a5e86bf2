//! One try: an endpoint, a connection to it, the request written in its protocol, the head of the
//! answer.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::{self, HeaderMap};
use http::{Request, Response};
use outrigger_core::balance;
use outrigger_core::config::{Balancer, HashKey, Protocol};
use outrigger_core::name::Host;
use outrigger_core::policy::CallPolicy;
use outrigger_core::reason::Reason;
use outrigger_core::time::Later;

use super::body::RequestBody;
use super::context;
use super::deadline::{Clock, poll_within};
use super::exchange::{Exchange, Lease};
use super::failed::{FailedAttempt, Waited, failure, timed_out};
use super::fault;
use super::head::Head;
use super::hop::{AttemptTarget, wire_of};
use super::respond::Refusal;
use super::server::Connection;
use crate::endpoint::{Choice, EndpointState, Endpoints, NoChoice};
use crate::guard::ProbeIds;
use crate::metrics::add;
use crate::pool::Wire;
use crate::pool::h1::Reuse;
use crate::record::micros;
use crate::store::{Dialed, Live};
use crate::streams::WireBody;
use crate::tls::Expected;
use crate::worker::Worker;

/// How the target is reached, the same for every attempt.
pub enum Upstream<'a> {
    Service {
        live: &'a Live,
        dialed: &'a Dialed,
        backend: usize,
        hash: Option<u64>,
        /// The endpoint of the client's session.
        session: Option<u64>,
    },
    App {
        address: SocketAddr,
        protocol: Protocol,
    },
    Outside {
        address: SocketAddr,
        protocol: Protocol,
    },
}

impl<'a> Upstream<'a> {
    /// Of the service that it leads to, if the mesh has it.
    pub fn endpoints(&self) -> Option<&'a Arc<Endpoints>> {
        match self {
            Self::Service { live, backend, .. } => Some(&live.backends[*backend]),
            Self::App { .. } | Self::Outside { .. } => None,
        }
    }

    /// Tells the client which endpoint it has got, where it is to come back to it and does not know it yet.
    /// What a fallback gave is no endpoint of its own.
    pub fn keep_session(&self, exchange: &Exchange, headers: &mut HeaderMap) {
        let Self::Service { live, backend, session, .. } = self else { return };
        let Some(config) = &live.compiled.backends[*backend].policy.session else { return };
        let endpoints = live.backends[*backend].load();
        let got = exchange.endpoint.and_then(|address| endpoints.at(address)).map(|got| got.stable);
        if let Some(got) = got.filter(|got| *session != Some(*got) && exchange.degraded.is_none()) {
            config.write(got, headers);
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
        let policy = &live.compiled.backends[backend].policy;
        let session = policy.session.as_ref().and_then(|session| session.read(&head.headers));
        Self::Service { live, dialed, backend, hash, session }
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

/// Chooses where the next attempt goes.
pub fn choose(
    worker: &Worker,
    exchange: &mut Exchange,
    upstream: &Upstream<'_>,
    upgrade: bool,
    tried: &[u64],
) -> Result<AttemptTarget, Refusal> {
    let (live, dialed, backend, hash, session) = match upstream {
        Upstream::Service { live, dialed, backend, hash, session } => {
            (*live, *dialed, *backend, *hash, *session)
        }
        Upstream::App { address, protocol } | Upstream::Outside { address, protocol } => {
            let wire = wire_of(*protocol, exchange.connection.protocol, upgrade);
            exchange.endpoint = Some(*address);
            let (address, expected) = (*address, Expected::NONE);
            let (probes, protocol) = (ProbeIds::default(), *protocol);
            let unmatched = matches!(upstream, Upstream::Outside { .. });
            return Ok(AttemptTarget {
                probes,
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
        session,
        tried,
    };
    let (endpoint, probes) = take_endpoint(live, dialed, backend, &choice)?;
    exchange.peer = endpoint.peer;
    let callers = exchange.protocol;
    let protocol = if config.protocol.is_http() { config.protocol } else { callers };
    if endpoint.endpoint.mesh.is_none() && !endpoint.is_outside {
        add(&worker.proxy.metrics.gauges.unmeshed, 1);
    }
    exchange.endpoint = Some(endpoint.endpoint.address);
    Ok(AttemptTarget { probes, ..AttemptTarget::to(endpoint, protocol, callers, upgrade) })
}

/// An endpoint that its service's breaker lets one more attempt go to.
pub fn take_endpoint(
    live: &Live,
    dialed: &Dialed,
    backend: usize,
    choice: &Choice<'_>,
) -> Result<(Arc<EndpointState>, ProbeIds), Refusal> {
    let guard = &live.backends[backend].guard;
    let mut probes = guard.admit()?;
    let endpoint =
        endpoint_of(live, dialed, backend, choice).inspect_err(|_| guard.unused(&probes))?;
    guard.chosen(&endpoint, &mut probes);
    Ok((endpoint, probes))
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
                        Refusal::new(Reason::EndpointGone, format!("no endpoint {instance}"))
                    });
                }
            }
        }
    }
    endpoints.choose(choice).map_err(|why| match why {
        NoChoice::None => {
            Refusal::new(Reason::NoEndpoint, format!("{} has no ready endpoint", endpoints.name))
        }
        NoChoice::Unfit => Refusal::new(
            Reason::NoEndpoint,
            format!("every endpoint of {} is ejected or unhealthy", endpoints.name),
        ),
        NoChoice::Busy => Refusal::new(
            Reason::TooManyInFlight,
            format!("every endpoint of {} is at maxInFlightPerEndpoint", endpoints.name),
        ),
    })
}

/// Sends the request once, taking its head unless it is kept for another attempt. On success the exchange
/// holds the connection.
#[expect(
    clippy::too_many_arguments,
    reason = "what one try needs, lent so that futures stay small"
)]
pub async fn send(
    worker: &Rc<Worker>,
    exchange: &mut Exchange,
    upstream: &Upstream<'_>,
    target: &mut AttemptTarget,
    call: &CallPolicy,
    (head, keep): (&mut Option<Head>, bool),
    body: RequestBody,
    reuse: Reuse,
) -> Result<Response<WireBody>, FailedAttempt> {
    let began = if exchange.attempts == 1 { exchange.began } else { Instant::now() };
    let limits = &call.timeouts;
    let end = limits.attempt.and_then(|limit| began.checked_add(limit));
    if let (Upstream::Service { live, .. }, Some(head)) = (upstream, head.as_mut()) {
        let streams = (call, head.upgrade.is_some());
        context::send_along(exchange, live, target, head, streams, end, began);
    }
    exchange.attempt_began = micros(began.saturating_duration_since(exchange.began));
    exchange.attempt = target.begin(upstream, began);
    let mut held = Duration::ZERO;
    if fault::is_possible(upstream, call) {
        let until = earlier(end, began, limits.first_byte);
        let (calls, head) = ((upstream, call), head.as_ref());
        let injecting = Box::pin(fault::inject(worker, exchange, calls, head, until));
        held = injecting.await?.ok_or_else(|| timed_out(target, waited(began, end)))?;
    }
    let mut clock = Clock::at(earlier(end, began.later(held), limits.connect));
    let first_byte_limit = limits.first_byte.map(|limit| limit.saturating_sub(held));
    let key = target.key();
    let keeps_case = exchange.connection.protocol == Protocol::Http1;
    let sent = if target.wire == Wire::Http1 {
        let mut lease = {
            let mut leasing = pin!(worker.pools.lease_h1(key, reuse, keeps_case, began));
            let leased = poll_fn(|cx| {
                let polled = poll_within(leasing.as_mut(), &mut clock, cx);
                exchange.watch(polled, |phases| &mut phases.connect)
            });
            leased.await.ok_or_else(|| timed_out(target, Waited::Connection))??
        };
        // Boxed: it is far larger than all else, and the future of every request would carry its size.
        let mut sending = Box::pin(
            lease.send(write(head, keep, target, body)?, Some(exchange.tracked.progress())),
        );
        exchange.lease = Some(Lease::H1(lease));
        first_byte(&mut clock, end, first_byte_limit);
        poll_fn(|cx| poll_within(sending.as_mut(), &mut clock, cx)).await
    } else {
        let lease = {
            let mut leasing = pin!(worker.pools.lease_h2(key, began));
            let leased = poll_fn(|cx| {
                let polled = poll_within(leasing.as_mut(), &mut clock, cx);
                exchange.watch(polled, |phases| &mut phases.connect)
            });
            leased.await.ok_or_else(|| timed_out(target, Waited::Connection))??
        };
        let switches = head.as_ref().is_some_and(|head| head.upgrade.is_some());
        let mut sending = pin!(lease.send(
            write(head, keep, target, body)?,
            switches,
            Some(exchange.tracked.progress())
        ));
        exchange.lease = Some(Lease::H2(lease));
        first_byte(&mut clock, end, first_byte_limit);
        poll_fn(|cx| poll_within(sending.as_mut(), &mut clock, cx)).await
    };
    let sent = sent.ok_or_else(|| timed_out(target, waited(began, end)))?;
    let response = sent.map_err(|error| failure(target, error))?;
    exchange.note_first_byte();
    target.learn(exchange.is_grpc(), upstream, exchange.attempt.as_mut(), began, &response);
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
    target: &AttemptTarget,
    body: RequestBody,
) -> Result<Request<RequestBody>, Refusal> {
    let head = if keep { head.as_mut().map(Head::lend) } else { head.take() };
    let head = head.ok_or_else(|| Refusal::new(Reason::InternalError, "the request is gone"))?;
    head.into_request(target, body)
}
