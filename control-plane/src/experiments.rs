//! Fault injections that were stopped by their guards: the service by which a proxy has one stopped.
//!
//! A stop belongs to the spec that was stopped: another spec begins anew, and so does an object that was
//! removed and comes back. [`saved`] keeps stops in the store.

pub mod saved;

use std::sync::Arc;
use std::time::SystemTime;

use outrigger_core::bounds;
use outrigger_core::error::FieldError;
use outrigger_core::name::check_label;
use outrigger_core::policy::fault::FaultSource;
use outrigger_proto::mesh::experiments_server::Experiments;
use outrigger_proto::mesh::{FaultCaller, StopRequest, StopResponse};
use tonic::{Request, Response, Status};

use crate::connection::Connection;
use crate::object::stopped::{Stopped, Stops};
use crate::publish::Publisher;
use crate::token::{Tokens, bearer};
use saved::SavedStops;

/// The gRPC service.
#[derive(Debug)]
pub struct Stopper {
    publisher: Arc<Publisher>,
    tokens: Option<Arc<Tokens>>,
    saved: Option<Arc<SavedStops>>,
}

impl Stopper {
    pub fn new(
        publisher: Arc<Publisher>,
        tokens: Option<Arc<Tokens>>,
        saved: Option<Arc<SavedStops>>,
    ) -> Self {
        Self { publisher, tokens, saved }
    }

    /// Who asks: what is proven, and in a mesh without identities what is said.
    fn caller(&self, request: &Request<StopRequest>) -> Result<FaultSource, Status> {
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
            None => Err(Status::unauthenticated("the request has no caller identity")),
        }
    }
}

fn caller(namespace: &str, service_account: &str) -> FaultSource {
    let service_account = Some(service_account.to_owned());
    FaultSource { namespace: namespace.to_owned(), service_account }
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
            tracing::warn!(fault_injection = name, by, why, "fault injection stopped by its guard");
            if let Some(saved) = self.saved.clone() {
                // A panic in there was said already.
                let _ = tokio::task::spawn_blocking(move || saved.sync()).await;
            }
        }
        Ok(Response::new(StopResponse {}))
    }
}
