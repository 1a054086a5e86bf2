//! Puts the parts together: folder, index, discovery, registration, admin.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use outrigger_proto::mesh::workload_server::WorkloadServer;
use outrigger_proto::wire::AggregatedDiscoveryServiceServer;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::transport::server::TcpIncoming;

use crate::admin::{self, Admin};
use crate::discovery::Discovery;
use crate::index::Index;
use crate::manifests::{self, Folder, Watching};
use crate::metrics::Metrics;
use crate::options::Options;
use crate::problems::Problems;
use crate::publish::Publisher;
use crate::registration::{Registrar, Registrations};
use crate::token::Tokens;

/// A connection without traffic is asked whether it lives, and given up after the timeout.
const KEEPALIVE: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Streams of one connection: a proxy has two or three.
const MAX_STREAMS: u32 = 128;
/// Bytes of a request's headers; the token is the largest.
const MAX_HEADERS: u32 = 16 * 1024;
/// Bytes of one request: what a proxy with ten thousand names sends at once.
const MAX_REQUEST: usize = 4 * 1024 * 1024;
/// Open streams are told to end; after this they are cut.
const STOP: Duration = Duration::from_secs(2);

/// Why the control plane could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("--manifests is required: the folder of manifests that describe the mesh")]
    NoManifests,
    #[error("--manifests: {path}: {error}")]
    Manifests { path: PathBuf, error: io::Error },
    #[error("--state-dir: {path}: {error}")]
    StateDir { path: PathBuf, error: io::Error },
    #[error("{flag}: {address}: {error}")]
    Listen { flag: &'static str, address: SocketAddr, error: io::Error },
}

/// A running control plane.
#[derive(Debug)]
pub struct Server {
    /// Where discovery and registration listen.
    pub discovery: SocketAddr,
    pub admin: SocketAddr,
    publisher: Arc<Publisher>,
    registrations: Option<Arc<Registrations>>,
    shutdown: watch::Sender<bool>,
    grpc: JoinHandle<()>,
    background: Vec<JoinHandle<()>>,
    watching: Option<Watching>,
}

/// Loads the folder, then listens: nobody is told of half a mesh.
pub async fn start(options: Options) -> Result<Server, StartError> {
    let root = options.manifests.clone().ok_or(StartError::NoManifests)?;
    let metrics = Arc::new(Metrics::new());
    let problems = Arc::new(Problems::default());
    let publisher = Arc::new(Publisher::new(Index::new(options.settings())));
    let watching = {
        let folder = Folder::new(root.clone(), problems.clone(), metrics.clone());
        let publisher = publisher.clone();
        let loaded = tokio::task::spawn_blocking(move || manifests::watch(folder, publisher)).await;
        let loaded = loaded.unwrap_or_else(|error| Err(io::Error::other(error)));
        loaded.map_err(|error| StartError::Manifests { path: root, error })?
    };
    let (shutdown, stopping) = watch::channel(false);
    let (tokens, registrations) = match &options.state_dir {
        Some(path) => {
            let tokens = Tokens::open(path)
                .map_err(|error| StartError::StateDir { path: path.clone(), error })?;
            let registrations = Registrations::open(
                publisher.clone(),
                metrics.clone(),
                path.clone(),
                options.grace_period,
            );
            (Some(Arc::new(tokens)), Some(Arc::new(registrations)))
        }
        None => (None, None),
    };
    let listener = bind("--listen", options.listen).await?;
    let admin_listener = bind("--admin", options.admin).await?;
    let discovery = local_address(&listener, options.listen);
    let admin_address = local_address(&admin_listener, options.admin);
    let admin = Admin {
        publisher: publisher.clone(),
        registrations: registrations.clone(),
        problems,
        metrics: metrics.clone(),
    };
    let mut background = vec![tokio::spawn(admin::serve(admin_listener, admin))];
    background.extend(registrations.clone().map(|r| tokio::spawn(r.run())));
    let services = Services {
        discovery: Discovery::new(publisher.clone(), tokens.clone(), metrics, stopping.clone()),
        registrar: Registrar::new(registrations.clone(), tokens, stopping.clone()),
    };
    let grpc = tokio::spawn(serve(listener, services, stopping));
    tracing::info!(%discovery, admin = %admin_address, "control plane is ready");
    Ok(Server {
        discovery,
        admin: admin_address,
        publisher,
        registrations,
        shutdown,
        grpc,
        background,
        watching: Some(watching),
    })
}

impl Server {
    pub fn publisher(&self) -> &Arc<Publisher> {
        &self.publisher
    }

    /// Ends every stream, writes registrations and returns when nothing runs any more.
    pub async fn stop(mut self) {
        let _ = self.shutdown.send(true);
        let grpc = self.grpc.abort_handle();
        if tokio::time::timeout(STOP, &mut self.grpc).await.is_err() {
            grpc.abort();
        }
        for task in &self.background {
            task.abort();
        }
        if let Some(registrations) = self.registrations.take() {
            let _ = tokio::task::spawn_blocking(move || registrations.flush()).await;
        }
        let watching = self.watching.take();
        let _ = tokio::task::spawn_blocking(move || drop(watching)).await;
    }
}

struct Services {
    discovery: Discovery,
    registrar: Registrar,
}

async fn serve(listener: TcpListener, services: Services, mut stopping: watch::Receiver<bool>) {
    // Without this a response waits for the acknowledgement of the one before: 40 ms each.
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let discovery = AggregatedDiscoveryServiceServer::new(services.discovery)
        .max_decoding_message_size(MAX_REQUEST);
    let registrar = WorkloadServer::new(services.registrar).max_decoding_message_size(MAX_REQUEST);
    let result = tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .max_concurrent_streams(MAX_STREAMS)
        .http2_max_header_list_size(MAX_HEADERS)
        .add_service(discovery)
        .add_service(registrar)
        .serve_with_incoming_shutdown(incoming, async move {
            // An error means that the server was dropped.
            let _ = stopping.wait_for(|stop| *stop).await;
        })
        .await;
    if let Err(error) = result {
        tracing::error!(%error, "the gRPC server ended");
    }
}

async fn bind(flag: &'static str, address: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|error| StartError::Listen { flag, address, error })
}

/// The address with the port that the system chose for port 0.
fn local_address(listener: &TcpListener, asked: SocketAddr) -> SocketAddr {
    listener.local_addr().unwrap_or(asked)
}
