//! Which answers may be kept and given again: HTTP caching as a shared cache does it (RFC 9111), and
//! stricter where that leaves a choice.
//!
//! Only 200 to GET, whole, within the policy's size. What the response says shortens the policy's time and
//! never lengthens it. Nothing here holds anything: the store is the proxy's.

use std::time::Duration;

use http::header::{
    self, AGE, AUTHORIZATION, CACHE_CONTROL, HeaderName, HeaderValue, RANGE, SET_COOKIE, VARY,
};
use http::{HeaderMap, Method, StatusCode};

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

/// How long an answer that may be kept is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept {
    pub fresh: Duration,
    /// After that, instead of a failure.
    pub stale: Duration,
}

/// What a request says about answers that are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// A fresh answer that is kept will do.
    pub fresh: bool,
    /// A stale one will do instead of a failure.
    pub stale: bool,
    /// The answer may be kept.
    pub store: bool,
    /// It came with credentials.
    pub authorized: bool,
}

/// None: the cache has nothing to do with the request.
pub fn asked(method: &Method, headers: &HeaderMap) -> Option<Asked> {
    if method != Method::GET || headers.contains_key(RANGE) {
        return None;
    }
    let says = Directives::of(headers);
    let conditional = CONDITIONS.iter().any(|name| headers.contains_key(name));
    // A `max-age` is a wish for something newer than we may have; nobody needs us to count for it.
    let fresh = !says.no_cache && !says.no_store && says.max_age.is_none() && !conditional;
    Some(Asked {
        fresh,
        stale: !says.no_store && !conditional,
        // The answer to a condition may be no answer to anybody else.
        store: !says.no_store && !conditional,
        authorized: headers.contains_key(AUTHORIZATION),
    })
}

/// How long the answer to such a request may be kept. None: not at all.
pub fn may_store(
    config: &CacheConfig,
    asked: Asked,
    status: StatusCode,
    headers: &HeaderMap,
) -> Option<Kept> {
    if !asked.store || status != StatusCode::OK || headers.contains_key(SET_COOKIE) {
        return None;
    }
    let says = Directives::of(headers);
    if says.no_store || says.private || says.no_cache {
        return None;
    }
    // RFC 9111 section 3.5.
    let shared = says.public || says.s_maxage.is_some() || says.must_revalidate;
    if asked.authorized && !shared {
        return None;
    }
    if headers.get_all(VARY).iter().any(|value| list(value).any(|name| name == "*")) {
        return None;
    }
    let age = age(headers);
    let said = says.s_maxage.or(says.max_age);
    let fresh = said.map_or(config.ttl, |said| said.min(config.ttl)).saturating_sub(age);
    let revalidates = says.must_revalidate || says.s_maxage.is_some();
    let stale = if revalidates { Duration::ZERO } else { config.stale_on_error };
    // An `s-maxage` forbids what is stale as `proxy-revalidate` does (section 5.2.2.10).
    (!fresh.is_zero() || !stale.is_zero()).then_some(Kept { fresh, stale })
}

/// The names of the request's headers that chose the answer, in lower case, each once. None: one of them
/// is no header's name.
pub fn varies(response: &HeaderMap) -> Option<Vec<HeaderName>> {
    let mut names: Vec<HeaderName> = Vec::new();
    for name in response.get_all(VARY).iter().flat_map(list) {
        let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names.sort_unstable_by(|a, b| a.as_str().cmp(b.as_str()));
    Some(names)
}

/// Whether two requests are the same as far as the answer to one of them depends on it.
pub fn same(names: &[HeaderName], a: &HeaderMap, b: &HeaderMap) -> bool {
    names.iter().all(|name| a.get_all(name).iter().eq(b.get_all(name).iter()))
}

/// What makes an answer one to a condition.
const CONDITIONS: [HeaderName; 5] = [
    header::IF_MATCH,
    header::IF_NONE_MATCH,
    header::IF_MODIFIED_SINCE,
    header::IF_UNMODIFIED_SINCE,
    header::IF_RANGE,
];

/// What `Cache-Control` says. `Pragma` says nothing.
#[derive(Default)]
struct Directives {
    no_store: bool,
    no_cache: bool,
    private: bool,
    public: bool,
    /// Also `proxy-revalidate`.
    must_revalidate: bool,
    max_age: Option<Duration>,
    s_maxage: Option<Duration>,
}

impl Directives {
    fn of(headers: &HeaderMap) -> Self {
        let mut says = Self::default();
        for directive in headers.get_all(CACHE_CONTROL).iter().flat_map(list) {
            let (name, value) = directive.split_once('=').unwrap_or((directive, ""));
            // A time that does not parse is over (RFC 9111 section 4.2.1).
            let time = || {
                let text = value.trim().trim_matches('"');
                Some(
                    text.parse()
                        .map_or(Duration::ZERO, |s: u64| Duration::from_secs(s.min(MAX_SECONDS))),
                )
            };
            match name.trim().to_ascii_lowercase().as_str() {
                "no-store" => says.no_store = true,
                // With or without names of headers: all of it is left alone.
                "no-cache" => says.no_cache = true,
                "private" => says.private = true,
                "public" => says.public = true,
                "must-revalidate" | "proxy-revalidate" => says.must_revalidate = true,
                // Said twice, the shorter one holds.
                "max-age" => says.max_age = says.max_age.into_iter().chain(time()).min(),
                "s-maxage" => says.s_maxage = says.s_maxage.into_iter().chain(time()).min(),
                _ => {}
            }
        }
        says
    }
}

/// The members of a list. A comma in a quoted string cuts it, which can only make us more careful.
fn list(value: &HeaderValue) -> impl Iterator<Item = &str> {
    let text = value.to_str().unwrap_or("no-store");
    text.split(',').map(str::trim).filter(|member| !member.is_empty())
}

/// How old an answer says to be, at most 2^31 s, which stands for all beyond (RFC 9111 section 1.2.2). What
/// says nothing that can be read is new.
pub fn age(headers: &HeaderMap) -> Duration {
    let text = headers.get(AGE).and_then(|value| value.to_str().ok()).unwrap_or_default().trim();
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Duration::ZERO;
    }
    Duration::from_secs(text.parse().unwrap_or(MAX_SECONDS).min(MAX_SECONDS))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: CacheConfig = CacheConfig {
        ttl: Duration::from_secs(5),
        stale_on_error: Duration::from_secs(600),
        max_entry_bytes: DEFAULT_ENTRY_BYTES,
    };

    fn headers(text: &str) -> HeaderMap {
        let lines = text.split('|').filter(|line| !line.is_empty());
        let pairs = lines.map(|line| line.split_once(": ").expect("a header"));
        pairs
            .map(|(name, value)| {
                let name = HeaderName::from_bytes(name.as_bytes()).expect("a name");
                (name, HeaderValue::from_str(value).expect("a value"))
            })
            .collect()
    }

    #[test]
    fn answers_are_kept_as_a_shared_cache_may() {
        let kept = |fresh, stale| Some((fresh, stale));
        for (request, status, response, want) in [
            ("", 200, "", kept(5, 600)),
            ("", 200, "cache-control: max-age=2", kept(2, 600)),
            ("", 200, "cache-control: max-age=60", kept(5, 600)),
            ("", 200, "cache-control: max-age=60|age: 2", kept(3, 600)),
            ("", 200, "cache-control: max-age=4|age: 9", kept(0, 600)),
            ("", 200, "cache-control: max-age=60, s-maxage=3", kept(3, 0)),
            ("", 200, "cache-control: max-age=0", kept(0, 600)),
            ("", 200, "cache-control: max-age=soon", kept(0, 600)),
            ("", 200, "cache-control: max-age=9, max-age=1", kept(1, 600)),
            ("", 200, "cache-control: must-revalidate", kept(5, 0)),
            ("", 200, "cache-control: Proxy-Revalidate", kept(5, 0)),
            ("", 200, "cache-control: must-revalidate, max-age=0", None),
            ("", 200, "cache-control: no-store", None),
            ("", 200, "cache-control: max-age=9, No-Store", None),
            ("", 200, "cache-control: max-age=9|cache-control: private", None),
            ("", 200, "cache-control: private=\"x-a\"", None),
            ("", 200, "cache-control: no-cache", None),
            ("", 200, "pragma: no-cache", kept(5, 600)),
            ("", 200, "set-cookie: a=b", None),
            ("", 200, "vary: *", None),
            ("", 200, "vary: accept, *", None),
            ("", 200, "vary: accept", kept(5, 600)),
            ("", 203, "", None),
            ("", 206, "", None),
            ("", 301, "", None),
            ("", 404, "", None),
            ("", 503, "", None),
            ("cache-control: no-store", 200, "", None),
            ("cache-control: no-cache", 200, "", kept(5, 600)),
            ("if-none-match: \"a\"", 200, "", None),
            ("authorization: a", 200, "", None),
            ("authorization: a", 200, "cache-control: max-age=9", None),
            ("authorization: a", 200, "cache-control: public", kept(5, 600)),
            ("authorization: a", 200, "cache-control: s-maxage=9", kept(5, 0)),
            ("authorization: a", 200, "cache-control: must-revalidate", kept(5, 0)),
        ] {
            let asked = asked(&Method::GET, &headers(request)).expect("a GET");
            let status = StatusCode::from_u16(status).expect("a status");
            let found = may_store(&CONFIG, asked, status, &headers(response));
            let found = found.map(|kept| (kept.fresh.as_secs(), kept.stale.as_secs()));
            assert_eq!(found, want, "{request} -> {status} {response}");
        }
    }

    #[test]
    fn ages_are_read_and_bounded() {
        for (text, want) in [
            ("", 0),
            ("age: 0", 0),
            ("age: 7 ", 7),
            ("age: +7", 0),
            ("age: -7", 0),
            ("age: 1.5", 0),
            ("age: 2147483649", MAX_SECONDS),
            ("age: 18446744073709551615", MAX_SECONDS),
            ("age: 99999999999999999999999999", MAX_SECONDS),
        ] {
            assert_eq!(age(&headers(text)).as_secs(), want, "{text}");
        }
    }

    #[test]
    fn without_a_time_of_its_own_a_policy_keeps_only_for_errors() {
        let config = CacheConfig { ttl: Duration::ZERO, ..CONFIG };
        let asked = asked(&Method::GET, &HeaderMap::new()).expect("a GET");
        let kept = may_store(&config, asked, StatusCode::OK, &headers("cache-control: max-age=9"));
        assert_eq!(kept, Some(Kept { fresh: Duration::ZERO, stale: CONFIG.stale_on_error }));
    }

    #[test]
    fn requests_say_what_they_take() {
        for (text, fresh, stale, store) in [
            ("", true, true, true),
            ("cache-control: no-store", false, false, false),
            ("cache-control: no-cache", false, true, true),
            ("cache-control: max-age=0", false, true, true),
            ("pragma: no-cache", true, true, true),
            ("if-modified-since: x", false, false, false),
        ] {
            let asked = asked(&Method::GET, &headers(text)).expect("a GET");
            assert_eq!((asked.fresh, asked.stale, asked.store), (fresh, stale, store), "{text}");
        }
        assert_eq!(asked(&Method::POST, &HeaderMap::new()), None);
        assert_eq!(asked(&Method::HEAD, &HeaderMap::new()), None);
        assert_eq!(asked(&Method::GET, &headers("range: bytes=0-1")), None);
    }

    #[test]
    fn only_what_an_answer_varies_by_tells_requests_apart() {
        let names = varies(&headers("vary: Accept, accept-language|vary: accept")).expect("names");
        assert_eq!(names, ["accept", "accept-language"]);
        assert_eq!(varies(&headers("vary: a b")), None);
        let one = headers("accept: a|x: 1");
        assert!(same(&names, &one, &headers("accept: a|x: 2")));
        assert!(!same(&names, &one, &headers("accept: b|x: 1")));
        assert!(!same(&names, &one, &headers("accept: a|accept: b")));
        assert!(!same(&names, &one, &headers("accept: a|accept-language: en")));
    }
}
