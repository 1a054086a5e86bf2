//! What follows from the listener that a connection came in by. Decided at accept, and never again.

use std::sync::Arc;
use std::time::Duration;

use crate::base::direction::Direction;
use crate::base::peer::Peer;
use crate::base::settings::Settings;
use crate::proxy::Phase;

/// A listener, shared by the connections that came in by it: each holds no more than a pointer to it.
#[derive(Debug)]
pub struct Listener {
    pub role: ListenerRole,
    pub trust: ListenerTrust,
    pub limits: ListenerLimits,
    pub routing: Routing,
    /// What callers speak to it, as a redirect repeats it.
    pub scheme: &'static str,
    /// The same for connections that were on their way to somewhere else.
    redirected: Option<Arc<Self>>,
}

/// What it is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListenerRole {
    /// The app's HTTP proxy: each request names its destination.
    App,
    /// The app has dialled something else, and the kernel has brought the connection here.
    Redirected,
    /// A port that stands for one destination (`--listen`).
    Fixed,
    /// Other proxies.
    Mesh,
    /// Somebody has dialled the app, and the kernel has brought the connection here.
    Workload,
}

/// Who may be at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListenerTrust {
    /// The app beside this proxy and nobody else.
    OwnApp,
    /// Anybody: who it is has to be proved.
    Anybody,
}

/// Where requests and connections lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Routing {
    /// To what they name, in the mesh and outside.
    Destinations,
    /// To the ports of the app beside this proxy.
    OwnPorts,
}

#[derive(Clone, Copy, Debug)]
pub struct ListenerLimits {
    /// Connections that may be open at one time.
    pub connections: usize,
    /// Time for the first byte; none: as long as it likes.
    pub first_byte: Option<Duration>,
    /// Time without a request after which an HTTP connection ends; none: it may stay.
    pub idle: Option<Duration>,
    /// The phase of the process in which connections end after what they have in flight. The app may need to
    /// call others until its last inbound request is answered, so inbound ones end first.
    pub ends: Phase,
}

impl Listener {
    /// `--outbound`.
    pub fn app(settings: &Settings) -> Arc<Self> {
        Self::outbound(settings, ListenerRole::App)
    }

    /// One of `--listen`.
    pub fn fixed(settings: &Settings) -> Arc<Self> {
        Self::outbound(settings, ListenerRole::Fixed)
    }

    fn outbound(settings: &Settings, role: ListenerRole) -> Arc<Self> {
        let limits = ListenerLimits {
            connections: settings.max_connections,
            // The app may open connections for later.
            first_byte: None,
            idle: None,
            ends: Phase::Closing,
        };
        let (trust, routing) = (ListenerTrust::OwnApp, Routing::Destinations);
        Self::pair([role, ListenerRole::Redirected], trust, limits, routing)
    }

    /// `--inbound`.
    pub fn mesh(settings: &Settings) -> Arc<Self> {
        let limits = ListenerLimits {
            connections: settings.max_inbound_connections.unwrap_or(settings.max_connections),
            first_byte: Some(settings.first_byte_timeout),
            idle: Some(settings.client_idle_timeout),
            ends: Phase::Finishing,
        };
        let roles = [ListenerRole::Mesh, ListenerRole::Workload];
        Self::pair(roles, ListenerTrust::Anybody, limits, Routing::OwnPorts)
    }

    /// A listener of the first role, whose redirected connections have the second.
    fn pair(
        [role, redirected]: [ListenerRole; 2],
        trust: ListenerTrust,
        limits: ListenerLimits,
        routing: Routing,
    ) -> Arc<Self> {
        let one = |role, redirected| {
            Arc::new(Self { role, trust, limits, routing, scheme: "http", redirected })
        };
        one(role, Some(one(redirected, None)))
    }

    /// The same for a connection that was on its way to somewhere else.
    #[must_use]
    pub fn redirected(self: &Arc<Self>) -> Arc<Self> {
        Arc::clone(self.redirected.as_ref().unwrap_or(self))
    }

    /// As metrics and logs label it.
    pub fn direction(&self) -> Direction {
        match self.routing {
            Routing::Destinations => Direction::Outbound,
            Routing::OwnPorts => Direction::Inbound,
        }
    }

    /// Who is at the other end, before it has proved anything.
    pub fn peer(&self) -> Peer {
        match self.trust {
            ListenerTrust::OwnApp => Peer::App,
            ListenerTrust::Anybody => Peer::Outside,
        }
    }
}
