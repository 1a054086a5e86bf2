//! Headers that belong to a hop, and those that follow a request: RFC 9110 section 7.6.1, W3C trace
//! context, request id.

use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::request::Parts;
use http::{HeaderMap, Method, Version};

use super::deadline::{DEADLINE, ENVOY};
use crate::peer::Peer;

pub const HOP: HeaderName = HeaderName::from_static("x-outrigger-hop");
/// On a response between proxies: why nobody processed the request.
pub const UNPROCESSED: HeaderName = HeaderName::from_static("x-outrigger-unprocessed");
/// On a response between proxies: it was tried again as often as it may be, further down.
pub const EXHAUSTED: HeaderName = HeaderName::from_static("x-outrigger-exhausted");
/// Between proxies, on a request: the protocol that its caller wants to change to; on the answer: that the
/// upstream has changed to. What HTTP/2 knows for that (RFC 8441) has no room for a method, for a body, or
/// for an answer that is none.
pub const UPGRADE: HeaderName = HeaderName::from_static("x-outrigger-upgrade");
/// Between proxies, on such a request that has a body ([`crate::streams::prelude`]): its `content-length`,
/// or `chunked`.
pub const UPGRADE_BODY: HeaderName = HeaderName::from_static("x-outrigger-upgrade-body");
pub const PRIORITY: HeaderName = HeaderName::from_static("x-outrigger-priority");
/// The services that a request has come through ([`outrigger_core::policy::visits`]).
pub const VIA: HeaderName = HeaderName::from_static("x-outrigger-via");
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const B3: HeaderName = HeaderName::from_static("b3");
const B3_TRACE: HeaderName = HeaderName::from_static("x-b3-traceid");
const B3_SPAN: HeaderName = HeaderName::from_static("x-b3-spanid");
pub const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
pub const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
/// Who called, for an app that wants to know.
pub const CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
const INTERNAL: &str = "x-outrigger-";
/// Digits of a request id that is given here.
const ID_BYTES: usize = 32;
/// Of `version-traceid-parentid-flags`.
const TRACE_BYTES: usize = 55;

/// What one look over a request's headers found.
#[derive(Clone, Copy, Default)]
struct Seen {
    connection: bool,
    hop_by_hop: bool,
    te: bool,
    internal: bool,
    client_cert: bool,
    /// What says how much time is left.
    time: bool,
    /// A place in a trace.
    trace: bool,
    /// What is left of a rate limit.
    quota: bool,
    /// A request id.
    id: bool,
    transfer_coding: bool,
    length: bool,
}

fn look(headers: &HeaderMap) -> Seen {
    let mut seen = Seen::default();
    for name in headers.keys() {
        let text = name.as_str();
        match text.as_bytes() {
            b"connection" => seen.connection = true,
            b"keep-alive" | b"proxy-connection" | b"upgrade" => seen.hop_by_hop = true,
            b"transfer-encoding" => (seen.hop_by_hop, seen.transfer_coding) = (true, true),
            b"content-length" => seen.length = true,
            b"te" => seen.te = true,
            [b'x', b'-', b'o', ..] if text.starts_with(INTERNAL) => seen.internal = true,
            b"x-forwarded-client-cert" => seen.client_cert = true,
            b"grpc-timeout" | b"x-deadline" | b"x-envoy-expected-rq-timeout-ms" => seen.time = true,
            b"ratelimit" => seen.quota = true,
            b"x-request-id" => seen.id = true,
            b"traceparent" | b"b3" | b"x-b3-traceid" => seen.trace = true,
            _ => {}
        }
    }
    seen
}

/// The token of an `Upgrade` that the request asks for (RFC 9110 section 7.8), of an extended CONNECT
/// (RFC 8441), or of an upgrade that another proxy passes on.
pub fn upgrade_of(head: &Parts) -> Option<HeaderValue> {
    if head.version == Version::HTTP_2 {
        return match head.extensions.get::<h2::ext::Protocol>() {
            Some(protocol) => HeaderValue::from_str(protocol.as_str()).ok(),
            None => head.headers.get(UPGRADE).cloned(),
        };
    }
    let token = head.headers.get(header::UPGRADE)?;
    // h2c by upgrade is gone (RFC 9113 section 3.1): such a request is served as it is.
    let asked = list_has(&head.headers, &header::CONNECTION, "upgrade");
    (asked && !token.as_bytes().eq_ignore_ascii_case(b"h2c")).then(|| token.clone())
}

fn list_has(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|item| item.trim().eq_ignore_ascii_case(token))
}

/// What was found in a request that had to be looked through anyway.
#[derive(Clone, Copy, Debug)]
pub struct Says {
    /// It says something about the time that it has left.
    pub time: bool,
    /// It has headers of the mesh.
    pub internal: bool,
    /// It has a place in a trace.
    pub trace: bool,
    /// It has an id.
    pub id: bool,
}

/// Removes what belongs to the connection it came on and what this peer may not say.
pub fn clean_request(headers: &mut HeaderMap, peer: Peer) -> Says {
    let seen = look(headers);
    clean(headers, seen, true);
    if seen.internal && peer != Peer::Mesh {
        strip_internal(headers, peer == Peer::App);
    }
    // What comes in is this proxy's to say, whoever else says it. The app's own is its own matter.
    if seen.client_cert && peer != Peer::App {
        headers.remove(CLIENT_CERT);
    }
    Says { time: seen.time, internal: seen.internal, trace: seen.trace, id: seen.id }
}

/// The same for a response. What one proxy tells another has been read by now. Returns whether it says
/// what is left of a rate limit.
pub fn clean_response(headers: &mut HeaderMap) -> bool {
    let seen = look(headers);
    clean(headers, seen, false);
    if seen.internal {
        strip_internal(headers, false);
    }
    seen.quota
}

/// Removes what a rule has said about the connection, which is not a rule's to say: no HTTP/2 peer
/// would take it (RFC 9113 section 8.2.2).
pub fn keep_connection_out(headers: &mut HeaderMap, request: bool) {
    let seen = look(headers);
    clean(headers, seen, request);
}

fn clean(headers: &mut HeaderMap, seen: Seen, request: bool) {
    if seen.length {
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
/// Values that differ have been refused by whoever read the message.
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

fn strip_internal(headers: &mut HeaderMap, keep_priority: bool) {
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

/// Removes what is said within the mesh alone, before a request leaves it. `grpc-timeout` stays: gRPC
/// servers everywhere understand it.
pub fn keep_inside(headers: &mut HeaderMap) {
    let seen = look(headers);
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

/// Refuses heads that parse but that no proxy should pass on.
pub fn check(head: &Parts) -> Result<(), &'static str> {
    if head.version < Version::HTTP_2 && head.method != Method::CONNECT {
        let mut hosts = head.headers.get_all(header::HOST).iter();
        let first = hosts.next();
        if hosts.next().is_some() {
            return Err("more than one Host header");
        }
        if first.is_none() && head.version == Version::HTTP_11 {
            return Err("no Host header");
        }
        if let Some(coding) = head.headers.get(header::TRANSFER_ENCODING)
            && !coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked")
        {
            return Err("a transfer coding other than chunked");
        }
    }
    Ok(())
}

/// A request's place in its trace.
#[derive(Clone, Copy, Debug)]
pub struct Trace {
    pub id: u128,
    /// The span that the request came with; 0: it was in no trace.
    pub received: u64,
    /// The span that it is sent on with.
    pub sent: u64,
}

/// Keeps the request's id or gives it one, and continues its W3C trace context (else B3) with a fresh
/// parent id, or begins one. `says`: whether it has any.
pub fn identify(
    headers: &mut HeaderMap,
    says: Says,
    random: impl Fn() -> u64,
) -> (HeaderValue, Trace) {
    let mut received = None;
    if says.trace {
        let given = headers.get(TRACEPARENT);
        received = given.and_then(|value| parse_traceparent(value.as_bytes()));
        received = received.or_else(|| b3(headers));
    }
    let (trace, received, flags) = received.unwrap_or_else(|| {
        // All zero is not valid; one bit settles it.
        (u128::from(random() | 1) << 64 | u128::from(random()), 0, 0)
    });
    let sent = random() | 1;
    let mut text = [b'-'; ID_BYTES + TRACE_BYTES];
    let parent = &mut text[ID_BYTES..];
    parent[..2].copy_from_slice(b"00");
    hex(&mut parent[3..35], &trace.to_be_bytes());
    hex(&mut parent[36..52], &sent.to_be_bytes());
    hex(&mut parent[53..], &[flags]);
    let given = if says.id { headers.get(REQUEST_ID) } else { None };
    let given = given.filter(|id| !id.is_empty()).cloned();
    if given.is_none() {
        hex(&mut text[..16], &random().to_be_bytes());
        hex(&mut text[16..ID_BYTES], &random().to_be_bytes());
    }
    // One piece of memory for both, which copies of the head share.
    let text = Bytes::from_owner(text);
    headers.insert(TRACEPARENT, unique(text.slice(ID_BYTES..)));
    let id = given.unwrap_or_else(|| {
        let id = unique(text.slice(..ID_BYTES));
        headers.insert(REQUEST_ID, id.clone());
        id
    });
    (id, Trace { id: trace, received, sent })
}

/// Zipkin's headers, in one (`trace-span-sampled-parent`) or in several; trace ids of 8 or 16 bytes.
fn b3(headers: &HeaderMap) -> Option<(u128, u64, u8)> {
    let (trace, span) = match headers.get(B3) {
        Some(one) => {
            let mut parts = one.to_str().ok()?.split('-');
            (parts.next()?, parts.next()?)
        }
        None => (headers.get(B3_TRACE)?.to_str().ok()?, headers.get(B3_SPAN)?.to_str().ok()?),
    };
    if !matches!(trace.len(), 16 | 32) || span.len() != 16 {
        return None;
    }
    let id = u128::from_str_radix(trace, 16).ok().filter(|id| *id != 0)?;
    let span = u64::from_str_radix(span, 16).ok().filter(|span| *span != 0)?;
    Some((id, span, 0))
}

/// `version-traceid-parentid-flags`; trace id, parent id and flags.
fn parse_traceparent(value: &[u8]) -> Option<(u128, u64, u8)> {
    let well_formed = value.len() >= 55
        && value[2] == b'-'
        && value[35] == b'-'
        && value[52] == b'-'
        && &value[..2] != b"ff"
        && (value.len() == 55 || (&value[..2] != b"00" && value[55] == b'-'));
    if !well_formed {
        return None;
    }
    let number = |bytes: &[u8]| -> Option<u64> {
        let lower = bytes.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let text = std::str::from_utf8(bytes).ok().filter(|_| lower)?;
        u64::from_str_radix(text, 16).ok()
    };
    let (high, low) = (number(&value[3..19])?, number(&value[19..35])?);
    let parent = number(&value[36..52])?;
    let flags = number(&value[53..55])?;
    if (high == 0 && low == 0) || parent == 0 {
        return None;
    }
    Some((u128::from(high) << 64 | u128::from(low), parent, flags as u8))
}

/// Writes two digits for each of `bytes`.
fn hex(out: &mut [u8], bytes: &[u8]) {
    const PAIRS: [[u8; 2]; 256] = {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut pairs = [[0; 2]; 256];
        let mut i = 0;
        while i < pairs.len() {
            pairs[i] = [DIGITS[i >> 4], DIGITS[i & 15]];
            i += 1;
        }
        pairs
    };
    for (out, byte) in out.chunks_exact_mut(2).zip(bytes) {
        out.copy_from_slice(&PAIRS[usize::from(*byte)]);
    }
}

/// A value that occurs once. Marked so that HPACK neither indexes it nor throws out for it what
/// does come back (RFC 7541 section 7.1.3). To index a few, so that peers know the names, costs more than
/// it saves: every further one is compared with them all.
fn unique(text: Bytes) -> HeaderValue {
    let value = HeaderValue::from_maybe_shared(text);
    let mut value = value.unwrap_or_else(|_| HeaderValue::from_static(""));
    value.set_sensitive(true);
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAYS: Says = Says { time: false, internal: false, trace: true, id: true };

    fn map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
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
        clean_request(&mut headers, Peer::App);
        let want = map(&[("host", "a"), ("te", "trailers"), ("x-kept", "1")]);
        assert_eq!(headers, want);
    }

    #[test]
    fn only_mesh_peers_may_speak_of_the_mesh() {
        let all = [("x-outrigger-hop", "1"), ("x-outrigger-priority", "critical"), ("a", "b")];
        let left = |peer| {
            let mut headers = map(&all);
            clean_request(&mut headers, peer);
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
    fn nobody_but_this_proxy_tells_its_app_who_called() {
        let left = |peer| {
            let mut headers = map(&[("x-forwarded-client-cert", "URI=spiffe://a/ns/b/sa/admin")]);
            clean_request(&mut headers, peer);
            headers.len()
        };
        assert_eq!((left(Peer::Mesh), left(Peer::Outside), left(Peer::App)), (0, 0, 1));
    }

    #[test]
    fn trace_context_is_continued_when_valid_and_begun_otherwise() {
        let given = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let mut headers = map(&[("traceparent", given)]);
        identify(&mut headers, SAYS, || 7);
        let sent = headers[TRACEPARENT].to_str().unwrap().to_owned();
        assert_eq!(sent, "00-0af7651916cd43dd8448eb211c80319c-0000000000000007-01");
        for bad in [
            "",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x",
        ] {
            assert_eq!(parse_traceparent(bad.as_bytes()), None, "{bad}");
            let mut headers = HeaderMap::new();
            headers.insert(TRACEPARENT, HeaderValue::from_str(bad).unwrap());
            identify(&mut headers, SAYS, || 8);
            let sent = headers[TRACEPARENT].to_str().unwrap();
            assert!(parse_traceparent(sent.as_bytes()).is_some(), "{sent}");
        }
    }

    #[test]
    fn traces_of_zipkin_are_continued() {
        let wide = "80f198ee56343ba864fe8b2a57d3eff7";
        let one =
            map(&[("b3", "80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1-1-05e3ac9a4f6e3b90")]);
        let several =
            map(&[("x-b3-traceid", "64fe8b2a57d3eff7"), ("x-b3-spanid", "e457b5a2e4d86bd1")]);
        for (mut headers, id) in [(one, wide), (several, &wide[16..])] {
            let (_, trace) = identify(&mut headers, SAYS, || 7);
            assert_eq!(trace.id, u128::from_str_radix(id, 16).unwrap());
            assert_eq!(trace.received, 0xe457_b5a2_e4d8_6bd1);
            assert_eq!(headers[TRACEPARENT], format!("00-{id:0>32}-0000000000000007-00"));
        }
        for bad in ["0", "1", "", "d", "zz-11", "80f198ee56343ba864fe8b2a57d3eff7"] {
            assert_eq!(b3(&map(&[("b3", bad)])), None, "{bad}");
        }
    }

    #[test]
    fn request_ids_are_kept_or_made() {
        let mut headers = map(&[("x-request-id", "abc")]);
        assert_eq!(identify(&mut headers, Says { trace: false, ..SAYS }, || 1).0, "abc");
        let mut headers = map(&[("x-request-id", "")]);
        let (id, _) = identify(&mut headers, Says { trace: false, ..SAYS }, || 0x1f);
        assert_eq!(id, "000000000000001f000000000000001f");
        assert_eq!(headers[REQUEST_ID], id);
    }
}
