//! The body of a request that may stop being HTTP, on a stream between two proxies.
//!
//! The stream stays open behind it for what follows once the upstream has switched protocols, so that its
//! end cannot be the stream's. Each piece has its length before it, four bytes with the highest first, and
//! a length of zero is the end. Trailers are left out.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use h2::RecvStream;
use http_body::{Body, Frame};

use crate::wire::error::BodyError;

const PREFIX: usize = 4;

/// A body as it is written into the stream.
pub struct Framed<B> {
    body: B,
    /// Its length has gone.
    waiting: Option<Bytes>,
    ended: bool,
}

impl<B> Framed<B> {
    pub fn new(body: B) -> Self {
        Self { body, waiting: None, ended: false }
    }
}

impl<B: Body<Data = Bytes, Error = BodyError> + Unpin> Body for Framed<B> {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        if let Some(data) = this.waiting.take() {
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        while !this.ended {
            let Some(frame) = ready!(Pin::new(&mut this.body).poll_frame(cx)) else {
                this.ended = true;
                let end = Bytes::from_static(&[0; PREFIX]);
                return Poll::Ready(Some(Ok(Frame::data(end))));
            };
            let Ok(data) = frame?.into_data() else { continue };
            // Pieces are what one read brings: far below 4 GiB.
            let Some(len) = u32::try_from(data.len()).ok().filter(|len| *len > 0) else { continue };
            this.waiting = Some(data);
            let prefix = Bytes::copy_from_slice(&len.to_be_bytes());
            return Poll::Ready(Some(Ok(Frame::data(prefix))));
        }
        Poll::Ready(None)
    }
}

/// A body as it is read from the stream.
#[derive(Clone)]
pub struct Prelude(Rc<RefCell<Reading>>);

/// Where the reading of it stands.
pub struct Reading {
    /// None: taken for what follows.
    stream: Option<RecvStream>,
    buffer: BytesMut,
    /// Of the piece that has begun.
    left: usize,
    ended: bool,
}

impl Prelude {
    pub fn new(stream: RecvStream) -> Self {
        let (stream, buffer) = (Some(stream), BytesMut::new());
        Self(Rc::new(RefCell::new(Reading { stream, buffer, left: 0, ended: false })))
    }

    pub fn is_ended(&self) -> bool {
        self.0.borrow().ended
    }

    pub fn poll_data(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyError>>> {
        self.0.borrow_mut().poll_data(cx)
    }

    /// The stream, once the request has been sent on: who knew the body's length has not read its end.
    pub fn into_rest(self) -> Reading {
        let gone = Reading { stream: None, buffer: BytesMut::new(), left: 0, ended: true };
        self.0.replace(gone)
    }
}

impl Reading {
    /// Ready when the body has ended, with what follows it and what has been read of that.
    pub fn poll_rest(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(RecvStream, Bytes), BodyError>> {
        while let Some(unread) = ready!(self.poll_data(cx)) {
            unread?;
        }
        let read = self.buffer.split().freeze();
        Poll::Ready(self.stream.take().map(|stream| (stream, read)).ok_or(BodyError::Gone))
    }

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyError>>> {
        while !self.ended {
            if self.left > 0 && !self.buffer.is_empty() {
                let data = self.buffer.split_to(self.left.min(self.buffer.len())).freeze();
                self.left -= data.len();
                return Poll::Ready(Some(Ok(data)));
            }
            if self.left == 0
                && let Some(prefix) = self.buffer.first_chunk::<PREFIX>()
            {
                self.left = u32::from_be_bytes(*prefix) as usize;
                self.buffer.advance(PREFIX);
                self.ended = self.left == 0;
                continue;
            }
            let Some(stream) = &mut self.stream else {
                return Poll::Ready(Some(Err(BodyError::Gone)));
            };
            match ready!(stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    let _closed = stream.flow_control().release_capacity(data.len());
                    self.buffer.extend_from_slice(&data);
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                // Cut off: its end would have been told.
                None => return Poll::Ready(Some(Err(BodyError::Gone))),
            }
        }
        Poll::Ready(None)
    }
}
