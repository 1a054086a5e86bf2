//! The builders of HTTP servers, with this proxy's limits.

use h2::server;
use hyper::server::conn::http1;

use crate::base::settings::Settings;

/// What one stalled stream may hold; the same on both sides of a hop.
const STREAM_WINDOW: u32 = 256 * 1024;

/// Bytes of a frame on a hop and of what upstreams may send (RFC 9113 section 4.2): long bodies go in few pieces,
/// each with its header, its record and its turn, and still no small stream waits for longer than one of them takes.
const MAX_FRAME: u32 = 64 * 1024;

/// Streams of one hop connection, whatever --max-streams says of others.
const HOP_STREAMS: u32 = 256;

/// Streams of a hop that were reset before they were looked at, from which on the connection ends.
/// Many callers share a hop: h2's own 20 would let a burst of them that give up harm the others.
const HOP_RESETS: usize = 1_024;

/// Small, since every idle connection keeps it.
const H1_BUFFER: usize = 8 * 1024;

/// The builders of servers, made once per worker.
pub struct Builders {
    pub(crate) h1: http1::Builder,
    /// Keeps the case of header names, which costs some allocations for each request.
    pub(crate) h1_cased: http1::Builder,
    pub(crate) h2: server::Builder,
    pub(crate) h2_hop: server::Builder,
}

impl Builders {
    pub fn new(settings: &Settings) -> Self {
        let mut h1 = http1::Builder::new();
        // A caller that closes its half has asked all that it wants to; `Wire` finds out who has gone.
        h1.half_close(true)
            .max_headers(settings.max_headers)
            .max_header_size(settings.max_header_bytes as usize)
            .max_buf_size((settings.max_header_bytes as usize).max(H1_BUFFER) + H1_BUFFER);
        let mut h2_hop = h2_builder(settings, HOP_STREAMS);
        h2_hop
            .max_pending_accept_reset_streams(HOP_RESETS)
            .max_frame_size(max_frame(settings.max_header_bytes));
        let mut h1_cased = h1.clone();
        h1_cased.preserve_header_case(true);
        Self { h1, h1_cased, h2: h2_builder(settings, settings.max_streams), h2_hop }
    }
}

/// The largest frame that is taken. h2 allows a header block as many CONTINUATION frames as its limit has of these, and
/// peers may split at 16 KiB: where the limit is raised, frames stay small.
pub fn max_frame(max_header_bytes: u32) -> u32 {
    if max_header_bytes <= MAX_FRAME { MAX_FRAME } else { 16 * 1024 }
}

/// h2's limit of headers is twice ours, so that what exceeds ours is a request that is refused, told of and
/// counted like any other; h2's own answer beyond its limit is a bare 431.
fn h2_builder(settings: &Settings, streams: u32) -> server::Builder {
    let mut h2 = server::Builder::new();
    h2.initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(streams.saturating_mul(STREAM_WINDOW).min(1 << 30))
        .max_concurrent_streams(streams)
        .max_header_list_size(settings.max_header_bytes.saturating_mul(2))
        .max_send_buffer_size(STREAM_WINDOW as usize)
        .enable_connect_protocol();
    h2
}
