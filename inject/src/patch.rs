//! From two pods to the JSON patch (RFC 6902) that an admission webhook answers with.

use serde_json::Value;

/// What turns `before` into `after`: the operations, as a JSON array. Empty where they are equal.
pub fn patch(before: &Value, after: &Value) -> Value {
    // A list of operations is JSON in any case.
    serde_json::to_value(json_patch::diff(before, after))
        .unwrap_or_else(|_| Value::Array(Vec::new()))
}
