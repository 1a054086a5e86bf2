//! TrafficPolicies, ServerPolicies and FaultInjections in the index, and what a change of one touches.

use std::collections::{BTreeMap, BTreeSet};

use outrigger_core::policy::fault::Caller;

use super::{Dep, Index};
use crate::experiments::{Stopped, Stops};
use crate::object::policy::{Attached, FaultInjection, ServerPolicy, TrafficPolicy};
use crate::object::{ObjectId, Route, ServiceId, Workload};
use crate::translate::fallback;

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
        if let Some(old) = &old {
            for service in fallen_back_to(old) {
                self.sending.unlink(&service, &old.id);
            }
        }
        if let Some(new) = new {
            for service in fallen_back_to(&new) {
                self.sending.link(service, new.id.clone());
            }
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
        self.touch_callers(policy);
    }

    /// The Services whose callers a policy speaks to.
    pub(super) fn touch_callers<S>(&mut self, policy: &Attached<S>) {
        let services = self.services_of(policy);
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
                self.touch_experiment(policy);
            }
        }
        let name = format!("{}/{}", key.0, key.1);
        if self
            .stops
            .get(&name)
            .is_some_and(|stopped| !new.as_ref().is_some_and(|new| is_of(stopped, new)))
        {
            // Another spec is another experiment.
            self.stops.remove(&name);
        }
        if let Some(new) = new {
            self.faults.insert(key, new);
        }
    }

    fn touch_experiment(&mut self, policy: &FaultInjection) {
        self.touch_calls(policy, true);
        if let Some(guard) = &policy.sections.guard {
            let watched = ServiceId::new(policy.namespace(), guard.service.clone());
            self.touch_parents_of_backend(&watched);
            self.dirty.insert(Dep::Service(watched));
        }
    }

    /// Experiments that were stopped before this process began.
    #[must_use]
    pub fn with_stops(self, stops: Stops) -> Self {
        Self { stops, ..self }
    }

    pub fn stops(&self) -> &Stops {
        &self.stops
    }

    /// Since when and why an experiment is stopped.
    pub fn stopped(&self, policy: &FaultInjection) -> Option<&Stopped> {
        let stopped = self.stops.get(&*policy.sections.fault.name);
        stopped.filter(|stopped| is_of(stopped, policy))
    }

    pub fn runs(&self, policy: &FaultInjection) -> bool {
        self.stopped(policy).is_none()
    }

    /// Withdraws an experiment from everybody, if whoever asks is the one that watches over it. Returns
    /// whether that changes anything: what is gone or has another spec is no error.
    pub fn stop_experiment(
        &mut self,
        name: &str,
        by: &Caller,
        stopped: Stopped,
    ) -> Result<bool, String> {
        let Some(policy) = self.experiment(name, &stopped).cloned() else { return Ok(false) };
        let watcher = policy.sections.guard.as_ref().map(|guard| &guard.rule.from);
        let watches = |from: &Caller| {
            from.namespace == by.namespace
                && (from.service_account.is_none() || from.service_account == by.service_account)
        };
        if !watcher.is_some_and(watches) {
            return Err(format!("{by} is not whose calls the guard of {name} watches"));
        }
        if !self.runs(&policy) {
            return Ok(false);
        }
        self.stops.insert(name.to_owned(), stopped);
        self.touch_experiment(&policy);
        Ok(true)
    }

    /// Whether an experiment runs here that another replica has heard to be stopped.
    pub fn misses_stop(&self, name: &str, stopped: &Stopped) -> bool {
        self.stops.get(name) != Some(stopped) && self.experiment(name, stopped).is_some()
    }

    /// Takes over a stop from another replica; returns whether the experiment is the one that is here.
    pub fn take_stop(&mut self, name: &str, stopped: Stopped) -> bool {
        let Some(policy) = self.experiment(name, &stopped).cloned() else { return false };
        self.stops.insert(name.to_owned(), stopped);
        self.touch_experiment(&policy);
        true
    }

    /// The experiment of this name, if its spec is the one that was stopped.
    fn experiment(&self, name: &str, stopped: &Stopped) -> Option<&FaultInjection> {
        let (namespace, name) = name.split_once('/')?;
        let policy = self.faults.get(&(namespace.to_owned(), name.to_owned()));
        policy.filter(|policy| is_of(stopped, policy))
    }

    /// Services that exist and that a policy names, or whose namespace it is for.
    fn services_of<S>(&self, policy: &Attached<S>) -> BTreeSet<ServiceId> {
        if policy.is_for_namespace() {
            return self.services_in(policy.namespace()).cloned().collect();
        }
        policy.services().filter(|id| self.service(id).is_some()).collect()
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

fn is_of(stopped: &Stopped, policy: &FaultInjection) -> bool {
    *stopped.version == *policy.sections.fault.version
}

/// The Services that a policy sends to when others fail.
fn fallen_back_to(policy: &TrafficPolicy) -> Vec<ServiceId> {
    fallback::services(policy.sections.fallbacks.as_deref().unwrap_or_default())
}

fn of_namespace<'a, P>(policies: &'a Policies<P>, namespace: &str) -> impl Iterator<Item = &'a P> {
    let from = (namespace.to_owned(), String::new());
    let namespace = namespace.to_owned();
    let policies = policies.range(from..).take_while(move |((of, _), _)| *of == namespace);
    policies.map(|(_, policy)| policy)
}
