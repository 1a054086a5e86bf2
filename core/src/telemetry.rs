//! What proxies tell others about requests: which, how, and where it goes.

use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use crate::error::FieldError;
use crate::outcome::Outcome;

/// Labels of a workload that say what its app is called, best first; the first one is recommended by Kubernetes.
pub const APP_LABELS: [&str; 2] = ["app.kubernetes.io/name", "app"];
/// Those that say which version it is.
pub const VERSION_LABELS: [&str; 2] = ["app.kubernetes.io/version", "version"];
/// Longest address of a collector, in bytes.
pub const ADDRESS_BYTES: usize = 512;
/// Limits of [`Traces::slower_than`].
pub const SLOWER_THAN: RangeInclusive<Duration> =
    Duration::from_millis(1)..=Duration::from_secs(3_600);

/// Limits of [`OtlpMetrics::every`] and [`Statsd::every`].
pub const METRICS_EVERY: RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(3_600);

/// What the mesh tells others about requests. Nothing unless said.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Telemetry {
    pub traces: Option<Traces>,
    /// None: each proxy's own flag, else errors.
    pub access_log: Option<AccessLog>,
    /// None: each proxy's own flag, else JSON.
    pub access_log_layout: Option<LogLayout>,
    /// Where the access log goes besides standard output.
    pub logs: Option<Collector>,
    /// None: metrics are read from proxies, not sent by OTLP.
    pub metrics: Option<OtlpMetrics>,
    pub statsd: Option<Statsd>,
}

/// Who takes OTLP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Collector {
    /// As `http://otel-collector.observability:4317`; at most [`ADDRESS_BYTES`].
    pub address: String,
    pub protocol: OtlpProtocol,
}

/// Metrics that are sent by OTLP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtlpMetrics {
    pub collector: Collector,
    /// [`METRICS_EVERY`].
    pub every: Duration,
}

/// Metrics that are sent to a StatsD server, with tags as DogStatsD has them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statsd {
    /// `HOST:PORT`, of UDP; at most [`ADDRESS_BYTES`].
    pub address: String,
    /// [`METRICS_EVERY`].
    pub every: Duration,
}

/// How a line of the access log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum LogLayout {
    /// The fields alone.
    #[default]
    Json,
    /// With `@timestamp`, `@version` and `message`, as Logstash's `json_lines` codec and its encoders for programs
    /// have them.
    Logstash,
}

/// Which requests are written to the access log. As text: `off`, `errors`, `all`, or one of N and every error as in
/// `1/100`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AccessLog {
    /// A share of all.
    pub share: Ratio,
    /// Those that do not end well.
    pub errors: bool,
    /// Those that take longer; [`SLOWER_THAN`].
    pub slower_than: Option<Duration>,
}

impl Default for AccessLog {
    fn default() -> Self {
        Self { share: Ratio::NONE, errors: true, slower_than: None }
    }
}

impl AccessLog {
    /// Whether a request is written that has ended so; `random` is uniform.
    pub fn takes(
        &self,
        outcome: Outcome,
        duration: Duration,
        random: impl FnOnce() -> u64,
    ) -> bool {
        (self.errors && outcome != Outcome::Success)
            || self.slower_than.is_some_and(|limit| duration > limit)
            || (self.share != Ratio::NONE && self.share.takes(random()))
    }
}

impl FromStr for AccessLog {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let errors = Self::default();
        match text {
            "off" => Ok(Self { errors: false, ..errors }),
            "errors" => Ok(errors),
            "all" => Ok(Self { share: Ratio::ALL, ..errors }),
            _ => {
                let one_of = text.strip_prefix("1/").and_then(|n| n.parse::<u32>().ok());
                let one_of = one_of.filter(|n| (1..=1_000_000).contains(n));
                let share = one_of.and_then(|n| Ratio::from_share(1.0 / f64::from(n)));
                let share = share.ok_or_else(|| {
                    format!("{text:?} is not off, errors, all or 1/N, with N up to a million")
                })?;
                Ok(Self { share, ..errors })
            }
        }
    }
}

/// Traces, as they are recorded and sent by OTLP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traces {
    pub collector: Collector,
    /// The share of the traces that are begun here which are recorded whole.
    pub ratio: Ratio,
    /// A request that comes with a trace is recorded where its caller records it, and its share is not drawn again
    /// (Trace Context section 3.2.2.5.1). Else callers decide nothing.
    pub parent: bool,
    /// Requests that do not end well are recorded, whatever was drawn.
    pub errors: bool,
    /// So are those that take longer.
    pub slower_than: Option<Duration>,
}

/// How a collector is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum OtlpProtocol {
    /// gRPC, usually on port 4317.
    #[default]
    Grpc,
    /// HTTP/1.1 with protocol buffers, usually on port 4318; `/v1/traces` and so on is added to the address.
    Http,
}

/// A share in millionths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Ratio(u32);

impl Ratio {
    pub const NONE: Self = Self(0);
    pub const ALL: Self = Self(1_000_000);

    /// None: more than all.
    pub fn from_millionths(millionths: u32) -> Option<Self> {
        Some(Self(millionths)).filter(|ratio| *ratio <= Self::ALL)
    }

    /// None: not between 0 and 1.
    pub fn from_share(share: f64) -> Option<Self> {
        (0.0..=1.0).contains(&share).then(|| Self((share * 1e6).round() as u32))
    }

    pub fn millionths(self) -> u32 {
        self.0
    }

    /// Whether it falls on one of the share; `random` is uniform.
    pub fn takes(self, random: u64) -> bool {
        (random >> 32).wrapping_mul(u64::from(Self::ALL.0)) >> 32 < u64::from(self.0)
    }
}

/// What decides whether a trace is recorded.
#[derive(Clone, Copy, Debug)]
pub struct Sampler {
    pub ratio: Ratio,
    /// See [`Traces::parent`].
    pub parent: bool,
}

impl Sampler {
    /// Every proxy draws the same for a trace: ids are random at their end (Trace Context Level 2, section
    /// 3.2.2.3).
    pub fn draws(self, trace_id: u128) -> bool {
        self.ratio.takes(trace_id as u64)
    }
}

impl Traces {
    pub fn sampler(&self) -> Sampler {
        Sampler { ratio: self.ratio, parent: self.parent }
    }

    /// Whether a request is recorded that a trace without a decision of its own has come to the end of.
    pub fn keeps(&self, outcome: Outcome, duration: Duration) -> bool {
        (self.errors && outcome != Outcome::Success)
            || self.slower_than.is_some_and(|limit| duration > limit)
    }

    /// # Errors
    ///
    /// When the address is none that spans can be sent to, or a bound is not kept.
    pub fn check(&self) -> Result<(), FieldError> {
        self.collector.check()?;
        match self.slower_than.filter(|limit| !SLOWER_THAN.contains(limit)) {
            Some(_) => Err(FieldError::at("slower_than", "must be between 1ms and 1h")),
            None => Ok(()),
        }
    }
}

impl Collector {
    /// # Errors
    ///
    /// When the address is none that can be sent to.
    pub fn check(&self) -> Result<(), FieldError> {
        check_address(&self.address).map_err(|why| FieldError::at("address", why))
    }
}

impl OtlpMetrics {
    /// # Errors
    ///
    /// When the address is none that can be sent to, or a bound is not kept.
    pub fn check(&self) -> Result<(), FieldError> {
        self.collector.check().map_err(|problem| problem.under("collector"))?;
        check_every(self.every)
    }
}

impl Statsd {
    /// # Errors
    ///
    /// When the address is none that can be sent to, or a bound is not kept.
    pub fn check(&self) -> Result<(), FieldError> {
        check_host_port(&self.address).map_err(|why| FieldError::at("address", why))?;
        check_every(self.every)
    }
}

fn check_every(every: Duration) -> Result<(), FieldError> {
    if METRICS_EVERY.contains(&every) {
        return Ok(());
    }
    Err(FieldError::at("every", "must be between 1s and 1h"))
}

impl FromStr for LogLayout {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "json" => Ok(Self::Json),
            "logstash" => Ok(Self::Logstash),
            _ => Err(format!("{text:?} is not json or logstash")),
        }
    }
}

/// # Errors
///
/// When it is not `HOST:PORT`.
pub fn check_host_port(address: &str) -> Result<(), String> {
    if address.len() > ADDRESS_BYTES {
        return Err(format!("has more than {ADDRESS_BYTES} bytes"));
    }
    let authority = address.parse::<http::uri::Authority>().ok().filter(|authority| {
        !authority.host().is_empty() && authority.port_u16().is_some_and(|port| port > 0)
    });
    match authority.filter(|_| !address.contains('@')) {
        Some(_) => Ok(()),
        None => Err(format!("{address:?} is not HOST:PORT")),
    }
}

/// # Errors
///
/// When nothing can be sent to a collector by such an address.
pub fn check_address(address: &str) -> Result<(), String> {
    if address.len() > ADDRESS_BYTES {
        return Err(format!("has more than {ADDRESS_BYTES} bytes"));
    }
    let uri: http::Uri = address.parse().map_err(|why| format!("{address:?} is no URL: {why}"))?;
    match uri.scheme_str() {
        Some("http") if uri.host().is_some_and(|host| !host.is_empty()) => Ok(()),
        Some("https") => Err(format!(
            "{address:?}: https is not supported; name a collector beside the proxies (http), which sends on with TLS"
        )),
        _ => Err(format!("{address:?} is not http://HOST:PORT")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_access_log_takes_what_it_says() {
        use Outcome::{Failure, Success};
        let second = Duration::from_secs(1);
        let log = |text: &str| text.parse::<AccessLog>().unwrap();
        for (setting, good, bad) in [
            (log("off"), false, false),
            (log("errors"), false, true),
            (log("all"), true, true),
            (log("1/2"), true, true),
            (AccessLog { slower_than: Some(second / 2), ..log("off") }, true, true),
            (AccessLog { slower_than: Some(second), ..log("off") }, false, false),
        ] {
            assert_eq!(setting.takes(Success, second, || 0), good, "{setting:?}");
            assert_eq!(setting.takes(Failure, second, || 0), bad, "{setting:?}");
        }
        assert!(!log("1/2").takes(Success, second, || u64::MAX));
        for bad in ["", "1/0", "1/x", "some", "1/1000001"] {
            assert!(bad.parse::<AccessLog>().unwrap_err().contains("1/N"), "{bad}");
        }
    }

    #[test]
    fn the_share_is_drawn() {
        let ratio = Ratio::from_share(0.25).unwrap();
        let drawn = (0..1_000).filter(|i| ratio.takes(u64::MAX / 1_000 * i)).count();
        assert!((249..=251).contains(&drawn), "{drawn}");
        assert!(!Ratio::default().takes(0));
        assert!(Ratio::ALL.takes(u64::MAX));
        for share in [-0.1, 1.1, f64::NAN] {
            assert_eq!(Ratio::from_share(share), None, "{share}");
        }
        assert_eq!(Ratio::from_millionths(1_000_001), None);
    }

    #[test]
    fn an_address_is_one_that_spans_can_be_sent_to() {
        for good in ["http://127.0.0.1:4317", "http://otel.obs:4318/base", "http://[::1]:4317"] {
            assert_eq!(check_address(good), Ok(()), "{good}");
        }
        let long = format!("http://{}", "a".repeat(ADDRESS_BYTES));
        for bad in [
            "",
            "otel:4317",
            "127.0.0.1:4317",
            "/traces",
            "https://otel",
            "ftp://a",
            "http://",
            &long,
        ] {
            assert!(check_address(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_statsd_server_is_a_host_and_a_port() {
        for good in ["127.0.0.1:8125", "statsd.observability:8125", "[::1]:8125"] {
            assert_eq!(check_host_port(good), Ok(()), "{good}");
        }
        let long = format!("{}:1", "a".repeat(ADDRESS_BYTES));
        for bad in ["", "statsd", ":8125", "a:0", "a:65536", "udp://a:1", "a:1/x", "u@a:1", &long] {
            assert!(check_host_port(bad).is_err(), "{bad}");
        }
        let statsd = |every| Statsd { address: "a:1".to_owned(), every };
        assert!(statsd(Duration::from_secs(1)).check().is_ok());
        assert!(statsd(Duration::from_millis(999)).check().is_err());
    }

    #[test]
    fn what_ends_badly_or_late_is_kept() {
        let collector =
            Collector { address: "http://otel".to_owned(), protocol: OtlpProtocol::Grpc };
        let traces = Traces {
            collector,
            ratio: Ratio::default(),
            parent: true,
            errors: true,
            slower_than: Some(Duration::from_secs(1)),
        };
        let (short, long) = (Duration::from_millis(1), Duration::from_secs(2));
        assert!(!traces.keeps(Outcome::Success, short));
        assert!(traces.keeps(Outcome::Success, long));
        assert!(traces.keeps(Outcome::Refused, short));
        let neither = Traces { errors: false, slower_than: None, ..traces };
        assert!(!neither.keeps(Outcome::Failure, long));
    }
}
