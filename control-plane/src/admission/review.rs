//! AdmissionReview of `admission.k8s.io/v1`: what the API server asks, and what it is told.

use k8s_openapi::ByteString;
use serde::Deserialize;
use serde_json::{Value, json};

/// Warnings in one answer; kubectl shows each.
const MAX_WARNINGS: usize = 16;
/// Bytes of one warning: the API server cuts them at 4096 altogether.
const MAX_WARNING: usize = 250;
/// Bytes of a refusal.
const MAX_MESSAGE: usize = 4096;

#[derive(Debug, Deserialize)]
pub(super) struct ReviewRequest {
    pub(super) request: Request,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Request {
    pub(super) uid: String,
    pub(super) kind: GroupVersionKind,
    /// Empty for an object that is in none.
    #[serde(default)]
    pub(super) namespace: String,
    /// As it is about to be; none when it is deleted.
    #[serde(default)]
    pub(super) object: Value,
    /// As it was; none when it is created.
    #[serde(default)]
    pub(super) old_object: Value,
}

#[derive(Debug, Deserialize)]
pub(super) struct GroupVersionKind {
    pub(super) group: String,
    pub(super) version: String,
    pub(super) kind: String,
}

impl GroupVersionKind {
    pub(super) fn api_version(&self) -> String {
        match self.group.as_str() {
            "" => self.version.clone(),
            group => format!("{group}/{}", self.version),
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct AdmissionVerdict {
    pub(super) allowed: bool,
    /// Why not, for people.
    pub(super) message: String,
    /// The field and what is wrong there, for programs.
    pub(super) causes: Vec<(String, String)>,
    pub(super) warnings: Vec<String>,
    /// What is changed about the object (RFC 6902).
    pub(super) patch: Option<Value>,
}

impl AdmissionVerdict {
    pub(super) fn allowed() -> Self {
        Self { allowed: true, ..Self::default() }
    }

    pub(super) fn answer(self, uid: &str) -> Value {
        let mut response = json!({"uid": uid, "allowed": self.allowed});
        let warnings = self.warnings.into_iter().take(MAX_WARNINGS);
        let warnings: Vec<String> = warnings.map(|text| shortened(text, MAX_WARNING)).collect();
        if !warnings.is_empty() {
            response["warnings"] = json!(warnings);
        }
        // One without operations would be a change as well.
        let patch = self.patch.filter(|patch| patch.as_array().is_some_and(|all| !all.is_empty()));
        if let Some(patch) = patch {
            response["patchType"] = json!("JSONPatch");
            response["patch"] = json!(ByteString(patch.to_string().into_bytes()));
        }
        if !self.allowed {
            let cause = |(field, message): (String, String)| json!({"reason": "FieldValueInvalid", "field": field, "message": message});
            let causes: Vec<Value> =
                self.causes.into_iter().take(MAX_WARNINGS).map(cause).collect();
            response["status"] = json!({
                "status": "Failure",
                "code": 422,
                "reason": "Invalid",
                "message": shortened(self.message, MAX_MESSAGE),
                "details": {"causes": causes},
            });
        }
        json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response})
    }
}

fn shortened(mut text: String, most: usize) -> String {
    if text.len() > most {
        text.truncate(text.floor_char_boundary(most - 3));
        text.push_str("...");
    }
    text
}
