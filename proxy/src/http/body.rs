//! The bodies of requests, which can be sent again. Those of answers: [`super::response_body`].

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use outrigger_core::policy::retry::DEFAULT_REPLAY_BYTES;
use tokio::sync::mpsc;

use crate::streams::WireBody;
use crate::worker::Worker;

/// Frames that a mirrored request may lag behind before it is given up.
pub const MIRROR_LAG: usize = 64;

/// A body could not be carried to its end.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    #[error("{0}")]
    Hyper(#[from] hyper::Error),
    #[error("{0}")]
    Http2(#[from] h2::Error),
    #[error("the deadline passed")]
    DeadlineExceeded,
    #[error("nothing came for longer than the idle timeout")]
    Idle,
    /// The mirrored copy fell behind or its original broke off.
    #[error("the mirrored request was given up")]
    MirrorGone,
}

/// The body of a request on its way to an upstream.
#[derive(Default)]
pub enum RequestBody {
    #[default]
    Empty,
    Shared {
        source: Rc<RefCell<Source>>,
        next: usize,
    },
    /// A copy of another request's body, or one of our own.
    Mirror(mpsc::Receiver<Piece>),
}

/// A frame that can be given out twice.
#[derive(Clone)]
pub enum Piece {
    Data(Bytes),
    Trailers(Box<HeaderMap>),
    End,
}

/// What was read of a body. Of most it is one piece, which needs no further memory.
#[derive(Default)]
struct Pieces {
    first: Option<Piece>,
    more: Vec<Piece>,
}

impl Pieces {
    fn len(&self) -> usize {
        usize::from(self.first.is_some()) + self.more.len()
    }

    fn get(&self, at: usize) -> Option<&Piece> {
        match at {
            0 => self.first.as_ref(),
            at => self.more.get(at - 1),
        }
    }

    fn push(&mut self, piece: Piece) {
        if self.first.is_none() {
            self.first = Some(piece);
        } else {
            self.more.push(piece);
        }
    }
}

/// The caller's body, with what was read of it while it may have to be sent again.
pub struct Source {
    incoming: WireBody,
    kept: Pieces,
    kept_bytes: usize,
    /// Everything read so far is in `kept`.
    whole: bool,
    ended: bool,
    /// The caller went away in the middle.
    broken: bool,
    read_bytes: u64,
    mirrors: Vec<mpsc::Sender<Piece>>,
    worker: Rc<Worker>,
    /// Bytes of this body that may be kept.
    limit: usize,
    /// Why it is not whole, if it is the memory of all.
    no_memory: bool,
}

impl RequestBody {
    pub fn new(incoming: WireBody, worker: &Rc<Worker>) -> Self {
        if incoming.is_end_stream() {
            return Self::Empty;
        }
        let source = Source {
            incoming,
            kept: Pieces::default(),
            kept_bytes: 0,
            whole: true,
            ended: false,
            broken: false,
            read_bytes: 0,
            mirrors: Vec::new(),
            worker: Rc::clone(worker),
            limit: DEFAULT_REPLAY_BYTES as usize,
            no_memory: false,
        };
        Self::Shared { source: Rc::new(RefCell::new(source)), next: 0 }
    }

    /// The same body from its beginning, if everything read of it was kept.
    pub fn again(&self) -> Option<Self> {
        match self {
            Self::Empty => Some(Self::Empty),
            Self::Shared { source, .. } => {
                source.borrow().whole.then(|| Self::Shared { source: Rc::clone(source), next: 0 })
            }
            Self::Mirror(_) => None,
        }
    }

    /// Whether [`RequestBody::again`] gives the whole body.
    pub fn is_whole(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Shared { source, .. } => source.borrow().whole,
            Self::Mirror(_) => false,
        }
    }

    /// Whether all of it has been read and kept, so that two tries can have it at a time.
    pub fn is_read_and_kept(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Shared { source, .. } => {
                let source = source.borrow();
                source.whole && source.ended
            }
            Self::Mirror(_) => false,
        }
    }

    /// Whether the caller went away before it had sent all.
    pub fn is_broken(&self) -> bool {
        matches!(self, Self::Shared { source, .. } if source.borrow().broken)
    }

    /// Keeps at most so many bytes; to be said before the body is read.
    pub fn keep_at_most(&self, bytes: u32) {
        if let Self::Shared { source, .. } = self {
            source.borrow_mut().limit = bytes as usize;
        }
    }

    /// Whether it was not kept because all requests together had kept too much.
    pub fn found_no_memory(&self) -> bool {
        matches!(self, Self::Shared { source, .. } if source.borrow().no_memory)
    }

    /// Nothing will be sent again: frees what was kept and keeps nothing more.
    pub fn commit(&self) {
        if let Self::Shared { source, .. } = self {
            source.borrow_mut().forget();
        }
    }

    /// A copy that gets each piece as the original is read.
    pub fn mirror(&self) -> Self {
        match self {
            Self::Shared { source, .. } => {
                let (sender, receiver) = mpsc::channel(MIRROR_LAG);
                source.borrow_mut().mirrors.push(sender);
                Self::Mirror(receiver)
            }
            Self::Empty | Self::Mirror(_) => Self::Empty,
        }
    }

    pub fn read_bytes(&self) -> u64 {
        match self {
            Self::Shared { source, .. } => source.borrow().read_bytes,
            Self::Empty | Self::Mirror(_) => 0,
        }
    }
}

impl Source {
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Piece, BodyError>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let frame = match Pin::new(&mut self.incoming).poll_frame(cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(None) => None,
            Poll::Ready(Some(Ok(frame))) => Some(frame),
            Poll::Ready(Some(Err(error))) => {
                self.whole = false;
                self.broken = true;
                self.mirrors.clear();
                return Poll::Ready(Some(Err(error)));
            }
        };
        let Some(piece) = frame.and_then(into_piece) else {
            self.ended = true;
            self.tell_mirrors(&Piece::End);
            return Poll::Ready(None);
        };
        self.keep(&piece);
        self.tell_mirrors(&piece);
        self.ended = self.incoming.is_end_stream();
        if self.ended {
            self.tell_mirrors(&Piece::End);
        }
        Poll::Ready(Some(Ok(piece)))
    }

    fn keep(&mut self, piece: &Piece) {
        let len = match piece {
            Piece::Data(data) => data.len(),
            Piece::Trailers(_) | Piece::End => 0,
        };
        self.read_bytes += len as u64;
        if !self.whole {
            return;
        }
        let proxy = &self.worker.proxy;
        let buffered = &proxy.metrics.gauges.buffered_bytes;
        let budget = proxy.settings.max_buffered_bytes as u64;
        self.no_memory = buffered.load(Relaxed) + len as u64 > budget;
        if self.kept_bytes + len > self.limit || self.no_memory {
            self.forget();
            return;
        }
        buffered.fetch_add(len as u64, Relaxed);
        self.kept_bytes += len;
        self.kept.push(piece.clone());
    }

    fn forget(&mut self) {
        self.whole = false;
        self.kept = Pieces::default();
        if self.kept_bytes > 0 {
            let gauges = &self.worker.proxy.metrics.gauges;
            gauges.buffered_bytes.fetch_sub(self.kept_bytes as u64, Relaxed);
            self.kept_bytes = 0;
        }
    }

    fn tell_mirrors(&mut self, piece: &Piece) {
        let metrics = &self.worker.proxy.metrics;
        self.mirrors.retain(|mirror| {
            let sent = mirror.try_send(piece.clone()).is_ok();
            if !sent {
                crate::metrics::add(&metrics.gauges.mirrors_dropped, 1);
            }
            sent
        });
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.forget();
    }
}

fn into_piece(frame: Frame<Bytes>) -> Option<Piece> {
    match frame.into_data() {
        Ok(data) => Some(Piece::Data(data)),
        Err(frame) => frame.into_trailers().ok().map(|t| Piece::Trailers(Box::new(t))),
    }
}

impl From<Piece> for Option<Frame<Bytes>> {
    fn from(piece: Piece) -> Self {
        match piece {
            Piece::Data(data) => Some(Frame::data(data)),
            Piece::Trailers(trailers) => Some(Frame::trailers(*trailers)),
            Piece::End => None,
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Shared { source, next } => {
                let mut source = source.borrow_mut();
                if let Some(piece) = source.kept.get(*next) {
                    let piece = piece.clone();
                    *next += 1;
                    return Poll::Ready(Option::from(piece).map(Ok));
                }
                let polled = source.poll_piece(cx);
                *next = source.kept.len();
                polled.map(|piece| match piece? {
                    Ok(piece) => Option::from(piece).map(Ok),
                    Err(error) => Some(Err(error)),
                })
            }
            Self::Mirror(pieces) => pieces.poll_recv(cx).map(|piece| match piece {
                Some(piece) => Option::from(piece).map(Ok),
                None => Some(Err(BodyError::MirrorGone)),
            }),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Shared { source, next } => {
                let source = source.borrow();
                *next >= source.kept.len() && (source.ended || source.incoming.is_end_stream())
            }
            Self::Mirror(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Shared { source, next: 0 } if source.borrow().read_bytes == 0 => {
                source.borrow().incoming.size_hint()
            }
            // The content-length header, which is passed on, says it.
            Self::Shared { .. } | Self::Mirror(_) => SizeHint::default(),
        }
    }
}
