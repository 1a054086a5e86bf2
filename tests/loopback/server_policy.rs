//! What a workload lets in: rate limits and a limit of requests at a time, as a ServerPolicy in the
//! folder of manifests says, kept by the server's proxy.

use std::io::{BufRead, BufReader, Write};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};

use outrigger_tests::app::{Echo, tcp};
use outrigger_tests::client::{Answer, Curl};
use outrigger_tests::eventually;
use outrigger_tests::process::{ControlPlane, Proxy, local};
use serde_json::Value;

use crate::{Mesh, service};

fn policy(spec: &str) -> String {
    format!(
        "apiVersion: outrigger.dev/v1alpha1\nkind: ServerPolicy\n\
         metadata: {{name: web, namespace: bank}}\n\
         spec:\n  targetRefs: [{{group: \"\", kind: Service, name: web}}]\n{spec}\n"
    )
}

fn rate_limit(more: &str) -> String {
    policy(&format!("  rateLimits: [{{name: all, {more}}}]"))
}

fn get(proxy: &Proxy, path: &str, headers: &[&str]) -> Answer {
    let args: Vec<_> = headers.iter().flat_map(|header| ["-H", header]).collect();
    Curl::through(proxy).args(&args).get(&format!("http://web.bank{path}"))
}

fn header<'a>(answer: &'a Answer, name: &str) -> Option<&'a str> {
    answer.head.lines().find_map(|line| {
        let (of, value) = line.split_once(": ")?;
        of.eq_ignore_ascii_case(name).then_some(value.trim())
    })
}

/// What the server's proxy says is in force at its port.
fn in_force(proxy: &Proxy) -> Value {
    let answer = Curl::direct().get(&format!("http://{}/policies", local(proxy.admin)));
    let all: Value = serde_json::from_str(&answer.body).unwrap_or_default();
    all["server"][0].clone()
}

#[track_caller]
fn apply(
    (plane, web): (&ControlPlane, &Proxy),
    policy: &str,
    what: &str,
    holds: impl Fn(&Value) -> bool,
) {
    plane.write("policy.yaml", policy);
    eventually(what, || holds(&in_force(web)));
}

#[test]
fn who_sends_too_much_is_told_when_to_come_back() {
    let mesh = Mesh::start("h1");
    let three = rate_limit("requests: 3, period: 1h");
    apply((&mesh.plane, &mesh.web), &three, "the limit is in force", |port| {
        port["rateLimits"][0]["left"] == 3
    });
    for left in ["2", "1", "0"] {
        let answer = get(&mesh.caller, "/", &[]);
        assert_eq!(answer.status, 200, "{answer:?}");
        let quota = header(&answer, "ratelimit").expect("what is left");
        assert!(quota.starts_with(&format!("\"all\";r={left};t=")), "{quota}");
        assert_eq!(header(&answer, "ratelimit-policy"), None);
    }
    let refused = get(&mesh.caller, "/", &[]);
    assert_eq!(refused.status, 429, "{refused:?}");
    assert!(
        refused.body.contains("rate_limited: rate limit \"all\" (3 per 1h) exceeded"),
        "{refused:?}"
    );
    assert_eq!(header(&refused, "ratelimit-policy"), Some("\"all\";q=3;w=3600"));
    let wait = header(&refused, "retry-after").and_then(|wait| wait.parse::<u64>().ok());
    assert!(wait.is_some_and(|wait| (1_000..=1_200).contains(&wait)), "{refused:?}");
    mesh.web.wait_log(&["\"reason\":\"rate_limited\"", "\"outcome\":\"refused\""]);
    assert_eq!(mesh.app.requests.load(Relaxed), 3, "the fourth never reached the app");

    let name = "outrigger_rate_limit_requests_total";
    assert_eq!(mesh.web.count(name, &["limit=\"all\"", "decision=\"admitted\""]), 3.0);
    assert!(mesh.web.count(name, &["service=\"bank/web:80\"", "decision=\"refused\""]) >= 1.0);

    // Other numbers hold at once and forget nothing.
    let same = rate_limit("requests: 4, period: 1h, burst: 3");
    apply((&mesh.plane, &mesh.web), &same, "the new limit is in force", |port| {
        port["rateLimits"][0]["requests"] == 4
    });
    assert_eq!(get(&mesh.caller, "/", &[]).status, 429);
    mesh.plane.remove("policy.yaml");
    eventually("there is no limit", || get(&mesh.caller, "/", &[]).status == 200);
}

#[test]
fn the_calling_proxy_slows_down_before_it_is_refused() {
    let mesh = Mesh::start("h1");
    let twenty = rate_limit("requests: 20, period: 1s");
    apply((&mesh.plane, &mesh.web), &twenty, "the limit is in force", |port| {
        port["rateLimits"][0]["left"] == 20
    });
    let end = std::time::Instant::now() + std::time::Duration::from_secs(5);
    let answers: Vec<u16> = thread::scope(|scope| {
        let callers: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let mut answers = Vec::new();
                    while std::time::Instant::now() < end {
                        answers.push(get(&mesh.caller, "/", &[]).status);
                    }
                    answers
                })
            })
            .collect();
        callers.into_iter().flat_map(|caller| caller.join().unwrap()).collect()
    });
    let good = answers.iter().filter(|status| **status == 200).count();
    let refused = answers.len() - good;
    // Five seconds and a burst hold 120; without a pace these callers are refused many hundred times.
    assert!((50..=125).contains(&good), "{good} answered, {refused} refused");
    assert!(refused * 3 < good, "{good} answered, {refused} refused");
    assert!(mesh.caller.count("outrigger_pacing_delayed_total", &["bank/web:80"]) >= 20.0);

    mesh.plane.remove("policy.yaml");
    let paced = || {
        assert_eq!(get(&mesh.caller, "/", &[]).status, 200);
        let shown = Curl::direct().get(&format!("http://{}/policies", local(mesh.caller.admin)));
        shown.body.contains("gapMs")
    };
    eventually("nothing is held up any more", || !paced());
}

#[test]
fn grpc_callers_are_refused_in_their_own_words() {
    let mesh = Mesh::start("grpc");
    let one = rate_limit("requests: 1, period: 1h");
    apply((&mesh.plane, &mesh.web), &one, "the limit is in force", |port| {
        port["rateLimits"][0]["left"] == 1
    });
    let call = |proxy| {
        let args = ["--http2-prior-knowledge", "-H", "content-type: application/grpc", "-d", ""];
        let connect = format!("web.bank:80:{}", local(proxy));
        let args = [&args[..], &["--connect-to", &connect]].concat();
        Curl::direct().args(&args).get("http://web.bank/bank.Web/Get")
    };
    assert_eq!(call(mesh.caller.outbound).status, 200);
    let refused = call(mesh.caller.outbound);
    assert_eq!(refused.status, 200, "{refused:?}");
    assert_eq!(header(&refused, "grpc-status"), Some("8"), "RESOURCE_EXHAUSTED: {refused:?}");
    assert!(header(&refused, "retry-after").is_some(), "{refused:?}");
}

#[test]
fn the_less_important_are_refused_first() {
    let mesh = Mesh::start("h1");
    let limit = rate_limit("requests: 4, period: 1h, strategy: LowPriorityFirst");
    apply((&mesh.plane, &mesh.web), &limit, "the limit is in force", |port| {
        port["rateLimits"][0]["left"] == 4
    });
    let send = |priority| {
        let header = format!("x-outrigger-priority: {priority}");
        get(&mesh.caller, "/", &[&header]).status
    };
    let sheddable: Vec<_> = (0..3).map(|_| send("sheddable")).collect();
    assert_eq!(sheddable, [200, 200, 429]);
    assert_eq!([send("default"), send("critical"), send("critical")], [200, 200, 429]);
}

#[test]
fn each_caller_has_its_own_limit_by_its_proven_identity_or_by_a_header() {
    let app = Echo::start("web");
    let web_service = service("web", "");
    let limit = rate_limit("requests: 2, period: 1h, strategy: PerKey");
    let manifests = [("web.yaml", &*web_service), ("policy.yaml", &limit)];
    let plane = ControlPlane::start_with_identity(&manifests, &["--mtls", "strict"]);
    let web = Proxy::beside(&plane, "web", &[format!("{}=h1:main", app.port)], &[]);
    let [orders, market] = ["orders", "market"].map(|name| Proxy::start(&plane, name, &[]));
    eventually("the limit is in force", || in_force(&web)["rateLimits"][0]["requests"] == 2);
    let send = |proxy, header: &str| get(proxy, "/", &[header]).status;
    assert_eq!([(); 3].map(|()| send(&orders, "x: y")), [200, 200, 429]);
    assert_eq!([(); 3].map(|()| send(&market, "x: y")), [200, 200, 429], "not the other's");

    let by_header = "requests: 2, period: 1h, strategy: PerKey, key: {header: x-api-key}";
    plane.write("policy.yaml", &rate_limit(by_header));
    eventually("the key is another", || {
        in_force(&web)["rateLimits"][0]["key"] == "header x-api-key"
    });
    assert_eq!([(); 3].map(|()| send(&orders, "x-api-key: a")), [200, 200, 429]);
    assert_eq!(send(&market, "x-api-key: a"), 429, "all who have the key");
    assert_eq!(send(&market, "x-api-key: b"), 200);
    assert_eq!(in_force(&web)["rateLimits"][0]["keys"], 2);
}

/// A mesh whose app answers a request to `/hold` only when it is let go.
struct Slow {
    caller: Proxy,
    web: Proxy,
    plane: ControlPlane,
    requests: Arc<AtomicU64>,
    let_go: Arc<(Mutex<bool>, Condvar)>,
}

impl Slow {
    fn start() -> Self {
        let let_go = Arc::new((Mutex::new(false), Condvar::new()));
        let requests = Arc::new(AtomicU64::new(0));
        let (waiting, counting) = (Arc::clone(&let_go), Arc::clone(&requests));
        let port = tcp(move |stream| {
            let mut lines = BufReader::new(&stream).lines().map_while(Result::ok);
            while let Some(first) = lines.next() {
                counting.fetch_add(1, Relaxed);
                while lines.next().is_some_and(|line| !line.is_empty()) {}
                if first.contains("/hold") {
                    let (gone, told) = &*waiting;
                    let gone = gone.lock().expect("the lock");
                    drop(told.wait_while(gone, |gone| !*gone).expect("the lock"));
                }
                let _ = (&stream).write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
            }
        });
        let plane = ControlPlane::start(&[("web.yaml", &service("web", ""))]);
        let web = Proxy::beside(&plane, "web", &[format!("{port}=h1:main")], &[]);
        let caller = Proxy::caller(&plane, &[]);
        Self { caller, web, plane, requests, let_go }
    }

    /// A request at work.
    fn hold(&self) -> JoinHandle<Answer> {
        let held = self.begin("/hold", &[]);
        eventually("it is at work", || self.counted("inFlight") == 1);
        held
    }

    fn let_go(&self) {
        *self.let_go.0.lock().expect("the lock") = true;
        self.let_go.1.notify_all();
    }

    /// A request that may have to wait, from a thread of its own.
    fn begin(&self, path: &'static str, headers: &[&'static str]) -> JoinHandle<Answer> {
        let proxy = format!("http://{}", local(self.caller.outbound));
        let headers = headers.to_vec();
        thread::spawn(move || {
            let mut args = vec!["--proxy", &*proxy];
            args.extend(headers.iter().flat_map(|header| ["-H", header]));
            Curl::direct().args(&args).get(&format!("http://web.bank{path}"))
        })
    }

    fn counted(&self, what: &str) -> u64 {
        in_force(&self.web)["concurrency"][what].as_u64().unwrap_or(99)
    }
}

#[test]
fn more_than_a_port_works_on_waits_and_the_rest_is_refused() {
    let slow = Slow::start();
    let one = policy("  concurrency: {static: 1, maxQueue: 1, maxWait: 10s}");
    apply((&slow.plane, &slow.web), &one, "the limit is in force", |port| {
        port["concurrency"]["limit"] == 1
    });

    let first = slow.hold();
    let second = slow.begin("/", &["x-outrigger-priority: sheddable"]);
    eventually("the second waits", || slow.counted("waiting") == 1);
    let refused = get(&slow.caller, "/", &["x-outrigger-priority: sheddable"]);
    assert_eq!(refused.status, 503, "{refused:?}");
    let why = "overloaded: concurrency limit of 1 reached and 1 requests queued";
    assert!(refused.body.contains(why), "{refused:?}");
    assert_eq!(header(&refused, "retry-after"), Some("1"));

    // A more important one takes the place of who waits, and waits itself.
    let third = slow.begin("/", &["x-outrigger-priority: critical"]);
    let shed = second.join().expect("an answer");
    assert_eq!(shed.status, 503, "{shed:?}");
    slow.let_go();
    for served in [first, third] {
        assert_eq!(served.join().expect("an answer").status, 200);
    }
    eventually("nobody is left", || slow.counted("inFlight") + slow.counted("waiting") == 0);
    assert_eq!(slow.requests.load(Relaxed), 2, "nobody else reached the app");
    slow.web.wait_log(&["\"reason\":\"overloaded\""]);
    assert_eq!(slow.web.count("outrigger_concurrency_limit", &["service=\"bank/web:80\""]), 1.0);
    assert!(slow.web.count("outrigger_concurrency_refused_total", &[]) >= 2.0);
}

#[test]
fn a_queued_request_waits_no_longer_than_its_deadline_and_not_after_it_has_gone() {
    let slow = Slow::start();
    let one = policy("  concurrency: {static: 1, maxQueue: 5, maxWait: 10s}");
    apply((&slow.plane, &slow.web), &one, "the limit is in force", |port| {
        port["concurrency"]["limit"] == 1
    });
    let first = slow.hold();
    let late = get(&slow.caller, "/", &["x-deadline: 200"]);
    assert_eq!(late.status, 504, "{late:?}");
    assert!(late.body.contains("deadline_exceeded"), "{late:?}");
    eventually("its place is free", || slow.counted("waiting") == 0);
    // With HTTP/2 a caller that goes away is seen at once.
    let connect = format!("web.bank:80:{}", local(slow.caller.outbound));
    let impatient = ["--http2-prior-knowledge", "--max-time", "0.5", "--connect-to", &connect];
    let gone = Curl::direct().args(&impatient).get("http://web.bank/");
    assert_eq!(gone.exit, Some(28), "{gone:?}");
    eventually("its place is free", || slow.counted("waiting") == 0);
    // A higher limit lets those in that wait.
    let waiting = slow.begin("/", &[]);
    eventually("one waits", || slow.counted("waiting") == 1);
    let two = policy("  concurrency: {static: 2, maxQueue: 5, maxWait: 10s}");
    apply((&slow.plane, &slow.web), &two, "the limit is higher", |port| {
        port["concurrency"]["limit"] == 2
    });
    assert_eq!(waiting.join().expect("an answer").status, 200);
    eventually("only the first is at work", || slow.counted("inFlight") == 1);
    slow.let_go();
    assert_eq!(first.join().expect("an answer").status, 200);
    eventually("nobody is left", || slow.counted("inFlight") == 0);
}
