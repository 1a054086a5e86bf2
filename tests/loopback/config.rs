//! Configuration that changes under load, and what routes do to requests from end to end.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use outrigger_tests::app::Echo;
use outrigger_tests::client::{Curl, Load, Seen};
use outrigger_tests::process::{AS_TOLD, ControlPlane, Proxy, free_port, local};
use outrigger_tests::{eventually, within};

use crate::{service, unmeshed};

/// A route of `bank/front:80` with rules as YAML flow text.
fn route(rules: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\n\
         metadata: {{name: front, namespace: bank}}\nspec:\n\
         \x20 parentRefs: [{{group: \"\", kind: Service, name: front, port: 80}}]\n\
         \x20 rules:\n{rules}\n"
    )
}

/// One rule that splits between `old` and `new`.
fn split(old: u32, new: u32) -> String {
    route(&format!(
        "  - backendRefs: [{{name: old, port: 80, weight: {old}}}, {{name: new, port: 80, weight: {new}}}]"
    ))
}

/// `front` in front of `old` and `new`, each with a sidecar, and a caller with a listener.
struct Canary {
    load: Load,
    caller: Proxy,
    _sidecars: [Proxy; 2],
    plane: ControlPlane,
    _apps: [Echo; 2],
}

impl Canary {
    fn start() -> Self {
        let plane = ControlPlane::start(&[
            ("front.yaml", &service("front", "http")),
            ("old.yaml", &service("old", "http")),
            ("new.yaml", &service("new", "http")),
            ("route.yaml", &split(100, 0)),
        ]);
        let apps = [Echo::start("old"), Echo::start("new")];
        let sidecars = ["old", "new"].map(|name| {
            let app = &apps[usize::from(name == "new")];
            Proxy::beside(&plane, name, &[format!("{}=h1:main", app.port)], &[])
        });
        let listener = free_port();
        let listen = format!("127.0.0.1:{listener}=front.bank:80");
        let caller = Proxy::caller(&plane, &["--listen", &listen]);
        let load = Load::start(listener, 4, Duration::from_millis(2));
        Self { load, caller, _sidecars: sidecars, plane, _apps: apps }
    }

    /// Percent of what goes to `new`.
    #[track_caller]
    fn share(seen: &Seen) -> u64 {
        assert!(seen.failures.is_empty(), "{seen:?}");
        seen.by_app.get("new").copied().unwrap_or(0) * 100 / seen.served
    }
}

#[test]
fn weights_change_within_a_second_and_nothing_fails() {
    let mesh = Canary::start();
    assert_eq!(Canary::share(&mesh.load.further(200)), 0, "a weight of 0 gets nothing");
    mesh.plane.write("route.yaml", &split(70, 30));
    let new = || mesh.load.seen().by_app.get("new").copied().unwrap_or(0);
    let took = within(Duration::from_secs(1), "the canary is served", || new() > 0);
    println!("the split followed after {took:?}");
    let share = Canary::share(&mesh.load.further(1_000));
    assert!((22..=38).contains(&share), "{share} % went to the canary");

    // A broken manifest is reported and changes nothing.
    mesh.plane.write("route.yaml", &split(70, 30).replace("weight: 30", "weight: much"));
    eventually("the problem is reported", || {
        let problems = mesh.plane.admin("/problems");
        let said = |text: &str| problems.contains(text);
        said("route.yaml:7: ") && said("spec.rules[0].backendRefs[1].weight")
    });
    // A thread of its own writes the log.
    eventually("the log has it", || mesh.plane.process().log().contains("backendRefs[1].weight"));
    let share = Canary::share(&mesh.load.further(1_000));
    assert!((22..=38).contains(&share), "{share} % went to the canary after the mistake");

    mesh.plane.write("route.yaml", &split(0, 1));
    eventually("all goes to the canary", || Canary::share(&mesh.load.further(40)) == 100);
    mesh.load.stop_unharmed();
}

#[test]
fn traffic_goes_on_while_the_control_plane_is_away() {
    let mut mesh = Canary::start();
    mesh.load.further(100);
    mesh.plane.kill();
    // Some three seconds' worth.
    mesh.load.further(3_000);
    // The folder is edited meanwhile.
    mesh.plane.write("route.yaml", &split(50, 50));
    mesh.plane.run();
    eventually("the new weights are in force", || {
        let share = Canary::share(&mesh.load.further(100));
        (30..=70).contains(&share)
    });
    eventually("every proxy is back", || {
        mesh.caller.count("outrigger_discovery_connected", &[]) == 1.0
    });
    mesh.load.further(200);
    mesh.load.stop_unharmed();
}

#[test]
fn a_consumer_route_is_for_its_own_namespace_only() {
    let app = Echo::start("web");
    let consumer = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\n\
        metadata: {name: web, namespace: shop}\nspec:\n\
        \x20 parentRefs: [{group: \"\", kind: Service, namespace: bank, name: web, port: 80}]\n\
        \x20 rules:\n  - filters:\n    - type: RequestHeaderModifier\n\
        \x20     requestHeaderModifier: {set: [{name: x-from, value: shop}]}\n\
        \x20   backendRefs: [{namespace: bank, name: web, port: 80}]\n";
    let grant = "apiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\n\
        metadata: {name: shop, namespace: bank}\nspec:\n\
        \x20 from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: shop}]\n\
        \x20 to: [{group: \"\", kind: Service}]\n";
    let plane = ControlPlane::start(&[
        ("web.yaml", &unmeshed("web", "http", app.port)),
        ("consumer.yaml", consumer),
        ("grant.yaml", grant),
    ]);
    let shop = Proxy::start(&plane, "shop", &["--namespace", "shop"]);
    let bank = Proxy::caller(&plane, &[]);
    let answer = Curl::through(&shop).get("http://web.bank/");
    assert!(answer.body.contains("\"x-from\":\"shop\""), "{answer:?}");
    let answer = Curl::through(&bank).get("http://web.bank/");
    assert!(answer.status == 200 && !answer.body.contains("x-from"), "{answer:?}");
    // A short name is looked for at home.
    let answer = Curl::through(&bank).get("http://web/");
    assert_eq!(answer.status, 200, "{answer:?}");
    let answer = Curl::through(&shop).get("http://web/");
    assert_ne!(answer.status, 200, "{answer:?}");
    // The route goes: the producer's, here none, is in force again.
    plane.remove("consumer.yaml");
    eventually("the consumer route is gone", || {
        let answer = Curl::through(&shop).get("http://web.bank/");
        answer.status == 200 && !answer.body.contains("x-from")
    });
}

#[test]
fn a_service_may_appear_after_it_was_dialled_and_go_again() {
    let app = Echo::start("late");
    let plane = ControlPlane::start(&[("other.yaml", &unmeshed("other", "http", app.port))]);
    let caller = Proxy::caller(&plane, &[]);
    let get = || Curl::through(&caller).get("http://late.bank/");
    let answer = get();
    assert!(answer.status == 502 && answer.body.contains("no_such_service"), "{answer:?}");
    plane.write("late.yaml", &unmeshed("late", "http", app.port));
    eventually("the new service is served", || get().status == 200);
    plane.remove("late.yaml");
    eventually("the removed service is unknown", || get().body.contains("no_such_service"));
}

#[test]
fn filters_do_what_they_say() {
    let (app, shadow) = (Echo::start("front"), Echo::start("shadow"));
    let rules = r#"  - matches: [{path: {type: Exact, value: /old}}]
    filters: [{type: RequestRedirect, requestRedirect: {hostname: new.example, statusCode: 301, path: {type: ReplaceFullPath, replaceFullPath: /new}}}]
  - matches: [{path: {type: PathPrefix, value: /api}}]
    filters:
    - {type: URLRewrite, urlRewrite: {hostname: inner.example, path: {type: ReplacePrefixMatch, replacePrefixMatch: /v2}}}
    - {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-set, value: new}], add: [{name: x-add, value: more}], remove: [x-gone]}}
    - {type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: x-answer, value: "yes"}, {name: connection, value: close}], remove: [x-app]}}
    backendRefs: [{name: front, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /copied}}]
    filters: [{type: RequestMirror, requestMirror: {backendRef: {name: shadow, port: 80}}}]
    backendRefs: [{name: front, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /nobody}}]
    backendRefs: [{name: front, port: 80, weight: 0}, {name: shadow, port: 80, weight: 0}]
  - matches: [{path: {type: PathPrefix, value: /missing}}]
    backendRefs: [{name: missing, port: 80}]
"#;
    let plane = ControlPlane::start(&[
        ("front.yaml", &unmeshed("front", "http", app.port)),
        ("shadow.yaml", &unmeshed("shadow", "http", shadow.port)),
        ("route.yaml", &route(rules)),
    ]);
    let caller = Proxy::caller(&plane, &[]);
    let get = |path: &str| {
        Curl::through(&caller)
            .args(&["--header", "x-gone: 1", "--header", "x-set: old", "--header", "x-add: first"])
            .args(&["--data", "body"])
            .get(&format!("http://front.bank{path}"))
    };
    let answer = get("/old");
    assert_eq!(answer.status, 301, "{answer:?}");
    assert!(answer.head.contains("location: http://new.example/new"), "{answer:?}");

    let answer = get("/api/things?q=1");
    let said: serde_json::Value = serde_json::from_str(&answer.body).expect("JSON");
    assert_eq!(said["uri"], "/v2/things?q=1", "{answer:?}");
    let headers = &said["headers"];
    assert_eq!((&headers["host"], &headers["x-set"]), (&"inner.example".into(), &"new".into()));
    assert!(said["body"] == "body" && headers.get("x-gone").is_none(), "{headers}");
    // The echo keeps the last of equal names.
    assert_eq!(headers["x-add"], "more");
    assert!(answer.head.contains("x-answer: yes") && !answer.head.contains("x-app:"), "{answer:?}");
    // What a rule says about the connection is not a rule's to say, and HTTP/2 would not take it.
    assert!(!answer.head.contains("connection: close"), "{answer:?}");
    let to = format!("front.bank:80:{}", local(caller.outbound));
    let answer = Curl::direct()
        .args(&["--http2-prior-knowledge", "--connect-to", &to])
        .get("http://front.bank/api/things");
    assert!(answer.status == 200 && answer.head.contains("x-answer: yes"), "{answer:?}");

    let answer = get("/copied");
    assert!(answer.status == 200 && answer.head.contains("x-app: front"), "{answer:?}");
    eventually("the mirror has got it too", || shadow.requests.load(Relaxed) == 1);

    for (path, status, reason) in [
        ("/nobody", 500, "no_backend"),
        ("/missing", 500, "no_backend"),
        ("/elsewhere", 404, "no_route"),
    ] {
        let answer = get(path);
        assert_eq!(answer.status, status, "{path}: {answer:?}");
        assert!(answer.body.contains(reason), "{path}: {answer:?}");
    }
}

#[test]
fn the_access_log_of_running_proxies_follows_the_control_plane() {
    let app = Echo::start("app");
    let manifest = unmeshed("app", "http", app.port);
    let mut plane = ControlPlane::start(&[("app.yaml", &manifest)]);
    let caller = Proxy::caller(&plane, &[AS_TOLD]);
    let stubborn = Proxy::start(&plane, "stubborn", &["--access-log", "off"]);
    let get = |proxy: &Proxy, path: &str| {
        assert_eq!(Curl::through(proxy).get(&format!("http://app.bank{path}")).status, 200);
    };
    let has = |proxy: &Proxy, path: &str| proxy.log().contains(&format!("\"path\":\"{path}\""));
    get(&caller, "/before");
    plane.restart_with(&["--access-log-slower-than", "200ms"]);
    eventually("slow requests are written", || {
        get(&caller, "/sleep/300");
        has(&caller, "/sleep/300")
    });
    get(&caller, "/quick");
    plane.restart_with(&["--access-log", "all"]);
    eventually("all requests are written", || {
        get(&caller, "/all");
        get(&stubborn, "/all");
        has(&caller, "/all")
    });
    assert!(!has(&caller, "/before") && !has(&caller, "/quick"), "{}", caller.log());
    assert!(!has(&stubborn, "/all"), "its own flag holds: {}", stubborn.log());
}
