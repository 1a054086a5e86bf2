//! ExternalServices in the index: by what apps dial, and with the addresses that were looked up.
//!
//! To everything else each is a Service with one port; only its own namespace sees it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use outrigger_core::name::{Authority, Host};

use super::links::Links;
use super::{Dep, Index, PortId, Resolution, Target};
use crate::object::{External, Service, ServiceId};
use crate::translate::external_service;

#[derive(Debug, Default)]
pub(super) struct Externals {
    all: BTreeMap<ServiceId, External>,
    as_services: BTreeMap<ServiceId, Service>,
    /// By namespace and what is dialled there.
    dialled: Links<(String, Authority), ServiceId>,
    /// By host name, once somebody has asked.
    addresses: BTreeMap<String, Addresses>,
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
        self.as_services.get(id)
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = &ServiceId> {
        self.all.keys()
    }
}

impl Index {
    pub(super) fn set_external(&mut self, id: ServiceId, new: Option<External>) {
        let externals = &mut self.externals;
        let old = externals.all.remove(&id);
        if old == new {
            externals.all.extend(old.map(|old| (id, old)));
            return;
        }
        externals.as_services.remove(&id);
        for one in old.iter().chain(&new) {
            let port = PortId::new(&id, one.port);
            self.dirty.extend([Dep::Dialled(one.dialled.clone()), Dep::Endpoints(port)]);
        }
        if let Some(old) = old {
            externals.dialled.unlink(&(old.namespace, old.dialled), &id);
        }
        if let Some(new) = new {
            externals.dialled.link((new.namespace.clone(), new.dialled.clone()), id.clone());
            externals.as_services.insert(id.clone(), external_service::service(&new));
            externals.all.insert(id.clone(), new);
        }
        let used: BTreeSet<&str> = externals.all.values().filter_map(External::looked_up).collect();
        externals.addresses.retain(|host, _| used.contains(host.as_str()));
        self.touch_parents_of_backend(&id);
        self.dirty.insert(Dep::Service(id));
    }

    pub fn external(&self, namespace: &str, name: &str) -> Option<&External> {
        self.external_of(&ServiceId::external(namespace, name))
    }

    pub fn external_of(&self, id: &ServiceId) -> Option<&External> {
        self.externals.all.get(id)
    }

    /// In name order.
    pub fn externals(&self) -> impl Iterator<Item = &External> {
        self.externals.all.values()
    }

    /// Every host whose addresses somebody needs.
    pub fn looked_up(&self) -> BTreeSet<String> {
        self.externals().filter_map(External::looked_up).map(str::to_owned).collect()
    }

    /// Takes the answer of a look-up. One that failed leaves the last good one in force.
    pub fn set_addresses(&mut self, host: &str, answer: Result<BTreeSet<IpAddr>, String>) {
        let externals = &mut self.externals;
        let uses = |one: &&External| one.looked_up() == Some(host);
        let ports: Vec<_> = externals
            .all
            .values()
            .filter(uses)
            .map(|one| PortId::new(&one.service(), one.port))
            .collect();
        if ports.is_empty() {
            return;
        }
        let old = externals.addresses.get(host).cloned();
        let mut new = old.clone().unwrap_or_default();
        match answer {
            Ok(found) => new = Addresses { found, problem: None },
            Err(problem) => new.problem = Some(problem),
        }
        if old.as_ref().map(|old| &old.found) != Some(&new.found) {
            self.dirty.extend(ports.into_iter().map(Dep::Endpoints));
        }
        externals.addresses.insert(host.to_owned(), new);
    }

    /// What looking up the host has brought; none: nobody has looked, or nobody needs to.
    pub fn look_up(&self, external: &External) -> Option<&Addresses> {
        self.externals.addresses.get(external.looked_up()?)
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
        let key = (namespace.to_owned(), dialled.clone());
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
