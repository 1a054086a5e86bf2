//! Making this workload known to the control plane, and whether its app is there.
//!
//! A name belongs to anyone who registered it first, as long as that one is alive. A proxy that the control
//! plane refuses is not ready, says so, and goes on asking.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use bytes::Bytes;
use outrigger_proto::mesh::registration::Port;
use outrigger_proto::mesh::workload_client::WorkloadClient;
use outrigger_proto::mesh::{
    Health, MeshAddress, RegisterRequest, RegisterResponse, Registration, register_request,
    register_response,
};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use tracing::{error, info, warn};

use crate::base::settings::Settings;
use crate::mesh::control_plane::{Backoff, ControlPlane, FailureLog};
use crate::observe::metrics::add;
use crate::proxy::registration::AppState;
use crate::proxy::{Phase, Proxy};

/// How often the app is probed while it is not there, and while it is.
const PROBE_STARTING: Duration = Duration::from_millis(50);
const PROBE_READY: Duration = Duration::from_millis(500);
/// Time in which the app must accept a connection.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long nothing may listen on a port of the app before that is said.
const SILENT: Duration = Duration::from_secs(5);
const HOP_VERSION: u32 = 1;

/// Bytes of what this process proves with that a name is its own: 256 bits.
const SESSION: usize = 32;

/// Why a stream ended.
pub(crate) enum Failure {
    /// The control plane does not want this workload; asking again helps only when something changes.
    Refused(String),
    Lost(String),
}

impl From<String> for Failure {
    fn from(why: String) -> Self {
        Self::Lost(why)
    }
}

impl From<&str> for Failure {
    fn from(why: &str) -> Self {
        Self::Lost(why.to_owned())
    }
}

impl From<tonic::Status> for Failure {
    fn from(status: tonic::Status) -> Self {
        let why = format!("{}: {}", status.code(), status.message());
        match status.code() {
            Code::AlreadyExists
            | Code::PermissionDenied
            | Code::InvalidArgument
            | Code::ResourceExhausted
            | Code::Aborted => Self::Refused(why),
            _ => Self::Lost(why),
        }
    }
}

/// Registers until the proxy leaves; then says so and reports when everybody has heard.
pub async fn run(proxy: Arc<Proxy>, control_plane: ControlPlane, removed: oneshot::Sender<()>) {
    let session = match session() {
        Ok(session) => session,
        Err(error) => {
            error!(%error, "no system randomness: after a lost connection this proxy cannot reclaim its name until the old stream has ended");
            Bytes::new()
        }
    };
    let starting = AppHealth { health: Health::Starting, closed: Vec::new() };
    let (health, watched) = watch::channel(starting);
    let probe = probe(Arc::clone(&proxy), health);
    let register = async {
        let mut removed = Some(removed);
        let mut earlier = None;
        let mut backoff = Backoff::default();
        let mut complaints = FailureLog::default();
        loop {
            let mut watched = watched.clone();
            let began = Instant::now();
            let streaming =
                stream(&proxy, &control_plane, &session, &mut watched, &mut removed, &mut earlier)
                    .await;
            backoff.lasted(began.elapsed());
            if !matches!(streaming, Ok(RegistrationEnd::Renewed)) {
                proxy.metrics.gauges.registered.store(0, Relaxed);
                proxy.registration.registered.store(None);
            }
            match streaming {
                Ok(RegistrationEnd::Removed) => return,
                Ok(RegistrationEnd::Renewed) => continue,
                Err(Failure::Lost(why)) => {
                    if let Some(left_out) = complaints.say(&why, Instant::now()) {
                        warn!(why, left_out, "this workload is not registered; retrying");
                    }
                }
                Err(Failure::Refused(why)) => refused(&proxy, why, &mut complaints),
            }
            // Leaving and unheard: nobody is left to tell.
            if proxy.lifecycle.phase() != Phase::Running {
                return;
            }
            tokio::time::sleep(backoff.pause()).await;
        }
    };
    tokio::select! {
        () = probe => {}
        () = register => {}
    }
}

/// Random, and told to nobody but the control plane.
fn session() -> Result<Bytes, getrandom::Error> {
    let mut session = [0; SESSION];
    getrandom::fill(&mut session)?;
    Ok(Bytes::copy_from_slice(&session))
}

fn refused(proxy: &Proxy, why: String, complaints: &mut FailureLog) {
    add(&proxy.metrics.gauges.registrations_refused, 1);
    if let Some(left_out) = complaints.say(&why, Instant::now()) {
        error!(
            why,
            left_out,
            "the control plane refused this workload's registration; it gets no traffic and is not \
             ready; retrying"
        );
    }
    proxy.registration.refused.store(Some(Arc::new(why)));
}

/// What is said of the app.
#[derive(Clone, Debug, PartialEq, Eq)]
struct AppHealth {
    health: Health,
    /// Ports of a ready app that accept no connection.
    closed: Vec<u16>,
}

/// Keeps `health` true: ready while a port of the app accepts connections, and which do not.
async fn probe(proxy: Arc<Proxy>, health: watch::Sender<AppHealth>) {
    let mut closed_since: BTreeMap<u16, Instant> = BTreeMap::new();
    let mut told: Vec<SocketAddr> = Vec::new();
    loop {
        let closed = closed_ports(&proxy).await;
        let now = Instant::now();
        closed_since.retain(|port, _| closed.contains(port));
        for port in &closed {
            closed_since.entry(*port).or_insert(now);
        }
        let app = app_state(&proxy, &closed_since);
        tell_of_silent(&app, now, &mut told);
        let there = closed.len() < app.ports;
        proxy.registration.note_app(app);
        let next = match (there, health.borrow().health) {
            _ if proxy.lifecycle.phase() != Phase::Running => Health::Draining,
            (true, _) => Health::Ready,
            (false, Health::Starting) => Health::Starting,
            (false, _) => Health::Unhealthy,
        };
        let pause = if closed.is_empty() { PROBE_READY } else { PROBE_STARTING };
        let next = AppHealth { health: next, closed };
        let draining = next.health == Health::Draining;
        health.send_if_modified(|current| {
            let modified = *current != next;
            *current = next;
            modified
        });
        if draining {
            // The stream ends the task.
            std::future::pending::<()>().await;
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = proxy.lifecycle.reached(Phase::Leaving) => {}
        }
    }
}

fn app_state(proxy: &Proxy, closed_since: &BTreeMap<u16, Instant>) -> AppState {
    let address = |port| SocketAddr::new(proxy.settings.app_address, port);
    let closed = closed_since.iter().map(|(port, since)| (address(*port), *since));
    AppState { closed: closed.collect(), ports: proxy.settings.app_ports.len() }
}

/// Says once of each port that nothing has listened on it for a while.
fn tell_of_silent(app: &AppState, now: Instant, told: &mut Vec<SocketAddr>) {
    told.retain(|address| app.closed.iter().any(|(closed, _)| closed == address));
    for address in app.closed_for(SILENT, now) {
        if !told.contains(&address) {
            warn!(
                %address,
                "the app accepts no connections on a port of --app-port; the port gets no traffic"
            );
            told.push(address);
        }
    }
}

/// The ports on which the app accepts no connection now, in the order of `--app-port`.
async fn closed_ports(proxy: &Proxy) -> Vec<u16> {
    let settings = &proxy.settings;
    let looks = settings.app_ports.iter().map(|app| async move {
        let address = SocketAddr::new(settings.app_address, app.port);
        let connected = tokio::time::timeout(PROBE_TIMEOUT, TcpStream::connect(address)).await;
        (!matches!(connected, Ok(Ok(_)))).then_some(app.port)
    });
    futures::future::join_all(looks).await.into_iter().flatten().collect()
}

/// How a stream ended well.
enum RegistrationEnd {
    Removed,
    /// This side has a new certificate: a new stream takes over.
    Renewed,
}

/// A stream, open until dropped. Its end would withdraw the workload, so after a renewal the earlier
/// one stays open until a new one speaks for it.
type Open = (mpsc::Sender<RegisterRequest>, tonic::Streaming<RegisterResponse>);

async fn stream(
    proxy: &Proxy,
    control_plane: &ControlPlane,
    session: &Bytes,
    health: &mut watch::Receiver<AppHealth>,
    removed: &mut Option<oneshot::Sender<()>>,
    earlier: &mut Option<Open>,
) -> Result<RegistrationEnd, Failure> {
    let renewed = control_plane.renewed();
    tokio::pin!(renewed);
    let channel = control_plane.connect().await?;
    let (requests, queue) = mpsc::channel(8);
    let first = register_request::Message::Registration(registration(proxy, session));
    send(&requests, first, Vec::new()).await?;
    let now = health.borrow_and_update().clone();
    send_health(&requests, now).await?;
    let mut request = tonic::Request::new(ReceiverStream::new(queue));
    control_plane.authorize(request.metadata_mut()).await?;
    let mut responses = WorkloadClient::new(channel).register(request).await?.into_inner();
    loop {
        tokio::select! {
            response = responses.message() => {
                let response = response?.ok_or("the control plane ended the registration")?;
                match response.message {
                    Some(register_response::Message::Accepted(accepted)) => {
                        *earlier = None;
                        proxy.metrics.gauges.registered.store(1, Relaxed);
                        proxy.registration.refused.store(None);
                        info!(uid = accepted.uid, "registered with the control plane");
                        proxy.registration.registered.store(Some(Arc::new(accepted.uid)));
                    }
                    Some(register_response::Message::Removed(_)) => {
                        if let Some(removed) = removed.take() {
                            // The receiver may have stopped waiting.
                            let _ = removed.send(());
                        }
                        return Ok(RegistrationEnd::Removed);
                    }
                    None => return Err("the control plane sent an unknown answer".into()),
                }
            }
            // Not while draining: the answer to that is awaited here.
            () = &mut renewed, if health.borrow().health != Health::Draining => {
                *earlier = Some((requests, responses));
                return Ok(RegistrationEnd::Renewed);
            }
            changed = health.changed() => {
                changed.map_err(|_| "the health probe has ended".to_owned())?;
                let now = health.borrow_and_update().clone();
                let word = now.health.as_str_name();
                info!(health = word, closed_ports = ?now.closed, "the app's health has changed");
                send_health(&requests, now).await?;
            }
        }
    }
}

async fn send(
    requests: &mpsc::Sender<RegisterRequest>,
    message: register_request::Message,
    closed_ports: Vec<u32>,
) -> Result<(), String> {
    let request = RegisterRequest { message: Some(message), closed_ports };
    requests.send(request).await.map_err(|_| "the registration stream closed".to_owned())
}

async fn send_health(
    requests: &mpsc::Sender<RegisterRequest>,
    AppHealth { health, closed }: AppHealth,
) -> Result<(), String> {
    let closed = if health == Health::Ready { closed } else { Vec::new() };
    let closed = closed.into_iter().map(u32::from).collect();
    send(requests, register_request::Message::Health(health.into()), closed).await
}

fn registration(proxy: &Proxy, session: &Bytes) -> Registration {
    let settings = &proxy.settings;
    let ports = settings.app_ports.iter().map(|app| Port {
        port: u32::from(app.port),
        name: app.name.clone(),
        protocol: outrigger_proto::convert::protocol_to_wire(app.protocol),
    });
    Registration {
        namespace: settings.namespace.clone(),
        service_account: settings.service_account.clone(),
        name: settings.workload.clone(),
        labels: settings.label_map(),
        address: settings.app_address.to_string(),
        ports: ports.collect(),
        mesh: Some(MeshAddress {
            address: mesh_address(settings).to_string(),
            hop_version: HOP_VERSION,
            identity: String::new(),
        }),
        zone: settings.zone.clone().unwrap_or_default(),
        session: session.clone(),
    }
}

/// Where other proxies dial this one: a listener on every address is reached at the app's.
fn mesh_address(settings: &Settings) -> SocketAddr {
    let mut address = settings.inbound;
    if address.ip().is_unspecified() {
        address.set_ip(settings.app_address);
    }
    address
}
