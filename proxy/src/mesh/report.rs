//! Telling the control plane what this workload called, for the graph of the mesh.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use outrigger_core::graph::TICK;
use outrigger_core::outcome::Outcome;
use outrigger_core::telemetry::{APP_LABELS, VERSION_LABELS};
use outrigger_proto::graph::graph_client::GraphClient;
use outrigger_proto::graph::{self, EdgeDelta, EdgeName, ReasonCount, Report, Reporter};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Response, Streaming};
use tracing::{debug, info};

use crate::mesh::control_plane::{Backoff, ControlPlane};
use crate::mesh::tap::{self, TapsOff};
use crate::observe::edges::{EdgeCounts, EdgeKey, Edges};
use crate::observe::metrics::Metrics;
use crate::observe::record::Record;
use crate::observe::tap::Taps;
use crate::proxy::Proxy;

/// Edges that one stream numbers: then comes another stream, which begins anew.
const MAX_NUMBERS: usize = 4_096;
/// Pause where the control plane knows no graph.
const UNKNOWN: Duration = Duration::from_secs(60);

/// Reports for as long as the process lives. What could not be told is told by the next stream.
/// `tapped`: requests that taps may have asked for, which go the same way.
pub async fn run(
    proxy: Arc<Proxy>,
    control_plane: ControlPlane,
    mut tapped: mpsc::Receiver<Box<Record>>,
) {
    let mut edges = Edges::default();
    let mut backoff = Backoff::default();
    loop {
        let began = Instant::now();
        let ended = stream(&proxy, &control_plane, &mut edges, &mut tapped).await;
        let Err(why) = ended else { continue };
        backoff.lasted(began.elapsed());
        if why.code() == Code::Unimplemented {
            info!("this control plane keeps no graph of the mesh");
            tokio::time::sleep(UNKNOWN).await;
        } else {
            // Whether the control plane is there at all is said by discovery.
            debug!(%why, "the control plane does not accept reports; retrying");
            tokio::time::sleep(backoff.pause().max(Duration::from_secs(1))).await;
        }
    }
}

/// Reports until the stream ends, or has numbered too many edges, or this side has a new certificate: a connection by
/// the old one would keep the root of that in use.
async fn stream(
    proxy: &Proxy,
    control_plane: &ControlPlane,
    edges: &mut Edges,
    tapped: &mut mpsc::Receiver<Box<Record>>,
) -> Result<(), tonic::Status> {
    let mut renewed = pin!(control_plane.renewed());
    let channel = control_plane.connect().await.map_err(tonic::Status::unavailable)?;
    let (reports, queue) = mpsc::channel(1);
    let mut request = tonic::Request::new(ReceiverStream::new(queue));
    if proxy.identity.is_none() {
        let authorized = control_plane.authorize(request.metadata_mut()).await;
        authorized.map_err(tonic::Status::unavailable)?;
    }
    let token = proxy.identity.is_none().then(|| request.metadata().clone());
    let mut client = GraphClient::new(channel);
    let _off = TapsOff(&proxy.taps);
    let mut shown = pin!(tap::show(proxy, client.clone(), reporter(proxy), token, tapped));
    let mut answers = pin!(answers(&proxy.taps, client.report(request)));
    let mut numbers = HashMap::new();
    let mut reporter = Some(reporter(proxy));
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while numbers.len() < MAX_NUMBERS {
        tokio::select! {
            ended = &mut answers => return ended,
            () = &mut shown => {}
            () = &mut renewed => return Ok(()),
            _ = ticks.tick() => {}
        }
        // While the one before is not taken, what happens is kept for the next one.
        let Ok(room) = reports.try_reserve() else { continue };
        let mut changes = edges.take(&proxy.metrics);
        // Where nobody proves who they are, those that nobody knows are others that report themselves.
        changes.retain(|(key, _)| !key.from_outside || proxy.identity.is_some());
        let edges =
            changes.iter().map(|(key, counts)| delta(&proxy.metrics, &mut numbers, *key, counts));
        room.send(Report { reporter: reporter.take(), edges: edges.collect() });
    }
    Ok(())
}

/// Takes over which taps are on, until the control plane ends the stream. An error in any case, so that the next one
/// is not opened at once.
async fn answers(
    taps: &Taps,
    opening: impl Future<Output = Result<Response<Streaming<graph::Taps>>, tonic::Status>>,
) -> Result<(), tonic::Status> {
    let mut answers = opening.await?.into_inner();
    while let Some(answer) = answers.message().await? {
        tap::configure(taps, &answer);
    }
    Err(tonic::Status::unavailable("the control plane ended the stream"))
}

fn reporter(proxy: &Proxy) -> Reporter {
    let settings = &proxy.settings;
    let label = |names: [&str; 2]| {
        let find = |name: &&str| settings.labels.iter().find(|(known, _)| known == name);
        names.iter().find_map(find).map(|(_, value)| value.clone()).unwrap_or_default()
    };
    Reporter {
        namespace: settings.namespace.clone(),
        workload: settings.workload.clone(),
        service_account: settings.service_account.clone(),
        app: label(APP_LABELS),
        version: label(VERSION_LABELS),
        zone: settings.zone.clone().unwrap_or_default(),
    }
}

fn delta(
    metrics: &Metrics,
    numbers: &mut HashMap<EdgeKey, u32>,
    key: EdgeKey,
    counts: &EdgeCounts,
) -> EdgeDelta {
    let next = u32::try_from(numbers.len()).unwrap_or(u32::MAX);
    let (edge, name) = match numbers.entry(key) {
        Entry::Occupied(known) => (*known.get(), None),
        Entry::Vacant(new) => {
            let [service, route] = metrics.texts([key.service, key.route]);
            let name = EdgeName {
                service: service.to_string(),
                route: route.to_string(),
                protocol: key.protocol.as_str().to_owned(),
                from_outside: key.from_outside,
            };
            (*new.insert(next), Some(name))
        }
    };
    let reasons = counts.ended.iter().filter_map(|(_, cause, count)| {
        let cause = (*cause)?;
        let (reason, by) = (cause.reason.as_str().to_owned(), cause.named_by.as_str().to_owned());
        Some(ReasonCount { reason, by, count: *count })
    });
    let latencies = counts.latencies.buckets();
    EdgeDelta {
        edge,
        name,
        succeeded: counts.count(Outcome::Success),
        failed: counts.count(Outcome::Failure),
        refused: counts.count(Outcome::Refused),
        canceled: counts.count(Outcome::Canceled),
        latency_bucket: latencies.iter().map(|(bucket, _)| u32::from(*bucket)).collect(),
        latency_count: latencies.iter().map(|(_, n)| *n).collect(),
        reasons: reasons.collect(),
    }
}
