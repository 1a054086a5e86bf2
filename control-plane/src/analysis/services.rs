//! Services that nobody can call, or that have no endpoint.

use outrigger_core::name::external_name;

use super::Analysis;
use crate::object::{Service, TargetPort};

pub(super) fn analyze(analysis: &mut Analysis<'_>) {
    let index = analysis.index;
    let services = index
        .services()
        .filter(|service| service.alias.is_none() && external_name(&service.id.name).is_none());
    for service in services {
        let object = service.id.object();
        if service.ports.is_empty() && !service.headless {
            analysis.warn(&object, "spec.ports: is empty, so nobody can call it".to_owned());
        }
        if index.slices_of(&service.id).next().is_some() {
            continue;
        }
        if service.selector.is_empty() {
            let text = "spec.selector: is missing, and no EndpointSlice has the label \
                        kubernetes.io/service-name with its name, so it has no endpoints";
            analysis.warn(&object, text.to_owned());
        } else if analysis.knows_workloads_in(&service.id.namespace) {
            for text in unserved(analysis, service) {
                analysis.warn(&object, text);
            }
        }
    }
}

/// The selector or ports that no known workload answers to.
fn unserved(analysis: &Analysis<'_>, service: &Service) -> Vec<String> {
    let selected: Vec<_> = analysis.index.selected(service).collect();
    if selected.is_empty() {
        let namespace = &service.id.namespace;
        return vec![format!(
            "spec.selector: matches no known workload in namespace {namespace}, so the Service has \
             no endpoints"
        )];
    }
    let ports = service.ports.iter().enumerate();
    let ports = ports.filter(|(_, port)| selected.iter().all(|w| w.port(&port.target).is_none()));
    let text = |(i, port): (usize, &crate::object::ServicePort)| {
        let target = match &port.target {
            TargetPort::Number(number) => number.to_string(),
            TargetPort::Name(name) => format!("{name:?}"),
        };
        format!("spec.ports[{i}].targetPort: no selected workload has a port {target}")
    };
    ports.map(text).collect()
}
