//! Taps: requests while they happen, for those who may see them, by `outrigger tap` and by hand.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use outrigger_tests::app::Echo;
use outrigger_tests::client::{Curl, raw};
use outrigger_tests::eventually;
use outrigger_tests::process::{ControlPlane, Proxy, TempDir, binary, local};
use serde_json::Value;

use crate::service;

/// `caller` calls `end`, with identities.
struct Pair {
    caller: Proxy,
    end: Proxy,
    plane: ControlPlane,
    folder: TempDir,
    _app: Echo,
}

impl Pair {
    fn start() -> Self {
        let app = Echo::start("end");
        let plane =
            ControlPlane::start_with(&[("end.yaml", &service("end", ""))], &["--identity", "on"]);
        let end = Proxy::beside(&plane, "end", &[format!("{}=h1:main", app.port)], &[]);
        let caller = Proxy::caller(&plane, &[]);
        let pair = Self { caller, end, plane, folder: TempDir::new("tap"), _app: app };
        eventually("the service answers", || pair.get("/") == 200);
        pair
    }

    fn get(&self, path: &str) -> u16 {
        Curl::through(&self.caller).get(&format!("http://end.bank{path}")).status
    }

    fn command(&self, token: &str, args: &[&str]) -> Command {
        let file = self.folder.path().join("token");
        std::fs::write(&file, token).expect("a token file");
        let mut command = Command::new(binary("outrigger"));
        command.arg("tap").args(args).arg("--token-file").arg(file);
        command.args(["--address", &local(self.plane.admin).to_string()]);
        command
    }

    /// What it prints where it is refused.
    fn refused(&self, token: &str, args: &[&str]) -> String {
        let out = self.command(token, args).output().expect("the tap command");
        assert_eq!(out.status.code(), Some(1), "{out:?}");
        String::from_utf8_lossy(&out.stderr).trim().to_owned()
    }

    fn tap(&self, args: &[&str]) -> Tap {
        let token = self.plane.new_token(&["--tap", "--namespace", "bank"]);
        let mut command = self.command(&token, args);
        Tap::new(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts"))
    }
}

/// A running `outrigger tap`, killed when dropped.
struct Tap {
    child: Child,
    out: mpsc::Receiver<String>,
    err: mpsc::Receiver<String>,
}

impl Drop for Tap {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn lines(from: impl Read + Send + 'static) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            let _ = sender.send(line);
        }
    });
    receiver
}

impl Tap {
    fn new(mut child: Child) -> Self {
        let out = lines(child.stdout.take().expect("a pipe"));
        let err = lines(child.stderr.take().expect("a pipe"));
        Self { child, out, err }
    }

    /// Waits for a line on standard error.
    fn says(&self, word: &str) -> String {
        let end = Instant::now() + Duration::from_secs(20);
        let mut all = Vec::new();
        while let Ok(line) = self.err.recv_timeout(end.saturating_duration_since(Instant::now())) {
            if line.contains(word) {
                return line;
            }
            all.push(line);
        }
        panic!("it never says {word:?}, but {all:?}");
    }

    fn request(&self) -> String {
        self.out.recv_timeout(Duration::from_secs(10)).expect("a request")
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.request()).expect("JSON")
    }
}

#[test]
fn a_tap_shows_what_it_asks_for_as_each_side_sees_it() {
    let pair = Pair::start();
    let both = pair.tap(&["bank", "--json", "--path", "/status/503"]);
    let end = pair.tap(&[
        "bank/end",
        "--json",
        "--status",
        "5xx",
        "--direction",
        "inbound",
        "--header",
        "user-agent",
    ]);
    let human =
        pair.tap(&["bank/caller", "--method", "get", "--service", "bank/end", "--limit", "2"]);
    both.says("watching 2 proxies");
    end.says("watching 1 proxy");
    human.says("watching 1 proxy");
    assert_eq!(pair.get("/fine?secret=1"), 200);
    assert_eq!(pair.get("/status/503"), 503);

    let mut seen = [both.json(), both.json()];
    seen.sort_by_key(|line| line["direction"].to_string());
    let [inbound, outbound] = seen;
    assert_eq!(inbound["workload"], "bank/end", "{inbound:#}");
    assert_eq!(outbound["workload"], "bank/caller", "{outbound:#}");
    assert_eq!(inbound["trace_id"], outbound["trace_id"]);
    for line in [&inbound, &outbound] {
        assert_eq!(
            (line["path"].as_str(), line["status"].as_str()),
            (Some("/status/503"), Some("5xx"))
        );
    }
    let one = end.json();
    assert_eq!(one["path"], "/status/503");
    assert!(
        one["headers"]["user-agent"].as_str().is_some_and(|agent| agent.contains("curl")),
        "{one:#}"
    );
    assert_eq!(one["peer"], "bank/caller");

    // In the order in which they ended; then the limit is reached.
    let (first, second) = (human.request(), human.request());
    assert!(first.contains("-> bank/end:80  GET /fine 2xx"), "{first}");
    assert!(!first.contains("secret"), "{first}");
    assert!(second.contains("GET /status/503 5xx"), "{second}");
    let mut human = human;
    assert!(human.child.wait().expect("an end").success());
}

#[test]
fn a_tap_is_for_those_who_may_see_it_and_says_what_is_wrong() {
    let pair = Pair::start();
    let tap = pair.plane.new_token(&["--tap", "--namespace", "bank"]);
    let join = pair.plane.new_token(&["--namespace", "bank", "--service-account", "end"]);
    let expired = pair.plane.new_token(&["--tap", "--namespace", "bank", "--ttl", "1s"]);
    for (what, token, args, says) in [
        ("no token", "", vec!["bank"], "token --tap"),
        ("a join token", &join, vec!["bank"], "not for taps"),
        ("a forged token", "a.b.c", vec!["bank"], "not for taps"),
        ("another namespace", &tap, vec!["shop"], "for taps of bank and not of shop"),
        ("no namespace", &tap, vec!["Bank_"], "namespace:"),
        ("an empty name", &tap, vec!["bank/"], "workload: is empty"),
        ("an empty condition", &tap, vec!["bank", "--peer", ""], "peer: is empty"),
        ("an unknown reason", &tap, vec!["bank", "--reason", "bad_luck"], "docs/reasons.md"),
        ("an unknown status", &tap, vec!["bank", "--status", "9xx"], "neither as 503 nor as 5xx"),
        (
            "a wrong direction",
            &tap,
            vec!["bank", "--direction", "up"],
            "neither inbound nor outbound",
        ),
        ("a secret header", &tap, vec!["bank", "--header", "cookie"], "--tap-headers"),
        ("a header that is none", &tap, vec!["bank", "--header", "x-other"], "user-agent"),
        ("too much", &tap, vec!["bank", "--max-per-second", "9999"], "between 1 and 1000"),
        ("too long", &tap, vec!["bank", "--for", "2d"], "at most 1h"),
        ("no time", &tap, vec!["bank", "--for", "soon"], "for:"),
    ] {
        let said = pair.refused(token, &args);
        assert!(said.starts_with("error: ") && said.contains(says), "{what}: {said}");
    }
    eventually("a token ends", || {
        let out = pair.command(&expired, &["bank", "--for", "1s"]).output().expect("it runs");
        String::from_utf8_lossy(&out.stderr).contains("expired")
    });
    // An app cannot have its proxy ask for it.
    let get = |headers: &str| {
        let request = format!(
            "GET /tap?namespace=bank HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {tap}\r\n{headers}\r\n"
        );
        raw(pair.plane.admin, request.as_bytes(), Duration::from_millis(700))
    };
    assert!(get("x-outrigger-proxied: 1\r\n").starts_with("HTTP/1.1 403"));
    assert!(get("").contains("\"proxies\":2"));
    let wrong = raw(
        pair.plane.admin,
        b"GET /tap?namespace=bank&pathh=/x HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
        Duration::from_secs(5),
    );
    assert!(wrong.contains("unknown field `pathh`"), "{wrong}");
    let log = pair.plane.process().log();
    assert!(!log.contains(&tap), "a token is never logged");
}

#[test]
fn more_than_a_tap_shows_is_counted_and_one_that_ends_leaves_nothing_behind() {
    let pair = Pair::start();
    let tap = pair.tap(&["bank/end", "--json", "--max-per-second", "5", "--for", "8s"]);
    tap.says("watching 1 proxy");
    for _ in 0..100 {
        assert_eq!(pair.get("/"), 200);
    }
    tap.says("more requests matched than --max-per-second lets be shown");
    let ended = tap.says("its time is over");
    let shown = tap.out.try_iter().count();
    assert!(ended.contains(&format!("{shown} requests shown")), "{ended}");
    assert!((5..=60).contains(&shown), "{shown} requests in 8 s at 5 a second");
    // More than there may be at one time of one namespace, each gone with its reader.
    for _ in 0..20 {
        let tap = pair.tap(&["bank/end", "--limit", "1"]);
        tap.says("watching 1 proxy");
    }
    eventually("the control plane has noticed each end", || {
        let log = pair.plane.process().log();
        log.matches("a tap is closed").count() >= 21
    });
    // The proxies make no more records for anybody.
    let requests = pair.end.count("outrigger_records_dropped_total", &["sink=\"tap\""]);
    assert!(requests.abs() < f64::EPSILON, "{requests} records dropped");
}

#[test]
fn a_reader_who_does_not_read_disturbs_nobody_and_a_restarted_control_plane_ends_a_tap() {
    let mut pair = Pair::start();
    let token = pair.plane.new_token(&["--tap", "--namespace", "bank"]);
    let mut stalled = TcpStream::connect(local(pair.plane.admin)).expect("a connection");
    write!(
        stalled,
        "GET /tap?namespace=bank&max_per_second=1000&headers=user-agent HTTP/1.1\r\nhost: x\r\nauthorization: Bearer \
         {token}\r\n\r\n"
    )
    .expect("a request");
    let other = pair.tap(&["bank", "--json"]);
    other.says("watching 2 proxies");
    let path = format!("/{}", "x".repeat(7_000));
    for _ in 0..300 {
        assert_eq!(pair.get(&path), 200);
    }
    for _ in 0..200 {
        other.request();
    }
    pair.plane.kill();
    let said = other.says("the control plane is gone");
    assert!(said.starts_with("error:"), "{said}");
    pair.plane.run();
    let again = pair.tap(&["bank/end", "--json"]);
    again.says("watching 1 proxy");
    eventually("requests are shown again", || {
        pair.get("/again") == 200 && again.out.try_iter().any(|line| line.contains("/again"))
    });
}
