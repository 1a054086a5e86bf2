//! `FaultInjection`: faults in calls. [`super::effective`] says which ones hold for a call.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{HeaderName, HeaderValue, Method};
use k8s_openapi::jiff::Timestamp;
use outrigger_core::error::FieldError;
use outrigger_core::name::check_label;
use outrigger_core::policy::bounds;
use outrigger_core::policy::fault::{
    Fault, FaultAction, FaultPath, FaultSource, RequestMatch, Schedule, Times,
};
use outrigger_core::policy::stop::StopRule;
use outrigger_proto::convert;

use super::filter::header_name;
use super::http_route::check_path;
use super::target_ref::{Allowed, attached};
use super::traffic_policy::{number, time};
use super::{Report, check_subdomain, created, duration};
use crate::kinds::defaults;
use crate::kinds::{
    FaultAbort, FaultCaller, FaultGuard, FaultInjection as Raw, FaultInjectionSpec, FaultKind,
    FaultMatch, FaultPathType, FaultSchedule,
};
use crate::object;
use crate::object::policy::{Experiment, FaultInjection, Guard};

pub fn translate(raw: &Raw, report: &mut Report) -> Option<FaultInjection> {
    let spec = &raw.spec;
    report.check("spec.from", bounds::at_most(spec.from.len(), bounds::MAX_CALLERS));
    report.check("spec.matches", bounds::at_most(spec.matches.len(), bounds::MAX_MATCHES));
    let from = spec
        .from
        .iter()
        .enumerate()
        .filter_map(|(i, raw)| caller(&format!("spec.from[{i}]"), raw, report));
    let from = from.collect();
    let matches =
        spec.matches.iter().enumerate().map(|(i, raw)| matching(i, raw, report)).collect();
    let (share, kind) = (share(spec.percent, report), kind(&spec.fault, report));
    let times = times(spec, SystemTime::now(), report);
    // Without them there is an error, and no object is needed: its name is found in the manifest.
    let (share, kind, times) = (share?, kind?, times?);
    let fault = Fault {
        name: "".into(),
        version: version(spec).into(),
        created: created(&raw.metadata),
        from,
        matches,
        share,
        kind,
        times,
    };
    let allowed = Allowed::ServicesAndRoutes;
    let of = object::Kind::FaultInjection;
    let guard = match &spec.guard {
        Some(raw) => Some(guard(raw, &fault, report)?),
        None => None,
    };
    let said = Experiment { fault, guard };
    let mut policy = attached(of, &raw.metadata, &spec.target_refs, allowed, said, report);
    let name: Arc<str> = format!("{}/{}", policy.id.namespace, policy.id.name).into();
    if let Some(guard) = &mut policy.sections.guard {
        guard.rule.name = Arc::clone(&name);
    }
    policy.sections.fault.name = name;
    Some(policy)
}

/// Equal over restarts and replicas, another one for every other spec.
fn version(spec: &FaultInjectionSpec) -> String {
    // A spec that was read from JSON can be written as JSON.
    convert::version(&serde_json::to_vec(spec).unwrap_or_default())
}

fn caller(path: &str, raw: &FaultCaller, report: &mut Report) -> Option<FaultSource> {
    let namespace = report.check(&format!("{path}.namespace"), check_label(&raw.namespace));
    let account = raw.service_account.as_deref().map_or(Ok(()), check_subdomain);
    let account = report.check(&format!("{path}.serviceAccount"), account);
    namespace.and(account)?;
    let service_account = raw.service_account.clone();
    Some(FaultSource { namespace: raw.namespace.clone(), service_account })
}

fn matching(i: usize, raw: &FaultMatch, report: &mut Report) -> RequestMatch {
    let path = format!("spec.matches[{i}]");
    if *raw == FaultMatch::default() {
        report.error(&path, "is empty: leave it out to match every request");
    }
    let method = raw.method.as_deref().and_then(|text| {
        let method = Method::from_bytes(text.as_bytes()).ok();
        let method = method.filter(|_| !text.bytes().any(|b| b.is_ascii_lowercase()));
        let problem = || FieldError::here(format!("{text:?} is not a method, as in GET"));
        report.check(&format!("{path}.method"), method.ok_or_else(problem))
    });
    let tested = raw.path.as_ref().map(|raw| {
        check_path(&format!("{path}.path.value"), &raw.value, report);
        match raw.kind {
            FaultPathType::Exact => FaultPath::Exact(raw.value.clone()),
            FaultPathType::PathPrefix => FaultPath::Prefix(raw.value.clone()),
        }
    });
    let headers_path = format!("{path}.headers");
    report.check(&headers_path, bounds::at_most(raw.headers.len(), bounds::MAX_HEADERS));
    let mut headers: Vec<(HeaderName, HeaderValue)> = Vec::with_capacity(raw.headers.len());
    for (i, raw) in raw.headers.iter().enumerate() {
        let path = format!("{headers_path}[{i}]");
        let name = header_name(&format!("{path}.name"), &raw.name, report);
        let Ok(value) = HeaderValue::from_str(&raw.value) else {
            report.error(format!("{path}.value"), "is not a valid header value");
            continue;
        };
        headers.extend(name.map(|name| (name, value)));
    }
    RequestMatch { method, path: tested, headers }
}

fn share(percent: f64, report: &mut Report) -> Option<u16> {
    let share = percent * 100.0;
    let whole = share.round();
    if !(1.0..=10_000.0).contains(&whole) || (share - whole).abs() > 1e-6 {
        let problem = "must be between 0.01 and 100, with two decimals at most";
        report.error("spec.percent", format!("{percent} {problem}"));
        return None;
    }
    report.check("spec.percent", bounds::number(whole as u32, &bounds::SHARE))
}

fn kind(raw: &FaultKind, report: &mut Report) -> Option<FaultAction> {
    let path = "spec.fault";
    match raw {
        FaultKind::Delay(raw) => {
            let path = format!("{path}.delay");
            let fixed = time(report, &format!("{path}.fixed"), Some(&raw.fixed), &bounds::DELAY);
            let jitter = raw.jitter.as_deref().map_or(Some(Duration::ZERO), |text| {
                time(report, &format!("{path}.jitter"), Some(text), &bounds::DELAY_JITTER)
            });
            Some(FaultAction::Delay { fixed: fixed?, jitter: jitter? })
        }
        FaultKind::Abort(FaultAbort::Status(status)) => {
            let path = format!("{path}.abort.status");
            let code: u16 = number(report, &path, Some(*status), &bounds::ABORT_STATUS)?;
            http::StatusCode::from_u16(code).ok().map(FaultAction::Abort)
        }
        FaultKind::Abort(FaultAbort::Grpc(code)) => Some(FaultAction::AbortGrpc(*code as u8)),
        FaultKind::Reset(_) => Some(FaultAction::Reset),
        FaultKind::Partition(_) => Some(FaultAction::Partition),
    }
}

fn times(spec: &FaultInjectionSpec, now: SystemTime, report: &mut Report) -> Option<Times> {
    let start = match &spec.start {
        Some(text) => Some(report.check("spec.start", instant(text))?),
        None => None,
    };
    let end = report.check("spec.end", instant(&spec.end));
    let schedule = match &spec.schedule {
        Some(raw) => Some(schedule(raw, report)?),
        None => None,
    };
    let end = end?;
    let (from, what) = start.map_or((now, "now"), |start| (start, "start"));
    if start.is_some_and(|start| end <= start) {
        report.error("spec.end", "is not after start");
    } else if end.duration_since(from).is_ok_and(|length| length > bounds::EXPERIMENT) {
        report.error("spec.end", format!("is more than 24 hours from {what}"));
    } else if end <= now {
        report.warn("spec.end", "has passed: the fault injection is over");
    }
    Some(Times { start, end, schedule })
}

fn schedule(raw: &FaultSchedule, report: &mut Report) -> Option<Schedule> {
    let path = "spec.schedule";
    let every = time(report, &format!("{path}.every"), Some(&raw.every), &bounds::SCHEDULE);
    let length = time(report, &format!("{path}.for"), Some(&raw.length), &bounds::SCHEDULE);
    let schedule = Schedule { every: every?, length: length? };
    report.check(path, schedule.check());
    Some(schedule)
}

fn guard(raw: &FaultGuard, fault: &Fault, report: &mut Report) -> Option<Guard> {
    let path = "spec.guard";
    let to = &raw.to;
    if !matches!(to.group.as_str(), "" | "core") || to.kind != "Service" {
        report.error(format!("{path}.to.kind"), format!("{:?} is not Service", to.kind));
    }
    report.check(&format!("{path}.to.name"), check_label(&to.name));
    let port = report.port(&format!("{path}.to.port"), to.port);
    let from = caller(&format!("{path}.from"), &raw.from, report);
    let percent_path = format!("{path}.minSuccessPercent");
    let percent = number(report, &percent_path, raw.min_success_percent, &bounds::PERCENT);
    let p99_path = format!("{path}.maxP99");
    let max_p99 = time(report, &p99_path, raw.max_p99.as_deref(), &bounds::LATENCY);
    let window = raw.window.as_deref().map_or(Some(defaults::WINDOW), |text| {
        report.check(&format!("{path}.window"), duration::parse(text).and_then(bounds::window))
    });
    let least = raw.min_requests.map_or(Some(defaults::MIN_REQUESTS), |least| {
        number(report, &format!("{path}.minRequests"), Some(least), &bounds::MIN_REQUESTS)
    });
    if raw.min_success_percent.is_none() && raw.max_p99.is_none() {
        report.error(path, "needs minSuccessPercent, maxP99 or both");
    }
    let rule = StopRule {
        name: Arc::clone(&fault.name),
        version: Arc::clone(&fault.version),
        from: from?,
        min_success_percent: percent,
        max_p99,
        window: window?,
        min_requests: least?,
        times: Times { schedule: None, ..fault.times },
    };
    Some(Guard { service: to.name.clone(), port: port?, rule })
}

/// A time as in RFC 3339.
fn instant(text: &str) -> Result<SystemTime, FieldError> {
    let wrong =
        || FieldError::here(format!("{text:?} is not a time: write it as in 2026-11-22T10:00:00Z"));
    let time: Timestamp = text.parse().map_err(|_| wrong())?;
    let millis = u64::try_from(time.as_millisecond()).map_err(|_| wrong())?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(millis)).ok_or_else(wrong)
}
