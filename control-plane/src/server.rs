//! Puts the parts together: folder, index, authority, discovery, registration, admin.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use outrigger_logging::Log;
use outrigger_proto::identity::identity_server::IdentityServer;
use outrigger_proto::mesh::experiments_server::ExperimentsServer;
use outrigger_proto::mesh::workload_server::WorkloadServer;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::service::Routes;

use crate::admin::{self, Admin};
use crate::ca::Authority;
use crate::ca::own::OwnCertificate;
use crate::connection::{self, Tls};
use crate::control;
use crate::discovery::{Discovery, DiscoveryServer};
use crate::experiments::Stopper;
use crate::experiments::saved::{self, SavedStops};
use crate::identity::Certifier;
use crate::index::Index;
use crate::keys;
use crate::lookup;
use crate::manifests::{self, Folder, Watching};
use crate::metrics::Metrics;
use crate::namespaces;
use crate::object::stopped::Stops;
use crate::options::{Mtls, Options, Switch};
use crate::problems::Problems;
use crate::publish::Publisher;
use crate::registration::{Registrar, Registrations};
use crate::replica::Replica;
use crate::status::reader::Statuses;
use crate::store::Store;
use crate::store::dir::Directory;
use crate::token::Tokens;

/// Bytes of a registration, with as many labels and ports as one may have.
const MAX_REGISTER: usize = 256 * 1024;
/// Bytes of a request for a certificate, or to stop an experiment.
const MAX_CERTIFY: usize = 16 * 1024;
/// Open streams are told to end; after this they are cut.
const STOP: Duration = Duration::from_secs(3);

/// Connections that may wait to be accepted: a whole mesh comes back at once. The system's own bound is 4,096.
const BACKLOG: u32 = 4096;

/// Why the control plane could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("--manifests is required: the folder of manifests that describe the mesh")]
    NoManifests,
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
    security: Option<Security>,
    shutdown: watch::Sender<bool>,
    grpc: JoinHandle<()>,
    background: Vec<JoinHandle<()>>,
    watching: Option<Watching>,
}

/// Loads the folder, then listens: nobody is told of half a mesh.
/// `log`: of everything that the process says, for its metrics.
pub async fn start(options: Options, log: Log) -> Result<Server, StartError> {
    let root = options.manifests.clone().ok_or(StartError::NoManifests)?;
    let metrics = Arc::new(Metrics::new());
    let problems = Arc::new(Problems::default());
    let replica = open_store(&options)?;
    let store = replica.as_ref().map(|replica| replica.store.clone());
    let stops = store.as_deref().map(saved::read).unwrap_or_default();
    let publisher = Arc::new(Publisher::new(first_index(&options, store.as_deref(), &stops)));
    let security = Security::open(&options, replica.as_ref())?;
    if let Some(security) = &security {
        security.publish(&publisher);
    }
    let local = options.local();
    let watching = {
        let folder = Folder::new(root.clone(), local, problems.clone(), metrics.clone());
        let publisher = publisher.clone();
        let loaded = tokio::task::spawn_blocking(move || manifests::watch(folder, publisher)).await;
        let loaded = loaded.unwrap_or_else(|error| Err(io::Error::other(error)));
        loaded.map_err(|error| StartError::Manifests { path: root.clone(), error })?
    };
    let (shutdown, stopping) = watch::channel(false);
    let (tokens, registrations) = match &replica {
        Some(replica) => {
            let tokens =
                Tokens::of(&*replica.store).map_err(|error| state_dir_error(&options, error))?;
            let registrations = Registrations::open(
                publisher.clone(),
                metrics.clone(),
                replica.clone(),
                options.grace_period,
                local,
            );
            (Some(Arc::new(tokens)), Some(Arc::new(registrations)))
        }
        None => (None, None),
    };
    let listener = bind("--listen", options.listen)?;
    let admin_listener = bind("--admin", options.admin)?;
    let discovery = local_address(&listener, options.listen);
    let admin_address = local_address(&admin_listener, options.admin);
    let authority = security.as_ref().map(|security| security.authority.clone());
    let (statuses, rounds) = Statuses::new(publisher.clone(), problems.clone(), &metrics);
    let admin = Admin {
        publisher: publisher.clone(),
        registrations: registrations.clone(),
        authority: authority.clone(),
        problems,
        statuses,
        metrics: metrics.clone(),
        log,
    };
    let mut background =
        vec![tokio::spawn(admin::serve(admin_listener, admin)), tokio::spawn(rounds.run())];
    background.push(tokio::spawn(keys::run(publisher.clone(), root, local)));
    background.push(tokio::spawn(lookup::run(publisher.clone(), local)));
    background.extend(registrations.clone().map(|r| tokio::spawn(r.run())));
    let saved_stops = store.clone().map(|s| Arc::new(SavedStops::new(publisher.clone(), s, stops)));
    background.extend(saved_stops.clone().map(|saved| tokio::spawn(saved.keep())));
    background.extend(replica.iter().flat_map(|replica| keep_state(replica, &publisher)));
    let tls = match &security {
        Some(security) => {
            background.extend(security.run(&publisher, &metrics)?);
            Some(security.tls.clone())
        }
        None => None,
    };
    let certify = authority.clone().zip(tokens.clone());
    let stopper = Stopper::new(publisher.clone(), tokens.clone(), saved_stops);
    let routes = routes(
        Discovery::new(publisher.clone(), tokens.clone(), authority, metrics.clone()),
        Registrar::new(registrations.clone(), tokens, stopping.clone()),
        Certifier::new(certify, metrics.clone()),
        stopper,
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
        security,
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
        let write = move || {
            if let Some(replica) = &replica {
                let known = publisher.view().index.known_namespaces();
                if let Err(error) = namespaces::write(&*replica.store, &known) {
                    tracing::error!(%error, "could not write down which namespaces there are");
                }
            }
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
        let watching = self.watching.take();
        let _ = tokio::task::spawn_blocking(move || drop(watching)).await;
    }
}

/// What a mesh with identities has more.
#[derive(Debug)]
struct Security {
    state_dir: PathBuf,
    replica: Arc<Replica>,
    authority: Arc<Authority>,
    own: Arc<OwnCertificate>,
    tls: Tls,
}

impl Security {
    /// `None` in a mesh without identities.
    fn open(options: &Options, replica: Option<&Arc<Replica>>) -> Result<Option<Self>, StartError> {
        if options.identity == Switch::Off {
            tracing::warn!(
                "--identity off: everything is plaintext, and a proxy is believed who it says to be"
            );
            return match options.mtls {
                Mtls::Permissive => Ok(None),
                Mtls::Strict => Err(StartError::StrictWithoutIdentity),
            };
        }
        let state_dir = options.state_dir.clone().ok_or(StartError::NoStateDir)?;
        let replica = replica.ok_or(StartError::NoStateDir)?.clone();
        let authority = Authority::open(
            replica.clone(),
            options.trust_domain.clone(),
            options.certificate_lifetime,
            options.ca_files(),
        );
        let authority = authority.map_err(|error| StartError::Authority(error.to_string()))?;
        let authority = Arc::new(authority);
        let own = Arc::new(OwnCertificate::new(&authority).map_err(StartError::Authority)?);
        let tls = Tls::new(authority.clone(), own.clone()).map_err(StartError::Authority)?;
        Ok(Some(Self { state_dir, replica, authority, own, tls }))
    }

    fn publish(&self, publisher: &Publisher) {
        let bundle = self.authority.in_force().bundle.clone();
        publisher.commit(|index| index.set_trust(bundle));
    }

    /// Starts everything that goes on beside the gRPC server.
    fn run(
        &self,
        publisher: &Arc<Publisher>,
        metrics: &Arc<Metrics>,
    ) -> Result<Vec<JoinHandle<()>>, StartError> {
        let path = self.state_dir.join(control::socket(&self.replica.name));
        let listener = control::bind(&self.state_dir, &self.replica.name)
            .map_err(|error| StartError::Control { path, error })?;
        let (authority, publisher) = (self.authority.clone(), publisher.clone());
        let mut changes = authority.changes();
        let publishing = async move {
            while changes.changed().await.is_ok() {
                let bundle = changes.borrow_and_update().bundle.clone();
                publisher.commit(|index| index.set_trust(bundle));
            }
        };
        Ok(vec![
            tokio::spawn(publishing),
            tokio::spawn(self.authority.ledger.clone().run()),
            tokio::spawn(self.authority.clone().follow_others()),
            tokio::spawn(self.authority.clone().follow_files()),
            tokio::spawn(self.own.clone().run(self.authority.clone(), metrics.clone())),
            tokio::spawn(control::serve(listener, self.authority.clone())),
        ])
    }
}

/// What keeps index and store alike, and says that this replica lives.
fn keep_state(replica: &Arc<Replica>, publisher: &Arc<Publisher>) -> [JoinHandle<()>; 2] {
    let (store, interval) = (replica.store.clone(), replica.timing.poll);
    let namespaces = namespaces::keep(publisher.clone(), store, interval);
    [tokio::spawn(namespaces), tokio::spawn(replica.clone().run())]
}

/// An index without objects, with what outlived the last process.
fn first_index(options: &Options, store: Option<&dyn Store>, stops: &Stops) -> Index {
    let known = store.map(namespaces::read).unwrap_or_default();
    let index = Index::new(options.settings()).with_security(options.security());
    index.with_stops(stops.clone()).with_namespaces(known)
}

/// The store in the state directory, if there is one, and this process among those that share it.
fn open_store(options: &Options) -> Result<Option<Arc<Replica>>, StartError> {
    let Some(path) = &options.state_dir else { return Ok(None) };
    let failed = |error| state_dir_error(options, error);
    let store = Arc::new(Directory::open(path).map_err(failed)?);
    let replica = Arc::new(Replica::new(options.replica.clone(), store, options.timing));
    replica.renew().map_err(|error| failed(error.into()))?;
    Ok(Some(replica))
}

fn state_dir_error(options: &Options, error: io::Error) -> StartError {
    StartError::StateDir { path: options.state_dir.clone().unwrap_or_default(), error }
}

fn routes(
    discovery: Discovery,
    registrar: Registrar,
    certifier: Certifier,
    stopper: Stopper,
) -> Routes {
    let discovery = DiscoveryServer::new(discovery);
    let registrar = WorkloadServer::new(registrar).max_decoding_message_size(MAX_REGISTER);
    let certifier = IdentityServer::new(certifier).max_decoding_message_size(MAX_CERTIFY);
    let stopper = ExperimentsServer::new(stopper).max_decoding_message_size(MAX_CERTIFY);
    let routes = Routes::new(discovery).add_service(registrar).add_service(certifier);
    routes.add_service(stopper)
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
