//! Whether the mesh takes this workload.

use arc_swap::ArcSwapOption;

/// What the control plane thinks of this workload.
#[derive(Debug, Default)]
pub struct RegistrationState {
    /// Why it refuses it; none while it does not.
    pub(crate) refused: ArcSwapOption<String>,
}

impl RegistrationState {
    /// Why the proxy is not ready, if that is why.
    pub fn problem(&self) -> Option<String> {
        let refused = self.refused.load();
        refused.as_ref().map(|why| format!("the control plane refuses this workload: {why}"))
    }
}
