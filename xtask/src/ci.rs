//! `cargo xtask ci`: everything that must hold before a change is taken, each step timed.

use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use crate::{codegen, test, tidy, workspace};

struct Step {
    name: &'static str,
    held: Held,
    seconds: f64,
}

/// What became of a step.
enum Held {
    Yes,
    No,
    /// It could not run here, and why.
    Skipped(&'static str),
}

impl From<bool> for Held {
    fn from(held: bool) -> Self {
        if held { Self::Yes } else { Self::No }
    }
}

pub(crate) fn run() -> ExitCode {
    let mut steps = vec![
        timed("fmt", || cargo(&["fmt", "--all", "--check"], &[]).into()),
        timed("clippy", || {
            let clippy = ["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"];
            cargo(&clippy, &[]).into()
        }),
        timed("fuzz", fuzz_targets),
        timed("tidy", || (tidy::run() == ExitCode::SUCCESS).into()),
        timed("codegen", || {
            (codegen::run(&codegen::Options { check: true }) == ExitCode::SUCCESS).into()
        }),
        timed("doc", || {
            cargo(
                &["doc", "--workspace", "--no-deps", "--document-private-items"],
                &[("RUSTDOCFLAGS", "-D warnings -A rustdoc::private_intra_doc_links")],
            )
            .into()
        }),
        timed("deny", || match has_deny() {
            true => cargo(&["deny", "check", "bans", "licenses", "sources"], &[]).into(),
            false => Held::Skipped("cargo-deny is not installed"),
        }),
        timed("advisories", advisories),
    ];
    let mut tested = ExitCode::FAILURE;
    summary(&steps);
    steps.push(timed("test", || {
        tested = test::run(&test::Options::default());
        (tested == ExitCode::SUCCESS).into()
    }));
    let failed = steps.iter().any(|step| matches!(step.held, Held::No));
    if failed { ExitCode::FAILURE } else { tested }
}

fn timed(name: &'static str, run: impl FnOnce() -> Held) -> Step {
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
    succeeds(&["deny", "--version"])
}

/// Whether the fuzz targets compile: they are behind features, so that no other step builds them.
fn fuzz_targets() -> Held {
    if !runs(Command::new("c++").arg("--version")) {
        return Held::Skipped("there is no C++ compiler, which libFuzzer needs");
    }
    let targets = ["-p", "outrigger-fuzz", "--all-targets", "--features", "proxy,control-plane"];
    cargo(&[&["clippy"], &targets[..], &["--", "-D", "warnings"]].concat(), &[]).into()
}

/// Known weaknesses of what is linked. Their database is a repository that is not to be had everywhere, and
/// without it nothing is known.
fn advisories() -> Held {
    if !has_deny() {
        return Held::Skipped("cargo-deny is not installed");
    }
    if !succeeds(&["deny", "fetch", "db"]) {
        return Held::Skipped("the advisory database cannot be fetched from here");
    }
    cargo(&["deny", "check", "advisories"], &[]).into()
}

fn succeeds(arguments: &[&str]) -> bool {
    let mut command = Command::new("cargo");
    command.args(arguments);
    // Git waits for minutes otherwise, where a network takes connections and answers nothing.
    command.envs([("GIT_HTTP_LOW_SPEED_LIMIT", "1000"), ("GIT_HTTP_LOW_SPEED_TIME", "20")]);
    runs(&mut command)
}

fn runs(command: &mut Command) -> bool {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// Before the tests, whose count must stay the last line.
fn summary(steps: &[Step]) {
    eprintln!("\n== so far");
    for Step { name, held, seconds } in steps {
        let (word, why) = match held {
            Held::Yes => ("ok", ""),
            Held::No => ("FAILED", ""),
            Held::Skipped(why) => ("skipped: ", *why),
        };
        eprintln!("{name:<10} {seconds:>7.1} s  {word}{why}");
    }
}
