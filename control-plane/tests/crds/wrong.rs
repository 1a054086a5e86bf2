//! Wrong objects: at least one for each kind of bound and for each rule, with the field that a refusal must name.

use outrigger_core::policy::section::{self, Scope};
use regex::Regex;
use serde_json::{Value, json};

use crate::CRDS;
use crate::manifests::SECTIONS;

/// What refuses an object.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum By {
    /// The structural schema.
    Schema,
    /// A rule in CEL alone, which only an API server evaluates.
    Rule,
}

#[derive(Debug)]
pub(crate) struct Wrong {
    pub(crate) object: Value,
    pub(crate) field: String,
    pub(crate) by: By,
}

impl Wrong {
    pub(crate) fn kind(&self) -> &str {
        self.object["kind"].as_str().unwrap()
    }
}

/// `spec.rules[0].to` is `spec.rules.to`.
pub(crate) fn without_places(text: &str) -> String {
    Regex::new(r"\[[0-9]+\]").unwrap().replace_all(text, "").into_owned()
}

/// Kind, field without places, and message of every rule in CEL.
pub(crate) fn rules() -> Vec<(String, String, String)> {
    let mut found = Vec::new();
    for crd in CRDS.iter() {
        rules_of(&crd.schema()["properties"]["spec"], &crd.kind, "spec", &mut found);
    }
    found
}

fn rules_of(schema: &Value, kind: &str, path: &str, found: &mut Vec<(String, String, String)>) {
    for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
        let field = rule["fieldPath"].as_str().unwrap_or_default();
        let message = rule["message"].as_str().unwrap().to_owned();
        found.push((kind.to_owned(), format!("{path}{field}"), message));
    }
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        rules_of(field, kind, &format!("{path}.{name}"), found);
    }
    if schema["items"].is_object() {
        rules_of(&schema["items"], kind, path, found);
    }
}

pub(crate) fn wrong() -> Vec<Wrong> {
    let tables = [
        ("TrafficPolicy", TRAFFIC),
        ("ServerPolicy", SERVER),
        ("FaultInjection", FAULT),
        ("AccessPolicy", ACCESS),
        ("ExternalService", SERVICE),
        ("ExternalWorkload", WORKLOAD),
    ];
    let mut all = Vec::new();
    for (kind, cases) in tables {
        for (spec, field, by) in cases {
            let mut wrong = of(kind, spec, *by);
            wrong.field = format!("spec.{field}").trim_end_matches('.').to_owned();
            all.push(wrong);
        }
    }
    all.extend(targets());
    all.extend(long());
    let mut named = made("ExternalWorkload", "{address: 192.0.2.1}", By::Schema);
    named.object["metadata"]["name"] = json!("a.b");
    named.field = "metadata.name".to_owned();
    all.push(named);
    all
}

/// A spec, the field below it that is wrong, and what refuses it.
type Case = (&'static str, &'static str, By);

fn made(kind: &str, spec: &str, by: By) -> Wrong {
    let spec: Value = serde_saphyr::from_str(spec).unwrap_or_else(|e| panic!("{spec}: {e}"));
    let object = json!({
        "apiVersion": "outrigger.dev/v1alpha1", "kind": kind,
        "metadata": {"name": "wrong", "namespace": "bank"}, "spec": spec,
    });
    Wrong { object, field: "spec".to_owned(), by }
}

/// A spec with whatever else its kind asks for.
fn of(kind: &str, spec: &str, by: By) -> Wrong {
    let mut wrong = made(kind, spec, by);
    let good = match kind {
        "TrafficPolicy" | "ServerPolicy" => {
            json!({"targetRefs": [{"kind": "Service", "name": "orders"}]})
        }
        "FaultInjection" => json!({
            "targetRefs": [{"kind": "Service", "name": "orders"}], "percent": 1, "fault": {"reset": {}},
            "start": "2030-01-01T00:00:00Z", "end": "2030-01-01T01:00:00Z",
        }),
        _ => json!({}),
    };
    let spec = wrong.object["spec"].as_object_mut().unwrap();
    for (name, value) in good.as_object().unwrap() {
        spec.entry(name.clone()).or_insert_with(|| value.clone());
    }
    // `null` leaves a field out.
    spec.retain(|_, value| !value.is_null());
    wrong
}

const TRAFFIC: &[Case] = &[
    ("{timeouts: {idle: 25h}}", "timeouts.idle", By::Rule),
    ("{breaker: {consecutiveFailures: 5, open: {max: 2h}}}", "breaker.open.max", By::Rule),
    (
        "{outlierEjection: {consecutiveFailures: 5, maxEjection: 2h}}",
        "outlierEjection.maxEjection",
        By::Rule,
    ),
    (
        "{outlierEjection: {failureRate: {percent: 0}}}",
        "outlierEjection.failureRate.percent",
        By::Schema,
    ),
    (
        "{outlierEjection: {failureRate: {percent: 5, minRequests: 0}}}",
        "outlierEjection.failureRate.minRequests",
        By::Schema,
    ),
    (
        "{outlierEjection: {failureRate: {percent: 5, window: soon}}}",
        "outlierEjection.failureRate.window",
        By::Schema,
    ),
    (
        "{outlierEjection: {failureRate: {percent: 5, window: 301s}}}",
        "outlierEjection.failureRate.window",
        By::Rule,
    ),
    (
        "{outlierEjection: {failureRate: {percent: 5, window: 1500ms}}}",
        "outlierEjection.failureRate.window",
        By::Rule,
    ),
    ("{}", "", By::Rule),
    ("{deadline: 2}", "deadline", By::Schema),
    ("{deadline: 1.5s}", "deadline", By::Schema),
    ("{deadline: 100000s}", "deadline", By::Schema),
    ("{deadline: 25h}", "deadline", By::Rule),
    ("{streaming: maybe}", "streaming", By::Schema),
    ("{timeouts: {}}", "timeouts", By::Schema),
    ("{timeouts: {connect: 0s}}", "timeouts.connect", By::Rule),
    ("{timeouts: {firstByte: 25h}}", "timeouts.firstByte", By::Rule),
    ("{timeouts: {idle: forever}}", "timeouts.idle", By::Schema),
    ("{timeouts: {attempt: 0ms}}", "timeouts.attempt", By::Rule),
    ("{timeouts: {read: 1s}}", "timeouts.read", By::Schema),
    ("{retries: {maxAttempts: 0}}", "retries.maxAttempts", By::Schema),
    ("{retries: {maxAttempts: 11}}", "retries.maxAttempts", By::Schema),
    ("{retries: {maxAttempts: 1, nonIdempotent: true}}", "retries.maxAttempts", By::Rule),
    ("{retries: {maxAttempts: 1, when: {statuses: [503]}}}", "retries.maxAttempts", By::Rule),
    ("{retries: {maxReplayBytes: 1048577}}", "retries.maxReplayBytes", By::Schema),
    ("{retries: {when: {statuses: [428]}}}", "retries.when.statuses[0]", By::Schema),
    ("{retries: {when: {statuses: [503, 499]}}}", "retries.when.statuses[1]", By::Rule),
    ("{retries: {when: {grpc: [OK]}}}", "retries.when.grpc[0]", By::Schema),
    ("{retries: {when: {connect: true}}}", "retries.when.connect", By::Schema),
    ("{retries: {backoff: {max: 1s}}}", "retries.backoff.base", By::Schema),
    ("{retries: {backoff: {base: 0s}}}", "retries.backoff.base", By::Rule),
    ("{retries: {backoff: {base: 1s, max: 61s}}}", "retries.backoff.max", By::Rule),
    ("{retries: {backoff: {base: 2s, max: 1s}}}", "retries.backoff.max", By::Rule),
    ("{retries: {backoff: {base: 1s, jitter: Some}}}", "retries.backoff.jitter", By::Schema),
    ("{retryBudget: {percent: 101}}", "retryBudget.percent", By::Schema),
    ("{retryBudget: {minPerSecond: 1001}}", "retryBudget.minPerSecond", By::Schema),
    ("{breaker: {}}", "breaker", By::Rule),
    ("{breaker: {consecutiveFailures: 0}}", "breaker.consecutiveFailures", By::Schema),
    ("{breaker: {failureRate: {percent: 101}}}", "breaker.failureRate.percent", By::Schema),
    (
        "{breaker: {failureRate: {percent: 50, window: 301s}}}",
        "breaker.failureRate.window",
        By::Rule,
    ),
    (
        "{breaker: {failureRate: {percent: 50, window: 1500ms}}}",
        "breaker.failureRate.window",
        By::Rule,
    ),
    (
        "{breaker: {failureRate: {percent: 50, minRequests: 0}}}",
        "breaker.failureRate.minRequests",
        By::Schema,
    ),
    ("{breaker: {consecutiveFailures: 5, trials: 101}}", "breaker.trials", By::Schema),
    ("{breaker: {consecutiveFailures: 5, open: {}}}", "breaker.open", By::Schema),
    ("{sessionPersistence: {sessionName: ''}}", "sessionPersistence.sessionName", By::Schema),
    ("{sessionPersistence: {type: Query}}", "sessionPersistence.type", By::Schema),
    (
        "{sessionPersistence: {type: Header, absoluteTimeout: 1h}}",
        "sessionPersistence.absoluteTimeout",
        By::Rule,
    ),
    (
        "{sessionPersistence: {absoluteTimeout: 999ms}}",
        "sessionPersistence.absoluteTimeout",
        By::Rule,
    ),
    ("{breaker: {consecutiveFailures: 5, open: {fixed: 99ms}}}", "breaker.open.fixed", By::Rule),
    ("{breaker: {consecutiveFailures: 5, open: {base: 2h}}}", "breaker.open.base", By::Rule),
    ("{breaker: {consecutiveFailures: 5, open: {max: 1s}}}", "breaker.open.max", By::Rule),
    ("{breaker: {consecutiveFailures: 5, open: {fixed: 1s, max: 2s}}}", "breaker.open", By::Rule),
    ("{outlierEjection: {}}", "outlierEjection", By::Rule),
    (
        "{outlierEjection: {consecutiveFailures: 1000001}}",
        "outlierEjection.consecutiveFailures",
        By::Schema,
    ),
    (
        "{outlierEjection: {consecutiveFailures: 5, baseEjection: 1ms}}",
        "outlierEjection.baseEjection",
        By::Rule,
    ),
    (
        "{outlierEjection: {consecutiveFailures: 5, maxEjection: 1s}}",
        "outlierEjection.maxEjection",
        By::Rule,
    ),
    (
        "{outlierEjection: {consecutiveFailures: 5, maxEjectedPercent: 0}}",
        "outlierEjection.maxEjectedPercent",
        By::Schema,
    ),
    ("{limits: {}}", "limits", By::Schema),
    ("{limits: {maxInFlight: 0}}", "limits.maxInFlight", By::Schema),
    ("{limits: {maxPending: 5}}", "limits.maxPending", By::Rule),
    ("{limits: {maxInFlight: 1, maxPending: 1000001}}", "limits.maxPending", By::Schema),
    ("{limits: {maxInFlightPerEndpoint: 0}}", "limits.maxInFlightPerEndpoint", By::Schema),
    ("{healthCheck: {}}", "healthCheck", By::Rule),
    ("{healthCheck: {tcp: {}, grpc: {}}}", "healthCheck", By::Rule),
    ("{healthCheck: {http: {}}}", "healthCheck.http.path", By::Schema),
    ("{healthCheck: {http: {path: healthz}}}", "healthCheck.http.path", By::Schema),
    ("{healthCheck: {grpc: {service: 'a b'}}}", "healthCheck.grpc.service", By::Schema),
    ("{healthCheck: {tcp: {}, interval: 99ms}}", "healthCheck.interval", By::Rule),
    ("{healthCheck: {tcp: {}, timeout: 61s}}", "healthCheck.timeout", By::Rule),
    ("{healthCheck: {tcp: {}, unhealthyAfter: 0}}", "healthCheck.unhealthyAfter", By::Schema),
    ("{healthCheck: {tcp: {}, healthyAfter: 101}}", "healthCheck.healthyAfter", By::Schema),
    ("{slowStart: {window: 999ms}}", "slowStart.window", By::Rule),
    ("{panicThreshold: 101}", "panicThreshold", By::Schema),
    ("{zonePreference: {minHealthyPercent: 0}}", "zonePreference.minHealthyPercent", By::Schema),
    ("{priority: High}", "priority", By::Schema),
    ("{maxVisits: 33}", "maxVisits", By::Schema),
    ("{hedge: {}}", "hedge", By::Rule),
    ("{hedge: {after: 1s, afterP95: {}}}", "hedge", By::Rule),
    ("{hedge: {after: 61s}}", "hedge.after", By::Rule),
    ("{hedge: {afterP95: {min: 0s}}}", "hedge.afterP95.min", By::Rule),
    ("{cache: {}}", "cache.ttl", By::Schema),
    ("{cache: {ttl: 25h}}", "cache.ttl", By::Rule),
    ("{cache: {ttl: 0s}}", "cache", By::Rule),
    ("{cache: {ttl: 1s, staleOnError: 25h}}", "cache.staleOnError", By::Rule),
    ("{cache: {ttl: 1s, maxEntryBytes: 1048577}}", "cache.maxEntryBytes", By::Schema),
    ("{fallbacks: []}", "fallbacks", By::Schema),
    ("{fallbacks: [{}]}", "fallbacks[0]", By::Rule),
    ("{fallbacks: [{static: {}, route: {path: /}}]}", "fallbacks[0]", By::Rule),
    ("{fallbacks: [{when: [], static: {}}]}", "fallbacks[0].when", By::Schema),
    ("{fallbacks: [{when: [Down], static: {}}]}", "fallbacks[0].when[0]", By::Schema),
    ("{fallbacks: [{static: {status: 199}}]}", "fallbacks[0].static.status", By::Schema),
    ("{fallbacks: [{static: {contentType: json}}]}", "fallbacks[0].static.contentType", By::Schema),
    ("{fallbacks: [{route: {path: '/a#b'}}]}", "fallbacks[0].route.path", By::Schema),
    ("{fallbacks: [{backend: {name: a, port: 0}}]}", "fallbacks[0].backend.port", By::Schema),
    ("{fallbacks: [{backend: {name: A, port: 1}}]}", "fallbacks[0].backend.name", By::Schema),
    (
        "{fallbacks: [{backend: {kind: ExternalService, name: a, port: 1}}]}",
        "fallbacks[0].backend.kind",
        By::Rule,
    ),
    (
        "{fallbacks: [{backend: {name: a, port: 1, namespace: A}}]}",
        "fallbacks[0].backend.namespace",
        By::Schema,
    ),
    ("{hedging: {}}", "hedging", By::Schema),
];

const SERVER: &[Case] = &[
    ("{}", "", By::Rule),
    ("{rateLimits: [{requests: 1, period: 1s}]}", "rateLimits[0].name", By::Schema),
    ("{rateLimits: [{name: All, requests: 1, period: 1s}]}", "rateLimits[0].name", By::Schema),
    (
        "{rateLimits: [{name: a, requests: 1, period: 1s}, {name: a, requests: 2, period: 1s}]}",
        "rateLimits[1]",
        By::Schema,
    ),
    ("{rateLimits: [{name: a, requests: 0, period: 1s}]}", "rateLimits[0].requests", By::Schema),
    ("{rateLimits: [{name: a, requests: 1, period: 999ms}]}", "rateLimits[0].period", By::Rule),
    (
        "{rateLimits: [{name: a, requests: 1, period: 1s, burst: 0}]}",
        "rateLimits[0].burst",
        By::Schema,
    ),
    (
        "{rateLimits: [{name: a, requests: 1, period: 1s, strategy: Fair}]}",
        "rateLimits[0].strategy",
        By::Schema,
    ),
    (
        "{rateLimits: [{name: a, requests: 1, period: 1s, strategy: Volume, key: {path: {}}}]}",
        "rateLimits[0].key",
        By::Rule,
    ),
    (
        "{rateLimits: [{name: a, requests: 1, period: 1s, strategy: PerKey, key: {}}]}",
        "rateLimits[0].key",
        By::Rule,
    ),
    (
        "{rateLimits: [{name: a, requests: 1, period: 1s, strategy: PerKey, key: {header: 'a b'}}]}",
        "rateLimits[0].key.header",
        By::Schema,
    ),
    ("{concurrency: {}}", "concurrency", By::Rule),
    ("{concurrency: {static: 1, adaptive: {algorithm: Gradient}}}", "concurrency", By::Rule),
    ("{concurrency: {static: 0}}", "concurrency.static", By::Schema),
    ("{concurrency: {static: 1, maxQueue: 100001}}", "concurrency.maxQueue", By::Schema),
    ("{concurrency: {static: 1, maxWait: 11s}}", "concurrency.maxWait", By::Rule),
    ("{concurrency: {adaptive: {algorithm: Vegas}}}", "concurrency.adaptive.algorithm", By::Schema),
    (
        "{concurrency: {adaptive: {algorithm: Gradient, latency: 1s}}}",
        "concurrency.adaptive.latency",
        By::Rule,
    ),
    ("{concurrency: {adaptive: {algorithm: Aimd}}}", "concurrency.adaptive.latency", By::Rule),
    (
        "{concurrency: {adaptive: {algorithm: Aimd, latency: 61s}}}",
        "concurrency.adaptive.latency",
        By::Rule,
    ),
    (
        "{concurrency: {adaptive: {algorithm: Gradient, min: 0}}}",
        "concurrency.adaptive.min",
        By::Schema,
    ),
    (
        "{concurrency: {adaptive: {algorithm: Gradient, min: 5, max: 4}}}",
        "concurrency.adaptive.max",
        By::Rule,
    ),
    (
        "{concurrency: {adaptive: {algorithm: Gradient, max: 3}}}",
        "concurrency.adaptive.max",
        By::Rule,
    ),
];

const FAULT: &[Case] = &[
    ("{from: [{namespace: b, serviceAccount: A}]}", "from[0].serviceAccount", By::Schema),
    (
        "{guard: {from: {namespace: B}, to: {kind: Service, name: a, port: 80}, maxP99: 1s}}",
        "guard.from.namespace",
        By::Schema,
    ),
    (
        "{guard: {from: {namespace: b, serviceAccount: A}, to: {kind: Service, name: a, port: 80}, maxP99: 1s}}",
        "guard.from.serviceAccount",
        By::Schema,
    ),
    (
        "{guard: {from: {namespace: b}, to: {kind: Service, name: A, port: 80}, maxP99: 1s}}",
        "guard.to.name",
        By::Schema,
    ),
    (
        "{guard: {from: {namespace: b}, to: {kind: Service, name: a, port: 0}, maxP99: 1s}}",
        "guard.to.port",
        By::Schema,
    ),
    (
        "{guard: {from: {namespace: b}, to: {kind: Service, name: a, port: 80}, maxP99: 1s, minRequests: 0}}",
        "guard.minRequests",
        By::Schema,
    ),
    (
        "{guard: {from: {namespace: b}, to: {kind: Service, name: a, port: 80}, maxP99: 1s, window: soon}}",
        "guard.window",
        By::Schema,
    ),
    (
        "{guard: {from: {namespace: b}, to: {kind: Service, name: a, port: 80}, maxP99: 1s, window: 301s}}",
        "guard.window",
        By::Rule,
    ),
    (
        "{guard: {from: {namespace: b}, to: {kind: Service, name: a, port: 80}, maxP99: 1s, window: 1500ms}}",
        "guard.window",
        By::Rule,
    ),
    ("{matches: [{path: {type: Regex, value: /a}}]}", "matches[0].path.type", By::Schema),
    (
        r#"{matches: [{headers: [{name: a, value: "\x01"}]}]}"#,
        "matches[0].headers[0].value",
        By::Schema,
    ),
    ("{percent: -1}", "percent", By::Schema),
    ("{percent: 0}", "percent", By::Rule),
    ("{percent: 100.01}", "percent", By::Schema),
    ("{percent: 0.125}", "percent", By::Rule),
    ("{percent: null}", "percent", By::Schema),
    ("{fault: {}}", "fault", By::Rule),
    ("{fault: {reset: {}, partition: {}}}", "fault", By::Rule),
    ("{fault: {stop: {}}}", "fault.stop", By::Schema),
    ("{fault: {delay: {fixed: 0s}}}", "fault.delay.fixed", By::Rule),
    ("{fault: {delay: {fixed: 1s, jitter: 61s}}}", "fault.delay.jitter", By::Rule),
    ("{fault: {abort: {status: 399}}}", "fault.abort.status", By::Schema),
    ("{fault: {abort: {status: 503, grpc: UNAVAILABLE}}}", "fault.abort", By::Rule),
    ("{fault: {abort: {grpc: OK}}}", "fault.abort.grpc", By::Schema),
    ("{end: soon}", "end", By::Schema),
    ("{end: null}", "end", By::Schema),
    ("{start: now}", "start", By::Schema),
    ("{end: '2030-01-02T00:00:01Z'}", "end", By::Rule),
    ("{end: '2030-01-01T00:00:00Z'}", "end", By::Rule),
    ("{schedule: {every: 500ms, for: 1s}}", "schedule.every", By::Rule),
    ("{schedule: {every: 2s, for: 0s}}", "schedule.for", By::Rule),
    ("{schedule: {every: 2s, for: 2s}}", "schedule.for", By::Rule),
    ("{matches: [{}]}", "matches[0]", By::Schema),
    ("{matches: [{method: get}]}", "matches[0].method", By::Schema),
    ("{matches: [{path: {value: a}}]}", "matches[0].path.value", By::Schema),
    ("{matches: [{path: {value: '/a/../b'}}]}", "matches[0].path.value", By::Rule),
    ("{matches: [{headers: [{name: 'a b', value: x}]}]}", "matches[0].headers[0].name", By::Schema),
    ("{from: [{namespace: Bank}]}", "from[0].namespace", By::Schema),
    ("{guard: {from: {namespace: b}, to: {kind: Service, name: a, port: 80}}}", "guard", By::Rule),
    (
        "{guard: {from: {namespace: b}, to: {kind: Pod, name: a, port: 80}, maxP99: 1s}}",
        "guard.to.kind",
        By::Rule,
    ),
    (
        "{guard: {from: {namespace: b}, to: {kind: Service, name: a, port: 80}, minSuccessPercent: 0}}",
        "guard.minSuccessPercent",
        By::Schema,
    ),
    (
        "{guard: {from: {namespace: b}, to: {kind: Service, name: a, port: 80}, maxP99: 61s}}",
        "guard.maxP99",
        By::Rule,
    ),
];

const ACCESS: &[Case] = &[
    (
        "{jwt: [{issuer: a, jwks: {externalService: {name: A, path: /b}}}]}",
        "jwt[0].jwks.externalService.name",
        By::Schema,
    ),
    (
        "{rules: [{action: Allow, to: [{paths: [{prefix: a}]}]}]}",
        "rules[0].to[0].paths[0].prefix",
        By::Schema,
    ),
    ("{ports: [0]}", "ports[0]", By::Schema),
    ("{mtls: Off}", "mtls", By::Schema),
    ("{default: Refuse}", "default", By::Schema),
    ("{selector: {}}", "selector.matchLabels", By::Schema),
    ("{rules: [{}]}", "rules[0].action", By::Schema),
    ("{rules: [{action: Log}]}", "rules[0].action", By::Schema),
    ("{rules: [{action: Allow, from: [{}]}]}", "rules[0].from[0]", By::Schema),
    (
        "{rules: [{action: Allow, from: [{serviceAccounts: [a/b/c]}]}]}",
        "rules[0].from[0].serviceAccounts[0]",
        By::Schema,
    ),
    (
        "{rules: [{action: Allow, from: [{authenticated: false, namespaces: [bank]}]}]}",
        "rules[0].from[0].authenticated",
        By::Rule,
    ),
    (
        "{rules: [{action: Allow, from: [{networks: [everywhere]}]}]}",
        "rules[0].from[0].networks[0]",
        By::Schema,
    ),
    ("{rules: [{action: Allow, to: [{}]}]}", "rules[0].to[0]", By::Schema),
    ("{rules: [{action: Allow, to: [{hosts: [a_b]}]}]}", "rules[0].to[0].hosts[0]", By::Schema),
    ("{rules: [{action: Allow, to: [{methods: [get]}]}]}", "rules[0].to[0].methods[0]", By::Schema),
    (
        "{rules: [{action: Allow, to: [{paths: [{exact: a}]}]}]}",
        "rules[0].to[0].paths[0].exact",
        By::Schema,
    ),
    (
        "{rules: [{action: Allow, to: [{paths: [{exact: /a, prefix: /a}]}]}]}",
        "rules[0].to[0].paths[0]",
        By::Schema,
    ),
    (
        "{rules: [{action: Allow, to: [{headers: [{name: 'a b'}]}]}]}",
        "rules[0].to[0].headers[0].name",
        By::Schema,
    ),
    (
        "{rules: [{action: Allow, to: [{headers: [{name: Upgrade}]}]}]}",
        "rules[0].to[0].headers[0].name",
        By::Schema,
    ),
    (
        "{rules: [{action: Allow, to: [{headers: [{name: a, exact: b, regex: c}]}]}]}",
        "rules[0].to[0].headers[0]",
        By::Schema,
    ),
    ("{rules: [{action: Allow, claims: [{name: a}]}]}", "rules[0].claims[0].values", By::Schema),
    ("{jwt: [{issuer: '', jwks: {file: a}}]}", "jwt[0].issuer", By::Schema),
    ("{jwt: [{issuer: a}]}", "jwt[0].jwks", By::Schema),
    ("{jwt: [{issuer: a, jwks: {}}]}", "jwt[0].jwks", By::Rule),
    ("{jwt: [{issuer: a, jwks: {inline: '{}'}}]}", "jwt[0].jwks.inline", By::Schema),
    ("{jwt: [{issuer: a, jwks: {file: ../a}}]}", "jwt[0].jwks.file", By::Rule),
    (
        "{jwt: [{issuer: a, jwks: {externalService: {name: a, path: b}}}]}",
        "jwt[0].jwks.externalService.path",
        By::Schema,
    ),
    (
        "{jwt: [{issuer: a, jwks: {file: a}, clockSkewSeconds: 301}]}",
        "jwt[0].clockSkewSeconds",
        By::Schema,
    ),
    (
        "{jwt: [{issuer: a, jwks: {file: a}, claimsToHeaders: [{claim: sub, header: 'a b'}]}]}",
        "jwt[0].claimsToHeaders[0].header",
        By::Schema,
    ),
];

const SERVICE: &[Case] = &[
    (
        "{host: a.example, port: 443, endpoints: [{address: 192.0.2.1, port: 0}]}",
        "endpoints[0].port",
        By::Schema,
    ),
    ("{port: 443}", "host", By::Schema),
    ("{host: 'a b', port: 443}", "host", By::Schema),
    ("{host: a.example, port: 65536}", "port", By::Schema),
    ("{host: a.example, port: 443, protocol: HTTP3}", "protocol", By::Schema),
    ("{host: a.example, port: 443, protocol: TLS, tls: {}}", "protocol", By::Rule),
    ("{host: a.example, port: 443, endpoints: []}", "endpoints", By::Schema),
    (
        "{host: a.example, port: 443, endpoints: [{address: b.example}]}",
        "endpoints[0].address",
        By::Rule,
    ),
    (
        "{host: a.example, port: 443, endpoints: [{address: 0.0.0.0}]}",
        "endpoints[0].address",
        By::Rule,
    ),
    (
        "{host: a.example, port: 443, endpoints: [{address: 192.0.2.1}, {address: 192.0.2.1, port: 443}]}",
        "endpoints",
        By::Rule,
    ),
    ("{host: a.example, port: 443, tls: {caCertificates: x}}", "tls.caCertificates", By::Schema),
];

const WORKLOAD: &[Case] = &[
    ("{}", "address", By::Schema),
    ("{address: a.example}", "address", By::Rule),
    ("{address: 192.0.2.1, mesh: {address: 192.0.2.1}}", "mesh.address", By::Schema),
    (
        "{address: 192.0.2.1, mesh: {address: '192.0.2.1:1', hopVersion: 0}}",
        "mesh.hopVersion",
        By::Schema,
    ),
    ("{address: 192.0.2.1, ports: [{port: 0}]}", "ports[0].port", By::Schema),
    (
        "{address: 192.0.2.1, ports: [{port: 80, appProtocol: smtp}]}",
        "ports[0].appProtocol",
        By::Schema,
    ),
    ("{address: 192.0.2.1, serviceAccount: A}", "serviceAccount", By::Schema),
];

/// What a policy may be for.
fn targets() -> Vec<Wrong> {
    let of_all: &[(&str, &str, By)] = &[
        ("[]", "", By::Schema),
        ("[{kind: Pod, name: a}]", "[0].kind", By::Schema),
        ("[{group: apps, kind: Service, name: a}]", "[0].group", By::Rule),
        ("[{kind: Service, name: A}]", "[0].name", By::Schema),
        ("[{kind: Service, name: a.b}]", "[0].name", By::Rule),
        ("[{kind: Service, name: a, sectionName: ''}]", "[0].sectionName", By::Schema),
        ("[{kind: Service, name: a, port: 65536}]", "[0].port", By::Schema),
        ("[{kind: Namespace, name: bank, sectionName: a}]", "[0].sectionName", By::Rule),
        ("[{kind: Namespace, name: bank, port: 80}]", "[0].port", By::Rule),
        ("[{kind: Service, name: a, sectionName: b, port: 80}]", "[0].port", By::Rule),
        ("[{kind: Service, name: a}, {kind: Service, name: a}]", "", By::Rule),
    ];
    let made = |kind: &str, (targets, field, by): &(&str, &str, By)| {
        let section = match kind {
            "ServerPolicy" => "concurrency: {static: 1}",
            "FaultInjection" => "percent: 1, fault: {reset: {}}, end: '2026-01-01T00:00:00Z'",
            _ => "deadline: 1s",
        };
        let mut wrong = made(kind, &format!("{{targetRefs: {targets}, {section}}}"), *by);
        wrong.field = format!("spec.targetRefs{field}");
        wrong
    };
    let mut all = Vec::new();
    for kind in ["TrafficPolicy", "ServerPolicy", "FaultInjection"] {
        all.extend(of_all.iter().map(|case| made(kind, case)));
    }
    let route = "[{kind: HTTPRoute, name: a}]";
    all.push(made("TrafficPolicy", &(route, "[0].group", By::Rule)));
    all.push(made("ServerPolicy", &(route, "[0].kind", By::Schema)));
    let of_backends = section::names(Scope::Backend);
    for (section, says) in SECTIONS.iter().filter(|(name, _)| of_backends.contains(name)) {
        let route = "{group: gateway.networking.k8s.io, kind: HTTPRoute, name: a}";
        let spec = format!("{{targetRefs: [{route}], {section}: {says}}}");
        let mut wrong = self::made("TrafficPolicy", &spec, By::Rule);
        wrong.field = format!("spec.{section}");
        all.push(wrong);
    }
    all
}

/// Lists and texts that are too long.
fn long() -> Vec<Wrong> {
    let many = |item: &str, times: usize| vec![item; times].join(", ");
    let text = |length: usize| "x".repeat(length);
    let limits: Vec<_> =
        (0..17).map(|i| format!("{{name: l{i}, requests: 1, period: 1s}}")).collect();
    let cases = [
        ("FaultInjection", format!("{{from: [{}]}}", many("{namespace: b}", 17)), "from"),
        ("FaultInjection", format!("{{matches: [{}]}}", many("{method: GET}", 17)), "matches"),
        (
            "FaultInjection",
            format!("{{matches: [{{headers: [{}]}}]}}", many("{name: a, value: b}", 17)),
            "matches[0].headers",
        ),
        (
            "AccessPolicy",
            format!(
                "{{rules: [{{action: Deny, to: [{{headers: [{{name: a, regex: {}}}]}}]}}]}}",
                text(1025)
            ),
            "rules[0].to[0].headers[0].regex",
        ),
        (
            "ExternalWorkload",
            format!("{{address: 192.0.2.1, ports: [{{port: 80, name: {}}}]}}", text(64)),
            "ports[0].name",
        ),
        ("TrafficPolicy", format!("{{deadline: {}s}}", "0".repeat(40)), "deadline"),
        ("TrafficPolicy", format!("{{fallbacks: [{}]}}", many("{static: {}}", 9)), "fallbacks"),
        (
            "TrafficPolicy",
            format!("{{retries: {{when: {{statuses: [{}]}}}}}}", many("500", 102)),
            "retries.when.statuses",
        ),
        (
            "TrafficPolicy",
            format!("{{retries: {{when: {{grpc: [{}]}}}}}}", many("ABORTED", 17)),
            "retries.when.grpc",
        ),
        (
            "TrafficPolicy",
            format!("{{fallbacks: [{{static: {{body: {}}}}}]}}", text(8193)),
            "fallbacks[0].static.body",
        ),
        (
            "TrafficPolicy",
            format!("{{fallbacks: [{{route: {{path: /{}}}}}]}}", text(1024)),
            "fallbacks[0].route.path",
        ),
        (
            "TrafficPolicy",
            format!("{{healthCheck: {{grpc: {{service: {}}}}}}}", text(257)),
            "healthCheck.grpc.service",
        ),
        ("ServerPolicy", format!("{{rateLimits: [{}]}}", limits.join(", ")), "rateLimits"),
        ("AccessPolicy", format!("{{rules: [{}]}}", many("{action: Deny}", 1001)), "rules"),
        ("AccessPolicy", format!("{{ports: [{}]}}", many("80", 257)), "ports"),
        (
            "AccessPolicy",
            format!("{{selector: {{matchLabels: {{app: {}}}}}}}", text(64)),
            "selector.matchLabels.app",
        ),
        (
            "AccessPolicy",
            format!("{{rules: [{{action: Deny, name: {}}}]}}", text(4097)),
            "rules[0].name",
        ),
        (
            "AccessPolicy",
            format!("{{rules: [{{action: Deny, to: [{{hosts: [{}]}}]}}]}}", many("a", 17)),
            "rules[0].to[0].hosts",
        ),
        (
            "AccessPolicy",
            format!("{{rules: [{{action: Deny, to: [{{paths: [{{regex: {}}}]}}]}}]}}", text(1025)),
            "rules[0].to[0].paths[0].regex",
        ),
        ("ExternalWorkload", format!("{{address: 192.0.2.1, zone: {}}}", text(254)), "zone"),
        (
            "ExternalService",
            format!("{{host: a, port: 1, endpoints: [{}]}}", many("{address: 192.0.2.1}", 65)),
            "endpoints",
        ),
    ];
    let made = cases.into_iter().map(|(kind, spec, field)| {
        let mut wrong = of(kind, &spec, By::Schema);
        wrong.field = format!("spec.{field}");
        wrong
    });
    made.collect()
}
