//! `ExternalWorkload`: a process outside the cluster as an endpoint.

use std::net::{IpAddr, SocketAddr};

use outrigger_core::bounds;
use outrigger_core::config::{MeshAddress, Protocol};
use outrigger_core::name::check_label;

use super::{Report, label_identity};
use crate::kinds::{ExternalWorkload, defaults};
use crate::object::{Workload, WorkloadPort};

/// The only version of the protocol between two proxies.
const HOP_VERSION: u32 = 1;

pub fn translate(raw: &ExternalWorkload, report: &mut Report) -> Option<Workload> {
    let (namespace, name) = label_identity(&raw.metadata, report);
    let spec = &raw.spec;
    let address = match spec.address.parse::<IpAddr>() {
        Ok(address) => {
            report.endpoint("spec.address", address);
            Some(address.to_canonical())
        }
        Err(_) => {
            report.error("spec.address", format!("{:?} is not an IP address", spec.address));
            None
        }
    };
    let mesh = spec.mesh.as_ref().and_then(|mesh| match mesh.address.parse::<SocketAddr>() {
        Ok(address) => {
            report.endpoint("spec.mesh.address", address.ip());
            Some(MeshAddress { address, hop_version: HOP_VERSION, identity: None })
        }
        Err(_) => {
            report.error("spec.mesh.address", format!("{:?} is not an ip:port", mesh.address));
            None
        }
    });
    let mut ports = Vec::with_capacity(spec.ports.len());
    for (i, port) in spec.ports.iter().enumerate() {
        let path = format!("spec.ports[{i}]");
        let protocol = port
            .app_protocol
            .as_deref()
            .map_or(Some(Protocol::Detect), Protocol::from_app_protocol);
        if protocol.is_none() {
            report.error(
                format!("{path}.appProtocol"),
                format!("{:?} is not known", port.app_protocol.as_deref().unwrap_or_default()),
            );
        }
        let number = report.port(&format!("{path}.port"), port.port);
        if let (Some(port_number), Some(protocol)) = (number, protocol) {
            let name = port.name.clone().unwrap_or_default();
            report.check(&format!("{path}.name"), bounds::text(&name, bounds::PORT_NAME));
            ports.push(WorkloadPort { port: port_number, name, protocol });
        }
    }
    let account = spec.service_account.clone().unwrap_or_else(|| defaults::ACCOUNT.to_owned());
    // Its identity holds it.
    report.check("spec.serviceAccount", check_label(&account));
    let zone = spec.zone.clone().filter(|zone| !zone.is_empty());
    report.check("spec.zone", bounds::text(zone.as_deref().unwrap_or_default(), bounds::ZONE));
    Some(Workload {
        namespace,
        name,
        service_account: account,
        labels: raw.metadata.labels.clone().unwrap_or_default(),
        address: address?,
        ports,
        mesh,
        zone,
        ready: true,
        pod: None,
    })
}
