//! One proxy beside an app, in one thread and in memory, for what its connections read.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::Bytes;
use clap::Parser;
use outrigger_core::config::Protocol;
use outrigger_logging::Log;
use outrigger_proxy::base::settings::Settings;
use outrigger_proxy::listener::connection::Connection;
use outrigger_proxy::listener::origin::Origin;
use outrigger_proxy::listener::role::Listener;
use outrigger_proxy::listener::slot::Slot;
use outrigger_proxy::proxy::Proxy;
use outrigger_proxy::proxy::worker::Load;
use outrigger_proxy::proxy::worker::Worker;
use outrigger_proxy::upstream::fixed::Fixed;
use outrigger_proxy::wire::io::{Io, Transport};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::runtime::{Builder, LocalOptions};
use tokio::task::spawn_local;

const APP: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8080);
/// Bytes that one side may be ahead of the other.
const AHEAD: usize = 256 * 1024;
/// No input may keep a connection for longer: both its ends have said all.
const LIMIT: Duration = Duration::from_secs(5);

/// A caller says `caller` and no more, the app says `app` to every connection and no more: the
/// connection has to end, and nothing of it may stay behind. `protocols`: the caller's and the app's.
pub fn exchange(caller: Vec<u8>, app: Vec<u8>, protocols: (Protocol, &str)) {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build_local(LocalOptions::default())
        .expect("invariant: a runtime can be made");
    runtime.block_on(async move {
        let port = format!("{}={}", APP.port(), protocols.1);
        let flags = ["outrigger-proxy", "--workers", "1", "--app-port", &port];
        let (proxy, _) = Proxy::new(Settings::parse_from(flags), None, Log::unread());
        let worker = Worker::new(proxy, 0, Arc::new(Load::default()));
        let network = move |_| {
            let (ours, theirs) = duplex(AHEAD);
            spawn_local(say(theirs, app.clone()));
            ours
        };
        assert!(worker.pools.opening().memory.set(Box::new(network)).is_ok(), "set once");
        let (ours, theirs) = duplex(AHEAD);
        spawn_local(say(ours, caller));
        let served = tokio::time::timeout(LIMIT, serve(&worker, theirs, protocols.0));
        assert!(served.await.is_ok(), "the connection has no end");
        // What its streams were doing ends with it.
        let gauges = &worker.proxy.metrics.gauges;
        let open = || gauges.connections_open.load(Relaxed);
        let held = || open() + gauges.buffered_bytes.load(Relaxed);
        let nothing_left = async {
            while held() > 0 {
                tokio::task::yield_now().await;
            }
        };
        assert!(tokio::time::timeout(LIMIT, nothing_left).await.is_ok(), "something is left");
    });
}

async fn serve(worker: &Rc<Worker>, stream: DuplexStream, protocol: Protocol) {
    let listener = Listener::mesh(&worker.proxy.settings).redirected();
    let slot = Slot::take(&worker.proxy, &worker.load, &listener.limits);
    let slot = Rc::new(slot.expect("invariant: there is no other connection"));
    let remote = SocketAddr::new(APP.ip(), 1);
    let (peer, fixed) = (listener.peer(), Fixed::App(APP));
    let origin = Origin { listener, peer, caller: None, remote, fixed, tunnel: None, slot };
    let io = Io::new(Transport::Memory(stream), Bytes::new());
    Connection::serve(Rc::clone(worker), io, protocol, origin).await;
}

/// Says it, and reads until the other side has said all.
async fn say(stream: DuplexStream, bytes: Vec<u8>) {
    let (mut read, mut write) = tokio::io::split(stream);
    let saying = async {
        // The other side may have ended already.
        let _ = write.write_all(&bytes).await;
        let _ = write.shutdown().await;
    };
    let listening = async {
        let mut buffer = [0; 4096];
        while read.read(&mut buffer).await.is_ok_and(|n| n > 0) {}
    };
    tokio::join!(saying, listening);
}
