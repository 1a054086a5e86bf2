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

/// What one look over the headers of a head found. It says what may be there, so that what is not need not be asked
/// for: most heads have little of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct HeaderScan {
    connection: bool,
    hop_by_hop: bool,
    te: bool,
    internal: bool,
    /// [`PRIORITY`].
    priority: bool,
    /// [`VIA`].
    via: bool,
    /// [`UPGRADE`].
    pub passes_upgrade: bool,
    pub upgrade: bool,
    pub content_type: bool,
    client_cert: bool,
    /// What says how much time is left.
    time: bool,
    /// A place in a trace.
    trace: bool,
    zipkin: bool,
    /// What is left of a rate limit.
    quota: bool,
    /// A request id.
    id: bool,
    /// A name with `_` that may be one of these to the app, all of which begin with an `x`.
    underscore: bool,
    pub transfer_coding: bool,
    length: bool,
    /// More than one length, or one that is a list.
    lengths: bool,
}

impl HeaderScan {
    pub fn of(headers: &HeaderMap) -> Self {
        let mut seen = Self::default();
        for (name, value) in headers {
            let name = name.as_str();
            // By the first letter, since most names have one that nothing looked for begins with.
            match name.as_bytes().first() {
                Some(b'x') => seen.note_extension(name),
                Some(b'c') => seen.note_content(name, value),
                Some(b'b' | b'g' | b'k' | b'p' | b'r' | b't' | b'u') => seen.note_other(name),
                _ => {}
            }
        }
        seen
    }

    fn note_content(&mut self, name: &str, value: &HeaderValue) {
        match name {
            "content-type" => self.content_type = true,
            "content-length" => {
                self.lengths |= self.length || value.as_bytes().contains(&b',');
                self.length = true;
            }
            "connection" => self.connection = true,
            _ => {}
        }
    }

    fn note_other(&mut self, name: &str) {
        match name {
            "b3" => (self.trace, self.zipkin) = (true, true),
            "grpc-timeout" => self.time = true,
            "keep-alive" | "proxy-connection" => self.hop_by_hop = true,
            "ratelimit" => self.quota = true,
            "te" => self.te = true,
            "traceparent" | "tracestate" => self.trace = true,
            "transfer-encoding" => (self.hop_by_hop, self.transfer_coding) = (true, true),
            "upgrade" => (self.hop_by_hop, self.upgrade) = (true, true),
            _ => {}
        }
    }

    fn note_extension(&mut self, name: &str) {
        if let Some(internal) = name.strip_prefix(INTERNAL) {
            self.note_internal(internal);
            return;
        }
        match name {
            "x-request-id" => self.id = true,
            "x-deadline" | "x-envoy-expected-rq-timeout-ms" => self.time = true,
            "x-forwarded-client-cert" => self.client_cert = true,
            "x-b3-traceid" => (self.trace, self.zipkin) = (true, true),
            other => self.underscore |= other.contains('_'),
        }
    }

    fn note_internal(&mut self, name: &str) {
        self.internal = true;
        match name {
            "priority" => self.priority = true,
            "via" => self.via = true,
            "upgrade" => self.passes_upgrade = true,
            _ => {}
        }
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

/// What was found in a request that had to be looked through anyway.
#[derive(Clone, Copy, Debug)]
pub struct HeaderFlags {
    /// It says something about the time that it has left.
    pub time: bool,
    /// It has headers of the mesh.
    pub internal: bool,
    /// [`PRIORITY`] among them.
    pub priority: bool,
    /// [`VIA`] among them.
    pub via: bool,
    /// It has a place in a trace.
    pub trace: bool,
    /// And says so as Zipkin does.
    pub zipkin: bool,
    /// It has an id.
    pub id: bool,
}

/// Removes what belongs to the connection it came on and what this peer may not say. `seen`: in these headers, from which
/// some may have been removed since, but to which none have come.
pub fn clean_request(headers: &mut HeaderMap, peer: Peer, seen: HeaderScan) -> HeaderFlags {
    clean(headers, seen, true);
    if seen.internal && peer != Peer::Mesh {
        strip_internal(headers, peer == Peer::App);
    }
    // What comes in is this proxy's to say, anyone who else says it. The app's own is its own matter.
    if seen.client_cert && peer != Peer::App {
        headers.remove(CLIENT_CERT);
    }
    if seen.underscore && peer != Peer::App {
        remove_respelled(headers, is_ours_respelled);
    }
    HeaderFlags {
        time: seen.time,
        internal: seen.internal,
        priority: seen.priority,
        via: seen.via,
        trace: seen.trace,
        zipkin: seen.zipkin,
        id: seen.id,
    }
}

/// The same for a response. What one proxy tells another has been read by now. Returns whether it says
/// what is left of a rate limit.
pub fn clean_response(headers: &mut HeaderMap) -> bool {
    let seen = HeaderScan::of(headers);
    clean(headers, seen, false);
    if seen.internal {
        strip_internal(headers, false);
    }
    if seen.underscore {
        remove_respelled(headers, is_ours_respelled);
    }
    seen.quota
}

/// Removes what a rule has said about the connection, which is not a rule's to say: no HTTP/2 peer
/// would take it (RFC 9113 section 8.2.2).
pub fn keep_connection_out(headers: &mut HeaderMap, request: bool) {
    let seen = HeaderScan::of(headers);
    clean(headers, seen, request);
}

fn clean(headers: &mut HeaderMap, seen: HeaderScan, request: bool) {
    if seen.lengths || (seen.length && seen.transfer_coding) {
        clean_length(headers, seen.transfer_coding);
    }
    if seen.connection {
        remove_named_by_connection(headers);
    }
    if seen.hop_by_hop {
        headers.remove(KEEP_ALIVE);
        headers.remove(PROXY_CONNECTION);
        headers.remove(header::TRANSFER_ENCODING);
        headers.remove(header::UPGRADE);
    }
    // gRPC's own, which most requests with a TE have, is what stays anyway.
    if seen.te && !(request && headers.get_all(header::TE).iter().eq(["trailers"])) {
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
    if seen.internal {
        strip_internal(headers, false);
    }
    if seen.client_cert {
        headers.remove(CLIENT_CERT);
    }
    if seen.time {
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
