//! A client that speaks TLS by hand: its own key, its certificate, and the roots that it trusts.

use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use outrigger_proto::identity::identity_client::IdentityClient;
use outrigger_proto::identity::{CertifyRequest, CertifyResponse};
use rcgen::{CertificateParams, KeyPair, SanType};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs;
use rustls::version::{TLS12, TLS13};
use rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use crate::support::{LIMIT, Mesh};

pub(crate) struct Client {
    pub(crate) key: KeyPair,
    pub(crate) chain: Vec<CertificateDer<'static>>,
    /// Empty: those of the mesh's file.
    pub(crate) roots: Vec<CertificateDer<'static>>,
    /// URIs that its certificate requests name.
    pub(crate) asks_for: Vec<String>,
}

impl Client {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        Self { key, chain: Vec::new(), roots: Vec::new(), asks_for: Vec::new() }
    }

    /// Gets a certificate with a fresh token.
    pub(crate) async fn join(
        &mut self,
        mesh: &Mesh,
        namespace: &str,
        account: &str,
        node: &str,
    ) -> Result<(), Status> {
        let token = mesh.token(namespace, account);
        let response = certify(self.channel(mesh).await, request(self, node), Some(&token)).await?;
        self.take(&response);
        Ok(())
    }

    pub(crate) fn take(&mut self, response: &CertifyResponse) {
        let chain = response.chain.iter();
        self.chain = chain.map(|der| CertificateDer::from(der.to_vec())).collect();
        let roots = response.bundle.as_ref().unwrap().roots.iter();
        self.roots = roots.map(|der| CertificateDer::from(der.to_vec())).collect();
    }

    /// The one name of its certificate.
    pub(crate) fn id(&self) -> String {
        name(&self.chain[0])
    }

    pub(crate) fn roots_of(&self, mesh: &Mesh) -> Vec<CertificateDer<'static>> {
        let pem = std::fs::read(mesh.state().join("trust-bundle.pem")).unwrap();
        CertificateDer::pem_slice_iter(&pem).map(Result::unwrap).collect()
    }

    pub(crate) async fn channel(&self, mesh: &Mesh) -> Channel {
        self.try_channel(mesh).await.unwrap()
    }

    pub(crate) async fn try_channel(&self, mesh: &Mesh) -> Result<Channel, String> {
        let stream = self.connect(mesh, &[&TLS13]).await?;
        let mut stream = Some(TokioIo::new(stream));
        let connector = tower::service_fn(move |_| {
            let stream = stream.take().ok_or_else(|| std::io::Error::other("used up"));
            async move { stream }
        });
        let endpoint = Endpoint::from_static("http://control-plane");
        endpoint.connect_with_connector(connector).await.map_err(|error| error.to_string())
    }

    pub(crate) async fn peer_id(&self, mesh: &Mesh) -> String {
        let stream = self.connect(mesh, &[&TLS13]).await.unwrap();
        name(&stream.get_ref().1.peer_certificates().unwrap()[0])
    }

    pub(crate) async fn speaks_tls_1_2(&self, mesh: &Mesh) -> Result<(), String> {
        self.connect(mesh, &[&TLS12]).await.map(drop)
    }

    pub(crate) async fn connect(
        &self,
        mesh: &Mesh,
        versions: &[&'static rustls::SupportedProtocolVersion],
    ) -> Result<TlsStream<TcpStream>, String> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut store = RootCertStore::empty();
        let roots = if self.roots.is_empty() { self.roots_of(mesh) } else { self.roots.clone() };
        store.add_parsable_certificates(roots);
        let chain =
            WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider.clone()).build();
        let verifier = Arc::new(NoName(chain.unwrap()));
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let mut config = match self.chain.is_empty() {
            true => config.with_no_client_auth(),
            false => {
                let key = PrivateKeyDer::try_from(self.key.serialize_der()).unwrap();
                config.with_client_auth_cert(self.chain.clone(), key).unwrap()
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        let stream = TcpStream::connect(mesh.server().discovery).await.unwrap();
        let name = ServerName::try_from("control-plane").unwrap();
        let handshake = TlsConnector::from(Arc::new(config)).connect(name, stream);
        let stream = tokio::time::timeout(LIMIT, handshake).await.expect("in time");
        stream.map_err(|error| error.to_string())
    }
}

/// A request of the client for `node`.
pub(crate) fn request(client: &Client, node: &str) -> CertifyRequest {
    let mut params = CertificateParams::default();
    let uris = client.asks_for.iter().map(|uri| SanType::URI(uri.as_str().try_into().unwrap()));
    params.subject_alt_names = uris.collect();
    let csr = params.serialize_request(&client.key).unwrap();
    CertifyRequest { csr: csr.der().to_vec().into(), node: node.to_owned() }
}

pub(crate) async fn certify(
    channel: Channel,
    request: CertifyRequest,
    token: Option<&str>,
) -> Result<CertifyResponse, Status> {
    let mut request = Request::new(request);
    request.set_timeout(Duration::from_secs(10));
    if let Some(token) = token {
        let token = format!("Bearer {token}").parse().unwrap();
        request.metadata_mut().insert("authorization", token);
    }
    Ok(IdentityClient::new(channel).certify(request).await?.into_inner())
}

fn name(certificate: &CertificateDer<'_>) -> String {
    let (_, parsed) = x509_parser::certificate::X509Certificate::from_der(certificate).unwrap();
    let names = parsed.subject_alternative_name().unwrap().unwrap();
    match names.value.general_names[..] {
        [GeneralName::URI(uri)] => uri.to_owned(),
        _ => panic!("{names:?}"),
    }
}

/// Verifies the chain, and leaves the name to the test.
#[derive(Debug)]
struct NoName(Arc<WebPkiServerVerifier>);

impl ServerCertVerifier for NoName {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified =
            self.0.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        match verified {
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}
