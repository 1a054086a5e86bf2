//! Who is called: a service of the mesh, this workload's app, or somebody outside.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use http::{HeaderMap, header};
use outrigger_core::balance;
use outrigger_core::config::{Balancer, HashKey, Protocol};
use outrigger_core::name::Host;
use outrigger_core::policy::CallPolicy;
use outrigger_core::reason::Reason;

use crate::base::refusal::Refusal;
use crate::listener::connection::Connection;
use crate::proxy::worker::Worker;
use crate::request::exchange::Exchange;
use crate::request::head::Head;
use crate::upstream::endpoint::guard::ProbeIds;
use crate::upstream::endpoint::{Choice, EndpointState, Endpoints, NoChoice};
use crate::upstream::store::{Dialed, Live};
use crate::wire::body::RequestBody;

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
    #[inline]
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
    #[inline]
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

/// One call: what all attempts of it have in common.
pub struct Call<'a> {
    pub connection: &'a Rc<Connection>,
    pub upstream: &'a Upstream<'a>,
    pub policy: &'a CallPolicy,
    pub body: &'a RequestBody,
}

impl Call<'_> {
    pub fn worker(&self) -> &Rc<Worker> {
        &self.connection.worker
    }
}
