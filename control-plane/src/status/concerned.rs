//! From what has changed to the objects whose status that may change, by the links of the index.
//!
//! What a status depends on, and how a change of it gets here:
//!
//! - any object on itself, as an object that has changed;
//! - a route on its parents and backends (Services that have changed), and on other routes of its namespace at
//!   its parents, which may be more specific;
//! - a TrafficPolicy or FaultInjection on the Services and routes that it is for, and on its equals at them: a
//!   change of one touches those Services; on what it falls back to, and on ReferenceGrants for that;
//! - a ServerPolicy on the Services that it is for, on the workloads that they select, and on its equals there: a
//!   change of one touches those workloads;
//! - an AccessPolicy on the ExternalServices that publish its keys, and on the workloads that it selects, which are
//!   noted with it when they change;
//! - an ExternalService on whatever its host means: Services, addresses, other ExternalServices of its namespace;
//! - all of them on how far proxies have come, and on the parts of them that are left out.

use std::collections::BTreeSet;

use crate::index::{Dep, Index};
use crate::object::{Kind, ObjectId, Policy, Route, ServiceId, Workload};
use crate::publish::News;

/// Objects whose status may be another one now.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Concerned {
    pub status: BTreeSet<ObjectId>,
    /// Of these, how far proxies have come, and nothing else; some are in the other set as well.
    pub progress: BTreeSet<ObjectId>,
}

/// What kinds of objects have changed: a Service is touched by many, and most concern few of those that depend
/// on it.
#[derive(Debug, Default)]
struct Kinds<'a> {
    services: bool,
    traffic: bool,
    server: bool,
    faults: bool,
    /// The namespaces of routes.
    routes: BTreeSet<&'a str>,
    /// The namespaces of ExternalServices.
    externals: BTreeSet<&'a str>,
}

impl Concerned {
    /// `index` is the one that the news is of, or a newer one.
    pub fn new(index: &Index, news: &News) -> Self {
        let mut concerned = Self::default();
        let mut kinds = Kinds::default();
        for id in &news.objects {
            match id.kind {
                Kind::Service => kinds.services = true,
                Kind::TrafficPolicy => kinds.traffic = true,
                Kind::ServerPolicy => kinds.server = true,
                Kind::FaultInjection => kinds.faults = true,
                Kind::ExternalService => drop(kinds.externals.insert(&id.namespace)),
                Kind::HttpRoute | Kind::GrpcRoute | Kind::TlsRoute | Kind::TcpRoute => {
                    kinds.routes.insert(&id.namespace);
                }
                Kind::EndpointSlice
                | Kind::ReferenceGrant
                | Kind::ExternalWorkload
                | Kind::Pod
                | Kind::Namespace
                | Kind::AccessPolicy => {}
            }
            concerned.by_object(index, id);
        }
        for dep in &news.deps {
            concerned.by_dep(index, dep, &kinds);
        }
        for dep in &news.left_out {
            concerned.by_left_out(index, dep);
        }
        for dep in &news.progress {
            concerned.by_progress(index, dep);
        }
        concerned
    }

    fn by_object(&mut self, index: &Index, id: &ObjectId) {
        self.status.insert(id.clone());
        match id.kind {
            Kind::Service => self.by_service(index, &ServiceId::new(&id.namespace, &id.name)),
            Kind::ExternalService => {
                self.by_service(index, &ServiceId::external(&id.namespace, &id.name));
                let policies = index.policies_with_keys_of(&id.namespace, &id.name);
                self.status.extend(policies.map(Policy::id));
            }
            Kind::HttpRoute | Kind::GrpcRoute | Kind::TlsRoute | Kind::TcpRoute => {
                self.status.extend(policies_of_route(index, id));
            }
            // Whom else they concern follows from what they have touched.
            Kind::TrafficPolicy | Kind::ServerPolicy | Kind::FaultInjection => {}
            Kind::EndpointSlice
            | Kind::ReferenceGrant
            | Kind::ExternalWorkload
            | Kind::Pod
            | Kind::Namespace
            | Kind::AccessPolicy => {}
        }
    }

    /// A Service, or an ExternalService as one, is another one now.
    fn by_service(&mut self, index: &Index, service: &ServiceId) {
        for Route { id, .. } in index.routes_of(service) {
            self.status.insert(id.clone());
            self.status.extend(policies_of_route(index, id));
        }
        self.status.extend(index.sending_to(service).cloned());
        self.status.extend(index.traffic_policies_of(service).map(|policy| policy.id.clone()));
        self.status.extend(index.fault_injections_of(service).map(|policy| policy.id.clone()));
        let server = index.server_policies_of(&service.namespace, [service]);
        self.status.extend(server.map(|policy| policy.id.clone()));
        self.status.extend(index.externals_naming(service).map(ServiceId::object));
    }

    fn by_dep(&mut self, index: &Index, dep: &Dep, kinds: &Kinds<'_>) {
        match dep {
            Dep::Service(service) => self.by_touched_service(index, service, kinds),
            Dep::Endpoints(port) => {
                // The host names of its endpoints.
                self.status.extend(index.externals_naming(&port.service).map(ServiceId::object));
            }
            Dep::Ip(ip) => self.status.extend(index.externals_at(*ip).map(ServiceId::object)),
            Dep::Dialled(dialled) => {
                let others = index.externals_dialled(dialled);
                let others = others.filter(|id| kinds.externals.contains(id.namespace.as_str()));
                self.status.extend(others.map(ServiceId::object));
            }
            Dep::Inbound(uid) if kinds.services || kinds.server => {
                self.status.extend(server_policies(index, index.workload(uid)));
            }
            Dep::Inbound(_) | Dep::Settings | Dep::Trust => {}
        }
    }

    /// Routes or policies at a Service are others now; if it itself is, see [`Self::by_service`].
    fn by_touched_service(&mut self, index: &Index, service: &ServiceId, kinds: &Kinds<'_>) {
        let any_route = !kinds.routes.is_empty();
        if any_route || kinds.traffic || kinds.faults {
            for Route { id, .. } in index.routes_of(service) {
                if kinds.routes.contains(id.namespace.as_str()) {
                    self.status.insert(id.clone());
                }
                if kinds.traffic {
                    let policies = index.traffic_policies_of_route(id);
                    self.status.extend(policies.map(|policy| policy.id.clone()));
                }
                if kinds.faults {
                    let policies = index.fault_injections_of_route(id);
                    self.status.extend(policies.map(|policy| policy.id.clone()));
                }
            }
        }
        if any_route || kinds.traffic {
            self.status.extend(index.traffic_policies_of(service).map(|policy| policy.id.clone()));
        }
        if kinds.faults {
            self.status.extend(index.fault_injections_of(service).map(|policy| policy.id.clone()));
        }
    }

    fn by_left_out(&mut self, index: &Index, dep: &Dep) {
        match dep {
            Dep::Service(service) => {
                self.status.extend(index.routes_of(service).map(|route| route.id.clone()));
                let policies = index.traffic_policies_of(service);
                self.status.extend(policies.map(|policy| policy.id.clone()));
            }
            Dep::Inbound(uid) => {
                let workload = index.workload(uid);
                self.status.extend(server_policies(index, workload));
                let policies = workload.into_iter().flat_map(|w| index.policies_of(w));
                self.status.extend(policies.map(Policy::id));
            }
            Dep::Endpoints(_) | Dep::Ip(_) | Dep::Dialled(_) | Dep::Settings | Dep::Trust => {}
        }
    }

    fn by_progress(&mut self, index: &Index, dep: &Dep) {
        match dep {
            Dep::Service(service) => {
                for Route { id, .. } in index.routes_of(service) {
                    self.progress.insert(id.clone());
                    self.progress.extend(policies_of_route(index, id));
                }
                let traffic = index.traffic_policies_of(service);
                self.progress.extend(traffic.map(|policy| policy.id.clone()));
                let faults = index.fault_injections_of(service);
                self.progress.extend(faults.map(|policy| policy.id.clone()));
                self.progress.extend(index.external_of(service).map(|_| service.object()));
            }
            Dep::Inbound(uid) => {
                let workload = index.workload(uid);
                self.progress.extend(server_policies(index, workload));
                let policies = workload.into_iter().flat_map(|w| index.policies_of(w));
                self.progress.extend(policies.map(Policy::id));
            }
            Dep::Endpoints(_) | Dep::Ip(_) | Dep::Dialled(_) | Dep::Settings | Dep::Trust => {}
        }
    }
}

/// TrafficPolicies and FaultInjections that name a route.
fn policies_of_route<'a>(
    index: &'a Index,
    route: &ObjectId,
) -> impl Iterator<Item = ObjectId> + use<'a> {
    let traffic = index.traffic_policies_of_route(route).map(|policy| policy.id.clone());
    let faults = index.fault_injections_of_route(route).map(|policy| policy.id.clone());
    let all: Vec<_> = traffic.chain(faults).collect();
    all.into_iter()
}

/// ServerPolicies for a workload, at whatever port.
fn server_policies(index: &Index, workload: Option<&Workload>) -> Vec<ObjectId> {
    let Some(workload) = workload else { return Vec::new() };
    let policies = index.server_policies_of(&workload.namespace, index.selecting(workload));
    policies.map(|policy| policy.id.clone()).collect()
}
