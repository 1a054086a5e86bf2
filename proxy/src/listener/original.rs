//! Where a redirected connection was going before it was redirected.

use std::net::SocketAddr;

use socket2::SockRef;
use tokio::net::TcpStream;

use crate::base::settings::Settings;

/// `SO_ORIGINAL_DST`, unless the connection was made to this proxy itself.
pub fn original_destination(stream: &TcpStream, settings: &Settings) -> Option<SocketAddr> {
    let local = stream.local_addr().ok()?;
    let socket = SockRef::from(stream);
    let original = match local {
        SocketAddr::V4(_) => socket.original_dst_v4(),
        // A dual-stack listener sees IPv4 as mapped addresses.
        SocketAddr::V6(_) => socket.original_dst_v6().or_else(|_| socket.original_dst_v4()),
    };
    let original = original.ok()?.as_socket()?;
    let original = SocketAddr::new(original.ip().to_canonical(), original.port());
    let local = SocketAddr::new(local.ip().to_canonical(), local.port());
    (original != local && !settings.is_own_listener(original)).then_some(original)
}
