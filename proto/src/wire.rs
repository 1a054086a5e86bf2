//! The delta ADS transport: messages, type names, and an `Any` whose bytes are shared.

pub use crate::generated::envoy::config::core::v3::{ControlPlane, Locality, Node};
pub use crate::generated::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource,
    aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
    aggregated_discovery_service_server::{
        AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
    },
};
pub use crate::generated::google::rpc::Status;

use bytes::Bytes;
use prost::Message;

/// `google.protobuf.Any` whose value is reference counted, so that one encoding of a resource
/// serves every subscriber.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct Any {
    #[prost(string, tag = "1")]
    pub type_url: String,
    #[prost(bytes = "bytes", tag = "2")]
    pub value: Bytes,
}

pub const DESTINATION: &str = "type.googleapis.com/outrigger.mesh.v1.Destination";
pub const ENDPOINT: &str = "type.googleapis.com/outrigger.mesh.v1.Endpoint";
pub const INBOUND: &str = "type.googleapis.com/outrigger.mesh.v1.Inbound";
pub const MESH_SETTINGS: &str = "type.googleapis.com/outrigger.mesh.v1.MeshSettings";
pub const TRUST_BUNDLE: &str = "type.googleapis.com/outrigger.mesh.v1.TrustBundle";

/// Name of the one `TrustBundle` resource.
pub const TRUST_BUNDLE_NAME: &str = "trust";
/// Name of the one `MeshSettings` resource.
pub const MESH_SETTINGS_NAME: &str = "mesh";

/// The name of a part of the settings: the first one is [`MESH_SETTINGS_NAME`] and says everything, the
/// others add namespaces and come without being asked for.
pub fn settings_part(part: usize) -> String {
    match part {
        0 => MESH_SETTINGS_NAME.to_owned(),
        _ => format!("{MESH_SETTINGS_NAME}/{part}"),
    }
}

/// Key of [`Node::metadata`] that holds the proxy's namespace.
pub const NODE_NAMESPACE: &str = "namespace";

/// A proxy's responses stay below this many bytes.
pub const MAX_RESPONSE: usize = 1024 * 1024;
