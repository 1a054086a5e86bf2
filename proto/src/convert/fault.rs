//! [`Fault`], part of the policy of a rule or of a service: what is injected; and [`StopRule`],
//! part of that of the service whose callers watch over it.

use std::time::{Duration, SystemTime};

use http::HeaderValue;
use outrigger_core::error::FieldError;
use outrigger_core::name::check_label;
use outrigger_core::policy::bounds;
use outrigger_core::policy::fault::{
    Fault, FaultAction, FaultPath, FaultSource, RequestMatch, Schedule, Times,
};
use outrigger_core::policy::stop::StopRule;

use super::policy::{at_most, duration, millis, number};
use super::{each, parsed, set};
use crate::mesh;

/// The feature that a destination with faults needs: a proxy that ignored their end would be worse than
/// one that refuses them.
pub(super) const FEATURE: &str = "faults.v1";

pub(super) fn to_wire(fault: &Fault) -> mesh::Fault {
    use mesh::fault::Kind as Wire;
    let kind = match fault.kind {
        FaultAction::Delay { fixed, jitter } => {
            Wire::Delay(mesh::FaultDelay { fixed: millis(fixed), jitter: millis(jitter) })
        }
        FaultAction::Abort(status) => Wire::AbortStatus(status.as_u16().into()),
        FaultAction::AbortGrpc(code) => Wire::AbortGrpc(code.into()),
        FaultAction::Reset => Wire::Reset(mesh::Unit {}),
        FaultAction::Partition => Wire::Partition(mesh::Unit {}),
    };
    mesh::Fault {
        name: fault.name.to_string(),
        version: fault.version.to_string(),
        created: fault.created,
        from: fault.from.iter().map(caller_to_wire).collect(),
        matches: fault.matches.iter().map(match_to_wire).collect(),
        share: fault.share.into(),
        kind: Some(kind),
        start: fault.times.start.map(time_to_wire),
        end: time_to_wire(fault.times.end),
        schedule: fault.times.schedule.map(|schedule| mesh::FaultSchedule {
            every: millis(schedule.every),
            length: millis(schedule.length),
        }),
    }
}

pub(super) fn all_from_wire(wire: &[mesh::Fault]) -> Result<Vec<Fault>, FieldError> {
    at_most("faults", wire.len(), bounds::MAX_FAULTS)?;
    each("faults", wire, from_wire)
}

pub(super) fn stop_to_wire(rule: &StopRule) -> mesh::StopRule {
    mesh::StopRule {
        name: rule.name.to_string(),
        version: rule.version.to_string(),
        from: Some(caller_to_wire(&rule.from)),
        min_success_percent: rule.min_success_percent.map(u32::from),
        max_p99: rule.max_p99.map(millis),
        window: millis(rule.window),
        min_requests: rule.min_requests,
        start: rule.times.start.map(time_to_wire),
        end: time_to_wire(rule.times.end),
    }
}

pub(super) fn stops_from_wire(wire: &[mesh::StopRule]) -> Result<Vec<StopRule>, FieldError> {
    at_most("stop_rules", wire.len(), bounds::MAX_STOP_RULES)?;
    each("stop_rules", wire, stop_from_wire)
}

fn stop_from_wire(wire: &mesh::StopRule) -> Result<StopRule, FieldError> {
    let percent = |percent| number("min_success_percent", percent, &bounds::PERCENT);
    let p99 = |max| duration("max_p99", max, &bounds::LATENCY);
    let window = bounds::window(Duration::from_millis(wire.window.into()));
    let from = caller_from_wire(set("from", wire.from.as_ref())?);
    let rule = StopRule {
        name: wire.name.as_str().into(),
        version: wire.version.as_str().into(),
        from: from.map_err(|e| e.under("from"))?,
        min_success_percent: wire.min_success_percent.map(percent).transpose()?,
        max_p99: wire.max_p99.map(p99).transpose()?,
        window: window.map_err(|e| e.under("window"))?,
        min_requests: number("min_requests", wire.min_requests, &bounds::MIN_REQUESTS)?,
        times: Times {
            start: wire.start.map(|start| time_from_wire("start", start)).transpose()?,
            end: time_from_wire("end", wire.end)?,
            schedule: None,
        },
    };
    rule.check()?;
    Ok(rule)
}

fn from_wire(wire: &mesh::Fault) -> Result<Fault, FieldError> {
    at_most("from", wire.from.len(), bounds::MAX_CALLERS)?;
    at_most("matches", wire.matches.len(), bounds::MAX_MATCHES)?;
    Ok(Fault {
        name: wire.name.as_str().into(),
        version: wire.version.as_str().into(),
        created: wire.created,
        from: each("from", &wire.from, caller_from_wire)?,
        matches: each("matches", &wire.matches, match_from_wire)?,
        share: number("share", wire.share, &bounds::SHARE)?,
        kind: kind_from_wire(wire.kind.as_ref())?,
        times: Times {
            start: wire.start.map(|start| time_from_wire("start", start)).transpose()?,
            end: time_from_wire("end", wire.end)?,
            schedule: wire.schedule.as_ref().map(schedule_from_wire).transpose()?,
        },
    })
}

fn kind_from_wire(wire: Option<&mesh::fault::Kind>) -> Result<FaultAction, FieldError> {
    use mesh::fault::Kind as Wire;
    Ok(match set("kind", wire)? {
        Wire::Delay(delay) => FaultAction::Delay {
            fixed: duration("delay.fixed", delay.fixed, &bounds::DELAY)?,
            jitter: duration("delay.jitter", delay.jitter, &bounds::DELAY_JITTER)?,
        },
        Wire::AbortStatus(status) => {
            let status: u16 = number("abort_status", *status, &bounds::ABORT_STATUS)?;
            let status = status.try_into().map_err(|_| FieldError::here("is not a status"));
            FaultAction::Abort(status.map_err(|e: FieldError| e.under("abort_status"))?)
        }
        Wire::AbortGrpc(code) => {
            FaultAction::AbortGrpc(number("abort_grpc", *code, &bounds::GRPC)?)
        }
        Wire::Reset(_) => FaultAction::Reset,
        Wire::Partition(_) => FaultAction::Partition,
    })
}

fn caller_to_wire(caller: &FaultSource) -> mesh::FaultCaller {
    mesh::FaultCaller {
        namespace: caller.namespace.clone(),
        service_account: caller.service_account.clone().unwrap_or_default(),
    }
}

fn caller_from_wire(wire: &mesh::FaultCaller) -> Result<FaultSource, FieldError> {
    check_label(&wire.namespace).map_err(|e| e.under("namespace"))?;
    let service_account = super::optional(&wire.service_account);
    Ok(FaultSource { namespace: wire.namespace.clone(), service_account })
}

fn match_to_wire(one: &RequestMatch) -> mesh::FaultMatch {
    use mesh::fault_match::Path;
    let header = |(name, value): &(http::HeaderName, HeaderValue)| mesh::Header {
        name: name.as_str().to_owned(),
        value: value.as_bytes().to_vec().into(),
    };
    mesh::FaultMatch {
        method: one.method.as_ref().map(ToString::to_string).unwrap_or_default(),
        path: one.path.as_ref().map(|path| match path {
            FaultPath::Exact(path) => Path::Exact(path.clone()),
            FaultPath::Prefix(path) => Path::Prefix(path.clone()),
        }),
        headers: one.headers.iter().map(header).collect(),
    }
}

fn match_from_wire(wire: &mesh::FaultMatch) -> Result<RequestMatch, FieldError> {
    use mesh::fault_match::Path;
    at_most("headers", wire.headers.len(), bounds::MAX_HEADERS)?;
    let header = |wire: &mesh::Header| {
        let value = HeaderValue::from_bytes(&wire.value)
            .map_err(|_| FieldError::at("value", "is not a header value"))?;
        Ok((parsed("name", &wire.name)?, value))
    };
    Ok(RequestMatch {
        method: match wire.method.as_str() {
            "" => None,
            method => Some(parsed("method", method)?),
        },
        path: wire.path.as_ref().map(|path| match path {
            Path::Exact(path) => FaultPath::Exact(path.clone()),
            Path::Prefix(path) => FaultPath::Prefix(path.clone()),
        }),
        headers: each("headers", &wire.headers, header)?,
    })
}

fn schedule_from_wire(wire: &mesh::FaultSchedule) -> Result<Schedule, FieldError> {
    let schedule = Schedule {
        every: duration("schedule.every", wire.every, &bounds::SCHEDULE)?,
        length: duration("schedule.length", wire.length, &bounds::SCHEDULE)?,
    };
    schedule.check().map_err(|e| e.under("schedule"))?;
    Ok(schedule)
}

fn time_to_wire(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn time_from_wire(name: &str, millis: u64) -> Result<SystemTime, FieldError> {
    SystemTime::UNIX_EPOCH
        .checked_add(Duration::from_millis(millis))
        .ok_or_else(|| FieldError::at(name, format!("{millis} is no time")))
}
