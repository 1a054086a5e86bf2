//! Which answers may be kept and given again: HTTP caching as a shared cache does it (RFC 9111), and
//! stricter where that leaves a choice.
//!
//! Only 200 to GET, whole, within the policy's size. What the response says shortens the policy's time and
//! never lengthens it. An answer is shared with requests that show who they are (`Authorization`,
//! `Cookie`) only if it says that it may be. Nothing here holds anything: the store is the proxy's.

mod directives;

use std::time::{Duration, SystemTime};

use http::header::{
    self, AGE, AUTHORIZATION, COOKIE, DATE, EXPIRES, HeaderName, HeaderValue, PROXY_AUTHORIZATION,
    RANGE, SET_COOKIE, VARY,
};
use http::{HeaderMap, Method, StatusCode};

use self::directives::Directives;

/// How long answers are kept, and how large they may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheConfig {
    /// An answer is given again without asking for so long. Zero: it is kept only as a fallback.
    pub ttl: Duration,
    /// For so long after that it may be given instead of a failure.
    pub stale_on_error: Duration,
    pub max_entry_bytes: u32,
}

/// More seconds than this are told as this many (RFC 9111 section 1.2.2).
const MAX_SECONDS: u64 = 1 << 31;
/// Bytes of one answer's body unless a policy says otherwise.
pub const DEFAULT_ENTRY_BYTES: u32 = 64 * 1024;

/// How long an answer that may be kept is good, and for whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cached {
    pub fresh: Duration,
    /// After that, instead of a failure.
    pub stale: Duration,
    /// How old it was when it came.
    pub age: Duration,
    pub shared: Shared,
}

/// With which requests an answer may be shared that show who they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shared {
    /// With `Authorization` (RFC 9111 section 3.5).
    pub authorized: bool,
    /// With `Cookie` and the like ([`CREDENTIALS`]). The RFC leaves that to `Vary`, which apps forget.
    pub with_cookies: bool,
}

/// What a request says about answers that are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheRequest {
    /// A fresh answer that is kept will do.
    pub fresh: bool,
    /// A stale one will do instead of a failure.
    pub stale: bool,
    /// The answer may be kept.
    pub store: bool,
    /// It came with `Authorization`.
    pub authorized: bool,
    /// It came with `Cookie` or the like ([`CREDENTIALS`]).
    pub with_cookies: bool,
}

impl CacheRequest {
    /// Whether such a request may be given an answer, and the answer to it kept, that is shared so.
    pub fn may_share(self, shared: Shared) -> bool {
        (!self.authorized || shared.authorized) && (!self.with_cookies || shared.with_cookies)
    }
}

/// The moments of one exchange with the origin.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// When the head of the answer came.
    pub came: SystemTime,
    /// How long that took.
    pub took: Duration,
}

/// None: the cache has nothing to do with the request. `has_body`: a GET may have one, and then its answer
/// can depend on what no key holds (RFC 9110 section 9.3.1).
pub fn cache_request(method: &Method, headers: &HeaderMap, has_body: bool) -> Option<CacheRequest> {
    let has = |name: &HeaderName| headers.contains_key(name);
    if method != Method::GET || has(&RANGE) || has_body || METHODS.iter().any(has) {
        return None;
    }
    let says = Directives::of(headers);
    let conditional = CONDITIONS.iter().any(has);
    // A `max-age` or `min-fresh` is a wish for something newer than we may have; nobody needs us to count
    // for it.
    let newer = says.no_cache || says.max_age.is_some() || says.min_fresh;
    Some(CacheRequest {
        fresh: !newer && !says.no_store && !conditional,
        stale: !says.no_store && !conditional,
        // The answer to a condition may be no answer to anybody else.
        store: !says.no_store && !conditional,
        authorized: has(&AUTHORIZATION),
        with_cookies: CREDENTIALS.iter().any(has),
    })
}

/// How long the answer to such a request may be kept (RFC 9111 section 3). None: not at all.
pub fn may_store(
    config: &CacheConfig,
    asked: CacheRequest,
    status: StatusCode,
    headers: &HeaderMap,
    timing: Timing,
) -> Option<Cached> {
    if !asked.store || status != StatusCode::OK || headers.contains_key(SET_COOKIE) {
        return None;
    }
    let says = Directives::of(headers);
    if says.no_store || says.private || says.no_cache || varies(headers).is_none() {
        return None;
    }
    let shared = Shared {
        // Not `proxy-revalidate`, which allows nothing (section 5.2.2.8).
        authorized: says.public || says.s_maxage.is_some() || says.must_revalidate,
        with_cookies: says.public,
    };
    if !asked.may_share(shared) {
        return None;
    }
    let age = age(headers);
    let mut fresh = config.ttl.saturating_sub(age);
    if let Some(lifetime) = lifetime(&says, headers, timing.came) {
        let old = initial_age(headers, age, timing);
        fresh = lifetime.min(config.ttl).saturating_sub(age).min(lifetime.saturating_sub(old));
    }
    // An `s-maxage` forbids what is stale as `proxy-revalidate` does (section 5.2.2.10).
    let revalidates = says.must_revalidate || says.proxy_revalidate || says.s_maxage.is_some();
    let mut stale = if revalidates { Duration::ZERO } else { config.stale_on_error };
    if let Some(said) = says.stale_if_error {
        stale = stale.min(said);
    }
    (!fresh.is_zero() || !stale.is_zero()).then_some(Cached { fresh, stale, age, shared })
}

/// For how long an answer says to be fresh (RFC 9111 section 4.2.1), zero where it says that in a way that
/// cannot be relied on. None: it says nothing.
fn lifetime(says: &Directives, headers: &HeaderMap, came: SystemTime) -> Option<Duration> {
    if let Some(said) = says.s_maxage.or(says.max_age) {
        return Some(said);
    }
    if !headers.contains_key(EXPIRES) {
        return None;
    }
    // Invalid is over, `0` above all (section 5.3), and so are two that differ.
    let Some(expires) = date(headers, &EXPIRES) else { return Some(Duration::ZERO) };
    // Without a date that can be read it counts from when it came (RFC 9110 section 6.6.1).
    let from = date(headers, &DATE).unwrap_or(came);
    Some(expires.duration_since(from).unwrap_or_default())
}

/// How old an answer is when it comes (RFC 9111 section 4.2.3).
fn initial_age(headers: &HeaderMap, said: Duration, timing: Timing) -> Duration {
    let apparent = date(headers, &DATE).and_then(|date| timing.came.duration_since(date).ok());
    // Dates have whole seconds.
    let apparent = Duration::from_secs(apparent.unwrap_or_default().as_secs());
    apparent.max(said.saturating_add(timing.took))
}

/// The date in a header that is there once, or says the same each time.
fn date(headers: &HeaderMap, name: &HeaderName) -> Option<SystemTime> {
    let mut values = headers.get_all(name).iter();
    let first = values.next()?;
    if values.any(|other| other != first) {
        return None;
    }
    httpdate::parse_http_date(first.to_str().ok()?.trim()).ok()
}

/// The names of the request's headers that chose the answer, in lower case, each once. None: it depends on
/// more than headers (`*`), or one of them is no header's name, so that no request is the same.
pub fn varies(response: &HeaderMap) -> Option<Vec<HeaderName>> {
    let mut names: Vec<HeaderName> = Vec::new();
    for value in response.get_all(VARY) {
        for name in value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
            if name.is_empty() {
                continue;
            }
            let name = HeaderName::from_bytes(name).ok().filter(|name| name != "*")?;
            if !names.contains(&name) {
                names.push(name);
            }
        }
    }
    names.sort_unstable_by(|a, b| a.as_str().cmp(b.as_str()));
    Some(names)
}

/// Whether two requests are the same as far as the answer to one of them depends on it.
pub fn same(names: &[HeaderName], a: &HeaderMap, b: &HeaderMap) -> bool {
    names.iter().all(|name| a.get_all(name).iter().eq(b.get_all(name).iter()))
}

/// By what requests show who they are, beside `Authorization`.
const CREDENTIALS: [HeaderName; 3] =
    [COOKIE, PROXY_AUTHORIZATION, HeaderName::from_static("x-forwarded-client-cert")];
/// By what a GET is another method to many frameworks.
const METHODS: [HeaderName; 3] = [
    HeaderName::from_static("x-http-method-override"),
    HeaderName::from_static("x-http-method"),
    HeaderName::from_static("x-method-override"),
];
/// What makes an answer one to a condition.
const CONDITIONS: [HeaderName; 5] = [
    header::IF_MATCH,
    header::IF_NONE_MATCH,
    header::IF_MODIFIED_SINCE,
    header::IF_UNMODIFIED_SINCE,
    header::IF_RANGE,
];

/// How old an answer says to be, at most 2^31 s, which stands for all beyond (RFC 9111 section 1.2.2). The
/// first value counts, and what says nothing that can be read is new (section 5.1).
pub fn age(headers: &HeaderMap) -> Duration {
    let first = headers.get(AGE).map(HeaderValue::as_bytes).unwrap_or_default();
    let first = first.split(|byte| *byte == b',').next().unwrap_or_default();
    seconds(first.trim_ascii()).unwrap_or_default()
}

/// `delta-seconds` (RFC 9111 section 1.2.2): digits alone.
fn seconds(text: &[u8]) -> Option<Duration> {
    let valid = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    let text = std::str::from_utf8(text).ok().filter(|_| valid)?;
    Some(Duration::from_secs(text.parse().unwrap_or(MAX_SECONDS).min(MAX_SECONDS)))
}

#[cfg(test)]
mod tests;
