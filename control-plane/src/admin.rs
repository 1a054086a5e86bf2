//! The admin server: whether the control plane lives, what it knows, and who has been told.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::SystemTime;

use axum::Json;
use axum::Router;
use axum::extract::{FromRef, Request, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use outrigger_core::config::Endpoint;
use outrigger_core::name::PROXIED;
use outrigger_logging::Log;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::analysis;
use crate::ca::Authority;
use crate::ca::ledger::shown;
use crate::graph::Graph;
use crate::graph::formats::{dot, text};
use crate::graph::page::GraphPage;
use crate::index::{Index, PortId};
use crate::metrics::Metrics;
use crate::object::{Service, TargetPort, Workload};
use crate::problems::{Problem, Problems};
use crate::publish::{Publisher, View};
use crate::registration::Registrations;
use crate::status;
use crate::status::reader::{StatusTable, Statuses};
use crate::tap;
use crate::tap::page::TapServer;

/// The content type of Prometheus' text format as `prometheus-client` writes it.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What the admin server looks at.
#[derive(Clone, Debug)]
pub struct Admin {
    pub publisher: Arc<Publisher>,
    pub registrations: Option<Arc<Registrations>>,
    pub authority: Option<Arc<Authority>>,
    pub problems: Arc<Problems>,
    pub statuses: Arc<Statuses>,
    pub graph: Arc<Graph>,
    pub tap: TapServer,
    pub metrics: Arc<Metrics>,
    pub log: Log,
}

impl FromRef<Admin> for TapServer {
    fn from_ref(admin: &Admin) -> Self {
        admin.tap.clone()
    }
}

pub async fn serve(listener: TcpListener, admin: Admin) {
    let app = Router::new()
        .route("/", get(contents))
        .route("/live", get(|| async { "live\n" }))
        // It listens only once the manifests are loaded.
        .route("/ready", get(|| async { "ready\n" }))
        .route("/metrics", get(metrics))
        .route("/index", get(index))
        .route("/proxies", get(proxies))
        .route("/identity", get(identity))
        .route("/problems", get(problems))
        .route("/graph", get(graph))
        .route("/graph.txt", get(graph_text))
        .route("/graph.dot", get(graph_dot))
        .route("/tap", get(tap::page::tap))
        .layer(from_fn(refuse_proxied))
        .with_state(admin)
        .into_make_service_with_connect_info::<SocketAddr>();
    if let Err(error) = axum::serve(listener, app).await {
        tracing::error!(%error, "the admin server ended");
    }
}

/// Numbers and probes alone, which anybody may see.
pub async fn serve_public(listener: TcpListener, admin: Admin) {
    let app = Router::new()
        .route("/live", get(|| async { "live\n" }))
        .route("/ready", get(|| async { "ready\n" }))
        .route("/metrics", get(metrics))
        .with_state(admin);
    if let Err(error) = axum::serve(listener, app).await {
        tracing::error!(%error, "the server of metrics ended");
    }
}

/// Nobody gets here through a proxy, which would call in its own name.
async fn refuse_proxied(request: Request, next: Next) -> Response {
    if request.headers().contains_key(PROXIED) {
        return (StatusCode::FORBIDDEN, "not through a proxy\n").into_response();
    }
    next.run(request).await
}

async fn contents() -> &'static str {
    "/live      whether the process runs\n\
     /ready     whether the manifests are loaded\n\
     /metrics   numbers for Prometheus\n\
     /index     every service, endpoint, route and workload, with status\n\
     /proxies   what each proxy asked for, was sent and has acknowledged\n\
     /identity  roots, the issuing one, and who has which certificate\n\
     /problems  what is wrong in the manifests or has no effect, with file, line and field\n\
     /graph     who calls whom, cycles, and what is not as usual; as text /graph.txt, for Graphviz /graph.dot\n\
     /tap       requests while they happen, for those who may see them; `outrigger tap --help` tells how\n"
}

async fn metrics(State(admin): State<Admin>) -> impl IntoResponse {
    let behind = admin.publisher.proxies_behind();
    admin.metrics.proxies_behind.set(i64::try_from(behind).unwrap_or(i64::MAX));
    admin.metrics.log_dropped.inner().store(admin.log.dropped(), Relaxed);
    ([(CONTENT_TYPE, OPENMETRICS)], admin.metrics.encode())
}

#[derive(Debug, Default, Serialize)]
struct ProblemsPage {
    problems: Vec<ProblemLine>,
    /// References that do not resolve, which they may later, and whatever has no effect.
    findings: Vec<ProblemLine>,
}

#[derive(Debug, Serialize)]
struct ProblemLine {
    /// `file:line: field.path: problem`
    text: String,
    #[serde(flatten)]
    problem: Problem,
}

impl From<Problem> for ProblemLine {
    fn from(problem: Problem) -> Self {
        Self { text: problem.to_string(), problem }
    }
}

async fn problems(State(admin): State<Admin>) -> Json<ProblemsPage> {
    let page = tokio::task::spawn_blocking(move || {
        let problems = admin.problems.all().into_iter().map(ProblemLine::from).collect();
        let index = admin.publisher.view().index.clone();
        let findings = analysis::findings(&index, true);
        let findings = analysis::place(&findings, &admin.problems, read_to_string);
        let findings = findings.into_iter().map(ProblemLine::from).collect();
        ProblemsPage { problems, findings }
    });
    Json(page.await.unwrap_or_default())
}

fn read_to_string(path: &Path) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

async fn index(State(admin): State<Admin>) -> impl IntoResponse {
    let statuses = admin.statuses.up_to_date().await;
    // A large index takes a while to write down: not on a thread that serves proxies.
    let page = tokio::task::spawn_blocking(move || index_page(&admin, &statuses)).await;
    ([(CONTENT_TYPE, "application/json")], page.unwrap_or_default())
}

/// Of one state; services are written one by one, so that the page takes no more memory than its text.
fn index_page(admin: &Admin, statuses: &StatusTable) -> String {
    let problems = admin.problems.all();
    let view = admin.publisher.view();
    let summary = summary(&view, statuses);
    let problems: Vec<_> = problems.into_iter().map(ProblemLine::from).collect();
    let mut page = summary;
    page["problems"] = json!(problems);
    if let Some(registrations) = &admin.registrations
        && let Some(workloads) = page["workloads"].as_object_mut()
    {
        for (uid, workload) in workloads {
            if let Some((health, connected)) = registrations.describe(uid) {
                workload["registration"] = json!({ "health": health, "connected": connected });
            }
        }
    }
    let mut text = page.to_string();
    text.truncate(text.len() - 1);
    text.push_str(",\"services\":{");
    let mut separator = "";
    for service in view.index.services() {
        let mut value = self::service(&view.index, service);
        value["programmed"] = json!(status::programmed(&view, &service.id));
        text.push_str(&format!("{separator}\"{}\":{value}", service.id));
        separator = ",";
    }
    text.push_str("}}");
    text
}

fn summary(view: &View<'_>, statuses: &StatusTable) -> Value {
    let index = &view.index;
    let settings = index.settings();
    let routes: Vec<Value> = index
        .routes()
        .map(|route| {
            let parents: Vec<_> = route.parents.iter().map(|p| p.service.to_string()).collect();
            json!({
                "object": route.id, "class": status::class(route), "parents": parents,
                "created": route.created,
            })
        })
        .collect();
    let workloads: BTreeMap<String, Value> =
        index.workloads().map(|w| (w.uid(), workload(w))).collect();
    json!({
        "generation": view.commit.generation,
        "settings": {
            "cluster_domain": settings.cluster_domain,
            "unmatched": format!("{:?}", settings.unmatched).to_lowercase(),
            "max_endpoints": settings.max_endpoints,
            "namespaces": settings.namespaces,
        },
        "routes": routes,
        "workloads": workloads,
        "status": statuses.values().map(|status| &**status).collect::<Vec<_>>(),
    })
}

fn service(index: &Index, service: &Service) -> Value {
    let ports = service.ports.iter().map(|port| {
        let id = PortId::new(&service.id, port.port);
        let endpoints: Vec<Value> =
            index.endpoints(&id).unwrap_or_default().iter().map(endpoint).collect();
        json!({
            "port": port.port,
            "name": port.name,
            "target": match &port.target {
                TargetPort::Number(number) => json!(number),
                TargetPort::Name(name) => json!(name),
            },
            "protocol": port.protocol.as_str(),
            "endpoints": endpoints,
        })
    });
    json!({
        "cluster_ips": service.cluster_ips,
        "headless": service.headless,
        "selector": service.selector,
        "ports": ports.collect::<Vec<_>>(),
    })
}

fn endpoint(endpoint: &Endpoint) -> Value {
    json!({
        "id": endpoint.id.to_string(),
        "address": endpoint.address,
        "mesh": endpoint.mesh.as_ref().map(|mesh| mesh.address),
        "identity": endpoint.mesh.as_ref().and_then(|mesh| mesh.identity.as_ref().map(|id| id.as_str())),
        "zone": endpoint.zone,
        "hostname": endpoint.hostname,
        "workload": endpoint.workload,
    })
}

fn workload(workload: &Workload) -> Value {
    let ports = workload.ports.iter().map(
        |port| json!({ "port": port.port, "name": port.name, "protocol": port.protocol.as_str() }),
    );
    json!({
        "service_account": workload.service_account,
        "labels": workload.labels,
        "address": workload.address,
        "mesh": workload.mesh.as_ref().map(|mesh| mesh.address),
        "zone": workload.zone,
        "ready": workload.ready,
        "ports": ports.collect::<Vec<_>>(),
    })
}

async fn graph(State(admin): State<Admin>) -> Response {
    graph_page(admin, |page| Json(page).into_response()).await
}

async fn graph_dot(State(admin): State<Admin>) -> Response {
    graph_page(admin, |page| ([(CONTENT_TYPE, "text/vnd.graphviz")], dot(page)).into_response())
        .await
}

async fn graph_text(State(admin): State<Admin>) -> Response {
    graph_page(admin, |page| text(page).into_response()).await
}

async fn graph_page(
    admin: Admin,
    show: impl FnOnce(&GraphPage) -> Response + Send + 'static,
) -> Response {
    let page = tokio::task::spawn_blocking(move || match admin.graph.page() {
        Some(page) => show(&page),
        None => {
            let problem = "another replica keeps the graph";
            let text = Json(json!({ "error": problem, "keeper": admin.graph.keeper() }));
            (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
        }
    });
    page.await.unwrap_or_else(|_| StatusCode::INTERNAL_SERVER_ERROR.into_response())
}

async fn identity(State(admin): State<Admin>) -> Json<Value> {
    let Some(authority) = &admin.authority else { return Json(json!({ "identity": "off" })) };
    let (in_force, now) = (authority.in_force(), SystemTime::now());
    let roots = in_force.roots.iter().map(|root| {
        json!({
            "root": root.id.full(),
            "issuing": root.id == in_force.issuer.root,
            "key_here": root.has_key(),
            "not_after": shown(root.not_after),
        })
    });
    let certificates = authority.ledger.lines(now).into_iter().map(|line| {
        json!({
            "node": line.id.node,
            "identity": line.id.identity.as_str(),
            "root": line.node.root.full(),
            "not_after": shown(line.node.not_after),
            "connected": line.connected,
            "bundle": line.node.bundle.map(|bundle| bundle.version),
        })
    });
    Json(json!({
        "identity": "on",
        "trust_domain": authority.trust_domain.as_str(),
        "issuing_root": in_force.issuer.root.full(),
        "issuer_not_after": shown(in_force.issuer.not_after),
        "bundle": in_force.version,
        "roots": roots.collect::<Vec<_>>(),
        "held": authority.held(),
        "certificates": certificates.collect::<Vec<_>>(),
    }))
}

async fn proxies(State(admin): State<Admin>) -> Json<Value> {
    // Each session by itself, so that nothing waits for the whole page.
    let streams = admin.publisher.streams();
    let proxies: Vec<Value> = streams.iter().map(|stream| stream.describe()).collect();
    Json(json!({ "proxies": proxies }))
}
