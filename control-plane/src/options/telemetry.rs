//! The flags about what the mesh tells others about requests.

use std::time::Duration;

use clap::{Args, ValueEnum};
use http::HeaderName;
use outrigger_core::tap::SECRET;
use outrigger_core::telemetry::{
    AccessLog, OtlpProtocol, Ratio, SLOWER_THAN, Telemetry, Traces, check_address,
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
        default_value_t = TraceProtocol::Grpc,
        requires = "traces"
    )]
    pub protocol: TraceProtocol,

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

    /// Records requests that take longer, whatever was drawn (1s; also 250ms, 1m); 0s: none is recorded for that.
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

    /// Draws for each request anew, whether or not its caller records its trace.
    #[arg(
        long = "trace-ignore-parent",
        env = "OUTRIGGER_TRACE_IGNORE_PARENT",
        requires = "traces"
    )]
    pub ignore_parent: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TraceProtocol {
    Grpc,
    Http,
}

impl TelemetryOptions {
    pub fn telemetry(&self) -> Telemetry {
        let traces = |address: &String| Traces {
            address: address.clone(),
            protocol: match self.protocol {
                TraceProtocol::Grpc => OtlpProtocol::Grpc,
                TraceProtocol::Http => OtlpProtocol::Http,
            },
            ratio: self.ratio,
            parent: !self.ignore_parent,
            errors: !self.no_errors,
            slower_than: Some(self.slower_than).filter(|limit| !limit.is_zero()),
        };
        let slower_than = self.access_log_slower_than.filter(|limit| !limit.is_zero());
        let access_log = self.access_log.or(slower_than.map(|_| AccessLog::default()));
        Telemetry {
            traces: self.address.as_ref().map(traces),
            access_log: access_log.map(|log| AccessLog { slower_than, ..log }),
        }
    }
}

fn parse_address(text: &str) -> Result<String, String> {
    check_address(text).map(|()| text.to_owned())
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
