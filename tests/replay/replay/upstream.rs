//! Servers that note what they get of each request body, and how it ends.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use http::{Response, StatusCode};
use outrigger_tests::app::tcp;
use tokio::runtime::Runtime;

/// How long a late reader lets its answer go ahead.
const LATE: Duration = Duration::from_millis(150);
/// Of an HTTP/2 stream: small, so that bodies wait for it.
const WINDOW: u32 = 65_535;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// As the protocol says: by its length, its last chunk, or END_STREAM.
    Whole,
    Cut,
}

/// What one server got of one attempt.
#[derive(Clone, Debug)]
pub struct Arrival {
    pub server: &'static str,
    path: String,
    pub body: Vec<u8>,
    /// None: it goes on.
    pub end: Option<End>,
}

#[derive(Clone, Default)]
pub struct Arrivals(Arc<Mutex<Vec<Arrival>>>);

impl Arrivals {
    pub fn of(&self, path: &str) -> Vec<Arrival> {
        let all = self.0.lock().expect("no panic");
        all.iter().filter(|arrival| arrival.path == path).cloned().collect()
    }

    /// Its place, and how often `server` has seen the path before.
    fn begin(&self, server: &'static str, path: &str) -> (usize, usize) {
        let mut all = self.0.lock().expect("no panic");
        let before = all.iter().filter(|one| one.path == path && one.server == server).count();
        all.push(Arrival { server, path: path.to_owned(), body: Vec::new(), end: None });
        (all.len() - 1, before)
    }

    fn end(&self, at: usize, body: Vec<u8>, end: End) {
        let mut all = self.0.lock().expect("no panic");
        (all[at].body, all[at].end) = (body, Some(end));
    }
}

/// What a server does with an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Plan {
    /// The status, and whether it is said before the body is read.
    status: u16,
    first: bool,
    /// A pause before the body is read on.
    late: bool,
    /// A little at a time.
    slow: bool,
    /// Reset after so much.
    reset: bool,
    /// A pause before the answer.
    waits: bool,
}

fn plan(server: &str, path: &str, before: usize) -> Plan {
    let plain =
        Plan { status: 200, first: false, late: false, slow: false, reset: false, waits: false };
    let late = Plan { first: true, late: true, ..plain };
    let scenario = path.split('/').nth(1).unwrap_or_default();
    match (scenario, server, before) {
        ("retry", "app", 0) | ("fallback", "app", _) => Plan { status: 503, ..plain },
        ("reset", "app", 0) => Plan { reset: true, ..plain },
        ("hedge", "app", 0) => Plan { waits: true, ..plain },
        ("slow", ..) => Plan { slow: true, ..plain },
        ("retry" | "reset" | "hedge" | "early" | "fallback", ..) | ("mirror", "shadow", _) => late,
        _ => plain,
    }
}

pub fn http1(arrivals: &Arrivals, server: &'static str) -> u16 {
    let arrivals = arrivals.clone();
    tcp(move |mut stream| while let Ok(true) = serve_http1(&mut stream, &arrivals, server) {})
}

/// Whether the connection goes on.
fn serve_http1(
    stream: &mut TcpStream,
    arrivals: &Arrivals,
    server: &'static str,
) -> io::Result<bool> {
    let head = until(stream, b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
    let (at, before) = arrivals.begin(server, &path);
    let plan = plan(server, &path, before);
    let length = head.split("content-length: ").nth(1).and_then(|rest| rest.split("\r\n").next());
    let length = length.and_then(|length| length.parse::<usize>().ok());
    let chunked = head.contains("transfer-encoding: chunked");
    let answer = format!("HTTP/1.1 {} x\r\ncontent-length: 2\r\n\r\n", plan.status);
    if plan.first {
        stream.write_all(answer.as_bytes())?;
    }
    // Once an answer is whole, nobody needs the rest of the request.
    let early = path.starts_with("/early/");
    if early {
        stream.write_all(b"ok")?;
    }
    if plan.late {
        std::thread::park_timeout(LATE);
    }
    let mut body = Vec::new();
    let ended = read_body(stream, &mut body, length, chunked, plan);
    if plan.waits {
        std::thread::park_timeout(3 * LATE);
    }
    let end = if ended.is_ok() { End::Whole } else { End::Cut };
    arrivals.end(at, body, end);
    ended?;
    if !plan.first {
        stream.write_all(answer.as_bytes())?;
    }
    if !early {
        stream.write_all(b"ok")?;
    }
    Ok(true)
}

fn read_body(
    stream: &mut TcpStream,
    body: &mut Vec<u8>,
    length: Option<usize>,
    chunked: bool,
    plan: Plan,
) -> io::Result<()> {
    let reset = || io::Error::other("reset on purpose");
    if !chunked {
        let length = length.unwrap_or(0);
        while body.len() < length {
            read_some(stream, body, length - body.len(), plan)?;
            if plan.reset {
                return Err(reset());
            }
        }
        return Ok(());
    }
    loop {
        let size = until(stream, b"\r\n")?;
        let size = String::from_utf8_lossy(&size);
        let size = usize::from_str_radix(size.trim(), 16).map_err(io::Error::other)?;
        let end = body.len() + size;
        while body.len() < end {
            read_some(stream, body, end - body.len(), plan)?;
        }
        stream.read_exact(&mut [0; 2])?;
        if plan.reset {
            return Err(reset());
        }
        if size == 0 {
            return Ok(());
        }
    }
}

fn read_some(
    stream: &mut TcpStream,
    body: &mut Vec<u8>,
    most: usize,
    plan: Plan,
) -> io::Result<()> {
    let mut buffer = [0; 16 * 1024];
    let n = stream.read(&mut buffer[..most.min(16 * 1024)])?;
    if n == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    body.extend_from_slice(&buffer[..n]);
    if plan.slow {
        std::thread::park_timeout(Duration::from_millis(2));
    }
    Ok(())
}

/// What comes up to and with `mark`.
fn until(stream: &mut TcpStream, mark: &[u8]) -> io::Result<Vec<u8>> {
    let (mut read, mut byte) = (Vec::new(), [0]);
    while !read.ends_with(mark) {
        stream.read_exact(&mut byte)?;
        read.push(byte[0]);
    }
    Ok(read)
}

/// The same over HTTP/2. Ends with the runtime.
pub fn http2(arrivals: &Arrivals, server: &'static str) -> (u16, Runtime) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0"));
    let listener = listener.expect("a port");
    let port = listener.local_addr().expect("its address").port();
    let arrivals = arrivals.clone();
    runtime.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let arrivals = arrivals.clone();
            tokio::spawn(async move {
                let mut builder = h2::server::Builder::new();
                builder.initial_window_size(WINDOW).initial_connection_window_size(1 << 20);
                let Ok(mut connection) = builder.handshake::<_, Bytes>(stream).await else {
                    return;
                };
                while let Some(Ok((request, answer))) = connection.accept().await {
                    tokio::spawn(serve_http2(request, answer, arrivals.clone(), server));
                }
            });
        }
    });
    (port, runtime)
}

async fn serve_http2(
    request: http::Request<h2::RecvStream>,
    mut answer: h2::server::SendResponse<Bytes>,
    arrivals: Arrivals,
    server: &'static str,
) {
    let path = request.uri().path().to_owned();
    let (at, before) = arrivals.begin(server, &path);
    let plan = plan(server, &path, before);
    let head = || {
        let mut head = Response::new(());
        *head.status_mut() = StatusCode::from_u16(plan.status).unwrap_or_default();
        head
    };
    // The head alone: a whole answer would end the request too (RFC 9113 section 8.1).
    let mut begun = match plan.first {
        true => answer.send_response(head(), false).ok(),
        false => None,
    };
    if plan.late {
        tokio::time::sleep(LATE).await;
    }
    let mut incoming = request.into_body();
    let (mut body, mut end) = (Vec::new(), End::Whole);
    loop {
        match incoming.data().await {
            Some(Ok(data)) => {
                body.extend_from_slice(&data);
                let _ = incoming.flow_control().release_capacity(data.len());
            }
            Some(Err(_)) => {
                end = End::Cut;
                break;
            }
            None => break,
        }
        if plan.reset {
            end = End::Cut;
            break;
        }
        if plan.slow {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
    if plan.waits {
        tokio::time::sleep(3 * LATE).await;
    }
    arrivals.end(at, body, end);
    if plan.reset {
        return answer.send_reset(Reason::INTERNAL_ERROR);
    }
    // The proxy may have gone: that is what is asked above.
    match &mut begun {
        Some(stream) => drop(stream.send_data(Bytes::from_static(b"ok"), true)),
        None => drop(answer.send_response(head(), true)),
    }
}
