//! What many callers that come at once do to those that are there already.

use std::process::{Command, Stdio};
use std::time::Duration;

use crate::Failure;
use crate::case::{Case, Peer};
use crate::measure::{Load, paced_load, pause};
use crate::memory::{Line, line};
use crate::peers::{OTHER_CPU, Places};
use crate::report::quartiles;
use crate::tls;

/// Callers that come back at once, each with a full handshake.
const RECONNECTS: u64 = 500;
/// Requests per second meanwhile.
const RATE: u32 = 1_000;
/// Seconds of that: short, so that one request of a hundred counts.
const SECONDS: f64 = 1.0;
/// How long the requests go on before the callers come.
const CALM: Duration = Duration::from_millis(300);
/// p99 of those requests, in milliseconds.
const MOST: f64 = 50.0;

/// What `handshakes` is told, against the called proxy on `port`.
pub fn arguments(places: &Places, port: u16) -> Vec<String> {
    let file = |name: &str| tls::folder(places).join(name).display().to_string();
    let pairs = [
        ("--address", format!("127.0.0.1:{port}")),
        ("--certificate", file("caller.pem")),
        ("--key", file("caller.key")),
    ];
    pairs.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]).collect()
}

/// The median over `rounds` storms of the p99 of our pair.
pub fn reconnects(places: &Places, rounds: usize) -> Result<Line, Failure> {
    let port = |case| Peer::Outrigger.port(case).ok_or("outrigger serves every case");
    let (pair, inbound) = (port(Case::TlsH1)?, port(Case::Handshake)?);
    let mut p99 = Vec::new();
    // One more, not counted: the pair's connection is made in it.
    for round in 0..=rounds {
        let requests = paced_load(places, Case::TlsH1.kind(), RATE, pair, SECONDS)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        pause(CALM);
        // Last in line for the processor that it shares with the caller and the backend: their delays
        // are not the proxy's.
        let storm = Command::new("taskset")
            .args(["-c", OTHER_CPU, "nice", "-n", "19"])
            .arg(places.bin.join("handshakes"))
            .args(arguments(places, inbound))
            .args(["--kind", "full", "--connections", &RECONNECTS.to_string()])
            .args(["--count", &RECONNECTS.to_string()])
            .output()?;
        let (storm, load) = (Load::read(&storm)?, Load::read(&requests.wait_with_output()?)?);
        if storm.requests != RECONNECTS || load.errors > 0 {
            let (came, failed) = (storm.requests, load.errors);
            return Err(format!("{came} callers came back, {failed} requests failed").into());
        }
        if round > 0 {
            p99.push(load.p99_us as f64 / 1e3);
        }
    }
    let [_, median, _] = quartiles(&p99).ok_or("no rounds")?;
    Ok(line("p99 of 1,000 requests/s during 500 full handshakes", median, MOST, "ms"))
}
