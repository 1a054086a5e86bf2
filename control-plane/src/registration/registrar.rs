//! The gRPC service of registration: one task listens to each registered workload.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use outrigger_proto::mesh::register_request::Message as Incoming;
use outrigger_proto::mesh::register_response::Message as Outgoing;
use outrigger_proto::mesh::workload_server::Workload as WorkloadService;
use outrigger_proto::mesh::{Accepted, Health, RegisterRequest, RegisterResponse, Unit};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::saved;
use super::session::SessionHash;
use super::{Registrations, WorkloadSpeaker, word};
use crate::ca::verify::Verified;
use crate::connection::Connection;
use crate::grant::Grant;
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

    /// Who a stream may register.
    fn authenticate<T>(
        request: &Request<T>,
        connection: &Connection,
        tokens: &Tokens,
    ) -> Result<Proof, Status> {
        connection.identity()?;
        if let Some(client) = connection.client() {
            return Ok(Proof::Certificate(client.clone()));
        }
        let token = bearer(request.metadata())?.ok_or_else(|| {
            Status::unauthenticated(
                "a join token is required: get one with `outrigger-control-plane token`",
            )
        })?;
        Ok(Proof::Token(tokens.verify(token)?))
    }
}

/// What a registration is compared with.
enum Proof {
    Token(Claims),
    Certificate(Verified),
}

impl Proof {
    /// Its word for a person, namespace and service account.
    fn parts(&self) -> (&'static str, &str, &str) {
        match self {
            Self::Token(claims) => ("join token", &claims.namespace, &claims.service_account),
            Self::Certificate(client) => {
                ("certificate", client.id.namespace(), client.id.service_account())
            }
        }
    }

    /// What its token allows and binds, now or when it got its certificate.
    fn grant(&self) -> &Grant {
        match self {
            Self::Token(claims) => &claims.grant,
            Self::Certificate(client) => &client.grant,
        }
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
        let connection = Connection::of(&request)?;
        let proof = Self::authenticate(&request, &connection, tokens)?;
        let mut requests = request.into_inner();
        let first = tokio::time::timeout(FIRST_MESSAGE, requests.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("no registration came"))??;
        let Some(Incoming::Registration(registration)) = first.and_then(|r| r.message) else {
            return Err(Status::invalid_argument("the first message must be a registration"));
        };
        let workload = translate::workload::translate(&registration, registrations.local())
            .map_err(|problem| Status::invalid_argument(problem.to_string()))?;
        let uid = workload.uid();
        admit(&workload, &proof, connection.peer)?;
        let session = SessionHash::of(&registration.session);
        let WorkloadSpeaker { stream, replaced } = registrations.register(workload, session)?;
        tracing::info!(uid, "workload registered");
        // Accepted and removed are all that is ever answered.
        let (responses, receiver) = mpsc::channel(4);
        let accepted = Outgoing::Accepted(Accepted { uid: uid.clone() });
        let accepted = RegisterResponse { message: Some(accepted) };
        responses.send(Ok(accepted)).await.map_err(|_| Status::cancelled("the stream ended"))?;
        let registrations = registrations.clone();
        let shutdown = self.shutdown.clone();
        tokio::spawn(async move {
            let listening = follow(registrations.clone(), requests, &responses, &uid, stream);
            let ended = tokio::select! {
                () = listening => None,
                status = connection.ended() => Some(status),
                refused = replaced => Some(refused.map_or_else(
                    |_| Status::aborted("superseded by another stream of this proxy"),
                    Status::from,
                )),
            };
            let Some(status) = ended else { return };
            let _ = responses.send(Err(status)).await;
            // When the process stops, the workload goes on without us: it is on disk and will be
            // heard from again. Otherwise it has to come back.
            if !*shutdown.borrow() {
                registrations.break_off(uid, stream);
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

/// Listens to a registered workload until its stream ends, one way or the other.
async fn follow(
    registrations: Arc<Registrations>,
    mut requests: Streaming<RegisterRequest>,
    responses: &mpsc::Sender<Result<RegisterResponse, Status>>,
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
            Ok(Some(request @ RegisterRequest { message: Some(Incoming::Health(health)), .. })) => {
                let closed = saved::closed_ports(&request);
                let health = Health::try_from(health).unwrap_or(Health::Unspecified);
                if health == Health::Unspecified {
                    let problem = "health: is not set or not known";
                    let _ = responses.send(Err(Status::invalid_argument(problem))).await;
                    return registrations.break_off(uid.to_owned(), stream);
                }
                tracing::info!(uid, health = word(health), ?closed, "workload health");
                let drain = registrations.set_health(uid, stream, health, closed);
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

/// Checks a registration against what its sender has proven and where it comes from.
fn admit(workload: &Workload, proof: &Proof, peer: IpAddr) -> Result<(), Status> {
    let (what, namespace, service_account) = proof.parts();
    for (field, said, proven) in [
        ("namespace", &workload.namespace, namespace),
        ("service_account", &workload.service_account, service_account),
    ] {
        if said != proven {
            let problem = format!("{field}: the {what} is for another one");
            return Err(Status::permission_denied(problem));
        }
    }
    let grant = proof.grant();
    grant.check(workload, what).map_err(|error| Status::permission_denied(error.to_string()))?;
    let mesh = workload.mesh.as_ref().map(|mesh| ("mesh.address", mesh.address.ip()));
    for (field, address) in [("address", workload.address)].into_iter().chain(mesh) {
        let address = address.to_canonical();
        let own = peer == address || (peer.is_loopback() && address.is_loopback());
        if !own && !grant.any_address {
            return Err(Status::permission_denied(format!(
                "{field}: {address} is not the address that the registration comes from; a token \
                 issued with --any-address allows it"
            )));
        }
    }
    Ok(())
}
