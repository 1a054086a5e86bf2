//! Every limit of the process, by the port and name that it protects: configurations come and go, and
//! what has been counted stays.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use http::HeaderValue;
use outrigger_core::config;
use outrigger_core::policy::ServerPolicy;
use outrigger_core::policy::concurrency::{Algorithm, Limit};
use outrigger_core::policy::rate_limit::{Key, RateLimitConfig};
use serde_json::{Value, json};

use crate::base::sync::lock;
use crate::observe::metrics::table::{self, Exposition, Metric};
use crate::policy::limits::gate::Gate;
use crate::policy::limits::{PortLimits, PortRate, Rate};

/// What no configuration names any more is kept for so long, should it come back.
const KEEP: Duration = Duration::from_secs(600);

#[derive(Default)]
pub struct LimitStates {
    known: Mutex<KnownLimits>,
}

#[derive(Default)]
struct KnownLimits {
    rates: BTreeMap<(u16, String), KnownLimit<Rate>>,
    gates: BTreeMap<u16, KnownLimit<Gate>>,
}

struct KnownLimit<T> {
    state: Arc<T>,
    /// `namespace/name:port` of the service that the port serves.
    service: String,
    /// None: the configuration in force names it.
    unnamed_since: Option<Instant>,
}

impl LimitStates {
    /// Applies the configuration of all ports to the limits there are, and makes those that are new.
    pub fn apply(
        &self,
        ports: &[config::InboundPort],
        now: Instant,
    ) -> Vec<Option<Arc<PortLimits>>> {
        let mut known = self.lock();
        known.forget(now);
        ports.iter().map(|port| port.server.as_ref().map(|it| known.port(port, it, now))).collect()
    }

    /// What is in force, for `/policies`.
    pub fn show(&self, now: Instant) -> Value {
        let known = self.lock();
        let mut ports: BTreeMap<u16, (&str, Vec<Value>, Value)> = BTreeMap::new();
        for ((port, _), kept) in known.rates.iter().filter(|(_, kept)| kept.is_named()) {
            let rates = &mut ports.entry(*port).or_default();
            rates.0 = &kept.service;
            rates.1.push(show_rate(&kept.state, now));
        }
        for (port, kept) in known.gates.iter().filter(|(_, kept)| kept.is_named()) {
            let gate = ports.entry(*port).or_default();
            (gate.0, gate.2) = (&kept.service, show_gate(&kept.state));
        }
        let ports = ports.into_iter().map(|(port, (service, rates, gate))| {
            json!({ "port": port, "service": service, "rateLimits": rates, "concurrency": gate })
        });
        ports.collect()
    }

    /// The same as Prometheus text.
    pub fn expose(&self, out: &mut Exposition) {
        let known = self.lock();
        for ((port, limit), kept) in known.rates.iter().filter(|(_, kept)| kept.is_named()) {
            let rate = &kept.state;
            for (decision, n) in [("admitted", &rate.admitted), ("refused", &rate.refused)] {
                let labels: [&dyn Display; 4] = [&kept.service, port, limit, &decision];
                out.add(&table::RATE_LIMIT_REQUESTS, &labels, n.load(Relaxed));
            }
        }
        for (metric, value) in GATE_METRICS {
            for (port, kept) in known.gates.iter().filter(|(_, kept)| kept.is_named()) {
                out.add(metric, &[&kept.service, port], value(&kept.state));
            }
        }
        for (port, kept) in known.gates.iter().filter(|(_, kept)| kept.is_named()) {
            let waited = Duration::from_micros(kept.state.waited_us.load(Relaxed));
            if !waited.is_zero() {
                out.add(&table::CONCURRENCY_WAIT, &[&kept.service, port], waited.as_secs_f64());
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, KnownLimits> {
        lock(&self.known)
    }
}

type GateMetric = (&'static Metric, fn(&Gate) -> u64);

const GATE_METRICS: &[GateMetric] = &[
    (&table::CONCURRENCY_LIMIT, |gate| u64::from(gate.view().limit)),
    (&table::CONCURRENCY_IN_FLIGHT, |gate| u64::from(gate.view().in_flight)),
    (&table::CONCURRENCY_WAITING, |gate| gate.view().waiting as u64),
    (&table::CONCURRENCY_QUEUED, |gate| gate.counts().0),
    (&table::CONCURRENCY_REFUSED, |gate| gate.counts().1),
];

impl KnownLimits {
    fn port(
        &mut self,
        port: &config::InboundPort,
        policy: &ServerPolicy,
        now: Instant,
    ) -> Arc<PortLimits> {
        let service = port.services.first().map_or_else(|| "unknown".to_owned(), |s| s.to_string());
        let rates: Vec<_> = policy
            .rate_limits
            .iter()
            .map(|config| {
                let name = (port.port, config.name.clone());
                let make = || Rate::new(config.clone(), now);
                let rate = named(&mut self.rates, name, &service, make);
                rate.with(now, |limit| limit.reconfigure(config.clone(), now));
                PortRate { config: config.clone(), rate }
            })
            .collect();
        let gate = policy.concurrency.map(|config| {
            let gate = named(&mut self.gates, port.port, &service, || Gate::new(config, now));
            gate.reconfigure(config, now);
            gate
        });
        let policy = policies(&policy.rate_limits);
        Arc::new(PortLimits { rates, policy, gate })
    }

    /// Nothing is named until the configuration says so again; what was not for long is dropped.
    fn forget(&mut self, now: Instant) {
        self.rates.values_mut().for_each(|kept| kept.unname(now));
        self.gates.values_mut().for_each(|kept| kept.unname(now));
        self.rates.retain(|_, kept| kept.is_kept(now));
        self.gates.retain(|_, kept| kept.is_kept(now));
    }
}

impl<T> KnownLimit<T> {
    fn is_named(&self) -> bool {
        self.unnamed_since.is_none()
    }

    fn unname(&mut self, now: Instant) {
        self.unnamed_since.get_or_insert(now);
    }

    fn is_kept(&self, now: Instant) -> bool {
        self.unnamed_since.is_none_or(|since| now.saturating_duration_since(since) < KEEP)
    }
}

fn named<K: Ord, T>(
    known: &mut BTreeMap<K, KnownLimit<T>>,
    key: K,
    service: &str,
    make: impl FnOnce() -> T,
) -> Arc<T> {
    let kept = known.entry(key).or_insert_with(|| KnownLimit {
        state: Arc::new(make()),
        service: String::new(),
        unnamed_since: None,
    });
    service.clone_into(&mut kept.service);
    kept.unnamed_since = None;
    Arc::clone(&kept.state)
}

fn policies(limits: &[RateLimitConfig]) -> Option<HeaderValue> {
    let mut text = String::new();
    for limit in limits {
        if !text.is_empty() {
            text.push_str(", ");
        }
        limit.write_policy(&mut text);
    }
    HeaderValue::try_from(text).ok().filter(|value| !value.is_empty())
}

fn show_rate(rate: &Rate, now: Instant) -> Value {
    rate.with(now, |limit| {
        let config = limit.config().clone();
        let key = match &config.key {
            Key::Caller => "caller".to_owned(),
            Key::Header(name) => format!("header {name}"),
            Key::Path => "path".to_owned(),
        };
        json!({
            "name": config.name,
            "requests": config.requests,
            "periodMs": config.period.as_millis() as u64,
            "burst": config.burst,
            "strategy": format!("{:?}", config.strategy),
            "key": key,
            "left": limit.left(now),
            "keys": limit.keys(),
            "admitted": rate.admitted.load(Relaxed),
            "refused": rate.refused.load(Relaxed),
        })
    })
}

fn show_gate(gate: &Gate) -> Value {
    let view = gate.view();
    let (waited, refused) = gate.counts();
    let (algorithm, min, max) = match view.config.limit {
        Limit::Static(limit) => ("Static", limit, limit),
        Limit::Adaptive { algorithm: Algorithm::Gradient, min, max } => ("Gradient", min, max),
        Limit::Adaptive { algorithm: Algorithm::Aimd { .. }, min, max } => ("Aimd", min, max),
    };
    json!({
        "algorithm": algorithm,
        "min": min,
        "max": max,
        "limit": view.limit,
        "inFlight": view.in_flight,
        "waiting": view.waiting,
        "maxQueue": view.config.max_queue,
        "maxWaitMs": view.config.max_wait.as_millis() as u64,
        "queued": waited,
        "refused": refused,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use outrigger_core::config::{InboundPort, MtlsMode, Protocol};
    use outrigger_core::policy::concurrency::ConcurrencyConfig;
    use outrigger_core::policy::priority::Priority;
    use outrigger_core::policy::rate_limit::{RateDecision, Strategy};

    fn port(requests: u32) -> InboundPort {
        let period = Duration::from_secs(60);
        let name = "all".to_owned();
        let strategy = Strategy::Volume;
        let limit =
            RateLimitConfig { name, requests, period, burst: 10, strategy, key: Key::Caller };
        let concurrency =
            ConcurrencyConfig { limit: Limit::Static(5), max_queue: 0, max_wait: Duration::ZERO };
        InboundPort {
            port: 8080,
            protocol: Protocol::Http1,
            services: Vec::new(),
            mtls: MtlsMode::default(),
            access: None,
            server: Some(ServerPolicy { rate_limits: vec![limit], concurrency: Some(concurrency) }),
        }
    }

    #[test]
    fn what_was_counted_outlives_configurations_for_a_while() {
        let (limits, now) = (LimitStates::default(), Instant::now());
        let first = limits.apply(&[port(1)], now)[0].clone().unwrap();
        let decide = |limits: &PortLimits| limits.rates[0].rate.decide(now, 1, Priority::Default);
        for _ in 0..10 {
            assert!(matches!(decide(&first), RateDecision::Admit(_)));
        }
        let second = limits.apply(&[port(2)], now)[0].clone().unwrap();
        assert!(matches!(decide(&second), RateDecision::Refuse { .. }));
        let shown = limits.show(now);
        assert_eq!(shown[0]["rateLimits"][0]["requests"], 2);
        assert_eq!(shown[0]["rateLimits"][0]["refused"], 1);
        assert_eq!(shown[0]["concurrency"]["limit"], 5);
        let mut text = Exposition::default();
        limits.expose(&mut text);
        let text = text.into_text();
        let line = "outrigger_rate_limit_requests_total\
                    {service=\"unknown\",port=\"8080\",limit=\"all\",decision=\"admitted\"} 10";
        assert!(text.contains(line), "{text}");

        assert_eq!(limits.apply(&[], now).len(), 0);
        assert_eq!(limits.show(now), json!([]));
        let third = limits.apply(&[port(1)], now + KEEP / 2)[0].clone().unwrap();
        assert!(Arc::ptr_eq(&third.rates[0].rate, &first.rates[0].rate));
        limits.apply(&[], now + KEEP);
        let fourth = limits.apply(&[port(1)], now + KEEP * 2)[0].clone().unwrap();
        assert!(!Arc::ptr_eq(&fourth.rates[0].rate, &first.rates[0].rate));
    }
}
