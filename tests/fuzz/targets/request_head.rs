//! A request: method, target and version in its first line, then headers, one `name: value` a line. What is
//! passed on has one reading, and times have no end that ends us.
#![no_main]

use std::time::{Duration, Instant};

use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Uri, Version};
use libfuzzer_sys::fuzz_target;
use outrigger_core::name::{Authority, is_authority};
use outrigger_core::policy::cache::cache_request;
use outrigger_core::policy::deadline::{Deadline, millis};
use outrigger_core::time::Later;
use outrigger_proxy::base::peer::Peer;
use outrigger_proxy::wire::deadline::{tell, told};
use outrigger_proxy::wire::headers::HeaderScan;
use outrigger_proxy::wire::hosts::Hosts;
use outrigger_proxy::wire::{grammar, headers, trace};

fuzz_target!(|text: &[u8]| {
    let end = text.iter().position(|byte| *byte == b'\n').unwrap_or(text.len());
    let (line, text) = text.split_at(end);
    let mut request = Request::new(());
    *request.headers_mut() = parse(text);
    let mut line = line.splitn(3, |byte| *byte == b' ');
    if let Some(method) = line.next().and_then(|method| Method::from_bytes(method).ok()) {
        *request.method_mut() = method;
    }
    if let Some(target) = line.next().and_then(|target| Uri::try_from(target).ok()) {
        *request.uri_mut() = target;
    }
    if line.next() == Some(b"2") {
        *request.version_mut() = Version::HTTP_2;
    }
    let (parts, ()) = request.into_parts();
    let seen = HeaderScan::of(&parts.headers);
    if grammar::check(&parts, seen, &Hosts::default()).is_ok() {
        let hosts = parts.headers.get_all("host").iter().count();
        assert!(hosts <= 1 && (hosts == 1 || parts.uri.authority().is_some()));
        let authority = parts.uri.authority().map(|authority| authority.as_str().as_bytes());
        let host = authority.or_else(|| parts.headers.get("host").map(HeaderValue::as_bytes));
        assert!(host.is_some_and(is_authority));
        let parsed = std::str::from_utf8(host.unwrap_or_default()).ok();
        let parsed = parsed.map(|host| Authority::parse(host, Some(80)));
        assert!(parsed.is_some_and(|parsed| parsed.is_ok()));
    }
    let _ = cache_request(&Method::GET, &parts.headers, false);
    for peer in [Peer::App, Peer::Mesh, Peer::Outside] {
        let mut map = parts.headers.clone();
        headers::clean_request(&mut map, peer, seen);
        assert!(!map.contains_key("connection") && !map.contains_key("transfer-encoding"));
        let internal = map.keys().any(|name| name.as_str().starts_with("x-outrigger-"));
        assert!(!internal || peer != Peer::Outside);
        let (id, _) = trace::request_id(&mut map, seen, || 7);
        let trace = trace::continued(&mut map, seen, None, || 7);
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
