//! The stream of configuration from the control plane: delta ADS, lazily subscribed.
//!
//! One task owns the stream and everything received. It subscribes to what the app dials, applies
//! what comes, acknowledges or refuses it, and keeps the last good state whatever happens. Read next:
//! [`holdings`].

pub mod holdings;
mod requests;

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use holdings::Holdings;
use outrigger_proto::wire::{
    self, AggregatedDiscoveryServiceClient, DeltaDiscoveryRequest, DeltaDiscoveryResponse, Status,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tracing::{debug, info, warn};

use crate::base::disk::LatestWriter;
use crate::mesh::control_plane::{Backoff, ControlPlane, FailureLog};
use crate::mesh::state::{Saved, StateDir};
use crate::observe::metrics::add;
use crate::proxy::{Phase, Proxy};
use crate::upstream::store::Changes;

/// How often idle destinations are looked for, and the disk copy brought up to date.
const HOUSEKEEPING: Duration = Duration::from_secs(1);
/// A destination that the app has not used for this long is dropped, in seconds.
const IDLE_SECONDS: u32 = 600;
/// At the end of the process, how long the disk copy may take.
const LAST_SAVE: Duration = Duration::from_secs(1);
/// Requests that may wait for the stream: subscriptions and acknowledgements are small.
const QUEUE: usize = 64;
/// gRPC code INVALID_ARGUMENT, which goes with a refused response.
const INVALID_ARGUMENT: i32 = 3;
/// Largest response taken, in bytes; the control plane keeps below 1 MiB.
const MAX_MESSAGE: usize = 8 * wire::MAX_RESPONSE;

pub struct Discovery {
    proxy: Arc<Proxy>,
    holdings: Holdings,
    copy: Option<LatestWriter<Saved>>,
    /// Seconds since the process began, as destinations count their idleness.
    tick: u32,
    housekeeping: tokio::time::Interval,
    complaints: FailureLog,
}

/// Why a stream ended.
enum StreamEnd {
    ByPeer(String),
    /// This side has a new certificate to prove itself with.
    Renewed,
    Closing,
}

impl Discovery {
    /// Starts from the disk copy, if there is one.
    pub fn new(proxy: Arc<Proxy>, state: Option<StateDir>) -> io::Result<Self> {
        let mut holdings = Holdings::new(Arc::clone(&proxy));
        if let Some(saved) = state.as_ref().and_then(StateDir::load) {
            let (destinations, endpoints) = holdings.restore(&saved);
            info!(destinations, endpoints, "restored the last good configuration from disk");
            proxy.lifecycle.set_configured();
        }
        let copy = state.map(|state| {
            LatestWriter::new("state", move |saved| {
                if let Err(error) = state.store(&saved) {
                    warn!(%error, "cannot write the disk copy of the configuration");
                }
            })
        });
        let copy = copy.transpose()?;
        let mut housekeeping = tokio::time::interval(HOUSEKEEPING);
        housekeeping.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let complaints = FailureLog::default();
        Ok(Self { proxy, holdings, copy, tick: 1, housekeeping, complaints })
    }

    /// Runs until the process closes. `control_plane`: none serves the disk copy alone.
    pub async fn run(mut self, control_plane: Option<ControlPlane>) {
        let mut backoff = Backoff::default();
        let proxy = Arc::clone(&self.proxy);
        loop {
            let ended = match &control_plane {
                Some(control_plane) => {
                    let began = Instant::now();
                    let ended = self.stream(control_plane).await;
                    backoff.lasted(began.elapsed());
                    ended
                }
                None => StreamEnd::ByPeer("no --control-plane".to_owned()),
            };
            self.proxy.metrics.gauges.discovery_connected.store(0, Relaxed);
            match ended {
                StreamEnd::Closing => break,
                StreamEnd::Renewed => continue,
                StreamEnd::ByPeer(why) => debug!(why, "no configuration stream"),
            }
            let pause = tokio::time::sleep(backoff.pause());
            tokio::pin!(pause);
            loop {
                tokio::select! {
                    () = &mut pause => break,
                    () = proxy.lifecycle.reached(Phase::Closing) => break,
                    () = proxy.store.dialled() => drop(self.follow_names()),
                    _ = self.housekeeping.tick() => self.housekeep(),
                }
            }
            if self.proxy.lifecycle.phase() == Phase::Closing {
                break;
            }
        }
        self.save();
        if let Some(copy) = &self.copy
            && !copy.finish(LAST_SAVE).await
        {
            warn!("the disk copy of the configuration is not written in time");
        }
    }

    /// What the proxy does without its control plane.
    fn going_on(&self) -> &'static str {
        match self.proxy.lifecycle.configured() {
            true => "going on with the last good configuration",
            false => "and there is no configuration to serve yet; trying again",
        }
    }

    async fn stream(&mut self, control_plane: &ControlPlane) -> StreamEnd {
        let renewed = control_plane.renewed();
        tokio::pin!(renewed);
        let (requests, queue) = mpsc::channel(QUEUE);
        let opened = self.open(control_plane, queue);
        let mut responses = match opened.await {
            Ok(responses) => responses,
            Err(why) => {
                if let Some(left_out) = self.complaints.say(&why, Instant::now()) {
                    let going_on = self.going_on();
                    warn!(control_plane = %control_plane.uri, why, left_out, "cannot reach the control plane, {going_on}");
                }
                return StreamEnd::ByPeer(why);
            }
        };
        add(&self.proxy.metrics.gauges.discovery_reconnects, 1);
        drop(self.follow_names());
        // What waits for the stream. Both sides must go on reading while they write, or each would wait
        // for the other.
        let mut outgoing = VecDeque::from(requests::first(&self.proxy, &self.holdings));
        let proxy = Arc::clone(&self.proxy);
        loop {
            let may_ask = outgoing.len() < QUEUE;
            tokio::select! {
                permit = requests.reserve(), if !outgoing.is_empty() => match (permit, outgoing.pop_front()) {
                    (Ok(permit), Some(request)) => permit.send(request),
                    _ => return StreamEnd::ByPeer("the stream closed".to_owned()),
                },
                response = responses.message() => match response {
                    Ok(Some(response)) => {
                        if self.proxy.metrics.gauges.discovery_connected.swap(1, Relaxed) == 0 {
                            info!(control_plane = %control_plane.uri, "connected to the control plane");
                        }
                        outgoing.push_back(self.apply(response));
                    }
                    Ok(None) => return StreamEnd::ByPeer("the control plane ended the stream".to_owned()),
                    Err(status) => {
                        let why = format!("{}: {}", status.code(), status.message());
                        if let Some(left_out) = self.complaints.say(&why, Instant::now()) {
                            let going_on = self.going_on();
                            warn!(why, left_out, "lost the control plane, {going_on}");
                        }
                        return StreamEnd::ByPeer(why);
                    }
                },
                () = proxy.store.dialled(), if may_ask => outgoing.extend(self.follow_names()),
                _ = self.housekeeping.tick() => {
                    self.housekeep();
                    // Never while the control plane is away.
                    proxy.store.retire(self.tick, IDLE_SECONDS);
                    if may_ask {
                        outgoing.extend(self.follow_names());
                    }
                }
                // What is held stays in force meanwhile.
                () = &mut renewed => return StreamEnd::Renewed,
                () = proxy.lifecycle.reached(Phase::Closing) => return StreamEnd::Closing,
            }
        }
    }

    /// Takes over which names are held; gives what the control plane has to be told of that, names that
    /// are dropped before those that are new, so that there are never more than may be.
    fn follow_names(&mut self) -> Vec<DeltaDiscoveryRequest> {
        let Changes { dropped, added } = self.proxy.store.changes();
        self.holdings.forget(&dropped);
        for authority in &added {
            self.holdings.want(authority.clone());
        }
        requests::dropped(&dropped).chain(requests::added(&added)).collect()
    }

    async fn open(
        &mut self,
        control_plane: &ControlPlane,
        queue: mpsc::Receiver<DeltaDiscoveryRequest>,
    ) -> Result<Streaming<DeltaDiscoveryResponse>, String> {
        let channel = control_plane.connect().await?;
        let mut client =
            AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
        let mut request = tonic::Request::new(ReceiverStream::new(queue));
        control_plane.authorize(request.metadata_mut()).await?;
        let response = client.delta_aggregated_resources(request).await;
        response
            .map(tonic::Response::into_inner)
            .map_err(|e| format!("{}: {}", e.code(), e.message()))
    }

    /// Applies a response; the answer acknowledges it, or names what was refused.
    fn apply(&mut self, response: DeltaDiscoveryResponse) -> DeltaDiscoveryRequest {
        let gauges = &self.proxy.metrics.gauges;
        add(&gauges.discovery_responses, 1);
        let problems = self.holdings.apply(
            &response.type_url,
            &response.resources,
            &response.removed_resources,
        );
        if response.type_url == wire::MESH_SETTINGS {
            self.proxy.lifecycle.set_configured();
        }
        let error_detail = (!problems.is_empty()).then(|| {
            add(&gauges.discovery_nacks, 1);
            let message = problems.join("; ");
            warn!(
                type_url = response.type_url,
                message, "refused a part of the configuration, the last good version stays"
            );
            Status { code: INVALID_ARGUMENT, message, details: Vec::new() }
        });
        DeltaDiscoveryRequest {
            type_url: response.type_url,
            response_nonce: response.nonce,
            error_detail,
            ..Default::default()
        }
    }

    fn housekeep(&mut self) {
        self.tick += 1;
        self.save();
    }

    /// Has the disk copy written if anything has changed since.
    fn save(&mut self) {
        let Some(copy) = &self.copy else { return };
        if let Some(saved) = self.holdings.changed() {
            copy.put(saved);
        }
    }
}
