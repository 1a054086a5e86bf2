//! What a join token allows and binds beyond namespace and account, and how a certificate carries it.
//!
//! A registration is compared with the grant of whatever proves who registers: the token itself or, in a
//! mesh with identities, the certificate that was issued for it. It stands in the certificate, so that it
//! holds whatever the certificate's owner calls itself, and whatever becomes of the ledger.

use std::collections::BTreeMap;

use outrigger_core::bounds;
use outrigger_core::error::FieldError;
use outrigger_core::name::check_subdomain;
use serde::{Deserialize, Serialize};

use crate::object::Workload;

/// Of the certificate extension that holds a grant; below 2.25 nobody else's (ITU-T X.667).
pub const OID: [u64; 3] = [2, 25, 6_018_725_713_982_245_731];
/// DER tags and the first byte of a length of two bytes (X.690 section 8.1).
const UTF8_STRING: u8 = 0x0c;
const TWO_BYTES: u8 = 0x82;

/// Nothing set: any name and any labels, from one's own address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// The registered address need not be the one that the registration comes from.
    #[serde(default)]
    pub any_address: bool,
    /// Not empty: the workload has exactly these labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Not empty: the workload has one of these names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub workloads: Vec<String>,
    /// The uid of the pod that it was given to: a certificate is renewed for that one only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
}

impl Grant {
    /// Whether a token may be issued with it.
    pub fn validate(&self) -> Result<(), FieldError> {
        for name in &self.workloads {
            check_subdomain(name).map_err(|e| e.under("workload"))?;
        }
        for (key, value) in &self.labels {
            bounds::text(key, bounds::LABEL_KEY).map_err(|e| e.under("label"))?;
            bounds::text(value, bounds::LABEL_VALUE).map_err(|e| e.under("label"))?;
        }
        let bytes = serde_json::to_vec(self).map_or(usize::MAX, |json| json.len());
        bounds::length(bytes, bounds::GRANT)
    }

    /// Whether a workload is one that may be registered. `what` is the word for what carries the grant.
    pub fn check(&self, workload: &Workload, what: &str) -> Result<(), FieldError> {
        if !self.workloads.is_empty() && !self.workloads.contains(&workload.name) {
            let bound = self.workloads.join(", ");
            let problem = format!("the {what} is bound to the workload {bound}");
            return Err(FieldError::at("name", problem));
        }
        if self.labels.is_empty() || self.labels == workload.labels {
            return Ok(());
        }
        // Others would join Services that the token is not for.
        let pairs: Vec<String> = self.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
        let problem = format!("the {what} is bound to exactly {}", pairs.join(", "));
        Err(FieldError::at("labels", problem))
    }

    /// Whether a certificate may be issued for this node, `namespace.workload`.
    pub fn check_node(&self, node: &str) -> Result<(), FieldError> {
        let name = node.split_once('.').map_or(node, |(_, name)| name);
        if self.workloads.is_empty() || self.workloads.iter().any(|bound| bound == name) {
            return Ok(());
        }
        let bound = self.workloads.join(", ");
        Err(FieldError::at("node", format!("the join token is bound to the workload {bound}")))
    }

    /// The content of the extension: a UTF8String of JSON; none where nothing is set.
    pub fn to_extension(&self) -> Option<Vec<u8>> {
        if *self == Self::default() {
            return None;
        }
        let json = serde_json::to_vec(self).ok()?;
        let len = u16::try_from(json.len()).ok()?.to_be_bytes();
        Some([&[UTF8_STRING, TWO_BYTES, len[0], len[1]][..], &json].concat())
    }

    /// Reads what [`Self::to_extension`] made.
    pub fn from_extension(content: &[u8]) -> Option<Self> {
        let json = match content {
            [UTF8_STRING, TWO_BYTES, high, low, json @ ..]
                if json.len() == usize::from(u16::from_be_bytes([*high, *low])) =>
            {
                json
            }
            _ => return None,
        };
        serde_json::from_slice(json).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn a_certificate_carries_all_of_it_and_nothing_damaged_is_read() {
        let grant = Grant {
            any_address: true,
            labels: labels(&[("app", "orders")]),
            workloads: vec!["orders-1".to_owned()],
            pod: None,
        };
        let content = grant.to_extension().unwrap();
        assert_eq!(Grant::from_extension(&content), Some(grant));
        assert_eq!(Grant::default().to_extension(), None);
        for cut in 0..content.len() {
            assert_eq!(Grant::from_extension(&content[..cut]), None, "{cut}");
        }
    }

    #[test]
    fn what_a_token_binds_has_bounds() {
        let named = |name: &str| Grant { workloads: vec![name.to_owned()], ..Grant::default() };
        assert!(named("orders-1").validate().is_ok());
        assert!(named("Orders").validate().is_err());
        let long = Grant { labels: labels(&[("app", &"x".repeat(64))]), ..Grant::default() };
        assert!(long.validate().is_err());
        let many = (0..100).map(|i| format!("orders-{i}-with-a-long-name")).collect();
        assert!(Grant { workloads: many, ..Grant::default() }.validate().is_err());
    }
}
