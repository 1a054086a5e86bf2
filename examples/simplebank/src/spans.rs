//! Spans of the app's own, made with the OpenTelemetry SDK as any app makes them. What is recorded is what the proxy
//! before it records.

use std::time::Duration;

use axum::body::Bytes;
use http::{HeaderMap, Request, Response};
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::{SpanKind, TraceContextExt, Tracer, TracerProvider};
use opentelemetry_http::hyper::HyperClient;
use opentelemetry_http::{HeaderExtractor, HeaderInjector, HttpClient, HttpError};
use opentelemetry_otlp::{SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracer, SdkTracerProvider,
};
use tokio::runtime::Handle;

use crate::call::CallError;

/// How often spans are sent.
const EVERY: Duration = Duration::from_secs(1);
const TIMEOUT: Duration = Duration::from_secs(5);

/// Makes spans of one service.
#[derive(Debug)]
pub(crate) struct Spans {
    tracer: SdkTracer,
    propagator: TraceContextPropagator,
    /// Ends what is sent when it goes.
    _provider: SdkTracerProvider,
}

/// A span that ends when it is dropped.
pub(crate) struct Span(opentelemetry::Context);

impl Spans {
    /// Sends them to `address` by OTLP over HTTP. To be called inside of a runtime.
    pub(crate) fn start(service: &'static str, address: &str) -> Result<Self, CallError> {
        let client = OnRuntime {
            runtime: Handle::current(),
            client: HyperClient::with_default_connector(TIMEOUT, None),
        };
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(client)
            .with_endpoint(format!("{}/v1/traces", address.trim_end_matches('/')))
            .with_timeout(TIMEOUT)
            .build()
            .map_err(|error| CallError::Transport {
                callee: address.to_owned(),
                error: error.to_string(),
            })?;
        let batches = BatchConfigBuilder::default().with_scheduled_delay(EVERY).build();
        let provider = SdkTracerProvider::builder()
            .with_span_processor(
                BatchSpanProcessor::builder(exporter).with_batch_config(batches).build(),
            )
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::AlwaysOff)))
            .with_resource(Resource::builder().with_service_name(service).build())
            .build();
        let tracer = provider.tracer("simplebank");
        Ok(Self { tracer, propagator: TraceContextPropagator::new(), _provider: provider })
    }

    /// Begins a span below the one that the request came with, and writes it over that.
    pub(crate) fn begin(&self, name: &'static str, headers: &mut HeaderMap) -> Span {
        let parent = self.propagator.extract(&HeaderExtractor(headers));
        let span = self.tracer.span_builder(name).with_kind(SpanKind::Internal);
        let span = span.start_with_context(&self.tracer, &parent);
        let context = parent.with_span(span);
        self.propagator.inject_context(&context, &mut HeaderInjector(headers));
        Span(context)
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        self.0.span().end();
    }
}

/// The SDK exports on a thread of its own, and the client needs a runtime.
#[derive(Debug)]
struct OnRuntime {
    runtime: Handle,
    client: HyperClient,
}

#[tonic::async_trait]
impl HttpClient for OnRuntime {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let client = self.client.clone();
        self.runtime.spawn(async move { client.send_bytes(request).await }).await?
    }
}
