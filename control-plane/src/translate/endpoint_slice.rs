//! discovery.k8s.io/v1 `EndpointSlice`: addresses that serve a Service.

use std::net::IpAddr;

use k8s_openapi::api::discovery::v1 as k8s;
use outrigger_core::name::check_label;

use super::{Report, identity};
use crate::object::{EndpointSlice, Readiness, ServiceId, SliceEndpoint};

/// The label that says which Service a slice belongs to.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";
/// Endpoints of one slice, from its schema.
const MAX_ENDPOINTS: usize = 1000;
/// Ports of one slice, from its schema.
const MAX_PORTS: usize = 100;

pub fn translate(raw: &k8s::EndpointSlice, report: &mut Report) -> Option<EndpointSlice> {
    let (namespace, name) = identity(&raw.metadata, report);
    let service = raw.metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE_LABEL));
    let Some(service) = service else {
        report.error(
            "metadata.labels",
            format!("the label {SERVICE_LABEL} must name the Service that the slice belongs to"),
        );
        return None;
    };
    report.check("metadata.labels", check_label(service));
    if !matches!(raw.address_type.as_str(), "IPv4" | "IPv6") {
        report.error("addressType", format!("{:?} must be IPv4 or IPv6", raw.address_type));
    }
    report.at_most("endpoints", raw.endpoints.len(), MAX_ENDPOINTS);
    report.at_most("ports", raw.ports.iter().flatten().count(), MAX_PORTS);
    let ports = raw.ports.iter().flatten().enumerate();
    let ports = ports.filter_map(|(i, port)| self::port(port, i, report)).collect();
    let endpoints = raw.endpoints.iter().enumerate();
    let endpoints = endpoints.filter_map(|(i, raw)| endpoint(raw, i, report)).collect();
    let service = ServiceId::new(namespace.clone(), service.clone());
    Some(EndpointSlice { namespace, name, service, ports, endpoints })
}

fn port(raw: &k8s::EndpointPort, i: usize, report: &mut Report) -> Option<(String, u16)> {
    if matches!(raw.protocol.as_deref(), Some("UDP" | "SCTP")) {
        return None;
    }
    let path = format!("ports[{i}].port");
    let Some(number) = raw.port else {
        report.error(path, "must be set");
        return None;
    };
    Some((raw.name.clone().unwrap_or_default(), report.port(&path, number)?))
}

fn endpoint(raw: &k8s::Endpoint, i: usize, report: &mut Report) -> Option<SliceEndpoint> {
    let path = format!("endpoints[{i}]");
    // Further addresses of one endpoint reach the same process: Kubernetes' own proxy uses the
    // first one too.
    let Some(first) = raw.addresses.first() else {
        report.error(format!("{path}.addresses"), "must hold at least one address");
        return None;
    };
    if raw.addresses.len() > 1 {
        report.warn(
            format!("{path}.addresses"),
            "only the first is used: write one endpoint per address",
        );
    }
    let Ok(address) = first.parse::<IpAddr>() else {
        report.error(format!("{path}.addresses[0]"), format!("{first:?} is not an IP address"));
        return None;
    };
    report.endpoint(&format!("{path}.addresses[0]"), address);
    let address = address.to_canonical();
    if let Some(hostname) = &raw.hostname {
        report.check(&format!("{path}.hostname"), check_label(hostname));
    }
    let uid = raw.target_ref.as_ref().and_then(|target| target.uid.clone());
    Some(SliceEndpoint {
        address,
        uid: uid.filter(|uid| !uid.is_empty()).unwrap_or_else(|| address.to_string()),
        readiness: readiness(raw.conditions.as_ref()),
        zone: raw.zone.clone().filter(|zone| !zone.is_empty()),
        hostname: raw.hostname.clone(),
        node: raw.node_name.clone().filter(|node| !node.is_empty()),
    })
}

/// Kubernetes: unset means ready, and as serving as it is ready.
fn readiness(raw: Option<&k8s::EndpointConditions>) -> Readiness {
    let ready = raw.and_then(|raw| raw.ready).unwrap_or(true);
    let is_serving = raw.and_then(|raw| raw.serving).unwrap_or(ready);
    match raw.and_then(|raw| raw.terminating) {
        _ if ready => Readiness::Ready,
        Some(true) if is_serving => Readiness::Terminating,
        _ => Readiness::Unready,
    }
}
