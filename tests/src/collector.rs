//! A collector of spans: OTLP over gRPC and over HTTP, and a look at what came.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::Bytes;
use axum::http::StatusCode;
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
pub use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use prost::Message;
use tonic::{Request, Response, Status};

/// Ends with the process.
pub struct Collector {
    /// For gRPC.
    pub grpc: u16,
    /// For HTTP.
    pub http: u16,
    spans: Arc<Mutex<Vec<Span>>>,
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
        let spans = Arc::<Mutex<Vec<Span>>>::default();
        let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").expect("a port"));
        let [grpc, http] =
            listeners.each_ref().map(|l| l.local_addr().expect("its address").port());
        let taken = Arc::clone(&spans);
        std::thread::spawn(move || serve(listeners, taken));
        Self { grpc, http, spans }
    }

    pub fn spans(&self) -> Vec<Span> {
        self.spans.lock().unwrap_or_else(PoisonError::into_inner).clone()
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

fn serve([grpc, http]: [TcpListener; 2], spans: Arc<Mutex<Vec<Span>>>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async move {
        let [grpc, http] = [grpc, http].map(|listener| {
            listener.set_nonblocking(true).expect("it does not block");
            tokio::net::TcpListener::from_std(listener).expect("a listener")
        });
        let taken = Taken(Arc::clone(&spans));
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(grpc);
        let server = tonic::transport::Server::builder()
            .add_service(TraceServiceServer::new(taken))
            .serve_with_incoming(incoming);
        let app = axum::Router::new().route(
            "/v1/traces",
            post(|body: Bytes| async move {
                let Ok(request) = ExportTraceServiceRequest::decode(body) else {
                    return (StatusCode::BAD_REQUEST, Vec::new());
                };
                take(&spans, request);
                (StatusCode::OK, ExportTraceServiceResponse::default().encode_to_vec())
            }),
        );
        let _ = tokio::join!(server, async { axum::serve(http, app).await });
    });
}

struct Taken(Arc<Mutex<Vec<Span>>>);

#[tonic::async_trait]
impl TraceService for Taken {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        take(&self.0, request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn take(spans: &Mutex<Vec<Span>>, request: ExportTraceServiceRequest) {
    let mut spans = spans.lock().unwrap_or_else(PoisonError::into_inner);
    for resource in request.resource_spans {
        let of = attributes(resource.resource.unwrap_or_default().attributes);
        let service = of.get("service.name").cloned().unwrap_or_default();
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

fn attributes(all: Vec<KeyValue>) -> BTreeMap<String, String> {
    let text = |value: Option<AnyValue>| match value?.value? {
        Value::StringValue(text) => Some(text),
        Value::IntValue(number) => Some(number.to_string()),
        other => Some(format!("{other:?}")),
    };
    all.into_iter().map(|one| (one.key, text(one.value).unwrap_or_default())).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
