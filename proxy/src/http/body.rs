//! The bodies of requests, which can be sent again. Those of answers: [`super::response_body`].

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use outrigger_core::policy::retry::DEFAULT_REPLAY_BYTES;
use tokio::sync::mpsc;

use crate::progress::Progress;
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
    #[error("the response has a transfer coding other than chunked")]
    TransferCoding,
    #[error("the upstream changed protocols before it had got the request")]
    EarlySwitch,
    /// The mirrored copy fell behind or its original broke off.
    #[error("the mirrored request was given up")]
    MirrorGone,
    /// The caller's body broke off before, or this part of it was not kept for a further reader.
    #[error("the rest of the request body is gone")]
    Gone,
}

/// The body of a request on its way to an upstream.
#[derive(Default)]
pub enum RequestBody {
    #[default]
    Empty,
    /// The caller's body, from which each attempt gets a [`Reader`] of its own.
    Source(Rc<RefCell<Source>>),
    Reader(Reader),
    /// A copy of another request's body, or one of our own.
    Mirror(mpsc::Receiver<Piece>),
}

/// One attempt's view of a request body: every piece from the first on, or an error.
pub struct Reader {
    source: Rc<RefCell<Source>>,
    /// Its place in [`Source::positions`].
    slot: usize,
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

    fn get_mut(&mut self, at: usize) -> Option<&mut Piece> {
        match at {
            0 => self.first.as_mut(),
            at => self.more.get_mut(at - 1),
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

/// Attempts that read one body at a time: the first, one beside it, and one that is just ending.
const MAX_READERS: usize = 3;

/// The caller's body, with what was read of it while it may have to be sent again.
pub struct Source {
    incoming: WireBody,
    /// The first pieces; those that nobody will read any more are emptied.
    kept: Pieces,
    kept_bytes: usize,
    /// Pieces at the front of `kept` that are emptied.
    emptied: usize,
    /// Everything read so far is in `kept`.
    whole: bool,
    ended: bool,
    /// The caller went away in the middle.
    broken: bool,
    /// Pieces that have been read from `incoming`.
    read: usize,
    read_bytes: u64,
    /// The next piece of each reader.
    positions: [Option<usize>; MAX_READERS],
    mirrors: Vec<mpsc::Sender<Piece>>,
    worker: Rc<Worker>,
    progress: Arc<Progress>,
    /// Bytes of this body that may be kept.
    limit: usize,
    /// Why it is not whole, if it is the memory of all.
    no_memory: bool,
}

impl RequestBody {
    pub fn new(incoming: WireBody, worker: &Rc<Worker>, progress: &Arc<Progress>) -> Self {
        if incoming.is_end_stream() {
            return Self::Empty;
        }
        progress.set_uploading(true);
        let source = Source {
            incoming,
            kept: Pieces::default(),
            kept_bytes: 0,
            emptied: 0,
            whole: true,
            ended: false,
            broken: false,
            read: 0,
            read_bytes: 0,
            positions: [None; MAX_READERS],
            mirrors: Vec::new(),
            worker: Rc::clone(worker),
            progress: Arc::clone(progress),
            limit: DEFAULT_REPLAY_BYTES as usize,
            no_memory: false,
        };
        Self::Source(Rc::new(RefCell::new(source)))
    }

    /// The same body from its beginning, if everything read of it was kept.
    pub fn again(&self) -> Option<Self> {
        let source = match self {
            Self::Empty => return Some(Self::Empty),
            Self::Mirror(_) => return None,
            Self::Source(source) | Self::Reader(Reader { source, .. }) => source,
        };
        let mut borrowed = source.borrow_mut();
        if !borrowed.whole {
            return None;
        }
        let slot = borrowed.positions.iter().position(Option::is_none)?;
        borrowed.positions[slot] = Some(0);
        drop(borrowed);
        Some(Self::Reader(Reader { source: Rc::clone(source), slot }))
    }

    fn source(&self) -> Option<&Rc<RefCell<Source>>> {
        match self {
            Self::Empty | Self::Mirror(_) => None,
            Self::Source(source) | Self::Reader(Reader { source, .. }) => Some(source),
        }
    }

    /// Whether [`RequestBody::again`] gives the whole body.
    pub fn is_whole(&self) -> bool {
        match self.source() {
            Some(source) => source.borrow().whole,
            None => matches!(self, Self::Empty),
        }
    }

    /// Whether all of it has been read and kept, so that two attempts can have it at a time.
    pub fn is_read_and_kept(&self) -> bool {
        match self.source() {
            Some(source) => {
                let source = source.borrow();
                source.whole && source.ended
            }
            None => matches!(self, Self::Empty),
        }
    }

    /// Whether the caller went away before it had sent all.
    pub fn is_broken(&self) -> bool {
        self.source().is_some_and(|source| source.borrow().broken)
    }

    /// Keeps at most so many bytes; to be said before the body is read.
    pub fn keep_at_most(&self, bytes: u32) {
        if let Some(source) = self.source() {
            source.borrow_mut().limit = bytes as usize;
        }
    }

    /// Whether it was not kept because all requests together had kept too much.
    pub fn found_no_memory(&self) -> bool {
        self.source().is_some_and(|source| source.borrow().no_memory)
    }

    /// Nothing will be sent again: keeps nothing more than what a reader has still to read.
    pub fn commit(&self) {
        if let Some(source) = self.source() {
            source.borrow_mut().forget();
        }
    }

    /// A copy that gets each piece as the original is read.
    pub fn mirror(&self) -> Self {
        match self.source() {
            Some(source) => {
                let (sender, receiver) = mpsc::channel(MIRROR_LAG);
                source.borrow_mut().mirrors.push(sender);
                Self::Mirror(receiver)
            }
            None => Self::Empty,
        }
    }

    pub fn read_bytes(&self) -> u64 {
        self.source().map_or(0, |source| source.borrow().read_bytes)
    }
}

impl Source {
    /// The next piece for the reader at `slot`: a kept one, or one that just comes.
    fn poll_next(
        &mut self,
        slot: usize,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Piece, BodyError>>> {
        let at = self.positions[slot].unwrap_or(0);
        if at < self.kept.len() {
            let piece = match self.kept.get(at) {
                Some(piece) if at >= self.emptied => piece.clone(),
                Some(_) | None => return Poll::Ready(Some(Err(BodyError::Gone))),
            };
            self.positions[slot] = Some(at + 1);
            self.release();
            return Poll::Ready(Some(Ok(piece)));
        }
        if at != self.read || self.broken {
            return Poll::Ready(Some(Err(BodyError::Gone)));
        }
        let polled = self.poll_piece(cx);
        if let Poll::Ready(Some(Ok(_))) = &polled {
            self.read += 1;
            self.positions[slot] = Some(at + 1);
            self.release();
        }
        polled
    }

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
            self.progress.set_uploading(false);
            self.tell_mirrors(&Piece::End);
            return Poll::Ready(None);
        };
        self.keep(&piece);
        self.tell_mirrors(&piece);
        self.progress.touch();
        self.ended = self.incoming.is_end_stream();
        if self.ended {
            self.progress.set_uploading(false);
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

    /// Nobody will begin to read it any more.
    fn forget(&mut self) {
        self.whole = false;
        self.release();
    }

    /// Frees what no reader will read, once none can begin.
    fn release(&mut self) {
        if self.whole || self.kept_bytes == 0 {
            return;
        }
        let kept = self.kept.len();
        let unread = self.positions.iter().flatten().min().copied().unwrap_or(kept).min(kept);
        let mut freed = 0;
        while self.emptied < unread {
            if let Some(piece) = self.kept.get_mut(self.emptied)
                && let Piece::Data(data) = std::mem::replace(piece, Piece::End)
            {
                freed += data.len();
            }
            self.emptied += 1;
        }
        self.give_back(freed);
    }

    fn give_back(&mut self, bytes: usize) {
        if bytes > 0 {
            self.kept_bytes -= bytes;
            let gauges = &self.worker.proxy.metrics.gauges;
            gauges.buffered_bytes.fetch_sub(bytes as u64, Relaxed);
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
        self.give_back(self.kept_bytes);
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut source = self.source.borrow_mut();
        source.positions[self.slot] = None;
        source.release();
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
            Self::Reader(Reader { source, slot }) => {
                source.borrow_mut().poll_next(*slot, cx).map(|piece| match piece? {
                    Ok(piece) => Option::from(piece).map(Ok),
                    Err(error) => Some(Err(error)),
                })
            }
            // Its readers are what is sent.
            Self::Source(_) => Poll::Ready(Some(Err(BodyError::Gone))),
            Self::Mirror(pieces) => pieces.poll_recv(cx).map(|piece| match piece {
                Some(piece) => Option::from(piece).map(Ok),
                None => Some(Err(BodyError::MirrorGone)),
            }),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Reader(Reader { source, slot }) => {
                let source = source.borrow();
                let at = source.positions[*slot].unwrap_or(0);
                at == source.read
                    && !source.broken
                    && (source.ended || source.incoming.is_end_stream())
            }
            Self::Source(_) | Self::Mirror(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Reader(Reader { source, .. }) if source.borrow().read == 0 => {
                source.borrow().incoming.size_hint()
            }
            // The content-length header, which is passed on, says it.
            Self::Source(_) | Self::Reader(_) | Self::Mirror(_) => SizeHint::default(),
        }
    }
}
