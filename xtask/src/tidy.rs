//! `cargo xtask tidy`: rules of the repository that a compiler does not check.
//!
//! Each file here is one kind of rule, as a function from text to problems, so that a bad example
//! shows that it bites: [`layers`] who may depend on whom, [`modules`] the same inside a crate, [`documents`] whether the pages are
//! true, [`sources`] how the code must look, [`words`] what things are called.

mod documents;
mod layers;
mod modules;
mod sources;
mod words;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use serde_json::Value;

use crate::workspace;

/// A file of the repository: its path from the root, and its text.
pub(crate) type SourceFile = (PathBuf, String);

pub(crate) fn run() -> ExitCode {
    match check() {
        Ok(problems) if problems.is_empty() => {
            eprintln!("tidy: all well");
            ExitCode::SUCCESS
        }
        Ok(problems) => {
            for problem in &problems {
                eprintln!("tidy: {problem}");
            }
            eprintln!("tidy: {} problems", problems.len());
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("tidy: {error}");
            ExitCode::FAILURE
        }
    }
}

fn check() -> io::Result<Vec<String>> {
    let root = workspace::root();
    let paths = files(&root)?;
    let code: Vec<SourceFile> = paths
        .iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .filter_map(|path| Some((path.clone(), fs::read_to_string(root.join(path)).ok()?)))
        .collect();
    let read = |path: &str| {
        fs::read_to_string(root.join(path))
            .map_err(|error| io::Error::new(error.kind(), format!("{path}: {error}")))
    };
    let mut problems = layers::check(&metadata()?);
    problems.extend(modules::check(&code));
    problems.extend(documents::check_architecture(&read("ARCHITECTURE.md")?, &paths, &code));
    for page in ["docs/life-of-a-request.md", "docs/life-of-a-config.md"] {
        problems.extend(documents::check_names(page, &read(page)?, &paths, &code));
    }
    problems.extend(documents::check_glossary(&read("docs/glossary.md")?));
    problems.extend(documents::check_questions(&read("docs/questions.md")?, &code));
    let kinds = (
        read("control-plane/src/kinds/traffic_policy.rs")?,
        read("control-plane/src/kinds/server_policy.rs")?,
    );
    let kinds = [(&*kinds.0, "TrafficPolicySpec"), (&*kinds.1, "ServerPolicySpec")];
    problems.extend(documents::check_sections(&read("core/src/policy/section.rs")?, &kinds));
    problems.extend(documents::check_metrics(&read("proxy/src/observe/metrics/table.rs")?, &code));
    let reasons = (read("core/src/reason.rs")?, read("docs/reasons.md")?);
    problems.extend(documents::check_reasons(&reasons.0, &reasons.1));
    problems.extend(code.iter().flat_map(|(path, text)| sources::check(path, text)));
    problems.extend(words::check_types(&code));
    for path in paths.iter().filter(|path| words::is_checked(path)) {
        problems.extend(words::check(path, &fs::read_to_string(root.join(path))?));
    }
    Ok(problems)
}

/// Every file that is, or is about to be, in the repository.
fn files(root: &Path) -> io::Result<Vec<PathBuf>> {
    let output = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root)
        .stderr(Stdio::inherit())
        .output()?;
    if !output.status.success() {
        return Err(io::Error::other("git does not list the files"));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().map(PathBuf::from).filter(|path| root.join(path).exists()).collect())
}

/// What cargo knows of every crate, for this machine's platform: others may not be downloaded.
fn metadata() -> io::Result<Value> {
    let mut command = workspace::cargo();
    command.args(["metadata", "--format-version=1"]);
    command.args(["--filter-platform", &workspace::host()?]);
    let output = command.stderr(Stdio::inherit()).output()?;
    if !output.status.success() {
        return Err(io::Error::other("cargo metadata failed"));
    }
    serde_json::from_slice(&output.stdout).map_err(io::Error::other)
}
