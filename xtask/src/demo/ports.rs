//! Free ports on loopback.
//!
//! A proxy is told its ports and registers them, so they must be known before it starts. They are
//! taken below the range from which the kernel picks the local ports of connections: there, a port
//! found free would soon be somebody's.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

/// Where the search begins; below are ports that services are known by.
const LOWEST: u16 = 20_000;
/// The usual beginning of the kernel's own range.
const USUAL_LOCAL: u16 = 32_768;

#[derive(Debug)]
pub(crate) struct Ports {
    next: u16,
    end: u16,
}

impl Ports {
    pub(crate) fn new() -> Self {
        let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range");
        let first = range.ok().and_then(|text| text.split_whitespace().next()?.parse().ok());
        let end = first.unwrap_or(USUAL_LOCAL).max(LOWEST + 1_000);
        // Two demos at one time begin at different places.
        let span = u32::from(end - LOWEST);
        let offset = std::process::id().wrapping_mul(97) % span;
        Self { next: LOWEST + u16::try_from(offset).unwrap_or(0), end }
    }

    /// A port that nobody listens on, never the same twice in a row of thousands.
    pub(crate) fn free(&mut self) -> io::Result<SocketAddr> {
        for _ in LOWEST..self.end {
            let port = self.next;
            self.next = if port + 1 < self.end { port + 1 } else { LOWEST };
            if is_free(port) {
                return Ok(loopback(port));
            }
        }
        Err(io::Error::other(format!("no free port between {LOWEST} and {}", self.end)))
    }
}

pub(crate) fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

pub(crate) fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_ports_differ_and_can_be_bound() {
        let mut ports = Ports::new();
        let (one, two) = (ports.free().unwrap(), ports.free().unwrap());
        assert_ne!(one, two);
        assert!(TcpListener::bind(one).is_ok());
    }
}
