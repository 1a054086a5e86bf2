//! The endpoints of a Service's port: its EndpointSlices, and the workloads that it selects.
//!
//! All of them, or those of one workload: that is what a change of one costs.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use outrigger_core::config::{Endpoint, MeshAddress};
use outrigger_core::name::{EndpointId, external_name};

use super::{Index, Key, PortId, selects};
use crate::object::{
    EndpointSlice, Readiness, Service, ServiceId, ServicePort, SliceEndpoint, Workload,
};

/// Slices that are looked through for one address: a pod is in one of each of its Services.
const MAX_HELD: usize = 64;

impl Index {
    /// Every endpoint of a port in the order of their ids; `None` when there is no such port, or its
    /// addresses are not known yet.
    pub fn endpoints(&self, id: &PortId) -> Option<Vec<Endpoint>> {
        if external_name(&id.service.name).is_some() {
            return self.outside(id);
        }
        let service = self.service(&id.service)?;
        let port = service.port(id.port)?;
        let mut endpoints = BTreeMap::new();
        let least = self.least(service);
        for slice in self.slices_of(&service.id) {
            self.add_slice(slice, |_| true, (service, port), least, &mut endpoints);
        }
        for workload in self.selected(service).filter(|workload| workload.pod.is_none()) {
            self.add_workload(workload, service, port, &mut endpoints);
        }
        Some(endpoints.into_values().collect())
    }

    /// Those of one workload, by its uid as in [`EndpointId::workload`]; none when there is no such port.
    pub fn endpoints_of(&self, id: &PortId, uid: &str) -> BTreeMap<EndpointId, Endpoint> {
        let mut endpoints = BTreeMap::new();
        if external_name(&id.service.name).is_some() {
            let all = self.outside(id).into_iter().flatten();
            endpoints.extend(all.map(|e| (e.id.clone(), e)).filter(|(id, _)| id.workload == uid));
            return endpoints;
        }
        let Some(service) = self.service(&id.service) else { return endpoints };
        let Some(port) = service.port(id.port) else { return endpoints };
        let least = self.least(service);
        for key in self.holders.of(&holder(uid)) {
            // Another uid may have the same hash.
            if let Some(slice) = self.slices.get(&**key).filter(|slice| slice.service == service.id)
            {
                self.add_slice(slice, |e| e.uid == uid, (service, port), least, &mut endpoints);
            }
        }
        let workload = self.workload(uid).filter(|w| w.pod.is_none());
        let workload = workload.filter(|w| w.namespace == service.id.namespace);
        if let Some(workload) = workload.filter(|w| selects(&service.selector, w)) {
            self.add_workload(workload, service, port, &mut endpoints);
        }
        endpoints
    }

    fn outside(&self, id: &PortId) -> Option<Vec<Endpoint>> {
        let external = self.external_of(&id.service).filter(|external| external.port == id.port)?;
        let looked_up = self.addresses(external)?;
        Some(external.endpoints(&id.destination(), looked_up))
    }

    fn add_workload(
        &self,
        workload: &Workload,
        service: &Service,
        port: &ServicePort,
        endpoints: &mut BTreeMap<EndpointId, Endpoint>,
    ) {
        if !workload.ready {
            return;
        }
        let Some(number) = workload.port(&port.target) else { return };
        if workload.ports.iter().any(|port| port.port == number && !port.open) {
            return;
        }
        let Ok(id) = EndpointId::new(workload.uid(), number) else { return };
        let value = Endpoint {
            destination: PortId::new(&service.id, port.port).destination(),
            id: id.clone(),
            address: workload.socket(number),
            mesh: workload.mesh.clone().map(|mesh| {
                let identity = self.identity(workload);
                MeshAddress { identity, ..mesh }
            }),
            zone: workload.zone.clone(),
            // A StatefulSet's pods have their own name as host name; so have workloads.
            hostname: service.headless.then(|| workload.name.clone()),
            workload: Some(format!("{}/{}", workload.namespace, workload.service_account)),
            tls: None,
        };
        endpoints.insert(id, value);
    }

    /// The endpoint of a port that has a host name of its own; of several the first by id.
    pub(super) fn named(&self, port: &PortId, hostname: &str) -> Option<EndpointId> {
        let of_slices = self.hostnames.of(&(port.service.clone(), hostname.to_owned()));
        let mut uids: BTreeSet<String> = of_slices.cloned().collect();
        uids.insert(format!("{}.{hostname}", port.service.namespace));
        let candidates = uids.iter().flat_map(|uid| self.endpoints_of(port, uid));
        let named = candidates.filter(|(_, e)| e.hostname.as_deref() == Some(hostname));
        named.map(|(id, _)| id).min()
    }

    /// Notes by which uids and addresses a slice is to be found, where that differs from before. The index holds the new one.
    pub(super) fn link_slice(
        &mut self,
        key: &Arc<Key>,
        old: Option<&EndpointSlice>,
        new: Option<&EndpointSlice>,
    ) {
        let names = |slice: Option<&EndpointSlice>| -> BTreeSet<(String, Option<String>)> {
            let endpoints = slice.into_iter().flat_map(|slice| &slice.endpoints);
            endpoints.map(|e| (e.uid.clone(), e.hostname.clone())).collect()
        };
        let addresses = |slice: Option<&EndpointSlice>| -> BTreeSet<IpAddr> {
            slice.into_iter().flat_map(|slice| &slice.endpoints).map(|e| e.address).collect()
        };
        let (before, after) = (names(old), names(new));
        let (left, came) = (addresses(old), addresses(new));
        for ((uid, hostname), slice) in before.difference(&after).zip(old.into_iter().cycle()) {
            let service = &slice.service;
            if !self.holds(key, uid) {
                self.holders.unlink(&holder(uid), key);
            }
            // Another slice may say so as well.
            if let Some(hostname) =
                hostname.as_ref().filter(|h| !self.has_hostname(service, uid, h))
            {
                self.hostnames.unlink(&(service.clone(), hostname.clone()), uid);
            }
        }
        for ip in left.difference(&came) {
            self.holders.unlink(&holder(&ip.to_string()), key);
        }
        for ((uid, hostname), slice) in after.difference(&before).zip(new.into_iter().cycle()) {
            self.holders.link(holder(uid), key.clone());
            if let Some(hostname) = hostname {
                self.hostnames.link((slice.service.clone(), hostname.clone()), uid.clone());
            }
        }
        for ip in &came {
            self.holders.link(holder(&ip.to_string()), key.clone());
        }
    }

    /// The endpoint that has this very address, and its Service's port: what an app in `namespace` means that dials a
    /// pod. Of several Services' the first by name. With the Services that it depends on.
    pub(super) fn at(
        &self,
        address: SocketAddr,
        namespace: &str,
    ) -> (Option<(PortId, EndpointId)>, Vec<ServiceId>) {
        let ip = address.ip();
        let speakers = self.speakers(ip, namespace);
        let slices = self.holders.of(&holder(&ip.to_string()));
        let slices = slices.filter_map(|key| self.slices.get(&**key));
        let slices = slices.filter(|slice| may_speak(speakers.as_ref(), &slice.namespace));
        // Something else may have the same hash.
        let held = slices.filter(|s| s.endpoints.iter().any(|e| e.address == ip)).take(MAX_HELD);
        let (mut found, mut services) = (None, BTreeMap::new());
        for slice in held {
            let service = self.service(&slice.service);
            let least = services.entry(slice.service.clone());
            let least = *least.or_insert_with(|| service.map(|service| self.least(service)));
            let (Some(service), Some(least)) = (service, least) else { continue };
            let is_served = |port: &&ServicePort| {
                slice.ports.iter().any(|(name, at)| *name == port.name && *at == address.port())
            };
            for port in service.ports.iter().filter(is_served) {
                let mut of_port = BTreeMap::new();
                self.add_slice(slice, |e| e.address == ip, (service, port), least, &mut of_port);
                let of_port = of_port.into_values().filter(|endpoint| endpoint.address == address);
                let of_port = of_port.map(|e| (PortId::new(&service.id, port.port), e.id));
                found = found.into_iter().chain(of_port).min();
            }
        }
        (found, services.into_keys().collect())
    }

    /// The namespaces whose endpoints answer to an address for callers in `caller`; none: all. Who may write slices may write
    /// any address into them: for one that a pod has, the pod's own namespace speaks alone; for one that is no pod's, each
    /// namespace for itself. Where no pods are known at all, one author writes all objects.
    pub(super) fn speakers<'a>(&'a self, ip: IpAddr, caller: &'a str) -> Option<BTreeSet<&'a str>> {
        if self.pods_as_workloads.is_empty() {
            return None;
        }
        let owners = self.pod_addresses.of(&ip);
        let owners = owners.filter_map(|uid| self.pods_as_workloads.get(uid));
        // The address of a node is that of all pods on its network.
        let mut speakers: BTreeSet<&str> = owners.map(|pod| pod.namespace.as_str()).collect();
        if speakers.is_empty() {
            speakers.insert(caller);
        }
        Some(speakers)
    }

    fn holds(&self, key: &Key, uid: &str) -> bool {
        let mut endpoints = self.slices.get(key).into_iter().flat_map(|slice| &slice.endpoints);
        endpoints.any(|endpoint| endpoint.uid == uid)
    }

    fn has_hostname(&self, service: &ServiceId, uid: &str, hostname: &str) -> bool {
        let slices = self.holders.of(&holder(uid)).filter_map(|key| self.slices.get(&**key));
        let slices = slices.filter(|slice| slice.service == *service);
        let mut endpoints = slices.flat_map(|slice| &slice.endpoints);
        endpoints.any(|e| e.uid == uid && e.hostname.as_deref() == Some(hostname))
    }
    /// Services whose slices hold a uid.
    pub(super) fn holding(&self, uid: &str) -> BTreeSet<&ServiceId> {
        let slices = self.holders.of(&holder(uid)).filter_map(|key| self.slices.get(&**key));
        // Another uid may have the same hash.
        let slices = slices.filter(|slice| slice.endpoints.iter().any(|e| e.uid == uid));
        slices.map(|slice| &slice.service).collect()
    }

    /// The node on which an endpoint of a Service is, as its slices say.
    pub fn node_of(&self, service: &ServiceId, uid: &str) -> Option<&str> {
        let slices = self.holders.of(&holder(uid)).filter_map(|key| self.slices.get(&**key));
        let slices = slices.filter(|slice| slice.service == *service);
        let mut endpoints = slices.flat_map(|slice| &slice.endpoints).filter(|e| e.uid == uid);
        endpoints.find_map(|endpoint| endpoint.node.as_deref())
    }

    fn add_slice(
        &self,
        slice: &EndpointSlice,
        is_meant: impl Fn(&SliceEndpoint) -> bool,
        (service, port): (&Service, &ServicePort),
        least: Readiness,
        endpoints: &mut BTreeMap<EndpointId, Endpoint>,
    ) {
        let destination = PortId::new(&service.id, port.port).destination();
        // As in Kubernetes, a slice's port belongs to the Service's port of the same name.
        let numbers = slice.ports.iter().filter(|(name, _)| *name == port.name);
        for (_, number) in numbers {
            let serving = slice.endpoints.iter().filter(|e| e.readiness <= least);
            for endpoint in serving.filter(|endpoint| is_meant(endpoint)) {
                let Ok(id) = EndpointId::new(endpoint.uid.clone(), *number) else { continue };
                let pod = self.pod_of(slice, endpoint);
                let waits_for_proxy = pod.is_some_and(|pod| pod.mesh.is_some() && pod.ready);
                if endpoint.readiness == Readiness::Unready
                    && !(service.publish_not_ready || waits_for_proxy)
                {
                    continue;
                }
                let value = Endpoint {
                    destination: destination.clone(),
                    id: id.clone(),
                    address: SocketAddr::new(endpoint.address, *number),
                    mesh: pod.and_then(|pod| self.sidecar(pod, endpoint)),
                    zone: endpoint.zone.clone().or_else(|| pod?.zone.clone()),
                    hostname: endpoint.hostname.clone(),
                    workload: pod.map(|pod| format!("{}/{}", pod.namespace, pod.service_account)),
                    tls: None,
                };
                endpoints.insert(id, value);
            }
        }
    }

    /// How ready an endpoint of a Service's slices has to be. While one is ready, so; else those will do that are
    /// being deleted and still serve, as in Kubernetes (KEP-1669), and else those that wait for their proxy alone: it
    /// is being replaced, and what comes to its port meanwhile waits for it.
    pub(super) fn least(&self, service: &Service) -> Readiness {
        if service.publish_not_ready {
            return Readiness::Unready;
        }
        let all = self.slices_of(&service.id).flat_map(|slice| &slice.endpoints);
        let mut best = Readiness::Unready;
        for endpoint in all {
            best = best.min(endpoint.readiness);
            if best == Readiness::Ready {
                break;
            }
        }
        best
    }

    /// The pod that an endpoint is. Who may write a slice may write any uid and any address into it: both must
    /// be those of a pod of the slice's own namespace.
    fn pod_of(&self, slice: &EndpointSlice, endpoint: &SliceEndpoint) -> Option<&Workload> {
        let workload = self.pod(&endpoint.uid).filter(|w| w.namespace == slice.namespace)?;
        let pod = workload.pod.as_ref()?;
        pod.addresses.contains(&endpoint.address).then_some(workload)
    }

    /// The sidecar of a pod at the address by which the pod is reached.
    fn sidecar(&self, pod: &Workload, endpoint: &SliceEndpoint) -> Option<MeshAddress> {
        let mesh = pod.mesh.clone()?;
        let address = SocketAddr::new(endpoint.address, mesh.address.port());
        Some(MeshAddress { address, identity: self.identity(pod), ..mesh })
    }
}

pub(super) fn may_speak(speakers: Option<&BTreeSet<&str>>, namespace: &str) -> bool {
    speakers.is_none_or(|speakers| speakers.contains(namespace))
}

/// By what slices are found that hold a uid: small, since there is one for every endpoint of the mesh.
fn holder(uid: &str) -> u64 {
    outrigger_core::balance::hash(uid.as_bytes())
}

/// The uids whose endpoints differ between two versions of a slice.
pub(super) fn changed(
    old: Option<&EndpointSlice>,
    new: Option<&EndpointSlice>,
) -> BTreeSet<String> {
    let by_uid = |slice: Option<&EndpointSlice>| -> BTreeSet<_> {
        let endpoints = slice.into_iter().flat_map(|slice| slice.endpoints.iter().cloned());
        endpoints.collect()
    };
    let (before, after) = (by_uid(old), by_uid(new));
    let same_ports = old.map(|slice| &slice.ports) == new.map(|slice| &slice.ports);
    if !same_ports {
        return before.into_iter().chain(after).map(|endpoint| endpoint.uid).collect();
    }
    before.symmetric_difference(&after).map(|endpoint| endpoint.uid.clone()).collect()
}
