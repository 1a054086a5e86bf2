//! The flags about what the mesh tells others about requests.

use std::time::Duration;

use clap::{Args, ValueEnum};
use http::HeaderName;
use outrigger_core::tap::SECRET;
use outrigger_core::telemetry::{
    AccessLog, Collector, LogLayout, METRICS_EVERY, OtlpMetrics, OtlpProtocol, Ratio, SLOWER_THAN,
    Statsd, Telemetry, Traces, check_address, check_host_port,
};

use super::parse_duration;

#[derive(Clone, Debug, Args)]
pub struct TelemetryOptions {
    /// What proxies write to their access logs: off, errors, all, or one of N as in 1/100 (errors always). Unset: each by
    /// its own --access-log, else errors.
    #[arg(long, env = "OUTRIGGER_PROXY_ACCESS_LOG", value_name = "WHAT")]
    pub access_log: Option<AccessLog>,

    /// Has proxies write requests that take longer, besides what --access-log says (1s; also 250ms, 1m); 0s: none is
    /// for that.
    #[arg(
        long,
        env = "OUTRIGGER_PROXY_ACCESS_LOG_SLOWER_THAN",
        value_name = "DURATION",
        value_parser = parse_slower_than
    )]
    pub access_log_slower_than: Option<Duration>,

    /// How proxies write their access logs: json, or logstash (with @timestamp, @version and message). Unset: each by its
    /// own --access-log-layout, else json.
    #[arg(long, env = "OUTRIGGER_PROXY_ACCESS_LOG_LAYOUT", value_name = "LAYOUT")]
    pub access_log_layout: Option<LogLayout>,

    /// Where proxies send their access logs by OTLP besides standard output, as in
    /// `http://otel-collector.observability:4317`. Unset: nowhere.
    #[arg(long, env = "OUTRIGGER_OTLP_LOGS", value_name = "URL", value_parser = parse_address)]
    pub otlp_logs: Option<String>,

    /// Where proxies send their metrics by OTLP. Unset: nowhere; `/metrics` is there either way.
    #[arg(long, env = "OUTRIGGER_OTLP_METRICS", value_name = "URL", value_parser = parse_address)]
    pub otlp_metrics: Option<String>,

    /// What the collector of --otlp-logs and --otlp-metrics speaks: grpc (usually on port 4317) or http (protocol buffers
    /// over HTTP/1.1, usually on port 4318).
    #[arg(
        long,
        env = "OUTRIGGER_OTLP_PROTOCOL",
        value_name = "PROTOCOL",
        value_enum,
        default_value_t = CollectorProtocol::Grpc
    )]
    pub otlp_protocol: CollectorProtocol,

    /// Where proxies send their metrics as StatsD packets with tags as DogStatsD has them, `HOST:PORT` of UDP. Unset:
    /// nowhere.
    #[arg(
        long,
        env = "OUTRIGGER_STATSD",
        value_name = "HOST:PORT",
        value_parser = |text: &str| check_host_port(text).map(|()| text.to_owned())
    )]
    pub statsd: Option<String>,

    /// How often proxies send metrics, by OTLP and to StatsD (10s; also 1m), from 1s to 1h.
    #[arg(
        long,
        env = "OUTRIGGER_METRICS_EVERY",
        value_name = "DURATION",
        default_value = "30s",
        value_parser = parse_every
    )]
    pub metrics_every: Duration,

    /// Headers of requests that `outrigger tap` may show, with commas between them.
    #[arg(
        long,
        env = "OUTRIGGER_TAP_HEADERS",
        value_name = "NAMES",
        value_delimiter = ',',
        default_value = "accept,content-length,content-type,grpc-timeout,host,user-agent",
        value_parser = parse_header
    )]
    pub tap_headers: Vec<HeaderName>,

    /// Where proxies send traces: a collector that takes OTLP, such as Jaeger or the OpenTelemetry Collector, as in
    /// `http://jaeger.observability:4317`. Unset: no proxy records any.
    #[arg(
        long = "traces",
        id = "traces",
        env = "OUTRIGGER_TRACES",
        value_name = "URL",
        value_parser = parse_address
    )]
    pub address: Option<String>,

    /// What the collector speaks: grpc (usually on port 4317) or http (protocol buffers over HTTP/1.1, usually on
    /// port 4318).
    #[arg(
        long = "trace-protocol",
        env = "OUTRIGGER_TRACE_PROTOCOL",
        value_name = "PROTOCOL",
        value_enum,
        default_value_t = CollectorProtocol::Grpc,
        requires = "traces"
    )]
    pub protocol: CollectorProtocol,

    /// Share of the traces begun by proxies that are recorded whole, from 0 to 1.
    #[arg(
        long = "trace-ratio",
        env = "OUTRIGGER_TRACE_RATIO",
        value_name = "SHARE",
        default_value = "0.01",
        value_parser = parse_ratio,
        requires = "traces"
    )]
    pub ratio: Ratio,

    /// Records requests that take longer, whatever the sampling decision (1s; also 250ms, 1m); 0s: none for its
    /// latency.
    #[arg(
        long = "trace-slower-than",
        env = "OUTRIGGER_TRACE_SLOWER_THAN",
        value_name = "DURATION",
        default_value = "1s",
        value_parser = parse_slower_than,
        requires = "traces"
    )]
    pub slower_than: Duration,

    /// Does not record failed requests for their failure.
    #[arg(long = "trace-no-errors", env = "OUTRIGGER_TRACE_NO_ERRORS", requires = "traces")]
    pub no_errors: bool,

    /// Ignores the caller's sampling decision; every proxy samples by trace id, so all of them decide alike.
    #[arg(
        long = "trace-ignore-parent",
        env = "OUTRIGGER_TRACE_IGNORE_PARENT",
        requires = "traces"
    )]
    pub ignore_parent: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CollectorProtocol {
    Grpc,
    Http,
}

impl CollectorProtocol {
    fn at(self, address: &str) -> Collector {
        let protocol = match self {
            Self::Grpc => OtlpProtocol::Grpc,
            Self::Http => OtlpProtocol::Http,
        };
        Collector { address: address.to_owned(), protocol }
    }
}

impl TelemetryOptions {
    pub fn telemetry(&self) -> Telemetry {
        let traces = |address: &String| Traces {
            collector: self.protocol.at(address),
            ratio: self.ratio,
            parent: !self.ignore_parent,
            errors: !self.no_errors,
            slower_than: Some(self.slower_than).filter(|limit| !limit.is_zero()),
        };
        let slower_than = self.access_log_slower_than.filter(|limit| !limit.is_zero());
        let access_log = self.access_log.or(slower_than.map(|_| AccessLog::default()));
        let every = self.metrics_every;
        Telemetry {
            traces: self.address.as_ref().map(traces),
            access_log: access_log.map(|log| AccessLog { slower_than, ..log }),
            access_log_layout: self.access_log_layout,
            logs: self.otlp_logs.as_ref().map(|address| self.otlp_protocol.at(address)),
            metrics: self
                .otlp_metrics
                .as_ref()
                .map(|address| OtlpMetrics { collector: self.otlp_protocol.at(address), every }),
            statsd: self.statsd.clone().map(|address| Statsd { address, every }),
        }
    }
}

fn parse_address(text: &str) -> Result<String, String> {
    check_address(text).map(|()| text.to_owned())
}

fn parse_every(text: &str) -> Result<Duration, String> {
    let every = parse_duration(text)?;
    if METRICS_EVERY.contains(&every) {
        Ok(every)
    } else {
        Err("must be between 1s and 1h".to_owned())
    }
}

fn parse_header(text: &str) -> Result<HeaderName, String> {
    let name: HeaderName = text.parse().map_err(|_| format!("{text:?} is no name of a header"))?;
    if SECRET.contains(&name) {
        return Err(format!("{name} holds secrets and is never shown"));
    }
    Ok(name)
}

fn parse_ratio(text: &str) -> Result<Ratio, String> {
    let share = text.parse().ok().and_then(Ratio::from_share);
    share.ok_or_else(|| format!("{text:?} is no number between 0 and 1"))
}

fn parse_slower_than(text: &str) -> Result<Duration, String> {
    let limit = parse_duration(text)?;
    if limit.is_zero() || SLOWER_THAN.contains(&limit) {
        return Ok(limit);
    }
    Err("must be between 1ms and 1h, or 0s".to_owned())
}
