//! Every match type, filter and precedence rule of Gateway API v1 as one line of a table.
//!
//! A rule is written as its matches, separated by `|`; a match as conditions: `=/exact`,
//! `/prefix`, `~regex`, `GET`, `h:name=value`, `h:name~regex`, `q:name=value`, `q:name~regex`, and
//! `*` for none. A request is written `GET host/path?query h:name=value`. The answer is
//! `route#rule`, with the matched prefix behind it where there is one, or `404`.

#![allow(clippy::unwrap_used, reason = "a broken test may panic")]

use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use outrigger_core::compile::{Compiled, HttpRouting, StreamRouting, Target, compile};
use outrigger_core::config::{
    Backend, BackendTarget, Balancer, Destination, Filter, HeaderMatch, HeaderModifier, HostMatch,
    HttpMatch, HttpRoute, HttpRule, Mirror, PathMatch, PathModifier, Protocol, QueryMatch,
    Redirect, Rewrite, TcpBackend, TcpRoute, TlsRoute, ValueMatch, WeightedBackend,
};
use outrigger_core::filter::{check_modified, modify_headers, redirect_location, rewrite_path};
use outrigger_core::name::DestinationName;
use outrigger_core::policy::{BackendPolicy, CallPolicy};
use outrigger_core::route::RequestView;

/// Rules, and requests with their answers.
type MatchCase<'a> = (&'a [&'a str], &'a [(&'a str, &'a str)]);
/// Name, creation time, host names, rules.
type RouteSpec<'a> = (&'a str, i64, &'a [&'a str], &'a [&'a str]);

#[test]
fn every_kind_of_match() {
    let cases: &[MatchCase<'_>] = &[
        // Path: exact.
        (
            &["=/a"],
            &[
                ("GET x/a", "r#0"),
                ("GET x/a?q=1", "r#0"),
                ("GET x/a/", "404"),
                ("GET x/a/b", "404"),
                ("GET x/A", "404"),
            ],
        ),
        // Path: whole segments of a prefix.
        (
            &["/a/b"],
            &[
                ("GET x/a/b", "r#0 /a/b"),
                ("GET x/a/b/", "r#0 /a/b"),
                ("GET x/a/b/c", "r#0 /a/b"),
                ("GET x/a/bc", "404"),
                ("GET x/a", "404"),
                ("GET x/a//b", "404"),
            ],
        ),
        // A final slash of a prefix is ignored.
        (&["/a/"], &[("GET x/a", "r#0 /a"), ("GET x/a/b", "r#0 /a"), ("GET x/ab", "404")]),
        // The default path is the prefix `/`.
        (&["*"], &[("GET x/", "r#0 /"), ("GET x/any/thing", "r#0 /"), ("OPTIONS x*", "r#0 /")]),
        (&["/"], &[("GET x/", "r#0 /"), ("GET x/any", "r#0 /")]),
        // No matches at all mean the same.
        (&[""], &[("POST x/any", "r#0 /")]),
        // Path: regular expression over the whole path.
        (
            &["~/v[12]/.*"],
            &[
                ("GET x/v1/a", "r#0"),
                ("GET x/v2/", "r#0"),
                ("GET x/v3/a", "404"),
                ("GET x/a/v1/a", "404"),
            ],
        ),
        (&["~/a|/b"], &[("GET x/a", "r#0"), ("GET x/b", "r#0"), ("GET x/ab", "404")]),
        // Method.
        (&["POST"], &[("POST x/", "r#0 /"), ("GET x/", "404"), ("post x/", "404")]),
        (&["PURGE"], &[("PURGE x/", "r#0 /")]),
        // Header: exact value, name in any case, repeated ones joined.
        (
            &["h:X-Env=canary"],
            &[
                ("GET x/ h:x-env=canary", "r#0 /"),
                ("GET x/ h:X-ENV=canary", "r#0 /"),
                ("GET x/ h:x-env=Canary", "404"),
                ("GET x/ h:x-env=canary h:x-env=b", "404"),
                ("GET x/", "404"),
            ],
        ),
        (&["h:a=1,2"], &[("GET x/ h:a=1 h:a=2", "r#0 /"), ("GET x/ h:a=1,2", "r#0 /")]),
        // Header: regular expression over the whole value.
        (
            &["h:a~v[0-9]+"],
            &[
                ("GET x/ h:a=v12", "r#0 /"),
                ("GET x/ h:a=xv12", "404"),
                ("GET x/ h:a=v1 h:a=v2", "404"),
            ],
        ),
        (&["h:a~v1,v2"], &[("GET x/ h:a=v1 h:a=v2", "r#0 /")]),
        // Several conditions must all hold; of one header only the first counts.
        (&["h:a=1 h:b=2"], &[("GET x/ h:a=1 h:b=2", "r#0 /"), ("GET x/ h:a=1", "404")]),
        (&["h:a=1 h:A=2"], &[("GET x/ h:a=1", "r#0 /"), ("GET x/ h:a=2", "404")]),
        // `Host` is the authority, whichever wire it came on.
        (
            &["h:Host=web.bank:81", "h:host~[ab]\\.bank"],
            &[
                ("GET web.bank:81/", "r#0 /"),
                ("GET WEB.bank:81/ h:host=other", "r#0 /"),
                ("GET web.bank/ h:host=web.bank:81", "404"),
                ("GET a.bank/", "r#1 /"),
                ("GET a.bank:80/", "404"),
            ],
        ),
        // Query: exact value, decoded, first of several.
        (
            &["q:user=a b"],
            &[
                ("GET x/?user=a%20b", "r#0 /"),
                ("GET x/?user=a+b", "r#0 /"),
                ("GET x/?%75ser=a%20b", "r#0 /"),
                ("GET x/?z&user=a%20b&user=c", "r#0 /"),
                ("GET x/?user=c&user=a%20b", "404"),
                ("GET x/?User=a%20b", "404"),
                ("GET x/?user", "404"),
                ("GET x/", "404"),
            ],
        ),
        (&["q:a="], &[("GET x/?a", "r#0 /"), ("GET x/?a=", "r#0 /"), ("GET x/?a=1", "404")]),
        (&["q:a=100%"], &[("GET x/?a=100%", "r#0 /"), ("GET x/?a=100%25", "r#0 /")]),
        // Query: regular expression over the whole decoded value.
        (
            &["q:a~[a-c]+"],
            &[("GET x/?a=abc", "r#0 /"), ("GET x/?a=%61b", "r#0 /"), ("GET x/?a=abd", "404")],
        ),
        (&["q:a=1 q:a=2"], &[("GET x/?a=1", "r#0 /"), ("GET x/?a=2", "404")]),
        // Any of several matches.
        (
            &["=/a POST|/b h:k=v"],
            &[
                ("POST x/a", "r#0"),
                ("GET x/b/c h:k=v", "r#0 /b"),
                ("GET x/a", "404"),
                ("GET x/b", "404"),
            ],
        ),
        // A gRPC method is a path, a gRPC service a prefix.
        (
            &["=/bank.Orders/Sell", "/bank.Orders"],
            &[("POST x/bank.Orders/Sell", "r#0"), ("POST x/bank.Orders/Buy", "r#1 /bank.Orders")],
        ),
    ];
    for (rules, requests) in cases {
        let compiled = routed(&[("r", 0, &[], rules)]);
        for (request, want) in *requests {
            check(&compiled, request, want, &format!("{rules:?}"));
        }
    }
}

#[test]
fn precedence_between_rules() {
    let cases: &[(&str, &[&str], &str, &str)] = &[
        ("exact before prefix", &["/a/b", "=/a/b"], "GET x/a/b", "r#1"),
        ("exact before a regex", &["~/a/.*", "=/a/b"], "GET x/a/b", "r#1"),
        ("the longest prefix", &["/a", "/a/b", "/"], "GET x/a/b/c", "r#1 /a/b"),
        ("not a longer one that does not match", &["/a", "/a/bb"], "GET x/a/b", "r#0 /a"),
        ("prefix before a regex", &["~/a/b/c", "/a"], "GET x/a/b/c", "r#1 /a"),
        ("a regex before what matches every path", &["/", "~/a.*"], "GET x/a/b/c", "r#1"),
        ("path before method", &["/a POST", "/a/b"], "POST x/a/b", "r#1 /a/b"),
        ("a method before none", &["/a", "/a GET"], "GET x/a", "r#1 /a"),
        ("method before headers", &["/a h:k=1 h:l=1", "/a GET"], "GET x/a h:k=1 h:l=1", "r#1 /a"),
        ("more headers", &["/a h:k=1", "/a h:k=1 h:l=1"], "GET x/a h:k=1 h:l=1", "r#1 /a"),
        (
            "headers before query",
            &["/a q:a=1 q:b=1", "/a h:k=1"],
            "GET x/a?a=1&b=1 h:k=1",
            "r#1 /a",
        ),
        ("more query parameters", &["/a q:a=1", "/a q:a=1 q:b=1"], "GET x/a?a=1&b=1", "r#1 /a"),
        (
            "repeated names count once",
            &["/a h:k=1 h:K=2", "/a h:k=1 h:l=1"],
            "GET x/a h:k=1 h:l=1",
            "r#1 /a",
        ),
        ("the first of equals", &["/a", "/a"], "GET x/a", "r#0 /a"),
        ("the same prefix with a slash is equal", &["/a", "/a/"], "GET x/a", "r#0 /a"),
        ("the best match of a rule counts", &["/a", "/z|/a/b"], "GET x/a/b", "r#1 /a/b"),
        ("a condition that fails leaves the next", &["=/a POST", "/a"], "GET x/a", "r#1 /a"),
    ];
    for (what, rules, request, want) in cases {
        check(&routed(&[("r", 0, &[], rules)]), request, want, what);
    }
}

#[test]
fn precedence_between_routes() {
    let cases: &[(&str, &[RouteSpec<'_>], &str, &str)] = &[
        ("the older route", &[("a", 2, &[], &["/x"]), ("b", 1, &[], &["/x"])], "GET h/x", "b#0 /x"),
        ("then the name", &[("b", 1, &[], &["/x"]), ("a", 1, &[], &["/x"])], "GET h/x", "a#0 /x"),
        (
            "the name with its namespace",
            &[("ns-b/a", 1, &[], &["/x"]), ("ns-a/b", 1, &[], &["/x"])],
            "GET h/x",
            "ns-a/b#0 /x",
        ),
        (
            "a better match of a younger route",
            &[("a", 1, &[], &["/x"]), ("b", 2, &[], &["=/x"])],
            "GET h/x",
            "b#0",
        ),
        (
            "a host before any host, whatever the path",
            &[("a", 1, &[], &["=/x"]), ("b", 2, &["h.io"], &["/"])],
            "GET h.io/x",
            "b#0 /",
        ),
        (
            "an exact host before a wildcard",
            &[("a", 1, &["*.h.io"], &["=/x"]), ("b", 2, &["a.h.io"], &["/"])],
            "GET a.h.io/x",
            "b#0 /",
        ),
        (
            "the longer wildcard",
            &[("a", 1, &["*.io"], &["=/x"]), ("b", 2, &["*.h.io"], &["/"])],
            "GET a.h.io/x",
            "b#0 /",
        ),
        ("hosts in any case", &[("a", 1, &["h.io"], &["/"])], "GET H.Io/x", "a#0 /"),
        (
            "a wildcard takes several labels",
            &[("a", 1, &["*.h.io"], &["/"])],
            "GET a.b.h.io/",
            "a#0 /",
        ),
        ("a wildcard needs one label", &[("a", 1, &["*.h.io"], &["/"])], "GET h.io/", "404"),
        ("a wildcard ends at a dot", &[("a", 1, &["*.h.io"], &["/"])], "GET ah.io/", "404"),
        ("one of several hosts", &[("a", 1, &["h.io", "*.k.io"], &["/"])], "GET z.k.io/", "a#0 /"),
        ("no host fits", &[("a", 1, &["h.io"], &["/"])], "GET k.io/", "404"),
        (
            "the less specific host when no rule of the other matches",
            &[("a", 1, &["*.io"], &["/x"]), ("b", 2, &["h.io"], &["/y"])],
            "GET h.io/x",
            "a#0 /x",
        ),
    ];
    for (what, routes, request, want) in cases {
        check(&routed(routes), request, want, what);
    }
    assert!(matches!(
        compile(&destination(Vec::new())).unwrap().route_http(&Request::parse("GET x/").view()),
        HttpRouting::Direct
    ));
}

#[test]
fn weights_split_the_requests() {
    let cases: &[(&[u32], [u32; 3])] = &[
        (&[1, 1, 2], [250, 250, 500]),
        (&[0, 1, 0], [0, 1000, 0]),
        (&[9, 1], [900, 100, 0]),
        (&[u32::MAX, u32::MAX], [500, 500, 0]),
        (&[0, 0, 0], [0, 0, 0]),
        (&[], [0, 0, 0]),
    ];
    for (weights, want) in cases {
        let mut config = destination(vec![route("r", 0, &[], &["*"])]);
        config.http_routes[0].rules[0].backends =
            weights.iter().enumerate().map(|(i, w)| weighted(&i.to_string(), *w)).collect();
        let compiled = compile(&config).unwrap();
        let HttpRouting::Rule(found) = compiled.route_http(&Request::parse("GET x/").view()) else {
            panic!("a rule must match")
        };
        let mut got = [0; 3];
        for i in 0..1000u64 {
            // Evenly spaced over all random numbers.
            let random = i * (u64::MAX / 1000) + u64::MAX / 2000;
            let Some(share) = found.rule.split.pick(random) else { continue };
            let Target::Invalid(label) = &share.target else { panic!("made invalid on purpose") };
            got[label.parse::<usize>().unwrap()] += 1;
        }
        assert_eq!(got, *want, "weights {weights:?}");
        assert!(found.rule.split.pick(u64::MAX).is_none() == (want == &[0, 0, 0]));
    }
}

#[test]
fn header_modifiers_set_add_and_remove() {
    let modifier = HeaderModifier {
        set: vec![header("x-set", "new"), header("x-both", "set")],
        add: vec![header("x-add", "2"), header("x-both", "add")],
        remove: vec![HeaderName::from_static("x-gone"), HeaderName::from_static("x-never")],
    };
    let mut headers = HeaderMap::new();
    for (name, value) in
        [("x-set", "a"), ("x-set", "b"), ("x-add", "1"), ("x-gone", "a"), ("x-gone", "b")]
    {
        let (name, value) = header(name, value);
        headers.append(name, value);
    }
    modify_headers(&modifier, &mut headers);
    let all = |name: &str| {
        headers.get_all(name).iter().map(|v| v.to_str().unwrap()).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(all("x-set"), "new");
    assert_eq!(all("x-add"), "1 2");
    assert_eq!(all("x-both"), "set add");
    assert_eq!(all("x-gone"), "");
    assert_eq!(headers.len(), 5);
}

/// The table in Gateway API's documentation of `ReplacePrefixMatch`, and its neighbours.
#[test]
fn no_modifier_changes_how_a_message_is_sent() {
    for name in
        ["content-length", "transfer-encoding", "connection", "te", "x-outrigger-hop", "host"]
    {
        let name: HeaderName = name.parse().unwrap();
        let value = HeaderValue::from_static("7");
        let modifier = HeaderModifier {
            set: vec![(name.clone(), value.clone())],
            add: vec![(name.clone(), value)],
            remove: vec![name.clone()],
        };
        let mut headers = HeaderMap::new();
        headers.insert(&name, HeaderValue::from_static("5"));
        modify_headers(&modifier, &mut headers);
        assert_eq!(headers.get_all(&name).iter().collect::<Vec<_>>(), ["5"], "{name}");
        assert_eq!(check_modified(&name).is_ok(), name == http::header::HOST, "{name}");
    }
}

#[test]
fn rewrites_of_the_path() {
    let prefix = |text: &str| PathModifier::Prefix(text.to_owned());
    let full = |text: &str| PathModifier::Full(text.to_owned());
    let cases: &[(&str, &str, PathModifier, &str)] = &[
        ("/foo/bar", "/foo", prefix("/xyz"), "/xyz/bar"),
        ("/foo/bar", "/foo", prefix("/xyz/"), "/xyz/bar"),
        ("/foo/bar", "/foo/", prefix("/xyz"), "/xyz/bar"),
        ("/foo/bar", "/foo/", prefix("/xyz/"), "/xyz/bar"),
        ("/foo", "/foo", prefix("/xyz"), "/xyz"),
        ("/foo/", "/foo", prefix("/xyz"), "/xyz/"),
        ("/foo/bar", "/foo", prefix(""), "/bar"),
        ("/foo/", "/foo", prefix(""), "/"),
        ("/foo", "/foo", prefix(""), "/"),
        ("/foo/", "/foo", prefix("/"), "/"),
        ("/foo", "/foo", prefix("/"), "/"),
        ("/foo/bar", "/foo", prefix("/"), "/bar"),
        ("/foo", "/foo", prefix("/xyz/"), "/xyz"),
        ("/foo", "/", prefix("/xyz"), "/xyz/foo"),
        ("/", "/", prefix("/xyz"), "/xyz/"),
        ("/foo?a=b&c", "/foo", prefix("/xyz"), "/xyz?a=b&c"),
        ("/foo?", "/foo", prefix(""), "/?"),
        ("/foo/%2Fbar", "/foo", prefix("/xyz"), "/xyz/%2Fbar"),
        ("/foo/bar", "/foo", full("/"), "/"),
        ("/foo/bar?a=b", "/foo", full("/one/two"), "/one/two?a=b"),
        ("/foo/bar", "=/foo/bar", full("/one"), "/one"),
        ("/foo/bar", "~/foo/.*", full("/one"), "/one"),
    ];
    for (target, rule, modifier, want) in cases {
        let rewrite = Rewrite { host: Some("new.io".to_owned()), path: Some(modifier.clone()) };
        let mut config = destination(vec![route("r", 0, &[], &[rule])]);
        config.http_routes[0].rules[0].filters = vec![Filter::Rewrite(rewrite)];
        let compiled = compile(&config).unwrap();
        let request = Request::parse(&format!("GET h{target}"));
        let HttpRouting::Rule(found) = compiled.route_http(&request.view()) else {
            panic!("{target} must match {rule}")
        };
        let rewrite = found.rule.filters.rewrite.as_ref().unwrap();
        assert_eq!(rewrite.host.as_deref(), Some("new.io"));
        let path = rewrite.path.as_ref().unwrap();
        let got = rewrite_path(path, found.prefix, &request.path, request.query.as_deref());
        assert_eq!(
            got.unwrap(),
            want.parse::<PathAndQuery>().unwrap(),
            "{target} {rule} {modifier:?}"
        );
    }
}

#[test]
fn redirects() {
    // Scheme, host, port and path of the redirect; scheme, host and port of the request; Location.
    type Case<'a> = (
        (Option<&'a str>, Option<&'a str>, Option<u16>, Option<PathModifier>),
        (&'a str, &'a str, Option<u16>),
        &'a str,
    );
    let prefix = || Some(PathModifier::Prefix("/new".to_owned()));
    let full = || Some(PathModifier::Full("/all".to_owned()));
    let cases: &[Case<'_>] = &[
        // The request's own, a well-known port left out.
        ((None, None, None, None), ("http", "h", Some(80)), "http://h/old/x?q=1"),
        ((None, None, None, None), ("http", "h", None), "http://h/old/x?q=1"),
        ((None, None, None, None), ("https", "h", Some(443)), "https://h/old/x?q=1"),
        ((None, None, None, None), ("http", "h", Some(8080)), "http://h:8080/old/x?q=1"),
        ((None, None, None, None), ("http", "h", Some(443)), "http://h:443/old/x?q=1"),
        // Another host keeps the port.
        ((None, Some("k.io"), None, None), ("http", "h", Some(8080)), "http://k.io:8080/old/x?q=1"),
        // A scheme brings its own well-known port, which is left out.
        ((Some("https"), None, None, None), ("http", "h", Some(8080)), "https://h/old/x?q=1"),
        ((Some("http"), None, None, None), ("https", "h", Some(8443)), "http://h/old/x?q=1"),
        ((Some("https"), None, None, None), ("http", "h", None), "https://h/old/x?q=1"),
        // A port wins over both.
        ((None, None, Some(81), None), ("http", "h", Some(8080)), "http://h:81/old/x?q=1"),
        ((None, None, Some(80), None), ("http", "h", Some(8080)), "http://h/old/x?q=1"),
        ((None, None, Some(80), None), ("https", "h", Some(8080)), "https://h:80/old/x?q=1"),
        ((Some("https"), None, Some(443), None), ("http", "h", Some(80)), "https://h/old/x?q=1"),
        ((Some("https"), None, Some(8443), None), ("http", "h", None), "https://h:8443/old/x?q=1"),
        // Paths.
        ((None, None, None, prefix()), ("http", "h", None), "http://h/new/x?q=1"),
        ((None, None, None, full()), ("http", "h", None), "http://h/all?q=1"),
        // An IPv6 address as the host.
        ((None, None, None, None), ("http", "::1", Some(81)), "http://[::1]:81/old/x?q=1"),
        ((None, None, None, None), ("http", "[::1]", Some(80)), "http://[::1]/old/x?q=1"),
    ];
    for (at, (redirect, request, want)) in cases.iter().enumerate() {
        let status = StatusCode::from_u16([301, 302, 303, 307, 308][at % 5]).unwrap();
        let (scheme, host, port, path) = redirect.clone();
        let redirect = Redirect {
            scheme: scheme.map(str::to_owned),
            host: host.map(str::to_owned),
            port,
            path,
            status,
        };
        let mut config = destination(vec![route("r", 0, &[], &["/old"])]);
        config.http_routes[0].rules[0].filters = vec![Filter::Redirect(redirect)];
        let compiled = compile(&config).unwrap();
        let parsed = Request::parse("GET h/old/x?q=1");
        let HttpRouting::Rule(found) = compiled.route_http(&parsed.view()) else {
            panic!("must match")
        };
        let redirect = found.rule.filters.redirect.as_ref().unwrap();
        assert_eq!(redirect.status, status);
        let (scheme, host, port) = *request;
        let got =
            redirect_location(redirect, found.prefix, scheme, host, port, "/old/x", Some("q=1"));
        assert_eq!(got.unwrap(), *want, "{redirect:?} for {request:?}");
    }
}

#[test]
fn mirrors_and_filters_of_backends() {
    let mut config = destination(vec![route("r", 0, &[], &["*"])]);
    config.backends = vec![backend("bank", "shadow", 80), backend("bank", "v2", 80)];
    let modifier =
        |value| HeaderModifier { set: vec![header("x-set", value)], ..Default::default() };
    let rule = &mut config.http_routes[0].rules[0];
    rule.filters = vec![
        Filter::RequestHeaders(modifier("rule")),
        Filter::Mirror(mirror(service("bank", "shadow", 80), 1, 100)),
        Filter::Mirror(mirror(BackendTarget::Invalid("no such service".to_owned()), 1, 1)),
        Filter::ResponseHeaders(modifier("answer")),
    ];
    rule.backends = vec![
        WeightedBackend {
            target: service("bank", "v2", 80),
            weight: 1,
            filters: vec![Filter::RequestHeaders(modifier("backend"))],
        },
        WeightedBackend { target: service("bank", "app", 80), weight: 1, filters: Vec::new() },
    ];
    let compiled = compile(&config).unwrap();
    let HttpRouting::Rule(found) = compiled.route_http(&Request::parse("GET x/").view()) else {
        panic!("must match")
    };
    let filters = &found.rule.filters;
    assert!(!filters.is_empty());
    assert_eq!(filters.request_headers, [modifier("rule")]);
    assert_eq!(filters.response_headers, [modifier("answer")]);
    assert_eq!(filters.mirrors[0].target, Target::Backend(1));
    assert_eq!((filters.mirrors[0].numerator, filters.mirrors[0].denominator), (1, 100));
    assert!(matches!(filters.mirrors[1].target, Target::Invalid(_)));
    let first = found.rule.split.pick(0).unwrap();
    assert_eq!(first.target, Target::Backend(2));
    assert_eq!(first.filters.request_headers, [modifier("backend")]);
    let second = found.rule.split.pick(u64::MAX).unwrap();
    assert_eq!(second.target, Target::Backend(0), "the destination itself");
    assert!(second.filters.is_empty());
    assert_eq!(&*compiled.backends[1].label, "bank/shadow:80");
}

#[test]
fn tls_routes_by_server_name() {
    let tls = |name: &str, created, hosts: &[&str]| TlsRoute {
        name: name.to_owned(),
        created,
        hostnames: hosts.iter().map(|host| host_match(host)).collect(),
        backends: vec![tcp_backend(name)],
    };
    let mut config = destination(Vec::new());
    let check = |config: &Destination, cases: &[(Option<&str>, &str)]| {
        let compiled = compile(config).unwrap();
        for (name, want) in cases {
            assert_eq!(stream(&compiled.route_tls(*name)), *want, "{name:?}");
        }
    };
    check(&config, &[(None, "direct"), (Some("a.io"), "direct")]);
    config.tls_routes =
        vec![tls("exact", 3, &["a.io"]), tls("wild", 1, &["*.io"]), tls("young", 4, &["a.io"])];
    check(
        &config,
        &[(Some("A.io"), "exact"), (Some("b.io"), "wild"), (Some("a.com"), "404"), (None, "404")],
    );
    config.tls_routes.push(tls("any", 5, &[]));
    check(&config, &[(Some("a.com"), "any"), (None, "any"), (Some("a.io"), "exact")]);
}

#[test]
fn a_tcp_route_splits_connections() {
    let mut config = destination(Vec::new());
    assert_eq!(stream(&compile(&config).unwrap().route_tcp()), "direct");
    config.tcp_route =
        Some(TcpRoute { name: "t".to_owned(), backends: vec![tcp_backend("ledger")] });
    assert_eq!(stream(&compile(&config).unwrap().route_tcp()), "ledger");
}

#[test]
fn what_makes_no_sense_is_refused_with_its_path() {
    type Change = fn(&mut HttpRule);
    let cases: &[(Change, &str)] = &[
        (
            |r| r.matches[1].path = Some(PathMatch::Regex("/(".to_owned())),
            "matches[1].path: \"/(\" is not a regular expression: unclosed group",
        ),
        (
            |r| r.matches[1].path = Some(PathMatch::Regex("a)|(b".to_owned())),
            "matches[1].path: \"a)|(b\" is not a regular expression: unopened group",
        ),
        (
            |r| r.matches[1].path = Some(PathMatch::Regex("(?:\\w{1000}){100}".to_owned())),
            "matches[1].path: the regular expression needs more than 1048576 bytes; \
             use smaller repetitions",
        ),
        (
            |r| r.matches[0].path = Some(PathMatch::Exact("a".to_owned())),
            "matches[0].path: \"a\" must begin with \"/\"",
        ),
        (
            |r| r.matches[0].path = Some(PathMatch::Prefix(String::new())),
            "matches[0].path: \"\" must begin with \"/\"",
        ),
        (
            |r| {
                r.matches[0].headers = parse_match("h:a=1 h:b~[").headers;
            },
            "matches[0].headers[1].value: \"[\" is not a regular expression: \
             unclosed character class",
        ),
        (
            |r| r.matches[0].query = parse_match("q:a~*").query,
            "matches[0].query[0].value: \"*\" is not a regular expression: \
             repetition operator missing expression",
        ),
        (
            |r| r.backends[0].target = service("bank", "other", 80),
            "backends[0].target: bank/other:80 is not among the backends",
        ),
        (
            |r| r.filters = vec![Filter::Mirror(mirror(service("bank", "other", 80), 1, 1))],
            "filters[0].mirror.target: bank/other:80 is not among the backends",
        ),
        (
            |r| r.filters = vec![Filter::Mirror(mirror(service("bank", "app", 80), 1, 0))],
            "filters[0].mirror.denominator: must be at least 1",
        ),
        (
            |r| r.filters = vec![Filter::Mirror(mirror(service("bank", "app", 80), 2, 1))],
            "filters[0].mirror.numerator: must not exceed the denominator",
        ),
        (
            |r| r.filters = vec![redirect(|r| r.status = StatusCode::OK)],
            "filters[0].redirect.status: 200 must be 301, 302, 303, 307 or 308",
        ),
        (
            |r| r.filters = vec![redirect(|r| r.scheme = Some("ftp".to_owned()))],
            "filters[0].redirect.scheme: \"ftp\" must be http or https",
        ),
        (
            |r| r.filters = vec![redirect(|r| r.host = Some("a b".to_owned()))],
            "filters[0].redirect.host: \"a b\" is not a host name",
        ),
        (
            |r| r.filters = vec![redirect(|r| r.host = Some("a:80".to_owned()))],
            "filters[0].redirect.host: \"a:80\" is not a host name",
        ),
        (
            |r| r.filters = vec![redirect(|r| r.port = Some(0))],
            "filters[0].redirect.port: must be between 1 and 65535",
        ),
        (
            |r| r.filters = vec![rewrite(PathModifier::Full("a".to_owned()))],
            "filters[0].rewrite.path: \"a\" must begin with \"/\"",
        ),
        (
            |r| r.filters = vec![rewrite(PathModifier::Full("/a?b".to_owned()))],
            "filters[0].rewrite.path: \"/a?b\" is not a valid path",
        ),
        (
            |r| {
                r.matches[1].path = Some(PathMatch::Exact("/a".to_owned()));
                r.filters = vec![rewrite(PathModifier::Prefix("/a".to_owned()))];
            },
            "matches[1].path: must be a prefix match, because a filter of the rule replaces the \
             prefix",
        ),
        (
            |r| {
                let path = PathModifier::Full("/a".to_owned());
                r.filters = vec![redirect(|_| ()), rewrite(path)];
            },
            "filters: a redirect and a rewrite exclude each other",
        ),
        (
            |r| r.filters = vec![redirect(|_| ()), redirect(|_| ())],
            "filters[1].redirect: there is already a redirect",
        ),
        (
            |r| r.backends[0].filters = vec![redirect(|_| ()), redirect(|_| ())],
            "backends[0].filters[1].redirect: there is already a redirect",
        ),
        (
            |r| {
                let set = vec![(http::header::HOST, HeaderValue::from_static("a b"))];
                let modifier = HeaderModifier { set, ..Default::default() };
                r.filters = vec![Filter::RequestHeaders(modifier)];
            },
            "filters[0].request_headers.set: \"a b\" is not a host with or without a port",
        ),
    ];
    for (change, want) in cases {
        let mut config = destination(vec![route("r", 0, &[], &["*", "*", "/a|/b"])]);
        change(&mut config.http_routes[0].rules[2]);
        let error = compile(&config).expect_err(want).to_string();
        assert_eq!(error, format!("http_routes[0].rules[2].{want}"));
    }
}

fn check(compiled: &Compiled, request: &str, want: &str, what: &str) {
    let got = match compiled.route_http(&Request::parse(request).view()) {
        HttpRouting::Direct => "direct".to_owned(),
        HttpRouting::NoMatch => "404".to_owned(),
        HttpRouting::Rule(found) => {
            let share = found.rule.split.pick(0).unwrap();
            let Target::Invalid(label) = &share.target else { panic!("made invalid on purpose") };
            assert!(label.starts_with(&*found.rule.route));
            match found.prefix {
                Some(prefix) => format!("{label} {prefix}"),
                None => label.to_string(),
            }
        }
    };
    assert_eq!(got, want, "{what}: {request}");
}

fn stream(routing: &StreamRouting<'_>) -> String {
    match routing {
        StreamRouting::Direct => "direct".to_owned(),
        StreamRouting::NoMatch => "404".to_owned(),
        StreamRouting::Split { split, .. } => match &split.pick(0).unwrap().target {
            Target::Invalid(label) => label.to_string(),
            Target::Backend(index) => panic!("backend {index} out of nowhere"),
        },
    }
}

struct Request {
    authority: String,
    host: String,
    path: String,
    query: Option<String>,
    method: Method,
    headers: HeaderMap,
}

impl Request {
    fn parse(text: &str) -> Self {
        let mut words = text.split(' ');
        let method = words.next().unwrap().parse().unwrap();
        let target = words.next().unwrap();
        let (authority, rest) = target.split_at(target.find(['/', '*']).unwrap());
        let host = authority.split(':').next().unwrap().to_owned();
        let (path, query) = match rest.split_once('?') {
            Some((path, query)) => (path, Some(query.to_owned())),
            None => (rest, None),
        };
        let mut headers = HeaderMap::new();
        for word in words {
            let (name, value) = word.strip_prefix("h:").unwrap().split_once('=').unwrap();
            headers.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        let authority = authority.to_owned();
        Self { authority, host, path: path.to_owned(), query, method, headers }
    }

    fn view(&self) -> RequestView<'_> {
        RequestView {
            authority: &self.authority,
            host: &self.host,
            path: &self.path,
            query: self.query.as_deref(),
            method: &self.method,
            headers: &self.headers,
        }
    }
}

fn routed(routes: &[RouteSpec<'_>]) -> Compiled {
    let routes = routes.iter().map(|(name, at, hosts, rules)| route(name, *at, hosts, rules));
    compile(&destination(routes.collect())).unwrap()
}

fn destination(http_routes: Vec<HttpRoute>) -> Destination {
    Destination {
        name: DestinationName::new("bank", "app", 80).unwrap(),
        protocol: Protocol::Http1,
        balancer: Balancer::PowerOfTwo,
        call: CallPolicy::default(),
        policy: BackendPolicy::default(),
        backends: Vec::new(),
        http_routes,
        tls_routes: Vec::new(),
        tcp_route: None,
    }
}

fn route(name: &str, created: i64, hosts: &[&str], rules: &[&str]) -> HttpRoute {
    let rule = |(i, text): (usize, &&str)| HttpRule {
        name: None,
        matches: text.split('|').filter(|one| !one.is_empty()).map(parse_match).collect(),
        filters: Vec::new(),
        call: None,
        backends: vec![weighted(&format!("{name}#{i}"), 1)],
    };
    // `|` separates matches, except inside a regular expression that is a rule's only match.
    let rules = rules.iter().enumerate().map(|(i, text)| match text.strip_prefix('~') {
        Some(pattern) => {
            let path = Some(PathMatch::Regex(pattern.to_owned()));
            let matches = vec![HttpMatch { path, ..HttpMatch::default() }];
            HttpRule { matches, ..rule((i, &"")) }
        }
        None => rule((i, text)),
    });
    HttpRoute {
        name: name.to_owned(),
        created,
        hostnames: hosts.iter().map(|host| host_match(host)).collect(),
        rules: rules.collect(),
    }
}

fn parse_match(text: &str) -> HttpMatch {
    let mut parsed = HttpMatch::default();
    // A value may hold a space: a word that is no condition belongs to the one before.
    let mut words: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match words.last_mut() {
            Some(last) if last.starts_with("q:") && !word.starts_with("q:") => {
                last.push(' ');
                last.push_str(word);
            }
            _ => words.push(word.to_owned()),
        }
    }
    for word in &words {
        if let Some(path) = word.strip_prefix('=') {
            parsed.path = Some(PathMatch::Exact(path.to_owned()));
        } else if word.starts_with('/') {
            parsed.path = Some(PathMatch::Prefix(word.clone()));
        } else if let Some(test) = word.strip_prefix("h:") {
            let (name, value) = parse_test(test);
            parsed.headers.push(HeaderMatch { name: name.parse().unwrap(), value });
        } else if let Some(test) = word.strip_prefix("q:") {
            let (name, value) = parse_test(test);
            parsed.query.push(QueryMatch { name, value });
        } else if word != "*" {
            parsed.method = Some(word.parse().unwrap());
        }
    }
    parsed
}

fn parse_test(text: &str) -> (String, ValueMatch) {
    let (name, value) = text.split_at(text.find(['=', '~']).unwrap());
    let (kind, value) = value.split_at(1);
    let value = value.to_owned();
    let test = if kind == "=" { ValueMatch::Exact(value) } else { ValueMatch::Regex(value) };
    (name.to_owned(), test)
}

fn host_match(text: &str) -> HostMatch {
    match text.strip_prefix('*') {
        Some(suffix) => HostMatch::Suffix(suffix.to_owned()),
        None => HostMatch::Exact(text.to_owned()),
    }
}

fn weighted(label: &str, weight: u32) -> WeightedBackend {
    let target = BackendTarget::Invalid(label.to_owned());
    WeightedBackend { target, weight, filters: Vec::new() }
}

fn tcp_backend(label: &str) -> TcpBackend {
    TcpBackend { target: BackendTarget::Invalid(label.to_owned()), weight: 1 }
}

fn backend(namespace: &str, service: &str, port: u16) -> Backend {
    Backend {
        name: DestinationName::new(namespace, service, port).unwrap(),
        protocol: Protocol::Http1,
        balancer: Balancer::PowerOfTwo,
        policy: BackendPolicy::default(),
    }
}

fn service(namespace: &str, service: &str, port: u16) -> BackendTarget {
    BackendTarget::Service(DestinationName::new(namespace, service, port).unwrap())
}

fn header(name: &'static str, value: &'static str) -> (HeaderName, HeaderValue) {
    (HeaderName::from_static(name), HeaderValue::from_static(value))
}

fn mirror(target: BackendTarget, numerator: u32, denominator: u32) -> Mirror {
    Mirror { target, numerator, denominator }
}

fn redirect(change: fn(&mut Redirect)) -> Filter {
    let mut redirect =
        Redirect { scheme: None, host: None, port: None, path: None, status: StatusCode::FOUND };
    change(&mut redirect);
    Filter::Redirect(redirect)
}

fn rewrite(path: PathModifier) -> Filter {
    Filter::Rewrite(Rewrite { host: None, path: Some(path) })
}
