//! One request on an HTTP/2 connection: its head and body out, the head of its answer in.
//!
//! The task that asks does all of it. hyper's client would run a task for each stream and hand request
//! and answer through channels, which costs about a tenth of a request.

use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, RecvStream, SendStream};
use http::{Method, Request, Response};
use http_body::Body;
use hyper::client::conn::TrySendError;

use crate::wire::body::RequestBody;
use crate::wire::error::BodyError;
use crate::wire::headers::{UPGRADE, UPGRADE_BODY};
use crate::wire::progress::Progress;
use crate::wire::streams::prelude::Framed;
use crate::wire::streams::shared::SharedByStreams;
use crate::wire::streams::tunnel::{Inlet, Tunnel};
use crate::wire::streams::{Pump, Switched, Upward, WireBody};

/// A request brought no answer.
#[derive(Debug)]
pub struct SendError {
    pub error: BodyError,
    /// Nothing of it was written.
    pub unsent: bool,
    /// The connection ended, and had carried another request before.
    pub reused: bool,
}

/// A request that is on its way, until the head of its answer has come. Dropping it cancels the stream.
pub struct Sending {
    response: ResponseFuture,
    pump: Option<Pump<RequestBody, Upward>>,
    /// The request asks for a change of protocols.
    switching: Option<Box<UpgradeHalf>>,
    /// The connection has carried another request before.
    reused: bool,
    /// Who is told of informational responses.
    progress: Option<Arc<Progress>>,
    /// Of its connection.
    shared: Option<Rc<SharedByStreams>>,
}

impl Sending {
    /// Queues the head at once. `reused`: the connection has carried another request before.
    pub fn begin(
        sender: &mut SendRequest<Upward>,
        request: Request<RequestBody>,
        reused: bool,
    ) -> Result<Self, SendError> {
        let (head, body) = request.into_parts();
        let ends = body.is_end_stream();
        let (response, stream) = sender
            .send_request(Request::from_parts(head, ()), ends)
            .map_err(|error| SendError { error: error.into(), unsent: true, reused: false })?;
        // A body breaks off when its caller goes away.
        let pump = (!ends).then(|| Pump::new(body, stream, |_| Reason::CANCEL));
        Ok(Self { response, pump, switching: None, reused, progress: None, shared: None })
    }

    /// Passes informational responses on.
    #[must_use]
    pub fn informing(mut self, progress: Option<&Arc<Progress>>) -> Self {
        self.progress = progress.cloned();
        self
    }

    /// Counts what is long of the bodies, and has the stream held once it has ended.
    #[must_use]
    pub fn sharing(mut self, shared: &Rc<SharedByStreams>) -> Self {
        self.shared = Some(Rc::clone(shared));
        if let Some(pump) = &mut self.pump {
            pump.set_shared(Rc::clone(shared));
        }
        self
    }

    /// The same for a request that wants its stream to stop being HTTP: CONNECT, or one with
    /// [`UPGRADE`].
    pub fn begin_switch(
        sender: &mut SendRequest<Upward>,
        request: Request<RequestBody>,
        reused: bool,
    ) -> Result<Self, SendError> {
        let (head, body) = request.into_parts();
        let has_body = head.headers.contains_key(&UPGRADE_BODY);
        let connect = head.method == Method::CONNECT;
        let (response, stream) = sender
            .send_request(Request::from_parts(head, ()), false)
            .map_err(|error| SendError { error: error.into(), unsent: true, reused: false })?;
        let before = if has_body {
            let mut pump = Pump::new(Framed::new(body), stream, cancel as fn(&BodyError) -> Reason);
            pump.set_ends(false);
            Before::Body(pump)
        } else {
            Before::Nothing(stream)
        };
        let switching = Some(Box::new(UpgradeHalf { connect, before: Some(before) }));
        Ok(Self { response, pump: None, switching, reused, progress: None, shared: None })
    }
}

impl Future for Sending {
    type Output = Result<Response<WireBody>, SendError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        if let Some(pump) = &mut this.pump
            && Pin::new(pump).poll(cx).is_ready()
        {
            this.pump = None;
        }
        if let Some(switching) = &mut this.switching {
            switching.write(cx);
        }
        if let Some(progress) = &this.progress {
            while let Poll::Ready(Some(Ok(response))) = this.response.poll_informational(cx) {
                progress.touch();
                progress.inform(response);
            }
        }
        let answered = ready!(Pin::new(&mut this.response).poll(cx));
        let response = answered.map_err(|error| {
            let reused = this.reused && !error.is_reset();
            SendError { error: error.into(), unsent: false, reused }
        })?;
        if let Some(switching) = this.switching.take() {
            return Poll::Ready(switching.answered(response));
        }
        // On its own from here on: the caller may send on without reading.
        let (pumping, shared) = (this.pump.take().map(Pump::detach), this.shared.take());
        Poll::Ready(Ok(response.map(|stream| WireBody::answered(stream, pumping, shared))))
    }
}

/// The caller's half of a stream that may become a tunnel.
struct UpgradeHalf {
    /// Plain CONNECT, which a success accepts.
    connect: bool,
    before: Option<Before>,
}

/// What has to be written before the tunnel begins.
enum Before {
    Nothing(SendStream<Upward>),
    Body(Pump<Framed<RequestBody>, Upward>),
}

fn cancel(_: &BodyError) -> Reason {
    Reason::CANCEL
}

impl UpgradeHalf {
    fn write(&mut self, cx: &mut Context<'_>) {
        if let Some(Before::Body(pump)) = &mut self.before
            && Pin::new(pump).poll(cx).is_ready()
            && let Some(Before::Body(pump)) = self.before.take()
        {
            self.before = Some(Before::Nothing(pump.into_stream()));
        }
    }

    fn answered(self, mut response: Response<RecvStream>) -> Result<Response<WireBody>, SendError> {
        let token = response.headers_mut().remove(&UPGRADE);
        let switched = match self.connect {
            true => response.status().is_success(),
            false => token.is_some(),
        };
        match self.before {
            Some(Before::Nothing(send)) if switched => Ok(response.map(|receive| {
                let tunnel = Tunnel::new(send, Inlet::Stream(receive));
                WireBody::Switched(Box::new(Switched { tunnel, token }))
            })),
            // It stays HTTP: the request ends with its body.
            Some(Before::Nothing(mut send)) => {
                let _ended = send.send_data(Bytes::new().into(), true);
                Ok(response.map(|stream| WireBody::answered(stream, None, None)))
            }
            Some(Before::Body(mut pump)) if !switched => {
                pump.set_ends(true);
                let pumping = Some(pump.detach());
                Ok(response.map(|stream| WireBody::answered(stream, pumping, None)))
            }
            // Protocols change after the request only (RFC 9110 section 7.8).
            Some(Before::Body(_)) | None => {
                Err(SendError { error: BodyError::EarlySwitch, unsent: false, reused: false })
            }
        }
    }
}

impl<B> From<TrySendError<Request<B>>> for SendError {
    fn from(mut error: TrySendError<Request<B>>) -> Self {
        let unsent = error.take_message().is_some();
        Self { error: error.into_error().into(), unsent, reused: false }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use tokio::io::duplex;
    use tokio::sync::mpsc;
    use tokio::task::LocalSet;

    use super::*;
    use crate::wire::body::Piece;
    use crate::wire::streams::batched::Batched;

    const WINDOW: u32 = 64 * 1024;

    /// A connection, and the server's end of it.
    async fn connection(
        max_streams: u32,
    ) -> (SendRequest<Upward>, h2::server::Connection<tokio::io::DuplexStream, Bytes>) {
        let (ours, theirs) = duplex(64 * 1024);
        let mut server = h2::server::Builder::new();
        server.max_concurrent_streams(max_streams);
        let mut client = h2::client::Builder::new();
        client.initial_window_size(WINDOW);
        let (client, server) = tokio::join!(
            client.handshake(ours),
            server.initial_window_size(WINDOW).handshake::<_, Bytes>(theirs)
        );
        let (sender, connection) = client.unwrap();
        tokio::task::spawn_local(async move { drop(connection.await) });
        (sender, server.unwrap())
    }

    fn request(body: RequestBody) -> Request<RequestBody> {
        Request::post("http://a/").body(body).unwrap()
    }

    #[tokio::test(flavor = "current_thread")]
    async fn an_upload_goes_on_while_nobody_reads_the_answer() {
        const PIECES: usize = 64;
        let whole = async {
            let (mut sender, mut server) = connection(8).await;
            let (pieces, body) = mpsc::channel(PIECES + 1);
            for _ in 0..PIECES {
                pieces.try_send(Piece::Data(Bytes::from(vec![b'x'; 16 * 1024]))).unwrap();
            }
            pieces.try_send(Piece::End).unwrap();
            let sending =
                Sending::begin(&mut sender, request(RequestBody::Mirror(body)), false).unwrap();
            let serving = async move {
                let (request, mut respond) = server.accept().await.unwrap().unwrap();
                let driver =
                    tokio::task::spawn_local(
                        async move { while server.accept().await.is_some() {} },
                    );
                // More than the caller's window takes.
                let mut answer = respond.send_response(Response::new(()), false).unwrap();
                answer.send_data(Bytes::from(vec![b'y'; 4 * WINDOW as usize]), true).unwrap();
                let mut body = request.into_body();
                let mut read = 0;
                while let Some(data) = body.data().await {
                    let data = data.unwrap();
                    read += data.len();
                    body.flow_control().release_capacity(data.len()).unwrap();
                }
                driver.abort();
                read
            };
            let serving = tokio::task::spawn_local(serving);
            let answer = sending.await.unwrap();
            assert_eq!(serving.await.unwrap(), PIECES * 16 * 1024);
            drop(answer);
        };
        LocalSet::new().run_until(whole).await;
    }

    /// Of each stream h2 had all that its window takes.
    #[tokio::test(flavor = "current_thread")]
    async fn many_uploads_wait_for_their_connection_and_go_on_when_others_are_given_up() {
        const STREAMS: usize = 32;
        const PIECE: usize = 64 * 1024;
        const PIECES: usize = 8;
        let whole = async {
            let (ours, theirs) = duplex(1024);
            let shared = Rc::<SharedByStreams>::default();
            let ours = Batched::new(ours, false, Rc::clone(&shared));
            let window = 1024 * 1024;
            let (mut client, mut server) = (h2::client::Builder::new(), h2::server::Builder::new());
            client.max_send_buffer_size(PIECES * PIECE);
            server.initial_window_size(window).initial_connection_window_size(window << 5);
            let (client, server) =
                tokio::join!(client.handshake(ours), server.handshake::<_, Bytes>(theirs));
            let ((mut sender, connection), mut server) = (client.unwrap(), server.unwrap());
            tokio::task::spawn_local(async move { drop(connection.await) });
            // So that the window is known.
            let first = Sending::begin(&mut sender, request(RequestBody::Empty), false).unwrap();
            let (_, mut respond) = server.accept().await.unwrap().unwrap();
            respond.send_response(Response::new(()), true).unwrap();
            tokio::select! {
                answered = first => assert!(answered.is_ok()),
                _ = server.accept() => unreachable!("nothing else was asked"),
            }

            let mut uploads = Vec::new();
            let mut queues = Vec::new();
            for _ in 0..STREAMS {
                let (pieces, body) = mpsc::channel(PIECES + 1);
                for _ in 0..PIECES {
                    pieces.try_send(Piece::Data(Bytes::from(vec![b'x'; PIECE]))).unwrap();
                }
                pieces.try_send(Piece::End).unwrap();
                queues.push(pieces);
                let body = request(RequestBody::Mirror(body));
                let sending = Sending::begin(&mut sender, body, true).unwrap().sharing(&shared);
                uploads.push(tokio::task::spawn_local(sending));
            }
            for _ in 0..1_000 {
                tokio::task::yield_now().await;
            }
            let taken: usize = queues.iter().map(mpsc::Sender::capacity).sum();
            // The first one of each and one that waits, what waits in h2, and a little that has been written.
            assert!((2 * STREAMS..=2 * STREAMS + 10).contains(&taken), "{taken}");
            let rest = uploads.split_off(STREAMS / 2);
            uploads.iter().for_each(tokio::task::JoinHandle::abort);
            let serving = async move {
                let mut whole = 0;
                let read = Rc::new(std::cell::Cell::new(0));
                while read.get() < STREAMS / 2 {
                    let accepted = server.accept();
                    let Ok(Some(Ok((request, mut respond)))) =
                        tokio::time::timeout(std::time::Duration::from_millis(10), accepted).await
                    else {
                        continue;
                    };
                    whole += 1;
                    let read = Rc::clone(&read);
                    tokio::task::spawn_local(async move {
                        let (mut body, mut bytes) = (request.into_body(), 0);
                        while let Some(Ok(data)) = body.data().await {
                            bytes += data.len();
                        }
                        if bytes == PIECE * PIECES {
                            read.set(read.get() + 1);
                        }
                        let _ = respond.send_response(Response::new(()), true);
                    });
                }
                whole
            };
            let serving = tokio::time::timeout(std::time::Duration::from_secs(10), serving);
            assert!(serving.await.expect("the others go on") >= STREAMS / 2);
            drop(rest);
        };
        LocalSet::new().run_until(whole).await;
    }

    #[tokio::test(flavor = "current_thread")]
    async fn requests_beyond_what_the_peer_allows_wait_and_are_answered() {
        let whole = async {
            let (sender, mut server) = connection(1).await;
            tokio::task::spawn_local(async move {
                while let Some(Ok((_, mut respond))) = server.accept().await {
                    respond.send_response(Response::new(()), true).unwrap();
                }
            });
            let all = (0..16).map(|_| {
                Sending::begin(&mut sender.clone(), request(RequestBody::Empty), false).unwrap()
            });
            for answer in futures::future::join_all(all).await {
                assert_eq!(answer.unwrap().status(), 200);
            }
        };
        LocalSet::new().run_until(whole).await;
    }

    #[tokio::test(flavor = "current_thread")]
    async fn an_early_answer_is_whole_although_the_upload_is_cut() {
        let whole = async {
            let (mut sender, mut server) = connection(8).await;
            let (_open, body) = mpsc::channel(1);
            let sending =
                Sending::begin(&mut sender, request(RequestBody::Mirror(body)), false).unwrap();
            tokio::task::spawn_local(async move {
                let (request, mut respond) = server.accept().await.unwrap().unwrap();
                let mut answer = respond.send_response(Response::new(()), false).unwrap();
                answer.send_data(Bytes::from_static(b"too large"), true).unwrap();
                // Unread: h2 resets the stream after the answer, with NO_ERROR.
                drop((request, respond, answer));
                while server.accept().await.is_some() {}
            });
            let body = sending.await.unwrap().into_body();
            assert_eq!(body.collect().await.unwrap().to_bytes(), "too large");
        };
        LocalSet::new().run_until(whole).await;
    }

    #[tokio::test(flavor = "current_thread")]
    async fn giving_up_cancels_the_stream_before_and_after_the_head() {
        let whole = async {
            let (mut sender, mut server) = connection(8).await;
            for head_first in [false, true] {
                let (open, body) = mpsc::channel(1);
                open.try_send(Piece::Data(Bytes::from_static(b"x"))).unwrap();
                let request = request(RequestBody::Mirror(body));
                let mut sending = Sending::begin(&mut sender, request, false).unwrap();
                let early = futures::poll!(&mut sending);
                assert!(early.is_pending());
                let (_request, mut respond) = server.accept().await.unwrap().unwrap();
                let mut answer = None;
                if head_first {
                    answer = Some(respond.send_response(Response::new(()), false).unwrap());
                    let mut head = None;
                    while head.is_none() {
                        tokio::select! {
                            biased;
                            came = &mut sending => head = Some(came.unwrap()),
                            _ = server.accept() => {}
                        }
                    }
                    drop(head);
                }
                drop(sending);
                let reset = std::future::poll_fn(|cx| {
                    let _ = server.poll_accept(cx);
                    match &mut answer {
                        Some(answer) => answer.poll_reset(cx),
                        None => respond.poll_reset(cx),
                    }
                });
                assert_eq!(reset.await.unwrap(), Reason::CANCEL);
            }
        };
        LocalSet::new().run_until(whole).await;
    }
}
