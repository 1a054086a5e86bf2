//! From the text of one file to objects and problems.
//!
//! A file holds YAML documents or JSON; each document is read by itself, so that a mistake in one
//! leaves the others alone.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use outrigger_core::address::LocalEndpoints;
use outrigger_core::error::FieldError;
use outrigger_core::name::{check_label, check_subdomain};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;
use serde_saphyr::Spanned;

use super::super::closed::{self, Unread};
use super::super::read::{Reading, identity, read};
use super::{locate, spelling};
use crate::object::{Kind, Object, ObjectId, Policy};
use crate::problems::{Problem, Severity};
use crate::publish::MAX_RESOURCE;
use crate::translate;

/// What one reading of a file found.
#[derive(Debug, Default)]
pub(super) struct Parsed {
    /// With the line on which each begins.
    pub(super) objects: Vec<(Object, u64)>,
    /// Objects that are there but wrong: their last good version stays.
    pub(super) wrong: Vec<ObjectId>,
    /// Something is there of which not even the name is known: nothing that this file ever
    /// defined is taken away.
    pub(super) unreadable: bool,
    pub(super) problems: Vec<Problem>,
    /// What stands in for AccessPolicies that are wrong, where there is no good version.
    pub(super) closed: Vec<Policy>,
    pub(super) unread: Vec<Unread>,
    /// `apiVersion` and `kind` of documents that are nothing here.
    pub(super) ignored: Vec<String>,
    /// Objects that do not say their namespace.
    pub(super) without_namespace: BTreeSet<ObjectId>,
}

impl Parsed {
    /// Nothing is there at all.
    pub(super) fn is_empty(&self) -> bool {
        self.objects.is_empty()
            && self.wrong.is_empty()
            && self.ignored.is_empty()
            && !self.unreadable
    }
}

pub(super) fn parse(file: &Path, text: &str, local: LocalEndpoints) -> Parsed {
    let mut parser = Parser { file, local, parsed: Parsed::default() };
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    for (line, document) in documents(text) {
        parser.document(line, document);
    }
    parser.parsed
}

/// Splits at `---` lines; a document comes with the number of lines before it. A marker at the
/// beginning of a line ends a document wherever it stands (YAML 1.2 section 9.1.2).
fn documents(text: &str) -> Vec<(u64, &str)> {
    let mut documents = Vec::new();
    let (mut start, mut start_line, mut at, mut line) = (0, 0, 0, 0);
    for current in text.split_inclusive('\n') {
        let end = at + current.len();
        line += 1;
        let marker = current.trim_end();
        if marker == "---" || marker.starts_with("--- ") {
            documents.push((start_line, &text[start..at]));
            // What follows the marker on its line belongs to the next document.
            start = if marker == "---" { end } else { at + 4 };
            start_line = if marker == "---" { line } else { line - 1 };
        } else if marker == "..." {
            documents.push((start_line, &text[start..at]));
            (start, start_line) = (end, line);
        }
        at = end;
    }
    documents.push((start_line, &text[start..]));
    let content = |text: &str| {
        text.lines()
            .map(str::trim_start)
            .any(|line| !line.is_empty() && !line.starts_with('#') && !line.starts_with('%'))
    };
    documents.retain(|(_, text)| content(text));
    documents
}

/// Where each item of a `List` begins.
#[derive(Debug, Deserialize)]
struct ListLines {
    #[serde(default)]
    items: Vec<Spanned<IgnoredAny>>,
}

/// A document, or one item of a list in it.
struct DocumentPlace<'a> {
    /// Lines of the file before the document.
    before: u64,
    text: &'a str,
    /// What it says.
    value: &'a Value,
    /// `items[3].` for an item of a list.
    prefix: String,
    /// Line of the object's beginning in the document, from 1.
    first: u64,
}

impl DocumentPlace<'_> {
    /// The items of a list.
    fn items(&self) -> impl Iterator<Item = DocumentPlace<'_>> {
        let lines = serde_saphyr::from_str::<ListLines>(self.text).map_or(Vec::new(), |l| l.items);
        let items = self.value["items"].as_array().into_iter().flatten().enumerate();
        items.map(move |(i, value)| {
            let first = lines.get(i).map_or(self.first, |item| item.referenced.line());
            DocumentPlace { value, prefix: format!("items[{i}]."), first, ..*self }
        })
    }

    /// The line in the file of a field, or of the nearest field around it that is there.
    fn line_of(&self, path: &str) -> u64 {
        let path = format!("{}{path}", self.prefix);
        self.before + locate::line(self.text, &path).unwrap_or(self.first)
    }

    /// The object that it is.
    fn id(&self) -> Option<ObjectId> {
        let [api_version, kind] = ["apiVersion", "kind"].map(|name| self.value[name].as_str());
        let kind = Kind::of(api_version?, kind?)?;
        identity(kind, self.value)
    }
}

/// The lines of fields of objects that a text defines, in the order of `wanted`; 0 for what is not there.
pub fn lines_of(text: &str, wanted: &[(&ObjectId, &str)]) -> Vec<u64> {
    let mut lines = vec![0; wanted.len()];
    let mut of: HashMap<&ObjectId, Vec<usize>> = HashMap::new();
    for (at, (object, _)) in wanted.iter().enumerate() {
        of.entry(object).or_default().push(at);
    }
    let mut note = |place: &DocumentPlace<'_>| {
        let Some(id) = place.id() else { return };
        // Of several objects of one name the first one is in force.
        for at in of.remove(&id).unwrap_or_default() {
            let path = wanted[at].1;
            lines[at] =
                if path.is_empty() { place.before + place.first } else { place.line_of(path) };
        }
    };
    for (before, text) in documents(text.strip_prefix('\u{feff}').unwrap_or(text)) {
        let Ok(value) = serde_saphyr::from_str::<Value>(text) else { continue };
        let first = first_line(text);
        let place = DocumentPlace { before, text, value: &value, prefix: String::new(), first };
        if value["kind"] == "List" {
            place.items().for_each(|item| note(&item));
        } else {
            note(&place);
        }
    }
    lines
}

/// The line of a document on which its content begins, from 1.
fn first_line(text: &str) -> u64 {
    let blank = text.lines().map(str::trim_start);
    let blank = blank.take_while(|line| line.is_empty() || line.starts_with('#'));
    blank.count() as u64 + 1
}

/// A JSON Web Key Set beside the manifests, for the field `jwks.file` of an AccessPolicy (RFC 7517 section 5).
fn is_key_set(value: &Value) -> bool {
    let keys = value["keys"].as_array();
    value["kind"].is_null()
        && keys.is_some_and(|keys| keys.iter().all(|key| key["kty"].is_string()))
}

struct Parser<'a> {
    file: &'a Path,
    local: LocalEndpoints,
    parsed: Parsed,
}

impl Parser<'_> {
    fn document(&mut self, before: u64, text: &str) {
        let first = first_line(text);
        // First what YAML says, as for Kubernetes, then what the kind's schema makes of it.
        let value = serde_saphyr::from_str::<Value>(text);
        let value = value.map_err(|error| ReadError {
            line: error.location().map(|at| at.line()).filter(|line| *line > 0),
            path: String::new(),
            problem: message(&error),
        });
        let (value, error) = match value {
            Ok(value) => (value, None),
            Err(error) => (Value::Null, Some(error)),
        };
        let place = DocumentPlace { before, text, value: &value, prefix: String::new(), first };
        match error {
            Some(error) => {
                let unread = closed::of_text(text, self.file, before + first);
                self.parsed.unread.extend(unread);
                self.unreadable(&place, error);
            }
            None if value["kind"] == "List" => self.list(&place),
            None if is_key_set(&value) => {
                self.parsed.ignored.push("JSON Web Key Set".to_owned());
            }
            None => self.typed(&place),
        }
    }

    fn list(&mut self, place: &DocumentPlace<'_>) {
        if !place.value["items"].is_array() {
            return self
                .unreadable(place, FieldError::at("items", "must be a list of objects").into());
        }
        for item in place.items() {
            self.typed(&item);
        }
    }

    fn typed(&mut self, place: &DocumentPlace<'_>) {
        let [api_version, kind] = ["apiVersion", "kind"].map(|name| place.value[name].as_str());
        let (Some(api_version), Some(kind)) = (api_version, kind) else {
            let missing = if api_version.is_none() { "apiVersion" } else { "kind" };
            // What it is meant to be can only be guessed.
            let text = place.value.to_string();
            let unread = closed::of_text(&text, self.file, place.before + place.first);
            self.parsed.unread.extend(unread);
            return self.unreadable(place, FieldError::at(missing, "is missing").into());
        };
        match Kind::of(api_version, kind) {
            Some(kind) => {
                if let Some(error) = spelling::unknown_version(api_version) {
                    let id = identity(kind, place.value);
                    self.problem(place, id.as_ref(), Severity::Warning, error.into());
                }
                self.object(place, kind);
            }
            None => self.unknown(place, api_version, kind),
        }
    }

    /// A kind that is not one of those here: nobody's business, unless it is meant for us.
    fn unknown(&mut self, place: &DocumentPlace<'_>, api_version: &str, kind: &str) {
        let group = api_version.split_once('/').map_or("", |(group, _)| group);
        let is_policy = closed::is_meant(kind);
        let is_ours = group == translate::GROUP || spelling::is_close(group, translate::GROUP);
        let is_meant_for_us = is_ours || (is_policy && group.is_empty());
        if !is_meant_for_us {
            match spelling::misspelt(api_version, kind) {
                Some(error) => self.problem(place, None, Severity::Warning, error.into()),
                None => self.parsed.ignored.push(format!("{api_version} {kind}")),
            }
            return;
        }
        let right = Kind::ALL.into_iter().find(|known| known.as_str() == kind);
        let error = match right {
            Some(right) => {
                let problem = format!("{api_version:?} must be {}", right.api_version());
                FieldError::at("apiVersion", problem)
            }
            None => {
                let problem = format!("unknown kind {kind:?}{}", spelling::meant_kind(kind));
                FieldError::at("kind", problem)
            }
        };
        self.problem(place, None, Severity::Error, error.into());
        if is_policy {
            self.reject(place, Kind::AccessPolicy, None);
        } else if let Some(id) = right.and_then(|kind| identity(kind, place.value)) {
            self.parsed.wrong.push(id);
        } else {
            self.parsed.unreadable = true;
        }
    }

    /// An object that is wrong: its last good version stays in force. An AccessPolicy without one lets
    /// nobody in.
    fn reject(&mut self, place: &DocumentPlace<'_>, kind: Kind, id: Option<ObjectId>) {
        let id = id.or_else(|| identity(kind, place.value));
        if kind != Kind::AccessPolicy {
            match id {
                Some(id) => self.parsed.wrong.push(id),
                None => self.parsed.unreadable = true,
            }
            return;
        }
        let named =
            |id: &ObjectId| check_label(&id.namespace).is_ok() && check_subdomain(&id.name).is_ok();
        match id.filter(named) {
            Some(id) => {
                self.parsed.closed.push(closed::of_object(&id, place.value));
                self.parsed.wrong.push(id);
            }
            None => {
                let line = place.before + place.first;
                self.parsed.unread.push(closed::of_nameless(place.value, self.file, line));
                self.parsed.unreadable = true;
            }
        }
    }

    fn object(&mut self, place: &DocumentPlace<'_>, kind: Kind) {
        let is_small = place.text.len() <= MAX_RESOURCE;
        let Reading { id, object, problems, unknown } =
            read(kind, place.value, is_small, self.local);
        for (severity, error) in problems {
            self.problem(place, id.as_ref(), severity, error.into());
        }
        for path in unknown {
            let error = FieldError::at(&path, spelling::unknown_field(kind, &path));
            self.problem(place, id.as_ref(), Severity::Warning, error.into());
        }
        if place.value["metadata"]["namespace"].is_null() {
            self.parsed.without_namespace.extend(id.clone());
        }
        match object {
            Some(object) => self.parsed.objects.push((object, place.before + place.first)),
            None => self.reject(place, kind, id),
        }
    }

    fn unreadable(&mut self, place: &DocumentPlace<'_>, error: ReadError) {
        self.parsed.unreadable = true;
        self.problem(place, None, Severity::Error, error);
    }

    fn problem(
        &mut self,
        place: &DocumentPlace<'_>,
        object: Option<&ObjectId>,
        severity: Severity,
        error: ReadError,
    ) {
        let line = error.line.map(|line| place.before + line);
        self.parsed.problems.push(Problem {
            file: self.file.to_owned(),
            line: line.unwrap_or_else(|| place.line_of(&error.path)),
            severity,
            object: object.cloned(),
            field: format!("{}{}", place.prefix, error.path),
            problem: error.problem,
        });
    }
}

struct ReadError {
    /// In the document, from 1; none: to be looked up by path.
    line: Option<u64>,
    path: String,
    problem: String,
}

impl From<FieldError> for ReadError {
    fn from(error: FieldError) -> Self {
        Self { line: None, path: error.path, problem: error.problem }
    }
}

/// The library's message on one line, without its location, which is reported apart.
fn message(error: &serde_saphyr::Error) -> String {
    let text = error.without_snippet().to_string();
    let text = text.lines().next().unwrap_or_default();
    let text = text.split(" at line ").next().unwrap_or(text);
    // How a program would let it pass.
    let text = text.split(", set ").next().unwrap_or(text);
    text.trim_end_matches(['.', ':']).to_owned()
}
