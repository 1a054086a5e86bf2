//! A workload's own ports, as its inbound proxy needs them.

use std::collections::BTreeMap;

use outrigger_core::config::{Inbound, InboundPort, Protocol};

use super::{access_policy, effective};
use crate::index::{Index, PortId};
use crate::object::Workload;

/// Services that a port is told of. Anyone who may make Services may make many of one port; calls of the others count
/// under the first.
const MAX_SERVICES: usize = 16;

/// `None` when there is no such workload.
pub fn build(index: &Index, uid: &str) -> Option<Inbound> {
    let workload = index.workload(uid)?;
    let mut ports: BTreeMap<u16, InboundPort> = BTreeMap::new();
    for port in &workload.ports {
        let (port, protocol) = (port.port, port.protocol);
        ports.insert(port, inbound_port(index, workload, port, protocol));
    }
    // In name order, so the first one that selects a port says what it speaks.
    for id in index.selecting(workload) {
        let service_ports = index.service(id).into_iter().flat_map(|service| &service.ports);
        for service_port in service_ports {
            let Some(port) = workload.port(&service_port.target) else { continue };
            let own = || inbound_port(index, workload, port, Protocol::Detect);
            let inbound = ports.entry(port).or_insert_with(own);
            // Callers speak what the Service declares; only silence leaves it to the workload.
            if inbound.services.is_empty() && service_port.protocol != Protocol::Detect {
                inbound.protocol = service_port.protocol;
            }
            if inbound.services.len() < MAX_SERVICES {
                inbound.services.push(PortId::new(id, service_port.port).destination());
            }
        }
    }
    Some(Inbound {
        workload: uid.to_owned(),
        addresses: addresses(workload),
        ports: ports.into_values().collect(),
    })
}

fn inbound_port(index: &Index, workload: &Workload, port: u16, protocol: Protocol) -> InboundPort {
    let mtls = access_policy::mtls(index, workload, port);
    let access = access_policy::access(index, workload, port);
    let server = effective::server(index, workload, port);
    InboundPort { port, protocol, services: Vec::new(), mtls, access, server }
}

fn addresses(workload: &Workload) -> Vec<std::net::IpAddr> {
    match &workload.pod {
        Some(pod) => pod.addresses.clone(),
        None => vec![workload.address],
    }
}
