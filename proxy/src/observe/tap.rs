//! Taps: requests that somebody wants to see while they happen.
//!
//! Where no tap is on, a request asks one flag. Where one is, what is known of the request at its end is compared
//! with it before a record is made; the thread that is not traffic does the rest ([`crate::mesh::tap`]).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};

use arc_swap::ArcSwap;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use outrigger_core::tap::{HEADERS, LINE_BYTES, Tap, TapFacts};
use outrigger_logging::Record as _;
use serde::Serialize;
use tokio::sync::mpsc;

use crate::observe::access_log::Line;
use crate::observe::bus::Sink;
use crate::observe::metrics::add;
use crate::observe::record::{Ending, Rare, Record};

/// Records that wait for being shown, and beyond which others are dropped.
const WAITING: usize = 256;
/// Bytes of a header's value that are kept; the rest is cut off.
const VALUE_BYTES: usize = 1_024;

/// All taps that are on.
pub struct Taps {
    /// Whether there are any: asked for each request.
    on: AtomicBool,
    /// Whether any shows headers: asked for each request.
    shows_headers: AtomicBool,
    active: ArcSwap<Vec<ActiveTap>>,
    records: mpsc::Sender<Box<Record>>,
}

/// A tap, and what it has shown.
struct ActiveTap {
    tap: Tap,
    /// Within this second.
    shown: AtomicU32,
    /// Requests that matched beyond that, and have not been told of.
    not_shown: AtomicU64,
}

impl ActiveTap {
    /// Whether it may show another one now; else that is counted.
    fn has_room(&self) -> bool {
        let has_room = self.shown.load(Relaxed) < self.tap.max_per_second;
        if !has_room {
            add(&self.not_shown, 1);
        }
        has_room
    }
}

impl Taps {
    /// And where records come that may be shown.
    pub fn new() -> (Arc<Self>, mpsc::Receiver<Box<Record>>) {
        let (records, wanted) = mpsc::channel(WAITING);
        let taps = Self {
            on: AtomicBool::new(false),
            shows_headers: AtomicBool::new(false),
            active: ArcSwap::default(),
            records,
        };
        (Arc::new(taps), wanted)
    }

    /// Changes which taps are on.
    pub fn configure(&self, taps: Vec<Tap>) {
        let shows_headers = taps.iter().any(|tap| !tap.headers.is_empty());
        let on = !taps.is_empty();
        let known = self.active.load();
        let active = taps.into_iter().map(|tap| {
            let same = known.iter().find(|known| known.tap == tap);
            let shown = same.map_or(0, |same| same.shown.load(Relaxed));
            let not_shown = same.map_or(0, |same| same.not_shown.load(Relaxed));
            ActiveTap { shown: AtomicU32::new(shown), not_shown: AtomicU64::new(not_shown), tap }
        });
        self.active.store(Arc::new(active.collect()));
        self.shows_headers.store(shows_headers, Relaxed);
        self.on.store(on, Relaxed);
    }

    /// Whether any tap is on.
    pub fn is_on(&self) -> bool {
        self.on.load(Relaxed)
    }

    /// The headers of a request that taps want to see.
    #[inline]
    pub fn headers(&self, headers: &HeaderMap) -> Option<Box<Rare>> {
        if self.shows_headers.load(Relaxed) { self.read_headers(headers) } else { None }
    }

    fn read_headers(&self, headers: &HeaderMap) -> Option<Box<Rare>> {
        let mut kept: Vec<(HeaderName, HeaderValue)> = Vec::new();
        for name in self.active.load().iter().flat_map(|active| &active.tap.headers) {
            if kept.len() >= HEADERS || kept.iter().any(|(known, _)| known == name) {
                continue;
            }
            // Memory of its own: the head's buffer is far larger.
            let value = headers.get(name).map(HeaderValue::as_bytes);
            let value = value.map(|value| value.get(..VALUE_BYTES).unwrap_or(value));
            if let Some(value) = value.and_then(|value| HeaderValue::from_bytes(value).ok()) {
                kept.push((name.clone(), value));
            }
        }
        (!kept.is_empty()).then(|| Box::new(Rare { headers: kept, ..Rare::default() }))
    }

    /// Whether a tap has room for a request that ended so.
    fn matches(&self, ending: &Ending<'_>) -> bool {
        let facts = TapFacts {
            direction: ending.direction.as_str(),
            method: ending.method.map_or("", Method::as_str),
            path: ending.path.map_or("", |path| path.path()),
            status: ending.code,
            reason: ending.cause.map(|cause| cause.reason),
            duration: ending.duration,
        };
        let active = self.active.load();
        let rooms = active.iter().filter(|active| active.tap.filter.matches(&facts));
        // Each of them is asked, and counts what it does not show.
        rooms.filter(|active| active.has_room()).count() > 0
    }

    /// What each tap shows of a record: its number, and a line.
    pub fn lines(&self, record: &Record) -> Vec<(u64, String)> {
        let facts = TapFacts {
            direction: record.direction.as_str(),
            method: record.method.as_ref().map_or("", Method::as_str),
            path: record.path.as_deref().unwrap_or_default(),
            status: record.code,
            reason: record.cause.map(|cause| cause.reason),
            duration: record.duration,
        };
        let active = self.active.load();
        let showing = active.iter().filter(|active| {
            let filter = &active.tap.filter;
            filter.matches(&facts)
                && filter.names(&record.service, &record.peer)
                && active.has_room()
        });
        let line = |active: &ActiveTap| {
            active.shown.fetch_add(1, Relaxed);
            let line = TapLine { line: Line::from(record), headers: shown(record, &active.tap) };
            Some((active.tap.id, serde_json::to_string(&line).ok()?))
        };
        showing.filter_map(line).collect()
    }

    /// A new second begins.
    pub fn tick(&self) {
        for active in self.active.load().iter() {
            active.shown.store(0, Relaxed);
        }
    }

    /// For each tap how many requests it has not shown since this was asked last.
    pub fn take_not_shown(&self) -> Vec<(u64, u64)> {
        let active = self.active.load();
        active.iter().map(|active| (active.tap.id, active.not_shown.swap(0, Relaxed))).collect()
    }
}

/// A line of the access log, and headers.
#[derive(Serialize)]
struct TapLine<'a> {
    #[serde(flatten)]
    line: Line<'a>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    headers: BTreeMap<&'a str, String>,
}

fn shown<'a>(record: &'a Record, tap: &Tap) -> BTreeMap<&'a str, String> {
    let kept = record.rare.iter().flat_map(|rare| &rare.headers);
    let asked = kept.filter(|(name, _)| tap.headers.contains(name));
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    asked.map(|(name, value)| (name.as_str(), text(value))).collect()
}

impl Sink for Arc<Taps> {
    fn name(&self) -> &'static str {
        "tap"
    }

    fn wants(&self, ending: &Ending<'_>, _random: &dyn Fn() -> u64) -> bool {
        self.is_on() && self.matches(ending)
    }

    fn take(&self, record: Box<Record>) -> bool {
        // So that what waits is bounded in bytes, too.
        record.size() <= LINE_BYTES && self.records.try_send(record).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use http::header::{ACCEPT, USER_AGENT};
    use outrigger_core::outcome::Outcome;
    use outrigger_core::tap::TapFilter;

    use super::*;
    use crate::base::direction::Direction;

    fn tap(id: u64, filter: TapFilter) -> Tap {
        Tap { id, filter, max_per_second: 2, headers: Vec::new() }
    }

    fn ending() -> Ending<'static> {
        Ending::new(Direction::Inbound, Outcome::Success, None)
    }

    #[test]
    fn a_tap_shows_what_it_asks_for_up_to_its_rate_and_counts_the_rest() {
        let (taps, mut records) = Taps::new();
        assert!(!taps.wants(&ending(), &|| 0));
        let service =
            |name: &str| TapFilter { service: Some(name.to_owned()), ..TapFilter::default() };
        taps.configure(vec![tap(1, service("bank/orders")), tap(2, service("bank/fees"))]);
        for _ in 0..3 {
            assert!(taps.wants(&ending(), &|| 0));
            assert!(taps.take(Box::new(Record::example())));
        }
        let ids = |taps: &Taps, records: &mut mpsc::Receiver<Box<Record>>| {
            let lines = records.try_recv().map(|record| taps.lines(&record)).unwrap_or_default();
            lines.iter().map(|(id, _)| *id).collect::<Vec<_>>()
        };
        assert_eq!(ids(&taps, &mut records), [1]);
        assert_eq!(ids(&taps, &mut records), [1]);
        assert_eq!(ids(&taps, &mut records), [0_u64; 0]);
        assert_eq!(taps.take_not_shown(), [(1, 1), (2, 0)]);
        // The other one may have room, so the record is made, and this one counts.
        assert!(taps.wants(&ending(), &|| 0));
        assert_eq!(taps.take_not_shown(), [(1, 1), (2, 0)]);
        taps.tick();
        assert!(taps.take(Box::new(Record::example())));
        assert_eq!(ids(&taps, &mut records), [1]);
        let inbound = TapFilter { direction: Some("outbound".to_owned()), ..TapFilter::default() };
        taps.configure(vec![tap(3, inbound)]);
        assert!(!taps.wants(&ending(), &|| 0));
        taps.configure(Vec::new());
        assert!(!taps.wants(&ending(), &|| 0));
    }

    #[test]
    fn what_is_not_taken_away_is_dropped() {
        let (taps, _records) = Taps::new();
        taps.configure(vec![tap(1, TapFilter::default())]);
        for _ in 0..WAITING {
            assert!(taps.take(Box::new(Record::example())));
        }
        assert!(!taps.take(Box::new(Record::example())));
        let (taps, _records) = Taps::new();
        let path = Some("/".repeat(LINE_BYTES).into());
        assert!(!taps.take(Box::new(Record { path, ..Record::example() })));
    }

    #[test]
    fn each_tap_shows_the_headers_that_it_asks_for() {
        let (taps, _records) = Taps::new();
        let mut head = HeaderMap::new();
        head.insert(USER_AGENT, HeaderValue::from_static("curl"));
        head.insert(ACCEPT, HeaderValue::from_str(&"x".repeat(VALUE_BYTES + 9)).unwrap());
        head.insert("cookie", HeaderValue::from_static("secret"));
        assert!(taps.headers(&head).is_none());
        let with = |id, headers: &[HeaderName]| Tap {
            headers: headers.to_vec(),
            ..tap(id, TapFilter::default())
        };
        taps.configure(vec![with(1, &[]), with(2, &[USER_AGENT]), with(3, &[ACCEPT, USER_AGENT])]);
        let record = Record { rare: taps.headers(&head), ..Record::example() };
        let lines = taps.lines(&record);
        let headers: Vec<serde_json::Value> =
            lines.iter().map(|(_, line)| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(headers[0]["headers"], serde_json::Value::Null);
        assert_eq!(headers[1]["headers"], serde_json::json!({ "user-agent": "curl" }));
        assert_eq!(headers[2]["headers"]["accept"].as_str().map(str::len), Some(VALUE_BYTES));
        assert!(lines.iter().all(|(_, line)| !line.contains("secret")), "{lines:?}");
        assert_eq!(headers[0]["service"], "bank/orders:80");
    }
}
