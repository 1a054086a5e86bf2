//! Who has proved to call.

use http::HeaderValue;
use outrigger_core::balance::hash;
use outrigger_core::identity::SpiffeId;

use crate::observe::metrics::{HeldLabel, Metrics};
use crate::tls::handshake::Proof;

/// A caller that has proved who it is.
#[derive(Debug)]
pub struct MeshCaller {
    pub proof: Proof,
    /// `namespace/service-account`, as metrics name it.
    pub label: HeldLabel,
    /// A hash of the identity.
    pub key: u64,
    /// For the app, where it is to be told.
    pub forwarded: Option<HeaderValue>,
}

impl MeshCaller {
    /// `own`: the server's id, where the app is to be told.
    pub fn new(proof: Proof, metrics: &Metrics, own: Option<&SpiffeId>) -> Self {
        let label = metrics.label(&proof.id.workload());
        let forwarded =
            own.and_then(|own| HeaderValue::try_from(format!("By={own};URI={}", proof.id)).ok());
        let key = hash(proof.id.to_string().as_bytes());
        Self { proof, label, key, forwarded }
    }
}
