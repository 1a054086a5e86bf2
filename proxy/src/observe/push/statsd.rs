//! Metrics as StatsD packets, with tags as DogStatsD has them (Datadog, "DogStatsD datagram protocol" 1.0): what the
//! agents of Datadog, Telegraf, Vector and `statsd_exporter` read.
//!
//! Counters are told by how much they have grown, histograms as timers: one for each bucket in which values have come,
//! with a sample rate that says how many. A bucket is 9 % wide.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, SystemTime};

use outrigger_core::telemetry::Statsd;
use outrigger_proto::prometheus::{LabelPair, MetricFamily};
use tokio::net::UdpSocket;

use super::{Receiver, SeriesId};
use crate::base::settings::Settings;
use crate::observe::metrics::{native_buckets, seconds_of};
use crate::observe::otlp;

/// Bytes of a packet, so that none is cut in pieces on a network of 1,500.
const PACKET_BYTES: usize = 1_432;
/// How long the server's name may take to be looked up.
const LOOKUP: Duration = Duration::from_secs(5);

/// Sends to a server.
pub struct ToStatsd {
    /// Who this is, as tags.
    tags: String,
    known: HashMap<SeriesId, Total>,
}

/// What was counted when it was told of last.
#[derive(Clone, Debug, PartialEq)]
enum Total {
    Count(f64),
    /// By bucket.
    Timers(Vec<(i32, u64)>),
}

impl Receiver for ToStatsd {
    type Settings = Statsd;
    const FLAG: &'static str = "--statsd";

    fn every(settings: &Statsd) -> Duration {
        settings.every
    }

    fn address(settings: &Statsd) -> &str {
        &settings.address
    }

    fn new(from: &Settings, _began: SystemTime, so_far: Vec<MetricFamily>) -> Self {
        let mut tags = String::new();
        for (name, text) in otlp::identity(from) {
            let tag = match name {
                "service.name" => "app",
                "service.namespace" => "namespace",
                "k8s.pod.name" => "pod",
                _ => continue,
            };
            push_tag(&mut tags, tag, &text);
        }
        let mut new = Self { tags, known: HashMap::new() };
        new.lines(so_far);
        new
    }

    /// There is no answer: what is lost on the way is lost, here only what cannot be sent is known.
    async fn send(
        &mut self,
        settings: &Statsd,
        all: Vec<MetricFamily>,
        _now: SystemTime,
    ) -> Result<(), String> {
        let looking = tokio::time::timeout(LOOKUP, tokio::net::lookup_host(&settings.address));
        let found = looking.await.map_err(|_| format!("its name was not found in {LOOKUP:?}"))?;
        let to = found.map_err(|error| error.to_string())?.next();
        let to = to.ok_or("its name has no address")?;
        let own: SocketAddr = match to {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let socket = UdpSocket::bind(own).await.map_err(|error| error.to_string())?;
        // So that a port on which nobody listens is an error.
        socket.connect(to).await.map_err(|error| error.to_string())?;
        let mut all_sent = Ok(());
        for packet in packets(self.lines(all)) {
            // What one says is about those before it; the others may arrive.
            let sent = socket.send(packet.as_bytes()).await;
            all_sent = all_sent.and(sent.map(drop));
        }
        all_sent.map_err(|error| error.to_string())
    }
}

impl ToStatsd {
    /// A line for each change and each gauge.
    fn lines(&mut self, all: Vec<MetricFamily>) -> Vec<String> {
        let mut known = HashMap::new();
        let mut lines = Vec::new();
        for family in all {
            for one in family.metric {
                let mut tags = self.tags.clone();
                for LabelPair { name, value } in one.label.iter().filter(|l| !l.value.is_empty()) {
                    push_tag(&mut tags, name, value);
                }
                let id = (family.name.clone(), one.label);
                if let Some(gauge) = one.gauge {
                    lines.push(format!("{}:{}|g{tags}", id.0, gauge.value));
                } else if let Some(counter) = one.counter {
                    let more = counter.value - self.count(&id, counter.value);
                    if more > 0.0 {
                        lines.push(format!("{}:{more}|c{tags}", id.0));
                    }
                    known.insert(id, Total::Count(counter.value));
                } else if let Some(histogram) = one.histogram {
                    let now = native_buckets(&histogram);
                    let name = id.0.strip_suffix("_seconds").unwrap_or(&id.0);
                    for (bucket, more) in self.more(&id, &now) {
                        let (millis, rate) = (1_000.0 * seconds_of(bucket), 1.0 / more as f64);
                        lines.push(format!("{name}:{millis:.3}|ms|@{rate}{tags}"));
                    }
                    known.insert(id, Total::Timers(now));
                }
            }
        }
        self.known = known;
        lines
    }

    /// What was told of a counter; one that has become less counts anew.
    fn count(&self, id: &SeriesId, now: f64) -> f64 {
        match self.known.get(id) {
            Some(Total::Count(before)) if *before <= now => *before,
            _ => 0.0,
        }
    }

    /// What has come to the buckets of a histogram.
    fn more(&self, id: &SeriesId, now: &[(i32, u64)]) -> Vec<(i32, u64)> {
        let total = |all: &[(i32, u64)]| all.iter().map(|(_, n)| n).sum::<u64>();
        let before = match self.known.get(id) {
            Some(Total::Timers(before)) if total(before) <= total(now) => &before[..],
            _ => &[],
        };
        let told = |of: i32| before.iter().find(|(b, _)| *b == of).map_or(0, |(_, n)| *n);
        let more = now.iter().map(|(bucket, n)| (*bucket, n.saturating_sub(told(*bucket))));
        more.filter(|(_, n)| *n > 0).collect()
    }
}

/// The first one comes after `|#`. What would end a tag is replaced.
fn push_tag(tags: &mut String, name: &str, value: &str) {
    tags.push_str(if tags.is_empty() { "|#" } else { "," });
    let value = value.replace(['|', ',', '\n', '#'], "_");
    // Writing to a String cannot fail.
    let _ = write!(tags, "{name}:{value}");
}

/// Lines together, as many as fit; one that is longer goes alone.
fn packets(lines: Vec<String>) -> Vec<String> {
    let mut packets = Vec::<String>::new();
    for line in lines {
        match packets.last_mut().filter(|last| last.len() + line.len() < PACKET_BYTES) {
            Some(last) => {
                last.push('\n');
                last.push_str(&line);
            }
            None => packets.push(line),
        }
    }
    packets
}

#[cfg(test)]
mod tests {
    use hdrhistogram::Histogram;

    use super::*;
    use crate::observe::metrics::table::{self, Exposition, HistogramSample, MetricsFormat};

    fn gather(retries: u64, latencies_us: &[u64]) -> Vec<MetricFamily> {
        let mut out = Exposition::new(MetricsFormat::Protobuf, 0);
        out.add(&table::UNMATCHED, &[], retries);
        out.add(&table::BREAKER_STATE, &[&"a|b,c"], 2);
        let mut latencies = Histogram::<u32>::new_with_bounds(1, 3_600_000_000, 2).unwrap();
        for us in latencies_us {
            latencies.record(*us).unwrap();
        }
        let sample = HistogramSample { latencies: &latencies, exemplars: None, sum_us: 0 };
        out.histogram(&table::REQUEST_DURATION, &[&"inbound"], &sample);
        out.into_families()
    }

    fn new() -> ToStatsd {
        ToStatsd { tags: "|#pod:a-1".to_owned(), known: HashMap::new() }
    }

    #[test]
    fn each_change_is_told_once() {
        let mut statsd = new();
        let gauge = "outrigger_breaker_state:2|g|#pod:a-1,service:a_b_c";
        let lines = statsd.lines(gather(3, &[1_000, 1_000, 1_000, 1_000, 40_000]));
        assert_eq!(lines[..2], ["outrigger_unmatched_total:3|c|#pod:a-1", gauge]);
        let [many, one] = &lines[2..] else { panic!("{lines:?}") };
        let millis = |line: &str| -> f64 {
            let value = line.strip_prefix("outrigger_request_duration:").expect("its name");
            value.split('|').next().unwrap().parse().unwrap()
        };
        assert!((0.95..1.1).contains(&millis(many)), "{many}");
        assert!(many.ends_with("|ms|@0.25|#pod:a-1,direction:inbound"), "{many}");
        assert!((38.0..44.0).contains(&millis(one)) && one.contains("|@1|"), "{one}");
        assert_eq!(statsd.lines(gather(3, &[1_000, 1_000, 1_000, 1_000, 40_000])), [gauge]);
        // Given back, and counted anew.
        let lines = statsd.lines(gather(1, &[40_000]));
        assert_eq!(lines[0], "outrigger_unmatched_total:1|c|#pod:a-1");
        assert!(lines[2].contains("|@1|") && lines.len() == 3, "{lines:?}");
    }

    #[test]
    fn packets_are_filled_and_no_line_is_parted() {
        let lines: Vec<_> = (0..100).map(|i| format!("{i}{}", "x".repeat(i * 20))).collect();
        let packets = packets(lines.clone());
        let back: Vec<_> = packets.iter().flat_map(|packet| packet.split('\n')).collect();
        assert_eq!(back, lines);
        assert!(packets.len() < 90);
        let fits = |packet: &String| packet.len() <= PACKET_BYTES || !packet.contains('\n');
        assert!(packets.iter().all(fits));
    }
}
