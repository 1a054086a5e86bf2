//! Every object of ours that the docs, the README and the examples show.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

/// An example, and where it stands.
#[derive(Debug)]
pub(crate) struct Example {
    pub(crate) at: String,
    pub(crate) object: Value,
}

pub(crate) fn all() -> Vec<Example> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut files = Vec::new();
    for folder in ["docs", "examples", "bench/peers"] {
        collect(&root.join(folder), &mut files);
    }
    files.push(root.join("README.md"));
    files.sort();
    let mut all = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let at = file.strip_prefix(root).unwrap().display().to_string();
        if at.ends_with(".md") {
            all.extend(of_page(&at, &text));
        } else {
            let documents = text.split("\n---").enumerate();
            all.extend(
                documents.filter_map(|(i, text)| ours(format!("{at}#{i}"), read(&at, text)?)),
            );
        }
    }
    all
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|end| end == "md" || end == "yaml") {
            files.push(path);
        }
    }
}

/// A block without a kind is a part of a spec: of an object like the last whole one above it.
fn of_page(page: &str, text: &str) -> Vec<Example> {
    let mut examples = Vec::new();
    let mut whole: Option<Value> = None;
    for (line, block) in blocks(text) {
        let at = format!("{page}:{line}");
        let Some(read) = read(&at, &block) else { continue };
        if read["kind"].is_string() {
            whole = Some(read.clone());
            examples.extend(ours(at, read));
            continue;
        }
        let Some(mut object) = whole.clone() else { continue };
        let mut spec = Map::new();
        if let Some(targets) = object["spec"].get("targetRefs") {
            spec.insert("targetRefs".to_owned(), targets.clone());
        }
        let part = read.get("spec").unwrap_or(&read).as_object().cloned();
        spec.extend(part.unwrap_or_else(|| panic!("{at}: is no part of a spec")));
        // Routes and Services are not protected together.
        if spec.keys().any(|section| section != "targetRefs") && spec.contains_key("targetRefs") {
            spec["targetRefs"] = json!([{"kind": "Service", "name": "orders"}]);
        }
        object["spec"] = Value::Object(spec);
        examples.extend(ours(at, object));
    }
    examples
}

/// Blocks of YAML, with the lines on which they begin.
fn blocks(text: &str) -> Vec<(usize, String)> {
    let mut blocks = Vec::new();
    let mut open: Option<(usize, String)> = None;
    for (number, line) in (1..).zip(text.lines()) {
        match &mut open {
            None if line.trim() == "```yaml" => open = Some((number, String::new())),
            None => {}
            Some(_) if line.trim() == "```" => blocks.extend(open.take()),
            Some((_, block)) => block.push_str(&format!("{line}\n")),
        }
    }
    blocks
}

fn read(at: &str, text: &str) -> Option<Value> {
    let value: Value = serde_saphyr::from_str(text).unwrap_or_else(|e| panic!("{at}: {e}"));
    value.is_object().then_some(value)
}

fn ours(at: String, object: Value) -> Option<Example> {
    let version = object["apiVersion"].as_str().unwrap_or_default();
    version.starts_with("outrigger.dev/").then_some(Example { at, object })
}
