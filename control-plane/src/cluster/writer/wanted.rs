//! The status that an object is to have, as the API has it.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition as Written, Time};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use super::CONTROLLER;
use crate::object::{Kind, ObjectId};
use crate::status::ObjectStatus;
use crate::status::conditions::{self, ObjectCondition};

/// The status that an object is to have.
pub(super) enum Wanted {
    Own(Vec<ObjectCondition>),
    Route(Arc<ObjectStatus>),
}

impl Wanted {
    /// Everything that it consists of, to be compared.
    pub(super) fn all(&self) -> Vec<Vec<ObjectCondition>> {
        match self {
            Self::Own(conditions) => vec![conditions.clone()],
            Self::Route(status) => {
                // What differs between parents follows from the problems.
                let positions = status.accepted.problems.iter().filter_map(|problem| {
                    problem.strip_prefix("spec.parentRefs[")?.split(']').next()?.parse().ok()
                });
                let positions: BTreeSet<usize> = positions.chain([usize::MAX]).collect();
                positions.into_iter().map(|at| conditions::at_parent(status, at)).collect()
            }
        }
    }
}

pub(super) fn wanted(id: &ObjectId, status: &Arc<ObjectStatus>) -> Wanted {
    match id.kind {
        Kind::HttpRoute | Kind::GrpcRoute | Kind::TlsRoute | Kind::TcpRoute => {
            Wanted::Route(status.clone())
        }
        kind => {
            let has_progress = matches!(
                kind,
                Kind::AccessPolicy
                    | Kind::TrafficPolicy
                    | Kind::ServerPolicy
                    | Kind::FaultInjection
                    | Kind::ExternalService
            );
            Wanted::Own(conditions::of(status, has_progress))
        }
    }
}

/// Conditions as they are written. The time is that of the last change of `status`.
pub(super) fn stamped(
    new: &[ObjectCondition],
    old: &Value,
    generation: i64,
    now: Timestamp,
) -> Vec<Written> {
    let old: Vec<Written> = old
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|condition| serde_json::from_value(condition.clone()).ok())
        .collect();
    let stamped = new.iter().map(|condition| {
        let before = old.iter().find(|old| old.type_ == condition.kind);
        let before = before.filter(|old| old.status == condition.status);
        Written {
            type_: condition.kind.to_owned(),
            status: condition.status.to_owned(),
            reason: condition.reason.to_owned(),
            message: condition.message.clone(),
            observed_generation: Some(generation),
            last_transition_time: before
                .map_or(Time(whole(now)), |old| old.last_transition_time.clone()),
        }
    });
    stamped.collect()
}

/// Times of the API have whole seconds.
fn whole(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

pub(super) fn same(new: &[Written], old: &Value) -> bool {
    let new = serde_json::to_value(new).unwrap_or_default();
    let sorted = |value: &Value| {
        let mut all: Vec<String> =
            value.as_array().into_iter().flatten().map(Value::to_string).collect();
        all.sort();
        all
    };
    sorted(&new) == sorted(old)
}

/// The entries of a route's status: other controllers' as they are, and ours anew.
pub(super) fn parents(
    status: &ObjectStatus,
    refs: &Value,
    before: &Value,
    stamped: impl Fn(&[ObjectCondition], &Value) -> Vec<Written>,
) -> Value {
    let before = before.as_array().map(Vec::as_slice).unwrap_or_default();
    let is_ours = |entry: &&Value| entry["controllerName"] == CONTROLLER;
    let mut entries: Vec<Value> = before.iter().filter(|entry| !is_ours(entry)).cloned().collect();
    for (position, parent) in refs.as_array().into_iter().flatten().enumerate() {
        let (group, kind) = (parent["group"].as_str(), parent["kind"].as_str());
        if kind != Some("Service") || !matches!(group, Some("" | "core")) {
            continue;
        }
        let old = before.iter().filter(is_ours).find(|entry| entry["parentRef"] == *parent);
        let old = old.map_or(&Value::Null, |entry| &entry["conditions"]);
        let conditions = stamped(&conditions::at_parent(status, position), old);
        entries.push(json!({
            "parentRef": parent,
            "controllerName": CONTROLLER,
            "conditions": conditions,
        }));
    }
    Value::Array(entries)
}
