//! The delta discovery service: one task per proxy between its stream and its [`Session`].
//!
//! The task sleeps until a request comes in or [`crate::publish`] wakes it, and sends what the
//! session gives. It waits for the transport before it looks at the newest state, so a slow proxy
//! gets fewer and later updates, never a growing queue.

mod outbox;
mod session;

use std::sync::Arc;
use std::time::Duration;

use outrigger_proto::wire::{
    AggregatedDiscoveryService, DeltaDiscoveryRequest, DeltaDiscoveryResponse,
};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

pub use session::{Answer, MAX_NAME, MAX_SUBSCRIPTIONS, Nack, Proxy, Session};

use crate::metrics::Metrics;
use crate::publish::{Dirty, Handle, Publisher};
use crate::token::{Claims, Tokens, bearer};

/// Responses between the session and the transport.
const QUEUE: usize = 4;
/// How long a new stream may stay silent.
const FIRST_REQUEST: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub struct Discovery {
    publisher: Arc<Publisher>,
    tokens: Option<Arc<Tokens>>,
    metrics: Arc<Metrics>,
    shutdown: watch::Receiver<bool>,
}

impl Discovery {
    pub fn new(
        publisher: Arc<Publisher>,
        tokens: Option<Arc<Tokens>>,
        metrics: Arc<Metrics>,
        shutdown: watch::Receiver<bool>,
    ) -> Self {
        Self { publisher, tokens, metrics, shutdown }
    }

    /// Until proxies have identities a token is optional; a wrong one is still wrong.
    fn authenticate<T>(&self, request: &Request<T>) -> Result<Option<Claims>, Status> {
        let Some(token) = bearer(request.metadata())? else { return Ok(None) };
        let Some(tokens) = &self.tokens else {
            return Err(Status::unauthenticated(
                "this control plane has no state directory, so it knows no join tokens",
            ));
        };
        tokens.verify(token).map(Some)
    }
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Discovery {
    type DeltaAggregatedResourcesStream = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let claims = self.authenticate(&request)?;
        let (responses, receiver) = mpsc::channel(QUEUE);
        let publisher = self.publisher.clone();
        let metrics = self.metrics.clone();
        let requests = request.into_inner();
        let mut shutdown = self.shutdown.clone();
        tokio::spawn(async move {
            let result = tokio::select! {
                result = stream(&publisher, &metrics, requests, &responses, claims) => result,
                _ = shutdown.wait_for(|stop| *stop) => {
                    Err(Status::unavailable("the control plane is shutting down"))
                }
            };
            if let Err(status) = result {
                tracing::debug!(%status, "a discovery stream ended");
                let _ = responses.send(Err(status)).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

type Responses = mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>;

async fn stream(
    publisher: &Publisher,
    metrics: &Metrics,
    mut requests: Streaming<DeltaDiscoveryRequest>,
    responses: &Responses,
    claims: Option<Claims>,
) -> Result<(), Status> {
    let first = tokio::time::timeout(FIRST_REQUEST, requests.message());
    let first = first.await.map_err(|_| Status::deadline_exceeded("no request came"))??;
    let Some(first) = first else { return Ok(()) };
    let node = first.node.as_ref();
    let node = node.ok_or_else(|| Status::invalid_argument("the first request has no node"))?;
    let proxy = Proxy::from_node(node)?;
    if claims.is_some_and(|claims| claims.namespace != proxy.namespace) {
        return Err(Status::permission_denied("the join token is for another namespace"));
    }
    tracing::info!(proxy = proxy.id, "proxy connected");
    let handle = publisher.connect(Session::new(proxy.clone()));
    metrics.proxies.inc();
    let result = serve(publisher, metrics, &handle, first, &mut requests, responses).await;
    metrics.proxies.dec();
    publisher.disconnect(&handle);
    tracing::info!(proxy = proxy.id, "proxy disconnected");
    result
}

async fn serve(
    publisher: &Publisher,
    metrics: &Metrics,
    handle: &Handle,
    first: DeltaDiscoveryRequest,
    requests: &mut Streaming<DeltaDiscoveryRequest>,
    responses: &Responses,
) -> Result<(), Status> {
    receive(handle, metrics, first)?;
    loop {
        push(publisher, metrics, handle, responses).await?;
        tokio::select! {
            request = requests.message() => match request {
                Ok(Some(request)) => receive(handle, metrics, request)?,
                // Whether the proxy closed the stream or vanished makes no difference here.
                Ok(None) | Err(_) => return Ok(()),
            },
            () = handle.wake.notified() => {}
            () = responses.closed() => return Ok(()),
        }
    }
}

fn receive(
    handle: &Handle,
    metrics: &Metrics,
    request: DeltaDiscoveryRequest,
) -> Result<(), Status> {
    let mut session = handle.session();
    let refused = session.counts.nacks;
    session.receive(request)?;
    if session.counts.nacks > refused
        && let Some(nack) = session.nacks.back()
    {
        metrics.nacks.inc();
        tracing::warn!(
            proxy = session.proxy.id,
            resources = nack.resources.join(" "),
            reason = nack.reason,
            "a proxy refused configuration"
        );
    }
    handle.acknowledge(session.acknowledged_generation());
    Ok(())
}

/// Sends whatever the proxy lacks.
async fn push(
    publisher: &Publisher,
    metrics: &Metrics,
    handle: &Handle,
    responses: &Responses,
) -> Result<(), Status> {
    // The newest state is read only when there is room for it.
    let Ok(permit) = responses.reserve().await else { return Ok(()) };
    drop(permit);
    let dirty = handle.take_dirty();
    handle.session().touch(&dirty);
    let ready = pump(publisher, handle, &dirty);
    for response in ready {
        metrics.pushed(&response);
        if responses.send(Ok(response)).await.is_err() {
            return Ok(());
        }
    }
    if let Some(since) = dirty.since {
        metrics.publish_seconds.observe(since.elapsed().as_secs_f64());
    }
    Ok(())
}

fn pump(publisher: &Publisher, handle: &Handle, dirty: &Dirty) -> Vec<DeltaDiscoveryResponse> {
    let mut view = publisher.view();
    let mut session = handle.session();
    if session.is_paused() {
        return Vec::new();
    }
    let nanos = dirty.newest.unwrap_or(view.commit).nanos;
    let responses = session.pump(&mut view, nanos);
    let (old, new) = session.update_interests();
    view.change_interests(handle, &old, new);
    handle.acknowledge(session.acknowledged_generation());
    responses
}
