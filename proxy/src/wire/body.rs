//! The bodies of requests, which can be sent again. Those of answers: [`crate::answer::body`].

mod kept;
pub mod paced;
mod source;

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use tokio::sync::mpsc;

use self::paced::PacedBody;
pub use self::source::Source;
use crate::observe::metrics::Metrics;
use crate::wire::error::BodyError;
use crate::wire::progress::Progress;
use crate::wire::streams::WireBody;

/// Frames that a mirrored request may lag behind before it is given up.
pub const MIRROR_LAG: usize = 64;

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
    /// On HTTP/1.1.
    Paced(Box<PacedBody>),
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

/// What the bodies of all requests of a worker may hold for another attempt.
pub struct BodyMemory {
    pub metrics: Arc<Metrics>,
    /// Bytes, of the whole process.
    pub limit: u64,
}

impl RequestBody {
    pub fn new(incoming: WireBody, memory: &Rc<BodyMemory>, progress: &Arc<Progress>) -> Self {
        if incoming.is_end_stream() {
            return Self::Empty;
        }
        progress.set_uploading(true);
        let source = Source::new(incoming, Rc::clone(memory), Arc::clone(progress));
        Self::Source(Rc::new(RefCell::new(source)))
    }

    /// The same body from its beginning, if everything read of it was kept.
    pub fn again(&self) -> Option<Self> {
        let source = match self {
            Self::Empty => return Some(Self::Empty),
            Self::Mirror(_) => return None,
            Self::Paced(paced) => return paced.body.again(),
            Self::Source(source) | Self::Reader(Reader { source, .. }) => source,
        };
        let slot = source.borrow_mut().begin()?;
        Some(Self::Reader(Reader { source: Rc::clone(source), slot }))
    }

    /// The same for an attempt beside the one that is under way, if all of it has been read and kept.
    pub fn beside(&self) -> Option<Self> {
        let Some(source) = self.source() else { return self.again() };
        let slot = source.borrow_mut().begin_beside()?;
        Some(Self::Reader(Reader { source: Rc::clone(source), slot }))
    }

    fn source(&self) -> Option<&Rc<RefCell<Source>>> {
        match self {
            Self::Empty | Self::Mirror(_) => None,
            Self::Source(source) | Self::Reader(Reader { source, .. }) => Some(source),
            Self::Paced(paced) => paced.body.source(),
        }
    }

    /// Whether [`RequestBody::again`] gives the whole body.
    pub fn is_whole(&self) -> bool {
        match self.source() {
            Some(source) => source.borrow().is_whole(),
            None => matches!(self, Self::Empty),
        }
    }

    /// Whether the caller went away before it had sent all.
    pub fn is_broken(&self) -> bool {
        self.source().is_some_and(|source| source.borrow().is_broken())
    }

    /// Keeps at most so many bytes; to be said before the body is read.
    pub fn keep_at_most(&self, bytes: u32) {
        if let Some(source) = self.source() {
            source.borrow_mut().keep_at_most(bytes as usize);
        }
    }

    /// Whether it was not kept because all requests together had kept too much.
    pub fn found_no_memory(&self) -> bool {
        self.source().is_some_and(|source| source.borrow().found_no_memory())
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
            Some(source) => Self::Mirror(source.borrow_mut().mirror()),
            None => Self::Empty,
        }
    }

    /// Bytes that an attempt has had of it: the one that got this slot, or the last one that was not beside another.
    pub fn given(&self, slot: Option<usize>) -> u64 {
        self.source().map_or(0, |source| source.borrow().given(slot))
    }

    /// An attempt's, for [`RequestBody::given`].
    pub fn slot(&self) -> Option<usize> {
        match self {
            Self::Reader(reader) => Some(reader.slot),
            Self::Empty | Self::Source(_) | Self::Mirror(_) => None,
            Self::Paced(paced) => paced.body.slot(),
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.source.borrow_mut().end(self.slot);
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
            Self::Paced(paced) => Pin::new(&mut **paced).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Reader(Reader { source, slot }) => source.borrow().is_at_end(*slot),
            Self::Source(_) | Self::Mirror(_) => false,
            Self::Paced(paced) => paced.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Reader(Reader { source, .. }) => source.borrow().size_hint(),
            // The content-length header, which is passed on, says it.
            Self::Source(_) | Self::Mirror(_) => SizeHint::default(),
            Self::Paced(paced) => paced.size_hint(),
        }
    }
}
