//! Which addresses are no place where a service of another machine could be.
//!
//! An endpoint is dialled by anyone who calls the service, from wherever that is. A loopback address means each
//! caller's own machine, a link-local one whatever is beside the caller: nobody may be sent there by somebody
//! else's word.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What is special about an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Special {
    /// 127.0.0.0/8, `::1` (RFC 1122 section 3.2.1.3, RFC 4291 section 2.5.3).
    Loopback,
    /// 169.254.0.0/16, `fe80::/10` (RFC 3927, RFC 4291 section 2.5.6).
    LinkLocal,
    /// 224.0.0.0/4, `ff00::/8`.
    Multicast,
    /// 0.0.0.0/8, which Linux takes for the machine itself, and `::` (RFC 1122 section 3.2.1.3).
    Unspecified,
    /// 240.0.0.0/4, which is reserved, with 255.255.255.255, the broadcast address (RFC 1112 section 4).
    Broadcast,
}

/// Which endpoints with special addresses a source of configuration is trusted with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum LocalEndpoints {
    /// None.
    #[default]
    Refuse,
    /// Loopback: the whole mesh is on one machine.
    Loopback,
    /// Loopback and link-local.
    Allow,
}

impl LocalEndpoints {
    /// Whether an endpoint may have this address, and why not.
    pub fn check(self, ip: IpAddr) -> Result<(), Special> {
        match (special(ip), self) {
            (None, _)
            | (Some(Special::Loopback), Self::Loopback | Self::Allow)
            | (Some(Special::LinkLocal), Self::Allow) => Ok(()),
            (Some(special), _) => Err(special),
        }
    }
}

/// What is special about an address, however it is spelled: an IPv4 address within an IPv6 one
/// (`::ffff:127.0.0.1`, `::127.0.0.1`, `64:ff9b::7f00:1`, `2002:7f00:1::`) counts as that.
pub fn special(ip: IpAddr) -> Option<Special> {
    match ip {
        IpAddr::V4(v4) => special_v4(v4),
        IpAddr::V6(v6) => special_v6(v6).or_else(|| embedded(v6).and_then(special_v4)),
    }
}

fn special_v4(ip: Ipv4Addr) -> Option<Special> {
    match ip.octets() {
        [127, ..] => Some(Special::Loopback),
        [169, 254, ..] => Some(Special::LinkLocal),
        [0, ..] => Some(Special::Unspecified),
        [224..=239, ..] => Some(Special::Multicast),
        [240..=255, ..] => Some(Special::Broadcast),
        _ => None,
    }
}

fn special_v6(ip: Ipv6Addr) -> Option<Special> {
    if ip.is_unspecified() {
        return Some(Special::Unspecified);
    }
    if ip.is_loopback() {
        return Some(Special::Loopback);
    }
    match ip.segments()[0] {
        0xfe80..=0xfebf => Some(Special::LinkLocal),
        0xff00..=0xffff => Some(Special::Multicast),
        _ => None,
    }
}

/// The IPv4 address that an IPv6 one carries: mapped and compatible (RFC 4291 section 2.5.5), translated
/// (RFC 6052 section 2.1, RFC 2765 section 2.1), 6to4 (RFC 3056 section 2).
fn embedded(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    let octets = ip.octets();
    let tail = || Ipv4Addr::new(octets[12], octets[13], octets[14], octets[15]);
    match ip.segments() {
        [0, 0, 0, 0, 0, 0 | 0xffff, ..]
        | [0, 0, 0, 0, 0xffff, 0, ..]
        | [0x64, 0xff9b, 0, 0, 0, 0, ..] => Some(tail()),
        [0x2002, ..] => Some(Ipv4Addr::new(octets[2], octets[3], octets[4], octets[5])),
        _ => None,
    }
}

impl fmt::Display for Special {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Loopback => "a loopback address",
            Self::LinkLocal => "a link-local address",
            Self::Multicast => "a multicast address",
            Self::Unspecified => "an unspecified address",
            Self::Broadcast => "a broadcast or reserved address",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_what_it_is_in_every_spelling() {
        use Special::{Broadcast, LinkLocal, Loopback, Multicast, Unspecified};
        for (text, expected) in [
            ("127.0.0.1", Some(Loopback)),
            ("127.255.255.254", Some(Loopback)),
            ("::1", Some(Loopback)),
            ("::ffff:127.0.0.1", Some(Loopback)),
            ("::ffff:7f00:1", Some(Loopback)),
            ("::127.0.0.1", Some(Loopback)),
            ("::ffff:0:127.0.0.1", Some(Loopback)),
            ("64:ff9b::127.0.0.1", Some(Loopback)),
            ("2002:7f00:1::", Some(Loopback)),
            ("169.254.169.254", Some(LinkLocal)),
            ("::ffff:169.254.169.254", Some(LinkLocal)),
            ("fe80::1", Some(LinkLocal)),
            ("febf::1", Some(LinkLocal)),
            ("224.0.0.1", Some(Multicast)),
            ("::ffff:239.1.2.3", Some(Multicast)),
            ("ff02::1", Some(Multicast)),
            ("0.0.0.0", Some(Unspecified)),
            ("0.1.2.3", Some(Unspecified)),
            ("::", Some(Unspecified)),
            ("::ffff:0.0.0.0", Some(Unspecified)),
            ("255.255.255.255", Some(Broadcast)),
            ("::ffff:255.255.255.255", Some(Broadcast)),
            ("240.0.0.1", Some(Broadcast)),
            ("10.0.0.1", None),
            ("::ffff:10.0.0.1", None),
            ("192.168.1.255", None),
            ("fd00::1", None),
            ("fec0::1", None),
            ("2001:db8::7f00:1", None),
            ("126.255.255.255", None),
            ("169.253.0.1", None),
        ] {
            assert_eq!(special(text.parse().unwrap()), expected, "{text}");
        }
    }

    #[test]
    fn trust_covers_what_it_names_and_nothing_that_cannot_be_dialled() {
        for (text, loopback, allow) in [
            ("10.0.0.1", true, true),
            ("::ffff:127.0.0.1", true, true),
            ("169.254.20.10", false, true),
            ("fe80::1", false, true),
            ("0.0.0.0", false, false),
            ("224.0.0.1", false, false),
            ("255.255.255.255", false, false),
        ] {
            let ip: IpAddr = text.parse().unwrap();
            assert_eq!(LocalEndpoints::Loopback.check(ip).is_ok(), loopback, "{text}");
            assert_eq!(LocalEndpoints::Allow.check(ip).is_ok(), allow, "{text}");
            assert_eq!(LocalEndpoints::Refuse.check(ip).is_ok(), text == "10.0.0.1", "{text}");
        }
    }
}
