//! What HTTP/1.1 can say survives one proxy and two: framing, informational responses, upgrades and their
//! refusals, the case of names; and what is no HTTP is told so.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use outrigger_tests::app::{Echo, read_head, tcp};
use outrigger_tests::client::{Curl, raw};
use outrigger_tests::eventually;
use outrigger_tests::manifests::{service, traffic_policy, unmeshed};
use outrigger_tests::process::{ControlPlane, Proxy, local};

use crate::Mesh;

/// The app of a test as `plain.bank`, without a sidecar, and as `meshed.bank`, behind one.
struct Both {
    caller: Proxy,
    _sidecar: Proxy,
    _plane: ControlPlane,
}

const NAMES: [&str; 2] = ["plain", "meshed"];

impl Both {
    fn of(port: u16) -> Self {
        Self::with(port, "")
    }

    /// `spec`: of a TrafficPolicy for both.
    fn with(port: u16, spec: &str) -> Self {
        let mut files = vec![
            ("plain.yaml", unmeshed("plain", "http", port)),
            ("meshed.yaml", service("meshed", "http")),
        ];
        if !spec.is_empty() {
            files.push(("plain-policy.yaml", traffic_policy("plain", spec)));
            files.push(("meshed-policy.yaml", traffic_policy("meshed", spec)));
        }
        let files: Vec<_> = files.iter().map(|(name, text)| (*name, &**text)).collect();
        let plane = ControlPlane::start(&files);
        let sidecar = Proxy::beside(&plane, "meshed", &[format!("{port}=h1:main")], &[]);
        let caller = Proxy::caller(&plane, &[]);
        Self { caller, _sidecar: sidecar, _plane: plane }
    }

    /// What comes for a head (without its last empty line) and a body, until the other side closes.
    fn say(&self, name: &str, head: &str, body: &str) -> String {
        let bytes = format!("{}\r\n\r\n{body}", head.replace("NAME", name).replace('\n', "\r\n"));
        raw(self.caller.outbound, bytes.as_bytes(), Duration::from_secs(3))
    }
}

/// An app that answers each head by its path.
fn scripted(answer: impl Fn(&mut TcpStream, &str, &str) + Send + Sync + 'static) -> u16 {
    tcp(move |mut stream| {
        while let Some(head) = read_head(&mut stream) {
            let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
            answer(&mut stream, &path, &head);
        }
    })
}

/// A GET on a connection of its own: the status, the bytes of the body, and whether it came to its end.
fn on_http2(port: u16, url: &str) -> (u16, usize, bool) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let stream = tokio::net::TcpStream::connect(local(port)).await.expect("a connection");
        let (mut sender, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
        tokio::spawn(async move { drop(connection.await) });
        let request = http::Request::get(url).body(()).expect("a request");
        let (answer, _) = sender.send_request(request, true).expect("a stream");
        let response = answer.await.expect("a head");
        let status = response.status().as_u16();
        let (mut body, mut came) = (response.into_body(), 0);
        while let Some(data) = body.data().await {
            let Ok(data) = data else { return (status, came, false) };
            came += data.len();
        }
        (status, came, true)
    })
}

#[test]
fn an_answer_that_is_cut_at_once_arrives_as_far_as_it_came() {
    let head = "HTTP/1.1 200 OK\r\ncontent-length: 100\r\nx-app: yes\r\n\r\n";
    let both = Both::of(tcp(move |mut stream| {
        let asked = read_head(&mut stream).unwrap_or_default();
        let cut = if asked.starts_with("GET /head") { String::new() } else { "x".repeat(90) };
        let _ = stream.write_all(format!("{head}{cut}").as_bytes());
    }));
    for name in NAMES {
        for (path, body) in [("/head", 0), ("/body", 90)] {
            let came = both.say(name, &format!("GET {path} HTTP/1.1\nhost: NAME.bank"), "");
            let end = format!("\r\n\r\n{}", "x".repeat(body));
            assert!(came.contains("x-app: yes") && came.ends_with(&end), "{name}{path}: {came:?}");
            let (status, came, ended) =
                on_http2(both.caller.outbound, &format!("http://{name}.bank{path}"));
            assert_eq!((status, came, ended), (200, body, false), "{name}{path}");
        }
    }
}

#[test]
fn a_body_arrives_whatever_the_method() {
    let app = Echo::start("web");
    let both = Both::of(app.port);
    for name in NAMES {
        for method in ["GET", "DELETE", "OPTIONS", "POST", "PATCH"] {
            let head = format!(
                "{method} http://NAME.bank/ HTTP/1.1\nhost: NAME.bank\nconnection: close\ntransfer-encoding: chunked"
            );
            let answer = both.say(name, &head, "2\r\n{}\r\n0\r\n\r\n");
            assert!(answer.contains("\"bodyBytes\":2"), "{name} {method}: {answer}");
        }
    }
}

#[test]
fn a_response_is_framed_by_what_decides() {
    let app = scripted(|stream, path, _| {
        let answer: &[u8] = match path {
            "/both" => b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n\r\n",
            "/list" => b"HTTP/1.1 200 OK\r\ncontent-length: 5, 5\r\n\r\nabcde",
            "/twice" => b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 5\r\n\r\nabcde",
            _ => b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n5\r\nabcde\r\n0\r\n\r\n",
        };
        let _ = stream.write_all(answer);
    });
    let both = Both::of(app);
    for name in NAMES {
        for path in ["both", "list", "twice"] {
            let answer = Curl::through(&both.caller).get(&format!("http://{name}.bank/{path}"));
            assert_eq!((answer.status, &*answer.body), (200, "abcde"), "{name} {path}");
            let lengths = answer.head.matches("content-length: 5").count();
            assert_eq!(lengths, usize::from(path != "both"), "{name}: {}", answer.head);
            assert!(!answer.head.contains("5, 5"), "{name}: {}", answer.head);
        }
        let answer = Curl::through(&both.caller).get(&format!("http://{name}.bank/coded"));
        assert_eq!(answer.status, 502, "{name}: {}", answer.body);
        assert!(answer.head.contains("upstream_protocol_error"), "{name}: {}", answer.head);
    }
}

#[test]
fn an_upgrade_may_be_declined_in_every_way_and_granted_to_every_method() {
    let app = scripted(|stream, path, head| {
        let mut body = [0; 5];
        if head.to_ascii_lowercase().contains("content-length: 5")
            && stream.read_exact(&mut body).is_err()
        {
            return;
        }
        let upgrade = head.to_ascii_lowercase().contains("upgrade: echo");
        let said = String::from_utf8_lossy(&body).into_owned();
        let method = head.split(' ').next().unwrap_or_default();
        let answer = match path {
            "/switch" if upgrade => {
                let _ = stream.write_all(
                    b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n",
                );
                let _ = write!(stream, "{method} {said}|");
                let mut byte = [0];
                while matches!(stream.read(&mut byte), Ok(1)) {
                    let _ = stream.write_all(&byte);
                }
                return;
            }
            "/no" => format!("HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\n\r\nno{}", ""),
            _ => format!(
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{method} {said}",
                method.len() + 6
            ),
        };
        let _ = stream.write_all(answer.as_bytes());
    });
    let both = Both::of(app);
    let upgrade = "connection: upgrade\nupgrade: echo";
    for name in NAMES {
        for method in ["GET", "POST", "DELETE"] {
            let head = |path: &str| {
                format!(
                    "{method} http://NAME.bank{path} HTTP/1.1\nhost: NAME.bank\n{upgrade}\ncontent-length: 5"
                )
            };
            let plain = both.say(name, &head("/plain"), "hello");
            assert!(plain.starts_with("HTTP/1.1 200 "), "{name} {method}: {plain}");
            assert!(plain.ends_with(&format!("{method} hello")), "{name} {method}: {plain}");
            let refused = both.say(name, &head("/no"), "hello");
            assert!(
                refused.starts_with("HTTP/1.1 403 ") && refused.ends_with("no"),
                "{name}: {refused}"
            );
            let switched = both.say(name, &head("/switch"), "helloand on");
            assert!(switched.starts_with("HTTP/1.1 101 "), "{name} {method}: {switched}");
            assert!(switched.ends_with(&format!("{method} hello|and on")), "{name}: {switched}");
            let tail = switched.to_ascii_lowercase();
            assert!(tail.contains("upgrade: echo"), "{name}: {switched}");
        }
    }
}

#[test]
fn informational_responses_reach_callers_of_both_protocols() {
    let app = scripted(|stream, _, _| {
        let _ =
            stream.write_all(b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\nconnection: x\r\n\r\n");
        // The hint is of use only while the answer is not there.
        std::thread::park_timeout(Duration::from_millis(50));
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
    });
    let both = Both::of(app);
    for name in NAMES {
        for protocol in ["--http1.1", "--http2-prior-knowledge"] {
            let mut args = vec![protocol, "--verbose", "--stderr", "-"];
            let host = format!("host: {name}.bank");
            let url = match protocol {
                "--http1.1" => format!("http://{name}.bank/"),
                // A forward proxy on HTTP/2 is addressed as the server.
                _ => {
                    args.extend(["-H", &host]);
                    format!("http://{}/", local(both.caller.outbound))
                }
            };
            let curl = match protocol {
                "--http1.1" => Curl::through(&both.caller),
                _ => Curl::direct(),
            };
            let answer = curl.args(&args).get(&url);
            let text = format!("{}{}", answer.head, answer.body);
            let hint = text.find(" 103").unwrap_or_else(|| panic!("{name} {protocol}: {text}"));
            let end = text.rfind(" 200").unwrap_or_else(|| panic!("{name} {protocol}: {text}"));
            assert!(hint < end && text.contains("link: </a>"), "{name} {protocol}: {text}");
        }
    }
}

#[test]
fn whether_a_body_is_wanted_is_for_the_app_to_say() {
    let app = scripted(|stream, path, _| {
        if path == "/no" {
            let no = b"HTTP/1.1 417 Expectation Failed\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
            let _ = stream.write_all(no);
            let _ = stream.shutdown(std::net::Shutdown::Both);
            return;
        }
        if path == "/yes" {
            std::thread::park_timeout(Duration::from_millis(300));
            let _ = stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n");
        }
        let mut body = [0; 3];
        if stream.read_exact(&mut body).is_ok() {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
        }
    });
    let both = Both::of(app);
    for name in NAMES {
        let ask = |path: &str| {
            let mut stream = TcpStream::connect(local(both.caller.outbound)).expect("a connection");
            stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a limit");
            let began = Instant::now();
            write!(
                stream,
                "PUT http://{name}.bank{path} HTTP/1.1\r\nhost: {name}.bank\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\n"
            )
            .expect("a write");
            let first = read_head(&mut stream).expect("an answer");
            (stream, first, began.elapsed())
        };
        let (_, first, _) = ask("/no");
        assert!(first.starts_with("HTTP/1.1 417"), "{name}: {first}");
        // An app that never says so does not hold its caller up for ever.
        for (path, least) in [("/yes", 250), ("/silent", 800)] {
            let (mut stream, first, after) = ask(path);
            assert!(first.starts_with("HTTP/1.1 100"), "{name} {path}: {first}");
            assert!(after >= Duration::from_millis(least), "{name} {path}: {after:?}");
            stream.write_all(b"abc").expect("a write");
            let last = read_head(&mut stream).expect("an answer");
            assert!(last.starts_with("HTTP/1.1 200"), "{name} {path}: {last}");
        }
    }
}

#[test]
fn names_keep_their_case_where_nothing_else_is_between() {
    let app = scripted(|stream, _, head| {
        let says = head.lines().any(|line| line == "X-MiXed: 1");
        let said = if says { "kept" } else { "lost" };
        let _ = write!(stream, "HTTP/1.1 200 OK\r\nX-OdD: 1\r\nContent-Length: 4\r\n\r\n{said}");
    });
    let both = Both::of(app);
    let head = "GET http://NAME.bank/ HTTP/1.1\nHost: NAME.bank\nX-MiXed: 1\nConnection: close";
    let answer = both.say("plain", head, "");
    assert!(answer.ends_with("kept") && answer.contains("\r\nX-OdD: 1\r\n"), "{answer}");
}

#[test]
fn what_is_no_request_is_told_so() {
    let app = Echo::start("web");
    let both = Both::of(app.port);
    let long =
        format!("GET http://plain.bank/ HTTP/1.1\nhost: plain.bank\nx: {}", "y".repeat(70_000));
    for (what, head, reason) in [
        ("a space in the target", "GET /a b HTTP/1.1\nhost: plain.bank", "bad_request"),
        ("a quote in the query", "GET /?a=\"b\" HTTP/1.1\nhost: plain.bank", "bad_request"),
        ("a bad header name", "GET / HTTP/1.1\nhost: plain.bank\nb@d: 1", "bad_request"),
        ("too large a head", &long, "headers_too_large"),
    ] {
        let answer = both.say("plain", head, "");
        let (status, text) = (answer.get(9..12).unwrap_or_default(), answer.to_ascii_lowercase());
        assert!(status == "400" || status == "431", "{what}: {answer}");
        assert!(
            text.contains("proxy-status: outrigger; error=http_request_error"),
            "{what}: {answer}"
        );
        assert!(text.contains(&format!("outrigger: {reason}: ")), "{what}: {answer}");
        both.caller.wait_log(&[&format!("\"reason\":\"{reason}\"")]);
    }
    for host in ["plain.bank:", "plain.bank:80", "PLAIN.bank."] {
        let head = format!("GET / HTTP/1.1\nhost: {host}\nconnection: close");
        let answer = both.say("plain", &head, "");
        assert!(answer.starts_with("HTTP/1.1 200"), "{host}: {answer}");
    }
    // An answer before it does not confuse what is refused.
    let two =
        "GET http://plain.bank/ HTTP/1.1\nhost: plain.bank\n\nGET /a b HTTP/1.1\nhost: plain.bank";
    let answer = both.say("plain", two, "");
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("HTTP/1.1 400"), "{answer}");
}

/// Closes each connection when its second request comes, as a server whose idle time has just passed.
fn impatient(served: &Arc<AtomicU64>) -> u16 {
    let served = Arc::clone(served);
    tcp(move |mut stream| {
        if read_head(&mut stream).is_some() {
            served.fetch_add(1, Relaxed);
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
            let _ = read_head(&mut stream);
        }
    })
}

#[test]
fn an_idempotent_request_survives_a_connection_that_is_just_closed() {
    let served = Arc::new(AtomicU64::new(0));
    // Whatever the policy says: it is no retry.
    let both = Both::with(impatient(&served), "  retries: {maxAttempts: 1}\n");
    for name in NAMES {
        for n in 0..6 {
            let answer = Curl::through(&both.caller).get(&format!("http://{name}.bank/"));
            assert_eq!(answer.status, 200, "{name} {n}: {}", answer.body);
        }
    }
    assert_eq!(served.load(Relaxed), 12);
}

#[test]
fn a_reset_behind_a_sidecar_is_retried_where_a_policy_says_so() {
    let seen = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&seen);
    // Every other connection ends without an answer, and none is used twice.
    let app = tcp(move |mut stream| {
        if read_head(&mut stream).is_some() && count.fetch_add(1, Relaxed) % 2 == 1 {
            let answer = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok";
            let _ = stream.write_all(answer);
        }
    });
    let both = Both::with(
        app,
        "  retries: {maxAttempts: 2, when: {reset: true}}\n  retryBudget: {percent: 100, minPerSecond: 100}\n",
    );
    for name in NAMES {
        let answer = Curl::through(&both.caller).get(&format!("http://{name}.bank/"));
        assert_eq!(answer.status, 200, "{name}: {}", answer.body);
    }
    assert_eq!(seen.load(Relaxed), 4);
}

/// A service with one endpoint for each of `ports`.
fn several(name: &str, ports: &[u16]) -> String {
    let mut text = unmeshed(name, "http", ports[0]);
    for (n, port) in ports.iter().enumerate().skip(1) {
        let other = unmeshed(name, "http", *port);
        let (_, slice) = other.split_once("---\n").expect("its slice");
        text.push_str("---\n");
        text.push_str(&slice.replace(
            &format!("metadata: {{name: {name},"),
            &format!("metadata: {{name: {name}-{n},"),
        ));
    }
    text
}

#[test]
fn an_endpoint_that_fails_quickly_or_is_full_attracts_nobody() {
    let app = |answer: &'static str, after: u64| {
        let count = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&count);
        let port = scripted(move |stream, _, _| {
            counted.fetch_add(1, Relaxed);
            std::thread::park_timeout(Duration::from_millis(after));
            let _ = stream.write_all(answer.as_bytes());
        });
        (port, count)
    };
    let good = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
    for bad in [
        "HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 503 Service Unavailable\r\nretry-after: 30\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 429 Too Many Requests\r\ncontent-length: 0\r\nretry-after: 30\r\n\r\n",
    ] {
        let (one, two, three) = (app(good, 10), app(good, 10), app(bad, 0));
        let plane = ControlPlane::start(&[("app.yaml", &several("app", &[one.0, two.0, three.0]))]);
        let caller = Proxy::caller(&plane, &[]);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        Curl::through(&caller).get("http://app.bank/");
                    }
                });
            }
        });
        let (good, bad_ones) = (one.1.load(Relaxed) + two.1.load(Relaxed), three.1.load(Relaxed));
        assert!(bad_ones * 4 < good, "{bad_ones} of {} went to {bad}", good + bad_ones);
    }
}

/// Downloads beside which small requests are made, and how long each is.
const DOWNLOADS: usize = 4;
const DOWNLOAD: usize = 32 * 1024 * 1024;

/// Downloads the app's bytes until `over`; how many were whole.
fn download(port: u16, over: &AtomicBool) -> usize {
    let mut whole = 0;
    while !over.load(Relaxed) {
        let mut stream = TcpStream::connect(local(port)).expect("a connection");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a limit");
        write!(
            stream,
            "GET http://web.bank/bytes/{DOWNLOAD} HTTP/1.1\r\nhost: web.bank\r\nconnection: close\r\n\r\n"
        )
        .expect("written");
        let mut all = Vec::new();
        stream.read_to_end(&mut all).expect("the whole response");
        let head = all.windows(4).position(|four| four == b"\r\n\r\n").expect("a head") + 4;
        assert_eq!(all.len() - head, DOWNLOAD);
        assert!(all[head..].iter().all(|byte| *byte == b'x'));
        whole += 1;
    }
    whole
}

#[test]
fn small_requests_do_not_wait_behind_long_bodies_on_the_same_hop() {
    for protocol in ["h1", "h2"] {
        let mesh = Mesh::start(protocol);
        let port = mesh.caller.outbound;
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let downloads: Vec<_> =
                (0..DOWNLOADS).map(|_| scope.spawn(|| download(port, &over))).collect();
            eventually("the downloads have begun", || {
                mesh.app.requests.load(Relaxed) >= DOWNLOADS as u64
            });
            let mut took: Vec<_> = (0..60)
                .map(|_| {
                    let began = Instant::now();
                    let said = raw(
                        port,
                        b"GET http://web.bank/ HTTP/1.1\r\nhost: web.bank\r\nconnection: close\r\n\r\n",
                        Duration::from_secs(10),
                    );
                    assert!(said.starts_with("HTTP/1.1 200"), "{said}");
                    began.elapsed()
                })
                .collect();
            over.store(true, Relaxed);
            for download in downloads {
                assert!(download.join().expect("whole downloads") > 0);
            }
            took.sort();
            // One download alone takes longer than that.
            assert!(took[30] < Duration::from_millis(100), "{protocol}: {took:?}");
        });
    }
}
