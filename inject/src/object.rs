//! Pods in files: a Pod itself, or the template in a kind that makes pods.

use outrigger_core::error::FieldError;
use serde_json::Value;

use crate::{Namespace, Outcome, Refused, Service, Settings, inject};

/// A kind whose objects are pods or make some.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// `apps` of `apps/v1`; empty for `v1`.
    pub group: &'static str,
    pub name: &'static str,
    /// Where the pod is, from the object's root; empty for a pod.
    template: &'static [&'static str],
}

const TEMPLATE: &[&str] = &["spec", "template"];

const KINDS: &[Kind] = &[
    Kind { group: "", name: "Pod", template: &[] },
    Kind { group: "", name: "PodTemplate", template: &["template"] },
    Kind { group: "", name: "ReplicationController", template: TEMPLATE },
    Kind { group: "apps", name: "DaemonSet", template: TEMPLATE },
    Kind { group: "apps", name: "Deployment", template: TEMPLATE },
    Kind { group: "apps", name: "ReplicaSet", template: TEMPLATE },
    Kind { group: "apps", name: "StatefulSet", template: TEMPLATE },
    Kind {
        group: "batch",
        name: "CronJob",
        template: &["spec", "jobTemplate", "spec", "template"],
    },
    Kind { group: "batch", name: "Job", template: TEMPLATE },
];

impl Kind {
    /// None: objects of this kind have no pods.
    pub fn of(object: &Value) -> Option<Self> {
        let version = object["apiVersion"].as_str()?;
        let group = version.split_once('/').map_or("", |(group, _)| group);
        let name = object["kind"].as_str()?;
        KINDS.iter().find(|kind| kind.group == group && kind.name == name).copied()
    }

    /// The pod or the template of an object of this kind; null where it has none.
    pub fn pod(self, object: &Value) -> &Value {
        self.template.iter().fold(object, |value, key| &value[*key])
    }
}

/// Injects the pod of an object, of a [`Kind`] that has one. The pod of [`Outcome::Injected`] is the whole
/// object then, and paths begin at its root.
///
/// # Errors
/// As [`inject`].
pub fn inject_object(
    object: &Value,
    kind: Kind,
    namespace: &Namespace,
    services: &[Service],
    settings: &Settings,
) -> Result<Outcome, Refused> {
    let under = |error: FieldError| match (kind.template, error.path.starts_with("namespace ")) {
        ([], _) | (_, true) => error,
        (template, false) => error.under(template.join(".")),
    };
    let outcome = inject(kind.pod(object), namespace, services, settings);
    let outcome = outcome.map_err(|Refused(all)| Refused(all.into_iter().map(under).collect()))?;
    let Outcome::Injected(mut injected) = outcome else { return Ok(outcome) };
    injected.warnings = injected.warnings.into_iter().map(under).collect();
    let mut whole = object.clone();
    let place = kind.template.iter().try_fold(&mut whole, |value, key| value.get_mut(key));
    if let Some(place) = place {
        *place = std::mem::take(&mut injected.pod);
        injected.pod = whole;
    }
    Ok(Outcome::Injected(injected))
}
