//! Policies as people write them: every bound of every kind, and what a wrong one disturbs.

use std::collections::BTreeSet;
use std::fs;
use std::sync::Arc;

use outrigger_control_plane::index::Index;
use outrigger_control_plane::metrics::Metrics;
use outrigger_control_plane::problems::Problems;
use outrigger_control_plane::publish::Publisher;
use outrigger_control_plane::source::manifests::Folder;
use outrigger_control_plane::status;
use outrigger_control_plane::translate::{destination, inbound};
use outrigger_core::config::MeshSettings;
use outrigger_core::policy::access::Action;
use outrigger_core::policy::section::{self, Scope};
use outrigger_proto::{convert, wire};
use serde_json::Value;
use tempfile::TempDir;

use crate::manifests::SECTIONS;
use crate::support::{LOOPBACK, Mesh};

/// A folder of manifests and what was made of it.
struct Reading {
    folder: TempDir,
    publisher: Publisher,
    problems: Arc<Problems>,
    reader: Folder,
}

impl Reading {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let problems = Arc::new(Problems::default());
        let path = folder.path().to_owned();
        let reader = Folder::new(path, LOOPBACK, problems.clone(), Arc::new(Metrics::new()));
        let publisher = Publisher::new(Index::new(MeshSettings::default()));
        Self { folder, publisher, problems, reader }
    }

    fn write(&mut self, file: &str, text: &str) {
        fs::write(self.folder.path().join(file), text).unwrap();
        self.reader.scan(&self.publisher).unwrap();
    }

    /// `field: problem` of everything that is wrong.
    fn problems(&self) -> Vec<String> {
        let problems = self.problems.all();
        problems.into_iter().map(|p| format!("{}: {}", p.field, p.problem)).collect()
    }

    fn deadline(&self, service: &str) -> Option<u128> {
        let name = format!("bank/{service}:80").parse().unwrap();
        let view = self.publisher.view();
        let deadline = destination::build(&view.index, &name).unwrap().call.deadline;
        deadline.map(|deadline| deadline.as_millis())
    }

    fn overridden(&self, policy: &str) -> Vec<String> {
        let view = self.publisher.view();
        let statuses = status::objects(&view, &[]);
        let status = statuses.into_iter().find(|s| s.object.to_string() == policy).unwrap();
        assert!(status.accepted.status);
        status.overridden
    }
}

fn object(kind: &str, name: &str, spec: &str) -> String {
    let version = match kind {
        "HTTPRoute" => "gateway.networking.k8s.io/v1",
        "Service" => "v1",
        _ => "outrigger.dev/v1alpha1",
    };
    let meta = format!("{{namespace: bank, name: {name}}}");
    format!("---\napiVersion: {version}\nkind: {kind}\nmetadata: {meta}\nspec: {spec}\n")
}

fn service(name: &str) -> String {
    object(
        "Service",
        name,
        &format!("{{selector: {{app: {name}}}, ports: [{{port: 80, name: http}}]}}"),
    )
}

const ORDERS: &str = "targetRefs: [{kind: Service, name: orders}]";

/// Each case is one wrong object and the one error that it must make.
fn check(kind: &str, cases: &[(&str, &str)]) {
    for (spec, want) in cases {
        let mut reading = Reading::new();
        reading.write("a.yaml", &object(kind, "p", &format!("{{{spec}}}")));
        let problems = reading.problems();
        assert_eq!(problems.len(), 1, "{spec}: {problems:?}");
        assert!(problems[0].starts_with(&format!("spec{want}")), "{spec}: {problems:?}");
    }
}

fn with_orders<'a>(cases: &[(&'a str, &'a str)]) -> Vec<(String, &'a str)> {
    cases.iter().map(|(spec, want)| (format!("{ORDERS}, {spec}"), *want)).collect()
}

fn check_sections(kind: &str, cases: &[(&str, &str)]) {
    let cases = with_orders(cases);
    let cases: Vec<_> = cases.iter().map(|(spec, want)| (spec.as_str(), *want)).collect();
    check(kind, &cases);
}

#[test]
fn every_bound_of_a_traffic_policy() {
    check_sections(
        "TrafficPolicy",
        &[
            ("deadline: 2", ".deadline: must be "),
            ("healthCheck: {}", ".healthCheck: needs exactly one of http, grpc and tcp"),
            (
                "healthCheck: {tcp: {}, grpc: {}}",
                ".healthCheck: needs exactly one of http, grpc and tcp",
            ),
            ("healthCheck: {http: {}}", ".healthCheck.http.path: is missing"),
            (
                "healthCheck: {http: {path: healthz}}",
                ".healthCheck.http.path: \"healthz\" must begin with \"/\"",
            ),
            (
                "healthCheck: {grpc: {service: 'a b'}}",
                ".healthCheck.grpc.service: is not the name of a gRPC service of at most 256 bytes",
            ),
            ("healthCheck: {tcp: {port: 1}}", ".healthCheck.tcp.port: unknown field"),
            (
                "healthCheck: {tcp: {}, interval: 99ms}",
                ".healthCheck.interval: 99ms must be between 100ms and 600s",
            ),
            (
                "healthCheck: {tcp: {}, timeout: 61s}",
                ".healthCheck.timeout: 61s must be between 10ms and 60s",
            ),
            (
                "healthCheck: {tcp: {}, unhealthyAfter: 0}",
                ".healthCheck.unhealthyAfter: 0 must be between 1 and 100",
            ),
            (
                "healthCheck: {tcp: {}, healthyAfter: 101}",
                ".healthCheck.healthyAfter: 101 must be between 1 and 100",
            ),
            ("healthCheck: {tcp: {}, path: /}", ".healthCheck.path: unknown field"),
            ("slowStart: {}", ".slowStart.window: is missing"),
            ("slowStart: {window: 999ms}", ".slowStart.window: 999ms must be between 1s and 3600s"),
            ("slowStart: {window: 1s, aggression: 1}", ".slowStart.aggression: unknown field"),
            ("panicThreshold: 101", ".panicThreshold: 101 must be between 0 and 100"),
            (
                "zonePreference: {minHealthyPercent: 0}",
                ".zonePreference.minHealthyPercent: 0 must be between 1 and 100",
            ),
            ("zonePreference: {zones: 1}", ".zonePreference.zones: unknown field"),
            ("deadline: 1.5s", ".deadline: \"1.5s\" is not a duration"),
            ("deadline: 25h", ".deadline: 90000s must be between 1ms and 86400s"),
            ("timeouts: {}", ".timeouts: is empty"),
            ("timeouts: {connect: 0s}", ".timeouts.connect: 0ns must be between 1ms and 86400s"),
            ("timeouts: {firstByte: 0s}", ".timeouts.firstByte: 0ns must be between"),
            ("timeouts: {idle: 25h}", ".timeouts.idle: 90000s must be between"),
            ("timeouts: {attempt: x}", ".timeouts.attempt: \"x\" is not a duration"),
            ("timeouts: {read: 1s}", ".timeouts.read: unknown field"),
            ("retries: {maxAttempts: 0}", ".retries.maxAttempts: 0 must be between 1 and 10"),
            ("retries: {maxAttempts: 11}", ".retries.maxAttempts: 11 must be between 1 and 10"),
            ("retries: {maxAttempts: -1}", ".retries.maxAttempts: must be "),
            ("retries: {maxAttempts: 1, nonIdempotent: true}", ".retries.maxAttempts: is 1"),
            (
                "retries: {maxReplayBytes: 1048577}",
                ".retries.maxReplayBytes: 1048577 must be between",
            ),
            ("retries: {attempts: 3}", ".retries.attempts: unknown field"),
            (
                "retries: {when: {statuses: [503, 404]}}",
                ".retries.when.statuses[1]: 404 is not 429",
            ),
            ("retries: {when: {statuses: [600]}}", ".retries.when.statuses[0]: 600 is not 429"),
            ("retries: {when: {grpc: [OK]}}", ".retries.when.grpc[0]: \"OK\" must be "),
            ("retries: {when: {connect: true}}", ".retries.when.connect: unknown field"),
            (
                "retries: {backoff: {base: 0s}}",
                ".retries.backoff.base: 0ns must be between 1ms and 60s",
            ),
            (
                "retries: {backoff: {base: 1s, max: 61s}}",
                ".retries.backoff.max: 61s must be between",
            ),
            (
                "retries: {backoff: {base: 2s, max: 1s}}",
                ".retries.backoff.max: 1s is less than base",
            ),
            ("retries: {backoff: {base: 1s, jitter: Some}}", ".retries.backoff.jitter: \""),
            ("retries: {backoff: {max: 1s}}", ".retries.backoff.base: is missing"),
            ("retryBudget: {percent: 101}", ".retryBudget.percent: 101 must be between 0 and 100"),
            (
                "retryBudget: {minPerSecond: 1001}",
                ".retryBudget.minPerSecond: 1001 must be between",
            ),
            ("retryBudget: {ratio: 1}", ".retryBudget.ratio: unknown field"),
            ("breaker: {}", ".breaker: needs consecutiveFailures, failureRate or both"),
            (
                "breaker: {consecutiveFailures: 0}",
                ".breaker.consecutiveFailures: 0 must be between 1",
            ),
            (
                "breaker: {failureRate: {percent: 0}}",
                ".breaker.failureRate.percent: 0 must be between",
            ),
            ("breaker: {failureRate: {percent: 101}}", ".breaker.failureRate.percent: 101 must be"),
            (
                "breaker: {failureRate: {percent: 50, window: 301s}}",
                ".breaker.failureRate.window: 301s must be between 1s and 300s",
            ),
            (
                "breaker: {failureRate: {percent: 50, window: 1500ms}}",
                ".breaker.failureRate.window: 1.5s is not in whole seconds",
            ),
            (
                "breaker: {failureRate: {percent: 50, minRequests: 0}}",
                ".breaker.failureRate.minRequests: 0 must be between",
            ),
            (
                "breaker: {consecutiveFailures: 5, trials: 0}",
                ".breaker.trials: 0 must be between 1 and",
            ),
            (
                "breaker: {consecutiveFailures: 5, trials: 101}",
                ".breaker.trials: 101 must be between",
            ),
            ("breaker: {consecutiveFailures: 5, open: {}}", ".breaker.open: is empty"),
            (
                "sessionPersistence: {sessionName: 'a b'}",
                ".sessionPersistence.sessionName: \"a b\" is not a valid name of a cookie",
            ),
            (
                "sessionPersistence: {type: Header, sessionName: connection}",
                ".sessionPersistence.sessionName: ",
            ),
            (
                "sessionPersistence: {type: Header, absoluteTimeout: 1h}",
                ".sessionPersistence.absoluteTimeout: is for cookies",
            ),
            (
                "breaker: {consecutiveFailures: 5, open: {fixed: 99ms}}",
                ".breaker.open.fixed: 99ms must be between 100ms and 3600s",
            ),
            (
                "breaker: {consecutiveFailures: 5, open: {base: 2h}}",
                ".breaker.open.base: 7200s must be between",
            ),
            (
                "breaker: {consecutiveFailures: 5, open: {max: 2h}}",
                ".breaker.open.max: 7200s must be between",
            ),
            (
                "breaker: {consecutiveFailures: 5, open: {base: 2s, max: 1s}}",
                ".breaker.open.max: 1s is less than base, which is 2s",
            ),
            (
                "breaker: {consecutiveFailures: 5, open: {fixed: 1s, max: 2s}}",
                ".breaker.open: sets both fixed and a growing time",
            ),
            ("breaker: {threshold: 5}", ".breaker.threshold: unknown field"),
            (
                "outlierEjection: {}",
                ".outlierEjection: needs consecutiveFailures, failureRate or both",
            ),
            (
                "outlierEjection: {consecutiveFailures: 1000001}",
                ".outlierEjection.consecutiveFailures: 1000001 must be between",
            ),
            (
                "outlierEjection: {failureRate: {percent: 0}}",
                ".outlierEjection.failureRate.percent: 0 must be between",
            ),
            (
                "outlierEjection: {consecutiveFailures: 5, baseEjection: 1ms}",
                ".outlierEjection.baseEjection: 1ms must be between 100ms and 3600s",
            ),
            (
                "outlierEjection: {consecutiveFailures: 5, maxEjection: 2h}",
                ".outlierEjection.maxEjection: 7200s must be between",
            ),
            (
                "outlierEjection: {consecutiveFailures: 5, maxEjection: 1s}",
                ".outlierEjection.maxEjection: 1s is less than baseEjection, which is 30s",
            ),
            (
                "outlierEjection: {consecutiveFailures: 5, maxEjectedPercent: 0}",
                ".outlierEjection.maxEjectedPercent: 0 must be between 1 and 100",
            ),
            ("outlierEjection: {interval: 1s}", ".outlierEjection.interval: unknown field"),
            ("limits: {}", ".limits: is empty"),
            ("limits: {maxInFlight: 0}", ".limits.maxInFlight: 0 must be between 1 and 1000000"),
            ("limits: {maxPending: 5}", ".limits.maxPending: has no effect without maxInFlight"),
            (
                "limits: {maxInFlight: 1, maxPending: 1000001}",
                ".limits.maxPending: 1000001 must be between",
            ),
            (
                "limits: {maxInFlightPerEndpoint: 0}",
                ".limits.maxInFlightPerEndpoint: 0 must be between",
            ),
            ("limits: {maxConnections: 1}", ".limits.maxConnections: unknown field"),
            ("priority: High", ".priority: \"High\" must be "),
            ("maxVisits: 0", ".maxVisits: 0 must be between 1 and 32"),
            ("maxVisits: 33", ".maxVisits: 33 must be between 1 and 32"),
            ("streaming: maybe", ".streaming: must be "),
            ("fallbacks: []", ".fallbacks: is empty"),
            (
                &format!("fallbacks: [{}]", ["{static: {}}"; 9].join(", ")),
                ".fallbacks: has 9 items, at most 8 are allowed",
            ),
            ("fallbacks: [{}]", ".fallbacks[0]: needs one of"),
            ("fallbacks: [{static: {}, route: {path: /}}]", ".fallbacks[0]: has more than one of"),
            ("fallbacks: [{when: [], static: {}}]", ".fallbacks[0].when: is empty"),
            ("fallbacks: [{when: [Down], static: {}}]", ".fallbacks[0].when[0]: \""),
            ("fallbacks: [{static: {status: 199}}]", ".fallbacks[0].static.status: 199 is not"),
            ("fallbacks: [{static: {status: 600}}]", ".fallbacks[0].static.status: 600 is not"),
            (
                "fallbacks: [{static: {contentType: json}}]",
                ".fallbacks[0].static.contentType: \"json\" is not a media type",
            ),
            (
                &format!("fallbacks: [{{static: {{body: {}}}}}]", "x".repeat(8_193)),
                ".fallbacks[0].static.body: has 8193 bytes, at most 8192 are allowed",
            ),
            ("fallbacks: [{static: {code: 1}}]", ".fallbacks[0].static.code: unknown field"),
            ("fallbacks: [{route: {path: x}}]", ".fallbacks[0].route.path: \"x\" must begin with"),
            (
                &format!("fallbacks: [{{route: {{path: /{}}}}}]", "x".repeat(1_024)),
                ".fallbacks[0].route.path: has more than 1024 bytes",
            ),
            ("fallbacks: [{route: {path: '/a#b'}}]", ".fallbacks[0].route.path: \"/a#b\" is not"),
            (
                "fallbacks: [{backend: {name: a, port: 0}}]",
                ".fallbacks[0].backend.port: 0 must be between 1 and 65535",
            ),
            (
                "fallbacks: [{backend: {name: A, port: 1}}]",
                ".fallbacks[0].backend.name: \"A\" must be",
            ),
            (
                "fallbacks: [{backend: {kind: ExternalService, name: a, port: 1}}]",
                ".fallbacks[0].backend.kind: \"ExternalService\" of group \"\" is not Service",
            ),
            ("fallbacks: [{backend: {name: a}}]", ".fallbacks[0].backend.port: is missing"),
            ("fallbacks: [{cached: {a: 1}}]", ".fallbacks[0].cached.a: unknown field"),
            ("hedge: {}", ".hedge: needs after or afterP95"),
            ("hedge: {after: 1s, afterP95: {}}", ".hedge: has both after and afterP95"),
            ("hedge: {after: 0s}", ".hedge.after: 0ns must be between 1ms and 60s"),
            ("hedge: {after: 61s}", ".hedge.after: 61s must be between"),
            ("hedge: {afterP95: {min: 0s}}", ".hedge.afterP95.min: 0ns must be between"),
            ("hedge: {afterP95: {max: 1s}}", ".hedge.afterP95.max: unknown field"),
            ("cache: {}", ".cache.ttl: is missing"),
            ("cache: {ttl: soon}", ".cache.ttl: \"soon\" is not a duration"),
            ("cache: {ttl: 25h}", ".cache.ttl: 90000s must be between 0ns and 86400s"),
            ("cache: {ttl: 0s}", ".cache: stores nothing"),
            ("cache: {ttl: 1s, staleOnError: 25h}", ".cache.staleOnError: 90000s must be between"),
            ("cache: {ttl: 1s, maxEntryBytes: 0}", ".cache.maxEntryBytes: 0 must be between 1 and"),
            (
                "cache: {ttl: 1s, maxEntryBytes: 1048577}",
                ".cache.maxEntryBytes: 1048577 must be between",
            ),
            ("cache: {ttl: 1s, vary: x}", ".cache.vary: unknown field"),
            ("hedging: {}", ".hedging: unknown field"),
        ],
    );
}

#[test]
fn every_bound_of_a_server_policy() {
    let limits = |limits: &str| format!("rateLimits: [{limits}]");
    let many: Vec<_> =
        (0..17).map(|i| format!("{{name: l{i}, requests: 1, period: 1s}}")).collect();
    let cases: Vec<(String, &str)> = vec![
        (limits("{requests: 1, period: 1s}"), ".rateLimits[0].name: is missing"),
        (limits("{name: All, requests: 1, period: 1s}"), ".rateLimits[0].name: \"All\" must be"),
        (
            limits("{name: a, requests: 1, period: 1s}, {name: a, requests: 1, period: 1s}"),
            ".rateLimits[1].name: \"a\" is the name of another limit",
        ),
        (limits(&many.join(", ")), ".rateLimits: has 17 items, at most 16 are allowed"),
        (
            limits("{name: a, requests: 0, period: 1s}"),
            ".rateLimits[0].requests: 0 must be between",
        ),
        (limits("{name: a, requests: 1, period: 999ms}"), ".rateLimits[0].period: 999ms must be"),
        (limits("{name: a, requests: 1, period: 61m}"), ".rateLimits[0].period: 3660s must be"),
        (
            limits("{name: a, requests: 1, period: 1s, burst: 0}"),
            ".rateLimits[0].burst: 0 must be between",
        ),
        (
            limits("{name: a, requests: 1, period: 1s, strategy: Fair}"),
            ".rateLimits[0].strategy: \"Fair\" must be ",
        ),
        (
            limits("{name: a, requests: 1, period: 1s, key: {path: {}}}"),
            ".rateLimits[0].key: has no effect with this strategy",
        ),
        (
            limits("{name: a, requests: 1, period: 1s, strategy: PerKey, key: {header: a b}}"),
            ".rateLimits[0].key.header: \"a b\" is not a header name",
        ),
        (
            limits("{name: a, requests: 1, period: 1s, strategy: PerKey, key: {query: a}}"),
            ".rateLimits[0].key",
        ),
        (
            limits("{name: a, requests: 1, period: 1s, unit: x}"),
            ".rateLimits[0].unit: unknown field",
        ),
        ("concurrency: {}".to_owned(), ".concurrency: needs static or adaptive"),
        (
            "concurrency: {static: 1, adaptive: {algorithm: Gradient}}".to_owned(),
            ".concurrency: has both static and adaptive",
        ),
        ("concurrency: {static: 0}".to_owned(), ".concurrency.static: 0 must be between"),
        (
            "concurrency: {static: 1, maxQueue: 100001}".to_owned(),
            ".concurrency.maxQueue: 100001 must be between 0 and 100000",
        ),
        (
            "concurrency: {static: 1, maxWait: 11s}".to_owned(),
            ".concurrency.maxWait: 11s must be between 0ns and 10s",
        ),
        (
            "concurrency: {adaptive: {algorithm: Vegas}}".to_owned(),
            ".concurrency.adaptive.algorithm: \"Vegas\" must be ",
        ),
        (
            "concurrency: {adaptive: {algorithm: Gradient, latency: 1s}}".to_owned(),
            ".concurrency.adaptive.latency: has no effect with Gradient",
        ),
        (
            "concurrency: {adaptive: {algorithm: Aimd}}".to_owned(),
            ".concurrency.adaptive.latency: must be set for Aimd",
        ),
        (
            "concurrency: {adaptive: {algorithm: Aimd, latency: 61s}}".to_owned(),
            ".concurrency.adaptive.latency: 61s must be between",
        ),
        (
            "concurrency: {adaptive: {algorithm: Gradient, min: 0}}".to_owned(),
            ".concurrency.adaptive.min: 0 must be between",
        ),
        (
            "concurrency: {adaptive: {algorithm: Gradient, max: 1000001}}".to_owned(),
            ".concurrency.adaptive.max: 1000001 must be between",
        ),
        (
            "concurrency: {adaptive: {algorithm: Gradient, min: 5, max: 4}}".to_owned(),
            ".concurrency.adaptive.max: 4 is less than min, which is 5",
        ),
        ("concurrency: {static: 1, queue: 1}".to_owned(), ".concurrency.queue: unknown field"),
        ("priority: Critical".to_owned(), ".priority: unknown field"),
    ];
    let cases: Vec<_> = cases.iter().map(|(spec, want)| (spec.as_str(), *want)).collect();
    check_sections("ServerPolicy", &cases);
}

#[test]
fn every_bound_of_a_fault_injection() {
    let soon = "start: 2030-01-01T00:00:00Z, end: 2030-01-01T01:00:00Z";
    let fault = |fault: &str| format!("percent: 1, {soon}, fault: {fault}");
    let with = |rest: &str| format!("percent: 1, {soon}, fault: {{reset: {{}}}}, {rest}");
    let percent = |percent: &str| format!("percent: {percent}, {soon}, fault: {{reset: {{}}}}");
    let times = |times: &str| format!("percent: 1, {times}, fault: {{reset: {{}}}}");
    let many = |item: &str| vec![item; 17].join(", ");
    let edge = "from: {namespace: b}, to: {kind: Service, name: a, port: 80}";
    let guard = |rest: &str| with(&format!("guard: {{{edge}{rest}}}"));
    let cases = [
        (percent("0"), ".percent: 0 must be between 0.01 and 100, with two decimals"),
        (percent("100.01"), ".percent: 100.01 must be between"),
        (percent("0.125"), ".percent: 0.125 must be between"),
        (format!("{soon}, fault: {{reset: {{}}}}"), ".percent: is missing"),
        (format!("percent: 1, {soon}"), ".fault: is missing"),
        (fault("{}"), ".fault: "),
        (fault("{stop: {}}"), ".fault: \"stop\" must be "),
        (fault("{reset: {}, partition: {}}"), ".fault"),
        (fault("{reset: {after: 1s}}"), ".fault.reset.after: unknown field"),
        (fault("{delay: {}}"), ".fault.delay.fixed: is missing"),
        (fault("{delay: {fixed: 0s}}"), ".fault.delay.fixed: 0ns must be between 1ms and 60s"),
        (fault("{delay: {fixed: 61s}}"), ".fault.delay.fixed: 61s must be between"),
        (fault("{delay: {fixed: 1s, jitter: 61s}}"), ".fault.delay.jitter: 61s must be between"),
        (fault("{abort: {status: 399}}"), ".fault.abort.status: 399 must be between 400 and 599"),
        (fault("{abort: {status: 600}}"), ".fault.abort.status: 600 must be between"),
        (fault("{abort: {grpc: OK}}"), ".fault.abort.grpc: \"OK\" must be "),
        (times("end: soon"), ".end: \"soon\" is not a time: write it as in"),
        (times("start: now, end: 2030-01-01T00:00:00Z"), ".start: \"now\" is not a time"),
        (times("end: 2030-01-01T00:00:00Z"), ".end: is more than 24 hours from now"),
        (
            times("start: 2030-01-01T00:00:00Z, end: 2030-01-02T00:00:01Z"),
            ".end: is more than 24 hours from start",
        ),
        (
            times("start: 2030-01-01T00:00:00Z, end: 2030-01-01T00:00:00Z"),
            ".end: is not after start",
        ),
        ("percent: 1, fault: {reset: {}}".to_owned(), ".end: is missing"),
        (
            with("schedule: {every: 500ms, for: 1s}"),
            ".schedule.every: 500ms must be between 1s and 86400s",
        ),
        (with("schedule: {every: 25h, for: 1s}"), ".schedule.every: 90000s must be between"),
        (with("schedule: {every: 2s, for: 0s}"), ".schedule.for: 0ns must be between 1s and"),
        (
            with("schedule: {every: 2s, for: 2s}"),
            ".schedule.for: 2s is not less than every, which is 2s",
        ),
        (with("schedule: {every: 2s}"), ".schedule.for: is missing"),
        (with("from: [{}]"), ".from[0].namespace: is missing"),
        (with("from: [{namespace: A}]"), ".from[0].namespace: \"A\" must be"),
        (
            with("from: [{namespace: a, serviceAccount: B}]"),
            ".from[0].serviceAccount: \"B\" must be",
        ),
        (with(&format!("from: [{}]", many("{namespace: a}"))), ".from: has 17 items, at most 16"),
        (with("matches: [{}]"), ".matches[0]: is empty"),
        (with(&format!("matches: [{}]", many("{method: GET}"))), ".matches: has 17 items, at most"),
        (with("matches: [{method: get}]"), ".matches[0].method: \"get\" is not a method"),
        (with("matches: [{path: {value: a}}]"), ".matches[0].path.value: \"a\" must begin"),
        (
            with("matches: [{path: {type: RegularExpression, value: /}}]"),
            ".matches[0].path.type: \"",
        ),
        (
            with("matches: [{headers: [{name: a b, value: c}]}]"),
            ".matches[0].headers[0].name: \"a b\" is not a valid header name",
        ),
        (
            with(&format!("matches: [{{headers: [{}]}}]", many("{name: a, value: b}"))),
            ".matches[0].headers: has 17 items, at most 16",
        ),
        (with("until: never"), ".until: unknown field"),
        (guard(""), ".guard: needs minSuccessPercent, maxP99 or both"),
        (guard(", minSuccessPercent: 0"), ".guard.minSuccessPercent: 0 must be between 1 and 100"),
        (guard(", maxP99: 0s"), ".guard.maxP99: 0ns must be between 1ms and 60s"),
        (guard(", maxP99: 1s, window: 1500ms"), ".guard.window: 1.5s is not in whole seconds"),
        (guard(", maxP99: 1s, minRequests: 0"), ".guard.minRequests: 0 must be between 1 and"),
        (guard(", maxP99: 1s, at: 1"), ".guard.at: unknown field"),
        (
            guard(", maxP99: 1s").replace("port: 80", "port: 0"),
            ".guard.to.port: 0 must be between 1 and 65535",
        ),
        (guard(", maxP99: 1s").replace("Service, name: a", "Pod, name: a"), ".guard.to.kind: "),
        (
            guard(", maxP99: 1s").replace("{namespace: b}", "{namespace: B}"),
            ".guard.from.namespace: \"B\" must be",
        ),
    ];
    let cases: Vec<_> = cases.iter().map(|(spec, want)| (spec.as_str(), *want)).collect();
    check_sections("FaultInjection", &cases);
}

#[test]
fn every_bound_of_target_refs() {
    let route = "{group: gateway.networking.k8s.io, kind: HTTPRoute, name: r}";
    let many = vec!["{kind: Service, name: a}"; 17].join(", ");
    let cases = [
        (String::new(), ".targetRefs: is missing"),
        ("targetRefs: []".to_owned(), ".targetRefs: is empty"),
        (format!("targetRefs: [{}]", "{kind: Service}"), ".targetRefs[0].name: is missing"),
        ("targetRefs: [{kind: Service, name: A}]".to_owned(), ".targetRefs[0].name: \"A\" must be"),
        ("targetRefs: [{kind: Pod, name: a}]".to_owned(), ".targetRefs[0].kind: \"Pod\" is not"),
        (
            "targetRefs: [{group: apps, kind: Service, name: a}]".to_owned(),
            ".targetRefs[0].group: \"apps\" must be \"\" for Service",
        ),
        (
            "targetRefs: [{kind: Service, name: a, namespace: shop}]".to_owned(),
            ".targetRefs[0].namespace: unknown field",
        ),
        (
            "targetRefs: [{kind: Service, name: a, port: 0}]".to_owned(),
            ".targetRefs[0].port: 0 must be between 1 and 65535",
        ),
        (
            "targetRefs: [{kind: Service, name: a, port: 80, sectionName: http}]".to_owned(),
            ".targetRefs[0].port: cannot be combined with sectionName",
        ),
        (
            "targetRefs: [{kind: Service, name: a, sectionName: ''}]".to_owned(),
            ".targetRefs[0].sectionName: is empty",
        ),
        (
            "targetRefs: [{kind: Namespace, name: shop}]".to_owned(),
            ".targetRefs[0].name: \"shop\" is not the policy's own namespace, bank",
        ),
        (
            "targetRefs: [{kind: Namespace, name: bank, port: 80}]".to_owned(),
            ".targetRefs[0].port: only a Service has ports",
        ),
        (
            "targetRefs: [{kind: Namespace, name: bank, sectionName: a}]".to_owned(),
            ".targetRefs[0].sectionName: a Namespace has no sections",
        ),
        (
            "targetRefs: [{kind: Service, name: a}, {kind: Service, name: a}]".to_owned(),
            ".targetRefs[1]: is a duplicate target",
        ),
    ];
    for kind in ["TrafficPolicy", "ServerPolicy"] {
        let section =
            if kind == "TrafficPolicy" { "maxVisits: 2" } else { "concurrency: {static: 1}" };
        for (spec, want) in &cases {
            let separator = if spec.is_empty() { "" } else { ", " };
            check(kind, &[(&format!("{section}{separator}{spec}"), want)]);
        }
        check(kind, &[(ORDERS, ": has no section")]);
    }
    let external = |rest: &str| format!("maxVisits: 2, targetRefs: [{{{rest}}}]");
    let group = "group: outrigger.dev, kind: ExternalService, name";
    for (target, want) in [
        (
            "kind: ExternalService, name: a".to_owned(),
            ".targetRefs[0].group: \"\" must be \"outrigger.dev\"",
        ),
        (format!("{group}: A"), ".targetRefs[0].name: \"A\" must be"),
        (format!("{group}: a, port: 1"), ".targetRefs[0].port: only a Service has ports"),
        (format!("{group}: a, sectionName: b"), ".targetRefs[0].sectionName: an ExternalService"),
    ] {
        check("TrafficPolicy", &[(&external(&target), want)]);
    }
    check(
        "ServerPolicy",
        &[(
            &format!("concurrency: {{static: 1}}, targetRefs: [{{{group}: a}}]"),
            ".targetRefs[0].kind: \"ExternalService\" is not Service or Namespace",
        )],
    );
    let route = |rest: &str| format!("targetRefs: [{route}], {rest}");
    let of_backends = section::names(Scope::Backend);
    for (section, says) in SECTIONS.iter().filter(|(name, _)| of_backends.contains(name)) {
        let want = format!(".{section}: applies to a service, not to a route");
        check("TrafficPolicy", &[(&route(&format!("{section}: {says}")), &want)]);
    }
    check(
        "ServerPolicy",
        &[(
            &route("concurrency: {static: 1}"),
            ".targetRefs[0].kind: \"HTTPRoute\" is not Service or",
        )],
    );
    let many = format!("targetRefs: [{many}], maxVisits: 2");
    let mut reading = Reading::new();
    reading.write("a.yaml", &object("TrafficPolicy", "p", &format!("{{{many}}}")));
    let wanted = "spec.targetRefs: has 17 items, at most 16 are allowed".to_owned();
    assert!(reading.problems().contains(&wanted));
}

#[test]
fn every_bound_of_a_rule_of_an_http_route() {
    let parents = "parentRefs: [{group: '', kind: Service, name: orders}]";
    for (rule, want) in [
        ("timeouts: {request: x}", "timeouts.request: \"x\" is not a duration"),
        ("timeouts: {request: 25h}", "timeouts.request: 90000s must be between"),
        ("timeouts: {backendRequest: 25h}", "timeouts.backendRequest: 90000s must be between"),
        (
            "timeouts: {request: 1s, backendRequest: 2s}",
            "timeouts.backendRequest: 2s is more than request, which is 1s",
        ),
        ("retry: {attempts: 10}", "retry.attempts: 10 must be between 0 and 9"),
        (
            "filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {add: [{name: Content-Length, value: '1'}]}}]",
            "filters[0].responseHeaderModifier.add[0].name: content-length says how a message is sent",
        ),
        (
            "filters: [{type: RequestHeaderModifier, requestHeaderModifier: {remove: [Transfer-Encoding]}}]",
            "filters[0].requestHeaderModifier.remove[0]: transfer-encoding says how a message is sent",
        ),
        (
            "filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-outrigger-hop, value: '1'}]}}]",
            "filters[0].requestHeaderModifier.set[0].name: x-outrigger-hop is a header of the mesh itself",
        ),
        (
            "filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: Host, value: 'a b'}]}}]",
            "filters[0].requestHeaderModifier.set: \"a b\" is not a host",
        ),
        (
            "filters: [{type: RequestHeaderModifier, requestHeaderModifier: {add: [{name: Host, value: a}]}}]",
            "filters[0].requestHeaderModifier.add: host can only be set",
        ),
        (
            "filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replaceFullPath: '/a?b'}}}]",
            "filters[0].urlRewrite.path.replaceFullPath: \"/a?b\" is not a valid path",
        ),
        (
            "filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: 'a'}}}]",
            "filters[0].urlRewrite.path.replacePrefixMatch: \"a\" must begin with \"/\"",
        ),
        (
            "filters: [{type: CORS, cors: {allowOrigins: ['https://a', 'a']}}]",
            "filters[0].cors.allowOrigins[1]: \"a\" is not an origin",
        ),
        ("retry: {codes: [-36]}", "retry.codes[0]: -36 is not 429 or between 500 and 599"),
        ("retry: {attempts: -1}", "retry.attempts: -1 must be between 0 and 9"),
        ("retry: {codes: [503, 404]}", "retry.codes[1]: 404 is not 429 or between 500 and 599"),
        ("retry: {backoff: 0s}", "retry.backoff: 0ns must be between 1ms and 60s"),
    ] {
        let spec = format!("{parents}, rules: [{{{rule}}}]");
        check("HTTPRoute", &[(&spec, &format!(".rules[0].{want}"))]);
    }
}

#[test]
fn every_bound_of_the_other_kinds() {
    check(
        "AccessPolicy",
        &[
            ("ports: [0]", ".ports[0]: 0 must be between 1 and 65535"),
            ("rules: [{action: Maybe}]", ".rules[0].action: \"Maybe\" must be "),
            ("rules: [{action: Allow, from: [{}]}]", ".rules[0].from[0]: is empty"),
            ("rules: [{action: Allow, to: [{}]}]", ".rules[0].to[0]: is empty"),
            ("rules: [{action: Allow, when: []}]", ".rules[0].when: unknown field"),
            (
                "jwt: [{issuer: i, jwks: {file: k}, clockSkewSeconds: 301}]",
                ".jwt[0].clockSkewSeconds: 301 is more than 300",
            ),
            (
                "rules: [{action: Deny, to: [{headers: [{name: Upgrade}]}]}]",
                ".rules[0].to[0].headers[0].name: upgrade is a hop-by-hop header",
            ),
            (
                "jwt: [{issuer: i, jwks: {file: /etc/keys}}]",
                ".jwt[0].jwks.file: \"/etc/keys\" is not a file in the folder of the manifests",
            ),
            (
                "jwt: [{issuer: i, jwks: {file: a/../../k}}]",
                ".jwt[0].jwks.file: \"a/../../k\" is not a file in the folder of the manifests",
            ),
            ("jwt: [{issuer: '', jwks: {file: k}}]", ".jwt[0].issuer: is empty"),
        ],
    );
    let sixty_five: Vec<_> = (0..65).map(|i| format!("{{address: 10.0.0.{i}}}")).collect();
    check(
        "ExternalService",
        &[
            ("host: a, port: 0", ".port: 0 must be between 1 and 65535"),
            ("host: '', port: 1", ".host: \"\" is not a host name or IP address"),
            ("host: a, port: 1, path: /", ".path: unknown field"),
            ("port: 1", ".host: is missing"),
            ("host: a", ".port: is missing"),
            ("host: 'a b', port: 1", ".host: \"a b\" is not a host name or IP address"),
            ("host: 'u@a', port: 1", ".host: \"u@a\" is not"),
            ("host: a, port: 65536", ".port: 65536 must be between 1 and 65535"),
            ("host: a, port: 1, protocol: QUIC", ".protocol: \"QUIC\" must be "),
            ("host: a, port: 1, protocol: TLS, tls: {}", ".protocol: is TLS, which means that"),
            ("host: a, port: 1, endpoints: []", ".endpoints: is empty"),
            (
                &format!("host: a, port: 1, endpoints: [{}]", sixty_five.join(", ")),
                ".endpoints: has 65 items, at most 64 are allowed",
            ),
            ("host: a, port: 1, endpoints: [{port: 1}]", ".endpoints[0].address: is missing"),
            (
                "host: a, port: 1, endpoints: [{address: b}]",
                ".endpoints[0].address: \"b\" is not an IP address",
            ),
            (
                "host: a, port: 1, endpoints: [{address: 10.0.0.1, port: 0}]",
                ".endpoints[0].port: 0 must be between 1 and 65535",
            ),
            (
                "host: a, port: 1, endpoints: [{address: 10.0.0.1, port: 1}, {address: 10.0.0.1}]",
                ".endpoints[1]: is a duplicate endpoint",
            ),
            (
                "host: a, port: 1, endpoints: [{address: 10.0.0.1, weight: 1}]",
                ".endpoints[0].weight: unknown field",
            ),
            (
                "host: a, port: 1, tls: {caCertificates: x}",
                ".tls.caCertificates: contains no PEM certificate",
            ),
            (
                &format!("host: a, port: 1, tls: {{caCertificates: {}}}", "x".repeat(16_385)),
                ".tls.caCertificates: has 16385 bytes, at most 16384 are allowed",
            ),
            ("host: a, port: 1, tls: {verify: false}", ".tls.verify: unknown field"),
        ],
    );
    check(
        "ExternalWorkload",
        &[
            ("address: nowhere", ".address: "),
            (
                "address: 10.0.0.1, ports: [{port: 0}]",
                ".ports[0].port: 0 must be between 1 and 65535",
            ),
        ],
    );
}

#[test]
fn a_wrong_policy_disturbs_no_other_and_its_last_good_version_stays() {
    let mut reading = Reading::new();
    let policy = |name: &str, time: &str| {
        let spec = format!("{{targetRefs: [{{kind: Service, name: {name}}}], deadline: {time}}}");
        object("TrafficPolicy", name, &spec)
    };
    reading.write("services.yaml", &format!("{}{}", service("orders"), service("quotes")));
    reading.write("a.yaml", &format!("{}{}", policy("orders", "1s"), policy("quotes", "2s")));
    assert_eq!((reading.deadline("orders"), reading.deadline("quotes")), (Some(1000), Some(2000)));
    // In one file and in different ones.
    reading.write("a.yaml", &format!("{}{}", policy("orders", "soon"), policy("quotes", "3s")));
    assert_eq!((reading.deadline("orders"), reading.deadline("quotes")), (Some(1000), Some(3000)));
    assert_eq!(reading.problems().len(), 1);
    let view = reading.publisher.view();
    let statuses = status::objects(&view, &reading.problems.all());
    let accepted: Vec<_> =
        statuses.iter().map(|s| (s.object.to_string(), s.accepted.status)).collect();
    let wanted = [
        ("TrafficPolicy bank/orders".to_owned(), false),
        ("TrafficPolicy bank/quotes".to_owned(), true),
    ];
    assert_eq!(accepted, wanted);
    drop(view);
    reading.write("a.yaml", &policy("quotes", "3s"));
    assert_eq!((reading.deadline("orders"), reading.deadline("quotes")), (None, Some(3000)));
}

/// Anyone who may make Services could else fill what a workload is sent, and so keep rules from it.
#[test]
fn a_port_is_told_of_some_of_the_services_that_select_it_and_not_of_thousands() {
    let mut reading = Reading::new();
    let ports: Vec<_> =
        (1..=200).map(|n| format!("{{name: p{n}, port: {n}, targetPort: 9000}}")).collect();
    let many = format!("{{selector: {{app: w}}, ports: [{}]}}", ports.join(", "));
    let many = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: many, namespace: bank}}\nspec: {many}\n---\n"
    );
    let workload = "apiVersion: outrigger.dev/v1alpha1\nkind: ExternalWorkload\n\
        metadata: {name: w, namespace: bank, labels: {app: w}}\n\
        spec: {address: 127.0.0.1, ports: [{port: 9000}]}\n---\n";
    let access = "apiVersion: outrigger.dev/v1alpha1\nkind: AccessPolicy\n\
        metadata: {name: all, namespace: bank}\nspec: {default: Deny}\n";
    reading.write("mesh.yaml", &[&many, workload, access].concat());
    assert_eq!(reading.problems(), [""; 0]);
    let view = reading.publisher.view();
    let told = inbound::build(&view.index, "bank.w").unwrap();
    let [port] = &told.ports[..] else { panic!("{} ports", told.ports.len()) };
    assert_eq!(port.services.len(), 16);
    assert_eq!(port.services[0].to_string(), "bank/many:1");
    assert_eq!(port.access.as_ref().map(|access| access.default), Some(Action::Deny));
}

/// Of each section of the table: it changes what proxies are told, arrives whole, requires the feature that it needs
/// and no other, and tells the policy that loses it.
#[test]
fn every_section_reaches_proxies_and_is_decided_by_one_policy() {
    assert!(SECTIONS.iter().map(|(name, _)| *name).eq(section::ALL.iter().map(|of| of.name)));
    let told = |reading: &Reading| {
        let view = reading.publisher.view();
        let destination = destination::build(&view.index, &"bank/orders:80".parse().unwrap());
        (destination.unwrap(), inbound::build(&view.index, "bank.w").unwrap())
    };
    let others = [
        service("orders"),
        object("ExternalWorkload", "w", "{address: 127.0.0.1, ports: [{port: 9000}]}"),
    ]
    .concat();
    for (section, (name, says)) in section::ALL.iter().zip(SECTIONS) {
        let mut reading = Reading::new();
        reading.write("others.yaml", &others);
        let plain = told(&reading);
        let kind = if section.scope == Scope::Port { "ServerPolicy" } else { "TrafficPolicy" };
        let spec = format!("{{targetRefs: [{{kind: Namespace, name: bank}}], {name}: {says}}}");
        reading.write("a.yaml", &object(kind, "a", &spec));
        assert_eq!(reading.problems(), [""; 0], "{name}");
        let (destination, inbound) = told(&reading);
        let changed = (destination != plain.0, inbound != plain.1);
        assert_eq!(changed, (section.scope != Scope::Port, section.scope == Scope::Port), "{name}");
        let wire = convert::destination::to_wire(&destination);
        assert_eq!(convert::destination::from_wire(&wire).as_ref(), Ok(&destination), "{name}");
        let features = section::ALL.iter().filter_map(|section| section.feature);
        let required: BTreeSet<_> =
            features.filter(|f| wire.requires.contains(&(*f).to_owned())).collect();
        assert!(required.into_iter().eq(section.feature), "{name}: {:?}", wire.requires);
        let wire = convert::inbound::to_wire(&inbound);
        assert_eq!(convert::inbound::from_wire(&wire).as_ref(), Ok(&inbound), "{name}");
        reading.write("b.yaml", &object(kind, "b", &spec));
        assert_eq!(reading.overridden(&format!("{kind} bank/a")), [""; 0], "{name}");
        let lost = format!("spec.{name}: overridden by {kind} bank/a (Namespace bank)");
        assert_eq!(reading.overridden(&format!("{kind} bank/b")), [lost]);
    }
}

#[test]
fn what_lost_says_so_and_to_whom() {
    let mut reading = Reading::new();
    let route = object(
        "HTTPRoute",
        "r",
        "{parentRefs: [{group: '', kind: Service, name: orders}], rules: [{name: slow, timeouts: \
         {request: 9s}}, {name: fast, matches: [{path: {value: /fast}}]}]}",
    );
    let policy = |name: &str, target: &str, sections: &str| {
        object("TrafficPolicy", name, &format!("{{targetRefs: [{target}], {sections}}}"))
    };
    let of_route = "group: gateway.networking.k8s.io, kind: HTTPRoute, name: r";
    reading.write(
        "a.yaml",
        &[
            service("orders"),
            route,
            policy(
                "all",
                "{kind: Namespace, name: bank}",
                "deadline: 1s, limits: {maxInFlight: 9}",
            ),
            policy("service", "{kind: Service, name: orders}", "deadline: 2s, maxVisits: 2"),
            policy("younger", "{kind: Service, name: orders}", "deadline: 3s"),
            policy(
                "port",
                "{kind: Service, name: orders, sectionName: http}",
                "limits: {maxInFlight: 5}",
            ),
            policy("route", &format!("{{{of_route}}}"), "deadline: 4s"),
            policy("rule", &format!("{{{of_route}, sectionName: fast}}"), "deadline: 5s"),
        ]
        .concat(),
    );
    assert_eq!(reading.problems(), [""; 0]);
    let view = reading.publisher.view();
    let built = destination::build(&view.index, &"bank/orders:80".parse().unwrap()).unwrap();
    let rules = built.http_routes[0].rules.iter();
    let rules: Vec<_> = rules
        .map(|rule| rule.call.as_ref().unwrap())
        .map(|call| (call.deadline.unwrap().as_secs(), call.max_visits))
        .collect();
    // The rule itself, then the policy for it; what neither says comes from the Service's.
    assert_eq!(rules, [(9, 2), (5, 2)]);
    assert_eq!(built.call.deadline.unwrap().as_secs(), 2);
    assert_eq!(built.policy.limits.max_in_flight, Some(5));
    drop(view);
    let deadline_lost_to_routes = [
        "spec.deadline: overridden by HTTPRoute bank/r (spec.rules[0].timeouts.request)",
        "spec.deadline: overridden by TrafficPolicy bank/rule (HTTPRoute bank/r rule fast)",
    ];
    assert_eq!(reading.overridden("TrafficPolicy bank/route"), deadline_lost_to_routes);
    assert_eq!(reading.overridden("TrafficPolicy bank/service"), deadline_lost_to_routes);
    assert_eq!(
        reading.overridden("TrafficPolicy bank/younger"),
        [
            deadline_lost_to_routes[0],
            deadline_lost_to_routes[1],
            "spec.deadline: overridden by TrafficPolicy bank/service (Service bank/orders)",
        ]
    );
    assert_eq!(
        reading.overridden("TrafficPolicy bank/all"),
        [
            deadline_lost_to_routes[0],
            deadline_lost_to_routes[1],
            "spec.deadline: overridden by TrafficPolicy bank/service (Service bank/orders)",
            "spec.limits: overridden by TrafficPolicy bank/port (Service bank/orders port http)",
        ]
    );
    assert_eq!(reading.overridden("TrafficPolicy bank/rule"), [""; 0]);
    assert_eq!(reading.overridden("TrafficPolicy bank/port"), [""; 0]);
}

#[test]
fn targets_that_do_not_exist_are_named() {
    let mut reading = Reading::new();
    let parents = "parentRefs: [{group: '', kind: Service, name: orders}]";
    let routes = "group: gateway.networking.k8s.io, kind";
    reading.write(
        "a.yaml",
        &[
            service("orders"),
            object("HTTPRoute", "r", &format!("{{{parents}, rules: [{{name: a}}]}}")),
            object(
                "TrafficPolicy",
                "p",
                &format!(
                    "{{targetRefs: [{{kind: Service, name: gone}}, {{kind: Service, name: orders, \
                 sectionName: grpc}}, {{kind: Service, name: orders, port: 81}}, {{{routes}: \
                 GRPCRoute, name: r}}, {{{routes}: HTTPRoute, name: r, sectionName: b}}, \
                 {{{routes}: HTTPRoute, name: r, sectionName: a}}], deadline: 1s}}"
                ),
            ),
        ]
        .concat(),
    );
    assert_eq!(reading.problems(), [""; 0]);
    let view = reading.publisher.view();
    assert_eq!(
        crate::support::unresolved_lines(&view.index),
        [
            "TrafficPolicy bank/p: spec.targetRefs[0].name: there is no Service bank/gone",
            "TrafficPolicy bank/p: spec.targetRefs[1].sectionName: Service bank/orders has no port \"grpc\"",
            "TrafficPolicy bank/p: spec.targetRefs[2].port: Service bank/orders has no port 81",
            "TrafficPolicy bank/p: spec.targetRefs[3].name: there is no GRPCRoute bank/r",
            "TrafficPolicy bank/p: spec.targetRefs[4].sectionName: HTTPRoute bank/r has no rule \"b\"",
        ]
    );
}

#[tokio::test]
async fn policies_say_how_many_proxies_have_them() {
    let workload = "---\napiVersion: outrigger.dev/v1alpha1\nkind: ExternalWorkload\nmetadata: \
                    {namespace: bank, name: orders-1, labels: {app: orders}}\nspec: {address: \
                    10.0.0.1, ports: [{port: 80}]}\n";
    let policies = |limit: u32| {
        let calls = format!("{{{ORDERS}, deadline: 1s, limits: {{maxInFlight: {limit}}}}}");
        let lets_in = format!("{{{ORDERS}, concurrency: {{static: {limit}}}}}");
        object("TrafficPolicy", "calls", &calls) + &object("ServerPolicy", "lets-in", &lets_in)
    };
    let services = service("orders") + workload;
    let mesh = Mesh::start(&[("a.yaml", &services), ("p.yaml", &policies(1))]).await;
    let programmed = |page: &Value, policy: &str| {
        let all = page["status"].as_array().unwrap().iter();
        all.clone().find(|status| status["object"] == policy).unwrap()["programmed"].clone()
    };
    let (calls, lets_in) = ("TrafficPolicy bank/calls", "ServerPolicy bank/lets-in");
    let page = mesh.admin_json("/index").await;
    assert_eq!(
        (&programmed(&page, calls)["proxies"], &programmed(&page, lets_in)["proxies"]),
        (&Value::from(0), &Value::from(0))
    );
    let mut proxy = mesh.proxy("bank.orders-1", "bank").await;
    proxy.dial(&["orders.bank:80"]).await;
    proxy.subscribe(wire::INBOUND, &["bank.orders-1"]).await;
    let both = |p: &crate::support::Proxy| {
        p.has("Destination", "bank/orders:80") && p.has("Inbound", "bank.orders-1")
    };
    proxy.until("both are known", both).await;
    let done = |page: &Value| {
        [calls, lets_in].iter().all(|policy| programmed(page, policy)["acknowledged"] == 1)
    };
    mesh.admin_until("/index", done).await;
    // What the proxy refuses is told to the policy that changed it, and to no other.
    proxy.refuse = Some("bank.orders-1".to_owned());
    let before = proxy.log.len();
    mesh.write("p.yaml", &policies(2));
    proxy.until("both came anew", |p| p.log.len() >= before + 2).await;
    let page =
        mesh.admin_until("/index", |page| programmed(page, lets_in)["refused"].is_array()).await;
    assert_eq!(programmed(&page, lets_in)["acknowledged"], 0);
    mesh.admin_until("/index", |page| programmed(page, calls)["acknowledged"] == 1).await;
    assert!(programmed(&mesh.admin_json("/index").await, calls)["refused"].is_null());
}

#[test]
fn an_experiment_is_stopped_by_its_watcher_only_and_begins_anew_with_another_spec() {
    use outrigger_control_plane::object::stopped::Stopped;
    use outrigger_core::policy::fault::FaultSource;
    let mut reading = Reading::new();
    let experiment = |percent: u32| {
        let guard = "guard: {from: {namespace: shop, serviceAccount: web}, to: {kind: Service, \
                     name: quotes, port: 80}, minSuccessPercent: 95}";
        let times = "start: 2030-01-01T00:00:00Z, end: 2030-01-01T01:00:00Z";
        let fault = format!("percent: {percent}, {times}, fault: {{reset: {{}}}}");
        object("FaultInjection", "slow", &format!("{{{ORDERS}, {fault}, {guard}}}"))
    };
    let services = format!("{}{}", service("orders"), service("quotes"));
    reading.write("services.yaml", &services);
    reading.write("slow.yaml", &experiment(1));
    let policy = |reading: &Reading, service: &str| {
        let name = format!("bank/{service}:80").parse().unwrap();
        destination::build(&reading.publisher.view().index, &name).unwrap().policy
    };
    let state = |reading: &Reading| {
        (policy(reading, "orders").faults.len(), policy(reading, "quotes").stop_rules.len())
    };
    assert_eq!(state(&reading), (1, 1));
    let stop = |reading: &Reading, account: &str, version: &str| {
        let service_account = Some(account.to_owned());
        let by = FaultSource { namespace: "shop".to_owned(), service_account };
        let (version, by_name, why) = (version.to_owned(), by.to_string(), "x".to_owned());
        let stopped = Stopped { version, since: 1, by: by_name, why };
        reading.publisher.commit(|index| index.stop_experiment("bank/slow", &by, stopped)).0
    };
    let version = policy(&reading, "orders").faults[0].version.to_string();
    let refused = stop(&reading, "other", &version).unwrap_err();
    assert_eq!(refused, "shop/other is not whose calls the guard of bank/slow watches");
    assert_eq!(stop(&reading, "web", "earlier"), Ok(false), "another spec");
    assert_eq!(state(&reading), (1, 1));
    assert_eq!(stop(&reading, "web", &version), Ok(true));
    assert_eq!(stop(&reading, "web", &version), Ok(false), "once more");
    assert_eq!(state(&reading), (0, 0));
    let statuses = status::objects(&reading.publisher.view(), &[]);
    let stopped = statuses.iter().find_map(|status| status.stopped.as_ref()).unwrap();
    assert_eq!((stopped.by.as_str(), stopped.why.as_str()), ("shop/web", "x"));
    // Read again as it is, it stays stopped; another spec runs, and so does one that comes back.
    reading.write("other.yaml", &service("other"));
    assert_eq!(state(&reading), (0, 0));
    reading.write("slow.yaml", &experiment(2));
    assert_eq!(state(&reading), (1, 1));
    assert!(reading.publisher.view().index.stops().is_empty());
}

/// Every example that people may copy.
#[test]
fn the_examples_of_the_documentation_are_accepted() {
    let text =
        [include_str!("../../../docs/resilience.md"), include_str!("../../../docs/external.md")]
            .join("\n");
    // Fault injections are for a time to come, whenever this is read.
    let text = text.replace("2026-11-22", "2126-11-22");
    let mut examples = 0;
    let blocks = text.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next());
    for block in blocks {
        let whole = if block.starts_with("apiVersion") {
            block.to_owned()
        } else {
            let kind = match block.trim_start().starts_with("concurrency") {
                true => "ServerPolicy",
                false => "TrafficPolicy",
            };
            format!(
                "apiVersion: outrigger.dev/v1alpha1\nkind: {kind}\n\
                 metadata: {{name: p, namespace: bank}}\nspec:\n  {ORDERS}\n{block}"
            )
        };
        let mut reading = Reading::new();
        reading.write("a.yaml", &whole);
        assert_eq!(reading.problems(), Vec::<String>::new(), "{block}");
        examples += 1;
    }
    assert!(examples > 10, "{examples}");
}

#[test]
fn fallbacks_to_other_services_are_resolved_and_follow_what_becomes_of_them() {
    let mut reading = Reading::new();
    reading.write("services.yaml", &service("orders"));
    let spec = format!(
        "{{{ORDERS}, fallbacks: [{{backend: {{name: backup, port: 80}}}}, \
         {{backend: {{name: spare, namespace: shop, port: 80}}}}]}}"
    );
    reading.write("policy.yaml", &object("TrafficPolicy", "p", &spec));
    assert_eq!(reading.problems(), Vec::<String>::new());
    let backends = |reading: &Reading| {
        let view = reading.publisher.view();
        let name = "bank/orders:80".parse().unwrap();
        let destination = destination::build(&view.index, &name).unwrap();
        let backends: Vec<_> = destination.backends.iter().map(|b| b.name.to_string()).collect();
        (backends, status::objects(&view, &[]).remove(0).resolved_refs.problems)
    };
    let (names, problems) = backends(&reading);
    assert_eq!(names, Vec::<String>::new());
    assert_eq!(
        problems,
        [
            "spec.fallbacks[0].backend.name: there is no Service bank/backup",
            "spec.fallbacks[1].backend.namespace: no ReferenceGrant in namespace shop lets a \
             TrafficPolicy of namespace bank send to Service spare",
        ]
    );
    reading.write("backup.yaml", &service("backup"));
    let shop = service("spare").replace("namespace: bank", "namespace: shop");
    let grant = "---\napiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\n\
        metadata: {name: g, namespace: shop}\nspec:\n  \
        from: [{group: outrigger.dev, kind: TrafficPolicy, namespace: bank}]\n  \
        to: [{group: '', kind: Service}]\n";
    reading.write("shop.yaml", &format!("{shop}{grant}"));
    assert_eq!(reading.problems(), Vec::<String>::new());
    let (names, problems) = backends(&reading);
    assert_eq!(names, ["bank/backup:80", "shop/spare:80"]);
    assert_eq!(problems, Vec::<String>::new());
}
