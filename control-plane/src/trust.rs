//! The commands of `trust`: they ask a running control plane over its socket in the state directory, any
//! replica that answers. What they do there is in [`crate::ca::rotation`].

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::control::{ADD_ROOT, AddRoot, ISSUE_FROM, REMOVE_ROOT, STATUS, WithRoot, sockets};
use crate::options::TrustStep;

/// A control plane that does not answer for so long does not answer. A step asks every replica's documents, which
/// may be far away.
const ANSWER: Duration = Duration::from_secs(30);

/// The answer, or why there is none.
pub fn ask(step: &TrustStep) -> Result<String, String> {
    match step {
        TrustStep::Status { at } => exchange(&at.state_dir, "GET", STATUS, ""),
        TrustStep::AddRoot { certificate, key, at } => {
            let read = |path: &std::path::PathBuf| {
                fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))
            };
            let certificate = certificate.as_ref().map(read).transpose()?;
            let key = key.as_ref().map(read).transpose()?;
            post(&at.state_dir, ADD_ROOT, &AddRoot { certificate, key })
        }
        TrustStep::IssueFrom { root, ignore_absent, at } => {
            let step = WithRoot { root: root.clone(), ignore_absent: *ignore_absent };
            post(&at.state_dir, ISSUE_FROM, &step)
        }
        TrustStep::RemoveRoot { root, ignore_absent, at } => {
            let step = WithRoot { root: root.clone(), ignore_absent: *ignore_absent };
            post(&at.state_dir, REMOVE_ROOT, &step)
        }
    }
}

fn post(state_dir: &Path, path: &str, body: &impl serde::Serialize) -> Result<String, String> {
    let body = serde_json::to_string(body).map_err(|error| error.to_string())?;
    exchange(state_dir, "POST", path, &body)
}

fn exchange(state_dir: &Path, method: &str, path: &str, body: &str) -> Result<String, String> {
    let (socket, mut stream) = connect(state_dir)?;
    let failed = |error: io::Error| format!("{}: {error}", socket.display());
    stream.set_read_timeout(Some(ANSWER)).map_err(failed)?;
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: control\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\nconnection: close\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).map_err(failed)?;
    let mut response = String::new();
    stream.read_to_string(&mut response).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => format!(
            "{}: no answer within {ANSWER:?}: a step may still be taken, `trust status` says whether it was",
            socket.display()
        ),
        _ => failed(error),
    })?;
    let strange = || format!("{}: no answer that could be understood", socket.display());
    let (head, text) = response.split_once("\r\n\r\n").ok_or_else(strange)?;
    match head.split_ascii_whitespace().nth(1).ok_or_else(strange)? {
        "200" => Ok(text.to_owned()),
        _ => Err(text.trim_end().to_owned()),
    }
}

/// Connects to the first replica that listens.
fn connect(state_dir: &Path) -> Result<(PathBuf, UnixStream), String> {
    let mut problem = None;
    for socket in sockets(state_dir) {
        match UnixStream::connect(&socket) {
            Ok(stream) => return Ok((socket, stream)),
            Err(error) => problem = problem.or(Some(format!("{}: {error}", socket.display()))),
        }
    }
    Err(format!(
        "{}: is the control plane running, with this state directory and --identity on?",
        problem.unwrap_or_default()
    ))
}
