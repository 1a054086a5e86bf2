//! Outrigger's own kinds of objects, API group `outrigger.dev/v1alpha1`.
//!
//! Everything else is read with the types of Kubernetes and of the Gateway API; translation of all
//! of them is in [`crate::translate`]. Comments on fields are what `kubectl explain` says; bounds and defaults
//! are added to them from the tables ([`schema`]), and `crate::crds` makes CRDs and the reference of it all.

mod access_policy;
mod access_token;
pub mod defaults;
mod external_service;
mod external_workload;
mod fallback;
mod fault_injection;
mod health_check;
pub mod schema;
mod server_policy;
mod target_ref;
mod traffic_policy;
mod traffic_protection;

pub use access_policy::*;
pub use access_token::*;
pub use external_service::*;
pub use external_workload::*;
pub use fallback::*;
pub use fault_injection::*;
pub use health_check::*;
pub use server_policy::*;
pub use target_ref::TargetRef;
pub use traffic_policy::*;
pub use traffic_protection::*;
