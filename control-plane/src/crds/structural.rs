//! From the JSON Schema of a Rust type to the structural schema of a CRD.
//!
//! Every text, list and map that has no bound of its own gets the one that the folder of manifests holds it to
//! (`outrigger_core::bounds::manifest`), and every description says what the schema asks for: `kubectl explain` does not.

use outrigger_core::bounds::manifest;
use serde_json::{Map, Value, json};

use super::conditions;
use crate::kinds::schema::{BOUNDS, DEFAULT, RULES, and, one_of_them};

/// Values that there may be below one rule in CEL: its cost counts them all.
const MOST_COUNTED: usize = 1_000_000;

/// The schema of an object, given that of its `spec`, with what people read.
pub(super) fn object(kind: &str, spec: &Value) -> Value {
    let mut keys = vec!["spec".to_owned()];
    let spec = SchemaWalk { types: &spec["$defs"], keys: &mut keys, count: 1 }.schema(spec);
    let mut metadata = json!({"type": "object"});
    // Its name becomes part of a uid that is a host name.
    if kind == "ExternalWorkload" {
        let mut name =
            schemars::Schema::from(Map::from_iter([("type".to_owned(), json!("string"))]));
        crate::kinds::schema::label(&mut name);
        metadata["properties"] = json!({"name": name.as_value()});
    }
    let about = spec["description"].clone();
    json!({
        "type": "object",
        "description": about,
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": metadata,
            "spec": spec,
            "status": conditions::status(),
        },
    })
}

/// Puts what people read into descriptions, and takes out what an API server does not know.
pub(super) fn publish(schema: &mut Value) {
    let said = words(schema);
    let Value::Object(fields) = schema else { return };
    fields.remove(BOUNDS);
    fields.remove(DEFAULT);
    if let Some(Value::String(description)) = fields.get_mut("description") {
        description.push_str(&said);
    }
    if let Some(Value::Object(properties)) = fields.get_mut("properties") {
        properties.values_mut().for_each(publish);
    }
    for inner in ["items", "additionalProperties"] {
        fields.get_mut(inner).into_iter().for_each(publish);
    }
}

/// What a description ends with.
fn words(schema: &Value) -> String {
    let mut words = String::new();
    if let Some(bounds) = bounds(schema) {
        words.push_str(&format!(" Bounds: {bounds}."));
    }
    if let Some(default) = default(schema) {
        words.push_str(&format!(" Default: {default}."));
    }
    words
}

/// In words, what a value must be; none: nothing beyond its type.
pub(super) fn bounds(schema: &Value) -> Option<String> {
    let mut parts = Vec::new();
    if let Some(says) = schema[BOUNDS].as_str() {
        parts.push(says.to_owned());
    } else if let (Some(least), Some(most)) = (schema.get("minimum"), schema.get("maximum")) {
        parts.push(format!("{least} to {most}"));
    }
    let own =
        |bound: &str, general: usize| schema[bound].as_u64().filter(|most| *most != general as u64);
    if schema["minProperties"].as_u64() == Some(1) {
        parts.push("at least one field".to_owned());
    }
    match (schema["minItems"].as_u64(), schema["maxItems"].as_u64()) {
        (Some(least), Some(most)) => parts.push(format!("{least} to {most} items")),
        (None, Some(most)) => parts.push(format!("at most {most} items")),
        _ => {}
    }
    if schema["pattern"].is_null() || schema[BOUNDS].is_null() {
        if let Some(most) = own("maxLength", manifest::text(&[])) {
            parts.push(format!("at most {most} characters"));
        } else if schema["minLength"].as_u64() == Some(1) {
            parts.push("not empty".to_owned());
        }
    }
    if let Some(each) = schema.get("items").filter(|items| items["properties"].is_null()) {
        parts.extend(bounds(each).map(|bounds| format!("each {bounds}")));
    }
    (!parts.is_empty()).then(|| parts.join("; "))
}

pub(super) fn default(schema: &Value) -> Option<String> {
    if let Some(says) = schema[DEFAULT].as_str() {
        return Some(says.to_owned());
    }
    match schema.get("default")? {
        Value::String(text) if text.is_empty() => None,
        Value::String(text) => Some(format!("`{text}`")),
        other => Some(format!("`{other}`")),
    }
}

struct SchemaWalk<'a> {
    /// Types by their names.
    types: &'a Value,
    /// The keys that lead to a value, as the table of bounds knows them.
    keys: &'a mut Vec<String>,
    /// How many of it there may be.
    count: usize,
}

impl SchemaWalk<'_> {
    fn schema(&mut self, raw: &Value) -> Value {
        let mut schema = raw.as_object().cloned().unwrap_or_default();
        unwrap_option(&mut schema);
        self.resolve(&mut schema);
        self.variants(&mut schema);
        for gone in ["$schema", "$defs", "title"] {
            schema.remove(gone);
        }
        if let Some(Value::String(text)) = schema.get_mut("description") {
            *text = paragraphs(text);
        }
        plain_default(&mut schema);
        match schema.get("type").and_then(Value::as_str) {
            Some("string") => self.text(&mut schema),
            Some("integer") => {
                schema.insert("format".to_owned(), json!("int32"));
            }
            Some("array") => self.list(&mut schema),
            Some("object") => self.fields(&mut schema),
            _ => {}
        }
        Value::Object(schema)
    }

    /// Puts the type in place that a field refers to; what the field says of itself is said first, and decides.
    fn resolve(&self, schema: &mut Map<String, Value>) {
        let Some(Value::String(reference)) = schema.remove("$ref") else { return };
        let name = reference.rsplit('/').next().unwrap_or_default();
        let mut of_type = self.types[name].as_object().cloned().unwrap_or_default();
        let about = of_type.remove("description");
        for (key, value) in std::mem::take(schema) {
            match (of_type.get_mut(&key), value) {
                (Some(Value::Object(fields)), Value::Object(more)) => {
                    for (name, more) in more {
                        merge(fields.entry(name).or_insert_with(|| json!({})), more);
                    }
                }
                (Some(Value::Array(rules)), Value::Array(mut more)) if key == RULES => {
                    rules.append(&mut more);
                }
                (_, value) => drop(of_type.insert(key, value)),
            }
        }
        *schema = of_type;
        if let Some(Value::String(about)) = about {
            describe(schema, &about);
        }
    }

    fn text(&self, schema: &mut Map<String, Value>) {
        if !schema.contains_key("enum") {
            let keys: Vec<_> = self.keys.iter().map(String::as_str).collect();
            schema.entry("maxLength").or_insert_with(|| json!(manifest::text(&keys)));
        }
    }

    fn list(&mut self, schema: &mut Map<String, Value>) {
        let keys: Vec<_> = self.keys.iter().map(String::as_str).collect();
        let most = schema.entry("maxItems").or_insert_with(|| json!(manifest::list(&keys)));
        let most = most.as_u64().and_then(|most| usize::try_from(most).ok()).unwrap_or(1);
        schema.entry("x-kubernetes-list-type").or_insert_with(|| json!("atomic"));
        let count = self.count.saturating_mul(most);
        if let Some(items) = schema.get_mut("items") {
            *items = SchemaWalk { types: self.types, keys: self.keys, count }.schema(items);
        }
    }

    fn fields(&mut self, schema: &mut Map<String, Value>) {
        match schema.get_mut("additionalProperties") {
            Some(values) if values.is_object() => {
                self.keys.push("*".to_owned());
                *values = self.schema(values);
                self.keys.pop();
                schema.insert("maxProperties".to_owned(), json!(manifest::MAP));
            }
            _ => drop(schema.remove("additionalProperties")),
        }
        if let Some(Value::Object(properties)) = schema.get_mut("properties") {
            for (name, value) in properties {
                self.keys.push(name.clone());
                *value = self.schema(value);
                self.keys.pop();
            }
        }
    }

    /// An enum becomes one of its words, or an object of which exactly one field is set.
    fn variants(&self, schema: &mut Map<String, Value>) {
        let Some(Value::Array(variants)) = schema.remove("oneOf") else { return };
        let mut words = Vec::new();
        let mut says = Vec::new();
        let mut fields = Map::new();
        for mut variant in variants {
            let about = variant["description"].as_str().map(paragraphs);
            if let Some(Value::Object(properties)) = variant.get_mut("properties") {
                for (_, value) in properties.iter_mut() {
                    if let Some(about) = &about {
                        value["description"] = json!(about);
                    }
                }
                fields.append(properties);
            } else {
                let one = variant.get("const").cloned();
                let many = variant["enum"].as_array().cloned().unwrap_or_default();
                for word in one.into_iter().chain(many) {
                    says.extend(about.as_ref().map(|about| format!("`{}`: {about}", bare(&word))));
                    words.push(word);
                }
            }
        }
        if fields.is_empty() {
            schema.insert("type".to_owned(), json!("string"));
            schema.insert("enum".to_owned(), Value::Array(words));
            describe(schema, &says.join(" "));
            return;
        }
        self.exactly_one(schema, &fields);
        schema.insert("type".to_owned(), json!("object"));
        schema.insert("properties".to_owned(), Value::Object(fields));
    }

    fn exactly_one(&self, schema: &mut Map<String, Value>, fields: &Map<String, Value>) {
        let names: Vec<_> = fields.keys().map(String::as_str).collect();
        if self.count > MOST_COUNTED {
            let each: Vec<_> = names.iter().map(|name| json!({"required": [name]})).collect();
            schema.insert("oneOf".to_owned(), Value::Array(each));
        } else {
            let message = format!("needs exactly one of {}", and(&names));
            let added = json!({"rule": one_of_them(&names), "message": message});
            match schema.get_mut(RULES).and_then(Value::as_array_mut) {
                Some(rules) => rules.push(added),
                None => drop(schema.insert(RULES.to_owned(), json!([added]))),
            }
        }
    }
}

/// A value that may be left out is described as if it were there: an API server tells `null` from nothing.
fn unwrap_option(schema: &mut Map<String, Value>) {
    if let Some(Value::Array(types)) = schema.get("type") {
        let one = types.iter().find(|kind| **kind != json!("null")).cloned();
        schema.insert("type".to_owned(), one.unwrap_or_default());
    }
    let Some(Value::Array(either)) = schema.remove("anyOf") else { return };
    let inner = either.into_iter().find(|one| one["type"] != json!("null"));
    // A reference, since everything else has a list of types.
    if let Some(reference) = inner.as_ref().and_then(|inner| inner.get("$ref")) {
        schema.insert("$ref".to_owned(), reference.clone());
    }
}

fn merge(value: &mut Value, more: Value) {
    match (value, more) {
        (Value::Object(fields), Value::Object(more)) => fields.extend(more),
        (value, more) => *value = more,
    }
}

/// Only values that are alike for everybody and everywhere are written into objects.
fn plain_default(schema: &mut Map<String, Value>) {
    let composed = |value: &Value| value.is_null() || value.is_array() || value.is_object();
    if schema.get("default").is_some_and(composed) {
        schema.remove("default");
    }
}

fn describe(schema: &mut Map<String, Value>, more: &str) {
    let already = schema.get("description").and_then(Value::as_str).unwrap_or_default();
    let text = match (already, more) {
        ("", more) => more.to_owned(),
        (already, "") => already.to_owned(),
        (already, more) => format!("{already} {more}"),
    };
    if !text.is_empty() {
        schema.insert("description".to_owned(), json!(text));
    }
}

/// Lines of a comment joined to paragraphs.
fn paragraphs(text: &str) -> String {
    let paragraphs = text
        .split("\n\n")
        .map(|paragraph| paragraph.lines().map(str::trim).collect::<Vec<_>>().join(" "));
    paragraphs.collect::<Vec<_>>().join("\n")
}

fn bare(word: &Value) -> &str {
    word.as_str().unwrap_or_default()
}
