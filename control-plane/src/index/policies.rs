//! TrafficPolicies, ServerPolicies and FaultInjections in the index, and what a change of one touches.

use std::collections::BTreeSet;
use std::sync::Arc;

use imbl::OrdMap;
use outrigger_core::policy::fault::FaultSource;

use super::links::Links;
use super::{Dep, Index, Key};
use crate::object::policy::{Attached, FaultInjection, PolicyTarget, ServerPolicy, TrafficPolicy};
use crate::object::stopped::{Stopped, Stops};
use crate::object::targets::fallback_services;
use crate::object::{KeySource, ObjectId, Policy, Route, ServiceId, Workload};

/// Policies of one kind, found by what they are for.
#[derive(Clone, Debug)]
pub(super) struct Policies<P> {
    all: OrdMap<Key, Arc<P>>,
    by_target: Links<TargetId, Key>,
}

impl<P> Default for Policies<P> {
    fn default() -> Self {
        Self { all: OrdMap::new(), by_target: Links::default() }
    }
}

/// What a policy is for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum TargetId {
    Namespace(String),
    Service(ServiceId),
    Route(ObjectId),
}

impl<S: PartialEq> Policies<Attached<S>> {
    pub(super) fn get(&self, key: &Key) -> Option<&Attached<S>> {
        self.all.get(key).map(|policy| &**policy)
    }

    fn iter(&self) -> impl Iterator<Item = &Attached<S>> {
        self.all.values().map(|policy| &**policy)
    }

    /// Gives what was there before.
    fn set(&mut self, key: &Key, new: Option<Attached<S>>) -> Option<Arc<Attached<S>>> {
        let old = self.all.remove(key);
        for target in old.iter().flat_map(|old| targets(old)) {
            self.by_target.unlink(&target, key);
        }
        if let Some(new) = new {
            for target in targets(&new) {
                self.by_target.link(target, key.clone());
            }
            self.all.insert(key.clone(), new.into());
        }
        old
    }

    /// Of several targets, in name order.
    fn of(&self, targets: impl IntoIterator<Item = TargetId>) -> Vec<&Attached<S>> {
        let targets = targets.into_iter();
        let keys: BTreeSet<&Key> = targets.flat_map(|target| self.by_target.of(&target)).collect();
        keys.into_iter().filter_map(|key| self.get(key)).collect()
    }
}

fn targets<S>(policy: &Attached<S>) -> Vec<TargetId> {
    let namespace = policy.namespace();
    let target = |target: &PolicyTarget| match target {
        PolicyTarget::Namespace => TargetId::Namespace(namespace.to_owned()),
        PolicyTarget::Service { name, .. } => {
            TargetId::Service(ServiceId::new(namespace, name.clone()))
        }
        PolicyTarget::Route { kind, name, .. } => {
            let (namespace, name) = (namespace.to_owned(), name.clone());
            TargetId::Route(ObjectId { kind: *kind, namespace, name })
        }
    };
    policy.targets.iter().map(target).collect()
}

/// The targets by which policies apply to Services of one namespace.
fn of_services<'a>(
    namespace: &str,
    services: impl IntoIterator<Item = &'a ServiceId>,
) -> Vec<TargetId> {
    let services = services.into_iter().cloned().map(TargetId::Service);
    services.chain([TargetId::Namespace(namespace.to_owned())]).collect()
}

impl Index {
    pub fn policies(&self) -> impl Iterator<Item = &Policy> {
        self.policies.values().map(|policy| &**policy)
    }

    /// AccessPolicies that are for a workload, whatever port, in name order.
    pub fn policies_of(&self, workload: &Workload) -> impl Iterator<Item = &Policy> {
        let namespace = &workload.namespace;
        let labels = workload.labels.iter();
        let selecting = labels.flat_map(|(k, v)| self.policies_by.of(namespace, k, v));
        let for_all = self.policies_for_all.of(namespace);
        let keys: BTreeSet<&Key> =
            selecting.chain(for_all).chain(&self.policies_everywhere).collect();
        let policies = keys.into_iter().filter_map(|key| self.policies.get(key));
        policies.map(|policy| &**policy).filter(|policy| policy.is_for(workload))
    }

    pub(super) fn set_policy(&mut self, key: Key, new: Option<Policy>) {
        let old = self.policies.remove(&key);
        if old.as_deref() == new.as_ref() {
            self.policies.extend(old.map(|old| (key, old)));
            return;
        }
        for policy in old.as_deref().into_iter().chain(&new) {
            self.touch_workloads_of(policy);
            self.changed.insert(policy.id());
        }
        if let Some(old) = &old {
            self.link_policy(&key, old, false);
        }
        if let Some(new) = new {
            self.link_policy(&key, &new, true);
            self.policies.insert(key, new.into());
        }
    }

    fn link_policy(&mut self, key: &Key, policy: &Policy, add: bool) {
        let namespace = &policy.namespace;
        let first = policy.selector.as_ref().and_then(|selector| selector.iter().next());
        match (policy.closed.as_ref().is_some_and(|closed| closed.everywhere), first, add) {
            (true, _, true) => drop(self.policies_everywhere.insert(key.clone())),
            (true, _, false) => drop(self.policies_everywhere.remove(key)),
            (false, Some((k, v)), true) => self.policies_by.link(namespace, k, v, key.clone()),
            (false, Some((k, v)), false) => self.policies_by.unlink(namespace, k, v, key),
            (false, None, true) => self.policies_for_all.link(namespace.clone(), key.clone()),
            (false, None, false) => self.policies_for_all.unlink(namespace, key),
        }
        for issuer in &policy.issuers {
            match add {
                true => self.key_sources.link(issuer.source.clone(), key.clone()),
                false => self.key_sources.unlink(&issuer.source, key),
            }
        }
    }

    fn touch_workloads_of(&mut self, policy: &Policy) {
        let touched = self.workloads_of_access(policy);
        self.dirty.extend(touched.into_iter().map(Dep::Inbound));
    }

    /// Takes a key set as its source has it now.
    pub fn set_keys(&mut self, source: KeySource, keys: String) {
        if self.keys.get(&source).is_some_and(|known| **known == *keys) {
            return;
        }
        let policies = self.key_sources.of(&source).filter_map(|key| self.policies.get(key));
        for policy in policies.cloned().collect::<Vec<_>>() {
            self.touch_workloads_of(&policy);
        }
        self.keys.insert(source, keys.into());
    }

    /// AccessPolicies that take keys from an ExternalService.
    pub fn policies_with_keys_of(
        &self,
        namespace: &str,
        name: &str,
    ) -> impl Iterator<Item = &Policy> {
        let sources = self.key_sources.all().filter(move |(source, _)| {
            let KeySource::External { namespace: of, name: known, .. } = source else {
                return false;
            };
            of == namespace && known == name
        });
        let keys = sources.flat_map(|(source, _)| self.key_sources.of(source));
        keys.filter_map(|key| self.policies.get(key)).map(|policy| &**policy)
    }

    /// Every source of keys that a policy names.
    pub fn key_sources(&self) -> BTreeSet<KeySource> {
        self.key_sources.all().map(|(source, _)| source.clone()).collect()
    }

    pub fn traffic_policies(&self) -> impl Iterator<Item = &TrafficPolicy> {
        self.traffic.iter()
    }

    pub fn server_policies(&self) -> impl Iterator<Item = &ServerPolicy> {
        self.server.iter()
    }

    pub fn fault_injections(&self) -> impl Iterator<Item = &FaultInjection> {
        self.faults.iter()
    }

    /// Policies that name a Service or its namespace.
    pub fn traffic_policies_of(&self, service: &ServiceId) -> impl Iterator<Item = &TrafficPolicy> {
        self.traffic.of(of_services(&service.namespace, [service])).into_iter()
    }

    /// Policies that name a route.
    pub fn traffic_policies_of_route(
        &self,
        route: &ObjectId,
    ) -> impl Iterator<Item = &TrafficPolicy> {
        self.traffic.of([TargetId::Route(route.clone())]).into_iter()
    }

    /// Policies that name one of some Services, or their namespace.
    pub fn server_policies_of<'a>(
        &self,
        namespace: &str,
        services: impl IntoIterator<Item = &'a ServiceId>,
    ) -> impl Iterator<Item = &ServerPolicy> {
        self.server.of(of_services(namespace, services)).into_iter()
    }

    /// Fault injections that name a Service or its namespace.
    pub fn fault_injections_of(
        &self,
        service: &ServiceId,
    ) -> impl Iterator<Item = &FaultInjection> {
        self.faults.of(of_services(&service.namespace, [service])).into_iter()
    }

    /// Fault injections that name a route.
    pub fn fault_injections_of_route(
        &self,
        route: &ObjectId,
    ) -> impl Iterator<Item = &FaultInjection> {
        self.faults.of([TargetId::Route(route.clone())]).into_iter()
    }

    /// Fault injections whose guard watches a Service, in name order.
    pub fn fault_injections_watching(
        &self,
        service: &ServiceId,
    ) -> impl Iterator<Item = &FaultInjection> {
        self.watching.of(service).filter_map(|key| self.faults.get(key))
    }

    pub fn route(&self, id: &ObjectId) -> Option<&Route> {
        self.routes.get(id).map(|route| &**route)
    }

    pub(super) fn set_traffic_policy(&mut self, key: &Key, new: Option<TrafficPolicy>) {
        if self.traffic.get(key) == new.as_ref() {
            return;
        }
        let old = self.traffic.set(key, new.clone());
        for policy in old.as_deref().into_iter().chain(&new) {
            self.touch_calls(policy, policy.sections.has_backend_section());
            self.changed.insert(policy.id.clone());
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
        }
    }

    /// The Services that a policy applies to, those whose routes send there, and the parents of routes.
    /// `is_backend`: it applies to the services themselves, whatever route leads there.
    fn touch_calls<S>(&mut self, policy: &Attached<S>, is_backend: bool) {
        let services = self.services_of(policy);
        if is_backend {
            for service in &services {
                self.touch_parents_of_backend(service);
            }
        }
        self.touch_callers(policy);
    }

    /// The Services whose callers a policy speaks to.
    pub(super) fn touch_callers<S>(&mut self, policy: &Attached<S>) {
        let services = self.services_of(policy);
        let routes = policy.routes().filter_map(|id| self.route(&id).cloned()).collect::<Vec<_>>();
        let routes = routes.iter();
        let parents = routes.flat_map(|route| route.parents.iter().map(|p| p.service.clone()));
        let touched: Vec<_> = parents.chain(services).map(Dep::Service).collect();
        self.dirty.extend(touched);
    }

    pub(super) fn set_server_policy(&mut self, key: &Key, new: Option<ServerPolicy>) {
        if self.server.get(key) == new.as_ref() {
            return;
        }
        let touched: Vec<_> = new.iter().flat_map(|new| self.workloads_of(new)).collect();
        self.changed.extend(new.iter().map(|new| new.id.clone()));
        let old = self.server.set(key, new);
        let before = old.iter().flat_map(|old| self.workloads_of(old)).collect::<Vec<_>>();
        self.dirty.extend(touched.into_iter().chain(before).map(Dep::Inbound));
        self.changed.extend(old.map(|old| old.id.clone()));
    }

    pub(super) fn set_fault_injection(&mut self, key: &Key, new: Option<FaultInjection>) {
        let name = format!("{}/{}", key.0, key.1);
        let stopped = self.stops.get(&name);
        if stopped.is_some_and(|stopped| !new.as_ref().is_some_and(|new| is_of(stopped, new))) {
            // Another spec is another fault injection.
            Arc::make_mut(&mut self.stops).remove(&name);
        }
        if self.faults.get(key) == new.as_ref() {
            return;
        }
        if let Some(service) = new.as_ref().and_then(watched) {
            self.watching.link(service, key.clone());
        }
        let old = self.faults.set(key, new);
        let new = self.faults.all.get(key).cloned();
        let moved = old.as_deref().and_then(watched) != new.as_deref().and_then(watched);
        if let Some(service) = old.as_deref().and_then(watched).filter(|_| moved) {
            self.watching.unlink(&service, key);
        }
        for policy in old.iter().chain(&new) {
            self.touch_experiment(policy);
        }
    }

    fn touch_experiment(&mut self, policy: &FaultInjection) {
        self.changed.insert(policy.id.clone());
        self.touch_calls(policy, true);
        if let Some(watched) = watched(policy) {
            self.touch_parents_of_backend(&watched);
            self.dirty.insert(Dep::Service(watched));
        }
    }

    /// Fault injections that were stopped before this process began.
    #[must_use]
    pub fn with_stops(self, stops: Stops) -> Self {
        Self { stops: stops.into(), ..self }
    }

    pub fn stops(&self) -> &Stops {
        &self.stops
    }

    /// Since when and why a fault injection is stopped.
    pub fn stopped(&self, policy: &FaultInjection) -> Option<&Stopped> {
        let stopped = self.stops.get(&*policy.sections.fault.name);
        stopped.filter(|stopped| is_of(stopped, policy))
    }

    pub fn runs(&self, policy: &FaultInjection) -> bool {
        self.stopped(policy).is_none()
    }

    /// Withdraws a fault injection from everybody, if anyone who asks is the one that watches over it. Returns
    /// whether that changes anything: what is gone or has another spec is no error.
    pub fn stop_experiment(
        &mut self,
        name: &str,
        by: &FaultSource,
        stopped: Stopped,
    ) -> Result<bool, String> {
        let Some(policy) = self.experiment(name, &stopped).cloned() else { return Ok(false) };
        let watcher = policy.sections.guard.as_ref().map(|guard| &guard.rule.from);
        let watches = |from: &FaultSource| {
            from.namespace == by.namespace
                && (from.service_account.is_none() || from.service_account == by.service_account)
        };
        if !watcher.is_some_and(watches) {
            return Err(format!("{by} is not whose calls the guard of {name} watches"));
        }
        if !self.runs(&policy) {
            return Ok(false);
        }
        Arc::make_mut(&mut self.stops).insert(name.to_owned(), stopped);
        self.touch_experiment(&policy);
        Ok(true)
    }

    /// Whether a fault injection runs here that another replica has heard to be stopped.
    pub fn misses_stop(&self, name: &str, stopped: &Stopped) -> bool {
        self.stops.get(name) != Some(stopped) && self.experiment(name, stopped).is_some()
    }

    /// Takes over a stop from another replica; returns whether the fault injection is the one that is here.
    pub fn take_stop(&mut self, name: &str, stopped: Stopped) -> bool {
        let Some(policy) = self.experiment(name, &stopped).cloned() else { return false };
        Arc::make_mut(&mut self.stops).insert(name.to_owned(), stopped);
        self.touch_experiment(&policy);
        true
    }

    /// The fault injection of this name, if its spec is the one that was stopped.
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
}

fn is_of(stopped: &Stopped, policy: &FaultInjection) -> bool {
    *stopped.version == *policy.sections.fault.version
}

/// The Services that a policy sends to when others fail.
fn fallen_back_to(policy: &TrafficPolicy) -> Vec<ServiceId> {
    fallback_services(policy.sections.fallbacks.as_deref().unwrap_or_default())
}

/// The Service that the guard of a fault injection watches.
fn watched(policy: &FaultInjection) -> Option<ServiceId> {
    let guard = policy.sections.guard.as_ref()?;
    Some(ServiceId::new(policy.namespace(), guard.service.clone()))
}
