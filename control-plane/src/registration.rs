//! Workloads that make themselves known: the stream that registers one and says how it is.
//!
//! An endpoint is published only while its workload is Ready. Draining withdraws it and answers
//! when every proxy that knew it has acknowledged that; a cleanly closed stream withdraws it at
//! once, a broken one after the grace period. [`saved`] keeps registrations over a restart.

mod saved;

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use outrigger_proto::mesh::register_request::Message as Incoming;
use outrigger_proto::mesh::register_response::Message as Outgoing;
use outrigger_proto::mesh::workload_server::Workload as WorkloadService;
use outrigger_proto::mesh::{
    Accepted, Health, RegisterRequest, RegisterResponse, Registration, Unit,
};
use tokio::sync::{Notify, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::index::PortId;
use crate::metrics::Metrics;
use crate::object::Workload;
use crate::publish::{Publisher, lock};
use crate::token::{Claims, Tokens, bearer};
use crate::translate;

/// How long a new stream may take to say what it registers.
const FIRST_MESSAGE: Duration = Duration::from_secs(10);
/// How long the health of an earlier stream holds until the new one says its own.
const FIRST_HEALTH: Duration = Duration::from_secs(2);
/// How long proxies have to acknowledge that an endpoint is gone.
const ACKNOWLEDGED: Duration = Duration::from_secs(5);

/// Every registered workload, connected or within its grace period.
#[derive(Debug)]
pub struct Registrations {
    publisher: Arc<Publisher>,
    metrics: Arc<Metrics>,
    entries: Mutex<HashMap<String, Entry>>,
    next_stream: AtomicU64,
    grace: Duration,
    state_dir: PathBuf,
    changed: Notify,
}

#[derive(Clone, Debug)]
struct Entry {
    workload: Workload,
    health: Health,
    /// The stream that speaks for it; an older one's end means nothing.
    stream: u64,
    connected: bool,
}

impl Registrations {
    /// Reads what was registered before the last stop and puts it into the index.
    pub fn open(
        publisher: Arc<Publisher>,
        metrics: Arc<Metrics>,
        state_dir: PathBuf,
        grace: Duration,
    ) -> Self {
        let saved = saved::read(&state_dir);
        let entries = saved.into_iter().map(|(workload, health)| {
            let entry = Entry { workload, health, stream: 0, connected: false };
            (entry.workload.uid(), entry)
        });
        let registrations = Self {
            publisher,
            metrics,
            entries: Mutex::new(entries.collect()),
            // 0 is the stream of what was read from disk.
            next_stream: AtomicU64::new(1),
            grace,
            state_dir,
            changed: Notify::new(),
        };
        registrations.publisher.commit(|index| {
            for entry in registrations.entries().values() {
                index.register(entry.published());
            }
        });
        registrations.note_change();
        registrations
    }

    /// Writes changes to disk, and lets go of what was on disk and has not been heard from.
    pub async fn run(self: Arc<Self>) {
        let forget = async {
            tokio::time::sleep(self.grace).await;
            let silent: Vec<String> = {
                let entries = self.entries();
                let silent = entries.iter().filter(|(_, e)| e.stream == 0 && !e.connected);
                silent.map(|(uid, _)| uid.clone()).collect()
            };
            for uid in silent {
                tracing::info!(uid, "workload did not come back after the restart");
                self.remove(&uid, 0);
            }
        };
        let write = async {
            loop {
                self.changed.notified().await;
                let entries: Vec<_> = {
                    let entries = self.entries();
                    entries.values().map(|e| (e.workload.clone(), e.health)).collect()
                };
                let state_dir = self.state_dir.clone();
                let written =
                    tokio::task::spawn_blocking(move || saved::write(&state_dir, &entries));
                if let Ok(Err(error)) = written.await {
                    tracing::error!(%error, "could not write registrations to the state directory");
                }
            }
        };
        tokio::join!(forget, write);
    }

    /// Puts a registration in force and gives the number of the stream that speaks for it.
    fn register(&self, workload: Workload) -> u64 {
        let stream = self.next_stream.fetch_add(1, Ordering::Relaxed);
        let uid = workload.uid();
        let mut entries = self.entries();
        let before = entries.get(&uid);
        // A proxy that lost its stream comes back as it was: nothing flaps in between.
        let same = before.filter(|e| e.workload == workload && e.health == Health::Ready);
        let health = same.map_or(Health::Starting, |entry| entry.health);
        let entry = Entry { workload, health, stream, connected: true };
        self.publisher.commit(|index| index.register(entry.published()));
        entries.insert(uid, entry);
        drop(entries);
        self.note_change();
        stream
    }

    /// Notes what a stream says of its workload's health. For Draining, completes when the
    /// endpoint is gone everywhere.
    fn set_health(&self, uid: &str, stream: u64, health: Health) -> Option<Drain> {
        let mut entries = self.entries();
        let entry = entries.get_mut(uid).filter(|entry| entry.stream == stream)?;
        entry.health = health;
        let published = entry.published();
        let (ports, commit) = self.publisher.commit(|index| {
            let mut ports = Vec::new();
            for id in index.selecting(&published) {
                let service_ports = index.service(id).into_iter().flat_map(|s| &s.ports);
                ports.extend(service_ports.map(|p| PortId::new(id, p.port)));
            }
            index.register(published);
            ports
        });
        drop(entries);
        self.note_change();
        let publisher = self.publisher.clone();
        Some(Drain { publisher, ports, commit })
    }

    /// Whether the health that the stream inherited from an earlier one still holds.
    fn forget_inherited_health(&self, uid: &str, stream: u64) {
        let ready = self.entries().get(uid).is_some_and(|entry| entry.health == Health::Ready);
        if ready {
            self.set_health(uid, stream, Health::Starting);
        }
    }

    fn break_off(self: Arc<Self>, uid: String, stream: u64) {
        if let Some(entry) = self.entries().get_mut(&uid).filter(|e| e.stream == stream) {
            entry.connected = false;
        }
        tokio::spawn(async move {
            tokio::time::sleep(self.grace).await;
            self.remove(&uid, stream);
        });
    }

    /// Removes a workload unless another stream speaks for it by now.
    fn remove(&self, uid: &str, stream: u64) {
        let mut entries = self.entries();
        if entries.get(uid).is_none_or(|entry| entry.stream != stream) {
            return;
        }
        entries.remove(uid);
        self.publisher.commit(|index| index.deregister(uid));
        drop(entries);
        tracing::info!(uid, "workload removed");
        self.note_change();
    }

    fn note_change(&self) {
        let count = self.entries().len();
        self.metrics.workloads.set(i64::try_from(count).unwrap_or(i64::MAX));
        self.changed.notify_one();
    }

    /// Writes the last state before the process ends.
    pub fn flush(&self) {
        let entries: Vec<_> =
            self.entries().values().map(|e| (e.workload.clone(), e.health)).collect();
        if let Err(error) = saved::write(&self.state_dir, &entries) {
            tracing::error!(%error, "could not write registrations to the state directory");
        }
    }

    /// What the admin server shows of a workload.
    pub fn describe(&self, uid: &str) -> Option<(&'static str, bool)> {
        self.entries().get(uid).map(|entry| (word(entry.health), entry.connected))
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        lock(&self.entries)
    }
}

impl Entry {
    /// The workload as the index has it.
    fn published(&self) -> Workload {
        Workload { ready: self.health == Health::Ready, ..self.workload.clone() }
    }
}

/// An endpoint on its way out.
struct Drain {
    publisher: Arc<Publisher>,
    ports: Vec<PortId>,
    commit: crate::publish::Commit,
}

impl Drain {
    async fn finished(self) {
        let settled = self.publisher.settled(self.commit, &self.ports);
        if tokio::time::timeout(ACKNOWLEDGED, settled).await.is_err() {
            tracing::warn!("not every proxy has acknowledged the removal of an endpoint in time");
        }
    }
}

fn word(health: Health) -> &'static str {
    match health {
        Health::Unspecified => "unspecified",
        Health::Starting => "starting",
        Health::Ready => "ready",
        Health::Draining => "draining",
        Health::Unhealthy => "unhealthy",
    }
}

/// The gRPC service. Without a state directory there are no tokens, and nobody can register.
#[derive(Debug)]
pub struct Registrar {
    registrations: Option<Arc<Registrations>>,
    tokens: Option<Arc<Tokens>>,
    shutdown: watch::Receiver<bool>,
}

impl Registrar {
    pub fn new(
        registrations: Option<Arc<Registrations>>,
        tokens: Option<Arc<Tokens>>,
        shutdown: watch::Receiver<bool>,
    ) -> Self {
        Self { registrations, tokens, shutdown }
    }
}

#[tonic::async_trait]
impl WorkloadService for Registrar {
    type RegisterStream = ReceiverStream<Result<RegisterResponse, Status>>;

    async fn register(
        &self,
        request: Request<Streaming<RegisterRequest>>,
    ) -> Result<Response<Self::RegisterStream>, Status> {
        let (Some(registrations), Some(tokens)) = (&self.registrations, &self.tokens) else {
            return Err(Status::failed_precondition(
                "this control plane was started without --state-dir, which registrations need",
            ));
        };
        let token = bearer(request.metadata())?.ok_or_else(|| {
            Status::unauthenticated(
                "a join token is required: get one with `outrigger-control-plane token`",
            )
        })?;
        let claims = tokens.verify(token)?;
        let peer = request.remote_addr().map(|address| address.ip().to_canonical());
        let mut requests = request.into_inner();
        let first = tokio::time::timeout(FIRST_MESSAGE, requests.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("no registration came"))??;
        let Some(Incoming::Registration(registration)) = first.and_then(|r| r.message) else {
            return Err(Status::invalid_argument("the first message must be a registration"));
        };
        let workload = admit(&registration, &claims, peer)?;
        let uid = workload.uid();
        let stream = registrations.register(workload);
        tracing::info!(uid, "workload registered");
        // Accepted and removed are all that is ever answered.
        let (responses, receiver) = mpsc::channel(4);
        let accepted = Outgoing::Accepted(Accepted { uid: uid.clone() });
        let accepted = RegisterResponse { message: Some(accepted) };
        responses.send(Ok(accepted)).await.map_err(|_| Status::cancelled("the stream ended"))?;
        let registrations = registrations.clone();
        let mut shutdown = self.shutdown.clone();
        tokio::spawn(async move {
            let stopping = tokio::select! {
                () = follow(registrations, requests, responses.clone(), &uid, stream) => false,
                // The workload goes on without us: it is on disk and will be heard from again.
                _ = shutdown.wait_for(|stop| *stop) => true,
            };
            if stopping {
                let status = Status::unavailable("the control plane is shutting down");
                let _ = responses.send(Err(status)).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

/// Listens to a registered workload until its stream ends, one way or the other.
async fn follow(
    registrations: Arc<Registrations>,
    mut requests: Streaming<RegisterRequest>,
    responses: mpsc::Sender<Result<RegisterResponse, Status>>,
    uid: &str,
    stream: u64,
) {
    let mut message = match tokio::time::timeout(FIRST_HEALTH, requests.message()).await {
        Ok(message) => message,
        Err(_) => {
            registrations.forget_inherited_health(uid, stream);
            requests.message().await
        }
    };
    loop {
        match message {
            Ok(Some(RegisterRequest { message: Some(Incoming::Health(health)) })) => {
                let health = Health::try_from(health).unwrap_or(Health::Unspecified);
                if health == Health::Unspecified {
                    let problem = "health: is not set or not known";
                    let _ = responses.send(Err(Status::invalid_argument(problem))).await;
                    return registrations.break_off(uid.to_owned(), stream);
                }
                tracing::info!(uid, health = word(health), "workload health");
                let drain = registrations.set_health(uid, stream, health);
                if health == Health::Draining
                    && let Some(drain) = drain
                {
                    let responses = responses.clone();
                    tokio::spawn(async move {
                        drain.finished().await;
                        let removed = Some(Outgoing::Removed(Unit {}));
                        let _ = responses.send(Ok(RegisterResponse { message: removed })).await;
                    });
                }
            }
            Ok(Some(_)) => {
                let problem = "a registration is followed by health only";
                let _ = responses.send(Err(Status::invalid_argument(problem))).await;
                return registrations.break_off(uid.to_owned(), stream);
            }
            Ok(None) => return registrations.remove(uid, stream),
            Err(_) => {
                tracing::info!(uid, "a workload's stream broke");
                return registrations.break_off(uid.to_owned(), stream);
            }
        }
        message = requests.message().await;
    }
}

/// Checks a registration against itself, its token and where it comes from.
fn admit(
    registration: &Registration,
    claims: &Claims,
    peer: Option<IpAddr>,
) -> Result<Workload, Status> {
    let workload = translate::workload::translate(registration)
        .map_err(|problem| Status::invalid_argument(problem.to_string()))?;
    if workload.namespace != claims.namespace {
        return Err(Status::permission_denied("namespace: the join token is for another one"));
    }
    if workload.service_account != claims.service_account {
        return Err(Status::permission_denied(
            "service_account: the join token is for another one",
        ));
    }
    let mesh = workload.mesh.as_ref().map(|mesh| ("mesh.address", mesh.address.ip()));
    for (field, address) in [("address", workload.address)].into_iter().chain(mesh) {
        let address = address.to_canonical();
        if address.is_unspecified() || address.is_multicast() {
            return Err(Status::invalid_argument(format!(
                "{field}: {address} is not an address that can be dialled"
            )));
        }
        let own = peer
            .is_some_and(|peer| peer == address || (peer.is_loopback() && address.is_loopback()));
        if !own && !claims.any_address {
            return Err(Status::permission_denied(format!(
                "{field}: {address} is not the address that the registration comes from; a token \
                 issued with --any-address allows it"
            )));
        }
    }
    Ok(workload)
}
