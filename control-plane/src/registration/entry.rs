//! One workload that is registered at this replica.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use outrigger_proto::mesh::Health;
use tokio::sync::oneshot;

use super::RegistrationRefused;
use super::saved::{SavedRegistration, SavedStream};
use super::session::SessionHash;
use crate::object::Workload;

/// How long a name is kept for its holder after its stream has broken: a proxy that is alive is back by then,
/// since it waits for 2 s at most between two attempts.
pub(super) const COMES_BACK: Duration = Duration::from_secs(5);

/// A workload registered at this replica.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) workload: Workload,
    pub(super) health: Health,
    /// Ports on which the app accepts no connection.
    pub(super) closed: BTreeSet<u16>,
    /// The process that holds the name.
    pub(super) session: Option<SessionHash>,
    /// The stream that speaks for it; an older one's end means nothing.
    pub(super) stream: u64,
    /// When it was taken: milliseconds since the Unix epoch.
    pub(super) since: u64,
    pub(super) link: Link,
}

/// Whether a workload is heard from.
#[derive(Debug)]
pub(super) enum Link {
    /// Dropped when another stream speaks for it, used when the name is somebody else's.
    Open(oneshot::Sender<RegistrationRefused>),
    /// Since when its stream is no more, here and for others.
    Broken(Instant, u64),
}

/// A workload as the index has it.
pub(super) fn published(workload: &Workload, health: Health, closed: &BTreeSet<u16>) -> Workload {
    let mut workload = Workload { ready: health == Health::Ready, ..workload.clone() };
    for port in &mut workload.ports {
        port.open = !closed.contains(&port.port);
    }
    workload
}

impl Entry {
    /// The workload as the index has it.
    pub(super) fn published(&self) -> Workload {
        published(&self.workload, self.health, &self.closed)
    }

    pub(super) fn connected(&self) -> bool {
        matches!(self.link, Link::Open(_))
    }

    /// Whether the name is not to be had for `session`: its holder is another one, and alive.
    pub(super) fn is_held_against(&self, session: Option<&SessionHash>, now: Instant) -> bool {
        if session.is_some() && session == self.session.as_ref() {
            return false;
        }
        match self.link {
            Link::Open(_) => true,
            // It has said good-bye.
            Link::Broken(..) if self.health == Health::Draining => false,
            Link::Broken(since, _) => now.saturating_duration_since(since) < COMES_BACK,
        }
    }

    pub(super) fn to_saved(&self) -> SavedRegistration {
        let (workload, session) = (self.workload.clone(), self.session.clone());
        let (health, closed) = (self.health, self.closed.clone());
        SavedRegistration { workload, health, closed, session, stream: self.stream() }
    }

    /// As other replicas are told of it.
    pub(super) fn stream(&self) -> SavedStream {
        let broken = match self.link {
            Link::Open(_) => 0,
            Link::Broken(_, at) => at,
        };
        SavedStream { since: self.since, broken }
    }
}
