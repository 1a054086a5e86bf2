//! `ServerPolicy`: what a workload lets in. [`super::effective`] puts together what several say.

use http::HeaderName;
use outrigger_core::error::FieldError;
use outrigger_core::policy;
use outrigger_core::policy::bounds;
use outrigger_core::policy::concurrency::{Algorithm, ConcurrencyConfig, Limit};
use outrigger_core::policy::rate_limit::{Key, RateLimitConfig, Strategy};

use super::Report;
use super::target_ref::{Allowed, attached};
use super::traffic_policy::{number, time};
use crate::kinds::defaults;
use crate::kinds::{
    ServerAdaptive, ServerAlgorithm, ServerConcurrency, ServerKey, ServerPolicy as Raw,
    ServerRateLimit, ServerStrategy,
};
use crate::object::Kind;
use crate::object::policy::{ServerPolicy, ServerSections};

pub fn translate(raw: &Raw, report: &mut Report) -> Option<ServerPolicy> {
    let spec = &raw.spec;
    if spec.rate_limits.is_none() && spec.concurrency.is_none() {
        report.error("spec", "has no section: set at least one field beside targetRefs");
    }
    let rate_limits = spec.rate_limits.as_ref().map(|raw| {
        let limits = raw.iter().enumerate();
        let limits: Vec<_> = limits.filter_map(|(i, raw)| rate_limit(i, raw, report)).collect();
        // Positions are right only while nothing has been left out.
        if limits.len() == raw.len() {
            let policy = policy::ServerPolicy { rate_limits: limits.clone(), concurrency: None };
            report.check("spec", policy.check());
        }
        limits
    });
    let sections = ServerSections {
        rate_limits,
        concurrency: spec.concurrency.as_ref().and_then(|raw| concurrency(raw, report)),
    };
    let (kind, allowed) = (Kind::ServerPolicy, Allowed::Services);
    Some(attached(kind, &raw.metadata, &spec.target_refs, allowed, sections, report))
}

fn rate_limit(i: usize, raw: &ServerRateLimit, report: &mut Report) -> Option<RateLimitConfig> {
    let path = format!("spec.rateLimits[{i}]");
    let requests =
        number(report, &format!("{path}.requests"), Some(raw.requests), &bounds::REQUESTS);
    let burst = raw.burst.or(requests);
    let burst = number(report, &format!("{path}.burst"), burst, &bounds::REQUESTS);
    let period = time(report, &format!("{path}.period"), Some(&raw.period), &bounds::PERIOD);
    let strategy = match raw.strategy {
        ServerStrategy::Volume => Strategy::Volume,
        ServerStrategy::LowPriorityFirst => Strategy::LowPriorityFirst,
        ServerStrategy::UncommonFirst => Strategy::UncommonFirst,
        ServerStrategy::PerKey => Strategy::PerKey,
    };
    if raw.key.is_some() && matches!(strategy, Strategy::Volume | Strategy::LowPriorityFirst) {
        let problem = "has no effect with this strategy: only PerKey and UncommonFirst tell \
                       requests apart";
        report.error(format!("{path}.key"), problem);
    }
    let key = match &raw.key {
        None | Some(ServerKey::Caller(_)) => Key::Caller,
        Some(ServerKey::Path(_)) => Key::Path,
        Some(ServerKey::Header(name)) => {
            let header = name
                .parse::<HeaderName>()
                .map_err(|_| FieldError::here(format!("{name:?} is not a header name")));
            Key::Header(report.check(&format!("{path}.key.header"), header)?)
        }
    };
    let (requests, burst, period) = (requests?, burst?, period?);
    Some(RateLimitConfig { name: raw.name.clone(), requests, period, burst, strategy, key })
}

fn concurrency(raw: &ServerConcurrency, report: &mut Report) -> Option<ConcurrencyConfig> {
    let path = "spec.concurrency";
    let queue = number(report, &format!("{path}.maxQueue"), raw.max_queue, &bounds::QUEUE);
    let wait = time(report, &format!("{path}.maxWait"), raw.max_wait.as_deref(), &bounds::WAIT);
    let limit = match (raw.fixed, &raw.adaptive) {
        (Some(fixed), None) => {
            let fixed =
                number(report, &format!("{path}.static"), Some(fixed), &bounds::CONCURRENCY);
            Limit::Static(fixed?)
        }
        (None, Some(raw)) => adaptive(raw, &format!("{path}.adaptive"), report)?,
        (Some(_), Some(_)) => {
            report.error(path, "has both static and adaptive: write one of them");
            return None;
        }
        (None, None) => {
            report.error(path, "needs static or adaptive");
            return None;
        }
    };
    let config = ConcurrencyConfig {
        limit,
        max_queue: queue.unwrap_or(defaults::MAX_QUEUE),
        max_wait: wait.unwrap_or(defaults::MAX_WAIT),
    };
    report.check(path, config.check());
    Some(config)
}

fn adaptive(raw: &ServerAdaptive, path: &str, report: &mut Report) -> Option<Limit> {
    let latency_path = format!("{path}.latency");
    let latency = time(report, &latency_path, raw.latency.as_deref(), &bounds::LATENCY);
    let min = raw.min.map_or(Some(defaults::ADAPTIVE_MIN), |min| {
        number(report, &format!("{path}.min"), Some(min), &bounds::CONCURRENCY)
    });
    let max = raw.max.map_or(Some(defaults::ADAPTIVE_MAX.max(min.unwrap_or(0))), |max| {
        number(report, &format!("{path}.max"), Some(max), &bounds::CONCURRENCY)
    });
    let algorithm = match (raw.algorithm, &raw.latency) {
        (ServerAlgorithm::Gradient, None) => Algorithm::Gradient,
        (ServerAlgorithm::Gradient, Some(_)) => {
            report.error(latency_path, "has no effect with Gradient");
            Algorithm::Gradient
        }
        (ServerAlgorithm::Aimd, None) => {
            report.error(latency_path, "must be set for Aimd");
            return None;
        }
        (ServerAlgorithm::Aimd, Some(_)) => Algorithm::Aimd { latency: latency? },
    };
    Some(Limit::Adaptive { algorithm, min: min?, max: max? })
}
