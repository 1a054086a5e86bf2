//! `ExternalWorkload`: a process outside the cluster as an endpoint.

use std::net::{IpAddr, SocketAddr};

use outrigger_core::bounds;
use outrigger_core::config::{MeshAddress, Protocol};
use outrigger_core::name::check_subdomain;
use outrigger_core::policy::bounds::{self as numbers, HOP_VERSION};

use super::{Report, label_identity};
use crate::kinds::{
    ExternalWorkload, ExternalWorkloadMesh, ExternalWorkloadPort, ExternalWorkloadSpec, defaults,
};
use crate::object::registered::{self, Registered};
use crate::object::{Workload, WorkloadPort};

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
            let version = mesh.hop_version.unwrap_or(defaults::HOP_VERSION.into());
            let version = numbers::number(version, &HOP_VERSION);
            let hop_version = report.check("spec.mesh.hopVersion", version)?;
            Some(MeshAddress { address, hop_version, identity: None })
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
            let open = port.ready.unwrap_or(true);
            ports.push(WorkloadPort { port: port_number, name, protocol, open });
        }
    }
    let account = spec.service_account.clone().unwrap_or_else(|| defaults::ACCOUNT.to_owned());
    // Its identity holds it.
    report.check("spec.serviceAccount", check_subdomain(&account));
    let zone = spec.zone.clone().filter(|zone| !zone.is_empty());
    report.check("spec.zone", bounds::text(zone.as_deref().unwrap_or_default(), bounds::ZONE));
    let mut labels = raw.metadata.labels.clone().unwrap_or_default();
    let registered = Registered::of(&raw.metadata);
    if registered.is_some() {
        labels.retain(|key, _| !registered::LABELS.contains(&key.as_str()));
    }
    Some(Workload {
        namespace,
        name,
        service_account: account,
        labels,
        address: address?,
        ports,
        mesh,
        zone,
        ready: spec.ready.unwrap_or(true),
        pod: None,
        registered,
    })
}

/// The spec of a workload, such that [`translate`] makes the same workload of it.
pub fn to_spec(workload: &Workload) -> ExternalWorkloadSpec {
    let port = |port: &WorkloadPort| ExternalWorkloadPort {
        port: port.port.into(),
        name: Some(port.name.clone()).filter(|name| !name.is_empty()),
        app_protocol: protocol_name(port.protocol).map(str::to_owned),
        ready: (!port.open).then_some(false),
    };
    let mesh = |mesh: &MeshAddress| ExternalWorkloadMesh {
        address: mesh.address.to_string(),
        hop_version: Some(mesh.hop_version.into()),
    };
    ExternalWorkloadSpec {
        address: workload.address.to_string(),
        ports: workload.ports.iter().map(port).collect(),
        mesh: workload.mesh.as_ref().map(mesh),
        service_account: Some(workload.service_account.clone()),
        zone: workload.zone.clone(),
        ready: Some(workload.ready),
    }
}

/// As [`Protocol::from_app_protocol`] reads it; none: detected.
fn protocol_name(protocol: Protocol) -> Option<&'static str> {
    match protocol {
        Protocol::Detect => None,
        Protocol::Http1 => Some("http"),
        Protocol::Http2 => Some("http2"),
        Protocol::Grpc => Some("grpc"),
        Protocol::Tls => Some("tls"),
        Protocol::Tcp => Some("tcp"),
    }
}

#[cfg(test)]
mod tests {
    use outrigger_core::address::LocalEndpoints;

    use super::*;

    #[test]
    fn a_workload_is_the_same_as_an_object() {
        let protocols = [
            Protocol::Detect,
            Protocol::Http1,
            Protocol::Http2,
            Protocol::Grpc,
            Protocol::Tls,
            Protocol::Tcp,
        ];
        let ports = protocols.into_iter().zip(8000..).map(|(protocol, port)| WorkloadPort {
            port,
            name: if port == 8000 { String::new() } else { format!("p{port}") },
            protocol,
            open: port != 8001,
        });
        let mesh = MeshAddress {
            address: "[2001:db8::7]:4743".parse().unwrap(),
            hop_version: 2,
            identity: None,
        };
        let full = Workload {
            namespace: "bank".to_owned(),
            name: "till-1".to_owned(),
            service_account: "till".to_owned(),
            labels: [("app".to_owned(), "till".to_owned())].into(),
            address: "192.0.2.7".parse().unwrap(),
            ports: ports.collect(),
            mesh: Some(mesh),
            zone: Some("a".to_owned()),
            ready: false,
            pod: None,
            registered: Some(Registered { by: "one".to_owned(), since: 1_700_000_000_001 }),
        };
        let bare = Workload {
            ports: Vec::new(),
            mesh: None,
            zone: None,
            ready: true,
            registered: None,
            ..full.clone()
        };
        for workload in [full, bare] {
            let mut object = ExternalWorkload::new(&workload.name, to_spec(&workload));
            let marks = workload.registered.as_ref().map(Registered::marks).unwrap_or_default();
            let mut labels = workload.labels.clone();
            labels.extend(marks.0);
            object.metadata.namespace = Some(workload.namespace.clone());
            object.metadata.labels = Some(labels);
            object.metadata.annotations = Some(marks.1);
            let mut report = Report::trusting(LocalEndpoints::Refuse);
            assert_eq!(translate(&object, &mut report), Some(workload));
            assert!(report.errors.is_empty(), "{:?}", report.errors);
        }
    }
}
