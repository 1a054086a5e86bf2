//! Outrigger's control plane: reads what people declare, and tells each proxy what it needs.
//!
//! A change travels [`source`] -> [`index`] -> [`translate`] -> `outrigger_core::config` ->
//! [`publish`] -> [`discovery`]. Workloads that register themselves enter at [`registration`],
//! those that need a certificate at [`identity`], which asks the authority in [`ca`]. Who is at the
//! other end of a connection is found out in [`connection`]; what there is to do in a Kubernetes cluster besides
//! is in [`cluster`], what its API server asks in [`admission`]. What outlives the process is in the
//! [`store`], which several replicas may share ([`replica`]). [`server`] puts the parts together.

pub mod admin;
pub mod admission;
pub mod analysis;
pub mod ca;
pub mod check;
pub mod cluster;
pub mod connection;
pub mod control;
pub mod crds;
pub mod discovery;
pub mod experiments;
pub mod grant;
pub mod graph;
pub mod identity;
pub mod index;
pub mod keys;
pub mod kinds;
pub mod lookup;

pub mod metrics;
pub mod namespaces;
pub mod object;
pub mod options;
pub mod problems;
pub mod publish;
pub mod registration;
pub mod replica;
pub mod server;
pub mod source;
pub mod status;
pub mod store;
mod sync;
pub mod tap;
pub mod token;
pub mod translate;
pub mod trust;
