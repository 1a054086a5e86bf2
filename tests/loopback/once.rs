//! What could do harm twice is never sent twice: a POST without an idempotency key, at every point at
//! which a server can fail, over every protocol, while the policy asks for all the retries there are and
//! for fallbacks.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex};
use std::thread;

use bytes::Bytes;
use h2::Reason;
use http::{HeaderMap, Response, StatusCode};
use outrigger_tests::app::tcp;
use outrigger_tests::client::Curl;
use outrigger_tests::eventually;
use outrigger_tests::process::{ControlPlane, Proxy, free_port, local};
use tokio::runtime::Runtime;

use crate::{service, unmeshed};

/// How often each request arrived, by its path.
type Arrivals = Arc<Mutex<BTreeMap<String, u32>>>;

/// Where a server fails, after it has read the head of a request.
const POINTS: [&str; 9] = [
    "at-once",
    "half-body",
    "whole-body",
    "half-head",
    "head",
    "half-answer",
    "503",
    "early-503",
    "silent",
];
const BODIES: [usize; 4] = [0, 1, 10_000, 200_000];

const POLICY: &str = "apiVersion: outrigger.dev/v1alpha1\nkind: TrafficPolicy\n\
    metadata: {name: all, namespace: bank}\nspec:\n  targetRefs: [{kind: Namespace, name: bank}]\n  \
    retries: {maxAttempts: 4, when: {statuses: [500, 502, 503, 504], grpc: [UNAVAILABLE, INTERNAL, UNKNOWN], \
    reset: true, timeout: true}, maxReplayBytes: 1048576}\n  \
    retryBudget: {percent: 100, minPerSecond: 1000}\n  timeouts: {attempt: 300ms}\n  \
    fallbacks: [{backend: {name: backup, port: 80}}, {route: {path: /reduced}}]\n";

fn arrived(arrivals: &Arrivals, path: &str) {
    *arrivals.lock().expect("no panic").entry(path.to_owned()).or_default() += 1;
}

/// `/<point>/...` says where this server fails.
fn http1(arrivals: Arrivals) -> u16 {
    tcp(move |mut stream| {
        // The proxy may have gone.
        while let Ok(true) = fail_http1(&mut stream, &arrivals) {}
    })
}

/// Whether the connection goes on.
fn fail_http1(stream: &mut TcpStream, arrivals: &Arrivals) -> std::io::Result<bool> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte)? == 0 {
            return Ok(false);
        }
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head);
    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
    let head = head.to_ascii_lowercase();
    arrived(arrivals, &path);
    let point = path.split('/').nth(1).unwrap_or_default();
    let length = head.split("content-length: ").nth(1).and_then(|rest| rest.split("\r\n").next());
    let length: usize = length.and_then(|length| length.parse().ok()).unwrap_or(0);
    let unavailable = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n";
    match point {
        "at-once" => return Ok(false),
        "early-503" => {
            stream.write_all(unavailable)?;
            return Ok(false);
        }
        _ => {}
    }
    let mut body = vec![0; if point == "half-body" { length / 2 } else { length }];
    stream.read_exact(&mut body)?;
    match point {
        "half-head" => stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-le")?,
        "head" => stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n")?,
        "half-answer" => {
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello")?;
        }
        "503" => {
            stream.write_all(unavailable)?;
            return Ok(true);
        }
        "silent" => {
            stream.read_to_end(&mut body)?;
        }
        _ => {}
    }
    Ok(false)
}

/// The same over HTTP/2; what is gRPC gets its statuses. Ends with the runtime.
fn http2(arrivals: Arrivals) -> (u16, Runtime) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0"));
    let listener = listener.expect("a port");
    let port = listener.local_addr().expect("its address").port();
    runtime.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let arrivals = Arc::clone(&arrivals);
            tokio::spawn(async move {
                let Ok(mut connection) = h2::server::handshake(stream).await else { return };
                while let Some(Ok((request, answer))) = connection.accept().await {
                    tokio::spawn(fail_http2(request, answer, Arc::clone(&arrivals)));
                }
            });
        }
    });
    (port, runtime)
}

async fn fail_http2(
    request: http::Request<h2::RecvStream>,
    mut answer: h2::server::SendResponse<Bytes>,
    arrivals: Arrivals,
) {
    let path = request.uri().path().to_owned();
    arrived(&arrivals, &path);
    let point = path.split('/').nth(1).unwrap_or_default();
    let grpc = request.headers().contains_key("grpc-timeout")
        || request.headers().get("content-type").is_some_and(|kind| kind == "application/grpc");
    let unavailable = || {
        let mut response = Response::new(());
        if grpc {
            let headers: &mut HeaderMap = response.headers_mut();
            headers.insert("content-type", "application/grpc".parse().expect("a value"));
            headers.insert("grpc-status", 14.into());
        } else {
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        }
        response
    };
    let mut body = request.into_body();
    match point {
        "at-once" => return answer.send_reset(Reason::INTERNAL_ERROR),
        "early-503" => {
            let _ = answer.send_response(unavailable(), true);
            return;
        }
        _ => {}
    }
    while let Some(Ok(data)) = body.data().await {
        let _ = body.flow_control().release_capacity(data.len());
        if point == "half-body" {
            return answer.send_reset(Reason::CANCEL);
        }
    }
    match point {
        "half-body" | "whole-body" | "half-head" => answer.send_reset(Reason::CANCEL),
        "head" | "half-answer" => {
            if let Ok(mut stream) = answer.send_response(Response::new(()), false) {
                if point == "half-answer" {
                    let _ = stream.send_data(Bytes::from_static(b"hello"), false);
                }
                // The answer is on its way before the reset is.
                tokio::task::yield_now().await;
                stream.send_reset(Reason::INTERNAL_ERROR);
            }
        }
        "503" => {
            let _ = answer.send_response(unavailable(), true);
        }
        _ => {
            let _ = std::future::poll_fn(|cx| answer.poll_reset(cx)).await;
        }
    }
}

/// One protocol, with a sidecar at the far side or without.
struct Case {
    name: &'static str,
    /// What the app of the caller speaks.
    curl: &'static [&'static str],
}

const CASES: [Case; 3] = [
    Case { name: "h1", curl: &["--http1.1"] },
    Case { name: "h2", curl: &["--http2-prior-knowledge"] },
    Case {
        name: "grpc",
        curl: &[
            "--http2-prior-knowledge",
            "-H",
            "content-type: application/grpc",
            "-H",
            "te: trailers",
        ],
    },
];

#[test]
fn a_post_without_a_key_is_never_sent_twice() {
    let arrivals = Arrivals::default();
    let h1 = http1(Arc::clone(&arrivals));
    let (h2, _runtime) = http2(Arc::clone(&arrivals));
    let mut manifests = vec![
        ("policy.yaml".to_owned(), POLICY.to_owned()),
        // Where a fallback would send it once more.
        ("backup.yaml".to_owned(), unmeshed("backup", "http", h1)),
    ];
    for (protocol, port, app) in
        [("h1", h1, "http"), ("h2", h2, "kubernetes.io/h2c"), ("grpc", h2, "grpc")]
    {
        let plain = format!("plain-{protocol}");
        manifests.push((format!("{plain}.yaml"), unmeshed(&plain, app, port)));
        let meshed = format!("meshed-{protocol}");
        manifests.push((format!("{meshed}.yaml"), service(&meshed, app)));
    }
    let manifests: Vec<_> = manifests.iter().map(|(name, text)| (&**name, &**text)).collect();
    let plane = ControlPlane::start(&manifests);
    let listeners: Vec<_> = ["plain", "meshed"]
        .iter()
        .flat_map(|way| CASES.iter().map(move |case| (format!("{way}-{}", case.name), free_port())))
        .collect();
    let meshed: Vec<_> = [("h1", h1), ("h2", h2), ("grpc", h2)]
        .iter()
        .map(|(protocol, port)| {
            let name = format!("meshed-{protocol}");
            Proxy::beside(&plane, &name, &[format!("{port}={protocol}:main")], &[])
        })
        .collect();
    let listen = |(name, port): &(String, u16)| format!("{}={name}.bank:80", local(*port));
    let listen = listeners.iter().map(listen).collect::<Vec<_>>().join(",");
    let caller = Proxy::caller(&plane, &["--listen", &listen]);

    let repeated = Mutex::new(BTreeMap::new());
    thread::scope(|scope| {
        for (name, port) in &listeners {
            let (caller, arrivals, repeated) = (&caller, &arrivals, &repeated);
            scope.spawn(move || {
                for point in POINTS {
                    for length in BODIES {
                        let times = |method, key| {
                            send(caller, (name, *port), point, length, (method, key), arrivals)
                        };
                        assert_eq!(times("POST", false), 1, "{name} {point} {length}: sent twice");
                        let again = times("POST", true) > 1 || times("PUT", false) > 1;
                        repeated.lock().expect("no panic").insert((name, point, length), again);
                    }
                }
            });
        }
    });
    for (path, times) in arrivals.lock().expect("no panic").iter() {
        assert!(*times == 1 || !path.ends_with("/POST/false"), "{path} arrived {times} times");
    }
    // That the policy does repeat what it may, or the test would prove nothing.
    let repeated = repeated.into_inner().expect("no panic");
    for (name, _) in &listeners {
        for point in ["whole-body", "503", "silent"] {
            assert!(repeated[&(name, point, 10_000)], "{name} {point}: {repeated:?}");
        }
    }
    drop(meshed);
}

/// Sends one request, and says how often it arrived.
fn send(
    caller: &Proxy,
    (name, port): (&str, u16),
    point: &str,
    length: usize,
    (method, key): (&str, bool),
    arrivals: &Arrivals,
) -> u32 {
    let case = CASES.iter().find(|case| name.ends_with(case.name)).expect("its case");
    let path = format!("/{point}/{name}/{length}/{method}/{key}");
    let url = format!("http://{}{path}", local(port));
    let file = caller.dir.path().join(name);
    std::fs::write(&file, vec![b'x'; length]).expect("a body");
    let data = format!("@{}", file.display());
    let mut args = vec!["-X", method, "--data-binary", &data, "-H", "Expect:"];
    if key {
        args.extend(["-H", "idempotency-key: 1"]);
    }
    Curl::direct().args(case.curl).args(&args).get(&url);
    let times = || arrivals.lock().expect("no panic").get(&path).copied().unwrap_or(0);
    // On a busy machine the proxy may have given up before the server has looked.
    eventually("it has arrived", || times() > 0);
    times()
}
