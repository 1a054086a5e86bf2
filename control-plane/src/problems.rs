//! What is wrong with what people wrote, with file, line and field.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use serde::{Serialize, Serializer};

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

/// One problem; its text form is `file:line: field.path: problem`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Problem {
    #[serde(serialize_with = "display_path")]
    pub file: PathBuf,
    /// 0 when the file could not be read at all.
    pub line: u64,
    pub severity: Severity,
    pub object: Option<ObjectId>,
    pub field: String,
    pub problem: String,
}

fn display_path<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: ", self.file.display(), self.line)?;
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.problem)
    }
}

/// The problems of each file, shared between who finds them and who shows them.
#[derive(Debug, Default)]
pub struct Problems(Mutex<BTreeMap<PathBuf, Vec<Problem>>>);

impl Problems {
    /// Puts what a file's last reading found in the place of what the one before did, and logs
    /// what is new.
    pub fn set(&self, file: &Path, problems: Vec<Problem>) {
        let mut all = lock(&self.0);
        let old = all.remove(file).unwrap_or_default();
        for problem in problems.iter().filter(|problem| !old.contains(problem)) {
            let object = problem.object.as_ref().map(tracing::field::display);
            match problem.severity {
                Severity::Error => tracing::error!(object, "{problem}"),
                Severity::Warning => tracing::warn!(object, "{problem}"),
            }
        }
        if !old.is_empty() && problems.is_empty() {
            tracing::info!(file = %file.display(), "no problems left in this file");
        }
        if !problems.is_empty() {
            all.insert(file.to_owned(), problems);
        }
    }

    pub fn all(&self) -> Vec<Problem> {
        lock(&self.0).values().flatten().cloned().collect()
    }

    pub fn count(&self) -> usize {
        lock(&self.0).values().map(Vec::len).sum()
    }
}
