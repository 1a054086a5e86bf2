//! [`CallPolicy`] and [`BackendPolicy`], parts of a destination: how requests are called, how a service
//! is protected. What a workload lets in is in [`super::server`].

use std::time::Duration;

use outrigger_core::error::FieldError;
use outrigger_core::policy::bounds::{self, Durations, Numbers};
use outrigger_core::policy::breaker::{BreakerConfig, FailureRate, OpenTime};
use outrigger_core::policy::budget::BudgetConfig;
use outrigger_core::policy::health::{HealthConfig, HealthProbe};
use outrigger_core::policy::hedge::HedgeConfig;
use outrigger_core::policy::limits::LimitsConfig;
use outrigger_core::policy::outlier::OutlierConfig;
use outrigger_core::policy::preference::PreferenceConfig;
use outrigger_core::policy::priority::Priority;
use outrigger_core::policy::retry::{Backoff, Jitter, RetryConfig, RetryOn};
use outrigger_core::policy::session::{LIFETIME, SessionConfig, is_cookie_name};
use outrigger_core::policy::timeouts::Timeouts;
use outrigger_core::policy::{BackendPolicy, CallPolicy};

use super::{each, fallback, fault, set};
use crate::mesh;

/// The feature that every policy needs.
pub(super) const FEATURE: &str = "policy.v1";

/// None for what holds without any policy.
pub(super) fn call_to_wire(policy: &CallPolicy) -> Option<mesh::CallPolicy> {
    (*policy != CallPolicy::default()).then(|| rule_call_to_wire(policy))
}

pub(super) fn call_from_wire(wire: Option<&mesh::CallPolicy>) -> Result<CallPolicy, FieldError> {
    wire.map_or_else(|| Ok(CallPolicy::default()), rule_call_from_wire)
}

/// Of a rule, where saying nothing means something else.
pub(super) fn rule_call_to_wire(policy: &CallPolicy) -> mesh::CallPolicy {
    let timeouts = &policy.timeouts;
    mesh::CallPolicy {
        deadline: policy.deadline.map(millis),
        streaming: policy.streaming,
        timeouts: Some(mesh::Timeouts {
            connect: timeouts.connect.map(millis),
            first_byte: timeouts.first_byte.map(millis),
            idle: timeouts.idle.map(millis),
            attempt: timeouts.attempt.map(millis),
        }),
        retries: Some(retries_to_wire(&policy.retries)),
        priority: policy.priority.map(|priority| match priority {
            Priority::Sheddable => mesh::Priority::Sheddable.into(),
            Priority::Default => mesh::Priority::Default.into(),
            Priority::Critical => mesh::Priority::Critical.into(),
        }),
        max_visits: policy.max_visits.into(),
        hedge: policy.hedge.as_ref().map(hedge_to_wire),
        cache: policy.cache.as_ref().map(fallback::cache_to_wire),
        fallbacks: policy.fallbacks.iter().map(fallback::to_wire).collect(),
        faults: policy.faults.iter().map(fault::to_wire).collect(),
    }
}

pub(super) fn rule_call_from_wire(wire: &mesh::CallPolicy) -> Result<CallPolicy, FieldError> {
    let timeout = |name, value: Option<u32>| {
        value.map(|value| duration(name, value, &bounds::TIMEOUT)).transpose()
    };
    let timeouts = set("timeouts", wire.timeouts.as_ref())?;
    let retries = set("retries", wire.retries.as_ref())?;
    let cache = wire.cache.as_ref().map(fallback::cache_from_wire).transpose();
    Ok(CallPolicy {
        deadline: timeout("deadline", wire.deadline)?,
        streaming: wire.streaming,
        timeouts: Timeouts {
            connect: timeout("timeouts.connect", timeouts.connect)?,
            first_byte: timeout("timeouts.first_byte", timeouts.first_byte)?,
            idle: timeout("timeouts.idle", timeouts.idle)?,
            attempt: timeout("timeouts.attempt", timeouts.attempt)?,
        },
        retries: retries_from_wire(retries).map_err(|e| e.under("retries"))?,
        priority: wire.priority.map(priority_from_wire).transpose()?,
        max_visits: number("max_visits", wire.max_visits, &bounds::VISITS)?,
        hedge: wire.hedge.as_ref().map(hedge_from_wire).transpose()?,
        cache: cache.map_err(|e| e.under("cache"))?,
        fallbacks: fallback::all_from_wire(&wire.fallbacks)?,
        faults: fault::all_from_wire(&wire.faults)?,
    })
}

fn hedge_to_wire(hedge: &HedgeConfig) -> mesh::Hedge {
    use mesh::hedge::Delay;
    let delay = match hedge {
        HedgeConfig::After(time) => Delay::After(millis(*time)),
        HedgeConfig::AfterP95 { min } => Delay::AfterP95(millis(*min)),
    };
    mesh::Hedge { delay: Some(delay) }
}

fn hedge_from_wire(wire: &mesh::Hedge) -> Result<HedgeConfig, FieldError> {
    use mesh::hedge::Delay;
    Ok(match set("hedge", wire.delay.as_ref())? {
        Delay::After(time) => HedgeConfig::After(duration("hedge.after", *time, &bounds::HEDGE)?),
        Delay::AfterP95(min) => {
            HedgeConfig::AfterP95 { min: duration("hedge.after_p95", *min, &bounds::HEDGE)? }
        }
    })
}

fn priority_from_wire(wire: i32) -> Result<Priority, FieldError> {
    match mesh::Priority::try_from(wire) {
        Ok(mesh::Priority::Sheddable) => Ok(Priority::Sheddable),
        Ok(mesh::Priority::Default) => Ok(Priority::Default),
        Ok(mesh::Priority::Critical) => Ok(Priority::Critical),
        Ok(mesh::Priority::Unspecified) | Err(_) => {
            Err(FieldError::at("priority", format!("{wire} is not a known priority")))
        }
    }
}

fn retries_to_wire(retries: &RetryConfig) -> mesh::Retries {
    mesh::Retries {
        max_attempts: retries.max_attempts.into(),
        statuses: retries.on.statuses.iter().map(|status| status.as_u16().into()).collect(),
        grpc: retries.on.grpc.iter().map(|code| u32::from(*code)).collect(),
        reset: retries.on.reset,
        timeout: retries.on.timeout,
        non_idempotent: retries.non_idempotent,
        backoff: retries.backoff.as_ref().map(backoff_to_wire),
        max_replay_bytes: retries.max_replay_bytes,
    }
}

fn retries_from_wire(wire: &mesh::Retries) -> Result<RetryConfig, FieldError> {
    at_most("statuses", wire.statuses.len(), bounds::MAX_STATUSES)?;
    at_most("grpc", wire.grpc.len(), bounds::MAX_GRPC)?;
    let config = RetryConfig {
        max_attempts: number("max_attempts", wire.max_attempts, &bounds::ATTEMPTS)?,
        on: RetryOn {
            statuses: each("statuses", &wire.statuses, |status| bounds::status(*status))?,
            grpc: each("grpc", &wire.grpc, |code| bounds::number(*code, &bounds::GRPC))?,
            reset: wire.reset,
            timeout: wire.timeout,
        },
        non_idempotent: wire.non_idempotent,
        backoff: wire.backoff.as_ref().map(backoff_from_wire).transpose()?,
        max_replay_bytes: number("max_replay_bytes", wire.max_replay_bytes, &bounds::REPLAY_BYTES)?,
    };
    config.check()?;
    Ok(config)
}

fn backoff_to_wire(backoff: &Backoff) -> mesh::Backoff {
    let jitter = match backoff.jitter {
        Jitter::Full => mesh::Jitter::Full,
        Jitter::Additive => mesh::Jitter::Additive,
        Jitter::Decorrelated => mesh::Jitter::Decorrelated,
    };
    mesh::Backoff { base: millis(backoff.base), max: millis(backoff.max), jitter: jitter.into() }
}

fn backoff_from_wire(wire: &mesh::Backoff) -> Result<Backoff, FieldError> {
    let jitter = match mesh::Jitter::try_from(wire.jitter) {
        Ok(mesh::Jitter::Full) => Jitter::Full,
        Ok(mesh::Jitter::Additive) => Jitter::Additive,
        Ok(mesh::Jitter::Decorrelated) => Jitter::Decorrelated,
        Ok(mesh::Jitter::Unspecified) | Err(_) => {
            let problem = format!("{} is not a known jitter", wire.jitter);
            return Err(FieldError::at("backoff.jitter", problem));
        }
    };
    Ok(Backoff {
        base: duration("backoff.base", wire.base, &bounds::BACKOFF)?,
        max: duration("backoff.max", wire.max, &bounds::BACKOFF)?,
        jitter,
    })
}

/// None for what holds without any policy.
pub(super) fn backend_to_wire(policy: &BackendPolicy) -> Option<mesh::BackendPolicy> {
    (*policy != BackendPolicy::default()).then(|| mesh::BackendPolicy {
        budget: Some(mesh::Budget {
            percent: policy.budget.percent.into(),
            min_per_second: policy.budget.min_per_second.into(),
        }),
        breaker: policy.breaker.as_ref().map(breaker_to_wire),
        outlier: policy.outlier.as_ref().map(outlier_to_wire),
        limits: Some(mesh::Limits {
            max_in_flight: policy.limits.max_in_flight,
            max_pending: policy.limits.max_pending,
            max_in_flight_per_endpoint: policy.limits.max_in_flight_per_endpoint,
        }),
        health: policy.health.as_ref().map(health_to_wire),
        slow_start: policy.preference.slow_start.map(millis),
        panic_threshold: policy.preference.panic_threshold.map(u32::from),
        zones: policy.preference.min_healthy_percent.map(u32::from),
        faults: policy.faults.iter().map(fault::to_wire).collect(),
        stop_rules: policy.stop_rules.iter().map(fault::stop_to_wire).collect(),
        session: policy.session.as_ref().map(session_to_wire),
    })
}

fn session_to_wire(session: &SessionConfig) -> mesh::SessionPersistence {
    use mesh::session_persistence::Carrier;
    let carrier = match session {
        SessionConfig::Header(name) => Carrier::Header(name.as_str().to_owned()),
        SessionConfig::Cookie { name, lifetime } => {
            let lifetime = lifetime.map(|time| u32::try_from(time.as_secs()).unwrap_or(u32::MAX));
            Carrier::Cookie(mesh::SessionCookie { name: name.clone(), lifetime })
        }
    };
    mesh::SessionPersistence { carrier: Some(carrier) }
}

fn session_from_wire(wire: &mesh::SessionPersistence) -> Result<SessionConfig, FieldError> {
    use mesh::session_persistence::Carrier;
    Ok(match set("carrier", wire.carrier.as_ref())? {
        Carrier::Header(name) => {
            let parsed = name.parse().ok();
            let problem =
                || FieldError::at("header", format!("{name:?} is not a valid header name"));
            SessionConfig::Header(parsed.ok_or_else(problem)?)
        }
        Carrier::Cookie(cookie) if !is_cookie_name(&cookie.name) => {
            let problem = format!("{:?} is not a valid name of a cookie", cookie.name);
            return Err(FieldError::at("cookie.name", problem));
        }
        Carrier::Cookie(cookie) => {
            let lifetime = cookie.lifetime.map(|seconds| {
                let lifetime = Duration::from_secs(seconds.into());
                bounds::duration(lifetime, &LIFETIME).map_err(|e| e.under("cookie.lifetime"))
            });
            SessionConfig::Cookie { name: cookie.name.clone(), lifetime: lifetime.transpose()? }
        }
    })
}

pub(super) fn backend_from_wire(
    wire: Option<&mesh::BackendPolicy>,
) -> Result<BackendPolicy, FieldError> {
    let Some(wire) = wire else { return Ok(BackendPolicy::default()) };
    let budget = set("budget", wire.budget.as_ref())?;
    let limits = set("limits", wire.limits.as_ref())?;
    let breaker = wire.breaker.as_ref().map(breaker_from_wire).transpose();
    let outlier = wire.outlier.as_ref().map(outlier_from_wire).transpose();
    let health = wire.health.as_ref().map(health_from_wire).transpose();
    Ok(BackendPolicy {
        budget: BudgetConfig {
            percent: number("budget.percent", budget.percent, &bounds::BUDGET_PERCENT)?,
            min_per_second: number(
                "budget.min_per_second",
                budget.min_per_second,
                &bounds::BUDGET_PER_SECOND,
            )?,
        },
        breaker: breaker.map_err(|e| e.under("breaker"))?,
        outlier: outlier.map_err(|e| e.under("outlier"))?,
        limits: limits_from_wire(limits).map_err(|e| e.under("limits"))?,
        health: health.map_err(|e| e.under("health"))?,
        preference: preference_from_wire(wire)?,
        faults: fault::all_from_wire(&wire.faults)?,
        stop_rules: fault::stops_from_wire(&wire.stop_rules)?,
        session: wire
            .session
            .as_ref()
            .map(session_from_wire)
            .transpose()
            .map_err(|e| e.under("session"))?,
    })
}

fn health_to_wire(health: &HealthConfig) -> mesh::HealthCheck {
    use mesh::health_check::Probe as Wire;
    let probe = match &health.probe {
        HealthProbe::Http(path) => Wire::HttpPath(path.to_string()),
        HealthProbe::Grpc(service) => Wire::GrpcService(service.clone()),
        HealthProbe::Tcp => Wire::Tcp(mesh::Unit {}),
    };
    mesh::HealthCheck {
        probe: Some(probe),
        interval: millis(health.interval),
        timeout: millis(health.timeout),
        unhealthy_after: health.unhealthy_after.into(),
        healthy_after: health.healthy_after.into(),
    }
}

fn health_from_wire(wire: &mesh::HealthCheck) -> Result<HealthConfig, FieldError> {
    use mesh::health_check::Probe as Wire;
    let probe = match set("probe", wire.probe.as_ref())? {
        Wire::HttpPath(path) => {
            HealthProbe::Http(bounds::path(path).map_err(|e| e.under("probe.http_path"))?)
        }
        Wire::GrpcService(service) => {
            let service = bounds::grpc_service(service);
            HealthProbe::Grpc(service.map_err(|e| e.under("probe.grpc_service"))?)
        }
        Wire::Tcp(mesh::Unit {}) => HealthProbe::Tcp,
    };
    Ok(HealthConfig {
        probe,
        interval: duration("interval", wire.interval, &bounds::CHECK_INTERVAL)?,
        timeout: duration("timeout", wire.timeout, &bounds::CHECK_TIMEOUT)?,
        unhealthy_after: number("unhealthy_after", wire.unhealthy_after, &bounds::CHECKS)?,
        healthy_after: number("healthy_after", wire.healthy_after, &bounds::CHECKS)?,
    })
}

fn preference_from_wire(wire: &mesh::BackendPolicy) -> Result<PreferenceConfig, FieldError> {
    let slow_start = wire.slow_start.map(|time| duration("slow_start", time, &bounds::SLOW_START));
    let panic = wire.panic_threshold;
    let panic = panic.map(|percent| number("panic_threshold", percent, &bounds::PANIC));
    let zones = wire.zones.map(|percent| number("zones", percent, &bounds::PERCENT));
    Ok(PreferenceConfig {
        slow_start: slow_start.transpose()?,
        panic_threshold: panic.transpose()?,
        min_healthy_percent: zones.transpose()?,
    })
}

fn limits_from_wire(wire: &mesh::Limits) -> Result<LimitsConfig, FieldError> {
    let limit = |name, value, within| optional_number(name, value, within);
    let config = LimitsConfig {
        max_in_flight: limit("max_in_flight", wire.max_in_flight, &bounds::IN_FLIGHT)?,
        max_pending: limit("max_pending", wire.max_pending, &bounds::PENDING)?,
        max_in_flight_per_endpoint: limit(
            "max_in_flight_per_endpoint",
            wire.max_in_flight_per_endpoint,
            &bounds::IN_FLIGHT,
        )?,
    };
    config.check()?;
    Ok(config)
}

fn breaker_to_wire(breaker: &BreakerConfig) -> mesh::Breaker {
    use mesh::breaker::Open;
    mesh::Breaker {
        consecutive_failures: breaker.consecutive_failures,
        failure_rate: breaker.failure_rate.as_ref().map(rate_to_wire),
        open: Some(match breaker.open {
            OpenTime::Fixed(time) => Open::Fixed(millis(time)),
            OpenTime::Backoff { base, max } => {
                Open::Growing(mesh::GrowingTime { base: millis(base), max: millis(max) })
            }
        }),
        trials: breaker.trials,
    }
}

fn breaker_from_wire(wire: &mesh::Breaker) -> Result<BreakerConfig, FieldError> {
    use mesh::breaker::Open;
    let open = match set("open", wire.open.as_ref())? {
        Open::Fixed(time) => OpenTime::Fixed(duration("open.fixed", *time, &bounds::OPEN)?),
        Open::Growing(wire) => OpenTime::Backoff {
            base: duration("open.base", wire.base, &bounds::OPEN)?,
            max: duration("open.max", wire.max, &bounds::OPEN)?,
        },
    };
    let config = BreakerConfig {
        consecutive_failures: consecutive_failures(wire.consecutive_failures)?,
        failure_rate: wire.failure_rate.as_ref().map(rate_from_wire).transpose()?,
        open,
        trials: number("trials", wire.trials, &bounds::TRIALS)?,
    };
    config.check()?;
    Ok(config)
}

fn outlier_to_wire(outlier: &OutlierConfig) -> mesh::Outlier {
    mesh::Outlier {
        consecutive_failures: outlier.consecutive_failures,
        failure_rate: outlier.failure_rate.as_ref().map(rate_to_wire),
        base_ejection: millis(outlier.base_ejection),
        max_ejection: millis(outlier.max_ejection),
        max_ejected_percent: outlier.max_ejected_percent.into(),
    }
}

fn outlier_from_wire(wire: &mesh::Outlier) -> Result<OutlierConfig, FieldError> {
    let config = OutlierConfig {
        consecutive_failures: consecutive_failures(wire.consecutive_failures)?,
        failure_rate: wire.failure_rate.as_ref().map(rate_from_wire).transpose()?,
        base_ejection: duration("base_ejection", wire.base_ejection, &bounds::OPEN)?,
        max_ejection: duration("max_ejection", wire.max_ejection, &bounds::OPEN)?,
        max_ejected_percent: number(
            "max_ejected_percent",
            wire.max_ejected_percent,
            &bounds::PERCENT,
        )?,
    };
    config.check()?;
    Ok(config)
}

fn rate_to_wire(rate: &FailureRate) -> mesh::FailureRate {
    mesh::FailureRate {
        percent: rate.percent.into(),
        window: millis(rate.window),
        min_requests: rate.min_requests,
    }
}

fn rate_from_wire(wire: &mesh::FailureRate) -> Result<FailureRate, FieldError> {
    let window = bounds::window(Duration::from_millis(wire.window.into()));
    Ok(FailureRate {
        percent: number("failure_rate.percent", wire.percent, &bounds::PERCENT)?,
        window: window.map_err(|e| e.under("failure_rate.window"))?,
        min_requests: number(
            "failure_rate.min_requests",
            wire.min_requests,
            &bounds::MIN_REQUESTS,
        )?,
    })
}

fn consecutive_failures(wire: Option<u32>) -> Result<Option<u32>, FieldError> {
    optional_number("consecutive_failures", wire, &bounds::FAILURES)
}

pub(super) fn number<T: TryFrom<u32>>(
    name: &str,
    value: u32,
    within: &Numbers,
) -> Result<T, FieldError> {
    bounds::number(value, within).map_err(|e| e.under(name))
}

fn optional_number(
    name: &str,
    value: Option<u32>,
    within: &Numbers,
) -> Result<Option<u32>, FieldError> {
    value.map(|value| number(name, value, within)).transpose()
}

pub(super) fn duration(name: &str, wire: u32, within: &Durations) -> Result<Duration, FieldError> {
    let value = Duration::from_millis(wire.into());
    bounds::duration(value, within).map_err(|e| e.under(name))
}

pub(super) fn at_most(name: &str, len: usize, most: usize) -> Result<(), FieldError> {
    bounds::at_most(len, most).map_err(|e| e.under(name))
}

/// Every duration of a policy is within bounds far below what fits.
pub(super) fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}
