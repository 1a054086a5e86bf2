//! Asking the control plane for a certificate: a fresh key, a request signed with it, the answer.

use outrigger_core::config::TrustBundle;
use outrigger_proto::convert::trust;
use outrigger_proto::identity::CertifyRequest;
use outrigger_proto::identity::identity_client::IdentityClient;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::pki_types::CertificateDer;

use crate::mesh::control_plane::ControlPlane;

/// Time for one answer: the control plane signs at once or not at all.
const LIMIT: std::time::Duration = std::time::Duration::from_secs(10);

/// What came back, with the key it was asked for. The key leaves this process only in the disk copy.
pub struct Issued {
    /// PKCS#8 in DER.
    pub key: Vec<u8>,
    pub chain: Vec<CertificateDer<'static>>,
    pub bundle: TrustBundle,
}

pub async fn certify(control_plane: &ControlPlane, node: &str) -> Result<Issued, String> {
    let (key, csr) = request()?;
    let (channel, metadata) = control_plane.connect_to_certify().await?;
    let mut request =
        tonic::Request::new(CertifyRequest { csr: csr.into(), node: node.to_owned() });
    *request.metadata_mut() = metadata;
    let mut client = IdentityClient::new(channel);
    let asking = client.certify(request);
    let response = tokio::time::timeout(LIMIT, asking)
        .await
        .map_err(|_| format!("no answer to Certify in {LIMIT:?}"))?
        .map_err(|status| format!("{}: {}", status.code(), status.message()))?
        .into_inner();
    let bundle = response.bundle.ok_or("the answer to Certify has no trust bundle")?;
    let bundle =
        trust::from_wire(&bundle).map_err(|e| format!("the answer to Certify: bundle.{e}"))?;
    let chain = response.chain.into_iter().map(|der| CertificateDer::from(der.to_vec())).collect();
    Ok(Issued { key, chain, bundle })
}

/// A fresh P-256 key in PKCS#8 and a PKCS#10 request for it, both in DER. The request names nobody:
/// the token decides.
fn request() -> Result<(Vec<u8>, Vec<u8>), String> {
    let failed = |e: rcgen::Error| format!("cannot make a key: {e}");
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
    let csr = CertificateParams::default().serialize_request(&key).map_err(failed)?;
    Ok((key.serialize_der(), csr.der().to_vec()))
}
