//! Through a forward proxy the bank speaks as most programs do: absolute form for HTTP/1.1,
//! `:authority` on a shared HTTP/2 connection for gRPC, CONNECT for TCP.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt, Empty, combinators::UnsyncBoxBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};

use crate::support::{Answer, Bank, command, request_with};

#[tokio::test]
async fn each_protocol_takes_its_way_through_the_proxy() {
    let proxy = Proxy::start().await;
    let bank = Bank::behind(proxy.address).await;
    proxy.know(&bank);

    assert_eq!(bank.holdings().await.status, StatusCode::OK);
    assert_eq!(bank.sell("op-1").await.status, StatusCode::OK);
    let seen = proxy.shared.seen.lock().unwrap().clone();
    let want = [
        "CONNECT HTTP/1.1 ledger.bank:7000",
        "GET HTTP/1.1 http://fees.bank:8000/fees/24690",
        "GET HTTP/1.1 http://holdings.bank:8000/holdings/anna",
        "GET HTTP/1.1 http://market-data.bank:8000/prices",
        "GET HTTP/1.1 http://transactions.bank:8000/transactions/anna",
        "POST HTTP/1.1 http://market.bank:8000/orders",
        "POST HTTP/1.1 http://stock-exchange.bank:8080/trades",
        "POST HTTP/2.0 http://account-transactions.bank:9000/simplebank.v1.AccountTransactions/Book",
        "POST HTTP/2.0 http://orders.bank:9000/simplebank.v1.Orders/Sell",
    ];
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), want);

    // What the caller sent for correlation arrives at every service behind.
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let headers = [("traceparent", trace), ("x-request-id", "req-7"), ("x-other", "no")];
    let gateway = bank.listen("gateway");
    request_with(gateway, Method::GET, "/holdings/anna", None, &headers).await;
    let sale = json!({ "account": "anna", "symbol": "ACME", "shares": 2 });
    request_with(gateway, Method::POST, "/shares/sell", Some(&sale), &headers).await;
    let traced = proxy.shared.traced.lock().unwrap().clone();
    assert_eq!(traced.len(), 8, "every call but the tunnel: {traced:?}");
}

#[tokio::test]
async fn what_the_proxy_says_about_a_failure_reaches_the_caller() {
    let proxy = Proxy::start().await;
    let bank = Bank::behind(proxy.address).await;
    proxy.know(&bank);
    let reason = |answer: &Answer| {
        answer.headers.get("proxy-status").map(|v| v.to_str().unwrap().to_owned())
    };
    // Over HTTP, over gRPC with HTTP below, and over gRPC with a refused tunnel below.
    for name in ["market-data.bank:8000", "fees.bank:8000", "ledger.bank:7000"] {
        let known = proxy.shared.names.lock().unwrap().remove(name).unwrap();
        let answer = if name.starts_with("market-data") {
            bank.holdings().await
        } else {
            bank.sell("x").await
        };
        assert_eq!(answer.status, StatusCode::BAD_GATEWAY, "{name}: {answer:?}");
        assert_eq!(reason(&answer).as_deref(), Some(REFUSAL), "{name}: {answer:?}");
        proxy.shared.names.lock().unwrap().insert(name.to_owned(), known);
    }
    let proxy_flag = format!("--proxy={}", proxy.address);
    let mut load = command(&["load", &proxy_flag, "--rate", "50", "--for", "1s", "--sells", "0"]);
    proxy.shared.names.lock().unwrap().remove("market-data.bank:8000");
    let output = load.output().await.unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let last: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!(last["summary"]["by_reason"], json!({ "502 no_such_service": 50 }));
}

const REFUSAL: &str = "test; error=destination_not_found; details=\"no_such_service\"";

struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    names: Mutex<HashMap<String, SocketAddr>>,
    /// Method, version and target of every request.
    seen: Mutex<BTreeSet<String>>,
    /// Authorities that were called with the test's own correlation headers.
    traced: Mutex<BTreeSet<String>>,
}

impl Proxy {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let shared = Arc::new(Shared::default());
        let proxy = Self { address: listener.local_addr().unwrap(), shared: Arc::clone(&shared) };
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let shared = Arc::clone(&shared);
                tokio::spawn(async move {
                    let serve = service_fn(|request| Arc::clone(&shared).forward(request));
                    let builder = auto::Builder::new(TokioExecutor::new());
                    let _ =
                        builder.serve_connection_with_upgrades(TokioIo::new(stream), serve).await;
                });
            }
        });
        proxy
    }

    fn know(&self, bank: &Bank) {
        let mut names = self.shared.names.lock().unwrap();
        for (role, process) in &bank.roles {
            let port = match *role {
                "orders" | "account-transactions" => 9000,
                "ledger" => 7000,
                "stock-exchange" => 8080,
                _ => 8000,
            };
            names.insert(format!("{role}.bank:{port}"), process.listen);
        }
    }
}

type Body = UnsyncBoxBody<Bytes, hyper::Error>;

impl Shared {
    async fn forward(
        self: Arc<Self>,
        mut request: Request<Incoming>,
    ) -> Result<Response<Body>, hyper_util::client::legacy::Error> {
        let authority = request.uri().authority().expect("a target that names the service");
        let authority = authority.as_str().to_owned();
        let line = format!("{} {:?} {}", request.method(), request.version(), request.uri());
        self.seen.lock().unwrap().insert(line);
        if request.headers().get("x-request-id") == Some(&HeaderValue::from_static("req-7")) {
            assert!(request.headers().contains_key("traceparent"));
            assert!(!request.headers().contains_key("x-other"));
            self.traced.lock().unwrap().insert(authority.clone());
        }
        let Some(address) = self.names.lock().unwrap().get(&authority).copied() else {
            return Ok(refuse(&request));
        };
        if request.method() == Method::CONNECT {
            tokio::spawn(async move {
                let upgraded = hyper::upgrade::on(&mut request).await.unwrap();
                let mut upstream = TcpStream::connect(address).await.unwrap();
                let mut client = TokioIo::new(upgraded);
                let _ = tokio::io::copy_bidirectional(&mut client, &mut upstream).await;
            });
            return Ok(Response::new(empty()));
        }
        let path = request.uri().path_and_query().unwrap().clone();
        *request.uri_mut() = format!("http://{address}{path}").parse().unwrap();
        let client = Client::builder(TokioExecutor::new())
            .http2_only(request.version() == Version::HTTP_2)
            .build_http();
        Ok(client.request(request).await?.map(BodyExt::boxed_unsync))
    }
}

fn refuse(request: &Request<Incoming>) -> Response<Body> {
    let mut response = Response::new(empty());
    response.headers_mut().insert("proxy-status", HeaderValue::from_static(REFUSAL));
    if request.version() == Version::HTTP_2 {
        response.headers_mut().insert("grpc-status", HeaderValue::from_static("14"));
        let grpc = HeaderValue::from_static("application/grpc");
        response.headers_mut().insert("content-type", grpc);
    } else {
        *response.status_mut() = StatusCode::BAD_GATEWAY;
    }
    response
}

fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}
