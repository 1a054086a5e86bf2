//! An EndpointSlice: addresses that serve a Service.

use std::net::IpAddr;

use super::ServiceId;

#[derive(Clone, Debug, PartialEq)]
pub struct EndpointSlice {
    pub namespace: String,
    pub name: String,
    /// Its `kubernetes.io/service-name` label.
    pub service: ServiceId,
    /// Name (empty when it has none) and number.
    pub ports: Vec<(String, u16)>,
    pub endpoints: Vec<SliceEndpoint>,
}

/// What a slice says of an endpoint, the best first: `ready`, and else `serving` and `terminating` together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Readiness {
    Ready,
    /// Its pod is being deleted and still answers.
    Terminating,
    Unready,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SliceEndpoint {
    pub address: IpAddr,
    /// What identifies it across changes of its address: a pod's uid; a hand-written one has only its address.
    pub uid: String,
    pub readiness: Readiness,
    pub zone: Option<String>,
    pub hostname: Option<String>,
    pub node: Option<String>,
}
