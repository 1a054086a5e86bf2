//! Which objects have a part that no proxy was sent, and why ([`LeftOut`]).

use std::collections::BTreeSet;

use outrigger_proto::wire;

use crate::index::PortId;
use crate::object::{Kind, ObjectId};
use crate::publish::{LeftOut, Part, View};
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

/// Each object with what is wrong, as `destination or workload: field: problem`.
pub(super) fn objects(view: &View<'_>) -> BTreeSet<(ObjectId, String)> {
    let index = &view.index;
    let mut found = BTreeSet::new();
    for (name, LeftOut { part, problem }) in view.left_out() {
        let PortId { service, port } = PortId::from(&name);
        let ids: Vec<ObjectId> = match part {
            Part::Route(label) => {
                let is = |id: &&ObjectId| format!("{}/{}", id.namespace, id.name) == label;
                index.routes_of(&service).map(|route| &route.id).filter(is).cloned().collect()
            }
            _ => {
                let port = index.service(&service).and_then(|service| service.port(port));
                let policies = port.map(|port| effective::of_port(index, &service, port));
                policies.into_iter().flatten().map(|speaker| speaker.policy.id.clone()).collect()
            }
        };
        found.extend(ids.into_iter().map(|id| (id, format!("left out at {name}: {problem}"))));
    }
    for (uid, LeftOut { part, problem }) in view.left_out_inbound() {
        let Some(workload) = index.workload(&uid) else { continue };
        let ids: Vec<ObjectId> = match part {
            Part::Server(port) => {
                let policies = effective::of_workload(index, workload, port);
                policies.into_iter().map(|speaker| speaker.policy.id.clone()).collect()
            }
            _ => {
                let policies = index.policies_of(workload);
                let id = |namespace: &str, name: &str| ObjectId {
                    kind: Kind::AccessPolicy,
                    namespace: namespace.to_owned(),
                    name: name.to_owned(),
                };
                policies.map(|policy| id(&policy.namespace, &policy.name)).collect()
            }
        };
        found.extend(ids.into_iter().map(|id| (id, format!("left out at {uid}: {problem}"))));
    }
    found
}
