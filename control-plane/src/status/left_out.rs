//! Which parts of an object no proxy was sent, and why ([`LeftOut`]).

use std::collections::BTreeSet;

use outrigger_proto::wire;

use super::policy;
use crate::index::PortId;
use crate::object::policy::{Attached, ServerPolicy};
use crate::object::{Kind, ObjectId, ServiceId};
use crate::publish::{LeftOut, ResourcePart, View};
use crate::translate::effective;

/// Puts together what every proxy of every namespace may ask for.
pub(super) fn ask_for_everything(view: &mut View<'_>) {
    let index = &view.index;
    let mut names = Vec::new();
    for service in index.services() {
        let consumers: BTreeSet<&String> =
            index.routes_of(&service.id).map(|route| &route.id.namespace).collect();
        for port in &service.ports {
            let own = PortId::new(&service.id, port.port).destination();
            let others = consumers.iter().filter(|consumer| **consumer != &service.id.namespace);
            names.extend(others.map(|consumer| own.clone().for_consumer(consumer.as_str())));
            names.push(own);
        }
    }
    let uids: Vec<_> = index.workloads().map(|workload| workload.uid()).collect();
    for name in names {
        // What is left out is noted there.
        let _ = view.destination(&name);
    }
    for uid in uids {
        let _ = view.single(wire::INBOUND, &uid);
    }
}

/// What is wrong with one object, as `left out at <destination or workload>: field: problem`.
pub(super) fn of(view: &View<'_>, id: &ObjectId) -> BTreeSet<String> {
    let index = &view.index;
    match id.kind {
        Kind::HttpRoute | Kind::GrpcRoute | Kind::TlsRoute | Kind::TcpRoute => {
            of_route(view, id).unwrap_or_default()
        }
        Kind::TrafficPolicy => {
            index.traffic_policy(id).map(|policy| of_calls(view, policy)).unwrap_or_default()
        }
        Kind::ServerPolicy => {
            index.server_policy(id).map(|policy| of_server(view, policy)).unwrap_or_default()
        }
        Kind::AccessPolicy => of_access(view, id).unwrap_or_default(),
        Kind::Service
        | Kind::EndpointSlice
        | Kind::ReferenceGrant
        | Kind::ExternalWorkload
        | Kind::Pod
        | Kind::Namespace
        | Kind::FaultInjection
        | Kind::ExternalService => BTreeSet::new(),
    }
}

fn of_route(view: &View<'_>, id: &ObjectId) -> Option<BTreeSet<String>> {
    let route = view.index.route(id)?;
    let label = format!("{}/{}", id.namespace, id.name);
    let parents: BTreeSet<&ServiceId> = route.parents.iter().map(|p| &p.service).collect();
    let all = parents.into_iter().flat_map(|parent| view.left_out_of(parent));
    let own =
        all.filter(|(_, what)| matches!(&what.part, ResourcePart::Route(route) if *route == label));
    Some(own.map(|(name, what)| line(&name, &what)).collect())
}

/// Of a policy that is for Services by themselves: what policies say there is left out together.
fn of_calls<S>(view: &View<'_>, policy: &Attached<S>) -> BTreeSet<String> {
    let index = &view.index;
    let mut found = BTreeSet::new();
    for service in policy::spoken_of(index, policy).iter().filter_map(|id| index.service(id)) {
        for (name, what) in view.left_out_of(&service.id) {
            let port = service.port(name.port);
            let speaks = port.is_some_and(|port| policy.for_port(&service.id, port).is_some());
            if speaks && !matches!(what.part, ResourcePart::Route(_)) {
                found.insert(line(&name, &what));
            }
        }
    }
    found
}

fn of_server(view: &View<'_>, policy: &ServerPolicy) -> BTreeSet<String> {
    let index = &view.index;
    let mut found = BTreeSet::new();
    for workload in index.workloads_of(policy).iter().filter_map(|uid| index.workload(uid)) {
        let uid = workload.uid();
        for what in view.left_out_of_inbound(&uid) {
            let ResourcePart::Server(port) = what.part else { continue };
            let speakers = effective::of_workload(index, workload, port);
            if speakers.iter().any(|speaker| speaker.policy.id == policy.id) {
                found.insert(line(&uid, &what));
            }
        }
    }
    found
}

fn of_access(view: &View<'_>, id: &ObjectId) -> Option<BTreeSet<String>> {
    let policy = view.index.access_policy(id)?;
    let uids = view.index.workloads_of_access(policy);
    let all = uids.iter().flat_map(|uid| {
        let all = view.left_out_of_inbound(uid).into_iter();
        let others = all.filter(|what| !matches!(what.part, ResourcePart::Server(_)));
        others.map(move |what| line(uid, &what))
    });
    Some(all.collect())
}

fn line(at: &dyn std::fmt::Display, LeftOut { problem, .. }: &LeftOut) -> String {
    format!("left out at {at}: {problem}")
}
