//! What has become of each object: accepted, references resolved, programmed on how many proxies.

mod external;
mod left_out;
mod policy;

use std::collections::{BTreeMap, BTreeSet};

use outrigger_core::config::BackendTarget;
use serde::Serialize;

use crate::index::{Index, PortId};
use crate::object::stopped::Stopped;
use crate::object::targets::for_each_target;
use crate::object::{Kind, ObjectId, Route, RouteBody, ServiceId};
use crate::problems::{Problem, Severity};
use crate::publish::{Answer, View};
use crate::translate::destination;

/// Of one object.
#[derive(Debug, Serialize)]
pub struct Status {
    pub object: ObjectId,
    /// Whether its newest version is in force.
    pub accepted: Condition,
    pub resolved_refs: Condition,
    pub programmed: Programmed,
    /// Sections of a policy that another one decides, and which.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub overridden: Vec<String>,
    /// Since when and why an experiment does nothing any more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stopped: Option<Stopped>,
}

/// Whether something holds, and if not why not, with field paths.
#[derive(Debug, Serialize)]
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

/// How many of the proxies that have a Service's destinations have acknowledged the current ones.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Programmed {
    pub acknowledged: usize,
    pub proxies: usize,
    /// Why proxies refused, each reason once.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub refused: BTreeSet<String>,
}

impl Programmed {
    fn add(&mut self, other: &Self) {
        self.acknowledged += other.acknowledged;
        self.proxies += other.proxies;
        self.refused.extend(other.refused.iter().cloned());
    }
}

/// Status of every route, policy and ExternalService, and of every object whose newest version was not accepted.
pub fn objects(view: &View<'_>, problems: &[Problem]) -> Vec<Status> {
    let programmed = programmed(view);
    let mut statuses: BTreeMap<ObjectId, Status> = BTreeMap::new();
    for route in view.index.routes() {
        let mut total = Programmed::default();
        let parents: BTreeSet<&ServiceId> = route.parents.iter().map(|p| &p.service).collect();
        for of_parent in parents.into_iter().filter_map(|parent| programmed.get(parent)) {
            total.add(of_parent);
        }
        let status = Status {
            object: route.id.clone(),
            accepted: not_in_force(&view.index, route).into(),
            resolved_refs: unresolved_backends(&view.index, route).into(),
            programmed: total,
            overridden: Vec::new(),
            stopped: None,
        };
        statuses.insert(route.id.clone(), status);
    }
    statuses.extend(policy::policies(view, &programmed).map(|s| (s.object.clone(), s)));
    statuses.extend(external::externals(view, &programmed).map(|s| (s.object.clone(), s)));
    let written = problems.iter().filter(|problem| problem.severity == Severity::Error);
    let written =
        written.filter_map(|problem| Some((problem.object.clone()?, problem.to_string())));
    let closed = closed(&view.index);
    for (object, problem) in written.chain(left_out::objects(view)).chain(closed) {
        let status = statuses.entry(object.clone()).or_insert_with(|| Status {
            object,
            accepted: Vec::new().into(),
            resolved_refs: Vec::new().into(),
            programmed: Programmed::default(),
            overridden: Vec::new(),
            stopped: None,
        });
        status.accepted.status = false;
        status.accepted.problems.push(problem);
    }
    statuses.into_values().collect()
}

/// Whatever proxies would not take, of everything that they may ask for, as lines for `check`.
pub fn left_out_of_all(view: &mut View<'_>) -> Vec<String> {
    left_out::ask_for_everything(view);
    let lines = left_out::objects(view).into_iter();
    lines.map(|(object, problem)| format!("{object}: {problem}")).collect()
}

/// How far the destinations of each Service have come.
pub fn programmed(view: &View<'_>) -> BTreeMap<ServiceId, Programmed> {
    let mut services: BTreeMap<ServiceId, Programmed> = BTreeMap::new();
    for stream in view.streams() {
        let mut of_proxy: BTreeMap<ServiceId, bool> = BTreeMap::new();
        stream.answers(&mut |name, answer| {
            let service = PortId::from(name).service;
            if let Answer::Refused(reason) = answer {
                services.entry(service.clone()).or_default().refused.insert(reason.to_owned());
            }
            *of_proxy.entry(service).or_insert(true) &= answer == Answer::Acknowledged;
        });
        for (service, current) in of_proxy {
            let total = services.entry(service).or_default();
            total.proxies += 1;
            total.acknowledged += usize::from(current);
        }
    }
    services
}

/// AccessPolicies of which no version is right, and what that means.
fn closed(index: &Index) -> impl Iterator<Item = (ObjectId, String)> + '_ {
    index.policies().filter_map(|policy| {
        let (namespace, name) = (policy.namespace.clone(), policy.name.clone());
        Some((ObjectId { kind: Kind::AccessPolicy, namespace, name }, policy.closed_because()?))
    })
}

/// Every reference that does not resolve, and every policy that something stands in for, as lines for
/// `check`.
pub fn unresolved(index: &Index) -> Vec<String> {
    let problems = index.routes().flat_map(|route| {
        let problems = not_in_force(index, route).into_iter();
        problems
            .chain(unresolved_backends(index, route))
            .map(|problem| format!("{}: {problem}", route.id))
    });
    let problems = problems.chain(policy::unresolved(index)).chain(external::unresolved(index));
    let problems = problems.chain(closed(index).map(|(id, problem)| format!("{id}: {problem}")));
    problems.chain(index.slices().flat_map(|slice| unmatched_ports(index, slice))).collect()
}

/// A slice's port belongs to the Service's port of the same name; a mismatch is easy to overlook.
fn unmatched_ports(index: &Index, slice: &crate::object::EndpointSlice) -> Vec<String> {
    let id = format!("EndpointSlice {}/{}", slice.namespace, slice.name);
    let Some(service) = index.service(&slice.service) else {
        return vec![format!("{id}: metadata.labels: there is no Service {}", slice.service)];
    };
    let unmatched = slice
        .ports
        .iter()
        .enumerate()
        .filter(|(_, (name, _))| service.ports.iter().all(|port| port.name != *name));
    unmatched
        .map(|(i, (name, _))| {
            let service = &slice.service;
            format!("{id}: ports[{i}].name: Service {service} has no port named {name:?}")
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
        RouteBody::Http(_) => "http",
        RouteBody::Tls { .. } => "tls",
        RouteBody::Tcp { .. } => "tcp",
    }
}
