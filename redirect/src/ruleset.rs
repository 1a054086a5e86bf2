//! What is redirected, as a script for nftables or for iptables.

use std::collections::BTreeSet;
use std::fmt::{self, Write};
use std::net::IpAddr;
use std::str::FromStr;

/// The rules of one pod. The traffic of user `uid`, the proxy's, and what stays on the pod's own addresses is never
/// redirected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ruleset {
    pub outbound_port: u16,
    pub inbound_port: u16,
    pub uid: u32,
    pub skip_inbound: BTreeSet<u16>,
    pub skip_outbound: BTreeSet<u16>,
    pub skip_networks: BTreeSet<Network>,
}

/// An address and how many of its bits are of the network: `10.0.0.0/8`, `fd00::/8`, or one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a network: write it as 10.0.0.0/8 or fd00::/8");
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits.parse::<u8>().map_err(|_| wrong())?)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let all = if address.is_ipv6() { 128 } else { 32 };
        let bits = bits.unwrap_or(all);
        if bits > all {
            return Err(format!("{text:?}: at most {all} bits"));
        }
        Ok(Self { address: masked(address, bits), bits })
    }
}

/// Without the bits that are not the network's.
fn masked(address: IpAddr, bits: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
            IpAddr::V4((v4.to_bits() & mask).into())
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
            IpAddr::V6((v6.to_bits() & mask).into())
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

/// Chains of iptables.
const OUTBOUND: &str = "OUTRIGGER_OUTBOUND";
const INBOUND: &str = "OUTRIGGER_INBOUND";
const WAITING: &str = "OUTRIGGER_WAITING";

impl Ruleset {
    /// One transaction: what was there before goes at the moment at which the new rules come.
    ///
    /// While the proxy is restarted nobody listens on its ports. The kernel would answer a new connection with a
    /// reset; without that answer it asks again after a second. A reset of a connection that exists has a sequence
    /// number, and is sent.
    pub fn nftables(&self) -> String {
        let Self { outbound_port, inbound_port, uid, .. } = self;
        let mut skip_outbound = String::new();
        for (family, of) in [("ip", false), ("ip6", true)] {
            let networks = self.skip_networks.iter().filter(|network| is_v6(network.address) == of);
            let networks: Vec<String> = networks.map(ToString::to_string).collect();
            if !networks.is_empty() {
                let networks = networks.join(", ");
                let _ = writeln!(skip_outbound, "    {family} daddr {{ {networks} }} return");
            }
        }
        if !self.skip_outbound.is_empty() {
            let ports = list(&self.skip_outbound);
            let _ = writeln!(skip_outbound, "    tcp dport {{ {ports} }} return");
        }
        let skip_inbound = list(&self.skip_inbound);
        format!(
            "table inet outrigger\n\
             delete table inet outrigger\n\
             table inet outrigger {{\n  \
               chain outbound {{\n    \
                 type nat hook output priority -100;\n    \
                 meta skuid {uid} return\n    \
                 fib daddr type local return\n\
             {skip_outbound}    \
                 meta l4proto tcp redirect to :{outbound_port}\n  \
               }}\n  \
               chain inbound {{\n    \
                 type nat hook prerouting priority -100;\n    \
                 iif lo return\n    \
                 tcp dport {{ {skip_inbound} }} return\n    \
                 meta l4proto tcp redirect to :{inbound_port}\n  \
               }}\n  \
               chain waiting {{\n    \
                 type filter hook output priority 0;\n    \
                 tcp sport {{ {outbound_port}, {inbound_port} }} tcp flags & (rst | ack) == (rst | ack) tcp sequence 0 drop\n  \
               }}\n\
             }}\n"
        )
    }

    /// The script that takes everything away which [`Ruleset::nftables`] puts there, also where nothing is.
    pub fn remove_nftables() -> String {
        // Adding a table that is there does nothing, and one that is not there can be deleted then.
        "table inet outrigger\ndelete table inet outrigger\n".to_owned()
    }

    /// For `iptables-restore --noflush`, once nothing leads to these chains any more.
    pub fn iptables(&self, v6: bool) -> String {
        let Self { outbound_port, inbound_port, uid, .. } = self;
        let mut text = format!(
            "*nat\n:{OUTBOUND} - [0:0]\n:{INBOUND} - [0:0]\n\
             -A {OUTBOUND} -m owner --uid-owner {uid} -j RETURN\n\
             -A {OUTBOUND} -m addrtype --dst-type LOCAL -j RETURN\n"
        );
        for network in self.skip_networks.iter().filter(|network| is_v6(network.address) == v6) {
            let _ = writeln!(text, "-A {OUTBOUND} -d {network} -j RETURN");
        }
        for port in &self.skip_outbound {
            let _ = writeln!(text, "-A {OUTBOUND} -p tcp --dport {port} -j RETURN");
        }
        let _ = write!(
            text,
            "-A {OUTBOUND} -p tcp -j REDIRECT --to-ports {outbound_port}\n\
             -A {INBOUND} -i lo -j RETURN\n"
        );
        for port in &self.skip_inbound {
            let _ = writeln!(text, "-A {INBOUND} -p tcp --dport {port} -j RETURN");
        }
        let _ = write!(
            text,
            "-A {INBOUND} -p tcp -j REDIRECT --to-ports {inbound_port}\n\
             -A OUTPUT -j {OUTBOUND}\n-A PREROUTING -j {INBOUND}\nCOMMIT\n\
             *filter\n:{WAITING} - [0:0]\n"
        );
        for port in [outbound_port, inbound_port] {
            // Offset 4 of the TCP header is its sequence number.
            let at = if v6 { "44&0xFFFFFFFF=0" } else { "0>>22&0x3C@4&0xFFFFFFFF=0" };
            let _ = writeln!(
                text,
                "-A {WAITING} -p tcp --sport {port} --tcp-flags RST,ACK RST,ACK -m u32 --u32 \"{at}\" -j DROP"
            );
        }
        let _ = write!(text, "-A OUTPUT -j {WAITING}\nCOMMIT\n");
        text
    }

    /// Arguments of iptables that succeed where rules are in force.
    pub(crate) const LIST_IPTABLES: [&str; 6] = ["--wait", "-t", "nat", "-n", "-L", OUTBOUND];

    /// Arguments of iptables that take everything away which [`Ruleset::iptables`] puts there.
    pub fn unhook_iptables() -> Vec<Vec<&'static str>> {
        let hooks = [
            ("nat", "OUTPUT", OUTBOUND),
            ("nat", "PREROUTING", INBOUND),
            ("filter", "OUTPUT", WAITING),
        ];
        let mut commands = Vec::new();
        for (table, hook, chain) in hooks {
            commands.push(vec!["--wait", "-t", table, "-D", hook, "-j", chain]);
            commands.push(vec!["--wait", "-t", table, "-F", chain]);
            commands.push(vec!["--wait", "-t", table, "-X", chain]);
        }
        commands
    }
}

/// The family of an address, as iptables keeps them apart.
fn is_v6(address: IpAddr) -> bool {
    address.is_ipv6()
}

fn list(ports: &BTreeSet<u16>) -> String {
    let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
    ports.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ruleset() -> Ruleset {
        Ruleset {
            outbound_port: 4740,
            inbound_port: 4743,
            uid: 4747,
            skip_inbound: [4743, 4791, 22].into(),
            skip_outbound: [3306].into(),
            skip_networks: ["10.1.2.3/8", "169.254.169.254", "fd00::1/8"]
                .map(|text| text.parse().unwrap())
                .into(),
        }
    }

    #[test]
    fn networks_are_read_and_cut_to_their_bits() {
        for (text, want) in [
            ("10.1.2.3/8", Ok("10.0.0.0/8")),
            ("10.1.2.3", Ok("10.1.2.3/32")),
            ("0.0.0.0/0", Ok("0.0.0.0/0")),
            ("fd00:1::9/8", Ok("fd00::/8")),
            ("::/0", Ok("::/0")),
            ("::1", Ok("::1/128")),
            ("10.0.0.0/33", Err("at most 32 bits")),
            ("10.0.0/8", Err("is not a network")),
            ("10.0.0.0/x", Err("is not a network")),
            ("10.0.0.0/8; drop", Err("is not a network")),
            ("", Err("is not a network")),
        ] {
            match (text.parse::<Network>(), want) {
                (Ok(network), Ok(want)) => assert_eq!(network.to_string(), want),
                (Err(problem), Err(want)) => assert!(problem.contains(want), "{problem}"),
                (got, want) => panic!("{text}: {got:?} and not {want:?}"),
            }
        }
    }

    #[test]
    fn what_is_skipped_comes_before_what_is_redirected() {
        let text = ruleset().nftables();
        let at = |part: &str| text.find(part).unwrap_or_else(|| panic!("{part} in {text}"));
        assert!(at("meta skuid 4747 return") < at("redirect to :4740"));
        assert!(at("ip daddr { 10.0.0.0/8, 169.254.169.254/32 } return") < at("redirect to :4740"));
        assert!(at("ip6 daddr { fd00::/8 } return") < at("redirect to :4740"));
        assert!(at("tcp dport { 3306 } return") < at("redirect to :4740"));
        assert!(at("tcp dport { 22, 4743, 4791 } return") < at("redirect to :4743"));
        let (v4, v6) = (ruleset().iptables(false), ruleset().iptables(true));
        assert!(v4.contains("-d 10.0.0.0/8 -j RETURN") && !v4.contains("fd00"), "{v4}");
        assert!(v6.contains("-d fd00::/8 -j RETURN") && !v6.contains("10.0.0.0"), "{v6}");
    }
}
