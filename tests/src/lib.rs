//! What whole-process tests are made of: a control plane, proxies, apps, and clients that we did not
//! write. Everything listens on loopback, on ports of its own, and ends with the value that holds it.

pub mod apiserver;
pub mod app;
pub mod capture;
pub mod client;
pub mod collector;
pub mod manifests;
pub mod mesh;
pub mod outside;
pub mod process;
pub mod random;

use std::fs::OpenOptions;
use std::io::Write;
use std::time::{Duration, Instant};

/// Longest that a test waits for something that should happen soon.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until `holds`, and fails with `what` if that takes longer than [`PATIENCE`].
#[track_caller]
pub fn eventually(what: &str, holds: impl FnMut() -> bool) -> Duration {
    within(PATIENCE, what, holds)
}

/// Waits until `holds`, at most for `limit`. Returns how long it took.
#[track_caller]
pub fn within(limit: Duration, what: &str, mut holds: impl FnMut() -> bool) -> Duration {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < limit, "not within {limit:?}: {what}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
    began.elapsed()
}

/// Says that a test cannot run here. `cargo xtask test` prints it at the end.
pub fn skip(test: &str, reason: &str) {
    eprintln!("SKIPPED {test}: {reason}");
    if let Some(path) = std::env::var_os("OUTRIGGER_SKIP_LOG")
        && let Ok(mut file) = OpenOptions::new().create(true).append(true).open(path)
    {
        // The line on standard error is there in any case.
        let _ = writeln!(file, "SKIPPED {test}: {reason}");
    }
}
