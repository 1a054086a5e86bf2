//! Sends spans by OTLP, off the workers.

use std::sync::Arc;
use std::time::SystemTime;

use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_http::hyper::HyperClient;
use opentelemetry_otlp::{SpanExporter as OtlpExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkError;
use opentelemetry_sdk::trace::{SpanData, SpanExporter as _};
use outrigger_core::telemetry::{Collector, OtlpProtocol};
use tokio::sync::Mutex;

use super::{Traces, spans};
use crate::base::settings::Settings;
use crate::observe::otlp::{BATCH, Complaints, EVERY, TIMEOUT, identity};

/// Sends what is recorded.
pub struct SpanExporter(Mutex<SpanSender>);

impl SpanExporter {
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

    /// For the last time: what is on its way, and what is there.
    pub async fn finish(&self) {
        self.0.lock().await.send().await;
    }
}

/// Who spans are from.
fn resource(settings: &Settings) -> Resource {
    let all = identity(settings).into_iter().map(|(name, text)| KeyValue::new(name, text));
    Resource::builder_empty().with_attributes(all).build()
}

struct SpanSender {
    traces: Arc<Traces>,
    resource: Resource,
    scope: InstrumentationScope,
    exporter: Option<(Collector, OtlpExporter)>,
    complaints: Complaints,
}

impl SpanSender {
    fn new(traces: Arc<Traces>, resource: Resource) -> Self {
        let scope = InstrumentationScope::builder("outrigger-proxy")
            .with_version(env!("CARGO_PKG_VERSION"))
            .build();
        let complaints = Complaints::about("spans", "--traces");
        Self { traces, resource, scope, exporter: None, complaints }
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
            match self.export(&settings.collector, batch).await {
                Ok(()) => {
                    self.traces.count(count, 0);
                    self.complaints.taken(&settings.collector.address);
                }
                Err(why) => {
                    // It would take as long for what is left, while more comes.
                    self.traces.count(0, count + all.len());
                    self.complaints.lost(&settings.collector.address, &why);
                    return;
                }
            }
        }
    }

    async fn export(&mut self, to: &Collector, batch: Vec<SpanData>) -> Result<(), String> {
        let exporter = match &mut self.exporter {
            Some((of, exporter)) if of == to => exporter,
            other => {
                let mut exporter = connect(to)?;
                exporter.set_resource(&self.resource);
                &mut other.insert((to.clone(), exporter)).1
            }
        };
        match tokio::time::timeout(TIMEOUT, exporter.export(batch)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(OTelSdkError::Timeout(_))) | Err(_) => Err(format!("no answer in {TIMEOUT:?}")),
            Ok(Err(error)) => Err(error.to_string()),
        }
    }
}

/// Nothing is sent yet.
fn connect(to: &Collector) -> Result<OtlpExporter, String> {
    let address = to.address.trim_end_matches('/');
    let built = match to.protocol {
        OtlpProtocol::Grpc => OtlpExporter::builder()
            .with_tonic()
            .with_endpoint(address)
            .with_timeout(TIMEOUT)
            .build(),
        OtlpProtocol::Http => OtlpExporter::builder()
            .with_http()
            .with_http_client(HyperClient::with_default_connector(TIMEOUT, None))
            .with_endpoint(format!("{address}/v1/traces"))
            .with_timeout(TIMEOUT)
            .build(),
    };
    built.map_err(|error| error.to_string())
}
