//! What edges lead between: apps, as labels name them, and what serves a Service.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use outrigger_core::name::{DestinationName, check_label};
use outrigger_core::telemetry::{APP_LABELS, VERSION_LABELS};
use outrigger_proto::graph::Reporter;
use serde::Serialize;

use crate::index::{Index, PortId};
use crate::object::{ServiceId, Workload};

/// What a node stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeKind {
    App,
    /// A Service that several apps serve, or of which nobody knows which.
    Service,
    /// Outside of the mesh.
    External,
    /// Callers without an identity.
    Unknown,
}

/// How many of a service's endpoints prove who they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EndpointMtls {
    All,
    Some,
    None,
}

impl EndpointMtls {
    /// The word in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Some => "some",
            Self::None => "none",
        }
    }
}

/// What is behind a service port.
#[derive(Clone, Debug)]
pub struct Served {
    pub node: String,
    pub kind: NodeKind,
    /// Where there are several.
    pub apps: BTreeSet<String>,
    pub versions: BTreeSet<String>,
    pub zones: BTreeSet<String>,
    pub mtls: EndpointMtls,
}

/// Looks services up, each once.
pub struct NodeResolver<'a> {
    index: &'a Index,
    known: HashMap<Arc<str>, Arc<Served>>,
}

fn label<'a>(workload: &'a Workload, names: [&str; 2]) -> Option<&'a str> {
    names.iter().find_map(|name| workload.labels.get(*name)).map(String::as_str)
}

/// What a workload is called in the graph, as `namespace/name`: by its labels, else by its service account.
pub fn app_of(workload: &Workload) -> String {
    let name = label(workload, APP_LABELS).unwrap_or(&workload.service_account);
    format!("{}/{name}", workload.namespace)
}

/// The same of a proxy that reports, and its version: as the index has them, else as it says itself.
pub fn reporter(index: &Index, reporter: &Reporter) -> (String, String) {
    let Reporter { namespace, workload, service_account, app, version, .. } = reporter;
    let known = index.workload(&format!("{namespace}.{workload}"));
    // The name of a workload is not proven, the service account is.
    if let Some(known) = known.filter(|known| known.service_account == *service_account) {
        return (app_of(known), label(known, VERSION_LABELS).unwrap_or_default().to_owned());
    }
    let named = [app, service_account, workload].into_iter().find(|name| check_label(name).is_ok());
    (format!("{namespace}/{}", named.map_or("unknown", |name| name)), version.clone())
}

impl<'a> NodeResolver<'a> {
    pub fn new(index: &'a Index) -> Self {
        Self { index, known: HashMap::new() }
    }

    /// Of `namespace/name:port`.
    pub fn served(&mut self, service: &Arc<str>) -> Arc<Served> {
        if let Some(known) = self.known.get(service) {
            return known.clone();
        }
        let served = Arc::new(self.look_up(service));
        self.known.insert(service.clone(), served.clone());
        served
    }

    fn look_up(&self, service: &str) -> Served {
        let mut served = Served {
            node: service.to_owned(),
            kind: NodeKind::External,
            apps: BTreeSet::new(),
            versions: BTreeSet::new(),
            zones: BTreeSet::new(),
            mtls: EndpointMtls::None,
        };
        let Ok(name) = service.parse::<DestinationName>() else { return served };
        served.node = format!("{}/{}", name.namespace, name.service);
        let id = ServiceId::new(&*name.namespace, &*name.service);
        let endpoints = self.index.endpoints(&PortId::new(&id, name.port)).unwrap_or_default();
        let proven = endpoints
            .iter()
            .filter(|one| one.mesh.as_ref().is_some_and(|mesh| mesh.identity.is_some()))
            .count();
        served.mtls = match proven {
            0 => EndpointMtls::None,
            all if all == endpoints.len() => EndpointMtls::All,
            _ => EndpointMtls::Some,
        };
        served.zones = endpoints.iter().filter_map(|one| one.zone.clone()).collect();
        if name.is_external() {
            return served;
        }
        served.kind = NodeKind::Service;
        for workload in self.index.service(&id).into_iter().flat_map(|it| self.index.selected(it)) {
            served.apps.insert(app_of(workload));
            served.versions.extend(label(workload, VERSION_LABELS).map(str::to_owned));
        }
        if let [app] = &served.apps.iter().collect::<Vec<_>>()[..] {
            served.node.clone_from(app);
            served.kind = NodeKind::App;
        }
        served
    }
}
