//! How one service reaches another: directly, or through the forward proxy it was given.
//!
//! HTTP/1.1 goes to the proxy in absolute form, gRPC as HTTP/2 with the service's name as
//! `:authority`, TCP by CONNECT.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context as Task, Poll};
use std::time::Duration;

use axum::Json;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint};

use crate::context::Context;
use crate::options::Outbound;

/// Answers are small; this is a limit for mistakes.
const MAX_BODY: usize = 1024 * 1024;
/// Below the 5 s after which many servers close idle connections.
const POOL_IDLE: Duration = Duration::from_secs(4);

#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    #[error("{callee} answered {status}")]
    Status { callee: String, status: StatusCode, proxy_status: Option<HeaderValue> },
    #[error("{callee} answered gRPC {}: {}", .status.code(), .status.message())]
    Grpc { callee: String, status: Box<tonic::Status> },
    #[error("{callee} could not be reached: {error}")]
    Transport { callee: String, error: String },
    #[error("{callee} did not answer within {limit:?}")]
    Timeout { callee: String, limit: Duration },
    #[error("{callee} answered something that is not understood: {problem}")]
    Nonsense { callee: String, problem: String },
}

pub(crate) const PROXY_STATUS: &str = "proxy-status";

impl CallError {
    /// What a proxy on the way said about it.
    pub(crate) fn proxy_status(&self) -> Option<HeaderValue> {
        match self {
            Self::Status { proxy_status, .. } => proxy_status.clone(),
            Self::Grpc { status, .. } => {
                let value = status.metadata().get(PROXY_STATUS)?;
                HeaderValue::from_bytes(value.as_bytes()).ok()
            }
            Self::Transport { .. } | Self::Timeout { .. } | Self::Nonsense { .. } => None,
        }
    }

    /// The same error for a caller that speaks gRPC.
    pub(crate) fn into_status(self) -> tonic::Status {
        let mut status = match &self {
            Self::Timeout { .. } => tonic::Status::deadline_exceeded(self.to_string()),
            _ => tonic::Status::internal(self.to_string()),
        };
        if let Some(value) = self.proxy_status().and_then(|v| v.to_str().ok()?.parse().ok()) {
            status.metadata_mut().insert(PROXY_STATUS, value);
        }
        status
    }
}

/// A failing dependency is a bad gateway; an answer of 404 stays one.
impl IntoResponse for CallError {
    fn into_response(self) -> Response {
        let status = match &self {
            Self::Status { status, proxy_status: None, .. } if *status == StatusCode::NOT_FOUND => {
                *status
            }
            Self::Timeout { .. } => StatusCode::GATEWAY_TIMEOUT,
            _ => StatusCode::BAD_GATEWAY,
        };
        let body = Json(serde_json::json!({ "error": self.to_string() }));
        let mut response = (status, body).into_response();
        if let Some(value) = self.proxy_status() {
            response.headers_mut().insert(PROXY_STATUS, value);
        }
        response
    }
}

/// Makes HTTP calls over pooled connections.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    client: Client<Dial, Full<Bytes>>,
    dial: Dial,
    timeout: Duration,
}

impl Caller {
    pub(crate) fn new(outbound: &Outbound) -> Self {
        let dial = Dial::new(&outbound.proxy);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(POOL_IDLE)
            .build(dial.clone());
        Self { client, dial, timeout: outbound.timeout }
    }

    pub(crate) async fn get(
        &self,
        context: &Context,
        callee: &str,
        path: &str,
    ) -> Result<Value, CallError> {
        self.json(context, Method::GET, callee, path, Bytes::new()).await
    }

    pub(crate) async fn post(
        &self,
        context: &Context,
        callee: &str,
        path: &str,
        body: &Value,
    ) -> Result<Value, CallError> {
        self.json(context, Method::POST, callee, path, body.to_string().into()).await
    }

    async fn json(
        &self,
        context: &Context,
        method: Method,
        callee: &str,
        path: &str,
        body: Bytes,
    ) -> Result<Value, CallError> {
        let response = self.send(context, method, callee, path, body).await?;
        if !response.status().is_success() {
            return Err(CallError::Status {
                callee: callee.to_owned(),
                status: response.status(),
                proxy_status: response.headers().get(PROXY_STATUS).cloned(),
            });
        }
        serde_json::from_slice(response.body()).map_err(|error| CallError::Nonsense {
            callee: callee.to_owned(),
            problem: error.to_string(),
        })
    }

    /// The whole response, whatever its status.
    pub(crate) async fn send(
        &self,
        context: &Context,
        method: Method,
        callee: &str,
        path: &str,
        body: Bytes,
    ) -> Result<http::Response<Bytes>, CallError> {
        let transport = |error: &dyn std::error::Error| CallError::Transport {
            callee: callee.to_owned(),
            error: with_causes(error),
        };
        let mut request = Request::builder()
            .method(method)
            .uri(format!("http://{callee}{path}"))
            .body(Full::new(body))
            .map_err(|error| transport(&error))?;
        context.apply(request.headers_mut());
        let json = HeaderValue::from_static("application/json");
        request.headers_mut().insert(header::CONTENT_TYPE, json);
        let exchange = async {
            let response = self.client.request(request).await.map_err(|e| transport(&e))?;
            let (head, body) = response.into_parts();
            let body = Limited::new(body, MAX_BODY).collect().await;
            let body = body.map_err(|error| transport(&*error))?.to_bytes();
            Ok(http::Response::from_parts(head, body))
        };
        tokio::time::timeout(self.timeout, exchange).await.unwrap_or_else(|_| {
            Err(CallError::Timeout { callee: callee.to_owned(), limit: self.timeout })
        })
    }

    /// A channel for gRPC that connects when it is used.
    pub(crate) fn grpc(&self, callee: &str) -> Result<Channel, CallError> {
        let endpoint = Endpoint::from_shared(format!("http://{callee}")).map_err(|error| {
            CallError::Transport { callee: callee.to_owned(), error: error.to_string() }
        })?;
        Ok(endpoint.timeout(self.timeout).connect_with_connector_lazy(self.dial.clone()))
    }

    /// A connection for bytes. What the other side has said already is in the reader.
    pub(crate) async fn tcp(&self, callee: &str) -> Result<BufReader<TcpStream>, CallError> {
        let open = async {
            let transport = |e: io::Error| CallError::Transport {
                callee: callee.to_owned(),
                error: e.to_string(),
            };
            let stream = self.dial.connect(callee).await.map_err(transport)?;
            let mut stream = BufReader::new(stream);
            if self.dial.proxy.is_some() {
                tunnel(&mut stream, callee).await?;
            }
            Ok(stream)
        };
        tokio::time::timeout(self.timeout, open).await.unwrap_or_else(|_| {
            Err(CallError::Timeout { callee: callee.to_owned(), limit: self.timeout })
        })
    }
}

/// Asks the proxy for a tunnel and reads its answer up to the empty line.
async fn tunnel(stream: &mut BufReader<TcpStream>, callee: &str) -> Result<(), CallError> {
    let transport =
        |e: io::Error| CallError::Transport { callee: callee.to_owned(), error: e.to_string() };
    let nonsense = |problem: &str| CallError::Nonsense {
        callee: callee.to_owned(),
        problem: format!("the proxy's answer to CONNECT: {problem}"),
    };
    let request = format!("CONNECT {callee} HTTP/1.1\r\nhost: {callee}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.map_err(transport)?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let read = stream.read_until(b'\n', &mut head).await.map_err(transport)?;
        if read == 0 || head.len() > 16 * 1024 {
            return Err(nonsense("it has no end"));
        }
    }
    let head = String::from_utf8_lossy(&head);
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1));
    let status = status.and_then(|code| StatusCode::from_bytes(code.as_bytes()).ok());
    let status = status.ok_or_else(|| nonsense("it has no status"))?;
    if status.is_success() {
        return Ok(());
    }
    let proxy_status = lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case(PROXY_STATUS))
        .and_then(|(_, value)| HeaderValue::from_str(value.trim()).ok());
    Err(CallError::Status { callee: callee.to_owned(), status, proxy_status })
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// Connects to the proxy, or without one to the address itself.
#[derive(Clone, Debug)]
pub(crate) struct Dial {
    proxy: Option<String>,
}

impl Dial {
    fn new(proxy: &str) -> Self {
        let proxy = proxy.strip_prefix("http://").unwrap_or(proxy).trim_end_matches('/');
        Self { proxy: (!proxy.is_empty()).then(|| proxy.to_owned()) }
    }

    async fn connect(&self, callee: &str) -> io::Result<TcpStream> {
        let stream = TcpStream::connect(self.proxy.as_deref().unwrap_or(callee)).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

impl tower::Service<Uri> for Dial {
    type Response = Dialled;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Dialled>> + Send>>;

    fn poll_ready(&mut self, _: &mut Task<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let dial = self.clone();
        Box::pin(async move {
            let host = uri.host().unwrap_or_default();
            let callee = format!("{host}:{}", uri.port_u16().unwrap_or(80));
            let io = TokioIo::new(dial.connect(&callee).await?);
            Ok(Dialled { io, proxied: dial.proxy.is_some() })
        })
    }
}

/// A connection that knows whether requests on it name the whole target.
#[derive(Debug)]
pub(crate) struct Dialled {
    io: TokioIo<TcpStream>,
    proxied: bool,
}

impl Connection for Dialled {
    fn connected(&self) -> Connected {
        Connected::new().proxy(self.proxied)
    }
}

impl Read for Dialled {
    fn poll_read(
        mut self: Pin<&mut Self>,
        task: &mut Task<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(task, buffer)
    }
}

impl Write for Dialled {
    fn poll_write(
        mut self: Pin<&mut Self>,
        task: &mut Task<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(task, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(task)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(task)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        task: &mut Task<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(task, slices)
    }
}
