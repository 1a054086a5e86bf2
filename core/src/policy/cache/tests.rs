//! Tables by section of RFC 9111.

use super::*;

const CONFIG: CacheConfig = CacheConfig {
    ttl: Duration::from_secs(5),
    stale_on_error: Duration::from_secs(600),
    max_entry_bytes: DEFAULT_ENTRY_BYTES,
};

/// Sun, 06 Nov 1994 08:49:37 GMT, when answers come.
const CAME: Duration = Duration::from_secs(784_111_777);

fn headers(text: &str) -> HeaderMap {
    let lines = text.split('|').filter(|line| !line.is_empty());
    let pairs = lines.map(|line| line.split_once(": ").expect("a header"));
    pairs
        .map(|(name, value)| {
            let name = HeaderName::from_bytes(name.as_bytes()).expect("a name");
            (name, HeaderValue::from_bytes(value.as_bytes()).expect("a value"))
        })
        .collect()
}

fn kept(config: &CacheConfig, request: &str, status: u16, response: &str) -> Option<Cached> {
    let asked = cache_request(&Method::GET, &headers(request), false).expect("a GET");
    let status = StatusCode::from_u16(status).expect("a status");
    let came = SystemTime::UNIX_EPOCH.checked_add(CAME).expect("a time");
    let timing = Timing { came, took: Duration::ZERO };
    may_store(config, asked, status, &headers(response), timing)
}

/// Request, response, and for how long it is fresh and then stale, in seconds.
type Case = (&'static str, &'static str, Option<(u64, u64)>);

#[track_caller]
fn check(cases: &[Case]) {
    for (request, response, want) in cases {
        let found = kept(&CONFIG, request, 200, response);
        let found = found.map(|kept| (kept.fresh.as_secs(), kept.stale.as_secs()));
        assert_eq!(found, *want, "{request} -> {response}");
    }
}

const FREE: Option<(u64, u64)> = Some((5, 600));

#[test]
fn section_3_what_may_be_stored() {
    for status in [203, 204, 206, 301, 304, 404, 500, 503] {
        assert_eq!(kept(&CONFIG, "", status, "cache-control: public, max-age=9"), None, "{status}");
    }
    check(&[
        ("", "", FREE),
        ("", "set-cookie: a=b", None),
        ("", "set-cookie: a=b|cache-control: public", None),
        ("if-none-match: \"a\"", "", None),
        ("cache-control: no-store", "", None),
        ("cache-control: no-cache", "", FREE),
        ("", "pragma: no-cache", FREE),
        // Whose answer it is: cookies.
        ("cookie: a=b", "", None),
        ("cookie: a=b", "cache-control: max-age=9", None),
        ("cookie: a=b", "cache-control: s-maxage=9", None),
        ("cookie: a=b", "cache-control: must-revalidate", None),
        ("cookie: a=b", "vary: cookie", None),
        ("cookie: a=b", "cache-control: public", FREE),
        ("cookie: a=b|authorization: a", "cache-control: must-revalidate", None),
        ("cookie: a=b|authorization: a", "cache-control: public", FREE),
        ("proxy-authorization: a", "", None),
        ("x-forwarded-client-cert: a", "vary: accept", None),
        ("x-forwarded-client-cert: a", "cache-control: public", FREE),
    ]);
}

#[test]
fn section_3_5_answers_to_authenticated_requests() {
    check(&[
        ("authorization: a", "", None),
        ("authorization: a", "cache-control: max-age=9", None),
        ("authorization: a", "expires: Sun, 06 Nov 1994 09:49:37 GMT", None),
        ("authorization: a", "cache-control: public", FREE),
        ("authorization: a", "cache-control: Public , max-age=9", FREE),
        ("authorization: a", "cache-control: s-maxage=9", Some((5, 0))),
        ("authorization: a", "cache-control: s-maxage=\"9\"", Some((5, 0))),
        ("authorization: a", "cache-control: must-revalidate", Some((5, 0))),
        // Not allowed by what only forbids, by what is said wrongly, or inside of a quoted string.
        ("authorization: a", "cache-control: proxy-revalidate", None),
        ("authorization: a", "cache-control: proxy-revalidate, max-age=9", None),
        ("authorization: a", "cache-control: public=yes", None),
        ("authorization: a", "cache-control: must-revalidate=\"\"", None),
        ("authorization: a", "cache-control: s-maxage=soon", None),
        ("authorization: a", "cache-control: s-maxage", None),
        ("authorization: a", "cache-control: x=\"a, public, b\"", None),
        ("authorization: a", "cache-control: x=\"\\\", public, \"", None),
        ("authorization: a", "cache-control: publicly", None),
        ("authorization: a", "cache-control: must-revalidate|cache-control: private", None),
    ]);
}

#[test]
fn section_4_2_how_long_it_is_fresh() {
    check(&[
        ("", "cache-control: max-age=2", Some((2, 600))),
        ("", "cache-control: max-age=60", FREE),
        ("", "cache-control: max-age=60|age: 2", Some((3, 600))),
        ("", "cache-control: max-age=4|age: 9", Some((0, 600))),
        ("", "age: 2", Some((3, 600))),
        // `s-maxage` before `max-age`, `max-age` before `Expires`.
        ("", "cache-control: max-age=60, s-maxage=3", Some((3, 0))),
        ("", "cache-control: max-age=0, s-maxage=3", Some((3, 0))),
        ("", "cache-control: max-age=3|expires: 0", Some((3, 600))),
        ("", "cache-control: max-age=0|expires: Sun, 06 Nov 1994 09:49:37 GMT", Some((0, 600))),
        // `Expires` minus `Date`, or minus now.
        ("", "expires: Sun, 06 Nov 1994 08:49:40 GMT", Some((3, 600))),
        ("", "expires: Sunday, 06-Nov-94 08:49:40 GMT", Some((3, 600))),
        ("", "expires: Sun Nov  6 08:49:40 1994", Some((3, 600))),
        ("", "expires: Sun, 06 Nov 1994 09:49:37 GMT", FREE),
        (
            "",
            "date: Sun, 06 Nov 1994 08:49:36 GMT|expires: Sun, 06 Nov 1994 08:49:40 GMT",
            Some((3, 600)),
        ),
        // A clock that goes differently: the difference counts.
        (
            "",
            "date: Sun, 06 Nov 1994 08:59:37 GMT|expires: Sun, 06 Nov 1994 08:59:40 GMT",
            Some((3, 600)),
        ),
        ("", "date: now|expires: Sun, 06 Nov 1994 08:49:40 GMT", Some((3, 600))),
        ("", "expires: Thu, 01 Jan 1970 00:00:00 GMT", Some((0, 600))),
        ("", "expires: Sun, 06 Nov 1994 08:49:37 GMT", Some((0, 600))),
        ("", "expires: 0", Some((0, 600))),
        ("", "expires: -1", Some((0, 600))),
        ("", "expires: \"never\"", Some((0, 600))),
        ("", "expires: Sun, 06 Nov 1994 09:49:37 CET", Some((0, 600))),
        ("", "expires: 0|cache-control: must-revalidate", None),
        (
            "",
            "expires: Sun, 06 Nov 1994 09:49:37 GMT|expires: Sun, 06 Nov 1994 08:49:40 GMT",
            Some((0, 600)),
        ),
        (
            "",
            "expires: Sun, 06 Nov 1994 08:49:40 GMT|expires: Sun, 06 Nov 1994 08:49:40 GMT",
            Some((3, 600)),
        ),
        // Said twice.
        ("", "cache-control: max-age=9, max-age=9", FREE),
        ("", "cache-control: max-age=9, max-age=2", Some((0, 600))),
        ("", "cache-control: max-age=2|cache-control: max-age=9", Some((0, 600))),
        ("", "cache-control: max-age=9|expires: 0|age: 1", Some((4, 600))),
    ]);
}

/// A time that cannot be read is over.
#[test]
fn section_1_2_2_times_are_digits() {
    for text in ["soon", "", "-1", "+9", "1.5", "0x9", "9 s", " 9", "'9'", "\"9", "\"-1\"", "9;a"] {
        let response = format!("cache-control: max-age={text}");
        let fresh = kept(&CONFIG, "", 200, &response).map_or(0, |kept| kept.fresh.as_secs());
        assert_eq!(fresh, 0, "{text}");
    }
    for text in ["9", "\"9\"", "009", "2147483649", "99999999999999999999999999"] {
        let response = format!("cache-control: max-age={text}");
        assert_eq!(kept(&CONFIG, "", 200, &response).map_or(0, |kept| kept.fresh.as_secs()), 5);
    }
}

#[test]
fn section_4_2_3_an_answer_is_as_old_as_its_date_and_its_way() {
    let asked = cache_request(&Method::GET, &HeaderMap::new(), false).expect("a GET");
    let came = SystemTime::UNIX_EPOCH.checked_add(CAME).expect("a time");
    let config = CacheConfig { ttl: Duration::from_secs(60), ..CONFIG };
    for (response, took, fresh) in [
        ("cache-control: max-age=9", 0, 9),
        ("cache-control: max-age=9", 2, 7),
        ("cache-control: max-age=9|age: 3", 2, 4),
        ("cache-control: max-age=9|date: Sun, 06 Nov 1994 08:49:32 GMT", 2, 4),
        ("cache-control: max-age=9|date: Sun, 06 Nov 1994 07:49:32 GMT", 0, 0),
        ("cache-control: max-age=9|date: Sun, 06 Nov 1994 09:49:32 GMT", 0, 9),
        ("cache-control: max-age=600", 2, 60),
        // The policy's own time begins when the answer comes.
        ("", 2, 60),
        ("date: Sun, 06 Nov 1994 07:49:32 GMT", 2, 60),
    ] {
        let timing = Timing { came, took: Duration::from_secs(took) };
        let kept = may_store(&config, asked, StatusCode::OK, &headers(response), timing);
        assert_eq!(kept.map_or(0, |kept| kept.fresh.as_secs()), fresh, "{response} after {took}");
    }
}

#[test]
fn section_4_2_4_and_rfc_5861_what_is_given_instead_of_a_failure() {
    check(&[
        ("", "cache-control: must-revalidate", Some((5, 0))),
        ("", "cache-control: Proxy-Revalidate", Some((5, 0))),
        ("", "cache-control: must-revalidate=x", Some((5, 0))),
        ("", "cache-control: must-revalidate, max-age=0", None),
        ("", "cache-control: s-maxage=0", None),
        ("", "cache-control: stale-if-error=30", Some((5, 30))),
        ("", "cache-control: stale-if-error=0", Some((5, 0))),
        ("", "cache-control: stale-if-error=6000", FREE),
        ("", "cache-control: stale-while-revalidate=6000", FREE),
    ]);
}

#[test]
fn section_5_2_2_directives_of_answers() {
    check(&[
        ("", "cache-control: no-store", None),
        ("", "cache-control: NO-STORE", None),
        ("", "cache-control: no-store=\"a\"", None),
        ("", "cache-control: no-store =a", None),
        ("", "cache-control: max-age=9, No-Store", None),
        ("", "cache-control: must-understand, no-store", None),
        ("", "cache-control: max-age=9|cache-control: private", None),
        ("", "cache-control: private=\"x-a, x-b\", max-age=9", None),
        ("", "cache-control: no-cache", None),
        ("", "cache-control: no-cache=\"set-cookie\", public", None),
        ("", "cache-control: ,, ,private", None),
        // A string that does not end, and what is no text at all.
        ("", "cache-control: x=\"a, max-age=9", None),
        ("", "cache-control: max-age=\"9", None),
        ("", "cache-control: no-\u{e9}", None),
        // Unknown ones are nothing, whatever they say.
        ("", "cache-control: immutable, no-transform, x, y=1, z=\"no-store, private\"", FREE),
        ("", "cache-control: community=\"a\\\"b, no-store\"", FREE),
        ("", "cache-control: x-no-store, no-store-x", FREE),
    ]);
}

#[test]
fn section_4_1_what_answers_vary_by() {
    check(&[
        ("", "vary: *", None),
        ("", "vary: accept, *", None),
        ("", "vary: accept|vary: *", None),
        ("", "vary: accept", FREE),
        ("", "vary: , accept,", FREE),
        ("", "vary: a b", None),
        ("", "vary: acc\u{e9}pt", None),
    ]);
    let names = varies(&headers("vary: Accept, accept-language|vary: accept")).expect("names");
    assert_eq!(names, ["accept", "accept-language"]);
    assert_eq!(varies(&headers("vary: a b")), None);
    let one = headers("accept: a|x: 1");
    assert!(same(&names, &one, &headers("accept: a|x: 2")));
    assert!(!same(&names, &one, &headers("accept: b|x: 1")));
    assert!(!same(&names, &one, &headers("accept: a|accept: b")));
    assert!(!same(&names, &one, &headers("accept: a|accept-language: en")));
}

#[test]
fn section_5_1_ages_are_read_and_bounded() {
    for (text, want) in [
        ("", 0),
        ("age: 0", 0),
        ("age: 7 ", 7),
        ("age: 7, 9", 7),
        ("age: 7|age: 9", 7),
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
    let kept = kept(&config, "", 200, "cache-control: max-age=9").expect("kept");
    assert_eq!((kept.fresh, kept.stale), (Duration::ZERO, CONFIG.stale_on_error));
}

#[test]
fn section_5_2_1_requests_say_what_they_take() {
    for (text, fresh, stale, store) in [
        ("", true, true, true),
        ("cache-control: no-store", false, false, false),
        ("cache-control: no-cache", false, true, true),
        ("cache-control: max-age=0", false, true, true),
        ("cache-control: min-fresh=3", false, true, true),
        ("cache-control: max-stale", true, true, true),
        ("cache-control: x=\"", false, false, false),
        ("pragma: no-cache", true, true, true),
        ("if-modified-since: x", false, false, false),
    ] {
        let asked = cache_request(&Method::GET, &headers(text), false).expect("a GET");
        assert_eq!((asked.fresh, asked.stale, asked.store), (fresh, stale, store), "{text}");
    }
    assert_eq!(cache_request(&Method::POST, &HeaderMap::new(), false), None);
    assert_eq!(cache_request(&Method::HEAD, &HeaderMap::new(), false), None);
    assert_eq!(cache_request(&Method::GET, &HeaderMap::new(), true), None);
    for text in ["range: bytes=0-1", "x-http-method-override: POST", "x-method-override: PUT"] {
        assert_eq!(cache_request(&Method::GET, &headers(text), false), None, "{text}");
    }
}

/// Who shows who they are gets an answer to somebody else only if it says so.
#[test]
fn kept_answers_are_given_as_they_may_be_shared() {
    for (response, authorized, with_cookies) in [
        ("", false, false),
        ("cache-control: max-age=9", false, false),
        ("cache-control: proxy-revalidate", false, false),
        ("cache-control: s-maxage=9", true, false),
        ("cache-control: must-revalidate", true, false),
        ("cache-control: public", true, true),
    ] {
        let shared = kept(&CONFIG, "", 200, response).expect("kept").shared;
        let may = |request| {
            cache_request(&Method::GET, &headers(request), false).expect("a GET").may_share(shared)
        };
        assert!(may(""), "{response}");
        assert_eq!(may("authorization: b"), authorized, "{response}");
        assert_eq!(may("cookie: b"), with_cookies, "{response}");
        assert_eq!(may("cookie: b|authorization: b"), authorized && with_cookies, "{response}");
    }
}
