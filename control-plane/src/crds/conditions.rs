//! `status` of every kind: conditions by the Kubernetes API conventions, with the bounds that they have there.

use serde_json::{Value, json};

/// More than there will be: Accepted, ResolvedRefs, Programmed and few others.
const MAX_CONDITIONS: usize = 16;

pub(super) fn status() -> Value {
    json!({
        "type": "object",
        "description": "What has become of the object; the control plane writes it.",
        "properties": {
            "conditions": {
                "type": "array",
                "description": "Conditions, by type: Accepted (the newest version is in force), ResolvedRefs (what it \
                    names exists and may be used), Programmed (on how many of the proxies that it concerns it is in \
                    force).",
                "maxItems": MAX_CONDITIONS,
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["type"],
                "items": condition(),
            },
        },
    })
}

/// `meta/v1` Condition, as Kubernetes' own types publish it.
fn condition() -> Value {
    json!({
        "type": "object",
        "description": "One aspect of the object's state.",
        "required": ["lastTransitionTime", "message", "reason", "status", "type"],
        "properties": {
            "type": {
                "type": "string",
                "description": "What it is about, in CamelCase. Example: `Accepted`.",
                "maxLength": 316,
                "pattern": "^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?\
                    (([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])$",
            },
            "status": {
                "type": "string",
                "description": "Whether it holds.",
                "enum": ["True", "False", "Unknown"],
            },
            "observedGeneration": {
                "type": "integer",
                "format": "int64",
                "description": "Generation of the object (`metadata.generation`) that it is about.",
                "minimum": 0,
            },
            "lastTransitionTime": {
                "type": "string",
                "format": "date-time",
                "description": "When the status last changed.",
            },
            "reason": {
                "type": "string",
                "description": "Why, in one CamelCase word.",
                "minLength": 1,
                "maxLength": 1024,
                "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
            },
            "message": {
                "type": "string",
                "description": "Why, for people: the field and the problem, how many proxies, who overrides what.",
                "maxLength": 32768,
            },
        },
    })
}
