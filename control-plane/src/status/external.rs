//! Status of ExternalServices: whether they are what their callers reach, and where.

use super::ObjectStatus;
use crate::index::Index;
use crate::object::{External, ObjectId, ServiceId};

pub(super) fn status(index: &Index, id: &ObjectId) -> Option<ObjectStatus> {
    let external = index.external(&id.namespace, &id.name)?;
    Some(ObjectStatus {
        accepted: shadowed(index, external).into_iter().collect::<Vec<_>>().into(),
        resolved_refs: not_found(index, external).into_iter().collect::<Vec<_>>().into(),
        ..ObjectStatus::of_nothing(id)
    })
}

/// Those that nobody reaches.
pub(super) fn unresolved(index: &Index) -> impl Iterator<Item = (ObjectId, String)> + '_ {
    index.externals().filter_map(|external| {
        let problem = shadowed(index, external)?;
        Some((external.service().object(), problem))
    })
}

/// Who else has its host and port.
fn shadowed(index: &Index, external: &External) -> Option<String> {
    let (namespace, dialled) = (&external.namespace, &external.dialled);
    let meant = index.resolve(&dialled.to_string(), namespace).target?.name;
    let meant = ServiceId::new(meant.namespace, meant.service);
    let other = (meant != external.service()).then(|| meant.describe())?;
    Some(format!("spec.host: {dialled} is already {other}, which callers reach instead"))
}

fn not_found(index: &Index, external: &External) -> Option<String> {
    let problem = index.look_up(external)?.problem.as_ref()?;
    Some(format!("spec.host: cannot be looked up: {problem}"))
}
