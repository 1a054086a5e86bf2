//! TrafficPolicies, ServerPolicies and FaultInjections in the index, and what a change of one touches.

use std::collections::{BTreeMap, BTreeSet};

use super::{Dep, Index};
use crate::object::policy::{Attached, FaultInjection, ServerPolicy, TrafficPolicy};
use crate::object::{ObjectId, Route, ServiceId, Workload};

/// By namespace and name.
pub(super) type Policies<P> = BTreeMap<(String, String), P>;

impl Index {
    pub fn traffic_policies(&self) -> impl Iterator<Item = &TrafficPolicy> {
        self.traffic.values()
    }

    pub fn traffic_policies_in(&self, namespace: &str) -> impl Iterator<Item = &TrafficPolicy> {
        of_namespace(&self.traffic, namespace)
    }

    pub fn server_policies(&self) -> impl Iterator<Item = &ServerPolicy> {
        self.server.values()
    }

    pub fn server_policies_in(&self, namespace: &str) -> impl Iterator<Item = &ServerPolicy> {
        of_namespace(&self.server, namespace)
    }

    pub fn fault_injections(&self) -> impl Iterator<Item = &FaultInjection> {
        self.faults.values()
    }

    pub fn fault_injections_in(&self, namespace: &str) -> impl Iterator<Item = &FaultInjection> {
        of_namespace(&self.faults, namespace)
    }

    pub fn route(&self, id: &ObjectId) -> Option<&Route> {
        self.routes.get(id)
    }

    pub(super) fn set_traffic_policy(&mut self, key: (String, String), new: Option<TrafficPolicy>) {
        let old = self.traffic.remove(&key);
        if old != new {
            for policy in old.iter().chain(&new) {
                self.touch_calls(policy, policy.sections.spares());
            }
        }
        if let Some(new) = new {
            self.traffic.insert(key, new);
        }
    }

    /// The Services that a policy speaks of, those whose routes send there, and the parents of routes.
    /// `spares`: it speaks of the services themselves, whatever route leads there.
    fn touch_calls<S>(&mut self, policy: &Attached<S>, spares: bool) {
        let services = self.services_of(policy);
        if spares {
            for service in &services {
                self.touch_parents_of_backend(service);
            }
        }
        let routes = policy.routes().filter_map(|id| self.routes.get(&id));
        let parents = routes.flat_map(|route| route.parents.iter().map(|p| p.service.clone()));
        let touched: Vec<_> = parents.chain(services).map(Dep::Service).collect();
        self.dirty.extend(touched);
    }

    pub(super) fn set_server_policy(&mut self, key: (String, String), new: Option<ServerPolicy>) {
        let old = self.server.remove(&key);
        if old != new {
            for policy in old.iter().chain(&new) {
                let touched: Vec<_> = self.workloads_of(policy).into_iter().collect();
                self.dirty.extend(touched.into_iter().map(Dep::Inbound));
            }
        }
        if let Some(new) = new {
            self.server.insert(key, new);
        }
    }

    pub(super) fn set_fault_injection(
        &mut self,
        key: (String, String),
        new: Option<FaultInjection>,
    ) {
        let old = self.faults.remove(&key);
        if old != new {
            for policy in old.iter().chain(&new) {
                self.touch_calls(policy, true);
            }
        }
        if let Some(new) = new {
            self.faults.insert(key, new);
        }
    }

    /// Services that exist and that a policy names, or whose namespace it is for.
    fn services_of<S>(&self, policy: &Attached<S>) -> BTreeSet<ServiceId> {
        if policy.is_for_namespace() {
            let all = self.services.keys();
            return all.filter(|id| id.namespace == policy.namespace()).cloned().collect();
        }
        policy.services().filter(|id| self.services.contains_key(id)).collect()
    }

    fn workloads_of(&self, policy: &ServerPolicy) -> BTreeSet<String> {
        if policy.is_for_namespace() {
            let all = self.workloads().filter(|w| w.namespace == policy.namespace());
            return all.map(Workload::uid).collect();
        }
        let services = policy.services().filter_map(|id| self.services.get(&id));
        services.flat_map(|service| self.selected(service)).map(Workload::uid).collect()
    }
}

fn of_namespace<'a, P>(policies: &'a Policies<P>, namespace: &str) -> impl Iterator<Item = &'a P> {
    let from = (namespace.to_owned(), String::new());
    let namespace = namespace.to_owned();
    let policies = policies.range(from..).take_while(move |((of, _), _)| *of == namespace);
    policies.map(|(_, policy)| policy)
}
