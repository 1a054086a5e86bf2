//! What is taken from a certificate request: the public key, and the proof that its sender has the
//! private one.
//!
//! A request comes from anybody who reaches the port. Its subject and its extensions are read by
//! nobody: who the certificate is for is decided by the credential alone.

use outrigger_core::bounds;
use rcgen::{PKCS_ECDSA_P256_SHA256, PublicKeyData, SignatureAlgorithm};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::oid_registry::{
    OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_SIG_ECDSA_WITH_SHA256,
};
use x509_parser::prelude::FromDer;

const MAX_CSR: usize = bounds::CSR;
/// Bytes of an uncompressed point of P-256 (SEC 1, section 2.3.3).
const POINT: usize = 65;
/// First byte of an uncompressed point.
const UNCOMPRESSED: u8 = 4;

/// A P-256 key whose owner has signed for it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PublicKey([u8; POINT]);

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CsrError {
    #[error("has {0} bytes, at most {MAX_CSR} are allowed")]
    TooLong(usize),
    #[error("is not a PKCS#10 request in DER")]
    Malformed,
    #[error("has {0} bytes behind its end")]
    Trailing(usize),
    #[error("the key is not an uncompressed P-256 key")]
    Key,
    #[error("is not signed with ECDSA and SHA-256")]
    Algorithm,
    #[error("the signature does not fit the key")]
    Signature,
}

/// Reads a request in DER.
pub fn parse(der: &[u8]) -> Result<PublicKey, CsrError> {
    if der.len() > MAX_CSR {
        return Err(CsrError::TooLong(der.len()));
    }
    let (rest, csr) = X509CertificationRequest::from_der(der).map_err(|_| CsrError::Malformed)?;
    if !rest.is_empty() {
        return Err(CsrError::Trailing(rest.len()));
    }
    let info = &csr.certification_request_info;
    let spki = &info.subject_pki;
    let curve = spki.algorithm.parameters.as_ref().and_then(|p| p.as_oid().ok());
    if spki.algorithm.algorithm != OID_KEY_TYPE_EC_PUBLIC_KEY || curve != Some(OID_EC_P256) {
        return Err(CsrError::Key);
    }
    let point: [u8; POINT] =
        spki.subject_public_key.data.as_ref().try_into().map_err(|_| CsrError::Key)?;
    if point[0] != UNCOMPRESSED {
        return Err(CsrError::Key);
    }
    if csr.signature_algorithm.algorithm != OID_SIG_ECDSA_WITH_SHA256 {
        return Err(CsrError::Algorithm);
    }
    // This also finds points that are not on the curve.
    webpki::aws_lc_rs::ECDSA_P256_SHA256
        .verify_signature(&point, info.raw, csr.signature_value.data.as_ref())
        .map_err(|_| CsrError::Signature)?;
    Ok(PublicKey(point))
}

impl PublicKeyData for PublicKey {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

impl std::fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PublicKey(P-256)")
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P384_SHA384, PKCS_ED25519};

    use super::*;

    fn request(key: &KeyPair, name: &str) -> Vec<u8> {
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.serialize_request(key).unwrap().der().to_vec()
    }

    #[test]
    fn only_the_key_is_taken() {
        let key = KeyPair::generate().unwrap();
        let parsed = parse(&request(&key, "somebody.else")).unwrap();
        assert_eq!(parsed.der_bytes(), key.public_key_raw());
    }

    #[test]
    fn whatever_is_not_a_sound_request_is_refused() {
        let key = KeyPair::generate().unwrap();
        let good = request(&key, "orders");
        assert_eq!(parse(b""), Err(CsrError::Malformed));
        assert_eq!(parse(&[0x30; 4096]), Err(CsrError::Malformed));
        assert_eq!(parse(&[0; 4097]), Err(CsrError::TooLong(4097)));
        let mut longer = good.clone();
        longer.push(0);
        assert_eq!(parse(&longer), Err(CsrError::Trailing(1)));
        for kind in [&PKCS_ECDSA_P384_SHA384, &PKCS_ED25519] {
            let key = KeyPair::generate_for(kind).unwrap();
            assert_eq!(parse(&request(&key, "orders")), Err(CsrError::Key));
        }
        // Somebody else's key under one's own signature.
        let other = KeyPair::generate().unwrap();
        let at = good.windows(POINT).position(|bytes| bytes == key.public_key_raw()).unwrap();
        let mut foreign = good.clone();
        foreign[at..at + POINT].copy_from_slice(other.public_key_raw());
        assert_eq!(parse(&foreign), Err(CsrError::Signature));
        let mut off_curve = good.clone();
        off_curve[at + POINT - 1] ^= 1;
        assert_eq!(parse(&off_curve), Err(CsrError::Signature));
        let mut compressed = good;
        compressed[at] = 2;
        assert_eq!(parse(&compressed), Err(CsrError::Key));
    }

    #[test]
    fn no_damage_gets_through() {
        let key = KeyPair::generate().unwrap();
        let good = request(&key, "orders");
        for at in 0..good.len() {
            for bit in 0..8 {
                let mut damaged = good.clone();
                damaged[at] ^= 1 << bit;
                // The last bytes of a DER integer may be written in two ways; the key stays.
                if let Ok(parsed) = parse(&damaged) {
                    assert_eq!(parsed.der_bytes(), key.public_key_raw(), "byte {at} bit {bit}");
                }
            }
            assert!(parse(&good[..at]).is_err(), "cut at {at}");
        }
    }
}
