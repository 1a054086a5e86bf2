//! What the control plane does in a Kubernetes cluster beside reading objects from its API: it has the tokens of
//! pods reviewed ([`review`]), writes the status of objects ([`writer`]), and brings the definitions of our kinds
//! ([`definitions`]).

pub mod definitions;
pub mod pods;
pub mod review;
pub mod writer;
