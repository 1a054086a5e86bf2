//! The delta discovery service: one task per proxy between its stream and its [`Session`].
//!
//! The task sleeps until a request comes in or [`crate::publish`] wakes it, and sends what the
//! session gives. It waits for the transport before it looks at the newest state, so a slow proxy
//! gets fewer and later updates, never a growing queue.

mod bounds;
mod outbox;
mod session;
mod transport;

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use bytes::Bytes;
use outrigger_proto::wire::{self, DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use tokio::sync::mpsc;
use tonic::{Request, Status, Streaming};

pub use session::{MAX_NAME, MAX_SUBSCRIPTIONS, Nack, Proxy, Session};
pub use transport::DiscoveryServer;

use crate::ca::Authority;
use crate::connection::Connection;
use crate::metrics::Metrics;
use crate::publish::{Handle, Publisher, Subscriber};
use crate::sync::lock;
use crate::token::{Tokens, bearer};

/// Responses between the session and the transport.
const QUEUE: usize = 4;
/// How long a new stream may stay silent.
const FIRST_REQUEST: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub struct Discovery {
    publisher: Arc<Publisher>,
    tokens: Option<Arc<Tokens>>,
    authority: Option<Arc<Authority>>,
    metrics: Arc<Metrics>,
}

impl Discovery {
    pub fn new(
        publisher: Arc<Publisher>,
        tokens: Option<Arc<Tokens>>,
        authority: Option<Arc<Authority>>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { publisher, tokens, authority, metrics }
    }

    /// In a mesh without identities a token is optional; a wrong one is still wrong.
    fn authenticate<T>(&self, request: &Request<T>) -> Result<StreamCaller, Status> {
        let connection = Connection::of(request)?;
        if let Some(identity) = connection.identity()? {
            let namespace = Some(identity.namespace().to_owned());
            return Ok(StreamCaller { connection, namespace, authority: self.authority.clone() });
        }
        let namespace = match (bearer(request.metadata())?, &self.tokens) {
            (None, _) => None,
            (Some(token), Some(tokens)) => Some(tokens.verify(token)?.namespace),
            (Some(_), None) => {
                return Err(Status::unauthenticated(
                    "this control plane has no state directory, so it knows no join tokens",
                ));
            }
        };
        Ok(StreamCaller { connection, namespace, authority: None })
    }
}

/// Who opened a stream.
struct StreamCaller {
    connection: Connection,
    /// What it has proven; nothing is proven by a proxy without identity and token.
    namespace: Option<String>,
    authority: Option<Arc<Authority>>,
}

impl StreamCaller {
    /// Reads who the proxy says to be, and compares it with what is proven.
    fn admit(&self, first: &DeltaDiscoveryRequest) -> Result<Proxy, Status> {
        let node = first.node.as_ref();
        let node = node.ok_or_else(|| Status::invalid_argument("the first request has no node"))?;
        let mut proxy = Proxy::from_node(node)?;
        proxy.identity = self.connection.identity()?.cloned();
        if self.namespace.as_ref().is_some_and(|namespace| *namespace != proxy.namespace) {
            let proof = if proxy.identity.is_some() { "certificate" } else { "join token" };
            return Err(Status::permission_denied(format!("the {proof} is for another namespace")));
        }
        if let Some(connected) = self.connection.connected() {
            connected.is_node(&proxy.id);
        }
        Ok(proxy)
    }

    /// Notes which roots the proxy trusts.
    fn note_trust(&self, session: &Session) {
        if let (Some(connected), Some(authority)) = (self.connection.connected(), &self.authority)
            && let Some(version) = session.acknowledged_trust()
        {
            connected.acknowledge(version, authority.roots_of(version));
        }
    }
}

impl Discovery {
    /// Begins a stream; gives what it sends.
    fn open(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<mpsc::Receiver<Result<Bytes, Status>>, Status> {
        let caller = self.authenticate(&request)?;
        let (responses, receiver) = mpsc::channel(QUEUE);
        let publisher = self.publisher.clone();
        let metrics = self.metrics.clone();
        let requests = request.into_inner();
        let ended = caller.connection.clone().ended();
        tokio::spawn(async move {
            let result = tokio::select! {
                result = stream(&publisher, &metrics, requests, &responses, &caller) => result,
                status = ended => Err(status),
            };
            if let Err(status) = result {
                tracing::debug!(%status, "a discovery stream ended");
                let _ = responses.send(Err(status)).await;
            }
        });
        Ok(receiver)
    }
}

type ResponseSender = mpsc::Sender<Result<Bytes, Status>>;

async fn stream(
    publisher: &Publisher,
    metrics: &Metrics,
    mut requests: Streaming<DeltaDiscoveryRequest>,
    responses: &ResponseSender,
    caller: &StreamCaller,
) -> Result<(), Status> {
    let first = tokio::time::timeout(FIRST_REQUEST, requests.message());
    let first = first.await.map_err(|_| Status::deadline_exceeded("no request came"))??;
    let Some(first) = first else { return Ok(()) };
    bounds::check(&first)?;
    let proxy = caller.admit(&first)?;
    tracing::info!(proxy = proxy.id, "proxy connected");
    let stream = Arc::new(ProxyStream {
        handle: publisher.handle(),
        session: Mutex::new(Session::new(proxy)),
    });
    let connected = ConnectedProxy::new(publisher, metrics, stream);
    let parts = Parts { publisher, metrics, stream: &connected.stream, responses, caller };
    parts.serve(first, &mut requests).await
}

/// A proxy that is told of changes, until this is dropped: also when its connection has to end.
struct ConnectedProxy<'a> {
    publisher: &'a Publisher,
    metrics: &'a Metrics,
    stream: Arc<ProxyStream>,
}

impl<'a> ConnectedProxy<'a> {
    fn new(publisher: &'a Publisher, metrics: &'a Metrics, stream: Arc<ProxyStream>) -> Self {
        publisher.connect(&stream.handle, stream.clone());
        metrics.proxies.inc();
        Self { publisher, metrics, stream }
    }
}

impl Drop for ConnectedProxy<'_> {
    fn drop(&mut self) {
        let Self { publisher, metrics, stream } = self;
        metrics.proxies.dec();
        let mut session = stream.session();
        session.retract(publisher, &stream.handle);
        publisher.unsubscribe(&stream.handle, &session.take_interests());
        publisher.disconnect(&stream.handle);
        tracing::info!(proxy = session.proxy.id, "proxy disconnected");
    }
}

/// One proxy's stream.
#[derive(Debug)]
struct ProxyStream {
    handle: Arc<Handle>,
    session: Mutex<Session>,
}

impl ProxyStream {
    fn session(&self) -> MutexGuard<'_, Session> {
        lock(&self.session)
    }
}

impl Subscriber for ProxyStream {
    fn describe(&self) -> serde_json::Value {
        self.session().describe()
    }
}

/// What one stream works with.
struct Parts<'a> {
    publisher: &'a Publisher,
    metrics: &'a Metrics,
    stream: &'a ProxyStream,
    responses: &'a ResponseSender,
    caller: &'a StreamCaller,
}

impl Parts<'_> {
    async fn serve(
        &self,
        first: DeltaDiscoveryRequest,
        requests: &mut Streaming<DeltaDiscoveryRequest>,
    ) -> Result<(), Status> {
        self.receive(first)?;
        loop {
            self.push().await?;
            tokio::select! {
                request = requests.message() => match request {
                    Ok(Some(request)) => self.receive(request)?,
                    // Whether the proxy closed the stream or vanished makes no difference here.
                    Ok(None) | Err(_) => return Ok(()),
                },
                () = self.stream.handle.wake.notified() => {}
                () = self.responses.closed() => return Ok(()),
            }
        }
    }

    fn receive(&self, request: DeltaDiscoveryRequest) -> Result<(), Status> {
        bounds::check(&request)?;
        let mut session = self.stream.session();
        let refused = session.counts.nacks;
        let about_trust = request.type_url == wire::TRUST_BUNDLE;
        session.receive(request);
        session.report(self.publisher, &self.stream.handle);
        if session.counts.nacks > refused
            && let Some(nack) = session.nacks.back()
        {
            self.metrics.nacks.inc();
            tracing::warn!(
                proxy = session.proxy.id,
                resources = nack.resources.join(" "),
                reason = nack.reason,
                "a proxy refused configuration"
            );
        }
        if about_trust {
            self.caller.note_trust(&session);
        }
        self.stream.handle.acknowledge(session.acknowledged_generation());
        Ok(())
    }

    /// Sends whatever the proxy lacks.
    async fn push(&self) -> Result<(), Status> {
        loop {
            // The newest state is read only when there is room for it.
            let Ok(permit) = self.responses.reserve().await else { return Ok(()) };
            drop(permit);
            let (ready, since, more) = self.pump();
            for response in ready {
                self.metrics.pushed(&response);
                let frame = transport::frame(&response)?;
                drop(response);
                if self.responses.send(Ok(frame)).await.is_err() {
                    return Ok(());
                }
            }
            if let Some(since) = since {
                self.metrics.publish_seconds.observe(since.elapsed().as_secs_f64());
            }
            if !more {
                return Ok(());
            }
            // A proxy that asks for much lets others have their turn.
            tokio::task::yield_now().await;
        }
    }

    /// What is to be sent, since when it was due, and whether there is more.
    fn pump(&self) -> (Vec<DeltaDiscoveryResponse>, Option<Instant>, bool) {
        let Self { publisher, stream, .. } = self;
        // In this order: what is told later is seen the next time, in a newer state.
        let told = publisher.told();
        let dirty = stream.handle.take_dirty();
        let mut view = publisher.view_for(&stream.handle, told);
        let mut session = stream.session();
        session.touch(&dirty);
        if session.is_paused() {
            return (Vec::new(), dirty.since, false);
        }
        let nanos = dirty.newest.unwrap_or(view.commit).nanos;
        let responses = session.pump(&mut view, nanos);
        session.report(publisher, &stream.handle);
        publisher.unsubscribe(&stream.handle, &session.interest_changes());
        stream.handle.acknowledge(session.acknowledged_generation());
        (responses, dirty.since, session.has_more())
    }
}
