//! The webhook server: the API server asks it about objects before it stores them.
//!
//! `POST /inject` gives a pod its proxy ([`mod@inject`]). `POST /validate` says what is wrong with an object of a kind that the mesh is made of ([`mod@validate`]), with the
//! code that reads it when it is there. A connection is TLS with a certificate for the Service's name under the
//! mesh's own roots, which [`bundle`] writes into the webhook configurations. Nothing here changes anything in the
//! mesh: without this server objects are stored unasked, and a wrong one is not put in force.

mod bundle;
mod inject;
mod review;
mod validate;

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use outrigger_core::address::LocalEndpoints;
use rustls::crypto::aws_lc_rs;
use rustls::server::{NoServerSessionStorage, ServerConfig};
use rustls::version;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tower::Service as _;

use crate::ca::own::OwnCertificate;
use crate::metrics::{Metrics, WebhookLabel};
use crate::publish::Publisher;
use review::{AdmissionVerdict, Request, ReviewRequest};

pub use bundle::WebhookBundle;
pub use inject::Injector;

/// Connections at one time: each API server of a cluster keeps a few.
const MAX_CONNECTIONS: usize = 256;
/// A handshake that takes longer is not one.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// From the beginning of a request to the end of its head.
const HEAD: Duration = Duration::from_secs(5);
/// For a request with its body and its answer; the API server gives up after the 10 s of its configuration.
const ANSWER: Duration = Duration::from_secs(9);
/// Bytes of a review, which holds an object twice: etcd takes 1.5 MiB for one.
const MAX_REVIEW: usize = 4 * 1024 * 1024;
/// Requests whose bodies are held at one time: anybody who reaches the port may send some.
const MAX_REQUESTS: usize = 32;
/// Objects looked at at one time: it is work for a processor.
const AT_ONCE: usize = 4;
/// Pause when the system has no more sockets.
const EXHAUSTED: Duration = Duration::from_millis(100);

/// What the webhook server looks at.
#[derive(Clone)]
pub struct Webhook {
    pub publisher: Arc<Publisher>,
    pub metrics: Arc<Metrics>,
    /// Which endpoints on the callers' own machines are taken.
    pub local: LocalEndpoints,
    /// None: pods stay as they are.
    pub injector: Option<Arc<Injector>>,
    turns: Arc<Semaphore>,
}

impl fmt::Debug for Webhook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Webhook")
    }
}

impl Webhook {
    pub fn new(publisher: Arc<Publisher>, metrics: Arc<Metrics>, local: LocalEndpoints) -> Self {
        let turns = Arc::new(Semaphore::new(AT_ONCE));
        Self { publisher, metrics, local, injector: None, turns }
    }

    /// Serves until dropped.
    ///
    /// # Errors
    ///
    /// If TLS cannot be set up at all.
    pub fn serve(
        self,
        listener: TcpListener,
        certificate: Arc<OwnCertificate>,
    ) -> Result<impl Future<Output = ()> + Send, String> {
        let acceptor = acceptor(certificate)?;
        let metrics = self.metrics.clone();
        let app = Router::new()
            .route("/validate", post(validate))
            .route("/inject", post(inject_pod))
            .layer(DefaultBodyLimit::max(MAX_REVIEW))
            .with_state(self);
        Ok(accept(listener, acceptor, app, metrics))
    }
}

fn acceptor(certificate: Arc<OwnCertificate>) -> Result<TlsAcceptor, String> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&version::TLS13])
        .map_err(|error| error.to_string())?
        .with_no_client_auth()
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(TlsAcceptor::from(Arc::new(config)))
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, app: Router, metrics: Arc<Metrics>) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let requests = Arc::new(Semaphore::new(MAX_REQUESTS));
    loop {
        // It is never closed.
        let Ok(place) = places.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, peer)) => {
                let (acceptor, metrics) = (acceptor.clone(), metrics.clone());
                let app = Bounded { app: app.clone(), requests: requests.clone() };
                tokio::spawn(connection(stream, peer, acceptor, app, metrics, place));
            }
            Err(error) => {
                tracing::warn!(%error, "could not accept a connection of the webhook");
                tokio::time::sleep(EXHAUSTED).await;
            }
        }
    }
}

/// The routes, and how many requests of all connections may be at them.
#[derive(Clone)]
struct Bounded {
    app: Router,
    requests: Arc<Semaphore>,
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    acceptor: TlsAcceptor,
    app: Bounded,
    metrics: Arc<Metrics>,
    _place: OwnedSemaphorePermit,
) {
    let _ = stream.set_nodelay(true);
    let stream = match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            metrics.handshakes_failed.inc();
            tracing::info!(%peer, %error, "a TLS handshake of the webhook failed");
            return;
        }
        Err(_) => {
            metrics.handshakes_failed.inc();
            return;
        }
    };
    let service = hyper::service::service_fn(move |request: http::Request<Incoming>| {
        let Bounded { mut app, requests } = app.clone();
        async move {
            let answer = async {
                // It is never closed. Until it is this one's turn nothing is read of it.
                let _turn = requests.acquire().await;
                app.call(request).await
            };
            let answer = tokio::time::timeout(ANSWER, answer).await;
            let late = || Ok((StatusCode::REQUEST_TIMEOUT, "took too long\n").into_response());
            answer.unwrap_or_else(|_| late())
        }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD);
    if let Err(error) = builder.serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!(%peer, %error, "a connection of the webhook broke");
    }
}

async fn validate(State(webhook): State<Webhook>, body: Bytes) -> Response {
    match read(&body) {
        Ok(request) => {
            let judge = |webhook: &Webhook, request: &Request| validate::review(webhook, request);
            answer(webhook, "validate", request, judge).await
        }
        Err(problem) => problem.into_response(),
    }
}

async fn inject_pod(State(webhook): State<Webhook>, body: Bytes) -> Response {
    let Some(injector) = webhook.injector.clone() else {
        let why = "the control plane runs without --inject, and does not know with what\n";
        return (StatusCode::NOT_FOUND, why).into_response();
    };
    let request = match read(&body) {
        Ok(request) => request,
        Err(problem) => return problem.into_response(),
    };
    let namespace = match injector.namespace(&request).await {
        Ok(namespace) => namespace,
        // The API server does what its configuration says of such a failure.
        Err(problem) => {
            tracing::warn!(problem, "whether a pod is to be injected is not known");
            return (StatusCode::SERVICE_UNAVAILABLE, format!("{problem}\n")).into_response();
        }
    };
    let judge = move |webhook: &Webhook, request: &Request| {
        injector.review(&webhook.publisher.view().index, &namespace, request)
    };
    answer(webhook, "inject", request, judge).await
}

/// An error is the answer.
fn read(body: &[u8]) -> Result<Request, (StatusCode, String)> {
    serde_json::from_slice::<ReviewRequest>(body).map(|review| review.request).map_err(|error| {
        let problem = format!("not an AdmissionReview of admission.k8s.io/v1: {error}\n");
        (StatusCode::BAD_REQUEST, problem)
    })
}

/// Hands a review to what knows the answer, on a thread that serves no proxies.
async fn answer(
    webhook: Webhook,
    name: &'static str,
    request: Request,
    judge: impl FnOnce(&Webhook, &Request) -> AdmissionVerdict + Send + 'static,
) -> Response {
    // It is never closed.
    let Ok(turn) = webhook.turns.clone().acquire_owned().await else {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    };
    let metrics = webhook.metrics.clone();
    let judged = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        let verdict = judge(&webhook, &request);
        (request.uid, verdict)
    });
    let Ok((uid, verdict)) = judged.await else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    let label = WebhookLabel { webhook: name, allowed: verdict.allowed.to_string() };
    metrics.reviews.get_or_create(&label).inc();
    axum::Json(verdict.answer(&uid)).into_response()
}
