//! The status of one object.

use std::collections::BTreeSet;

use super::{
    Condition, ObjectStatus, access, external, left_out, not_in_force, policy, unresolved_backends,
};
use crate::index::{Dep, Index};
use crate::object::policy::Attached;
use crate::object::{Kind, ObjectId, ServiceId};
use crate::publish::{Programmed, View};

impl ObjectStatus {
    /// Nothing is wrong, and no proxy has anything of it.
    pub fn of_nothing(object: &ObjectId) -> Self {
        Self {
            object: object.clone(),
            accepted: Condition::from(Vec::new()),
            resolved_refs: Condition::from(Vec::new()),
            programmed: Programmed::default(),
            overridden: Vec::new(),
            stopped: None,
        }
    }
}

/// `written`: what is wrong with its newest version, if that was not accepted. None: there is no such object,
/// or it is of a kind that has no status and nothing is wrong with it.
pub fn of(view: &View<'_>, id: &ObjectId, written: Vec<String>) -> Option<ObjectStatus> {
    let index = &view.index;
    let status = in_force(index, id).map(|status| {
        let programmed = programmed(view, id).unwrap_or_default();
        ObjectStatus { programmed, ..status }
    });
    let mut problems = written;
    problems.extend(left_out::of(view, id));
    if id.kind == Kind::AccessPolicy {
        problems.extend(index.access_policy(id).and_then(|policy| policy.closed_because()));
    }
    if problems.is_empty() {
        return status;
    }
    let mut status = status.unwrap_or_else(|| ObjectStatus::of_nothing(id));
    status.accepted.status = false;
    status.accepted.problems.extend(problems);
    Some(status)
}

/// What the index says of the version in force; none: there is no such object, or it is of a kind without a
/// status.
pub fn in_force(index: &Index, id: &ObjectId) -> Option<ObjectStatus> {
    match id.kind {
        Kind::HttpRoute | Kind::GrpcRoute | Kind::TlsRoute | Kind::TcpRoute => {
            let route = index.route(id)?;
            Some(ObjectStatus {
                accepted: not_in_force(index, route).into(),
                resolved_refs: unresolved_backends(index, route).into(),
                ..ObjectStatus::of_nothing(id)
            })
        }
        Kind::TrafficPolicy => policy::traffic(index, id),
        Kind::ServerPolicy => policy::server(index, id),
        Kind::FaultInjection => policy::faults(index, id),
        Kind::ExternalService => external::status(index, id),
        Kind::AccessPolicy => access::status(index, id),
        Kind::Service
        | Kind::EndpointSlice
        | Kind::ReferenceGrant
        | Kind::ExternalWorkload
        | Kind::Pod
        | Kind::Namespace => None,
    }
}

/// How far proxies have come with an object; none: there is no such object, or it is of a kind of which that
/// is not known.
pub(super) fn programmed(view: &View<'_>, id: &ObjectId) -> Option<Programmed> {
    let index = &view.index;
    match id.kind {
        Kind::HttpRoute | Kind::GrpcRoute | Kind::TlsRoute | Kind::TcpRoute => {
            let parents = index.route(id)?.parents.iter();
            let parents: BTreeSet<_> = parents.map(|parent| parent.service.clone()).collect();
            Some(together(view, parents.into_iter().map(Dep::Service)))
        }
        Kind::TrafficPolicy => Some(of_callers(view, index.traffic_policy(id)?)),
        Kind::FaultInjection => Some(of_callers(view, index.fault_injection(id)?)),
        Kind::ServerPolicy => {
            let uids = index.workloads_of(index.server_policy(id)?);
            Some(together(view, uids.into_iter().map(Dep::Inbound)))
        }
        Kind::AccessPolicy => {
            let uids = index.workloads_of_access(index.access_policy(id)?);
            Some(together(view, uids.into_iter().map(Dep::Inbound)))
        }
        Kind::ExternalService => {
            index.external(&id.namespace, &id.name)?;
            let service = ServiceId::external(&id.namespace, &id.name);
            Some(together(view, [Dep::Service(service)]))
        }
        Kind::Service
        | Kind::EndpointSlice
        | Kind::ReferenceGrant
        | Kind::ExternalWorkload
        | Kind::Pod
        | Kind::Namespace => None,
    }
}

/// Of the destinations of all Services that a policy applies to.
fn of_callers<S>(view: &View<'_>, policy: &Attached<S>) -> Programmed {
    let services = policy::services(&view.index, policy);
    together(view, services.into_iter().map(Dep::Service))
}

fn together(view: &View<'_>, all: impl IntoIterator<Item = Dep>) -> Programmed {
    let mut total = Programmed::default();
    for of_one in all.into_iter().filter_map(|dep| view.programmed(&dep)) {
        total.add(&of_one);
    }
    total
}
