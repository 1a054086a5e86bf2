//! One measurement: load from a caller on the other processor, and what it cost the subject.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::Failure;
use crate::case::{Case, MIB100, Payload, Peer};
use crate::handshakes;
use crate::memory::Line;
use crate::peers::{OTHER_CPU, Places};
use crate::report::quartiles;

/// Connections of the caller, for saturation and for the fixed rate.
const H1_CONNECTIONS: &str = "64";
const H2_CONNECTIONS: &str = "4";
/// Handshakes at one time.
const HANDSHAKES: &str = "16";

/// The p99 of small requests beside long answers, in parts of that without.
const MOST_BESIDE: f64 = 1.5;
/// The same in parts of Envoy's beside the same.
const MOST_OF_ENVOY: f64 = 1.0;

/// Bytes of every message and answer.
pub const BODY: usize = 128;

/// What a run showed.
#[derive(Clone, Debug, Serialize)]
pub struct Sample {
    pub requests: u64,
    pub errors: u64,
    pub per_second: f64,
    /// User and system time of the subject for one request, in microseconds.
    pub cpu_us: f64,
    /// Share of one processor that the subject used.
    pub busy: f64,
    pub p50_us: u64,
    pub p99_us: u64,
    pub p999_us: u64,
}

/// What our own callers report.
#[derive(Deserialize)]
pub struct Load {
    pub requests: u64,
    pub errors: u64,
    pub p50_us: u64,
    pub p99_us: u64,
    pub p999_us: u64,
}

impl Load {
    pub fn read(out: &Output) -> Result<Self, Failure> {
        let said = |e| format!("the caller: {e}: {}", String::from_utf8_lossy(&out.stderr));
        Ok(serde_json::from_slice(&out.stdout).map_err(said)?)
    }
}

/// The p99 of 1,000 small requests a second beside 8 downloads of 100 MiB on the same hop, in parts of that without, and
/// in parts of Envoy's: the medians over the rounds.
pub fn beside_downloads(
    places: &Places,
    rounds: usize,
    peers: &[Peer],
) -> Result<Vec<Line>, Failure> {
    let (mut ratios, mut to_envoy) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let (alone, ours) = beside(places, Peer::Outrigger)?;
        ratios.push(ours / alone);
        if peers.contains(&Peer::Envoy) {
            to_envoy.push(ours / beside(places, Peer::Envoy)?.1);
        }
    }
    let median = |ratios: &[f64]| quartiles(ratios).map(|quartiles| quartiles[1]);
    let what = "p99 of 1,000 requests/s beside 8 downloads";
    let line = |against, ratio, at_most| {
        Line::goal(&format!("{what} / {against}"), ratio, at_most, "times")
    };
    let mut lines = vec![line("alone", median(&ratios).unwrap_or(f64::INFINITY), MOST_BESIDE)];
    lines.extend(median(&to_envoy).map(|ratio| line("Envoy's", ratio, MOST_OF_ENVOY)));
    Ok(lines)
}

/// The p99 of small requests without and with downloads, in microseconds.
fn beside(places: &Places, peer: Peer) -> Result<(f64, f64), Failure> {
    let port = peer.port(Case::TlsH1).ok_or("the pair serves HTTP/1.1")?;
    let small = || Load::read(&paced_load(places, "h1", 1_000, port, 2.0).output()?);
    let alone = small()?;
    let mut downloads = Command::new("taskset")
        .args(["-c", OTHER_CPU, "wrk", "-t1", "-c8", "-d", "4"])
        .arg(format!("http://127.0.0.1:{port}/bytes/{MIB100}"))
        .stdout(Stdio::null())
        .spawn()?;
    pause(Duration::from_millis(500));
    let beside = small();
    let _ = downloads.kill();
    let _ = downloads.wait();
    let (alone, beside) = (alone.p99_us, beside?.p99_us);
    eprintln!("{} beside 8 downloads: p99 {beside} us, alone {alone}", peer.name());
    Ok((alone.max(1) as f64, beside.max(1) as f64))
}

/// As many requests as answers allow.
pub fn saturate(
    places: &Places,
    case: Case,
    port: u16,
    seconds: f64,
    pids: &[u32],
) -> Result<Sample, Failure> {
    let connections = connections(case.kind());
    let kind = case.kind();
    // wrk and h2load cost the caller less than our own generator, which leaves the subject busier.
    let mut command = Command::new("taskset");
    command.args(["-c", OTHER_CPU]);
    let whole = seconds.ceil().to_string();
    match (kind, case.payload()) {
        (_, payload @ (Payload::Answer(_) | Payload::Request(_))) => {
            long_bodies(&mut command, places, (kind, payload), port, &whole)?;
        }
        ("h1", _) => {
            command.args(["wrk", "-t1", "-c", connections, "-d", &whole]);
            command.arg(format!("http://127.0.0.1:{port}/bench"));
        }
        ("h2" | "grpc", _) => {
            command.args(["h2load", "-c", connections, "-m32", "-D", &whole]);
            if kind == "grpc" {
                let message = places.work.join("grpc.bin");
                fs::write(&message, grpc_message())?;
                command.arg("-d").arg(message);
                command.args(["-H", "content-type: application/grpc", "-H", "te: trailers"]);
            }
            command.arg(format!("http://127.0.0.1:{port}/bench.Bench/Call"));
        }
        ("full" | "resumed", _) => {
            command.arg(places.bin.join("handshakes")).args(handshakes::arguments(places, port));
            command.args(["--kind", kind, "--connections", HANDSHAKES]);
            command.args(["--seconds", &seconds.to_string()]);
        }
        _ => {
            command.arg(places.bin.join("load")).args(load_args(kind, port, 0, seconds));
        }
    }
    let (before, began) = (cpu(pids)?, Instant::now());
    let out = command.output().map_err(|e| format!("cannot run the caller: {e}"))?;
    let (elapsed, used) = (began.elapsed(), cpu(pids)? - before);
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let (requests, errors) = match kind {
        "h1" => wrk(&text),
        "h2" | "grpc" => h2load(&text),
        _ => {
            let load = Load::read(&out)?;
            Some((load.requests, load.errors))
        }
    }
    .ok_or_else(|| {
        format!("the caller said nothing useful:\n{text}{}", String::from_utf8_lossy(&out.stderr))
    })?;
    Ok(sample(requests, errors, elapsed, used, [0; 3]))
}

/// A few connections at a time: what is measured is bytes, not how many wait.
fn long_bodies(
    command: &mut Command,
    places: &Places,
    (kind, payload): (&str, Payload),
    port: u16,
    seconds: &str,
) -> Result<(), Failure> {
    let url = |path: &str| format!("http://127.0.0.1:{port}{path}");
    // What is cut off at the end counts little beside some ten bodies, and with one at a time only once.
    let (connections, streams) = match payload {
        Payload::Answer(MIB100..) | Payload::Request(MIB100..) => (["-c1", "-c1"], "-m1"),
        _ => (["-c8", "-c4"], "-m2"),
    };
    match (kind, payload) {
        ("h1", Payload::Answer(bytes)) => {
            command
                .args(["wrk", "-t1", connections[0], "-d", seconds])
                .arg(url(&format!("/bytes/{bytes}")));
        }
        ("h1", Payload::Request(bytes)) => {
            let script = places.work.join("upload.lua");
            let says = format!("wrk.method = 'POST'\nwrk.body = string.rep('x', {bytes})\n");
            fs::write(&script, says)?;
            command
                .args(["wrk", "-t1", connections[0], "-d", seconds, "-s"])
                .arg(script)
                .arg(url("/bench"));
        }
        (_, payload) => {
            let body = match payload {
                Payload::Answer(bytes) => format!("bytes={bytes}").into_bytes(),
                Payload::Request(bytes) => vec![b'x'; bytes],
                Payload::Small => Vec::new(),
            };
            let file = places.work.join("body.bin");
            fs::write(&file, body)?;
            // Windows that do not make the caller the bottleneck.
            command.args(["h2load", connections[1], streams, "-w24", "-W26", "-D", seconds]);
            command.arg("-d").arg(file).arg(url("/bench.Bench/Call"));
        }
    }
    Ok(())
}

/// A fixed number of requests per second, whatever the answers do.
pub fn fixed_rate(
    places: &Places,
    case: Case,
    rate: u32,
    port: u16,
    seconds: f64,
    pids: &[u32],
) -> Result<Sample, Failure> {
    let (before, began) = (cpu(pids)?, Instant::now());
    let out = paced_load(places, case.kind(), rate, port, seconds).output()?;
    let (elapsed, used) = (began.elapsed(), cpu(pids)? - before);
    let load = Load::read(&out)?;
    let latencies = [load.p50_us, load.p99_us, load.p999_us];
    Ok(sample(load.requests, load.errors, elapsed, used, latencies))
}

/// The caller that keeps to its plan.
pub fn paced_load(places: &Places, kind: &str, rate: u32, port: u16, seconds: f64) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", OTHER_CPU]);
    // The backend has the same processor: without precedence the caller waits for its turn behind it,
    // for milliseconds, and that would count as the subject's latency.
    if may_take_precedence() {
        command.args(["chrt", "--fifo", "1"]);
    }
    command.arg(places.bin.join("load")).args(load_args(kind, port, rate, seconds));
    command
}

/// Whether this user may start something with real-time priority.
fn may_take_precedence() -> bool {
    static MAY: OnceLock<bool> = OnceLock::new();
    *MAY.get_or_init(|| {
        let tried =
            Command::new("chrt").args(["--fifo", "1", "true"]).stderr(Stdio::null()).status();
        let may = tried.is_ok_and(|status| status.success());
        if !may {
            eprintln!(
                "the caller gets no real-time priority (needs root): latencies hold its delays too"
            );
        }
        may
    })
}

fn sample(
    requests: u64,
    errors: u64,
    elapsed: Duration,
    used: Duration,
    [p50_us, p99_us, p999_us]: [u64; 3],
) -> Sample {
    let each = used.as_secs_f64() * 1e6 / requests.max(1) as f64;
    Sample {
        requests,
        errors,
        per_second: requests as f64 / elapsed.as_secs_f64(),
        cpu_us: each,
        busy: used.as_secs_f64() / elapsed.as_secs_f64(),
        p50_us,
        p99_us,
        p999_us,
    }
}

fn connections(kind: &str) -> &'static str {
    match kind {
        "h1" | "tcp" => H1_CONNECTIONS,
        _ => H2_CONNECTIONS,
    }
}

fn load_args(kind: &str, port: u16, rate: u32, seconds: f64) -> Vec<String> {
    let pairs = [
        ("--kind", kind.to_owned()),
        ("--address", format!("127.0.0.1:{port}")),
        ("--connections", connections(kind).to_owned()),
        ("--rate", rate.to_string()),
        ("--seconds", seconds.to_string()),
    ];
    pairs.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]).collect()
}

/// A gRPC message with its five bytes of frame.
pub fn grpc_message() -> Vec<u8> {
    let mut message = vec![0, 0, 0, 0, BODY as u8];
    message.resize(5 + BODY, b'x');
    message
}

/// `N requests in`, and what went wrong.
fn wrk(text: &str) -> Option<(u64, u64)> {
    let requests = number_before(text, " requests in")?;
    let bad = text
        .lines()
        .find(|line| line.contains("Non-2xx"))
        .and_then(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
    let broken = u64::from(text.contains("Socket errors"));
    Some((requests, bad.unwrap_or(0) + broken))
}

/// `requests: T total, S started, D done, S succeeded, F failed, ...`
fn h2load(text: &str) -> Option<(u64, u64)> {
    let line = text.lines().find(|line| line.starts_with("requests:"))?;
    Some((number_before(line, " succeeded")?, number_before(line, " failed")?))
}

fn number_before(text: &str, mark: &str) -> Option<u64> {
    let end = text.find(mark)?;
    text[..end].rsplit(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// Processor time that the processes have used so far, in all their threads.
pub fn cpu(pids: &[u32]) -> Result<Duration, Failure> {
    let mut nanos = 0;
    for pid in pids {
        // nginx and others work in a child.
        for pid in std::iter::once(*pid).chain(children(*pid)) {
            let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { continue };
            for thread in threads {
                let stat = fs::read_to_string(thread?.path().join("schedstat")).unwrap_or_default();
                nanos += stat.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0u64);
            }
        }
    }
    Ok(Duration::from_nanos(nanos))
}

/// Processor time of each thread of one process.
pub struct CpuByThread(BTreeMap<u32, u64>);

impl CpuByThread {
    pub fn of(pid: u32) -> Result<Self, Failure> {
        let mut nanos = BTreeMap::new();
        for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
            let thread = thread?;
            let id = thread.file_name().to_str().and_then(|id| id.parse::<u32>().ok());
            // A thread may end in between.
            let stat = fs::read_to_string(thread.path().join("schedstat")).unwrap_or_default();
            let used = stat.split(' ').next().and_then(|nanos| nanos.parse().ok());
            nanos.extend(id.zip(used));
        }
        Ok(Self(nanos))
    }

    /// What was used since then; what threads used that have ended meanwhile is not known.
    pub fn since(&self, before: &Self) -> Duration {
        let used = self.0.iter().map(|(thread, now)| {
            now.saturating_sub(before.0.get(thread).copied().unwrap_or_default())
        });
        Duration::from_nanos(used.sum())
    }
}

fn children(pid: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// Proportional set size, in KiB: what the process costs the machine.
pub fn pss(pids: &[u32]) -> u64 {
    let all = pids.iter().flat_map(|pid| std::iter::once(*pid).chain(children(*pid)));
    all.filter_map(|pid| {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
        let line = text.lines().find(|line| line.starts_with("Pss:"))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    })
    .sum()
}

/// Lets time pass between two looks at something.
pub fn pause(time: Duration) {
    std::thread::park_timeout(time);
}

/// A GET of a small local page.
pub fn get(port: u16, host: &str, path: &str) -> Result<String, Failure> {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// Whether a program is there to be run.
pub fn on_path(program: &str) -> bool {
    std::env::var_os("PATH").is_some_and(|path| {
        std::env::split_paths(&path).any(|dir| Path::new(&dir).join(program).is_file())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_callers_words_are_understood() {
        let text = "Running 3s test\n  141177 requests in 3.02s, 30MB read\n  Non-2xx or 3xx responses: 12\n";
        assert_eq!(wrk(text), Some((141_177, 12)));
        let text = "requests: 274366 total, 274494 started, 274366 done, 274360 succeeded, 6 failed, 0 errored";
        assert_eq!(h2load(text), Some((274_360, 6)));
        assert_eq!(h2load("nothing"), None);
    }
}
