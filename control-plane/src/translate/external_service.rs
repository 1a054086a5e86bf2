//! `ExternalService`: what lies outside the mesh.

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use super::{Report, identity};
use crate::kinds::{ExternalService, ExternalServiceTls};
use crate::object::{External, ExternalTls};

pub fn translate(raw: &ExternalService, report: &mut Report) -> Option<External> {
    let (namespace, name) = identity(&raw.metadata, report);
    let spec = &raw.spec;
    let host = spec.host.to_ascii_lowercase();
    let authority = if host.contains(':') { format!("[{host}]") } else { host.clone() };
    if host.is_empty() || authority.parse::<http::uri::Authority>().is_err() || host.contains('@') {
        report.error("spec.host", format!("{:?} is not a host name or IP address", spec.host));
    }
    let port = report.port("spec.port", spec.port);
    let tls = spec.tls.as_ref().map(|tls| translate_tls(tls, report));
    Some(External { namespace, name, host: authority, port: port?, tls })
}

fn translate_tls(raw: &ExternalServiceTls, report: &mut Report) -> ExternalTls {
    let Some(text) = &raw.ca_certificates else { return ExternalTls::default() };
    let roots: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    match roots {
        Ok(roots) if !roots.is_empty() => {
            ExternalTls { roots: roots.into_iter().map(|root| root.to_vec()).collect() }
        }
        Ok(_) | Err(_) => {
            report.error("spec.tls.caCertificates", "holds no certificate in PEM");
            ExternalTls::default()
        }
    }
}
