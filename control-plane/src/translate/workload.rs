//! A workload that registered itself: the same thing as an `ExternalWorkload`, from the wire.

use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use outrigger_core::address::{LocalEndpoints, Special};
use outrigger_core::bounds;
use outrigger_core::config::{MeshAddress, Protocol};
use outrigger_core::error::FieldError;
use outrigger_core::name::{check_label, check_subdomain};
use outrigger_core::policy::bounds as numbers;
use outrigger_proto::mesh;

use crate::object::{Workload, WorkloadPort};

/// Checks and converts a registration; the workload is not ready yet. `local`: which addresses of its own
/// machine it may have.
pub fn translate(raw: &mesh::Registration, local: LocalEndpoints) -> Result<Workload, FieldError> {
    check_bounds(raw)?;
    check_label(&raw.namespace).map_err(|e| e.under("namespace"))?;
    check_subdomain(&raw.name).map_err(|e| e.under("name"))?;
    check_subdomain(&raw.service_account).map_err(|e| e.under("service_account"))?;
    let ports = raw.ports.iter().enumerate();
    let ports = ports.map(|(i, p)| port(p).map_err(|e| e.under(format!("ports[{i}]"))));
    let address: IpAddr = raw.address.parse().map_err(|_| {
        FieldError::at("address", format!("{:?} is not an IP address", raw.address))
    })?;
    check_endpoint(address, local).map_err(|e| e.under("address"))?;
    let mesh = raw.mesh.as_ref().map(|mesh| mesh_address(mesh, local)).transpose();
    Ok(Workload {
        namespace: raw.namespace.clone(),
        name: raw.name.clone(),
        service_account: raw.service_account.clone(),
        labels: raw.labels.clone().into_iter().collect(),
        address: address.to_canonical(),
        ports: ports.collect::<Result<_, _>>()?,
        mesh: mesh.map_err(|e| e.under("mesh"))?,
        zone: Some(raw.zone.clone()).filter(|zone| !zone.is_empty()),
        ready: false,
        pod: None,
        registered: None,
    })
}

/// Every string and list, before anything else looks at them or repeats them in an error.
fn check_bounds(raw: &mesh::Registration) -> Result<(), FieldError> {
    let at = |field: &'static str| move |e: FieldError| e.under(field);
    bounds::items(raw.labels.len(), bounds::LABELS).map_err(at("labels"))?;
    for (key, value) in &raw.labels {
        bounds::text(key, bounds::LABEL_KEY).map_err(at("labels"))?;
        bounds::text(value, bounds::LABEL_VALUE).map_err(at("labels"))?;
    }
    bounds::items(raw.ports.len(), bounds::WORKLOAD_PORTS).map_err(at("ports"))?;
    for (i, port) in raw.ports.iter().enumerate() {
        let named = bounds::text(&port.name, bounds::PORT_NAME);
        named.map_err(|e| e.under(format!("ports[{i}].name")))?;
    }
    for (field, value, most) in [
        ("namespace", &raw.namespace, bounds::NAME),
        ("service_account", &raw.service_account, bounds::NAME),
        ("name", &raw.name, bounds::NAME),
        ("address", &raw.address, bounds::ADDRESS),
        ("zone", &raw.zone, bounds::ZONE),
    ] {
        bounds::text(value, most).map_err(|e| e.under(field))?;
    }
    if let Some(mesh) = &raw.mesh {
        bounds::text(&mesh.address, bounds::ADDRESS).map_err(at("mesh.address"))?;
        bounds::text(&mesh.identity, bounds::NAME).map_err(at("mesh.identity"))?;
    }
    bounds::length(raw.session.len(), bounds::SESSION).map_err(at("session"))?;
    if !raw.session.is_empty() && raw.session.len() < bounds::MIN_SESSION {
        let least = bounds::MIN_SESSION;
        return Err(FieldError::at("session", format!("must have at least {least} bytes")));
    }
    Ok(())
}

/// Whether others may be sent to an address: it is nobody's own machine, unless the whole mesh is on one.
pub fn check_endpoint(address: IpAddr, local: LocalEndpoints) -> Result<(), FieldError> {
    local.check(address).map_err(|special| {
        let hint = match special {
            Special::Loopback | Special::LinkLocal => {
                ", which is another machine for each caller: --local-endpoints allows it"
            }
            Special::Multicast | Special::Unspecified | Special::Broadcast => {
                ", where nothing can be dialled"
            }
        };
        FieldError::here(format!("{address} is {special}{hint}"))
    })
}

/// The same workload on the wire, for the copy on disk.
pub fn to_wire(workload: &Workload) -> mesh::Registration {
    mesh::Registration {
        namespace: workload.namespace.clone(),
        service_account: workload.service_account.clone(),
        name: workload.name.clone(),
        labels: workload.labels.clone().into_iter().collect(),
        address: workload.address.to_string(),
        ports: workload
            .ports
            .iter()
            .map(|port| mesh::registration::Port {
                port: u32::from(port.port),
                name: port.name.clone(),
                protocol: protocol_to_wire(port.protocol).into(),
            })
            .collect(),
        mesh: workload.mesh.as_ref().map(|address| mesh::MeshAddress {
            address: address.address.to_string(),
            hop_version: address.hop_version,
            identity: String::new(),
        }),
        zone: workload.zone.clone().unwrap_or_default(),
        session: Bytes::new(),
    }
}

fn port(raw: &mesh::registration::Port) -> Result<WorkloadPort, FieldError> {
    let port = u16::try_from(raw.port).ok().filter(|port| *port != 0).ok_or_else(|| {
        FieldError::at("port", format!("{} must be between 1 and 65535", raw.port))
    })?;
    let protocol = match raw.protocol() {
        mesh::Protocol::Detect => Protocol::Detect,
        mesh::Protocol::Http1 => Protocol::Http1,
        mesh::Protocol::Http2 => Protocol::Http2,
        mesh::Protocol::Grpc => Protocol::Grpc,
        mesh::Protocol::Tls => Protocol::Tls,
        mesh::Protocol::Tcp => Protocol::Tcp,
        mesh::Protocol::Unspecified => {
            return Err(FieldError::at("protocol", "is not set or not known"));
        }
    };
    Ok(WorkloadPort { port, name: raw.name.clone(), protocol, open: true })
}

fn protocol_to_wire(protocol: Protocol) -> mesh::Protocol {
    match protocol {
        Protocol::Detect => mesh::Protocol::Detect,
        Protocol::Http1 => mesh::Protocol::Http1,
        Protocol::Http2 => mesh::Protocol::Http2,
        Protocol::Grpc => mesh::Protocol::Grpc,
        Protocol::Tls => mesh::Protocol::Tls,
        Protocol::Tcp => mesh::Protocol::Tcp,
    }
}

fn mesh_address(raw: &mesh::MeshAddress, local: LocalEndpoints) -> Result<MeshAddress, FieldError> {
    let address: SocketAddr = raw
        .address
        .parse()
        .map_err(|_| FieldError::at("address", format!("{:?} is not an ip:port", raw.address)))?;
    check_endpoint(address.ip(), local).map_err(|e| e.under("address"))?;
    let hop_version = numbers::number(raw.hop_version, &numbers::HOP_VERSION);
    let hop_version = hop_version.map_err(|e| e.under("hop_version"))?;
    // Whom a caller must expect is for the control plane to say, not for the workload.
    Ok(MeshAddress { address, hop_version, identity: None })
}
