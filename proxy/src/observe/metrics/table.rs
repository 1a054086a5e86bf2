//! The one table of metrics: names, kinds, labels and what each tells. Exposition and docs/metrics.md follow from it.

use std::fmt::{self, Display, Write};

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
        ["direction", "service", "route", "peer", "protocol", "outcome", "status", "reason", "reason_by"],
        "requests and connections that have ended";
    REQUEST_DURATION = "outrigger_request_duration_seconds", Histogram,
        ["direction", "service", "peer", "outcome"],
        "from the head of the request to the end of the response";
    WORKER_REQUESTS = "outrigger_worker_requests_total", Counter, ["worker"],
        "requests and connections that have ended, by thread";
    RETRIES = "outrigger_retries_total", Counter, [], "attempts of requests after the first";
    RETRIES_SKIPPED = "outrigger_retries_skipped_total", Counter, ["cause"],
        "attempts wanted and not made";
    HEDGES = "outrigger_hedges_total", Counter, ["result"],
        "second attempts while the first one waited";
    FALLBACKS = "outrigger_fallbacks_total", Counter, ["service", "kind"],
        "answers given instead of failures";
    MIRRORS = "outrigger_mirrors_total", Counter, [], "copies of requests sent to a shadow";
    MIRRORS_DROPPED = "outrigger_mirrors_dropped_total", Counter, [], "copies not sent, or given up";
    UNMATCHED = "outrigger_unmatched_total", Counter, [],
        "requests and connections passed through to unknown destinations";
    UNMESHED = "outrigger_unmeshed_total", Counter, [],
        "requests and connections to endpoints without a sidecar";
    FAULTS_INJECTED = "outrigger_faults_injected_total", Counter, ["fault", "kind"],
        "attempts hit by fault injections";

    // Protection of what is called.
    BREAKER_STATE = "outrigger_breaker_state", Gauge, ["service"], "0 closed, 1 half open, 2 open";
    RETRY_BUDGET_LEFT = "outrigger_retry_budget_left", Gauge, ["service"],
        "retries that could be made now";
    ENDPOINTS_EJECTED = "outrigger_endpoints_ejected", Gauge, ["service"],
        "endpoints ejected or being probed";
    ENDPOINTS_WARMING = "outrigger_endpoints_warming", Gauge, ["service"],
        "endpoints in their slow start";
    ENDPOINTS_CHECKED = "outrigger_endpoints_checked", Gauge, ["service", "state"],
        "endpoints by what their checks say";
    HEALTH_CHECKS = "outrigger_health_checks_total", Counter, ["service", "result"],
        "checks of endpoints that ended";
    LB_PANIC = "outrigger_lb_panic_total", Counter, ["service"],
        "choices for which ejections or checks were ignored";
    LB_ZONE_SPILLOVER = "outrigger_lb_zone_spillover_total", Counter, ["service"],
        "requests sent to other zones for want of fit endpoints";
    PACING_DELAYED = "outrigger_pacing_delayed_total", Counter, ["service"],
        "requests held up for a rate limit of the service";
    PACING_REFUSED = "outrigger_pacing_refused_total", Counter, ["service"],
        "requests refused here since too many were held up already";

    // What this workload lets in.
    RATE_LIMIT_REQUESTS = "outrigger_rate_limit_requests_total", Counter,
        ["service", "port", "limit", "decision"], "requests that a rate limit has decided about";
    CONCURRENCY_LIMIT = "outrigger_concurrency_limit", Gauge, ["service", "port"],
        "requests that a port works on at a time";
    CONCURRENCY_IN_FLIGHT = "outrigger_concurrency_in_flight", Gauge, ["service", "port"],
        "requests that it works on now";
    CONCURRENCY_WAITING = "outrigger_concurrency_waiting", Gauge, ["service", "port"],
        "requests queued";
    CONCURRENCY_QUEUED = "outrigger_concurrency_queued_total", Counter, ["service", "port"],
        "requests that were queued";
    CONCURRENCY_REFUSED = "outrigger_concurrency_refused_total", Counter, ["service", "port"],
        "requests refused for want of a place";
    ACCESS_AUDITED = "outrigger_access_audited_total", Counter, [],
        "requests and streams that a policy in audit mode would have refused";
    PLAINTEXT_INBOUND = "outrigger_plaintext_inbound_total", Counter, [],
        "connections and requests let in without an identity";

    // Connections and bytes.
    CONNECTIONS_OPEN = "outrigger_connections_open", Gauge, [], "connections accepted and not closed";
    CONNECTIONS = "outrigger_connections_total", Counter, [], "connections accepted";
    CONNECTIONS_REFUSED = "outrigger_connections_refused_total", Counter, [],
        "connections over the limit or not for this proxy";
    UPSTREAM_CONNECTIONS_OPEN = "outrigger_upstream_connections_open", Gauge, [],
        "connections opened and not closed";
    UPSTREAM_CONNECTIONS = "outrigger_upstream_connections_total", Counter, [], "connections opened";
    RECEIVED_BYTES = "outrigger_received_bytes_total", Counter, [], "body and stream bytes from callers";
    SENT_BYTES = "outrigger_sent_bytes_total", Counter, [], "body and stream bytes to callers";
    TLS_HANDSHAKES = "outrigger_tls_handshakes_total", Counter, ["direction", "result"],
        "handshakes with other proxies";

    // The proxy itself.
    BUFFERED_BYTES = "outrigger_buffered_bytes", Gauge, [],
        "memory for request bodies kept for sending again";
    CACHE_REQUESTS = "outrigger_cache_requests_total", Counter, ["result"],
        "requests that a kept answer could do for";
    CACHE_STORED = "outrigger_cache_stored_total", Counter, [], "answers that were kept";
    CACHE_BYTES = "outrigger_cache_bytes", Gauge, [], "bytes of answers kept";
    CACHE_ENTRIES = "outrigger_cache_entries", Gauge, [], "answers kept";
    CORRELATION_ENTRIES = "outrigger_correlation_entries", Gauge, [],
        "inbound requests in flight that the app's own calls inherit from";
    CORRELATION_FULL = "outrigger_correlation_full_total", Counter, [],
        "inbound requests that nothing inherits from, because too many were in flight";
    RECORDS_DROPPED = "outrigger_records_dropped_total", Counter, ["sink"],
        "records of requests that a sink, such as the access log, had no room for";
    LOG_DROPPED = "outrigger_log_dropped_total", Counter, [],
        "lines of any kind dropped because nobody read the log";
    SERIES = "outrigger_metric_series", Gauge, [],
        "sets of series of requests; beyond the cap requests count as those of `other`";
    SERIES_CAP = "outrigger_metric_series_cap", Gauge, [], "most sets of series of requests";
    DISCOVERY_CONNECTED = "outrigger_discovery_connected", Gauge, [],
        "1 while the control plane's stream is open";
    DISCOVERY_RESPONSES = "outrigger_discovery_responses_total", Counter, [],
        "responses of the control plane";
    DISCOVERY_NACKS = "outrigger_discovery_nacks_total", Counter, [],
        "responses refused in whole or part";
    DISCOVERY_RECONNECTS = "outrigger_discovery_reconnects_total", Counter, [],
        "times the control plane's stream was opened";
    REGISTERED = "outrigger_registered", Gauge, [], "1 while the control plane has this workload";
    REGISTRATIONS_REFUSED = "outrigger_registrations_refused_total", Counter, [],
        "times the control plane refused this workload, or gave its name to another";
    CERTIFICATE_EXPIRY = "outrigger_certificate_expiry_timestamp_seconds", Gauge, [],
        "end of this proxy's certificate, 0 without one";
    CERTIFICATE_RENEWALS = "outrigger_certificate_renewals_total", Counter, ["result"],
        "certificates asked for";
}

/// The metrics as Prometheus reads them (text format 0.0.4), while they are written. Samples of one metric come one
/// after another.
#[derive(Default)]
pub struct Exposition {
    out: String,
    described: Option<&'static str>,
}

impl Exposition {
    pub fn with_capacity(bytes: usize) -> Self {
        Self { out: String::with_capacity(bytes), described: None }
    }

    pub fn into_text(self) -> String {
        self.out
    }

    /// One sample. `labels`: the values of the metric's labels, in their order; those that are missing at the end have none.
    pub fn add(&mut self, metric: &'static Metric, labels: &[&dyn Display], value: impl Display) {
        self.sample(metric, "", labels, None, value);
    }

    /// One sample; of a histogram `_bucket` with its upper edge, `_sum` or `_count`.
    pub fn sample(
        &mut self,
        metric: &'static Metric,
        suffix: &str,
        labels: &[&dyn Display],
        edge: Option<&dyn Display>,
        value: impl Display,
    ) {
        debug_assert!(labels.len() <= metric.labels.len(), "labels of {}", metric.name);
        // Writing to a String cannot fail.
        let _ = self.write(metric, suffix, labels, edge, &value);
    }

    fn write(
        &mut self,
        metric: &'static Metric,
        suffix: &str,
        labels: &[&dyn Display],
        edge: Option<&dyn Display>,
        value: &dyn Display,
    ) -> fmt::Result {
        let Metric { name, kind, help, .. } = metric;
        if self.described != Some(*name) {
            self.described = Some(name);
            writeln!(self.out, "# HELP {name} {help}\n# TYPE {name} {}", kind.as_str())?;
        }
        write!(self.out, "{name}{suffix}")?;
        let mut before = '{';
        let named = metric.labels.iter().copied().zip(labels.iter().copied());
        for (label, text) in named.chain(edge.map(|edge| ("le", edge))) {
            write!(self.out, "{before}{label}=\"")?;
            write!(Escaped(&mut self.out), "{text}")?;
            self.out.push('"');
            before = ',';
        }
        if before == ',' {
            self.out.push('}');
        }
        writeln!(self.out, " {value}")
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
        What `/metrics` of the admin server says, in the Prometheus text format. Generated from \
        [the table](../proxy/src/observe/metrics/table.rs) by `cargo xtask codegen`; `outrigger-proxy metrics` prints it.\n\n\
        Label values come from configuration, never from requests. Sets of series of requests are capped; beyond the cap \
        everything counts as `other`. A set in which nothing has ended for 30 minutes is given back.\n\n\
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
    fn a_metric_is_described_once_and_labels_are_escaped() {
        let mut text = Exposition::default();
        text.add(&HEDGES, &[&"won"], 1);
        text.add(&HEDGES, &[&"a \"b\"\\\n"], 2);
        text.add(&RETRIES, &[], 3);
        let wanted = "# HELP outrigger_hedges_total second attempts while the first one waited\n\
             # TYPE outrigger_hedges_total counter\n\
             outrigger_hedges_total{result=\"won\"} 1\n\
             outrigger_hedges_total{result=\"a \\\"b\\\"\\\\\\n\"} 2\n\
             # HELP outrigger_retries_total attempts of requests after the first\n\
             # TYPE outrigger_retries_total counter\n\
             outrigger_retries_total 3\n";
        assert_eq!(text.into_text(), wanted);
    }
}
