//! Whether an object fits a structural schema: the part of OpenAPI that our CRDs use, without rules in CEL.

use regex::Regex;
use serde_json::Value;

use crate::crd_of;

/// `field: problem` of everything that is wrong with an object of ours.
pub(crate) fn problems(object: &Value) -> Vec<String> {
    let mut found = Vec::new();
    check(crd_of(object).schema(), object, "", &mut found);
    found
}

fn check(schema: &Value, value: &Value, path: &str, found: &mut Vec<String>) {
    let mut wrong = |problem: String| found.push(format!("{path}: {problem}"));
    let kind = schema["type"].as_str().unwrap_or_default();
    let fits = match kind {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        other => panic!("{path}: the schema has the type {other:?}"),
    };
    if !fits {
        return wrong(format!("is not of the type {kind}"));
    }
    if schema["enum"].as_array().is_some_and(|words| !words.contains(value)) {
        wrong(format!("{value} is not one of {}", schema["enum"]));
    }
    if !either(&schema["oneOf"], value, &schema["not"]) {
        wrong("has fields that do not go together".to_owned());
    }
    match value {
        Value::String(text) => check_text(schema, text, &mut wrong),
        Value::Number(number) => check_number(schema, number.as_f64().unwrap(), &mut wrong),
        Value::Array(items) => check_list(schema, items, path, found),
        Value::Object(fields) => check_fields(schema, fields, path, found),
        Value::Null | Value::Bool(_) => {}
    }
}

/// `oneOf` and `not` ask of objects only which fields they have.
fn either(one_of: &Value, value: &Value, not: &Value) -> bool {
    let has = |wanted: &Value| {
        let mut names = wanted["required"].as_array().into_iter().flatten();
        names.all(|name| value.get(name.as_str().unwrap()).is_some())
    };
    let one = one_of.as_array().is_none_or(|all| all.iter().filter(|one| has(one)).count() == 1);
    one && (not["required"].is_null() || !has(not))
}

fn check_text(schema: &Value, text: &str, wrong: &mut impl FnMut(String)) {
    let length = text.chars().count() as u64;
    if schema["maxLength"].as_u64().is_some_and(|most| length > most) {
        wrong(format!("may not be more than {} characters", schema["maxLength"]));
    }
    if schema["minLength"].as_u64().is_some_and(|least| length < least) {
        wrong(format!("may not be less than {} characters", schema["minLength"]));
    }
    let matches = |pattern: &str| Regex::new(pattern).unwrap().is_match(text);
    if schema["pattern"].as_str().is_some_and(|pattern| !matches(pattern)) {
        wrong(format!("does not match {}", schema["pattern"]));
    }
    if schema["not"]["pattern"].as_str().is_some_and(matches) {
        wrong(format!("matches {}", schema["not"]["pattern"]));
    }
}

fn check_number(schema: &Value, number: f64, wrong: &mut impl FnMut(String)) {
    if schema["minimum"].as_f64().is_some_and(|least| number < least) {
        wrong(format!("must not be less than {}", schema["minimum"]));
    }
    if schema["maximum"].as_f64().is_some_and(|most| number > most) {
        wrong(format!("must not be more than {}", schema["maximum"]));
    }
}

fn check_list(schema: &Value, items: &[Value], path: &str, found: &mut Vec<String>) {
    let length = items.len() as u64;
    if schema["maxItems"].as_u64().is_some_and(|most| length > most) {
        found.push(format!("{path}: must have at most {} items", schema["maxItems"]));
    }
    if schema["minItems"].as_u64().is_some_and(|least| length < least) {
        found.push(format!("{path}: must have at least {} items", schema["minItems"]));
    }
    let key = schema["x-kubernetes-list-map-keys"][0].as_str();
    for (i, item) in items.iter().enumerate() {
        let path = format!("{path}[{i}]");
        if key.is_some_and(|key| items[..i].iter().any(|other| other[key] == item[key])) {
            found.push(format!("{path}: is a duplicate"));
        }
        check(&schema["items"], item, &path, found);
    }
}

fn check_fields(
    schema: &Value,
    fields: &serde_json::Map<String, Value>,
    path: &str,
    found: &mut Vec<String>,
) {
    let at = |name: &str| match path {
        "" => name.to_owned(),
        path => format!("{path}.{name}"),
    };
    let length = fields.len() as u64;
    if schema["maxProperties"].as_u64().is_some_and(|most| length > most) {
        found.push(format!("{path}: must have at most {} fields", schema["maxProperties"]));
    }
    if schema["minProperties"].as_u64().is_some_and(|least| length < least) {
        found.push(format!("{path}: must have at least {} fields", schema["minProperties"]));
    }
    for name in schema["required"].as_array().into_iter().flatten() {
        let name = name.as_str().unwrap();
        if !fields.contains_key(name) {
            found.push(format!("{}: is required", at(name)));
        }
    }
    for (name, value) in fields {
        let known = &schema["properties"][name];
        if known.is_object() {
            check(known, value, &at(name), found);
        } else if schema["additionalProperties"].is_object() {
            check(&schema["additionalProperties"], value, &at(name), found);
        } else if path != "metadata" {
            found.push(format!("{}: is not known", at(name)));
        }
    }
}
