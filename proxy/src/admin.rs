//! The admin server: is it alive, is it ready, what does it know, what has it seen.

pub mod expose;
mod platform;
mod policies;

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use outrigger_core::name::PROXIED;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::net::UnixListener;
use tracing_subscriber::{EnvFilter, reload};

use crate::admin::expose::expose;
use crate::observe::metrics::table::MetricsFormat;
use crate::proxy::{Phase, Proxy};
use crate::upstream::store::{Dialed, Live, Resolution};

pub type LogHandle = reload::Handle<EnvFilter, tracing_subscriber::Registry>;

#[derive(Clone)]
struct Admin {
    proxy: Arc<Proxy>,
    log: LogHandle,
}

/// Serves until the process ends. Runs apart from traffic: a scrape can't slow a request.
pub async fn serve(
    proxy: Arc<Proxy>,
    listener: std::net::TcpListener,
    socket: Option<UnixListener>,
    log: LogHandle,
) {
    let admin = Admin { proxy, log };
    let looks = Router::new()
        .route("/", get(index))
        .route("/live", get(|| async { "live\n" }))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics))
        .route("/config", get(config))
        .route("/identity", get(identity))
        .route("/policies", get(policies))
        .route("/startup", get(startup))
        .route("/prestop", get(pre_stop))
        .route("/probe/tcp/{port}", get(probe_tcp));
    let changes = Router::new().route("/drain", post(drain)).route("/log", put(set_log));
    let with_token = from_fn_with_state(admin.clone(), demand_token);
    let open = looks.clone().merge(changes.clone().route_layer(with_token));
    let open = open.layer(from_fn(refuse_proxied)).with_state(admin.clone());
    let local = async {
        match socket {
            Some(socket) => axum::serve(socket, looks.merge(changes).with_state(admin)).await,
            None => Ok(()),
        }
    };
    let open = async { axum::serve(tokio::net::TcpListener::from_std(listener)?, open).await };
    if let Err(error) = futures::future::try_join(open, local).await {
        tracing::error!(%error, "the admin server has ended");
    }
}

/// Binds the socket that only its owner may connect to. In a folder that nobody else can enter, so that there
/// is no moment at which its mode is another one.
///
/// # Errors
/// If it cannot be made there.
pub fn bind_socket(path: &std::path::Path) -> io::Result<UnixListener> {
    let parent = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let parent = if parent.as_os_str().is_empty() { std::path::Path::new(".") } else { parent };
    let owner = Permissions::from_mode(0o700);
    // Of a name that was never there: a process that was killed here leaves its folder behind, and in a
    // container the next one has the same process id.
    let folder =
        tempfile::Builder::new().prefix(".outrigger-").permissions(owner).tempdir_in(parent)?;
    let hidden = folder.path().join("socket");
    let listener = UnixListener::bind(&hidden)?;
    std::fs::set_permissions(&hidden, Permissions::from_mode(0o600))?;
    std::fs::rename(&hidden, path)?;
    Ok(listener)
}

/// Nobody gets here through a proxy, which would call in its own name.
async fn refuse_proxied(request: Request, next: Next) -> Response {
    if request.headers().contains_key(PROXIED) {
        return (StatusCode::FORBIDDEN, "not through a proxy\n").into_response();
    }
    next.run(request).await
}

/// What changes the proxy is for those who may: the socket's owner, or who knows the token.
async fn demand_token(State(admin): State<Admin>, request: Request, next: Next) -> Response {
    let Some(file) = &admin.proxy.settings.admin_token_file else {
        let why = "this changes the proxy: call it over --admin-socket, or start the proxy with \
                   --admin-token-file\n";
        return (StatusCode::FORBIDDEN, why).into_response();
    };
    let file = file.clone();
    let read = tokio::task::spawn_blocking(move || std::fs::read(file)).await;
    let token = match read.unwrap_or_else(|error| Err(io::Error::other(error))) {
        Ok(token) if !token.trim_ascii().is_empty() => token,
        Ok(_) => {
            return (StatusCode::FORBIDDEN, "the file of --admin-token-file is empty\n")
                .into_response();
        }
        Err(error) => {
            let why = format!("cannot read the file of --admin-token-file: {error}\n");
            return (StatusCode::FORBIDDEN, why).into_response();
        }
    };
    let given = request.headers().get(header::AUTHORIZATION);
    let given = given.and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
    // Digests, so that the time of a comparison says nothing about the token.
    let same = |given: &[u8]| Sha256::digest(given) == Sha256::digest(token.trim_ascii());
    if given.is_some_and(same) {
        return next.run(request).await;
    }
    let why =
        "this changes the proxy: send the token of --admin-token-file as `Authorization: Bearer`\n";
    (StatusCode::UNAUTHORIZED, why).into_response()
}

async fn index() -> &'static str {
    "GET /live, /ready, /metrics, /config, /identity, /policies; for the kubelet: GET /startup, \
     /prestop?limit=5s, /probe/tcp/PORT; POST /drain; PUT /log with a filter such as outrigger_proxy=debug. \
     What is no GET wants --admin-socket or the token of --admin-token-file\n"
}

async fn ready(State(admin): State<Admin>) -> (StatusCode, String) {
    let details = admin.proxy.describe_readiness();
    match admin.proxy.not_ready() {
        None => (StatusCode::OK, format!("ready\n{details}")),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n{details}")),
    }
}

async fn startup(State(admin): State<Admin>) -> (StatusCode, String) {
    platform::started(&admin.proxy).await
}

async fn pre_stop(
    State(admin): State<Admin>,
    Query(query): Query<platform::PreStop>,
) -> (StatusCode, String) {
    platform::pre_stop(&admin.proxy, &query).await
}

async fn probe_tcp(State(admin): State<Admin>, Path(port): Path<u16>) -> (StatusCode, String) {
    platform::probe_tcp(&admin.proxy, port).await
}

async fn metrics(State(admin): State<Admin>, headers: HeaderMap) -> impl IntoResponse {
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
    let format = MetricsFormat::accepted(accept.unwrap_or_default());
    ([(header::CONTENT_TYPE, format.content_type())], expose(&admin.proxy, format))
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
        "phase": format!("{:?}", proxy.lifecycle.phase()).to_lowercase(),
        "configured": proxy.lifecycle.configured(),
        "mesh": {
            "clusterDomain": mesh.cluster_domain,
            "unmatched": format!("{:?}", mesh.unmatched).to_lowercase(),
            "namespaces": mesh.namespaces,
        },
        "inbound": inbound(proxy),
        "destinations": destinations,
    }))
}

/// The ports that others may call, and how.
fn inbound(proxy: &Proxy) -> Value {
    let inbound = proxy.inbound.load();
    let ports = inbound.ports().map(|port| {
        json!({
            "port": port.port,
            "protocol": port.declared().as_str(),
            "services": port.services().collect::<Vec<_>>(),
            "configured": port.is_configured(),
            "mtls": if port.strict() { "strict" } else { "permissive" },
            "accessRules": port.rules.is_some(),
            "limits": port.limits.is_some(),
        })
    });
    json!({ "app": inbound.app, "ports": ports.collect::<Vec<_>>() })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_is_its_owners_whatever_a_killed_process_has_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin");
        // What an earlier process of the same id had made when it was killed.
        std::fs::create_dir(dir.path().join(format!(".admin.{}", std::process::id()))).unwrap();
        let first = bind_socket(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        drop(first);
        let _second = bind_socket(&path).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "nothing new is left");
    }
}
