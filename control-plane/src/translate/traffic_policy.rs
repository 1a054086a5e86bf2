//! `TrafficPolicy`: how a service is called. [`super::effective`] puts together what several say.

use std::time::Duration;

use http::HeaderName;
use outrigger_core::error::FieldError;
use outrigger_core::filter::check_modified;
use outrigger_core::policy::bounds::{self, Durations, Numbers};
use outrigger_core::policy::breaker::{BreakerConfig, FailureRate, OpenTime};
use outrigger_core::policy::budget::BudgetConfig;
use outrigger_core::policy::health::{HealthConfig, HealthProbe};
use outrigger_core::policy::limits::LimitsConfig;
use outrigger_core::policy::outlier::OutlierConfig;
use outrigger_core::policy::priority::Priority;
use outrigger_core::policy::retry::{Backoff, Jitter, RetryConfig, RetryOn};
use outrigger_core::policy::section::{self, Scope};
use outrigger_core::policy::session::{
    DEFAULT_NAME, LIFETIME, MAX_NAME, SessionConfig, is_cookie_name,
};
use outrigger_core::policy::timeouts::Timeouts;

use super::target_ref::{Allowed, attached};
use super::{DEFAULT_NAMESPACE, Report, duration, fallback};
use crate::kinds::defaults;
use crate::kinds::{
    TrafficBackoff, TrafficBreaker, TrafficFailureRate, TrafficHealthCheck, TrafficJitter,
    TrafficLimits, TrafficOpen, TrafficOutlierEjection, TrafficPolicy as Raw, TrafficPolicySpec,
    TrafficPriority, TrafficRetries, TrafficRetryBudget, TrafficSessionPersistence,
    TrafficSessionType, TrafficTimeouts,
};
use crate::object::Kind;
use crate::object::policy::{PolicyTarget, TrafficPolicy, TrafficSections};

pub fn translate(raw: &Raw, report: &mut Report) -> Option<TrafficPolicy> {
    let spec = &raw.spec;
    let namespace = raw.metadata.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE);
    let sections = TrafficSections {
        deadline: spec.deadline.as_ref().and_then(|text| {
            let time = duration::parse(text).and_then(|time| match time {
                Duration::ZERO => Ok(time),
                time => bounds::duration(time, &bounds::TIMEOUT),
            });
            report.check("spec.deadline", time)
        }),
        streaming: spec.streaming,
        timeouts: spec.timeouts.as_ref().map(|raw| timeouts(raw, report)),
        retries: spec.retries.as_ref().map(|raw| retries(raw, report)),
        budget: spec.retry_budget.as_ref().map(|raw| budget(raw, report)),
        breaker: spec.breaker.as_ref().map(|raw| breaker(raw, report)),
        outlier: spec.outlier_ejection.as_ref().map(|raw| outlier(raw, report)),
        limits: spec.limits.as_ref().map(|raw| limits(raw, report)),
        health: spec.health_check.as_ref().and_then(|raw| health(raw, report)),
        slow_start: spec.slow_start.as_ref().and_then(|raw| {
            time(report, "spec.slowStart.window", Some(&raw.window), &bounds::SLOW_START)
        }),
        panic_threshold: number(
            report,
            "spec.panicThreshold",
            spec.panic_threshold,
            &bounds::PANIC,
        ),
        zones: spec.zone_preference.as_ref().and_then(|raw| {
            let percent = raw.min_healthy_percent.unwrap_or(defaults::MIN_HEALTHY_PERCENT);
            let path = "spec.zonePreference.minHealthyPercent";
            number(report, path, Some(percent), &bounds::PERCENT)
        }),
        session: spec.session_persistence.as_ref().and_then(|raw| session(raw, report)),
        priority: spec.priority.map(|priority| match priority {
            TrafficPriority::Critical => Priority::Critical,
            TrafficPriority::Default => Priority::Default,
            TrafficPriority::Sheddable => Priority::Sheddable,
        }),
        max_visits: number(report, "spec.maxVisits", spec.max_visits, &bounds::VISITS),
        hedge: spec.hedge.as_ref().and_then(|raw| fallback::hedge(raw, report)),
        cache: spec.cache.as_ref().and_then(|raw| fallback::cache(raw, report)),
        fallbacks: spec.fallbacks.as_ref().map(|raw| fallback::translate(raw, namespace, report)),
    };
    if sections == TrafficSections::default() && report.errors.is_empty() {
        report.error("spec", "has no section: set at least one field beside targetRefs");
    }
    let allowed = Allowed::ServicesAndRoutes;
    let kind = Kind::TrafficPolicy;
    let policy = attached(kind, &raw.metadata, &spec.target_refs, allowed, sections, report);
    if policy.targets.iter().any(|target| matches!(target, PolicyTarget::Route { .. })) {
        refuse_backend_sections(spec, report);
    }
    Some(policy)
}

/// Client-side protection of a service is one for all that call it, whatever route they take.
fn refuse_backend_sections(spec: &TrafficPolicySpec, report: &mut Report) {
    // As it is written: one with an error is set as well.
    let written = serde_json::to_value(spec).unwrap_or_default();
    for name in section::names(Scope::Backend) {
        if written.get(name).is_none() {
            continue;
        }
        let problem = "applies to a service, not to a route: set it in a policy that targets the \
                       Service or Namespace";
        report.error(format!("spec.{name}"), problem);
    }
}

fn session(raw: &TrafficSessionPersistence, report: &mut Report) -> Option<SessionConfig> {
    let path = "spec.sessionPersistence";
    let at = format!("{path}.sessionName");
    let name = raw.session_name.as_deref().unwrap_or(DEFAULT_NAME);
    let timeout = raw.absolute_timeout.as_deref();
    let lifetime_at = format!("{path}.absoluteTimeout");
    match raw.r#type {
        TrafficSessionType::Header if timeout.is_some() => {
            report.error(lifetime_at, "is for cookies");
            None
        }
        TrafficSessionType::Header => {
            let name = report.check(&at, session_header(name))?;
            Some(SessionConfig::Header(name))
        }
        TrafficSessionType::Cookie if !is_cookie_name(name) => {
            report.error(at, format!("{name:?} is not a valid name of a cookie"));
            None
        }
        TrafficSessionType::Cookie => {
            let lifetime = time(report, &lifetime_at, timeout, &LIFETIME);
            Some(SessionConfig::Cookie { name: name.to_owned(), lifetime })
        }
    }
}

/// A header that a proxy may add to answers and read of requests.
fn session_header(name: &str) -> Result<HeaderName, FieldError> {
    let parsed = name.parse().ok().filter(|_| name.len() <= MAX_NAME);
    let invalid = || FieldError::here(format!("{name:?} is not a valid header name"));
    let name: HeaderName = parsed.ok_or_else(invalid)?;
    check_modified(&name).map(|()| name)
}

fn timeouts(raw: &TrafficTimeouts, report: &mut Report) -> Timeouts {
    if *raw == TrafficTimeouts::default() {
        report.error("spec.timeouts", "is empty");
    }
    let mut timeout = |name: &str, text: &Option<String>| {
        time(report, &format!("spec.timeouts.{name}"), text.as_deref(), &bounds::TIMEOUT)
    };
    Timeouts {
        connect: timeout("connect", &raw.connect),
        first_byte: timeout("firstByte", &raw.first_byte),
        idle: timeout("idle", &raw.idle),
        attempt: timeout("attempt", &raw.attempt),
    }
}

fn retries(raw: &TrafficRetries, report: &mut Report) -> RetryConfig {
    let path = "spec.retries";
    let plain = RetryConfig::default();
    let attempts =
        number(report, &format!("{path}.maxAttempts"), raw.max_attempts, &bounds::ATTEMPTS);
    let replay = number(
        report,
        &format!("{path}.maxReplayBytes"),
        raw.max_replay_bytes,
        &bounds::REPLAY_BYTES,
    );
    let when = &raw.when;
    let statuses_path = format!("{path}.when.statuses");
    report.check(&statuses_path, bounds::at_most(when.statuses.len(), bounds::MAX_STATUSES));
    report.check(&format!("{path}.when.grpc"), bounds::at_most(when.grpc.len(), bounds::MAX_GRPC));
    let statuses = when.statuses.iter().enumerate().filter_map(|(i, status)| {
        report.check(&format!("{statuses_path}[{i}]"), bounds::status(*status))
    });
    let on = RetryOn {
        statuses: statuses.collect(),
        grpc: when.grpc.iter().map(|code| *code as u8).collect(),
        reset: when.reset,
        timeout: when.timeout,
    };
    let config = RetryConfig {
        max_attempts: attempts.unwrap_or(plain.max_attempts),
        on,
        non_idempotent: raw.non_idempotent,
        backoff: raw.backoff.as_ref().and_then(|raw| backoff(raw, report)),
        max_replay_bytes: replay.unwrap_or(plain.max_replay_bytes),
    };
    if config.max_attempts == 1 && config != (RetryConfig { max_attempts: 1, ..plain }) {
        let problem = "is 1: there are no retries, and the other fields have no effect";
        report.error(format!("{path}.maxAttempts"), problem);
    }
    report.check(path, config.check());
    config
}

fn backoff(raw: &TrafficBackoff, report: &mut Report) -> Option<Backoff> {
    let path = "spec.retries.backoff";
    let base = time(report, &format!("{path}.base"), Some(&raw.base), &bounds::BACKOFF);
    let max = time(report, &format!("{path}.max"), raw.max.as_deref(), &bounds::BACKOFF);
    let base = base?;
    let max = max.unwrap_or_else(|| (base * defaults::BACKOFF_GROWTH).min(*bounds::BACKOFF.end()));
    let jitter = match raw.jitter {
        TrafficJitter::Full => Jitter::Full,
        TrafficJitter::Additive => Jitter::Additive,
        TrafficJitter::Decorrelated => Jitter::Decorrelated,
    };
    Some(Backoff { base, max, jitter })
}

fn budget(raw: &TrafficRetryBudget, report: &mut Report) -> BudgetConfig {
    let path = "spec.retryBudget";
    let plain = BudgetConfig::default();
    let percent = number(report, &format!("{path}.percent"), raw.percent, &bounds::BUDGET_PERCENT);
    let least = number(
        report,
        &format!("{path}.minPerSecond"),
        raw.min_per_second,
        &bounds::BUDGET_PER_SECOND,
    );
    BudgetConfig {
        percent: percent.unwrap_or(plain.percent),
        min_per_second: least.unwrap_or(plain.min_per_second),
    }
}

fn breaker(raw: &TrafficBreaker, report: &mut Report) -> BreakerConfig {
    let path = "spec.breaker";
    let before = report.errors.len();
    let config = BreakerConfig {
        consecutive_failures: failures(path, raw.consecutive_failures, report),
        failure_rate: rate(path, raw.failure_rate.as_ref(), report),
        open: raw.open.as_ref().map_or_else(growing, |raw| open(raw, report)),
        trials: number(report, &format!("{path}.trials"), raw.trials, &bounds::TRIALS)
            .unwrap_or(defaults::TRIALS),
    };
    // A wrong value has been reported at its own path.
    if report.errors.len() == before {
        report.check(path, config.check());
    }
    config
}

fn growing() -> OpenTime {
    OpenTime::Backoff { base: defaults::OPEN_BASE, max: defaults::OPEN_MAX }
}

fn open(raw: &TrafficOpen, report: &mut Report) -> OpenTime {
    let path = "spec.breaker.open";
    let mut read = |name: &str, text: &Option<String>| {
        time(report, &format!("{path}.{name}"), text.as_deref(), &bounds::OPEN)
    };
    let (fixed, base, max) =
        (read("fixed", &raw.fixed), read("base", &raw.base), read("max", &raw.max));
    match &raw.fixed {
        None if *raw == TrafficOpen::default() => {
            report.error(path, "is empty: write fixed, or base and max");
            growing()
        }
        None => {
            let base = base.unwrap_or(defaults::OPEN_BASE);
            OpenTime::Backoff { base, max: max.unwrap_or(defaults::OPEN_MAX.max(base)) }
        }
        Some(_) => {
            if raw.base.is_some() || raw.max.is_some() {
                report.error(path, "sets both fixed and a growing time: set only one");
            }
            fixed.map_or_else(growing, OpenTime::Fixed)
        }
    }
}

fn outlier(raw: &TrafficOutlierEjection, report: &mut Report) -> OutlierConfig {
    let path = "spec.outlierEjection";
    let before = report.errors.len();
    let mut read = |name: &str, text: &Option<String>| {
        time(report, &format!("{path}.{name}"), text.as_deref(), &bounds::OPEN)
    };
    let base = read("baseEjection", &raw.base_ejection).unwrap_or(defaults::BASE_EJECTION);
    let max = read("maxEjection", &raw.max_ejection).unwrap_or(defaults::MAX_EJECTION.max(base));
    let percent = number(
        report,
        &format!("{path}.maxEjectedPercent"),
        raw.max_ejected_percent,
        &bounds::PERCENT,
    );
    let config = OutlierConfig {
        consecutive_failures: failures(path, raw.consecutive_failures, report),
        failure_rate: rate(path, raw.failure_rate.as_ref(), report),
        base_ejection: base,
        max_ejection: max,
        max_ejected_percent: percent.unwrap_or(defaults::MAX_EJECTED_PERCENT),
    };
    // A wrong value has been reported at its own path.
    if report.errors.len() == before {
        report.check(path, config.check());
    }
    config
}

fn failures(path: &str, raw: Option<u32>, report: &mut Report) -> Option<u32> {
    number(report, &format!("{path}.consecutiveFailures"), raw, &bounds::FAILURES)
}

fn rate(path: &str, raw: Option<&TrafficFailureRate>, report: &mut Report) -> Option<FailureRate> {
    let raw = raw?;
    let path = format!("{path}.failureRate");
    let percent = number(report, &format!("{path}.percent"), Some(raw.percent), &bounds::PERCENT);
    let window = raw.window.as_deref().map_or(Some(defaults::WINDOW), |text| {
        report.check(&format!("{path}.window"), duration::parse(text).and_then(bounds::window))
    });
    let least = raw.min_requests.map_or(Some(defaults::MIN_REQUESTS), |least| {
        number(report, &format!("{path}.minRequests"), Some(least), &bounds::MIN_REQUESTS)
    });
    Some(FailureRate { percent: percent?, window: window?, min_requests: least? })
}

fn limits(raw: &TrafficLimits, report: &mut Report) -> LimitsConfig {
    let path = "spec.limits";
    if *raw == TrafficLimits::default() {
        report.error(path, "is empty");
    }
    let mut read =
        |name: &str, value, within| number(report, &format!("{path}.{name}"), value, within);
    let config = LimitsConfig {
        max_in_flight: read("maxInFlight", raw.max_in_flight, &bounds::IN_FLIGHT),
        max_pending: read("maxPending", raw.max_pending, &bounds::PENDING),
        max_in_flight_per_endpoint: read(
            "maxInFlightPerEndpoint",
            raw.max_in_flight_per_endpoint,
            &bounds::IN_FLIGHT,
        ),
    };
    if raw.max_in_flight.is_none() {
        report.check(path, config.check());
    }
    config
}

fn health(raw: &TrafficHealthCheck, report: &mut Report) -> Option<HealthConfig> {
    let path = "spec.healthCheck";
    let http = raw.http.as_ref().map(|raw| {
        let read = report.check(&format!("{path}.http.path"), bounds::path(&raw.path));
        read.map(HealthProbe::Http)
    });
    let grpc = raw.grpc.as_ref().map(|raw| {
        let service = bounds::grpc_service(&raw.service);
        report.check(&format!("{path}.grpc.service"), service).map(HealthProbe::Grpc)
    });
    let tcp = raw.tcp.map(|_| Some(HealthProbe::Tcp));
    let mut probes: Vec<_> = [http, grpc, tcp].into_iter().flatten().collect();
    if probes.len() != 1 {
        report.error(path, "needs exactly one of http, grpc and tcp");
    }
    let interval = raw.interval.as_deref();
    let interval = time(report, &format!("{path}.interval"), interval, &bounds::CHECK_INTERVAL);
    let timeout = raw.timeout.as_deref();
    let timeout = time(report, &format!("{path}.timeout"), timeout, &bounds::CHECK_TIMEOUT);
    let mut checks = |name: &str, value: Option<u32>, default| {
        let value = Some(value.unwrap_or(default));
        number(report, &format!("{path}.{name}"), value, &bounds::CHECKS)
    };
    let unhealthy_after = checks("unhealthyAfter", raw.unhealthy_after, defaults::UNHEALTHY_AFTER);
    let healthy_after = checks("healthyAfter", raw.healthy_after, defaults::HEALTHY_AFTER);
    Some(HealthConfig {
        probe: probes.pop()??,
        interval: interval.unwrap_or(defaults::CHECK_INTERVAL),
        timeout: timeout.unwrap_or(defaults::CHECK_TIMEOUT),
        unhealthy_after: unhealthy_after?,
        healthy_after: healthy_after?,
    })
}

pub(super) fn number<T: TryFrom<u32>>(
    report: &mut Report,
    path: &str,
    value: Option<u32>,
    within: &Numbers,
) -> Option<T> {
    report.check(path, bounds::number(value?, within))
}

pub(super) fn time(
    report: &mut Report,
    path: &str,
    text: Option<&str>,
    within: &Durations,
) -> Option<Duration> {
    let time: Result<Duration, FieldError> =
        duration::parse(text?).and_then(|time| bounds::duration(time, within));
    report.check(path, time)
}
