//! The control plane with a large mesh and a thousand proxies: what a change costs and how soon it is
//! everywhere, what a session costs, and how soon all is well after a start and after broken streams.
//!
//! [`folder`] writes the mesh; [`clients`](../bin/clients/main.rs) are the proxies, in processes of their
//! own. Nothing is pinned: control plane and clients share both processors, as on a machine with nothing
//! else to do.

mod figures;
mod folder;
mod program;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant, UNIX_EPOCH};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::Deserialize;

use crate::Failure;
use crate::measure::{CpuByThread, get, pause, pss};
use crate::memory::line;
use crate::peers::{ANY_CPU, Places, Running};
pub use figures::Figures;
use figures::{millis, quantile};
use folder::Folder;
use program::Program;

const NAME: &str = "measured-control-plane";
const ADDRESS: &str = "127.0.0.1:19880";
const LISTEN: u16 = 19_880;
const ADMIN: u16 = 19_882;
/// Open connections, of both sides, and some.
const FILES: u64 = 8_192;

/// Changes of one endpoint, one after another.
const CHANGES: usize = 50;
/// Changes while names are asked for that nobody knows.
const CHANGES_MEANWHILE: usize = 20;
/// How long nothing happens before the memory is looked at.
const REST: Duration = Duration::from_secs(8);
/// How long the control plane works in peace on what is left after a change is everywhere, at least.
const SETTLE: Duration = Duration::from_millis(200);
/// It has nothing left to do when it needs less of a processor than `QUIET` in `LOOK`: what a thousand
/// idle connections ask for is a tenth of that.
const LOOK: Duration = Duration::from_millis(100);
const QUIET: Duration = Duration::from_millis(3);
/// Between connections that break and their return: the change meanwhile is committed.
const ABSENCE: Duration = Duration::from_millis(500);
/// Anything that takes longer fails the case.
const LIMIT: Duration = Duration::from_secs(120);

/// CPU of a change of one endpoint, median, in milliseconds.
const MOST_CPU: f64 = 10.0;
/// p99 from commit to receipt, in milliseconds.
const MOST_LATENCY: f64 = 100.0;
/// Wall time of a name that nobody knows, in microseconds, and of the last above that of the first.
const MOST_UNKNOWN: f64 = 50.0;
const MOST_GROWTH: f64 = 1.5;
/// Of an idle session, and of the whole process.
const MOST_SESSION_KIB: f64 = 25.0;
const MOST_MIB: f64 = 350.0;
/// From the start to everything published, and from broken streams to all current, in seconds.
const MOST_START: f64 = 8.0;
const MOST_RECONNECT: f64 = 5.0;

/// A step that all clients of a process have taken.
#[derive(Deserialize)]
struct Step {
    us: u64,
    /// Streams that could not be opened, or broke.
    broken: u64,
}

#[derive(Deserialize)]
struct Held {
    held: BTreeMap<String, usize>,
}

#[derive(Deserialize)]
struct Holders {
    holders: usize,
}

#[derive(Deserialize)]
struct News {
    commit: u64,
    latencies_us: Vec<u64>,
    missing: usize,
}

#[derive(Deserialize)]
struct Dropped {
    dropped: usize,
}

#[derive(Deserialize)]
struct Reconnected {
    current_us: u64,
    resources: u64,
    removed: u64,
    broken: u64,
    missing: usize,
}

/// Everything that a phase needs.
struct Bench<'a> {
    // Ended before the folder goes away.
    running: Running,
    folder: Folder,
    places: &'a Places,
    pid: u32,
    /// Largest proportional set size at rest so far, in KiB.
    most_kib: u64,
}

/// What was measured; `report` has the lines of all phases that went well also where one did not.
pub fn measure(places: &Places, rounds: usize, report: &mut Figures) -> Result<(), Failure> {
    raise_file_limit()?;
    let folder = Folder::write(&places.work.join("control-plane-case"))?;
    let mut bench = Bench { running: Running::new(), folder, places, pid: 0, most_kib: 0 };
    let measured = phases(&mut bench, rounds, report);
    measured.map_err(|error| match bench.running.ended(NAME) {
        Some(status) => {
            format!("the control plane has ended ({status}), {NAME}.log says why: {error}").into()
        }
        None => error,
    })
}

fn phases(bench: &mut Bench<'_>, rounds: usize, report: &mut Figures) -> Result<(), Failure> {
    let everything = bench.start(report)?;
    let mut sessions = bench.sessions(everything, report)?;
    let endpoints = bench.held(&mut sessions)?;
    bench.changes(&mut sessions, &endpoints, report)?;
    bench.unknown(&mut sessions, &endpoints, report)?;
    bench.reconnects(&mut sessions, &endpoints, rounds, report)?;
    drop(sessions);
    bench.rest()?;
    let peak = peak_mib(bench.pid).map(|peak| format!(" (at its peak {peak:.0})"));
    let what = format!("largest size at rest (PSS){}", peak.unwrap_or_default());
    report.line(line(&what, bench.most_kib as f64 / 1024.0, MOST_MIB, "MiB"));
    Ok(())
}

impl Bench<'_> {
    /// From the start of the process to a client that has tried to connect since then and has the last
    /// destination of the last file, endpoints and all, while `/ready` says so, too. That client goes on to
    /// ask for everything, so that nothing is left that a session would be the first to have made.
    fn start(&mut self, report: &mut Figures) -> Result<Program, Failure> {
        let plan = self.folder.plan("everything", &folder::of_everything())?;
        let (manifests, state) = (self.folder.manifests(), self.folder.state());
        let text = |path: &Path| path.display().to_string();
        let admin = format!("127.0.0.1:{ADMIN}");
        let (manifests, state) = (text(&manifests), text(&state));
        let args = ["--manifests", &manifests, "--state-dir", &state, "--listen", ADDRESS]
            .into_iter()
            .chain(["--admin", &admin, "--identity", "off", "--exit-with-parent"]);
        let began = Instant::now();
        let places = self.places;
        let args: Vec<&str> = args.collect();
        let program = &places.control_plane;
        self.pid = self.running.spawn(places, (NAME, ANY_CPU), &[LISTEN, ADMIN], program, &args)?;
        let everything = Program::start(places, "everything", ADDRESS, &plan)?;
        let _: Step = everything.hear("the last destination of the last file", LIMIT)?;
        let ready =
            || get(ADMIN, "admin", "/ready").is_ok_and(|text| text.starts_with("HTTP/1.1 200"));
        while !ready() {
            if began.elapsed() > LIMIT {
                return Err("/ready never said so".into());
            }
            pause(Duration::from_millis(5));
        }
        let published = began.elapsed();
        let _: Step = everything.hear("all 10,000 destinations", LIMIT)?;
        let all = began.elapsed().as_secs_f64();
        let what = format!("from the start to everything published ({all:.1} to one client)");
        report.line(line(&what, published.as_secs_f64(), MOST_START, "s"));
        Ok(everything)
    }

    /// Connects all sessions; what they add to the memory while that of everything is there already.
    fn sessions(&mut self, everything: Program, report: &mut Figures) -> Result<Program, Failure> {
        let without = self.rest()?;
        let plan = self.folder.plan("sessions", &folder::sessions())?;
        let sessions = Program::start(self.places, "sessions", ADDRESS, &plan)?;
        let step: Step = sessions.hear("1,000 sessions current", LIMIT)?;
        report.add("1,000 new sessions current", "ms", &[step.us as f64 / 1e3]);
        if step.broken > 0 {
            eprintln!("{} streams broke before all sessions were current", step.broken);
        }
        let with = self.rest()?;
        let each = with.saturating_sub(without) as f64 / folder::SESSIONS as f64;
        report.line(line("each of 1,000 idle sessions (PSS)", each, MOST_SESSION_KIB, "KiB"));
        drop(everything);
        Ok(sessions)
    }

    /// Endpoints of the large Service that sessions hold, those of most sessions first.
    fn held(&mut self, sessions: &mut Program) -> Result<Vec<(String, usize)>, Failure> {
        sessions.say(&format!("held {}", folder::LARGE_ENDPOINTS))?;
        let Held { held } = sessions.hear("what the sessions hold", LIMIT)?;
        let mut held: Vec<_> = held.into_iter().collect();
        held.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        let numbered = held.into_iter().filter_map(|(name, _)| {
            let number = folder::large_endpoint(&name)?;
            Some((name, number))
        });
        let endpoints: Vec<_> = numbered.take(CHANGES / 2).collect();
        if endpoints.len() < CHANGES / 2 {
            return Err("the sessions hold nothing of the large Service".into());
        }
        Ok(endpoints)
    }

    fn changes(
        &mut self,
        sessions: &mut Program,
        endpoints: &[(String, usize)],
        report: &mut Figures,
    ) -> Result<(), Failure> {
        self.settle()?;
        let (mut changes, mut cpu) = (Changes::default(), Vec::new());
        for turn in 0..CHANGES {
            let before = CpuByThread::of(self.pid)?;
            self.change(sessions, &endpoints[turn / 2], &mut changes)?;
            self.settle()?;
            cpu.push(millis(CpuByThread::of(self.pid)?.since(&before)));
        }
        let median = quantile(&cpu, 0.5);
        report.line(line(
            "CPU of a change of one endpoint of 10,000, median",
            median,
            MOST_CPU,
            "ms",
        ));
        report.add("CPU of a change", "ms", &cpu);
        changes.report("", report);
        Ok(())
    }

    /// An endpoint that is ready is no longer, or is again; over when everybody has heard who has to.
    fn change(
        &mut self,
        sessions: &mut Program,
        (name, number): &(String, usize),
        changes: &mut Changes,
    ) -> Result<(), Failure> {
        sessions.say(&format!("watch {name}"))?;
        let Holders { holders } = sessions.hear("who holds an endpoint", LIMIT)?;
        let written = self.folder.turn(*number)?;
        let news: News = sessions.hear("a change of one endpoint", LIMIT)?;
        if news.missing > 0 || holders == 0 {
            let missing = news.missing;
            return Err(
                format!("{missing} of {holders} never heard that {name} has changed").into()
            );
        }
        let written = written.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as f64;
        let until_commit = (news.commit as f64 - written) / 1e6;
        for latency in news.latencies_us {
            changes.commit_ms.push(latency as f64 / 1e3);
            changes.written_ms.push(until_commit + latency as f64 / 1e3);
        }
        Ok(())
    }

    /// Names that nobody knows, asked for by a client that comes anew as soon as it has all answers,
    /// while endpoints change.
    fn unknown(
        &mut self,
        sessions: &mut Program,
        endpoints: &[(String, usize)],
        report: &mut Figures,
    ) -> Result<(), Failure> {
        let plan = self.folder.plan("unknown", &folder::of_nothing())?;
        let asker = Program::start(self.places, "unknown", ADDRESS, &plan)?;
        let stop = AtomicBool::new(false);
        let mut changes = Changes::default();
        let (asked, changed) = std::thread::scope(|scope| {
            let asking = scope.spawn(|| ask(asker, &stop));
            let mut turns = 0..CHANGES_MEANWHILE;
            let changed = turns
                .try_for_each(|turn| self.change(sessions, &endpoints[turn / 2], &mut changes));
            stop.store(true, Relaxed);
            (asking.join(), changed)
        });
        let asked = asked.map_err(|_| "who asks for unknown names has ended")??;
        changed.map_err(|error| format!("while unknown names are asked for: {error}"))?;
        let each: Vec<f64> = asked.iter().map(|times| quantile(times, 0.5)).collect();
        let (first, last) = (each[0], each[each.len() - 1]);
        let most = each.iter().copied().fold(0.0, f64::max);
        let what =
            format!("each of 9,000 unknown names, in the slowest thousand (first {first:.1})");
        report.line(line(&what, most, MOST_UNKNOWN, "us"));
        report.line(line(
            "last thousand unknown names / first",
            last / first,
            MOST_GROWTH,
            "times",
        ));
        for (number, times) in (1..).zip(asked) {
            report.add(&format!("unknown name, thousand {number}"), "us", &times);
        }
        changes.report(" while unknown names come", report);
        Ok(())
    }

    /// All streams break, an endpoint changes, and all come back at once.
    fn reconnects(
        &mut self,
        sessions: &mut Program,
        endpoints: &[(String, usize)],
        rounds: usize,
        report: &mut Figures,
    ) -> Result<(), Failure> {
        let (mut times, mut sent, mut broken) = (Vec::new(), 0, 0);
        for round in 0..rounds.max(1) {
            let (name, number) = &endpoints[round % endpoints.len()];
            sessions.say("drop")?;
            let Dropped { dropped } = sessions.hear("broken streams", LIMIT)?;
            self.folder.turn(*number)?;
            pause(ABSENCE);
            sessions.say(&format!("reconnect {name}"))?;
            let _: Step = sessions.hear(&format!("{dropped} clients back"), LIMIT)?;
            let back: Reconnected = sessions.hear(&format!("{dropped} clients back"), LIMIT)?;
            if back.missing > 0 {
                let missing = back.missing;
                return Err(format!("{missing} never heard that {name} changed meanwhile").into());
            }
            times.push(back.current_us as f64 / 1e3);
            sent = sent.max(back.resources + back.removed);
            broken += back.broken;
        }
        let seconds = quantile(&times, 0.5) / 1e3;
        let what =
            format!("1,000 clients reconnect at once, all current (at most {sent} resources)");
        report.line(line(&what, seconds, MOST_RECONNECT, "s"));
        report.add("1,000 clients back and current", "ms", &times);
        if broken > 0 {
            eprintln!("{broken} streams could not be opened, or broke, while all reconnected");
        }
        Ok(())
    }

    /// Until the control plane has nothing left to do.
    fn settle(&self) -> Result<(), Failure> {
        pause(SETTLE.saturating_sub(LOOK));
        let end = Instant::now() + LIMIT;
        let mut before = CpuByThread::of(self.pid)?;
        loop {
            pause(LOOK);
            let now = CpuByThread::of(self.pid)?;
            if now.since(&before) < QUIET {
                return Ok(());
            }
            if Instant::now() > end {
                return Err("the control plane never comes to rest".into());
            }
            before = now;
        }
    }

    /// The proportional set size at rest, in KiB.
    fn rest(&mut self) -> Result<u64, Failure> {
        self.settle()?;
        pause(REST);
        let kib = pss(&[self.pid]);
        self.most_kib = self.most_kib.max(kib);
        Ok(kib)
    }
}

/// By thousand of names, the time of one of them in microseconds, as often as there was time for.
fn ask(mut asker: Program, stop: &AtomicBool) -> Result<Vec<Vec<f64>>, Failure> {
    let steps = folder::UNKNOWN / folder::UNKNOWN_STEP;
    let mut times = vec![Vec::new(); steps];
    loop {
        let _: Step = asker.hear("a client's stream", LIMIT)?;
        for times in &mut times {
            let step: Step = asker.hear("1,000 unknown names", LIMIT)?;
            times.push(step.us as f64 / folder::UNKNOWN_STEP as f64);
        }
        if stop.load(Relaxed) {
            return Ok(times);
        }
        asker.say("renew")?;
    }
}

/// How soon changes were everywhere.
#[derive(Default)]
struct Changes {
    /// From the commit to each receipt.
    commit_ms: Vec<f64>,
    /// From the renamed file to each receipt.
    written_ms: Vec<f64>,
}

impl Changes {
    fn report(&self, when: &str, report: &mut Figures) {
        let p99 = quantile(&self.commit_ms, 0.99);
        let what = format!("p99 from its commit to receipt{when}");
        report.line(line(&what, p99, MOST_LATENCY, "ms"));
        report.add(&format!("commit to receipt{when}"), "ms", &self.commit_ms);
        report.add(&format!("written to receipt{when}"), "ms", &self.written_ms);
    }
}

/// The largest resident set that the process has ever had.
fn peak_mib(pid: u32) -> Option<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.split_whitespace().next()?.parse::<f64>().ok()? / 1024.0)
}

/// For this process and whatever it starts.
fn raise_file_limit() -> Result<(), Failure> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < FILES) {
        let raised = Rlimit { current: Some(FILES), ..limit };
        setrlimit(Resource::Nofile, raised)
            .map_err(|error| format!("{FILES} open files are needed (ulimit -n): {error}"))?;
    }
    Ok(())
}
