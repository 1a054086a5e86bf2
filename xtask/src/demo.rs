//! `cargo xtask demo`: the bank of examples/simplebank, carried by the mesh, under load.
//!
//! Everything runs on loopback without privileges. [`steps`] says what is done to it and what must
//! hold, [`fleet`] starts and stops the processes, [`edges`] turns their metrics into the table.

mod bank;
mod edges;
mod fleet;
mod http;
mod identity;
pub(crate) mod load;
mod ports;
pub(crate) mod process;
mod resilience;
mod screen;
mod steps;
mod telemetry;

use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::workspace;
use bank::{Part, Stage};
use edges::Edges;
use fleet::{Fleet, OUTBOUND};
use load::Load;
use ports::Ports;
use screen::Screen;
use steps::Step;
use telemetry::Backend;

/// How often everybody is asked for metrics.
const REFRESH: Duration = Duration::from_secs(1);
/// How often a condition is looked at while waiting for it.
const POLL: Duration = Duration::from_millis(20);
/// How long the mesh may take to come up; a busy machine is slow to start thirty processes.
const READY_LIMIT: Duration = Duration::from_secs(60);
/// Below this the steps have no time to show anything.
const SHORTEST: Duration = Duration::from_secs(30);
/// What a shell reports after Ctrl-C.
const INTERRUPTED: u8 = 130;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// How long the steps take together: 30s, 2m.
    #[arg(long = "for", value_name = "TIME", default_value = "60s", value_parser = parse_duration)]
    duration: Duration,
    /// Go on after the last step until Ctrl-C.
    #[arg(long)]
    keep_running: bool,
    /// What to show.
    #[arg(long, value_enum, default_value_t = Story::Traffic)]
    story: Story,
    /// Requests per second that the load generator sends.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(10..=2000))]
    rate: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Story {
    /// Real traffic: a canary, replicas that stop and die, a control plane that dies.
    Traffic,
    /// Only who may: callers that are refused, and a new root under load.
    Identity,
    /// Trouble without and with policies, side by side: a cascade, retries that multiply, a loop, a
    /// deadline. Takes the time that it takes; `--for`, `--rate` and `--keep-running` are not for it.
    Resilience,
    /// One request followed through the bank, its attempts, and every failure in the backend although one trace of a
    /// hundred is recorded. Needs oteltap (PyPI), a backend for traces that can be asked; `--for`, `--rate` and
    /// `--keep-running` are not for it.
    Telemetry,
}

impl Story {
    fn steps(self) -> &'static [Step] {
        match self {
            Self::Traffic => steps::STEPS,
            Self::Identity => identity::STEPS,
            Self::Resilience | Self::Telemetry => &[],
        }
    }

    fn cast(self) -> &'static [Part] {
        match self {
            Self::Traffic | Self::Identity | Self::Telemetry => bank::CAST,
            Self::Resilience => resilience::CAST,
        }
    }

    /// Below examples/simplebank.
    fn manifests(self) -> &'static str {
        match self {
            Self::Traffic | Self::Identity | Self::Telemetry => "manifests",
            Self::Resilience => "resilience",
        }
    }
}

/// Why the demo ends before its end.
#[derive(Debug)]
pub(crate) enum Halt {
    /// Ctrl-C or SIGTERM.
    Asked,
    Failed(String),
}

impl From<io::Error> for Halt {
    fn from(error: io::Error) -> Self {
        Self::Failed(error.to_string())
    }
}

pub(crate) fn run(options: &Options) -> ExitCode {
    let stop = match signals() {
        Ok(stop) => stop,
        Err(error) => {
            eprintln!("demo: cannot watch for Ctrl-C: {error}");
            return ExitCode::FAILURE;
        }
    };
    let outcome = tempfile::Builder::new()
        .prefix("outrigger-demo-")
        .tempdir()
        .map_err(Halt::from)
        .and_then(|scratch| play(options, stop, scratch.path()));
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(Halt::Asked) => {
            eprintln!("\nstopped; no process is left behind");
            ExitCode::from(INTERRUPTED)
        }
        Err(Halt::Failed(why)) => {
            eprintln!("\ndemo: {why}");
            ExitCode::FAILURE
        }
    }
}

/// One message for each signal that asks to stop.
pub(crate) type Stop = Receiver<()>;

/// Watches for them from now on: none ends the process by itself any more.
pub(crate) fn signals() -> io::Result<Stop> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    let (tell, stop) = channel();
    std::thread::spawn(move || {
        for _ in signals.forever() {
            if tell.send(()).is_err() {
                return;
            }
        }
    });
    Ok(stop)
}

/// Whether every step held.
fn play(options: &Options, stop: Receiver<()>, scratch: &Path) -> Result<bool, Halt> {
    eprintln!("building the proxy, the control plane and the bank");
    let built =
        workspace::build(&["outrigger-proxy", "outrigger-control-plane", "simplebank"], &[]);
    // Ctrl-C reaches cargo too.
    if stop.try_recv().is_ok() {
        return Err(Halt::Asked);
    }
    let programs = built?;
    let program = |name: &str| {
        programs.get(name).cloned().ok_or_else(|| Halt::Failed(format!("{name} was not built")))
    };
    let logs = workspace::target_dir().join("demo").join("logs");
    let _ = std::fs::remove_dir_all(&logs);
    std::fs::create_dir_all(&logs)?;
    let nowhere = ports::loopback(0);
    let stage = Stage {
        proxy: program("outrigger-proxy")?,
        control_plane: program("outrigger-control-plane")?,
        simplebank: program("simplebank")?,
        discovery: nowhere,
        index: nowhere,
        backend: None,
        telemetry: Vec::new(),
        scratch: scratch.to_owned(),
        logs,
    };
    let mut ports = Ports::new();
    let mut stage = stage;
    let mut backend = None;
    if options.story == Story::Telemetry {
        let address = ports.free()?;
        backend = Backend::start(address, &stage.logs)?;
        if backend.is_some() {
            stage.backend = Some(address);
            stage.telemetry = Backend::flags(address);
        }
    }
    let manifests = workspace::root().join("examples/simplebank").join(options.story.manifests());
    let mut screen = Screen::new();
    screen.say("starting the control plane, every service and its sidecar");
    let fleet = Fleet::start(stage, options.story.cast(), &manifests, ports)?;
    let mut demo = Demo {
        load: None,
        edges: Edges::default(),
        screen,
        stop,
        title: "starting".to_owned(),
        began: Instant::now(),
        refreshed: None,
        fleet,
        backend,
        rate: options.rate,
    };
    let result = demo.story(options);
    demo.screen.freeze();
    // Before the sidecars: what it still sends must not meet a mesh that is gone.
    drop(demo.load.take());
    let killed = demo.fleet.stop();
    if !killed.is_empty() {
        eprintln!("had to kill: {}", killed.join(", "));
    }
    Ok(result? && killed.is_empty())
}

/// Everything that the steps work with.
#[derive(Debug)]
pub(crate) struct Demo {
    pub(crate) fleet: Fleet,
    load: Option<Load>,
    /// What proxies send traces to.
    backend: Option<Backend>,
    edges: Edges,
    pub(crate) screen: Screen,
    stop: Receiver<()>,
    title: String,
    began: Instant,
    refreshed: Option<Instant>,
    rate: u32,
}

impl Demo {
    fn story(&mut self, options: &Options) -> Result<bool, Halt> {
        self.come_up()?;
        if options.story == Story::Resilience {
            return resilience::play(self);
        }
        if options.story == Story::Telemetry {
            return telemetry::play(self);
        }
        self.introduce();
        self.start_load()?;
        let reports = steps::play(self, options.story.steps(), options.duration.max(SHORTEST))?;
        self.load()?.finish()?;
        let held = steps::judge(self, reports)?;
        if options.keep_running {
            self.go_on()?;
        }
        Ok(held)
    }

    fn come_up(&mut self) -> Result<(), Halt> {
        let began = Instant::now();
        let up = self.until(READY_LIMIT, |demo| {
            demo.fleet.not_ready().is_empty() && demo.fleet.not_published().is_empty()
        })?;
        if !up {
            let (ready, published) = (self.fleet.not_ready(), self.fleet.not_published());
            return Err(Halt::Failed(format!(
                "not everybody came up: not ready {ready:?}, not published {published:?}; see {}",
                self.fleet.stage.logs.display()
            )));
        }
        let (processes, seconds) = (self.fleet.processes(), began.elapsed().as_secs_f64());
        self.screen.say(&format!("{processes} processes are up and ready after {seconds:.1} s"));
        Ok(())
    }

    fn introduce(&mut self) {
        let outbound = self.fleet.callers_proxy.outbound;
        let (manifests, logs) = (self.fleet.stage.manifests(), self.fleet.stage.logs.clone());
        let index = self.fleet.stage.index;
        if outbound.port() != OUTBOUND {
            self.screen.say(&format!(
                "port {OUTBOUND} is taken, so the outbound port is {}",
                outbound.port()
            ));
        }
        for line in [
            format!("try:        curl -x http://{outbound} http://market-data.bank:8000/prices"),
            format!("or wrongly: curl -ix http://{outbound} http://no-such-service.bank:8000/"),
            format!("manifests:  {} (edit them)", manifests.display()),
            format!("index:      http://{index}/index"),
            format!("logs:       {}", logs.display()),
        ] {
            self.screen.say(&line);
        }
    }

    fn start_load(&mut self) -> Result<(), Halt> {
        let outbound = self.fleet.callers_proxy.outbound;
        self.load = Some(Load::start(&self.fleet.stage, outbound, self.rate)?);
        Ok(())
    }

    fn go_on(&mut self) -> Result<(), Halt> {
        self.start_load()?;
        self.title("running until Ctrl-C".to_owned());
        loop {
            self.pause(REFRESH)?;
        }
    }

    pub(crate) fn load(&mut self) -> Result<&mut Load, Halt> {
        self.load.as_mut().ok_or_else(|| Halt::Failed("the load does not run".to_owned()))
    }

    pub(crate) fn title(&mut self, title: String) {
        self.screen.say(&format!("\n{title}"));
        self.title = title;
    }

    /// Keeps the rows of now in a plain log.
    pub(crate) fn keep_table(&mut self) {
        let rows = self.edges.rows();
        self.screen.keep(&rows);
    }

    /// Lets time pass, up to `limit`, and keeps the table fresh.
    pub(crate) fn pause(&mut self, limit: Duration) -> Result<(), Halt> {
        self.until(limit, |_| false).map(drop)
    }

    /// Waits until `ready`, at most `limit`; whether it came true.
    pub(crate) fn until(
        &mut self,
        limit: Duration,
        mut ready: impl FnMut(&mut Self) -> bool,
    ) -> Result<bool, Halt> {
        let end = Instant::now() + limit;
        loop {
            self.refresh()?;
            if ready(self) {
                return Ok(true);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            match self.stop.recv_timeout(left.min(POLL)) {
                Ok(()) => return Err(Halt::Asked),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Halt::Failed("signals are not watched any more".to_owned()));
                }
            }
        }
    }

    /// Once a second: does everybody live, and what flows?
    fn refresh(&mut self) -> Result<(), Halt> {
        if let Some(load) = &mut self.load {
            load.listen();
        }
        if self.refreshed.is_some_and(|at| at.elapsed() < REFRESH) {
            return Ok(());
        }
        self.refreshed = Some(Instant::now());
        if let Some(casualty) = self.fleet.casualty() {
            return Err(Halt::Failed(casualty));
        }
        if self.load.is_none() {
            return Ok(());
        }
        let scrapes: Vec<_> = self
            .fleet
            .sidecars()
            .into_iter()
            .filter_map(|(name, role, admin)| {
                Some((name, role, http::get(admin, "/metrics").ok()?.body))
            })
            .collect();
        self.edges.add(Instant::now(), &scrapes);
        let headline = self.headline();
        let rows = self.edges.rows();
        self.screen.show(&headline, &rows);
        Ok(())
    }

    fn headline(&mut self) -> String {
        let seconds = self.began.elapsed().as_secs();
        let step = self.title.split(':').next().unwrap_or_default().to_owned();
        let Some(load) = &self.load else { return step };
        let Some(last) = load.heard.seconds.last() else { return step };
        let failed: u64 = load.heard.seconds.iter().map(|second| second.failed).sum();
        format!(
            "{seconds:>4} s  {step}  sent {}/s  p50 {:.1} ms  p99 {:.1} ms  failed so far {failed}",
            last.sent, last.p50_ms, last.p99_ms
        )
    }
}

/// `30s`, `2m`.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let duration = workspace::parse_time(text)?;
    if duration < SHORTEST {
        return Err(format!("the steps need at least {} s", SHORTEST.as_secs()));
    }
    Ok(duration)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_a_unit_and_a_least() {
        assert_eq!(parse_duration("60s"), Ok(Duration::from_secs(60)));
        assert_eq!(parse_duration("2m"), Ok(Duration::from_secs(120)));
        for text in ["60", "s", "29s", "1h", ""] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }
}
