//! v1 `Service`: its ports, how they are spoken to, and which workloads serve it.

use std::net::IpAddr;

use k8s_openapi::api::core::v1 as k8s;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use outrigger_core::config::{Balancer, HashKey, Protocol};
use outrigger_core::name::{Authority, Host, check_label};

use super::{Report, label_identity};
use crate::kinds::defaults;
use crate::object::{Service, ServiceId, ServicePort, TargetPort};

pub fn translate(raw: &k8s::Service, report: &mut Report) -> Option<Service> {
    let (namespace, name) = label_identity(&raw.metadata, report);
    let Some(spec) = &raw.spec else {
        report.error("spec", "is missing");
        return None;
    };
    let external = spec.type_.as_deref() == Some("ExternalName");
    let alias = external.then(|| alias(spec.external_name.as_deref(), report)).flatten();
    let ports = spec.ports.iter().flatten().filter(|_| !external).enumerate();
    let ports: Vec<_> = ports.filter_map(|(i, raw)| port(raw, i, report)).collect();
    for (i, port) in ports.iter().enumerate() {
        if ports[..i].iter().any(|p| p.port == port.port) {
            report.error("spec.ports", format!("port {} appears twice", port.port));
        }
        if ports[..i].iter().any(|p| p.name == port.name) {
            report.error("spec.ports", format!("the name {:?} appears twice", port.name));
        }
    }
    let ips = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
    let headless = spec.cluster_ip.as_deref() == Some("None");
    let mut cluster_ips: Vec<IpAddr> = Vec::new();
    for ip in ips.filter(|ip| *ip != "None" && !ip.is_empty()) {
        match ip.parse::<IpAddr>() {
            Ok(ip) if !cluster_ips.contains(&ip.to_canonical()) => {
                report.endpoint("spec.clusterIP", ip);
                cluster_ips.push(ip.to_canonical());
            }
            Ok(_) => {}
            Err(_) => report.error("spec.clusterIP", format!("{ip:?} is not an IP address")),
        }
    }
    let balancer = match spec.session_affinity.as_deref() {
        None | Some("" | "None") => Balancer::default(),
        Some("ClientIP") => Balancer::RingHash(HashKey::Source),
        Some(other) => {
            report.error("spec.sessionAffinity", format!("{other:?} must be ClientIP or None"));
            Balancer::default()
        }
    };
    let min_healthy_percent = match spec.traffic_distribution.as_deref() {
        None | Some("") => None,
        // One node is in one zone, and what is nearer than that is not known here.
        Some("PreferClose" | "PreferSameZone" | "PreferSameNode") => {
            u8::try_from(defaults::MIN_HEALTHY_PERCENT).ok()
        }
        Some(other) => {
            let problem = format!("{other:?} is not known, so zones are ignored");
            report.warn("spec.trafficDistribution", problem);
            None
        }
    };
    let same_node_only = match spec.internal_traffic_policy.as_deref() {
        None | Some("" | "Cluster") => false,
        Some("Local") => true,
        Some(other) => {
            let path = "spec.internalTrafficPolicy";
            report.error(path, format!("{other:?} must be Cluster or Local"));
            false
        }
    };
    Some(Service {
        id: ServiceId { namespace, name },
        cluster_ips,
        headless,
        selector: spec.selector.clone().unwrap_or_default(),
        ports,
        balancer,
        publish_not_ready: spec.publish_not_ready_addresses.unwrap_or(false),
        min_healthy_percent,
        alias,
        same_node_only,
    })
}

/// The host that a Service of type ExternalName stands for.
fn alias(host: Option<&str>, report: &mut Report) -> Option<String> {
    let host = host.unwrap_or_default().trim_end_matches('.').to_ascii_lowercase();
    match Authority::parse(&format!("{host}:1"), None) {
        Ok(Authority { host: Host::Name(_), .. }) => Some(host),
        _ => {
            report.error("spec.externalName", format!("{host:?} is not a host name"));
            None
        }
    }
}

fn port(raw: &k8s::ServicePort, i: usize, report: &mut Report) -> Option<ServicePort> {
    let path = format!("spec.ports[{i}]");
    if let Some(other @ ("UDP" | "SCTP")) = raw.protocol.as_deref() {
        report.warn(format!("{path}.protocol"), format!("{other} is not carried by the mesh"));
        return None;
    }
    let number = report.port(&format!("{path}.port"), raw.port)?;
    let name = raw.name.clone().unwrap_or_default();
    if !name.is_empty() {
        report.check(&format!("{path}.name"), check_label(&name));
    }
    let target = match &raw.target_port {
        None => TargetPort::Number(number),
        // 0 is what some writers leave for "same as port".
        Some(IntOrString::Int(0)) => TargetPort::Number(number),
        Some(IntOrString::Int(target)) => {
            TargetPort::Number(report.port(&format!("{path}.targetPort"), *target)?)
        }
        Some(IntOrString::String(target)) => match target.parse::<u16>() {
            Ok(target) if target != 0 => TargetPort::Number(target),
            _ => TargetPort::Name(target.clone()),
        },
    };
    let protocol = match raw.app_protocol.as_deref() {
        Some(app) => Protocol::from_app_protocol(app).unwrap_or_else(|| {
            report.warn(
                format!("{path}.appProtocol"),
                format!("{app:?} is not known, so the protocol is detected"),
            );
            Protocol::Detect
        }),
        None => Protocol::from_port_name(&name),
    };
    Some(ServicePort { port: number, name, target, protocol })
}
