//! [`Endpoint`]: one address of a destination, and the names of endpoint resources.

use std::sync::Arc;

use outrigger_core::config::{Endpoint, MeshAddress, OutsideTls};
use outrigger_core::error::FieldError;
use outrigger_core::name::{Authority, DestinationName, EndpointId};

use super::{check_requires, optional, parsed};
use crate::mesh;

/// The only version of the protocol between two proxies.
const HOP_VERSION: u32 = 1;
/// A reader that would send plaintext instead must not take the endpoint.
const TLS_FEATURE: &str = "external-tls.v1";

pub fn to_wire(endpoint: &Endpoint) -> mesh::Endpoint {
    mesh::Endpoint {
        requires: endpoint.tls.iter().map(|_| TLS_FEATURE.to_owned()).collect(),
        address: endpoint.address.to_string(),
        mesh: endpoint.mesh.as_ref().map(mesh_address_to_wire),
        zone: endpoint.zone.clone().unwrap_or_default(),
        hostname: endpoint.hostname.clone().unwrap_or_default(),
        workload: endpoint.workload.clone().unwrap_or_default(),
        tls: endpoint.tls.as_deref().map(|tls| mesh::OutsideTls {
            server_name: tls.server_name.clone(),
            roots: tls.roots.iter().map(|root| root.clone().into()).collect(),
        }),
    }
}

/// `name` is the resource's name: it says whose endpoint this is.
pub fn from_wire(name: &str, wire: &mesh::Endpoint) -> Result<Endpoint, FieldError> {
    check_requires(&wire.requires)?;
    let (destination, id) = parse_name(name)?;
    let id = id.ok_or_else(|| FieldError::at("name", format!("{name:?} names a collection")))?;
    Ok(Endpoint {
        destination,
        id,
        address: parsed("address", &wire.address)?,
        mesh: wire.mesh.as_ref().map(mesh_address_from_wire).transpose()?,
        zone: optional(&wire.zone),
        hostname: optional(&wire.hostname),
        workload: optional(&wire.workload),
        tls: wire.tls.as_ref().map(tls_from_wire).transpose()?.map(Arc::new),
    })
}

fn tls_from_wire(wire: &mesh::OutsideTls) -> Result<OutsideTls, FieldError> {
    let name = &wire.server_name;
    Authority::parse(name, Some(443)).map_err(|e| e.under("tls.server_name"))?;
    let roots = wire.roots.iter().map(|root| root.to_vec()).collect();
    Ok(OutsideTls { server_name: name.clone(), roots })
}

/// The resource's name, `namespace/service:port/workload-uid:port`.
pub fn name(endpoint: &Endpoint) -> String {
    format!("{}/{}", endpoint.destination.without_consumer(), endpoint.id)
}

/// Name of the resource that marks the endpoints of a destination as sent whole,
/// `namespace/service:port/*`.
pub fn collection(destination: &DestinationName) -> String {
    format!("{}/*", destination.without_consumer())
}

/// What [`name`] or [`collection`] made; no id for a collection.
pub fn parse_name(text: &str) -> Result<(DestinationName, Option<EndpointId>), FieldError> {
    let wrong = |why: &dyn std::fmt::Display| {
        FieldError::at("name", format!("{text:?} is not the name of an endpoint: {why}"))
    };
    let (destination, id) = text.rsplit_once('/').ok_or_else(|| wrong(&"it has no \"/\""))?;
    let destination: DestinationName = destination.parse().map_err(|error| wrong(&error))?;
    if destination.consumer.is_some() {
        return Err(wrong(&"endpoints do not depend on the caller"));
    }
    let id = match id {
        "*" => None,
        id => Some(id.parse().map_err(|error| wrong(&error))?),
    };
    Ok((destination, id))
}

fn mesh_address_to_wire(address: &MeshAddress) -> mesh::MeshAddress {
    mesh::MeshAddress {
        address: address.address.to_string(),
        hop_version: address.hop_version,
        identity: address.identity.as_ref().map(ToString::to_string).unwrap_or_default(),
    }
}

fn mesh_address_from_wire(wire: &mesh::MeshAddress) -> Result<MeshAddress, FieldError> {
    if wire.hop_version != HOP_VERSION {
        return Err(FieldError::at(
            "mesh.hop_version",
            format!("{} is not {HOP_VERSION}, the only version known here", wire.hop_version),
        ));
    }
    Ok(MeshAddress {
        address: parsed("address", &wire.address).map_err(|e| e.under("mesh"))?,
        hop_version: wire.hop_version,
        identity: match wire.identity.as_str() {
            "" => None,
            id => Some(parsed("identity", id).map_err(|e| e.under("mesh"))?),
        },
    })
}
