//! The load generator of examples/simplebank: started behind its own sidecar, and what it says.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use super::bank::Stage;
use super::process::Process;

/// Longer than the longest call that the generator waits for.
const SUMMARY_LIMIT: Duration = Duration::from_secs(20);

#[derive(Debug)]
pub(crate) struct Load {
    pub(crate) process: Process,
    lines: Receiver<String>,
    pub(crate) heard: Heard,
}

/// What the generator has said so far.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    pub(crate) seconds: Vec<Second>,
    pub(crate) failures: Vec<Failure>,
    /// Failures by the generator's own final count.
    pub(crate) failed: Option<u64>,
}

/// One second of load.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Second {
    /// Its end, in Unix milliseconds.
    pub(crate) at_ms: u64,
    pub(crate) sent: u64,
    pub(crate) failed: u64,
    pub p50_ms: f64,
    pub p99_ms: f64,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Failure {
    pub(crate) operation: Option<String>,
    pub(crate) status: Option<u64>,
    pub(crate) reason: Option<String>,
    pub(crate) error: String,
    pub(crate) started_ms: u64,
}

impl Load {
    pub(crate) fn start(stage: &Stage, proxy: SocketAddr, rate: u32) -> io::Result<Self> {
        let mut command = Command::new(&stage.simplebank);
        command.args(["--exit-with-parent", "load", "--rate", &rate.to_string()]);
        command.arg("--proxy").arg(proxy.to_string());
        let (process, lines) = Process::start_reading("load", command, &stage.logs)?;
        Ok(Self { process, lines, heard: Heard::default() })
    }

    /// Takes in what has been said since.
    pub(crate) fn listen(&mut self) {
        loop {
            match self.lines.try_recv() {
                Ok(line) => self.heard.take(&line),
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => return,
            }
        }
    }

    /// Stops it and waits for what was in flight. Without a summary its numbers are no proof.
    pub(crate) fn finish(&mut self) -> io::Result<()> {
        self.process.terminate();
        let limit = Instant::now() + SUMMARY_LIMIT;
        while self.heard.failed.is_none() {
            match self.lines.recv_timeout(limit.saturating_duration_since(Instant::now())) {
                Ok(line) => self.heard.take(&line),
                Err(_) => {
                    let tail = self.process.tail();
                    return Err(io::Error::other(format!("the load gave no summary\n{tail}")));
                }
            }
        }
        self.process.wait(limit);
        Ok(())
    }
}

impl Heard {
    pub(crate) fn take(&mut self, line: &str) {
        let Ok(line) = serde_json::from_str::<Value>(line) else { return };
        if line["second"].is_u64() {
            self.seconds.push(Second {
                at_ms: line["at_ms"].as_u64().unwrap_or(0),
                sent: line["sent"].as_u64().unwrap_or(0),
                failed: line["failed"].as_u64().unwrap_or(0),
                p50_ms: line["p50_ms"].as_f64().unwrap_or(0.0),
                p99_ms: line["p99_ms"].as_f64().unwrap_or(0.0),
            });
        } else if let Some(failure) = line.get("failure") {
            let text = |key: &str| failure[key].as_str().map(str::to_owned);
            self.failures.push(Failure {
                operation: text("operation_id"),
                status: failure["status"].as_u64(),
                reason: text("reason"),
                error: text("error").unwrap_or_default(),
                started_ms: failure["started_ms"].as_u64().unwrap_or(0),
            });
        } else if let Some(summary) = line.get("summary") {
            self.failed = Some(summary["failed"].as_u64().unwrap_or(u64::MAX));
        }
    }

    /// Requests sent between two moments, by whole seconds.
    pub(crate) fn sent(&self, from_ms: u64, to_ms: u64) -> u64 {
        let within = self.seconds.iter().filter(|s| s.at_ms > from_ms && s.at_ms <= to_ms);
        within.map(|s| s.sent).sum()
    }

    /// Failures of requests that began between two moments.
    pub(crate) fn failures(&self, from_ms: u64, to_ms: u64) -> Vec<&Failure> {
        let began = |f: &&Failure| f.started_ms > from_ms && f.started_ms <= to_ms;
        self.failures.iter().filter(began).collect()
    }

    /// Failures that were counted and not told one by one: the generator was at its own limit.
    pub(crate) fn untold(&self) -> u64 {
        let told = u64::try_from(self.failures.len()).unwrap_or(u64::MAX);
        self.failed.unwrap_or(0).saturating_sub(told)
    }
}

impl Failure {
    /// One line for a person.
    pub(crate) fn describe(&self) -> String {
        let status = self.status.map_or_else(|| "no answer".to_owned(), |s| s.to_string());
        let reason = self.reason.as_deref().unwrap_or("no reason");
        let what = self.operation.as_deref().unwrap_or("GET");
        let error: String = self.error.chars().take(160).collect();
        format!("{what}: {status} {reason}: {error}")
    }
}

/// Distinct reasons, with how many of each.
pub(crate) fn by_reason(failures: &[&Failure]) -> String {
    let word = |f: &Failure| f.reason.clone().unwrap_or_else(|| "no reason".to_owned());
    let words: BTreeSet<String> = failures.iter().map(|f| word(f)).collect();
    let counted = words.into_iter().map(|reason| {
        let times = failures.iter().filter(|f| word(f) == reason).count();
        format!("{times} {reason}")
    });
    counted.collect::<Vec<_>>().join(", ")
}

pub(crate) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_and_failures_belong_to_their_step() {
        let mut heard = Heard::default();
        for line in [
            r#"{"second":1,"at_ms":2000,"sent":50,"failed":0,"p50_ms":1.5,"p99_ms":3}"#,
            r#"{"second":2,"at_ms":3000,"sent":50,"failed":1,"p50_ms":1.5,"p99_ms":3}"#,
            r#"{"failure":{"kind":"sell","operation_id":"a","status":502,"reason":"upstream_reset","error":"x","started_ms":2500,"ended_ms":2600}}"#,
            r#"{"failure":{"kind":"holdings","status":null,"reason":null,"error":"y","started_ms":2700}}"#,
            "not JSON",
            r#"{"summary":{"failed":3}}"#,
        ] {
            heard.take(line);
        }
        assert_eq!(heard.sent(1000, 2000), 50);
        assert_eq!(heard.sent(1000, 3000), 100);
        assert_eq!(heard.failures(1000, 2000), Vec::<&Failure>::new());
        let failures = heard.failures(2000, 3000);
        assert_eq!(by_reason(&failures), "1 no reason, 1 upstream_reset");
        assert_eq!(failures[0].describe(), "a: 502 upstream_reset: x");
        assert_eq!(heard.untold(), 1);
    }
}
