//! What the control plane counts, in Prometheus' text format.

use outrigger_proto::wire::{self, DeltaDiscoveryResponse};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// First edge and number of edges, each twice the one before: 0.25 ms to 4 s.
const LATENCY_FIRST: f64 = 0.000_25;
const LATENCY_EDGES: u16 = 15;

/// Types of resources that are counted by their names.
const TYPES: [&str; 5] =
    [wire::DESTINATION, wire::ENDPOINT, wire::INBOUND, wire::MESH_SETTINGS, wire::TRUST_BUNDLE];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct KindLabel {
    pub kind: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct TypeLabel {
    pub r#type: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReasonLabel {
    pub reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RootLabel {
    pub root: String,
    pub issuing: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct WebhookLabel {
    pub webhook: &'static str,
    pub allowed: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct StateLabel {
    pub state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct UnusualLabels {
    pub from: String,
    pub service: String,
    pub symptom: &'static str,
    pub culprit: &'static str,
}

#[derive(Debug)]
pub struct Metrics {
    pub objects: Family<KindLabel, Gauge>,
    pub problems: Gauge,
    pub proxies: Gauge,
    /// Taken from the publisher when somebody asks.
    pub proxies_behind: Gauge,
    pub workloads: Gauge,
    pub pods: Family<StateLabel, Gauge>,
    pub nacks: Counter,
    pub status_changes: Counter,
    pub log_dropped: Counter,
    pub watch_errors: Family<KindLabel, Counter>,
    pub reviews: Family<WebhookLabel, Counter>,
    pub publish_seconds: Histogram,
    pub load_seconds: Histogram,
    pub certificates_issued: Counter,
    pub certificates_refused: Family<ReasonLabel, Counter>,
    pub handshakes_failed: Counter,
    pub graph_edges: Gauge,
    pub unusual: Family<UnusualLabels, Gauge>,
    pub certificate_expiry: Gauge,
    pub ca_expiry: Gauge,
    pub root_expiry: Family<RootLabel, Gauge>,
    /// Responses and resources, by the position of their type in [`TYPES`]; the last for any other.
    by_type: [(Counter, Counter); TYPES.len() + 1],
    registry: Registry,
}

impl Metrics {
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("outrigger_control_plane");
        let latency = || Histogram::new(exponential_buckets(LATENCY_FIRST, 2.0, LATENCY_EDGES));
        let metrics = Self {
            objects: Family::default(),
            problems: Gauge::default(),
            proxies: Gauge::default(),
            proxies_behind: Gauge::default(),
            workloads: Gauge::default(),
            pods: Family::default(),
            nacks: Counter::default(),
            status_changes: Counter::default(),
            log_dropped: Counter::default(),
            watch_errors: Family::default(),
            reviews: Family::default(),
            publish_seconds: latency(),
            load_seconds: latency(),
            certificates_issued: Counter::default(),
            certificates_refused: Family::default(),
            handshakes_failed: Counter::default(),
            graph_edges: Gauge::default(),
            unusual: Family::default(),
            certificate_expiry: Gauge::default(),
            ca_expiry: Gauge::default(),
            root_expiry: Family::default(),
            by_type: Default::default(),
            registry: Registry::default(),
        };
        registry.register("objects", "Objects in force, by kind", metrics.objects.clone());
        registry.register("problems", "Problems found in manifests", metrics.problems.clone());
        registry.register("proxies", "Proxies with a discovery stream", metrics.proxies.clone());
        registry.register(
            "proxies_behind",
            "Proxies that have not acknowledged everything that they were sent",
            metrics.proxies_behind.clone(),
        );
        registry.register("workloads", "Registered workloads", metrics.workloads.clone());
        registry.register(
            "pods",
            "Pods with a proxy, and those that should have one, or another one, or are not redirected, by state",
            metrics.pods.clone(),
        );
        registry.register("nacks", "Responses that proxies refused", metrics.nacks.clone());
        registry.register(
            "status_changes",
            "Times that the status of an object became another one",
            metrics.status_changes.clone(),
        );
        registry.register(
            "log_dropped",
            "Lines dropped because nobody read the log",
            metrics.log_dropped.clone(),
        );
        registry.register(
            "watch_errors",
            "Times that a watch of the Kubernetes API failed, by kind",
            metrics.watch_errors.clone(),
        );
        registry.register(
            "admission_reviews",
            "Objects that the API server asked about before it stored them, by webhook and answer",
            metrics.reviews.clone(),
        );
        let (pushes, resources) = (Family::default(), Family::default());
        registry.register("pushes", "Responses sent, by type", pushes.clone());
        registry.register("resources", "Resources sent, by type", resources.clone());
        let by_type = std::array::from_fn(|position| {
            let short = TYPES.get(position).and_then(|known| known.rsplit('.').next());
            let label = TypeLabel { r#type: short.unwrap_or("other").to_owned() };
            (pushes.get_or_create_owned(&label), resources.get_or_create_owned(&label))
        });
        registry.register(
            "publish_seconds",
            "From a change of the index to its responses handed to the transport",
            metrics.publish_seconds.clone(),
        );
        registry.register(
            "load_seconds",
            "From noticing changed files or objects to their effect in the index",
            metrics.load_seconds.clone(),
        );
        registry.register("graph_edges", "Edges of the graph", metrics.graph_edges.clone());
        registry.register(
            "unusual",
            "1 for each edge of the graph that deviates from its baseline, by symptom",
            metrics.unusual.clone(),
        );
        metrics.register_identity(&mut registry);
        Self { registry, by_type, ..metrics }
    }

    fn register_identity(&self, registry: &mut Registry) {
        registry.register(
            "certificates_issued",
            "Certificates issued to proxies",
            self.certificates_issued.clone(),
        );
        registry.register(
            "certificates_refused",
            "Requests for a certificate that were refused, by reason",
            self.certificates_refused.clone(),
        );
        registry.register(
            "handshakes_failed",
            "TLS connections that failed before any request",
            self.handshakes_failed.clone(),
        );
        registry.register(
            "certificate_expiry_timestamp_seconds",
            "When the control plane's own certificate ends, 0 without identity",
            self.certificate_expiry.clone(),
        );
        registry.register(
            "ca_expiry_timestamp_seconds",
            "When the issuing certificate or its root ends, 0 without identity",
            self.ca_expiry.clone(),
        );
        registry.register(
            "root_expiry_timestamp_seconds",
            "When each root of the trust bundle ends",
            self.root_expiry.clone(),
        );
    }

    pub fn pushed(&self, response: &DeltaDiscoveryResponse) {
        // A proxy may ask for any type: only the known ones are labels.
        let known = TYPES.iter().position(|known| *known == response.type_url);
        let (pushes, resources) = &self.by_type[known.unwrap_or(TYPES.len())];
        pushes.inc();
        resources.inc_by(response.resources.len() as u64);
    }

    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.registry);
        text
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}
