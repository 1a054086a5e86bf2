//! Where objects come from: a folder of [`manifests`], or the API of a Kubernetes cluster ([`kubernetes`]).
//!
//! Both read objects in the same way ([`mod@read`]) and hand them to the index as [`event`]s.

mod bounds;
mod closed;
pub mod event;
pub mod kubernetes;
pub mod manifests;
mod plain;
pub mod read;
