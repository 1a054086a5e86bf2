//! Who calls whom, from the metrics of every sidecar: counters of all replicas of a caller, as
//! their growth over a window.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

/// Over how long rates and percentiles are taken.
const WINDOW: Duration = Duration::from_secs(5);

/// Caller and callee, by the names of their roles.
pub(crate) type Edge = (String, String);

#[derive(Debug, Default)]
pub(crate) struct Edges {
    /// The last scrape of each sidecar.
    last: BTreeMap<String, Counters>,
    growth: VecDeque<(Instant, BTreeMap<Edge, Sums>)>,
    protocols: BTreeMap<Edge, BTreeSet<String>>,
    began: Option<Instant>,
}

type Counters = BTreeMap<String, Sums>;

/// What is counted about one callee.
#[derive(Clone, Debug, Default, PartialEq)]
struct Sums {
    requests: f64,
    good: f64,
    /// Requests at or below an edge, which is in seconds: the key is its text, as exposed.
    buckets: Vec<(f64, f64)>,
}

/// A row of the table.
#[derive(Debug, PartialEq)]
pub(crate) struct Row {
    pub(crate) caller: String,
    pub(crate) callee: String,
    pub(crate) protocol: String,
    pub(crate) per_second: f64,
    pub(crate) success: f64,
    pub p50_ms: Option<f64>,
    pub p99_ms: Option<f64>,
}

impl Edges {
    /// Takes in one scrape of everybody: sidecar, role of its app, exposition.
    pub(crate) fn add(&mut self, now: Instant, scrapes: &[(String, &'static str, String)]) {
        let mut grown: BTreeMap<Edge, Sums> = BTreeMap::new();
        for (sidecar, caller, text) in scrapes {
            let (counters, protocols) = read(text);
            let before = self.last.insert(sidecar.clone(), counters.clone());
            for (callee, sums) in counters {
                let edge = ((*caller).to_owned(), callee);
                let old = before.as_ref().and_then(|before| before.get(&edge.1));
                grown.entry(edge).or_default().add(&sums, old);
            }
            for (callee, spoken) in protocols {
                let edge = ((*caller).to_owned(), callee);
                self.protocols.entry(edge).or_default().extend(spoken);
            }
        }
        self.began.get_or_insert(now);
        self.growth.push_back((now, grown));
        while self.growth.len() > 1 && now.duration_since(self.growth[0].0) > WINDOW {
            self.growth.pop_front();
        }
    }

    /// Every edge that carried something in the window.
    pub(crate) fn rows(&self) -> Vec<Row> {
        let (Some((first, _)), Some((last, _))) = (self.growth.front(), self.growth.back()) else {
            return Vec::new();
        };
        let seconds = last.duration_since(*first).as_secs_f64();
        let mut sums: BTreeMap<&Edge, Sums> = BTreeMap::new();
        // The first one's growth lies before the window.
        for (_, grown) in self.growth.iter().skip(1) {
            for (edge, grown) in grown {
                sums.entry(edge).or_default().add(grown, None);
            }
        }
        let rows = self.protocols.iter().filter_map(|(edge, protocols)| {
            let sums = sums.remove(edge).filter(|sums| sums.requests > 0.0)?;
            Some(Row {
                caller: edge.0.clone(),
                callee: edge.1.clone(),
                protocol: protocols.iter().cloned().collect::<Vec<_>>().join("+"),
                per_second: if seconds > 0.0 { sums.requests / seconds } else { 0.0 },
                success: sums.good / sums.requests,
                p50_ms: sums.percentile_ms(0.50),
                p99_ms: sums.percentile_ms(0.99),
            })
        });
        rows.collect()
    }
}

impl Sums {
    /// Adds what `new` has more than `old`.
    fn add(&mut self, new: &Self, old: Option<&Self>) {
        let zero = Self::default();
        let old = old.unwrap_or(&zero);
        self.requests += (new.requests - old.requests).max(0.0);
        self.good += (new.good - old.good).max(0.0);
        for (edge, count) in &new.buckets {
            let before = old.buckets.iter().find(|(known, _)| known == edge).map_or(0.0, |b| b.1);
            *self.bucket(*edge) += (count - before).max(0.0);
        }
    }

    fn bucket(&mut self, edge: f64) -> &mut f64 {
        let at = self.buckets.partition_point(|(known, _)| *known < edge);
        if self.buckets.get(at).is_none_or(|(known, _)| *known != edge) {
            self.buckets.insert(at, (edge, 0.0));
        }
        &mut self.buckets[at].1
    }

    /// Within its bucket the time is taken as spread evenly.
    fn percentile_ms(&self, share: f64) -> Option<f64> {
        let all = self.buckets.last()?.1;
        if all <= 0.0 {
            return None;
        }
        let wanted = all * share;
        let mut below = (0.0, 0.0);
        for (edge, count) in &self.buckets {
            if *count >= wanted {
                if edge.is_infinite() || *count <= below.1 {
                    return Some(below.0 * 1e3);
                }
                let part = (wanted - below.1) / (count - below.1);
                return Some((below.0 + (edge - below.0) * part) * 1e3);
            }
            below = (*edge, *count);
        }
        None
    }
}

/// The outbound counters of one exposition by callee, and the protocols spoken to each.
fn read(text: &str) -> (Counters, BTreeMap<String, BTreeSet<String>>) {
    let mut counters = Counters::new();
    let mut protocols: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in text.lines() {
        let Some((name, labels, value)) = sample(line) else { continue };
        let label = |key: &str| labels.iter().find(|(k, _)| *k == key).map(|(_, v)| v.as_str());
        if label("direction") != Some("outbound") {
            continue;
        }
        let Some(callee) = label("service").map(role_of) else { continue };
        match name {
            "outrigger_requests_total" => {
                let sums = counters.entry(callee.clone()).or_default();
                sums.requests += value;
                if label("outcome") == Some("success") {
                    sums.good += value;
                }
                if let Some(protocol) = label("protocol") {
                    protocols.entry(callee).or_default().insert(protocol.to_owned());
                }
            }
            "outrigger_request_duration_seconds_bucket" => {
                let edge = label("le").and_then(|le| match le {
                    "+Inf" => Some(f64::INFINITY),
                    le => le.parse().ok(),
                });
                if let Some(edge) = edge {
                    *counters.entry(callee).or_default().bucket(edge) += value;
                }
            }
            _ => {}
        }
    }
    (counters, protocols)
}

/// `bank/market-data-v1:8000` is shown as `market-data-v1`.
fn role_of(service: &str) -> String {
    let name = service.strip_prefix("bank/").unwrap_or(service);
    name.split(':').next().unwrap_or(name).to_owned()
}

/// The value of a metric without labels.
pub(crate) fn gauge(text: &str, name: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

type Sample<'a> = (&'a str, Vec<(&'a str, String)>, f64);

/// One line of the text format: name, labels, value.
fn sample(line: &str) -> Option<Sample<'_>> {
    let (name, mut rest) = line.split_once('{')?;
    let mut labels = Vec::new();
    while !rest.starts_with('}') {
        let (key, after) = rest.split_once("=\"")?;
        let mut value = String::new();
        let mut chars = after.char_indices();
        let end = loop {
            match chars.next()? {
                (at, '"') => break at,
                (_, '\\') => value.push(match chars.next()?.1 {
                    'n' => '\n',
                    other => other,
                }),
                (_, c) => value.push(c),
            }
        };
        labels.push((key, value));
        rest = &after[end + 1..];
        rest = rest.strip_prefix(',').unwrap_or(rest);
    }
    Some((name, labels, rest[1..].trim().parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exposition(ok: u32, failed: u32, fast: u32) -> String {
        let all = ok + failed;
        format!(
            "# HELP outrigger_requests_total x\n\
             outrigger_requests_total{{direction=\"outbound\",service=\"bank/fees:8000\",protocol=\"h1\",outcome=\"success\"}} {ok}\n\
             outrigger_requests_total{{direction=\"outbound\",service=\"bank/fees:8000\",protocol=\"h1\",outcome=\"failure\"}} {failed}\n\
             outrigger_requests_total{{direction=\"inbound\",service=\"bank/fees:8000\",protocol=\"h1\",outcome=\"success\"}} 9\n\
             outrigger_request_duration_seconds_bucket{{direction=\"outbound\",service=\"bank/fees:8000\",le=\"0.001\"}} {fast}\n\
             outrigger_request_duration_seconds_bucket{{direction=\"outbound\",service=\"bank/fees:8000\",le=\"0.002\"}} {all}\n\
             outrigger_request_duration_seconds_bucket{{direction=\"outbound\",service=\"bank/fees:8000\",le=\"+Inf\"}} {all}\n\
             outrigger_discovery_connected 1\n"
        )
    }

    #[test]
    fn a_row_is_the_growth_of_all_replicas() {
        let mut edges = Edges::default();
        let start = Instant::now();
        let scrape = |name: &str, text: String| (name.to_owned(), "orders", text);
        edges.add(start, &[scrape("orders-1", exposition(1_000, 0, 500))]);
        let later = start + Duration::from_secs(2);
        let both = [
            scrape("orders-1", exposition(1_008, 0, 504)),
            scrape("orders-2", exposition(7, 1, 4)),
        ];
        edges.add(later, &both);
        let rows = edges.rows();
        let want = Row {
            caller: "orders".to_owned(),
            callee: "fees".to_owned(),
            protocol: "h1".to_owned(),
            per_second: 8.0,
            success: 15.0 / 16.0,
            p50_ms: Some(1.0),
            p99_ms: Some(1.98),
        };
        assert_eq!(rows.len(), 1);
        assert!((rows[0].p99_ms.unwrap() - 1.98).abs() < 1e-9);
        assert_eq!(Row { p99_ms: Some(1.98), ..rows.into_iter().next().unwrap() }, want);
    }

    #[test]
    fn lines_of_the_text_format_are_read() {
        let (name, labels, value) = sample(r#"a{x="1,\"2\"",y=""} 3"#).unwrap();
        assert_eq!((name, value), ("a", 3.0));
        assert_eq!(labels, [("x", "1,\"2\"".to_owned()), ("y", String::new())]);
        assert!(sample("# HELP a{").is_none());
        assert_eq!(gauge("a 2\nab 3\n", "ab"), Some(3.0));
        assert_eq!(gauge("ab 3\n", "a"), None);
    }
}
