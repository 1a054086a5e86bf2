//! Proves that what a process of this user sends reaches the proxy's port.
//!
//! A connection to an address that nobody has (RFC 5737, RFC 3849) is made while this process listens on the
//! proxy's port, and must arrive there with the address that it was meant for. Where the proxy itself listens
//! already, somebody must answer.

use std::fmt;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::SockRef;

/// TEST-NET-1 and its like of IPv6: documentation alone.
const NOBODY: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
];
const PORT: u16 = 4711;
/// A connection of the same machine takes no longer.
const LIMIT: Duration = Duration::from_secs(3);

/// The families for which it was proven.
#[derive(Debug, Default)]
pub struct Proven(Vec<&'static str>);

impl fmt::Display for Proven {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(" and "))
    }
}

#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    #[error(
        "{family} connections are not redirected: one to {to} did not reach port {port} of this pod"
    )]
    NotRedirected { family: &'static str, to: SocketAddr, port: u16 },
    #[error("whether connections are redirected could not be tried: {0}")]
    Socket(io::Error),
    #[error("this pod has neither an IPv4 nor an IPv6 address that it could send from")]
    NoNetwork,
}

/// Looks at every family that this network namespace can send by.
pub fn outbound(port: u16) -> Result<Proven, VerifyError> {
    let mut proven = Proven::default();
    for address in NOBODY {
        let (family, local) = match address {
            IpAddr::V4(_) => ("IPv4", IpAddr::V4(Ipv4Addr::LOCALHOST)),
            IpAddr::V6(_) => ("IPv6", IpAddr::V6(Ipv6Addr::LOCALHOST)),
        };
        if !has_route(address) {
            continue;
        }
        let to = SocketAddr::new(address, PORT);
        let listener = TcpListener::bind(SocketAddr::new(local, port));
        let is_redirected = match listener {
            Ok(listener) => {
                listener.set_nonblocking(true).map_err(VerifyError::Socket)?;
                arrives(&listener, to)
            }
            // The proxy is there already: nobody else answers at that address.
            Err(error) if error.kind() == ErrorKind::AddrInUse => {
                TcpStream::connect_timeout(&to, LIMIT).is_ok()
            }
            Err(error) => return Err(VerifyError::Socket(error)),
        };
        if !is_redirected {
            return Err(VerifyError::NotRedirected { family, to, port });
        }
        proven.0.push(family);
    }
    if proven.0.is_empty() { Err(VerifyError::NoNetwork) } else { Ok(proven) }
}

/// Whether the kernel knows a way: a datagram socket finds one without sending anything.
fn has_route(address: IpAddr) -> bool {
    let any: IpAddr = match address {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = std::net::UdpSocket::bind(SocketAddr::new(any, 0));
    socket.and_then(|socket| socket.connect(SocketAddr::new(address, PORT))).is_ok()
}

fn arrives(listener: &TcpListener, to: SocketAddr) -> bool {
    let began = Instant::now();
    // Redirected, it is there before this returns.
    let Ok(_caller) = TcpStream::connect_timeout(&to, LIMIT) else { return false };
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                let socket = SockRef::from(&stream);
                let original = match to {
                    SocketAddr::V4(_) => socket.original_dst_v4(),
                    SocketAddr::V6(_) => socket.original_dst_v6(),
                };
                if original.ok().and_then(|original| original.as_socket()) == Some(to) {
                    return true;
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let Some(left) = LIMIT.checked_sub(began.elapsed()) else { return false };
                let left = Timespec::try_from(left).ok();
                let mut wanted = [PollFd::new(listener, PollFlags::IN)];
                if !matches!(poll(&mut wanted, left.as_ref()), Ok(1..)) {
                    return false;
                }
            }
            Err(_) => return false,
        }
    }
}
