//! The compiled tables against the plainest reading of the rules: look at every match, keep those
//! that hold, take the best.

#![allow(clippy::unwrap_used, reason = "a broken test may panic")]

use std::cmp::Reverse;

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use outrigger_core::compile::{HttpRouting, Target, compile};
use outrigger_core::config::{
    BackendTarget, Balancer, Destination, HeaderMatch, HostMatch, HttpMatch, HttpRoute, HttpRule,
    PathMatch, Protocol, ValueMatch, WeightedBackend,
};
use outrigger_core::name::DestinationName;
use outrigger_core::policy::{BackendPolicy, CallPolicy};
use outrigger_core::route::RequestView;
use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::*;
use proptest::sample::select;

const PATHS: &[&str] = &["/", "/a", "/a/", "/a/b", "/a/b/c", "/ab", "/b", "//", "/a//b"];
const HOSTS: &[&str] = &["a.io", "b.a.io", "c.b.a.io", "io", "b.io", "A.IO"];

#[derive(Debug)]
struct Request {
    host: &'static str,
    path: &'static str,
    method: Method,
    headers: HeaderMap,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..Default::default() })]
    #[test]
    fn the_tables_agree_with_the_plain_rules(
        routes in vec(any_route(), 1..5),
        requests in vec(any_request(), 1..40),
    ) {
        let destination = destination(routes);
        let compiled = compile(&destination).unwrap();
        for request in &requests {
            let view = RequestView {
                authority: request.host,
                host: request.host,
                path: request.path,
                query: None,
                method: &request.method,
                headers: &request.headers,
            };
            let got = match compiled.route_http(&view) {
                HttpRouting::Rule(found) => match &found.rule.split.pick(0).unwrap().target {
                    Target::Invalid(label) => Some(label.to_string()),
                    Target::Backend(_) => None,
                },
                _ => None,
            };
            prop_assert_eq!(got, reference(&destination, request), "{:?}", request);
        }
    }
}

/// The label of the best rule, by one comparison of everything that precedence names.
fn reference(destination: &Destination, request: &Request) -> Option<String> {
    let mut found = Vec::new();
    for route in &destination.http_routes {
        let Some(host) = host_rank(&route.hostnames, request.host) else { continue };
        for (r, rule) in route.rules.iter().enumerate() {
            for (m, one) in rule.matches.iter().enumerate() {
                if let Some(path) = path_rank(one.path.as_ref(), request.path)
                    && one.method.as_ref().is_none_or(|method| *method == request.method)
                    && one.headers.iter().all(|header| header_holds(header, &request.headers))
                {
                    let mut names: Vec<_> = one.headers.iter().map(|h| h.name.as_str()).collect();
                    names.sort_unstable();
                    names.dedup();
                    let specific = (host, path, one.method.is_some(), names.len());
                    let BackendTarget::Invalid(label) = &rule.backends[0].target else { continue };
                    found.push((Reverse(specific), route.created, &route.name, r, m, label));
                }
            }
        }
    }
    found.into_iter().min().map(|best| best.5.clone())
}

fn host_rank(hosts: &[HostMatch], host: &str) -> Option<(u8, usize)> {
    let host = host.to_ascii_lowercase();
    let rank = |name: &HostMatch| match name {
        HostMatch::Exact(name) => (*name == host).then_some((2, name.len())),
        HostMatch::Suffix(suffix) => host.ends_with(suffix.as_str()).then_some((1, suffix.len())),
    };
    if hosts.is_empty() { Some((0, 0)) } else { hosts.iter().filter_map(rank).max() }
}

fn path_rank(path: Option<&PathMatch>, have: &str) -> Option<(u8, usize)> {
    match path {
        None => Some((0, 0)),
        Some(PathMatch::Exact(want)) => (want == have).then_some((3, 0)),
        Some(PathMatch::Prefix(want)) => {
            let want = want.strip_suffix('/').unwrap_or(want);
            let rest = have.strip_prefix(want)?;
            let rank = if want.is_empty() { (0, 0) } else { (2, want.len()) };
            (rest.is_empty() || rest.starts_with('/') || want.is_empty()).then_some(rank)
        }
        // The only expression below.
        Some(PathMatch::Regex(_)) => have.starts_with("/a").then_some((1, 0)),
    }
}

fn header_holds(header: &HeaderMatch, headers: &HeaderMap) -> bool {
    let ValueMatch::Exact(want) = &header.value else { return false };
    headers.get(&header.name).is_some_and(|value| value == want)
}

fn any_route() -> impl Strategy<Value = HttpRoute> {
    let host = prop_oneof![
        select(&["a.io", "b.a.io", "b.io"][..]).prop_map(|h| HostMatch::Exact(h.to_owned())),
        select(&[".io", ".a.io", ".b.a.io"][..]).prop_map(|h| HostMatch::Suffix(h.to_owned())),
    ];
    let rules = vec(vec(any_match(), 1..4), 1..5);
    (vec(host, 0..3), 0i64..3, rules).prop_map(|(hostnames, created, rules)| HttpRoute {
        name: String::new(),
        created,
        hostnames,
        rules: rules
            .into_iter()
            .map(|matches| HttpRule {
                name: None,
                matches,
                filters: Vec::new(),
                call: None,
                backends: Vec::new(),
            })
            .collect(),
    })
}

fn any_match() -> impl Strategy<Value = HttpMatch> {
    let path = prop_oneof![
        select(PATHS).prop_map(|path| PathMatch::Exact(path.to_owned())),
        select(PATHS).prop_map(|path| PathMatch::Prefix(path.to_owned())),
        Just(PathMatch::Regex("/a.*".to_owned())),
    ];
    let method = select(&[Method::GET, Method::POST][..]);
    // One value per name, so that only the number of names counts.
    let header = select(&["x-a", "x-b", "x-c"][..]).prop_map(|name| HeaderMatch {
        name: HeaderName::from_static(name),
        value: ValueMatch::Exact("1".to_owned()),
    });
    (of(path), of(method), vec(header, 0..3)).prop_map(|(path, method, headers)| HttpMatch {
        path,
        method,
        headers,
        query: Vec::new(),
    })
}

fn any_request() -> impl Strategy<Value = Request> {
    let header = select(&["x-a", "x-b", "x-c"][..]);
    let value = select(&["1", "2"][..]);
    let methods = select(&[Method::GET, Method::POST, Method::PUT][..]);
    let headers = vec((header, value), 0..4);
    (select(HOSTS), select(PATHS), methods, headers).prop_map(|(host, path, method, headers)| {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        Request { host, path, method, headers: map }
    })
}

fn destination(mut http_routes: Vec<HttpRoute>) -> Destination {
    for (r, route) in http_routes.iter_mut().enumerate() {
        route.name = format!("bank/route-{r}");
        for (i, rule) in route.rules.iter_mut().enumerate() {
            rule.backends = vec![WeightedBackend {
                target: BackendTarget::Invalid(format!("{r}#{i}")),
                weight: 1,
                filters: Vec::new(),
            }];
        }
    }
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
