//! Experiments that were stopped by their guards: the service by which a proxy has one stopped, and the
//! copy on disk.
//!
//! A stop belongs to the spec that was stopped: another spec begins anew, and so does an object that was
//! removed and comes back.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use outrigger_core::bounds;
use outrigger_core::error::FieldError;
use outrigger_core::name::check_label;
use outrigger_core::policy::fault::Caller;
use outrigger_proto::mesh::experiments_server::Experiments;
use outrigger_proto::mesh::{FaultCaller, StopRequest, StopResponse};
use tonic::{Request, Response, Status};

use crate::connection::Connection;
use crate::object::stopped::{Stopped, Stops};
use crate::publish::Publisher;
use crate::token::{Tokens, bearer, create_private};

const FILE: &str = "stopped-experiments.json";
/// How often the copy on disk is compared with what holds; a new stop is written at once.
const WRITE: Duration = Duration::from_secs(5);

/// The gRPC service.
#[derive(Debug)]
pub struct Stopper {
    publisher: Arc<Publisher>,
    tokens: Option<Arc<Tokens>>,
    state_dir: Option<PathBuf>,
}

impl Stopper {
    pub fn new(
        publisher: Arc<Publisher>,
        tokens: Option<Arc<Tokens>>,
        state_dir: Option<PathBuf>,
    ) -> Self {
        Self { publisher, tokens, state_dir }
    }

    /// Who asks: what is proven, and in a mesh without identities what is said.
    fn caller(&self, request: &Request<StopRequest>) -> Result<Caller, Status> {
        let connection = Connection::of(request)?;
        if let Some(id) = connection.identity()? {
            return Ok(caller(id.namespace(), id.service_account()));
        }
        if let (Some(token), Some(tokens)) = (bearer(request.metadata())?, &self.tokens) {
            let claims = tokens.verify(token)?;
            return Ok(caller(&claims.namespace, &claims.service_account));
        }
        match &request.get_ref().caller {
            Some(FaultCaller { namespace, service_account }) => {
                Ok(caller(namespace, service_account))
            }
            None => Err(Status::unauthenticated("the request does not say who asks")),
        }
    }
}

fn caller(namespace: &str, service_account: &str) -> Caller {
    let service_account = Some(service_account.to_owned());
    Caller { namespace: namespace.to_owned(), service_account }
}

/// Everything but the reason, which is cut.
fn within_bounds(request: &StopRequest) -> Result<(), FieldError> {
    bounds::text(&request.name, bounds::NAME).map_err(|e| e.under("name"))?;
    bounds::text(&request.version, bounds::VERSION).map_err(|e| e.under("version"))?;
    let Some(FaultCaller { namespace, service_account }) = &request.caller else { return Ok(()) };
    check_label(namespace).map_err(|e| e.under("caller.namespace"))?;
    bounds::text(service_account, bounds::NAME).map_err(|e| e.under("caller.service_account"))
}

#[tonic::async_trait]
impl Experiments for Stopper {
    async fn stop(&self, request: Request<StopRequest>) -> Result<Response<StopResponse>, Status> {
        within_bounds(request.get_ref())
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let by = self.caller(&request)?;
        let StopRequest { name, version, reason, .. } = request.into_inner();
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let why = reason.chars().filter(|c| !c.is_control()).take(bounds::REASON).collect();
        let stopped = Stopped { version, since: since.as_secs(), by: by.to_string(), why };
        let said = stopped.clone();
        let (done, _) = self.publisher.commit(|index| index.stop_experiment(&name, &by, stopped));
        let is_new = done.map_err(Status::permission_denied)?;
        if is_new {
            let Stopped { by, why, .. } = said;
            tracing::warn!(experiment = name, by, why, "experiment stopped by its guard");
            if let Some(state_dir) = self.state_dir.clone() {
                let stops = self.publisher.view().index.stops().clone();
                let writing = tokio::task::spawn_blocking(move || write(&state_dir, &stops));
                if let Ok(Err(error)) = writing.await {
                    tracing::error!(%error, "could not write down which experiments are stopped");
                }
            }
        }
        Ok(Response::new(StopResponse {}))
    }
}

/// Keeps the copy on disk as it should be: what runs again is taken out.
pub async fn keep(publisher: Arc<Publisher>, state_dir: PathBuf) {
    let mut written = publisher.view().index.stops().clone();
    loop {
        tokio::time::sleep(WRITE).await;
        let stops = publisher.view().index.stops().clone();
        if stops == written {
            continue;
        }
        let (directory, saved) = (state_dir.clone(), stops.clone());
        match tokio::task::spawn_blocking(move || write(&directory, &saved)).await {
            Ok(Ok(())) => written = stops,
            Ok(Err(error)) => {
                tracing::error!(%error, "could not write down which experiments are stopped");
            }
            Err(_) => {}
        }
    }
}

/// What was stopped, or nothing if there is no file or it is damaged.
pub fn read(state_dir: &Path) -> Stops {
    let path = state_dir.join(FILE);
    let read = match fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(io::Error::from),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Stops::new(),
        Err(error) => Err(error),
    };
    read.unwrap_or_else(|error| {
        let path = path.display();
        tracing::error!(%path, %error, "could not read which experiments are stopped: they run");
        Stops::new()
    })
}

fn write(state_dir: &Path, stops: &Stops) -> io::Result<()> {
    let temporary = state_dir.join(format!("{FILE}.new"));
    let mut file = create_private(&temporary)?;
    file.write_all(&serde_json::to_vec(stops)?)?;
    file.sync_all()?;
    fs::rename(&temporary, state_dir.join(FILE))
}
