//! Gateway API `ReferenceGrant`: which routes of other namespaces may send to Services here.

use gateway_api::experimental::referencegrants as api;

use super::{Report, identity};
use crate::object::{Kind, ReferenceGrant};

const GATEWAY_GROUP: &str = "gateway.networking.k8s.io";

pub fn translate(raw: &api::ReferenceGrant, report: &mut Report) -> Option<ReferenceGrant> {
    let (namespace, name) = identity(&raw.metadata, report);
    let from = raw.spec.from.iter().filter_map(|from| {
        let kind = Kind::of(&format!("{GATEWAY_GROUP}/v1"), &from.kind)?;
        (from.group == GATEWAY_GROUP).then(|| (kind, from.namespace.clone()))
    });
    let to = raw.spec.to.iter().filter(|to| to.group.is_empty() && to.kind == "Service");
    Some(ReferenceGrant {
        namespace,
        name,
        from: from.collect(),
        to: to.map(|to| to.name.clone().filter(|name| !name.is_empty())).collect(),
    })
}
