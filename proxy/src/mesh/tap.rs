//! Showing the control plane the requests that taps have asked for.

use std::collections::HashMap;
use std::time::Duration;

use outrigger_core::tap::LINE_BYTES;
use outrigger_proto::convert;
use outrigger_proto::graph::graph_client::GraphClient;
use outrigger_proto::graph::{self, Reporter, TappedRequests};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::MissedTickBehavior;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tracing::{debug, warn};

use crate::observe::record::Record;
use crate::observe::tap::Taps;
use crate::proxy::Proxy;

/// How long a line waits for others.
const FLUSH: Duration = Duration::from_millis(200);
/// Of those, in a second.
const FLUSHES: u32 = 5;
/// Messages that may wait for the connection.
const QUEUE: usize = 4;
/// Bytes of the lines of a message.
const MESSAGE_BYTES: usize = 128 * 1024;
/// Flushes without a tap after which the stream ends.
const IDLE_FLUSHES: u32 = 5 * FLUSHES;

/// Takes over which taps are on; one with a condition that this build does not know shows nothing.
pub fn configure(taps: &Taps, wire: &graph::Taps) {
    let read = wire.taps.iter().filter_map(|tap| match convert::tap::from_wire(tap) {
        Ok(tap) => Some(tap),
        Err(error) => {
            warn!(%error, "a tap uses a filter that this proxy does not support; it gets nothing");
            None
        }
    });
    taps.configure(read.collect());
}

/// No tap is on when this is gone: nobody is there who could turn it off.
pub struct TapsOff<'a>(pub &'a Taps);

impl Drop for TapsOff<'_> {
    fn drop(&mut self) {
        self.0.configure(Vec::new());
    }
}

/// Shows what comes, for as long as it is polled. It goes by the connection of `client`, since another one may
/// lead to another replica.
pub async fn show(
    proxy: &Proxy,
    client: GraphClient<Channel>,
    reporter: Reporter,
    token: Option<tonic::metadata::MetadataMap>,
    records: &mut mpsc::Receiver<Box<Record>>,
) {
    let mut lines = Lines::default();
    let mut stream = TappedStream { client, reporter, token, open: None };
    let mut flushes = tokio::time::interval(FLUSH);
    flushes.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut flush, mut idle) = (0_u32, 0_u32);
    loop {
        tokio::select! {
            record = records.recv() => {
                // The other end lives as long as the process.
                let Some(record) = record else { return std::future::pending().await };
                lines.add(proxy.taps.lines(&record));
                if lines.bytes < MESSAGE_BYTES {
                    continue;
                }
            }
            _ = flushes.tick(), if proxy.taps.is_on() || stream.open.is_some() => {
                flush = flush.wrapping_add(1);
                if flush.is_multiple_of(FLUSHES) {
                    proxy.taps.tick();
                }
                idle = if proxy.taps.is_on() { 0 } else { idle.saturating_add(1) };
            }
        }
        lines.not_shown(proxy.taps.take_not_shown());
        if idle > IDLE_FLUSHES {
            stream.open = None;
        }
        stream.send(&mut lines);
    }
}

/// What waits to be sent, by tap.
#[derive(Default)]
struct Lines {
    by_tap: HashMap<u64, TappedRequests>,
    bytes: usize,
}

impl Lines {
    fn of(&mut self, tap: u64) -> &mut TappedRequests {
        let new = || TappedRequests { tap, ..TappedRequests::default() };
        self.by_tap.entry(tap).or_insert_with(new)
    }

    fn add(&mut self, lines: Vec<(u64, String)>) {
        for (tap, line) in lines {
            if line.len() > LINE_BYTES {
                self.of(tap).not_shown += 1;
                continue;
            }
            self.bytes += line.len();
            self.of(tap).lines.push(line);
        }
    }

    fn not_shown(&mut self, counts: Vec<(u64, u64)>) {
        for (tap, count) in counts.into_iter().filter(|(_, count)| *count > 0) {
            self.of(tap).not_shown += count;
        }
    }
}

struct TappedStream {
    client: GraphClient<Channel>,
    reporter: Reporter,
    /// Who this is, in a mesh without identities.
    token: Option<tonic::metadata::MetadataMap>,
    open: Option<OpenStream>,
}

struct OpenStream {
    messages: mpsc::Sender<TappedRequests>,
    call: AbortHandle,
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.call.abort();
    }
}

impl TappedStream {
    /// Sends what there is room for; the rest is counted as not shown.
    fn send(&mut self, lines: &mut Lines) {
        lines.bytes = 0;
        let mut late = Vec::new();
        for (tap, message) in lines.by_tap.drain() {
            let mut not_shown = message.not_shown;
            let count = message.lines.len() as u64;
            if !self.try_send(message) {
                not_shown += count;
                late.push((tap, not_shown));
            }
        }
        lines.not_shown(late);
    }

    fn try_send(&mut self, message: TappedRequests) -> bool {
        if self.open.as_ref().is_some_and(|open| open.messages.is_closed()) {
            self.open = None;
        }
        let is_new = self.open.is_none();
        let Self { client, reporter, token, open } = self;
        let open = open.get_or_insert_with(|| OpenStream::new(client.clone(), token.clone()));
        let reporter = is_new.then(|| reporter.clone());
        open.messages.try_send(TappedRequests { reporter, ..message }).is_ok()
    }
}

impl OpenStream {
    fn new(mut client: GraphClient<Channel>, token: Option<tonic::metadata::MetadataMap>) -> Self {
        let (messages, queue) = mpsc::channel(QUEUE);
        let mut request = tonic::Request::new(ReceiverStream::new(queue));
        if let Some(token) = token {
            *request.metadata_mut() = token;
        }
        let call = tokio::spawn(async move {
            if let Err(why) = client.tapped(request).await {
                debug!(%why, "the control plane does not support taps");
            }
        });
        Self { messages, call: call.abort_handle() }
    }
}
