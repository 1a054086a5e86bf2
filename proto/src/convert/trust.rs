//! [`TrustBundle`]: the roots that the mesh trusts.

use outrigger_core::config::TrustBundle;
use outrigger_core::error::FieldError;

use super::{check_requires, parsed};
use crate::mesh;

pub fn to_wire(bundle: &TrustBundle) -> mesh::TrustBundle {
    mesh::TrustBundle {
        requires: Vec::new(),
        trust_domain: bundle.trust_domain.to_string(),
        roots: bundle.roots.iter().map(|root| root.clone().into()).collect(),
        issuing_root: bundle.issuing_root.to_vec().into(),
    }
}

pub fn from_wire(wire: &mesh::TrustBundle) -> Result<TrustBundle, FieldError> {
    check_requires(&wire.requires)?;
    if wire.roots.is_empty() {
        return Err(FieldError::at("roots", "is empty: nobody could be trusted"));
    }
    let issuing_root = wire.issuing_root.as_ref().try_into();
    Ok(TrustBundle {
        trust_domain: parsed("trust_domain", &wire.trust_domain)?,
        roots: wire.roots.iter().map(|root| root.to_vec()).collect(),
        issuing_root: issuing_root
            .map_err(|_| FieldError::at("issuing_root", "is not a SHA-256 hash"))?,
    })
}
