//! Headers that belong to a hop (RFC 9110 section 7.6.1), and those that only proxies say. What follows a request
//! through the mesh is in [`crate::wire::trace`].

use http::header::{self, HeaderName, HeaderValue};
use http::request::Parts;
use http::{HeaderMap, Method, Version};
use outrigger_core::policy::access::is_respelled;
use outrigger_core::reason::Reason;

use crate::base::peer::Peer;
use crate::wire::deadline::{DEADLINE, ENVOY};

pub const HOP: HeaderName = HeaderName::from_static("x-outrigger-hop");
/// On a response between proxies: why nobody processed the request.
pub const UNPROCESSED: HeaderName = HeaderName::from_static("x-outrigger-unprocessed");
/// On a response between proxies: it was tried again as often as it may be, further down.
pub const EXHAUSTED: HeaderName = HeaderName::from_static("x-outrigger-exhausted");
/// Between proxies, on a request: the protocol that its caller wants to change to; on the answer: that the
/// upstream has changed to. What HTTP/2 knows for that (RFC 8441) has no room for a method, for a body, or
/// for an answer that is none.
pub const UPGRADE: HeaderName = HeaderName::from_static("x-outrigger-upgrade");
/// Between proxies, on such a request that has a body ([`crate::wire::streams::prelude`]): its `content-length`,
/// or `chunked`.
pub const UPGRADE_BODY: HeaderName = HeaderName::from_static("x-outrigger-upgrade-body");
/// The token of a CONNECT request, which no `Upgrade` can name (RFC 9110 section 7.8): a host is asked for,
/// not a protocol.
pub const CONNECT: HeaderValue = HeaderValue::from_static(":connect");
/// Between proxies, on a CONNECT: only whether the app takes a connection is asked.
pub const CHECK: HeaderName = HeaderName::from_static("x-outrigger-check");
/// Between proxies: why the one that answers has refused the request.
pub const REASON: HeaderName = HeaderName::from_static("x-outrigger-reason");
pub const PRIORITY: HeaderName = HeaderName::from_static("x-outrigger-priority");
/// The services that a request has come through ([`outrigger_core::policy::visits`]).
pub const VIA: HeaderName = HeaderName::from_static("x-outrigger-via");
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
pub const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
pub const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
/// Who called, for an app that wants to know.
pub const CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
const INTERNAL: &str = "x-outrigger-";

/// What one look over the headers of a head found, a bit for each. It says what may be there, so that what is not need not
/// be asked for: most heads have little of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeaderScan(u32);

impl HeaderScan {
    pub const HOST: Self = Self(1);
    pub const CONTENT_TYPE: Self = Self(1 << 1);
    pub const TRANSFER_CODING: Self = Self(1 << 2);
    pub const UPGRADE: Self = Self(1 << 3);
    /// What says how much time is left.
    pub const TIME: Self = Self(1 << 4);
    /// A request id.
    pub const ID: Self = Self(1 << 5);
    /// A place in a trace.
    pub const TRACE: Self = Self(1 << 6);
    /// As Zipkin says it.
    pub const ZIPKIN: Self = Self(1 << 7);
    /// What only proxies say.
    pub const INTERNAL: Self = Self(1 << 8);
    /// Of that, others than [`HOP`] and [`VIA`].
    pub const OTHER_INTERNAL: Self = Self(1 << 9);
    /// [`PRIORITY`].
    pub const PRIORITY: Self = Self(1 << 10);
    /// [`VIA`].
    pub const VIA: Self = Self(1 << 11);
    /// [`UPGRADE`].
    pub const PASSES_UPGRADE: Self = Self(1 << 12);
    const CONNECTION: Self = Self(1 << 13);
    const HOP_BY_HOP: Self = Self(1 << 14);
    const TE: Self = Self(1 << 15);
    const CLIENT_CERT: Self = Self(1 << 16);
    /// What is left of a rate limit.
    const QUOTA: Self = Self(1 << 17);
    /// A name with `_` that may be one of these to the app, all of which begin with an `x`.
    const UNDERSCORE: Self = Self(1 << 18);
    const LENGTH: Self = Self(1 << 19);
    /// More than one length, or one that is a list.
    const LENGTHS: Self = Self(1 << 20);

    pub fn of(headers: &HeaderMap) -> Self {
        let mut seen = Self::default();
        for (name, value) in headers {
            let name = name.as_str();
            // By the first letter, since most names have one that nothing looked for begins with.
            seen = seen.and(match name.as_bytes().first() {
                Some(b'x') => extension(name),
                Some(b'c') => content(name, value, seen.has(Self::LENGTH)),
                Some(b'h') if name == "host" => Self::HOST,
                Some(b'b' | b'g' | b'k' | b'p' | b'r' | b't' | b'u') => other(name),
                _ => Self::default(),
            });
        }
        seen
    }

    /// Whether any of `what` may be there.
    #[must_use]
    pub const fn has(self, what: Self) -> bool {
        self.0 & what.0 != 0
    }

    /// Both.
    #[must_use]
    pub const fn and(self, more: Self) -> Self {
        Self(self.0 | more.0)
    }
}

fn content(name: &str, value: &HeaderValue, again: bool) -> HeaderScan {
    match name {
        "content-type" => HeaderScan::CONTENT_TYPE,
        "content-length" if again || value.as_bytes().contains(&b',') => {
            HeaderScan::LENGTH.and(HeaderScan::LENGTHS)
        }
        "content-length" => HeaderScan::LENGTH,
        "connection" => HeaderScan::CONNECTION,
        _ => HeaderScan::default(),
    }
}

fn other(name: &str) -> HeaderScan {
    match name {
        "b3" => HeaderScan::TRACE.and(HeaderScan::ZIPKIN),
        "grpc-timeout" => HeaderScan::TIME,
        "keep-alive" | "proxy-connection" => HeaderScan::HOP_BY_HOP,
        "ratelimit" => HeaderScan::QUOTA,
        "te" => HeaderScan::TE,
        "traceparent" | "tracestate" => HeaderScan::TRACE,
        "transfer-encoding" => HeaderScan::HOP_BY_HOP.and(HeaderScan::TRANSFER_CODING),
        "upgrade" => HeaderScan::HOP_BY_HOP.and(HeaderScan::UPGRADE),
        _ => HeaderScan::default(),
    }
}

fn extension(name: &str) -> HeaderScan {
    if let Some(internal) = name.strip_prefix(INTERNAL) {
        return HeaderScan::INTERNAL.and(match internal {
            "hop" => HeaderScan::default(),
            "via" => HeaderScan::VIA,
            "priority" => HeaderScan::OTHER_INTERNAL.and(HeaderScan::PRIORITY),
            "upgrade" => HeaderScan::OTHER_INTERNAL.and(HeaderScan::PASSES_UPGRADE),
            _ => HeaderScan::OTHER_INTERNAL,
        });
    }
    match name {
        "x-request-id" => HeaderScan::ID,
        "x-deadline" | "x-envoy-expected-rq-timeout-ms" => HeaderScan::TIME,
        "x-forwarded-client-cert" => HeaderScan::CLIENT_CERT,
        "x-b3-traceid" => HeaderScan::TRACE.and(HeaderScan::ZIPKIN),
        other if other.contains('_') => HeaderScan::UNDERSCORE,
        _ => HeaderScan::default(),
    }
}

/// The token of an `Upgrade` that the request asks for (RFC 9110 section 7.8), of an extended CONNECT
/// (RFC 8441), of an upgrade that another proxy passes on, or [`CONNECT`].
pub fn upgrade_of(head: &Parts) -> Option<HeaderValue> {
    if let Some(protocol) = head.extensions.get::<h2::ext::Protocol>() {
        return HeaderValue::from_str(protocol.as_str()).ok();
    }
    if head.method == Method::CONNECT {
        return Some(CONNECT);
    }
    if head.version == Version::HTTP_2 {
        return head.headers.get(UPGRADE).cloned();
    }
    let token = head.headers.get(header::UPGRADE)?;
    // h2c by upgrade is gone (RFC 9113 section 3.1): such a request is served as it is.
    let asked = list_has(&head.headers, &header::CONNECTION, "upgrade");
    let text = token.as_bytes().trim_ascii();
    let text = text.strip_suffix(b",").unwrap_or(text).trim_ascii();
    if !asked || text.is_empty() || text.eq_ignore_ascii_case(b"h2c") {
        return None;
    }
    HeaderValue::from_bytes(text).ok()
}

pub fn list_has(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|item| item.trim().eq_ignore_ascii_case(token))
}

/// Removes what belongs to the connection it came on and what this peer may not say. `seen`: in these headers, from which
/// some may have been removed since, but to which none have come.
pub fn clean_request(headers: &mut HeaderMap, peer: Peer, seen: HeaderScan) {
    clean(headers, seen, true);
    if seen.has(HeaderScan::INTERNAL) && peer != Peer::Mesh {
        strip_internal(headers, peer == Peer::App);
    }
    // What comes in is this proxy's to say, anyone who else says it. The app's own is its own matter.
    if seen.has(HeaderScan::CLIENT_CERT) && peer != Peer::App {
        headers.remove(CLIENT_CERT);
    }
    if seen.has(HeaderScan::UNDERSCORE) && peer != Peer::App {
        remove_respelled(headers, is_ours_respelled);
    }
}

/// The same for a response. What one proxy tells another has been read by now. Returns whether it says
/// what is left of a rate limit.
pub fn clean_response(headers: &mut HeaderMap) -> bool {
    let seen = HeaderScan::of(headers);
    clean(headers, seen, false);
    if seen.has(HeaderScan::INTERNAL) {
        strip_internal(headers, false);
    }
    if seen.has(HeaderScan::UNDERSCORE) {
        remove_respelled(headers, is_ours_respelled);
    }
    seen.has(HeaderScan::QUOTA)
}

/// Removes what a rule has said about the connection, which is not a rule's to say: no HTTP/2 peer
/// would take it (RFC 9113 section 8.2.2).
pub fn keep_connection_out(headers: &mut HeaderMap, request: bool) {
    let seen = HeaderScan::of(headers);
    clean(headers, seen, request);
}

fn clean(headers: &mut HeaderMap, seen: HeaderScan, request: bool) {
    if seen.has(HeaderScan::LENGTHS)
        || (seen.has(HeaderScan::LENGTH) && seen.has(HeaderScan::TRANSFER_CODING))
    {
        clean_length(headers, seen.has(HeaderScan::TRANSFER_CODING));
    }
    if seen.has(HeaderScan::CONNECTION) {
        remove_named_by_connection(headers);
    }
    if seen.has(HeaderScan::HOP_BY_HOP) {
        headers.remove(KEEP_ALIVE);
        headers.remove(PROXY_CONNECTION);
        headers.remove(header::TRANSFER_ENCODING);
        headers.remove(header::UPGRADE);
    }
    // gRPC's own, which most requests with a TE have, is what stays anyway.
    if seen.has(HeaderScan::TE) && !(request && headers.get_all(header::TE).iter().eq(["trailers"]))
    {
        // The one value that means something end to end, and that gRPC requires.
        let trailers = request && list_has(headers, &header::TE, "trailers");
        headers.remove(header::TE);
        if trailers {
            headers.insert(header::TE, HeaderValue::from_static("trailers"));
        }
    }
}

/// One length, and none beside a transfer coding, which is what frames the body (RFC 9112 section 6.3).
/// Values that differ have been refused when the message was read.
fn clean_length(headers: &mut HeaderMap, coded: bool) {
    if coded {
        headers.remove(header::CONTENT_LENGTH);
        return;
    }
    let mut values = headers.get_all(header::CONTENT_LENGTH).iter();
    let (first, more) = (values.next(), values.next().is_some());
    let Some(first) = first.filter(|first| more || first.as_bytes().contains(&b',')) else {
        return;
    };
    let one = first.as_bytes().split(|byte| *byte == b',').next().unwrap_or_default();
    if let Ok(one) = HeaderValue::from_bytes(one.trim_ascii()) {
        headers.insert(header::CONTENT_LENGTH, one);
    }
}

fn remove_named_by_connection(headers: &mut HeaderMap) {
    let mut named = Vec::new();
    for value in headers.get_all(header::CONNECTION) {
        for item in value.as_bytes().split(|b| *b == b',') {
            if let Ok(name) = HeaderName::from_bytes(item.trim_ascii())
                && name != header::TE
                && !is_needed(&name)
            {
                named.push(name);
            }
        }
    }
    headers.remove(header::CONNECTION);
    for name in named {
        headers.remove(name);
    }
}

/// A caller must not make a proxy drop these by naming them in `Connection`.
fn is_needed(name: &HeaderName) -> bool {
    matches!(name.as_str(), "host" | "content-length" | "content-type" | "authorization" | "cookie")
        || name == TRACEPARENT
        || name == REQUEST_ID
        || name.as_str().starts_with(INTERNAL)
}

/// Whether a head has anything that proxies say to each other: asked before any of it is looked for.
pub fn has_internal(headers: &HeaderMap) -> bool {
    headers.keys().any(|name| name.as_str().starts_with(INTERNAL))
}

/// Removes what proxies say to each other, and keeps the priority if it is said to.
pub fn strip_internal(headers: &mut HeaderMap, keep_priority: bool) {
    let names: Vec<HeaderName> = headers
        .keys()
        .filter(|name| {
            name.as_str().starts_with(INTERNAL) && !(keep_priority && **name == PRIORITY)
        })
        .cloned()
        .collect();
    for name in names {
        headers.remove(name);
    }
}

/// A name that apps which take `_` for `-` would read as one that only a proxy may say.
fn is_ours_respelled(name: &HeaderName) -> bool {
    let text = name.as_str();
    let ours = text.len() >= INTERNAL.len() && text.replace('_', "-").starts_with(INTERNAL);
    (ours && !text.starts_with(INTERNAL)) || is_respelled(&CLIENT_CERT, name)
}

/// Removes the headers that are another one to apps which take `_` for `-`.
pub fn remove_respelled(headers: &mut HeaderMap, is_one: impl Fn(&HeaderName) -> bool) {
    let names: Vec<HeaderName> = headers.keys().filter(|name| is_one(name)).cloned().collect();
    for name in names {
        headers.remove(name);
    }
}

/// Removes what is said within the mesh alone, before a request leaves it. `grpc-timeout` stays: gRPC
/// servers everywhere understand it.
pub fn keep_inside(headers: &mut HeaderMap) {
    let seen = HeaderScan::of(headers);
    if seen.has(HeaderScan::INTERNAL) {
        strip_internal(headers, false);
    }
    if seen.has(HeaderScan::CLIENT_CERT) {
        headers.remove(CLIENT_CERT);
    }
    if seen.has(HeaderScan::TIME) {
        headers.remove(DEADLINE);
        headers.remove(ENVOY);
    }
}

/// Whether the caller holds its body back until it is told to go on (RFC 9110 section 10.1.1).
pub fn expects_continue(headers: &HeaderMap) -> bool {
    headers
        .get(header::EXPECT)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

/// The reason that another proxy of the mesh gives for its answer.
pub fn explained(headers: &HeaderMap) -> Option<Reason> {
    let text = headers.get(PROXY_STATUS)?.to_str().ok()?.strip_prefix("outrigger; ")?;
    let word = text.split_once("details=\"")?.1.split([':', '"']).next()?;
    Reason::from_word(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    fn clean_from(headers: &mut HeaderMap, peer: Peer) {
        let seen = HeaderScan::of(headers);
        clean_request(headers, peer, seen);
    }

    #[test]
    fn headers_of_the_connection_stay_on_it() {
        let mut headers = map(&[
            ("connection", "keep-alive, X-Private, host"),
            ("keep-alive", "timeout=5"),
            ("x-private", "1"),
            ("host", "a"),
            ("te", "trailers, deflate"),
            ("transfer-encoding", "chunked"),
            ("x-kept", "1"),
        ]);
        clean_from(&mut headers, Peer::App);
        let want = map(&[("host", "a"), ("te", "trailers"), ("x-kept", "1")]);
        assert_eq!(headers, want);
    }

    #[test]
    fn only_mesh_peers_may_speak_of_the_mesh() {
        let all = [("x-outrigger-hop", "1"), ("x-outrigger-priority", "critical"), ("a", "b")];
        let left = |peer| {
            let mut headers = map(&all);
            clean_from(&mut headers, peer);
            headers.len()
        };
        assert_eq!(left(Peer::Mesh), 3);
        assert_eq!(left(Peer::App), 2);
        assert_eq!(left(Peer::Outside), 1);
    }

    #[test]
    fn who_is_not_of_the_mesh_is_told_nothing_of_it() {
        let mut headers = map(&[
            ("x-outrigger-priority", "critical"),
            ("x-outrigger-via", "1"),
            ("x-deadline", "5"),
            ("x-envoy-expected-rq-timeout-ms", "5"),
            ("x-forwarded-client-cert", "URI=spiffe://a/ns/b/sa/c"),
            ("grpc-timeout", "5m"),
            ("authorization", "x"),
        ]);
        keep_inside(&mut headers);
        assert_eq!(headers, map(&[("grpc-timeout", "5m"), ("authorization", "x")]));
    }

    #[test]
    fn a_header_of_ours_is_removed_however_it_is_spelled() {
        for name in [
            "x_forwarded_client_cert",
            "x-forwarded_client-cert",
            "x_outrigger_priority",
            "x-outrigger_hop",
            "X_OUTRIGGER-VIA",
        ] {
            let name = name.to_ascii_lowercase().leak();
            let mut headers = map(&[(name, "1"), ("x_other", "1")]);
            clean_from(&mut headers, Peer::Outside);
            assert_eq!(headers, map(&[("x_other", "1")]), "{name}");
        }
    }

    #[test]
    fn nobody_but_this_proxy_tells_its_app_who_called() {
        let left = |peer| {
            let mut headers = map(&[("x-forwarded-client-cert", "URI=spiffe://a/ns/b/sa/admin")]);
            clean_from(&mut headers, peer);
            headers.len()
        };
        assert_eq!((left(Peer::Mesh), left(Peer::Outside), left(Peer::App)), (0, 0, 1));
    }

    #[test]
    fn another_proxys_reason_is_read_from_its_answer() {
        for (value, reason) in [
            (
                "outrigger; error=connection_refused; details=\"connect_failed: 10.0.0.1: no\"",
                Some(Reason::ConnectFailed),
            ),
            ("outrigger; error=x; details=\"loop\"", Some(Reason::Loop)),
            ("outrigger; error=x; details=\"what\"", None),
            ("envoy; error=x; details=\"loop\"", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(PROXY_STATUS, HeaderValue::from_static(value));
            assert_eq!(explained(&headers), reason, "{value}");
        }
    }
}
