//! How far the proxy has come with what it was sent, for the publisher to know without asking.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use outrigger_core::name::DestinationName;

use super::{HeldDestination, Session};
use crate::index::{Dep, PortId};
use crate::object::ServiceId;
use crate::publish::{Answers, Handle, Publisher};

/// What the proxy may have answered otherwise since the last report.
#[derive(Debug, Default)]
pub(super) struct Unreported {
    pub(super) destinations: BTreeSet<Arc<DestinationName>>,
    pub(super) inbound: bool,
}

impl Session {
    /// Tells what has changed since the last time. To be called after [`Self::receive`] and [`Self::pump`].
    pub fn report(&mut self, publisher: &Publisher, handle: &Handle) {
        let mut last = None;
        for name in std::mem::take(&mut self.unreported.destinations) {
            // Those of one Service stand together.
            let service = PortId::from(&*name).service;
            if last.as_ref() == Some(&service) {
                continue;
            }
            let all = of_service(&self.destinations, &service);
            let answers = Answers::of(all.filter_map(|(_, held)| held.answer()));
            publisher.note_answers(handle, &Dep::Service(service.clone()), answers);
            last = Some(service);
        }
        if std::mem::take(&mut self.unreported.inbound) {
            let answers = Answers::of(self.inbound_answers().map(|(_, answer)| answer));
            publisher.note_answers(handle, &Dep::Inbound(self.proxy.id.clone()), answers);
        }
    }

    /// The stream is over: its proxy counts no more.
    pub fn retract(&mut self, publisher: &Publisher, handle: &Handle) {
        let unreported = std::mem::take(&mut self.unreported).destinations;
        for name in self.destinations.keys().chain(&unreported) {
            publisher.note_answers(handle, &Dep::Service(PortId::from(&**name).service), None);
        }
        publisher.note_answers(handle, &Dep::Inbound(self.proxy.id.clone()), None);
    }
}

/// The destinations of one Service.
pub(super) fn of_service<'a>(
    all: &'a BTreeMap<Arc<DestinationName>, HeldDestination>,
    service: &'a ServiceId,
) -> impl Iterator<Item = (&'a Arc<DestinationName>, &'a HeldDestination)> {
    let from = PortId::new(service, 0).destination();
    all.range(from..)
        .take_while(|(name, _)| name.namespace == service.namespace && name.service == service.name)
}
