//! The endpoints of a Service's port: its EndpointSlices, and the workloads that it selects.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use outrigger_core::config::{Endpoint, MeshAddress};
use outrigger_core::name::{EndpointId, external_name};

use crate::index::{Index, PortId};
use crate::object::{Service, ServicePort};
use crate::translate::external_service;

/// In the order of their ids; `None` when there is no such port, or its addresses are not known yet.
pub fn build(index: &Index, id: &PortId) -> Option<Vec<Endpoint>> {
    if external_name(&id.service.name).is_some() {
        return outside(index, id);
    }
    let service = index.service(&id.service)?;
    let port = service.port(id.port)?;
    let mut endpoints = BTreeMap::new();
    from_slices(index, service, port, &mut endpoints);
    from_workloads(index, service, port, &mut endpoints);
    Some(endpoints.into_values().collect())
}

fn outside(index: &Index, id: &PortId) -> Option<Vec<Endpoint>> {
    let external = index.external_of(&id.service).filter(|external| external.port == id.port)?;
    let looked_up = index.addresses(external)?;
    Some(external_service::endpoints_of(external, id, looked_up))
}

fn from_slices(
    index: &Index,
    service: &Service,
    port: &ServicePort,
    endpoints: &mut BTreeMap<EndpointId, Endpoint>,
) {
    let destination = PortId::new(&service.id, port.port).destination();
    for slice in index.slices_of(&service.id) {
        // As in Kubernetes, a slice's port belongs to the Service's port of the same name.
        let numbers = slice.ports.iter().filter(|(name, _)| *name == port.name);
        for (_, number) in numbers {
            let ready = slice.endpoints.iter().filter(|e| e.ready || service.publish_not_ready);
            for endpoint in ready {
                let Ok(id) = EndpointId::new(endpoint.uid.clone(), *number) else { continue };
                let value = Endpoint {
                    destination: destination.clone(),
                    id: id.clone(),
                    address: SocketAddr::new(endpoint.address, *number),
                    mesh: None,
                    zone: endpoint.zone.clone(),
                    hostname: endpoint.hostname.clone(),
                    workload: None,
                    tls: None,
                };
                endpoints.insert(id, value);
            }
        }
    }
}

fn from_workloads(
    index: &Index,
    service: &Service,
    port: &ServicePort,
    endpoints: &mut BTreeMap<EndpointId, Endpoint>,
) {
    let ready = index.selected(service).filter(|w| w.ready);
    for workload in ready {
        let Some(number) = workload.port(&port.target) else { continue };
        let Ok(id) = EndpointId::new(workload.uid(), number) else { continue };
        let value = Endpoint {
            destination: PortId::new(&service.id, port.port).destination(),
            id: id.clone(),
            address: workload.socket(number),
            mesh: workload.mesh.clone().map(|mesh| {
                let identity = index.identity(workload);
                MeshAddress { identity, ..mesh }
            }),
            zone: workload.zone.clone(),
            // A StatefulSet's pods have their own name as host name; so have workloads.
            hostname: service.headless.then(|| workload.name.clone()),
            workload: Some(format!("{}/{}", workload.namespace, workload.service_account)),
            tls: None,
        };
        endpoints.insert(id, value);
    }
}
