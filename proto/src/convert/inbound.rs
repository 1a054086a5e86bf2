//! [`Inbound`]: a workload's own ports.

use outrigger_core::config::{Inbound, InboundPort, MtlsMode};
use outrigger_core::error::FieldError;
use outrigger_core::name::DestinationName;

use super::{
    access, check_requires, each, parsed, policy, port, protocol_from_wire, protocol_to_wire,
    server,
};
use crate::mesh;

/// The feature that access rules need.
const ACCESS: &str = "access.v1";

pub fn to_wire(inbound: &Inbound) -> mesh::Inbound {
    mesh::Inbound {
        requires: requires(inbound),
        workload: inbound.workload.clone(),
        addresses: inbound.addresses.iter().map(ToString::to_string).collect(),
        ports: inbound
            .ports
            .iter()
            .map(|port| mesh::InboundPort {
                port: port.port.into(),
                protocol: protocol_to_wire(port.protocol),
                service: port.services.first().map(ToString::to_string).unwrap_or_default(),
                more_services: port.services.iter().skip(1).map(ToString::to_string).collect(),
                mtls: mtls_to_wire(port.mtls).into(),
                access: port.access.as_ref().map(access::to_wire),
                server: port.server.as_ref().map(server::to_wire),
            })
            .collect(),
    }
}

pub fn from_wire(wire: &mesh::Inbound) -> Result<Inbound, FieldError> {
    check_requires(&wire.requires)?;
    if wire.workload.is_empty() {
        return Err(FieldError::at("workload", "is empty"));
    }
    Ok(Inbound {
        workload: wire.workload.clone(),
        addresses: each("addresses", &wire.addresses, |text| parsed("", text))?,
        ports: each("ports", &wire.ports, |wire| {
            Ok(InboundPort {
                port: port("port", wire.port)?,
                protocol: protocol_from_wire(wire.protocol)?,
                services: services(wire)?,
                mtls: mtls_from_wire(wire.mtls)?,
                access: wire
                    .access
                    .as_ref()
                    .map(access::from_wire)
                    .transpose()
                    .map_err(|e| e.under("access"))?,
                server: wire
                    .server
                    .as_ref()
                    .map(server::from_wire)
                    .transpose()
                    .map_err(|e| e.under("server"))?,
            })
        })?,
    })
}

fn services(wire: &mesh::InboundPort) -> Result<Vec<DestinationName>, FieldError> {
    let mut services = each("more_services", &wire.more_services, |name| parsed("", name))?;
    if !wire.service.is_empty() {
        services.insert(0, parsed("service", &wire.service)?);
    }
    Ok(services)
}

/// Rules and limits that a proxy does not know must not be passed over.
fn requires(inbound: &Inbound) -> Vec<String> {
    let ruled = inbound.ports.iter().any(|port| port.access.is_some());
    let limited = inbound.ports.iter().any(|port| port.server.is_some());
    [(ruled, ACCESS), (limited, policy::FEATURE)]
        .into_iter()
        .filter(|(used, _)| *used)
        .map(|(_, feature)| feature.to_owned())
        .collect()
}

fn mtls_to_wire(mode: MtlsMode) -> mesh::MtlsMode {
    match mode {
        MtlsMode::Permissive => mesh::MtlsMode::Permissive,
        MtlsMode::Strict => mesh::MtlsMode::Strict,
    }
}

fn mtls_from_wire(wire: i32) -> Result<MtlsMode, FieldError> {
    match mesh::MtlsMode::try_from(wire) {
        Ok(mesh::MtlsMode::Permissive) => Ok(MtlsMode::Permissive),
        Ok(mesh::MtlsMode::Strict) => Ok(MtlsMode::Strict),
        Ok(mesh::MtlsMode::Unspecified) | Err(_) => {
            Err(FieldError::at("mtls", format!("{wire} is not a known value")))
        }
    }
}
