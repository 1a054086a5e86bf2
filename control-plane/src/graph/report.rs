//! The service by which proxies report whom they call.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use outrigger_core::graph::TICK;
use outrigger_core::name::{MAX_HOST, MAX_LABEL, check_label};
use outrigger_proto::graph::graph_server;
use outrigger_proto::graph::{
    self, EdgeDelta, EdgeName, Report, Reporter, TappedEnded, TappedRequests,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::edges::{EdgeReport, Source, Traffic};
use super::nodes;
use super::taps::Taps;
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
/// Answers between the stream and the transport.
const QUEUE: usize = 1;
/// Messages with tapped requests are not read faster.
const TAPPED_PAUSE: Duration = Duration::from_millis(10);
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
    type ReportStream = ReceiverStream<Result<graph::Taps, Status>>;

    async fn report(
        &self,
        request: Request<Streaming<Report>>,
    ) -> Result<Response<Self::ReportStream>, Status> {
        let proven = self.proven(&request)?;
        let ended = Connection::of(&request)?.ended();
        let mut given_away = self.graph.given_away()?;
        let reports = request.into_inner();
        let (answers, queue) = mpsc::channel(QUEUE);
        let graph = self.graph.clone();
        tokio::spawn(async move {
            let status = tokio::select! {
                result = take(&graph, reports, proven, &answers) => match result {
                    Ok(()) => return,
                    Err(status) => status,
                },
                status = ended => status,
                () = given_away.wait() => Graph::elsewhere(),
            };
            // A proxy that reads nothing is not waited for.
            let _ = answers.try_send(Err(status));
        });
        Ok(Response::new(ReceiverStream::new(queue)))
    }

    async fn tapped(
        &self,
        request: Request<Streaming<TappedRequests>>,
    ) -> Result<Response<TappedEnded>, Status> {
        let proven = self.proven(&request)?;
        let ended = Connection::of(&request)?.ended();
        let mut given_away = self.graph.given_away()?;
        let tapped = request.into_inner();
        let status = tokio::select! {
            result = show(&self.graph, tapped, proven) => {
                return result.map(|()| Response::new(TappedEnded {}));
            }
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
    answers: &mpsc::Sender<Result<graph::Taps, Status>>,
) -> Result<(), Status> {
    let silent = || Status::deadline_exceeded("no report came");
    let first = tokio::time::timeout(FIRST, reports.message()).await.map_err(|_| silent())??;
    let Some(first) = first else { return Ok(()) };
    let (source, workload) = source(graph, first.reporter.as_ref(), proven)?;
    let stream = ReportingProxy::new(graph.clone(), source);
    let mut names = EdgeNames::default();
    let reporting = async {
        let mut next = Some(first);
        while let Some(report) = next {
            let came = Instant::now();
            let edges = read(report, &mut names)?;
            stream.graph.report(&stream.source, &edges, now());
            next =
                tokio::time::timeout(SILENT, reports.message()).await.map_err(|_| silent())??;
            // Faster ones are not read.
            tokio::time::sleep((TICK / 5).saturating_sub(came.elapsed())).await;
        }
        Ok(())
    };
    tokio::select! {
        result = reporting => result,
        () = tell(&graph.taps, &stream.source, &workload, answers) => Ok(()),
    }
}

/// Tells a proxy of the taps that it is concerned in, whenever they change; ends with the stream.
async fn tell(
    taps: &Taps,
    source: &Source,
    workload: &str,
    answers: &mpsc::Sender<Result<graph::Taps, Status>>,
) {
    let mut changes = taps.changes();
    // Those that have reached the proxy count it while it knows of them.
    let (mut told, mut _reached) = (graph::Taps::default(), Vec::new());
    while changes.changed().await.is_ok() {
        // Room first: a proxy that reads slowly is told the newest state.
        let Ok(room) = answers.reserve().await else { return };
        let active = changes.borrow_and_update().clone();
        let (taps, reached) = Taps::of(&active, source, workload);
        _reached = reached;
        if taps != told {
            told = taps.clone();
            room.send(Ok(taps));
        }
    }
}

/// Shows requests to taps until the proxy ends the stream.
async fn show(
    graph: &Graph,
    mut tapped: Streaming<TappedRequests>,
    proven: Option<(String, String)>,
) -> Result<(), Status> {
    let first = tokio::time::timeout(FIRST, tapped.message()).await;
    let first = first.map_err(|_| Status::deadline_exceeded("no tapped request came"))??;
    let Some(first) = first else { return Ok(()) };
    let (source, workload) = source(graph, first.reporter.as_ref(), proven)?;
    let mut next = Some(first);
    while let Some(shown) = next {
        graph.taps.take(&source, &workload, &shown);
        tokio::time::sleep(TAPPED_PAUSE).await;
        next = tapped.message().await?;
    }
    Ok(())
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

/// Reads who reports, and compares it with what is proven. With the name of the workload, which nothing proves.
fn source(
    graph: &Graph,
    reporter: Option<&Reporter>,
    proven: Option<(String, String)>,
) -> Result<(Source, Arc<str>), Status> {
    let reporter = reporter
        .ok_or_else(|| Status::invalid_argument("the first report does not say who reports"))?;
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
    let source = Source {
        app: app.into(),
        namespace: namespace.as_str().into(),
        account: text(&format!("{namespace}/{service_account}"), MAX_TEXT),
        version: text(&version, MAX_LABEL),
        zone: text(zone, MAX_LABEL),
    };
    Ok((source, text(&reporter.workload, MAX_TEXT)))
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
