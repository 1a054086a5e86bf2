//! Exposition of everything that [`crate::observe::metrics::Metrics`] counts.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};

use hdrhistogram::Histogram;
use outrigger_core::outcome::grpc_code_name;
use outrigger_core::policy::hedge::Hedged;
use outrigger_core::policy::retry::Skip;
use outrigger_proto::prometheus::MetricFamily;

use crate::base::sync::lock;
use crate::observe::metrics::table::{self, Exposition, HistogramSample, Metric, MetricsFormat};
use crate::observe::metrics::{
    Gauges, MAX_SERIES, Metrics, Series, SeriesCounts, SeriesKey, Status, WorkerSeries,
};
use crate::proxy::Proxy;
use crate::tls::identity;
use crate::upstream::endpoint::guard;

/// A metric without labels, and where it is counted.
type Gauge = (&'static Metric, fn(&Gauges) -> &AtomicU64);

const GAUGES: &[Gauge] = &[
    (&table::CONNECTIONS_OPEN, |g| &g.connections_open),
    (&table::CONNECTIONS, |g| &g.connections_total),
    (&table::CONNECTIONS_REFUSED, |g| &g.connections_refused),
    (&table::UPSTREAM_CONNECTIONS_OPEN, |g| &g.upstream_connections_open),
    (&table::UPSTREAM_CONNECTIONS, |g| &g.upstream_connections_total),
    (&table::RECEIVED_BYTES, |g| &g.bytes_received),
    (&table::SENT_BYTES, |g| &g.bytes_sent),
    (&table::UNMATCHED, |g| &g.unmatched),
    (&table::UNMESHED, |g| &g.unmeshed),
    (&table::ACCESS_AUDITED, |g| &g.access_audited),
    (&table::BUFFERED_BYTES, |g| &g.buffered_bytes),
    (&table::CORRELATION_ENTRIES, |g| &g.correlation_entries),
    (&table::CORRELATION_FULL, |g| &g.correlation_full),
    (&table::MIRRORS, |g| &g.mirrors),
    (&table::MIRRORS_DROPPED, |g| &g.mirrors_dropped),
    (&table::DISCOVERY_CONNECTED, |g| &g.discovery_connected),
    (&table::DISCOVERY_RESPONSES, |g| &g.discovery_responses),
    (&table::DISCOVERY_NACKS, |g| &g.discovery_nacks),
    (&table::DISCOVERY_RECONNECTS, |g| &g.discovery_reconnects),
    (&table::REGISTERED, |g| &g.registered),
    (&table::REGISTRATIONS_REFUSED, |g| &g.registrations_refused),
];

/// The whole exposition.
pub fn expose(proxy: &Proxy, format: MetricsFormat) -> Vec<u8> {
    write(proxy, format).into_bytes()
}

/// All of it, for those to whom it is sent.
pub fn gather(proxy: &Proxy) -> Vec<MetricFamily> {
    write(proxy, MetricsFormat::Protobuf).into_families()
}

fn write(proxy: &Proxy, format: MetricsFormat) -> Exposition {
    let mut out = Exposition::new(format, 16 * 1024);
    write_all(&mut out, &proxy.metrics);
    out.add(&table::LOG_DROPPED, &[], proxy.log.dropped());
    guard::write_metrics(&mut out, &proxy.store.all_endpoints());
    proxy.records.expose(&mut out);
    proxy.traces.expose(&mut out);
    proxy.sent_log.expose(&mut out);
    proxy.push.expose(&mut out);
    proxy.limits.expose(&mut out);
    proxy.cache.expose(&mut out);
    proxy.faults.expose(&mut out);
    if let Some(identity) = &proxy.identity {
        write_identity(&mut out, identity.counts());
    }
    out
}

fn write_all(out: &mut Exposition, metrics: &Metrics) {
    let merged = merge(metrics);
    for (key, counts) in &merged {
        let [service, route, peer] = [key.service, key.route, key.peer].map(|l| metrics.text(l));
        for (count, n) in &counts.requests {
            let direction = key.direction.as_str();
            let (protocol, outcome) = (count.protocol.as_str(), count.outcome.as_str());
            let reason = count.cause.map_or("", |cause| cause.reason.as_str());
            let by = count.cause.map_or("", |cause| cause.named_by.as_str());
            let code = count.status.code();
            let labels: [&dyn Display; 10] = [
                &direction,
                &service,
                &route,
                &peer,
                &protocol,
                &code,
                &outcome,
                &count.status,
                &reason,
                &by,
            ];
            out.add(&table::REQUESTS, &labels, n);
        }
    }
    for (key, counts) in &by_latency_key(merged) {
        for (i, (outcome, histogram, sum)) in [
            ("success", &counts.success, counts.success_sum),
            ("failure", &counts.failure, counts.failure_sum),
        ]
        .into_iter()
        .enumerate()
        {
            let exemplars = counts.exemplars.as_ref().map(|all| &all[i]);
            if let Some(latencies) = histogram {
                let sample = HistogramSample { latencies, exemplars, sum_us: sum };
                write_histogram(out, metrics, (key, outcome), &sample);
            }
        }
    }
    for (skip, counter) in Skip::ALL.iter().zip(&metrics.gauges.retries_skipped) {
        out.add(&table::RETRIES_SKIPPED, &[&skip.as_str()], counter.load(Relaxed));
    }
    for (hedged, counter) in Hedged::ALL.iter().zip(&metrics.gauges.hedges) {
        out.add(&table::HEDGES, &[&hedged.as_str()], counter.load(Relaxed));
    }
    for (worker, n) in metrics.workers.iter().map(worker_total).enumerate() {
        out.add(&table::WORKER_REQUESTS, &[&worker], n);
    }
    for (metric, of) in GAUGES {
        out.add(metric, &[], of(&metrics.gauges).load(Relaxed));
    }
    out.add(&table::SERIES, &[], lock(&metrics.admitted).len());
    out.add(&table::SERIES_CAP, &[], MAX_SERIES);
}

fn worker_total(worker: &Mutex<WorkerSeries>) -> u64 {
    let all = lock(worker);
    let sum = |one: &Arc<Series>| lock(&one.inner).requests.iter().map(|(_, n)| n).sum::<u64>();
    all.given_back + all.series.iter().map(sum).sum::<u64>()
}

/// Every worker's counts, added up. Each set is locked only while it is copied.
fn merge(metrics: &Metrics) -> BTreeMap<SeriesKey, SeriesCounts> {
    let mut merged: BTreeMap<SeriesKey, SeriesCounts> = BTreeMap::new();
    for worker in &metrics.workers {
        let series = lock(worker).series.clone();
        for one in series {
            let counts = lock(&one.inner).clone();
            merged.entry(one.key).or_default().add(counts);
        }
    }
    merged
}

/// Latency has no `route` label: sums over routes.
fn by_latency_key(merged: BTreeMap<SeriesKey, SeriesCounts>) -> BTreeMap<SeriesKey, SeriesCounts> {
    let mut summed: BTreeMap<SeriesKey, SeriesCounts> = BTreeMap::new();
    for (key, counts) in merged {
        let key = SeriesKey { route: crate::observe::metrics::Label::NONE, ..key };
        summed.entry(key).or_default().add(counts);
    }
    summed
}

impl SeriesCounts {
    fn add(&mut self, other: SeriesCounts) {
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
        let Some(new) = other.exemplars else { return };
        let own = self.exemplars.get_or_insert_default();
        for (own, new) in own.as_flattened_mut().iter_mut().zip(new.as_flattened()) {
            if own.is_none_or(|own| new.is_some_and(|new| new.at > own.at)) {
                *own = *new;
            }
        }
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

fn write_histogram(
    out: &mut Exposition,
    metrics: &Metrics,
    (key, outcome): (&SeriesKey, &str),
    sample: &HistogramSample<'_>,
) {
    let (service, peer) = (metrics.text(key.service), metrics.text(key.peer));
    let labels: [&dyn Display; 4] = [&key.direction.as_str(), &service, &peer, &outcome];
    out.histogram(&table::REQUEST_DURATION, &labels, sample);
}

fn write_identity(out: &mut Exposition, counts: &identity::IdentityCounts) {
    let read = |counter: &AtomicU64| counter.load(Relaxed);
    out.add(&table::CERTIFICATE_EXPIRY, &[], read(&counts.certificate_expiry));
    for (result, counter) in
        [("success", &counts.renewals_succeeded), ("failure", &counts.renewals_failed)]
    {
        out.add(&table::CERTIFICATE_RENEWALS, &[&result], read(counter));
    }
    for (direction, result, counter) in [
        ("inbound", "full", &counts.accepted_full),
        ("inbound", "resumed", &counts.accepted_resumed),
        ("inbound", "failed", &counts.accept_failed),
        ("outbound", "full", &counts.connected_full),
        ("outbound", "resumed", &counts.connected_resumed),
        ("outbound", "failed", &counts.connect_failed),
    ] {
        out.add(&table::TLS_HANDSHAKES, &[&direction, &result], read(counter));
    }
    out.add(&table::PLAINTEXT_INBOUND, &[], read(&counts.plaintext_inbound));
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http(code @ 100..) => write!(f, "{}xx", code / 100),
            Self::Http(class) => write!(f, "{class}xx"),
            Self::Grpc(code) => f.write_str(grpc_code_name(*code)),
            Self::Stream | Self::None => Ok(()),
        }
    }
}
