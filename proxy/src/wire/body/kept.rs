//! What was read of a request body, in memory that is as large as it seems.
//!
//! A piece that a connection gives out holds the whole buffer that it was read into. So only a piece that
//! nearly fills such a buffer, or is the whole body, is kept as it is; others are copied into blocks. What is
//! counted is what is held.

use bytes::{Bytes, BytesMut};
use http::HeaderMap;

use crate::wire::body::Piece;

/// What one read of a connection goes into (hyper and h2 alike): a piece holds at least that.
const READ_BUFFER: usize = 8 * 1024;
/// From this size on a piece is kept as it is, which at most doubles what it holds.
const LARGE: usize = READ_BUFFER / 2;
/// The first block of a body that comes in small pieces; each further one has twice the size, up to `LARGE`.
const FIRST_BLOCK: usize = 256;

/// The front of a body; places in it are counted in bytes, and trailers stand at the one behind the last.
#[derive(Default)]
pub(crate) struct ReplayBuffer {
    /// Of most bodies it is all that there is, and needs no further memory.
    first: Option<Block>,
    more: Vec<Block>,
    /// The last block, which grows.
    tail: BytesMut,
    /// Where the next byte belongs.
    end: u64,
    trailers: Option<Box<HeaderMap>>,
    /// In bytes of memory.
    held: usize,
}

struct Block {
    begin: u64,
    data: Bytes,
    /// What it keeps alive.
    holds: usize,
}

impl Block {
    fn end(&self) -> u64 {
        self.begin + self.data.len() as u64
    }
}

impl ReplayBuffer {
    /// Bytes of memory that it holds.
    pub(crate) fn held(&self) -> usize {
        self.held
    }

    /// Bytes of memory that it would hold in addition with `piece`. `alone`: it is the whole body.
    pub(crate) fn cost(&self, piece: &Piece, alone: bool) -> usize {
        match piece {
            Piece::Data(data) if alone || data.len() >= LARGE => data.len().max(READ_BUFFER),
            Piece::Data(data) if self.fits(data.len()) => 0,
            // A block that grows is a new one and the old one is gone.
            Piece::Data(data) => match self.next_block(data.len()) {
                (true, size) => size - self.tail.capacity(),
                (false, size) => size,
            },
            Piece::Trailers(trailers) => size_of_headers(trailers),
            Piece::End => 0,
        }
    }

    /// Adds what was read next.
    pub(crate) fn push(&mut self, piece: &Piece, alone: bool) {
        self.held += self.cost(piece, alone);
        match piece {
            Piece::Data(data) if alone || data.len() >= LARGE => {
                self.close_tail();
                let holds = data.len().max(READ_BUFFER);
                self.add(Block { begin: self.end, data: data.clone(), holds });
                self.end += data.len() as u64;
            }
            Piece::Data(data) => {
                if !self.fits(data.len()) {
                    let (grows, size) = self.next_block(data.len());
                    let mut block = BytesMut::with_capacity(size);
                    if grows {
                        block.extend_from_slice(&self.tail);
                    } else {
                        self.close_tail();
                    }
                    self.tail = block;
                }
                self.tail.extend_from_slice(data);
                self.end += data.len() as u64;
            }
            Piece::Trailers(trailers) => self.trailers = Some(trailers.clone()),
            Piece::End => {}
        }
    }

    /// What is at `place`, as much as is held together. None: it is not kept, or no more.
    pub(crate) fn get(&self, place: u64) -> Option<Piece> {
        if place == self.end {
            return self.trailers.clone().map(Piece::Trailers);
        }
        let tail = self.end - self.tail.len() as u64;
        if place >= tail {
            // It may grow while somebody has it.
            let data = self.tail.get((place - tail) as usize..)?;
            return (!data.is_empty()).then(|| Piece::Data(Bytes::copy_from_slice(data)));
        }
        let mut blocks = self.first.iter().chain(&self.more);
        let block = blocks.find(|block| (block.begin..block.end()).contains(&place))?;
        Some(Piece::Data(block.data.slice((place - block.begin) as usize..)))
    }

    /// Lets go of what is before `place`.
    pub(crate) fn release(&mut self, place: u64) {
        let mut freed = 0;
        let mut is_over = |block: &Block| {
            let over = block.end() <= place;
            freed += if over { block.holds } else { 0 };
            over
        };
        if self.first.as_ref().is_some_and(&mut is_over) {
            self.first = None;
        }
        self.more.retain(|block| !is_over(block));
        if place >= self.end {
            freed += self.tail.capacity();
            self.tail = BytesMut::new();
        }
        if place > self.end
            && let Some(trailers) = self.trailers.take()
        {
            freed += size_of_headers(&trailers);
        }
        self.held -= freed;
    }

    fn fits(&self, len: usize) -> bool {
        self.tail.len() + len <= self.tail.capacity()
    }

    /// Whether the last block is to grow, and the size of the block that takes `len` more bytes.
    fn next_block(&self, len: usize) -> (bool, usize) {
        let (used, size) = (self.tail.len(), self.tail.capacity());
        let grows = used + len <= LARGE;
        let least = if grows { used + len } else { len };
        (grows, least.max(size * 2).clamp(FIRST_BLOCK, LARGE))
    }

    fn close_tail(&mut self) {
        if !self.tail.is_empty() {
            let (begin, holds) = (self.end - self.tail.len() as u64, self.tail.capacity());
            let data = std::mem::take(&mut self.tail).freeze();
            self.add(Block { begin, data, holds });
        }
    }

    fn add(&mut self, block: Block) {
        if self.first.is_none() && self.more.is_empty() {
            self.first = Some(block);
        } else {
            self.more.push(block);
        }
    }
}

/// Roughly; at most some 64 KiB, which is what is read of them.
fn size_of_headers(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 64).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As hyper gives it out: a part of the buffer that it was read into.
    fn piece(len: usize) -> Piece {
        let mut buffer = BytesMut::with_capacity(READ_BUFFER.max(len));
        buffer.resize(len, b'x');
        Piece::Data(buffer.freeze())
    }

    /// Reads from `place` to the end.
    fn read(kept: &ReplayBuffer, mut place: u64) -> u64 {
        while let Some(Piece::Data(data)) = kept.get(place) {
            assert!(data.iter().all(|byte| *byte == b'x') && !data.is_empty());
            place += data.len() as u64;
        }
        place
    }

    /// 12,000 bytes held 48 MB.
    #[test]
    fn bytes_that_come_alone_hold_little_more_than_themselves() {
        let mut kept = ReplayBuffer::default();
        for count in 1..=12_000 {
            kept.push(&piece(1), false);
            assert!(kept.held() <= 2 * count + LARGE, "{} for {count}", kept.held());
        }
        assert!(kept.more.len() <= 4, "in few blocks");
        for place in [0, 1, 255, 256, 5_000, 11_999, 12_000] {
            assert_eq!(read(&kept, place), 12_000);
        }
        kept.release(12_000);
        assert_eq!(kept.held(), 0);
        assert!(kept.get(0).is_none());
    }

    #[test]
    fn one_piece_and_large_ones_are_not_copied() {
        for (len, alone) in [(1, true), (100, true), (LARGE, false), (70_000, false)] {
            let piece = piece(len);
            let Piece::Data(data) = &piece else { unreachable!() };
            let mut kept = ReplayBuffer::default();
            kept.push(&piece, alone);
            let Some(Piece::Data(got)) = kept.get(0) else { panic!("{len} is not kept") };
            assert_eq!(got.as_ptr(), data.as_ptr(), "{len}");
            assert_eq!(kept.held(), len.max(READ_BUFFER), "the buffer that it keeps alive");
        }
    }

    #[test]
    fn what_is_counted_is_what_is_held_whatever_comes() {
        for sizes in [&[1, 5_000, 1, 1, 4_000, 300, 0, 9_000, 2][..], &[3_000; 9], &[255, 2, 4_095]]
        {
            let mut kept = ReplayBuffer::default();
            let mut end = 0;
            for size in sizes {
                let piece = piece(*size);
                let (before, cost) = (kept.held(), kept.cost(&piece, false));
                kept.push(&piece, false);
                end += *size as u64;
                assert_eq!(kept.held(), before + cost);
                let blocks: usize = kept.first.iter().chain(&kept.more).map(|b| b.holds).sum();
                assert_eq!(kept.held(), blocks + kept.tail.capacity(), "{sizes:?}");
                assert_eq!(read(&kept, 0), end, "{sizes:?}");
            }
            let mut headers = HeaderMap::new();
            headers.insert("a", http::HeaderValue::from_static("b"));
            kept.push(&Piece::Trailers(Box::new(headers)), false);
            assert!(matches!(kept.get(end), Some(Piece::Trailers(_))));
            for place in 0..=end + 1 {
                kept.release(place);
                assert_eq!(read(&kept, place.min(end)), end, "{place} of {sizes:?}");
            }
            assert_eq!(kept.held(), 0, "{sizes:?}");
        }
    }
}
