//! TLS that a calling proxy begins for its app, with what lies outside the mesh.
//!
//! The certificate is verified for the host, as a browser does, against the system's roots or those that
//! the ExternalService brings. No certificate of the mesh is shown, and nothing of its trust counts here.

use std::io;
use std::rc::Rc;
use std::sync::Arc;

use outrigger_core::config::OutsideTls;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::ServerName;
use rustls::{CertificateError, ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio::sync::OnceCell;
use tokio_rustls::TlsConnector;

use crate::tls::handshake::describe;
use crate::tls::pace::Pace;
use crate::wire::Wire;
use crate::wire::tls::TlsStream;

const HTTP1: &[u8] = b"http/1.1";
const HTTP2: &[u8] = b"h2";

/// One host and whom it is trusted from, ready to be called.
pub struct Outside {
    tls: Arc<OutsideTls>,
    ready: OnceCell<OriginationConfigs>,
}

/// One configuration for each list of protocols that is offered, with sessions of its own.
struct OriginationConfigs {
    name: ServerName<'static>,
    http1: Arc<ClientConfig>,
    http2: Arc<ClientConfig>,
    bytes: Arc<ClientConfig>,
}

impl Outside {
    pub(crate) fn new(tls: Arc<OutsideTls>) -> Self {
        Self { tls, ready: OnceCell::new() }
    }

    pub(crate) fn is_for(&self, tls: &OutsideTls) -> bool {
        *self.tls == *tls
    }

    /// Over `stream`; `wire`: what will be spoken, none for bytes that are not looked into. An error says
    /// why not.
    pub async fn connect(
        &self,
        pace: &Rc<Pace>,
        stream: TcpStream,
        wire: Option<Wire>,
    ) -> Result<Box<TlsStream>, String> {
        let ready = self.ready.get_or_try_init(|| prepare(&self.tls)).await?;
        let config = match wire {
            Some(Wire::Http1) => &ready.http1,
            Some(Wire::Http2 | Wire::Hop | Wire::HopTunnel) => &ready.http2,
            None => &ready.bytes,
        };
        let connecting = TlsConnector::from(Arc::clone(config)).connect(ready.name.clone(), stream);
        let stream = pace.run(connecting).await.map_err(|error| self.explain(&error))?;
        let (tcp, session) = stream.into_inner();
        let chosen = session.alpn_protocol();
        if wire == Some(Wire::Http2) && chosen != Some(HTTP2) {
            let name = &self.tls.server_name;
            return Err(format!("{name} does not speak HTTP/2: it took none of what was offered"));
        }
        Ok(Box::new(TlsStream::new(tcp, session)))
    }

    fn explain(&self, error: &io::Error) -> String {
        let name = &self.tls.server_name;
        let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        let whose = if self.tls.roots.is_empty() { "the system's" } else { "the given" };
        match tls {
            Some(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer)) => {
                format!("the certificate of {name}: none of {whose} roots issued it")
            }
            Some(rustls::Error::InvalidCertificate(problem)) => {
                format!("the certificate of {name}: {problem}")
            }
            _ => format!("TLS with {name}: {}", describe(error).1),
        }
    }
}

async fn prepare(tls: &OutsideTls) -> Result<OriginationConfigs, String> {
    let name = ServerName::try_from(tls.server_name.clone())
        .map_err(|_| format!("no certificate can be for {:?}", tls.server_name))?;
    let roots = if tls.roots.is_empty() { system_roots().await? } else { own_roots(tls)? };
    let config = |alpn: &[&[u8]]| {
        let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?;
        let mut config = builder.with_root_certificates(Arc::clone(&roots)).with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        Ok::<_, String>(Arc::new(config))
    };
    let (http1, http2, bytes) = (config(&[HTTP1])?, config(&[HTTP2])?, config(&[])?);
    Ok(OriginationConfigs { name, http1, http2, bytes })
}

fn own_roots(tls: &OutsideTls) -> Result<Arc<RootCertStore>, String> {
    let mut roots = RootCertStore::empty();
    for (i, root) in tls.roots.iter().enumerate() {
        let added = roots.add(root.clone().into());
        added.map_err(|error| format!("caCertificates, certificate {}: {error}", i + 1))?;
    }
    Ok(Arc::new(roots))
}

/// Read once, when first needed; a failure is tried again with the next connection.
async fn system_roots() -> Result<Arc<RootCertStore>, String> {
    static SYSTEM: OnceCell<Arc<RootCertStore>> = OnceCell::const_new();
    let load = || async {
        // Hundreds of files: not on a thread with traffic.
        let loaded = tokio::task::spawn_blocking(rustls_native_certs::load_native_certs).await;
        let mut roots = RootCertStore::empty();
        let (_, unusable) =
            roots.add_parsable_certificates(loaded.map_err(|error| error.to_string())?.certs);
        if roots.is_empty() {
            return Err(format!("the system has no usable roots ({unusable} unusable)"));
        }
        Ok(Arc::new(roots))
    };
    SYSTEM.get_or_try_init(load).await.cloned()
}
