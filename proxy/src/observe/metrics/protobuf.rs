//! Metrics as protocol buffers, in which a Prometheus server takes native histograms.
//!
//! A native histogram has buckets wherever there are values (Prometheus, "Native histograms"): here eight to a
//! doubling, so that a quantile is off by at most 9 %.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::time::UNIX_EPOCH;

use hdrhistogram::Histogram;
use outrigger_proto::prometheus::{
    self, Bucket, BucketSpan, Counter, Gauge, LabelPair, MetricFamily, MetricType, Timestamp,
};
use prost::Message;

use super::EDGES_US;
use super::table::{Exemplar, HistogramSample, Metric, MetricKind};

/// Edges are powers of 2^(2^-3).
const SCHEMA: i32 = 3;
const PER_DOUBLING: f64 = 8.0;
/// What is not above counts as zero: as Prometheus' own libraries have it.
const ZERO_THRESHOLD: f64 = 2.938_735_877_055_719e-39;

/// Families of metrics while they are gathered.
#[derive(Default)]
pub(super) struct Families(Vec<MetricFamily>);

impl Families {
    pub(super) fn add(&mut self, metric: &Metric, labels: &[&dyn Display], value: f64) {
        let label = pairs(metric, labels);
        let (counter, gauge) = match metric.kind {
            MetricKind::Counter => (Some(Counter { value }), None),
            MetricKind::Gauge | MetricKind::Histogram => (None, Some(Gauge { value })),
        };
        self.push(metric, prometheus::Metric { label, counter, gauge, histogram: None });
    }

    pub(super) fn histogram(
        &mut self,
        metric: &Metric,
        labels: &[&dyn Display],
        sample: &HistogramSample<'_>,
    ) {
        let label = pairs(metric, labels);
        let histogram = Some(histogram(sample));
        self.push(metric, prometheus::Metric { label, histogram, ..Default::default() });
    }

    /// Samples of one metric come one after another.
    fn push(&mut self, metric: &Metric, sample: prometheus::Metric) {
        if let Some(last) = self.0.last_mut().filter(|last| last.name == metric.name) {
            last.metric.push(sample);
            return;
        }
        let kind = match metric.kind {
            MetricKind::Counter => MetricType::Counter,
            MetricKind::Gauge => MetricType::Gauge,
            MetricKind::Histogram => MetricType::Histogram,
        };
        self.0.push(MetricFamily {
            name: metric.name.to_owned(),
            help: metric.help.to_owned(),
            r#type: kind.into(),
            metric: vec![sample],
        });
    }

    pub(super) fn into_inner(self) -> Vec<MetricFamily> {
        self.0
    }

    /// Each behind its length.
    pub(super) fn encode(&self) -> Vec<u8> {
        self.0.iter().flat_map(Message::encode_length_delimited_to_vec).collect()
    }
}

fn pairs(metric: &Metric, labels: &[&dyn Display]) -> Vec<LabelPair> {
    let named = metric.labels.iter().zip(labels);
    named
        .map(|(name, value)| LabelPair { name: (*name).to_owned(), value: value.to_string() })
        .collect()
}

fn histogram(sample: &HistogramSample<'_>) -> prometheus::Histogram {
    let HistogramSample { latencies, exemplars, sum_us } = sample;
    let finite = EDGES_US.map(|edge| (edge as f64 / 1e6, latencies.count_between(0, edge)));
    let all = finite.into_iter().chain([(f64::INFINITY, latencies.len())]);
    let bucket = all.enumerate().map(|(i, (upper_bound, cumulative_count))| Bucket {
        cumulative_count,
        upper_bound,
        exemplar: exemplars.and_then(|all| all[i].as_ref()).map(exemplar),
    });
    let (positive_span, positive_delta) = native(latencies);
    prometheus::Histogram {
        sample_count: latencies.len(),
        sample_sum: *sum_us as f64 / 1e6,
        bucket: bucket.collect(),
        schema: SCHEMA,
        zero_threshold: ZERO_THRESHOLD,
        zero_count: 0,
        positive_span,
        positive_delta,
    }
}

/// Microseconds as buckets of seconds.
fn native(latencies: &Histogram<u32>) -> (Vec<BucketSpan>, Vec<i64>) {
    let mut buckets: BTreeMap<i32, i64> = BTreeMap::new();
    for value in latencies.iter_recorded() {
        let us = latencies.median_equivalent(value.value_iterated_to());
        // The upper edge belongs to the bucket.
        let bucket = ((us as f64 / 1e6).log2() * PER_DOUBLING).ceil() as i32;
        *buckets.entry(bucket).or_default() += i64::from(value.count_at_value());
    }
    let (mut spans, mut deltas) = (Vec::<BucketSpan>::new(), Vec::new());
    let (mut next, mut before) = (0, 0);
    for (bucket, count) in buckets {
        match spans.last_mut().filter(|_| bucket == next) {
            Some(span) => span.length += 1,
            None => spans.push(BucketSpan { offset: bucket - next, length: 1 }),
        }
        deltas.push(count - before);
        (next, before) = (bucket + 1, count);
    }
    (spans, deltas)
}

/// The native buckets of a histogram in which there is something, from low to high.
pub fn native_buckets(histogram: &prometheus::Histogram) -> Vec<(i32, u64)> {
    let (mut at, mut count) = (0, 0);
    let mut deltas = histogram.positive_delta.iter();
    let mut all = Vec::new();
    for span in &histogram.positive_span {
        at += span.offset;
        for delta in deltas.by_ref().take(span.length as usize) {
            count += delta;
            all.push((at, u64::try_from(count).unwrap_or_default()));
            at += 1;
        }
    }
    all
}

/// What the values of a native bucket are about: the middle between its edges.
pub fn seconds_of(bucket: i32) -> f64 {
    ((f64::from(bucket) - 0.5) / PER_DOUBLING).exp2()
}

fn exemplar(exemplar: &Exemplar) -> prometheus::Exemplar {
    let at = exemplar.at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let value = format!("{:032x}", exemplar.trace_id);
    prometheus::Exemplar {
        label: vec![LabelPair { name: "trace_id".to_owned(), value }],
        value: exemplar.latency_us as f64 / 1e6,
        timestamp: Some(Timestamp {
            seconds: i64::try_from(at.as_secs()).unwrap_or_default(),
            nanos: i32::try_from(at.subsec_nanos()).unwrap_or_default(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(latencies_us: &[u64]) -> Histogram<u32> {
        let mut histogram = Histogram::new_with_bounds(1, 3_600_000_000, 2).unwrap();
        for us in latencies_us {
            histogram.record(*us).unwrap();
        }
        histogram
    }

    /// Upper edges and counts, read as Prometheus does.
    fn read((positive_span, positive_delta): (Vec<BucketSpan>, Vec<i64>)) -> Vec<(f64, i64)> {
        let lengths = positive_span.iter().map(|span| span.length as usize).sum::<usize>();
        assert_eq!(lengths, positive_delta.len(), "a delta for each bucket");
        let histogram =
            prometheus::Histogram { positive_span, positive_delta, ..Default::default() };
        let edge = |bucket: i32| (f64::from(bucket) / PER_DOUBLING).exp2();
        let all = native_buckets(&histogram).into_iter();
        all.map(|(bucket, n)| (edge(bucket), n as i64)).collect()
    }

    #[test]
    fn each_latency_is_in_the_bucket_that_holds_it() {
        assert_eq!(read(native(&of(&[]))), []);
        let mut seed = 7_u64;
        let mut latencies = vec![1, 2, 3, 3_600_000_000];
        for _ in 0..2_000 {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            latencies.push(1 + (seed >> 33) % (1 << (seed >> 59)));
        }
        let buckets = read(native(&of(&latencies)));
        assert_eq!(buckets.iter().map(|(_, n)| n).sum::<i64>(), latencies.len() as i64);
        assert!(buckets.windows(2).all(|pair| pair[0].0 < pair[1].0), "{buckets:?}");
        assert!(buckets.iter().all(|(_, n)| *n > 0), "{buckets:?}");
        for quantile in [0.1, 0.5, 0.9, 0.99] {
            latencies.sort_unstable();
            let rank = (latencies.len() as f64 * quantile) as i64;
            let truth = latencies[rank as usize] as f64 / 1e6;
            let mut below = 0;
            let found = buckets.iter().find(|(_, n)| {
                below += n;
                below > rank
            });
            let (upper, _) = found.unwrap();
            // A bucket, and what the two digits of the counting take away.
            assert!((0.98..1.12).contains(&(upper / truth)), "{quantile}: {upper} for {truth}");
        }
    }

    #[test]
    fn a_family_holds_its_samples_and_is_read_back() {
        let mut families = Families::default();
        families.add(&super::super::table::UNMATCHED, &[], 3.0);
        let latencies = of(&[700, 700, 40_000]);
        let exemplar = Exemplar { trace_id: 0xa, latency_us: 700, at: UNIX_EPOCH };
        let mut exemplars = [None; EDGES_US.len() + 1];
        exemplars[1] = Some(exemplar);
        let sample =
            HistogramSample { latencies: &latencies, exemplars: Some(&exemplars), sum_us: 41_400 };
        let duration = &super::super::table::REQUEST_DURATION;
        for service in ["a", "b"] {
            families.histogram(duration, &[&"inbound", &service], &sample);
        }
        let bytes = families.encode();
        let mut rest = &bytes[..];
        let first = MetricFamily::decode_length_delimited(&mut rest).unwrap();
        let second = MetricFamily::decode_length_delimited(&mut rest).unwrap();
        assert!(rest.is_empty());
        assert_eq!(
            (first.name.as_str(), first.r#type()),
            ("outrigger_unmatched_total", MetricType::Counter)
        );
        assert_eq!(first.metric[0].counter, Some(Counter { value: 3.0 }));
        assert_eq!((second.metric.len(), second.r#type()), (2, MetricType::Histogram));
        let histogram = second.metric[1].histogram.as_ref().unwrap();
        assert_eq!((histogram.sample_count, histogram.sample_sum), (3, 0.0414));
        assert_eq!(histogram.bucket.len(), EDGES_US.len() + 1);
        assert_eq!(histogram.bucket[1].cumulative_count, 2);
        assert_eq!(histogram.bucket[1].exemplar.as_ref().unwrap().label[0].value.len(), 32);
        let native = (histogram.positive_span.clone(), histogram.positive_delta.clone());
        assert_eq!(read(native).iter().map(|(_, n)| *n).collect::<Vec<_>>(), [2, 1]);
    }
}
