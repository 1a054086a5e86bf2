//! What policies on a route add to the instructions of a request, counted by callgrind: a number that a
//! busy machine does not change. Both proxies of a pair are counted, in user space, joined in memory
//! ([`counted`](../bin/counted.rs)).

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::Failure;
use crate::measure::{get, on_path};
use crate::memory::{Line, line, wait_for, wait_ready};
use crate::peers::{Build, OTHER_CPU, Places, Running, pair_in, token};

/// Requests of the two runs whose difference counts: what is done only once is in both.
const FEW: u32 = 500;
const MANY: u32 = 2_500;
/// Runs of each, of which the least counts: three in ten take 1 % more, by where the allocator's own chance
/// puts things.
const RUNS: usize = 3;
/// Instructions of a request with policies above those without, in percent.
const MOST: f64 = 10.0;

/// None, and it is said: there is no valgrind.
pub fn measure(running: &mut Running, places: &Places) -> Result<Option<Line>, Failure> {
    if !on_path("valgrind") {
        eprintln!("valgrind is not installed: instructions with and without policies are left out");
        return Ok(None);
    }
    let state = places.work.join("counted");
    learn(running, places, &state)?;
    // The caller, the app and what joins them are the same in all.
    let apart = each(places, &state, "direct")?;
    let without = each(places, &state, "plain")? - apart;
    let with = each(places, &state, "policies")? - apart;
    let what = format!("instructions with policies above those without ({with:.0}, {without:.0})");
    Ok(Some(line(&what, (with / without - 1.0) * 100.0, MOST, "%")))
}

/// Leaves in `state` what a real pair is told about both services.
fn learn(running: &mut Running, places: &Places, state: &Path) -> Result<(), Failure> {
    // Of an earlier run.
    let _ = fs::remove_dir_all(state);
    let [inbound, outbound] = ["in", "out"].map(|name| state.join(name).display().to_string());
    let token = token(places, "pair", &Build::NOW.named("control-plane-", ""))?;
    let listen = "127.0.0.1:19981=pair-h1.bench:80,127.0.0.1:19982=policies.bench:80";
    let called = [pair_in(&token, "127.0.0.1:19986"), vec!["--state-dir", &inbound]].concat();
    Build::NOW.proxy(running, places, "counted-in", 19_985, &called)?;
    let calling = ["--listen", listen, "--state-dir", &outbound];
    Build::NOW.proxy(running, places, "counted-out", 19_990, &calling)?;
    for admin in [19_987, 19_992] {
        wait_ready(admin)?;
    }
    for (host, port) in [("pair-h1.bench", 19_981), ("policies.bench", 19_982)] {
        wait_for(|| get(port, host, "/bench").is_ok_and(|text| text.starts_with("HTTP/1.1 200")))?;
    }
    for name in ["in", "out"] {
        let file = state.join(name).join("config");
        wait_for(|| fs::read(&file).is_ok_and(|kept| holds(&kept, b"policies")))?;
    }
    running.stop("counted");
    Ok(())
}

fn holds(kept: &[u8], name: &[u8]) -> bool {
    kept.windows(name.len()).any(|bytes| bytes == name)
}

/// Instructions of one request on one of the ways of `counted`.
fn each(places: &Places, state: &Path, way: &str) -> Result<f64, Failure> {
    let least = |requests| -> Result<u64, Failure> {
        let runs = (0..RUNS).map(|_| count(places, state, way, requests));
        Ok(runs.collect::<Result<Vec<_>, _>>()?.into_iter().min().unwrap_or_default())
    };
    let (few, many) = (least(FEW)?, least(MANY)?);
    Ok(many.saturating_sub(few) as f64 / f64::from(MANY - FEW))
}

/// Instructions of a whole run.
fn count(places: &Places, state: &Path, way: &str, requests: u32) -> Result<u64, Failure> {
    let out = state.join(format!("{way}-{requests}"));
    let done = Command::new("taskset")
        .args(["-c", OTHER_CPU, "valgrind", "--quiet", "--tool=callgrind"])
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(places.bin.join("counted"))
        .args([way, &requests.to_string()])
        .arg(state)
        .output()?;
    if !done.status.success() {
        let said = String::from_utf8_lossy(&done.stderr);
        return Err(format!("counted {way} {requests}: {}: {said}", done.status).into());
    }
    let text = fs::read_to_string(&out)?;
    let total = text.lines().rev().find_map(|line| line.strip_prefix("totals: "));
    let total = total.and_then(|total| total.trim().parse().ok());
    total.ok_or_else(|| format!("callgrind counted nothing in {}", out.display()).into())
}
