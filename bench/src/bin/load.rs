//! The caller: closed loop for saturation, open loop for latency. In open loop each request has its
//! planned time and counts its latency from there, whatever holds it up, so that a stall is charged
//! to every request that it delays (no coordinated omission). The kernel's timers wake the caller,
//! since the runtime's own tick once a millisecond.
//!
//! Prints one JSON line. `load --help` lists the kinds.

use std::cell::RefCell;
use std::error::Error;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use clap::{Parser, ValueEnum};
use h2::client::SendRequest;
use hdrhistogram::Histogram;
use http::Request;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use serde::Serialize;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::{Builder, LocalOptions};
use tokio::time::Instant;

type Failure = Box<dyn Error + Send + Sync>;

/// Streams that each HTTP/2 connection keeps in flight in closed loop.
const STREAMS: usize = 32;
/// Bytes of one TCP message.
const MESSAGE: usize = 64;
/// Size of the canned answer's body.
const BODY: usize = 128;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    H1,
    H2,
    Grpc,
    Tcp,
    /// Opens HTTP/1.1 connections all at once, sends one request on each, then holds them until
    /// standard input ends. Prints the JSON line when all are idle.
    Idle,
    /// The same on HTTP/2.
    IdleH2,
}

/// A load generator for the bench.
#[derive(Debug, Parser)]
struct Options {
    #[arg(long)]
    kind: Kind,
    #[arg(long)]
    address: SocketAddr,
    /// Host that requests name
    #[arg(long, default_value = "web.bench")]
    host: String,
    #[arg(long, default_value_t = 16)]
    connections: usize,
    /// Requests per second over all connections; 0: as fast as answers come
    #[arg(long, default_value_t = 0)]
    rate: u32,
    /// Length of the run, in seconds
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
}

#[derive(Serialize)]
struct Report {
    requests: u64,
    errors: u64,
    seconds: f64,
    p50_us: u64,
    p99_us: u64,
    p999_us: u64,
    max_us: u64,
}

/// What all connections add to.
struct Tally {
    latencies: Histogram<u64>,
    errors: u64,
}

type Shared = Rc<RefCell<Tally>>;

fn main() -> Result<(), Failure> {
    let options = Options::parse();
    let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default())?;
    runtime.block_on(run(Rc::new(options)))
}

async fn run(options: Rc<Options>) -> Result<(), Failure> {
    let latencies = Histogram::new_with_bounds(1, 60_000_000, 3)?;
    let tally = Rc::new(RefCell::new(Tally { latencies, errors: 0 }));
    let began = Instant::now();
    let mut callers = Vec::new();
    for index in 0..options.connections {
        let (options, tally) = (Rc::clone(&options), Rc::clone(&tally));
        callers.push(tokio::task::spawn_local(async move {
            if let Err(error) = connection(&options, index, began, &tally).await {
                eprintln!("connection {index}: {error}");
                tally.borrow_mut().errors += 1;
            }
        }));
    }
    if matches!(options.kind, Kind::Idle | Kind::IdleH2) {
        while tally.borrow().latencies.len() + tally.borrow().errors < options.connections as u64 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        report(&tally, began);
        let _ = tokio::task::spawn_blocking(|| {
            std::io::copy(&mut std::io::stdin(), &mut std::io::sink())
        })
        .await;
        return Ok(());
    }
    for caller in callers {
        let _ = caller.await;
    }
    report(&tally, began);
    Ok(())
}

fn report(tally: &Shared, began: Instant) {
    let tally = tally.borrow();
    let at = |quantile| tally.latencies.value_at_quantile(quantile);
    let report = Report {
        requests: tally.latencies.len(),
        errors: tally.errors,
        seconds: began.elapsed().as_secs_f64(),
        p50_us: at(0.5),
        p99_us: at(0.99),
        p999_us: at(0.999),
        max_us: tally.latencies.max(),
    };
    #[expect(clippy::print_stdout, reason = "the report is the output")]
    if let Ok(line) = serde_json::to_string(&report) {
        println!("{line}");
    }
}

/// The planned times of one connection's requests; without a rate, always now.
struct Plan {
    next: Instant,
    interval: Option<Duration>,
    end: Instant,
    timer: Timer,
}

impl Plan {
    fn new(options: &Options, index: usize, began: Instant) -> Result<Self, Failure> {
        let each = (options.rate > 0)
            .then(|| Duration::from_secs_f64(options.connections as f64 / f64::from(options.rate)));
        let offset = each.unwrap_or_default().mul_f64(index as f64 / options.connections as f64);
        Ok(Self {
            next: Instant::now() + offset,
            interval: each,
            end: began + Duration::from_secs_f64(options.seconds),
            timer: Timer::new()?,
        })
    }

    /// Waits for the next planned time and returns it; `None`: the run is over.
    async fn next(&mut self) -> Result<Option<Instant>, Failure> {
        let Some(interval) = self.interval else {
            let now = Instant::now();
            return Ok((now < self.end).then_some(now));
        };
        let planned = self.next;
        if planned >= self.end {
            return Ok(None);
        }
        self.next += interval;
        self.timer.until(planned).await?;
        Ok(Some(planned))
    }
}

/// One of the kernel's timers: precise to some ten microseconds.
struct Timer(AsyncFd<OwnedFd>);

impl Timer {
    #[expect(deprecated, reason = "its successor is unsafe, and the descriptor is never changed")]
    fn new() -> Result<Self, Failure> {
        let fd = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK)?;
        Ok(Self(AsyncFd::new(fd)?))
    }

    async fn until(&self, at: Instant) -> Result<(), Failure> {
        let left = at.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        let it_interval = Timespec { tv_sec: 0, tv_nsec: 0 };
        let it_value = Timespec {
            tv_sec: i64::try_from(left.as_secs())?,
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        let set = Itimerspec { it_interval, it_value };
        timerfd_settime(self.0.get_ref(), TimerfdTimerFlags::empty(), &set)?;
        loop {
            let mut ready = self.0.readable().await?;
            if ready.try_io(|fd| Ok(rustix::io::read(fd, &mut [0; 8])?)).is_ok() {
                return Ok(());
            }
        }
    }
}

async fn connection(
    options: &Options,
    index: usize,
    began: Instant,
    tally: &Shared,
) -> Result<(), Failure> {
    let mut stream = TcpStream::connect(options.address).await?;
    stream.set_nodelay(true)?;
    let mut plan = Plan::new(options, index, began)?;
    match options.kind {
        Kind::H1 => {
            while let Some(planned) = plan.next().await? {
                http1(&mut stream, &options.host).await?;
                record(tally, planned);
            }
        }
        Kind::Idle => {
            http1(&mut stream, &options.host).await?;
            record(tally, Instant::now());
            std::future::pending::<()>().await;
        }
        Kind::IdleH2 => {
            let (mut sender, connection) = h2::client::handshake(stream).await?;
            tokio::task::spawn_local(connection);
            call(&mut sender, &options.host, false).await?;
            record(tally, Instant::now());
            std::future::pending::<()>().await;
        }
        Kind::Tcp => {
            let mut message = [7; MESSAGE];
            while let Some(planned) = plan.next().await? {
                stream.write_all(&message).await?;
                stream.read_exact(&mut message).await?;
                record(tally, planned);
            }
        }
        Kind::H2 | Kind::Grpc => multiplexed(options, stream, plan, tally).await?,
    }
    Ok(())
}

fn record(tally: &Shared, planned: Instant) {
    let us = u64::try_from(planned.elapsed().as_micros()).unwrap_or(u64::MAX);
    tally.borrow_mut().latencies.saturating_record(us.max(1));
}

async fn http1(stream: &mut TcpStream, host: &str) -> Result<(), Failure> {
    let request =
        format!("GET /bench HTTP/1.1\r\nhost: {host}\r\nuser-agent: load\r\naccept: */*\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut read = Vec::with_capacity(1024);
    loop {
        if stream.read_buf(&mut read).await? == 0 {
            return Err("the connection closed before the answer".into());
        }
        if let Some(at) = read.windows(4).position(|w| w == b"\r\n\r\n") {
            if !read.starts_with(b"HTTP/1.1 200") {
                let line = String::from_utf8_lossy(&read[..at.min(200)]).into_owned();
                return Err(format!("unexpected answer: {line}").into());
            }
            if read.len() >= at + 4 + BODY {
                return Ok(());
            }
        }
    }
}

async fn multiplexed(
    options: &Options,
    stream: TcpStream,
    mut plan: Plan,
    tally: &Shared,
) -> Result<(), Failure> {
    let (sender, connection) = h2::client::Builder::new()
        .initial_window_size(256 * 1024)
        .initial_connection_window_size(64 * 1024 * 1024)
        .handshake::<_, Bytes>(stream)
        .await?;
    tokio::task::spawn_local(connection);
    let grpc = options.kind == Kind::Grpc;
    let host = options.host.clone();
    let end = plan.end;
    let mut calls = Vec::new();
    if plan.interval.is_none() {
        for _ in 0..STREAMS {
            let (mut sender, host, tally) = (sender.clone(), host.clone(), Rc::clone(tally));
            calls.push(tokio::task::spawn_local(async move {
                while Instant::now() < end {
                    let planned = Instant::now();
                    note(&call(&mut sender, &host, grpc).await, planned, &tally);
                }
            }));
        }
    } else {
        while let Some(planned) = plan.next().await? {
            let (mut sender, host, tally) = (sender.clone(), host.clone(), Rc::clone(tally));
            calls.push(tokio::task::spawn_local(async move {
                note(&call(&mut sender, &host, grpc).await, planned, &tally);
            }));
        }
    }
    for call in calls {
        let _ = call.await;
    }
    Ok(())
}

fn note(result: &Result<(), Failure>, planned: Instant, tally: &Shared) {
    match result {
        Ok(()) => record(tally, planned),
        Err(_) => tally.borrow_mut().errors += 1,
    }
}

async fn call(sender: &mut SendRequest<Bytes>, host: &str, grpc: bool) -> Result<(), Failure> {
    let mut request = Request::builder().uri(format!("http://{host}/bench.Bench/Call"));
    if grpc {
        request = request
            .method("POST")
            .header("content-type", "application/grpc")
            .header("te", "trailers");
    }
    std::future::poll_fn(|cx| sender.poll_ready(cx)).await?;
    let (response, mut body) = sender.send_request(request.body(())?, !grpc)?;
    if grpc {
        let mut message = vec![0, 0, 0, 0, 128];
        message.resize(5 + BODY, b'x');
        body.send_data(message.into(), true)?;
    }
    let response = response.await?;
    if response.status() != 200 {
        return Err(format!("status {}", response.status()).into());
    }
    let mut body = response.into_body();
    let mut got = 0;
    while let Some(data) = body.data().await {
        let data = data?;
        got += data.len();
        body.flow_control().release_capacity(data.len())?;
    }
    if got != BODY + if grpc { 5 } else { 0 } {
        return Err("a wrong body".into());
    }
    if grpc {
        let trailers = body.trailers().await?.ok_or("no trailers")?;
        if trailers.get("grpc-status").is_none_or(|status| status != "0") {
            return Err("a wrong grpc-status".into());
        }
    }
    Ok(())
}
