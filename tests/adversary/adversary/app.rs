//! An app that takes what it can make sense of, as lenient servers do, and notes what it read.

use std::cell::RefCell;
use std::rc::Rc;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

/// A request as the app read it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    pub method: String,
    pub target: String,
    /// Names in lower case, in order.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Seen {
    pub fn all(&self, name: &str) -> impl Iterator<Item = &str> {
        self.headers.iter().filter(move |(other, _)| other == name).map(|(_, value)| value.as_str())
    }
}

/// Serves one connection to its end. An upgrade or a CONNECT is accepted, and what follows is read no further.
pub async fn serve(mut stream: DuplexStream, seen: Rc<RefCell<Vec<Seen>>>) {
    let mut read = Vec::new();
    loop {
        // Empty lines before a request are passed over, any number of them.
        let empty = read.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
        read.drain(..empty);
        if let Some((request, length)) = parse(&read) {
            let switches = request.method == "CONNECT" || request.all("upgrade").next().is_some();
            let answer: &[u8] = match (request.method.as_str(), switches) {
                ("CONNECT", _) => b"HTTP/1.1 200 OK\r\n\r\n",
                ("HEAD", false) => b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n",
                (_, true) => {
                    b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"
                }
                _ => b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
            };
            seen.borrow_mut().push(request);
            read.drain(..length);
            if stream.write_all(answer).await.is_err() || switches {
                return;
            }
            continue;
        }
        if !stream.read_buf(&mut read).await.is_ok_and(|n| n > 0) {
            return;
        }
    }
}

/// A request and its length in bytes, once all of it is there.
fn parse(bytes: &[u8]) -> Option<(Seen, usize)> {
    let text = String::from_utf8_lossy(bytes);
    // Either end of a line is taken.
    let end = bytes.windows(4).position(|w| w == b"\r\n\r\n").map(|at| at + 4);
    let bare = bytes.windows(2).position(|w| w == b"\n\n").map(|at| at + 2);
    let end = end.into_iter().chain(bare).min()?;
    let head = text.get(..end)?;
    let mut lines = head.lines();
    let mut line = lines.next()?.split_ascii_whitespace();
    let (method, target) = (line.next()?.to_owned(), line.next().unwrap_or_default().to_owned());
    let headers: Vec<_> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.trim().to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let mut seen = Seen { method, target, headers, body: Vec::new() };
    let rest = &bytes[end..];
    let chunked = seen.all("transfer-encoding").any(|coding| coding.contains("chunked"));
    let length = seen.all("content-length").next().and_then(|n| n.parse::<usize>().ok());
    let length = match (chunked, length) {
        (true, _) => {
            let (body, length) = unchunk(rest)?;
            seen.body = body;
            length
        }
        (false, Some(length)) => {
            seen.body = rest.get(..length)?.to_vec();
            length
        }
        (false, None) => 0,
    };
    Some((seen, end + length))
}

fn unchunk(bytes: &[u8]) -> Option<(Vec<u8>, usize)> {
    let (mut body, mut at) = (Vec::new(), 0);
    loop {
        let line = bytes[at..].windows(2).position(|w| w == b"\r\n")?;
        let size = std::str::from_utf8(&bytes[at..at + line]).ok()?;
        let size = usize::from_str_radix(size.split(';').next()?.trim(), 16).ok()?;
        at += line + 2;
        if size == 0 {
            // Trailers, if any, up to the empty line.
            loop {
                let line = bytes[at..].windows(2).position(|w| w == b"\r\n")?;
                at += line + 2;
                if line == 0 {
                    return Some((body, at));
                }
            }
        }
        body.extend_from_slice(bytes.get(at..at + size)?);
        at += size + 2;
        bytes.get(..at)?;
    }
}
