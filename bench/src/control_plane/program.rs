//! A process of `clients` that is spoken to, with a limit on every answer.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use serde::de::DeserializeOwned;

use crate::Failure;
use crate::peers::Places;

/// Ended when dropped.
pub struct Program {
    name: String,
    child: Child,
    input: ChildStdin,
    lines: Receiver<String>,
}

impl Drop for Program {
    fn drop(&mut self) {
        // Already ended, or ends now.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Program {
    /// Clients of the control plane at `address`, who are what the file says.
    pub fn start(places: &Places, name: &str, address: &str, plan: &Path) -> Result<Self, Failure> {
        let mut child = Command::new(places.bin.join("clients"))
            .args(["--address", address, "--plan"])
            .arg(plan)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(places.work.join(format!("clients-{name}.log")))?)
            .spawn()
            .map_err(|error| format!("cannot start the clients: {error}"))?;
        let (input, output) = (child.stdin.take(), child.stdout.take());
        let (input, output) = input.zip(output).ok_or("the clients have no pipes")?;
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Self { name: name.to_owned(), child, input, lines })
    }

    pub fn say(&mut self, command: &str) -> Result<(), Failure> {
        Ok(writeln!(self.input, "{command}")?)
    }

    /// The next answer. `what`: for whom it is too late.
    pub fn hear<T: DeserializeOwned>(&self, what: &str, limit: Duration) -> Result<T, Failure> {
        let line = self.lines.recv_timeout(limit).map_err(|error| match error {
            RecvTimeoutError::Timeout => format!("{what}: not within {} s", limit.as_secs()),
            RecvTimeoutError::Disconnected => format!("{what}: clients-{}.log says why", self.name),
        })?;
        let wrong = |error| format!("{what}: the clients said {line:.200}: {error}");
        Ok(serde_json::from_str(&line).map_err(wrong)?)
    }
}
