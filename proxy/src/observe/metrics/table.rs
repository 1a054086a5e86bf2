//! The one table of metrics: names, kinds, labels and what each tells. Exposition and docs/metrics.md follow from it.

use std::fmt::{self, Display, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use hdrhistogram::Histogram;
use outrigger_proto::prometheus::MetricFamily;

use super::protobuf::Families;
use super::{EDGES_US, Exemplars};

/// What a metric is to Prometheus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    Counter,
    Gauge,
    Histogram,
}

impl MetricKind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// A metric of the proxy.
#[derive(Debug)]
pub struct Metric {
    pub name: &'static str,
    pub kind: MetricKind,
    pub labels: &'static [&'static str],
    pub help: &'static str,
}

macro_rules! metrics {
    ($($id:ident = $name:literal, $kind:ident, [$($label:literal),*], $help:literal;)*) => {
        $(pub static $id: Metric = Metric {
            name: $name,
            kind: MetricKind::$kind,
            labels: &[$($label),*],
            help: $help,
        };)*

        /// Every metric, in the order of the documentation.
        pub static ALL: &[&Metric] = &[$(&$id),*];
    };
}

metrics! {
    // Requests.
    REQUESTS = "outrigger_requests_total", Counter,
        ["direction", "service", "route", "peer", "protocol", "code", "outcome", "status", "reason", "reason_by"],
        "requests and connections that have ended";
    REQUEST_DURATION = "outrigger_request_duration_seconds", Histogram,
        ["direction", "service", "peer", "outcome"],
        "from the head of the request to the end of the response";
    WORKER_REQUESTS = "outrigger_worker_requests_total", Counter, ["worker"],
        "completed requests and connections, by thread";
    RETRIES = "outrigger_retries_total", Counter, ["service"], "attempts of requests after the first";
    RETRIES_SKIPPED = "outrigger_retries_skipped_total", Counter, ["cause"],
        "retries that a policy wanted and that were not made";
    HEDGES = "outrigger_hedges_total", Counter, ["result"],
        "second attempts while the first one was pending";
    FALLBACKS = "outrigger_fallbacks_total", Counter, ["service", "kind"],
        "fallback responses instead of failures";
    MIRRORS = "outrigger_mirrors_total", Counter, [], "copies of requests sent to a shadow";
    MIRRORS_DROPPED = "outrigger_mirrors_dropped_total", Counter, [], "copies not sent or aborted";
    UNMATCHED = "outrigger_unmatched_total", Counter, [],
        "requests and connections passed through to unknown destinations";
    UNMESHED = "outrigger_unmeshed_total", Counter, [],
        "requests and connections to endpoints without a sidecar";
    FAULTS_INJECTED = "outrigger_faults_injected_total", Counter, ["fault", "kind"],
        "attempts with an injected fault";

    // Protection of what is called.
    BREAKER_STATE = "outrigger_breaker_state", Gauge, ["service"], "0 closed, 1 half open, 2 open";
    RETRY_BUDGET_LEFT = "outrigger_retry_budget_left", Gauge, ["service"],
        "retries that the budget allows now";
    ENDPOINTS_EJECTED = "outrigger_endpoints_ejected", Gauge, ["service"],
        "endpoints ejected or being probed";
    ENDPOINTS_WARMING = "outrigger_endpoints_warming", Gauge, ["service"],
        "endpoints in slow start";
    ENDPOINTS_CHECKED = "outrigger_endpoints_checked", Gauge, ["service", "state"],
        "endpoints by the state of their health checks";
    HEALTH_CHECKS = "outrigger_health_checks_total", Counter, ["service", "result"],
        "completed health checks of endpoints";
    LB_PANIC = "outrigger_lb_panic_total", Counter, ["service"],
        "load-balancing choices that ignored ejections or health checks";
    LB_ZONE_SPILLOVER = "outrigger_lb_zone_spillover_total", Counter, ["service"],
        "requests sent to other zones for lack of available endpoints";
    PACING_DELAYED = "outrigger_pacing_delayed_total", Counter, ["service"],
        "requests delayed by pacing, because of a rate limit of the service";
    PACING_REFUSED = "outrigger_pacing_refused_total", Counter, ["service"],
        "requests refused by pacing, because too many were delayed already";
    QUEUE_WAIT = "outrigger_queue_wait_seconds_total", Counter, ["service"],
        "time that requests waited: queued for an in-flight permit, or delayed by pacing";

    // What this workload lets in.
    RATE_LIMIT_REQUESTS = "outrigger_rate_limit_requests_total", Counter,
        ["service", "port", "limit", "decision"], "requests checked against a rate limit";
    CONCURRENCY_LIMIT = "outrigger_concurrency_limit", Gauge, ["service", "port"],
        "maximum requests in flight at a port";
    CONCURRENCY_IN_FLIGHT = "outrigger_concurrency_in_flight", Gauge, ["service", "port"],
        "requests in flight at a port";
    CONCURRENCY_WAITING = "outrigger_concurrency_waiting", Gauge, ["service", "port"],
        "requests queued";
    CONCURRENCY_QUEUED = "outrigger_concurrency_queued_total", Counter, ["service", "port"],
        "requests that were queued";
    CONCURRENCY_WAIT = "outrigger_concurrency_wait_seconds_total", Counter, ["service", "port"],
        "time that requests waited in the queue";
    CONCURRENCY_REFUSED = "outrigger_concurrency_refused_total", Counter, ["service", "port"],
        "requests refused because the limit and the queue were full";
    ACCESS_AUDITED = "outrigger_access_audited_total", Counter, [],
        "requests and streams that a policy in audit mode would have refused";
    PLAINTEXT_INBOUND = "outrigger_plaintext_inbound_total", Counter, [],
        "connections and requests admitted without an identity";

    // Connections and bytes.
    CONNECTIONS_OPEN = "outrigger_connections_open", Gauge, [], "connections accepted and not closed";
    CONNECTIONS = "outrigger_connections_total", Counter, [], "connections accepted";
    CONNECTIONS_REFUSED = "outrigger_connections_refused_total", Counter, [],
        "connections refused: over the limit, or not for this proxy";
    UPSTREAM_CONNECTIONS_OPEN = "outrigger_upstream_connections_open", Gauge, [],
        "connections opened and not closed";
    UPSTREAM_CONNECTIONS = "outrigger_upstream_connections_total", Counter, [], "connections opened";
    RECEIVED_BYTES = "outrigger_received_bytes_total", Counter, [], "body and stream bytes from callers";
    SENT_BYTES = "outrigger_sent_bytes_total", Counter, [], "body and stream bytes to callers";
    TLS_HANDSHAKES = "outrigger_tls_handshakes_total", Counter, ["direction", "result"],
        "handshakes with other proxies";

    // The proxy itself.
    BUFFERED_BYTES = "outrigger_buffered_bytes", Gauge, [],
        "memory of request bodies buffered for retries";
    CACHE_REQUESTS = "outrigger_cache_requests_total", Counter, ["result"],
        "cacheable requests";
    CACHE_STORED = "outrigger_cache_stored_total", Counter, [], "responses stored";
    CACHE_BYTES = "outrigger_cache_bytes", Gauge, [], "bytes of stored responses";
    CACHE_ENTRIES = "outrigger_cache_entries", Gauge, [], "stored responses";
    CORRELATION_ENTRIES = "outrigger_correlation_entries", Gauge, [],
        "inbound requests in flight whose context the app's own calls inherit";
    CORRELATION_FULL = "outrigger_correlation_full_total", Counter, [],
        "inbound requests whose context is not inherited, because too many were in flight";
    RECORDS_DROPPED = "outrigger_records_dropped_total", Counter, ["sink"],
        "records of requests that a sink, such as the access log, dropped because its queue was full";
    SPANS = "outrigger_spans_total", Counter, ["result"],
        "spans sent, and spans that could not be sent";
    LOG_RECORDS = "outrigger_log_records_total", Counter, ["result"],
        "lines of the access log sent by OTLP, and lines that could not be sent";
    METRICS_PUSHED = "outrigger_metrics_pushed_total", Counter, ["by", "result"],
        "exports of metrics by OTLP or to StatsD";
    LOG_DROPPED = "outrigger_log_dropped_total", Counter, [],
        "log lines of any kind dropped because the log's reader was too slow";
    SERIES = "outrigger_metric_series", Gauge, [],
        "sets of request series; beyond the cap requests count under `other`";
    SERIES_CAP = "outrigger_metric_series_cap", Gauge, [], "maximum sets of request series";
    DISCOVERY_CONNECTED = "outrigger_discovery_connected", Gauge, [],
        "1 while the control plane's stream is open";
    DISCOVERY_RESPONSES = "outrigger_discovery_responses_total", Counter, [],
        "responses of the control plane";
    DISCOVERY_NACKS = "outrigger_discovery_nacks_total", Counter, [],
        "responses rejected in whole or part (NACK)";
    DISCOVERY_RECONNECTS = "outrigger_discovery_reconnects_total", Counter, [],
        "times the control plane's stream was opened";
    REGISTERED = "outrigger_registered", Gauge, [],
        "1 while this workload is registered with the control plane";
    REGISTRATIONS_REFUSED = "outrigger_registrations_refused_total", Counter, [],
        "times the control plane refused this workload's registration, or gave its name to another";
    CERTIFICATE_EXPIRY = "outrigger_certificate_expiry_timestamp_seconds", Gauge, [],
        "expiry of this proxy's certificate, 0 without one";
    CERTIFICATE_RENEWALS = "outrigger_certificate_renewals_total", Counter, ["result"],
        "certificate requests";
}

/// How metrics are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum MetricsFormat {
    /// The text format 0.0.4 of Prometheus.
    #[default]
    Prometheus,
    /// OpenMetrics 1.0, which has exemplars.
    OpenMetrics,
    /// Protocol buffers, which have exemplars and native histograms.
    Protobuf,
}

impl MetricsFormat {
    /// What a client takes that sends this `Accept`; of several that, which it prefers, and else what has more.
    pub fn accepted(accept: &str) -> Self {
        let offers = accept.split(',').filter_map(Self::offered).filter(|(_, q)| *q > 0.0);
        let best = offers.reduce(|best, offer| {
            let has_more = offer.1 >= best.1 && offer.0 as u8 > best.0 as u8;
            if offer.1 > best.1 || has_more { offer } else { best }
        });
        best.map_or(Self::Prometheus, |(format, _)| format)
    }

    /// A format of a client's list, if it is one of ours, with its weight.
    fn offered(one: &str) -> Option<(Self, f32)> {
        let mut parts = one.split(';').map(str::trim);
        let media = parts.next()?.to_ascii_lowercase();
        let parts: Vec<(&str, &str)> = parts.filter_map(|part| part.split_once('=')).collect();
        let is = |name: &str, wanted: &str| parts.contains(&(name, wanted));
        let version = parts.iter().find(|(name, _)| *name == "version").map(|(_, text)| *text);
        let format = match media.as_str() {
            "application/openmetrics-text" if version.is_none_or(|v| v == "1.0.0") => {
                Self::OpenMetrics
            }
            "application/vnd.google.protobuf"
                if is("proto", "io.prometheus.client.MetricFamily")
                    && is("encoding", "delimited") =>
            {
                Self::Protobuf
            }
            "text/plain" if version.is_none_or(|v| v == "0.0.4") => Self::Prometheus,
            _ => return None,
        };
        let weight = parts.iter().find(|(name, _)| *name == "q");
        Some((format, weight.map_or(1.0, |(_, q)| q.parse().unwrap_or(1.0))))
    }

    pub fn content_type(self) -> &'static str {
        match self {
            Self::Protobuf => {
                "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited"
            }
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// A request that stands for a bucket of a histogram.
#[derive(Clone, Copy, Debug)]
pub struct Exemplar {
    pub trace_id: u128,
    pub latency_us: u64,
    pub at: SystemTime,
}

/// One histogram.
pub struct HistogramSample<'a> {
    /// In microseconds.
    pub latencies: &'a Histogram<u32>,
    pub exemplars: Option<&'a Exemplars>,
    pub sum_us: u64,
}

/// Which sample of a histogram, besides `_sum` and `_count`.
struct Bucket<'a> {
    edge: f64,
    exemplar: Option<&'a Exemplar>,
}

/// The metrics while they are written. Samples of one metric come one after another.
#[derive(Default)]
pub struct Exposition {
    out: String,
    families: Families,
    format: MetricsFormat,
    described: Option<&'static str>,
}

impl Exposition {
    pub fn new(format: MetricsFormat, bytes: usize) -> Self {
        let (out, families) = (String::with_capacity(bytes), Families::default());
        Self { out, families, format, described: None }
    }

    pub fn into_bytes(mut self) -> Vec<u8> {
        match self.format {
            MetricsFormat::Protobuf => return self.families.encode(),
            MetricsFormat::OpenMetrics => self.out.push_str("# EOF\n"),
            MetricsFormat::Prometheus => {}
        }
        self.out.into_bytes()
    }

    /// What was written as protocol buffers.
    pub fn into_families(self) -> Vec<MetricFamily> {
        self.families.into_inner()
    }

    /// What was written as text.
    #[cfg(test)]
    pub fn into_text(self) -> String {
        String::from_utf8(self.into_bytes()).expect("UTF-8")
    }

    /// One sample. `labels`: the values of the metric's labels, in their order; those that are missing at the end have none.
    pub fn add(&mut self, metric: &'static Metric, labels: &[&dyn Display], value: impl Display) {
        if self.format == MetricsFormat::Protobuf {
            // Every value is a number.
            return self.families.add(
                metric,
                labels,
                value.to_string().parse().unwrap_or_default(),
            );
        }
        self.sample(metric, "", labels, None, value);
    }

    /// A histogram; `labels` as above.
    pub fn histogram(
        &mut self,
        metric: &'static Metric,
        labels: &[&dyn Display],
        sample: &HistogramSample<'_>,
    ) {
        if self.format == MetricsFormat::Protobuf {
            return self.families.histogram(metric, labels, sample);
        }
        let HistogramSample { latencies, exemplars, sum_us } = sample;
        let all = latencies.len();
        let finite = EDGES_US.map(|edge| (edge as f64 / 1e6, latencies.count_between(0, edge)));
        for (i, (edge, below)) in finite.into_iter().chain([(f64::INFINITY, all)]).enumerate() {
            let exemplar = exemplars.and_then(|all| all[i].as_ref());
            self.sample(metric, "_bucket", labels, Some(&Bucket { edge, exemplar }), below);
        }
        self.sample(metric, "_sum", labels, None, *sum_us as f64 / 1e6);
        self.sample(metric, "_count", labels, None, all);
    }

    /// One sample as text; of a histogram `_bucket` with its upper edge, `_sum` or `_count`.
    fn sample(
        &mut self,
        metric: &'static Metric,
        suffix: &str,
        labels: &[&dyn Display],
        bucket: Option<&Bucket<'_>>,
        value: impl Display,
    ) {
        debug_assert!(labels.len() <= metric.labels.len(), "labels of {}", metric.name);
        // Writing to a String cannot fail.
        let _ = self.write(metric, suffix, labels, bucket, &value);
    }

    fn write(
        &mut self,
        metric: &'static Metric,
        suffix: &str,
        labels: &[&dyn Display],
        bucket: Option<&Bucket<'_>>,
        value: &dyn Display,
    ) -> fmt::Result {
        let Metric { name, kind, help, .. } = metric;
        if self.described != Some(*name) {
            self.described = Some(name);
            let family = match self.format {
                MetricsFormat::Prometheus | MetricsFormat::Protobuf => name,
                // A counter is called without what its samples end with.
                MetricsFormat::OpenMetrics => name.strip_suffix("_total").unwrap_or(name),
            };
            writeln!(self.out, "# HELP {family} {help}\n# TYPE {family} {}", kind.as_str())?;
        }
        write!(self.out, "{name}{suffix}")?;
        let mut before = '{';
        let named = metric.labels.iter().copied().zip(labels.iter().copied());
        let edge = bucket.map(|bucket| match (bucket.edge, self.format) {
            (edge, _) if edge.is_infinite() => "+Inf".to_owned(),
            // Always with a point.
            (edge, MetricsFormat::OpenMetrics) => format!("{edge:?}"),
            (edge, _) => edge.to_string(),
        });
        for (label, text) in named.chain(edge.as_ref().map(|edge| ("le", edge as &dyn Display))) {
            write!(self.out, "{before}{label}=\"")?;
            write!(Escaped(&mut self.out), "{text}")?;
            self.out.push('"');
            before = ',';
        }
        if before == ',' {
            self.out.push('}');
        }
        write!(self.out, " {value}")?;
        let exemplar = bucket.and_then(|bucket| bucket.exemplar);
        if let Some(exemplar) = exemplar.filter(|_| self.format == MetricsFormat::OpenMetrics) {
            let Exemplar { trace_id, latency_us, at } = exemplar;
            let at = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
            let seconds = *latency_us as f64 / 1e6;
            write!(self.out, " # {{trace_id=\"{trace_id:032x}\"}} {seconds} {at:.3}")?;
        }
        self.out.push('\n');
        Ok(())
    }
}

/// Escapes label values.
struct Escaped<'a>(&'a mut String);

impl Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            match c {
                '\\' => self.0.push_str("\\\\"),
                '"' => self.0.push_str("\\\""),
                '\n' => self.0.push_str("\\n"),
                c => self.0.push(c),
            }
        }
        Ok(())
    }
}

/// docs/metrics.md.
pub fn page() -> String {
    let mut page = "# Metrics of the proxy\n\n\
        What `/metrics` of the admin server says: in the Prometheus text format; for clients that accept it in OpenMetrics, which has exemplars, or \
        as protocol buffers, which have native histograms as well (Prometheus asks for these with `--enable-feature=native-histograms`). Generated from \
        [the table](../proxy/src/observe/metrics/table.rs) by `cargo xtask codegen`; `outrigger-proxy metrics` prints it.\n\n\
        Label values come from configuration, never from requests. Sets of series of requests are capped; beyond the cap \
        everything counts as `other`. A set without a completed request for 30 minutes is removed.\n\n\
        | metric | type | labels | |\n|---|---|---|---|\n"
        .to_owned();
    for metric in ALL {
        let labels: Vec<_> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
        let labels = labels.join(", ");
        let (name, kind, help) = (metric.name, metric.kind.as_str(), metric.help);
        page.push_str(&format!("| `{name}` | {kind} | {labels} | {help} |\n"));
    }
    page
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_distinct_and_follow_the_conventions() {
        let names: BTreeSet<_> = ALL.iter().map(|metric| metric.name).collect();
        assert_eq!(names.len(), ALL.len());
        for metric in ALL {
            let name = metric.name;
            assert!(name.starts_with("outrigger_"), "{name}");
            assert_eq!(name.ends_with("_total"), metric.kind == MetricKind::Counter, "{name}");
            assert!(!metric.help.is_empty() && !metric.help.contains(['\n', '\\', '|']), "{name}");
        }
    }

    #[test]
    fn clients_get_what_they_accept() {
        let is = |accept: &str, format| MetricsFormat::accepted(accept) == format;
        let takes = |accept: &str| is(accept, MetricsFormat::OpenMetrics);
        // What Prometheus sends.
        assert!(takes(
            "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1"
        ));
        assert!(takes("application/openmetrics-text"));
        for other in [
            "",
            "*/*",
            "text/plain",
            "application/openmetrics-text;q=0",
            "application/openmetrics-text; version=9.0.0",
        ] {
            assert!(!takes(other), "{other}");
        }
        let protobuf = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited";
        let openmetrics = "application/openmetrics-text;version=1.0.0";
        // What Prometheus sends that wants native histograms.
        let both =
            format!("{protobuf},{openmetrics};q=0.8,text/plain;version=0.0.4;q=0.5,*/*;q=0.1");
        assert!(is(&both, MetricsFormat::Protobuf));
        assert!(is(&format!("{openmetrics};q=0.9,{protobuf};q=0.8"), MetricsFormat::OpenMetrics));
        assert!(is(&format!("{openmetrics},{protobuf}"), MetricsFormat::Protobuf));
        assert!(is("application/vnd.google.protobuf", MetricsFormat::Prometheus));
        assert!(is(&format!("{protobuf};q=0"), MetricsFormat::Prometheus));
    }

    #[test]
    fn openmetrics_names_counters_by_family_and_has_exemplars() {
        let mut text = Exposition::new(MetricsFormat::OpenMetrics, 0);
        text.add(&UNMATCHED, &[], 3);
        let at = UNIX_EPOCH + std::time::Duration::from_millis(1_500);
        let exemplar = Exemplar { trace_id: 0xa, latency_us: 700, at };
        let bucket = Bucket { edge: 1.0, exemplar: Some(&exemplar) };
        text.sample(&REQUEST_DURATION, "_bucket", &[&"inbound"], Some(&bucket), 4);
        let wanted = "# HELP outrigger_unmatched requests and connections passed through to unknown destinations\n\
             # TYPE outrigger_unmatched counter\n\
             outrigger_unmatched_total 3\n\
             # HELP outrigger_request_duration_seconds from the head of the request to the end of the response\n\
             # TYPE outrigger_request_duration_seconds histogram\n\
             outrigger_request_duration_seconds_bucket{direction=\"inbound\",le=\"1.0\"} 4 \
             # {trace_id=\"0000000000000000000000000000000a\"} 0.0007 1.500\n\
             # EOF\n";
        assert_eq!(text.into_text(), wanted);
    }

    #[test]
    fn a_metric_is_described_once_and_labels_are_escaped() {
        let mut text = Exposition::default();
        text.add(&HEDGES, &[&"won"], 1);
        text.add(&HEDGES, &[&"a \"b\"\\\n"], 2);
        text.add(&UNMATCHED, &[], 3);
        let wanted = "# HELP outrigger_hedges_total second attempts while the first one was pending\n\
             # TYPE outrigger_hedges_total counter\n\
             outrigger_hedges_total{result=\"won\"} 1\n\
             outrigger_hedges_total{result=\"a \\\"b\\\"\\\\\\n\"} 2\n\
             # HELP outrigger_unmatched_total requests and connections passed through to unknown destinations\n\
             # TYPE outrigger_unmatched_total counter\n\
             outrigger_unmatched_total 3\n";
        assert_eq!(text.into_text(), wanted);
    }
}
