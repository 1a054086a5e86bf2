//! Gateway API `ReferenceGrant`: which routes of other namespaces, and fallbacks of TrafficPolicies, may
//! send to Services here.

use gateway_api::experimental::referencegrants as api;

use super::{Report, identity};
use crate::object::{Kind, ReferenceGrant};

const GATEWAY_GROUP: &str = "gateway.networking.k8s.io";
const OWN_GROUP: &str = "outrigger.dev";

pub fn translate(raw: &api::ReferenceGrant, report: &mut Report) -> Option<ReferenceGrant> {
    let (namespace, name) = identity(&raw.metadata, report);
    let from = raw.spec.from.iter().filter_map(|from| {
        let version = match from.group.as_str() {
            GATEWAY_GROUP => "v1",
            OWN_GROUP => "v1alpha1",
            _ => return None,
        };
        let kind = Kind::of(&format!("{}/{version}", from.group), &from.kind)?;
        Some((kind, from.namespace.clone()))
    });
    let to = raw.spec.to.iter().filter(|to| to.group.is_empty() && to.kind == "Service");
    Some(ReferenceGrant {
        namespace,
        name,
        from: from.collect(),
        to: to.map(|to| to.name.clone().filter(|name| !name.is_empty())).collect(),
    })
}
