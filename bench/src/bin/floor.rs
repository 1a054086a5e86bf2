//! The floor: the least that a forwarder built on hyper can do. One thread, one upstream, no routes,
//! no policies, no metrics, no headers touched but the ones that HTTP requires.
//!
//! `floor h1|h2|tcp LISTEN UPSTREAM`

use std::cell::RefCell;
use std::error::Error;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::RecvStream;
use h2::client::SendRequest;
use http::uri::{Authority, Scheme};
use http::{Request, Response, Uri};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming};
use hyper::client::conn::http1 as client1;
use hyper::rt::Executor;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use mimalloc::MiMalloc;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::OnceCell;

/// As in the proxy: the floor is what we could reach with no features at all.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;
/// As in the proxy.
const POLLS_BETWEEN_EVENTS: u32 = 256;

type Failure = Box<dyn Error + Send + Sync>;

#[derive(Clone, Copy)]
struct Local;

impl<F: Future<Output: 'static> + 'static> Executor<F> for Local {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

fn main() -> Result<(), Failure> {
    let args: Vec<String> = std::env::args().collect();
    let [_, kind, listen, upstream] = args.as_slice() else {
        return Err("usage: floor h1|h2|tcp LISTEN UPSTREAM".into());
    };
    let upstream: SocketAddr = upstream.parse()?;
    let runtime = Builder::new_current_thread()
        .event_interval(POLLS_BETWEEN_EVENTS)
        .enable_all()
        .build_local(LocalOptions::default())?;
    runtime.block_on(async {
        let listener = TcpListener::bind(listen).await?;
        let idle = Rc::new(RefCell::new(Vec::new()));
        let shared = Shared::default();
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            match kind.as_str() {
                "h1" => tokio::task::spawn_local(serve1(stream, upstream, Rc::clone(&idle))),
                "h2" => tokio::task::spawn_local(serve2(stream, upstream, Rc::clone(&shared))),
                _ => tokio::task::spawn_local(relay(stream, upstream)),
            };
        }
    })
}

type Idle = Rc<RefCell<Vec<client1::SendRequest<Incoming>>>>;

async fn serve1(stream: TcpStream, upstream: SocketAddr, idle: Idle) {
    let service = service_fn(move |request: Request<Incoming>| {
        let idle = Rc::clone(&idle);
        async move { forward1(request, upstream, idle).await }
    });
    let _ = http1::Builder::new()
        .pipeline_flush(true)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

async fn forward1(
    mut request: Request<Incoming>,
    upstream: SocketAddr,
    idle: Idle,
) -> Result<Response<Incoming>, Failure> {
    if let Some(path) = request.uri().path_and_query().cloned() {
        *request.uri_mut() = Uri::from(path);
    }
    let free = {
        let mut idle = idle.borrow_mut();
        let at = idle.iter().rposition(client1::SendRequest::is_ready);
        at.map(|at| idle.remove(at))
    };
    let mut sender = match free {
        Some(sender) => sender,
        None => {
            let stream = TcpStream::connect(upstream).await?;
            stream.set_nodelay(true)?;
            let (sender, connection) = client1::handshake(TokioIo::new(stream)).await?;
            tokio::task::spawn_local(connection);
            sender
        }
    };
    let response = sender.send_request(request).await?;
    idle.borrow_mut().push(sender);
    Ok(response)
}

/// One connection for all, as long as the floor runs.
type Shared = Rc<OnceCell<SendRequest<Bytes>>>;

async fn serve2(stream: TcpStream, upstream: SocketAddr, shared: Shared) {
    let service = service_fn(|request| forward2(request, upstream, Rc::clone(&shared)));
    let _ = http2::Builder::new(Local)
        .initial_stream_window_size(256 * 1024)
        .initial_connection_window_size(64 * 1024 * 1024)
        .max_concurrent_streams(256)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

/// With h2 itself: hyper's client costs a channel and a task for each request.
async fn forward2(
    request: Request<Incoming>,
    upstream: SocketAddr,
    shared: Shared,
) -> Result<Response<Answer>, Failure> {
    let (mut head, mut body) = request.into_parts();
    if head.uri.authority().is_none() {
        let mut parts = head.uri.into_parts();
        parts.scheme = Some(Scheme::HTTP);
        parts.authority = Some(Authority::from_static("upstream"));
        head.uri = Uri::from_parts(parts)?;
    }
    let mut sender = shared.get_or_try_init(|| open2(upstream)).await?.clone();
    poll_fn(|cx| sender.poll_ready(cx)).await?;
    let mut ends = body.is_end_stream();
    let (response, mut sending) = sender.send_request(Request::from_parts(head, ()), ends)?;
    while !ends {
        let frame = body.frame().await.transpose()?;
        ends = body.is_end_stream();
        if frame.is_none() && !ends {
            return Err("the caller gave up".into());
        }
        let data = frame.and_then(|frame| frame.into_data().ok()).unwrap_or_default();
        sending.send_data(data, ends)?;
    }
    Ok(response.await?.map(Answer))
}

async fn open2(upstream: SocketAddr) -> Result<SendRequest<Bytes>, Failure> {
    let stream = TcpStream::connect(upstream).await?;
    stream.set_nodelay(true)?;
    let (sender, connection) = h2::client::Builder::new()
        .initial_window_size(256 * 1024)
        .initial_connection_window_size(64 * 1024 * 1024)
        .handshake(stream)
        .await?;
    tokio::task::spawn_local(async {
        let ended = connection.await;
        eprintln!("the upstream's connection ended: {ended:?}");
        std::process::exit(1);
    });
    Ok(sender)
}

/// The upstream's answer, as it comes.
struct Answer(RecvStream);

impl Body for Answer {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        match ready!(self.0.poll_data(cx)) {
            Some(Ok(data)) => {
                let _ = self.0.flow_control().release_capacity(data.len());
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
            Some(Err(error)) => Poll::Ready(Some(Err(error))),
            None => {
                let trailers = ready!(self.0.poll_trailers(cx))?;
                Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }
}

async fn relay(mut caller: TcpStream, upstream: SocketAddr) {
    if let Ok(mut upstream) = TcpStream::connect(upstream).await {
        let _ = upstream.set_nodelay(true);
        let _ = tokio::io::copy_bidirectional(&mut caller, &mut upstream).await;
    }
}
