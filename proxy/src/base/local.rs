//! Which addresses are this host's own, as its network namespace sees them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

/// The one form of an address: no IPv4 inside IPv6, and loopback for the unspecified one, which is where a
/// connection to it goes.
pub fn canonical(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    }
}

/// Whether the address is one of this host's: a socket can be bound to no other (unless
/// `net.ipv4.ip_nonlocal_bind` is set). Costs three system calls, except for loopback.
pub fn is_own(ip: IpAddr) -> bool {
    let ip = canonical(ip);
    let nobodys = ip.is_multicast() || ip == IpAddr::V4(Ipv4Addr::BROADCAST);
    ip.is_loopback() || !nobodys && UdpSocket::bind(SocketAddr::new(ip, 0)).is_ok()
}

/// Whether a connection to `address` would reach a socket that listens at `listener`.
pub fn reaches(listener: SocketAddr, address: SocketAddr) -> bool {
    if listener.port() != address.port() {
        return false;
    }
    let ip = canonical(address.ip());
    match listener.ip().is_unspecified() {
        true => is_own(ip),
        false => canonical(listener.ip()) == ip,
    }
}

/// Whether an address lies where only some can reach it, as admin servers do.
pub fn is_private(ip: IpAddr) -> bool {
    match canonical(ip) {
        IpAddr::V4(ip) => {
            let [a, b, ..] = ip.octets();
            let shared = a == 100 && (64..128).contains(&b);
            ip.is_loopback() || ip.is_private() || ip.is_link_local() || shared
        }
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_is_known_however_its_address_is_spelled() {
        let everywhere: SocketAddr = "0.0.0.0:4740".parse().unwrap();
        let loopback: SocketAddr = "127.0.0.1:4740".parse().unwrap();
        for (address, at_everywhere, at_loopback) in [
            ("127.0.0.1:4740", true, true),
            ("0.0.0.0:4740", true, true),
            ("[::ffff:127.0.0.1]:4740", true, true),
            ("[::ffff:0.0.0.0]:4740", true, true),
            ("127.0.0.2:4740", true, false),
            ("[::1]:4740", true, false),
            ("127.0.0.1:4741", false, false),
            ("192.0.2.1:4740", false, false),
        ] {
            let to: SocketAddr = address.parse().unwrap();
            assert_eq!(reaches(everywhere, to), at_everywhere, "{address}");
            assert_eq!(reaches(loopback, to), at_loopback, "{address}");
        }
        assert!(reaches("[::]:1".parse().unwrap(), "127.0.0.1:1".parse().unwrap()));
    }

    #[test]
    fn own_addresses_are_told_from_others() {
        assert!(is_own("127.0.0.9".parse().unwrap()));
        assert!(is_own("0.0.0.0".parse().unwrap()));
        for other in ["192.0.2.1", "2001:db8::1", "224.0.0.1", "ff02::1", "255.255.255.255"] {
            assert!(!is_own(other.parse().unwrap()), "{other}");
        }
        for (ip, private) in [("10.1.2.3", true), ("169.254.169.254", true), ("1.1.1.1", false)] {
            assert_eq!(is_private(ip.parse().unwrap()), private, "{ip}");
        }
    }
}
