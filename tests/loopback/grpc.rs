//! What gRPC says of itself in a response without messages: a server that has enough to do, and a proxy that
//! lets no more calls through.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use outrigger_tests::client::http_get;
use outrigger_tests::eventually;
use outrigger_tests::manifests::traffic_policy;
use outrigger_tests::process::{ControlPlane, Proxy, local};
use tokio::runtime::Runtime;

use crate::unmeshed;

fn runtime() -> Runtime {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(1).enable_all().build().expect("a runtime")
}

/// Headers of an answer without messages.
type Says = &'static [(&'static str, &'static str)];

const OK: Says = &[("grpc-status", "0")];

/// A gRPC server that answers each call with a status and no message, or never. Ends when dropped.
struct Server {
    port: u16,
    calls: Arc<AtomicU64>,
    _runtime: Runtime,
}

impl Server {
    /// `answer`: given how many calls came before.
    fn start(answer: impl Fn(u64) -> Option<Says> + Clone + Send + 'static) -> Self {
        Self::start_slow(Duration::ZERO, answer)
    }

    /// The same; each answer takes so long.
    fn start_slow(
        time: Duration,
        answer: impl Fn(u64) -> Option<Says> + Clone + Send + 'static,
    ) -> Self {
        let (runtime, calls) = (runtime(), Arc::new(AtomicU64::new(0)));
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0"));
        let listener = listener.expect("a port");
        let port = listener.local_addr().expect("its address").port();
        let counted = Arc::clone(&calls);
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (counted, answer) = (Arc::clone(&counted), answer.clone());
                tokio::spawn(async move {
                    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
                    let mut unanswered = Vec::new();
                    while let Some(Ok((_, mut call))) = connection.accept().await {
                        let answer = answer(counted.fetch_add(1, Relaxed));
                        if !time.is_zero() {
                            tokio::time::sleep(time).await;
                        }
                        match answer {
                            // The caller may have gone.
                            Some(says) => drop(call.send_response(trailers_only(says), true)),
                            None => unanswered.push(call),
                        }
                    }
                });
            }
        });
        Self { port, calls, _runtime: runtime }
    }
}

fn trailers_only(says: Says) -> Response<()> {
    let mut response = Response::new(());
    let headers = response.headers_mut();
    headers.insert("content-type", http::HeaderValue::from_static("application/grpc"));
    for (name, value) in says {
        headers.insert(*name, http::HeaderValue::from_static(value));
    }
    response
}

/// Calls on one connection to a proxy.
struct Client {
    sender: h2::client::SendRequest<Bytes>,
    runtime: Runtime,
}

impl Client {
    fn of(proxy: &Proxy) -> Self {
        let runtime = runtime();
        let to = local(proxy.outbound);
        let sender = runtime.block_on(async {
            let stream = tokio::net::TcpStream::connect(to).await.expect("a connection");
            let (sender, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
            tokio::spawn(async move { drop(connection.await) });
            sender
        });
        Self { sender, runtime }
    }

    /// Begins a call; the future is what its answer says, and whether it says no more than that.
    fn call(&self) -> impl Future<Output = (HeaderMap, bool)> + use<> {
        let request = Request::post("http://app.bank/bank.App/Get")
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        let request = request.body(()).expect("a request");
        let mut sender = self.sender.clone();
        let (answer, _) = sender.send_request(request, true).expect("a stream");
        async move {
            let response = answer.await.expect("an answer");
            assert_eq!(response.status(), 200);
            let ends = response.body().is_end_stream();
            (response.into_parts().0.headers, ends)
        }
    }

    /// A call that is answered without a message: its status, and the reason that the proxy names.
    fn status(&self) -> (String, String) {
        let (headers, ends) = self.runtime.block_on(self.call());
        assert!(ends, "there is more than trailers: {headers:?}");
        assert_eq!(headers["content-type"], "application/grpc");
        let text = |name: &str| {
            let value = headers.get(name).map(|value| value.to_str().expect("text"));
            value.unwrap_or_default().to_owned()
        };
        (text("grpc-status"), text("proxy-status"))
    }
}

fn policies(caller: &Proxy) -> serde_json::Value {
    let (_, text) = http_get(caller.admin, "/policies").expect("an answer");
    serde_json::from_str::<serde_json::Value>(&text).expect("JSON")["services"][0].take()
}

#[test]
fn a_server_whose_resources_are_exhausted_gets_no_requests_for_as_long_as_it_asks_and_not_ejected()
{
    const FULL: Says = &[("grpc-status", "8"), ("grpc-retry-pushback-ms", "30000")];
    // It says so once, and would be the one to prefer.
    let full = Server::start(|before| Some(if before == 0 { FULL } else { OK }));
    let good = Server::start_slow(Duration::from_millis(3), |_| Some(OK));
    let one = unmeshed("app", "grpc", good.port);
    let (_, slice) = one.split_once("---\n").expect("its slice");
    let other = slice
        .replace("metadata: {name: app,", "metadata: {name: app-2,")
        .replace(&format!("port: {}", good.port), &format!("port: {}", full.port));
    // One failure would be enough.
    let spec = "  outlierEjection: {consecutiveFailures: 1}\n";
    let plane = ControlPlane::start(&[
        ("app.yaml", &format!("{one}---\n{other}")),
        ("policy.yaml", &traffic_policy("app", spec)),
    ]);
    let caller = Proxy::caller(&plane, &["--workers", "1"]);
    let client = Client::of(&caller);
    let (began, mut refused) = (Instant::now(), 0);
    // Longer than it would get no requests without a word.
    while began.elapsed() < Duration::from_secs(3) {
        let (status, named) = client.status();
        assert!(status == "0" || status == "8", "{status}: {named}");
        assert_eq!(named, "", "it is the server's own word");
        refused += u64::from(status == "8");
    }
    assert_eq!(refused, 1);
    let (good, full) = (good.calls.load(Relaxed), full.calls.load(Relaxed));
    // It is asked now and then whether it has room again.
    assert!(full * 8 < good, "{full} calls to the one that is full, {good} to the other");
    assert!(full > 1, "it is not asked any more");
    assert_eq!(policies(&caller)["ejected"], serde_json::json!([]));
}

#[test]
fn a_call_beyond_a_limit_is_refused_in_trailers_alone() {
    let hangs = Server::start(|_| None);
    let plane = ControlPlane::start(&[
        ("app.yaml", &unmeshed("app", "grpc", hangs.port)),
        ("policy.yaml", &traffic_policy("app", "  limits: {maxInFlight: 1, maxPending: 0}\n")),
    ]);
    let caller = Proxy::caller(&plane, &["--workers", "1"]);
    let client = Client::of(&caller);
    let held = client.runtime.spawn(client.call());
    eventually("the server has it", || hangs.calls.load(Relaxed) == 1);
    let (status, named) = client.status();
    assert_eq!(status, "14", "UNAVAILABLE: {named}");
    assert!(named.contains("too_many_in_flight"), "{named}");
    assert_eq!(hangs.calls.load(Relaxed), 1, "the server hears nothing of it");
    drop((held, client));
}

#[test]
fn a_call_to_a_service_whose_breaker_is_open_is_refused_in_trailers_alone() {
    let failing = Server::start(|_| Some(&[("grpc-status", "14")]));
    let breaker = "  breaker: {consecutiveFailures: 1, open: {fixed: 30s}}\n";
    let plane = ControlPlane::start(&[
        ("app.yaml", &unmeshed("app", "grpc", failing.port)),
        ("policy.yaml", &traffic_policy("app", breaker)),
    ]);
    let caller = Proxy::caller(&plane, &["--workers", "1"]);
    let client = Client::of(&caller);
    assert_eq!(client.status(), ("14".to_owned(), String::new()), "the server's own word");
    let (status, named) = client.status();
    assert_eq!(status, "14", "UNAVAILABLE: {named}");
    assert!(named.contains("breaker_open"), "{named}");
    assert_eq!(failing.calls.load(Relaxed), 1, "the server hears nothing of it");
}
