//! Configuration that is valid and does nothing, or not what it looks like: seen only by looking at all objects
//! together.
//!
//! Each object is in force as it is; a warning here changes nothing. What does not resolve is an error
//! ([`crate::status::unresolved`]) and comes first.

mod access;
mod policies;
mod routes;
mod services;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::index::Index;
use crate::object::{ObjectId, Policy, Workload};
use crate::problems::{Problem, Problems, Severity};
use crate::publish::Publisher;
use crate::source::manifests::lines_of;
use crate::status;

/// How often a mesh that changes is looked at.
const LOOK: Duration = Duration::from_secs(2);
/// How much longer than a look the pause after it is: a mesh that changes all the time costs one part in so many of
/// a processor.
const COSTS_AT_MOST: u32 = 50;
/// After the start, until workloads that register themselves have.
const SETTLED: Duration = Duration::from_secs(30);
/// Lines in the log at a time.
const MAX_LOGGED: usize = 100;

/// What is wrong with one object of the index.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConfigFinding {
    pub object: ObjectId,
    pub severity: Severity,
    /// `field.path: problem`, or the problem alone.
    pub text: String,
}

impl ConfigFinding {
    /// The path of the field and the problem; an empty path where it is about the object as a whole.
    pub fn parts(&self) -> (&str, &str) {
        let parts = self.text.split_once(": ").filter(|(field, _)| !field.contains(' '));
        parts.unwrap_or(("", &self.text))
    }
}

/// References that do not resolve and AccessPolicies that something stands in for, then warnings, by object.
/// `settled`: the workloads that are there are known.
pub fn findings(index: &Index, settled: bool) -> Vec<ConfigFinding> {
    let unresolved = status::unresolved(index).into_iter();
    let errors = unresolved.map(|(object, text)| {
        let severity = Severity::Error;
        ConfigFinding { object, severity, text }
    });
    errors.chain(warnings(index, settled)).collect()
}

/// Whatever has no effect, by object.
fn warnings(index: &Index, settled: bool) -> BTreeSet<ConfigFinding> {
    let mut analysis = Analysis {
        index,
        accounts: if settled { accounts(index.workloads()) } else { BTreeMap::new() },
        namespaces: index.known_namespaces(),
        found: BTreeSet::new(),
    };
    services::analyze(&mut analysis);
    routes::analyze(&mut analysis);
    policies::analyze(&mut analysis);
    access::analyze(&mut analysis);
    analysis.found
}

/// Logs whatever is found in a running mesh from now on, once each, until the process ends; gives the problems back.
pub fn start(publisher: &Arc<Publisher>, problems: Arc<Problems>) -> Arc<Problems> {
    tokio::spawn(run(publisher.clone(), problems.clone()));
    problems
}

async fn run(publisher: Arc<Publisher>, problems: Arc<Problems>) {
    let started = Instant::now();
    let mut known = BTreeSet::new();
    let mut seen = None;
    let mut pause = LOOK;
    loop {
        tokio::time::sleep(pause).await;
        let settled = started.elapsed() >= SETTLED;
        let look = (publisher.told(), settled);
        if seen == Some(look) {
            continue;
        }
        seen = Some(look);
        let (publisher, problems) = (publisher.clone(), problems.clone());
        let report = move || {
            let index = publisher.view().index.clone();
            let found: BTreeSet<ConfigFinding> = findings(&index, settled).into_iter().collect();
            log(&found.difference(&known).cloned().collect::<Vec<_>>(), &problems);
            found
        };
        let began = Instant::now();
        known = tokio::task::spawn_blocking(report).await.unwrap_or_default();
        pause = LOOK.max(began.elapsed() * COSTS_AT_MOST);
    }
}

fn log(new: &[ConfigFinding], problems: &Problems) {
    let (shown, more) = new.split_at(new.len().min(MAX_LOGGED));
    for problem in place(shown, problems, |path| std::fs::read_to_string(path).ok()) {
        tracing::warn!("{problem}");
    }
    if !more.is_empty() {
        tracing::warn!(
            count = more.len(),
            "more problems are shown by the admin server at /problems"
        );
    }
}

/// The service accounts of known workloads, by namespace.
fn accounts<'a>(
    workloads: impl Iterator<Item = &'a Workload>,
) -> BTreeMap<&'a str, BTreeSet<&'a str>> {
    let mut accounts: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for workload in workloads {
        accounts.entry(&workload.namespace).or_default().insert(&workload.service_account);
    }
    accounts
}

struct Analysis<'a> {
    index: &'a Index,
    accounts: BTreeMap<&'a str, BTreeSet<&'a str>>,
    namespaces: BTreeSet<String>,
    found: BTreeSet<ConfigFinding>,
}

impl Analysis<'_> {
    fn warn(&mut self, object: &ObjectId, text: String) {
        let (object, severity) = (object.clone(), Severity::Warning);
        self.found.insert(ConfigFinding { object, severity, text });
    }

    /// Whether it can be said that none of a namespace's workloads is meant: where none is known, all of them
    /// may be about to register themselves.
    fn knows_workloads_in(&self, namespace: &str) -> bool {
        self.accounts.contains_key(namespace)
    }

    /// What is wrong with a service account, `namespace/name`, as a caller.
    fn unknown_account(&self, account: &str) -> Option<String> {
        let (namespace, name) = account.split_once('/')?;
        match self.accounts.get(namespace) {
            Some(known) if known.contains(name) => None,
            Some(_) => Some(format!("no known workload runs as {account}")),
            None => self.unknown_namespace(namespace),
        }
    }

    /// The same for a whole namespace.
    fn unknown_namespace(&self, namespace: &str) -> Option<String> {
        // Where no workload is known at all, callers may be anywhere.
        (!self.accounts.is_empty() && !self.namespaces.contains(namespace))
            .then(|| format!("namespace {namespace} is unknown"))
    }

    /// AccessPolicies that are not stand-ins.
    fn access_policies(&self) -> Vec<&Policy> {
        self.index.policies().filter(|policy| policy.closed.is_none()).collect()
    }
}

/// Findings with the file and line of their field, where a file defines the object. `text` reads a file.
pub fn place(
    findings: &[ConfigFinding],
    problems: &Problems,
    text: impl Fn(&Path) -> Option<String>,
) -> Vec<Problem> {
    let mut by_file: BTreeMap<Option<Arc<Path>>, Vec<(&ConfigFinding, u64)>> = BTreeMap::new();
    for finding in findings {
        let (file, line) = problems.place(&finding.object).unzip();
        by_file.entry(file).or_default().push((finding, line.unwrap_or_default()));
    }
    let mut placed = Vec::with_capacity(findings.len());
    for (file, findings) in by_file {
        let wanted: Vec<_> = findings.iter().map(|(f, _)| (&f.object, f.parts().0)).collect();
        let text = file.as_ref().and_then(|file| text(file));
        let lines = text.map_or_else(|| vec![0; wanted.len()], |text| lines_of(&text, &wanted));
        for ((finding, otherwise), line) in findings.into_iter().zip(lines) {
            let (field, problem) = finding.parts();
            placed.push(Problem {
                file: file.as_deref().map(Path::to_owned).unwrap_or_default(),
                line: if line > 0 { line } else { otherwise },
                severity: finding.severity,
                object: Some(finding.object.clone()),
                field: field.to_owned(),
                problem: problem.to_owned(),
            });
        }
    }
    placed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::Kind;

    #[test]
    fn a_field_is_told_from_the_beginning_of_a_sentence() {
        let finding = |text: &str| ConfigFinding {
            object: ObjectId {
                kind: Kind::Service,
                namespace: "bank".to_owned(),
                name: "a".to_owned(),
            },
            severity: Severity::Warning,
            text: text.to_owned(),
        };
        assert_eq!(finding("spec.ports[0]: x: y").parts(), ("spec.ports[0]", "x: y"));
        assert_eq!(finding("left out at a: x").parts(), ("", "left out at a: x"));
        assert_eq!(finding("x").parts(), ("", "x"));
    }
}
