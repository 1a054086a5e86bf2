//! The Gateway API's mesh conformance profile, case by case, with our own manifests: what each of its
//! tests asks of a mesh is asked here of real processes. Filters that a mesh may have beyond it follow.
//!
//! gRPC calls are requests to `/<service>/<method>` here; `protocols.rs` makes real ones.

use std::collections::BTreeMap;

use outrigger_tests::app::Echo;
use outrigger_tests::client::{Answer, Curl};
use outrigger_tests::eventually;
use outrigger_tests::process::{ControlPlane, Proxy, local};

use crate::unmeshed;

/// Services `echo`, `echo-v1` and `echo-v2` in namespace `bank`: `echo` is served by v1.
struct Bed {
    plane: ControlPlane,
    caller: Proxy,
    apps: [Echo; 2],
}

impl Bed {
    fn start(routes: &[&str]) -> Self {
        let apps = [Echo::start("v1"), Echo::start("v2")];
        let [v1, v2] = [apps[0].port, apps[1].port];
        let mut services = [
            unmeshed("echo", "", v1),
            unmeshed("echo-v1", "", v1),
            unmeshed("echo-v2", "", v2),
            unmeshed("elsewhere", "", v2).replace("namespace: bank", "namespace: other"),
        ]
        .join("---\n");
        // A second port, for routes that are for one alone.
        services = services.replacen(
            "{name: main, port: 80}",
            "{name: main, port: 80}, {name: second, port: 81}",
            1,
        );
        let port = format!("ports: [{{name: main, port: {v1}}}]");
        let both = format!("ports: [{{name: main, port: {v1}}}, {{name: second, port: {v1}}}]");
        services = services.replacen(&port, &both, 1);
        let routes = routes.join("---\n");
        let plane = ControlPlane::start(&[("services.yaml", &services), ("routes.yaml", &routes)]);
        let caller = Proxy::caller(&plane, &[]);
        Self { plane, caller, apps }
    }

    fn get(&self, path: &str, args: &[&str]) -> Answer {
        Curl::through(&self.caller).args(args).get(&format!("http://echo.bank{path}"))
    }

    /// Which app answered.
    #[track_caller]
    fn app(&self, path: &str, args: &[&str]) -> String {
        let answer = self.get(path, args);
        assert_eq!(answer.status, 200, "{path} {args:?}: {answer:?}");
        header(&answer, "x-app").unwrap_or_default()
    }

    /// What the app got.
    #[track_caller]
    fn got(&self, path: &str, args: &[&str]) -> serde_json::Value {
        let answer = self.get(path, args);
        assert_eq!(answer.status, 200, "{path} {args:?}: {answer:?}");
        serde_json::from_str(&answer.body).unwrap_or_else(|e| panic!("{e}: {answer:?}"))
    }

    fn status(&self, object: &str) -> serde_json::Value {
        let index: serde_json::Value =
            serde_json::from_str(&self.plane.admin("/index")).expect("JSON");
        let all = index["status"].as_array().cloned().unwrap_or_default();
        all.into_iter().find(|status| status["object"] == object).unwrap_or_default()
    }
}

fn header(answer: &Answer, name: &str) -> Option<String> {
    let lines = answer.head.lines().filter_map(|line| line.split_once(": "));
    let mut values = lines.filter(|(have, _)| have.eq_ignore_ascii_case(name));
    values.next().map(|(_, value)| value.to_owned())
}

/// A route of Service `bank/<parent>` in a namespace; rules as YAML flow text.
fn route(kind: &str, name: &str, namespace: &str, parent: &str, rules: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\n\
         metadata: {{name: {name}, namespace: {namespace}}}\nspec:\n\
         \x20 parentRefs: [{{group: '', kind: Service, namespace: bank, {parent}}}]\n\
         \x20 rules: [{rules}]\n"
    )
}

fn http(rules: &str) -> String {
    route("HTTPRoute", "echo", "bank", "name: echo, port: 80", rules)
}

const V1: &str = "backendRefs: [{name: echo-v1, port: 80}]";
const V2: &str = "backendRefs: [{name: echo-v2, port: 80}]";

// MeshFrontend.
#[test]
fn routes_are_of_a_service_and_not_of_its_pods() {
    let bed = Bed::start(&[&http(&format!("{{{V2}}}"))]);
    assert_eq!(bed.app("/", &[]), "v2");
    let pod = format!("http://127.0.0.1:{}/", bed.apps[0].port);
    let answer = Curl::through(&bed.caller).get(&pod);
    assert_eq!((answer.status, header(&answer, "x-app").as_deref()), (200, Some("v1")));
    // As a pod of the mesh, and not as something outside that is passed through.
    let counted = "service=\"bank/echo:80\",route=\"\"";
    eventually("the call is counted", || bed.caller.metrics().contains(counted));
}

// MeshBasic, HTTPRouteSimpleSameNamespace.
#[test]
fn a_service_is_called_with_and_without_a_route() {
    let bed = Bed::start(&[]);
    assert_eq!(bed.app("/", &[]), "v1");
    bed.plane.write("routes.yaml", &http(&format!("{{{V2}}}")));
    eventually("the route is in force", || bed.app("/", &[]) == "v2");
    let status = bed.status("HTTPRoute bank/echo");
    assert_eq!(status["accepted"]["status"], true, "{status}");
    assert_eq!(status["resolved_refs"]["status"], true, "{status}");
}

// MeshHTTPRouteMatching, MeshHTTPRouteQueryParamMatching, MeshHTTPRouteNamedRule.
#[test]
fn requests_are_matched_by_path_header_query_and_rules_may_have_names() {
    let bed = Bed::start(&[&http(&format!(
        "{{name: first, matches: [{{path: {{value: /}}}}, {{headers: [{{name: version, value: one}}]}}], {V1}}},
         {{matches: [{{path: {{value: /v2}}}}, {{headers: [{{name: version, value: two}}]}}], {V2}}},
         {{matches: [{{path: {{value: /q}}, queryParams: [{{name: animal, value: whale}}]}}], {V1}}},
         {{matches: [{{path: {{value: /q}}, queryParams: [{{name: animal, value: dolphin}}]}}], {V2}}}"
    ))]);
    for (path, headers, app) in [
        ("/", &[][..], "v1"),
        ("/example", &[], "v1"),
        ("/", &["version: one"], "v1"),
        ("/v2", &[], "v2"),
        ("/v2/example", &[], "v2"),
        ("/", &["Version: two"], "v2"),
        // Whole segments of a path, and the longer one wins.
        ("/v2example", &[], "v1"),
        ("/foo/v2/example", &[], "v1"),
        ("/q?animal=whale", &[], "v1"),
        ("/q?animal=dolphin", &[], "v2"),
        ("/q?animal=dolphin&animal=whale", &[], "v2"),
        ("/q?color=blue&animal=dolphin", &[], "v2"),
        ("/q?ANIMAL=dolphin", &[], "v1"),
    ] {
        let args: Vec<&str> = headers.iter().flat_map(|header| ["-H", header]).collect();
        assert_eq!(bed.app(path, &args), app, "{path} {headers:?}");
    }
}

// MeshHTTPRouteRedirectHostAndStatus, -RedirectPath, -RedirectPort, -RedirectScheme, -303Redirect,
// -307Redirect, -308Redirect.
#[test]
fn redirects_say_where_in_every_combination() {
    const PREFIX: &str = "path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}";
    const FULL: &str = "path: {type: ReplaceFullPath, replaceFullPath: /full}";
    let cases: &[(&str, &str, u16, &str)] = &[
        ("/host", "hostname: example.org", 302, "http://example.org/host"),
        (
            "/host-status",
            "hostname: example.org, statusCode: 301",
            301,
            "http://example.org/host-status",
        ),
        ("/prefix", PREFIX, 302, "http://echo.bank/new"),
        ("/full", FULL, 302, "http://echo.bank/full"),
        ("/path-host", &format!("hostname: example.org, {PREFIX}"), 302, "http://example.org/new"),
        ("/path-status", &format!("statusCode: 301, {PREFIX}"), 301, "http://echo.bank/new"),
        ("/full-host", &format!("hostname: example.org, {FULL}"), 302, "http://example.org/full"),
        ("/full-status", &format!("statusCode: 301, {FULL}"), 301, "http://echo.bank/full"),
        ("/port", "port: 8083", 302, "http://echo.bank:8083/port"),
        (
            "/port-host",
            "port: 8083, hostname: example.org",
            302,
            "http://example.org:8083/port-host",
        ),
        ("/port-status", "port: 8083, statusCode: 301", 301, "http://echo.bank:8083/port-status"),
        ("/scheme", "scheme: https", 302, "https://echo.bank/scheme"),
        (
            "/scheme-host",
            "scheme: https, hostname: example.org",
            302,
            "https://example.org/scheme-host",
        ),
        (
            "/scheme-status",
            "scheme: https, statusCode: 301",
            301,
            "https://echo.bank/scheme-status",
        ),
        ("/303", "statusCode: 303", 303, "http://echo.bank/303"),
        ("/307", "statusCode: 307", 307, "http://echo.bank/307"),
        ("/308", "statusCode: 308", 308, "http://echo.bank/308"),
    ];
    let rules = |in_backend: bool, cases: &[(&str, &str, u16, &str)]| {
        let rule = |(path, redirect, ..): &(&str, &str, u16, &str)| {
            let filters =
                format!("filters: [{{type: RequestRedirect, requestRedirect: {{{redirect}}}}}]");
            let what = match in_backend {
                true => format!("backendRefs: [{{name: echo-v1, port: 80, {filters}}}]"),
                false => filters,
            };
            format!("{{matches: [{{path: {{value: {path}}}}}], {what}}}")
        };
        cases.iter().map(rule).collect::<Vec<_>>().join(", ")
    };
    // As a rule's filter, and as that of the backend that is chosen, which is as legal; sixteen rules
    // are as many as a route may have.
    for in_backend in [false, true] {
        for part in cases.chunks(16) {
            let bed = Bed::start(&[&http(&rules(in_backend, part))]);
            for (path, _, status, location) in part {
                for protocol in ["--http1.1", "--http2-prior-knowledge"] {
                    let answer = bed.get(path, &[protocol, "--max-redirs", "0"]);
                    assert_eq!(answer.status, *status, "{path} {in_backend}: {answer:?}");
                    assert_eq!(header(&answer, "location").as_deref(), Some(*location), "{path}");
                }
            }
        }
    }
}

// MeshHTTPRouteRequestHeaderModifier, -BackendRequestHeaderModification, -RewritePath.
#[test]
fn headers_and_paths_are_changed_on_the_way() {
    const MODIFIER: &str = "{type: RequestHeaderModifier, requestHeaderModifier: {\
        set: [{name: X-Set, value: new}], add: [{name: X-Add, value: more}], remove: [X-Remove]}}";
    let rewrite = |path: &str| format!("{{type: URLRewrite, urlRewrite: {{path: {{{path}}}}}}}");
    let one = rewrite("type: ReplacePrefixMatch, replacePrefixMatch: /one");
    let strip = rewrite("type: ReplacePrefixMatch, replacePrefixMatch: /");
    let full = rewrite("type: ReplaceFullPath, replaceFullPath: /one");
    let bed = Bed::start(&[&http(&format!(
        "{{matches: [{{path: {{value: /rule}}}}], filters: [{MODIFIER}], {V1}}},
         {{matches: [{{path: {{value: /backend}}}}], backendRefs: [{{name: echo-v1, port: 80, filters: [{MODIFIER}]}}]}},
         {{matches: [{{path: {{value: /prefix/one}}}}], filters: [{one}], {V1}}},
         {{matches: [{{path: {{value: /strip}}}}], filters: [{strip}], {V1}}},
         {{matches: [{{path: {{value: /full}}}}], filters: [{full}, {MODIFIER}], {V1}}}"
    ))]);
    let sent = ["-H", "X-Set: old", "-H", "X-Add: first", "-H", "X-Remove: gone"];
    for path in ["/rule", "/backend", "/full/x"] {
        let got = bed.got(path, &sent);
        assert_eq!(got["headers"]["x-set"], "new", "{path}: {got}");
        assert_eq!(got["headers"]["x-remove"], serde_json::Value::Null, "{path}: {got}");
        // Of a repeated header the app shows the last.
        assert_eq!(got["headers"]["x-add"], "more", "{path}: {got}");
    }
    for (path, uri) in [
        ("/prefix/one/two", "/one/two"),
        ("/prefix/one?q=1", "/one?q=1"),
        ("/strip", "/"),
        ("/strip/three", "/three"),
        ("/full/two", "/one"),
    ] {
        assert_eq!(bed.got(path, &[])["uri"], uri, "{path}");
    }
}

// MeshHTTPRouteWeight, MeshGRPCRouteWeight.
#[test]
fn weights_split_the_requests() {
    const SPLIT: &str = "{backendRefs: [{name: echo-v1, port: 80, weight: 7}, \
                         {name: echo-v2, port: 80, weight: 3}, {name: echo, port: 80, weight: 0}]}";
    for kind in ["HTTPRoute", "GRPCRoute"] {
        let bed = Bed::start(&[&route(kind, "echo", "bank", "name: echo, port: 80", SPLIT)]);
        let mut apps: BTreeMap<String, u32> = BTreeMap::new();
        let urls = vec!["http://echo.bank/bank.Echo/Say"; 400];
        // One process for all of them.
        let answers = Curl::through(&bed.caller).args(&["-o", "-"]).args(&urls[1..]).get(urls[0]);
        for line in answers.body.lines().filter(|line| line.starts_with('{')) {
            let got: serde_json::Value = serde_json::from_str(line).unwrap();
            *apps.entry(got["app"].as_str().unwrap().to_owned()).or_default() += 1;
        }
        let total: u32 = apps.values().sum();
        assert!(total >= 399, "{kind}: {apps:?}");
        // 120 expected; 80 and 160 are more than four standard deviations away.
        assert!((80..=160).contains(&apps["v2"]), "{kind}: {apps:?}");
    }
}

// MeshGRPCRouteRequestHeaderModifier.
#[test]
fn grpc_calls_are_matched_by_method_and_changed() {
    let modifier = "{type: RequestHeaderModifier, requestHeaderModifier: {\
        set: [{name: X-Set, value: new}, {name: Host, value: other.example}], remove: [X-Remove]}}";
    let rules = format!(
        "{{matches: [{{method: {{service: bank.Echo, method: Say}}}}], filters: [{modifier}], {V1}}},
         {{matches: [{{headers: [{{name: Host, value: echo.bank}}]}}], {V2}}}"
    );
    let bed = Bed::start(&[&route("GRPCRoute", "echo", "bank", "name: echo, port: 80", &rules)]);
    for protocol in ["--http1.1", "--http2-prior-knowledge"] {
        let got = bed.got("/bank.Echo/Say", &[protocol, "-H", "X-Set: old", "-H", "X-Remove: x"]);
        assert_eq!(got["headers"]["x-set"], "new", "{got}");
        assert_eq!(got["headers"]["x-remove"], serde_json::Value::Null, "{got}");
        let host = match got["version"].as_str() {
            Some("HTTP/2.0") => got["uri"].as_str().unwrap().split('/').nth(2).unwrap().to_owned(),
            _ => got["headers"]["host"].as_str().unwrap().to_owned(),
        };
        assert_eq!(host, "other.example", "{got}");
        // `Host` is the authority, whatever wire it came on.
        assert_eq!(bed.app("/bank.Other/Say", &[protocol]), "v2");
    }
}

// MeshFrontend, MeshFrontendHostname, MeshSplit: a route is for the Service that was dialled, by whatever
// name, and not for one that another route sends to.
#[test]
fn a_route_is_for_the_front_that_was_dialled() {
    let marks = "{type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: X-Mark, value: v2}]}}";
    let to_v2 = route("HTTPRoute", "to-v2", "bank", "name: echo, port: 80", &format!("{{{V2}}}"));
    let of_v2 =
        route("HTTPRoute", "v2", "bank", "name: echo-v2", &format!("{{filters: [{marks}], {V2}}}"));
    let bed = Bed::start(&[&to_v2, &of_v2]);
    let get = |url: &str| Curl::through(&bed.caller).get(url);
    for url in ["http://echo-v2.bank/", "http://echo-v2/", "http://echo-v2.bank.svc.cluster.local/"]
    {
        let answer = get(url);
        assert_eq!(header(&answer, "x-mark").as_deref(), Some("v2"), "{url}: {answer:?}");
    }
    let answer = get("http://echo.bank/");
    assert_eq!(header(&answer, "x-app").as_deref(), Some("v2"), "{answer:?}");
    assert_eq!(header(&answer, "x-mark"), None, "routes don't chain");
}

// MeshPorts: a route for one port of a Service leaves the others alone.
#[test]
fn a_route_may_be_for_one_port() {
    let bed = Bed::start(&[&http(&format!("{{{V2}}}"))]);
    assert_eq!(bed.app("/", &[]), "v2");
    assert_eq!(bed.app(":81/", &[]), "v1");
    let all = route("HTTPRoute", "echo", "bank", "name: echo", &format!("{{{V2}}}"));
    bed.plane.write("routes.yaml", &all);
    eventually("it is for every port", || bed.app(":81/", &[]) == "v2");
}

// MeshConsumerRoute, and backends in any namespace without a ReferenceGrant (GEP-1294).
#[test]
fn a_consumer_route_is_for_its_namespace_and_needs_no_grant() {
    let backend = "backendRefs: [{name: elsewhere, namespace: other, port: 80}]";
    let producer = http(&format!("{{{V1}}}"));
    let own = route("HTTPRoute", "own", "shop", "name: echo", &format!("{{{backend}}}"));
    let bed = Bed::start(&[&producer, &own]);
    assert_eq!(bed.app("/", &[]), "v1");
    let consumer = Proxy::caller(&bed.plane, &["--namespace", "shop"]);
    let answer = Curl::through(&consumer).get("http://echo.bank/");
    assert_eq!(header(&answer, "x-app").as_deref(), Some("v2"), "{answer:?}");
    let status = bed.status("HTTPRoute shop/own");
    assert_eq!(status["resolved_refs"]["status"], true, "{status}");
}

// GEP-1294: of several kinds of routes at one port the most specific is in force.
#[test]
fn a_grpc_route_is_in_force_instead_of_an_http_route_at_the_same_port() {
    let grpc = route("GRPCRoute", "grpc", "bank", "name: echo, port: 80", &format!("{{{V2}}}"));
    let bed = Bed::start(&[&http(&format!("{{{V1}}}")), &grpc]);
    assert_eq!(bed.app("/", &[]), "v2");
    let status = bed.status("HTTPRoute bank/echo");
    assert_eq!(status["accepted"]["status"], false, "{status}");
    let problem = status["accepted"]["problems"][0].as_str().unwrap().to_owned();
    assert!(
        problem.starts_with("spec.parentRefs[0]: Conflicted: GRPCRoute bank/grpc"),
        "{problem}"
    );
    assert_eq!(bed.status("GRPCRoute bank/grpc")["accepted"]["status"], true);
    bed.plane.write("routes.yaml", &http(&format!("{{{V1}}}")));
    eventually("the other one is in force", || bed.app("/", &[]) == "v1");
    assert_eq!(bed.status("HTTPRoute bank/echo")["accepted"]["status"], true);
}

#[test]
fn a_filter_that_is_not_supported_is_never_skipped() {
    let filter = "filters: [{type: ExtensionRef, extensionRef: {group: a.b, kind: C, name: d}}]";
    let bed = Bed::start(&[&http(&format!(
        "{{matches: [{{path: {{value: /rule}}}}], {filter}, {V1}}},
         {{matches: [{{path: {{value: /backend}}}}], backendRefs: [{{name: echo-v1, port: 80, {filter}}}]}},
         {{matches: [{{path: {{value: /good}}}}], {V2}}}"
    ))]);
    for path in ["/rule", "/backend"] {
        let answer = bed.get(path, &[]);
        assert_eq!(answer.status, 500, "{answer:?}");
        assert!(answer.body.contains("ExtensionRef is not supported"), "{answer:?}");
    }
    assert_eq!(bed.app("/good", &[]), "v2");
    let status = bed.status("HTTPRoute bank/echo");
    assert_eq!(status["accepted"]["status"], false, "{status}");
    let problem = status["accepted"]["problems"][0].as_str().unwrap();
    assert!(problem.contains("spec.rules[0].filters[0].type: ExtensionRef"), "{problem}");
}

// HTTPRouteRewriteHost, -RequestMirror, -BackendURLRewrite, and header modifiers of responses.
#[test]
fn hosts_are_rewritten_and_answers_changed() {
    let host = "{type: URLRewrite, urlRewrite: {hostname: other.example}}";
    let answers = "{type: ResponseHeaderModifier, responseHeaderModifier: {\
        set: [{name: X-Set, value: new}], add: [{name: X-Add, value: more}], remove: [X-App]}}";
    let bed = Bed::start(&[&http(&format!(
        "{{matches: [{{path: {{value: /rule}}}}], filters: [{host}], {V1}}},
         {{matches: [{{path: {{value: /backend}}}}], backendRefs: [{{name: echo-v1, port: 80, filters: [{host}]}}]}},
         {{matches: [{{path: {{value: /answer}}}}], filters: [{answers}], {V1}}}"
    ))]);
    for path in ["/rule", "/backend"] {
        assert_eq!(bed.got(path, &["--http1.1"])["headers"]["host"], "other.example", "{path}");
    }
    let answer = bed.get("/answer", &[]);
    assert_eq!(header(&answer, "x-set").as_deref(), Some("new"), "{answer:?}");
    assert_eq!(header(&answer, "x-add").as_deref(), Some("more"), "{answer:?}");
    assert_eq!(header(&answer, "x-app"), None, "{answer:?}");
}

// HTTPRouteCORS.
#[test]
fn a_cors_filter_answers_preflights_and_marks_answers() {
    let cors = "{type: CORS, cors: {allowOrigins: ['https://www.foo.com', 'https://*.bar.com'], \
        allowMethods: [GET, OPTIONS], allowHeaders: [x-header-1, x-header-2], \
        exposeHeaders: [x-header-3], allowCredentials: true, maxAge: 3600}}";
    // A preflight is answered by the rule for the method that it announces.
    let bed = Bed::start(&[&http(&format!(
        "{{matches: [{{path: {{value: /cors}}, method: GET}}], filters: [{cors}], {V1}}}, {{{V2}}}"
    ))]);
    let preflight = |origin: &str| {
        let origin = format!("Origin: {origin}");
        bed.get(
            "/cors",
            &["-X", "OPTIONS", "-H", &origin, "-H", "Access-Control-Request-Method: GET"],
        )
    };
    for origin in ["https://www.foo.com", "https://a.b.bar.com"] {
        let answer = preflight(origin);
        assert_eq!(answer.status, 204, "{answer:?}");
        for (name, value) in [
            ("access-control-allow-origin", origin),
            ("access-control-allow-methods", "GET, OPTIONS"),
            ("access-control-allow-headers", "x-header-1, x-header-2"),
            ("access-control-expose-headers", "x-header-3"),
            ("access-control-allow-credentials", "true"),
            ("access-control-max-age", "3600"),
        ] {
            assert_eq!(header(&answer, name).as_deref(), Some(value), "{name}: {answer:?}");
        }
        let answer = bed.get("/cors", &["-H", &format!("Origin: {origin}")]);
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(header(&answer, "access-control-allow-origin").as_deref(), Some(origin));
    }
    let answer = preflight("https://foobar.com");
    assert_eq!(answer.status, 204, "{answer:?}");
    assert_eq!(header(&answer, "access-control-allow-origin"), None, "{answer:?}");
    let answer = bed.get("/cors", &["-H", "Origin: https://foobar.com"]);
    assert_eq!((answer.status, header(&answer, "access-control-allow-origin")), (200, None));
    // Without a filter the app's own answer goes through.
    let options = bed.got("/other", &["-X", "OPTIONS", "-H", "Origin: https://www.foo.com"]);
    assert_eq!(options["method"], "OPTIONS");
}

// HTTPRouteRetry, as upstream runs it: many first failures at once on a service that was quiet until then.
#[test]
fn a_burst_of_first_failures_on_a_quiet_service_is_retried() {
    let flaky = Flaky::start();
    let plane = ControlPlane::start(&[
        ("echo.yaml", &unmeshed("echo", "http", flaky.port)),
        (
            "route.yaml",
            &http(
                "{backendRefs: [{name: echo, port: 80}], retry: {attempts: 2, codes: [500, 503]}}",
            ),
        ),
    ]);
    let caller = Proxy::caller(&plane, &[]);
    let address = local(caller.outbound).port();
    let clients: Vec<_> = (0..60)
        .map(|i| std::thread::spawn(move || first_status(address, &format!("/{i}"))))
        .collect();
    for client in clients {
        assert_eq!(client.join().unwrap(), 200);
    }
}

/// Answers the first request for each path 503, and later ones 200.
struct Flaky {
    port: u16,
}

impl Flaky {
    fn start() -> Self {
        use std::io::{BufRead, BufReader, Write};
        let seen = std::sync::Mutex::new(std::collections::HashSet::new());
        let port = outrigger_tests::app::tcp(move |stream| {
            let mut writer = stream.try_clone().expect("a second handle");
            let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
            while let Some(first) = lines.next() {
                let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
                let _ = lines.find(|line| line.is_empty());
                let status = if seen.lock().expect("no panic").insert(path) {
                    "503 Not Yet"
                } else {
                    "200 OK"
                };
                let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
                if writer.write_all(answer.as_bytes()).is_err() {
                    return;
                }
            }
        });
        Self { port }
    }
}

fn first_status(outbound: u16, path: &str) -> u16 {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(local(outbound)).expect("an answer");
    stream.set_read_timeout(Some(std::time::Duration::from_secs(20))).expect("an answer");
    let request = format!("GET http://echo.bank{path} HTTP/1.1\r\nhost: echo.bank\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("an answer");
    let mut head = [0; 12];
    stream.read_exact(&mut head).expect("an answer");
    String::from_utf8_lossy(&head[9..]).parse().expect("an answer")
}
