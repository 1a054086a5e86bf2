//! [`MeshSettings`]: what holds for the whole mesh.

use outrigger_core::config::{MeshSettings, Unmatched};
use outrigger_core::error::FieldError;

use super::check_requires;
use crate::mesh;

pub fn to_wire(settings: &MeshSettings) -> mesh::MeshSettings {
    let unmatched = match settings.unmatched {
        Unmatched::Passthrough => mesh::Unmatched::Passthrough,
        Unmatched::Refuse => mesh::Unmatched::Refuse,
    };
    mesh::MeshSettings {
        requires: Vec::new(),
        cluster_domain: settings.cluster_domain.clone(),
        unmatched: unmatched.into(),
        max_endpoints: settings.max_endpoints,
        namespaces: settings.namespaces.clone(),
    }
}

pub fn from_wire(wire: &mesh::MeshSettings) -> Result<MeshSettings, FieldError> {
    check_requires(&wire.requires)?;
    if wire.cluster_domain.is_empty() {
        return Err(FieldError::at("cluster_domain", "is empty"));
    }
    if wire.max_endpoints == 0 {
        return Err(FieldError::at("max_endpoints", "must be at least 1"));
    }
    let unmatched = match mesh::Unmatched::try_from(wire.unmatched) {
        Ok(mesh::Unmatched::Passthrough) => Unmatched::Passthrough,
        Ok(mesh::Unmatched::Refuse) => Unmatched::Refuse,
        Ok(mesh::Unmatched::Unspecified) | Err(_) => {
            let problem = format!("{} is not a known value", wire.unmatched);
            return Err(FieldError::at("unmatched", problem));
        }
    };
    Ok(MeshSettings {
        cluster_domain: wire.cluster_domain.clone(),
        unmatched,
        max_endpoints: wire.max_endpoints,
        namespaces: wire.namespaces.clone(),
    })
}
