//! ExternalServices in the index: by what apps dial, and with the addresses that were looked up.
//!
//! To everything else each is a Service with one port; only its own namespace sees it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use imbl::OrdMap;
use outrigger_core::name::{Authority, Host};

use super::links::Links;
use super::{Dep, Index, PortId, Resolution, Target, Touched};
use crate::object::{External, Service, ServiceId};

#[derive(Clone, Debug, Default)]
pub(super) struct Externals {
    all: OrdMap<ServiceId, Arc<External>>,
    as_services: OrdMap<ServiceId, Arc<Service>>,
    /// By what is dialled and the namespace where it is.
    pub(super) dialled: Links<(Authority, String), ServiceId>,
    /// By the Service that has the dialled name if it exists, see [`Index::inside`].
    pub(super) naming: Links<ServiceId, ServiceId>,
    /// By the host whose addresses they need.
    looked_up: Links<String, ServiceId>,
    /// By host name, once somebody has asked.
    addresses: OrdMap<String, Arc<Addresses>>,
}

/// What looking a host up has brought.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    /// The last good answer.
    pub found: BTreeSet<IpAddr>,
    /// Why the newest one is not good.
    pub problem: Option<String>,
}

impl Externals {
    pub(super) fn service(&self, id: &ServiceId) -> Option<&Service> {
        self.as_services.get(id).map(|service| &**service)
    }

    /// Those of a namespace.
    pub(super) fn ids_in(&self, namespace: &str) -> impl Iterator<Item = &ServiceId> {
        let from = ServiceId::new(namespace, "");
        let all = self.all.range(from.clone()..).map(|(id, _)| id);
        all.take_while(move |id| id.namespace == from.namespace)
    }
}

impl Index {
    pub(super) fn set_external(&mut self, id: ServiceId, new: Option<External>) {
        let named = |external: &External| match &external.dialled.host {
            Host::Name(host) => {
                let (_, service, namespace) = self.inside(host)?;
                Some(ServiceId::new(namespace, service))
            }
            Host::Ip(_) => None,
        };
        let before = self.externals.all.get(&id).and_then(|old| named(old));
        let after = new.as_ref().and_then(named);
        let externals = &mut self.externals;
        let old = externals.all.remove(&id);
        if old.as_deref() == new.as_ref() {
            externals.all.extend(old.map(|old| (id, old)));
            return;
        }
        externals.as_services.remove(&id);
        for one in old.as_deref().into_iter().chain(&new) {
            let port = PortId::new(&id, one.port);
            self.dirty.extend([Dep::Dialled(one.dialled.clone()), Dep::Endpoints(port)]);
        }
        if let Some(old) = &old {
            externals.dialled.unlink(&(old.dialled.clone(), old.namespace.clone()), &id);
            if let Some(named) = &before {
                externals.naming.unlink(named, &id);
            }
            if let Some(host) = old.looked_up() {
                externals.looked_up.unlink(&host.to_owned(), &id);
            }
        }
        if let Some(new) = new {
            externals.dialled.link((new.dialled.clone(), new.namespace.clone()), id.clone());
            if let Some(named) = after {
                externals.naming.link(named, id.clone());
            }
            if let Some(host) = new.looked_up() {
                externals.looked_up.link(host.to_owned(), id.clone());
            }
            externals.as_services.insert(id.clone(), new.as_service().into());
            externals.all.insert(id.clone(), new.into());
        }
        if let Some(host) = old.as_deref().and_then(External::looked_up)
            && !externals.looked_up.has(&host.to_owned())
        {
            externals.addresses.remove(host);
        }
        self.touched.insert(id.clone(), Touched::All);
        self.touch_parents_of_backend(&id);
        self.changed.insert(id.object());
        self.dirty.insert(Dep::Service(id));
    }

    pub fn external(&self, namespace: &str, name: &str) -> Option<&External> {
        self.external_of(&ServiceId::external(namespace, name))
    }

    pub fn external_of(&self, id: &ServiceId) -> Option<&External> {
        self.externals.all.get(id).map(|external| &**external)
    }

    /// In name order.
    pub fn externals(&self) -> impl Iterator<Item = &External> {
        self.externals.all.values().map(|external| &**external)
    }

    /// Every host whose addresses somebody needs.
    pub fn looked_up(&self) -> BTreeSet<String> {
        self.externals.looked_up.all().map(|(host, _)| host.clone()).collect()
    }

    /// Takes the answer of a look-up. One that failed leaves the last good one in force.
    pub fn set_addresses(&mut self, host: &str, answer: Result<BTreeSet<IpAddr>, String>) {
        let externals = &mut self.externals;
        let users: Vec<ServiceId> = externals.looked_up.of(&host.to_owned()).cloned().collect();
        if users.is_empty() {
            return;
        }
        let old = externals.addresses.get(host);
        let mut new = old.map(|old| (**old).clone()).unwrap_or_default();
        match answer {
            Ok(found) => new = Addresses { found, problem: None },
            Err(problem) => new.problem = Some(problem),
        }
        if old.map(|old| &old.problem) != Some(&new.problem) {
            self.changed.extend(users.iter().map(ServiceId::object));
        }
        if old.map(|old| &old.found) != Some(&new.found) {
            for id in users {
                if let Some(external) = externals.all.get(&id) {
                    self.dirty.insert(Dep::Endpoints(PortId::new(&id, external.port)));
                    self.touched.insert(id, Touched::All);
                }
            }
        }
        externals.addresses.insert(host.to_owned(), new.into());
    }

    /// What looking up the host has brought; none: nobody has looked, or nobody needs to.
    pub fn look_up(&self, external: &External) -> Option<&Addresses> {
        self.externals.addresses.get(external.looked_up()?).map(|known| &**known)
    }

    /// Where the host is; none: not known yet.
    pub fn addresses(&self, external: &External) -> Option<BTreeSet<IpAddr>> {
        match (&external.endpoints, &external.dialled.host) {
            (Some(_), _) => Some(BTreeSet::new()),
            (None, Host::Ip(ip)) => Some([*ip].into()),
            (None, Host::Name(_)) => self.look_up(external).map(|known| known.found.clone()),
        }
    }

    /// The ExternalService that a name means in `namespace`: of several the oldest, then the first by
    /// name.
    pub fn external_dialled(&self, namespace: &str, dialled: &Authority) -> Option<&External> {
        let key = (dialled.clone(), namespace.to_owned());
        let all = self.externals.dialled.of(&key).filter_map(|id| self.external_of(id));
        all.min_by_key(|external| (external.created, &external.name))
    }

    /// Adds what lies outside to a name that no Service has.
    pub(super) fn resolve_external(
        &self,
        dialled: Authority,
        namespace: &str,
        mut found: Resolution,
    ) -> Resolution {
        if found.target.is_some() {
            return found;
        }
        if let Some(external) = self.external_dialled(namespace, &dialled) {
            let port = PortId::new(&external.service(), external.port);
            found.target = Some(Target { name: port.destination(), pin: None });
            found.deps.push(Dep::Service(port.service));
        }
        found.deps.push(Dep::Dialled(dialled));
        found
    }
}
