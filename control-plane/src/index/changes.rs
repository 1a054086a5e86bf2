//! What changes have touched, and the links by which readers find who depends on it.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;

use outrigger_core::name::{Authority, Host};

use super::{Dep, Index, Touched};
use crate::object::policy::{FaultInjection, ServerPolicy, TrafficPolicy};
use crate::object::{ObjectId, Policy, ServiceId, Workload};

impl Index {
    /// What the changes since the last call touched.
    pub fn take_dirty(&mut self) -> HashSet<Dep> {
        std::mem::take(&mut self.dirty)
    }

    /// Which addresses have come, gone or changed as those of endpoints since the last call.
    pub fn take_moved(&mut self) -> HashSet<IpAddr> {
        std::mem::take(&mut self.moved)
    }

    /// Of the Services whose endpoints have changed since the last call, which.
    pub fn take_touched(&mut self) -> HashMap<ServiceId, Touched> {
        std::mem::take(&mut self.touched)
    }

    /// Objects that have changed since the last call, and those that a change concerns which were linked to
    /// what it changed before only. EndpointSlices are not among them: nothing refers to one.
    pub fn take_changed(&mut self) -> HashSet<ObjectId> {
        std::mem::take(&mut self.changed)
    }

    /// Routes, and TrafficPolicies with fallbacks, that send to a Service.
    pub fn sending_to(&self, service: &ServiceId) -> impl Iterator<Item = &ObjectId> {
        self.sending.of(service)
    }

    /// ExternalServices whose host a Service answers to, or one of its endpoints if it exists.
    pub fn externals_naming(&self, service: &ServiceId) -> impl Iterator<Item = &ServiceId> {
        self.externals.naming.of(service)
    }

    /// ExternalServices whose host is an address.
    pub fn externals_at(&self, ip: IpAddr) -> impl Iterator<Item = &ServiceId> {
        let from = Authority { host: Host::Ip(ip), port: 0 };
        let dialled = self.externals.dialled.from(&(from.clone(), String::new()));
        dialled.take_while(move |((to, _), _)| to.host == from.host).map(|(_, id)| id)
    }

    /// ExternalServices of any namespace that have a host and port.
    pub fn externals_dialled(&self, dialled: &Authority) -> impl Iterator<Item = &ServiceId> {
        let from = (dialled.clone(), String::new());
        let all = self.externals.dialled.from(&from);
        all.take_while(move |((to, _), _)| *to == from.0).map(|(_, id)| id)
    }

    /// The AccessPolicy of that name.
    pub fn access_policy(&self, id: &ObjectId) -> Option<&Policy> {
        self.policies.get(&id.key()).map(|policy| &**policy)
    }

    pub fn traffic_policy(&self, id: &ObjectId) -> Option<&TrafficPolicy> {
        self.traffic.get(&id.key())
    }

    pub fn server_policy(&self, id: &ObjectId) -> Option<&ServerPolicy> {
        self.server.get(&id.key())
    }

    pub fn fault_injection(&self, id: &ObjectId) -> Option<&FaultInjection> {
        self.faults.get(&id.key())
    }

    /// Policies that a workload leaves or comes to: what one of them lost, and how far it has come, follows
    /// from its workloads.
    pub(super) fn note_policies_of(&mut self, workload: &Workload) {
        let namespace = &workload.namespace;
        let server = self.server_policies_of(namespace, self.selecting(workload));
        let mut found: Vec<ObjectId> = server.map(|policy| policy.id.clone()).collect();
        found.extend(self.policies_of(workload).map(Policy::id));
        self.changed.extend(found);
    }

    /// The workloads that an AccessPolicy is for, by uid.
    pub fn workloads_of_access(&self, policy: &Policy) -> Vec<String> {
        let namespace = &policy.namespace;
        let first = policy.selector.as_ref().and_then(|selector| selector.iter().next());
        let everywhere = policy.closed.as_ref().is_some_and(|closed| closed.everywhere);
        match (everywhere, first) {
            (true, _) => self.workloads().filter(|w| policy.is_for(w)).map(Workload::uid).collect(),
            (false, Some((k, v))) => {
                let found = self.workloads_by.of(namespace, k, v);
                let found = found.filter_map(|uid| self.workload(uid));
                found.filter(|w| policy.is_for(w)).map(Workload::uid).collect()
            }
            (false, None) => self.workloads_in(namespace).map(Workload::uid).collect(),
        }
    }

    /// The workloads that a ServerPolicy is for, by uid.
    pub fn workloads_of(&self, policy: &ServerPolicy) -> BTreeSet<String> {
        if policy.is_for_namespace() {
            return self.workloads_in(policy.namespace()).map(Workload::uid).collect();
        }
        let services = policy.services().filter_map(|id| self.services.get(&id));
        services.flat_map(|service| self.selected(service)).map(Workload::uid).collect()
    }
}
