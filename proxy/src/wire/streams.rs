//! HTTP/2 streams, as both sides of the proxy use them: a body that comes in, and one that goes out.
//!
//! A stream is read and written by the task of its request. hyper would hand bodies through types of its
//! own, and take a stream that the peer gives up for one that has ended.

pub mod batched;
pub mod first;
pub mod opening;
pub mod prelude;
pub mod queue;
pub mod shared;
pub mod tunnel;

use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h2::{Reason, RecvStream, SendStream};
use http::HeaderValue;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::task::AbortHandle;

use self::prelude::Prelude;
use self::queue::Place;
use self::shared::SharedByStreams;
use self::tunnel::Tunnel;
use crate::wire::error::BodyError;
use crate::wire::http1::Link;
use crate::wire::reads::ReadSize;

/// Pieces below this many bytes are copied; larger ones fill an eighth of their buffer or more. The first of a
/// body, which is most often all of it, never is.
const SMALL: usize = 1024;
/// Pieces from this many bytes on are those of something long.
const LONG: usize = 16 * 1024;

/// A body as it comes in, from a caller or from an upstream.
pub enum WireBody {
    /// On HTTP/1.1, or where the connection stopped being HTTP.
    Hyper(HyperBody),
    Stream(Received),
    /// Of a request that may stop being HTTP.
    Prelude(Prelude),
    /// No body: the stream has stopped being HTTP.
    Switched(Box<Switched>),
}

/// The upstream's side of what has stopped being HTTP.
pub struct Switched {
    pub tunnel: Tunnel<Upward>,
    /// The protocol that it speaks from now on; none for a CONNECT.
    pub token: Option<HeaderValue>,
}

/// A body that comes in on HTTP/1.1.
pub struct HyperBody {
    body: Incoming,
    /// Something of it has been read.
    begun: bool,
    /// Of the connection of a response, which may read more at once.
    size: Option<Arc<ReadSize>>,
    /// Of the connection of a request whose end has not been read.
    link: Option<Link>,
    /// Of the body there.
    number: u32,
}

/// A body that comes in on HTTP/2.
pub struct Received {
    /// None: all of it has been read. Only reading changes it, and to ask the stream costs a lock.
    stream: Option<RecvStream>,
    data_done: bool,
    /// Of the request that this one answers.
    pumping: Option<Pumping>,
    /// Of its connection to an upstream.
    shared: Option<Rc<SharedByStreams>>,
}

/// A piece of a body on its way to an upstream. h2 is generic over it: with a type for each side the
/// compiler builds the two apart, each into one piece, where a frame is moved once instead of from hand to
/// hand.
pub struct Upward(Bytes);

/// Writes a body, which is all when the future is ready. Dropping it resets the stream.
pub struct Pump<B, D: Buf> {
    body: B,
    stream: SendStream<D>,
    /// Read, and waiting for room in the peer's window; whether it is the last.
    waiting: Option<(Bytes, bool)>,
    /// Something was written already.
    begun: bool,
    /// The stream ends with the body.
    ends: bool,
    /// What a body that breaks off resets the stream with.
    breaks_with: fn(&BodyError) -> Reason,
    /// Of its connection.
    shared: Option<Rc<SharedByStreams>>,
    /// Where the piece that waits stands in the connection's queue.
    place: Option<Place>,
}

/// A body that is written by a task of its own, until this is dropped.
pub struct Pumping(AbortHandle);

impl WireBody {
    /// The body of a request that came on HTTP/1.1, and its number there, unless it is empty.
    pub fn request(body: Incoming, link: &Link, number: Option<u32>) -> Self {
        let (link, number) = (number.map(|_| link.clone()), number.unwrap_or_default());
        Self::Hyper(HyperBody { body, begun: false, size: None, link, number })
    }

    /// The body of a response that came on HTTP/1.1.
    pub fn response(body: Incoming, size: Arc<ReadSize>) -> Self {
        Self::Hyper(HyperBody { body, begun: false, size: Some(size), link: None, number: 0 })
    }

    /// The body of a request that came on HTTP/2.
    pub fn asked(stream: RecvStream) -> Self {
        Self::Stream(Received::new(stream, None, None))
    }

    /// The body of an answer that came on HTTP/2, and what still writes that of its request. `shared`: of its connection.
    pub fn answered(
        stream: RecvStream,
        pumping: Option<Pumping>,
        shared: Option<Rc<SharedByStreams>>,
    ) -> Self {
        Self::Stream(Received::new(stream, pumping, shared))
    }
}

impl Body for WireBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Hyper(body) => body.poll_frame(cx),
            Self::Stream(received) => received.poll_frame(cx),
            Self::Prelude(prelude) => {
                prelude.poll_data(cx).map(|data| Some(data?.map(Frame::data)))
            }
            Self::Switched(_) => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Hyper(body) => body.body.is_end_stream(),
            Self::Stream(received) => received.stream.is_none(),
            Self::Prelude(prelude) => prelude.is_ended(),
            Self::Switched(_) => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Hyper(body) => body.body.size_hint(),
            // The content-length header, which is passed on, says it.
            Self::Stream(_) | Self::Prelude(_) => SizeHint::default(),
            Self::Switched(_) => SizeHint::with_exact(0),
        }
    }
}

/// A small piece in memory of its own. hyper reads into a new buffer for each as long as somebody has the one
/// before: bytes that come alone would hold some KiB each, wherever they wait.
fn compact(frame: Frame<Bytes>) -> Frame<Bytes> {
    match frame.data_ref() {
        Some(data) if data.len() < SMALL => Frame::data(Bytes::copy_from_slice(data)),
        Some(_) | None => frame,
    }
}

impl HyperBody {
    fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx)?;
        let over = match &polled {
            Poll::Ready(Some(frame)) => frame.is_trailers() || self.body.is_end_stream(),
            Poll::Ready(None) => true,
            Poll::Pending => false,
        };
        if over && let Some(link) = self.link.take() {
            link.body_read(self.number);
        }
        polled.map(|frame| {
            let frame = frame?;
            if let (Some(size), Some(data)) = (&self.size, frame.data_ref())
                && data.len() >= LONG
            {
                size.passed(data.len());
            }
            let begun = std::mem::replace(&mut self.begun, true);
            Some(Ok(if begun { compact(frame) } else { frame }))
        })
    }
}

impl Drop for HyperBody {
    fn drop(&mut self) {
        if let Some(size) = &self.size {
            size.over();
        }
    }
}

impl Received {
    fn new(
        stream: RecvStream,
        pumping: Option<Pumping>,
        shared: Option<Rc<SharedByStreams>>,
    ) -> Self {
        let ended = stream.is_end_stream();
        let mut received = Self { stream: Some(stream), data_done: false, pumping, shared };
        if ended {
            received.end();
        }
        received
    }

    fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Some(stream) = &mut self.stream else { return Poll::Ready(None) };
        if !self.data_done {
            match ready!(stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    let _closed = stream.flow_control().release_capacity(data.len());
                    if let Some(shared) = &self.shared {
                        shared.bulk.passed(data.len());
                    }
                    if stream.is_end_stream() {
                        self.end();
                    }
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) => return Poll::Ready(self.broken(error)),
                None => self.data_done = true,
            }
        }
        match ready!(stream.poll_trailers(cx)) {
            Ok(trailers) => {
                self.end();
                Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))))
            }
            Err(error) => Poll::Ready(self.broken(error)),
        }
    }

    fn end(&mut self) {
        // Until its request has ended, too, a stream that is dropped has to be told of.
        if let (Some(stream), Some(shared), None) =
            (self.stream.take(), &self.shared, &self.pumping)
        {
            shared.last.hold(stream);
        }
    }

    /// Only END_STREAM is an end. A reset without an error says that the rest of the request is not needed,
    /// and comes after it; before it, the answer is cut (RFC 9113 section 8.1).
    fn broken(&mut self, error: h2::Error) -> Option<Result<Frame<Bytes>, BodyError>> {
        self.stream = None;
        Some(Err(error.into()))
    }
}

impl From<Bytes> for Upward {
    fn from(bytes: Bytes) -> Self {
        Self(bytes)
    }
}

impl Buf for Upward {
    fn remaining(&self) -> usize {
        self.0.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.0.chunk()
    }

    fn advance(&mut self, count: usize) {
        self.0.advance(count);
    }
}

impl<B, D: Buf> Pump<B, D> {
    pub fn new(body: B, stream: SendStream<D>, breaks_with: fn(&BodyError) -> Reason) -> Self {
        Self {
            body,
            stream,
            waiting: None,
            begun: false,
            ends: true,
            breaks_with,
            shared: None,
            place: None,
        }
    }

    /// The stream stays open behind the body, or ends with it after all.
    pub fn set_ends(&mut self, ends: bool) {
        self.ends = ends;
    }

    /// Counts what is long of the body, and lets it wait for what the connection has to write before it.
    pub fn set_shared(&mut self, shared: Rc<SharedByStreams>) {
        self.shared = Some(shared);
    }

    /// Whether it waits for the peer to take what has been read already.
    pub fn is_blocked(&self) -> bool {
        self.waiting.is_some()
    }

    /// Gives the stream up.
    pub fn reset(&mut self, reason: Reason) {
        self.stream.send_reset(reason);
    }

    /// The stream, once the body is written.
    pub fn into_stream(self) -> SendStream<D> {
        self.stream
    }
}

impl<B, D> Pump<B, D>
where
    B: Body<Data = Bytes, Error = BodyError> + Unpin + 'static,
    D: Buf + From<Bytes> + Unpin + 'static,
{
    /// Writes on in a task of its own.
    pub fn detach(self) -> Pumping {
        Pumping(tokio::task::spawn_local(self).abort_handle())
    }

    /// Ready with how many of so many bytes go now, or with 0 when the peer takes no more.
    fn poll_room(&mut self, bytes: usize, cx: &mut Context<'_>) -> Poll<usize> {
        while self.stream.capacity() == 0 {
            // Others' pieces do not wait for this peer.
            self.place = None;
            match ready!(self.stream.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Poll::Ready(0),
            }
        }
        let room = self.stream.capacity().min(bytes);
        if room >= LONG
            && let Some(shared) = &self.shared
        {
            return shared.queue.poll_give(room, &mut self.place, cx);
        }
        Poll::Ready(room)
    }

    /// Ready when everything is written or nothing more can be.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if let Some((mut data, last)) = self.waiting.take() {
                let Poll::Ready(room) = self.poll_room(data.len(), cx) else {
                    self.waiting = Some((data, last));
                    return Poll::Pending;
                };
                // h2 would keep what there is no room for, while the next piece is read and waits here.
                let rest = data.split_off(room);
                let last_now = last && rest.is_empty();
                if room == 0 || self.stream.send_data(data.into(), last_now).is_err() || last_now {
                    return Poll::Ready(());
                }
                if !rest.is_empty() {
                    self.stream.reserve_capacity(rest.len());
                    self.waiting = Some((rest, last));
                    continue;
                }
            }
            let Some(frame) = ready!(Pin::new(&mut self.body).poll_frame(cx)) else {
                if self.ends {
                    let _ended = self.stream.send_data(Bytes::new().into(), true);
                }
                return Poll::Ready(());
            };
            match frame.map(Frame::into_data) {
                Ok(Ok(data)) => {
                    if let Some(shared) = &self.shared {
                        shared.bulk.passed(data.len());
                    }
                    let last = self.ends && self.body.is_end_stream();
                    // What comes first need not wait for room: h2 keeps it until there is some.
                    if data.is_empty() || !std::mem::replace(&mut self.begun, true) {
                        if self.stream.send_data(data.into(), last).is_err() || last {
                            return Poll::Ready(());
                        }
                        continue;
                    }
                    self.stream.reserve_capacity(data.len());
                    self.waiting = Some((data, last));
                }
                Ok(Err(frame)) => {
                    if let Ok(trailers) = frame.into_trailers() {
                        let _ended = self.stream.send_trailers(trailers);
                        return Poll::Ready(());
                    }
                }
                Err(error) => {
                    self.stream.send_reset((self.breaks_with)(&error));
                    return Poll::Ready(());
                }
            }
        }
    }
}

impl<B, D> Future for Pump<B, D>
where
    B: Body<Data = Bytes, Error = BodyError> + Unpin + 'static,
    D: Buf + From<Bytes> + Unpin + 'static,
{
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        if this.poll_write(cx).is_ready() {
            return Poll::Ready(());
        }
        // Whatever it waits for, the peer may give it up.
        this.stream.poll_reset(cx).map(drop)
    }
}

impl Drop for Pumping {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use h2::client::SendRequest;
    use h2::server::SendResponse;
    use http::{Request, Response};
    use http_body_util::BodyExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    use tokio::task::LocalSet;

    use super::tunnel::{Inlet, Tunnel};
    use super::*;

    type Accepted = (Request<RecvStream>, SendResponse<Bytes>);

    /// Both ends of one stream; the client's head is sent, and nothing is answered.
    async fn stream() -> (h2::client::ResponseFuture, SendStream<Bytes>, Accepted) {
        let (ours, theirs) = duplex(64 * 1024);
        let (client, server) =
            tokio::join!(h2::client::handshake(ours), h2::server::handshake(theirs));
        let (mut client, connection): (SendRequest<Bytes>, _) = client.unwrap();
        tokio::task::spawn_local(async move { drop(connection.await) });
        let (answer, body) = client.send_request(Request::new(()), false).unwrap();
        let mut server: h2::server::Connection<_, Bytes> = server.unwrap();
        let accepted = server.accept().await.unwrap().unwrap();
        tokio::task::spawn_local(async move { while server.accept().await.is_some() {} });
        (answer, body, accepted)
    }

    /// A reset with NO_ERROR was taken for the end of an answer.
    #[tokio::test(flavor = "current_thread")]
    async fn only_end_stream_ends_a_body_whatever_a_reset_says() {
        let whole = async {
            for reason in [Reason::NO_ERROR, Reason::CANCEL, Reason::INTERNAL_ERROR] {
                let (_answer, mut body, (request, _respond)) = stream().await;
                body.send_data(Bytes::from_static(b"half"), false).unwrap();
                let mut asked = WireBody::asked(request.into_body());
                assert_eq!(asked.frame().await.unwrap().unwrap().into_data().unwrap(), "half");
                body.send_reset(reason);
                assert!(asked.frame().await.unwrap().is_err(), "{reason}");
                assert!(asked.frame().await.is_none());

                for data in [&b""[..], b"half"] {
                    let (answer, _body, (_request, mut respond)) = stream().await;
                    let mut body = respond.send_response(Response::new(()), false).unwrap();
                    let mut answered =
                        WireBody::answered(answer.await.unwrap().into_body(), None, None);
                    if !data.is_empty() {
                        body.send_data(data.into(), false).unwrap();
                        let frame = answered.frame().await.unwrap().unwrap();
                        assert_eq!(frame.into_data().unwrap(), data);
                    }
                    body.send_reset(reason);
                    assert!(answered.frame().await.unwrap().is_err(), "{reason}");
                    assert!(answered.frame().await.is_none());
                }
            }
        };
        LocalSet::new().run_until(whole).await;
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_tunnel_carries_bytes_both_ways_and_closes_each_by_itself() {
        let whole = async {
            let (answer, body, (request, mut respond)) = stream().await;
            let send = respond.send_response(Response::new(()), false).unwrap();
            let mut far = Tunnel::new(send, Inlet::Stream(request.into_body()));
            let mut near = Tunnel::new(body, Inlet::Stream(answer.await.unwrap().into_body()));
            // More than any window.
            let sent = vec![b'x'; 1_000_000];
            let writing = async {
                far.write_all(&sent).await.unwrap();
                far.shutdown().await.unwrap();
            };
            let mut read = Vec::new();
            let (_, count) = tokio::join!(writing, near.read_to_end(&mut read));
            assert_eq!((count.unwrap(), &read), (sent.len(), &sent));
            near.write_all(b"and back").await.unwrap();
            near.shutdown().await.unwrap();
            let mut back = String::new();
            far.read_to_string(&mut back).await.unwrap();
            assert_eq!(back, "and back");
        };
        LocalSet::new().run_until(whole).await;
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_tunnel_that_is_reset_fails_both_ways() {
        let whole = async {
            let (_answer, mut body, (request, mut respond)) = stream().await;
            let send = respond.send_response(Response::new(()), false).unwrap();
            let mut far = Tunnel::new(send, Inlet::Stream(request.into_body()));
            body.send_reset(Reason::CANCEL);
            let mut read = [0; 8];
            assert!(far.read(&mut read).await.is_err());
            assert!(far.write_all(&[0; 100_000]).await.is_err());
        };
        LocalSet::new().run_until(whole).await;
    }
}
