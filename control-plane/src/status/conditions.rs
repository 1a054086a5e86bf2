//! The status of an object as Kubernetes has it: conditions, by the rules of its API conventions and, for
//! routes, of the Gateway API.

use std::time::{Duration, UNIX_EPOCH};

use super::ObjectStatus;
use crate::publish::Programmed;

/// Bytes of a message, from the schema of conditions.
const MAX_MESSAGE: usize = 32_768;

/// One condition, without the times and generations that depend on what was written before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectCondition {
    pub kind: &'static str,
    /// `True`, `False` or `Unknown`.
    pub status: &'static str,
    /// One word for programs.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

impl ObjectCondition {
    fn new(
        kind: &'static str,
        status: &'static str,
        reason: &'static str,
        message: String,
    ) -> Self {
        Self { kind, status, reason, message: shortened(message) }
    }
}

/// Of an object of our own kinds. `has_progress`: it is of a kind of which it is known how far proxies have come.
pub fn of(status: &ObjectStatus, has_progress: bool) -> Vec<ObjectCondition> {
    let all = |_: &str| true;
    let mut conditions = vec![accepted(status, all), resolved(status)];
    if has_progress {
        conditions.push(programmed(&status.programmed));
    }
    if !status.overridden.is_empty() {
        let message = status.overridden.join("; ");
        conditions.push(ObjectCondition::new("Overridden", "True", "MoreSpecificPolicy", message));
    }
    if let Some(stopped) = &status.stopped {
        let since =
            k8s_openapi::jiff::Timestamp::try_from(UNIX_EPOCH + Duration::from_secs(stopped.since));
        let since = since.map_or_else(|_| String::new(), |since| format!(" since {since}"));
        let message = format!("stopped by {}{since}: {}", stopped.by, stopped.why);
        conditions.push(ObjectCondition::new("Stopped", "True", "GuardStopped", message));
    }
    conditions
}

/// Of a route at one of its parents.
pub fn at_parent(status: &ObjectStatus, position: usize) -> Vec<ObjectCondition> {
    let parent = format!("spec.parentRefs[{position}]");
    // What is wrong at another parent is of no concern to this one.
    let here =
        |problem: &str| !problem.starts_with("spec.parentRefs[") || problem.starts_with(&parent);
    vec![accepted(status, here), resolved(status), programmed(&status.programmed)]
}

fn accepted(status: &ObjectStatus, concerns: impl Fn(&str) -> bool) -> ObjectCondition {
    let problems = status.accepted.problems.iter().filter(|problem| concerns(problem));
    let problems: Vec<&str> = problems.map(String::as_str).collect();
    if problems.is_empty() {
        return ObjectCondition::new("Accepted", "True", "Accepted", "is in force".to_owned());
    }
    let is_detached = |problem: &&str| {
        problem.starts_with("spec.parentRefs[")
            && (problem.contains("there is no Service") || problem.contains("has no port"))
    };
    let reason = if problems.iter().all(|problem| problem.contains(": Conflicted: ")) {
        "Conflicted"
    } else if problems.iter().all(is_detached) {
        "NoMatchingParent"
    } else {
        "Invalid"
    };
    ObjectCondition::new("Accepted", "False", reason, problems.join("; "))
}

fn resolved(status: &ObjectStatus) -> ObjectCondition {
    let problems = &status.resolved_refs.problems;
    if status.resolved_refs.status {
        let message = "all references resolve".to_owned();
        return ObjectCondition::new("ResolvedRefs", "True", "ResolvedRefs", message);
    }
    let all = |word: &str| problems.iter().all(|problem| problem.contains(word));
    let reason = if all("ReferenceGrant") {
        "RefNotPermitted"
    } else if all("is not supported") {
        "InvalidKind"
    } else if all("cannot be looked up") {
        "LookupFailed"
    } else if all("targetRefs[") {
        "TargetNotFound"
    } else {
        "BackendNotFound"
    };
    ObjectCondition::new("ResolvedRefs", "False", reason, problems.join("; "))
}

fn programmed(progress: &Programmed) -> ObjectCondition {
    let Programmed { acknowledged, proxies, refused } = progress;
    let on = format!("on {acknowledged} of {proxies} proxies");
    if let Some(worst) = refused.first() {
        let message = format!("{on}; refused: {worst}");
        return ObjectCondition::new("Programmed", "False", "Refused", message);
    }
    match (*acknowledged, *proxies) {
        (_, 0) => {
            let message = "no connected proxy uses it".to_owned();
            ObjectCondition::new("Programmed", "Unknown", "NoProxies", message)
        }
        (acknowledged, proxies) if acknowledged < proxies => {
            ObjectCondition::new("Programmed", "False", "Pending", on)
        }
        _ => ObjectCondition::new("Programmed", "True", "Programmed", on),
    }
}

fn shortened(mut message: String) -> String {
    if message.len() > MAX_MESSAGE {
        let end = message.floor_char_boundary(MAX_MESSAGE - 3);
        message.truncate(end);
        message.push_str("...");
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::{Kind, ObjectId};

    fn status() -> ObjectStatus {
        ObjectStatus::of_nothing(&ObjectId {
            kind: Kind::HttpRoute,
            namespace: "bank".to_owned(),
            name: "canary".to_owned(),
        })
    }

    fn short(conditions: &[ObjectCondition]) -> Vec<String> {
        conditions.iter().map(|c| format!("{}={} {}", c.kind, c.status, c.reason)).collect()
    }

    #[test]
    fn a_parent_is_told_of_its_own_problems_only() {
        let problems = vec![
            "spec.parentRefs[0].name: there is no Service bank/none".to_owned(),
            "spec.parentRefs[1]: Conflicted: GRPCRoute bank/a is more specific".to_owned(),
        ];
        let status = ObjectStatus { accepted: problems.into(), ..status() };
        assert_eq!(short(&at_parent(&status, 0))[0], "Accepted=False NoMatchingParent");
        assert_eq!(short(&at_parent(&status, 1))[0], "Accepted=False Conflicted");
        assert_eq!(short(&at_parent(&status, 2))[0], "Accepted=True Accepted");
        let wrong = ObjectStatus { accepted: vec!["spec.rules: x".to_owned()].into(), ..status };
        assert_eq!(short(&at_parent(&wrong, 2))[0], "Accepted=False Invalid");
    }

    #[test]
    fn programmed_says_how_far_proxies_have_come() {
        let at = |acknowledged, proxies, refused: &[&str]| {
            let refused = refused.iter().map(ToString::to_string).collect();
            let condition = programmed(&Programmed { acknowledged, proxies, refused });
            format!("{} {}: {}", condition.status, condition.reason, condition.message)
        };
        assert_eq!(at(0, 0, &[]), "Unknown NoProxies: no connected proxy uses it");
        assert_eq!(at(2, 3, &[]), "False Pending: on 2 of 3 proxies");
        assert_eq!(at(3, 3, &[]), "True Programmed: on 3 of 3 proxies");
        assert_eq!(at(2, 3, &["b", "a"]), "False Refused: on 2 of 3 proxies; refused: a");
    }

    #[test]
    fn what_is_overridden_or_stopped_is_a_condition_of_its_own() {
        let stopped = crate::object::stopped::Stopped {
            version: String::new(),
            since: 0,
            by: "p1".to_owned(),
            why: "too many errors".to_owned(),
        };
        let overridden = vec!["retries: decided by TrafficPolicy bank/b".to_owned()];
        let status = ObjectStatus { overridden, stopped: Some(stopped), ..status() };
        let conditions = of(&status, false);
        assert_eq!(
            short(&conditions),
            [
                "Accepted=True Accepted",
                "ResolvedRefs=True ResolvedRefs",
                "Overridden=True MoreSpecificPolicy",
                "Stopped=True GuardStopped"
            ]
        );
        assert!(conditions[3].message.contains("since 1970-01-01"), "{}", conditions[3].message);
        let long = ObjectCondition::new("Accepted", "False", "Invalid", "ä".repeat(40_000));
        assert!(long.message.len() <= MAX_MESSAGE && long.message.ends_with("..."));
    }
}
