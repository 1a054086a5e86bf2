//! Sends spans by OTLP, off the workers.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_http::hyper::HyperClient;
use opentelemetry_otlp::{SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkError;
use opentelemetry_sdk::trace::{SpanData, SpanExporter as _};
use outrigger_core::telemetry::{self, APP_LABELS, OtlpProtocol};
use tokio::sync::Mutex;
use tracing::{info, warn};

use super::{Traces, spans};
use crate::base::settings::Settings;

/// How often spans are sent.
const EVERY: Duration = Duration::from_secs(1);
/// Spans of one message, about 1 KB each: collectors take 4 MiB.
const BATCH: usize = 512;
/// How long one message may take, connecting included.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How often at most a collector that does not take spans is complained about.
const COMPLAIN: Duration = Duration::from_secs(60);

/// Sends what is recorded.
pub struct Exporter(Mutex<SpanSender>);

impl Exporter {
    pub fn new(traces: Arc<Traces>, settings: &Settings) -> Self {
        Self(Mutex::new(SpanSender::new(traces, resource(settings))))
    }

    /// For ever.
    pub async fn run(&self) {
        let mut every = tokio::time::interval(EVERY);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            every.tick().await;
            self.0.lock().await.send().await;
        }
    }

    /// For the last time, within `limit`: what is on its way, and what is there. The rest is lost with the process.
    pub async fn finish(&self, limit: Duration) {
        let _ = tokio::time::timeout(limit, async { self.0.lock().await.send().await }).await;
    }
}

/// Who spans are from.
fn resource(settings: &Settings) -> Resource {
    let labels = settings.label_map();
    let app = APP_LABELS.iter().find_map(|label| labels.get(*label));
    let mut all = vec![
        KeyValue::new("service.name", app.unwrap_or(&settings.workload).clone()),
        KeyValue::new("service.namespace", settings.namespace.clone()),
        KeyValue::new("service.instance.id", settings.uid()),
        KeyValue::new("k8s.namespace.name", settings.namespace.clone()),
        KeyValue::new("k8s.pod.name", settings.workload.clone()),
        KeyValue::new("outrigger.service_account", settings.service_account.clone()),
    ];
    for (name, value) in
        [("cloud.availability_zone", &settings.zone), ("k8s.node.name", &settings.node)]
    {
        all.extend(value.clone().map(|value| KeyValue::new(name, value)));
    }
    Resource::builder_empty().with_attributes(all).build()
}

struct SpanSender {
    traces: Arc<Traces>,
    resource: Resource,
    scope: InstrumentationScope,
    /// For the settings that it was made of.
    exporter: Option<(Arc<telemetry::Traces>, SpanExporter)>,
    complained: Option<Instant>,
}

impl SpanSender {
    fn new(traces: Arc<Traces>, resource: Resource) -> Self {
        let scope = InstrumentationScope::builder("outrigger-proxy")
            .with_version(env!("CARGO_PKG_VERSION"))
            .build();
        Self { traces, resource, scope, exporter: None, complained: None }
    }

    async fn send(&mut self) {
        let Some(settings) = self.traces.settings() else {
            self.exporter = None;
            return;
        };
        let records = self.traces.drain(SystemTime::now());
        if records.is_empty() {
            return;
        }
        let mut all = Vec::with_capacity(records.len());
        for record in &records {
            spans::of(record, &self.scope, &mut all);
        }
        drop(records);
        while !all.is_empty() {
            let rest = all.split_off(all.len().min(BATCH));
            let batch = std::mem::replace(&mut all, rest);
            let count = batch.len();
            match self.export(&settings, batch).await {
                Ok(()) => {
                    self.traces.count(count, 0);
                    if self.complained.take().is_some() {
                        info!(address = settings.address, "the collector takes spans again");
                    }
                }
                Err(why) => {
                    // It would take as long for what is left, while more comes.
                    self.traces.count(0, count + all.len());
                    self.complain(&settings.address, &why);
                    return;
                }
            }
        }
    }

    async fn export(
        &mut self,
        settings: &Arc<telemetry::Traces>,
        batch: Vec<SpanData>,
    ) -> Result<(), String> {
        let exporter = match &mut self.exporter {
            Some((of, exporter)) if of == settings => exporter,
            other => {
                let mut exporter = connect(settings)?;
                exporter.set_resource(&self.resource);
                &mut other.insert((Arc::clone(settings), exporter)).1
            }
        };
        match tokio::time::timeout(TIMEOUT, exporter.export(batch)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(OTelSdkError::Timeout(_))) | Err(_) => Err(format!("no answer in {TIMEOUT:?}")),
            Ok(Err(error)) => Err(error.to_string()),
        }
    }

    fn complain(&mut self, address: &str, why: &str) {
        if self.complained.is_none_or(|last| last.elapsed() >= COMPLAIN) {
            warn!(
                address,
                "spans are lost, the collector does not take them: {why}; see --traces of the control plane"
            );
            self.complained = Some(Instant::now());
        }
    }
}

/// Nothing is sent yet.
fn connect(settings: &telemetry::Traces) -> Result<SpanExporter, String> {
    let address = settings.address.trim_end_matches('/');
    let built = match settings.protocol {
        OtlpProtocol::Grpc => SpanExporter::builder()
            .with_tonic()
            .with_endpoint(address)
            .with_timeout(TIMEOUT)
            .build(),
        OtlpProtocol::Http => SpanExporter::builder()
            .with_http()
            .with_http_client(HyperClient::with_default_connector(TIMEOUT, None))
            .with_endpoint(format!("{address}/v1/traces"))
            .with_timeout(TIMEOUT)
            .build(),
    };
    built.map_err(|error| error.to_string())
}
