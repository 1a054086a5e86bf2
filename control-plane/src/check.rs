//! `outrigger-control-plane check`: what is wrong with manifests, without a mesh.
//!
//! They are read as the control plane reads them, and looked at together; what proxies would not take is asked for
//! as they would.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fmt, fs};

use outrigger_core::address::LocalEndpoints;

use crate::analysis::{self, ConfigFinding};
use crate::index::Index;
use crate::keys;
use crate::metrics::Metrics;
use crate::object::{KeySource, ObjectId};
use crate::problems::{Problem, Problems, Severity};
use crate::publish::Publisher;
use crate::source::manifests::Folder;
use crate::status;
use crate::translate::DEFAULT_NAMESPACE;

/// The name of standard input among files.
const STDIN: &str = "-";
/// What it is called in problems.
const STDIN_NAME: &str = "stdin";
const NO_MANIFEST: &str = "contains no manifest (a .yaml, .yml or .json file)";
const NO_OBJECT: &str = "contains no object";
/// Bytes of standard input.
const MAX_STDIN: u64 = 256 * 1024 * 1024;

/// What was found.
#[derive(Debug)]
pub struct CheckReport {
    /// By file and line.
    pub problems: Vec<Problem>,
    /// Objects that were read, right or wrong.
    pub objects: usize,
    /// Documents of other kinds, `apps/v1 Deployment`, and how many.
    pub ignored: BTreeMap<String, usize>,
}

impl CheckReport {
    pub fn count(&self, severity: Severity) -> usize {
        self.problems.iter().filter(|problem| problem.severity == severity).count()
    }
}

impl fmt::Display for CheckReport {
    /// A line for each problem, and one that adds up.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for problem in &self.problems {
            let warning = if problem.severity == Severity::Warning { " (warning)" } else { "" };
            writeln!(f, "{problem}{warning}")?;
        }
        let (errors, warnings) = (self.count(Severity::Error), self.count(Severity::Warning));
        let objects = counted(self.objects, "object");
        write!(
            f,
            "{objects} read, {}, {}",
            counted(errors, "error"),
            counted(warnings, "warning")
        )?;
        let others: usize = self.ignored.values().sum();
        if others > 0 {
            let kinds: Vec<&str> = self.ignored.keys().map(String::as_str).collect();
            write!(
                f,
                "; {} of other kinds ignored ({})",
                counted(others, "object"),
                kinds.join(", ")
            )?;
        }
        Ok(())
    }
}

fn counted(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

/// Checks files, folders, and standard input as `-`, all together. `local`: which endpoints on the callers' own
/// machines are taken.
///
/// # Errors
/// A path that cannot be read, with its name.
pub fn check(paths: &[PathBuf], local: LocalEndpoints) -> Result<CheckReport, String> {
    let problems = Arc::new(Problems::default());
    let publisher = Publisher::new(Index::default());
    let metrics = Arc::new(Metrics::new());
    let mut check = Check::default();
    let mut folder = Folder::new(PathBuf::new(), local, problems.clone(), metrics);
    for path in paths {
        check.read(path, &mut folder, &publisher)?;
    }
    let mut all = problems.all();
    all.extend(check.empty.iter().map(|path| empty(path, NO_MANIFEST)));
    let told: BTreeSet<PathBuf> = all.iter().map(|problem| problem.file.clone()).collect();
    let without = folder.files_without_object().filter(|path| !told.contains(*path));
    all.extend(without.map(|path| empty(path, NO_OBJECT)));
    let mut findings = Vec::new();
    let mut view = publisher.view();
    let left_out = status::left_out_of_all(&mut view).into_iter();
    findings.extend(left_out.map(|(object, text)| error(object, text)));
    let index = &view.index;
    findings.extend(analysis::findings(index, true));
    findings.extend(check.keys(index, &problems));
    findings.extend(without_namespace(index, &folder));
    all.extend(check.placed(&findings, &problems));
    all.sort_by(|a, b| (&a.file, a.line, &a.field).cmp(&(&b.file, b.line, &b.field)));
    Ok(CheckReport { problems: all, objects: folder.objects(), ignored: folder.ignored().clone() })
}

fn error(object: ObjectId, text: String) -> ConfigFinding {
    ConfigFinding { object, severity: Severity::Error, text }
}

/// A folder without a manifest, or a file without an object.
fn empty(path: &Path, problem: &str) -> Problem {
    Problem {
        file: path.to_owned(),
        line: 0,
        severity: Severity::Warning,
        object: None,
        field: String::new(),
        problem: problem.to_owned(),
    }
}

/// Where other objects say their namespace, one that does not was probably meant to be with them.
fn without_namespace(index: &Index, folder: &Folder) -> Vec<ConfigFinding> {
    let namespaces = index.known_namespaces();
    let others: Vec<&str> =
        namespaces.iter().map(String::as_str).filter(|name| *name != DEFAULT_NAMESPACE).collect();
    if others.is_empty() {
        return Vec::new();
    }
    let text = format!(
        "metadata.namespace: is missing, so it is in {DEFAULT_NAMESPACE:?}; others are in {}",
        others.join(", ")
    );
    let finding = |object: &ObjectId| {
        let (object, severity, text) = (object.clone(), Severity::Warning, text.clone());
        ConfigFinding { object, severity, text }
    };
    folder.without_namespace().map(finding).collect()
}

#[derive(Debug, Default)]
struct Check {
    /// What standard input said.
    stdin: Option<String>,
    /// Folders and files without an object.
    empty: Vec<PathBuf>,
    /// Folders beside which key sets may lie.
    roots: Vec<PathBuf>,
}

impl Check {
    fn read(&mut self, path: &Path, folder: &mut Folder, to: &Publisher) -> Result<(), String> {
        let wrong = |error: io::Error| format!("{}: {error}", path.display());
        if path.as_os_str() == STDIN {
            let mut text = String::new();
            io::stdin().lock().take(MAX_STDIN).read_to_string(&mut text).map_err(wrong)?;
            folder.load_text(Path::new(STDIN_NAME), &text, to);
            self.stdin = Some(text);
            self.roots.push(PathBuf::new());
            return Ok(());
        }
        let files = if fs::metadata(path).map_err(wrong)?.is_dir() {
            self.roots.push(path.to_owned());
            folder.scan_root(path, to).map_err(wrong)?
        } else {
            fs::File::open(path).map_err(wrong)?;
            self.roots.push(path.parent().unwrap_or(path).to_owned());
            folder.load([path.to_owned()].into(), &[].into(), to);
            1
        };
        if files == 0 {
            self.empty.push(path.to_owned());
        }
        Ok(())
    }

    /// Key sets in files that are not there, or hold none.
    fn keys(&self, index: &Index, problems: &Problems) -> Vec<ConfigFinding> {
        let mut found = Vec::new();
        for policy in index.policies() {
            for (i, issuer) in policy.issuers.iter().enumerate() {
                let KeySource::File(file) = &issuer.source else { continue };
                // Beside the folder of manifests as a whole, which may be any of those around the policy.
                let place = problems.place(&policy.id());
                let inside = |root: &&PathBuf| {
                    place.as_ref().is_some_and(|(place, _)| place.starts_with(root))
                };
                let read = |root: &PathBuf| keys::read(&root.join(file));
                let mut reads = self.roots.iter().filter(inside).map(read);
                let first = reads.next().unwrap_or_else(|| keys::read(file));
                let read =
                    first.or_else(|problem| reads.find(Result::is_ok).unwrap_or(Err(problem)));
                if let Err(problem) = read {
                    found.push(error(policy.id(), format!("spec.jwt[{i}].jwks.file: {problem}")));
                }
            }
        }
        found
    }

    /// Findings with the file and line of their field.
    fn placed(&self, findings: &[ConfigFinding], problems: &Problems) -> Vec<Problem> {
        analysis::place(findings, problems, |path| match &self.stdin {
            Some(text) if path == Path::new(STDIN_NAME) => Some(text.clone()),
            _ => fs::read_to_string(path).ok(),
        })
    }
}
