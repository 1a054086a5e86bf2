//! [`MeshSettings`]: what holds for the whole mesh.

use std::time::Duration;

use outrigger_core::config::{MeshSettings, Unmatched};
use outrigger_core::error::FieldError;
use outrigger_core::telemetry::{AccessLog, OtlpProtocol, Ratio, SLOWER_THAN, Telemetry, Traces};

use super::check_requires;
use crate::mesh;

pub fn to_wire(settings: &MeshSettings) -> mesh::MeshSettings {
    let unmatched = match settings.unmatched {
        Unmatched::Passthrough => mesh::Unmatched::Passthrough,
        Unmatched::Refuse => mesh::Unmatched::Refuse,
    };
    mesh::MeshSettings {
        requires: Vec::new(),
        cluster_domain: settings.cluster_domain.clone(),
        unmatched: unmatched.into(),
        max_endpoints: settings.max_endpoints,
        namespaces: settings.namespaces.clone(),
        traces: settings.telemetry.traces.as_ref().map(traces_to_wire),
        access_log: settings.telemetry.access_log.as_ref().map(access_log_to_wire),
    }
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
    let protocol = match traces.protocol {
        OtlpProtocol::Grpc => mesh::OtlpProtocol::Grpc,
        OtlpProtocol::Http => mesh::OtlpProtocol::Http,
    };
    mesh::Traces {
        address: traces.address.clone(),
        protocol: protocol.into(),
        ratio: traces.ratio.millionths(),
        ignore_parent: !traces.parent,
        ignore_errors: !traces.errors,
        slower_than_ms: millis(traces.slower_than),
    }
}

fn traces_from_wire(wire: &mesh::Traces) -> Result<Traces, FieldError> {
    let protocol = match mesh::OtlpProtocol::try_from(wire.protocol) {
        Ok(mesh::OtlpProtocol::Grpc) => OtlpProtocol::Grpc,
        Ok(mesh::OtlpProtocol::Http) => OtlpProtocol::Http,
        Ok(mesh::OtlpProtocol::Unspecified) | Err(_) => {
            let problem = format!("{} is not a known value", wire.protocol);
            return Err(FieldError::at("protocol", problem));
        }
    };
    let ratio = Ratio::from_millionths(wire.ratio);
    let traces = Traces {
        address: wire.address.clone(),
        protocol,
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
    let traces = wire.traces.as_ref().map(traces_from_wire).transpose();
    let traces = traces.map_err(|problem| problem.under("traces"))?;
    let access_log = wire.access_log.as_ref().map(access_log_from_wire).transpose();
    let access_log = access_log.map_err(|problem| problem.under("access_log"))?;
    Ok(MeshSettings {
        cluster_domain: wire.cluster_domain.clone(),
        unmatched,
        max_endpoints: wire.max_endpoints,
        namespaces: wire.namespaces.clone(),
        telemetry: Telemetry { traces, access_log },
    })
}
