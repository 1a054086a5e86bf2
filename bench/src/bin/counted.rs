//! Requests through a pair of proxies, with the caller, both proxies and the app in one thread of this process
//! and joined in memory: no socket, no control plane, a fixed seed. What it executes repeats itself, so
//! that callgrind can count it. What the proxies know is what a real pair has kept in its state
//! directories.
//!
//! `counted direct|plain|policies REQUESTS STATE [--tap]`

use std::error::Error;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use clap::{Parser, ValueEnum};
use outrigger_core::config::Protocol;
use outrigger_core::name::Authority;
use outrigger_core::tap::Tap;
use outrigger_logging::Log;
use outrigger_proxy::base::memory::Allocator;
use outrigger_proxy::base::settings::Settings;
use outrigger_proxy::listener::connection::Connection;
use outrigger_proxy::listener::origin::Origin;
use outrigger_proxy::listener::role::Listener;
use outrigger_proxy::listener::slot::Slot;
use outrigger_proxy::mesh::discovery::holdings::Holdings;
use outrigger_proxy::mesh::state::StateDir;
use outrigger_proxy::observe::record::Record;
use outrigger_proxy::proxy::worker::Load;
use outrigger_proxy::proxy::worker::Worker;
use outrigger_proxy::proxy::{BackgroundTasks, Proxy};
use outrigger_proxy::upstream::fixed::Fixed;
use outrigger_proxy::wire::io::{Io, Transport};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::mpsc;
use tokio::task::spawn_local;

/// As in the proxy.
#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

const SEED: u64 = 7;
/// Requests of a second, as taps see them.
const A_SECOND: u32 = 1_000;
/// Bytes that one side may be ahead of the other.
const AHEAD: usize = 64 * 1024;
const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 2\r\n\r\nok";

const STATUS: &[u8] = b"HTTP/1.1 200";

type Failure = Box<dyn Error + Send + Sync>;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Way {
    /// From the caller to the app: what the others have in common.
    Direct,
    Plain,
    Policies,
}

/// Sends requests through a pair of proxies in memory, for callgrind to count.
#[derive(Debug, Parser)]
struct Options {
    way: Way,
    requests: u32,
    /// Folder with the state directories `in` and `out` of the pair
    state: PathBuf,
    /// Has a tap on at both proxies, as at a thousand requests a second: a hundred of them are shown
    #[arg(long)]
    tap: bool,
}

/// What comes of a tap at a proxy.
struct Tapped {
    proxy: Arc<Proxy>,
    records: mpsc::Receiver<Box<Record>>,
}

impl Tapped {
    /// What the thread does that is not traffic; `number` requests have been made.
    fn show(&mut self, number: u32) {
        if number.is_multiple_of(A_SECOND) {
            self.proxy.taps.tick();
        }
        while let Ok(record) = self.records.try_recv() {
            std::hint::black_box(self.proxy.taps.lines(&record));
        }
    }
}

fn main() -> Result<(), Failure> {
    let options = Options::parse();
    let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default())?;
    runtime.block_on(run(options))
}

async fn run(options: Options) -> Result<(), Failure> {
    let (caller, called) = duplex(AHEAD);
    let (host, tapped) = match options.way {
        Way::Direct => {
            spawn_local(app(called));
            ("app.bench", Vec::new())
        }
        Way::Plain => pair(called, "pair-h1.bench", &options)?,
        Way::Policies => pair(called, "policies.bench", &options)?,
    };
    requests(caller, host, options.requests, tapped).await
}

/// Puts two proxies between `called` and the app; returns the host that requests name.
fn pair(
    called: DuplexStream,
    host: &'static str,
    options: &Options,
) -> Result<(&'static str, Vec<Tapped>), Failure> {
    let ports = "19001=h1:http,19005=h1:guarded";
    let (inbound, ours) = worker(options, "in", &["--workload", "pair-1", "--app-port", ports])?;
    join(&inbound, |theirs| {
        spawn_local(app(theirs));
    })?;
    let (outbound, theirs) = worker(options, "out", &["--workload", "caller"])?;
    let dialed = outbound
        .dial_authority(&Authority::parse(host, Some(80))?)
        .map_err(|refusal| refusal.detail.into_owned())?;
    join(&outbound, move |theirs| {
        let listener = Listener::mesh(&inbound.proxy.settings);
        serve(&inbound, theirs, (listener, Protocol::Http2), Fixed::Nothing);
    })?;
    let listener = Listener::app(&outbound.proxy.settings).redirected();
    serve(&outbound, called, (listener, Protocol::Http1), Fixed::Destination(dialed));
    Ok((host, vec![ours, theirs]))
}

/// The only worker of a proxy of its own, which knows what `name` in `state` holds.
fn worker(options: &Options, name: &str, flags: &[&str]) -> Result<(Rc<Worker>, Tapped), Failure> {
    let settings = ["outrigger-proxy", "--namespace", "bench", "--workers", "1"];
    let settings = Settings::parse_from(settings.iter().chain(flags));
    let (proxy, BackgroundTasks { tapped: records, .. }) =
        Proxy::new(settings, None, Log::unread());
    if options.tap {
        proxy.taps.configure(vec![Tap { max_per_second: A_SECOND / 10, ..Tap::default() }]);
    }
    let saved =
        StateDir::open(&options.state.join(name))?.load().ok_or("it holds no configuration")?;
    Holdings::new(Arc::clone(&proxy)).restore(&saved);
    let tapped = Tapped { proxy: Arc::clone(&proxy), records };
    let worker = Worker::new(proxy, 0, Arc::new(Load::default()));
    worker.seed(SEED);
    Ok((worker, tapped))
}

/// Whatever `worker` connects to is answered by `at`, in memory.
fn join(worker: &Worker, at: impl Fn(DuplexStream) + 'static) -> Result<(), Failure> {
    let network = move |_| {
        let (ours, theirs) = duplex(AHEAD);
        at(theirs);
        ours
    };
    let set = worker.pools.opening().memory.set(Box::new(network));
    set.map_err(|_| "the proxy has a network already".into())
}

/// Lets `worker` serve a connection that somebody has opened to it.
fn serve(
    worker: &Rc<Worker>,
    stream: DuplexStream,
    (listener, protocol): (Arc<Listener>, Protocol),
    fixed: Fixed,
) {
    let Some(slot) = Slot::take(&worker.proxy, &worker.load, &listener.limits) else { return };
    let remote = SocketAddr::new(LOCALHOST, 1);
    let slot = Rc::new(slot);
    let peer = listener.peer();
    let origin = Origin { listener, peer, caller: None, remote, fixed, tunnel: None, slot };
    let io = Io::new(Transport::Memory(stream), Bytes::new());
    let worker = Rc::clone(worker);
    spawn_local(async move { Connection::serve(worker, io, protocol, origin).await });
}

/// One request after the other, each answered with 200.
async fn requests(
    mut caller: DuplexStream,
    host: &str,
    requests: u32,
    mut tapped: Vec<Tapped>,
) -> Result<(), Failure> {
    let request = format!("GET /bench HTTP/1.1\r\nhost: {host}\r\naccept: */*\r\n\r\n");
    let mut read = Vec::new();
    for number in 0..requests {
        tapped.iter_mut().for_each(|tapped| tapped.show(number));
        caller.write_all(request.as_bytes()).await?;
        read.clear();
        while !read.ends_with(b"\r\n\r\nok") {
            if caller.read_buf(&mut read).await? == 0 {
                return Err("the connection closed before the answer".into());
            }
            // Another answer may end otherwise.
            if read.len() >= STATUS.len() && !read.starts_with(STATUS) {
                return Err(String::from_utf8_lossy(&read).into_owned().into());
            }
        }
    }
    Ok(())
}

/// Answers every request with the same bytes.
async fn app(mut stream: DuplexStream) {
    let mut read = Vec::new();
    while stream.read_buf(&mut read).await.is_ok_and(|n| n > 0) {
        if read.ends_with(b"\r\n\r\n") {
            read.clear();
            if stream.write_all(ANSWER).await.is_err() {
                return;
            }
        }
    }
}
