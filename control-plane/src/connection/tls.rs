//! The TLS server of the gRPC port: TLS 1.3, the control plane's own certificate as it is at the
//! moment, and a client certificate that is asked for and may be missing.

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ServerConfig};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme, version,
};
use rustls_pki_types::{CertificateDer, UnixTime};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::ca::Authority;
use crate::ca::own::OwnCertificate;
use crate::ca::verify::{Verified, VerifyError};

const ALPN: &[u8] = b"h2";

#[derive(Clone)]
pub struct Tls {
    pub(super) authority: Arc<Authority>,
    acceptor: TlsAcceptor,
}

type Client = (Verified, Vec<CertificateDer<'static>>);

impl Tls {
    pub fn new(authority: Arc<Authority>, own: Arc<OwnCertificate>) -> Result<Self, String> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier = Verifier { authority: authority.clone(), provider: provider.clone() };
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&version::TLS13])
            .map_err(|error| error.to_string())?
            .with_client_cert_verifier(Arc::new(verifier))
            .with_cert_resolver(own);
        config.alpn_protocols = vec![ALPN.to_vec()];
        // A proxy connects once in hours: each time it proves itself in full.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        Ok(Self { authority, acceptor: TlsAcceptor::from(Arc::new(config)) })
    }

    /// The connection, and whose it is if the client showed a certificate.
    pub(super) async fn accept(
        &self,
        stream: TcpStream,
    ) -> Result<(TlsStream<TcpStream>, Option<Client>), String> {
        let stream = self.acceptor.accept(stream).await.map_err(|error| error.to_string())?;
        let (_, session) = stream.get_ref();
        if session.alpn_protocol() != Some(ALPN) {
            return Err("the client does not speak h2 (ALPN)".to_owned());
        }
        let Some(chain) = session.peer_certificates() else { return Ok((stream, None)) };
        let chain: Vec<_> =
            chain.iter().map(|certificate| certificate.clone().into_owned()).collect();
        let client = self.authority.verify(&chain).map_err(|error| error.to_string())?;
        Ok((stream, Some((client, chain))))
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls")
    }
}

/// Lets nobody in without a certificate of a workload under a root that is in force now, except
/// those who show none.
#[derive(Debug)]
struct Verifier {
    authority: Arc<Authority>,
    provider: Arc<CryptoProvider>,
}

impl ClientCertVerifier for Verifier {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let chain: Vec<_> = std::iter::once(end_entity)
            .chain(intermediates)
            .map(|c| c.clone().into_owned())
            .collect();
        match self.authority.verify(&chain) {
            Ok(_) => Ok(ClientCertVerified::assertion()),
            Err(error) => Err(Error::InvalidCertificate(match error {
                VerifyError::Expired => CertificateError::Expired,
                VerifyError::NotYetValid => CertificateError::NotValidYet,
                VerifyError::UnknownRoot => CertificateError::UnknownIssuer,
                VerifyError::Missing
                | VerifyError::TrustDomain(_)
                | VerifyError::Identity(_)
                | VerifyError::Invalid(_) => CertificateError::ApplicationVerificationFailure,
            })),
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("only TLS 1.3 is spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
