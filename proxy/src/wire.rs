//! HTTP on the wire, before it means anything: bytes, frames, heads, bodies.

pub mod body;
pub mod deadline;
pub mod error;
pub mod grammar;
pub mod headers;
pub mod hop;
pub mod hosts;
pub(crate) mod http1;
pub mod io;
pub(crate) mod progress;
pub mod reads;
pub mod server;
pub mod streams;
pub mod tls;
pub mod trace;
pub mod watch;
pub mod writes;

/// What is spoken on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Wire {
    Http1,
    Http2,
    /// HTTP/2 to another proxy, carrying requests.
    Hop,
    /// HTTP/2 to another proxy, carrying opaque streams; never shared with requests.
    HopTunnel,
}

impl Wire {
    /// The word in the access log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http1 => "http1",
            Self::Http2 => "http2",
            Self::Hop => "hop",
            Self::HopTunnel => "hop_tunnel",
        }
    }

    pub fn is_hop(self) -> bool {
        matches!(self, Self::Hop | Self::HopTunnel)
    }
}
