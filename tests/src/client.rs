//! Callers: programs that we did not write, run and read; and plain sockets for what none of them
//! would send.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::eventually;
use crate::process::{Proxy, local};

/// Whether a program is there to be run.
pub fn has(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()))
}

/// A Python that has `module`: that of target/venv, else the system's.
pub fn python_with(module: &str) -> Option<PathBuf> {
    let venv = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/venv/bin/python3"));
    [venv, PathBuf::from("python3")].into_iter().find(|python| {
        let import = format!("import {module}");
        let out = Command::new(python).args(["-c", &import]).output();
        out.is_ok_and(|out| out.status.success())
    })
}

/// `curl` with the proxy in the way; the answer's head and body as text.
pub struct Curl(Command);

/// What curl printed.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
    pub exit: Option<i32>,
}

impl Curl {
    /// Through `proxy` as a forward proxy.
    pub fn through(proxy: &Proxy) -> Self {
        let mut curl = Self::direct();
        curl.0.args(["--proxy", &format!("http://{}", local(proxy.outbound))]);
        curl
    }

    pub fn direct() -> Self {
        let mut command = Command::new("curl");
        command.args(["--silent", "--show-error", "--include", "--max-time", "15"]);
        command.env_remove("http_proxy").env_remove("NO_PROXY");
        Self(command)
    }

    #[must_use]
    pub fn args(mut self, args: &[&str]) -> Self {
        self.0.args(args);
        self
    }

    pub fn get(mut self, url: &str) -> Answer {
        let out = self.0.arg(url).output().expect("curl runs");
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        let mut rest = text.as_str();
        let mut head = "";
        // Interim answers and those to CONNECT come first.
        while rest.starts_with("HTTP/") {
            (head, rest) = rest.split_once("\r\n\r\n").unwrap_or((rest, ""));
        }
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
        let mut body = rest.to_owned();
        if !out.status.success() {
            body.push_str(&String::from_utf8_lossy(&out.stderr));
        }
        Answer { status, head: head.to_owned(), body, exit: out.status.code() }
    }
}

/// Runs a Python program given as text.
pub fn python(python: &PathBuf, program: &str, args: &[&str]) -> Output {
    Command::new(python).arg("-c").arg(program).args(args).output().expect("python runs")
}

/// Status and body of a GET; `None` when nobody answers.
pub fn http_get(port: u16, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(local(port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n").ok()?;
    let mut text = Vec::new();
    stream.read_to_end(&mut text).ok()?;
    let text = String::from_utf8_lossy(&text);
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let body = if head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        unchunk(body)
    } else {
        body.to_owned()
    };
    Some((status, body))
}

fn unchunk(mut text: &str) -> String {
    let mut out = String::new();
    while let Some((size, rest)) = text.split_once("\r\n") {
        let size = usize::from_str_radix(size.trim(), 16).unwrap_or(0);
        if size == 0 || rest.len() < size {
            break;
        }
        out.push_str(&rest[..size]);
        text = rest[size..].trim_start_matches("\r\n");
    }
    out
}

/// Sends bytes as they are and reads until the other side closes or `limit` passes.
pub fn raw(port: u16, bytes: &[u8], limit: Duration) -> String {
    let mut stream = TcpStream::connect(local(port)).expect("a connection");
    stream.set_read_timeout(Some(limit)).expect("a limit");
    // The other side may close while we write: what it said still counts.
    let _ = stream.write_all(bytes);
    let mut text = Vec::new();
    let _ = stream.read_to_end(&mut text);
    String::from_utf8_lossy(&text).into_owned()
}

/// Steady GETs from threads of their own, each on a connection that it keeps.
pub struct Load {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Seen>>,
    threads: Vec<JoinHandle<()>>,
}

/// What the answers were.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub served: u64,
    /// Answers with status 200, by the app that gave them.
    pub by_app: BTreeMap<String, u64>,
    pub failures: Vec<String>,
}

impl Load {
    /// `clients` of them against a local port, each with a pause of `pace` after an answer.
    pub fn start(port: u16, clients: usize, pace: Duration) -> Self {
        Self::with(port, clients, move |due| {
            *due = Instant::now() + pace;
        })
    }

    /// `rate` requests a second by `clients` together, at moments that do not wait for answers: who
    /// is late catches up.
    pub fn at_rate(port: u16, clients: usize, rate: u32) -> Self {
        let clients_u32 = u32::try_from(clients).expect("few clients");
        let interval = Duration::from_secs(1) * clients_u32 / rate;
        Self::with(port, clients, move |due| *due += interval)
    }

    /// `next` moves the moment of a client's next request.
    fn with(
        port: u16,
        clients: usize,
        next: impl Fn(&mut Instant) + Clone + Send + 'static,
    ) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::new(Mutex::new(Seen::default()));
        let threads = (0..clients).map(|_| {
            let (stop, seen, next) = (Arc::clone(&stop), Arc::clone(&seen), next.clone());
            std::thread::spawn(move || {
                let mut connection = None;
                let mut due = Instant::now();
                while !stop.load(Relaxed) {
                    let answer = get_on(&mut connection, port);
                    let mut seen = seen.lock().expect("no thread has panicked");
                    match answer {
                        Ok(app) => {
                            seen.served += 1;
                            *seen.by_app.entry(app).or_default() += 1;
                        }
                        Err(why) => seen.failures.push(why),
                    }
                    drop(seen);
                    next(&mut due);
                    std::thread::park_timeout(due.saturating_duration_since(Instant::now()));
                }
            })
        });
        let threads = threads.collect();
        Self { stop, seen, threads }
    }

    /// What has been seen so far.
    pub fn seen(&self) -> Seen {
        self.seen.lock().expect("no thread has panicked").clone()
    }

    /// Waits for `more` further answers, and gives what was seen of them alone.
    #[track_caller]
    pub fn further(&self, more: u64) -> Seen {
        let before = self.seen();
        eventually("the load goes on", || self.seen().served >= before.served + more);
        let mut seen = self.seen();
        seen.served -= before.served;
        for (app, count) in before.by_app {
            *seen.by_app.entry(app).or_default() -= count;
        }
        seen.failures.drain(..before.failures.len());
        seen
    }

    /// Ends it; fails if one request did.
    #[track_caller]
    pub fn stop_unharmed(self) -> Seen {
        let seen = self.stop();
        assert!(seen.served > 0 && seen.failures.is_empty(), "{seen:?}");
        seen
    }

    pub fn stop(mut self) -> Seen {
        self.stop.store(true, Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().expect("no thread has panicked");
        }
        self.seen()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
    }
}

/// GETs one after the other on one connection; fails if one of them does.
#[track_caller]
pub fn gets(port: u16, count: usize) {
    let mut connection = None;
    for _ in 0..count {
        get_on(&mut connection, port).expect("an answer");
    }
}

/// Requests of which no two have anything in common: method, path, host, and names and values of headers.
pub struct Distinct {
    connection: BufReader<TcpStream>,
    sent: usize,
}

impl Distinct {
    pub fn new(port: u16) -> Self {
        let stream = TcpStream::connect(local(port)).expect("a connection");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a limit");
        Self { connection: BufReader::new(stream), sent: 0 }
    }

    /// Sends so many, 100 at a time.
    pub fn send(&mut self, count: usize) {
        const AT_ONCE: usize = 100;
        for _ in 0..count / AT_ONCE {
            let mut text = String::new();
            for _ in 0..AT_ONCE {
                let n = self.sent;
                self.sent += 1;
                text.push_str(&format!(
                    "M{n} /p{n}?q={n} HTTP/1.1\r\nHost: h{n}.example\r\nx-name-{n}: v\r\nx-request-id: r{n}\r\n\
                     user-agent: u{n}\r\n\r\n"
                ));
            }
            self.connection.get_mut().write_all(text.as_bytes()).expect("room");
            for _ in 0..AT_ONCE {
                self.answer();
            }
        }
    }

    fn answer(&mut self) {
        let (mut line, mut length) = (String::new(), 0);
        while line != "\r\n" {
            line.clear();
            assert!(self.connection.read_line(&mut line).expect("a line") > 0, "it was closed");
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().expect("a length");
            }
        }
        let mut body = vec![0; length];
        self.connection.read_exact(&mut body).expect("a body");
    }
}

/// One GET on a kept connection; the name of the app that answered.
fn get_on(connection: &mut Option<BufReader<TcpStream>>, port: u16) -> Result<String, String> {
    let answer = try_get_on(connection, port);
    if answer.is_err() {
        *connection = None;
    }
    answer
}

fn try_get_on(connection: &mut Option<BufReader<TcpStream>>, port: u16) -> Result<String, String> {
    let stream = match connection {
        Some(stream) => stream,
        None => {
            let stream = TcpStream::connect(local(port)).map_err(|e| format!("connect: {e}"))?;
            let limit = Some(Duration::from_secs(10));
            stream.set_read_timeout(limit).map_err(|e| e.to_string())?;
            connection.insert(BufReader::new(stream))
        }
    };
    let request = b"GET /load HTTP/1.1\r\nhost: load.test\r\n\r\n";
    stream.get_mut().write_all(request).map_err(|e| format!("write: {e}"))?;
    let (mut status, mut app, mut length, mut close) = (String::new(), String::new(), 0, false);
    stream.read_line(&mut status).map_err(|e| format!("read: {e}"))?;
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).map_err(|e| format!("read: {e}"))? == 0 {
            return Err(format!("the connection ended after {status:?}"));
        }
        let line = line.trim_end().to_ascii_lowercase();
        match line.split_once(": ") {
            Some(("x-app", name)) => name.clone_into(&mut app),
            Some(("content-length", n)) => length = n.parse().map_err(|_| line.clone())?,
            Some(("connection", "close")) => close = true,
            None if line.is_empty() => break,
            _ => {}
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).map_err(|e| format!("body: {e}"))?;
    if close {
        *connection = None;
    }
    if status.contains(" 200 ") {
        Ok(app)
    } else {
        Err(format!("{} {}", status.trim_end(), String::from_utf8_lossy(&body)))
    }
}
