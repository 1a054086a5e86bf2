//! The load generator as a pod of the mesh.

use std::io;
use std::process::Command;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::cluster::bank::{BANK, Bank};
use crate::demo;
use crate::demo::load::Heard;
use crate::demo::process::Process;
use crate::workspace;

/// How long the generator may be silent.
const SILENCE: Duration = Duration::from_secs(60);
/// How often it is looked whether somebody asks to stop.
const POLL: Duration = Duration::from_millis(50);

pub(super) struct Load<'a> {
    bank: &'a Bank<'a>,
    /// `kubectl logs`.
    process: Process,
    lines: Receiver<String>,
    heard: Heard,
    stop: &'a demo::Stop,
}

impl<'a> Load<'a> {
    pub(super) fn start(bank: &'a Bank<'a>, rate: u32, stop: &'a demo::Stop) -> io::Result<Self> {
        let manifest = pod("load", "enabled", &["load", &format!("--rate={rate}")]);
        bank.kubectl.apply(&bank.with_images(&manifest))?;
        let ready = ["wait", "--for=condition=Ready", "pod/load", "--timeout=120s"];
        bank.kubectl.run(&[&["--namespace", BANK][..], &ready].concat())?;
        let logs = workspace::target_dir().join("cluster");
        std::fs::create_dir_all(&logs)?;
        let mut command = Command::new("kubectl");
        command.args(["--namespace", BANK, "logs", "--follow", "load", "--container=app"]);
        let (process, lines) = Process::start_reading("load", command, &logs)?;
        Ok(Self { bank, process, lines, heard: Heard::default(), stop })
    }

    /// The end of the next whole second, by the generator's clock in Unix milliseconds.
    pub(super) fn next_second(&mut self) -> io::Result<u64> {
        while let Ok(line) = self.lines.try_recv() {
            self.heard.take(&line);
        }
        let before = self.heard.seconds.len();
        self.listen(SILENCE, |heard| heard.seconds.len() > before)?;
        let last = self.heard.seconds.get(before..).and_then(<[_]>::last);
        let last = last.ok_or_else(|| io::Error::other("the load is silent"))?;
        Ok(last.at_ms)
    }

    pub(super) fn pause(&mut self, time: Duration) -> io::Result<()> {
        self.listen(time, |_| false)
    }

    /// Stops it and waits for what was in flight. Without a summary its numbers are no proof.
    pub(super) fn finish(mut self) -> io::Result<Heard> {
        let delete = ["delete", "pod", "load", "--wait=false"];
        self.bank.kubectl.run(&[&["--namespace", BANK][..], &delete].concat())?;
        self.listen(SILENCE, |heard| heard.failed.is_some())?;
        match self.heard.failed {
            Some(_) => Ok(self.heard),
            None => Err(io::Error::other(format!("no summary\n{}", self.process.tail()))),
        }
    }

    /// Takes in what is said until `enough` or the time is over.
    fn listen(&mut self, time: Duration, enough: impl Fn(&Heard) -> bool) -> io::Result<()> {
        let end = Instant::now() + time;
        while !enough(&self.heard) {
            if !matches!(self.stop.try_recv(), Err(TryRecvError::Empty)) {
                return Err(io::Error::other("stopped"));
            }
            let left = end.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left.min(POLL)) {
                Ok(line) => self.heard.take(&line),
                Err(RecvTimeoutError::Timeout) if left.is_zero() => return Ok(()),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(io::Error::other(format!("it ended\n{}", self.process.tail())));
                }
            }
        }
        Ok(())
    }
}

/// A pod that runs the bank's program once, with or without a proxy.
pub(super) fn pod(name: &str, inject: &str, args: &[&str]) -> String {
    let args = args.join(", ");
    format!(
        "apiVersion: v1\nkind: Pod\n\
         metadata: {{name: {name}, namespace: {BANK}, labels: {{app: {name}, outrigger.dev/inject: {inject}}}}}\n\
         spec:\n  restartPolicy: Never\n  \
         securityContext: {{runAsNonRoot: true, seccompProfile: {{type: RuntimeDefault}}}}\n  \
         containers:\n  - name: app\n    image: outrigger.dev/simplebank:0.1.0\n    args: [{args}]\n    \
         securityContext: {{allowPrivilegeEscalation: false, capabilities: {{drop: [ALL]}}}}\n"
    )
}

/// What a program printed as JSON, line by line.
pub(super) fn lines(said: &str) -> Vec<Value> {
    said.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}
