//! A disk that stalls: what is written to it waits, and nothing else.

use std::path::Path;
use std::time::{Duration, Instant};

use outrigger_tests::app::Echo;
use outrigger_tests::client::{Curl, http_get};
use outrigger_tests::eventually;
use outrigger_tests::manifests::unmeshed;
use outrigger_tests::process::{ControlPlane, Proxy};
use rustix::fs::{CWD, FileType, Mode, mknodat};

/// Longer than it takes until a copy is due, several times.
const LONG_ENOUGH: Duration = Duration::from_secs(4);

/// A file that nobody can open for writing before somebody reads it.
fn stalled(path: &Path) {
    mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("a pipe with a name");
}

#[test]
fn a_proxy_whose_state_is_on_a_stalled_disk_serves_learns_and_ends() {
    let app = Echo::start("app");
    let plane = ControlPlane::start(&[("app.yaml", &unmeshed("app", "http", app.port))]);
    let state = plane.dir.path().join("stalled");
    std::fs::create_dir(&state).expect("a folder");
    // Where a copy is written before it is moved into its place.
    stalled(&state.join("config.new"));
    let state = state.display().to_string();
    let mut caller = Proxy::caller(&plane, &["--state-dir", &state, "--drain-timeout", "1s"]);
    let (began, mut n) = (Instant::now(), 0);
    while began.elapsed() < LONG_ENOUGH {
        n += 1;
        // Each is a reason to write another copy.
        let name = format!("app-{n}");
        plane.write("more.yaml", &unmeshed(&name, "http", app.port));
        eventually("the proxy learns of a new service", || {
            Curl::through(&caller).get(&format!("http://{name}.bank/")).status == 200
        });
        let began = Instant::now();
        assert_eq!(Curl::through(&caller).get("http://app.bank/").status, 200);
        assert_eq!(http_get(caller.admin, "/live").map(|answer| answer.0), Some(200));
        assert!(began.elapsed() < Duration::from_secs(1), "{n}: {:?}", began.elapsed());
    }
    caller.process().terminate();
    assert!(caller.process().wait(Duration::from_secs(20)).success());
    // The disk was in the way, or all this would prove nothing.
    caller.wait_log(&["the disk copy of the configuration is not written in time"]);
}
