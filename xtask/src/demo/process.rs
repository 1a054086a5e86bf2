//! One child process: started with its output in a file, waited for with a limit, and never left
//! behind.
//!
//! Children get a process group of their own, so that Ctrl-C in a terminal reaches the demo alone
//! and the demo decides in which order they stop.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

/// Lines of a log that are shown when something went wrong.
const TAIL: usize = 15;

#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) name: String,
    pub(crate) log: PathBuf,
    child: Child,
    /// Readable once the process has ended.
    ended: OwnedFd,
    /// Held open: a proxy ends when its standard input does.
    _stdin: Option<ChildStdin>,
}

impl Process {
    /// Starts `command` with everything it prints in `<logs>/<name>.log`.
    pub(crate) fn start(name: &str, command: Command, logs: &Path) -> io::Result<Self> {
        let log = logs.join(format!("{name}.log"));
        let out = Stdio::from(File::options().create(true).append(true).open(&log)?);
        Self::spawn(name, command, log, out)
    }

    /// The same, and every line of standard output also arrives here.
    pub(crate) fn start_reading(
        name: &str,
        command: Command,
        logs: &Path,
    ) -> io::Result<(Self, Receiver<String>)> {
        let log = logs.join(format!("{name}.log"));
        let mut process = Self::spawn(name, command, log.clone(), Stdio::piped())?;
        let out = process.child.stdout.take();
        let mut copy = File::options().create(true).append(true).open(&log)?;
        let (lines, receiver) = channel();
        std::thread::spawn(move || {
            for line in out.map(BufReader::new).into_iter().flat_map(BufRead::lines) {
                let Ok(line) = line else { return };
                // A full disk must not stop the reading; nobody may be listening any more.
                let _ = writeln!(copy, "{line}");
                let _ = lines.send(line);
            }
        });
        Ok((process, receiver))
    }

    fn spawn(name: &str, mut command: Command, log: PathBuf, out: Stdio) -> io::Result<Self> {
        let errors = File::options().create(true).append(true).open(&log)?;
        command.stdin(Stdio::piped()).stdout(out).stderr(errors).process_group(0);
        let program = command.get_program().to_string_lossy().into_owned();
        let mut child = command
            .spawn()
            .map_err(|e| io::Error::new(e.kind(), format!("cannot start {program}: {e}")))?;
        let stdin = child.stdin.take();
        let ended = pidfd_open(Pid::from_child(&child), PidfdFlags::empty());
        match ended {
            Ok(ended) => Ok(Self { name: name.to_owned(), log, child, ended, _stdin: stdin }),
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(error.into())
            }
        }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Asks it to stop.
    pub(crate) fn terminate(&self) {
        // It has not been waited for, so its id is still its own.
        let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
    }

    /// Holds it where it is, or lets it go on.
    pub(crate) fn freeze(&self, still: bool) {
        let signal = if still { Signal::STOP } else { Signal::CONT };
        let _ = kill_process(Pid::from_child(&self.child), signal);
    }

    /// Everything that it has printed.
    pub(crate) fn text(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// `kill -9`; returns when the process is gone.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Waits for its end, at most until `limit`.
    pub(crate) fn wait(&mut self, limit: Instant) -> Option<ExitStatus> {
        loop {
            if let Some(status) = self.ended() {
                return Some(status);
            }
            let left = limit.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            wait_readable(&self.ended, left);
        }
    }

    /// The end of its log, for a person.
    pub(crate) fn tail(&self) -> String {
        let text = self.text();
        let lines: Vec<&str> = text.lines().collect();
        let from = lines.len().saturating_sub(TAIL);
        let mut tail = format!("--- {} (the last lines)\n", self.log.display());
        for line in &lines[from..] {
            tail.push_str(line);
            tail.push('\n');
        }
        tail
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.ended().is_none() {
            self.kill();
        }
    }
}

fn wait_readable(fd: &OwnedFd, limit: Duration) {
    let timeout = Timespec {
        tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(limit.subsec_nanos()),
    };
    // An interrupted wait is one that ended early: the caller looks again.
    let _ = poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&timeout));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn output_is_kept_and_the_end_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let logs = folder.path().to_owned();
        let script = shell("echo one; echo two >&2; exit 3");
        let (mut process, lines) = Process::start_reading("shell", script, &logs).unwrap();
        assert_eq!(lines.recv_timeout(Duration::from_secs(10)).unwrap(), "one");
        let limit = Instant::now() + Duration::from_secs(10);
        assert_eq!(process.wait(limit).unwrap().code(), Some(3));
        assert!(process.tail().contains("two"));

        let mut stubborn =
            Process::start("stubborn", shell("trap '' TERM; read x"), &logs).unwrap();
        assert!(stubborn.wait(Instant::now() + Duration::from_millis(20)).is_none());
        stubborn.kill();
        assert!(stubborn.ended().is_some());
    }
}
