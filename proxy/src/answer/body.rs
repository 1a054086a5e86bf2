//! The bodies of answers on their way to the caller: they know when the exchange is over.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::Method;
use http_body::{Body, Frame, SizeHint};
use outrigger_core::reason::Reason;

use crate::base::refusal::late_trailers;
use crate::request::exchange::Exchange;
use crate::wire::deadline::BodyEnd;
use crate::wire::error::BodyError;
use crate::wire::streams::WireBody;

/// The body of a response on its way to the caller. When it ends, breaks or is dropped, the
/// exchange is over and is counted.
pub struct ResponseBody {
    content: Content,
    /// Gone once counted.
    exchange: Option<Box<Exchange>>,
}

enum Content {
    Upstream(WireBody),
    Own(Option<Bytes>),
    /// Broken off, which is said once what came before has been written.
    Cut(Option<BodyError>),
}

impl ResponseBody {
    pub fn upstream(body: WireBody, exchange: Box<Exchange>) -> Self {
        Self { content: Content::Upstream(body), exchange: Some(exchange) }
    }

    /// A body that the proxy makes itself; may be empty.
    pub fn own(body: Bytes, exchange: Box<Exchange>) -> Self {
        // An answer to HEAD has none, our own included (RFC 9110 section 9.3.2).
        let body = (!body.is_empty() && exchange.method != Method::HEAD).then_some(body);
        Self { content: Content::Own(body), exchange: Some(exchange) }
    }

    /// Bytes of a body that the proxy makes itself. Of an upstream's its head says so.
    pub fn own_length(&self) -> Option<usize> {
        match &self.content {
            Content::Own(body) => body.as_ref().map(Bytes::len),
            Content::Upstream(_) | Content::Cut(_) => None,
        }
    }

    fn complete(&mut self) {
        if let Some(mut exchange) = self.exchange.take() {
            exchange.complete();
        }
    }

    /// An error makes servers throw away what they have not written yet, be it the head: the connection's task
    /// comes first, so that a client that reads gets the response as far as it came.
    fn cut(
        &mut self,
        cx: &Context<'_>,
        error: BodyError,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.content = Content::Cut(Some(error));
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Nothing has come: whether it is time to end. Ending drops the upstream's stream, which cancels
    /// it there.
    fn poll_bounds(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let bounds = self.exchange.as_mut().and_then(|exchange| exchange.bounds.as_mut());
        let Some(bounds) = bounds else { return Poll::Pending };
        let Poll::Ready(ended) = bounds.poll(cx) else { return Poll::Pending };
        let whole = bounds.at_message_boundary();
        self.content = Content::Own(None);
        let (reason, error) = match ended {
            BodyEnd::Deadline => (Reason::DeadlineExceededAfterHead, BodyError::DeadlineExceeded),
            BodyEnd::Idle => (Reason::IdleTimeout, BodyError::Idle),
        };
        let Some(mut exchange) = self.exchange.take() else { return Poll::Ready(None) };
        if !whole {
            exchange.truncated(reason);
            return self.cut(cx, error);
        }
        let trailers = late_trailers(reason, &error);
        exchange.trailers(Some(&trailers));
        exchange.truncated(reason);
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let body = match &mut this.content {
            Content::Upstream(body) => body,
            Content::Own(body) => return Poll::Ready(body.take().map(|b| Ok(Frame::data(b)))),
            Content::Cut(error) => return Poll::Ready(error.take().map(Err)),
        };
        match Pin::new(&mut *body).poll_frame(cx) {
            Poll::Pending => this.poll_bounds(cx),
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(exchange) = &mut this.exchange {
                    exchange.tracked.progress().touch();
                    if let Some(bounds) = &mut exchange.bounds {
                        bounds.frame(frame.data_ref());
                    }
                    if let Some(keeping) = &mut exchange.recorder
                        && !keeping.frame(frame.data_ref())
                    {
                        exchange.recorder = None;
                    }
                    match frame.data_ref() {
                        Some(data) => exchange.sent(data.len()),
                        None => exchange.trailers(frame.trailers_ref()),
                    }
                }
                if body.is_end_stream() {
                    this.complete();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(None) => {
                this.complete();
                Poll::Ready(None)
            }
            Poll::Ready(Some(Err(error))) => {
                if let Some(mut exchange) = this.exchange.take() {
                    exchange.truncated(Reason::ResponseTruncated);
                }
                this.cut(cx, error)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Upstream(body) => body.is_end_stream(),
            Content::Own(body) => body.is_none(),
            Content::Cut(error) => error.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Upstream(body) => body.size_hint(),
            Content::Own(body) => {
                SizeHint::with_exact(body.as_ref().map_or(0, |body| body.len() as u64))
            }
            Content::Cut(_) => SizeHint::default(),
        }
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        // hyper drops a body that it knows to be at its end without asking for the end.
        if self.is_end_stream() {
            self.complete();
        }
    }
}
