//! [`MeshSettings`]: what holds for the whole mesh.

use std::time::Duration;

use outrigger_core::config::{MeshSettings, Unmatched};
use outrigger_core::error::FieldError;
use outrigger_core::telemetry::{
    AccessLog, Collector, LogLayout, OtlpMetrics, OtlpProtocol, Ratio, SLOWER_THAN, Statsd,
    Telemetry, Traces,
};

use super::check_requires;
use crate::mesh;

pub fn to_wire(settings: &MeshSettings) -> mesh::MeshSettings {
    let unmatched = match settings.unmatched {
        Unmatched::Passthrough => mesh::Unmatched::Passthrough,
        Unmatched::Refuse => mesh::Unmatched::Refuse,
    };
    let telemetry = &settings.telemetry;
    mesh::MeshSettings {
        requires: Vec::new(),
        cluster_domain: settings.cluster_domain.clone(),
        unmatched: unmatched.into(),
        max_endpoints: settings.max_endpoints,
        namespaces: settings.namespaces.clone(),
        traces: telemetry.traces.as_ref().map(traces_to_wire),
        access_log: telemetry.access_log.as_ref().map(access_log_to_wire),
        metrics: telemetry.metrics.as_ref().map(metrics_to_wire),
        statsd: telemetry.statsd.as_ref().map(statsd_to_wire),
        logs: telemetry.logs.as_ref().map(collector_to_wire),
        access_log_layout: layout_to_wire(telemetry.access_log_layout).into(),
    }
}

fn layout_to_wire(layout: Option<LogLayout>) -> mesh::LogLayout {
    match layout {
        None => mesh::LogLayout::Unspecified,
        Some(LogLayout::Json) => mesh::LogLayout::Json,
        Some(LogLayout::Logstash) => mesh::LogLayout::Logstash,
    }
}

fn layout_from_wire(wire: i32) -> Result<Option<LogLayout>, FieldError> {
    match mesh::LogLayout::try_from(wire) {
        Ok(mesh::LogLayout::Unspecified) => Ok(None),
        Ok(mesh::LogLayout::Json) => Ok(Some(LogLayout::Json)),
        Ok(mesh::LogLayout::Logstash) => Ok(Some(LogLayout::Logstash)),
        Err(_) => Err(FieldError::at("access_log_layout", format!("{wire} is not a known value"))),
    }
}

fn metrics_to_wire(metrics: &OtlpMetrics) -> mesh::OtlpMetrics {
    mesh::OtlpMetrics {
        collector: Some(collector_to_wire(&metrics.collector)),
        every_ms: millis(Some(metrics.every)),
    }
}

fn metrics_from_wire(wire: &mesh::OtlpMetrics) -> Result<OtlpMetrics, FieldError> {
    let collector =
        wire.collector.as_ref().ok_or_else(|| FieldError::at("collector", "is missing"));
    let every = Duration::from_millis(wire.every_ms.into());
    let collector = collector_from_wire(collector?).map_err(|why| why.under("collector"))?;
    let metrics = OtlpMetrics { collector, every };
    metrics.check()?;
    Ok(metrics)
}

fn statsd_to_wire(statsd: &Statsd) -> mesh::Statsd {
    mesh::Statsd { address: statsd.address.clone(), every_ms: millis(Some(statsd.every)) }
}

fn statsd_from_wire(wire: &mesh::Statsd) -> Result<Statsd, FieldError> {
    let every = Duration::from_millis(wire.every_ms.into());
    let statsd = Statsd { address: wire.address.clone(), every };
    statsd.check()?;
    Ok(statsd)
}

fn collector_to_wire(collector: &Collector) -> mesh::Collector {
    let protocol = match collector.protocol {
        OtlpProtocol::Grpc => mesh::OtlpProtocol::Grpc,
        OtlpProtocol::Http => mesh::OtlpProtocol::Http,
    };
    mesh::Collector { address: collector.address.clone(), protocol: protocol.into() }
}

fn collector_from_wire(wire: &mesh::Collector) -> Result<Collector, FieldError> {
    let protocol = match mesh::OtlpProtocol::try_from(wire.protocol) {
        Ok(mesh::OtlpProtocol::Grpc) => OtlpProtocol::Grpc,
        Ok(mesh::OtlpProtocol::Http) => OtlpProtocol::Http,
        Ok(mesh::OtlpProtocol::Unspecified) | Err(_) => {
            let problem = format!("{} is not a known value", wire.protocol);
            return Err(FieldError::at("protocol", problem));
        }
    };
    let collector = Collector { address: wire.address.clone(), protocol };
    collector.check()?;
    Ok(collector)
}

fn access_log_to_wire(log: &AccessLog) -> mesh::AccessLog {
    mesh::AccessLog {
        ratio: log.share.millionths(),
        errors: log.errors,
        slower_than_ms: millis(log.slower_than),
    }
}

fn access_log_from_wire(wire: &mesh::AccessLog) -> Result<AccessLog, FieldError> {
    let share = Ratio::from_millionths(wire.ratio);
    let slower_than = slower_than(wire.slower_than_ms);
    if slower_than.is_some_and(|limit| !SLOWER_THAN.contains(&limit)) {
        return Err(FieldError::at("slower_than_ms", "must be between 1ms and 1h"));
    }
    Ok(AccessLog {
        share: share.ok_or_else(|| FieldError::at("ratio", "is more than a million"))?,
        errors: wire.errors,
        slower_than,
    })
}

/// 0: none.
fn millis(limit: Option<Duration>) -> u32 {
    limit.map_or(0, |limit| u32::try_from(limit.as_millis()).unwrap_or(u32::MAX))
}

fn slower_than(millis: u32) -> Option<Duration> {
    (millis > 0).then(|| Duration::from_millis(millis.into()))
}

fn traces_to_wire(traces: &Traces) -> mesh::Traces {
    let mesh::Collector { address, protocol } = collector_to_wire(&traces.collector);
    mesh::Traces {
        address,
        protocol,
        ratio: traces.ratio.millionths(),
        ignore_parent: !traces.parent,
        ignore_errors: !traces.errors,
        slower_than_ms: millis(traces.slower_than),
    }
}

fn traces_from_wire(wire: &mesh::Traces) -> Result<Traces, FieldError> {
    let mesh::Traces { address, protocol, .. } = wire.clone();
    let ratio = Ratio::from_millionths(wire.ratio);
    let traces = Traces {
        collector: collector_from_wire(&mesh::Collector { address, protocol })?,
        ratio: ratio.ok_or_else(|| FieldError::at("ratio", "is more than a million"))?,
        parent: !wire.ignore_parent,
        errors: !wire.ignore_errors,
        slower_than: slower_than(wire.slower_than_ms),
    };
    traces.check()?;
    Ok(traces)
}

pub fn from_wire(wire: &mesh::MeshSettings) -> Result<MeshSettings, FieldError> {
    check_requires(&wire.requires)?;
    if wire.cluster_domain.is_empty() {
        return Err(FieldError::at("cluster_domain", "is empty"));
    }
    if wire.max_endpoints == 0 {
        return Err(FieldError::at("max_endpoints", "must be at least 1"));
    }
    let unmatched = match mesh::Unmatched::try_from(wire.unmatched) {
        Ok(mesh::Unmatched::Passthrough) => Unmatched::Passthrough,
        Ok(mesh::Unmatched::Refuse) => Unmatched::Refuse,
        Ok(mesh::Unmatched::Unspecified) | Err(_) => {
            let problem = format!("{} is not a known value", wire.unmatched);
            return Err(FieldError::at("unmatched", problem));
        }
    };
    Ok(MeshSettings {
        cluster_domain: wire.cluster_domain.clone(),
        unmatched,
        max_endpoints: wire.max_endpoints,
        namespaces: wire.namespaces.clone(),
        telemetry: telemetry_from_wire(wire)?,
    })
}

fn telemetry_from_wire(wire: &mesh::MeshSettings) -> Result<Telemetry, FieldError> {
    Ok(Telemetry {
        traces: part("traces", wire.traces.as_ref(), traces_from_wire)?,
        access_log: part("access_log", wire.access_log.as_ref(), access_log_from_wire)?,
        access_log_layout: layout_from_wire(wire.access_log_layout)?,
        logs: part("logs", wire.logs.as_ref(), collector_from_wire)?,
        metrics: part("metrics", wire.metrics.as_ref(), metrics_from_wire)?,
        statsd: part("statsd", wire.statsd.as_ref(), statsd_from_wire)?,
    })
}

/// A field that may be unset.
fn part<W, T>(
    field: &'static str,
    wire: Option<&W>,
    read: impl FnOnce(&W) -> Result<T, FieldError>,
) -> Result<Option<T>, FieldError> {
    wire.map(read).transpose().map_err(|problem| problem.under(field))
}
