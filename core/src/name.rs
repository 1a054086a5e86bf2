//! Names of destinations and endpoints, and the authority that an app dials.
//!
//! Parsing is the check: a value of these types is well formed.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use crate::error::FieldError;

/// The longest DNS label (RFC 1035 section 2.3.4), which Kubernetes takes for its names.
pub const MAX_LABEL: usize = 63;
/// The longest DNS name in text form (RFC 1035 section 2.3.4).
pub const MAX_HOST: usize = 253;

/// On a request that a proxy passes on to where the mesh has no service: anyone who is not to be reached through
/// a proxy, as admin servers are not, knows by it.
pub const PROXIED: &str = "x-outrigger-proxied";

/// What the service part of an ExternalService's name begins with: no Service's name holds a colon.
const EXTERNAL: &str = "external:";

/// Canonical name of a destination: `<namespace>/<service>:<port>`, with `@<caller namespace>`
/// where a route in the caller's namespace replaces the producer's. That of an ExternalService is
/// `<namespace>/external:<name>:<port>`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DestinationName {
    pub namespace: String,
    pub service: String,
    pub port: u16,
    /// The caller's namespace, only where a consumer route exists.
    pub consumer: Option<String>,
}

impl DestinationName {
    pub fn new(
        namespace: impl Into<String>,
        service: impl Into<String>,
        port: u16,
    ) -> Result<Self, FieldError> {
        let name =
            Self { namespace: namespace.into(), service: service.into(), port, consumer: None };
        check_label(&name.namespace).map_err(|e| e.under("namespace"))?;
        check_label(&name.service).map_err(|e| e.under("name"))?;
        if port == 0 {
            return Err(FieldError::at("port", "must be between 1 and 65535"));
        }
        Ok(name)
    }

    /// Of an ExternalService.
    pub fn external(
        namespace: impl Into<String>,
        name: &str,
        port: u16,
    ) -> Result<Self, FieldError> {
        check_subdomain(name).map_err(|e| e.under("name"))?;
        let plain = Self::new(namespace, "external", port)?;
        Ok(Self { service: external_service(name), ..plain })
    }

    /// Whether it lies outside the mesh.
    pub fn is_external(&self) -> bool {
        external_name(&self.service).is_some()
    }

    /// The same service as seen from `namespace`'s own routes.
    #[must_use]
    pub fn for_consumer(mut self, namespace: impl Into<String>) -> Self {
        self.consumer = Some(namespace.into());
        self
    }

    /// The service itself, no matter who calls: what endpoints and metrics are keyed by.
    #[must_use]
    pub fn without_consumer(&self) -> Self {
        Self { consumer: None, ..self.clone() }
    }
}

impl fmt::Display for DestinationName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}:{}", self.namespace, self.service, self.port)?;
        match &self.consumer {
            Some(namespace) => write!(f, "@{namespace}"),
            None => Ok(()),
        }
    }
}

impl FromStr for DestinationName {
    type Err = FieldError;

    fn from_str(text: &str) -> Result<Self, FieldError> {
        let wrong = || {
            FieldError::here(format!("{text:?} is not a destination name (namespace/service:port)"))
        };
        let (name, consumer) = match text.split_once('@') {
            Some((name, consumer)) => {
                check_label(consumer)?;
                (name, Some(consumer.to_owned()))
            }
            None => (text, None),
        };
        let (namespace, rest) = name.split_once('/').ok_or_else(wrong)?;
        let (service, port) = rest.rsplit_once(':').ok_or_else(wrong)?;
        let port = parse_port(port).ok_or_else(wrong)?;
        let mut name = match service.strip_prefix(EXTERNAL) {
            Some(external) => Self::external(namespace, external, port)?,
            None => Self::new(namespace, service, port)?,
        };
        name.consumer = consumer;
        Ok(name)
    }
}

/// The service part of an ExternalService's destinations.
pub fn external_service(name: &str) -> String {
    format!("{EXTERNAL}{name}")
}

/// The ExternalService that a service part names, if it is one's.
pub fn external_name(service: &str) -> Option<&str> {
    service.strip_prefix(EXTERNAL)
}

/// `<workload uid>:<port>`: an endpoint keeps its id when its address changes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EndpointId {
    pub workload: String,
    pub port: u16,
}

impl EndpointId {
    /// `workload` is a Kubernetes uid, a registered workload's `namespace.name`, or for a
    /// hand-written endpoint its address; it holds no `/`.
    pub fn new(workload: impl Into<String>, port: u16) -> Result<Self, FieldError> {
        let workload = workload.into();
        if workload.is_empty() || workload.contains('/') || workload.len() > MAX_HOST {
            return Err(FieldError::here(format!("{workload:?} is not a workload uid")));
        }
        if port == 0 {
            return Err(FieldError::at("port", "must be between 1 and 65535"));
        }
        Ok(Self { workload, port })
    }
}

impl fmt::Display for EndpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.workload, self.port)
    }
}

impl FromStr for EndpointId {
    type Err = FieldError;

    fn from_str(text: &str) -> Result<Self, FieldError> {
        let (workload, port) = text
            .rsplit_once(':')
            .and_then(|(workload, port)| Some((workload, parse_port(port)?)))
            .ok_or_else(|| {
                FieldError::here(format!("{text:?} is not an endpoint id (uid:port)"))
            })?;
        Self::new(workload, port)
    }
}

/// What an app dials: a lower-case host or an IP address, and an explicit port. Its text form is
/// the name that a proxy subscribes to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Authority {
    pub host: Host,
    pub port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Host {
    /// Lower case, without a final dot.
    Name(String),
    Ip(IpAddr),
}

impl Authority {
    /// Parses `host`, `host:port`, `v4:port`, `[v6]:port`; `default_port` fills a missing port.
    /// A user-info part (`user@`) is refused.
    pub fn parse(text: &str, default_port: Option<u16>) -> Result<Self, FieldError> {
        let wrong = |why: &str| FieldError::here(format!("{text:?} is not an authority: {why}"));
        // An empty port is the default one (RFC 3986 section 3.2.3).
        let given = text.strip_suffix(':').filter(|_| default_port.is_some()).unwrap_or(text);
        let (host, port) = split_port(given).ok_or_else(|| wrong("bad port"))?;
        let port = port.or(default_port).ok_or_else(|| wrong("it has no port"))?;
        let address = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Some(v6) => Some(IpAddr::V6(v6.parse().map_err(|_| wrong("bad IPv6 address"))?)),
            None => host.strip_suffix('.').unwrap_or(host).parse().ok(),
        };
        let host = if let Some(address) = address {
            // One address has one spelling.
            Host::Ip(address.to_canonical())
        } else {
            let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
            if host.is_empty() || host.len() > MAX_HOST {
                return Err(wrong("the host must have 1 to 253 characters"));
            }
            if !host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_')) {
                return Err(wrong("the host may hold letters, digits, '-', '.' and '_'"));
            }
            Host::Name(host)
        };
        Ok(Self { host, port })
    }

    /// A short name (no dot) is a service of the caller's own namespace.
    #[must_use]
    pub fn in_namespace(self, namespace: &str) -> Self {
        match self.host {
            Host::Name(name) if !name.contains('.') && name != "localhost" => {
                Self { host: Host::Name(format!("{name}.{namespace}")), port: self.port }
            }
            _ => self,
        }
    }
}

impl From<SocketAddr> for Authority {
    fn from(address: SocketAddr) -> Self {
        Self { host: Host::Ip(address.ip().to_canonical()), port: address.port() }
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Name(name) => write!(f, "{name}:{}", self.port),
            Host::Ip(ip) => write!(f, "{}", SocketAddr::new(*ip, self.port)),
        }
    }
}

/// Splits a trailing `:port` off; `None` when there is one and it is not a port.
fn split_port(text: &str) -> Option<(&str, Option<u16>)> {
    let after_bracket = text.rfind(']').map_or(0, |at| at + 1);
    match text[after_bracket..].rfind(':') {
        // An unbracketed IPv6 address has several colons and no port.
        Some(_) if after_bracket == 0 && text.matches(':').count() > 1 => Some((text, None)),
        Some(at) => {
            let at = after_bracket + at;
            Some((&text[..at], Some(parse_port(&text[at + 1..])?)))
        }
        None => Some((text, None)),
    }
}

fn parse_port(text: &str) -> Option<u16> {
    // `u16::from_str` takes a leading `+`, which no URI allows, and zeros without end, which would be kept with the host.
    if text.starts_with('+') || text.len() > 5 {
        return None;
    }
    text.parse().ok().filter(|port| *port != 0)
}

/// Whether the text is a host with an optional port and nothing else, so that everybody who reads it finds the
/// same host: labels of letters, digits, `-` and `_` joined by dots (a final one may follow), an IPv4 address,
/// or an IPv6 address in brackets; of the port 1 to 65535, and it may be empty (RFC 9110 section 7.2, RFC
/// 3986 section 3.2).
pub fn is_authority(text: &[u8]) -> bool {
    if text.starts_with(b"[") {
        return is_bracketed(text);
    }
    let (mut before, mut host) = (b'.', text.len());
    for (at, &byte) in text.iter().enumerate() {
        if !IN_LABEL[usize::from(byte)] {
            match byte {
                b'.' if before != b'.' => {}
                b':' => {
                    host = at;
                    break;
                }
                _ => return false,
            }
        }
        before = byte;
    }
    (1..=MAX_HOST + 1).contains(&host) && is_port_or_nothing(&text[host..])
}

/// An IPv6 address in brackets, with an optional port.
fn is_bracketed(text: &[u8]) -> bool {
    let Some(end) = text.iter().rposition(|byte| *byte == b']') else { return false };
    let address = std::str::from_utf8(&text[1..end]).ok();
    address.is_some_and(|address| address.parse::<Ipv6Addr>().is_ok())
        && is_port_or_nothing(&text[end + 1..])
}

/// Behind a host.
fn is_port_or_nothing(text: &[u8]) -> bool {
    let number = |port| std::str::from_utf8(port).ok().and_then(parse_port).is_some();
    match text {
        [] | [b':'] => true,
        [b':', port @ ..] => number(port),
        _ => false,
    }
}

/// The bytes of a host's labels. A table, since the host of every request is looked at.
const IN_LABEL: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < table.len() {
        let at = byte as u8;
        table[byte] = at.is_ascii_alphanumeric() || at == b'-' || at == b'_';
        byte += 1;
    }
    table
};

/// RFC 1123 label: what Kubernetes accepts as the name of a namespace or service.
pub fn check_label(text: &str) -> Result<(), FieldError> {
    let ok = !text.is_empty()
        && text.len() <= MAX_LABEL
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-');
    if ok {
        return Ok(());
    }
    Err(FieldError::here(format!(
        "{text:?} must be 1 to 63 lower-case letters, digits or '-', not beginning or ending with '-'"
    )))
}

/// RFC 1123 subdomain: labels joined by dots, what most objects are named with.
pub fn check_subdomain(text: &str) -> Result<(), FieldError> {
    if text.len() > MAX_HOST {
        return Err(FieldError::here("must have at most 253 characters"));
    }
    text.split('.').try_for_each(check_label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authorities_are_normalised_and_bad_ones_refused() {
        let ok = [
            ("Market-Data.Bank:8000", "market-data.bank:8000"),
            ("market-data", "market-data:80"),
            ("a.b.", "a.b:80"),
            ("10.0.0.1", "10.0.0.1:80"),
            ("a.b:", "a.b:80"),
            ("[::1]:", "[::1]:80"),
            ("10.0.0.1:9", "10.0.0.1:9"),
            ("[::1]:9", "[::1]:9"),
            ("[2001:db8::1]", "[2001:db8::1]:80"),
            ("10.0.0.1.", "10.0.0.1:80"),
            ("[::ffff:10.0.0.1]:9", "10.0.0.1:9"),
        ];
        for (text, want) in ok {
            assert_eq!(Authority::parse(text, Some(80)).unwrap().to_string(), want, "{text}");
        }
        for text in [
            "", ":", ":80", "a:0", "a:65536", "a:0", "a:00", "a:+80", "a b", "u@h:80", "[::1",
            "a:b", "a/b", "a:000080",
        ] {
            assert!(Authority::parse(text, Some(80)).is_err(), "{text:?} must be refused");
        }
        assert!(Authority::parse("a.b", None).is_err());
    }

    #[test]
    fn a_host_is_what_everybody_reads_as_the_same_host() {
        for text in [
            "a",
            "A.b-c_d",
            "a.",
            "a:",
            "a:80",
            "a.b.:65535",
            "10.0.0.1",
            "10.0.0.1:9",
            "[::1]",
            "[::1]:9",
            "[::1]:",
            "[::ffff:10.0.0.1]:80",
            "xn--a",
            "127.1",
            "2130706433",
        ] {
            assert!(is_authority(text.as_bytes()), "{text:?}");
        }
        for text in [
            "",
            ":",
            ":80",
            ".",
            "..",
            "a..",
            "a..b",
            ".a",
            "a b",
            " a",
            "a ",
            "a\t",
            "a,b",
            "a, b",
            "u@a",
            "a/",
            "a?",
            "a#",
            "a\\",
            "a:80:80",
            "a:x",
            "a:65536",
            "a:000080",
            "a:+80",
            "a:-1",
            "a:80 ",
            "a%2eb",
            "[a]",
            "[::1",
            "::1",
            "[::1]x",
            "[fe80::1%25eth0]",
            "[::1]]",
            "a]:1",
            "\u{e4}",
            "a\0",
        ] {
            assert!(!is_authority(text.as_bytes()), "{text:?}");
        }
    }

    #[test]
    fn short_names_belong_to_the_callers_namespace() {
        let short = Authority::parse("orders:80", None).unwrap().in_namespace("bank");
        assert_eq!(short.to_string(), "orders.bank:80");
        let long = Authority::parse("orders.shop:80", None).unwrap().in_namespace("bank");
        assert_eq!(long.to_string(), "orders.shop:80");
    }

    #[test]
    fn names_survive_a_round_trip() {
        for text in ["bank/orders:80", "bank/orders:80@shop", "bank/external:api.pay:443"] {
            assert_eq!(text.parse::<DestinationName>().unwrap().to_string(), text);
        }
        for text in [
            "bank",
            "bank/orders",
            "bank/orders:0",
            "Bank/orders:80",
            "/x:1",
            "a/b:1@",
            "a/external::1",
        ] {
            assert!(text.parse::<DestinationName>().is_err(), "{text:?} must be refused");
        }
        assert!("a/external:b:1".parse::<DestinationName>().unwrap().is_external());
        assert!(DestinationName::new("a", "external:b", 1).is_err(), "no Service's name");
        assert_eq!("bank.x-1:80".parse::<EndpointId>().unwrap().to_string(), "bank.x-1:80");
    }
}
