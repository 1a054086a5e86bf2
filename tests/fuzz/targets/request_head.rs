//! The headers of a request, one `name: value` a line: what is passed on has one reading, and times have
//! no end that ends us.
#![no_main]

use std::time::{Duration, Instant};

use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request};
use libfuzzer_sys::fuzz_target;
use outrigger_core::policy::cache::asked;
use outrigger_core::policy::deadline::{Deadline, millis};
use outrigger_core::time::Later;
use outrigger_proxy::http::deadline::{tell, told};
use outrigger_proxy::http::headers;
use outrigger_proxy::peer::Peer;

fuzz_target!(|text: &[u8]| {
    let mut request = Request::new(());
    *request.headers_mut() = parse(text);
    let (parts, ()) = request.into_parts();
    let _ = headers::check(&parts);
    let _ = asked(&Method::GET, &parts.headers, false);
    for peer in [Peer::App, Peer::Mesh, Peer::Outside] {
        let mut map = parts.headers.clone();
        let says = headers::clean_request(&mut map, peer);
        assert!(!map.contains_key("connection") && !map.contains_key("transfer-encoding"));
        let internal = map.keys().any(|name| name.as_str().starts_with("x-outrigger-"));
        assert!(!internal || peer != Peer::Outside);
        let (id, trace) = headers::identify(&mut map, says, || 7);
        assert_eq!(map.get("x-request-id"), Some(&id));
        let parent = map.get_all("traceparent").iter().collect::<Vec<_>>();
        assert_eq!(parent.len(), usize::from(trace.sent != 0));
        assert!(parent.iter().all(|value| value.len() == 55));
        assert!(!parent.is_empty() || !map.contains_key("tracestate"));
        times(&mut map);
        headers::keep_inside(&mut map);
        assert!(!map.contains_key("x-deadline"));
    }
});

fn times(map: &mut HeaderMap) {
    let now = Instant::now();
    let left = told(map).nearest();
    let deadline = Deadline::begin(now, left, None, None);
    assert!(deadline.is_none() || left.is_some());
    let left = left.unwrap_or(Duration::MAX);
    assert_eq!(tell(map, left, true), millis(left));
    assert!(told(map).nearest().is_some_and(|again| again <= left));
    let _ = now.later(left).later(left);
}

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
