//! Status of AccessPolicies: whether the keys that they name are to be had.

use super::ObjectStatus;
use crate::index::Index;
use crate::object::{KeySource, ObjectId, Policy};

pub(super) fn status(index: &Index, id: &ObjectId) -> Option<ObjectStatus> {
    let policy = index.access_policy(id)?;
    let unresolved: Vec<String> = without_keys(index, policy).collect();
    Some(ObjectStatus { resolved_refs: unresolved.into(), ..ObjectStatus::of_nothing(id) })
}

/// Every ExternalService with keys that does not exist.
pub(super) fn unresolved(index: &Index) -> impl Iterator<Item = (ObjectId, String)> + '_ {
    index
        .policies()
        .flat_map(|policy| without_keys(index, policy).map(move |problem| (policy.id(), problem)))
}

fn without_keys<'a>(index: &'a Index, policy: &'a Policy) -> impl Iterator<Item = String> + 'a {
    policy.issuers.iter().enumerate().filter_map(|(i, issuer)| {
        let KeySource::External { namespace, name, .. } = &issuer.source else { return None };
        index.external(namespace, name).is_none().then(|| {
            let path = format!("spec.jwt[{i}].jwks.externalService.name");
            format!("{path}: there is no ExternalService {namespace}/{name}")
        })
    })
}
