//! Metrics by OTLP: those of `/metrics`, by the same names, as totals since a time that is said.

use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_client::MetricsServiceClient;
use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsServiceRequest, ExportMetricsServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::metrics::v1::exemplar::Value as ExemplarValue;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value;
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Exemplar, Gauge, Histogram, HistogramDataPoint, Metric,
    NumberDataPoint, ResourceMetrics, ScopeMetrics, Sum,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use outrigger_core::telemetry::OtlpMetrics;
use outrigger_proto::prometheus::{self, LabelPair, MetricFamily, MetricType};
use tonic::transport::Channel;

use super::{Receiver, SeriesId};
use crate::base::settings::Settings;
use crate::observe::otlp::{self, CollectorLink, Signal};

struct MetricsSignal;

impl Signal for MetricsSignal {
    type Request = ExportMetricsServiceRequest;
    type Response = ExportMetricsServiceResponse;
    const PATH: &'static str = "/v1/metrics";

    async fn call(
        channel: Channel,
        request: Self::Request,
    ) -> Result<tonic::Response<Self::Response>, tonic::Status> {
        MetricsServiceClient::new(channel).export(request).await
    }

    fn partly_refused(response: Self::Response) -> Option<(i64, String)> {
        response.partial_success.map(|part| (part.rejected_data_points, part.error_message))
    }
}

/// Sends to a collector.
pub struct ByOtlp {
    resource: Resource,
    link: CollectorLink<MetricsSignal>,
    starts: Starts,
}

impl Receiver for ByOtlp {
    type Settings = OtlpMetrics;
    const FLAG: &'static str = "--otlp-metrics";

    fn every(settings: &OtlpMetrics) -> Duration {
        settings.every
    }

    fn address(settings: &OtlpMetrics) -> &str {
        &settings.collector.address
    }

    /// Totals are sent, so what was counted before is among them.
    fn new(from: &Settings, began: SystemTime, _so_far: Vec<MetricFamily>) -> Self {
        let (link, starts) = (CollectorLink::default(), Starts::at(began));
        Self { resource: otlp::resource(from), link, starts }
    }

    async fn send(
        &mut self,
        settings: &OtlpMetrics,
        all: Vec<MetricFamily>,
        now: SystemTime,
    ) -> Result<(), String> {
        let metrics = self.starts.metrics(all, now);
        let scope = Some(otlp::scope());
        let scope_metrics = vec![ScopeMetrics { scope, metrics, ..Default::default() }];
        let resource = Some(self.resource.clone());
        let resource = ResourceMetrics { resource, scope_metrics, ..Default::default() };
        let request = ExportMetricsServiceRequest { resource_metrics: vec![resource] };
        self.link.send(&settings.collector, request).await.map(drop)
    }
}

/// Since when each total counts: one that has become less was given back meanwhile and counts anew, and a backend is
/// told so by its start (OpenTelemetry Metrics Data Model, "Resets and Gaps").
struct Starts {
    /// When the last one was sent, at first when counting began.
    last: SystemTime,
    known: HashMap<SeriesId, (SystemTime, u64)>,
}

impl Starts {
    fn at(began: SystemTime) -> Self {
        Self { last: began, known: HashMap::new() }
    }

    fn metrics(&mut self, all: Vec<MetricFamily>, now: SystemTime) -> Vec<Metric> {
        let mut known = HashMap::new();
        let metrics = all.into_iter().map(|family| {
            let (name, description) = (family.name.clone(), family.help.clone());
            let data = Some(self.data(family, now, &mut known));
            Metric { name, description, data, ..Default::default() }
        });
        let metrics = metrics.collect();
        // What is not there any more is not remembered.
        self.known = known;
        self.last = now;
        metrics
    }

    fn data(
        &self,
        family: MetricFamily,
        now: SystemTime,
        known: &mut HashMap<SeriesId, (SystemTime, u64)>,
    ) -> Data {
        let time = nanos(now);
        let cumulative = AggregationTemporality::Cumulative.into();
        let kind = family.r#type();
        let mut since = |labels: &[LabelPair], total: u64| {
            let id = (family.name.clone(), labels.to_vec());
            let start = match self.known.get(&id) {
                Some((start, before)) if *before <= total => *start,
                _ => self.last,
            };
            known.insert(id, (start, total));
            nanos(start)
        };
        let number = |labels: Vec<LabelPair>, start: u64, value: Value| NumberDataPoint {
            attributes: attributes(labels),
            start_time_unix_nano: start,
            time_unix_nano: time,
            value: Some(value),
            ..Default::default()
        };
        match kind {
            MetricType::Counter => {
                let points = family.metric.into_iter().map(|one| {
                    // Counts are whole, and below what a double holds.
                    let total = one.counter.map_or(0.0, |counter| counter.value) as u64;
                    let start = since(&one.label, total);
                    let total = i64::try_from(total).unwrap_or(i64::MAX);
                    number(one.label, start, Value::AsInt(total))
                });
                let data_points = points.collect();
                Data::Sum(Sum {
                    data_points,
                    aggregation_temporality: cumulative,
                    is_monotonic: true,
                })
            }
            MetricType::Gauge => {
                let points = family.metric.into_iter().map(|one| {
                    let value = one.gauge.map_or(0.0, |gauge| gauge.value);
                    number(one.label, 0, Value::AsDouble(value))
                });
                Data::Gauge(Gauge { data_points: points.collect() })
            }
            MetricType::Histogram => {
                let points = family.metric.into_iter().filter_map(|one| {
                    let histogram = one.histogram?;
                    let start = since(&one.label, histogram.sample_count);
                    Some(buckets(one.label, &histogram, (start, time)))
                });
                let data_points = points.collect();
                Data::Histogram(Histogram { data_points, aggregation_temporality: cumulative })
            }
        }
    }
}

fn buckets(
    labels: Vec<LabelPair>,
    histogram: &prometheus::Histogram,
    (start, time): (u64, u64),
) -> HistogramDataPoint {
    let mut below = 0;
    let counts = histogram.bucket.iter().map(|bucket| {
        let count = bucket.cumulative_count.saturating_sub(below);
        below = bucket.cumulative_count;
        count
    });
    let bounds = histogram.bucket.iter().map(|bucket| bucket.upper_bound);
    let exemplars = histogram.bucket.iter().filter_map(|bucket| bucket.exemplar.as_ref());
    HistogramDataPoint {
        attributes: attributes(labels),
        start_time_unix_nano: start,
        time_unix_nano: time,
        count: histogram.sample_count,
        sum: Some(histogram.sample_sum),
        bucket_counts: counts.collect(),
        explicit_bounds: bounds.filter(|bound| bound.is_finite()).collect(),
        exemplars: exemplars.filter_map(exemplar).collect(),
        ..Default::default()
    }
}

fn exemplar(one: &prometheus::Exemplar) -> Option<Exemplar> {
    let trace_id = u128::from_str_radix(&one.label.first()?.value, 16).ok()?;
    let at = one.timestamp.unwrap_or_default();
    let seconds = u64::try_from(at.seconds).unwrap_or_default();
    let nanos = u64::try_from(at.nanos).unwrap_or_default();
    Some(Exemplar {
        trace_id: trace_id.to_be_bytes().to_vec(),
        time_unix_nano: seconds.saturating_mul(1_000_000_000).saturating_add(nanos),
        value: Some(ExemplarValue::AsDouble(one.value)),
        ..Default::default()
    })
}

fn attributes(labels: Vec<LabelPair>) -> Vec<KeyValue> {
    // One without a value says nothing, as in the text.
    let said = labels.into_iter().filter(|label| !label.value.is_empty());
    said.map(|LabelPair { name, value }| otlp::attribute(name, value)).collect()
}

fn nanos(at: SystemTime) -> u64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use hdrhistogram::Histogram as Latencies;

    use super::*;
    use crate::observe::metrics::table::{self, Exposition, HistogramSample, MetricsFormat};

    fn gather(write: impl FnOnce(&mut Exposition)) -> Vec<MetricFamily> {
        let mut out = Exposition::new(MetricsFormat::Protobuf, 0);
        write(&mut out);
        out.into_families()
    }

    fn seconds(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    /// Start and value of the only point.
    fn only(metrics: &[Metric]) -> (u64, i64) {
        let [metric] = metrics else { panic!("{metrics:?}") };
        let Some(Data::Sum(sum)) = &metric.data else { panic!("{metric:?}") };
        let [point] = &sum.data_points[..] else { panic!("{sum:?}") };
        let Some(Value::AsInt(value)) = point.value else { panic!("{point:?}") };
        (point.start_time_unix_nano / 1_000_000_000, value)
    }

    #[test]
    fn a_total_says_since_when_it_counts_and_begins_anew_when_it_was_given_back() {
        let mut starts = Starts::at(seconds(1));
        let mut at = |time, total| {
            only(
                &starts
                    .metrics(gather(|out| out.add(&table::UNMATCHED, &[], total)), seconds(time)),
            )
        };
        assert_eq!(at(10, 3), (1, 3));
        assert_eq!(at(20, 3), (1, 3));
        assert_eq!(at(30, 7), (1, 7));
        assert_eq!(at(40, 2), (30, 2), "less than before");
        assert_eq!(at(50, 9), (30, 9));
        assert!(starts.metrics(Vec::new(), seconds(60)).is_empty());
        let back = starts.metrics(gather(|out| out.add(&table::UNMATCHED, &[], 12)), seconds(70));
        assert_eq!(only(&back), (60, 12), "it was gone between");
    }

    #[test]
    fn a_histogram_has_each_value_in_one_bucket_and_its_exemplar() {
        let mut latencies = Latencies::<u32>::new_with_bounds(1, 3_600_000_000, 2).unwrap();
        for us in [400, 700, 700, 20_000_000] {
            latencies.record(us).unwrap();
        }
        let mut exemplars = [None; 15];
        exemplars[1] = Some(table::Exemplar { trace_id: 0xa, latency_us: 700, at: seconds(5) });
        let sample = HistogramSample {
            latencies: &latencies,
            exemplars: Some(&exemplars),
            sum_us: 20_001_800,
        };
        let families = gather(|out| {
            out.histogram(&table::REQUEST_DURATION, &[&"inbound", &"bank/a:80", &""], &sample);
        });
        let metrics = Starts::at(seconds(1)).metrics(families, seconds(9));
        let Some(Data::Histogram(histogram)) = &metrics[0].data else { panic!("{metrics:?}") };
        let point = &histogram.data_points[0];
        assert_eq!(point.bucket_counts.len(), point.explicit_bounds.len() + 1);
        assert_eq!(point.bucket_counts[..3], [1, 2, 0]);
        assert_eq!((point.bucket_counts.last(), point.count), (Some(&1), 4));
        assert_eq!(point.sum, Some(20.0018));
        assert_eq!(point.exemplars[0].trace_id[15], 0xa);
        assert_eq!(point.exemplars[0].time_unix_nano, 5_000_000_000);
        let names: Vec<_> = point.attributes.iter().map(|one| one.key.as_str()).collect();
        assert_eq!(names, ["direction", "service"], "a label without a value is none");
    }
}
