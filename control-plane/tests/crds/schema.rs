//! What can be told without a cluster.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use outrigger_control_plane::crds;
use outrigger_control_plane::index::Index;
use outrigger_control_plane::metrics::Metrics;
use outrigger_control_plane::problems::{Problems, Severity};
use outrigger_control_plane::publish::Publisher;
use outrigger_control_plane::source::manifests::Folder;
use outrigger_core::address::LocalEndpoints;
use outrigger_core::bounds::manifest;
use outrigger_core::config::MeshSettings;
use outrigger_core::policy::section::{self, Scope};
use serde_json::Value;
use tempfile::TempDir;

use crate::structural::problems;
use crate::wrong::{By, rules, without_places, wrong};
use crate::{CRDS, examples, manifests};

#[test]
fn checked_in_copies_are_what_the_kinds_say() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    for (path, text) in crds::files().unwrap() {
        let checked_in = fs::read_to_string(root.join(&path)).unwrap_or_default();
        assert!(checked_in == text, "{path} is out of date: run `{}`", crds::GENERATE);
    }
}

#[test]
fn examples_and_templates_fit_the_schemas() {
    let examples = examples::all();
    assert!(examples.len() > 30, "only {} examples were found", examples.len());
    for example in examples {
        assert_eq!(problems(&example.object), Vec::<String>::new(), "{}", example.at);
    }
    let templates = manifests::templates().into_iter();
    for object in templates.filter(|object| object["apiVersion"] == "outrigger.dev/v1alpha1") {
        assert_eq!(problems(&object), Vec::<String>::new(), "{object}");
    }
}

#[test]
fn wrong_objects_are_refused_with_the_field() {
    let all = wrong();
    assert!(all.len() >= 60);
    for case in all {
        let found = problems(&case.object);
        match case.by {
            By::Schema => {
                let named =
                    found.iter().any(|problem| problem.starts_with(&format!("{}: ", case.field)));
                assert!(named, "{} of {}: {found:?}", case.field, case.object);
            }
            // Else it would not be the rule that refuses it.
            By::Rule => assert_eq!(found, Vec::<String>::new(), "{}", case.object),
        }
    }
}

/// An object that a cluster refuses is refused in a folder, too: one that moves between them means the same.
#[test]
fn translation_refuses_what_the_schemas_refuse() {
    for case in wrong() {
        let found = translated(&case.object);
        assert!(!found.is_empty(), "{} of {}", case.field, case.object);
    }
}

/// What is wrong with an object in a folder of manifests.
pub(crate) fn translated(object: &Value) -> Vec<String> {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("a.yaml"), object.to_string()).unwrap();
    let problems = Arc::new(Problems::default());
    let metrics = Arc::new(Metrics::new());
    let path = folder.path().to_owned();
    let mut reader = Folder::new(path, LocalEndpoints::Refuse, problems.clone(), metrics);
    reader.scan(&Publisher::new(Index::new(MeshSettings::default()))).unwrap();
    let wrong = problems.all().into_iter().filter(|problem| problem.severity == Severity::Error);
    wrong.map(|problem| format!("{}: {}", problem.field, problem.problem)).collect()
}

#[test]
fn every_field_is_described() {
    for crd in CRDS.iter() {
        for part in ["spec", "status"] {
            described(&crd.schema()["properties"][part], &format!("{}.{part}", crd.kind));
        }
        // What `kubectl apply` without --server-side keeps in an annotation.
        let size = crd.definition.to_string().len();
        assert!(size < 200_000, "{} has {size} bytes", crd.kind);
    }
}

fn described(schema: &Value, path: &str) {
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        let description = field["description"].as_str().unwrap_or_default();
        assert!(description.len() > 10, "{path} has the description {description:?}");
        described(field, &path);
        described(&field["items"], &path);
    }
}

/// The fields of a kind, its description of each and the guide follow the one table of sections.
#[test]
fn fields_of_policies_are_the_sections_of_the_table() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let guide = fs::read_to_string(root.join("docs/resilience.md")).unwrap();
    let of_services = guide.split("\n\n").find(|part| part.starts_with("The sections `")).unwrap();
    for (kind, is_of) in [
        ("TrafficPolicy", (|scope| scope != Scope::Port) as fn(Scope) -> bool),
        ("ServerPolicy", |scope| scope == Scope::Port),
    ] {
        let crd = CRDS.iter().find(|crd| crd.kind == kind).unwrap();
        let fields = crd.schema()["properties"]["spec"]["properties"].as_object().unwrap();
        let mut left: BTreeSet<_> = fields.keys().map(String::as_str).collect();
        assert!(left.remove("targetRefs"));
        for section in section::ALL.iter().filter(|section| is_of(section.scope)) {
            let name = section.name;
            assert!(left.remove(name), "{kind} has no {name}");
            let description = fields[name]["description"].as_str().unwrap();
            let is_of_service = section.scope == Scope::Backend;
            assert_eq!(description.contains("Not for routes."), is_of_service, "{name}");
            let quoted = format!("`{name}`");
            assert_eq!(of_services.contains(&quoted), is_of_service, "{name}");
            assert!(guide.contains(&quoted) || guide.contains(&format!("\n  {name}:")), "{name}");
        }
        assert!(left.is_empty(), "{kind} has fields that are no sections: {left:?}");
    }
}

/// Nothing in an object is without a bound.
#[test]
fn every_value_is_bounded() {
    for crd in CRDS.iter() {
        bounded(&crd.schema()["properties"]["spec"], &format!("{}.spec", crd.kind));
    }
}

fn bounded(schema: &Value, path: &str) {
    let has = |bound: &str| schema[bound].is_number();
    match schema["type"].as_str().unwrap() {
        "string" => assert!(has("maxLength") || schema["enum"].is_array(), "{path}"),
        "array" => {
            assert!(has("maxItems"), "{path}");
            bounded(&schema["items"], &format!("{path}[]"));
        }
        "integer" | "number" => assert!(has("minimum") && has("maximum"), "{path}"),
        "object" => {
            assert!(
                schema["properties"].is_object()
                    || has("maxProperties")
                    || schema.get("additionalProperties").is_none(),
                "{path}"
            );
            for (name, field) in schema["properties"].as_object().into_iter().flatten() {
                bounded(field, &format!("{path}.{name}"));
            }
        }
        _ => {}
    }
}

#[test]
fn every_bound_and_rule_has_a_wrong_object() {
    let tried: BTreeSet<_> = wrong()
        .into_iter()
        .map(|case| (case.kind().to_owned(), without_places(&case.field)))
        .collect();
    let missing = |found: Vec<(String, String)>| {
        found.into_iter().filter(|one| !tried.contains(one)).collect::<Vec<_>>()
    };
    let rules = rules().into_iter().map(|(kind, field, _)| (kind, field)).collect();
    assert_eq!(missing(rules), []);
    let mut bounds = Vec::new();
    for crd in CRDS.iter() {
        own_bounds(&crd.schema()["properties"]["spec"], &crd.kind, "spec", &mut bounds);
    }
    assert!(bounds.len() > 100);
    assert_eq!(missing(bounds), []);
}

/// Fields that have bounds beyond those that everything has.
fn own_bounds(schema: &Value, kind: &str, path: &str, found: &mut Vec<(String, String)>) {
    let bounds =
        ["minimum", "pattern", "enum", "minItems", "minProperties", "not", "oneOf", "minLength"];
    let general = |bound: &str, general: usize| {
        schema[bound].as_u64().is_some_and(|own| own != general as u64)
    };
    if bounds.iter().any(|bound| !schema[bound].is_null())
        || general("maxLength", manifest::text(&[]))
        || general("maxItems", manifest::list(&[]))
    {
        found.push((kind.to_owned(), path.to_owned()));
    }
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        own_bounds(field, kind, &format!("{path}.{name}"), found);
    }
    if schema["items"].is_object() {
        own_bounds(&schema["items"], kind, path, found);
    }
}
