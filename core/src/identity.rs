//! Who a workload is: `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
//!
//! Parsing accepts exactly this form and nothing that merely means the same: no upper case, no
//! percent-encoding, no empty or dot segment, no trailing slash, no port, query or fragment
//! (SPIFFE-ID specification, sections 2.1 to 2.4, and stricter). Two ids are equal when their text
//! is.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::error::FieldError;
use crate::name::check_label;

/// The longest id in bytes (SPIFFE-ID specification, section 2.3).
const MAX_ID: usize = 2_048;
/// The longest trust domain in bytes (section 2.1).
const MAX_TRUST_DOMAIN: usize = 255;
/// The longest name of a service account, a DNS subdomain (Kubernetes).
const MAX_SERVICE_ACCOUNT: usize = 253;

/// The part of an id that names the mesh.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(Arc<str>);

/// The identity of a workload. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    /// The whole id; the other parts are ranges of it.
    text: Arc<str>,
    trust_domain_end: u16,
    namespace_end: u16,
}

const SCHEME: &str = "spiffe://";
const NAMESPACE: &str = "/ns/";
const ACCOUNT: &str = "/sa/";
/// Namespace and service account of the control plane.
const CONTROL_PLANE: (&str, &str) = ("outrigger-system", "control-plane");

impl TrustDomain {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TrustDomain {
    type Err = FieldError;

    fn from_str(text: &str) -> Result<Self, FieldError> {
        let allowed =
            |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
        if text.is_empty() || text.len() > MAX_TRUST_DOMAIN || !text.bytes().all(allowed) {
            return Err(FieldError::here(format!(
                "{text:?} is not a trust domain: lower-case letters, digits, '.', '-' and '_', at \
                 most {MAX_TRUST_DOMAIN}"
            )));
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl SpiffeId {
    pub fn new(
        trust_domain: &TrustDomain,
        namespace: &str,
        service_account: &str,
    ) -> Result<Self, FieldError> {
        check_label(namespace).map_err(|e| e.under("namespace"))?;
        check_account(service_account).map_err(|e| e.under("serviceAccount"))?;
        let text =
            format!("{SCHEME}{trust_domain}{NAMESPACE}{namespace}{ACCOUNT}{service_account}");
        let trust_domain_end = SCHEME.len() + trust_domain.as_str().len();
        let namespace_end = trust_domain_end + NAMESPACE.len() + namespace.len();
        Ok(Self {
            text: text.into(),
            // Both are bounded by the longest trust domain, label and account.
            trust_domain_end: trust_domain_end as u16,
            namespace_end: namespace_end as u16,
        })
    }

    /// The one id that a control plane has, and that nothing else can get.
    pub fn control_plane(trust_domain: &TrustDomain) -> Self {
        Self::new(trust_domain, CONTROL_PLANE.0, CONTROL_PLANE.1)
            .expect("invariant: both parts are labels")
    }

    pub fn is_control_plane(&self) -> bool {
        is_control_plane(self.namespace(), self.service_account())
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }

    pub fn trust_domain(&self) -> &str {
        &self.text[SCHEME.len()..usize::from(self.trust_domain_end)]
    }

    pub fn namespace(&self) -> &str {
        let start = usize::from(self.trust_domain_end) + NAMESPACE.len();
        &self.text[start..usize::from(self.namespace_end)]
    }

    pub fn service_account(&self) -> &str {
        &self.text[usize::from(self.namespace_end) + ACCOUNT.len()..]
    }

    /// `namespace/service-account`, as labels and policies spell it.
    pub fn workload(&self) -> String {
        format!("{}/{}", self.namespace(), self.service_account())
    }
}

impl FromStr for SpiffeId {
    type Err = FieldError;

    fn from_str(text: &str) -> Result<Self, FieldError> {
        let wrong = || {
            FieldError::here(format!(
                "{text:?} is not of the form {SCHEME}<trust domain>{NAMESPACE}<namespace>{ACCOUNT}\
                 <service account>"
            ))
        };
        if text.len() > MAX_ID {
            return Err(wrong());
        }
        let rest = text.strip_prefix(SCHEME).ok_or_else(wrong)?;
        let (trust_domain, path) = rest.split_at(rest.find('/').ok_or_else(wrong)?);
        let path = path.strip_prefix(NAMESPACE).ok_or_else(wrong)?;
        let (namespace, account) = path.split_once(ACCOUNT).ok_or_else(wrong)?;
        Self::new(&trust_domain.parse()?, namespace, account)
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Whether a namespace and a service account are those of the control plane.
pub fn is_control_plane(namespace: &str, service_account: &str) -> bool {
    (namespace, service_account) == CONTROL_PLANE
}

/// A DNS subdomain: labels with dots between.
fn check_account(text: &str) -> Result<(), FieldError> {
    if text.len() > MAX_SERVICE_ACCOUNT {
        return Err(FieldError::here(format!("longer than {MAX_SERVICE_ACCOUNT} characters")));
    }
    text.split('.').try_for_each(check_label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_what_its_parts_say() {
        let id: SpiffeId = "spiffe://mesh.local/ns/bank/sa/orders".parse().unwrap();
        let parts = (id.trust_domain(), id.namespace(), id.service_account());
        assert_eq!(parts, ("mesh.local", "bank", "orders"));
        assert_eq!(id.workload(), "bank/orders");
        assert!(!id.is_control_plane());
        let plane = SpiffeId::control_plane(&"mesh.local".parse().unwrap());
        assert_eq!(plane.as_str(), "spiffe://mesh.local/ns/outrigger-system/sa/control-plane");
        assert!(plane.is_control_plane());
        assert_eq!(id, SpiffeId::new(&"mesh.local".parse().unwrap(), "bank", "orders").unwrap());
    }

    #[test]
    fn nothing_but_the_exact_form_is_an_id() {
        for text in [
            "",
            "spiffe://",
            "spiffe:///ns/bank/sa/orders",
            "spiffe://mesh.local",
            "spiffe://mesh.local/",
            "spiffe://mesh.local/ns/bank",
            "spiffe://mesh.local/ns/bank/sa/",
            "spiffe://mesh.local/ns//sa/orders",
            "spiffe://mesh.local/ns/bank/sa/orders/",
            "spiffe://mesh.local/ns/bank/sa/orders/x",
            "spiffe://mesh.local//ns/bank/sa/orders",
            "spiffe://mesh.local/sa/orders/ns/bank",
            "spiffe://mesh.local/ns/bank/sa/or%64ers",
            "spiffe://mesh.local/ns/bank/sa/*",
            "spiffe://mesh.local/ns/*/sa/orders",
            "spiffe://*/ns/bank/sa/orders",
            "spiffe://mesh.local/ns/bank/sa/orders\0",
            "spiffe://mesh.local/ns/bank\0/sa/orders",
            "spiffe://mesh.local/ns/Bank/sa/orders",
            "spiffe://Mesh.local/ns/bank/sa/orders",
            "SPIFFE://mesh.local/ns/bank/sa/orders",
            "spiffe://mesh.local:443/ns/bank/sa/orders",
            "spiffe://user@mesh.local/ns/bank/sa/orders",
            "spiffe://mesh.local/ns/bank/sa/orders?x",
            "spiffe://mesh.local/ns/bank/sa/orders#x",
            "spiffe://mesh.local/ns/../sa/orders",
            "spiffe://mesh.local/ns/bank/sa/.",
            "https://mesh.local/ns/bank/sa/orders",
            " spiffe://mesh.local/ns/bank/sa/orders",
        ] {
            assert!(text.parse::<SpiffeId>().is_err(), "{text:?}");
        }
    }
}
