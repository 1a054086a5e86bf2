//! The service behind every proxy under test, as light as it can be so that the proxy is what is
//! measured: canned answers to HTTP/1.1, HTTP/2 and gRPC, and an echo of bytes.
//!
//! `backend h1|h2|grpc|tcp LISTEN`

use std::error::Error;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Response};
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

async fn http2(stream: TcpStream, grpc: bool) -> Result<(), Failure> {
    let mut connection = h2::server::Builder::new()
        .initial_window_size(256 * 1024)
        .initial_connection_window_size(64 * 1024 * 1024)
        .max_concurrent_streams(1_000)
        .handshake::<_, Bytes>(stream)
        .await?;
    while let Some(accepted) = connection.accept().await {
        let (request, mut respond) = accepted?;
        if !grpc {
            answer(&mut respond, "text/plain", Bytes::from_static(BODY), None)?;
            continue;
        }
        tokio::task::spawn_local(async move {
            let mut body = request.into_body();
            let mut got = 0;
            while let Some(data) = body.data().await {
                let Ok(data) = data else { return };
                let _ = body.flow_control().release_capacity(data.len());
                got += data.len();
            }
            if got != GRPC_LEN {
                respond.send_reset(h2::Reason::PROTOCOL_ERROR);
                return;
            }
            let mut message = vec![0, 0, 0, 0, 128];
            message.extend_from_slice(BODY);
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", HeaderValue::from_static("0"));
            let _ = answer(&mut respond, "application/grpc", message.into(), Some(trailers));
        });
    }
    Ok(())
}

fn answer(
    respond: &mut h2::server::SendResponse<Bytes>,
    kind: &'static str,
    body: Bytes,
    trailers: Option<HeaderMap>,
) -> Result<(), h2::Error> {
    let head = Response::builder().header("content-type", kind).body(());
    let Ok(head) = head else { return Ok(()) };
    let mut stream = respond.send_response(head, false)?;
    stream.send_data(body, trailers.is_none())?;
    match trailers {
        Some(trailers) => stream.send_trailers(trailers),
        None => Ok(()),
    }
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
