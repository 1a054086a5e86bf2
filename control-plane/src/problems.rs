//! What is wrong with what people wrote: in a file with its line, or in an object of a cluster; with the field.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use serde::{Serialize, Serializer};
use tokio::sync::Notify;

use crate::object::ObjectId;
use crate::sync::lock;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The object is not accepted; its last good version, if any, stays in force.
    Error,
    /// The object is in force without this part.
    Warning,
}

/// One problem; its text form is `file:line: Kind namespace/name: field.path: problem`, without a place where there
/// is no file.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Problem {
    /// Empty for an object of a cluster.
    #[serde(serialize_with = "display_path")]
    pub file: PathBuf,
    /// 0 when it is about the file as a whole.
    pub line: u64,
    pub severity: Severity,
    pub object: Option<ObjectId>,
    pub field: String,
    pub problem: String,
}

impl Problem {
    /// For the status of the object itself.
    pub fn without_object(&self) -> String {
        Self { object: None, ..self.clone() }.to_string()
    }

    /// The object whose newest version it keeps from being accepted.
    pub fn refused(&self) -> Option<&ObjectId> {
        self.object.as_ref().filter(|_| self.severity == Severity::Error)
    }
}

fn display_path<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.file.as_os_str().is_empty() {
            write!(f, "{}:", self.file.display())?;
            if self.line > 0 {
                write!(f, "{}:", self.line)?;
            }
            f.write_str(" ")?;
        }
        if let Some(object) = &self.object {
            write!(f, "{object}: ")?;
        }
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.problem)
    }
}

/// The problems of each file, shared between who finds them and who shows them.
#[derive(Debug, Default)]
pub struct Problems {
    known: Mutex<KnownProblems>,
    /// Told of whatever [`Self::take_changed`] gives.
    pub changed: Notify,
}

#[derive(Debug, Default)]
struct KnownProblems {
    files: BTreeMap<PathBuf, Vec<Problem>>,
    /// Errors of each object: where each stands in its file's list.
    by_object: BTreeMap<ObjectId, BTreeMap<PathBuf, Vec<usize>>>,
    changed: BTreeSet<ObjectId>,
    places: HashMap<ObjectId, Arc<Path>>,
}

impl Problems {
    /// Puts what the last reading of a file, or of an object of a cluster, found in the place of what the one
    /// before did, and logs what is new.
    pub fn set(&self, file: &Path, problems: Vec<Problem>) {
        let mut known = lock(&self.known);
        let old = known.files.remove(file).unwrap_or_default();
        for problem in problems.iter().filter(|problem| !old.contains(problem)) {
            let object = problem.object.as_ref().map(tracing::field::display);
            match problem.severity {
                Severity::Error => tracing::error!(object, "{problem}"),
                Severity::Warning => tracing::warn!(object, "{problem}"),
            }
        }
        if !old.is_empty() && problems.is_empty() {
            tracing::info!(place = %file.display(), "no problems left here");
        }
        if old != problems {
            known.link(file, &old, &problems);
            self.changed.notify_one();
        }
        if !problems.is_empty() {
            known.files.insert(file.to_owned(), problems);
        }
    }

    /// Notes which file defines the version of an object that is in force; none: no file does any more.
    pub fn set_place(&self, object: &ObjectId, file: Option<&Path>) {
        let places = &mut lock(&self.known).places;
        match file {
            Some(file) => drop(places.insert(object.clone(), file.into())),
            None => drop(places.remove(object)),
        }
    }

    /// The file that defines an object, right or wrong, and the line of what is wrong with it; none for one of a
    /// cluster, or that registered itself.
    pub fn place(&self, object: &ObjectId) -> Option<(Arc<Path>, u64)> {
        let known = lock(&self.known);
        let wrong = known.by_object.get(object).and_then(|files| files.iter().next());
        let wrong = wrong.and_then(|(file, positions)| {
            let problem = known.files.get(file)?.get(*positions.first()?)?;
            Some((file.as_path().into(), problem.line))
        });
        let defined = known.places.get(object).map(|file| (file.clone(), 0));
        defined.or(wrong)
    }

    pub fn all(&self) -> Vec<Problem> {
        lock(&self.known).files.values().flatten().cloned().collect()
    }

    /// Why the newest version of an object is not accepted, a line for each error.
    pub fn errors_of(&self, object: &ObjectId) -> Vec<String> {
        let known = lock(&self.known);
        let files = known.by_object.get(object).into_iter().flatten();
        let errors = files.flat_map(|(file, positions)| {
            let of_file = known.files.get(file);
            positions.iter().filter_map(move |position| of_file?.get(*position))
        });
        errors.map(Problem::without_object).collect()
    }

    /// Objects whose errors have changed since the last call: for the one reader that keeps their status.
    pub fn take_changed(&self) -> BTreeSet<ObjectId> {
        std::mem::take(&mut lock(&self.known).changed)
    }

    pub fn count(&self) -> usize {
        lock(&self.known).files.values().map(Vec::len).sum()
    }
}

impl KnownProblems {
    /// Follows which errors of a file are which object's.
    fn link(&mut self, file: &Path, old: &[Problem], new: &[Problem]) {
        let before: BTreeSet<&ObjectId> = old.iter().filter_map(Problem::refused).collect();
        for object in before {
            self.changed.insert(object.clone());
            if let Some(files) = self.by_object.get_mut(object) {
                files.remove(file);
                if files.is_empty() {
                    self.by_object.remove(object);
                }
            }
        }
        for (position, problem) in new.iter().enumerate() {
            let Some(object) = problem.refused() else { continue };
            self.changed.insert(object.clone());
            let files = self.by_object.entry(object.clone()).or_default();
            files.entry(file.to_owned()).or_default().push(position);
        }
    }
}
