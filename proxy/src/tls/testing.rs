//! A certificate authority for tests.

use std::time::Duration;

use outrigger_core::config::TrustBundle;
use outrigger_core::identity::SpiffeId;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, SanType, date_time_ymd,
};
use rustls::pki_types::CertificateDer;
use sha2::{Digest, Sha256};

use crate::tls::unix_now;

pub const DOMAIN: &str = "mesh.local";

pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pub der: Vec<u8>,
}

/// A leaf to be.
pub struct Leaf {
    pub names: Vec<SanType>,
    pub extensions: Vec<CustomExtension>,
    pub from: u64,
    pub to: u64,
    pub purposes: Vec<ExtendedKeyUsagePurpose>,
}

pub fn id(account: &str) -> SpiffeId {
    SpiffeId::new(&DOMAIN.parse().unwrap(), "bank", account).unwrap()
}

impl Leaf {
    pub fn of(uri: &str) -> Self {
        Self {
            names: vec![SanType::URI(uri.try_into().unwrap())],
            extensions: Vec::new(),
            from: unix_now() - 60,
            to: unix_now() + 3_600,
            purposes: vec![
                ExtendedKeyUsagePurpose::ClientAuth,
                ExtendedKeyUsagePurpose::ServerAuth,
            ],
        }
    }
}

impl Ca {
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let der = params.self_signed(&key).unwrap().der().to_vec();
        Self { issuer: Issuer::new(params, key), der }
    }

    /// Key in PKCS#8 and chain.
    pub fn issue(&self, leaf: Leaf) -> (Vec<u8>, Vec<CertificateDer<'static>>) {
        let mut params = CertificateParams::default();
        params.subject_alt_names = leaf.names;
        params.custom_extensions = leaf.extensions;
        params.extended_key_usages = leaf.purposes;
        params.not_before = date_time_ymd(1970, 1, 1) + Duration::from_secs(leaf.from);
        params.not_after = date_time_ymd(1970, 1, 1) + Duration::from_secs(leaf.to);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (key.serialize_der(), vec![certificate.der().clone()])
    }
}

pub fn bundle(roots: &[&Ca]) -> TrustBundle {
    TrustBundle {
        trust_domain: DOMAIN.parse().unwrap(),
        roots: roots.iter().map(|ca| ca.der.clone()).collect(),
        issuing_root: Sha256::digest(&roots[0].der).into(),
    }
}
