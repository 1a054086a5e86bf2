//! Apps behind the proxies: HTTP servers that say what they got, and plain TCP ones.

use std::convert::Infallible;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use serde_json::json;
use tokio::runtime::Runtime;

/// An HTTP/1.1 and HTTP/2 server that answers with what it got. `/status/N` answers N, `/sleep/N`
/// after N milliseconds, `/bytes/N` with N bytes.
pub struct Echo {
    pub port: u16,
    pub connections: Arc<AtomicU64>,
    pub requests: Arc<AtomicU64>,
    // Ends the server when dropped.
    runtime: Option<Runtime>,
}

impl Echo {
    pub fn start(name: &'static str) -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").expect("a port"), name)
    }

    pub fn on(listener: TcpListener, name: &'static str) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let port = listener.local_addr().expect("its address").port();
        listener.set_nonblocking(true).expect("non-blocking");
        let (connections, requests) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (opened, got) = (Arc::clone(&connections), Arc::clone(&requests));
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
            while let Ok((stream, _)) = listener.accept().await {
                opened.fetch_add(1, Relaxed);
                let got = Arc::clone(&got);
                tokio::spawn(async move {
                    let service = service_fn(move |request| {
                        got.fetch_add(1, Relaxed);
                        answer(name, request)
                    });
                    let builder = auto::Builder::new(TokioExecutor::new());
                    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Self { port, connections, requests, runtime: Some(runtime) }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn answer(
    name: &'static str,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let mut segments = head.uri.path().trim_start_matches('/').split('/');
    let (what, n) = (segments.next(), segments.next().and_then(|n| n.parse::<usize>().ok()));
    match (what, n) {
        (Some("status"), Some(n)) => {
            let mut response = Response::new(Full::from(format!("status {n}\n")));
            *response.status_mut() = http::StatusCode::from_u16(n as u16).unwrap_or_default();
            return Ok(response);
        }
        (Some("bytes"), Some(n)) => return Ok(Response::new(Full::from(vec![b'x'; n]))),
        (Some("sleep"), Some(n)) => tokio::time::sleep(Duration::from_millis(n as u64)).await,
        _ => {}
    }
    let headers: serde_json::Map<_, _> = head
        .headers
        .iter()
        .map(|(name, value)| (name.to_string(), json!(String::from_utf8_lossy(value.as_bytes()))))
        .collect();
    let said = json!({
        "app": name,
        "version": format!("{:?}", head.version),
        "method": head.method.as_str(),
        "uri": head.uri.to_string(),
        "headers": headers,
        "body": String::from_utf8_lossy(&body),
        "bodyBytes": body.len(),
    });
    let mut response = Response::new(Full::from(format!("{said}\n")));
    response.headers_mut().insert("x-app", http::HeaderValue::from_static(name));
    Ok(response)
}

/// Serves each connection of a TCP listener on a thread of its own. Ends with the process.
pub fn tcp(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> u16 {
    tcp_on(TcpListener::bind("127.0.0.1:0").expect("a port"), serve)
}

pub fn tcp_on(listener: TcpListener, serve: impl Fn(TcpStream) + Send + Sync + 'static) -> u16 {
    let port = listener.local_addr().expect("its address").port();
    let serve = Arc::new(serve);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let serve = Arc::clone(&serve);
            std::thread::spawn(move || serve(stream));
        }
    });
    port
}

/// Reads one head; none: the other side has gone.
pub fn read_head(stream: &mut TcpStream) -> Option<String> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        if !matches!(stream.read(&mut byte), Ok(1)) {
            return None;
        }
        head.push(byte[0]);
    }
    Some(String::from_utf8_lossy(&head).into_owned())
}

/// Reads until the caller has said all, then answers with its length and closes.
pub fn count_then_answer(mut stream: TcpStream) {
    let mut got = Vec::new();
    if stream.read_to_end(&mut got).is_ok() {
        let _ = write!(stream, "got {} bytes", got.len());
        let _ = stream.shutdown(Shutdown::Write);
    }
}

/// An app that passes each request on through its own proxy, to `http://<to><same path>`, with nothing but
/// the headers in `forwards` (`name`, or `name: value` for one of its own), and gives the answer back. It knows its proxy only once that runs.
pub struct Relay {
    pub port: u16,
    outbound: Arc<AtomicU16>,
}

impl Relay {
    pub fn start(to: &'static str, forwards: &'static [&'static str]) -> Self {
        let outbound = Arc::new(AtomicU16::new(0));
        let proxy = Arc::clone(&outbound);
        let port = tcp(move |stream| {
            // The caller went away, or the answer did not come whole: its proxy says so.
            let _ = relay_one(stream, proxy.load(Relaxed), to, forwards);
        });
        Self { port, outbound }
    }

    pub fn calls_through(&self, outbound: u16) {
        self.outbound.store(outbound, Relaxed);
    }
}

fn relay_one(
    mut stream: TcpStream,
    proxy: u16,
    to: &str,
    forwards: &[&str],
) -> std::io::Result<()> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte)? == 0 {
            return Ok(());
        }
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let mut lines = head.split("\r\n");
    let path = lines.next().and_then(|line| line.split(' ').nth(1)).unwrap_or("/").to_owned();
    let mut call = format!("GET http://{to}{path} HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n");
    for line in lines {
        let name = line.split(':').next().unwrap_or_default();
        if forwards.iter().any(|forwarded| forwarded.eq_ignore_ascii_case(name)) {
            call.push_str(line);
            call.push_str("\r\n");
        }
    }
    for own in forwards.iter().filter(|own| own.contains(": ")) {
        call.push_str(own);
        call.push_str("\r\n");
    }
    call.push_str("\r\n");
    let mut upstream = TcpStream::connect(("127.0.0.1", proxy))?;
    upstream.write_all(call.as_bytes())?;
    let mut answer = Vec::new();
    upstream.read_to_end(&mut answer)?;
    stream.write_all(&answer)?;
    stream.shutdown(Shutdown::Both)
}

/// Speaks first, then echoes lines.
pub fn greet_then_echo(mut stream: TcpStream) {
    let _ = stream.write_all(b"220 ready\r\n");
    let mut buffer = [0; 1024];
    while let Ok(n) = stream.read(&mut buffer) {
        if n == 0 || stream.write_all(&buffer[..n]).is_err() {
            return;
        }
    }
}
