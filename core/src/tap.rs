//! A tap: which requests somebody wants to see while they happen.

use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use http::{HeaderName, StatusCode, header};

use crate::error::FieldError;
use crate::reason::Reason;

/// Bytes of each text that requests are compared with.
pub const TEXT_BYTES: usize = 1_024;
/// Headers that one tap shows.
pub const HEADERS: usize = 16;
/// Bytes of a line that is shown, as it waits for its reader; longer ones are not shown.
pub const LINE_BYTES: usize = 16 * 1024;
/// Limits of [`Tap::max_per_second`].
pub const PER_SECOND: RangeInclusive<u32> = 1..=1_000;
/// Headers that hold secrets: no tap shows them, whatever its allow list says.
pub const SECRET: [HeaderName; 5] = [
    header::AUTHORIZATION,
    header::PROXY_AUTHORIZATION,
    header::COOKIE,
    header::SET_COOKIE,
    HeaderName::from_static("x-api-key"),
];

/// What one proxy shows to one tap.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Tap {
    /// The same for all proxies.
    pub id: u64,
    pub filter: TapFilter,
    /// Requests that are shown within a second; [`PER_SECOND`]. Others are counted.
    pub max_per_second: u32,
    /// Headers of requests that are shown, at most [`HEADERS`].
    pub headers: Vec<HeaderName>,
}

/// Every condition that is set has to hold.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct TapFilter {
    /// Requests that the workload's app makes (`outbound`) or gets (`inbound`).
    pub direction: Option<String>,
    /// `namespace/name:port`, or the beginning of it up to the `/` or the `:`.
    pub service: Option<String>,
    /// Who is at the other end, likewise.
    pub peer: Option<String>,
    pub method: Option<String>,
    /// What the path begins with.
    pub path: Option<String>,
    pub status: Option<StatusFilter>,
    pub reason: Option<Reason>,
    /// Only requests that take longer.
    pub slower_than: Option<Duration>,
}

/// The status that the caller got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatusFilter {
    Code(u16),
    /// All from a hundred on, as 5 for 5xx.
    Class(u16),
}

impl fmt::Display for StatusFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "{code}"),
            Self::Class(class) => write!(f, "{class}xx"),
        }
    }
}

impl StatusFilter {
    /// As `503` or `5xx`; none: no such status.
    pub fn parse(text: &str) -> Option<Self> {
        if let Some(class) = text.strip_suffix("xx") {
            let class = class.parse().ok().filter(|class| (1..=5).contains(class));
            return class.map(Self::Class);
        }
        let code = text.parse().ok().filter(|code| (100..=599).contains(code));
        code.map(Self::Code)
    }

    fn holds(self, status: Option<StatusCode>) -> bool {
        let status = status.map(|status| status.as_u16());
        match self {
            Self::Code(code) => status == Some(code),
            Self::Class(class) => status.is_some_and(|status| status / 100 == class),
        }
    }
}

/// What is known of a request at its end without looking anything up.
#[derive(Clone, Copy, Debug, Default)]
pub struct TapFacts<'a> {
    pub direction: &'a str,
    pub method: &'a str,
    pub path: &'a str,
    pub status: Option<StatusCode>,
    pub reason: Option<Reason>,
    pub duration: Duration,
}

impl TapFilter {
    /// Whether everything holds but [`TapFilter::names`].
    pub fn matches(&self, facts: &TapFacts<'_>) -> bool {
        let is = |wanted: &Option<String>, it: &str| wanted.as_deref().is_none_or(|w| w == it);
        is(&self.direction, facts.direction)
            && is(&self.method, facts.method)
            && self.path.as_deref().is_none_or(|prefix| facts.path.starts_with(prefix))
            && self.status.is_none_or(|wanted| wanted.holds(facts.status))
            && self.reason.is_none_or(|wanted| facts.reason == Some(wanted))
            && self.slower_than.is_none_or(|limit| facts.duration > limit)
    }

    /// Whether service and peer are those that are asked for.
    pub fn names(&self, service: &str, peer: &str) -> bool {
        is_named(self.service.as_deref(), service) && is_named(self.peer.as_deref(), peer)
    }

    /// # Errors
    ///
    /// When a bound is not kept, or a condition can never hold.
    pub fn check(&self) -> Result<(), FieldError> {
        let texts = [
            ("direction", &self.direction),
            ("service", &self.service),
            ("peer", &self.peer),
            ("method", &self.method),
            ("path", &self.path),
        ];
        for (name, text) in texts {
            // On the wire it would be none.
            if text.as_ref().is_some_and(String::is_empty) {
                return Err(FieldError::at(name, "is empty"));
            }
            if text.as_ref().is_some_and(|text| text.len() > TEXT_BYTES) {
                return Err(FieldError::at(name, format!("has more than {TEXT_BYTES} bytes")));
            }
        }
        if self.direction.as_ref().is_some_and(|d| d != "inbound" && d != "outbound") {
            return Err(FieldError::at("direction", "is neither inbound nor outbound"));
        }
        if self.path.as_ref().is_some_and(|path| !path.starts_with('/')) {
            return Err(FieldError::at("path", "must begin with \"/\""));
        }
        Ok(())
    }
}

/// Whether `name` is `wanted`, or more precise than it.
fn is_named(wanted: Option<&str>, name: &str) -> bool {
    let Some(wanted) = wanted else { return true };
    name.strip_prefix(wanted).is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', ':']))
}

impl Tap {
    /// # Errors
    ///
    /// When a bound is not kept, a condition can never hold, or a header is one of [`SECRET`].
    pub fn check(&self) -> Result<(), FieldError> {
        self.filter.check()?;
        if !PER_SECOND.contains(&self.max_per_second) {
            return Err(FieldError::at("max_per_second", "must be between 1 and 1000"));
        }
        if self.headers.len() > HEADERS {
            return Err(FieldError::at("headers", format!("has more than {HEADERS}")));
        }
        match self.headers.iter().find(|name| SECRET.contains(name)) {
            Some(name) => Err(FieldError::at("headers", format!("{name} is never shown"))),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> TapFacts<'static> {
        TapFacts {
            direction: "inbound",
            method: "GET",
            path: "/orders/7",
            status: Some(StatusCode::SERVICE_UNAVAILABLE),
            reason: Some(Reason::NoEndpoint),
            duration: Duration::from_millis(20),
        }
    }

    #[test]
    fn every_condition_has_to_hold() {
        let any = TapFilter::default;
        let text = |text: &str| Some(text.to_owned());
        assert!(any().matches(&facts()));
        let all = TapFilter {
            direction: text("inbound"),
            method: text("GET"),
            path: text("/orders"),
            status: StatusFilter::parse("5xx"),
            reason: Some(Reason::NoEndpoint),
            slower_than: Some(Duration::from_millis(19)),
            ..any()
        };
        assert!(all.matches(&facts()));
        let others = [
            TapFilter { direction: text("outbound"), ..all.clone() },
            TapFilter { method: text("POST"), ..all.clone() },
            TapFilter { path: text("/accounts"), ..all.clone() },
            TapFilter { status: StatusFilter::parse("500"), ..all.clone() },
            TapFilter { status: StatusFilter::parse("4xx"), ..all.clone() },
            TapFilter { reason: Some(Reason::NoRoute), ..all.clone() },
            TapFilter { slower_than: Some(Duration::from_millis(20)), ..all.clone() },
        ];
        for other in others {
            assert!(!other.matches(&facts()), "{other:?}");
        }
        let unanswered = TapFacts { status: None, ..facts() };
        assert!(!all.matches(&unanswered));
    }

    #[test]
    fn a_name_is_meant_whole_or_up_to_a_part() {
        let service =
            |name: &str| TapFilter { service: Some(name.to_owned()), ..TapFilter::default() };
        for name in ["bank", "bank/orders", "bank/orders:80"] {
            assert!(service(name).names("bank/orders:80", "bank/web"), "{name}");
        }
        for name in ["ban", "bank/order", "bank/orders:8", "orders", "shop/orders"] {
            assert!(!service(name).names("bank/orders:80", "bank/web"), "{name}");
        }
        let peer = TapFilter { peer: Some("bank/web".to_owned()), ..TapFilter::default() };
        assert!(peer.names("bank/orders:80", "bank/web"));
        assert!(!peer.names("bank/orders:80", "unknown"));
    }

    #[test]
    fn what_never_holds_or_would_show_secrets_is_refused() {
        let tap = Tap { max_per_second: 100, ..Tap::default() };
        assert_eq!(tap.check(), Ok(()));
        let filter = |filter| Tap { filter, ..tap.clone() }.check().unwrap_err().path;
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(filter(TapFilter { path: text("orders"), ..TapFilter::default() }), "path");
        let up = TapFilter { direction: text("up"), ..TapFilter::default() };
        assert_eq!(filter(up), "direction");
        let empty = TapFilter { peer: text(""), ..TapFilter::default() };
        assert_eq!(filter(empty), "peer");
        let long = TapFilter { peer: Some("x".repeat(TEXT_BYTES + 1)), ..TapFilter::default() };
        assert_eq!(filter(long), "peer");
        for many in [0, 1_001] {
            assert!(Tap { max_per_second: many, ..tap.clone() }.check().is_err());
        }
        for secret in SECRET {
            assert!(Tap { headers: vec![secret], ..tap.clone() }.check().is_err());
        }
        let many = vec![header::ACCEPT; HEADERS + 1];
        assert!(Tap { headers: many, ..tap.clone() }.check().is_err());
        for status in ["", "xx", "6xx", "0xx", "99", "600", "5x", "-1"] {
            assert_eq!(StatusFilter::parse(status), None, "{status}");
        }
    }
}
