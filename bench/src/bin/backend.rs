//! The service behind every proxy under test, as light as it can be so that the proxy is what is
//! measured: canned answers to HTTP/1.1, HTTP/2 and gRPC, and an echo of bytes.
//!
//! `backend h1|h2|grpc|tcp LISTEN`

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

/// Answers each request head; requests have no bodies.
async fn http1(mut stream: TcpStream) -> Result<(), Failure> {
    let mut answer = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n\r\n",
        BODY.len()
    )
    .into_bytes();
    answer.extend_from_slice(BODY);
    let mut read = BytesMut::with_capacity(8 * 1024);
    let mut out = Vec::new();
    while stream.read_buf(&mut read).await? > 0 {
        out.clear();
        while let Some(at) = read.windows(4).position(|w| w == END_OF_HEAD) {
            let _ = read.split_to(at + 4);
            out.extend_from_slice(&answer);
        }
        stream.write_all(&out).await?;
        read.reserve(4 * 1024);
    }
    Ok(())
}

/// Frame types and flags of RFC 9113, section 6.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const FRAME_HEAD: usize = 9;
/// Bytes received after which the connection's window is opened again.
const WINDOW_STEP: usize = 16 * 1024;
/// SETTINGS_HEADER_TABLE_SIZE, and what it is unless the peer says otherwise.
const HEADER_TABLE_SIZE: [u8; 2] = [0, 1];
const TABLE: u32 = 4_096;

/// HTTP/2 as bare frames: answers are the same bytes but for the stream's number, so nothing of the
/// request is decoded. Answers stay far below any window.
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
    // SETTINGS_MAX_CONCURRENT_STREAMS.
    frame(&mut out, SETTINGS, 0, 0, &[0, 3, 0, 0, 3, 232]);
    let mut answers = Answers::new(grpc);
    let (mut unfinished, mut received) = (HashMap::new(), 0);
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
                    frame(&mut out, SETTINGS, ACK, 0, &[]);
                }
                PING if flags & ACK == 0 => frame(&mut out, PING, ACK, 0, body),
                DATA => {
                    received += length;
                    *unfinished.entry(id).or_insert(0) += length;
                }
                _ => {}
            }
            if matches!(kind, HEADERS | DATA) && flags & END_STREAM != 0 {
                let got = unfinished.remove(&id).unwrap_or(0);
                if got != if grpc { GRPC_LEN } else { 0 } {
                    return Err("a request of the wrong length".into());
                }
                answers.write(&mut out, id);
            }
        }
        if received >= WINDOW_STEP {
            let opened = u32::try_from(received)?.to_be_bytes();
            frame(&mut out, WINDOW_UPDATE, 0, 0, &opened);
            received = 0;
        }
        stream.write_all(&out).await?;
        out.clear();
        read.reserve(16 * 1024);
        if stream.read_buf(&mut read).await? == 0 {
            return Ok(());
        }
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

    fn write(&mut self, out: &mut Vec<u8>, id: u32) {
        let kind = if self.grpc { "application/grpc" } else { "text/plain" };
        let head = [
            ("server", "backend"),
            ("content-type", kind),
            ("cache-control", "max-age=3600"),
            ("date", "Sun, 01 Mar 2026 12:00:00 GMT"),
            ("last-modified", "Sun, 01 Mar 2026 11:00:00 GMT"),
        ];
        let trailers = [("grpc-status", "0")];
        // Fields that are kept count from 62 on, the latest first; the trailers' came last.
        let latest = 62;
        let before = u8::from(self.grpc) + latest;
        // `:status: 200` of the static table.
        let mut block = vec![0x88];
        self.fields(&mut block, &head, before);
        frame(out, HEADERS, END_HEADERS, id, &block);
        let end = if self.grpc { 0 } else { END_STREAM };
        frame(out, DATA, end, id, &self.body);
        if self.grpc {
            block.clear();
            self.fields(&mut block, &trailers, latest);
            frame(out, HEADERS, END_HEADERS | END_STREAM, id, &block);
        }
        self.indexed = self.indexes;
    }

    /// `last`: where the last of them is in the peer's table, once it has them.
    fn fields(&self, block: &mut Vec<u8>, fields: &[(&str, &str)], last: u8) {
        for ((name, value), after) in fields.iter().zip((0..fields.len() as u8).rev()) {
            if self.indexed {
                block.push(0x80 | (last + after));
                continue;
            }
            block.push(if self.indexes { 0x40 } else { 0 });
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
