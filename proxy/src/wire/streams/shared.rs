//! What the streams of one connection share: the queue of what is to be written, how much of it belongs to long bodies,
//! and, on one to an upstream, the stream that has ended last.

use std::cell::Cell;

use h2::RecvStream;

use super::LONG;
use super::queue::WriteQueue;

/// Bytes of long bodies in a second from which on a connection is busy with them: each of its streams may have a window
/// of them on its way, and what else it carries waits behind.
const BUSY: u64 = 1024 * 1024;

#[derive(Default)]
pub struct SharedByStreams {
    pub bulk: BulkMeter,
    pub last: LastEnded,
    pub queue: WriteQueue,
}

/// Bytes of long bodies, either way.
#[derive(Default)]
pub struct BulkMeter {
    /// Since the last sweep, and between that and the one before.
    now: Cell<u64>,
    before: Cell<u64>,
}

/// The stream that has ended last, held until the next one begins.
///
/// h2 runs the task of a connection as soon as nobody refers to an ended stream any more. There is nothing to do for it
/// then: of a client's connection the next thing to come is another request, for which the task runs anyway.
#[derive(Default)]
pub struct LastEnded(Cell<Option<RecvStream>>);

impl BulkMeter {
    /// A piece of a body has been moved.
    #[inline(always)]
    pub fn passed(&self, bytes: usize) {
        if bytes >= LONG {
            self.now.set(self.now.get().saturating_add(bytes as u64));
        }
    }

    pub fn is_busy(&self) -> bool {
        self.rate() > 0
    }

    /// MiB in the busier one of this second and the last one.
    pub fn rate(&self) -> u64 {
        self.now.get().max(self.before.get()) / BUSY
    }

    /// Once a second.
    pub fn sweep(&self) {
        self.before.set(self.now.take());
    }
}

impl LastEnded {
    /// The stream has ended.
    pub fn hold(&self, stream: RecvStream) {
        self.0.set(Some(stream));
    }

    /// Another stream has begun.
    pub fn let_go(&self) {
        drop(self.0.take());
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::pin::Pin;
    use std::rc::Rc;

    use bytes::Bytes;
    use h2::client::SendRequest;
    use http::{Request, Response};
    use tokio::io::duplex;
    use tokio::task::{LocalSet, spawn_local, yield_now};

    use super::*;

    async fn settle() {
        for _ in 0..10 {
            yield_now().await;
        }
    }

    /// Its task ran once more for each answer.
    #[tokio::test(flavor = "current_thread")]
    async fn a_connection_is_not_woken_for_a_stream_that_was_dropped_behind_its_end() {
        let whole = async {
            let (ours, theirs) = duplex(64 * 1024);
            let (client, server) =
                tokio::join!(h2::client::handshake(ours), h2::server::handshake(theirs));
            let (mut client, mut connection): (SendRequest<Bytes>, _) = client.unwrap();
            let turns = Rc::new(Cell::new(0));
            let count = Rc::clone(&turns);
            spawn_local(poll_fn(move |cx| {
                count.set(count.get() + 1);
                Pin::new(&mut connection).poll(cx).map(drop)
            }));
            let mut server: h2::server::Connection<_, Bytes> = server.unwrap();
            spawn_local(async move {
                while let Some(Ok((_, mut respond))) = server.accept().await {
                    respond.send_response(Response::new(()), true).unwrap();
                }
            });
            let last = LastEnded::default();
            for held in [true, true, false] {
                let (answer, _) = client.send_request(Request::new(()), true).unwrap();
                last.let_go();
                let body = answer.await.unwrap().into_body();
                settle().await;
                let before = turns.get();
                match held {
                    true => last.hold(body),
                    false => drop(body),
                }
                settle().await;
                assert_eq!(turns.get() == before, held);
            }
        };
        LocalSet::new().run_until(whole).await;
    }
}
