//! `ExternalService`: what lies outside the mesh.
//!
//! To callers it is a Service with one port, under a name that no Service has ([`External::as_service`]), so that
//! policies and routes find it as they find any other.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use outrigger_core::config::Protocol;
use outrigger_core::name::{Authority, Host};
use outrigger_core::policy::bounds;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use super::{Report, created, identity};
use crate::kinds::{ExternalEndpoint, ExternalProtocol, ExternalService, ExternalServiceTls};
use crate::object::{External, ExternalTls};

pub fn translate(raw: &ExternalService, report: &mut Report) -> Option<External> {
    let (namespace, name) = identity(&raw.metadata, report);
    let spec = &raw.spec;
    let host = spec.host.to_ascii_lowercase();
    let host = if host.contains(':') { format!("[{host}]") } else { host };
    let port = report.port("spec.port", spec.port);
    let authority = Authority::parse(&format!("{host}:{}", port.unwrap_or(1)), None);
    if authority.is_err() {
        report.error("spec.host", format!("{:?} is not a host name or IP address", spec.host));
    }
    let protocol = spec.protocol.map_or(Protocol::Detect, protocol);
    if protocol == Protocol::Tls && spec.tls.is_some() {
        let problem = "is TLS, which means that the app speaks TLS itself; with tls set, declare \
                       the app's plaintext protocol, or remove tls";
        report.error("spec.protocol", problem);
    }
    let endpoints = spec.endpoints.as_ref().map(|raw| endpoints(raw, port, report));
    let tls = spec.tls.as_ref().map(|tls| translate_tls(tls, report));
    let created = created(&raw.metadata);
    if let (Ok(Authority { host: Host::Ip(ip), .. }), None) = (&authority, &endpoints) {
        report.endpoint("spec.host", *ip);
    }
    let (authority, port) = (authority.ok()?, port?);
    let dialled = match authority.in_namespace(&namespace) {
        Authority { host: Host::Ip(ip), port } => SocketAddr::new(ip, port).into(),
        named => named,
    };
    Some(External { namespace, name, created, host, port, dialled, protocol, endpoints, tls })
}

fn protocol(raw: ExternalProtocol) -> Protocol {
    match raw {
        ExternalProtocol::Http => Protocol::Http1,
        ExternalProtocol::Http2 => Protocol::Http2,
        ExternalProtocol::Grpc => Protocol::Grpc,
        ExternalProtocol::Tcp => Protocol::Tcp,
        ExternalProtocol::Tls => Protocol::Tls,
    }
}

fn endpoints(
    raw: &[ExternalEndpoint],
    port: Option<u16>,
    report: &mut Report,
) -> BTreeSet<SocketAddr> {
    let path = "spec.endpoints";
    if raw.is_empty() {
        report.error(path, "is empty: leave it out to resolve the host instead");
    }
    report.check(path, bounds::at_most(raw.len(), bounds::MAX_OUTSIDE));
    let mut endpoints = BTreeSet::new();
    for (i, raw) in raw.iter().enumerate() {
        let path = format!("{path}[{i}]");
        let port = match raw.port {
            Some(own) => report.port(&format!("{path}.port"), own),
            None => port,
        };
        let Ok(address) = raw.address.parse::<IpAddr>() else {
            report.error(
                format!("{path}.address"),
                format!("{:?} is not an IP address", raw.address),
            );
            continue;
        };
        report.endpoint(&format!("{path}.address"), address);
        let Some(port) = port else { continue };
        if !endpoints.insert(SocketAddr::new(address.to_canonical(), port)) {
            report.error(path, "is a duplicate endpoint");
        }
    }
    endpoints
}

fn translate_tls(raw: &ExternalServiceTls, report: &mut Report) -> ExternalTls {
    let Some(text) = &raw.ca_certificates else { return ExternalTls::default() };
    let path = "spec.tls.caCertificates";
    if text.len() > bounds::ROOTS_BYTES {
        let most = bounds::ROOTS_BYTES;
        report.error(path, format!("has {} bytes, at most {most} are allowed", text.len()));
        return ExternalTls::default();
    }
    let roots: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    match roots {
        Ok(roots) if !roots.is_empty() => {
            ExternalTls { roots: roots.into_iter().map(|root| root.to_vec()).collect() }
        }
        Ok(_) | Err(_) => {
            report.error(path, "contains no PEM certificate");
            ExternalTls::default()
        }
    }
}
