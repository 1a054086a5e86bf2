//! The admin server: is it alive, is it ready, what does it know, what has it seen.

mod policies;

use std::sync::Arc;

use axum::Json;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::{get, post, put};
use serde_json::{Value, json};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::reload;

use crate::metrics::expose::expose;
use crate::proxy::{Phase, Proxy};
use crate::store::{Dialed, Live, Resolution};

pub type LogHandle = reload::Handle<EnvFilter, tracing_subscriber::Registry>;

#[derive(Clone)]
struct Admin {
    proxy: Arc<Proxy>,
    log: LogHandle,
}

/// Serves until the process ends. Runs apart from traffic: a scrape can't slow a request.
pub async fn serve(proxy: Arc<Proxy>, listener: std::net::TcpListener, log: LogHandle) {
    let router = Router::new()
        .route("/", get(index))
        .route("/live", get(|| async { "live\n" }))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics))
        .route("/config", get(config))
        .route("/identity", get(identity))
        .route("/policies", get(policies))
        .route("/drain", post(drain))
        .route("/log", put(set_log))
        .with_state(Admin { proxy, log });
    let served = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => axum::serve(listener, router).await,
        Err(error) => Err(error),
    };
    if let Err(error) = served {
        tracing::error!(%error, "the admin server has ended");
    }
}

async fn index() -> &'static str {
    "GET /live, /ready, /metrics, /config, /identity, /policies; POST /drain; PUT /log with a filter such as \
     outrigger_proxy=debug\n"
}

async fn ready(State(admin): State<Admin>) -> (StatusCode, String) {
    match admin.proxy.not_ready() {
        None => (StatusCode::OK, "ready\n".to_owned()),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")),
    }
}

async fn metrics(State(admin): State<Admin>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], expose(&admin.proxy))
}

async fn identity(State(admin): State<Admin>) -> Json<Value> {
    Json(match &admin.proxy.identity {
        Some(identity) => identity.describe(),
        None => json!({ "id": null, "off": "the control plane is dialled without TLS" }),
    })
}

async fn policies(State(admin): State<Admin>) -> Json<Value> {
    Json(policies::show(&admin.proxy))
}

async fn config(State(admin): State<Admin>) -> Json<Value> {
    let proxy = &admin.proxy;
    let mesh = proxy.mesh.load();
    let destinations: Vec<_> = proxy.store.snapshot().iter().map(|d| destination(d)).collect();
    Json(json!({
        "uid": proxy.settings.uid(),
        "version": env!("CARGO_PKG_VERSION"),
        "phase": format!("{:?}", proxy.lifecycle.phase()),
        "configured": proxy.lifecycle.configured(),
        "mesh": {
            "clusterDomain": mesh.cluster_domain,
            "unmatched": format!("{:?}", mesh.unmatched),
            "namespaces": mesh.namespaces,
        },
        "inbound": format!("{:?}", **proxy.inbound.load()),
        "destinations": destinations,
    }))
}

fn destination(dialed: &Dialed) -> Value {
    let (state, live) = match dialed.resolution() {
        Resolution::Pending => ("pending".to_owned(), None),
        Resolution::Unknown => ("unknown".to_owned(), None),
        Resolution::Unsupported(why) => (format!("unsupported: {why}"), None),
        Resolution::Found(live) => ("found".to_owned(), Some(live)),
    };
    json!({
        "authority": dialed.authority.to_string(),
        "state": state,
        "destination": live.as_deref().map(service),
    })
}

fn service(live: &Live) -> Value {
    let backends: Vec<_> = live
        .backends
        .iter()
        .map(|backend| {
            let set = backend.load();
            let endpoints: Vec<_> = set
                .endpoints
                .iter()
                .map(|state| {
                    let mesh = state.endpoint.mesh.as_ref();
                    json!({
                        "id": state.endpoint.id.to_string(),
                        "address": state.endpoint.address,
                        "mesh": mesh.map(|mesh| mesh.address),
                        "identity": mesh.and_then(|mesh| mesh.identity.as_ref().map(ToString::to_string)),
                        "workload": state.endpoint.workload,
                        "zone": state.endpoint.zone,
                        "inFlight": state.load.in_flight(),
                    })
                })
                .collect();
            json!({ "name": backend.name.to_string(), "complete": set.complete, "endpoints": endpoints })
        })
        .collect();
    let mut routes: Vec<_> = live.compiled.route_names().collect();
    routes.dedup();
    json!({
        "name": live.compiled.name.to_string(),
        "protocol": live.compiled.protocol.as_str(),
        "routes": routes.iter().map(|name| &***name).collect::<Vec<_>>(),
        "backends": backends,
    })
}

async fn drain(State(admin): State<Admin>) -> (StatusCode, &'static str) {
    admin.proxy.lifecycle.advance(Phase::Leaving);
    (StatusCode::ACCEPTED, "draining\n")
}

async fn set_log(State(admin): State<Admin>, filter: String) -> (StatusCode, String) {
    let parsed = EnvFilter::try_new(filter.trim());
    let set = parsed
        .map_err(|e| e.to_string())
        .and_then(|filter| admin.log.reload(filter).map_err(|e| e.to_string()));
    match set {
        Ok(()) => (StatusCode::OK, "ok\n".to_owned()),
        Err(why) => (StatusCode::BAD_REQUEST, format!("bad filter: {why}\n")),
    }
}
