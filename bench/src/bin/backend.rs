//! The service behind every proxy under test, as light as it can be so that the proxy is what is
//! measured: canned answers to HTTP/1.1, HTTP/2 and gRPC, and an echo of bytes.
//!
//! `backend h1|h2|grpc|tcp LISTEN`
//!
//! An answer of another length is asked for by the path `/bytes/N` on HTTP/1.1, and by a body `bytes=N` on HTTP/2,
//! where heads are not decoded. Longer bodies of requests are read and thrown away.

use std::collections::HashMap;
use std::error::Error;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, LocalOptions};

type Failure = Box<dyn Error + Send + Sync>;

/// What every answer carries, in bytes.
const BODY: &[u8; 128] = &[b'x'; 128];
/// A gRPC message of 128 bytes with its 5 bytes of frame.
const GRPC_LEN: usize = 133;
const END_OF_HEAD: &[u8] = b"\r\n\r\n";

fn main() -> Result<(), Failure> {
    let args: Vec<String> = std::env::args().collect();
    let [_, kind, listen] = args.as_slice() else {
        return Err("usage: backend h1|h2|grpc|tcp LISTEN".into());
    };
    let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default())?;
    runtime.block_on(async {
        let listener = TcpListener::bind(listen).await?;
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            match kind.as_str() {
                "h1" => tokio::task::spawn_local(http1(stream)),
                "h2" => tokio::task::spawn_local(http2(stream, false)),
                "grpc" => tokio::task::spawn_local(http2(stream, true)),
                _ => tokio::task::spawn_local(echo(stream)),
            };
        }
    })
}

/// Bytes of long answers.
static LONG: [u8; 256 * 1024] = [b'x'; 256 * 1024];

/// Answers each request.
async fn http1(mut stream: TcpStream) -> Result<(), Failure> {
    let head = |length: usize| {
        format!("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {length}\r\n\r\n")
            .into_bytes()
    };
    let answer = [&head(BODY.len())[..], BODY].concat();
    let mut read = BytesMut::with_capacity(8 * 1024);
    // The bytes of a request's body that have not come, and what answers it when they have.
    let (mut out, mut skip, mut asked) = (Vec::new(), 0, None);
    while stream.read_buf(&mut read).await? > 0 {
        out.clear();
        loop {
            let body = read.len().min(skip);
            let _ = read.split_to(body);
            skip -= body;
            if skip > 0 {
                break;
            }
            match asked.take() {
                None => {}
                Some(None) => out.extend_from_slice(&answer),
                Some(Some(length)) => {
                    out.extend_from_slice(&head(length));
                    stream.write_all(&out).await?;
                    out.clear();
                    long(&mut stream, length).await?;
                }
            }
            let Some(at) = read.windows(4).position(|w| w == END_OF_HEAD) else { break };
            let request = read.split_to(at + 4);
            skip = number_after(&request, b"content-length: ").unwrap_or(0);
            asked = Some(number_after(&request, b"GET /bytes/"));
        }
        stream.write_all(&out).await?;
        read.reserve(if skip > 0 { LONG.len() } else { 4 * 1024 });
    }
    Ok(())
}

async fn long(stream: &mut TcpStream, mut left: usize) -> Result<(), Failure> {
    while left > 0 {
        let part = left.min(LONG.len());
        stream.write_all(&LONG[..part]).await?;
        left -= part;
    }
    Ok(())
}

/// The digits behind `name`.
fn number_after(text: &[u8], name: &[u8]) -> Option<usize> {
    let at = text.windows(name.len()).position(|part| part == name)? + name.len();
    let digits = text[at..].split(|byte| !byte.is_ascii_digit()).next()?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// Frame types and flags of RFC 9113, section 6.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const RST_STREAM: u8 = 3;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const FRAME_HEAD: usize = 9;
/// Longer requests are taken as they come.
const LONG_REQUEST: usize = 1024;
/// Bytes received after which a window is opened again.
const WINDOW_STEP: usize = 256 * 1024;
/// SETTINGS_HEADER_TABLE_SIZE, and what it is unless the peer says otherwise.
const HEADER_TABLE_SIZE: [u8; 2] = [0, 1];
const TABLE: u32 = 4_096;

/// HTTP/2 as bare frames: answers are the same bytes but for the stream's number, so nothing of the
/// request is decoded. Answers that nobody asked to be long stay far below any window.
async fn http2(mut stream: TcpStream, grpc: bool) -> Result<(), Failure> {
    let mut read = BytesMut::with_capacity(64 * 1024);
    while read.len() < PREFACE.len() {
        if stream.read_buf(&mut read).await? == 0 {
            return Ok(());
        }
    }
    if read.split_to(PREFACE.len()) != PREFACE {
        return Err("not an HTTP/2 client".into());
    }
    let mut out = Vec::new();
    // SETTINGS_MAX_CONCURRENT_STREAMS, and windows of 1 MiB for a stream and 16 for all, as servers have today.
    frame(&mut out, SETTINGS, 0, 0, &[0, 3, 0, 0, 3, 232, 0, 4, 0, 0x10, 0, 0]);
    frame(&mut out, WINDOW_UPDATE, 0, 0, &[0, 0xff, 0, 0]);
    let mut answers = Answers::new(grpc);
    let (mut unfinished, mut received) = (HashMap::<u32, Asked>::new(), 0);
    let mut windows = Windows::default();
    loop {
        while read.len() >= FRAME_HEAD {
            let length =
                usize::from(read[0]) << 16 | usize::from(read[1]) << 8 | usize::from(read[2]);
            if read.len() < FRAME_HEAD + length {
                break;
            }
            let frame_read = read.split_to(FRAME_HEAD + length);
            let (kind, flags, body) = (frame_read[3], frame_read[4], &frame_read[FRAME_HEAD..]);
            let id =
                u32::from_be_bytes([frame_read[5], frame_read[6], frame_read[7], frame_read[8]]);
            match kind {
                SETTINGS if flags & ACK == 0 => {
                    answers.settings(body);
                    windows.settings(body);
                    frame(&mut out, SETTINGS, ACK, 0, &[]);
                }
                PING if flags & ACK == 0 => frame(&mut out, PING, ACK, 0, body),
                DATA => {
                    received += length;
                    let asked = unfinished.entry(id).or_default();
                    asked.got += length;
                    asked.unopened += length;
                    if length < GRPC_LEN {
                        asked.answer = number_after(body, b"bytes=");
                    }
                    if asked.unopened >= WINDOW_STEP && flags & END_STREAM == 0 {
                        let opened = u32::try_from(asked.unopened)?.to_be_bytes();
                        frame(&mut out, WINDOW_UPDATE, 0, id, &opened);
                        asked.unopened = 0;
                    }
                }
                WINDOW_UPDATE if body.len() == 4 => {
                    let more = u32::from_be_bytes([body[0], body[1], body[2], body[3]]);
                    windows.open(id, i64::from(more & 0x7fff_ffff));
                }
                RST_STREAM => windows.end(id),
                _ => {}
            }
            if matches!(kind, HEADERS | DATA) && flags & END_STREAM != 0 {
                let asked = unfinished.remove(&id).unwrap_or_default();
                match asked.answer {
                    Some(length) => {
                        answers.head(&mut out, id, false);
                        windows.begin(id, length);
                    }
                    None if asked.got == if grpc { GRPC_LEN } else { 0 }
                        || asked.got > LONG_REQUEST =>
                    {
                        answers.write(&mut out, id);
                    }
                    None => return Err("a request of the wrong length".into()),
                }
            }
        }
        for id in windows.write(&mut out) {
            answers.end(&mut out, id);
        }
        if received >= WINDOW_STEP {
            let opened = u32::try_from(received)?.to_be_bytes();
            frame(&mut out, WINDOW_UPDATE, 0, 0, &opened);
            received = 0;
        }
        stream.write_all(&out).await?;
        out.clear();
        // Before the peer is waited for: what there is room for goes on.
        if windows.can_write() {
            continue;
        }
        read.reserve(64 * 1024);
        if stream.read_buf(&mut read).await? == 0 {
            return Ok(());
        }
    }
}

/// A request of which more comes.
#[derive(Default)]
struct Asked {
    got: usize,
    /// Bytes for which the stream's window was not opened again yet.
    unopened: usize,
    /// The length that the answer shall have.
    answer: Option<usize>,
}

/// Long answers, within the peer's windows (RFC 9113, section 5.2).
struct Windows {
    connection: i64,
    /// Of each new stream.
    initial: i64,
    max_frame: usize,
    streams: HashMap<u32, (i64, usize)>,
}

impl Default for Windows {
    fn default() -> Self {
        Self { connection: 65_535, initial: 65_535, max_frame: 16_384, streams: HashMap::new() }
    }
}

impl Windows {
    /// Bytes that are written before the peer is looked at again.
    const BATCH: usize = 256 * 1024;

    fn settings(&mut self, body: &[u8]) {
        for setting in body.chunks_exact(6) {
            let value = u32::from_be_bytes([setting[2], setting[3], setting[4], setting[5]]);
            match setting[..2] {
                [0, 4] => {
                    let more = i64::from(value) - self.initial;
                    self.streams.values_mut().for_each(|(window, _)| *window += more);
                    self.initial = i64::from(value);
                }
                [0, 5] => self.max_frame = value as usize,
                _ => {}
            }
        }
    }

    fn begin(&mut self, id: u32, length: usize) {
        self.streams.insert(id, (self.initial, length));
    }

    fn end(&mut self, id: u32) {
        self.streams.remove(&id);
    }

    fn open(&mut self, id: u32, more: i64) {
        match self.streams.get_mut(&id) {
            Some((window, _)) => *window += more,
            None if id == 0 => self.connection += more,
            None => {}
        }
    }

    fn can_write(&self) -> bool {
        self.connection > 0 && self.streams.values().any(|(window, _)| *window > 0)
    }

    /// A frame of each stream in turn; gives those whose last byte was written.
    fn write(&mut self, out: &mut Vec<u8>) -> Vec<u32> {
        let mut ended = Vec::new();
        while self.can_write() && out.len() < Self::BATCH {
            for (id, (window, left)) in &mut self.streams {
                let room = (*window).min(self.connection).max(0) as usize;
                let part = room.min(*left).min(self.max_frame).min(LONG.len());
                if part > 0 {
                    frame(out, DATA, 0, *id, &LONG[..part]);
                    *window -= part as i64;
                    self.connection -= part as i64;
                    *left -= part;
                }
                if *left == 0 {
                    ended.push(*id);
                }
            }
            for id in &ended {
                self.streams.remove(id);
            }
        }
        ended
    }
}

/// The answers on one connection.
struct Answers {
    grpc: bool,
    /// Whether the peer keeps fields for later answers (RFC 7541, section 2.3.2), and has them.
    indexes: bool,
    indexed: bool,
    body: Vec<u8>,
}

const TRAILERS: [(&str, &str); 1] = [("grpc-status", "0")];
/// Where the field that was kept last is.
const LATEST: u8 = 62;

impl Answers {
    fn new(grpc: bool) -> Self {
        let mut body = if grpc { vec![0, 0, 0, 0, 128] } else { Vec::new() };
        body.extend_from_slice(BODY);
        Self { grpc, indexes: true, indexed: false, body }
    }

    fn settings(&mut self, body: &[u8]) {
        for setting in body.chunks_exact(6) {
            let value = u32::from_be_bytes([setting[2], setting[3], setting[4], setting[5]]);
            if setting[..2] == HEADER_TABLE_SIZE && value < TABLE {
                self.indexes = false;
            }
        }
    }

    /// A whole answer. Fields that are kept count from 62 on, the latest first; the trailers' came last.
    fn write(&mut self, out: &mut Vec<u8>, id: u32) {
        self.head(out, id, self.indexes);
        let end = if self.grpc { 0 } else { END_STREAM };
        frame(out, DATA, end, id, &self.body);
        if self.grpc {
            let mut block = Vec::new();
            self.fields(&mut block, &TRAILERS, LATEST, self.indexes);
            frame(out, HEADERS, END_HEADERS | END_STREAM, id, &block);
        }
        self.indexed = self.indexes;
    }

    /// `keep`: the peer shall keep its fields. Not those of answers that overlap, whose order is not known.
    fn head(&self, out: &mut Vec<u8>, id: u32, keep: bool) {
        let kind = if self.grpc { "application/grpc" } else { "text/plain" };
        let head = [
            ("server", "backend"),
            ("content-type", kind),
            ("cache-control", "max-age=3600"),
            ("date", "Sun, 01 Mar 2026 12:00:00 GMT"),
            ("last-modified", "Sun, 01 Mar 2026 11:00:00 GMT"),
        ];
        // `:status: 200` of the static table.
        let mut block = vec![0x88];
        self.fields(&mut block, &head, u8::from(self.grpc) + LATEST, keep);
        frame(out, HEADERS, END_HEADERS, id, &block);
    }

    fn end(&self, out: &mut Vec<u8>, id: u32) {
        if !self.grpc {
            return frame(out, DATA, END_STREAM, id, &[]);
        }
        let mut block = Vec::new();
        self.fields(&mut block, &TRAILERS, LATEST, false);
        frame(out, HEADERS, END_HEADERS | END_STREAM, id, &block);
    }

    /// `last`: where the last of them is in the peer's table, once it has them.
    fn fields(&self, block: &mut Vec<u8>, fields: &[(&str, &str)], last: u8, keep: bool) {
        for ((name, value), after) in fields.iter().zip((0..fields.len() as u8).rev()) {
            if self.indexed {
                block.push(0x80 | (last + after));
                continue;
            }
            block.push(if keep { 0x40 } else { 0 });
            for text in [name, value] {
                block.push(text.len() as u8);
                block.extend_from_slice(text.as_bytes());
            }
        }
    }
}

fn frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, body: &[u8]) {
    out.extend_from_slice(&(body.len() as u32).to_be_bytes()[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(body);
}

async fn echo(mut stream: TcpStream) -> Result<(), Failure> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let n = stream.read(&mut buffer).await?;
        if n == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..n]).await?;
    }
}
