//! What hyper's server of HTTP/1.1 can't say: informational responses, and refusals that explain themselves.
//!
//! [`Http1Wire`] stands between hyper and the socket. While no exchange is open, all that hyper writes is its own
//! answer to a head that it could not read, which is replaced; its `100 Continue`, which promises what only
//! the app can, is left out. Both rely on hyper flushing its socket only when it holds nothing back.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;
use std::{io, mem};

use bytes::{Buf, Bytes};
use http::{Response, StatusCode};
use outrigger_core::reason::Reason;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use crate::base::refusal::bare;
use crate::base::sync::lock;
use crate::wire::io::Io;
use crate::wire::progress::Progress;

/// What hyper says when it begins to read a body that a client holds back for it.
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
/// How long the app has to say so before the proxy does: many servers never do (RFC 9110 section 10.1.1).
const CONTINUE_AFTER: Duration = Duration::from_secs(1);
/// A client that has closed its half may be gone, which only shows when something is written. So often it
/// is sent what every client takes and ignores (RFC 9110 section 15.2).
const PROBE_EVERY: Duration = Duration::from_secs(1);

/// Bytes of informational responses that wait for the caller to read.
const MAX_OWN: usize = 64 * 1024;

/// What the connection and its socket tell each other. A mutex for hyper's sake, which asks for `Send`.
#[derive(Clone, Default)]
pub struct Link(Arc<Mutex<LinkState>>);

#[derive(Default)]
struct LinkState {
    phase: WirePhase,
    /// The exchange that is open.
    progress: Option<Arc<Progress>>,
    /// The caller waits for leave to send its body.
    holds_back: bool,
    /// The caller knows informational responses.
    informs: bool,
    /// A head has not come in time.
    late: bool,
    /// Requests with a body that have come.
    bodies: u32,
    /// The body of the last request has not been read to its end: something may still come of it, whatever has been
    /// answered. Those before it are over, or hyper would not have read this one's head.
    unread: bool,
    /// Something is to be written that is not hyper's.
    own: bool,
}

/// A request that has come.
pub struct Asked {
    pub progress: Arc<Progress>,
    /// The caller waits for leave to send its body.
    pub holds_back: bool,
    /// The caller knows informational responses.
    pub informs: bool,
    pub has_body: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum WirePhase {
    /// Nothing is asked, and all answers have gone.
    #[default]
    Quiet,
    /// A request waits for the head of its answer.
    Asked,
    /// Its answer has begun.
    Answering,
    /// hyper has all of it, and may hold some of it back.
    Ending,
    /// It is not HTTP any more.
    Switched,
}

impl Timer {
    fn start(after: Duration, repeats: bool) -> Self {
        Self { sleep: Box::pin(sleep(after)), repeats }
    }
}

impl Link {
    /// A request has come. Returns the number of its body, if it has one.
    pub fn asked(&self, asked: Asked) -> Option<u32> {
        let mut state = self.lock();
        state.phase = WirePhase::Asked;
        (state.holds_back, state.informs) = (asked.holds_back, asked.informs);
        state.progress = Some(asked.progress);
        state.unread = asked.has_body;
        if !asked.has_body {
            return None;
        }
        state.bodies = state.bodies.wrapping_add(1);
        Some(state.bodies)
    }

    /// That body has been read to its end, if it is still the last one's.
    pub fn body_read(&self, body: u32) {
        let mut state = self.lock();
        if state.bodies == body {
            state.unread = false;
        }
    }

    /// The head of its answer goes to hyper.
    pub fn answering(&self) {
        let mut state = self.lock();
        if let Some(progress) = &state.progress {
            progress.set_head_sent();
        }
        if state.phase == WirePhase::Asked {
            (state.phase, state.holds_back) = (WirePhase::Answering, false);
        }
    }

    /// The answer is the last word of HTTP.
    pub fn switched(&self) {
        self.lock().phase = WirePhase::Switched;
    }

    /// The exchange is over.
    pub fn over(&self) {
        let mut state = self.lock();
        state.progress = None;
        if state.phase != WirePhase::Switched {
            state.phase = WirePhase::Ending;
        }
    }

    /// The caller is told that its head took too long.
    pub fn head_is_late(&self) {
        self.lock().late = true;
    }

    /// Nothing is asked, everything has been written, and what comes next is a request.
    pub fn is_quiet(&self) -> bool {
        let state = self.lock();
        state.phase == WirePhase::Quiet && !state.unread && !state.own
    }

    /// Why the open exchange has to end although its answer has begun. `waker`: of the connection's task,
    /// which is woken when it has to.
    pub fn cut(&self, waker: &Waker) -> Option<Reason> {
        let state = self.lock();
        let progress = state.progress.as_ref().filter(|progress| progress.head_sent())?;
        progress.set_waker(waker);
        progress.ended()
    }

    fn lock(&self) -> MutexGuard<'_, LinkState> {
        lock(&self.0)
    }
}

/// The socket as hyper sees it.
pub struct Http1Wire {
    io: Io,
    link: Link,
    /// To be written before anything else.
    own: Vec<u8>,
    timer: Option<Timer>,
    /// The caller has closed its half.
    half_closed: bool,
}

/// When the caller is told to go on, or is asked whether it is there.
struct Timer {
    sleep: Pin<Box<Sleep>>,
    repeats: bool,
}

impl Http1Wire {
    pub fn new(io: Io, link: Link) -> Self {
        Self { io, link, own: Vec::new(), timer: None, half_closed: false }
    }

    /// The socket between two exchanges. `read`: what hyper has read of the next one.
    pub fn into_io(self, mut read: Bytes) -> Io {
        // Some clients send an empty line behind a body (RFC 9112 section 2.2).
        let lines = read.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
        read.advance(lines);
        let mut io = self.io;
        if !read.is_empty() {
            io.unread(read);
        }
        io
    }

    /// Whether hyper's bytes are taken out of its hands.
    fn takes(&mut self, bytes: &[u8]) -> bool {
        let Self { link, own, timer, .. } = self;
        let mut state = link.lock();
        match state.phase {
            WirePhase::Asked if state.holds_back && bytes == CONTINUE => {
                state.holds_back = false;
                *timer = Some(Timer::start(CONTINUE_AFTER, false));
                true
            }
            WirePhase::Quiet => {
                let (reason, why) = refusal_of(bytes);
                own.extend_from_slice(&bare(reason, why));
                state.own = true;
                true
            }
            WirePhase::Asked | WirePhase::Answering | WirePhase::Ending | WirePhase::Switched => {
                false
            }
        }
    }

    /// Notices that the caller has gone or closed its half, which hyper does not look for while it waits
    /// for an answer.
    fn poll_caller(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let asked = {
            let state = self.link.lock();
            let uploads = state.progress.as_ref().is_some_and(|progress| progress.is_uploading());
            matches!(state.phase, WirePhase::Asked | WirePhase::Answering) && !uploads
        };
        if asked
            && let Poll::Ready(read) = self.io.poll_peek(cx)
            && read? == 0
            && !self.half_closed
        {
            self.half_closed = true;
            self.timer = Some(Timer::start(PROBE_EVERY, true));
        }
        Ok(())
    }

    /// Adds what the caller is to be told between hyper's words.
    fn poll_own(&mut self, cx: &mut Context<'_>) {
        let link = self.link.clone();
        let mut state = link.lock();
        if state.phase == WirePhase::Quiet && mem::take(&mut state.late) {
            let why = "the headers took longer than --header-timeout";
            self.own.extend_from_slice(&bare(Reason::HeaderTimeout, why));
            state.own = true;
        }
        if state.phase != WirePhase::Asked {
            self.timer = None;
            return;
        }
        let Some(progress) = &state.progress else { return };
        // Of a caller that does not read no more is held than this.
        if self.own.len() > MAX_OWN {
            return;
        }
        for response in progress.take_informational() {
            if state.informs {
                // Once the app has said it, it need not be said for it.
                if response.status() == StatusCode::CONTINUE && !self.half_closed {
                    self.timer = None;
                }
                write_head(&response, &mut self.own);
                state.own = true;
            }
        }
        if let Some(timer) = &mut self.timer
            && timer.sleep.as_mut().poll(cx).is_ready()
        {
            if state.informs {
                self.own.extend_from_slice(CONTINUE);
                state.own = true;
            }
            if timer.repeats {
                timer.sleep = Box::pin(sleep(PROBE_EVERY));
                // Registers it.
                let _pending = timer.sleep.as_mut().poll(cx);
            } else {
                self.timer = None;
            }
        }
    }

    fn poll_write_own(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.own.is_empty() {
            let n = ready!(Pin::new(&mut self.io).poll_write(cx, &self.own))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.own.drain(..n);
            if self.own.is_empty() {
                self.link.lock().own = false;
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// What hyper's own refusal stands for: by its status, all there is.
fn refusal_of(bytes: &[u8]) -> (Reason, &'static str) {
    match bytes.get(9..12) {
        Some(b"431") => (Reason::HeadersTooLarge, "the headers are larger or more than the limit"),
        Some(b"414") => (Reason::BadRequest, "the target is longer than 65534 bytes"),
        _ => (Reason::BadRequest, "the request line or a header is not valid HTTP/1.1"),
    }
}

fn write_head(response: &Response<()>, out: &mut Vec<u8>) {
    let status = response.status();
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(status.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(status.canonical_reason().unwrap_or_default().as_bytes());
    out.extend_from_slice(b"\r\n");
    for (name, value) in response.headers() {
        out.extend_from_slice(name.as_str().as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"\r\n");
}

impl AsyncRead for Http1Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Http1Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_write_own(cx))?;
        if self.takes(buf) {
            return Poll::Ready(Ok(buf.len()));
        }
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_write_own(cx))?;
        if let Some(first) = bufs.iter().find(|buf| !buf.is_empty())
            && self.takes(first)
        {
            return Poll::Ready(Ok(first.len()));
        }
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let silent = {
            let mut state = self.link.lock();
            if state.phase == WirePhase::Ending {
                state.phase = WirePhase::Quiet;
            }
            state.phase == WirePhase::Quiet && !state.late
        };
        if silent {
            self.timer = None;
        } else {
            self.poll_caller(cx)?;
            self.poll_own(cx);
        }
        ready!(self.poll_write_own(cx))?;
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_write_own(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use http_body_util::{BodyExt, Empty};
    use hyper::service::service_fn;
    use hyper_util::rt::TokioIo;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    use tokio::task::LocalSet;

    use super::*;
    use crate::observe::metrics::Metrics;
    use crate::wire::body::{BodyMemory, RequestBody};
    use crate::wire::io::Transport;
    use crate::wire::streams::WireBody;

    /// Whether more of the body was to come when as many frames of a request had been read, and whether the
    /// connection could rest after it.
    async fn after(requests: &[(&str, usize)]) -> Vec<(bool, bool)> {
        let (mut client, server) = duplex(64 * 1024);
        let link = Link::default();
        let wire = Http1Wire::new(Io::new(Transport::Memory(server), Bytes::new()), link.clone());
        let frames: Vec<_> = requests.iter().map(|(_, frames)| *frames).collect();
        let frames = std::cell::RefCell::new(frames.into_iter());
        let memory = BodyMemory { metrics: Arc::new(Metrics::new(1)), limit: 1024 };
        let (seen, memory) = (link.clone(), Rc::new(memory));
        let uploading = Rc::<std::cell::Cell<bool>>::default();
        let told = Rc::clone(&uploading);
        let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
            let body = request.into_body();
            let progress = Arc::new(Progress::default());
            let has_body = !hyper::body::Body::is_end_stream(&body);
            let asked = Arc::clone(&progress);
            let asked = Asked { progress: asked, holds_back: false, informs: true, has_body };
            let number = seen.asked(asked);
            let (body, link) = (WireBody::request(body, &seen, number), seen.clone());
            let mut body = RequestBody::new(body, &memory, &progress);
            if let Some(again) = body.again() {
                body = again;
            }
            let told = Rc::clone(&told);
            let frames = frames.borrow_mut().next().unwrap_or_default();
            async move {
                for _ in 0..frames {
                    body.frame().await.unwrap().unwrap();
                }
                told.set(progress.is_uploading());
                link.answering();
                link.over();
                Ok::<_, std::convert::Infallible>(Response::new(Empty::<Bytes>::new()))
            }
        });
        let serving = hyper::server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(wire), service);
        tokio::task::spawn_local(async move { drop(serving.await) });
        let mut rested = Vec::new();
        for (request, _) in requests {
            client.write_all(request.as_bytes()).await.unwrap();
            let mut answer = Vec::new();
            while !answer.ends_with(b"\r\n\r\n") {
                answer.push(client.read_u8().await.unwrap());
            }
            rested.push((uploading.get(), link.is_quiet()));
        }
        rested
    }

    const TRAILERS: &str = "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\
        trailer: x\r\n\r\n1\r\na\r\n0\r\nx: y\r\n\r\n";
    const BODY: &str = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\n\r\na";
    const NONE: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";

    #[tokio::test(flavor = "current_thread")]
    async fn a_connection_rests_after_trailers_and_once_an_unread_body_is_behind_it() {
        let whole = async {
            let requests = [(TRAILERS, 2), (BODY, 0), (BODY, 1), (BODY, 0), (NONE, 0)];
            let seen = after(&requests).await;
            let (read, unread) = ((false, true), (true, false));
            assert_eq!(seen, [read, unread, read, unread, read]);
        };
        LocalSet::new().run_until(whole).await;
    }

    #[test]
    fn the_end_of_a_body_before_says_nothing_of_the_last_one() {
        let link = Link::default();
        let ask = || {
            let progress = Arc::new(Progress::default());
            let asked = Asked { progress, holds_back: false, informs: true, has_body: true };
            let body = link.asked(asked).unwrap();
            link.lock().phase = WirePhase::Quiet;
            body
        };
        let (first, second) = (ask(), ask());
        link.body_read(first);
        assert!(!link.is_quiet());
        link.body_read(second);
        assert!(link.is_quiet());
    }
}
