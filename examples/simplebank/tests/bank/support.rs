//! Starts roles as processes and talks to them.

use std::collections::HashMap;
use std::future::Future;
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

/// Limit of every wait; generous, because machines may be busy.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

pub(crate) struct Process {
    pub(crate) child: Child,
    pub(crate) listen: SocketAddr,
    pub(crate) admin: SocketAddr,
}

pub(crate) fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_simplebank"));
    command.args(args).env_remove("HTTP_PROXY").stdout(Stdio::piped()).kill_on_drop(true);
    command
}

/// A role that has said where it listens.
pub(crate) async fn start(args: &[&str]) -> Process {
    let mut child = command(args).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let line = tokio::time::timeout(LIMIT, lines.next_line()).await.unwrap().unwrap().unwrap();
    let said: Value = serde_json::from_str(&line).unwrap();
    let address = |name: &str| said[name].as_str().unwrap().parse().unwrap();
    Process { child, listen: address("listen"), admin: address("admin") }
}

/// All services, each finding the others by the names that `address` gives it.
pub(crate) struct Bank {
    pub(crate) roles: HashMap<&'static str, Process>,
}

impl Bank {
    /// Every role calls the others straight at their addresses.
    pub(crate) async fn direct() -> Self {
        let mut bank = Self { roles: HashMap::new() };
        for (role, dependencies) in ROLES {
            let mut args = vec![(*role).to_owned()];
            for dependency in *dependencies {
                args.push(format!("--{dependency}"));
                args.push(bank.roles[dependency].listen.to_string());
            }
            bank.add(role, &args).await;
        }
        bank
    }

    /// Every role calls the others by name through a proxy.
    pub(crate) async fn behind(proxy: SocketAddr) -> Self {
        let mut bank = Self { roles: HashMap::new() };
        for (role, _) in ROLES {
            let proxy = format!("--proxy=http://{proxy}/");
            bank.add(role, &[(*role).to_owned(), proxy]).await;
        }
        bank
    }

    async fn add(&mut self, role: &'static str, args: &[String]) {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        self.roles.insert(role, start(&args).await);
    }

    pub(crate) fn listen(&self, role: &str) -> SocketAddr {
        self.roles[role].listen
    }

    pub(crate) async fn stats(&self, role: &str) -> Value {
        request(self.roles[role].admin, Method::GET, "/admin/stats", None).await.json()
    }

    pub(crate) async fn fault(&self, role: &str, fault: &Value) {
        let admin = self.roles[role].admin;
        let answer = request(admin, Method::POST, "/admin/fault", Some(fault)).await;
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    }

    pub(crate) async fn sell(&self, operation_id: &str) -> Answer {
        let sale = json!({ "account": "anna", "symbol": "ACME", "shares": 2 });
        let headers = [("x-operation-id", operation_id)];
        let gateway = self.listen("gateway");
        request_with(gateway, Method::POST, "/shares/sell", Some(&sale), &headers).await
    }

    pub(crate) async fn holdings(&self) -> Answer {
        request(self.listen("gateway"), Method::GET, "/holdings/anna", None).await
    }
}

/// In an order in which anyone who is called comes first.
const ROLES: &[(&str, &[&str])] = &[
    ("transactions", &[]),
    ("market-data", &[]),
    ("holdings", &["transactions", "market-data"]),
    ("stock-exchange", &[]),
    ("ledger", &[]),
    ("market", &["stock-exchange"]),
    ("fees", &[]),
    ("account-transactions", &["ledger"]),
    ("orders", &["account-transactions", "fees", "market"]),
    ("gateway", &["holdings", "orders"]),
];

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }
}

pub(crate) async fn request(
    to: SocketAddr,
    method: Method,
    path: &str,
    body: Option<&Value>,
) -> Answer {
    request_with(to, method, path, body, &[]).await
}

pub(crate) async fn request_with(
    to: SocketAddr,
    method: Method,
    path: &str,
    body: Option<&Value>,
    headers: &[(&str, &str)],
) -> Answer {
    let client = Client::builder(TokioExecutor::new()).build_http();
    let mut request = Request::builder()
        .method(method)
        .uri(format!("http://{to}{path}"))
        .header("content-type", "application/json");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let body = Bytes::from(body.map(Value::to_string).unwrap_or_default());
    let response = client.request(request.body(Full::new(body)).unwrap());
    let response = tokio::time::timeout(LIMIT, response).await.unwrap().unwrap();
    let (head, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    Answer { status: head.status, headers: head.headers, body }
}

/// Waits until something holds.
pub(crate) async fn eventually<F: Future<Output = bool>>(what: &str, check: impl Fn() -> F) {
    let wait = async {
        while !check().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LIMIT, wait).await.unwrap_or_else(|_| panic!("never: {what}"));
}

pub(crate) fn signal(process: &Child, signal: rustix::process::Signal) {
    let pid = i32::try_from(process.id().unwrap()).unwrap();
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), signal).unwrap();
}
