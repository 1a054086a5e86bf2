//! Retries, budgets, breakers and bulkheads, as written into the folder of manifests.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use outrigger_tests::app::{Echo, tcp, tcp_on};
use outrigger_tests::client::{Answer, Curl, Load};
use outrigger_tests::eventually;
use outrigger_tests::process::{ControlPlane, Proxy, free_port};
use serde_json::Value;

use crate::unmeshed;

pub fn policy(spec: &str) -> String {
    format!(
        "apiVersion: outrigger.dev/v1alpha1\nkind: TrafficPolicy\n\
         metadata: {{name: app, namespace: bank}}\nspec:\n  \
         targetRefs: [{{kind: Service, group: \"\", name: app}}]\n{spec}"
    )
}

/// A caller, and an app without a sidecar that it calls.
struct Pair {
    caller: Proxy,
    plane: ControlPlane,
}

impl Pair {
    fn start(port: u16, spec: &str) -> Self {
        let plane = ControlPlane::start(&[
            ("app.yaml", &unmeshed("app", "http", port)),
            ("policy.yaml", &policy(spec)),
        ]);
        let caller = Proxy::caller(&plane, &[]);
        Self { caller, plane }
    }

    fn ask(&self, path: &str, more: &[&str]) -> Answer {
        Curl::through(&self.caller).args(more).get(&format!("http://app.bank{path}"))
    }

    fn policies(&self) -> Value {
        let (_, text) =
            outrigger_tests::client::http_get(self.caller.admin, "/policies").unwrap_or_default();
        serde_json::from_str::<Value>(&text).unwrap_or_default()["services"][0].take()
    }
}

/// An HTTP/1.1 app whose answers to each request are made by `answer`, given how many came before.
pub fn scripted(
    answer: impl Fn(u64) -> &'static str + Send + Sync + 'static,
) -> (u16, Arc<AtomicU64>) {
    let count = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&count);
    let port = tcp(move |mut stream| {
        let mut head = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            match stream.read(&mut buffer) {
                Ok(n) if n > 0 => head.extend_from_slice(&buffer[..n]),
                _ => return,
            }
            if !head.windows(4).any(|end| end == b"\r\n\r\n") {
                continue;
            }
            head.clear();
            let text = answer(counted.fetch_add(1, Relaxed));
            if text.is_empty() || stream.write_all(text.as_bytes()).is_err() {
                return;
            }
        }
    });
    (port, count)
}

/// A service `app` with two endpoints without a sidecar.
fn two_endpoints(first: u16, second: u16) -> String {
    let manifest = unmeshed("app", "http", first);
    let slice = manifest
        .split("---\n")
        .nth(1)
        .expect("its slice")
        .replace("metadata: {name: app,", "metadata: {name: app-2,")
        .replace(&format!("port: {first}"), &format!("port: {second}"));
    format!("{manifest}---\n{slice}")
}

pub const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
pub const UNAVAILABLE: &str = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n";

const RETRIES: &str = "  retries: {maxAttempts: 3, when: {statuses: [503], reset: true}, \
                       backoff: {base: 1ms, max: 5ms}}\n";

#[test]
fn what_a_policy_names_is_tried_again_and_what_could_do_harm_is_not() {
    let (port, count) = scripted(|n| if n % 3 == 2 { OK } else { UNAVAILABLE });
    let pair = Pair::start(port, RETRIES);
    assert_eq!(pair.ask("/", &[]).status, 200);
    assert_eq!(count.load(Relaxed), 3);
    pair.caller.wait_log(&["\"reason\":\"retried\"", "\"attempts\":3"]);
    let answer = pair.ask("/", &["-d", "x"]);
    assert_eq!((answer.status, count.load(Relaxed)), (503, 4), "a POST is not sent twice");
    let skipped = pair.caller.count("outrigger_retries_skipped_total", &["not_idempotent"]);
    assert_eq!(skipped, 1.0);
    let answer = pair.ask("/", &["-d", "x", "-H", "Idempotency-Key: 7"]);
    assert_eq!((answer.status, count.load(Relaxed)), (200, 6), "one with a key is");
}

#[test]
fn without_a_policy_nothing_that_may_have_been_processed_is_sent_again() {
    let (port, count) = scripted(|_| "");
    let plane = ControlPlane::start(&[("app.yaml", &unmeshed("app", "http", port))]);
    let pair = Pair { caller: Proxy::caller(&plane, &[]), plane };
    let answer = pair.ask("/", &[]);
    assert_eq!((answer.status, count.load(Relaxed)), (502, 1), "{answer:?}");
    assert!(answer.body.contains("upstream_reset_ambiguous"), "{answer:?}");
}

#[test]
fn retries_stay_within_their_budget() {
    let (port, count) = scripted(|_| UNAVAILABLE);
    let pair =
        Pair::start(port, &format!("{RETRIES}  retryBudget: {{percent: 20, minPerSecond: 0}}\n"));
    for _ in 0..50 {
        assert_eq!(pair.ask("/", &[]).status, 503);
    }
    let sent = count.load(Relaxed);
    assert!((51..=60).contains(&sent), "{sent} of 50 requests");
    assert!(pair.caller.count("outrigger_retries_skipped_total", &["no_budget"]) >= 40.0);
}

#[test]
fn a_breaker_opens_answers_at_once_and_closes_after_a_trial() {
    let failing = Arc::new(AtomicBool::new(true));
    let state = Arc::clone(&failing);
    let (port, count) = scripted(move |_| if state.load(Relaxed) { UNAVAILABLE } else { OK });
    let pair = Pair::start(port, "  breaker: {consecutiveFailures: 3, open: {fixed: 2s}}\n");
    for _ in 0..3 {
        assert_eq!(pair.ask("/", &[]).status, 503);
    }
    let answer = pair.ask("/", &[]);
    assert!(answer.body.contains("breaker_open"), "{answer:?}");
    assert!(answer.head.to_ascii_lowercase().contains("retry-after: "), "{answer:?}");
    assert_eq!(count.load(Relaxed), 3, "it was not asked");
    assert_eq!(pair.policies()["breaker"]["state"], "open");
    assert_eq!(pair.caller.count("outrigger_breaker_state", &["bank/app:80"]), 2.0);
    // Another number does not close it.
    pair.plane
        .write("policy.yaml", &policy("  breaker: {consecutiveFailures: 4, open: {fixed: 2s}}\n"));
    failing.store(false, Relaxed);
    eventually("a trial closes it", || pair.ask("/", &[]).status == 200);
    assert_eq!(pair.policies()["breaker"]["state"], "closed");
    for words in [["breaker open", "TooMany"], ["breaker closed", "half_open"]] {
        pair.caller.wait_log(&words);
    }
}

#[test]
fn an_endpoint_that_fails_while_others_do_not_is_ejected_and_comes_back() {
    let failing = Arc::new(AtomicBool::new(true));
    let state = Arc::clone(&failing);
    let (bad, count) = scripted(move |_| if state.load(Relaxed) { UNAVAILABLE } else { OK });
    let good = Echo::start("good");
    let manifest = two_endpoints(good.port, bad);
    let spec = "  outlierEjection: {consecutiveFailures: 2, baseEjection: 1s, maxEjection: 2s, \
                maxEjectedPercent: 50}\n";
    let plane = ControlPlane::start(&[("app.yaml", &manifest), ("policy.yaml", &policy(spec))]);
    let pair = Pair { caller: Proxy::caller(&plane, &[]), plane };
    eventually("it is ejected", || {
        pair.ask("/", &[]);
        pair.policies()["ejected"][0]["cause"].is_string()
    });
    let failed = count.load(Relaxed);
    failing.store(false, Relaxed);
    eventually("it is reinstated after a trial", || {
        pair.ask("/", &[]);
        pair.policies()["ejected"] == serde_json::json!([])
    });
    assert!(failed >= 2 && count.load(Relaxed) > failed);
    pair.caller.wait_log(&["endpoint ejected"]);
    pair.caller.wait_log(&["endpoint reinstated"]);
}

#[test]
fn an_endpoint_that_refuses_is_not_popular_for_being_quick() {
    let good = Echo::start("good");
    let manifest = two_endpoints(good.port, free_port());
    let plane = ControlPlane::start(&[
        ("app.yaml", &manifest),
        ("policy.yaml", &policy("  retries: {maxAttempts: 1}\n")),
    ]);
    let pair = Pair { caller: Proxy::caller(&plane, &[]), plane };
    let failed = (0..60).filter(|_| pair.ask("/", &[]).status != 200).count();
    assert!((1..=5).contains(&failed), "{failed} of 60 failed");
}

#[test]
fn no_more_are_in_flight_than_a_limit_lets() {
    let app = Echo::start("app");
    let pair = Pair::start(app.port, "  limits: {maxInFlight: 2, maxPending: 1}\n");
    assert_eq!(pair.ask("/", &[]).status, 200);
    let began = Instant::now();
    let answers: Vec<_> = thread::scope(|scope| {
        let ask = || pair.ask("/sleep/1000", &[]);
        let asked: Vec<_> = (0..6).map(|_| scope.spawn(ask)).collect();
        asked.into_iter().map(|one| one.join().expect("an answer")).collect()
    });
    let served = answers.iter().filter(|answer| answer.status == 200).count();
    let refused = answers.iter().filter(|a| a.body.contains("too_many_in_flight")).count();
    assert_eq!((served, refused), (3, 3), "{answers:?}");
    assert!(began.elapsed() >= Duration::from_secs(2), "one waited for its turn");
    assert_eq!(pair.policies()["inFlight"], 0);
}

#[test]
fn a_slow_attempt_is_given_up_and_made_elsewhere() {
    let good = Echo::start("good");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let slow = tcp_on(listener, |mut stream| {
        // Reads and never answers.
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
    });
    let manifest = two_endpoints(good.port, slow);
    let spec = "  timeouts: {attempt: 300ms}\n  retries: {maxAttempts: 2, when: {timeout: true}}\n";
    let plane = ControlPlane::start(&[("app.yaml", &manifest), ("policy.yaml", &policy(spec))]);
    let pair = Pair { caller: Proxy::caller(&plane, &[]), plane };
    for _ in 0..10 {
        assert_eq!(pair.ask("/", &[]).status, 200);
    }
    assert!(pair.caller.count("outrigger_retries_total", &[]) >= 1.0);
}

#[test]
fn a_second_try_wins_where_the_first_one_hangs() {
    let good = Echo::start("good");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let hangs = tcp_on(listener, |mut stream| {
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
    });
    let manifest = two_endpoints(good.port, hangs);
    let spec = "  deadline: 2s\n  hedge: {after: 50ms}\n";
    let plane = ControlPlane::start(&[("app.yaml", &manifest), ("policy.yaml", &policy(spec))]);
    let mut pair = Pair { caller: Proxy::caller(&plane, &[]), plane };
    let won = |pair: &Pair| pair.caller.count("outrigger_hedges_total", &["won"]);
    eventually("one has won", || {
        let answer = pair.ask("/", &["-X", "PUT", "-d", "x"]);
        assert_eq!(answer.status, 200, "{answer:?}");
        assert!(answer.body.contains("\"body\":\"x\""), "{answer:?}");
        won(&pair) >= 1.0
    });
    pair.caller.wait_log(&["a hedged attempt won over", "\"attempts\":2", "\"end\":\"outrun\""]);
    assert_eq!(pair.policies()["inFlight"], 0);
    // What could do harm twice waits, and without a budget everything does.
    // Each with a proxy that does not know yet which one hangs.
    pair.caller = Proxy::caller(&pair.plane, &[]);
    eventually("a POST hangs", || pair.ask("/", &["-d", "x"]).status == 504);
    assert_eq!(won(&pair), 0.0);
    let none = format!("{spec}  retryBudget: {{percent: 0, minPerSecond: 0}}\n");
    pair.plane.write("policy.yaml", &policy(&none));
    pair.caller = Proxy::caller(&pair.plane, &[]);
    eventually("a request hangs", || pair.ask("/", &[]).status == 504);
    assert!(pair.caller.count("outrigger_hedges_total", &["no_budget"]) >= 1.0);
}

#[test]
fn a_second_attempt_that_loses_is_told_of() {
    let (asked, over) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
    // Who is asked first answers when the other one is asked too, and that one not before the end.
    let [one, other] = [(); 2].map(|()| {
        let (asked, over) = (Arc::clone(&asked), Arc::clone(&over));
        let answer = move |_| {
            match asked.fetch_add(1, Relaxed) {
                0 => eventually("a second attempt is made", || asked.load(Relaxed) == 2),
                _ => eventually("the first one has won", || over.load(Relaxed)),
            };
            OK
        };
        scripted(answer).0
    });
    let manifest = two_endpoints(one, other);
    let spec = "  deadline: 2s\n  hedge: {after: 50ms}\n";
    let plane = ControlPlane::start(&[("app.yaml", &manifest), ("policy.yaml", &policy(spec))]);
    let pair = Pair { caller: Proxy::caller(&plane, &[]), plane };
    assert_eq!(pair.ask("/", &[]).status, 200);
    over.store(true, Relaxed);
    assert_eq!(pair.caller.count("outrigger_hedges_total", &["lost"]), 1.0);
    let [first, second] = [one, other].map(|port| format!("\"endpoint\":\"127.0.0.1:{port}\""));
    pair.caller.wait_log(&["\"attempts\":2", "\"end\":\"outrun\"", &first, &second]);
}

/// Too seldom late to count for the percentile.
#[expect(clippy::disallowed_methods, reason = "an app that is late, not a wait")]
fn late_at_times(count: u64) -> &'static str {
    if count % 40 == 39 {
        thread::sleep(Duration::from_secs(1));
    }
    OK
}

#[test]
fn the_percentile_that_was_seen_decides_when_a_second_try_is_made() {
    let (one, _) = scripted(late_at_times);
    let (other, _) = scripted(late_at_times);
    let manifest = two_endpoints(one, other);
    let spec = "  hedge: {afterP95: {min: 5ms}}\n";
    let plane = ControlPlane::start(&[("app.yaml", &manifest), ("policy.yaml", &policy(spec))]);
    let pair = Pair { caller: Proxy::caller(&plane, &[]), plane };
    eventually("a second attempt wins", || {
        assert_eq!(pair.ask("/", &[]).status, 200);
        pair.caller.count("outrigger_hedges_total", &["won"]) >= 1.0
    });
}

#[test]
fn a_policy_is_changed_under_load_within_a_second_and_resets_nothing() {
    let app = Echo::start("app");
    let listen = free_port();
    let breaker = "  breaker: {consecutiveFailures: 1000, open: {fixed: 30s}}\n";
    let plane = ControlPlane::start(&[
        ("app.yaml", &unmeshed("app", "http", app.port)),
        ("policy.yaml", &policy(breaker)),
        // Open from the first failure on, and for long: nothing listens there.
        ("dead.yaml", &unmeshed("dead", "http", 9)),
        ("dead-policy.yaml", &dead_policy("30s", 1)),
    ]);
    let to = format!("{}=app.bank:80", outrigger_tests::process::local(listen));
    let caller = Proxy::caller(&plane, &["--listen", &to, "--access-log", "errors"]);
    let pair = Pair { caller, plane };
    let dead = || Curl::through(&pair.caller).get("http://dead.bank/");
    assert_eq!(dead().status, 503);
    assert!(dead().body.contains("breaker_open"));
    let load = Load::at_rate(listen, 4, 400);
    load.further(200);
    for deadline in ["150ms", "5s", "140ms", "6s"] {
        let began = Instant::now();
        pair.plane.write("policy.yaml", &policy(&format!("  deadline: {deadline}\n{breaker}")));
        let short = deadline.ends_with("ms");
        eventually("it is in force", || (pair.ask("/sleep/400", &[]).status == 504) == short);
        let took = began.elapsed();
        assert!(took < Duration::from_secs(1), "{deadline} took {took:?}");
        pair.plane.write("dead-policy.yaml", &dead_policy("40s", 2));
        load.further(200);
    }
    assert!(dead().body.contains("breaker_open"), "the breaker has not forgotten");
    load.stop_unharmed();
}

fn dead_policy(open: &str, failures: u32) -> String {
    let spec = format!("  breaker: {{consecutiveFailures: {failures}, open: {{fixed: {open}}}}}\n");
    policy(&spec).replace("name: app", "name: dead")
}
