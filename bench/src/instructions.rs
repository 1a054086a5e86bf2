//! What policies on a route add to the instructions of a request, counted by callgrind: a number that a
//! busy machine does not change. Both proxies of a pair are counted, in user space.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::Failure;
use crate::measure::{get, on_path, pause};
use crate::memory::{Line, line, wait_ready};
use crate::peers::{OTHER_CPU, Places, Running, outrigger_under, pair_in, token};

/// Requests before the counted ones: what is done only once does not count.
const WARM: u32 = 500;
const COUNTED: u32 = 2_000;
/// Instructions of a request with policies above those without, in percent.
const MOST: f64 = 10.0;
/// How long valgrind may take to write down what it has counted.
const DUMP: Duration = Duration::from_secs(20);

/// None, and it is said: there is no valgrind.
pub fn measure(running: &mut Running, places: &Places) -> Result<Option<Line>, Failure> {
    if !on_path("valgrind") {
        eprintln!("valgrind is not installed: instructions with and without policies are left out");
        return Ok(None);
    }
    let token = token(places, "pair", "control-plane")?;
    let listen = "127.0.0.1:19981=pair-h1.bench:80,127.0.0.1:19982=policies.bench:80";
    let counts = places.work.join("callgrind");
    // Those of an earlier run.
    let _ = fs::remove_dir_all(&counts);
    fs::create_dir_all(&counts)?;
    for (name, outbound, more) in [
        ("counted-in", "127.0.0.1:19985", pair_in(&token, "127.0.0.1:19986")),
        ("counted-out", "127.0.0.1:19990", vec!["--listen", listen]),
    ] {
        let out = format!("--callgrind-out-file={}", counts.join(name).display());
        let under = ["valgrind", "--quiet", "--tool=callgrind", &out];
        outrigger_under(running, places, name, outbound, &more, &under)?;
    }
    for admin in [19_987, 19_992] {
        wait_ready(admin)?;
    }
    for host in [("pair-h1.bench", 19_981), ("policies.bench", 19_982)] {
        serves(host.0, host.1)?;
        requests(host.1, WARM)?;
    }
    counted(running, &counts)?;
    let mut each = [0.0; 2];
    for (port, each) in [19_981, 19_982].into_iter().zip(&mut each) {
        requests(port, COUNTED)?;
        *each = counted(running, &counts)? as f64 / f64::from(COUNTED);
    }
    running.stop("counted");
    let [without, with] = each;
    let what = format!("instructions with policies above those without ({with:.0}, {without:.0})");
    Ok(Some(line(&what, (with / without - 1.0) * 100.0, MOST, "%")))
}

/// Until both ends know what the request needs.
fn serves(host: &str, port: u16) -> Result<(), Failure> {
    crate::memory::wait_for(|| {
        get(port, host, "/bench").is_ok_and(|text| text.starts_with("HTTP/1.1 200"))
    })
}

/// So many requests on one connection, one after the other.
fn requests(port: u16, count: u32) -> Result<(), Failure> {
    let done = Command::new("taskset")
        .args(["-c", OTHER_CPU, "h2load", "--h1", "-c1", "-m1", "-n", &count.to_string()])
        .arg(format!("http://127.0.0.1:{port}/bench"))
        .output()?;
    let text = String::from_utf8_lossy(&done.stdout);
    if !text.contains(&format!(" {count} succeeded")) {
        return Err(format!("not all of {count} requests succeeded:\n{text}").into());
    }
    Ok(())
}

/// Instructions of all counted processes since the last time.
fn counted(running: &Running, counts: &Path) -> Result<u64, Failure> {
    let pids = running.pids("counted");
    let before = files(counts)?.len();
    for pid in &pids {
        let asked = Command::new("callgrind_control")
            .args(["-d", &pid.to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()?;
        if !asked.success() {
            return Err("callgrind_control cannot reach the counted proxies".into());
        }
    }
    let end = Instant::now() + DUMP;
    loop {
        let new: Vec<_> = files(counts)?.into_iter().skip(before).collect();
        let totals: Vec<u64> = new.iter().filter_map(|file| total(file)).collect();
        if totals.len() == pids.len() {
            return Ok(totals.iter().sum());
        }
        if Instant::now() > end {
            return Err(format!("callgrind wrote {} of {} counts", totals.len(), pids.len()).into());
        }
        pause(Duration::from_millis(50));
    }
}

/// What has been written so far, the oldest first.
fn files(counts: &Path) -> Result<Vec<std::path::PathBuf>, Failure> {
    let mut files = Vec::new();
    for entry in fs::read_dir(counts)? {
        let entry = entry?;
        files.push((entry.metadata()?.created()?, entry.path()));
    }
    files.sort();
    Ok(files.into_iter().map(|(_, path)| path).collect())
}

/// The last line of a whole dump says the sum of all.
fn total(file: &Path) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    let totals = text.lines().rev().find_map(|line| line.strip_prefix("totals: "))?;
    totals.trim().parse().ok()
}
