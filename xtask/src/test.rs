//! `cargo xtask test`: every test that can run on this machine, and what could not, with the
//! reason. The last line is the count.

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use clap::Args;

use crate::workspace::{self, parse_time};

/// Names the file to which a test that cannot run here writes `SKIPPED <test>: <reason>`.
const SKIP_LOG: &str = "OUTRIGGER_SKIP_LOG";

/// Tells the soak test how long it takes, in seconds.
const SOAK: &str = "OUTRIGGER_SOAK";
/// Shorter than this, memory has not come to rest when it is compared.
const SHORTEST_SOAK: Duration = Duration::from_secs(120);

/// Properties that are shown by many cases, by the module that their tests are in.
const SUITES: [(&str, &str); 5] = [
    ("accepted implies compiled", "accepted::"),
    ("adversary", "adversary::"),
    ("replay", "replay::"),
    ("skew", "skew::"),
    ("stall", "stall::"),
];

#[derive(Debug, Default, Args)]
pub(crate) struct Options {
    /// Run the long form of the soak test alone, for this long (10m): certificates of one minute,
    /// 500 requests a second, no failure, and memory that does not grow.
    #[arg(long, value_name = "TIME", value_parser = parse_soak)]
    soak: Option<Duration>,
}

fn parse_soak(text: &str) -> Result<Duration, String> {
    let time = parse_time(text)?;
    if time < SHORTEST_SOAK {
        return Err(format!("it needs at least {} s", SHORTEST_SOAK.as_secs()));
    }
    Ok(time)
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Count {
    passed: u64,
    failed: u64,
    /// Passed and failed tests of each of [`SUITES`].
    suites: [(u64, u64); SUITES.len()],
}

pub(crate) fn run(options: &Options) -> ExitCode {
    let skip_log = workspace::target_dir().join("skipped-tests.log");
    let _ = fs::create_dir_all(workspace::target_dir());
    let _ = fs::remove_file(&skip_log);
    let (count, succeeded) = match test(&skip_log, options.soak) {
        Ok(result) => result,
        Err(error) => {
            eprintln!("test: {error}");
            (Count::default(), false)
        }
    };
    let log = fs::read_to_string(&skip_log).unwrap_or_default();
    let skipped = skipped(&log);
    for line in &skipped {
        eprintln!("{line}");
    }
    for ((name, _), (passed, failed)) in SUITES.iter().zip(count.suites) {
        eprintln!("suite {name}: {passed} passed, {failed} failed");
    }
    // To standard output, where a script looks for it; everything before went to standard error.
    let _ = writeln!(io::stdout(), "{}", last_line(count, skipped.len(), succeeded));
    if succeeded && count.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn test(skip_log: &Path, soak: Option<Duration>) -> io::Result<(Count, bool)> {
    // The programs that tests start, together with the tests: built apart, dependencies would get
    // other features and be compiled twice.
    workspace::build(&[], &["--workspace", "--all-targets"])?;
    let nextest = soak.is_none() && has_nextest();
    let mut command = workspace::cargo();
    if let Some(length) = soak {
        // Its numbers are told by what it prints.
        command.args(["test", "--workspace", "--test", "loopback", "soak::", "--", "--nocapture"]);
        command.env(SOAK, length.as_secs().to_string());
    } else if nextest {
        command.args(["nextest", "run", "--workspace", "--no-fail-fast"]);
    } else {
        eprintln!("cargo-nextest is not installed: cargo test runs the tests");
        command.args(["test", "--workspace", "--no-fail-fast"]);
    }
    command.env(SKIP_LOG, skip_log).stdin(Stdio::null());
    // Each writes its results there; what else they write goes straight through.
    if nextest {
        command.stderr(Stdio::piped())
    } else {
        command.stdout(Stdio::piped())
    };
    let mut child = command.spawn()?;
    let mut count = Count::default();
    if let Some(errors) = child.stderr.take() {
        copy(errors, |line| count.add_nextest(line));
    }
    if let Some(results) = child.stdout.take() {
        copy(results, |line| count.add_libtest(line));
    }
    let status = child.wait()?;
    Ok((count, status.success()))
}

fn has_nextest() -> bool {
    let mut command = Command::new("cargo");
    command.args(["nextest", "--version"]).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// Shows every line and hands it on.
fn copy(from: impl io::Read, mut each: impl FnMut(&str)) {
    for line in BufReader::new(from).lines().map_while(Result::ok) {
        eprintln!("{line}");
        each(&line);
    }
}

impl Count {
    /// `Summary [ 1.2s] 16 tests run: 13 passed (1 slow), 2 failed, 1 timed out, 4 skipped`
    fn add_nextest(&mut self, line: &str) {
        // `PASS [   0.004s] (1/9) package::binary module::test`
        match line.trim_start().split(' ').next() {
            Some("PASS") => self.add_to_suite(line, true),
            Some("FAIL" | "TIMEOUT" | "SIGABRT" | "SIGSEGV") => self.add_to_suite(line, false),
            _ => {}
        }
        let Some((head, results)) = line.split_once(" run: ") else { return };
        if !head.contains("Summary [") {
            return;
        }
        for result in results.split(", ") {
            let Some((number, word)) = result.trim().split_once(' ') else { continue };
            let number: u64 = number.parse().unwrap_or(0);
            match word.split(' ').next() {
                Some("passed") => self.passed += number,
                Some("skipped") | None => {}
                // Failed, timed out, failed to start: none of them passed.
                Some(_) => self.failed += number,
            }
        }
    }

    /// `test result: FAILED. 15 passed; 1 failed; 0 ignored; ...`
    fn add_libtest(&mut self, line: &str) {
        // `test module::test ... ok`
        if line.starts_with("test ") && !line.starts_with("test result") {
            self.add_to_suite(line.split(" ... ").next().unwrap_or(line), line.ends_with("ok"));
        }
        let Some(results) = line.strip_prefix("test result: ") else { return };
        let number = |word: &str| {
            let before = results.split(word).next()?;
            before.rsplit([' ', ';']).find(|part| !part.is_empty())?.parse::<u64>().ok()
        };
        self.passed += number(" passed").unwrap_or(0);
        self.failed += number(" failed").unwrap_or(0);
    }
}

impl Count {
    fn add_to_suite(&mut self, line: &str, passed: bool) {
        let test = line.rsplit(' ').next().unwrap_or_default();
        let suites = SUITES.iter().zip(&mut self.suites);
        for (_, (good, bad)) in suites.filter(|((_, module), _)| test.starts_with(module)) {
            *good += u64::from(passed);
            *bad += u64::from(!passed);
        }
    }
}

/// Distinct lines of the skip log, in order.
fn skipped(log: &str) -> Vec<&str> {
    let mut lines: Vec<&str> = log.lines().filter(|line| line.starts_with("SKIPPED ")).collect();
    lines.sort_unstable();
    lines.dedup();
    lines
}

/// A test that skipped itself has passed for its runner, and has shown nothing.
fn last_line(count: Count, skipped: usize, succeeded: bool) -> String {
    let skips = u64::try_from(skipped).unwrap_or(0);
    let passed = count.passed.saturating_sub(skips);
    // A run that broke before its count, as when a test does not compile, is a failure.
    let failed = if succeeded { count.failed } else { count.failed.max(1) };
    let mut line = format!("{passed} passed, {failed} failed");
    if skipped > 0 {
        line.push_str(&format!(", {skipped} skipped"));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_runners_counts_are_read() {
        let mut count = Count::default();
        count.add_nextest("     Summary [   1.204s] 16 tests run: 13 passed (1 slow), 2 failed, 1 timed out, 4 skipped");
        count.add_nextest("        PASS [   0.004s] x tests::run: 1 passed");
        assert_eq!(count, Count { passed: 13, failed: 3, ..Count::default() });
        count.add_nextest("        PASS [  40.004s] (3/9) x::it accepted::whatever");
        count.add_nextest("        FAIL [  40.004s] (4/9) x::it accepted::other");
        assert_eq!(count.suites[0], (1, 1));
        let mut count = Count::default();
        count.add_libtest(
            "test result: ok. 15 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out",
        );
        count.add_libtest("test result: FAILED. 2 passed; 1 failed; 0 ignored");
        count.add_libtest("running 2 tests");
        assert_eq!(count, Count { passed: 17, failed: 1, ..Count::default() });
        count.add_libtest("test accepted::whatever ... ok");
        assert_eq!(count.suites[0], (1, 0));
    }

    #[test]
    fn the_last_line_counts_what_was_shown() {
        let count = Count { passed: 10, ..Count::default() };
        assert_eq!(last_line(count, 0, true), "10 passed, 0 failed");
        let log = "SKIPPED b: no root\nnoise\nSKIPPED a: no wrk\nSKIPPED b: no root\n";
        assert_eq!(skipped(log), ["SKIPPED a: no wrk", "SKIPPED b: no root"]);
        assert_eq!(last_line(count, 2, true), "8 passed, 0 failed, 2 skipped");
        assert_eq!(last_line(Count::default(), 0, false), "0 passed, 1 failed");
    }
}
