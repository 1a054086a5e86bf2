//! What has become of each object: accepted, references resolved, programmed on how many proxies.

use outrigger_core::config::BackendTarget;
use serde::Serialize;

use crate::index::{Index, PortId};
use crate::object::{ObjectId, Route, RouteBody, ServiceId};
use crate::publish::View;
use crate::translate::destination;

/// Of one route.
#[derive(Debug, Serialize)]
pub struct RouteStatus {
    pub object: ObjectId,
    pub accepted: Condition,
    pub resolved_refs: Condition,
    pub programmed: Programmed,
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

/// How many of the proxies that have a destination have acknowledged its current version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Programmed {
    pub acknowledged: usize,
    pub proxies: usize,
}

/// Status of every route, in name order.
pub fn routes(view: &mut View) -> Vec<RouteStatus> {
    let mut statuses: Vec<RouteStatus> = view
        .index
        .routes()
        .map(|route| RouteStatus {
            object: route.id.clone(),
            accepted: detached_parents(&view.index, route).into(),
            resolved_refs: unresolved_backends(&view.index, route).into(),
            programmed: Programmed::default(),
        })
        .collect();
    let parents: Vec<Vec<ServiceId>> = view
        .index
        .routes()
        .map(|route| route.parents.iter().map(|parent| parent.service.clone()).collect())
        .collect();
    for (status, parents) in statuses.iter_mut().zip(parents) {
        status.programmed = programmed(view, &parents);
    }
    statuses
}

/// How far the destinations of `services` have come.
pub fn programmed(view: &View, services: &[ServiceId]) -> Programmed {
    let mut total = Programmed::default();
    for stream in view.streams() {
        let session = stream.session();
        let held = session.acknowledged();
        let mut held =
            held.filter(|(name, _)| services.contains(&PortId::from(*name).service)).peekable();
        if held.peek().is_some() {
            total.proxies += 1;
            total.acknowledged += usize::from(held.all(|(_, current)| current));
        }
    }
    total
}

/// Every reference that does not resolve, as lines for `check`.
pub fn unresolved(index: &Index) -> Vec<String> {
    let problems = index.routes().flat_map(|route| {
        let problems = detached_parents(index, route).into_iter();
        problems
            .chain(unresolved_backends(index, route))
            .map(|problem| format!("{}: {problem}", route.id))
    });
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
    destination::for_each_target(&route.body, &mut |path, target| match target {
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
