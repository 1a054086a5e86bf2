//! The server's side of HTTP/2: each stream is a task, which answers its request.
//!
//! With h2 itself, as [`crate::upstream::pool::stream`]: see [`crate::wire::streams`].

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use h2::server::{self, Handshake, SendResponse};
use h2::{Reason, RecvStream};
use http::header::{CONTENT_LENGTH, DATE, HeaderValue};
use http::{Method, Request, Response};
use http_body::Body;
use tokio::sync::oneshot;

use crate::answer::body::ResponseBody;
use crate::listener::connection::Connection;
use crate::serve::request;
use crate::tunnel::upgrade::CallerHalf;
use crate::wire::error::BodyError;
use crate::wire::headers::{HeaderScan, UPGRADE, UPGRADE_BODY};
use crate::wire::io::Io;
use crate::wire::progress::Progress;
use crate::wire::streams::batched::Batched;
use crate::wire::streams::opening::HoldUntilPreface;
use crate::wire::streams::prelude::Prelude;
use crate::wire::streams::shared::SharedByStreams;
use crate::wire::streams::tunnel::{Inlet, Tunnel};
use crate::wire::streams::{Pump, WireBody};

/// A connection, from its first byte.
pub struct Serving {
    stage: ServingStage,
    shared: Rc<SharedByStreams>,
}

enum ServingStage {
    Begins { handshake: Handshake<HoldUntilPreface<Batched<Io>>, Bytes>, leaves: bool },
    Open(server::Connection<HoldUntilPreface<Batched<Io>>, Bytes>),
}

impl Serving {
    pub fn begin(builder: &server::Builder, io: Io) -> Self {
        let holds = io.holds();
        let shared = Rc::<SharedByStreams>::default();
        let io = HoldUntilPreface::new(Batched::new(io, holds, Rc::clone(&shared)));
        let stage = ServingStage::Begins { handshake: builder.handshake(io), leaves: false };
        Self { stage, shared }
    }

    /// Takes no new stream, and ends when those that it has are over.
    pub fn leave(&mut self) {
        match &mut self.stage {
            ServingStage::Begins { leaves, .. } => *leaves = true,
            ServingStage::Open(connection) => connection.graceful_shutdown(),
        }
    }

    /// Ready when the connection is over. Serves each of its streams in a task.
    pub fn poll(
        &mut self,
        connection: &Rc<Connection>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), h2::Error>> {
        loop {
            match &mut self.stage {
                ServingStage::Begins { handshake, leaves } => {
                    let mut open = ready!(Pin::new(handshake).poll(cx))?;
                    if *leaves {
                        open.graceful_shutdown();
                    }
                    self.stage = ServingStage::Open(open);
                }
                ServingStage::Open(open) => match ready!(open.poll_accept(cx)) {
                    Some(accepted) => {
                        let (request, respond) = accepted?;
                        serve(connection, &self.shared, request, respond);
                    }
                    None => return Poll::Ready(Ok(())),
                },
            }
        }
    }
}

fn serve(
    connection: &Rc<Connection>,
    shared: &Rc<SharedByStreams>,
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
) {
    let (mut head, body) = request.into_parts();
    let (mut caller, mut switching) = (None, None);
    let connect = head.method == Method::CONNECT;
    let mut seen = HeaderScan::of(&head.headers);
    let passed_on = seen.has(HeaderScan::PASSES_UPGRADE) && connection.takes_hop_upgrades();
    let body = if connect || passed_on {
        let (sender, receiver) = oneshot::channel();
        caller = Some(CallerHalf::Http2(receiver));
        // Of the stream it would not be true, and the app would take what follows for the body.
        head.headers.remove(CONTENT_LENGTH);
        let (receive, body) = match head.headers.remove(UPGRADE_BODY) {
            Some(length) if !connect => {
                if is_length(&length) {
                    head.headers.insert(CONTENT_LENGTH, length);
                }
                let prelude = Prelude::new(body);
                (Receive::Behind(prelude.clone()), Some(WireBody::Prelude(prelude)))
            }
            _ => (Receive::AtOnce(body), None),
        };
        seen = HeaderScan::of(&head.headers);
        switching = Some(Box::new(PendingUpgrade { caller: sender, receive, connect }));
        body
    } else {
        Some(WireBody::asked(body))
    };
    // Into memory that is there already, so that it is not copied: most of it is for later.
    let room = Box::new_uninit();
    let tracked = connection.worker.exchanges.begin(None);
    let progress = Arc::clone(tracked.progress());
    let handling = request::handle(Rc::clone(connection), head, seen, body, caller, tracked);
    let handling = Box::into_pin(Box::write(room, handling));
    let state = StreamState::Handling(handling);
    let shared = Some(Rc::clone(shared));
    tokio::task::spawn_local(RequestStream { respond, switching, progress, state, shared });
}

/// Digits alone; all else is a body of a length that is not known.
fn is_length(value: &HeaderValue) -> bool {
    let digits = value.as_bytes();
    (1..=18).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit)
}

/// What becomes of a request that wants to change protocols, if it is accepted.
struct PendingUpgrade {
    caller: oneshot::Sender<Tunnel<Bytes>>,
    receive: Receive,
    /// Accepted by any success; else by a word between proxies.
    connect: bool,
}

/// Where the caller's side of the tunnel begins.
enum Receive {
    AtOnce(RecvStream),
    /// Behind the body of the request.
    Behind(Prelude),
}

/// One request and its answer.
struct RequestStream<F> {
    respond: SendResponse<Bytes>,
    switching: Option<Box<PendingUpgrade>>,
    progress: Arc<Progress>,
    state: StreamState<F>,
    /// Of its connection; none: its answer has it.
    shared: Option<Rc<SharedByStreams>>,
}

enum StreamState<F> {
    Handling(Pin<Box<F>>),
    Answering(Pump<ResponseBody, Bytes>),
}

impl<F: Future<Output = Response<ResponseBody>>> Future for RequestStream<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        if let StreamState::Handling(handling) = &mut this.state {
            let Poll::Ready(response) = handling.as_mut().poll(cx) else {
                for response in this.progress.take_informational() {
                    // Fails only where nobody is there to be told.
                    let _gone = this.respond.send_informational(response);
                }
                // A caller that goes away wants no answer.
                return this.respond.poll_reset(cx).map(drop);
            };
            this.progress.set_head_sent();
            match begin_answer(&mut this.respond, this.switching.take(), response) {
                Some(mut pump) => {
                    if let Some(shared) = this.shared.take() {
                        pump.set_shared(shared);
                    }
                    this.state = StreamState::Answering(pump);
                }
                None => return Poll::Ready(()),
            }
        }
        match &mut this.state {
            StreamState::Answering(pump) => {
                if this.progress.ended().is_some() {
                    // The exchange says why when it is dropped.
                    pump.reset(Reason::CANCEL);
                    return Poll::Ready(());
                }
                let polled = Pin::new(&mut *pump).poll(cx);
                if polled.is_pending() {
                    this.progress.set_blocked(pump.is_blocked());
                    this.progress.set_waker(cx.waker());
                }
                polled
            }
            StreamState::Handling(_) => Poll::Ready(()),
        }
    }
}

/// Sends the head; what is left to send, if anything.
fn begin_answer(
    respond: &mut SendResponse<Bytes>,
    switching: Option<Box<PendingUpgrade>>,
    response: Response<ResponseBody>,
) -> Option<Pump<ResponseBody, Bytes>> {
    let (mut head, body) = response.into_parts();
    head.headers.entry(DATE).or_insert_with(now);
    let switching = switching.filter(|switching| match switching.connect {
        true => head.status.is_success(),
        false => head.headers.contains_key(UPGRADE),
    });
    let ends = body.is_end_stream() && switching.is_none();
    if !ends
        && switching.is_none()
        && let Some(length) = body.own_length()
    {
        head.headers.entry(CONTENT_LENGTH).or_insert_with(|| HeaderValue::from(length));
    }
    let Ok(send) = respond.send_response(Response::from_parts(head, ()), ends) else {
        respond.send_reset(Reason::INTERNAL_ERROR);
        return None;
    };
    if let Some(switching) = switching {
        let receive = match switching.receive {
            Receive::AtOnce(receive) => Inlet::Stream(receive),
            Receive::Behind(prelude) => Inlet::Behind(prelude.into_rest()),
        };
        // Nobody there to take it: dropping it resets the stream.
        let _gone = switching.caller.send(Tunnel::new(send, receive));
        return None;
    }
    (!ends).then(|| Pump::new(body, send, breaks_with))
}

/// Why the answer breaks off, in the upstream's own words if it had any. Not without an error: some callers
/// take that for the end.
fn breaks_with(error: &BodyError) -> Reason {
    let said = match error {
        BodyError::Http2(error) => error.reason(),
        _ => None,
    };
    said.filter(|reason| *reason != Reason::NO_ERROR).unwrap_or(Reason::INTERNAL_ERROR)
}

/// The answer's time, where its origin says none (RFC 9110 section 6.6.1).
fn now() -> HeaderValue {
    thread_local! {
        static LAST: RefCell<(u64, HeaderValue)> =
            const { RefCell::new((0, HeaderValue::from_static(""))) };
    }
    let now = SystemTime::now();
    let second = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    LAST.with_borrow_mut(|(last, text)| {
        if *last != second
            && let Ok(new) = HeaderValue::try_from(httpdate::fmt_http_date(now))
        {
            (*last, *text) = (second, new);
        }
        text.clone()
    })
}
