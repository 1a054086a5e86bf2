//! What the plugin and the node's daemon say to each other over a Unix socket.
//!
//! One question per connection: JSON up to the end of the plugin's half, with the pod's network namespace as an open
//! file beside its first byte (`SCM_RIGHTS`). So the daemon needs no path on the node, and no right but to enter
//! what it was given. Fields that a later version adds are ignored by an earlier one.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, recvmsg, sendmsg,
    socket_with,
};
use serde::{Deserialize, Serialize};

/// What either side says at most, in bytes: names of Kubernetes and a sentence.
const MAX: u64 = 16 * 1024;

/// Bytes of a sentence: an Event has room for 1024, with what is around it.
const MAX_SENTENCE: usize = 800;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    Add,
    Check,
    Del,
}

/// About which pod; its uid is empty where the runtime does not say it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    pub command: Command,
    pub namespace: String,
    pub name: String,
    #[serde(default)]
    pub uid: String,
}

/// What has become of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "result", content = "why", rename_all = "snake_case")]
pub enum Answer {
    Redirected,
    /// The pod is not of the mode `cni`: nothing was done.
    NotAsked,
    /// Whether it asked could not be found out: nothing was done, and will be once it is known.
    Unknown(String),
    /// The pod asked, and is not redirected.
    Failed(String),
    Removed,
}

/// What has gone wrong, as one line that fits into an answer and an Event: programs and pods say whatever they like.
pub fn sentence(text: &str) -> String {
    let shown = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut sentence: String = shown.take(MAX_SENTENCE).collect();
    sentence.truncate(sentence.floor_char_boundary(MAX_SENTENCE));
    sentence
}

/// Asks the daemon that listens at `socket`, for at most `limit` per step.
///
/// # Errors
/// If nobody is there, or does not answer in time.
pub fn ask(
    socket: &Path,
    question: &Question,
    namespace: Option<BorrowedFd<'_>>,
    limit: Duration,
) -> io::Result<Answer> {
    let mut stream = connect(socket, limit)?;
    stream.set_read_timeout(Some(limit))?;
    let text = serde_json::to_vec(question)?;
    let sent = match namespace {
        Some(namespace) => {
            let files = [namespace];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            ancillary.push(SendAncillaryMessage::ScmRights(&files));
            sendmsg(stream.as_fd(), &[IoSlice::new(&text)], &mut ancillary, SendFlags::NOSIGNAL)?
        }
        None => 0,
    };
    stream.write_all(&text[sent..])?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = Vec::new();
    (&stream).take(MAX).read_to_end(&mut answer)?;
    Ok(serde_json::from_slice(&answer)?)
}

/// A daemon that hangs has more callers than it takes at some time: these wait as long as they would for an answer.
fn connect(socket: &Path, limit: Duration) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC;
    let stream = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    set_socket_timeout(&stream, Timeout::Send, Some(limit))?;
    rustix::net::connect(&stream, &SocketAddrUnix::new(socket)?)?;
    Ok(stream.into())
}

/// Reads a question, as the daemon, and the namespace that came with it, for as long as one read of the stream may take.
///
/// # Errors
/// If it does not come in time, or cannot be understood.
pub fn read(stream: &UnixStream) -> io::Result<(Question, Option<OwnedFd>)> {
    let (began, limit) = (Instant::now(), stream.read_timeout()?);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut first = [0; 4096];
    let mut parts = [IoSliceMut::new(&mut first)];
    let received = recvmsg(stream.as_fd(), &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let mut namespace = None;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(mut files) = message {
            namespace = files.next();
        }
    }
    let mut text = first[..received.bytes].to_vec();
    while text.len() as u64 <= MAX {
        if let Some(limit) = limit {
            let left = limit.checked_sub(began.elapsed()).filter(|left| !left.is_zero());
            stream.set_read_timeout(Some(left.ok_or(io::ErrorKind::TimedOut)?))?;
        }
        match (&*stream).read(&mut first)? {
            0 => return Ok((serde_json::from_slice(&text)?, namespace)),
            more => text.extend_from_slice(&first[..more]),
        }
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "the question is too long"))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::MetadataExt;
    use std::os::unix::net::UnixListener;
    use std::sync::mpsc::RecvTimeoutError;
    use std::thread;

    use super::*;

    #[test]
    fn a_question_arrives_with_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("s");
        let listener = UnixListener::bind(&socket).unwrap();
        let question = Question {
            command: Command::Add,
            namespace: "bank".to_owned(),
            name: "orders-0".to_owned(),
            uid: String::new(),
        };
        let file = File::open(folder.path()).unwrap();
        let answers = thread::scope(|scope| {
            let server = scope.spawn(|| {
                let mut seen = Vec::new();
                for answer in [Answer::Redirected, Answer::Failed("why".to_owned())] {
                    let (stream, _) = listener.accept().unwrap();
                    seen.push(read(&stream).unwrap());
                    (&stream).write_all(&serde_json::to_vec(&answer).unwrap()).unwrap();
                }
                seen
            });
            let limit = Duration::from_secs(10);
            let with = ask(&socket, &question, Some(file.as_fd()), limit).unwrap();
            let without = ask(&socket, &question, None, limit).unwrap();
            let seen = server.join().unwrap();
            assert!(seen.iter().all(|(asked, _)| *asked == question));
            let got = File::from(seen.into_iter().next().unwrap().1.unwrap());
            assert_eq!(got.metadata().unwrap().ino(), file.metadata().unwrap().ino());
            [with, without]
        });
        assert_eq!(answers, [Answer::Redirected, Answer::Failed("why".to_owned())]);
    }

    #[test]
    fn who_says_a_byte_now_and_then_has_no_more_time_than_others() {
        let (here, there) = UnixStream::pair().unwrap();
        here.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let slow = thread::spawn(move || {
            let mut said = 0;
            let pace = Duration::from_millis(20);
            while said < 500 && stopped.recv_timeout(pace) == Err(RecvTimeoutError::Timeout) {
                said += (&there).write(b" ").unwrap_or(500);
            }
            said
        });
        let error = read(&here).unwrap_err();
        stop.send(()).unwrap();
        let said = slow.join().unwrap();
        assert!(said < 500, "it was listened to to the end: {error}");
    }

    #[test]
    fn nonsense_is_an_error_and_nobody_there_another() {
        let (here, there) = UnixStream::pair().unwrap();
        (&there).write_all(b"{\"command\":\"rm\"}").unwrap();
        drop(there);
        assert_eq!(read(&here).unwrap_err().kind(), io::ErrorKind::InvalidData);
        let nobody = Path::new("/nonexistent/socket");
        let question = Question {
            command: Command::Del,
            namespace: String::new(),
            name: String::new(),
            uid: String::new(),
        };
        let error = ask(nobody, &question, None, Duration::from_secs(1)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
