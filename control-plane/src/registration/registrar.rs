//! The gRPC service of registration: one task listens to each registered workload.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use outrigger_proto::mesh::register_request::Message as Incoming;
use outrigger_proto::mesh::register_response::Message as Outgoing;
use outrigger_proto::mesh::workload_server::Workload as WorkloadService;
use outrigger_proto::mesh::{
    Accepted, Health, RegisterRequest, RegisterResponse, Registration, Unit,
};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{Registrations, word};
use crate::object::Workload;
use crate::token::{Claims, Tokens, bearer};
use crate::translate;

/// How long a new stream may take to say what it registers.
const FIRST_MESSAGE: Duration = Duration::from_secs(10);
/// How long the health of an earlier stream holds until the new one says its own.
const FIRST_HEALTH: Duration = Duration::from_secs(2);

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
