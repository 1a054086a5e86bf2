//! `hedge`, `cache` and `fallbacks` of a TrafficPolicy, and the Services that they name.

use std::time::Duration;

use outrigger_core::policy::bounds;
use outrigger_core::policy::cache::{CacheConfig, DEFAULT_ENTRY_BYTES};
use outrigger_core::policy::fallback::{Class, Classes, Fallback, Give, Static};
use outrigger_core::policy::hedge::HedgeConfig;

use super::Report;
use super::route::backend_name;
use super::target_ref::OUTRIGGER;
use super::traffic_policy::{number, time};
use crate::kinds::defaults;
use crate::kinds::{
    TrafficCache, TrafficFailureClass, TrafficFallback, TrafficFallbackBackend,
    TrafficFallbackStatic, TrafficHedge,
};

pub(super) fn translate(
    raw: &[TrafficFallback],
    namespace: &str,
    report: &mut Report,
) -> Vec<Fallback> {
    let path = "spec.fallbacks";
    if raw.is_empty() {
        report.error(path, "is empty");
    }
    report.check(path, bounds::at_most(raw.len(), bounds::MAX_FALLBACKS));
    let each = raw.iter().enumerate();
    each.filter_map(|(i, raw)| fallback(raw, &format!("{path}[{i}]"), namespace, report)).collect()
}

fn fallback(
    raw: &TrafficFallback,
    path: &str,
    namespace: &str,
    report: &mut Report,
) -> Option<Fallback> {
    let when = match &raw.when {
        None => Classes::default(),
        Some(classes) => {
            if classes.is_empty() {
                report.error(format!("{path}.when"), "is empty: leave it out for every failure");
            }
            Classes::of(&classes.iter().map(|class| class_of(*class)).collect::<Vec<_>>())
        }
    };
    let give = match (&raw.cached, &raw.backend, &raw.route, &raw.fixed) {
        (Some(_), None, None, None) => Some(Give::Cached),
        (None, Some(raw), None, None) => {
            backend(raw, &format!("{path}.backend"), namespace, report)
        }
        (None, None, Some(raw), None) => {
            report.check(&format!("{path}.route.path"), bounds::path(&raw.path)).map(Give::Route)
        }
        (None, None, None, Some(raw)) => fixed(raw, &format!("{path}.static"), report),
        (None, None, None, None) => {
            report.error(path, "needs one of cached, backend, route and static");
            None
        }
        _ => {
            report.error(path, "has more than one of cached, backend, route and static");
            None
        }
    };
    Some(Fallback { when, give: give? })
}

pub(super) fn hedge(raw: &TrafficHedge, report: &mut Report) -> Option<HedgeConfig> {
    let path = "spec.hedge";
    match (&raw.after, &raw.after_p95) {
        (Some(text), None) => {
            let after = time(report, &format!("{path}.after"), Some(text), &bounds::HEDGE);
            after.map(HedgeConfig::After)
        }
        (None, Some(raw)) => {
            let min = match raw.min.as_deref() {
                None => Some(defaults::HEDGE_MIN),
                text => time(report, &format!("{path}.afterP95.min"), text, &bounds::HEDGE),
            };
            min.map(|min| HedgeConfig::AfterP95 { min })
        }
        (None, None) => {
            report.error(path, "needs after or afterP95");
            None
        }
        (Some(_), Some(_)) => {
            report.error(path, "has both after and afterP95: write one of them");
            None
        }
    }
}

pub(super) fn cache(raw: &TrafficCache, report: &mut Report) -> Option<CacheConfig> {
    let path = "spec.cache";
    let ttl = time(report, &format!("{path}.ttl"), Some(&raw.ttl), &bounds::KEPT);
    let stale = match raw.stale_on_error.as_deref() {
        None => Some(Duration::ZERO),
        text => time(report, &format!("{path}.staleOnError"), text, &bounds::KEPT),
    };
    let most = match raw.max_entry_bytes {
        None => Some(DEFAULT_ENTRY_BYTES),
        most => number(report, &format!("{path}.maxEntryBytes"), most, &bounds::ENTRY_BYTES),
    };
    let config = CacheConfig { ttl: ttl?, stale_on_error: stale?, max_entry_bytes: most? };
    report.check(path, config.check())?;
    Some(config)
}

fn class_of(raw: TrafficFailureClass) -> Class {
    match raw {
        TrafficFailureClass::Unavailable => Class::Unavailable,
        TrafficFailureClass::Timeout => Class::Timeout,
        TrafficFailureClass::Overloaded => Class::Overloaded,
        TrafficFailureClass::ServerError => Class::ServerError,
    }
}

fn backend(
    raw: &TrafficFallbackBackend,
    path: &str,
    namespace: &str,
    report: &mut Report,
) -> Option<Give> {
    let port = report.port(&format!("{path}.port"), raw.port)?;
    let namespace = raw.namespace.as_deref().unwrap_or(namespace);
    let external = match (raw.group.as_str(), raw.kind.as_deref().unwrap_or(defaults::BACKEND_KIND))
    {
        ("" | "core", "Service") => false,
        (OUTRIGGER, "ExternalService") => true,
        (group, kind) => {
            let problem = format!(
                "{kind:?} of group {group:?} is not Service, or ExternalService of {OUTRIGGER}"
            );
            report.error(format!("{path}.kind"), problem);
            return None;
        }
    };
    report.check(path, backend_name(external, namespace, &raw.name, port)).map(Give::Backend)
}

fn fixed(raw: &TrafficFallbackStatic, path: &str, report: &mut Report) -> Option<Give> {
    let status = match raw.status {
        None => Some(defaults::STATIC_STATUS),
        Some(status) => report.check(&format!("{path}.status"), bounds::static_status(status)),
    };
    let content_type = raw
        .content_type
        .as_deref()
        .map(|text| report.check(&format!("{path}.contentType"), bounds::content_type(text)));
    let body = bounds::static_body(raw.body.as_deref().unwrap_or_default());
    let body = report.check(&format!("{path}.body"), body)?;
    Some(Give::Static(Static { status: status?, content_type: content_type.flatten(), body }))
}
