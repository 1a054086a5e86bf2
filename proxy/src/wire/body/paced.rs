//! A request body on HTTP/1.1, which waits for what came before to be written ([`Unwritten`]).

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::RequestBody;
use crate::wire::error::BodyError;
use crate::wire::writes::Unwritten;

/// A request body that waits for its connection.
pub struct PacedBody {
    pub(super) body: RequestBody,
    unwritten: Arc<Unwritten>,
}

impl PacedBody {
    pub fn new(body: RequestBody, unwritten: Arc<Unwritten>) -> Self {
        Self { body, unwritten }
    }
}

impl Body for PacedBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        ready!(self.unwritten.poll_room(cx));
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(data) = frame.data_ref()
        {
            self.unwritten.taken(data.len());
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
