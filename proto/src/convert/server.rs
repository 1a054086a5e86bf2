//! [`ServerPolicy`], part of an inbound port: what a workload lets in.

use outrigger_core::error::FieldError;
use outrigger_core::policy::ServerPolicy;
use outrigger_core::policy::bounds;
use outrigger_core::policy::concurrency::{Algorithm, ConcurrencyConfig, Limit};
use outrigger_core::policy::rate_limit::{Key, RateLimitConfig, Strategy};

use super::policy::{duration, millis, number};
use super::{each, parsed, set};
use crate::mesh;

pub(super) fn to_wire(policy: &ServerPolicy) -> mesh::ServerPolicy {
    mesh::ServerPolicy {
        rate_limits: policy.rate_limits.iter().map(rate_limit_to_wire).collect(),
        concurrency: policy.concurrency.as_ref().map(concurrency_to_wire),
    }
}

pub(super) fn from_wire(wire: &mesh::ServerPolicy) -> Result<ServerPolicy, FieldError> {
    let concurrency = wire.concurrency.as_ref().map(concurrency_from_wire).transpose();
    let policy = ServerPolicy {
        rate_limits: each("rate_limits", &wire.rate_limits, rate_limit_from_wire)?,
        concurrency: concurrency.map_err(|e| e.under("concurrency"))?,
    };
    policy.check()?;
    Ok(policy)
}

fn rate_limit_to_wire(limit: &RateLimitConfig) -> mesh::RateLimit {
    use mesh::limit_key::Kind;
    let strategy = match limit.strategy {
        Strategy::Volume => mesh::Strategy::Volume,
        Strategy::LowPriorityFirst => mesh::Strategy::LowPriorityFirst,
        Strategy::UncommonFirst => mesh::Strategy::UncommonFirst,
        Strategy::PerKey => mesh::Strategy::PerKey,
    };
    let key = match &limit.key {
        Key::Caller => Kind::Caller(mesh::Unit {}),
        Key::Header(name) => Kind::Header(name.as_str().to_owned()),
        Key::Path => Kind::Path(mesh::Unit {}),
    };
    mesh::RateLimit {
        name: limit.name.clone(),
        requests: limit.requests,
        period: millis(limit.period),
        burst: limit.burst,
        strategy: strategy.into(),
        key: Some(mesh::LimitKey { kind: Some(key) }),
    }
}

fn rate_limit_from_wire(wire: &mesh::RateLimit) -> Result<RateLimitConfig, FieldError> {
    use mesh::limit_key::Kind;
    let strategy = match mesh::Strategy::try_from(wire.strategy) {
        Ok(mesh::Strategy::Volume) => Strategy::Volume,
        Ok(mesh::Strategy::LowPriorityFirst) => Strategy::LowPriorityFirst,
        Ok(mesh::Strategy::UncommonFirst) => Strategy::UncommonFirst,
        Ok(mesh::Strategy::PerKey) => Strategy::PerKey,
        Ok(mesh::Strategy::Unspecified) | Err(_) => {
            let problem = format!("{} is not a known strategy", wire.strategy);
            return Err(FieldError::at("strategy", problem));
        }
    };
    let key = match set("key", wire.key.as_ref().and_then(|key| key.kind.as_ref()))? {
        Kind::Caller(_) => Key::Caller,
        Kind::Header(name) => Key::Header(parsed("key.header", name)?),
        Kind::Path(_) => Key::Path,
    };
    Ok(RateLimitConfig {
        name: wire.name.clone(),
        requests: number("requests", wire.requests, &bounds::REQUESTS)?,
        period: duration("period", wire.period, &bounds::PERIOD)?,
        burst: number("burst", wire.burst, &bounds::REQUESTS)?,
        strategy,
        key,
    })
}

fn concurrency_to_wire(concurrency: &ConcurrencyConfig) -> mesh::Concurrency {
    use mesh::concurrency::Limit as Wire;
    let limit = match concurrency.limit {
        Limit::Static(limit) => Wire::Fixed(limit),
        Limit::Adaptive { algorithm, min, max } => {
            use mesh::adaptive_limit::Algorithm as Wired;
            let algorithm = match algorithm {
                Algorithm::Gradient => Wired::Gradient(mesh::Unit {}),
                Algorithm::Aimd { latency } => Wired::Aimd(millis(latency)),
            };
            Wire::Adaptive(mesh::AdaptiveLimit { algorithm: Some(algorithm), min, max })
        }
    };
    mesh::Concurrency {
        limit: Some(limit),
        max_queue: concurrency.max_queue,
        max_wait: millis(concurrency.max_wait),
    }
}

fn concurrency_from_wire(wire: &mesh::Concurrency) -> Result<ConcurrencyConfig, FieldError> {
    use mesh::concurrency::Limit as Wire;
    let limit = match set("limit", wire.limit.as_ref())? {
        Wire::Fixed(limit) => Limit::Static(number("fixed", *limit, &bounds::CONCURRENCY)?),
        Wire::Adaptive(wire) => adaptive_from_wire(wire).map_err(|e| e.under("adaptive"))?,
    };
    let config = ConcurrencyConfig {
        limit,
        max_queue: number("max_queue", wire.max_queue, &bounds::QUEUE)?,
        max_wait: duration("max_wait", wire.max_wait, &bounds::WAIT)?,
    };
    config.check()?;
    Ok(config)
}

fn adaptive_from_wire(wire: &mesh::AdaptiveLimit) -> Result<Limit, FieldError> {
    use mesh::adaptive_limit::Algorithm as Wired;
    let algorithm = match set("algorithm", wire.algorithm.as_ref())? {
        Wired::Gradient(_) => Algorithm::Gradient,
        Wired::Aimd(latency) => {
            Algorithm::Aimd { latency: duration("aimd", *latency, &bounds::LATENCY)? }
        }
    };
    Ok(Limit::Adaptive {
        algorithm,
        min: number("min", wire.min, &bounds::CONCURRENCY)?,
        max: number("max", wire.max, &bounds::CONCURRENCY)?,
    })
}
