//! What follows a request through apps: its id, and its place in a trace (W3C Trace Context, Zipkin's B3).
//!
//! Traces are continued, and begun where the mesh records any. What belongs to a hop is in
//! [`crate::wire::headers`]; read next [`crate::request::context`], which correlates by what is found here.

use bytes::Bytes;
use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};
use outrigger_core::telemetry::Sampler;

use crate::observe::record::{SAMPLED, TraceContext};
use crate::wire::headers::{HeaderScan, REQUEST_ID, TRACEPARENT};

const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
const B3: HeaderName = HeaderName::from_static("b3");
const B3_TRACE: HeaderName = HeaderName::from_static("x-b3-traceid");
const B3_SPAN: HeaderName = HeaderName::from_static("x-b3-spanid");
const B3_PARENT: HeaderName = HeaderName::from_static("x-b3-parentspanid");
const B3_SAMPLED: HeaderName = HeaderName::from_static("x-b3-sampled");
const B3_FLAGS: HeaderName = HeaderName::from_static("x-b3-flags");
/// Digits of a request id that is given here.
const ID_BYTES: usize = 32;
/// Of `version-traceid-parentid-flags`.
const TRACE_BYTES: usize = 55;
/// The trace id is random (Trace Context Level 2).
const RANDOM: u8 = 2;
/// The flags that mean something. Others must not be passed on.
const KNOWN_FLAGS: u8 = SAMPLED | RANDOM;

/// What a request says about its trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Context {
    id: u128,
    span: u64,
    /// None: that is left to the next service, which only B3 can say.
    flags: Option<u8>,
}

/// Keeps the request's id or gives it one, and tells whether it had one. `seen`: whether it has any.
pub fn request_id(
    headers: &mut HeaderMap,
    seen: HeaderScan,
    random: impl Fn() -> u64,
) -> (HeaderValue, bool) {
    let given = if seen.has(HeaderScan::ID) { headers.get(REQUEST_ID) } else { None };
    if let Some(given) = given.filter(|id| !id.is_empty()) {
        return (given.clone(), true);
    }
    let mut text = [0; ID_BYTES];
    hex(&mut text[..16], &random().to_be_bytes());
    hex(&mut text[16..], &random().to_be_bytes());
    let id = unique(Bytes::from_owner(text));
    headers.insert(REQUEST_ID, id.clone());
    (id, false)
}

/// Has HPACK index an id that was given here, for the first request of a connection: those behind it send a number in
/// place of the name.
pub fn introduce_id(headers: &mut HeaderMap) {
    if let Some(id) = headers.get_mut(REQUEST_ID) {
        id.set_sensitive(false);
    }
}

/// Continues the request's W3C trace context (else B3) with a fresh parent id. `seen`: whether it has any;
/// `sampling`: where anything is recorded here.
///
/// What is no valid trace context is removed, with the `tracestate` that belongs to it (Trace Context section
/// 4.3).
pub fn continued(
    headers: &mut HeaderMap,
    seen: HeaderScan,
    sampling: Option<Sampler>,
    random: impl Fn() -> u64,
) -> TraceContext {
    if !seen.has(HeaderScan::TRACE) {
        return TraceContext::default();
    }
    let w3c = one(headers, &TRACEPARENT).and_then(|value| parse_traceparent(value.as_bytes()));
    if w3c.is_none() {
        headers.remove(TRACEPARENT);
        headers.remove(TRACESTATE);
    }
    let Some(Context { id, span: received, flags }) = w3c.or_else(|| b3(headers)) else {
        return TraceContext::default();
    };
    let flags = match (flags, sampling) {
        (Some(flags), None) => flags,
        (Some(flags), Some(sampler)) if sampler.parent => flags,
        (flags, Some(sampler)) => {
            flags.unwrap_or_default() & !SAMPLED | u8::from(sampler.draws(id))
        }
        (None, None) => return TraceContext { id, received, ..TraceContext::default() },
    };
    // All zero is not valid; one bit settles it.
    let sent = random() | 1;
    let trace = TraceContext { id, received, sent, flags: flags & KNOWN_FLAGS };
    write(headers, &trace, sent);
    if seen.has(HeaderScan::ZIPKIN) && sampling.is_some() {
        write_b3(headers, &trace, sent);
    }
    trace
}

/// The trace of a request whose id was given by a proxy, of 32 digits: trace and first span follow from it, so that
/// the next proxy needs no more. None: it is another's id.
pub fn of_id(id: &HeaderValue, sampler: Sampler) -> Option<TraceContext> {
    let digits = Some(id.as_bytes()).filter(|digits| digits.len() == ID_BYTES)?;
    let (high, low) = (unhex(&digits[..16])?, unhex(&digits[16..])?);
    let id = Some(u128::from(high) << 64 | u128::from(low)).filter(|id| *id != 0)?;
    // Random at the end, and so drawn.
    let flags = RANDOM | u8::from(sampler.draws(id));
    Some(TraceContext { id, received: 0, sent: high.rotate_left(32) ^ low | 1, flags })
}

/// Goes on with the trace that another proxy has begun, and of which nothing but the request's id tells.
pub fn continued_by_id(
    headers: &mut HeaderMap,
    begun: TraceContext,
    random: impl Fn() -> u64,
) -> TraceContext {
    let trace = TraceContext { received: begun.sent, sent: random() | 1, ..begun };
    write(headers, &trace, trace.sent);
    trace
}

/// Begins a trace, or goes on with the one of `parent`, the request that it belongs to.
pub fn begin(
    headers: &mut HeaderMap,
    sampler: Sampler,
    parent: Option<TraceContext>,
    random: impl Fn() -> u64,
) -> TraceContext {
    let sent = random() | 1;
    let trace = match parent {
        Some(parent) => TraceContext { received: parent.sent, sent, ..parent },
        None => {
            let id = u128::from(random()) << 64 | u128::from(random() | 1);
            // Random at the end, and so drawn.
            let flags = RANDOM | u8::from(sampler.draws(id));
            TraceContext { id, received: 0, sent, flags }
        }
    };
    write(headers, &trace, sent);
    trace
}

/// Has the request say to which trace it belongs, where the next one could not know.
pub fn say(headers: &mut HeaderMap, trace: &TraceContext) {
    write(headers, trace, trace.sent);
}

/// Has the request say that it is a further attempt, whose span is one of its own.
pub fn again(headers: &mut HeaderMap, trace: &TraceContext, attempt: u8) {
    let span = trace.span_of(attempt);
    write(headers, trace, span);
    write_b3(headers, trace, span);
}

fn write(headers: &mut HeaderMap, trace: &TraceContext, span: u64) {
    let mut text = [b'-'; TRACE_BYTES];
    text[..2].copy_from_slice(b"00");
    hex(&mut text[3..35], &trace.id.to_be_bytes());
    hex(&mut text[36..52], &span.to_be_bytes());
    hex(&mut text[53..], &[trace.flags]);
    headers.insert(TRACEPARENT, unique(Bytes::from_owner(text)));
}

/// For those who know nothing else, where the request came with it.
fn write_b3(headers: &mut HeaderMap, trace: &TraceContext, span: u64) {
    let (has_one, has_several) = (headers.contains_key(B3), headers.contains_key(B3_TRACE));
    if !has_one && !has_several {
        return;
    }
    let sampled = u8::from(trace.is_sampled());
    let span = format!("{span:016x}");
    let mut insert = |name: HeaderName, value: String| {
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(name, value);
        }
    };
    if has_one {
        insert(B3, format!("{:032x}-{span}-{sampled}", trace.id));
    }
    if has_several {
        insert(B3_TRACE, format!("{:032x}", trace.id));
        insert(B3_SPAN, span);
        insert(B3_PARENT, format!("{:016x}", trace.received));
        insert(B3_SAMPLED, sampled.to_string());
        headers.remove(B3_FLAGS);
    }
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
    let (high, low) = (unhex(&value[3..19])?, unhex(&value[19..35])?);
    let parent = unhex(&value[36..52])?;
    let flags = unhex(&value[53..55])?;
    if (high == 0 && low == 0) || parent == 0 {
        return None;
    }
    let id = u128::from(high) << 64 | u128::from(low);
    Some(Context { id, span: parent, flags: Some(flags as u8) })
}

/// The number that these digits are, in lower case alone. At most 16.
fn unhex(digits: &[u8]) -> Option<u64> {
    /// No digit has this bit.
    const WRONG: u8 = 0x80;
    const VALUES: [u8; 256] = {
        let mut values = [WRONG; 256];
        let mut i = 0;
        while i < 16 {
            values[b"0123456789abcdef"[i] as usize] = i as u8;
            i += 1;
        }
        values
    };
    let (mut number, mut seen) = (0, 0);
    for digit in digits {
        let value = VALUES[usize::from(*digit)];
        seen |= value;
        number = number << 4 | u64::from(value);
    }
    (seen & WRONG == 0).then_some(number)
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
/// does come back (RFC 7541 section 7.1.3). One is indexed all the same, so that peers know the name
/// ([`introduce_id`]); a few would cost more than they save, since every further one is compared with them all.
fn unique(text: Bytes) -> HeaderValue {
    let value = HeaderValue::from_maybe_shared(text);
    let mut value = value.unwrap_or_else(|_| HeaderValue::from_static(""));
    value.set_sensitive(true);
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEEN: HeaderScan = HeaderScan::TRACE.and(HeaderScan::ZIPKIN).and(HeaderScan::ID);

    fn map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    /// `traceparent` and `tracestate` as they are sent on.
    fn sent_on(pairs: &[(&'static str, &'static str)]) -> (Option<String>, bool) {
        let mut headers = map(pairs);
        let trace = continued(&mut headers, SEEN, None, || 7);
        let parent = headers.get(TRACEPARENT).map(|value| value.to_str().unwrap().to_owned());
        assert_eq!(parent.is_some(), trace.sent != 0);
        (parent, headers.contains_key(TRACESTATE))
    }

    #[test]
    fn trace_context_is_continued_when_valid() {
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
        assert_eq!(request_id(&mut headers, SEEN, || 1), (HeaderValue::from_static("abc"), true));
        let mut headers = map(&[("x-request-id", "")]);
        let (id, given) = request_id(&mut headers, SEEN, || 0x1f);
        assert!(!given);
        assert_eq!(id, "000000000000001f000000000000001f");
        assert_eq!(headers[REQUEST_ID], id);
    }

    use outrigger_core::telemetry::Ratio;

    const ALL: Sampler = Sampler { ratio: Ratio::ALL, parent: true };
    const NONE: Sampler = Sampler { ratio: Ratio::NONE, parent: true };

    #[test]
    fn who_records_decides_by_the_parent_or_for_itself() {
        let sampled = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let not = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";
        let undecided = "80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1";
        for (name, given, sampler, want) in [
            ("traceparent", sampled, NONE, true),
            ("traceparent", not, ALL, false),
            ("traceparent", sampled, Sampler { parent: false, ..NONE }, false),
            ("traceparent", not, Sampler { parent: false, ..ALL }, true),
            ("b3", undecided, NONE, false),
            ("b3", undecided, ALL, true),
        ] {
            let mut headers = map(&[(name, given)]);
            let trace = continued(&mut headers, SEEN, Some(sampler), || 7);
            assert_eq!(trace.is_sampled(), want, "{given}");
            assert_eq!(trace.sent, 7);
        }
    }

    #[test]
    fn a_trace_is_begun_or_goes_on_and_each_attempt_has_a_span_of_its_own() {
        let mut headers = HeaderMap::new();
        let first = begin(&mut headers, ALL, None, || 0xb);
        assert_eq!(headers[TRACEPARENT], "00-000000000000000b000000000000000b-000000000000000b-03");
        let second = begin(&mut headers, NONE, Some(first), || 0xd);
        assert_eq!((second.id, second.received, second.is_sampled()), (first.id, 0xb, true));
        assert!(!begin(&mut headers, NONE, None, || 0xb).is_sampled());
        let spans = [1, 2, 3].map(|attempt| first.span_of(attempt));
        assert_eq!(spans[0], first.sent);
        assert!(spans[1] != spans[0] && spans[2] != spans[1] && !spans.contains(&0));
        again(&mut headers, &first, 2);
        let written = headers[TRACEPARENT].to_str().unwrap();
        assert!(written.contains(&format!("-{:016x}-", spans[1])), "{written}");
    }

    #[test]
    fn those_who_know_zipkin_alone_are_told_in_its_headers() {
        const TRACE: &str = "80f198ee56343ba864fe8b2a57d3eff7";
        let mut headers = map(&[("b3", "80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1-1")]);
        let trace = continued(&mut headers, SEEN, Some(NONE), || 7);
        assert_eq!(headers["b3"], format!("{TRACE}-0000000000000007-1"));
        again(&mut headers, &trace, 2);
        assert_eq!(headers["b3"], format!("{TRACE}-{:016x}-1", trace.span_of(2)));
        let several = [
            ("x-b3-traceid", TRACE),
            ("x-b3-spanid", "e457b5a2e4d86bd1"),
            ("x-b3-parentspanid", "0000000000000001"),
            ("x-b3-flags", "1"),
        ];
        let mut headers = map(&several);
        continued(&mut headers, SEEN, Some(NONE), || 7);
        let of = |name: &str| headers.get(name).map(|value| value.to_str().unwrap());
        assert_eq!(of("x-b3-spanid"), Some("0000000000000007"));
        assert_eq!(of("x-b3-parentspanid"), Some("e457b5a2e4d86bd1"));
        assert_eq!((of("x-b3-sampled"), of("x-b3-flags")), (Some("1"), None));
        // Where nobody records they are as they came.
        let mut headers = map(&several);
        continued(&mut headers, SEEN, None, || 7);
        assert_eq!(headers["x-b3-spanid"], "e457b5a2e4d86bd1");
    }
}
