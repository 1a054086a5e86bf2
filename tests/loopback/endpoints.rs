//! Which endpoints of a service get its requests: those of one's own zone, warm ones, and failing ones when
//! too few others are left.

use std::fmt::Write;
use std::io::{Read, Write as _};
use std::sync::atomic::Ordering::Relaxed;

use outrigger_tests::app::{Echo, tcp};
use outrigger_tests::client::Curl;
use outrigger_tests::eventually;
use outrigger_tests::process::{ControlPlane, Proxy};

/// A service `app` with endpoints that have no sidecar, each with its zone.
pub fn service(endpoints: &[(u16, &str)]) -> String {
    let mut text = "apiVersion: v1\nkind: Service\nmetadata: {name: app, namespace: bank}\n\
                    spec: {ports: [{name: main, port: 80, appProtocol: http}]}\n"
        .to_owned();
    for (i, (port, zone)) in endpoints.iter().enumerate() {
        let _ = write!(
            text,
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: app-{i}, \
             namespace: bank, labels: {{kubernetes.io/service-name: app}}}}\naddressType: IPv4\n\
             ports: [{{name: main, port: {port}}}]\n\
             endpoints: [{{addresses: [\"127.0.0.1\"], zone: {zone}}}]\n"
        );
    }
    text
}

fn policy(spec: &str) -> String {
    format!(
        "apiVersion: outrigger.dev/v1alpha1\nkind: TrafficPolicy\n\
         metadata: {{name: app, namespace: bank}}\nspec:\n  \
         targetRefs: [{{kind: Service, name: app}}]\n{spec}"
    )
}

fn ask(caller: &Proxy) -> u16 {
    Curl::through(caller).get("http://app.bank/").status
}

/// An app that answers 503 to everything.
fn failing() -> u16 {
    tcp(|mut stream| {
        let mut buffer = [0; 4096];
        while stream.read(&mut buffer).is_ok_and(|n| n > 0) {
            let answer = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n";
            if stream.write_all(answer.as_bytes()).is_err() {
                return;
            }
        }
    })
}

#[test]
fn requests_stay_in_their_zone_while_it_can_serve_them() {
    let (near, far) = (Echo::start("near"), Echo::start("far"));
    let all = [(near.port, "a"), (far.port, "b"), (failing(), "a")];
    let ejection = "  outlierEjection: {consecutiveFailures: 1, baseEjection: 1m}\n";
    let plane = ControlPlane::start(&[
        ("app.yaml", &service(&all[..2])),
        ("policy.yaml", &policy(&format!("{ejection}  zonePreference: {{}}\n"))),
    ]);
    let caller = Proxy::caller(&plane, &["--zone", "a"]);
    for _ in 0..30 {
        assert_eq!(ask(&caller), 200);
    }
    assert_eq!((near.requests.load(Relaxed), far.requests.load(Relaxed)), (30, 0));
    let elsewhere = Proxy::start(&plane, "elsewhere", &["--zone", "c"]);
    eventually("a zone without endpoints uses all", || {
        ask(&elsewhere);
        far.requests.load(Relaxed) > 0
    });
    let before = far.requests.load(Relaxed);
    // Half of the zone is ejected, 70 % should be fit: two of seven requests spill over.
    plane.write("app.yaml", &service(&all));
    eventually("the failing one is ejected", || {
        ask(&caller);
        caller.count("outrigger_endpoints_ejected", &["bank/app:80"]) == 1.0
    });
    for _ in 0..70 {
        assert_eq!(ask(&caller), 200);
    }
    let spilled = far.requests.load(Relaxed) - before;
    assert!((5..=40).contains(&spilled), "{spilled} of about 70");
    assert!(caller.count("outrigger_lb_zone_spillover_total", &["bank/app:80"]) >= spilled as f64);
}

#[test]
fn a_new_endpoint_gets_less_until_it_is_warm() {
    let (old, new) = (Echo::start("old"), Echo::start("new"));
    let plane = ControlPlane::start(&[
        ("app.yaml", &service(&[(old.port, "a")])),
        ("policy.yaml", &policy("  slowStart: {window: 1m}\n")),
    ]);
    let caller = Proxy::caller(&plane, &[]);
    assert_eq!(ask(&caller), 200);
    assert_eq!(caller.count("outrigger_endpoints_warming", &["bank/app:80"]), 0.0);
    plane.write("app.yaml", &service(&[(old.port, "a"), (new.port, "a")]));
    eventually("it has come", || {
        caller.count("outrigger_endpoints_warming", &["bank/app:80"]) == 1.0
    });
    for _ in 0..100 {
        assert_eq!(ask(&caller), 200);
    }
    let got = new.requests.load(Relaxed);
    // A tenth of what an even choice would give it, and what it has grown by meanwhile.
    assert!(got <= 25, "{got} of 100");
    plane.write("policy.yaml", &policy("  slowStart: {window: 1s}\n"));
    eventually("it is warm", || {
        caller.count("outrigger_endpoints_warming", &["bank/app:80"]) == 0.0
    });
    eventually("it gets its share", || {
        ask(&caller);
        new.requests.load(Relaxed) >= got + 5
    });
}

#[test]
fn ejections_are_ignored_when_too_few_are_left() {
    let good = Echo::start("good");
    let ejection = "  outlierEjection: {consecutiveFailures: 1, baseEjection: 1m}\n";
    let plane = ControlPlane::start(&[
        ("app.yaml", &service(&[(good.port, "a"), (failing(), "a")])),
        ("policy.yaml", &policy(ejection)),
    ]);
    let caller = Proxy::caller(&plane, &[]);
    eventually("the failing one is ejected", || {
        ask(&caller);
        caller.count("outrigger_endpoints_ejected", &["bank/app:80"]) == 1.0
    });
    assert!((0..30).all(|_| ask(&caller) == 200), "it is left alone");
    plane.write("policy.yaml", &policy(&format!("{ejection}  panicThreshold: 60\n")));
    eventually("it is asked again: one of two is less than 60 %", || ask(&caller) == 503);
    assert!(caller.count("outrigger_lb_panic_total", &["bank/app:80"]) >= 1.0);
}

#[test]
fn a_client_stays_with_its_endpoint_while_that_is_there() {
    let names = ["one", "two", "three"];
    let apps = names.map(Echo::start);
    let all: Vec<_> = apps.iter().map(|app| (app.port, "a")).collect();
    let spec = "  sessionPersistence: {sessionName: basket, absoluteTimeout: 8h}\n";
    let plane =
        ControlPlane::start(&[("app.yaml", &service(&all)), ("policy.yaml", &policy(spec))]);
    let caller = Proxy::caller(&plane, &[]);
    let cookie = |head: &str| {
        let line = head.lines().find_map(|line| line.strip_prefix("set-cookie: "));
        line.map(|line| line.trim().to_owned())
    };
    let mut first = None;
    eventually("an answer sets the cookie", || {
        let answer = Curl::through(&caller).get("http://app.bank/");
        first = cookie(&answer.head).map(|set| (set, answer.body));
        first.is_some()
    });
    let (set, body) = first.expect("it is set");
    assert!(set.starts_with("basket=") && set.ends_with("Max-Age=28800"), "{set}");
    let app = |body: &str| {
        let said: serde_json::Value = serde_json::from_str(body).unwrap_or_default();
        said["app"].as_str().unwrap_or_default().to_owned()
    };
    let own = format!("cookie: a=1; {}", set.split(';').next().unwrap_or_default());
    for _ in 0..30 {
        let answer = Curl::through(&caller).args(&["-H", &own]).get("http://app.bank/");
        assert_eq!(app(&answer.body), app(&body), "the same endpoint");
        assert_eq!(cookie(&answer.head), None, "which the client knows");
    }
    // When it is gone another one takes over, and the client is told.
    let is_left = |(name, _): &(&str, &(u16, &str))| *name != app(&body);
    let left: Vec<_> = names.into_iter().zip(&all).filter(is_left).map(|(_, of)| *of).collect();
    plane.write("app.yaml", &service(&left));
    eventually("another endpoint takes over", || {
        let answer = Curl::through(&caller).args(&["-H", &own]).get("http://app.bank/");
        app(&answer.body) != app(&body) && cookie(&answer.head).is_some_and(|new| new != set)
    });
    // Somebody else's key is none.
    for forged in ["cookie: basket=0000000000000000", "cookie: basket=zz", "cookie: basket"] {
        let answer = Curl::through(&caller).args(&["-H", forged]).get("http://app.bank/");
        assert_eq!(answer.status, 200, "{answer:?}");
        assert!(cookie(&answer.head).is_some(), "{answer:?}");
    }
}
