//! Putting one object in the place of another, and noting what that touches.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use outrigger_core::config::BackendTarget;

use super::{Dep, Index, PortId};
use crate::object::{
    EndpointSlice, KeySource, Kind, ObjectId, Policy, ReferenceGrant, Route, Service, ServiceId,
    Workload,
};
use crate::translate::destination;

impl Index {
    pub(super) fn set_service(&mut self, id: ServiceId, new: Option<Service>) {
        let old = self.services.remove(&id);
        if old == new {
            if let Some(old) = old {
                self.services.insert(id, old);
            }
            return;
        }
        let both = || old.iter().chain(&new);
        let ports: BTreeSet<u16> = both().flat_map(|s| &s.ports).map(|p| p.port).collect();
        let ips: BTreeSet<IpAddr> = both().flat_map(|s| s.cluster_ips.iter().copied()).collect();
        let mut inbounds: BTreeSet<String> = BTreeSet::new();
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
            self.services.insert(id.clone(), new);
        }
        self.touch_parents_of_backend(&id);
        self.dirty.extend(inbounds.into_iter().map(Dep::Inbound));
        self.dirty.extend(ips.into_iter().map(Dep::Ip));
        for port in ports {
            self.touch_endpoints(PortId::new(&id, port));
        }
        self.dirty.insert(Dep::Service(id));
    }

    pub(super) fn set_slice(&mut self, key: (String, String), new: Option<EndpointSlice>) {
        let old = self.slices.remove(&key);
        let changed = old != new;
        let mut services = BTreeSet::new();
        if let Some(old) = old {
            self.slices_of.unlink(&old.service, &key);
            services.insert(old.service);
        }
        if let Some(new) = new {
            self.slices_of.link(new.service.clone(), key.clone());
            services.insert(new.service.clone());
            self.slices.insert(key, new);
        }
        if changed {
            for service in services {
                self.touch_all_endpoints(&service);
            }
        }
    }

    pub(super) fn set_route(&mut self, id: &ObjectId, new: Option<Route>) {
        let old = self.routes.remove(id);
        let changed = old != new;
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
            self.routes.insert(id.clone(), new);
        }
    }

    fn touch_if(&mut self, changed: bool, service: &ServiceId) {
        if changed {
            self.dirty.insert(Dep::Service(service.clone()));
        }
    }

    pub(super) fn set_grant(&mut self, key: (String, String), new: Option<ReferenceGrant>) {
        let namespace = key.0.clone();
        let old = self.grants.remove(&key);
        let changed = old != new;
        if let Some(new) = new {
            self.grants.insert(key, new);
        }
        if changed {
            let backends = self.sending.keys().filter(|service| service.namespace == namespace);
            for backend in backends.cloned().collect::<Vec<_>>() {
                self.touch_parents_of_backend(&backend);
            }
        }
    }

    pub(super) fn set_policy(&mut self, key: (String, String), new: Option<Policy>) {
        let old = self.policies.remove(&key);
        if old != new {
            let both = || old.iter().chain(&new);
            let touched = self.workloads().filter(|w| both().any(|policy| policy.is_for(w)));
            let touched: Vec<_> = touched.map(|workload| Dep::Inbound(workload.uid())).collect();
            self.dirty.extend(touched);
        }
        if let Some(new) = new {
            self.policies.insert(key, new);
        }
    }

    /// Takes a key set as its source has it now.
    pub fn set_keys(&mut self, source: KeySource, keys: String) {
        if self.keys.get(&source) == Some(&keys) {
            return;
        }
        let uses = |policy: &&Policy| policy.issuers.iter().any(|issuer| issuer.source == source);
        let policies: Vec<_> = self.policies.values().filter(uses).collect();
        let touched = self.workloads().filter(|w| policies.iter().any(|policy| policy.is_for(w)));
        let touched: Vec<_> = touched.map(|workload| Dep::Inbound(workload.uid())).collect();
        self.dirty.extend(touched);
        self.keys.insert(source, keys);
    }

    /// Runs `change` on the workload `uid` and notes what looked or looks different.
    pub(super) fn change_workload(&mut self, uid: &str, change: impl FnOnce(&mut Self)) {
        let old = self.workload(uid).cloned();
        change(self);
        let new = self.workload(uid).cloned();
        if old == new {
            return;
        }
        let mut services: BTreeSet<ServiceId> = BTreeSet::new();
        if let Some(old) = &old {
            services.extend(self.selecting(old).into_iter().cloned());
            for (k, v) in &old.labels {
                self.workloads_by.unlink(&old.namespace, k, v, &uid.to_owned());
            }
        }
        if let Some(new) = &new {
            services.extend(self.selecting(new).into_iter().cloned());
            for (k, v) in &new.labels {
                self.workloads_by.link(&new.namespace, k, v, uid.to_owned());
            }
        }
        // Health is nothing that a workload's own ports depend on.
        let same_ports = match (&old, &new) {
            (Some(old), Some(new)) => Workload { ready: old.ready, ..new.clone() } == *old,
            _ => false,
        };
        if !same_ports {
            self.dirty.insert(Dep::Inbound(uid.to_owned()));
        }
        for service in services {
            self.touch_all_endpoints(&service);
        }
    }

    /// The Services whose callers may be sent to `backend`, by a route or as a fallback.
    pub(super) fn touch_parents_of_backend(&mut self, backend: &ServiceId) {
        let routes = self.sending.of(backend).filter_map(|id| self.routes.get(id));
        let parents = routes.flat_map(|route| &route.parents);
        self.dirty.extend(parents.map(|parent| Dep::Service(parent.service.clone())));
        let policies = self.sending.of(backend).filter(|id| id.kind == Kind::TrafficPolicy);
        let policies =
            policies.filter_map(|id| self.traffic.get(&(id.namespace.clone(), id.name.clone())));
        for policy in policies.cloned().collect::<Vec<_>>() {
            self.touch_callers(&policy);
        }
    }

    fn touch_all_endpoints(&mut self, service: &ServiceId) {
        let ports = self.services.get(service).into_iter().flat_map(|s| &s.ports);
        for port in ports.map(|p| PortId::new(service, p.port)).collect::<Vec<_>>() {
            self.touch_endpoints(port);
        }
    }

    /// The endpoints of a port may have changed; a headless Service's are names, too.
    fn touch_endpoints(&mut self, port: PortId) {
        let headless = self.services.get(&port.service).is_some_and(|s| s.headless);
        let endpoints = if headless { self.endpoints(&port) } else { None };
        let new: Vec<_> =
            endpoints.into_iter().flatten().map(|e| (canonical(e.address), e.id)).collect();
        let old = self.pods_of.remove(&port).unwrap_or_default();
        if new != old {
            for (address, id) in &old {
                self.pods.unlink(address, &(port.clone(), id.clone()));
                self.dirty.insert(Dep::Ip(address.ip()));
            }
            for (address, id) in &new {
                self.pods.link(*address, (port.clone(), id.clone()));
                self.dirty.insert(Dep::Ip(address.ip()));
            }
        }
        if !new.is_empty() {
            self.pods_of.insert(port.clone(), new);
        }
        self.dirty.insert(Dep::Endpoints(port));
    }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// The Services that a route sends to.
fn backends(route: &Route) -> BTreeSet<ServiceId> {
    let mut services = BTreeSet::new();
    destination::for_each_target(&route.body, &mut |_, target| {
        if let BackendTarget::Service(name) = target {
            services.insert(ServiceId::new(name.namespace.clone(), name.service.clone()));
        }
    });
    services
}
