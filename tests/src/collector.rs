//! A collector: OTLP over gRPC and over HTTP, and a look at what came.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::body::Bytes;
use axum::http::StatusCode;
use axum::routing::{MethodRouter, post};
use opentelemetry_proto::tonic::collector::logs::v1::logs_service_server::{
    LogsService, LogsServiceServer,
};
use opentelemetry_proto::tonic::collector::logs::v1::{
    ExportLogsServiceRequest, ExportLogsServiceResponse,
};
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{
    MetricsService, MetricsServiceServer,
};
use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsServiceRequest, ExportMetricsServiceResponse,
};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::{NumberDataPoint, number_data_point};
use opentelemetry_proto::tonic::resource::v1::Resource;
pub use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use prost::Message;
use tonic::{Request, Response, Status};

/// Ends with the process.
pub struct Collector {
    /// For gRPC.
    pub grpc: u16,
    /// For HTTP.
    pub http: u16,
    came: Arc<Mutex<Came>>,
}

/// Everything that came.
#[derive(Default)]
struct Came {
    spans: Vec<Span>,
    lines: Vec<LogLine>,
    points: Vec<Point>,
}

/// What tests ask of a record of a log.
#[derive(Clone, Debug)]
pub struct LogLine {
    pub service: String,
    pub trace: String,
    pub body: String,
    pub attributes: BTreeMap<String, String>,
}

/// What tests ask of a point of a metric.
#[derive(Clone, Debug)]
pub struct Point {
    pub service: String,
    pub metric: String,
    pub attributes: BTreeMap<String, String>,
    /// Of a histogram how many values it has.
    pub value: f64,
}

/// What tests ask of a span.
#[derive(Clone, Debug)]
pub struct Span {
    pub service: String,
    pub trace: String,
    pub id: String,
    /// Empty: none.
    pub parent: String,
    pub name: String,
    pub kind: SpanKind,
    pub began: u64,
    pub ended: u64,
    pub failed: bool,
    pub attributes: BTreeMap<String, String>,
    pub events: Vec<String>,
}

impl Collector {
    pub fn start() -> Self {
        let came = Arc::<Mutex<Came>>::default();
        let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").expect("a port"));
        let [grpc, http] =
            listeners.each_ref().map(|l| l.local_addr().expect("its address").port());
        let taken = Taken(Arc::clone(&came));
        std::thread::spawn(move || serve(listeners, taken));
        Self { grpc, http, came }
    }

    fn came(&self) -> MutexGuard<'_, Came> {
        self.came.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn spans(&self) -> Vec<Span> {
        self.came().spans.clone()
    }

    pub fn lines(&self) -> Vec<LogLine> {
        self.came().lines.clone()
    }

    /// The last value of each point of a metric with all of these attributes.
    pub fn points(&self, metric: &str, attributes: &[(&str, &str)]) -> Vec<Point> {
        let mut last = BTreeMap::new();
        for point in self.came().points.iter().filter(|point| point.metric == metric) {
            let has = |(name, value): &(&str, &str)| {
                point.attributes.get(*name).is_some_and(|known| known == value)
            };
            if attributes.iter().all(has) {
                let series = (point.service.clone(), point.attributes.clone());
                last.insert(series, point.clone());
            }
        }
        last.into_values().collect()
    }

    /// Spans with all of these attributes.
    pub fn with(&self, attributes: &[(&str, &str)]) -> Vec<Span> {
        let has = |span: &Span| {
            attributes
                .iter()
                .all(|(name, value)| span.attributes.get(*name).is_some_and(|v| v == value))
        };
        self.spans().into_iter().filter(has).collect()
    }
}

fn serve([grpc, http]: [TcpListener; 2], taken: Taken) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async move {
        let [grpc, http] = [grpc, http].map(|listener| {
            listener.set_nonblocking(true).expect("it does not block");
            tokio::net::TcpListener::from_std(listener).expect("a listener")
        });
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(grpc);
        let server = tonic::transport::Server::builder()
            .add_service(TraceServiceServer::new(taken.clone()))
            .add_service(LogsServiceServer::new(taken.clone()))
            .add_service(MetricsServiceServer::new(taken.clone()))
            .serve_with_incoming(incoming);
        let app = axum::Router::new()
            .route("/v1/traces", posted(&taken, Taken::spans))
            .route("/v1/logs", posted(&taken, Taken::lines))
            .route("/v1/metrics", posted(&taken, Taken::points));
        let _ = tokio::join!(server, async { axum::serve(http, app).await });
    });
}

/// A route that takes a message.
fn posted<M: Message + Default + 'static>(taken: &Taken, take: fn(&Taken, M)) -> MethodRouter {
    let taken = taken.clone();
    post(move |body: Bytes| async move {
        match M::decode(body) {
            Ok(message) => {
                take(&taken, message);
                StatusCode::OK
            }
            Err(_) => StatusCode::BAD_REQUEST,
        }
    })
}

#[derive(Clone)]
struct Taken(Arc<Mutex<Came>>);

#[tonic::async_trait]
impl TraceService for Taken {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.spans(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl LogsService for Taken {
    async fn export(
        &self,
        request: Request<ExportLogsServiceRequest>,
    ) -> Result<Response<ExportLogsServiceResponse>, Status> {
        self.lines(request.into_inner());
        Ok(Response::new(ExportLogsServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl MetricsService for Taken {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        self.points(request.into_inner());
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}

impl Taken {
    fn came(&self) -> MutexGuard<'_, Came> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn spans(&self, request: ExportTraceServiceRequest) {
        let spans = &mut self.came().spans;
        for resource in request.resource_spans {
            let service = service(resource.resource);
            for span in resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                spans.push(Span {
                    service: service.clone(),
                    kind: span.kind(),
                    trace: hex(&span.trace_id),
                    id: hex(&span.span_id),
                    parent: hex(&span.parent_span_id),
                    name: span.name,
                    began: span.start_time_unix_nano,
                    ended: span.end_time_unix_nano,
                    failed: span.status.is_some_and(|status| status.code == 2),
                    attributes: attributes(span.attributes),
                    events: span.events.into_iter().map(|event| event.name).collect(),
                });
            }
        }
    }

    fn lines(&self, request: ExportLogsServiceRequest) {
        for resource in request.resource_logs {
            let service = service(resource.resource);
            for line in resource.scope_logs.into_iter().flat_map(|scope| scope.log_records) {
                self.came().lines.push(LogLine {
                    service: service.clone(),
                    trace: hex(&line.trace_id),
                    body: text(line.body).unwrap_or_default(),
                    attributes: attributes(line.attributes),
                });
            }
        }
    }

    fn points(&self, request: ExportMetricsServiceRequest) {
        for resource in request.resource_metrics {
            let service = service(resource.resource);
            for metric in resource.scope_metrics.into_iter().flat_map(|scope| scope.metrics) {
                let points = match metric.data.expect("data") {
                    Data::Sum(sum) => numbers(sum.data_points),
                    Data::Gauge(gauge) => numbers(gauge.data_points),
                    Data::Histogram(histogram) => {
                        let all = histogram.data_points.into_iter();
                        all.map(|one| (one.attributes, one.count as f64)).collect()
                    }
                    other => panic!("{other:?}"),
                };
                for (labels, value) in points {
                    self.came().points.push(Point {
                        service: service.clone(),
                        metric: metric.name.clone(),
                        attributes: attributes(labels),
                        value,
                    });
                }
            }
        }
    }
}

fn numbers(points: Vec<NumberDataPoint>) -> Vec<(Vec<KeyValue>, f64)> {
    let value = |point: &NumberDataPoint| match point.value {
        Some(number_data_point::Value::AsInt(whole)) => whole as f64,
        Some(number_data_point::Value::AsDouble(number)) => number,
        None => f64::NAN,
    };
    points.into_iter().map(|point| (point.attributes.clone(), value(&point))).collect()
}

fn service(resource: Option<Resource>) -> String {
    let of = attributes(resource.unwrap_or_default().attributes);
    of.get("service.name").cloned().unwrap_or_default()
}

fn text(value: Option<AnyValue>) -> Option<String> {
    match value?.value? {
        Value::StringValue(text) => Some(text),
        Value::IntValue(number) => Some(number.to_string()),
        other => Some(format!("{other:?}")),
    }
}

fn attributes(all: Vec<KeyValue>) -> BTreeMap<String, String> {
    all.into_iter().map(|one| (one.key, text(one.value).unwrap_or_default())).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
