//! One reason everywhere: what a failed request says in its response, in the access logs of both proxies and in
//! their metrics.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use outrigger_tests::app::{Echo, read_head, tcp};
use outrigger_tests::client::{Answer, Curl, raw};
use outrigger_tests::eventually;
use outrigger_tests::manifests::{service, traffic_policy};
use outrigger_tests::process::{ControlPlane, Proxy, local};
use outrigger_tests::random::Random;
use serde_json::Value;

use crate::access::Issuer;
use crate::faults::in_time;
use crate::identity::Mesh;

/// Requests that an app has had, by their ids.
type Had = Mutex<BTreeMap<String, u32>>;

/// An app whose path says what it does: answer, fail, fail once, take its time, go away.
fn app(mut stream: TcpStream, had: &Had) {
    while let Some(head) = read_head(&mut stream) {
        let path = head.split(' ').nth(1).unwrap_or_default();
        let path = path.split('?').next().unwrap_or_default();
        let id = head.lines().find_map(|line| line.strip_prefix("x-request-id: "));
        let id = id.unwrap_or_default().to_owned();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let length = length.and_then(|length| length.parse().ok()).unwrap_or(0);
        let _ = io::copy(&mut Read::by_ref(&mut stream).take(length), &mut io::sink());
        let times = {
            let mut had = had.lock().expect("not poisoned");
            let times = had.entry(id).or_default();
            *times += 1;
            *times
        };
        let status = match path {
            "/fail" => "503 Service Unavailable",
            "/fail-once" if times == 1 => "503 Service Unavailable",
            "/slow" | "/slow-once" if path == "/slow" || times == 1 => {
                thread::park_timeout(Duration::from_millis(1_500));
                "200 OK"
            }
            "/close" => return,
            "/garbage" => {
                let _ = stream.write_all(b"220 mail.test ESMTP\r\n");
                return;
            }
            "/cut" => {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nok");
                // So that what came first has gone on by then.
                thread::park_timeout(Duration::from_millis(100));
                let _ = stream.shutdown(Shutdown::Both);
                return;
            }
            _ => "200 OK",
        };
        let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 2\r\n\r\nok");
        if stream.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

/// The names by which one app is called, each with a policy of its own.
const POLICIES: &[(&str, &str)] = &[
    ("plain", ""),
    ("tries-once", "  timeouts: {attempt: 300ms}\n"),
    ("hurries", "  timeouts: {attempt: 10ms}\n"),
    ("first-byte", "  timeouts: {firstByte: 300ms}\n"),
    ("breaks", "  breaker: {consecutiveFailures: 1, open: {fixed: 60s}}\n"),
    (
        "repeats",
        "  retries: {maxAttempts: 2, when: {statuses: [503]}, backoff: {base: 1ms, max: 2ms}}\n",
    ),
    ("hedges", "  hedge: {after: 100ms}\n"),
    ("narrow", "  limits: {maxInFlight: 1, maxPending: 0}\n"),
    ("late", "  deadline: 300ms\n"),
    ("replaces", "  fallbacks: [{when: [ServerError], static: {status: 200, body: less}}]\n"),
];

const MORE: &str = r#"
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: copied, namespace: bank}
spec:
  parentRefs: [{group: "", kind: Service, name: copied}]
  rules:
  - filters: [{type: RequestMirror, requestMirror: {backendRef: {name: plain, port: 80}}}]
    backendRefs: [{name: copied, port: 80}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: becomes-grpc, namespace: bank}
spec:
  parentRefs: [{group: "", kind: Service, name: becomes-grpc}]
  rules:
  - filters:
    - type: RequestHeaderModifier
      requestHeaderModifier: {set: [{name: content-type, value: application/grpc}]}
    backendRefs: [{name: becomes-grpc, port: 80}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: routed, namespace: bank}
spec:
  parentRefs: [{group: "", kind: Service, name: routed}]
  rules: [{matches: [{path: {type: Exact, value: /only}}], backendRefs: [{name: routed, port: 80}]}]
---
apiVersion: outrigger.dev/v1alpha1
kind: AccessPolicy
metadata: {name: web, namespace: bank}
spec:
  selector: {matchLabels: {app: web}}
  default: Allow
  rules: [{name: no-entry, action: Deny, to: [{paths: [{prefix: /denied}]}]}]
---
apiVersion: outrigger.dev/v1alpha1
kind: ServerPolicy
metadata: {name: limited, namespace: bank}
spec:
  targetRefs: [{group: "", kind: Service, name: limited}]
  rateLimits: [{name: all, requests: 1, period: 1h}]
---
apiVersion: outrigger.dev/v1alpha1
kind: ServerPolicy
metadata: {name: busy, namespace: bank}
spec:
  targetRefs: [{group: "", kind: Service, name: busy}]
  concurrency: {static: 1, maxQueue: 0}
---
apiVersion: outrigger.dev/v1alpha1
kind: FaultInjection
metadata: {name: broken, namespace: bank}
spec:
  targetRefs: [{group: "", kind: Service, name: broken}]
  percent: 100
  end: END
  fault: {abort: {status: 418}}
"#;

/// A caller, the app behind three ports with different limits, and one whose app has gone.
struct Bed {
    caller: Proxy,
    web: Proxy,
    gone: Proxy,
    lost: Option<Echo>,
    had: &'static Had,
    plane: ControlPlane,
}

impl Bed {
    fn start() -> Self {
        let had: &'static Had = Box::leak(Box::default());
        let app_port = || tcp(move |stream| app(stream, had));
        let mut web = String::new();
        for (name, spec) in POLICIES {
            web.push_str(&alias(name, "main"));
            web.push_str("---\n");
            if !spec.is_empty() {
                web.push_str(&traffic_policy(name, spec));
                web.push_str("\n---\n");
            }
        }
        for (name, port) in [
            ("becomes-grpc", "main"),
            ("routed", "main"),
            ("copied", "main"),
            ("broken", "main"),
            ("limited", "limited"),
            ("busy", "busy"),
        ] {
            web.push_str(&alias(name, port));
            web.push_str("---\n");
        }
        web.push_str(&service("nobody", ""));
        web.push_str("---\n");
        web.push_str(&service("gone", ""));
        web.push_str("---");
        web.push_str(&MORE.replace("END", &in_time("+1 hour")));
        let plane = ControlPlane::start(&[("all.yaml", &web)]);
        let ports = ["main", "limited", "busy"].map(|name| format!("{}=h1:{name}", app_port()));
        let web = Proxy::beside(&plane, "web", &ports, &[]);
        let lost = Echo::start("lost");
        let gone = Proxy::beside(&plane, "gone", &[format!("{}=h1:main", lost.port)], &[]);
        let caller = Proxy::caller(&plane, &[]);
        Self { caller, web, gone, lost: Some(lost), had, plane }
    }

    fn ask(&self, id: &str, url: &str, args: &[&str]) -> Answer {
        let id = format!("x-request-id: {id}");
        Curl::through(&self.caller).args(&["-H", &id]).args(args).get(url)
    }
}

/// A client that resets its connection while the app works on its request.
fn give_up(bed: &Bed, id: &str) {
    let mut stream = TcpStream::connect(local(bed.caller.outbound)).expect("the proxy listens");
    let request = format!(
        "GET http://plain.bank/slow HTTP/1.1\r\nhost: plain.bank\r\nx-request-id: {id}\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).expect("it is sent");
    eventually("the app has it", || bed.had.lock().expect("not poisoned").contains_key(id));
    rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).expect("a reset");
}

/// A request that takes up the only place of a service, until the app has it and for some time after.
fn hold(bed: &Bed, case: &str, host: &str) -> TcpStream {
    let id = format!("before-{case}");
    let mut stream = TcpStream::connect(local(bed.caller.outbound)).expect("the proxy listens");
    let request =
        format!("GET http://{host}/slow HTTP/1.1\r\nhost: {host}\r\nx-request-id: {id}\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("it is sent");
    eventually("the app has it", || bed.had.lock().expect("not poisoned").contains_key(&id));
    stream
}

/// A service `bank/<name>:80` of the workload `web`.
fn alias(name: &str, port: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: bank}}\n\
         spec:\n  selector: {{app: web}}\n  ports: [{{name: main, port: 80, targetPort: {port}}}]\n"
    )
}

/// The lines of the access log about a request, oldest first.
fn lines(proxy: &Proxy, id: &str) -> Vec<Value> {
    let of = |line: &str| {
        serde_json::from_str::<Value>(line).ok().filter(|line| line["request_id"] == id)
    };
    proxy.log().lines().filter_map(of).collect()
}

/// The last line of a request that has been answered: the log is written beside the requests, and may come later.
#[track_caller]
fn line_of(proxy: &Proxy, id: &str) -> Value {
    let mut line = None;
    eventually(&format!("there is a line of {id}"), || {
        line = lines(proxy, id).pop();
        line.is_some()
    });
    line.unwrap_or_default()
}

/// What one side says of a request: outcome, status, reason, and which proxy named it (`*`: either).
type Said = [&'static str; 4];
const NOTHING: Said = [""; 4];

#[track_caller]
fn check(proxy: &Proxy, side: &str, id: &str, before: &str, said: &Said) {
    if *said == NOTHING {
        assert!(lines(proxy, id).is_empty(), "{id}: {side} has seen it");
        return;
    }
    let line = line_of(proxy, id);
    let text = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
    let mut logged = ["outcome", "status", "reason", "reason_by"].map(text);
    let [outcome, status, reason, by] = said;
    let mut labels = format!("outcome=\"{outcome}\",status=\"{status}\",reason=\"{reason}\",");
    match *by {
        "*" => logged[3] = "*".to_owned(),
        by => labels.push_str(&format!("reason_by=\"{by}\"}}")),
    }
    assert_eq!(logged, *said, "{id}: {side}: {line:#}");
    let count = |metrics: &str| -> f64 {
        let ours = metrics
            .lines()
            .filter(|line| line.starts_with("outrigger_requests_total{") && line.contains(&labels));
        ours.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    };
    let more = count(&proxy.metrics()) - count(before);
    assert!((more - 1.0).abs() < 0.5, "{id}: {side} counts {more} with {labels}");
}

#[track_caller]
fn check_answer(case: &Case, answer: &Answer) {
    assert_eq!(answer.status, case.status, "{}: {answer:?}", case.name);
    let [_, _, reason, _] = case.client;
    let named = answer.head.to_lowercase().lines().find_map(|line| {
        let (_, rest) = line.strip_prefix("proxy-status: ")?.split_once("details=\"")?;
        rest.split([':', '"']).next().map(ToOwned::to_owned)
    });
    // An answer that began well has no room for one, and a fault injection's stands for the app's.
    if answer.status != 200 && reason != "retried" {
        assert_eq!(named.unwrap_or_default(), reason, "{}: {answer:?}", case.name);
    } else {
        assert_eq!(named, None, "{}", case.name);
    }
}

struct Case {
    name: &'static str,
    url: &'static str,
    args: &'static [&'static str],
    /// 0: none came.
    status: u16,
    client: Said,
    server: Said,
}

const fn case(
    name: &'static str,
    url: &'static str,
    status: u16,
    client: Said,
    server: Said,
) -> Case {
    Case { name, url, args: &[], status, client, server }
}

const FAILED: Said = ["failure", "5xx", "", ""];

fn cases() -> Vec<Case> {
    let refused = |status, reason| ["refused", status, reason, "local"];
    let by_peer = |status, reason| ["refused", status, reason, "peer"];
    let failed = |reason| ["failure", "5xx", reason, "local"];
    let failed_there = |reason| ["failure", "5xx", reason, "peer"];
    let canceled = ["canceled", "", "downstream_reset", "local"];
    let fine = ["success", "2xx", "", ""];
    vec![
        case("fine", "http://plain.bank/", 200, fine, fine),
        case("own-503", "http://plain.bank/fail", 503, FAILED, FAILED),
        case(
            "denied",
            "http://plain.bank/denied",
            403,
            by_peer("4xx", "access_denied"),
            refused("4xx", "access_denied"),
        ),
        case("first", "http://limited.bank/", 200, fine, fine),
        case(
            "limited",
            "http://limited.bank/",
            429,
            by_peer("4xx", "rate_limited"),
            refused("4xx", "rate_limited"),
        ),
        case(
            "attempt",
            "http://tries-once.bank/slow",
            504,
            failed("attempt_timeout"),
            failed("deadline_exceeded"),
        ),
        case(
            "first-byte",
            "http://first-byte.bank/slow",
            504,
            failed("first_byte_timeout"),
            canceled,
        ),
        case("nobody", "http://nobody.bank/", 503, failed("no_endpoint"), NOTHING),
        case("unknown", "http://unknown.bank/", 502, refused("5xx", "no_such_service"), NOTHING),
        case("no-route", "http://routed.bank/other", 404, refused("4xx", "no_route"), NOTHING),
        case(
            "reset",
            "http://plain.bank/close",
            502,
            failed_there("upstream_reset_ambiguous"),
            failed("upstream_reset_ambiguous"),
        ),
        case(
            "garbage",
            "http://plain.bank/garbage",
            502,
            failed_there("upstream_protocol_error"),
            failed("upstream_protocol_error"),
        ),
        case(
            "cut",
            "http://plain.bank/cut",
            200,
            ["failure", "2xx", "response_truncated", "local"],
            ["failure", "2xx", "response_truncated", "local"],
        ),
        case("trip", "http://breaks.bank/fail", 503, FAILED, FAILED),
        case("broken", "http://breaks.bank/", 503, refused("5xx", "breaker_open"), NOTHING),
        case(
            "injected",
            "http://broken.bank/",
            418,
            ["success", "4xx", "fault_injected", "local"],
            NOTHING,
        ),
        case("full", "http://narrow.bank/", 503, refused("5xx", "too_many_in_flight"), NOTHING),
        case(
            "overloaded",
            "http://busy.bank/",
            503,
            by_peer("5xx", "overloaded"),
            refused("5xx", "overloaded"),
        ),
        case(
            "late",
            "http://late.bank/slow",
            504,
            // Both know when it passes.
            ["failure", "5xx", "deadline_exceeded", "*"],
            failed("deadline_exceeded"),
        ),
        case("mirrored", "http://copied.bank/", 200, fine, fine),
        case("dns", "http://nowhere.invalid/", 502, failed("dns_error"), NOTHING),
        case("loop", "", 508, refused("5xx", "loop"), NOTHING),
        case("canceled", "http://plain.bank/slow", 0, canceled, canceled),
        Case {
            args: &["--request-target", "https://plain.bank/"],
            ..case("bad", "http://plain.bank/", 400, refused("4xx", "bad_request"), NOTHING)
        },
        case(
            "again",
            "http://repeats.bank/fail-once",
            200,
            ["success", "2xx", "retried", "local"],
            fine,
        ),
        case("in-vain", "http://repeats.bank/fail", 503, FAILED, FAILED),
        case("replaced", "http://replaces.bank/fail", 200, fine, FAILED),
        case("gone", "http://gone.bank/", 503, failed_there("connect_failed"), NOTHING),
    ]
}

#[test]
fn a_failure_has_one_reason_in_its_response_both_logs_and_both_metrics() {
    let mut bed = Bed::start();
    eventually("everything is in force", || {
        bed.ask("warm-up", "http://gone.bank/", &[]).status == 200
            && bed.ask("warm-up", "http://plain.bank/denied", &[]).status == 403
            && bed.ask("warm-up", "http://broken.bank/", &[]).status == 418
            && bed.ask("warm-up", "http://routed.bank/other", &[]).status == 404
            && ["narrow", "late", "busy"]
                .iter()
                .all(|name| bed.ask("warm-up", &format!("http://{name}.bank/"), &[]).status == 200)
    });
    // What came before is counted by then.
    bed.ask("settled", "http://plain.bank/", &[]);
    for proxy in [&bed.caller, &bed.web] {
        line_of(proxy, "settled");
    }
    let own = format!("http://{}/", local(bed.caller.outbound));
    for case in cases() {
        let url = if case.url.is_empty() { &own } else { case.url };
        let (client, server) = (bed.caller.metrics(), bed.web.metrics());
        if case.name == "gone" {
            // Nobody can say any more that it is no endpoint.
            bed.plane.kill();
            bed.lost = None;
        }
        let held = match case.name {
            "full" => Some(hold(&bed, case.name, "narrow.bank")),
            "overloaded" => Some(hold(&bed, case.name, "busy.bank")),
            _ => None,
        };
        if case.status == 0 {
            give_up(&bed, case.name);
        } else {
            check_answer(&case, &bed.ask(case.name, url, case.args));
        }
        check(&bed.caller, "the client side", case.name, &client, &case.client);
        // Several attempts, and a copy, are several requests there.
        match case.name {
            "again" | "in-vain" | "mirrored" | "overloaded" => {
                let both = || {
                    let of = lines(&bed.web, case.name).into_iter();
                    of.map(|line| line["outcome"].as_str().unwrap_or_default().to_owned())
                        .collect::<Vec<_>>()
                };
                eventually("both have ended", || both().len() == 2);
                let mut both = both();
                both.sort();
                // The copy is a request as any other; what nobody has processed is sent once more.
                let ends = match case.name {
                    "again" => ["failure", "success"],
                    "in-vain" => ["failure"; 2],
                    "mirrored" => ["success"; 2],
                    _ => ["refused"; 2],
                };
                assert_eq!(both, ends, "{}", case.name);
                assert_eq!(lines(&bed.caller, case.name).len(), 1, "{}", case.name);
            }
            _ => check(&bed.web, "the server side", case.name, &server, &case.server),
        }
        if held.is_some() {
            let held = format!("before-{}", case.name);
            for proxy in [&bed.caller, &bed.web] {
                eventually("it has ended as well", || !lines(proxy, &held).is_empty());
            }
        }
    }
    // What was asked of the app that has gone is said by its proxy.
    let line = line_of(&bed.gone, "gone");
    assert_eq!((&line["reason"], &line["reason_by"]), (&"connect_failed".into(), &"local".into()));
}

/// A refusal to it has a status of success, and was taken for one.
#[test]
fn a_request_that_a_rule_makes_grpc_is_refused_with_the_reason_of_the_called_proxy() {
    let bed = Bed::start();
    let (url, ready) = ("http://becomes-grpc.bank/denied", "http://plain.bank/denied");
    eventually("it is in force", || bed.ask("warm-up", ready, &[]).status == 403);
    let answer = bed.ask("made", url, &[]);
    assert!(answer.status == 200 && answer.head.contains("grpc-status: 7"), "{answer:?}");
    for (proxy, by) in [(&bed.web, "local"), (&bed.caller, "peer")] {
        let line = line_of(proxy, "made");
        let said = (&line["outcome"], &line["reason"], &line["reason_by"]);
        assert_eq!(said, (&"refused".into(), &"access_denied".into(), &by.into()), "{line:#}");
    }
}

/// The same where identities and tokens decide.
#[test]
fn a_refused_identity_or_token_has_one_reason_on_both_sides() {
    let mut mesh = Mesh::start("h1", &["--mtls", "strict"], &[]);
    mesh.plane.write("keys.json", &Issuer::new("key").key_set());
    let policy = "apiVersion: outrigger.dev/v1alpha1\nkind: AccessPolicy\n\
                  metadata: {name: web, namespace: bank}\n\
                  spec:\n  selector: {matchLabels: {app: web}}\n  default: Allow\n  jwt:\n  \
                  - {issuer: https://id.bank, audiences: [web], jwks: {file: keys.json}, required: true}\n";
    mesh.plane.write("policy.yaml", policy);
    let ask = |proxy: &Proxy, id: &str, more: &[&str]| {
        let id = format!("x-request-id: {id}");
        Curl::through(proxy).args(&["-H", &id]).args(more).get("http://web.bank/")
    };
    ask(&mesh.caller, "first", &[]);
    let line = line_of(&mesh.caller, "first");
    assert!(line["tls_us"].as_u64() > Some(0), "it has waited for a handshake: {line:#}");
    assert!(line["tls_us"].as_u64() <= line["connect_us"].as_u64(), "{line:#}");
    eventually("a token is required", || ask(&mesh.caller, "warm-up", &[]).status == 401);
    let line = line_of(&mesh.caller, "warm-up");
    assert_eq!(line["tls_us"], Value::Null, "the connection was there: {line:#}");
    for (id, reason, header) in [
        ("no-token", "token_missing", "x-other: x"),
        ("bad-token", "token_invalid", "authorization: Bearer x.y.z"),
    ] {
        let (client, server) = (mesh.caller.metrics(), mesh.web.metrics());
        let answer = ask(&mesh.caller, id, &["-H", header]);
        assert!(answer.status == 401 && answer.body.contains(reason), "{answer:?}");
        check(&mesh.caller, "the client side", id, &client, &["refused", "4xx", reason, "peer"]);
        check(&mesh.web, "the server side", id, &server, &["refused", "4xx", reason, "local"]);
    }
    // Who brings no certificate has no request to name; its connection is counted and logged.
    let failed = ["outcome=\"refused\"", "reason=\"tls_handshake_failed\",reason_by=\"local\""];
    assert_eq!(mesh.web.count("outrigger_requests_total", &failed), 0.0);
    raw(mesh.web.inbound, b"\x16\x03\x01\x00\x05hello", Duration::from_secs(5));
    eventually("it is counted", || mesh.web.count("outrigger_requests_total", &failed) == 1.0);
    mesh.web.wait_log(&["\"reason\":\"tls_handshake_failed\",\"reason_by\":\"local\""]);
    // Somebody else answers at the address of the called workload.
    mesh.web.process().kill();
    let thief = Echo::start("thief");
    let inbound = local(mesh.web.inbound).to_string();
    let ports = [format!("{}=h1:main", thief.port)];
    let thief = Proxy::beside(&mesh.plane, "thief", &ports, &["--inbound", &inbound]);
    let client = mesh.caller.metrics();
    assert_eq!(ask(&mesh.caller, "thief", &[]).status, 503);
    let said = ["failure", "5xx", "upstream_identity_mismatch", "local"];
    check(&mesh.caller, "the client side", "thief", &client, &said);
    check(&thief, "the thief", "thief", "", &NOTHING);
}

#[test]
fn each_attempt_is_told_with_its_end_and_waits_by_what_was_waited_for() {
    let bed = Bed::start();
    eventually("the policies are in force", || {
        bed.ask("warm-up", "http://repeats.bank/fail-once", &[]).status == 200
            && bed.ask("warm-up", "http://hedges.bank/", &[]).status == 200
    });
    bed.ask("twice", "http://repeats.bank/fail-once", &[]);
    let line = line_of(&bed.caller, "twice");
    let earlier = line["earlier_attempts"].as_array().expect("the first attempt");
    assert_eq!(earlier.len(), 1, "{line:#}");
    assert_eq!((&earlier[0]["status"], &earlier[0]["end"]), (&503.into(), &"retried".into()));
    assert_eq!(earlier[0]["reason"], Value::Null, "the app's own failure has none");
    assert!(line["first_byte_us"].as_u64() > earlier[0]["duration_us"].as_u64(), "{line:#}");
    for attempt in [&earlier[0], &line] {
        let how = (&attempt["chosen_by"], &attempt["upstream_protocol"]);
        assert_eq!(how, (&"load".into(), &"hop".into()), "{attempt:#}");
    }
    assert_eq!(line["not_retried"], Value::Null, "{line:#}");
    assert_eq!(earlier[0]["request_bytes"], Value::Null, "a GET has no body");
    bed.ask("body", "http://repeats.bank/fail-once", &["-X", "PUT", "-d", "0123456789"]);
    let line = line_of(&bed.caller, "body");
    assert_eq!(line["earlier_attempts"][0]["request_bytes"], 10, "{line:#}");
    bed.ask("in-vain", "http://repeats.bank/fail", &[]);
    let line = line_of(&bed.caller, "in-vain");
    assert_eq!(line["not_retried"], "attempts_used", "{line:#}");

    bed.ask("trip", "http://breaks.bank/fail", &[]);
    eventually("the breaker is open", || {
        bed.ask("open", "http://breaks.bank/", &[]);
        lines(&bed.caller, "open").pop().is_some_and(|line| line["reason"] == "breaker_open")
    });
    let line = line_of(&bed.caller, "open");
    assert_eq!(line["policy"], "TrafficPolicy spec.breaker");

    bed.ask("slow", "http://plain.bank/slow", &[]);
    let line = line_of(&bed.caller, "slow");
    assert!(line["first_byte_us"].as_u64() >= Some(1_500_000), "{line:#}");
    assert_eq!(line["queue_us"], Value::Null, "{line:#}");
}

/// The called proxy knows when the time of an attempt is over as well, and may be the first to say so.
#[test]
fn an_attempt_that_both_proxies_end_at_once_is_out_of_its_own_time() {
    let bed = Bed::start();
    eventually("the policy is in force", || {
        bed.ask("warm-up", "http://hurries.bank/slow", &[]).status == 504
    });
    bed.ask("both", "http://hurries.bank/slow?[1-300]", &[]);
    eventually("all have ended", || lines(&bed.caller, "both").len() == 300);
    for line in lines(&bed.caller, "both") {
        assert_eq!(line["reason"], "attempt_timeout", "{line:#}");
    }
}

/// What is counted is what has happened, exactly.
#[test]
fn success_rates_of_both_sides_are_the_truth() {
    let bed = Bed::start();
    let kinds = [
        "http://plain.bank/",
        "http://plain.bank/fail",
        "http://repeats.bank/fail-once",
        "http://repeats.bank/fail",
        "http://tries-once.bank/slow",
        "http://plain.bank/denied",
        "canceled",
    ];
    eventually("everything is in force", || {
        bed.ask("warm-up", "http://plain.bank/denied", &[]).status == 403
            && bed.ask("warm-up", "http://repeats.bank/fail-once", &[]).status == 200
            && bed.ask("warm-up", "http://tries-once.bank/", &[]).status == 200
    });
    let count = |proxy: &Proxy, outcome: &str| {
        proxy.count("outrigger_requests_total", &[&format!("outcome=\"{outcome}\"")])
    };
    let outcomes = ["success", "failure", "refused", "canceled"];
    let before = [&bed.caller, &bed.web].map(|proxy| outcomes.map(|outcome| count(proxy, outcome)));
    let mut random = Random(7);
    let (mut client, mut server) = ([0.0; 4], [0.0; 4]);
    for n in 0..120 {
        let kind = random.of(&kinds);
        let id = format!("truth-{n}");
        match kind {
            "canceled" => give_up(&bed, &id),
            url => drop(bed.ask(&id, url, &[])),
        }
        let (of_client, of_server): (usize, &[usize]) = match kind {
            "http://plain.bank/" => (0, &[0]),
            "http://plain.bank/fail" => (1, &[1]),
            "http://repeats.bank/fail-once" => (0, &[1, 0]),
            "http://repeats.bank/fail" => (1, &[1, 1]),
            "http://tries-once.bank/slow" => (1, &[1]),
            "http://plain.bank/denied" => (2, &[2]),
            _ => (3, &[3]),
        };
        client[of_client] += 1.0;
        of_server.iter().for_each(|of| server[*of] += 1.0);
    }
    for (at, (proxy, truth)) in [(&bed.caller, client), (&bed.web, server)].into_iter().enumerate()
    {
        let mut seen = [0.0; 4];
        eventually(&format!("all is counted: {truth:?}"), || {
            for (i, outcome) in outcomes.iter().enumerate() {
                seen[i] = count(proxy, outcome) - before[at][i];
            }
            seen.iter().sum::<f64>() >= truth.iter().sum::<f64>()
        });
        assert_eq!(seen, truth, "side {at}: success, failure, refused, canceled");
    }
}
