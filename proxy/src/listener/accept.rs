//! Listening sockets, and which worker gets a connection.
//!
//! With several workers one thread accepts and hands each socket to the least busy: SO_REUSEPORT
//! would tie a few long-lived HTTP/2 connections to one worker for life.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use outrigger_core::name::Authority;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tracing::{info, warn};

use crate::base::direction::Direction;
use crate::base::settings::Settings;
use crate::proxy::slot::{Load, Slot};
use crate::proxy::{Phase, Proxy};

/// Connections that the kernel holds until they are accepted.
const BACKLOG: i32 = 4_096;
/// Pause after an error such as "too many open files", which a new attempt at once would only repeat.
const PAUSE: Duration = Duration::from_millis(50);

/// After so long without a byte the kernel asks whether the other host is still there, and so often
/// again; it gives up after nine questions without an answer (Linux's tcp_keepalive_probes).
const SILENT: Duration = Duration::from_secs(60);
const PROBE: Duration = Duration::from_secs(10);

/// A connection on its way to a worker.
pub struct Accepted {
    pub stream: TcpStream,
    pub remote: SocketAddr,
    pub via: Via,
    pub slot: Slot,
}

/// Which listener it came in by.
#[derive(Clone)]
pub enum Via {
    Outbound,
    Inbound,
    Static(Authority),
}

impl Via {
    fn direction(&self) -> Direction {
        match self {
            Self::Inbound => Direction::Inbound,
            Self::Outbound | Self::Static(_) => Direction::Outbound,
        }
    }
}

/// A worker as the accepting side sees it.
#[derive(Clone)]
pub struct WorkerHandle {
    pub load: Arc<Load>,
    pub queue: mpsc::UnboundedSender<Accepted>,
}

/// Opens every listener of `settings`.
pub fn bind(settings: &Settings) -> io::Result<Vec<(TcpListener, Via)>> {
    let mut all = vec![(settings.outbound, Via::Outbound), (settings.inbound, Via::Inbound)];
    for listener in &settings.listeners {
        all.push((listener.listen, Via::Static(listener.destination.clone())));
    }
    all.into_iter().map(|(address, via)| Ok((listen(address)?, via))).collect()
}

/// A non-blocking listener on `address`; the error names it. `[::]` is every address of both families, or of
/// IPv4 where the kernel has no IPv6.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let open = |address: SocketAddr| {
        let domain = socket2::Domain::for_address(address);
        let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Ok(TcpListener::from(socket))
    };
    let opened = open(address).or_else(|error: io::Error| match without_ipv6(address, &error) {
        Some(address) => open(address),
        None => Err(error),
    });
    opened.map_err(|e: io::Error| {
        io::Error::new(e.kind(), format!("cannot listen on {address}: {e}"))
    })
}

/// What to listen on instead, where there is no IPv6 for `[::]`.
fn without_ipv6(address: SocketAddr, error: &io::Error) -> Option<SocketAddr> {
    let none = error.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error());
    let everywhere = address.is_ipv6() && address.ip().is_unspecified();
    (none && everywhere).then(|| SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port())))
}

/// Counts a listener until its socket is closed.
struct Listening(Arc<Proxy>, Direction);

impl Drop for Listening {
    fn drop(&mut self) {
        self.0.lifecycle.stopped_listening(self.1);
    }
}

/// Accepts until the proxy closes.
pub async fn accept(proxy: Arc<Proxy>, listener: TcpListener, via: Via, seats: Vec<WorkerHandle>) {
    let direction = via.direction();
    proxy.lifecycle.listens(direction);
    // Dropped after the listener: the process ends when nothing can come in any more.
    let _listening = Listening(Arc::clone(&proxy), direction);
    // tokio's own listener would register each socket with this thread too, only to forget it at once.
    #[expect(unsafe_code, reason = "so says tokio of descriptors")]
    // SAFETY: the listener is its descriptor's only owner and has the same one until it is dropped.
    let registered = unsafe { AsyncFd::register_with_interest(listener, Interest::READABLE) };
    let listener = match registered {
        Ok(listener) => listener,
        Err(error) => {
            warn!(%error, "a listener is lost");
            return;
        }
    };
    loop {
        tokio::select! {
            accepted = listener.async_io(Interest::READABLE, TcpListener::accept) => match accepted {
                Ok((stream, remote)) => hand_over(&proxy, stream, remote, &via, &seats),
                Err(error) => {
                    warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(PAUSE).await;
                }
            },
            () = proxy.lifecycle.reached(Phase::ending(direction)) => {
                // With the socket the kernel would end what nobody has accepted.
                // No more than it holds: others may go on to come.
                for _ in 0..BACKLOG {
                    let Ok((stream, remote)) = listener.get_ref().accept() else { break };
                    hand_over(&proxy, stream, remote, &via, &seats);
                }
                info!(direction = direction.as_str(), "stopped accepting");
                return;
            }
        }
    }
}

fn hand_over(
    proxy: &Arc<Proxy>,
    stream: TcpStream,
    remote: SocketAddr,
    via: &Via,
    seats: &[WorkerHandle],
) {
    let Some(seat) = seats.iter().min_by_key(|seat| seat.load.total()) else { return };
    let Some(slot) = Slot::take(proxy, &seat.load, via.direction()) else { return };
    if let Err(error) = stream.set_nonblocking(true) {
        warn!(%error, "a connection is lost");
        return;
    }
    // Small answers must not wait for the peer's acknowledgement.
    let _ = stream.set_nodelay(true);
    // A host that vanished is noticed although nothing is sent; without, its place is held for ever.
    let keepalive = TcpKeepalive::new().with_time(SILENT).with_interval(PROBE);
    let _ = SockRef::from(&stream).set_tcp_keepalive(&keepalive);
    // Fails only when the worker has ended, at exit.
    let _ = seat.queue.send(Accepted { stream, remote, via: via.clone(), slot });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_address_is_those_of_ipv4_where_there_is_no_ipv6() {
        let none = io::Error::from_raw_os_error(rustix::io::Errno::AFNOSUPPORT.raw_os_error());
        let taken = io::Error::from_raw_os_error(rustix::io::Errno::ADDRINUSE.raw_os_error());
        let everywhere: SocketAddr = "[::]:4743".parse().unwrap();
        assert_eq!(without_ipv6(everywhere, &none), "0.0.0.0:4743".parse().ok());
        assert_eq!(without_ipv6(everywhere, &taken), None);
        assert_eq!(without_ipv6("[::1]:4743".parse().unwrap(), &none), None);
        assert_eq!(without_ipv6("0.0.0.0:1".parse().unwrap(), &none), None);
    }
}
