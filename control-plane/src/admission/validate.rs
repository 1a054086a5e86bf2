//! What is wrong with an object that is about to be stored.

use serde_json::Value;

use super::Webhook;
use super::review::{AdmissionVerdict, Request};
use crate::index::Index;
use crate::object::{Kind, Object, ObjectId};
use crate::problems::Severity;
use crate::source::read;
use crate::status;

/// Refuses what would not be put in force, and warns of what would have no effect or not the one that was meant.
pub(super) fn review(webhook: &Webhook, request: &Request) -> AdmissionVerdict {
    let Some(kind) = Kind::of(&request.kind.api_version(), &request.kind.kind) else {
        return AdmissionVerdict::allowed();
    };
    if request.object.is_null() || is_being_deleted(&request.object) {
        return AdmissionVerdict::allowed();
    }
    let object = named(&request.object);
    let reading = read::read(kind, &object, false, webhook.local);
    let of = |severity: Severity| {
        let problems = reading.problems.iter().filter(move |(of, _)| *of == severity);
        problems.map(|(_, problem)| problem)
    };
    let mut warnings: Vec<String> = of(Severity::Warning).map(ToString::to_string).collect();
    let errors: Vec<String> = of(Severity::Error).map(ToString::to_string).collect();
    if errors.is_empty() {
        if let (Some(id), Some(object)) = (&reading.id, reading.object) {
            warnings.extend(once_in_force(&webhook.publisher.view().index, id, object));
        }
        return AdmissionVerdict { allowed: true, warnings, ..AdmissionVerdict::default() };
    }
    // Labels, annotations and finalizers can be changed of what has been there since before.
    if request.object["spec"] == request.old_object["spec"] && !request.old_object.is_null() {
        warnings.extend(errors);
        return AdmissionVerdict { allowed: true, warnings, ..AdmissionVerdict::default() };
    }
    let causes = of(Severity::Error).map(|error| (error.path.clone(), error.problem.clone()));
    let message = errors.join("; ");
    AdmissionVerdict { message, causes: causes.collect(), warnings, ..AdmissionVerdict::default() }
}

fn is_being_deleted(object: &Value) -> bool {
    !object["metadata"]["deletionTimestamp"].is_null()
}

/// An object whose name is still to be made up has one.
fn named(object: &Value) -> Value {
    let mut object = object.clone();
    let prefix = object["metadata"]["generateName"].as_str().map(str::to_owned);
    if let Some(prefix) = prefix.filter(|_| object["metadata"]["name"].as_str().is_none()) {
        object["metadata"]["name"] = format!("{prefix}x").into();
    }
    object
}

/// What its status would say beside the objects that are there now.
fn once_in_force(index: &Index, id: &ObjectId, object: Object) -> Vec<String> {
    // A copy shares everything with the original.
    let mut index = index.clone();
    index.apply(object);
    let Some(status) = status::in_force(&index, id) else { return Vec::new() };
    let problems = status.accepted.problems.into_iter().chain(status.resolved_refs.problems);
    problems.chain(status.overridden).collect()
}
