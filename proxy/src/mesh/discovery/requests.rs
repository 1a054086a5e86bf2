//! What a proxy asks the control plane for.

use std::collections::BTreeMap;

use outrigger_core::name::Authority;
use outrigger_proto::wire::{self, DeltaDiscoveryRequest, Locality, Node};
use prost_types::value::Kind;

use crate::base::settings::Settings;
use crate::mesh::discovery::holdings::Holdings;
use crate::proxy::Proxy;

/// Names or versions in one request, so that no request is too large to be taken: the control plane reads
/// 4 MiB, and a name has at most some 300 bytes.
const NAMES_AT_ONCE: usize = 2_000;

/// What a new stream begins with: what is held, and what is wanted. Endpoints go first, so that the
/// control plane knows what it need not send when it sees the destinations.
pub fn first(proxy: &Proxy, held: &Holdings) -> Vec<DeltaDiscoveryRequest> {
    let single =
        |type_url: &str, name: String| subscribe(type_url, vec![name], held.versions(type_url));
    let mut requests = vec![
        single(wire::MESH_SETTINGS, wire::MESH_SETTINGS_NAME.to_owned()),
        single(wire::INBOUND, proxy.settings.uid()),
    ];
    let mut endpoints = held.versions(wire::ENDPOINT).into_iter();
    loop {
        let versions: BTreeMap<_, _> = endpoints.by_ref().take(NAMES_AT_ONCE).collect();
        if versions.is_empty() {
            break;
        }
        requests.push(subscribe(wire::ENDPOINT, Vec::new(), versions));
    }
    for (names, versions) in held.resolved_names(NAMES_AT_ONCE) {
        requests.push(subscribe(wire::DESTINATION, names, versions));
    }
    // Apart: a name that is not resolved yet may belong to a destination that is held.
    for names in held.unresolved_names().chunks(NAMES_AT_ONCE) {
        requests.push(subscribe(wire::DESTINATION, names.to_vec(), BTreeMap::new()));
    }
    if proxy.identity.is_some() {
        requests.push(single(wire::TRUST_BUNDLE, wire::TRUST_BUNDLE_NAME.to_owned()));
    }
    requests[0].node = Some(node(&proxy.settings));
    requests
}

/// That names are no longer wanted.
pub fn dropped(names: &[Authority]) -> impl Iterator<Item = DeltaDiscoveryRequest> {
    names.chunks(NAMES_AT_ONCE).map(|names| DeltaDiscoveryRequest {
        type_url: wire::DESTINATION.to_owned(),
        resource_names_unsubscribe: names.iter().map(ToString::to_string).collect(),
        ..Default::default()
    })
}

/// That names are wanted from now on.
pub fn added(names: &[Authority]) -> impl Iterator<Item = DeltaDiscoveryRequest> {
    names.chunks(NAMES_AT_ONCE).map(|names| {
        let names = names.iter().map(ToString::to_string).collect();
        subscribe(wire::DESTINATION, names, BTreeMap::new())
    })
}

fn subscribe(
    type_url: &str,
    names: Vec<String>,
    versions: BTreeMap<String, String>,
) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: type_url.to_owned(),
        resource_names_subscribe: names,
        initial_resource_versions: versions,
        ..Default::default()
    }
}

fn node(settings: &Settings) -> Node {
    let namespace =
        prost_types::Value { kind: Some(Kind::StringValue(settings.namespace.clone())) };
    let metadata =
        prost_types::Struct { fields: [(wire::NODE_NAMESPACE.to_owned(), namespace)].into() };
    Node {
        id: settings.uid(),
        cluster: format!("{}/{}", settings.namespace, settings.service_account),
        metadata: Some(metadata),
        locality: Some(Locality {
            zone: settings.zone.clone().unwrap_or_default(),
            // As Envoy has it: the part of a zone.
            sub_zone: settings.node.clone().unwrap_or_default(),
            ..Default::default()
        }),
        user_agent_name: "outrigger-proxy".to_owned(),
        user_agent_version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}
