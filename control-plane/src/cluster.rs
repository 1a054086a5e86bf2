//! What the control plane does in a Kubernetes cluster beside reading objects from its API: it has the tokens of
//! pods reviewed ([`review`]) and writes the status of objects ([`writer`]).

pub mod review;
pub mod writer;
