//! Prometheus text of everything that [`super::Metrics`] counts.

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use hdrhistogram::Histogram;
use outrigger_core::outcome::grpc_code_name;
use outrigger_core::policy::hedge::Hedged;
use outrigger_core::policy::retry::Skip;

use crate::proxy::Proxy;
use crate::{guard, identity};

use super::{CountKey, Counts, Gauges, Metrics, Series, SeriesKey, Status, lock};

/// Upper edges of the latency buckets, in microseconds: 0.5 ms to 10 s.
const EDGES_US: [u64; 14] = [
    500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    2_500_000, 5_000_000, 10_000_000,
];

/// Name, kind, help and place of what has no labels.
type Gauge = (&'static str, &'static str, &'static str, fn(&Gauges) -> &AtomicU64);

const GAUGES: &[Gauge] = &[
    ("outrigger_connections_open", "gauge", "connections accepted and not closed", |g| {
        &g.connections_open
    }),
    ("outrigger_connections_total", "counter", "connections accepted", |g| &g.connections_total),
    (
        "outrigger_connections_refused_total",
        "counter",
        "connections over the limit or not for this proxy",
        |g| &g.connections_refused,
    ),
    ("outrigger_upstream_connections_open", "gauge", "connections opened and not closed", |g| {
        &g.upstream_connections_open
    }),
    ("outrigger_upstream_connections_total", "counter", "connections opened", |g| {
        &g.upstream_connections_total
    }),
    ("outrigger_received_bytes_total", "counter", "body and stream bytes from callers", |g| {
        &g.bytes_received
    }),
    ("outrigger_sent_bytes_total", "counter", "body and stream bytes to callers", |g| {
        &g.bytes_sent
    }),
    ("outrigger_retries_total", "counter", "tries of requests after the first", |g| &g.retries),
    (
        "outrigger_unmatched_total",
        "counter",
        "requests and connections passed through to unknown destinations",
        |g| &g.unmatched,
    ),
    (
        "outrigger_unmeshed_total",
        "counter",
        "requests and connections to endpoints without a sidecar",
        |g| &g.unmeshed,
    ),
    (
        "outrigger_access_audited_total",
        "counter",
        "requests and streams that a policy in audit mode would have refused",
        |g| &g.access_audited,
    ),
    (
        "outrigger_buffered_bytes",
        "gauge",
        "memory for request bodies kept for sending again",
        |g| &g.buffered_bytes,
    ),
    (
        "outrigger_correlation_entries",
        "gauge",
        "inbound requests in flight that the app's own calls inherit from",
        |g| &g.correlation_entries,
    ),
    (
        "outrigger_correlation_full_total",
        "counter",
        "inbound requests that nothing inherits from, because too many were in flight",
        |g| &g.correlation_full,
    ),
    (
        "outrigger_access_log_dropped_total",
        "counter",
        "access log lines dropped because the writer fell behind",
        |g| &g.access_log_dropped,
    ),
    ("outrigger_mirrors_total", "counter", "copies of requests sent to a shadow", |g| &g.mirrors),
    ("outrigger_mirrors_dropped_total", "counter", "copies not sent, or given up", |g| {
        &g.mirrors_dropped
    }),
    ("outrigger_discovery_connected", "gauge", "1 while the control plane's stream is open", |g| {
        &g.discovery_connected
    }),
    ("outrigger_discovery_responses_total", "counter", "responses of the control plane", |g| {
        &g.discovery_responses
    }),
    ("outrigger_discovery_nacks_total", "counter", "responses refused in whole or part", |g| {
        &g.discovery_nacks
    }),
    (
        "outrigger_discovery_reconnects_total",
        "counter",
        "times the control plane's stream was opened",
        |g| &g.discovery_reconnects,
    ),
    ("outrigger_registered", "gauge", "1 while the control plane has this workload", |g| {
        &g.registered
    }),
    (
        "outrigger_registrations_refused_total",
        "counter",
        "times the control plane refused this workload, or gave its name to another",
        |g| &g.registrations_refused,
    ),
];

/// The whole exposition, in the Prometheus text format 0.0.4.
pub fn expose(proxy: &Proxy) -> String {
    let mut out = String::with_capacity(16 * 1024);
    // Writing to a String cannot fail.
    let _ = write_all(&mut out, &proxy.metrics);
    let _ = write_log_dropped(&mut out, proxy.log.dropped());
    let _ = guard::write_metrics(&mut out, &proxy.store.all_endpoints());
    let _ = proxy.limits.expose(&mut out);
    let _ = proxy.cache.expose(&mut out);
    let _ = proxy.experiments.expose(&mut out);
    if let Some(identity) = &proxy.identity {
        let _ = write_identity(&mut out, identity.counts());
    }
    out
}

fn write_all(out: &mut String, metrics: &Metrics) -> fmt::Result {
    let merged = merge(metrics);
    header(out, "outrigger_requests_total", "counter", "requests and connections that have ended")?;
    for (key, counts) in &merged {
        for (count, n) in &counts.requests {
            write!(out, "outrigger_requests_total{{")?;
            write_key(out, metrics, key, true)?;
            write_count(out, count)?;
            writeln!(out, "}} {n}")?;
        }
    }
    header(
        out,
        "outrigger_request_duration_seconds",
        "histogram",
        "from the head of the request to the end of the response",
    )?;
    for (key, counts) in &by_latency_key(merged) {
        for (outcome, histogram, sum) in [
            ("success", &counts.success, counts.success_sum),
            ("failure", &counts.failure, counts.failure_sum),
        ] {
            if let Some(histogram) = histogram {
                write_histogram(out, metrics, key, outcome, histogram, sum)?;
            }
        }
    }
    header(
        out,
        "outrigger_retries_skipped_total",
        "counter",
        "tries wanted and not made, by cause",
    )?;
    for (skip, counter) in Skip::ALL.iter().zip(&metrics.gauges.retries_skipped) {
        let (cause, n) = (skip.as_str(), counter.load(Relaxed));
        writeln!(out, "outrigger_retries_skipped_total{{cause=\"{cause}\"}} {n}")?;
    }
    header(out, "outrigger_hedges_total", "counter", "second tries while the first one waited")?;
    for (hedged, counter) in Hedged::ALL.iter().zip(&metrics.gauges.hedges) {
        let (result, n) = (hedged.as_str(), counter.load(Relaxed));
        writeln!(out, "outrigger_hedges_total{{result=\"{result}\"}} {n}")?;
    }
    header(out, "outrigger_worker_requests_total", "counter", "the same, by thread")?;
    for (worker, n) in metrics.workers.iter().map(worker_total).enumerate() {
        writeln!(out, "outrigger_worker_requests_total{{worker=\"{worker}\"}} {n}")?;
    }
    write_gauges(out, metrics)
}

fn worker_total(worker: &Mutex<Vec<Arc<Series>>>) -> u64 {
    let series = lock(worker).clone();
    series.iter().map(|one| lock(&one.inner).requests.iter().map(|(_, n)| n).sum::<u64>()).sum()
}

/// Every worker's counts, added up. Each set is locked only while it is copied.
fn merge(metrics: &Metrics) -> BTreeMap<SeriesKey, Counts> {
    let mut merged: BTreeMap<SeriesKey, Counts> = BTreeMap::new();
    for worker in &metrics.workers {
        let series = lock(worker).clone();
        for one in series {
            let counts = lock(&one.inner).clone();
            merged.entry(one.key).or_default().add(counts);
        }
    }
    merged
}

/// Latency has no `route` label: sums over routes.
fn by_latency_key(merged: BTreeMap<SeriesKey, Counts>) -> BTreeMap<SeriesKey, Counts> {
    let mut summed: BTreeMap<SeriesKey, Counts> = BTreeMap::new();
    for (key, counts) in merged {
        let key = SeriesKey { route: super::Label::NONE, ..key };
        summed.entry(key).or_default().add(counts);
    }
    summed
}

impl Counts {
    fn add(&mut self, other: Counts) {
        for (key, n) in other.requests {
            match self.requests.iter_mut().find(|(known, _)| *known == key) {
                Some((_, sum)) => *sum += n,
                None => self.requests.push((key, n)),
            }
        }
        self.success_sum += other.success_sum;
        self.failure_sum += other.failure_sum;
        add_histogram(&mut self.success, other.success);
        add_histogram(&mut self.failure, other.failure);
    }
}

fn add_histogram(to: &mut Option<Box<Histogram<u32>>>, from: Option<Box<Histogram<u32>>>) {
    match (to.as_mut(), from) {
        // Bounds are equal everywhere, so adding cannot fail.
        (Some(to), Some(from)) => drop(to.add(&*from)),
        (None, from) => *to = from,
        (Some(_), None) => {}
    }
}

fn header(out: &mut String, name: &str, kind: &str, help: &str) -> fmt::Result {
    writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}")
}

fn write_key(out: &mut String, metrics: &Metrics, key: &SeriesKey, route: bool) -> fmt::Result {
    write!(out, "direction=\"{}\",service=\"", key.direction.as_str())?;
    escape(out, &metrics.text(key.service))?;
    if route {
        out.push_str("\",route=\"");
        escape(out, &metrics.text(key.route))?;
    }
    out.push_str("\",peer=\"");
    escape(out, &metrics.text(key.peer))?;
    out.push('"');
    Ok(())
}

fn write_count(out: &mut String, count: &CountKey) -> fmt::Result {
    write!(
        out,
        ",protocol=\"{}\",outcome=\"{}\",status=\"{}\",reason=\"{}\"",
        count.protocol.as_str(),
        count.outcome.as_str(),
        count.status,
        count.reason.map_or("", |reason| reason.as_str()),
    )
}

fn write_histogram(
    out: &mut String,
    metrics: &Metrics,
    key: &SeriesKey,
    outcome: &str,
    histogram: &Histogram<u32>,
    sum_us: u64,
) -> fmt::Result {
    let mut labels = String::new();
    write_key(&mut labels, metrics, key, false)?;
    write!(labels, ",outcome=\"{outcome}\"")?;
    let name = "outrigger_request_duration_seconds";
    for edge in EDGES_US {
        let below = histogram.count_between(0, edge);
        writeln!(out, "{name}_bucket{{{labels},le=\"{}\"}} {below}", edge as f64 / 1e6)?;
    }
    let all = histogram.len();
    writeln!(out, "{name}_bucket{{{labels},le=\"+Inf\"}} {all}")?;
    writeln!(out, "{name}_sum{{{labels}}} {}", sum_us as f64 / 1e6)?;
    writeln!(out, "{name}_count{{{labels}}} {all}")
}

fn write_gauges(out: &mut String, metrics: &Metrics) -> fmt::Result {
    for (name, kind, help, of) in GAUGES {
        header(out, name, kind, help)?;
        writeln!(out, "{name} {}", of(&metrics.gauges).load(Relaxed))?;
    }
    Ok(())
}

fn write_log_dropped(out: &mut String, dropped: u64) -> fmt::Result {
    let name = "outrigger_log_dropped_total";
    header(out, name, "counter", "lines of any kind dropped because nobody read the log")?;
    writeln!(out, "{name} {dropped}")
}

fn write_identity(out: &mut String, counts: &identity::Counts) -> fmt::Result {
    let read = |counter: &AtomicU64| counter.load(Relaxed);
    let name = "outrigger_certificate_expiry_timestamp_seconds";
    header(out, name, "gauge", "end of this proxy's certificate, 0 without one")?;
    writeln!(out, "{name} {}", read(&counts.certificate_expiry))?;
    let name = "outrigger_certificate_renewals_total";
    header(out, name, "counter", "certificates asked for")?;
    writeln!(out, "{name}{{result=\"success\"}} {}", read(&counts.renewals_succeeded))?;
    writeln!(out, "{name}{{result=\"failure\"}} {}", read(&counts.renewals_failed))?;
    let name = "outrigger_tls_handshakes_total";
    header(out, name, "counter", "handshakes with other proxies")?;
    for (direction, kind, counter) in [
        ("inbound", "full", &counts.accepted_full),
        ("inbound", "resumed", &counts.accepted_resumed),
        ("inbound", "failed", &counts.accept_failed),
        ("outbound", "full", &counts.connected_full),
        ("outbound", "resumed", &counts.connected_resumed),
        ("outbound", "failed", &counts.connect_failed),
    ] {
        let n = read(counter);
        writeln!(out, "{name}{{direction=\"{direction}\",result=\"{kind}\"}} {n}")?;
    }
    let name = "outrigger_plaintext_inbound_total";
    header(out, name, "counter", "connections and requests let in without an identity")?;
    writeln!(out, "{name} {}", read(&counts.plaintext_inbound))
}

/// Escapes a label value (text format 0.0.4).
fn escape(out: &mut String, text: &str) -> fmt::Result {
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            c => out.push(c),
        }
    }
    Ok(())
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http(class) => write!(f, "{class}xx"),
            Self::Grpc(code) => f.write_str(grpc_code_name(*code)),
            Self::Stream => Ok(()),
        }
    }
}
