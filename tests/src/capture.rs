//! Bytes as they cross a network: every frame of a namespace, read from a packet socket. Needs root.

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_recv_buffer_size, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SocketType, eth, recv, socket};

/// Larger than any frame, those that the kernel has not cut into packets included.
const FRAME: usize = 128 * 1024;
/// So that a burst is not lost.
const BUFFER: usize = 16 * 1024 * 1024;
/// How often it is looked whether to stop.
const LOOK: Duration = Duration::from_millis(100);

/// A capture under way.
pub struct Capture {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Vec<u8>>>,
}

impl Capture {
    /// Begins to capture in the network namespace of this thread.
    pub fn start() -> Result<Self, String> {
        let failed = |error: rustix::io::Errno| format!("no packet socket: {error}");
        let socket =
            socket(AddressFamily::PACKET, SocketType::RAW, Some(eth::ALL)).map_err(failed)?;
        set_socket_timeout(&socket, Timeout::Recv, Some(LOOK)).map_err(failed)?;
        // As much of it as the system allows.
        let _ = set_socket_recv_buffer_size(&socket, BUFFER);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let (mut frames, mut buffer) = (Vec::new(), vec![0; FRAME]);
            loop {
                match recv(&socket, &mut buffer[..], RecvFlags::empty()) {
                    Ok((n, _)) => frames.push(buffer[..n].to_vec()),
                    // Only when nothing is left to be read.
                    Err(_) if stopped.load(Relaxed) => return frames,
                    Err(_) => {}
                }
            }
        });
        Ok(Self { stop, thread })
    }

    pub fn stop(self) -> Frames {
        self.stop.store(true, Relaxed);
        Frames(self.thread.join().expect("no panic"))
    }
}

/// What was captured.
pub struct Frames(Vec<Vec<u8>>);

/// What both sides of one TCP connection said.
#[derive(Debug, Default)]
pub struct Conversation {
    pub client: Vec<u8>,
    pub server: Vec<u8>,
}

/// Source and destination of one direction.
type Flow = ((Ipv4Addr, u16), (Ipv4Addr, u16));

/// Bytes by their sequence number.
type Said<'a> = BTreeMap<u32, &'a [u8]>;

impl Frames {
    /// Whether some frame holds this text.
    pub fn hold(&self, text: &str) -> bool {
        self.0.iter().any(|frame| frame.windows(text.len()).any(|part| part == text.as_bytes()))
    }

    /// Every connection to `server`, by IPv4, that began during the capture.
    pub fn conversations(&self, server: (Ipv4Addr, u16)) -> Vec<Conversation> {
        // Each direction: its first sequence number, and what was said at which one. A frame is seen
        // at each interface that it crosses, so the same bytes come several times.
        let mut flows: HashMap<Flow, (Option<u32>, Said<'_>)> = HashMap::new();
        for segment in self.0.iter().filter_map(|frame| Segment::parse(frame)) {
            let (first, said) = flows.entry(segment.flow).or_default();
            if segment.syn {
                *first = Some(segment.sequence.wrapping_add(1));
            } else if !segment.payload.is_empty() {
                said.insert(segment.sequence, segment.payload);
            }
        }
        let said = |flow: &Flow| {
            let (first, said) = flows.get(flow)?;
            let first = (*first)?;
            let mut parts: Vec<_> =
                said.iter().map(|(sequence, part)| (sequence.wrapping_sub(first), part)).collect();
            parts.sort_unstable();
            let mut bytes = Vec::new();
            for (at, part) in parts {
                let at = at as usize;
                assert!(at <= bytes.len(), "the capture has a hole at {at} of {flow:?}");
                let known = bytes.len() - at;
                bytes.extend_from_slice(part.get(known..).unwrap_or_default());
            }
            Some(bytes)
        };
        let to_server = flows.keys().filter(|(_, to)| *to == server);
        let both = to_server.filter_map(|flow| {
            Some(Conversation { client: said(flow)?, server: said(&(flow.1, flow.0))? })
        });
        both.collect()
    }
}

/// One TCP segment in IPv4.
struct Segment<'a> {
    flow: Flow,
    sequence: u32,
    syn: bool,
    payload: &'a [u8],
}

impl<'a> Segment<'a> {
    /// None: something else.
    fn parse(frame: &'a [u8]) -> Option<Self> {
        let packet = frame.get(12..)?.strip_prefix(&[0x08, 0x00])?;
        let header = usize::from(*packet.first()? & 0x0f) * 4;
        if packet.get(9) != Some(&6) {
            return None;
        }
        let length = usize::from(u16::from_be_bytes(packet.get(2..4)?.try_into().ok()?));
        // A packet that the kernel has yet to cut into pieces has no length; else a frame may be
        // padded beyond it.
        let packet = if length == 0 { packet } else { packet.get(..length)? };
        let address =
            |at: usize| Some(Ipv4Addr::from(<[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?));
        let (from, to, tcp) = (address(12)?, address(16)?, packet.get(header..)?);
        let port = |at: usize| Some(u16::from_be_bytes(tcp.get(at..at + 2)?.try_into().ok()?));
        let offset = usize::from(*tcp.get(12)? >> 4) * 4;
        Some(Self {
            flow: ((from, port(0)?), (to, port(2)?)),
            sequence: u32::from_be_bytes(tcp.get(4..8)?.try_into().ok()?),
            syn: tcp.get(13)? & 0x02 != 0,
            payload: tcp.get(offset..)?,
        })
    }
}

/// A record of TLS (RFC 8446 section 5.1).
pub struct Record<'a> {
    pub kind: u8,
    pub body: &'a [u8],
}

/// Cuts a stream into records; what cannot be one is an error. The last may be incomplete.
pub fn records(mut bytes: &[u8]) -> Result<Vec<Record<'_>>, String> {
    let mut all = Vec::new();
    while let Some((head, rest)) = bytes.split_first_chunk::<5>() {
        let length = usize::from(u16::from_be_bytes([head[3], head[4]]));
        if !(20..=23).contains(&head[0]) || head[1] != 3 {
            return Err(format!(
                "not a TLS record: {:?}",
                String::from_utf8_lossy(&bytes[..bytes.len().min(64)])
            ));
        }
        let Some((body, rest)) = rest.split_at_checked(length) else { break };
        all.push(Record { kind: head[0], body });
        bytes = rest;
    }
    Ok(all)
}
