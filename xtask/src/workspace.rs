//! Where the repository and its build output are, and how cargo is called.

use std::collections::BTreeMap;
use std::env;
use std::io;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

/// The repository's own folder.
pub(crate) fn root() -> PathBuf {
    let xtask = env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    xtask.parent().map_or_else(|| xtask.clone(), PathBuf::from)
}

pub(crate) fn target_dir() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// The cargo that runs this task, in the repository.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    // What cargo tells a program that it runs is not meant for the next cargo.
    for (name, _) in env::vars_os() {
        if name.to_string_lossy().starts_with("CARGO_PKG_") {
            command.env_remove(name);
        }
    }
    command.env_remove("CARGO_MANIFEST_DIR").env_remove("CARGO_MANIFEST_PATH");
    command
}

/// Builds `packages` and returns their programs by name. Cargo itself shows the progress.
pub(crate) fn build(packages: &[&str], more: &[&str]) -> io::Result<BTreeMap<String, PathBuf>> {
    build_by(cargo(), packages, more)
}

/// The same without shared libraries, for a program that runs on systems that are not known. With `--target` alone what
/// runs while it is built stays as it is.
pub(crate) fn build_static(
    package: &str,
    target: Option<&str>,
    more: &[&str],
) -> io::Result<BTreeMap<String, PathBuf>> {
    let target = target.map_or_else(host, |target| Ok(target.to_owned()))?;
    let variable = target.to_uppercase().replace(['-', '.'], "_");
    let mut command = cargo();
    command.env(format!("CARGO_TARGET_{variable}_RUSTFLAGS"), "-C target-feature=+crt-static");
    build_by(command, &[package], &[more, &["--target", &target]].concat())
}

/// The triple of this machine.
pub(crate) fn host() -> io::Result<String> {
    let version = Command::new("rustc").arg("-vV").current_dir(root()).output()?;
    let version = String::from_utf8_lossy(&version.stdout).into_owned();
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).ok_or_else(|| io::Error::other("rustc -vV does not say its host"))
}

fn build_by(
    mut command: Command,
    packages: &[&str],
    more: &[&str],
) -> io::Result<BTreeMap<String, PathBuf>> {
    command.args(["build", "--message-format=json-render-diagnostics"]).args(more);
    for package in packages {
        command.args(["--package", package]);
    }
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output()?;
    if !output.status.success() {
        return Err(io::Error::other(format!("the build failed ({})", output.status)));
    }
    Ok(programs(&String::from_utf8_lossy(&output.stdout)))
}

/// `30s`, `2m`.
pub(crate) fn parse_time(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a time such as 30s or 2m");
    let at = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
    let (number, unit) = text.split_at(at);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let seconds = match unit {
        "s" => Some(number),
        "m" => number.checked_mul(60),
        _ => None,
    };
    seconds.map(Duration::from_secs).ok_or_else(wrong)
}

fn programs(messages: &str) -> BTreeMap<String, PathBuf> {
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let programs = messages.filter_map(|message| {
        // The tests of a program have its name.
        if message["profile"]["test"] == true {
            return None;
        }
        let name = message["target"]["name"].as_str()?.to_owned();
        Some((name, PathBuf::from(message["executable"].as_str()?)))
    });
    programs.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_read_from_cargos_messages() {
        let messages = concat!(
            r#"{"reason":"compiler-artifact","target":{"name":"a"},"executable":null}"#,
            "\n",
            r#"{"reason":"compiler-artifact","target":{"name":"b"},"executable":"/t/b"}"#,
            "\n",
            r#"{"reason":"compiler-artifact","target":{"name":"b"},"profile":{"test":true},"executable":"/t/b-1"}"#,
            "\nwarning: not JSON\n"
        );
        let found = programs(messages);
        assert_eq!(found.len(), 1);
        assert_eq!(found["b"], PathBuf::from("/t/b"));
    }
}
