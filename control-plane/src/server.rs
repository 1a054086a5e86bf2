//! Puts the parts together: source, index, authority, discovery, registration, admin.

mod durable;
mod security;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use outrigger_logging::Log;
use outrigger_proto::graph::graph_server::GraphServer;
use outrigger_proto::identity::identity_server::IdentityServer;
use outrigger_proto::mesh::experiments_server::ExperimentsServer;
use outrigger_proto::mesh::workload_server::WorkloadServer;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::service::Routes;

use crate::admin::{self, Admin};
use crate::analysis;
use kube::Client;

use crate::admission::{Injector, Webhook};
use crate::ca::Authority;
use crate::cluster::pods::PodController;
use crate::cluster::review::Reviewer;
use crate::cluster::writer::StatusWriter;
use crate::connection;
use crate::discovery::{Discovery, DiscoveryServer};
use crate::experiments::Stopper;
use crate::experiments::saved::SavedStops;
use crate::graph::Graph;
use crate::graph::report::Reports;
use crate::identity::Certifier;
use crate::keys;
use crate::lookup;
use crate::metrics::Metrics;
use crate::namespaces;
use crate::options::Options;
use crate::problems::Problems;
use crate::publish::Publisher;
use crate::registration::objects::Objects;
use crate::registration::{Registrar, Registrations};
use crate::replica::Replica;
use crate::source::kubernetes::{self, ConnectError, Kubernetes};
use crate::source::manifests::{self, Folder, Watching};
use crate::status::reader::Statuses;
use crate::tap::page::TapServer;
use durable::Durable;
use security::ServerSecurity;

/// Bytes of a registration, with as many labels and ports as one may have.
const MAX_REGISTER: usize = 256 * 1024;
/// Bytes of a request for a certificate, or to stop a fault injection.
const MAX_CERTIFY: usize = 16 * 1024;
/// Bytes of a report of calls, with as many edges as a proxy has series.
const MAX_REPORT: usize = 1024 * 1024;
/// Open streams are told to end; after this they are cut.
const STOP: Duration = Duration::from_secs(3);

/// Connections that may wait to be accepted: a whole mesh comes back at once. The system's own bound is 4,096.
const BACKLOG: u32 = 4096;

/// Why the control plane could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("no source of configuration: set --kubernetes, or --manifests with a folder")]
    NoSource,
    #[error("--kubernetes: {0}")]
    Kubernetes(#[from] ConnectError),
    #[error("{0}")]
    Store(io::Error),
    #[error("--manifests: {path}: {error}")]
    Manifests { path: PathBuf, error: io::Error },
    #[error("--state-dir: {path}: {error}")]
    StateDir { path: PathBuf, error: io::Error },
    #[error(
        "--identity on, the default, needs --state-dir: the certificate authority lives there; \
         --identity off runs the mesh without certificates"
    )]
    NoStateDir,
    #[error("--mtls strict needs --identity on: without certificates nobody could connect")]
    StrictWithoutIdentity,
    #[error("the certificate authority: {0}")]
    Authority(String),
    #[error("--webhook needs --identity on: its certificate is under the roots of the mesh")]
    WebhookWithoutIdentity,
    #[error("--inject: {0}")]
    Inject(String),
    #[error("--webhook-host: {0}")]
    Webhook(String),
    #[error("{path}: {error}; the commands of `trust` come by this socket")]
    Control { path: PathBuf, error: io::Error },
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
    replica: Option<Arc<Replica>>,
    registrations: Option<Arc<Registrations>>,
    graph: Arc<Graph>,
    security: Option<ServerSecurity>,
    shutdown: watch::Sender<bool>,
    grpc: JoinHandle<()>,
    background: Vec<JoinHandle<()>>,
    source: Option<ObjectSource>,
}

/// Where objects come from, while the server runs.
#[derive(Debug)]
enum ObjectSource {
    Manifests(#[expect(dead_code, reason = "watches until it is dropped")] Watching),
    Kubernetes(Kubernetes),
}

impl ObjectSource {
    /// Takes everything over that is there, and whatever changes from then on.
    async fn start(
        options: &Options,
        client: Option<&Client>,
        publisher: &Arc<Publisher>,
        problems: &Arc<Problems>,
        metrics: &Arc<Metrics>,
    ) -> Result<Self, StartError> {
        let (publisher, problems) = (publisher.clone(), problems.clone());
        let (metrics, local) = (metrics.clone(), options.local());
        if let Some(client) = client {
            let client = client.clone();
            let kubernetes = Kubernetes::start(client, publisher, problems, metrics, local);
            kubernetes.synced().await;
            return Ok(Self::Kubernetes(kubernetes));
        }
        let path = options.manifests.clone().ok_or(StartError::NoSource)?;
        let folder = Folder::new(path.clone(), local, problems, metrics);
        let loaded = tokio::task::spawn_blocking(move || manifests::watch(folder, publisher)).await;
        let loaded = loaded.unwrap_or_else(|error| Err(io::Error::other(error)));
        loaded.map(Self::Manifests).map_err(|error| StartError::Manifests { path, error })
    }
}

/// Takes over what the source has, then listens: nobody is told of half a mesh.
/// `log`: of everything that the process says, for its metrics.
pub async fn start(options: Options, log: Log) -> Result<Server, StartError> {
    let metrics = Arc::new(Metrics::new());
    let problems = Arc::new(Problems::default());
    let client = reachable(&options).await?;
    let Durable { replica, stops, publisher, security, tokens } =
        Durable::open(&options, client.as_ref()).await?;
    let store = replica.as_ref().map(|replica| replica.store.clone());
    let local = options.local();
    let source =
        ObjectSource::start(&options, client.as_ref(), &publisher, &problems, &metrics).await?;
    let (shutdown, stopping) = watch::channel(false);
    let registrations = registrations(&options, replica.as_ref(), &publisher, &metrics).await?;
    let listener = bind("--listen", options.listen)?;
    let admin_listener = bind("--admin", options.admin)?;
    let discovery = local_address(&listener, options.listen);
    let admin_address = local_address(&admin_listener, options.admin);
    let authority = security.as_ref().map(|security| security.authority.clone());
    let graph = Graph::open(publisher.clone(), metrics.clone(), replica.clone()).await;
    let (statuses, rounds) = Statuses::new(publisher.clone(), problems.clone(), &metrics);
    let admin = Admin {
        publisher: publisher.clone(),
        registrations: registrations.clone(),
        authority: authority.clone(),
        problems: analysis::start(&publisher, problems),
        statuses: statuses.clone(),
        graph: graph.clone(),
        tap: TapServer::new(&options, client.clone(), tokens.clone(), graph.clone()),
        metrics: metrics.clone(),
        log,
    };
    let mut background = vec![tokio::spawn(rounds.run()), tokio::spawn(graph.clone().run())];
    background.extend(serve_metrics(&options, &admin)?);
    background.push(tokio::spawn(admin::serve(admin_listener, admin)));
    background.push(tokio::spawn(keys::run(publisher.clone(), options.manifests.clone(), local)));
    background.push(tokio::spawn(lookup::run(publisher.clone(), local)));
    background.extend(registrations.clone().map(|r| tokio::spawn(r.run())));
    let saved_stops = store.clone().map(|s| Arc::new(SavedStops::new(publisher.clone(), s, stops)));
    background.extend(saved_stops.clone().map(|saved| tokio::spawn(saved.keep())));
    background.extend(replica.iter().flat_map(|replica| keep_state(replica, &publisher)));
    if let Some(security) = &security {
        background.extend(security.run(&publisher, &metrics)?);
    }
    let tls = security.as_ref().map(|security| security.tls.clone());
    if let (Some(client), ObjectSource::Kubernetes(kubernetes), Some(replica)) =
        (&client, &source, &replica)
    {
        let registrations = registrations.clone();
        background.extend(write_back(client, kubernetes, replica, statuses, registrations));
    }
    if let (Some(client), Some(address)) = (&client, options.pods.address) {
        let security = security.as_ref().ok_or(StartError::WebhookWithoutIdentity)?;
        let mut webhook = Webhook::new(publisher.clone(), metrics.clone(), local);
        if let Some(path) = &options.pods.inject {
            let injector = Injector::open(path, client.clone(), security.authority.clone());
            webhook.injector = Some(Arc::new(injector.map_err(StartError::Inject)?));
        }
        let pods = PodsOf { options: &options, source: &source, replica: replica.as_ref() };
        background.extend(pods.look_after(&metrics, client, webhook.injector.as_deref()));
        background.extend(security.webhook(&options, address, client, webhook)?);
    }
    let reviewer = client.map(|client| {
        let audience = options.pods.token_audience.clone();
        Arc::new(Reviewer::new(client, publisher.clone(), audience))
    });
    let certify = authority.clone().zip(tokens.clone());
    let stopper = Stopper::new(publisher.clone(), tokens.clone(), saved_stops);
    let routes = routes(
        Discovery::new(publisher.clone(), tokens.clone(), authority, metrics.clone()),
        Registrar::new(registrations.clone(), tokens.clone(), stopping.clone()),
        Certifier::new(certify, reviewer, metrics.clone()),
        stopper,
        Reports::new(graph.clone(), tokens),
    );
    let identity = if tls.is_some() { "on" } else { "off" };
    let grpc = tokio::spawn(connection::serve(listener, routes, tls, metrics, stopping));
    tracing::info!(%discovery, admin = %admin_address, identity, "control plane is ready");
    Ok(Server {
        discovery,
        admin: admin_address,
        publisher,
        replica,
        registrations,
        graph,
        security,
        shutdown,
        grpc,
        background,
        source: Some(source),
    })
}

impl Server {
    pub fn publisher(&self) -> &Arc<Publisher> {
        &self.publisher
    }

    /// The certificate authority, in a mesh with identities.
    pub fn authority(&self) -> Option<&Arc<Authority>> {
        self.security.as_ref().map(|security| &security.authority)
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
        let (registrations, security) = (self.registrations.take(), self.security.take());
        let (publisher, replica) = (self.publisher.clone(), self.replica.take());
        let graph = self.graph.clone();
        let write = move || {
            if let Some(replica) = &replica {
                let known = publisher.view().index.known_namespaces();
                if let Err(error) = namespaces::write(&*replica.store, &known) {
                    tracing::error!(%error, "could not write down which namespaces there are");
                }
            }
            graph.leave();
            if let Some(registrations) = registrations {
                registrations.flush();
            }
            if let Some(security) = security {
                security.authority.ledger.flush();
            }
            if let Some(replica) = &replica {
                replica.leave();
            }
        };
        let _ = tokio::task::spawn_blocking(write).await;
        let source = self.source.take();
        let _ = tokio::task::spawn_blocking(move || drop(source)).await;
    }
}

/// A client of the cluster's API server, once that answers; none without a cluster.
async fn reachable(options: &Options) -> Result<Option<Client>, StartError> {
    let Some(cluster) = options.cluster() else { return Ok(None) };
    let client = cluster.client().await?;
    kubernetes::reachable(&client).await;
    Ok(Some(client))
}

/// What writes status and registered workloads to the API server.
fn write_back(
    client: &Client,
    kubernetes: &Kubernetes,
    replica: &Arc<Replica>,
    statuses: Arc<Statuses>,
    registrations: Option<Arc<Registrations>>,
) -> Vec<JoinHandle<()>> {
    let generations = kubernetes.generations.clone();
    let writer = StatusWriter::new(client.clone(), statuses, generations, replica.clone());
    let objects = registrations.map(|all| Objects::new(client.clone(), all, replica.clone()));
    let objects = objects.map(|objects| tokio::spawn(objects.run()));
    std::iter::once(tokio::spawn(writer.run())).chain(objects).collect()
}

/// Where pods are seen, and what is to be done about their proxies.
struct PodsOf<'a> {
    options: &'a Options,
    source: &'a ObjectSource,
    replica: Option<&'a Arc<Replica>>,
}

impl PodsOf<'_> {
    /// Looks after the proxies of pods that were injected here, or should have been.
    fn look_after(
        &self,
        metrics: &Arc<Metrics>,
        client: &Client,
        injector: Option<&Injector>,
    ) -> Option<JoinHandle<()>> {
        let ObjectSource::Kubernetes(kubernetes) = self.source else { return None };
        let controller = PodController::new(
            client.clone(),
            kubernetes.pods.clone(),
            self.replica?.clone(),
            metrics.clone(),
            injector?.image().to_owned(),
            self.options.pods.upgrade_proxies,
        );
        Some(tokio::spawn(controller.run()))
    }
}

/// Serves numbers to everybody, if asked to.
fn serve_metrics(options: &Options, admin: &Admin) -> Result<Option<JoinHandle<()>>, StartError> {
    let listener = options.metrics.map(|address| bind("--metrics", address)).transpose()?;
    Ok(listener.map(|listener| tokio::spawn(admin::serve_public(listener, admin.clone()))))
}

/// Takes over those that the store remembers.
async fn registrations(
    options: &Options,
    replica: Option<&Arc<Replica>>,
    publisher: &Arc<Publisher>,
    metrics: &Arc<Metrics>,
) -> Result<Option<Arc<Registrations>>, StartError> {
    let Some(replica) = replica.cloned() else { return Ok(None) };
    let (publisher, metrics) = (publisher.clone(), metrics.clone());
    let (grace, local) = (options.grace_period, options.local());
    let open = move || Registrations::open(publisher, metrics, replica, grace, local);
    let opened = tokio::task::spawn_blocking(open).await;
    Ok(Some(Arc::new(opened.map_err(|error| StartError::Store(io::Error::other(error)))?)))
}

/// What keeps index and store alike, and says that this replica lives.
fn keep_state(replica: &Arc<Replica>, publisher: &Arc<Publisher>) -> [JoinHandle<()>; 2] {
    let (store, interval) = (replica.store.clone(), replica.timing.poll);
    let namespaces = namespaces::keep(publisher.clone(), store, interval);
    [tokio::spawn(namespaces), tokio::spawn(replica.clone().run())]
}

fn routes(
    discovery: Discovery,
    registrar: Registrar,
    certifier: Certifier,
    stopper: Stopper,
    reports: Reports,
) -> Routes {
    let discovery = DiscoveryServer::new(discovery);
    let registrar = WorkloadServer::new(registrar).max_decoding_message_size(MAX_REGISTER);
    let certifier = IdentityServer::new(certifier).max_decoding_message_size(MAX_CERTIFY);
    let stopper = ExperimentsServer::new(stopper).max_decoding_message_size(MAX_CERTIFY);
    let routes = Routes::new(discovery).add_service(registrar).add_service(certifier);
    let reports = GraphServer::new(reports).max_decoding_message_size(MAX_REPORT);
    routes.add_service(stopper).add_service(reports)
}

fn bind(flag: &'static str, address: SocketAddr) -> Result<TcpListener, StartError> {
    let listen = || {
        let socket = match address {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        // A port that was in use a moment ago by a process that has ended.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    listen().map_err(|error| StartError::Listen { flag, address, error })
}

/// The address with the port that the system chose for port 0.
fn local_address(listener: &TcpListener, asked: SocketAddr) -> SocketAddr {
    listener.local_addr().unwrap_or(asked)
}
