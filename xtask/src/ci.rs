//! `cargo xtask ci`: everything that must hold before a change is taken, each step timed.

use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use crate::{codegen, test, tidy, workspace};

struct Step {
    name: &'static str,
    /// None: it could not run here.
    held: Option<bool>,
    seconds: f64,
}

pub(crate) fn run() -> ExitCode {
    let mut steps = vec![
        timed("fmt", || Some(cargo(&["fmt", "--all", "--check"], &[]))),
        timed("clippy", || {
            let clippy = ["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"];
            Some(cargo(&clippy, &[]))
        }),
        timed("tidy", || Some(tidy::run() == ExitCode::SUCCESS)),
        timed("codegen", || {
            Some(codegen::run(&codegen::Options { check: true }) == ExitCode::SUCCESS)
        }),
        timed("doc", || {
            Some(cargo(
                &["doc", "--workspace", "--no-deps", "--document-private-items"],
                &[("RUSTDOCFLAGS", "-D warnings -A rustdoc::private_intra_doc_links")],
            ))
        }),
        timed("deny", || has_deny().then(|| cargo(&["deny", "check"], &[]))),
    ];
    let mut tested = ExitCode::FAILURE;
    summary(&steps);
    steps.push(timed("test", || {
        tested = test::run(&test::Options::default());
        Some(tested == ExitCode::SUCCESS)
    }));
    if steps.iter().any(|step| step.held == Some(false)) { ExitCode::FAILURE } else { tested }
}

fn timed(name: &'static str, run: impl FnOnce() -> Option<bool>) -> Step {
    eprintln!("\n== {name}");
    let began = Instant::now();
    let held = run();
    Step { name, held, seconds: began.elapsed().as_secs_f64() }
}

fn cargo(arguments: &[&str], environment: &[(&str, &str)]) -> bool {
    let mut command = workspace::cargo();
    command.args(arguments).envs(environment.iter().copied()).stdin(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

fn has_deny() -> bool {
    let mut command = Command::new("cargo");
    command.args(["deny", "--version"]).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// Before the tests, whose count must stay the last line.
fn summary(steps: &[Step]) {
    eprintln!("\n== so far");
    for Step { name, held, seconds } in steps {
        let word = match held {
            Some(true) => "ok",
            Some(false) => "FAILED",
            None => "skipped: not installed",
        };
        eprintln!("{name:<8} {seconds:>7.1} s  {word}");
    }
}
