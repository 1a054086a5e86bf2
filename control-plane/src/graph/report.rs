//! The service by which proxies report whom they call.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use outrigger_core::graph::TICK;
use outrigger_core::name::{MAX_HOST, MAX_LABEL, check_label};
use outrigger_proto::graph::graph_server;
use outrigger_proto::graph::{EdgeDelta, EdgeName, Report, ReportEnded, Reporter};
use tonic::{Request, Response, Status, Streaming};

use super::edges::{EdgeReport, Source, Traffic};
use super::nodes;
use super::{Graph, now};
use crate::connection::Connection;
use crate::token::{Tokens, bearer};

/// Edges that one stream may number, and that one report may hold.
const MAX_NUMBERS: usize = 5_000;
/// Bytes of all names of a stream: those of a real proxy are a tenth of it.
const MAX_NAMES: usize = 1024 * 1024;
/// Characters of a text in a report, but for those that have bounds of their own.
const MAX_TEXT: usize = 2 * MAX_HOST;
/// Buckets of one sketch.
const MAX_BUCKETS: usize = 128;
/// Reasons of one report.
const MAX_REASONS: usize = 64;
/// How long a new stream may stay silent.
const FIRST: Duration = Duration::from_secs(30);
/// A proxy that has gone without a word is given up after so long without a report.
const SILENT: Duration = Duration::from_secs(60);

/// The gRPC service.
#[derive(Debug)]
pub struct Reports {
    graph: Arc<Graph>,
    tokens: Option<Arc<Tokens>>,
}

impl Reports {
    pub fn new(graph: Arc<Graph>, tokens: Option<Arc<Tokens>>) -> Self {
        Self { graph, tokens }
    }

    /// Namespace and service account that are proven; none: nothing is, in a mesh without identities.
    fn proven<T>(&self, request: &Request<T>) -> Result<Option<(String, String)>, Status> {
        let connection = Connection::of(request)?;
        if let Some(id) = connection.identity()? {
            return Ok(Some((id.namespace().to_owned(), id.service_account().to_owned())));
        }
        match (bearer(request.metadata())?, &self.tokens) {
            (Some(token), Some(tokens)) => {
                let claims = tokens.verify(token)?;
                Ok(Some((claims.namespace, claims.service_account)))
            }
            _ => Ok(None),
        }
    }
}

#[tonic::async_trait]
impl graph_server::Graph for Reports {
    async fn report(
        &self,
        request: Request<Streaming<Report>>,
    ) -> Result<Response<ReportEnded>, Status> {
        let proven = self.proven(&request)?;
        let ended = Connection::of(&request)?.ended();
        let mut given_away = self.graph.given_away()?;
        let reports = request.into_inner();
        let status = tokio::select! {
            result = take(&self.graph, reports, proven) => return result.map(Response::new),
            status = ended => status,
            () = given_away.wait() => Graph::elsewhere(),
        };
        Err(status)
    }
}

/// Takes reports over until the proxy ends the stream.
async fn take(
    graph: &Arc<Graph>,
    mut reports: Streaming<Report>,
    proven: Option<(String, String)>,
) -> Result<ReportEnded, Status> {
    let silent = || Status::deadline_exceeded("no report came");
    let first = tokio::time::timeout(FIRST, reports.message()).await.map_err(|_| silent())??;
    let Some(first) = first else { return Ok(ReportEnded {}) };
    let reporter = first.reporter.as_ref();
    let reporter = reporter
        .ok_or_else(|| Status::invalid_argument("the first report does not say who reports"))?;
    let source = source(graph, reporter, proven)?;
    let stream = ReportingProxy::new(graph.clone(), source);
    let mut names = EdgeNames::default();
    let mut next = Some(first);
    while let Some(report) = next {
        let came = Instant::now();
        let edges = read(report, &mut names)?;
        stream.graph.report(&stream.source, &edges, now());
        next = tokio::time::timeout(SILENT, reports.message()).await.map_err(|_| silent())??;
        // Faster ones are not read.
        tokio::time::sleep((TICK / 5).saturating_sub(came.elapsed())).await;
    }
    Ok(ReportEnded {})
}

/// The edges that a stream has numbered.
#[derive(Default)]
struct EdgeNames {
    /// Without what happened on them.
    all: Vec<EdgeReport>,
    bytes: usize,
}

impl EdgeNames {
    fn add(&mut self, number: usize, name: &EdgeName) -> Result<(), Status> {
        if number != self.all.len() || number >= MAX_NUMBERS {
            return Err(Status::invalid_argument(format!("{number} is not the next edge")));
        }
        let edge = EdgeReport {
            service: text(&name.service, MAX_TEXT),
            route: text(&name.route, MAX_TEXT),
            protocol: text(&name.protocol, MAX_LABEL),
            from_outside: name.from_outside,
            traffic: Traffic::default(),
        };
        self.bytes += edge.service.len() + edge.route.len() + edge.protocol.len();
        if self.bytes > MAX_NAMES {
            return Err(Status::invalid_argument(format!("names of more than {MAX_NAMES} bytes")));
        }
        self.all.push(edge);
        Ok(())
    }
}

/// Counts as there for as long as its stream.
struct ReportingProxy {
    graph: Arc<Graph>,
    source: Source,
}

impl ReportingProxy {
    fn new(graph: Arc<Graph>, source: Source) -> Self {
        graph.connect(&source.app);
        Self { graph, source }
    }
}

impl Drop for ReportingProxy {
    fn drop(&mut self) {
        self.graph.disconnect(&self.source.app);
    }
}

/// Reads who reports, and compares it with what is proven.
fn source(
    graph: &Graph,
    reporter: &Reporter,
    proven: Option<(String, String)>,
) -> Result<Source, Status> {
    let Reporter { namespace, service_account, zone, .. } = reporter;
    check_label(namespace)
        .map_err(|e| Status::invalid_argument(e.under("namespace").to_string()))?;
    let account = (namespace.clone(), service_account.clone());
    if proven.is_some_and(|proven| proven != account) {
        return Err(Status::permission_denied(format!(
            "{namespace}/{service_account} is not who has been proven"
        )));
    }
    let (app, version) = nodes::reporter(&graph.publisher.view().index, reporter);
    Ok(Source {
        app: app.into(),
        namespace: namespace.as_str().into(),
        account: text(&format!("{namespace}/{service_account}"), MAX_TEXT),
        version: text(&version, MAX_LABEL),
        zone: text(zone, MAX_LABEL),
    })
}

/// What it says of edges, by the names that the stream has given them.
fn read(report: Report, names: &mut EdgeNames) -> Result<Vec<EdgeReport>, Status> {
    if report.edges.len() > MAX_NUMBERS {
        return Err(Status::invalid_argument(format!("more than {MAX_NUMBERS} edges in a report")));
    }
    report.edges.into_iter().map(|delta| edge(delta, names)).collect()
}

fn edge(delta: EdgeDelta, names: &mut EdgeNames) -> Result<EdgeReport, Status> {
    let number = delta.edge as usize;
    if let Some(name) = &delta.name {
        names.add(number, name)?;
    }
    let name = names.all.get(number);
    let name =
        name.ok_or_else(|| Status::invalid_argument(format!("edge {number} has no name")))?;
    let mut traffic = Traffic {
        succeeded: delta.succeeded,
        failed: delta.failed,
        refused: delta.refused,
        canceled: delta.canceled,
        ..Traffic::default()
    };
    let buckets = delta.latency_bucket.iter().zip(&delta.latency_count).take(MAX_BUCKETS);
    for (bucket, n) in buckets {
        traffic.latencies.add(u8::try_from(*bucket).unwrap_or(u8::MAX), *n);
    }
    let mut reasons = BTreeMap::new();
    for why in delta.reasons.into_iter().take(MAX_REASONS) {
        let key = (text(&why.reason, MAX_LABEL), text(&why.by, MAX_LABEL));
        let known: &mut u64 = reasons.entry(key).or_default();
        *known = known.saturating_add(why.count);
    }
    traffic.reasons = reasons;
    Ok(EdgeReport { traffic, ..name.clone() })
}

/// No longer than that, and without anything that would disturb who reads it.
fn text(text: &str, most: usize) -> Arc<str> {
    text.chars().filter(|c| !c.is_control()).take(most).collect::<String>().into()
}
