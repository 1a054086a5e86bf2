//! Status of ExternalServices: whether they are what their callers reach, where, and how far they have
//! come.

use std::collections::BTreeMap;

use super::{Programmed, Status};
use crate::index::Index;
use crate::object::{External, Kind, ObjectId, ServiceId};
use crate::publish::View;

pub(super) fn externals<'a>(
    view: &'a View<'a>,
    programmed: &'a BTreeMap<ServiceId, Programmed>,
) -> impl Iterator<Item = Status> + 'a {
    let index = &view.index;
    index.externals().map(move |external| Status {
        object: id(external),
        accepted: shadowed(index, external).into_iter().collect::<Vec<_>>().into(),
        resolved_refs: not_found(index, external).into_iter().collect::<Vec<_>>().into(),
        programmed: programmed.get(&external.service()).cloned().unwrap_or_default(),
        overridden: Vec::new(),
        stopped: None,
    })
}

/// Those that nobody reaches.
pub(super) fn unresolved(index: &Index) -> impl Iterator<Item = String> + '_ {
    index.externals().filter_map(|external| {
        let problem = shadowed(index, external)?;
        Some(format!("{}: {problem}", id(external)))
    })
}

/// Who else has its host and port.
fn shadowed(index: &Index, external: &External) -> Option<String> {
    let (namespace, dialled) = (&external.namespace, &external.dialled);
    let meant = index.resolve(&dialled.to_string(), namespace).target?.name;
    let meant = ServiceId::new(meant.namespace, meant.service);
    let other = (meant != external.service()).then(|| meant.describe())?;
    Some(format!("spec.host: {dialled} is {other}, and callers reach that"))
}

fn not_found(index: &Index, external: &External) -> Option<String> {
    let problem = index.look_up(external)?.problem.as_ref()?;
    Some(format!("spec.host: cannot be looked up: {problem}"))
}

fn id(external: &External) -> ObjectId {
    let (namespace, name) = (external.namespace.clone(), external.name.clone());
    ObjectId { kind: Kind::ExternalService, namespace, name }
}
