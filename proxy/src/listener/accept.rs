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

use crate::base::settings::Settings;
use crate::listener::role::Listener;
use crate::listener::slot::Slot;
use crate::proxy::worker::Load;
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
    pub listener: Arc<Listener>,
    /// Of a listener with one destination.
    pub destination: Option<Authority>,
    pub slot: Slot,
}

/// A listener's socket.
pub struct Bound {
    socket: TcpListener,
    listener: Arc<Listener>,
    /// Its one destination.
    destination: Option<Authority>,
}

/// A worker as the accepting side sees it.
#[derive(Clone)]
pub struct WorkerHandle {
    pub load: Arc<Load>,
    pub queue: mpsc::UnboundedSender<Accepted>,
}

/// Opens every listener of `settings`.
pub fn bind(settings: &Settings) -> io::Result<Vec<Bound>> {
    let open = |address, listener, destination| {
        Ok::<_, io::Error>(Bound { socket: listen(address)?, listener, destination })
    };
    let mut all = vec![
        open(settings.outbound, Listener::app(settings), None)?,
        open(settings.inbound, Listener::mesh(settings), None)?,
    ];
    for fixed in &settings.listeners {
        let destination = Some(fixed.destination.clone());
        all.push(open(fixed.listen, Listener::fixed(settings), destination)?);
    }
    Ok(all)
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
struct Listening(Arc<Proxy>, Phase);

impl Drop for Listening {
    fn drop(&mut self) {
        self.0.lifecycle.stopped_listening(self.1);
    }
}

/// Accepts until the proxy closes.
pub async fn accept(proxy: Arc<Proxy>, bound: Bound, workers: Vec<WorkerHandle>) {
    let Bound { socket, listener, destination } = bound;
    let ends = listener.limits.ends;
    proxy.lifecycle.listens(ends);
    // Dropped after the listener: the process ends when nothing can come in any more.
    let _listening = Listening(Arc::clone(&proxy), ends);
    // tokio's own listener would register each socket with this thread too, only to forget it at once.
    #[expect(unsafe_code, reason = "so says tokio of descriptors")]
    // SAFETY: the listener is its descriptor's only owner and has the same one until it is dropped.
    let registered = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) };
    let socket = match registered {
        Ok(socket) => socket,
        Err(error) => {
            warn!(%error, "a listener is lost");
            return;
        }
    };
    loop {
        tokio::select! {
            accepted = socket.async_io(Interest::READABLE, TcpListener::accept) => match accepted {
                Ok((stream, remote)) => hand_over(&proxy, (stream, remote), &listener, destination.as_ref(), &workers),
                Err(error) => {
                    warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(PAUSE).await;
                }
            },
            () = proxy.lifecycle.reached(ends) => {
                // With the socket the kernel would end what nobody has accepted.
                // No more than it holds: others may go on to come.
                for _ in 0..BACKLOG {
                    let Ok((stream, remote)) = socket.get_ref().accept() else { break };
                    hand_over(&proxy, (stream, remote), &listener, destination.as_ref(), &workers);
                }
                info!(direction = listener.direction().as_str(), "stopped accepting");
                return;
            }
        }
    }
}

fn hand_over(
    proxy: &Arc<Proxy>,
    (stream, remote): (TcpStream, SocketAddr),
    listener: &Arc<Listener>,
    destination: Option<&Authority>,
    workers: &[WorkerHandle],
) {
    let Some(worker) = workers.iter().min_by_key(|worker| worker.load.total()) else { return };
    let Some(slot) = Slot::take(proxy, &worker.load, &listener.limits) else { return };
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
    let (listener, destination) = (Arc::clone(listener), destination.cloned());
    let _ = worker.queue.send(Accepted { stream, remote, listener, destination, slot });
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
