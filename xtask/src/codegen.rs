//! `cargo xtask codegen`: the wire types from their `.proto` files, CRDs and their reference from the kinds, and
//! whether the checked-in ones are those.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use clap::Args;

use crate::workspace;

/// Where generated code is; nothing else is in these folders.
const FOLDERS: &[&str] =
    &["proto/src/generated", "examples/simplebank/src/generated", "charts/outrigger/crds"];
/// Generated pages, beside others that are written.
const FILES: &[&str] = &["docs/reference.md", "docs/metrics.md"];

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Change nothing; fail when a checked-in file differs.
    #[arg(long)]
    pub(crate) check: bool,
}

pub(crate) fn run(options: &Options) -> ExitCode {
    let result = match options.check {
        true => check(),
        false => generate(&workspace::root(), false).map(|()| 0),
    };
    match result {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => {
            eprintln!("codegen: run `cargo xtask codegen` and commit what it writes");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("codegen: {error}");
            ExitCode::FAILURE
        }
    }
}

/// `with_all`: by the programs that tests use, and not by such as have only the features of dependencies that they
/// need themselves, which is another build of everything.
fn generate(root: &Path, with_all: bool) -> io::Result<()> {
    let built = |name: &str| match with_all {
        true => workspace::build(&[], &["--workspace", "--all-targets"]),
        false => workspace::build(&[name], &[]),
    };
    let wire = "outrigger-codegen";
    run_built(&built(wire)?, wire, |command| command.arg(root))?;
    let kinds = "outrigger-control-plane";
    run_built(&built(kinds)?, kinds, |command| command.args(["crds", "--repository"]).arg(root))?;
    let proxy = "outrigger-proxy";
    let page = root.join("docs/metrics.md");
    fs::create_dir_all(root.join("docs"))?;
    let page = fs::File::create(page)?;
    run_built(&built(proxy)?, proxy, |command| command.arg("metrics").stdout(page))
}

fn run_built(
    programs: &BTreeMap<String, PathBuf>,
    name: &str,
    arguments: impl FnOnce(&mut Command) -> &mut Command,
) -> io::Result<()> {
    let program =
        programs.get(name).ok_or_else(|| io::Error::other(format!("{name} was not built")))?;
    let mut command = Command::new(program);
    let status = arguments(&mut command).current_dir(workspace::root()).status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other(format!("{name}: {status}"))) }
}

/// How many files differ.
fn check() -> io::Result<usize> {
    let fresh = workspace::target_dir().join("codegen-check");
    let _ = fs::remove_dir_all(&fresh);
    fs::create_dir_all(&fresh)?;
    generate(&fresh, true)?;
    let mut differ = 0;
    for folder in FOLDERS {
        for difference in differences(&workspace::root().join(folder), &fresh.join(folder))? {
            differ += 1;
            eprintln!("codegen: {folder}/{difference}");
        }
    }
    for file in FILES {
        let (old, new) = (fs::read(workspace::root().join(file)), fs::read(fresh.join(file))?);
        if old.ok() != Some(new) {
            differ += 1;
            eprintln!("codegen: {file}: differs from what is generated");
        }
    }
    Ok(differ)
}

fn differences(checked_in: &Path, fresh: &Path) -> io::Result<Vec<String>> {
    let mut names = file_names(checked_in)?;
    names.extend(file_names(fresh)?);
    let mut differences = Vec::new();
    for name in names {
        let shown = name.display();
        let (old, new) = (fs::read(checked_in.join(&name)), fs::read(fresh.join(&name)));
        match (old, new) {
            (Ok(old), Ok(new)) if old == new => {}
            (Ok(_), Ok(_)) => differences.push(format!("{shown}: differs from what is generated")),
            (Err(_), _) => differences.push(format!("{shown}: is generated and not checked in")),
            (_, Err(_)) => differences.push(format!("{shown}: is not generated any more")),
        }
    }
    Ok(differences)
}

fn file_names(folder: &Path) -> io::Result<BTreeSet<PathBuf>> {
    let entries = fs::read_dir(folder)?;
    entries.map(|entry| entry.map(|entry| PathBuf::from(entry.file_name()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_difference_is_told() {
        let root = tempfile::tempdir().unwrap();
        let (old, new) = (root.path().join("old"), root.path().join("new"));
        for (path, text) in [
            (old.join("same.rs"), "1"),
            (new.join("same.rs"), "1"),
            (old.join("other.rs"), "1"),
            (new.join("other.rs"), "2"),
            (old.join("gone.rs"), "1"),
            (new.join("fresh.rs"), "1"),
        ] {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let found = differences(&old, &new).unwrap();
        assert_eq!(
            found,
            [
                "fresh.rs: is generated and not checked in",
                "gone.rs: is not generated any more",
                "other.rs: differs from what is generated",
            ]
        );
    }
}
