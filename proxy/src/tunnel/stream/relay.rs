//! Copying bytes both ways until both sides have said all, with half-close.
//!
//! A side holds a buffer only while bytes wait in it, so an idle connection costs none.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use outrigger_core::reason::Reason;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::wire::deadline::{BodyEnd, Bounds, Clock};

/// Read at one time in one direction. One page of TLS records; larger gains nothing measurable on
/// loopback and costs memory per busy connection.
const BUFFER: usize = 16 * 1024;

thread_local! {
    /// Free buffers of this worker.
    static FREE: std::cell::RefCell<Vec<Box<[u8]>>> = const { std::cell::RefCell::new(Vec::new()) };
}
/// Free buffers kept per worker.
const MAX_FREE: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RelaySide {
    Caller,
    Upstream,
}

/// How it ended.
#[derive(Debug)]
pub struct Relayed {
    /// Bytes from the caller.
    pub received: u64,
    /// Bytes to the caller.
    pub sent: u64,
    /// None: both sides said all.
    pub early: Option<Early>,
}

/// Why it ended before both sides had said all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Early {
    /// This side's connection broke.
    Broken(RelaySide),
    /// A limit was reached.
    Over(Reason),
}

/// What ends it early.
#[derive(Clone, Copy, Default)]
pub struct RelayLimits {
    /// The longest silence of both sides.
    pub idle: Option<Duration>,
    pub until: Option<Instant>,
}

pub async fn relay<A, B>(mut caller: A, mut upstream: B, limits: RelayLimits) -> Relayed
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let mut up = Flow::new(RelaySide::Caller, RelaySide::Upstream);
    let mut down = Flow::new(RelaySide::Upstream, RelaySide::Caller);
    let mut bounds = Bounds::new(Clock::at(limits.until), limits.idle, false);
    let mut seen = 0;
    let early = poll_fn(|cx| {
        let a = up.poll(cx, &mut caller, &mut upstream);
        let b = down.poll(cx, &mut upstream, &mut caller);
        match (a, b) {
            (Poll::Ready(Err(side)), _) | (_, Poll::Ready(Err(side))) => {
                return Poll::Ready(Some(Early::Broken(side)));
            }
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => return Poll::Ready(None),
            _ => {}
        }
        let Some(bounds) = &mut bounds else { return Poll::Pending };
        let copied = up.copied + down.copied;
        if std::mem::replace(&mut seen, copied) != copied {
            bounds.frame(None);
        }
        bounds.poll(cx).map(|ended| {
            Some(Early::Over(match ended {
                BodyEnd::Deadline => Reason::DeadlineExceededAfterHead,
                BodyEnd::Idle => Reason::IdleTimeout,
            }))
        })
    })
    .await;
    Relayed { received: up.copied, sent: down.copied, early }
}

struct Flow {
    from: RelaySide,
    to: RelaySide,
    state: FlowState,
    copied: u64,
}

enum FlowState {
    /// Nothing waits; `flush` says whether something was written since the last flush.
    Reading {
        flush: bool,
    },
    Writing {
        buffer: Box<[u8]>,
        from: usize,
        to: usize,
    },
    Closing,
    Done,
}

impl Flow {
    fn new(from: RelaySide, to: RelaySide) -> Self {
        // What was written before may wait in the transport.
        Self { from, to, state: FlowState::Reading { flush: true }, copied: 0 }
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut (impl AsyncRead + Unpin),
        writer: &mut (impl AsyncWrite + Unpin),
    ) -> Poll<Result<(), RelaySide>> {
        loop {
            match &mut self.state {
                FlowState::Reading { flush } => {
                    let mut buffer = take_buffer();
                    match read(cx, reader, &mut buffer) {
                        Poll::Pending => {
                            give_back(buffer);
                            if *flush {
                                ready!(Pin::new(&mut *writer).poll_flush(cx))
                                    .map_err(|_| self.to)?;
                                self.state = FlowState::Reading { flush: false };
                            }
                            return Poll::Pending;
                        }
                        Poll::Ready(Err(_)) => {
                            // What came before it is sent as far as that goes at once.
                            let _sent = Pin::new(&mut *writer).poll_flush(cx);
                            return Poll::Ready(Err(self.from));
                        }
                        Poll::Ready(Ok(0)) => {
                            give_back(buffer);
                            self.state = FlowState::Closing;
                        }
                        Poll::Ready(Ok(to)) => {
                            self.copied += to as u64;
                            self.state = FlowState::Writing { buffer, from: 0, to };
                        }
                    }
                }
                FlowState::Writing { buffer, from, to } => {
                    while *from < *to {
                        let written = Pin::new(&mut *writer).poll_write(cx, &buffer[*from..*to]);
                        match ready!(written) {
                            Ok(0) | Err(_) => return Poll::Ready(Err(self.to)),
                            Ok(n) => *from += n,
                        }
                    }
                    let buffer = std::mem::take(buffer);
                    give_back(buffer);
                    self.state = FlowState::Reading { flush: true };
                }
                FlowState::Closing => {
                    // A peer that is gone already has nothing left to be told.
                    let _ = ready!(Pin::new(&mut *writer).poll_shutdown(cx));
                    self.state = FlowState::Done;
                }
                FlowState::Done => return Poll::Ready(Ok(())),
            }
        }
    }
}

fn read(
    cx: &mut Context<'_>,
    reader: &mut (impl AsyncRead + Unpin),
    buffer: &mut [u8],
) -> Poll<io::Result<usize>> {
    let mut buf = ReadBuf::new(buffer);
    ready!(Pin::new(reader).poll_read(cx, &mut buf))?;
    Poll::Ready(Ok(buf.filled().len()))
}

fn take_buffer() -> Box<[u8]> {
    FREE.with_borrow_mut(Vec::pop).unwrap_or_else(|| vec![0; BUFFER].into_boxed_slice())
}

fn give_back(buffer: Box<[u8]>) {
    FREE.with_borrow_mut(|free| {
        if free.len() < MAX_FREE && buffer.len() == BUFFER {
            free.push(buffer);
        }
    });
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn each_side_may_close_its_half_first() {
        let (mut client, caller) = duplex(64);
        let (mut server, upstream) = duplex(64);
        let relayed = tokio::spawn(relay(caller, upstream, RelayLimits::default()));
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut got = Vec::new();
        server.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"question");
        let answer = tokio::spawn(async move {
            server.write_all(&[7; 100_000]).await.unwrap();
        });
        let mut got = Vec::new();
        client.read_to_end(&mut got).await.unwrap();
        answer.await.unwrap();
        assert_eq!(got.len(), 100_000);
        let ended = relayed.await.unwrap();
        assert_eq!(got.len() as u64, ended.sent);
        assert_eq!((ended.received, ended.early), (8, None));
    }

    #[tokio::test]
    async fn silence_of_both_sides_ends_it() {
        let (mut client, caller) = duplex(64);
        let (mut server, upstream) = duplex(64);
        let limits = RelayLimits { idle: Some(Duration::from_millis(300)), until: None };
        let began = Instant::now();
        let relayed = tokio::spawn(relay(caller, upstream, limits));
        for _ in 0..4 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            client.write_all(b"a").await.unwrap();
            server.read_exact(&mut [0]).await.unwrap();
        }
        let ended = relayed.await.unwrap();
        assert_eq!(ended.early, Some(Early::Over(Reason::IdleTimeout)));
        assert!(began.elapsed() >= Duration::from_millis(700), "{:?}", began.elapsed());
    }
}
