//! Any policy, for round trips; and each bound that is checked again when a policy is read.

use std::ops::RangeInclusive;
use std::time::{Duration, UNIX_EPOCH};

use http::{HeaderValue, Method};

use outrigger_core::config::{BackendTarget, Inbound, InboundPort, MtlsMode, Protocol};
use outrigger_core::policy::breaker::{BreakerConfig, FailureRate, OpenTime};
use outrigger_core::policy::budget::BudgetConfig;
use outrigger_core::policy::cache::CacheConfig;
use outrigger_core::policy::concurrency::{Algorithm, ConcurrencyConfig, Limit};
use outrigger_core::policy::fallback::{Class, Classes, Fallback, Give, Static};
use outrigger_core::policy::fault::{self, Fault};
use outrigger_core::policy::health::{HealthConfig, HealthProbe};
use outrigger_core::policy::hedge::HedgeConfig;
use outrigger_core::policy::limits::LimitsConfig;
use outrigger_core::policy::outlier::OutlierConfig;
use outrigger_core::policy::preference::PreferenceConfig;
use outrigger_core::policy::priority::Priority;
use outrigger_core::policy::rate_limit::{Key, RateLimitConfig, Strategy as Hits};
use outrigger_core::policy::retry::{Backoff, Jitter, RetryConfig, RetryOn};
use outrigger_core::policy::session::SessionConfig;
use outrigger_core::policy::stop::StopRule;
use outrigger_core::policy::timeouts::Timeouts;
use outrigger_core::policy::{BackendPolicy, CallPolicy, ServerPolicy};
use outrigger_proto::convert::{destination, inbound};
use outrigger_proto::mesh;
use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::*;
use proptest::sample::select;

use crate::{any_header_name, plain_destination};

pub(crate) fn any_call() -> impl Strategy<Value = CallPolicy> {
    let timeout = || of(millis(1..=86_400_000));
    let timeouts = (timeout(), timeout(), timeout(), timeout()).prop_map(
        |(connect, first_byte, idle, attempt)| Timeouts { connect, first_byte, idle, attempt },
    );
    let priority = select(&[Priority::Sheddable, Priority::Default, Priority::Critical][..]);
    let faults = vec(any_fault(), 0..3);
    let hedge = (any::<bool>(), millis(1..=60_000)).prop_map(|(fixed, time)| match fixed {
        true => HedgeConfig::After(time),
        false => HedgeConfig::AfterP95 { min: time },
    });
    let cache = (millis(1..=86_400_000), millis(0..=86_400_000), 1u32..=1 << 20).prop_map(
        |(ttl, stale_on_error, max_entry_bytes)| CacheConfig {
            ttl,
            stale_on_error,
            max_entry_bytes,
        },
    );
    let more = (vec(any_fallback(), 0..3), faults, of(cache), of(hedge));
    (timeout(), any::<bool>(), timeouts, any_retries(), of(priority), 1u8..=32, more).prop_map(
        |(deadline, streaming, timeouts, retries, priority, max_visits, more)| CallPolicy {
            deadline,
            streaming,
            timeouts,
            retries,
            priority,
            max_visits,
            hedge: more.3,
            cache: more.2,
            fallbacks: more.0,
            faults: more.1,
        },
    )
}

fn any_fallback() -> impl Strategy<Value = Fallback> {
    let classes = proptest::sample::subsequence(Class::ALL.to_vec(), 1..=4);
    let status = (200u16..=599).prop_map(|code| code.try_into().unwrap());
    let kind = of("[a-z]{1,5}/[a-z]{1,5}").prop_map(|kind| kind.map(|k| k.parse().unwrap()));
    let fixed = (status, kind, ".{0,20}").prop_map(|(status, content_type, body)| {
        Give::Static(Static { status, content_type, body })
    });
    let give = prop_oneof![
        Just(Give::Cached),
        "[a-z]{1,9}".prop_map(|why| Give::Backend(BackendTarget::Invalid(why))),
        "/[a-z]{0,9}(\\?[a-z]=[a-z])?".prop_map(|path| Give::Route(path.parse().unwrap())),
        fixed,
    ];
    (classes, give).prop_map(|(when, give)| Fallback { when: Classes::of(&when), give })
}

fn any_retries() -> impl Strategy<Value = RetryConfig> {
    let status = select(&[429u16, 500, 503, 599][..]).prop_map(|code| code.try_into().unwrap());
    let on = (vec(status, 0..4), vec(1u8..=16, 0..4), any::<bool>(), any::<bool>())
        .prop_map(|(statuses, grpc, reset, timeout)| RetryOn { statuses, grpc, reset, timeout });
    let jitter = select(&[Jitter::Full, Jitter::Additive, Jitter::Decorrelated][..]);
    let backoff = (ascending(1..=60_000), jitter).prop_map(|((base, max), jitter)| Backoff {
        base,
        max,
        jitter,
    });
    (1u8..=10, on, any::<bool>(), of(backoff), 0u32..=1_048_576).prop_map(
        |(max_attempts, on, non_idempotent, backoff, max_replay_bytes)| RetryConfig {
            max_attempts,
            on,
            non_idempotent,
            backoff,
            max_replay_bytes,
        },
    )
}

pub(crate) fn any_backend_policy() -> impl Strategy<Value = BackendPolicy> {
    let budget = (0u8..=100, 0u16..=1_000)
        .prop_map(|(percent, min_per_second)| BudgetConfig { percent, min_per_second });
    let open = prop_oneof![
        millis(100..=3_600_000).prop_map(OpenTime::Fixed),
        ascending(100..=3_600_000).prop_map(|(base, max)| OpenTime::Backoff { base, max }),
    ];
    let breaker = (any_trouble(), open, 1u32..=100).prop_map(|((failures, rate), open, trials)| {
        BreakerConfig { consecutive_failures: failures, failure_rate: rate, open, trials }
    });
    let outlier = (any_trouble(), ascending(100..=3_600_000), 1u8..=100).prop_map(
        |((failures, rate), (base, max), percent)| OutlierConfig {
            consecutive_failures: failures,
            failure_rate: rate,
            base_ejection: base,
            max_ejection: max,
            max_ejected_percent: percent,
        },
    );
    let limit = || of(1u32..=1_000_000);
    let limits =
        (of((1u32..=1_000_000, limit())), limit()).prop_map(|(service, endpoint)| LimitsConfig {
            max_in_flight: service.map(|(in_flight, _)| in_flight),
            max_pending: service.and_then(|(_, pending)| pending),
            max_in_flight_per_endpoint: endpoint,
        });
    let faults = (vec(any_fault(), 0..3), vec(any_stop_rule(), 0..3));
    let preference = (of(millis(1_000..=3_600_000)), of(0u8..=100), of(1u8..=100)).prop_map(
        |(slow_start, panic_threshold, min_healthy_percent)| PreferenceConfig {
            slow_start,
            panic_threshold,
            min_healthy_percent,
        },
    );
    let avoids = (of(breaker), of(outlier));
    let chooses = (preference, of(any_session()));
    (budget, avoids, limits, of(any_health()), chooses, faults).prop_map(
        |(
            budget,
            (breaker, outlier),
            limits,
            health,
            (preference, session),
            (faults, stop_rules),
        )| {
            BackendPolicy {
                session,
                budget,
                breaker,
                outlier,
                limits,
                health,
                preference,
                faults,
                stop_rules,
            }
        },
    )
}

fn any_session() -> impl Strategy<Value = SessionConfig> {
    let lifetime = of((1u64..=400 * 86_400).prop_map(Duration::from_secs));
    prop_oneof![
        ("[A-Za-z_.-]{1,20}", lifetime)
            .prop_map(|(name, lifetime)| SessionConfig::Cookie { name, lifetime }),
        "x-[a-z]{1,20}".prop_map(|name| SessionConfig::Header(name.parse().unwrap())),
    ]
}

fn any_health() -> impl Strategy<Value = HealthConfig> {
    let probe = prop_oneof![
        Just(HealthProbe::Http("/healthz?full=1".parse().unwrap())),
        "[a-z.]{0,20}".prop_map(HealthProbe::Grpc),
        Just(HealthProbe::Tcp),
    ];
    (probe, millis(100..=600_000), millis(10..=60_000), 1u8..=100, 1u8..=100).prop_map(
        |(probe, interval, timeout, unhealthy_after, healthy_after)| HealthConfig {
            probe,
            interval,
            timeout,
            unhealthy_after,
            healthy_after,
        },
    )
}

fn any_stop_rule() -> impl Strategy<Value = StopRule> {
    let condition = prop_oneof![
        (1u8..=100).prop_map(|percent| (Some(percent), None)),
        millis(1..=60_000).prop_map(|p99| (None, Some(p99))),
    ];
    let end = (0u64..=1 << 42).prop_map(|ms| UNIX_EPOCH + Duration::from_millis(ms));
    (condition, 1u64..=300, 1u32..=1_000_000, end).prop_map(
        |((min_success_percent, max_p99), window, min_requests, end)| StopRule {
            min_success_percent,
            max_p99,
            window: Duration::from_secs(window),
            min_requests,
            times: fault::Times { start: None, end, schedule: None },
            ..plain_stop_rule()
        },
    )
}

fn plain_stop_rule() -> StopRule {
    StopRule {
        name: "bank/f".into(),
        version: "1".into(),
        from: fault::FaultSource { namespace: "bank".to_owned(), service_account: None },
        min_success_percent: Some(95),
        max_p99: None,
        window: Duration::from_secs(10),
        min_requests: 20,
        times: fault::Times { start: None, end: UNIX_EPOCH, schedule: None },
    }
}

fn any_fault() -> impl Strategy<Value = Fault> {
    let status =
        select(&[400u16, 404, 429, 503, 599][..]).prop_map(|code| code.try_into().unwrap());
    let kind = prop_oneof![
        (millis(1..=60_000), millis(0..=60_000))
            .prop_map(|(fixed, jitter)| fault::FaultAction::Delay { fixed, jitter }),
        status.prop_map(fault::FaultAction::Abort),
        (1u8..=16).prop_map(fault::FaultAction::AbortGrpc),
        Just(fault::FaultAction::Reset),
        Just(fault::FaultAction::Partition),
    ];
    let time = || (0u64..=1 << 42).prop_map(|ms| UNIX_EPOCH + Duration::from_millis(ms));
    let schedule = (millis(2_000..=86_400_000), millis(1_000..=1_999))
        .prop_map(|(every, length)| fault::Schedule { every, length });
    let times = (of(time()), time(), of(schedule))
        .prop_map(|(start, end, schedule)| fault::Times { start, end, schedule });
    let caller = of(Just("a.b".to_owned())).prop_map(|service_account| fault::FaultSource {
        namespace: "bank".to_owned(),
        service_account,
    });
    let path = prop_oneof![
        Just(fault::FaultPath::Exact("/a".to_owned())),
        Just(fault::FaultPath::Prefix("/".to_owned())),
    ];
    let header = any_header_name().prop_map(|name| (name, HeaderValue::from_static("x")));
    let one = (of(Just(Method::GET)), of(path), vec(header, 0..3))
        .prop_map(|(method, path, headers)| fault::RequestMatch { method, path, headers });
    (vec(caller, 0..3), vec(one, 0..3), 1u16..=10_000, kind, times, any::<i64>()).prop_map(
        |(from, matches, share, kind, times, created)| Fault {
            name: "bank/f".into(),
            version: "1".into(),
            created,
            from,
            matches,
            share,
            kind,
            times,
        },
    )
}

/// One of the two at least.
fn any_trouble() -> impl Strategy<Value = (Option<u32>, Option<FailureRate>)> {
    let rate = || {
        (1u8..=100, 1u64..=300, 1u32..=1_000_000).prop_map(|(percent, window, min_requests)| {
            FailureRate { percent, window: Duration::from_secs(window), min_requests }
        })
    };
    let failures = || 1u32..=1_000_000;
    prop_oneof![
        failures().prop_map(|failures| (Some(failures), None)),
        rate().prop_map(|rate| (None, Some(rate))),
        (failures(), rate()).prop_map(|(failures, rate)| (Some(failures), Some(rate))),
    ]
}

pub(crate) fn any_server() -> impl Strategy<Value = ServerPolicy> {
    use Hits::{LowPriorityFirst, PerKey, UncommonFirst, Volume};
    let key =
        prop_oneof![Just(Key::Caller), Just(Key::Path), any_header_name().prop_map(Key::Header),];
    let strategy = select(&[Volume, LowPriorityFirst, UncommonFirst, PerKey][..]);
    let count = || 1u32..=1_000_000;
    let limit = (count(), millis(1_000..=3_600_000), count(), strategy, key).prop_map(
        |(requests, period, burst, strategy, key)| RateLimitConfig {
            name: String::new(),
            requests,
            period,
            burst,
            strategy,
            key,
        },
    );
    let limits = vec(limit, 0..4).prop_map(|mut limits| {
        for (i, limit) in limits.iter_mut().enumerate() {
            limit.name = format!("limit-{i}");
        }
        limits
    });
    let algorithm = prop_oneof![
        Just(Algorithm::Gradient),
        millis(1..=60_000).prop_map(|latency| Algorithm::Aimd { latency }),
    ];
    let range = (count(), count()).prop_map(|(a, b)| (a.min(b), a.max(b)));
    let limit = prop_oneof![
        count().prop_map(Limit::Static),
        (algorithm, range)
            .prop_map(|(algorithm, (min, max))| { Limit::Adaptive { algorithm, min, max } }),
    ];
    let concurrency = (limit, 0u32..=100_000, millis(0..=10_000))
        .prop_map(|(limit, max_queue, max_wait)| ConcurrencyConfig { limit, max_queue, max_wait });
    (limits, of(concurrency))
        .prop_map(|(rate_limits, concurrency)| ServerPolicy { rate_limits, concurrency })
}

fn millis(range: RangeInclusive<u64>) -> impl Strategy<Value = Duration> {
    range.prop_map(Duration::from_millis)
}

/// Two durations, the shorter one first.
fn ascending(range: RangeInclusive<u64>) -> impl Strategy<Value = (Duration, Duration)> {
    (millis(range.clone()), millis(range)).prop_map(|(a, b)| (a.min(b), a.max(b)))
}

#[test]
fn what_a_call_must_not_say_is_refused_with_its_path() {
    use mesh::fallback::Give;
    use mesh::hedge::Delay;
    type Change = fn(&mut mesh::CallPolicy);
    fn retries(wire: &mut mesh::CallPolicy) -> &mut mesh::Retries {
        wire.retries.as_mut().unwrap()
    }
    fn backoff(wire: &mut mesh::CallPolicy) -> &mut mesh::Backoff {
        retries(wire).backoff.get_or_insert(mesh::Backoff { base: 1, max: 1, jitter: 1 })
    }
    fn timeouts(wire: &mut mesh::CallPolicy) -> &mut mesh::Timeouts {
        wire.timeouts.as_mut().unwrap()
    }
    fn cache(wire: &mut mesh::CallPolicy) -> &mut mesh::Cache {
        let cache = mesh::Cache { ttl: 1, stale_on_error: 0, max_entry_bytes: 1 };
        wire.cache.insert(cache)
    }
    fn fallback(wire: &mut mesh::CallPolicy) -> &mut mesh::Fallback {
        let fixed = mesh::StaticAnswer { status: 200, ..mesh::StaticAnswer::default() };
        wire.fallbacks = vec![mesh::Fallback { when: vec![], give: Some(Give::Static(fixed)) }];
        &mut wire.fallbacks[0]
    }
    fn fixed(wire: &mut mesh::CallPolicy) -> &mut mesh::StaticAnswer {
        match fallback(wire).give.as_mut() {
            Some(Give::Static(answer)) => answer,
            _ => unreachable!("made above"),
        }
    }
    let unset = "is not set, or set to something that this build does not know";
    let cases: &[(Change, &str)] = &[
        (|w| w.deadline = Some(0), "deadline: 0ns must be between 1ms and 86400s"),
        (|w| w.deadline = Some(u32::MAX), "deadline: 4294967.295s must be between 1ms and 86400s"),
        (|w| w.timeouts = None, &format!("timeouts: {unset}")),
        (|w| timeouts(w).connect = Some(0), "timeouts.connect: 0ns must be between 1ms and 86400s"),
        (
            |w| timeouts(w).first_byte = Some(0),
            "timeouts.first_byte: 0ns must be between 1ms and 86400s",
        ),
        (|w| timeouts(w).idle = Some(0), "timeouts.idle: 0ns must be between 1ms and 86400s"),
        (|w| timeouts(w).attempt = Some(0), "timeouts.attempt: 0ns must be between 1ms and 86400s"),
        (|w| w.retries = None, &format!("retries: {unset}")),
        (|w| retries(w).max_attempts = 0, "retries.max_attempts: 0 must be between 1 and 10"),
        (|w| retries(w).max_attempts = 300, "retries.max_attempts: 300 must be between 1 and 10"),
        (
            |w| retries(w).statuses = vec![503, 404],
            "retries.statuses[1]: 404 is not 429 or between 500 and 599",
        ),
        (
            |w| retries(w).statuses = vec![503; 102],
            "retries.statuses: has 102 items, at most 101 are allowed",
        ),
        (|w| retries(w).grpc = vec![14, 0], "retries.grpc[1]: 0 must be between 1 and 16"),
        (|w| retries(w).grpc = vec![1; 17], "retries.grpc: has 17 items, at most 16 are allowed"),
        (
            |w| retries(w).max_replay_bytes = 1 << 21,
            "retries.max_replay_bytes: 2097152 must be between 0 and 1048576",
        ),
        (|w| backoff(w).base = 0, "retries.backoff.base: 0ns must be between 1ms and 60s"),
        (|w| backoff(w).max = 60_001, "retries.backoff.max: 60.001s must be between 1ms and 60s"),
        (|w| backoff(w).base = 2, "retries.backoff.max: 1ms is less than base, which is 2ms"),
        (|w| backoff(w).jitter = 0, "retries.backoff.jitter: 0 is not a known jitter"),
        (|w| backoff(w).jitter = 9, "retries.backoff.jitter: 9 is not a known jitter"),
        (|w| w.priority = Some(0), "priority: 0 is not a known priority"),
        (|w| w.priority = Some(9), "priority: 9 is not a known priority"),
        (|w| w.max_visits = 0, "max_visits: 0 must be between 1 and 32"),
        (
            |w| w.fallbacks = vec![mesh::Fallback::default(); 9],
            "fallbacks: has 9 items, at most 8 are allowed",
        ),
        (|w| w.fallbacks = vec![mesh::Fallback::default()], &format!("fallbacks[0].give: {unset}")),
        (
            |w| fallback(w).when = vec![1, 0],
            "fallbacks[0].when[1]: 0 is not a known class of failures",
        ),
        (|w| cache(w).ttl = 86_400_001, "cache.ttl: 86400.001s must be between 0ns and 86400s"),
        (
            |w| cache(w).stale_on_error = u32::MAX,
            "cache.stale_on_error: 4294967.295s must be between 0ns and 86400s",
        ),
        (
            |w| cache(w).max_entry_bytes = 0,
            "cache.max_entry_bytes: 0 must be between 1 and 1048576",
        ),
        (|w| cache(w).ttl = 0, "cache: stores nothing: ttl and staleOnError are both 0"),
        (
            |w| w.hedge = Some(mesh::Hedge { delay: Some(Delay::After(0)) }),
            "hedge.after: 0ns must be between 1ms and 60s",
        ),
        (
            |w| w.hedge = Some(mesh::Hedge { delay: Some(Delay::AfterP95(60_001)) }),
            "hedge.after_p95: 60.001s must be between 1ms and 60s",
        ),
        (|w| w.hedge = Some(mesh::Hedge { delay: None }), &format!("hedge: {unset}")),
        (|w| fixed(w).status = 100, "fallbacks[0].static.status: 100 is not between 200 and 599"),
        (
            |w| fixed(w).content_type = "json".to_owned(),
            "fallbacks[0].static.content_type: \"json\" is not a media type",
        ),
        (
            |w| fixed(w).body = "x".repeat(8_193),
            "fallbacks[0].static.body: has 8193 bytes, at most 8192 are allowed",
        ),
        (
            |w| fallback(w).give = Some(Give::Path("prices".to_owned())),
            "fallbacks[0].path: \"prices\" must begin with \"/\"",
        ),
        (
            |w| fallback(w).give = Some(Give::Backend(mesh::Target { kind: None })),
            &format!("fallbacks[0].backend.target: {unset}"),
        ),
    ];
    for (change, want) in cases {
        let mut config = plain_destination();
        config.call.max_visits = 2;
        let mut wire = destination::to_wire(&config);
        change(wire.call.as_mut().unwrap());
        let error = destination::from_wire(&wire).unwrap_err();
        assert_eq!(error.to_string(), format!("call.{want}"));
    }
}

#[test]
fn what_a_backend_policy_must_not_say_is_refused_with_its_path() {
    type Change = fn(&mut mesh::BackendPolicy);
    fn breaker(wire: &mut mesh::BackendPolicy) -> &mut mesh::Breaker {
        wire.breaker.as_mut().unwrap()
    }
    fn outlier(wire: &mut mesh::BackendPolicy) -> &mut mesh::Outlier {
        wire.outlier.as_mut().unwrap()
    }
    fn rate(wire: &mut mesh::BackendPolicy) -> &mut mesh::FailureRate {
        breaker(wire).failure_rate.as_mut().unwrap()
    }
    fn limits(wire: &mut mesh::BackendPolicy) -> &mut mesh::Limits {
        wire.limits.as_mut().unwrap()
    }
    fn health(wire: &mut mesh::BackendPolicy) -> &mut mesh::HealthCheck {
        wire.health.as_mut().unwrap()
    }
    let unset = "is not set, or set to something that this build does not know";
    let neither = "needs consecutiveFailures, failureRate or both";
    let cases: &[(Change, &str)] = &[
        (|w| w.budget = None, &format!("budget: {unset}")),
        (|w| w.limits = None, &format!("limits: {unset}")),
        (
            |w| w.budget.as_mut().unwrap().percent = 101,
            "budget.percent: 101 must be between 0 and 100",
        ),
        (
            |w| w.budget.as_mut().unwrap().min_per_second = 1_001,
            "budget.min_per_second: 1001 must be between 0 and 1000",
        ),
        (|w| breaker(w).open = None, &format!("breaker.open: {unset}")),
        (
            |w| breaker(w).open = Some(mesh::breaker::Open::Fixed(0)),
            "breaker.open.fixed: 0ns must be between 100ms and 3600s",
        ),
        (
            |w| {
                let time = mesh::GrowingTime { base: 200, max: 100 };
                breaker(w).open = Some(mesh::breaker::Open::Growing(time));
            },
            "breaker.open.max: 100ms is less than base, which is 200ms",
        ),
        (|w| breaker(w).trials = 0, "breaker.trials: 0 must be between 1 and 100"),
        (
            |w| breaker(w).consecutive_failures = Some(0),
            "breaker.consecutive_failures: 0 must be between 1 and 1000000",
        ),
        (|w| breaker(w).failure_rate = None, &format!("breaker: {neither}")),
        (|w| rate(w).percent = 0, "breaker.failure_rate.percent: 0 must be between 1 and 100"),
        (|w| rate(w).window = 1_500, "breaker.failure_rate.window: 1.5s is not in whole seconds"),
        (
            |w| rate(w).window = 301_000,
            "breaker.failure_rate.window: 301s must be between 1s and 300s",
        ),
        (
            |w| rate(w).min_requests = 0,
            "breaker.failure_rate.min_requests: 0 must be between 1 and 1000000",
        ),
        (|w| outlier(w).consecutive_failures = None, &format!("outlier: {neither}")),
        (
            |w| outlier(w).base_ejection = 99,
            "outlier.base_ejection: 99ms must be between 100ms and 3600s",
        ),
        (
            |w| outlier(w).max_ejection = 3_600_001,
            "outlier.max_ejection: 3600.001s must be between 100ms and 3600s",
        ),
        (
            |w| outlier(w).max_ejection = 100,
            "outlier.maxEjection: 100ms is less than baseEjection, which is 200ms",
        ),
        (
            |w| outlier(w).max_ejected_percent = 0,
            "outlier.max_ejected_percent: 0 must be between 1 and 100",
        ),
        (
            |w| limits(w).max_in_flight = Some(0),
            "limits.max_in_flight: 0 must be between 1 and 1000000",
        ),
        (|w| health(w).probe = None, &format!("health.probe: {unset}")),
        (
            |w| health(w).probe = Some(mesh::health_check::Probe::HttpPath("x".to_owned())),
            "health.probe.http_path: \"x\" must begin with \"/\"",
        ),
        (
            |w| health(w).probe = Some(mesh::health_check::Probe::GrpcService("a b".to_owned())),
            "health.probe.grpc_service: is not the name of a gRPC service of at most 256 bytes",
        ),
        (|w| health(w).interval = 99, "health.interval: 99ms must be between 100ms and 600s"),
        (|w| health(w).timeout = 9, "health.timeout: 9ms must be between 10ms and 60s"),
        (|w| health(w).unhealthy_after = 0, "health.unhealthy_after: 0 must be between 1 and 100"),
        (|w| health(w).healthy_after = 101, "health.healthy_after: 101 must be between 1 and 100"),
        (|w| w.slow_start = Some(999), "slow_start: 999ms must be between 1s and 3600s"),
        (|w| w.panic_threshold = Some(101), "panic_threshold: 101 must be between 0 and 100"),
        (|w| w.zones = Some(0), "zones: 0 must be between 1 and 100"),
        (
            |w| limits(w).max_pending = Some(1),
            "limits.maxPending: has no effect without maxInFlight",
        ),
        (
            |w| limits(w).max_in_flight_per_endpoint = Some(0),
            "limits.max_in_flight_per_endpoint: 0 must be between 1 and 1000000",
        ),
    ];
    let rate = FailureRate { percent: 50, window: Duration::from_secs(10), min_requests: 20 };
    for (change, want) in cases {
        let mut config = plain_destination();
        let time = Duration::from_millis(200);
        let open = OpenTime::Fixed(time);
        let failure_rate = Some(rate);
        config.policy.breaker =
            Some(BreakerConfig { consecutive_failures: None, failure_rate, open, trials: 1 });
        config.policy.outlier = Some(OutlierConfig {
            consecutive_failures: Some(5),
            failure_rate: None,
            base_ejection: time,
            max_ejection: time,
            max_ejected_percent: 50,
        });
        config.policy.health = Some(HealthConfig {
            probe: HealthProbe::Tcp,
            interval: time,
            timeout: time,
            unhealthy_after: 1,
            healthy_after: 1,
        });
        let mut wire = destination::to_wire(&config);
        change(wire.policy.as_mut().unwrap());
        let error = destination::from_wire(&wire).unwrap_err();
        assert_eq!(error.to_string(), format!("policy.{want}"));
    }
}

#[test]
fn what_a_fault_must_not_say_is_refused_with_its_path() {
    use mesh::fault::Kind as Wire;
    type Change = fn(&mut mesh::Fault);
    let unset = "is not set, or set to something that this build does not know";
    let cases: &[(Change, &str)] = &[
        (|w| w.share = 0, "share: 0 must be between 1 and 10000"),
        (|w| w.share = 10_001, "share: 10001 must be between 1 and 10000"),
        (|w| w.kind = None, &format!("kind: {unset}")),
        (
            |w| w.kind = Some(Wire::Delay(mesh::FaultDelay { fixed: 0, jitter: 0 })),
            "delay.fixed: 0ns must be between 1ms and 60s",
        ),
        (
            |w| w.kind = Some(Wire::Delay(mesh::FaultDelay { fixed: 1, jitter: 60_001 })),
            "delay.jitter: 60.001s must be between 0ns and 60s",
        ),
        (
            |w| w.kind = Some(Wire::AbortStatus(399)),
            "abort_status: 399 must be between 400 and 599",
        ),
        (|w| w.kind = Some(Wire::AbortGrpc(0)), "abort_grpc: 0 must be between 1 and 16"),
        (
            |w| w.schedule = Some(mesh::FaultSchedule { every: 999, length: 1_000 }),
            "schedule.every: 999ms must be between 1s and 86400s",
        ),
        (
            |w| w.schedule = Some(mesh::FaultSchedule { every: 1_000, length: 1_000 }),
            "schedule.for: 1s is not less than every, which is 1s",
        ),
        (|w| w.from = vec![mesh::FaultCaller::default()], "from[0].namespace: \"\" must be"),
        (|w| w.from = vec![mesh::FaultCaller::default(); 17], "from: has 17 items, at most 16"),
        (
            |w| w.matches = vec![mesh::FaultMatch::default(); 17],
            "matches: has 17 items, at most 16",
        ),
        (
            |w| {
                let header = mesh::Header { name: "a b".to_owned(), ..Default::default() };
                w.matches = vec![mesh::FaultMatch { headers: vec![header], ..Default::default() }];
            },
            "matches[0].headers[0].name: \"a b\": invalid HTTP header name",
        ),
    ];
    for (change, want) in cases {
        let mut config = plain_destination();
        config.policy.faults = vec![plain_fault()];
        let mut wire = destination::to_wire(&config);
        assert_eq!(wire.requires, ["faults.v1", "policy.v1"]);
        change(&mut wire.policy.as_mut().unwrap().faults[0]);
        let error = destination::from_wire(&wire).unwrap_err().to_string();
        assert!(error.starts_with(&format!("policy.faults[0].{want}")), "{error}");
        let faults = &mut wire.policy.as_mut().unwrap().faults;
        *faults = vec![faults[0].clone(); 17];
        let error = destination::from_wire(&wire).unwrap_err().to_string();
        assert_eq!(error, "policy.faults: has 17 items, at most 16 are allowed");
    }
}

#[test]
fn what_a_stop_rule_must_not_say_is_refused_with_its_path() {
    type Change = fn(&mut mesh::StopRule);
    let cases: &[(Change, &str)] = &[
        (|w| w.from = None, "from: is not set"),
        (|w| w.from = Some(mesh::FaultCaller::default()), "from.namespace: \"\" must be"),
        (|w| w.min_success_percent = None, " needs minSuccessPercent, maxP99 or both"),
        (|w| w.min_success_percent = Some(0), "min_success_percent: 0 must be between 1 and 100"),
        (|w| w.max_p99 = Some(0), "max_p99: 0ns must be between 1ms and 60s"),
        (|w| w.window = 1_500, "window: 1.5s is not in whole seconds"),
        (|w| w.min_requests = 0, "min_requests: 0 must be between 1 and 1000000"),
    ];
    for (change, want) in cases {
        let mut config = plain_destination();
        config.policy.stop_rules = vec![plain_stop_rule()];
        let mut wire = destination::to_wire(&config);
        assert_eq!(wire.requires, ["faults.v1", "policy.v1"]);
        change(&mut wire.policy.as_mut().unwrap().stop_rules[0]);
        let error = destination::from_wire(&wire).unwrap_err().to_string().replace("]: n", "]. n");
        assert!(error.starts_with(&format!("policy.stop_rules[0].{want}")), "{error}");
    }
}

pub(crate) fn plain_fault() -> Fault {
    Fault {
        name: "bank/f".into(),
        version: "1".into(),
        created: 0,
        from: Vec::new(),
        matches: Vec::new(),
        share: 1,
        kind: fault::FaultAction::Reset,
        times: fault::Times { start: None, end: UNIX_EPOCH, schedule: None },
    }
}

#[test]
fn what_a_server_policy_must_not_say_is_refused_with_its_path() {
    use mesh::adaptive_limit::Algorithm as Wired;
    type Change = fn(&mut mesh::ServerPolicy);
    fn adaptive(wire: &mut mesh::ServerPolicy, algorithm: Option<Wired>, min: u32, max: u32) {
        let limit = mesh::AdaptiveLimit { algorithm, min, max };
        let limit = Some(mesh::concurrency::Limit::Adaptive(limit));
        wire.concurrency.as_mut().unwrap().limit = limit;
    }
    let unset = "is not set, or set to something that this build does not know";
    let cases: &[(Change, &str)] = &[
        (
            |w| w.rate_limits[0].requests = 0,
            "rate_limits[0].requests: 0 must be between 1 and 1000000",
        ),
        (|w| w.rate_limits[0].burst = 0, "rate_limits[0].burst: 0 must be between 1 and 1000000"),
        (
            |w| w.rate_limits[0].period = 999,
            "rate_limits[0].period: 999ms must be between 1s and 3600s",
        ),
        (|w| w.rate_limits[0].strategy = 0, "rate_limits[0].strategy: 0 is not a known strategy"),
        (|w| w.rate_limits[0].strategy = 5, "rate_limits[0].strategy: 5 is not a known strategy"),
        (|w| w.rate_limits[0].key = None, &format!("rate_limits[0].key: {unset}")),
        (
            |w| w.rate_limits[0].key = Some(mesh::LimitKey { kind: None }),
            &format!("rate_limits[0].key: {unset}"),
        ),
        (
            |w| {
                let kind = Some(mesh::limit_key::Kind::Header("a b".to_owned()));
                w.rate_limits[0].key = Some(mesh::LimitKey { kind });
            },
            "rate_limits[0].key.header: \"a b\": invalid HTTP header name",
        ),
        (
            |w| w.rate_limits.push(w.rate_limits[0].clone()),
            "rateLimits[1].name: \"all\" is the name of another limit",
        ),
        (
            |w| w.rate_limits = vec![w.rate_limits[0].clone(); 17],
            "rateLimits: has 17 items, at most 16 are allowed",
        ),
        (|w| w.concurrency.as_mut().unwrap().limit = None, &format!("concurrency.limit: {unset}")),
        (
            |w| w.concurrency.as_mut().unwrap().max_queue = 100_001,
            "concurrency.max_queue: 100001 must be between 0 and 100000",
        ),
        (
            |w| w.concurrency.as_mut().unwrap().max_wait = 10_001,
            "concurrency.max_wait: 10.001s must be between 0ns and 10s",
        ),
        (
            |w| w.concurrency.as_mut().unwrap().limit = Some(mesh::concurrency::Limit::Fixed(0)),
            "concurrency.fixed: 0 must be between 1 and 1000000",
        ),
        (|w| adaptive(w, None, 1, 1), &format!("concurrency.adaptive.algorithm: {unset}")),
        (
            |w| adaptive(w, Some(Wired::Aimd(0)), 1, 1),
            "concurrency.adaptive.aimd: 0ns must be between 1ms and 60s",
        ),
        (
            |w| adaptive(w, Some(Wired::Gradient(mesh::Unit {})), 0, 1),
            "concurrency.adaptive.min: 0 must be between 1 and 1000000",
        ),
        (
            |w| adaptive(w, Some(Wired::Gradient(mesh::Unit {})), 2, 1),
            "concurrency.adaptive.max: 1 is less than min, which is 2",
        ),
    ];
    for (change, want) in cases {
        let mut wire = inbound::to_wire(&Inbound {
            workload: "w".to_owned(),
            addresses: Vec::new(),
            ports: vec![limited_port()],
        });
        change(wire.ports[0].server.as_mut().unwrap());
        let error = inbound::from_wire(&wire).unwrap_err();
        assert_eq!(error.to_string(), format!("ports[0].server.{want}"));
    }
}

fn limited_port() -> InboundPort {
    let limit = RateLimitConfig {
        name: "all".to_owned(),
        requests: 1,
        period: Duration::from_secs(1),
        burst: 1,
        strategy: Hits::Volume,
        key: Key::Caller,
    };
    let max_wait = Duration::ZERO;
    let concurrency = ConcurrencyConfig { limit: Limit::Static(1), max_queue: 0, max_wait };
    InboundPort {
        port: 80,
        protocol: Protocol::Http1,
        services: Vec::new(),
        mtls: MtlsMode::Permissive,
        access: None,
        server: Some(ServerPolicy { rate_limits: vec![limit], concurrency: Some(concurrency) }),
    }
}
