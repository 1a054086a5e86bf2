//! Putting one object in the place of another, and noting what that touches.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use outrigger_core::config::BackendTarget;
use outrigger_core::name::EndpointId;

use super::{Dep, Index, Key, PortId, Touched, endpoints};
use crate::object::targets::for_each_target;
use crate::object::{
    EndpointSlice, Kind, ObjectId, Readiness, ReferenceGrant, Route, Service, ServiceId, Workload,
};

impl Index {
    pub(super) fn set_service(&mut self, id: ServiceId, new: Option<Service>) {
        let old = self.services.remove(&id);
        if old.as_deref() == new.as_ref() {
            if let Some(old) = old {
                self.services.insert(id, old);
            }
            return;
        }
        let both = || old.as_deref().into_iter().chain(&new);
        let ports: BTreeSet<u16> = both().flat_map(|s| &s.ports).map(|p| p.port).collect();
        let ips: BTreeSet<IpAddr> = both().flat_map(|s| s.cluster_ips.iter().copied()).collect();
        let mut inbounds: BTreeSet<String> = BTreeSet::new();
        if old.is_none() {
            // Its slices may have been there before.
            let waiting = self.slices_of(&id).flat_map(|slice| &slice.endpoints);
            let waiting: Vec<IpAddr> = waiting.map(|endpoint| endpoint.address).collect();
            self.moved.extend(waiting);
        }
        if let Some(old) = &old {
            inbounds.extend(self.selected(old).map(Workload::uid));
            for ip in &old.cluster_ips {
                self.cluster_ips.unlink(ip, &id);
            }
            if let Some((k, v)) = old.selector.iter().next() {
                self.selectors_by.unlink(&id.namespace, k, v, &id);
            }
        }
        if let Some(new) = new {
            for ip in &new.cluster_ips {
                self.cluster_ips.link(*ip, id.clone());
            }
            if let Some((k, v)) = new.selector.iter().next() {
                self.selectors_by.link(&id.namespace, k, v, id.clone());
            }
            inbounds.extend(self.selected(&new).map(Workload::uid));
            self.services.insert(id.clone(), new.into());
        }
        self.touch_parents_of_backend(&id);
        self.dirty.extend(inbounds.into_iter().map(Dep::Inbound));
        self.dirty.extend(ips.into_iter().map(Dep::Ip));
        for port in ports {
            self.touch_endpoints(PortId::new(&id, port), &Touched::All);
        }
        self.changed.insert(id.object());
        self.dirty.insert(Dep::Service(id));
    }

    pub(super) fn set_slice(&mut self, key: Key, new: Option<EndpointSlice>) {
        let old = self.slices.get(&key).cloned();
        if old.as_deref() == new.as_ref() {
            return;
        }
        let mut services = BTreeMap::new();
        let moved = old.as_ref().map(|o| &o.service) != new.as_ref().map(|n| &n.service);
        for (before, after) in match moved {
            true => vec![(old.as_deref(), None), (None, new.as_ref())],
            false => vec![(old.as_deref(), new.as_ref())],
        } {
            if let Some(slice) = before.or(after) {
                let changed = endpoints::changed(before, after);
                let both = before.into_iter().chain(after).flat_map(|slice| &slice.endpoints);
                let both = both.filter(|endpoint| changed.contains(&endpoint.uid));
                self.moved.extend(both.map(|endpoint| endpoint.address));
                let least = self.least_of(&slice.service);
                services.insert(slice.service.clone(), (Touched::Workloads(changed), least));
            }
        }
        self.slices.remove(&key);
        let shared = Arc::new(key.clone());
        let new = new.map(Arc::new);
        if moved && let Some(old) = &old {
            self.slices_of.unlink(&old.service, &key);
            self.link_slice(&shared, Some(old), None);
        }
        if let Some(new) = &new {
            self.slices_of.link(new.service.clone(), key.clone());
            self.slices.insert(key, new.clone());
            self.link_slice(&shared, old.as_deref().filter(|_| !moved), Some(new));
        }
        for (service, (changed, before)) in services {
            // The first that is ready, or the last that was, decides about all others.
            let touched = if self.least_of(&service) == before { changed } else { Touched::All };
            if matches!(touched, Touched::All) {
                let all = self.slices_of(&service).flat_map(|slice| &slice.endpoints);
                let all: Vec<IpAddr> = all.map(|endpoint| endpoint.address).collect();
                self.moved.extend(all);
            }
            self.touch_all_endpoints(&service, &touched);
        }
    }

    fn least_of(&self, id: &ServiceId) -> Option<Readiness> {
        Some(self.least(self.service(id)?))
    }

    pub(super) fn set_route(&mut self, id: &ObjectId, new: Option<Route>) {
        let old = self.routes.remove(id);
        let changed = old.as_deref() != new.as_ref();
        if changed {
            self.changed.insert(id.clone());
        }
        if let Some(old) = old {
            for parent in &old.parents {
                self.attached.unlink(&parent.service, id);
                self.touch_if(changed, &parent.service);
            }
            for backend in backends(&old) {
                self.sending.unlink(&backend, id);
            }
        }
        if let Some(new) = new {
            for parent in &new.parents {
                self.attached.link(parent.service.clone(), id.clone());
                self.touch_if(changed, &parent.service);
            }
            for backend in backends(&new) {
                self.sending.link(backend, id.clone());
            }
            self.routes.insert(id.clone(), new.into());
        }
    }

    fn touch_if(&mut self, changed: bool, service: &ServiceId) {
        if changed {
            self.dirty.insert(Dep::Service(service.clone()));
        }
    }

    pub(super) fn set_grant(&mut self, key: Key, new: Option<ReferenceGrant>) {
        let old = self.grants.remove(&key);
        if old.as_deref() == new.as_ref() {
            self.grants.extend(old.map(|old| (key, old)));
            return;
        }
        // Only policies need grants: see `check_reference`.
        let mut touched = BTreeSet::new();
        for grant in old.as_deref().into_iter().chain(&new) {
            let from = ServiceId::new(grant.namespace.clone(), "");
            let sending = self.sending.from(&from);
            let sending = sending.take_while(|(to, _)| to.namespace == grant.namespace);
            let concerned = sending.filter(|(to, by)| {
                by.kind == Kind::TrafficPolicy
                    && grant.from.iter().any(|(kind, ns)| *kind == by.kind && *ns == by.namespace)
                    && grant.to.iter().any(|name| name.as_ref().is_none_or(|name| *name == to.name))
            });
            touched.extend(concerned.map(|(_, by)| by.clone()));
        }
        if let Some(new) = new {
            self.grants.insert(key, new.into());
        }
        let policies = touched.iter().filter_map(|id| self.traffic_policy(id).cloned());
        for policy in policies.collect::<Vec<_>>() {
            self.touch_callers(&policy);
        }
        self.changed.extend(touched);
    }

    /// Runs `change` on the workload `uid` and notes what looked or looks different.
    pub(super) fn change_workload(&mut self, uid: &str, change: impl FnOnce(&mut Self)) {
        let old = self.workload(uid).cloned();
        change(self);
        let new = self.workload(uid).cloned();
        if old == new {
            return;
        }
        let addresses = |workload: &Option<Workload>| -> Vec<IpAddr> {
            let pod = workload.as_ref().and_then(|workload| workload.pod.as_ref());
            pod.map(|pod| pod.addresses.clone()).unwrap_or_default()
        };
        let (left, came) = (addresses(&old), addresses(&new));
        if left != came {
            // Who speaks for them has changed.
            self.moved.extend(left.into_iter().chain(came));
        }
        // Health is nothing that a workload's own ports depend on.
        let same_ports = match (&old, &new) {
            (Some(old), Some(new)) => without_health(new) == without_health(old),
            _ => false,
        };
        // A pod is an endpoint where a slice says so.
        let is_pod = |workload: &Workload| workload.pod.is_some();
        let mut services: BTreeSet<ServiceId> = BTreeSet::new();
        if let Some(old) = &old {
            if !is_pod(old) {
                services.extend(self.selecting(old).into_iter().cloned());
            }
            for (k, v) in &old.labels {
                self.workloads_by.unlink(&old.namespace, k, v, &uid.to_owned());
            }
        }
        if let Some(new) = &new {
            if !is_pod(new) {
                services.extend(self.selecting(new).into_iter().cloned());
            }
            for (k, v) in &new.labels {
                self.workloads_by.link(&new.namespace, k, v, uid.to_owned());
            }
        }
        if !same_ports {
            self.dirty.insert(Dep::Inbound(uid.to_owned()));
            for workload in old.iter().chain(&new) {
                self.note_policies_of(workload);
                self.changed.insert(workload.id());
            }
        }
        let touched = Touched::Workloads([uid.to_owned()].into());
        for service in services {
            self.touch_all_endpoints(&service, &touched);
        }
        for pod in [&old, &new].into_iter().flatten().filter_map(|workload| workload.pod.as_ref()) {
            let touched = Touched::Workloads([pod.uid.clone()].into());
            let holding: Vec<_> = self.holding(&pod.uid).into_iter().cloned().collect();
            for service in holding {
                self.touch_all_endpoints(&service, &touched);
            }
        }
    }

    /// The Services whose callers may be sent to `backend`, by a route or as a fallback.
    pub(super) fn touch_parents_of_backend(&mut self, backend: &ServiceId) {
        let routes = self.sending.of(backend).filter_map(|id| self.routes.get(id));
        let parents = routes.flat_map(|route| &route.parents);
        self.dirty.extend(parents.map(|parent| Dep::Service(parent.service.clone())));
        let policies = self.sending.of(backend).filter(|id| id.kind == Kind::TrafficPolicy);
        let policies = policies.filter_map(|id| self.traffic_policy(id));
        for policy in policies.cloned().collect::<Vec<_>>() {
            self.touch_callers(&policy);
        }
    }

    fn touch_all_endpoints(&mut self, service: &ServiceId, touched: &Touched) {
        let ports = self.services.get(service).into_iter().flat_map(|s| &s.ports);
        for port in ports.map(|p| PortId::new(service, p.port)).collect::<Vec<_>>() {
            self.touch_endpoints(port, touched);
        }
    }

    /// Some endpoints of a port may have changed; a headless Service's are names, too.
    fn touch_endpoints(&mut self, port: PortId, touched: &Touched) {
        self.update_pods(&port, touched);
        match self.touched.entry(port.service.clone()) {
            Entry::Vacant(entry) => drop(entry.insert(touched.clone())),
            Entry::Occupied(mut entry) => match (entry.get_mut(), touched) {
                (Touched::Workloads(all), Touched::Workloads(more)) => {
                    all.extend(more.iter().cloned());
                }
                (all, _) => *all = Touched::All,
            },
        }
        self.dirty.insert(Dep::Endpoints(port));
    }

    /// Follows the addresses of a headless Service's endpoints.
    fn update_pods(&mut self, port: &PortId, touched: &Touched) {
        let headless = self.services.get(&port.service).is_some_and(|s| s.headless);
        let from = |uid: &str| (port.clone(), EndpointId { workload: uid.to_owned(), port: 0 });
        let (mut old, mut new) = (BTreeMap::new(), BTreeMap::new());
        match touched {
            Touched::All => {
                let range = self.pods_of.range(from("")..);
                let range = range.take_while(|((of, _), _)| of == port);
                old.extend(range.map(|((_, id), address)| (id.clone(), *address)));
                let all = headless.then(|| self.endpoints(port)).flatten();
                new.extend(all.into_iter().flatten().map(|e| (e.id, canonical(e.address))));
            }
            Touched::Workloads(uids) => {
                for uid in uids {
                    let range = self.pods_of.range(from(uid)..);
                    let range = range.take_while(|((of, id), _)| of == port && id.workload == *uid);
                    old.extend(range.map(|((_, id), address)| (id.clone(), *address)));
                    if headless {
                        let of_uid = self.endpoints_of(port, uid).into_iter();
                        new.extend(of_uid.map(|(id, e)| (id, canonical(e.address))));
                    }
                }
            }
        }
        for (id, address) in &old {
            if new.get(id) != Some(address) {
                self.pods.unlink(address, &(port.clone(), id.clone()));
                self.pods_of.remove(&(port.clone(), id.clone()));
                self.dirty.insert(Dep::Ip(address.ip()));
            }
        }
        for (id, address) in new {
            if old.get(&id) != Some(&address) {
                self.pods.link(address, (port.clone(), id.clone()));
                self.pods_of.insert((port.clone(), id), address);
                self.dirty.insert(Dep::Ip(address.ip()));
            }
        }
    }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// The Services that a route sends to.
fn backends(route: &Route) -> BTreeSet<ServiceId> {
    let mut services = BTreeSet::new();
    for_each_target(&route.body, &mut |_, target| {
        if let BackendTarget::Service(name) = target {
            services.insert(ServiceId::new(name.namespace.clone(), name.service.clone()));
        }
    });
    services
}

/// A workload as its own ports depend on it.
fn without_health(workload: &Workload) -> Workload {
    let mut workload = Workload { ready: false, ..workload.clone() };
    workload.ports.iter_mut().for_each(|port| port.open = true);
    workload
}
