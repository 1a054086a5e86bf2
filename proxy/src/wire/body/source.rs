//! The caller's body, with what was read of it while it may have to be sent again.
//!
//! Each attempt reads every piece from the first on, or gets an error: a piece that was not kept, or whose
//! turn has passed, is never left out in silence.

use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};

use http_body::{Body, SizeHint};
use outrigger_core::policy::retry::DEFAULT_REPLAY_BYTES;
use tokio::sync::mpsc;

use crate::wire::body::kept::ReplayBuffer;
use crate::wire::body::{BodyMemory, MIRROR_LAG, Piece, into_piece};
use crate::wire::error::BodyError;
use crate::wire::progress::Progress;
use crate::wire::streams::WireBody;

/// Attempts that read one body at a time: the first, one beside it, and one that is just ending.
const MAX_READERS: usize = 3;

/// The caller's body, with what was read of it while it may have to be sent again.
pub struct Source {
    incoming: WireBody,
    /// What was read first, without what nobody will read any more.
    kept: ReplayBuffer,
    /// Bytes of the body that have been kept.
    kept_bytes: usize,
    /// Everything read so far is in `kept`.
    whole: bool,
    ended: bool,
    /// The caller went away in the middle.
    broken: bool,
    read_bytes: u64,
    /// The place behind what has been read: its bytes, and one more for trailers.
    read: u64,
    /// The place at which each reader is, or was at its end.
    positions: [u64; MAX_READERS],
    /// Which places have a reader.
    taken: [bool; MAX_READERS],
    /// The reader that began last, but for those beside it.
    newest: usize,
    mirrors: Vec<mpsc::Sender<Piece>>,
    memory: Rc<BodyMemory>,
    progress: Arc<Progress>,
    /// Bytes of this body that may be kept.
    limit: usize,
    /// Why it is not whole, if it is the memory of all.
    no_memory: bool,
}

impl Source {
    pub(crate) fn new(incoming: WireBody, memory: Rc<BodyMemory>, progress: Arc<Progress>) -> Self {
        Self {
            incoming,
            kept: ReplayBuffer::default(),
            kept_bytes: 0,
            whole: true,
            ended: false,
            broken: false,
            read: 0,
            read_bytes: 0,
            positions: [0; MAX_READERS],
            taken: [false; MAX_READERS],
            newest: 0,
            mirrors: Vec::new(),
            memory,
            progress,
            limit: DEFAULT_REPLAY_BYTES as usize,
            no_memory: false,
        }
    }

    /// A place for one more reader; none: not all of it was kept.
    pub(crate) fn begin(&mut self) -> Option<usize> {
        let slot = self.take_place()?;
        self.newest = slot;
        Some(slot)
    }

    /// The same beside another reader, once everything has been read.
    pub(crate) fn begin_beside(&mut self) -> Option<usize> {
        if self.ended { self.take_place() } else { None }
    }

    fn take_place(&mut self) -> Option<usize> {
        let free = self.taken.iter().position(|taken| !taken);
        let slot = free.filter(|_| self.whole)?;
        (self.positions[slot], self.taken[slot]) = (0, true);
        Some(slot)
    }

    /// A reader is gone.
    pub(crate) fn end(&mut self, slot: usize) {
        self.taken[slot] = false;
        self.release();
    }

    pub(crate) fn is_whole(&self) -> bool {
        self.whole
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.broken
    }

    pub(crate) fn found_no_memory(&self) -> bool {
        self.no_memory
    }

    /// Bytes that a reader has had, or the newest one.
    pub(crate) fn given(&self, slot: Option<usize>) -> u64 {
        // Trailers are no bytes of the body.
        self.positions[slot.unwrap_or(self.newest)].min(self.read_bytes)
    }

    pub(crate) fn keep_at_most(&mut self, bytes: usize) {
        self.limit = bytes;
    }

    /// Gets each piece as it is read.
    pub(crate) fn mirror(&mut self) -> mpsc::Receiver<Piece> {
        let (sender, receiver) = mpsc::channel(MIRROR_LAG);
        self.mirrors.push(sender);
        receiver
    }

    /// Whether a reader has had everything that there is.
    pub(crate) fn is_at_end(&self, slot: usize) -> bool {
        self.positions[slot] == self.read
            && !self.broken
            && (self.ended || self.incoming.is_end_stream())
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        match self.read {
            0 => self.incoming.size_hint(),
            // The content-length header, which is passed on, says it.
            _ => SizeHint::default(),
        }
    }

    /// The next piece for the reader at `slot`: a kept one, or one that just comes.
    pub(crate) fn poll_next(
        &mut self,
        slot: usize,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Piece, BodyError>>> {
        let at = self.positions[slot];
        if at < self.read {
            let Some(piece) = self.kept.get(at) else {
                return Poll::Ready(Some(Err(BodyError::Gone)));
            };
            self.advance(slot, at, &piece);
            return Poll::Ready(Some(Ok(piece)));
        }
        if self.broken {
            return Poll::Ready(Some(Err(BodyError::Gone)));
        }
        let polled = self.poll_piece(cx);
        if let Poll::Ready(Some(Ok(piece))) = &polled {
            self.read = at + length(piece);
            self.advance(slot, at, piece);
        }
        polled
    }

    fn advance(&mut self, slot: usize, at: u64, piece: &Piece) {
        self.positions[slot] = at + length(piece);
        self.release();
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
        self.ended = matches!(piece, Piece::Trailers(_)) || self.incoming.is_end_stream();
        self.keep(&piece);
        self.tell_mirrors(&piece);
        self.progress.touch();
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
        let buffered = &self.memory.metrics.gauges.buffered_bytes;
        let budget = self.memory.limit;
        let alone = self.ended && self.read == 0 && len > 0;
        let cost = self.kept.cost(piece, alone) as u64;
        self.no_memory = buffered.load(Relaxed) + cost > budget;
        if self.kept_bytes + len > self.limit || self.no_memory {
            self.forget();
            return;
        }
        buffered.fetch_add(cost, Relaxed);
        self.kept_bytes += len;
        self.kept.push(piece, alone);
    }

    /// Nobody will begin to read it any more.
    pub(crate) fn forget(&mut self) {
        self.whole = false;
        self.release();
    }

    /// Frees what no reader will read, once none can begin.
    fn release(&mut self) {
        let held = self.kept.held();
        if self.whole || held == 0 {
            return;
        }
        let readers = self.positions.iter().zip(self.taken).filter(|(_, taken)| *taken);
        let unread = readers.map(|(at, _)| *at).min().unwrap_or(u64::MAX);
        self.kept.release(unread);
        self.give_back(held - self.kept.held());
    }

    fn give_back(&self, bytes: usize) {
        if bytes > 0 {
            let gauges = &self.memory.metrics.gauges;
            gauges.buffered_bytes.fetch_sub(bytes as u64, Relaxed);
        }
    }

    fn tell_mirrors(&mut self, piece: &Piece) {
        let metrics = &self.memory.metrics;
        self.mirrors.retain(|mirror| {
            let sent = mirror.try_send(piece.clone()).is_ok();
            if !sent {
                crate::observe::metrics::add(&metrics.gauges.mirrors_dropped, 1);
            }
            sent
        });
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.give_back(self.kept.held());
    }
}

/// How many places a piece takes up: what comes behind it is at its own and so many more.
fn length(piece: &Piece) -> u64 {
    match piece {
        Piece::Data(data) => data.len() as u64,
        Piece::Trailers(_) => 1,
        Piece::End => 0,
    }
}
