//! Making certificates: leaves that hold exactly one identity, for a while.

use std::fmt;
use std::time::{Duration, SystemTime};

use outrigger_core::identity::SpiffeId;
use rcgen::{
    CertificateParams, CustomExtension, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;

use super::root::{BACKDATED, Root, RootId};
use crate::grant::{self, Grant};

/// A leaf shorter than this helps nobody: its issuer is as good as ended.
const MIN_LIFETIME: Duration = Duration::from_secs(2);
/// Bytes of a serial number (RFC 5280 section 4.1.2.2 allows 20).
const SERIAL: usize = 16;

/// A key with its certificate, under which leaves are issued.
pub struct Issuer {
    issuer: rcgen::Issuer<'static, KeyPair>,
    /// From the issuing certificate up to, and without, the root; empty when the root issues.
    intermediates: Vec<CertificateDer<'static>>,
    pub root: RootId,
    /// The earliest end on the way to the root.
    pub not_after: SystemTime,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum IssueError {
    #[error("the issuing certificate expires too soon: renew it")]
    IssuerEnds,
    #[error("the certificate could not be made: {0}")]
    Failed(String),
}

/// A new certificate.
#[derive(Clone, Debug)]
pub struct Leaf {
    /// The leaf first, without the root.
    pub chain: Vec<CertificateDer<'static>>,
    pub root: RootId,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
}

impl Issuer {
    /// Issues directly under a root whose key is here.
    pub(super) fn from_root(root: &Root) -> Result<Self, String> {
        let key = root.key.as_ref().ok_or("the root's key is not here")?;
        Self::new(&root.certificate, Vec::new(), key, root.id, root.not_after)
    }

    pub(super) fn new(
        certificate: &CertificateDer<'_>,
        intermediates: Vec<CertificateDer<'static>>,
        key: &str,
        root: RootId,
        not_after: SystemTime,
    ) -> Result<Self, String> {
        let key = KeyPair::from_pem(key).map_err(|error| format!("the key: {error}"))?;
        let own = key.subject_public_key_info();
        let named = subject_key(certificate)?;
        if own != named {
            return Err("the key is not that of the certificate".to_owned());
        }
        let issuer = rcgen::Issuer::from_ca_cert_der(certificate, key)
            .map_err(|error| format!("the certificate: {error}"))?;
        Ok(Self { issuer, intermediates, root, not_after })
    }

    /// Issues a leaf for `id`, valid until `lifetime` from now or the issuer's end.
    pub fn leaf(
        &self,
        id: &SpiffeId,
        key: &impl PublicKeyData,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Leaf, IssueError> {
        self.leaf_with(id, key, &Grant::default(), lifetime, now)
    }

    /// The same with what its owner may register.
    pub fn leaf_with(
        &self,
        id: &SpiffeId,
        key: &impl PublicKeyData,
        grant: &Grant,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Leaf, IssueError> {
        let id = id.as_str().try_into().map_err(failed)?;
        let purposes = [ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let extension = grant.to_extension();
        let extension = extension.map(|text| CustomExtension::from_oid_content(&grant::OID, text));
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(id)];
        params.extended_key_usages = purposes.into();
        params.custom_extensions = extension.into_iter().collect();
        self.sign(params, key, lifetime, now)
    }

    /// Issues a leaf for a server that others know by a host name: in the mesh it is nobody.
    pub fn server_leaf(
        &self,
        host: &str,
        key: &impl PublicKeyData,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Leaf, IssueError> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::DnsName(host.try_into().map_err(failed)?)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign(params, key, lifetime, now)
    }

    fn sign(
        &self,
        mut params: CertificateParams,
        key: &impl PublicKeyData,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Leaf, IssueError> {
        let not_after = whole_seconds((now + lifetime).min(self.not_after));
        if not_after < now + MIN_LIFETIME {
            return Err(IssueError::IssuerEnds);
        }
        let not_before = whole_seconds(now - BACKDATED);
        let mut serial = [0; SERIAL];
        getrandom::fill(&mut serial).map_err(|error| IssueError::Failed(error.to_string()))?;
        // Positive, and of full length.
        serial[0] = serial[0] & 0x7f | 0x40;
        params.distinguished_name = DistinguishedName::new();
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        params.not_before = OffsetDateTime::from(not_before);
        params.not_after = OffsetDateTime::from(not_after);
        let leaf = params.signed_by(key, &self.issuer).map_err(failed)?;
        let chain = std::iter::once(leaf.der().clone()).chain(self.intermediates.iter().cloned());
        Ok(Leaf { chain: chain.collect(), root: self.root, not_before, not_after })
    }

    /// Whether both issue in the same way.
    pub(super) fn same(&self, other: &Self) -> bool {
        self.root == other.root
            && self.intermediates == other.intermediates
            && self.issuer.key().public_key_raw() == other.issuer.key().public_key_raw()
    }
}

impl fmt::Debug for Issuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Issuer({})", self.root)
    }
}

#[expect(clippy::needless_pass_by_value, reason = "what map_err takes")]
fn failed(error: rcgen::Error) -> IssueError {
    IssueError::Failed(error.to_string())
}

/// Certificates count whole seconds.
fn whole_seconds(time: SystemTime) -> SystemTime {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs())
}

/// The key of a certificate, as SubjectPublicKeyInfo in DER.
fn subject_key(certificate: &CertificateDer<'_>) -> Result<Vec<u8>, String> {
    use x509_parser::prelude::FromDer;
    let (_, parsed) = x509_parser::certificate::X509Certificate::from_der(certificate)
        .map_err(|_| "is not an X.509 certificate".to_owned())?;
    Ok(parsed.public_key().raw.to_vec())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use outrigger_core::identity::TrustDomain;

    use super::*;
    use crate::ca::verify::{self, VerifyError};

    const HOUR: Duration = Duration::from_secs(3600);

    fn domain() -> TrustDomain {
        "mesh.local".parse().unwrap()
    }

    fn root(now: SystemTime) -> Arc<Root> {
        Arc::new(Root::generate(&domain(), now).unwrap())
    }

    #[test]
    fn a_leaf_holds_what_it_was_issued_for_and_no_longer() {
        let now = SystemTime::now();
        let (root, other) = (root(now), root(now));
        let issuer = Issuer::from_root(&root).unwrap();
        let id = SpiffeId::new(&domain(), "bank", "orders").unwrap();
        let key = KeyPair::generate().unwrap();
        let leaf = issuer.leaf(&id, &key, HOUR, now).unwrap();
        let roots = [other.clone(), root.clone()];
        let check = |roots: &[Arc<Root>], now| verify::client(&leaf.chain, &domain(), roots, now);
        let verified = check(&roots, now).unwrap();
        assert_eq!((verified.id, verified.root), (id, root.id));
        assert_eq!(verified.not_after, leaf.not_after);
        assert!(check(&roots, now - Duration::from_secs(20)).is_ok(), "a clock that is behind");
        let after = now + HOUR + Duration::from_secs(1);
        assert_eq!(check(&roots, after), Err(VerifyError::Expired));
        assert_eq!(check(&roots, now - HOUR), Err(VerifyError::UnknownRoot));
        assert_eq!(check(&[other], now), Err(VerifyError::UnknownRoot));
        assert_eq!(check(&[], now), Err(VerifyError::UnknownRoot));
        let elsewhere = "other.local".parse().unwrap();
        assert_eq!(
            verify::client(&leaf.chain, &elsewhere, &roots, now),
            Err(VerifyError::TrustDomain("mesh.local".to_owned()))
        );
        assert_eq!(verify::client(&[], &domain(), &roots, now), Err(VerifyError::Missing));
        // A root is nobody's certificate.
        assert!(
            verify::client(std::slice::from_ref(&root.certificate), &domain(), &roots, now)
                .is_err()
        );
    }

    #[test]
    fn a_leaf_never_outlives_its_issuer() {
        let now = SystemTime::now();
        let root = root(now);
        let issuer = Issuer::from_root(&root).unwrap();
        let id = SpiffeId::new(&domain(), "bank", "orders").unwrap();
        let key = KeyPair::generate().unwrap();
        let late = root.not_after - Duration::from_secs(600);
        assert_eq!(issuer.leaf(&id, &key, HOUR, late).unwrap().not_after, root.not_after);
        let error = issuer.leaf(&id, &key, HOUR, root.not_after).unwrap_err();
        assert_eq!(error, IssueError::IssuerEnds);
    }

    #[test]
    fn only_one_uri_of_the_exact_form_is_an_identity() {
        let now = SystemTime::now();
        let root = root(now);
        let issuer = Issuer::from_root(&root).unwrap();
        let uri = |text: &str| SanType::URI(text.try_into().unwrap());
        let dns = || SanType::DnsName("orders.bank".try_into().unwrap());
        let good = "spiffe://mesh.local/ns/bank/sa/orders";
        for names in [
            vec![],
            vec![dns()],
            vec![uri(good), dns()],
            vec![uri(good), uri(good)],
            vec![uri(good), uri("spiffe://mesh.local/ns/bank/sa/ledger")],
            vec![uri("spiffe://mesh.local/ns/bank/sa/*")],
            vec![uri("spiffe://mesh.local/ns/bank/sa/orders/")],
            vec![uri("spiffe://mesh.local/ns/bank/sa/orders\0")],
            vec![uri("spiffe://mesh.local/ns/bank/sa/%6frders")],
            vec![uri("spiffe://MESH.local/ns/bank/sa/orders")],
            vec![uri("https://mesh.local/ns/bank/sa/orders")],
        ] {
            let mut params = CertificateParams::default();
            params.subject_alt_names = names.clone();
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            params.not_before = OffsetDateTime::from(now - BACKDATED);
            params.not_after = OffsetDateTime::from(now + HOUR);
            let leaf = params.signed_by(&KeyPair::generate().unwrap(), &issuer.issuer).unwrap();
            let chain = [leaf.der().clone()];
            let error =
                verify::client(&chain, &domain(), std::slice::from_ref(&root), now).unwrap_err();
            assert!(matches!(error, VerifyError::Identity(_)), "{names:?}: {error}");
        }
    }
}
