//! Whether a pod wants to be injected: what it says itself, else what its namespace says.

use std::collections::BTreeMap;
use std::fmt;

use outrigger_core::error::FieldError;
use serde_json::{Value, json};

use crate::Refused;
use crate::annotations::INJECT;

/// The namespace of a pod, as far as it decides about its pods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Namespace {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
}

impl Namespace {
    /// Reads a v1 `Namespace` as it is written in a manifest. None: it is something else.
    pub fn read(object: &Value) -> Option<Self> {
        if object["kind"] != "Namespace" || object["apiVersion"] != "v1" {
            return None;
        }
        let metadata = &object["metadata"];
        let texts = |value: &Value| -> BTreeMap<String, String> {
            let all = value.as_object().into_iter().flatten();
            all.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
        };
        Some(Self {
            name: metadata["name"].as_str()?.to_owned(),
            labels: texts(&metadata["labels"]),
            annotations: texts(&metadata["annotations"]),
        })
    }

    /// What an error in it is put under.
    pub(crate) fn path(&self, field: &str) -> String {
        format!("namespace {}: metadata.{field}", self.name)
    }
}

/// Why a pod stays as it is, though nothing is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotInjected {
    /// Neither the pod nor its namespace says `outrigger.dev/inject: enabled`.
    NotAsked,
    /// The pod says `disabled`.
    DisabledByPod,
    /// The namespace says `disabled`, and the pod nothing.
    DisabledByNamespace,
    /// The copy of a static pod, which only the kubelet may change.
    Mirror,
    /// Its namespace asks for all its pods, and this one cannot have a proxy.
    Impossible(FieldError),
}

impl fmt::Display for NotInjected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAsked => write!(f, "neither it nor its namespace says {INJECT}: enabled"),
            Self::DisabledByPod => write!(f, "it says {INJECT}: disabled"),
            Self::DisabledByNamespace => write!(f, "its namespace says {INJECT}: disabled"),
            Self::Mirror => f.write_str("it is the copy of a static pod"),
            Self::Impossible(why) => why.fmt(f),
        }
    }
}

/// Who asked for the injection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AskedBy {
    Pod,
    Namespace,
}

/// Whether to inject; the inner error says why not.
pub(crate) fn decide(
    pod: &Value,
    namespace: &Namespace,
) -> Result<Result<AskedBy, NotInjected>, Refused> {
    let metadata = &pod["metadata"];
    if !metadata["annotations"]["kubernetes.io/config.mirror"].is_null() {
        return Ok(Err(NotInjected::Mirror));
    }
    let own = said(&metadata["labels"][INJECT], &metadata["annotations"][INJECT]);
    match own.map_err(|e| Refused(vec![e.under("metadata")]))? {
        Some(true) => return Ok(Ok(AskedBy::Pod)),
        Some(false) => return Ok(Err(NotInjected::DisabledByPod)),
        None => {}
    }
    let value =
        |from: &BTreeMap<String, String>| from.get(INJECT).map_or(Value::Null, |v| json!(v));
    let said = said(&value(&namespace.labels), &value(&namespace.annotations));
    match said.map_err(|e| Refused(vec![FieldError::at(namespace.path(&e.path), e.problem)]))? {
        Some(true) => Ok(Ok(AskedBy::Namespace)),
        Some(false) => Ok(Err(NotInjected::DisabledByNamespace)),
        None => Ok(Err(NotInjected::NotAsked)),
    }
}

/// What label and annotation say together.
fn said(label: &Value, annotation: &Value) -> Result<Option<bool>, FieldError> {
    let read = |field: &str, value: &Value| match value {
        Value::Null => Ok(None),
        Value::String(text) if text == "enabled" => Ok(Some(true)),
        Value::String(text) if text == "disabled" => Ok(Some(false)),
        other => {
            let hint = match other.as_str() {
                Some("true" | "yes" | "on") => ": write enabled",
                Some("false" | "no" | "off") => ": write disabled",
                _ => "",
            };
            let problem = format!("{other} must be enabled or disabled{hint}");
            Err(FieldError::at(format!("{field}[{INJECT:?}]"), problem))
        }
    };
    let (label, annotation) = (read("labels", label)?, read("annotations", annotation)?);
    match (label, annotation) {
        (Some(a), Some(b)) if a != b => Err(FieldError::at(
            format!("annotations[{INJECT:?}]"),
            "says the opposite of the label of that name: remove one of them",
        )),
        _ => Ok(label.or(annotation)),
    }
}
