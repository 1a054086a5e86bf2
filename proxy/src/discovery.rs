//! The stream of configuration from the control plane: delta ADS, lazily subscribed.
//!
//! One task owns the stream and everything received. It subscribes to what the app dials, applies
//! what comes, acknowledges or refuses it, and keeps the last good state whatever happens. Read next:
//! [`holdings`].

pub mod holdings;
mod pieces;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use outrigger_core::name::Authority;
use outrigger_proto::wire::{
    self, AggregatedDiscoveryServiceClient, DeltaDiscoveryRequest, DeltaDiscoveryResponse,
    Locality, Node, Status,
};
use prost_types::value::Kind;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tracing::{debug, info, warn};

use crate::control_plane::{Backoff, ControlPlane};
use crate::metrics::add;
use crate::proxy::{Phase, Proxy};
use crate::state::StateDir;
use holdings::Holdings;

/// How often idle destinations are looked for, and the disk copy brought up to date.
const HOUSEKEEPING: Duration = Duration::from_secs(1);
/// A destination that the app has not used for this long is dropped, in seconds.
const IDLE_SECONDS: u32 = 600;
/// Requests that may wait for the stream: subscriptions and acknowledgements are small.
const QUEUE: usize = 64;
/// gRPC code INVALID_ARGUMENT, which goes with a refused response.
const INVALID_ARGUMENT: i32 = 3;
/// Largest response taken, in bytes; the control plane keeps below 1 MiB.
const MAX_MESSAGE: usize = 8 * wire::MAX_RESPONSE;

pub struct Discovery {
    proxy: Arc<Proxy>,
    wanted: mpsc::UnboundedReceiver<Authority>,
    holdings: Holdings,
    state: Option<StateDir>,
    /// Seconds since the process began, as destinations count their idleness.
    tick: u32,
    housekeeping: tokio::time::Interval,
}

/// Why a stream ended.
enum Ended {
    ByPeer(String),
    /// This side has a new certificate to prove itself with.
    Renewed,
    Closing,
}

impl Discovery {
    /// Starts from the disk copy, if there is one.
    pub fn new(
        proxy: Arc<Proxy>,
        wanted: mpsc::UnboundedReceiver<Authority>,
        state: Option<StateDir>,
    ) -> Self {
        let mut holdings = Holdings::new(Arc::clone(&proxy));
        if let Some(saved) = state.as_ref().and_then(StateDir::load) {
            let (destinations, endpoints) = holdings.restore(&saved);
            info!(destinations, endpoints, "restored the last good configuration from disk");
            proxy.lifecycle.set_configured();
        }
        let mut housekeeping = tokio::time::interval(HOUSEKEEPING);
        housekeeping.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        Self { proxy, wanted, holdings, state, tick: 1, housekeeping }
    }

    /// Runs until the process closes. `control_plane`: none serves the disk copy alone.
    pub async fn run(mut self, control_plane: Option<ControlPlane>) {
        let mut backoff = Backoff::default();
        let proxy = Arc::clone(&self.proxy);
        loop {
            let ended = match &control_plane {
                Some(control_plane) => self.stream(control_plane, &mut backoff).await,
                None => Ended::ByPeer("no --control-plane".to_owned()),
            };
            self.proxy.metrics.gauges.discovery_connected.store(0, Relaxed);
            match ended {
                Ended::Closing => break,
                Ended::Renewed => continue,
                Ended::ByPeer(why) => debug!(why, "no configuration stream"),
            }
            let pause = tokio::time::sleep(backoff.pause());
            tokio::pin!(pause);
            loop {
                tokio::select! {
                    () = &mut pause => break,
                    () = proxy.lifecycle.reached(Phase::Closing) => break,
                    Some(authority) = self.wanted.recv() => self.holdings.want(authority),
                    _ = self.housekeeping.tick() => self.keep_house(),
                }
            }
            if self.proxy.lifecycle.phase() == Phase::Closing {
                break;
            }
        }
        self.save();
    }

    async fn stream(&mut self, control_plane: &ControlPlane, backoff: &mut Backoff) -> Ended {
        let renewed = control_plane.renewed();
        tokio::pin!(renewed);
        let (requests, queue) = mpsc::channel(QUEUE);
        let opened = self.open(control_plane, queue);
        let mut responses = match opened.await {
            Ok(responses) => responses,
            Err(why) => {
                warn!(control_plane = %control_plane.uri, why, "cannot reach the control plane, going on with the last good configuration");
                return Ended::ByPeer(why);
            }
        };
        add(&self.proxy.metrics.gauges.discovery_reconnects, 1);
        for request in self.first_requests() {
            if requests.send(request).await.is_err() {
                return Ended::ByPeer("the stream closed at once".to_owned());
            }
        }
        let proxy = Arc::clone(&self.proxy);
        loop {
            tokio::select! {
                response = responses.message() => match response {
                    Ok(Some(response)) => {
                        if self.proxy.metrics.gauges.discovery_connected.swap(1, Relaxed) == 0 {
                            info!(control_plane = %control_plane.uri, "connected to the control plane");
                            backoff.reset();
                        }
                        if requests.send(self.apply(response)).await.is_err() {
                            return Ended::ByPeer("the stream closed".to_owned());
                        }
                    }
                    Ok(None) => return Ended::ByPeer("the control plane ended the stream".to_owned()),
                    Err(status) => {
                        let why = format!("{}: {}", status.code(), status.message());
                        warn!(why, "lost the control plane, going on with the last good configuration");
                        return Ended::ByPeer(why);
                    }
                },
                Some(authority) = self.wanted.recv() => {
                    let name = authority.to_string();
                    self.holdings.want(authority);
                    let request = subscribe(wire::DESTINATION, vec![name], BTreeMap::new());
                    if requests.send(request).await.is_err() {
                        return Ended::ByPeer("the stream closed".to_owned());
                    }
                }
                _ = self.housekeeping.tick() => {
                    self.keep_house();
                    let dropped = self.holdings.retire(self.tick, IDLE_SECONDS);
                    if !dropped.is_empty() {
                        let request = DeltaDiscoveryRequest {
                            type_url: wire::DESTINATION.to_owned(),
                            resource_names_unsubscribe: dropped,
                            ..Default::default()
                        };
                        if requests.send(request).await.is_err() {
                            return Ended::ByPeer("the stream closed".to_owned());
                        }
                    }
                }
                // What is held stays in force meanwhile.
                () = &mut renewed => return Ended::Renewed,
                () = proxy.lifecycle.reached(Phase::Closing) => return Ended::Closing,
            }
        }
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
        control_plane.authorize(request.metadata_mut())?;
        let response = client.delta_aggregated_resources(request).await;
        response
            .map(tonic::Response::into_inner)
            .map_err(|e| format!("{}: {}", e.code(), e.message()))
    }

    /// What a new stream begins with: what is held, and what is wanted. Endpoints go first, so that
    /// the control plane knows what it need not send when it sees the destinations.
    fn first_requests(&self) -> Vec<DeltaDiscoveryRequest> {
        let held = &self.holdings;
        let settings = vec![wire::MESH_SETTINGS_NAME.to_owned()];
        let mut requests = vec![
            subscribe(wire::MESH_SETTINGS, settings, held.versions(wire::MESH_SETTINGS)),
            subscribe(wire::INBOUND, vec![self.proxy.settings.uid()], held.versions(wire::INBOUND)),
        ];
        let endpoints = held.versions(wire::ENDPOINT);
        requests.extend(pieces::subscriptions(wire::ENDPOINT, Vec::new(), endpoints));
        let (names, destinations) = (held.resolved_names(), held.versions(wire::DESTINATION));
        requests.extend(pieces::subscriptions(wire::DESTINATION, names, destinations));
        // Apart: a name that is not resolved yet may belong to a destination that is held.
        let unresolved = held.unresolved_names();
        if !unresolved.is_empty() {
            let apart = pieces::subscriptions(wire::DESTINATION, unresolved, BTreeMap::new());
            requests.extend(apart);
        }
        if self.proxy.identity.is_some() {
            let trust = vec![wire::TRUST_BUNDLE_NAME.to_owned()];
            requests.push(subscribe(wire::TRUST_BUNDLE, trust, held.versions(wire::TRUST_BUNDLE)));
        }
        requests[0].node = Some(self.node());
        requests
    }

    fn node(&self) -> Node {
        let settings = &self.proxy.settings;
        let namespace =
            prost_types::Value { kind: Some(Kind::StringValue(settings.namespace.clone())) };
        let metadata =
            prost_types::Struct { fields: [(wire::NODE_NAMESPACE.to_owned(), namespace)].into() };
        Node {
            id: settings.uid(),
            cluster: format!("{}/{}", settings.namespace, settings.service_account),
            metadata: Some(metadata),
            locality: Some(Locality {
                zone: settings.zone.clone().unwrap_or_default(),
                ..Default::default()
            }),
            user_agent_name: "outrigger-proxy".to_owned(),
            user_agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        }
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

    fn keep_house(&mut self) {
        self.tick += 1;
        self.save();
    }

    /// Writes the disk copy if anything has changed since.
    fn save(&mut self) {
        let Some(state) = &self.state else { return };
        if let Some(saved) = self.holdings.changed()
            && let Err(error) = state.store(&saved)
        {
            warn!(%error, "cannot write the disk copy of the configuration");
        }
    }
}

fn subscribe(
    type_url: &str,
    names: Vec<String>,
    versions: BTreeMap<String, String>,
) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: type_url.to_owned(),
        resource_names_subscribe: names,
        initial_resource_versions: versions,
        ..Default::default()
    }
}
