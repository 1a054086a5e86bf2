//! The headers of an answer, one `name: value` a line: how long it may be kept and when to come back is
//! read, whatever it says, and has an end.
#![no_main]

use std::time::{Duration, Instant, SystemTime};

use http::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use http::{Method, StatusCode};
use libfuzzer_sys::fuzz_target;
use outrigger_core::policy::cache::{
    CacheConfig, Shared, Timing, cache_request, may_store, varies,
};
use outrigger_core::policy::retry::retry_after;
use outrigger_core::time::Later;
use outrigger_proxy::policy::cache::CachedResponse;
use outrigger_proxy::wire::headers;

const CONFIG: CacheConfig = CacheConfig {
    ttl: Duration::from_secs(5),
    stale_on_error: Duration::from_secs(600),
    max_entry_bytes: 65_536,
};

fuzz_target!(|text: &[u8]| {
    let mut map = parse(text);
    headers::clean_response(&mut map);
    assert!(!map.contains_key("connection") && !map.contains_key("transfer-encoding"));
    if let Some(text) = map.get(RETRY_AFTER).and_then(|value| value.to_str().ok())
        && let Some(wait) = retry_after(text, SystemTime::now())
    {
        let _ = (Instant::now().later(wait), SystemTime::now().later(wait));
    }
    let anybody =
        cache_request(&Method::GET, &HeaderMap::new(), false).expect("invariant: a plain GET");
    let timing = Timing { came: SystemTime::now(), took: Duration::from_secs(1) };
    let Some(kept) = may_store(&CONFIG, anybody, StatusCode::OK, &map, timing) else { return };
    assert!(kept.fresh <= CONFIG.ttl && kept.stale <= CONFIG.stale_on_error);
    let mut credentials = HeaderMap::new();
    credentials.insert(AUTHORIZATION, HeaderValue::from_static("a"));
    let authorized = cache_request(&Method::GET, &credentials, false).expect("invariant: a GET");
    let stored = may_store(&CONFIG, authorized, StatusCode::OK, &map, timing).is_some();
    assert_eq!(stored, authorized.may_share(kept.shared), "what is stored is what is shared");
    assert!(stored || kept.shared == Shared::default());
    let Some(names) = varies(&map) else { return };
    let (stored, age) = (Instant::now(), kept.age);
    let entry = CachedResponse {
        headers: map,
        body: bytes::Bytes::new(),
        names,
        request: HeaderMap::new(),
        stored,
        age,
        fresh: kept.fresh,
        stale: kept.stale,
        shared: kept.shared,
    };
    assert!(entry.is_usable(stored));
    let later = stored.later(Duration::from_secs(3_600));
    assert!(!entry.is_fresh(later) && entry.age(later) >= age);
});

fn parse(text: &[u8]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for line in text.split(|byte| *byte == b'\n').take(100) {
        let Some(at) = line.iter().position(|byte| *byte == b':') else { continue };
        let name = HeaderName::from_bytes(line[..at].trim_ascii());
        let value = HeaderValue::from_bytes(line[at + 1..].trim_ascii());
        if let (Ok(name), Ok(value)) = (name, value) {
            map.append(name, value);
        }
    }
    map
}
