//! A workload that registered itself: the same thing as an `ExternalWorkload`, from the wire.

use std::net::{IpAddr, SocketAddr};

use outrigger_core::config::{MeshAddress, Protocol};
use outrigger_core::error::FieldError;
use outrigger_core::name::check_label;
use outrigger_proto::mesh;

use crate::object::{Workload, WorkloadPort};

/// Ports of one workload: far more than any process listens on.
const MAX_PORTS: usize = 256;
/// Labels of one workload.
const MAX_LABELS: usize = 256;
/// Bytes of a label's key or value, a namespaced Kubernetes key at its longest.
const MAX_LABEL_BYTES: usize = 317;

/// Checks and converts a registration; the workload is not ready yet.
pub fn translate(raw: &mesh::Registration) -> Result<Workload, FieldError> {
    check_label(&raw.namespace).map_err(|e| e.under("namespace"))?;
    check_label(&raw.name).map_err(|e| e.under("name"))?;
    check_label(&raw.service_account).map_err(|e| e.under("service_account"))?;
    if raw.labels.len() > MAX_LABELS {
        return Err(FieldError::at("labels", format!("at most {MAX_LABELS} are allowed")));
    }
    if raw.labels.iter().any(|(k, v)| k.len().max(v.len()) > MAX_LABEL_BYTES) {
        return Err(FieldError::at("labels", "a key or value is too long"));
    }
    if raw.ports.len() > MAX_PORTS {
        return Err(FieldError::at("ports", format!("at most {MAX_PORTS} are allowed")));
    }
    let ports = raw.ports.iter().enumerate();
    let ports = ports.map(|(i, p)| port(p).map_err(|e| e.under(format!("ports[{i}]"))));
    let address: IpAddr = raw.address.parse().map_err(|_| {
        FieldError::at("address", format!("{:?} is not an IP address", raw.address))
    })?;
    Ok(Workload {
        namespace: raw.namespace.clone(),
        name: raw.name.clone(),
        service_account: raw.service_account.clone(),
        labels: raw.labels.clone().into_iter().collect(),
        address: address.to_canonical(),
        ports: ports.collect::<Result<_, _>>()?,
        mesh: raw.mesh.as_ref().map(mesh_address).transpose().map_err(|e| e.under("mesh"))?,
        zone: Some(raw.zone.clone()).filter(|zone| !zone.is_empty()),
        ready: false,
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
    Ok(WorkloadPort { port, name: raw.name.clone(), protocol })
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

fn mesh_address(raw: &mesh::MeshAddress) -> Result<MeshAddress, FieldError> {
    let address: SocketAddr = raw
        .address
        .parse()
        .map_err(|_| FieldError::at("address", format!("{:?} is not an ip:port", raw.address)))?;
    if raw.hop_version == 0 {
        return Err(FieldError::at("hop_version", "must be set"));
    }
    // Whom a caller must expect is for the control plane to say, not for the workload.
    Ok(MeshAddress { address, hop_version: raw.hop_version, identity: None })
}
