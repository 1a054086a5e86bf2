//! What has become of each object: accepted, references resolved, programmed on how many proxies.
//!
//! [`mod@of`] says it of one object, and looks at nothing but what that depends on; [`concerned`] goes the other way,
//! from what has changed to the objects whose status it may change. [`reader`] follows the publisher by both.

mod access;
pub mod concerned;
pub mod conditions;
mod external;
mod left_out;
mod of;
mod policy;
pub mod reader;

use std::collections::{BTreeMap, BTreeSet};

use outrigger_core::config::BackendTarget;
use serde::Serialize;

pub use of::{in_force, of};

use crate::index::{Dep, Index};
use crate::object::stopped::Stopped;
use crate::object::targets::for_each_target;
use crate::object::{EndpointSlice, Kind, ObjectId, Policy, Route, RouteBody, ServiceId};
use crate::problems::Problem;
use crate::publish::{Programmed, View};
use crate::translate::destination;

/// Of one object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ObjectStatus {
    pub object: ObjectId,
    /// Whether its newest version is in force.
    pub accepted: Condition,
    pub resolved_refs: Condition,
    pub programmed: Programmed,
    /// Sections of a policy that another one decides, and which.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub overridden: Vec<String>,
    /// Since when and why a fault injection does nothing any more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stopped: Option<Stopped>,
}

/// Whether something holds, and if not why not, with field paths.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Condition {
    pub status: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
}

impl From<Vec<String>> for Condition {
    fn from(problems: Vec<String>) -> Self {
        Self { status: problems.is_empty(), problems }
    }
}

/// Status of every route, policy and ExternalService, and of every object whose newest version was not accepted.
pub fn objects(view: &View<'_>, problems: &[Problem]) -> Vec<ObjectStatus> {
    let mut written: BTreeMap<&ObjectId, Vec<String>> = BTreeMap::new();
    for problem in problems {
        if let Some(object) = problem.refused() {
            written.entry(object).or_default().push(problem.without_object());
        }
    }
    let with_status = with_status(&view.index);
    let all: BTreeSet<&ObjectId> = with_status.iter().chain(written.keys().copied()).collect();
    let status = |id: &ObjectId| of(view, id, written.get(id).cloned().unwrap_or_default());
    all.into_iter().filter_map(status).collect()
}

/// Objects of kinds that have a status also when nothing is wrong with them, and AccessPolicies.
fn with_status(index: &Index) -> BTreeSet<ObjectId> {
    let mut all: BTreeSet<ObjectId> = index.routes().map(|route| route.id.clone()).collect();
    all.extend(index.traffic_policies().map(|policy| policy.id.clone()));
    all.extend(index.server_policies().map(|policy| policy.id.clone()));
    all.extend(index.fault_injections().map(|policy| policy.id.clone()));
    all.extend(index.externals().map(|external| external.service().object()));
    all.extend(index.policies().map(Policy::id));
    all
}

/// Whatever proxies would not take, of everything that they may ask for, and of which object it is.
pub fn left_out_of_all(view: &mut View<'_>) -> Vec<(ObjectId, String)> {
    left_out::ask_for_everything(view);
    let mut lines = Vec::new();
    for id in with_status(&view.index) {
        let left_out = left_out::of(view, &id).into_iter();
        lines.extend(left_out.map(|problem| (id.clone(), problem)));
    }
    lines
}

/// How far the destinations of a Service have come; none: no proxy has any.
pub fn programmed(view: &View<'_>, service: &ServiceId) -> Option<Programmed> {
    view.programmed(&Dep::Service(service.clone()))
}

/// AccessPolicies of which no version is right, and what that means.
fn closed(index: &Index) -> impl Iterator<Item = (ObjectId, String)> + '_ {
    index.policies().filter_map(|policy| Some((policy.id(), policy.closed_because()?)))
}

/// Every reference that does not resolve, and every policy that something stands in for: of which object, and
/// `field.path: problem`.
pub fn unresolved(index: &Index) -> Vec<(ObjectId, String)> {
    let problems = index.routes().flat_map(|route| {
        let problems = not_in_force(index, route).into_iter();
        problems.chain(unresolved_backends(index, route)).map(|problem| (route.id.clone(), problem))
    });
    let problems = problems.chain(policy::unresolved(index)).chain(external::unresolved(index));
    let problems = problems.chain(access::unresolved(index)).chain(closed(index));
    problems.chain(index.slices().flat_map(|slice| unmatched_ports(index, slice))).collect()
}

/// A slice's port belongs to the Service's port of the same name; a mismatch is easy to overlook.
fn unmatched_ports(index: &Index, slice: &EndpointSlice) -> Vec<(ObjectId, String)> {
    let (kind, namespace, name) =
        (Kind::EndpointSlice, slice.namespace.clone(), slice.name.clone());
    let id = ObjectId { kind, namespace, name };
    let Some(service) = index.service(&slice.service) else {
        return vec![(id, format!("metadata.labels: there is no Service {}", slice.service))];
    };
    let unmatched = slice
        .ports
        .iter()
        .enumerate()
        .filter(|(_, (name, _))| service.ports.iter().all(|port| port.name != *name));
    unmatched
        .map(|(i, (name, _))| {
            let service = &slice.service;
            (id.clone(), format!("ports[{i}].name: Service {service} has no port named {name:?}"))
        })
        .collect()
}

/// Why a route is not in force at some of its parents: it is not attached there, or another kind of route
/// is (`Conflicted`, GEP-1294).
fn not_in_force(index: &Index, route: &Route) -> Vec<String> {
    let mut problems = detached_parents(index, route);
    for (position, port, by) in destination::conflicts(index, route) {
        let parent = route.parents.iter().find(|parent| parent.position == position);
        let service = parent.map(|parent| parent.service.to_string()).unwrap_or_default();
        problems.push(format!(
            "spec.parentRefs[{position}]: Conflicted: {} is more specific and is in force instead at \
             Service {service} port {port}",
            by.id
        ));
    }
    problems
}

fn detached_parents(index: &Index, route: &Route) -> Vec<String> {
    let parents = route.parents.iter().filter_map(|parent| {
        let path = format!("spec.parentRefs[{}]", parent.position);
        let Some(service) = index.service(&parent.service) else {
            return Some(format!("{path}.name: there is no Service {}", parent.service));
        };
        if service.ports.iter().any(|port| parent.attaches_to(port)) {
            return None;
        }
        Some(match (&parent.section, parent.port) {
            (Some(name), _) => {
                format!("{path}.sectionName: Service {} has no port {name:?}", parent.service)
            }
            (None, port) => format!(
                "{path}.port: Service {} has no port {}",
                parent.service,
                port.unwrap_or_default()
            ),
        })
    });
    parents.collect()
}

fn unresolved_backends(index: &Index, route: &Route) -> Vec<String> {
    let mut problems = Vec::new();
    for_each_target(&route.body, &mut |path, target| match target {
        BackendTarget::Service(name) => {
            if let Err(problem) = index.resolve_backend(route, name) {
                problems.push(problem.under(path).to_string());
            }
        }
        BackendTarget::Invalid(problem) => problems.push(format!("{path}: {problem}")),
    });
    problems
}

/// A word for what a route routes.
pub fn class(route: &Route) -> &'static str {
    match route.body {
        RouteBody::Http { .. } => "http",
        RouteBody::Tls { .. } => "tls",
        RouteBody::Tcp { .. } => "tcp",
    }
}
