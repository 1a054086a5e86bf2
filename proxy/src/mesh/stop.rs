//! Telling the control plane that a fault injection has to stop.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use outrigger_proto::mesh::experiments_client::ExperimentsClient;
use outrigger_proto::mesh::{FaultCaller, StopRequest};
use tokio::sync::mpsc;
use tracing::warn;

use crate::mesh::control_plane::{Backoff, ControlPlane, FailureLog};
use crate::proxy::Proxy;
use crate::upstream::faults::Stop;

/// Time for one answer.
const LIMIT: Duration = Duration::from_secs(5);

/// Tells each until it is taken, or until the fault injection is over by itself.
pub async fn run(
    proxy: Arc<Proxy>,
    control_plane: ControlPlane,
    mut stops: mpsc::UnboundedReceiver<Stop>,
) {
    while let Some(stop) = stops.recv().await {
        let mut backoff = Backoff::default();
        let mut complaints = FailureLog::default();
        while let Err(why) = tell(&proxy, &control_plane, &stop).await {
            if SystemTime::now() >= stop.rule.times.end {
                break;
            }
            let experiment = &*stop.rule.name;
            if let Some(left_out) = complaints.say(&why, Instant::now()) {
                warn!(
                    experiment,
                    why, left_out, "the control plane has not stopped it yet, trying again"
                );
            }
            tokio::time::sleep(backoff.pause()).await;
        }
    }
}

async fn tell(proxy: &Proxy, control_plane: &ControlPlane, stop: &Stop) -> Result<(), String> {
    let channel = control_plane.connect().await?;
    let settings = &proxy.settings;
    let caller = FaultCaller {
        namespace: settings.namespace.clone(),
        service_account: settings.service_account.clone(),
    };
    let mut request = tonic::Request::new(StopRequest {
        name: stop.rule.name.to_string(),
        version: stop.rule.version.to_string(),
        reason: stop.reason.clone(),
        caller: Some(caller),
    });
    if proxy.identity.is_none() {
        control_plane.authorize(request.metadata_mut()).await?;
    }
    let mut client = ExperimentsClient::new(channel);
    let telling = tokio::time::timeout(LIMIT, client.stop(request)).await;
    let told = telling.map_err(|_| format!("no answer to Stop in {LIMIT:?}"))?;
    told.map(drop).map_err(|status| format!("{}: {}", status.code(), status.message()))
}
