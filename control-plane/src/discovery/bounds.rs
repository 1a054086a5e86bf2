//! Whether everything that a proxy sends on a discovery stream is within its bounds.

use outrigger_core::bounds;
use outrigger_core::error::FieldError;
use outrigger_proto::wire::{DeltaDiscoveryRequest, Locality, Node};
use tonic::Status;

/// Checks a request before anything of it is kept. A name that is too long is no error: it is answered as
/// one that nobody knows, and so are names that are too many.
pub(super) fn check(request: &DeltaDiscoveryRequest) -> Result<(), Status> {
    checked(request).map_err(|error| Status::invalid_argument(error.to_string()))
}

fn checked(request: &DeltaDiscoveryRequest) -> Result<(), FieldError> {
    bounds::text(&request.type_url, bounds::TYPE_URL).map_err(|e| e.under("type_url"))?;
    bounds::text(&request.response_nonce, bounds::NONCE).map_err(|e| e.under("response_nonce"))?;
    for (field, len, most) in [
        ("resource_names_subscribe", request.resource_names_subscribe.len(), bounds::NAMES),
        ("resource_names_unsubscribe", request.resource_names_unsubscribe.len(), bounds::NAMES),
        ("initial_resource_versions", request.initial_resource_versions.len(), bounds::VERSIONS),
    ] {
        bounds::items(len, most).map_err(|e| e.under(field))?;
    }
    for version in request.initial_resource_versions.values() {
        let bounded = bounds::text(version, bounds::VERSION);
        bounded.map_err(|e| e.under("initial_resource_versions"))?;
    }
    if let Some(detail) = &request.error_detail {
        let bounded = bounds::items(detail.details.len(), bounds::DETAILS);
        bounded.map_err(|e| e.under("error_detail.details"))?;
    }
    request.node.as_ref().map_or(Ok(()), |node| self::node(node).map_err(|e| e.under("node")))
}

fn node(node: &Node) -> Result<(), FieldError> {
    let said = node.metadata.as_ref().map_or(0, |metadata| metadata.fields.len());
    bounds::items(said, bounds::DETAILS).map_err(|e| e.under("metadata"))?;
    let nowhere = Locality::default();
    let locality = node.locality.as_ref().unwrap_or(&nowhere);
    for (field, value, most) in [
        ("id", &node.id, bounds::NAME),
        ("cluster", &node.cluster, bounds::NAME),
        ("locality.region", &locality.region, bounds::ZONE),
        ("locality.zone", &locality.zone, bounds::ZONE),
        ("locality.sub_zone", &locality.sub_zone, bounds::ZONE),
        ("user_agent_name", &node.user_agent_name, bounds::VERSION),
        ("user_agent_version", &node.user_agent_version, bounds::VERSION),
    ] {
        bounds::text(value, most).map_err(|e| e.under(field))?;
    }
    Ok(())
}
