//! Commands of others, and what they say.

use std::io::{self, Write};
use std::process::{Command, Stdio};

use serde_json::Value;

/// The kubectl in PATH, for the cluster that KUBECONFIG names.
#[derive(Debug)]
pub(super) struct Kubectl;

impl Kubectl {
    /// Fails if there is none or no cluster answers.
    pub(super) fn new() -> io::Result<Self> {
        let kubectl = Self;
        kubectl.run(&["get", "nodes", "--output=name"])?;
        Ok(kubectl)
    }

    /// What it prints.
    pub(super) fn run(&self, args: &[&str]) -> io::Result<String> {
        output("kubectl", args, "")
    }

    pub(super) fn json(&self, args: &[&str]) -> io::Result<Value> {
        let text = output("kubectl", &[args, &["--output=json"]].concat(), "")?;
        serde_json::from_str(&text).map_err(io::Error::other)
    }

    pub(super) fn apply(&self, manifests: &str) -> io::Result<()> {
        output("kubectl", &["apply", "--filename=-"], manifests).map(drop)
    }
}

/// Runs a program with `input`; its standard output, or why it failed.
pub(super) fn output(program: &str, args: &[&str], input: &str) -> io::Result<String> {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| {
        io::Error::new(error.kind(), format!("cannot start {program}: {error}"))
    })?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that does not read its input says why on its standard error.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let why = String::from_utf8_lossy(&output.stderr);
    let shown = args.iter().take(4).copied().collect::<Vec<_>>().join(" ");
    Err(io::Error::other(format!("{program} {shown}: {}", why.trim())))
}
