//! The control plane in a Kubernetes cluster: what it takes from the API, what it writes there, and what
//! happens while the API is away.
//!
//! The suite runs against the small API server of this crate, and against a real one where
//! OUTRIGGER_TEST_KUBECONFIG names the kubeconfig of a cluster that may be written to: the Gateway API's
//! definitions must be there, and a controller manager for the tests of tokens. What only one of both can do says so.

mod chart;
mod cluster;
mod identity;
mod issuer;
mod permissions;
mod pods;
mod registration;
mod source;
mod status;
mod tap;
mod webhook;
