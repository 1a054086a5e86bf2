//! Active checks: who answers them badly gets no requests, whatever else it would answer.

use std::convert::Infallible;
use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use outrigger_tests::app::{Echo, tcp};
use outrigger_tests::client::{Curl, http_get};
use outrigger_tests::eventually;
use outrigger_tests::process::{ControlPlane, Proxy};
use serde_json::Value;

use crate::endpoints::service as unmeshed;
use crate::resilience::policy;
use crate::service;

/// An HTTP/1.1 app that is fine, and says of itself at `/healthz` what it is told to.
struct App {
    port: u16,
    failing: Arc<AtomicBool>,
    checks: Arc<AtomicU64>,
    requests: Arc<AtomicU64>,
}

impl App {
    fn start() -> Self {
        let (failing, checks, requests) = (Arc::default(), Arc::default(), Arc::default());
        let app = Self { port: 0, failing, checks, requests };
        let (failing, checks) = (Arc::clone(&app.failing), Arc::clone(&app.checks));
        let requests = Arc::clone(&app.requests);
        let port = tcp(move |mut stream| {
            let mut buffer = [0; 4096];
            while let Ok(n) = stream.read(&mut buffer)
                && n > 0
            {
                let is_check = buffer.starts_with(b"GET /healthz ");
                let count = if is_check { &checks } else { &requests };
                count.fetch_add(1, Relaxed);
                let status =
                    if is_check && failing.load(Relaxed) { "500 Failing" } else { "200 OK" };
                let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
                if stream.write_all(answer.as_bytes()).is_err() {
                    return;
                }
            }
        });
        Self { port, ..app }
    }

    fn set_failing(&self, failing: bool) {
        self.failing.store(failing, Relaxed);
    }
}

const OFTEN: &str = "interval: 100ms, unhealthyAfter: 2, healthyAfter: 2";

fn checks(probe: &str) -> String {
    policy(&format!("  healthCheck: {{{probe}, {OFTEN}}}\n"))
}

fn ask(caller: &Proxy) -> u16 {
    Curl::through(caller).get("http://app.bank/").status
}

fn unhealthy(caller: &Proxy) -> f64 {
    caller.count("outrigger_endpoints_checked", &["bank/app:80", "unhealthy"])
}

/// What `/policies` says of the checks of the one service that is called.
fn shown(caller: &Proxy) -> Value {
    let (_, text) = http_get(caller.admin, "/policies").unwrap_or_default();
    serde_json::from_str::<Value>(&text).unwrap_or_default()["services"][0]["health"].take()
}

#[test]
fn an_endpoint_that_says_it_is_failing_is_left_out_and_comes_back() {
    let (good, other) = (App::start(), App::start());
    let plane = ControlPlane::start(&[
        ("app.yaml", &unmeshed(&[(good.port, "a"), (other.port, "a")])),
        ("policy.yaml", &checks("http: {path: /healthz}")),
    ]);
    let caller = Proxy::caller(&plane, &[]);
    assert_eq!(good.checks.load(Relaxed), 0, "nobody calls it yet");
    assert_eq!(ask(&caller), 200);
    eventually("both are checked", || {
        good.checks.load(Relaxed) > 2 && other.checks.load(Relaxed) > 2
    });
    assert_eq!(unhealthy(&caller), 0.0);
    other.set_failing(true);
    eventually("it is left out", || unhealthy(&caller) == 1.0);
    caller.wait_log(&["endpoint unhealthy", "answered 500", "bank/app:80"]);
    let health = shown(&caller);
    assert_eq!(health["probe"], "http /healthz");
    let all = health["endpoints"].as_array().cloned().unwrap_or_default();
    let failing = all.iter().find(|one| one["healthy"] == false).expect("the failing one");
    assert_eq!(failing["lastCheck"], "answered 500");
    assert!(failing["forMs"].as_u64().is_some(), "{failing}");
    let before = other.requests.load(Relaxed);
    assert!((0..30).all(|_| ask(&caller) == 200));
    assert_eq!(other.requests.load(Relaxed), before, "it would have answered 200");
    other.set_failing(false);
    eventually("it is healthy again", || unhealthy(&caller) == 0.0);
    eventually("and is asked", || ask(&caller) == 200 && other.requests.load(Relaxed) > before);
    // Neither checks nor their failures are calls of the service.
    assert_eq!(caller.count("outrigger_requests_total", &["outcome=\"failure\""]), 0.0);
    let asked = good.requests.load(Relaxed) + other.requests.load(Relaxed);
    assert_eq!(caller.count("outrigger_requests_total", &["outbound"]), asked as f64);
    assert!(caller.count("outrigger_health_checks_total", &["bad"]) >= 2.0);

    plane.write("policy.yaml", &policy("  limits: {maxInFlight: 100}\n"));
    eventually("nothing is checked any more", || shown(&caller).is_null());
    let ended = (Instant::now(), good.checks.load(Relaxed));
    eventually("several intervals have passed", || {
        ask(&caller) == 200 && ended.0.elapsed() > Duration::from_millis(500)
    });
    assert!(good.checks.load(Relaxed) <= ended.1 + 1, "one may have been under way");
}

#[test]
fn checks_that_speak_against_most_of_a_service_are_ignored() {
    let (one, two) = (App::start(), App::start());
    let check = checks("http: {path: /healthz}");
    let plane = ControlPlane::start(&[
        ("app.yaml", &unmeshed(&[(one.port, "a"), (two.port, "a")])),
        ("policy.yaml", &check),
    ]);
    one.set_failing(true);
    two.set_failing(true);
    let caller = Proxy::caller(&plane, &[]);
    assert_eq!(ask(&caller), 200, "healthy until proven otherwise");
    eventually("both are unhealthy", || unhealthy(&caller) == 2.0);
    assert!((0..10).all(|_| ask(&caller) == 200));
    assert!(caller.count("outrigger_lb_panic_total", &["bank/app:80"]) >= 10.0);
    plane.write("policy.yaml", &format!("{check}  panicThreshold: 0\n"));
    eventually("what checks say always counts", || ask(&caller) == 503);
    let answer = Curl::through(&caller).get("http://app.bank/");
    assert!(answer.body.contains("no_endpoint"), "{answer:?}");
    assert!(answer.body.contains("ejected or unhealthy"), "{answer:?}");
    one.set_failing(false);
    eventually("the one that is well is asked", || ask(&caller) == 200);
    // An endpoint that answers nobody.
    plane.write("policy.yaml", &checks("tcp: {}"));
    eventually("both take connections", || unhealthy(&caller) == 0.0);
}

#[test]
fn checks_reach_the_app_behind_a_proxy_as_the_caller() {
    let app = Echo::start("app");
    let access = |to: &str| {
        format!(
            "apiVersion: outrigger.dev/v1alpha1\nkind: AccessPolicy\n\
             metadata: {{name: app, namespace: bank}}\nspec:\n  \
             selector: {{matchLabels: {{app: app}}}}\n  rules:\n  - action: Allow\n    \
             from: [{{serviceAccounts: [orders]}}]\n{to}"
        )
    };
    let plane = ControlPlane::start_with_identity(
        &[
            ("app.yaml", &service("app", "")),
            ("policy.yaml", &checks("http: {path: /healthz}")),
            ("access.yaml", &access("    to: [{paths: [{prefix: /accounts}]}]\n")),
        ],
        &["--mtls", "strict"],
    );
    let port = format!("{}=h1:main", app.port);
    let beside = Proxy::beside(&plane, "app", &[port], &[]);
    let caller = Proxy::start(&plane, "orders", &[]);
    let asks = || Curl::through(&caller).get("http://app.bank/accounts").status;
    assert_eq!(asks(), 200);
    eventually("what a policy refuses is a failure", || unhealthy(&caller) == 1.0);
    caller.wait_log(&["endpoint unhealthy", "access_denied"]);
    assert_eq!(asks(), 200, "one of one: checks are ignored");
    assert_eq!(app.requests.load(Relaxed), 2, "no check has reached the app");
    plane.write("access.yaml", &access(""));
    eventually("it is healthy", || unhealthy(&caller) == 0.0);
    assert!(app.requests.load(Relaxed) > 2, "the app itself was asked");
    beside.wait_log(&["\"path\":\"/healthz\"", "bank/orders", "success"]);
    plane.write("policy.yaml", &checks("tcp: {}"));
    eventually("connections go through to the app, which is good", || {
        shown(&caller)["endpoints"][0]["lastCheck"] == "took a connection"
    });
    eventually("it is still healthy", || unhealthy(&caller) == 0.0);
    plane.write(
        "limit.yaml",
        "apiVersion: outrigger.dev/v1alpha1\nkind: ServerPolicy\n\
         metadata: {name: app, namespace: bank}\nspec:\n  \
         targetRefs: [{kind: Service, name: app}]\n  \
         rateLimits: [{name: few, requests: 1, period: 1h}]\n",
    );
    plane.write("policy.yaml", &checks("http: {path: /healthz}"));
    eventually("what a limit refuses is neither good nor bad", || {
        caller.count("outrigger_health_checks_total", &["unclear"]) >= 4.0
    });
    assert_eq!(unhealthy(&caller), 0.0);
    plane.remove("limit.yaml");
    plane.write("policy.yaml", &checks("http: {path: /status/503}"));
    eventually("the app's own answer counts", || unhealthy(&caller) == 1.0);
}

/// A gRPC server that says of each service what it is told to.
fn grpc(serving: &Arc<AtomicBool>) -> (u16, tokio::runtime::Runtime) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.set_nonblocking(true).expect("non-blocking");
    let port = listener.local_addr().expect("its address").port();
    let serving = Arc::clone(serving);
    runtime.spawn(async move {
        let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
        while let Ok((stream, _)) = listener.accept().await {
            let serving = Arc::clone(&serving);
            let service = service_fn(move |request| say(Arc::clone(&serving), request));
            let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(builder.serve_connection(TokioIo::new(stream), service));
        }
    });
    (port, runtime)
}

async fn say(
    serving: Arc<AtomicBool>,
    request: Request<Incoming>,
) -> Result<Response<impl hyper::body::Body<Data = Bytes, Error = Infallible>>, Infallible> {
    let is_check = request.uri().path() == "/grpc.health.v1.Health/Check";
    let asked = request.into_body().collect().await.map(http_body_util::Collected::to_bytes);
    // A HealthCheckRequest for the service `a.B`.
    let expected = is_check && asked.is_ok_and(|body| &body[..] == b"\0\0\0\0\x05\x0a\x03a.B");
    let status = if expected && serving.load(Relaxed) { 1 } else { 2 };
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
    let message = Bytes::copy_from_slice(&[0, 0, 0, 0, 2, 8, status]);
    let frames = [Frame::data(message), Frame::trailers(trailers)].map(Ok);
    let response = Response::builder().header("content-type", "application/grpc");
    Ok(response.body(StreamBody::new(tokio_stream::iter(frames))).expect("a response"))
}

#[test]
fn a_grpc_server_is_asked_how_it_is_with_and_without_a_proxy() {
    let serving = Arc::new(AtomicBool::new(true));
    let (port, _runtime) = grpc(&serving);
    let plane = ControlPlane::start(&[
        ("app.yaml", &service("app", "grpc")),
        ("policy.yaml", &checks("grpc: {service: a.B}")),
    ]);
    let beside = Proxy::beside(&plane, "app", &[format!("{port}=grpc:main")], &[]);
    let caller = Proxy::caller(&plane, &[]);
    let good = |caller: &Proxy| caller.count("outrigger_health_checks_total", &["good"]);
    ask(&caller);
    eventually("it serves", || good(&caller) > 2.0);
    assert_eq!(caller.count("outrigger_health_checks_total", &["bad"]), 0.0);
    serving.store(false, Relaxed);
    eventually("it does not serve", || unhealthy(&caller) == 1.0);
    caller.wait_log(&["endpoint unhealthy", "NOT_SERVING"]);
    drop(beside);
    plane.write(
        "app.yaml",
        &unmeshed(&[(port, "a")]).replace("appProtocol: http", "appProtocol: grpc"),
    );
    serving.store(true, Relaxed);
    let before = good(&caller);
    eventually("it is asked without a proxy", || {
        good(&caller) > before + 2.0 && unhealthy(&caller) == 0.0
    });
}
