//! The way to a collector (OpenTelemetry Protocol Specification 1.7): over gRPC, or over HTTP with protocol buffers.

use std::marker::PhantomData;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use opentelemetry_http::HttpClient as _;
use opentelemetry_http::hyper::HyperClient;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use outrigger_core::telemetry::{APP_LABELS, Collector, OtlpProtocol};
use prost::Message;
use tonic::transport::{Channel, Endpoint};
use tracing::{info, warn};

use crate::base::settings::Settings;

/// How often what waits is sent.
pub const EVERY: Duration = Duration::from_secs(1);
/// Spans or lines of one message, about 1 KB each: collectors take 4 MiB.
pub const BATCH: usize = 512;
/// How long one message may take, connecting included.
pub const TIMEOUT: Duration = Duration::from_secs(10);
/// How often at most a receiver that does not take what it is sent is complained about.
const COMPLAIN: Duration = Duration::from_secs(60);

/// Longest text of an attribute, in bytes: a path may have as many as a head, and a message may not.
const MAX_TEXT: usize = 1_024;

/// As much of a text as an attribute may have.
pub fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_TEXT)]
}

/// Who this is, by OpenTelemetry's semantic conventions for resources.
pub fn identity(settings: &Settings) -> Vec<(&'static str, String)> {
    let labels = settings.label_map();
    let app = APP_LABELS.iter().find_map(|label| labels.get(*label));
    let mut all = vec![
        ("service.name", app.unwrap_or(&settings.workload).clone()),
        ("service.namespace", settings.namespace.clone()),
        ("service.instance.id", settings.uid()),
        ("k8s.namespace.name", settings.namespace.clone()),
        ("k8s.pod.name", settings.workload.clone()),
        // Spans of one host have one clock, by which Jaeger tells whose to correct.
        ("host.name", settings.workload.clone()),
        ("outrigger.service_account", settings.service_account.clone()),
    ];
    for (name, value) in
        [("cloud.availability_zone", &settings.zone), ("k8s.node.name", &settings.node)]
    {
        all.extend(value.clone().map(|value| (name, value)));
    }
    all
}

/// The same, as a message has it.
pub fn resource(settings: &Settings) -> Resource {
    let attributes = identity(settings).into_iter().map(|(name, text)| attribute(name, text));
    Resource { attributes: attributes.collect(), ..Default::default() }
}

/// What makes the data.
pub fn scope() -> InstrumentationScope {
    let (name, version) = ("outrigger-proxy".to_owned(), env!("CARGO_PKG_VERSION").to_owned());
    InstrumentationScope { name, version, ..Default::default() }
}

pub fn attribute(name: impl Into<String>, text: String) -> KeyValue {
    let value = Some(AnyValue { value: Some(Value::StringValue(text)) });
    KeyValue { key: name.into(), value, ..Default::default() }
}

/// A kind of data that collectors take.
pub trait Signal {
    type Request: Message;
    type Response: Message + Default;
    /// Of HTTP, after the collector's address.
    const PATH: &'static str;

    /// The call of gRPC.
    fn call(
        channel: Channel,
        request: Self::Request,
    ) -> impl Future<Output = Result<tonic::Response<Self::Response>, tonic::Status>> + Send;

    /// How much of it the collector did not take, and why; 0 with a text is a warning.
    fn partly_refused(response: Self::Response) -> Option<(i64, String)>;
}

/// The way to one collector for one signal, opened when something is sent.
pub struct CollectorLink<S> {
    open: Option<(Collector, CollectorTransport)>,
    signal: PhantomData<fn() -> S>,
}

enum CollectorTransport {
    Grpc(Channel),
    Http(Box<HyperClient>, http::Uri),
}

impl<S> Default for CollectorLink<S> {
    fn default() -> Self {
        Self { open: None, signal: PhantomData }
    }
}

impl<S: Signal> CollectorLink<S> {
    /// Sends once: what was sent to a collector that did not answer may have come. How much of it was not taken.
    ///
    /// # Errors
    ///
    /// Why nothing was taken.
    pub async fn send(&mut self, to: &Collector, request: S::Request) -> Result<u64, String> {
        let transport = match &mut self.open {
            Some((of, transport)) if of == to => transport,
            other => &mut other.insert((to.clone(), open::<S>(to)?)).1,
        };
        let sending = async {
            match transport {
                CollectorTransport::Grpc(channel) => {
                    let response = S::call(channel.clone(), request).await;
                    response.map(tonic::Response::into_inner).map_err(|status| why(&status))
                }
                CollectorTransport::Http(client, uri) => {
                    post(client, uri, request.encode_to_vec()).await
                }
            }
        };
        let response = tokio::time::timeout(TIMEOUT, sending).await;
        let response = response.map_err(|_| format!("no answer in {TIMEOUT:?}"))??;
        let Some((refused, text)) = S::partly_refused(response) else { return Ok(0) };
        let refused = u64::try_from(refused).unwrap_or_default();
        if refused > 0 {
            warn!(address = to.address, refused, "the collector did not take all: {text:?}");
        }
        Ok(refused)
    }
}

/// With what a transport says below it.
fn why(status: &tonic::Status) -> String {
    match std::error::Error::source(status) {
        Some(source) => format!("{}: {source}", status.message()),
        None => format!("{:?}: {}", status.code(), status.message()),
    }
}

fn open<S: Signal>(to: &Collector) -> Result<CollectorTransport, String> {
    let address = to.address.trim_end_matches('/');
    match to.protocol {
        OtlpProtocol::Grpc => {
            let endpoint = Endpoint::from_shared(address.to_owned());
            let endpoint = endpoint.map_err(|error| error.to_string())?.connect_timeout(TIMEOUT);
            Ok(CollectorTransport::Grpc(endpoint.connect_lazy()))
        }
        OtlpProtocol::Http => {
            let uri = format!("{address}{}", S::PATH);
            let uri = uri.parse().map_err(|error| format!("{uri}: {error}"))?;
            let client = HyperClient::with_default_connector(TIMEOUT, None);
            Ok(CollectorTransport::Http(Box::new(client), uri))
        }
    }
}

async fn post<R: Message + Default>(
    client: &HyperClient,
    uri: &http::Uri,
    body: Vec<u8>,
) -> Result<R, String> {
    let request = http::Request::post(uri).header(CONTENT_TYPE, "application/x-protobuf");
    let request = request.body(Bytes::from(body)).map_err(|error| error.to_string())?;
    let response = client.send_bytes(request).await.map_err(|error| error.to_string())?;
    if !response.status().is_success() {
        return Err(format!("the answer is {}", response.status()));
    }
    // Some answer with nothing, or with JSON: it was taken all the same.
    Ok(R::decode(response.into_body()).unwrap_or_default())
}

/// Says that something is not taken, at most once a minute, and that it is again.
pub struct Complaints {
    what: &'static str,
    /// Of the control plane, by which it is set.
    flag: &'static str,
    last: Option<Instant>,
}

impl Complaints {
    pub fn about(what: &'static str, flag: &'static str) -> Self {
        Self { what, flag, last: None }
    }

    pub fn taken(&mut self, address: &str) {
        if self.last.take().is_some() {
            info!(address, "{} are taken again", self.what);
        }
    }

    pub fn lost(&mut self, address: &str, why: &str) {
        if self.last.is_none_or(|last| last.elapsed() >= COMPLAIN) {
            let Self { what, flag, .. } = self;
            warn!(
                address,
                "{what} are lost, they are not taken: {why}; see {flag} of the control plane"
            );
            self.last = Some(Instant::now());
        }
    }
}
