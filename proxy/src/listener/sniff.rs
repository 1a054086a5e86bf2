//! Reading a connection's first bytes to tell its protocol, without losing any of them.

use std::io;
use std::time::Duration;

use bytes::BytesMut;
use outrigger_core::detect::{Detected, detect};
use tokio::io::AsyncReadExt;
use tokio::time::timeout;

use crate::proxy::Phase;
use crate::proxy::worker::Worker;
use crate::wire::io::{Io, Transport};

/// First bytes looked at: a ClientHello may fill a TLS record.
const MAX_FIRST_BYTES: usize = 17 * 1024;
/// The longest method known to IANA has 17 characters.
const MAX_METHOD: usize = 17;
/// What a request line ends with.
const HTTP1: &[u8] = b" HTTP/1.";
/// Enough for most first reads.
const FIRST_READ: usize = 1024;

/// A connection and the bytes read from it so far.
pub struct Sniffer {
    transport: Transport,
    read: BytesMut,
}

/// Who said what first.
pub enum Spoke {
    Client(Detected),
    /// Silence for as long as was to be waited.
    Nobody,
    /// The client began and did not go on.
    TooSlow,
    /// The client closed the connection without a word.
    Gone,
}

impl Sniffer {
    pub fn new(transport: Transport) -> Self {
        Self { transport, read: BytesMut::new() }
    }

    /// Listens to the client: at most `silence` for a first byte (without end if `None`), then at
    /// most `limit` until the protocol is clear.
    pub async fn listen(&mut self, silence: Option<Duration>, limit: Duration) -> Spoke {
        if self.read.is_empty() {
            let first = match silence {
                // A turn of the runtime, so that bytes already there are seen.
                Some(silence) => {
                    timeout(silence.max(Duration::from_millis(1)), self.read_more()).await
                }
                None => Ok(self.read_more().await),
            };
            match first {
                Err(_) => return Spoke::Nobody,
                Ok(Ok(0) | Err(_)) => return Spoke::Gone,
                Ok(Ok(_)) => {}
            }
        }
        timeout(limit, self.more()).await.unwrap_or(Spoke::TooSlow)
    }

    async fn more(&mut self) -> Spoke {
        loop {
            match detect(&self.read) {
                Detected::NeedMore if self.read.len() < MAX_FIRST_BYTES => {}
                Detected::NeedMore => return Spoke::Client(Detected::Opaque),
                detected => return Spoke::Client(detected),
            }
            match self.read_more().await {
                // What there is will not become more.
                Ok(0) => return Spoke::Client(Detected::Opaque),
                Ok(_) => {}
                Err(_) => return Spoke::Gone,
            }
        }
    }

    /// Whether the first bytes are meant to be a request of HTTP/1.1, if not a valid one: a method as the
    /// registered ones are written, and a space. Where HTTP is expected, that deserves an answer.
    pub fn resembles_request(&self) -> bool {
        let method = self.line().iter().take_while(|byte| byte.is_ascii_uppercase()).count();
        (3..=MAX_METHOD).contains(&method) && self.line().get(method) == Some(&b' ')
    }

    /// Whether their first line names HTTP/1 as its version, so that some server may take it for a request.
    pub fn names_http(&self) -> bool {
        let line = self.line().split(|byte| *byte == b'\n').next().unwrap_or_default();
        line.windows(HTTP1.len()).any(|window| window == HTTP1)
    }

    /// Without the empty lines before it.
    fn line(&self) -> &[u8] {
        let empty = self.read.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
        &self.read[empty..]
    }

    /// Waits until the client has said something or gone.
    pub async fn readable(&mut self) {
        if self.read.is_empty() {
            // An error shows again at the next read.
            let _ = self.read_more().await;
        }
    }

    async fn read_more(&mut self) -> io::Result<usize> {
        if let Transport::Tcp(stream) = &self.transport {
            // No buffer while there is nothing to put in it.
            stream.readable().await?;
        }
        self.read.reserve(FIRST_READ);
        self.transport.read_buf(&mut self.read).await
    }

    /// The connection with every byte still in it.
    pub fn into_io(self) -> Io {
        Io::new(self.transport, self.read.freeze())
    }
}

/// Time that a new connection has for its first bytes when connections like it end.
const FIRST_WORDS: Duration = Duration::from_millis(100);

impl Worker {
    /// Listens to a connection's first bytes; gives up when connections like it end.
    pub async fn listen(
        &self,
        sniffer: &mut Sniffer,
        silence: Option<Duration>,
        ends: Phase,
    ) -> Spoke {
        self.listen_within(sniffer, silence, self.proxy.settings.header_timeout, ends).await
    }

    /// The same, with another `limit` from the first byte until the protocol is clear.
    pub async fn listen_within(
        &self,
        sniffer: &mut Sniffer,
        silence: Option<Duration>,
        limit: Duration,
        ends: Phase,
    ) -> Spoke {
        let lifecycle = &self.proxy.lifecycle;
        let ended = async {
            lifecycle.reached(ends).await;
            // It may have been opened just before, and its first request be on the way.
            tokio::time::sleep(FIRST_WORDS).await;
        };
        tokio::select! {
            biased;
            spoke = sniffer.listen(silence, limit) => spoke,
            () = ended => Spoke::Gone,
        }
    }
}
