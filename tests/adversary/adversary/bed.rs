//! An inbound proxy and its app in one thread, joined in memory, so that a case costs microseconds. The clock
//! stands still and jumps whenever nobody has anything to do: no case waits.

use std::cell::RefCell;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use clap::Parser;
use outrigger_core::config::{Inbound, InboundPort, MtlsMode, Protocol};
use outrigger_core::policy::ServerPolicy;
use outrigger_core::policy::access::Access;
use outrigger_logging::Log;
use outrigger_proxy::base::settings::Settings;
use outrigger_proxy::listener::connection::Connection;
use outrigger_proxy::listener::origin::Origin;
use outrigger_proxy::listener::role::Listener;
use outrigger_proxy::listener::slot::Slot;
use outrigger_proxy::proxy::Proxy;
use outrigger_proxy::proxy::worker::Load;
use outrigger_proxy::proxy::worker::Worker;
use outrigger_proxy::request::destination::Target;
use outrigger_proxy::tunnel::stream;
use outrigger_proxy::upstream::fixed::Fixed;
use outrigger_proxy::wire::io::{Io, Transport};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::task::spawn_local;
use tokio::time::timeout;

use super::app::{self, Seen};

/// Of the app.
pub const PORT: u16 = 8080;
/// Bytes that one side may be ahead of the other.
const AHEAD: usize = 64 * 1024;
/// Of a clock that jumps: longer than all that the proxy waits for.
const LONG: Duration = Duration::from_secs(20);

/// Who calls, and in what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seat {
    /// Somebody outside the mesh, redirected to the proxy.
    Outside,
    /// Another proxy, or who speaks like one.
    Mesh,
}

pub struct Bed {
    worker: Rc<Worker>,
    load: Arc<Load>,
    seen: Rc<RefCell<Vec<Seen>>>,
}

impl Bed {
    pub fn new(flags: &[&str]) -> Self {
        let settings = ["outrigger-proxy", "--workers", "1", "--app-port", "8080=h1"];
        let settings = Settings::parse_from(settings.iter().chain(flags));
        let (proxy, _) = Proxy::new(settings, None, Log::unread());
        let load = Arc::new(Load::default());
        let worker = Worker::new(proxy, 0, Arc::clone(&load));
        let seen = Rc::new(RefCell::new(Vec::new()));
        let noted = Rc::clone(&seen);
        let network = move |_| {
            let (ours, theirs) = duplex(AHEAD);
            spawn_local(app::serve(theirs, Rc::clone(&noted)));
            ours
        };
        assert!(worker.pools.opening().memory.set(Box::new(network)).is_ok());
        Self { worker, load, seen }
    }

    /// Puts rules in force, as the control plane would.
    pub fn configure(&self, protocol: Protocol, access: Access, server: Option<ServerPolicy>) {
        let port = InboundPort {
            port: PORT,
            protocol,
            services: Vec::new(),
            mtls: MtlsMode::Permissive,
            access: Some(access),
            server,
        };
        let inbound = Inbound {
            workload: "w".to_owned(),
            addresses: vec![IpAddr::V4(Ipv4Addr::LOCALHOST)],
            ports: vec![port],
        };
        let ports = self.worker.proxy.inbound_ports(&inbound).expect("valid rules");
        self.worker.proxy.inbound.store(Arc::new(ports));
    }

    /// Sends bytes on a connection of their own, in pieces with a pause between, and returns what came back
    /// and what the app has seen of it.
    pub async fn send(&self, seat: Seat, pieces: &[&[u8]]) -> (Vec<u8>, Vec<Seen>) {
        let (mut ours, theirs) = duplex(AHEAD);
        self.serve(seat, theirs);
        let mut answer = Vec::new();
        for piece in pieces {
            // The other side may have had enough.
            if ours.write_all(piece).await.is_err() {
                break;
            }
            let mut more = Vec::new();
            while let Ok(Ok(1..)) = timeout(LONG, ours.read_buf(&mut more)).await {}
            answer.append(&mut more);
        }
        drop(ours);
        (answer, self.seen.take())
    }

    fn serve(&self, seat: Seat, stream: DuplexStream) {
        let worker = Rc::clone(&self.worker);
        let listener = Listener::mesh(&worker.proxy.settings);
        let slot = Slot::take(&worker.proxy, &self.load, &listener.limits).expect("a place");
        let app = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), PORT);
        let (listener, fixed) = match seat {
            Seat::Outside => (listener.redirected(), Fixed::App(app)),
            Seat::Mesh => (listener, Fixed::Nothing),
        };
        let origin = Origin {
            peer: listener.peer(),
            listener,
            caller: None,
            remote: SocketAddr::from(([10, 0, 0, 9], 1)),
            fixed,
            tunnel: None,
            slot: Rc::new(slot),
        };
        spawn_local(async move {
            let transport = Transport::Memory(stream);
            if seat == Seat::Mesh {
                let io = Io::new(transport, Bytes::new());
                return Connection::serve(worker, io, Protocol::Http2, origin).await;
            }
            let ports = worker.proxy.inbound.load_full();
            let Ok(port) = ports.port(PORT) else { return };
            let (rules, limits) = (port.rules.clone(), port.limits.clone());
            let (protocol, service) = (port.declared(), port.service(None));
            let target = Target::App { address: app, protocol, service, rules, limits };
            if let Some(serving) = stream::serve(worker, transport, origin, target).await {
                serving.await;
            }
        });
    }
}

/// Runs a case on a thread of its own with a clock that jumps.
pub fn run<T>(case: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build_local(tokio::runtime::LocalOptions::default())
        .expect("a runtime");
    runtime.block_on(case)
}
