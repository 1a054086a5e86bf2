//! What the admin server and object status tell of a session.

use outrigger_core::name::DestinationName;
use outrigger_proto::wire;
use serde_json::{Value, json};

use super::{HeldDestination, Session, marker, version_of};
use crate::publish::Acknowledgement;

impl HeldDestination {
    /// What the proxy made of what it was sent last; none: it was sent nothing.
    pub(super) fn answer(&self) -> Option<Acknowledgement<'_>> {
        self.sent.as_ref()?;
        Some(match &self.refused {
            Some(reason) => Acknowledgement::Refused(reason),
            None if version_of(&self.sent) == version_of(&self.acknowledged) => {
                Acknowledgement::Acknowledged
            }
            None => Acknowledgement::Pending,
        })
    }
}

impl Session {
    /// The destinations that the proxy was sent, and what it made of what it was sent last.
    pub fn answers(&self) -> impl Iterator<Item = (&DestinationName, Acknowledgement<'_>)> {
        let all = self.destinations.iter();
        all.filter_map(|(name, held)| Some((&**name, held.answer()?)))
    }

    /// What the proxy has made of its own ports, by workload.
    pub fn inbound_answers(&self) -> impl Iterator<Item = (&str, Acknowledgement<'_>)> {
        let inbounds = self.singles.iter().filter(|((kind, _), _)| kind == wire::INBOUND);
        inbounds.filter(|(_, single)| single.sent.is_some()).map(|((_, uid), single)| {
            let answer = match &single.objection {
                Some(reason) => Acknowledgement::Refused(reason),
                None if single.sent == single.acknowledged => Acknowledgement::Acknowledged,
                None => Acknowledgement::Pending,
            };
            (uid.as_str(), answer)
        })
    }

    /// What the admin server shows.
    pub fn describe(&self) -> Value {
        let names = self.names.iter().map(|(name, state)| {
            let target = state.target.as_ref();
            json!({
                "name": &**name,
                "destination": target.map(|target| target.name.to_string()),
                "pinned": target.and_then(|t| t.pin.as_ref()).map(ToString::to_string),
            })
        });
        let destinations = self.destinations.iter().map(|(name, held)| {
            json!({
                "name": name.to_string(), "sent": version_of(&held.sent),
                "acknowledged": version_of(&held.acknowledged),
                "refused": held.refused,
            })
        });
        let collections = self.collections.iter().map(
            |(port, endpoints)| json!({ "name": marker(port), "endpoints": endpoints.sent.len() }),
        );
        let others = self.singles.iter().map(|((type_url, name), single)| {
            json!({
                "type": type_url, "name": name, "sent": single.sent.as_deref(),
                "acknowledged": single.acknowledged.as_deref(),
            })
        });
        json!({
            "id": self.proxy.id,
            "namespace": self.proxy.namespace,
            "identity": self.proxy.identity.as_ref().map(ToString::to_string),
            "zone": self.proxy.zone,
            "node": self.proxy.node,
            "version": self.proxy.version,
            "subscriptions": names.collect::<Vec<_>>(),
            "destinations": destinations.collect::<Vec<_>>(),
            "collections": collections.collect::<Vec<_>>(),
            "resources": others.collect::<Vec<_>>(),
            "generation": self.acknowledged_generation(),
            "unacknowledged": self.in_flight.len(),
            "counts": self.counts,
            "nacks": self.nacks,
        })
    }
}
