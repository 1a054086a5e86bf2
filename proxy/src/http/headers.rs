//! Headers that belong to a hop, and those that follow a request: RFC 9110 section 7.6.1, W3C trace
//! context, request id.

use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::request::Parts;
use http::{HeaderMap, Method, Version};
use outrigger_core::policy::access::is_respelled;

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
/// The token of a CONNECT request, which no `Upgrade` can name (RFC 9110 section 7.8): a host is asked for,
/// not a protocol.
pub const CONNECT: HeaderValue = HeaderValue::from_static(":connect");
/// Between proxies, on a CONNECT: only whether the app takes a connection is asked.
pub const CHECK: HeaderName = HeaderName::from_static("x-outrigger-check");
pub const PRIORITY: HeaderName = HeaderName::from_static("x-outrigger-priority");
/// The services that a request has come through ([`outrigger_core::policy::visits`]).
pub const VIA: HeaderName = HeaderName::from_static("x-outrigger-via");
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
const B3: HeaderName = HeaderName::from_static("b3");
const B3_TRACE: HeaderName = HeaderName::from_static("x-b3-traceid");
const B3_SPAN: HeaderName = HeaderName::from_static("x-b3-spanid");
const B3_SAMPLED: HeaderName = HeaderName::from_static("x-b3-sampled");
const B3_FLAGS: HeaderName = HeaderName::from_static("x-b3-flags");
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
/// Somebody records the trace (Trace Context section 3.2.2.5.1).
const SAMPLED: u8 = 1;
/// The flags that mean something: sampled, and that the trace id is random (Trace Context Level 2). Others
/// must not be passed on.
const KNOWN_FLAGS: u8 = SAMPLED | 2;

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
    /// A name with `_`, which may be another one to the app.
    underscore: bool,
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
            b"traceparent" | b"tracestate" | b"b3" | b"x-b3-traceid" => seen.trace = true,
            other => seen.underscore |= other.contains(&b'_'),
        }
    }
    seen
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
    if seen.underscore && peer != Peer::App {
        remove_respelled(headers, is_ours_respelled);
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
    if seen.underscore {
        remove_respelled(headers, is_ours_respelled);
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

/// A request's place in its trace. All zero: it is in none.
#[derive(Clone, Copy, Debug, Default)]
pub struct Trace {
    pub id: u128,
    /// The span that the request came with.
    pub received: u64,
    /// The span that it is sent on with; 0: as it came.
    pub sent: u64,
}

/// What a request says about its trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Context {
    id: u128,
    span: u64,
    /// None: that is left to the next service, which only B3 can say.
    flags: Option<u8>,
}

/// Keeps the request's id or gives it one, and continues its W3C trace context (else B3) with a fresh
/// parent id. `says`: whether it has any.
///
/// Begins no trace: nobody would record it, and what follows a parent that is not sampled is not recorded
/// either. What is no valid trace context is removed, with the `tracestate` that belongs to it (Trace
/// Context section 4.3).
pub fn identify(
    headers: &mut HeaderMap,
    says: Says,
    random: impl Fn() -> u64,
) -> (HeaderValue, Trace) {
    let trace = if says.trace { continue_trace(headers, random()) } else { Trace::default() };
    let given = if says.id { headers.get(REQUEST_ID) } else { None };
    let id = given.filter(|id| !id.is_empty()).cloned().unwrap_or_else(|| {
        let mut text = [0; ID_BYTES];
        hex(&mut text[..16], &random().to_be_bytes());
        hex(&mut text[16..], &random().to_be_bytes());
        let id = unique(Bytes::from_owner(text));
        headers.insert(REQUEST_ID, id.clone());
        id
    });
    (id, trace)
}

fn continue_trace(headers: &mut HeaderMap, random: u64) -> Trace {
    let w3c = one(headers, &TRACEPARENT).and_then(|value| parse_traceparent(value.as_bytes()));
    if w3c.is_none() {
        headers.remove(TRACEPARENT);
        headers.remove(TRACESTATE);
    }
    let Some(Context { id, span: received, flags }) = w3c.or_else(|| b3(headers)) else {
        return Trace::default();
    };
    let Some(flags) = flags else { return Trace { id, received, sent: 0 } };
    // All zero is not valid; one bit settles it.
    let sent = random | 1;
    let mut text = [b'-'; TRACE_BYTES];
    text[..2].copy_from_slice(b"00");
    hex(&mut text[3..35], &id.to_be_bytes());
    hex(&mut text[36..52], &sent.to_be_bytes());
    hex(&mut text[53..], &[flags & KNOWN_FLAGS]);
    headers.insert(TRACEPARENT, unique(Bytes::from_owner(text)));
    Trace { id, received, sent }
}

/// The value of a header that is there once.
fn one<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    let mut all = headers.get_all(name).iter();
    all.next().filter(|_| all.next().is_none())
}

/// Zipkin's headers, in one (`trace-span-sampled-parent`) or in several; trace ids of 8 or 16 bytes.
fn b3(headers: &HeaderMap) -> Option<Context> {
    let text = |name: &HeaderName| one(headers, name)?.to_str().ok();
    let (trace, span, sampled) = match headers.contains_key(B3) {
        true => {
            let mut parts = text(&B3)?.split('-');
            (parts.next()?, parts.next()?, parts.next())
        }
        false => {
            let debug = text(&B3_FLAGS).filter(|flags| *flags == "1");
            (text(&B3_TRACE)?, text(&B3_SPAN)?, debug.or_else(|| text(&B3_SAMPLED)))
        }
    };
    if !matches!(trace.len(), 16 | 32) || span.len() != 16 {
        return None;
    }
    let id = u128::from_str_radix(trace, 16).ok().filter(|id| *id != 0)?;
    let span = u64::from_str_radix(span, 16).ok().filter(|span| *span != 0)?;
    let flags = match sampled {
        Some("1" | "d" | "true") => Some(SAMPLED),
        Some("0" | "false") => Some(0),
        _ => None,
    };
    Some(Context { id, span, flags })
}

/// `version-traceid-parentid-flags`; trace id, parent id and flags.
fn parse_traceparent(value: &[u8]) -> Option<Context> {
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
    let id = u128::from(high) << 64 | u128::from(low);
    Some(Context { id, span: parent, flags: Some(flags as u8) })
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
            clean_request(&mut headers, Peer::Outside);
            assert_eq!(headers, map(&[("x_other", "1")]), "{name}");
        }
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

    /// `traceparent` and `tracestate` as they are sent on.
    fn sent_on(pairs: &[(&'static str, &'static str)]) -> (Option<String>, bool) {
        let mut headers = map(pairs);
        let (_, trace) = identify(&mut headers, SAYS, || 7);
        let parent = headers.get(TRACEPARENT).map(|value| value.to_str().unwrap().to_owned());
        assert_eq!(parent.is_some(), trace.sent != 0);
        (parent, headers.contains_key(TRACESTATE))
    }

    #[test]
    fn trace_context_is_continued_when_valid_and_never_begun() {
        let given = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let state = ("tracestate", "vendor=1");
        for (flags, want) in [("00", "00"), ("01", "01"), ("03", "03"), ("ff", "03")] {
            let given = format!("{}{flags}", &given[..53]).leak();
            let (sent, kept) = sent_on(&[("traceparent", given), state]);
            let want = format!("00-0af7651916cd43dd8448eb211c80319c-0000000000000007-{want}");
            assert_eq!((sent, kept), (Some(want), true), "{flags}");
        }
        assert_eq!(sent_on(&[]), (None, false));
        assert_eq!(sent_on(&[state]), (None, false));
        assert_eq!(
            sent_on(&[("traceparent", given), ("traceparent", given), state]),
            (None, false)
        );
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
            assert_eq!(sent_on(&[("traceparent", bad), state]), (None, false), "{bad}");
        }
    }

    #[test]
    fn traces_of_zipkin_are_continued_as_they_are_sampled() {
        const TRACE: &str = "80f198ee56343ba864fe8b2a57d3eff7";
        const SPAN: &str = "e457b5a2e4d86bd1";
        let want = |flags| Some(format!("00-{TRACE}-0000000000000007-{flags}"));
        for (sampled, flags) in [
            ("-1-05e3ac9a4f6e3b90", Some("01")),
            ("-1", Some("01")),
            ("-d", Some("01")),
            ("-0", Some("00")),
            // Whether it is recorded is for the next one to decide.
            ("", None),
        ] {
            let one = format!("{TRACE}-{SPAN}{sampled}").leak();
            // The state belongs to a W3C trace, which this is not.
            let sent = sent_on(&[("b3", one), ("tracestate", "vendor=1")]);
            assert_eq!(sent, (flags.and_then(want), false), "{sampled}");
        }
        for (name, value, flags) in [
            ("x-b3-sampled", "1", Some("01")),
            ("x-b3-sampled", "true", Some("01")),
            ("x-b3-sampled", "0", Some("00")),
            ("x-b3-flags", "1", Some("01")),
            ("x-b3-other", "1", None),
        ] {
            let several = [("x-b3-traceid", TRACE), ("x-b3-spanid", SPAN), (name, value)];
            assert_eq!(sent_on(&several), (flags.and_then(want), false), "{name}: {value}");
        }
        let short = map(&[("x-b3-traceid", &TRACE[16..]), ("x-b3-spanid", SPAN)]);
        let (id, span) = (0x64fe_8b2a_57d3_eff7, 0xe457_b5a2_e4d8_6bd1);
        assert_eq!(b3(&short), Some(Context { id, span, flags: None }));
        for bad in ["0", "1", "", "d", "zz-11", TRACE] {
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
