//! Good manifests of every kind that says something about calls, with every field that it may have.

use serde_json::{Value, json};

/// What the others attach to and send to, as YAML.
pub(crate) const SERVICES: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: bank}
spec: {selector: {app: web}, clusterIP: 10.96.0.1, ports: [{port: 80, name: http, targetPort: 9000}, {port: 81, name: tcp-x, targetPort: 9001}]}
---
apiVersion: v1
kind: Service
metadata: {name: ledger, namespace: bank}
spec: {selector: {app: ledger}, clusterIP: None, ports: [{port: 80, name: grpc, targetPort: 9000}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 9000}]}
---
apiVersion: outrigger.dev/v1alpha1
kind: ExternalWorkload
metadata: {name: w1, namespace: bank, labels: {app: web}}
spec: {address: 10.0.0.1, ports: [{port: 9000, name: http}, {port: 9001}], serviceAccount: web}
---
apiVersion: outrigger.dev/v1alpha1
kind: ExternalWorkload
metadata: {name: w2, namespace: shop, labels: {app: web}}
spec: {address: 10.0.0.2, ports: [{port: 9000}]}
";

/// Each section of a TrafficPolicy or ServerPolicy, as somebody may write it.
pub(crate) const SECTIONS: &[(&str, &str)] = &[
    ("deadline", "2s"),
    ("streaming", "true"),
    ("timeouts", "{connect: 1s}"),
    ("retries", "{maxAttempts: 3}"),
    ("retryBudget", "{percent: 10}"),
    ("breaker", "{consecutiveFailures: 5}"),
    ("outlierEjection", "{consecutiveFailures: 5}"),
    ("limits", "{maxInFlight: 5}"),
    ("healthCheck", "{tcp: {}}"),
    ("slowStart", "{window: 5s}"),
    ("panicThreshold", "5"),
    ("zonePreference", "{}"),
    ("sessionPersistence", "{}"),
    ("priority", "Critical"),
    ("maxVisits", "3"),
    ("hedge", "{after: 100ms}"),
    ("cache", "{ttl: 5s}"),
    ("fallbacks", "[{when: [ServerError], static: {status: 200}}]"),
    ("rateLimits", "[{name: all, requests: 1, period: 1s}]"),
    ("concurrency", "{static: 5}"),
];

const GATEWAY: &str = "gateway.networking.k8s.io/v1";
const OURS: &str = "outrigger.dev/v1alpha1";

pub(crate) fn templates() -> Vec<Value> {
    let mut all = Vec::new();
    all.extend(http_rules().into_iter().map(|rule| route("HTTPRoute", "bank", &rule)));
    all.extend(http_rules().into_iter().map(|rule| route("HTTPRoute", "shop", &rule)));
    all.extend(grpc_rules().into_iter().map(|rule| route("GRPCRoute", "bank", &rule)));
    let stream = json!({"backendRefs": [
        {"name": "web", "port": 81, "weight": 3}, {"name": "ledger", "port": 80, "weight": 0},
    ]});
    all.push(route("TCPRoute", "bank", &stream));
    let mut tls = route("TLSRoute", "shop", &stream);
    tls["spec"]["hostnames"] = json!(["a.example.com", "*.example.org"]);
    all.push(tls);
    all.extend(traffic_policies().into_iter().map(|spec| policy("TrafficPolicy", &spec)));
    all.extend(server_policies().into_iter().map(|spec| policy("ServerPolicy", &spec)));
    all.extend(faults().into_iter().map(|spec| policy("FaultInjection", &spec)));
    all.push(object(OURS, "AccessPolicy", "bank", &access_policy()));
    all.push(object(
        OURS,
        "ExternalService",
        "bank",
        &json!({
            "host": "api.example.com", "port": 443, "protocol": "HTTP2", "tls": {},
            "endpoints": [{"address": "192.0.2.1"}, {"address": "2001:db8::1", "port": 8443}],
        }),
    ));
    all.push(object("v1", "Service", "bank", &json!({
        "selector": {"app": "web"}, "clusterIP": "10.96.0.9", "sessionAffinity": "ClientIP",
        "ports": [
            {"port": 80, "name": "http", "targetPort": "http", "appProtocol": "kubernetes.io/h2c"},
            {"port": 90, "name": "tls-x", "targetPort": 9000, "protocol": "TCP"},
        ],
    })));
    all
}

fn object(version: &str, kind: &str, namespace: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": version, "kind": kind,
        "metadata": {"name": "m", "namespace": namespace}, "spec": spec,
    })
}

fn policy(kind: &str, sections: &Value) -> Value {
    let mut spec = json!({"targetRefs": [{"kind": "Service", "name": "web"}]});
    if let (Some(spec), Some(sections)) = (spec.as_object_mut(), sections.as_object()) {
        spec.extend(sections.clone());
    }
    object(OURS, kind, "bank", &spec)
}

fn route(kind: &str, namespace: &str, rule: &Value) -> Value {
    let parent =
        json!({"group": "", "kind": "Service", "name": "web", "namespace": "bank", "port": 80});
    object(GATEWAY, kind, namespace, &json!({"parentRefs": [parent], "rules": [rule]}))
}

fn header_modifiers() -> Vec<Value> {
    vec![
        json!({"type": "RequestHeaderModifier", "requestHeaderModifier": {
            "set": [{"name": "Host", "value": "other.bank"}, {"name": "X-A", "value": "1"}],
            "add": [{"name": "x-b", "value": "2"}], "remove": ["x-c"],
        }}),
        json!({"type": "ResponseHeaderModifier", "responseHeaderModifier": {
            "set": [{"name": "x-a", "value": "1"}], "add": [{"name": "x-b", "value": "2"}],
            "remove": ["server"],
        }}),
    ]
}

fn http_rules() -> Vec<Value> {
    let matches = json!([
        {"path": {"type": "PathPrefix", "value": "/api"}, "method": "GET"},
        {"path": {"type": "PathPrefix", "value": "/v1/"},
         "headers": [{"name": "Host", "value": "web.bank"},
                     {"type": "RegularExpression", "name": "x-v", "value": "v[0-9]+"}],
         "queryParams": [{"name": "q", "value": "1"},
                         {"type": "RegularExpression", "name": "r", "value": "a|b"}]},
    ]);
    let others = json!([
        {"path": {"type": "Exact", "value": "/api/x"}},
        {"path": {"type": "RegularExpression", "value": "/v[0-9]+/.*"}},
    ]);
    let mirror = json!({"type": "RequestMirror", "requestMirror": {
        "backendRef": {"name": "ledger", "port": 80}, "percent": 10}});
    let share = json!({"type": "RequestMirror", "requestMirror": {
        "backendRef": {"name": "ledger", "port": 80}, "fraction": {"numerator": 1, "denominator": 3}}});
    let cors = json!({"type": "CORS", "cors": {
        "allowOrigins": ["https://a.example", "http://*.b.example:8080"], "allowCredentials": true,
        "allowMethods": ["GET", "PUT"], "allowHeaders": ["x-a"], "exposeHeaders": ["x-b"],
        "maxAge": 60}});
    let rewrite = |path: Value| {
        json!({"type": "URLRewrite", "urlRewrite": {
        "hostname": "other.example", "path": path}})
    };
    let redirect = |path: Value| {
        json!({"type": "RequestRedirect", "requestRedirect": {
        "scheme": "https", "hostname": "other.example", "port": 8443, "path": path,
        "statusCode": 301}})
    };
    let full = json!({"type": "ReplaceFullPath", "replaceFullPath": "/new"});
    let prefix = json!({"type": "ReplacePrefixMatch", "replacePrefixMatch": "/new"});
    let backend = |filters: Vec<Value>| {
        json!({
        "name": "ledger", "port": 80, "weight": 3, "filters": filters})
    };
    let web = json!({"name": "web", "port": 80});
    let mut all = vec![
        json!({"name": "one", "matches": matches, "filters": [rewrite(prefix.clone()), cors, mirror],
               "backendRefs": [web, backend(header_modifiers())],
               "timeouts": {"request": "10s", "backendRequest": "1s"},
               "retry": {"attempts": 2, "backoff": "100ms", "codes": [500, 503]}}),
        json!({"matches": others, "filters": [rewrite(full.clone()), share], "backendRefs": [web]}),
        json!({"matches": matches, "filters": [redirect(prefix.clone())]}),
        json!({"matches": others, "filters": [redirect(full.clone())]}),
        json!({"matches": matches,
               "backendRefs": [backend(vec![redirect(prefix)]), backend(vec![rewrite(full)])]}),
    ];
    all.push(json!({"matches": others, "filters": header_modifiers(), "backendRefs": [web]}));
    all
}

fn grpc_rules() -> Vec<Value> {
    let matches = json!([
        {"method": {"service": "bank.v1.Ledger", "method": "Post"}},
        {"method": {"type": "RegularExpression", "service": "bank\\..*", "method": "Get.*"},
         "headers": [{"name": "x-a", "value": "1"},
                     {"type": "RegularExpression", "name": "x-b", "value": ".+"}]},
        {"method": {"type": "Exact", "method": "List"}},
    ]);
    let backend = json!({"name": "ledger", "port": 80, "weight": 1, "filters": header_modifiers()});
    vec![
        json!({"name": "one", "matches": matches, "filters": header_modifiers(),
               "backendRefs": [backend]}),
        json!({"matches": matches, "backendRefs": [{"name": "web", "port": 80}]}),
    ]
}

fn traffic_policies() -> Vec<Value> {
    vec![
        json!({"deadline": "2s", "streaming": true,
               "timeouts": {"connect": "1s", "firstByte": "1s", "idle": "30s", "attempt": "1s"},
               "retries": {"maxAttempts": 3, "nonIdempotent": true, "maxReplayBytes": 1024,
                           "when": {"statuses": [503, 429], "grpc": ["UNAVAILABLE"], "reset": true},
                           "backoff": {"base": "10ms", "max": "1s", "jitter": "Full"}},
               "retryBudget": {"percent": 10, "minPerSecond": 5}}),
        json!({"breaker": {"consecutiveFailures": 5, "trials": 2,
                           "failureRate": {"percent": 50, "window": "10s", "minRequests": 20},
                           "open": {"base": "1s", "max": "30s"}},
               "outlierEjection": {"consecutiveFailures": 5, "baseEjection": "10s",
                                   "maxEjection": "60s", "maxEjectedPercent": 50},
               "limits": {"maxInFlight": 100, "maxPending": 10, "maxInFlightPerEndpoint": 5}}),
        json!({"healthCheck": {"http": {"path": "/healthz?x=1"}, "interval": "1s", "timeout": "500ms",
                               "unhealthyAfter": 3, "healthyAfter": 2},
               "slowStart": {"window": "10s"}, "panicThreshold": 40,
               "zonePreference": {"minHealthyPercent": 70}, "priority": "Critical", "maxVisits": 2}),
        json!({"healthCheck": {"grpc": {"service": "bank.v1.Ledger"}},
        "hedge": {"afterP95": {"min": "5ms"}},
        "cache": {"ttl": "1s", "staleOnError": "60s", "maxEntryBytes": 4096},
        "fallbacks": [
            {"when": ["Unavailable", "Timeout"], "cached": {}},
            {"backend": {"name": "ledger", "port": 80}},
            {"route": {"path": "/old?x=1"}},
            {"static": {"status": 200, "contentType": "application/json", "body": "{}"}},
        ]}),
    ]
}

fn server_policies() -> Vec<Value> {
    vec![
        json!({"rateLimits": [
                   {"name": "all", "requests": 100, "period": "1s", "burst": 10},
                   {"name": "each", "requests": 5, "period": "60s", "strategy": "PerKey",
                    "key": {"header": "Host"}},
               ],
               "concurrency": {"static": 10, "maxQueue": 5, "maxWait": "100ms"}}),
        json!({"concurrency": {"adaptive": {"algorithm": "Aimd", "latency": "100ms", "min": 1,
                                            "max": 50}}}),
    ]
}

fn faults() -> Vec<Value> {
    let times = |mut spec: Value, fault: Value| {
        spec["start"] = json!("2026-01-01T00:00:00Z");
        spec["end"] = json!("2026-01-01T10:00:00Z");
        spec["fault"] = fault;
        spec
    };
    let from = json!([{"namespace": "bank", "serviceAccount": "web"}]);
    let matches = json!([{
        "method": "GET", "path": {"type": "PathPrefix", "value": "/a"},
        "headers": [{"name": "Host", "value": "web.bank"}],
    }]);
    vec![
        times(
            json!({"from": from, "matches": matches, "percent": 12.5,
                   "schedule": {"every": "60s", "for": "10s"}}),
            json!({"delay": {"fixed": "100ms", "jitter": "50ms"}}),
        ),
        times(json!({"percent": 1}), json!({"abort": {"status": 503}})),
        times(json!({"percent": 100.0}), json!({"abort": {"grpc": "UNAVAILABLE"}})),
        times(
            json!({"percent": 0.01, "guard": {
                "from": {"namespace": "bank", "serviceAccount": "web"},
                "to": {"kind": "Service", "name": "web", "port": 80},
                "minSuccessPercent": 90, "window": "10s", "minRequests": 20}}),
            json!({"reset": {}}),
        ),
    ]
}

fn access_policy() -> Value {
    json!({
        "selector": {"matchLabels": {"app": "web"}}, "ports": [9000], "mtls": "Strict",
        "default": "Deny", "audit": true,
        "rules": [{
            "name": "r", "action": "Allow",
            "from": [{"serviceAccounts": ["web", "shop/web"], "namespaces": ["shop"],
                      "trustDomains": ["cluster.local"], "authenticated": true,
                      "networks": ["10.0.0.0/8", "2001:db8::/32"]}],
            "to": [{"hosts": ["web.bank", "*.bank"], "methods": ["GET", "POST"],
                    "paths": [{"exact": "/a"}, {"prefix": "/b/"}, {"regex": "/c/[0-9]+"}],
                    "headers": [{"name": "Host", "exact": "web.bank"}, {"name": "x", "regex": "a|b"},
                                {"name": "y"}]}],
            "claims": [{"name": "realm.roles", "values": ["admin"]}],
        }],
        "jwt": [{"issuer": "https://issuer.example", "audiences": ["web"],
                 "jwks": {"inline": "{\"keys\":[]}"}, "clockSkewSeconds": 30,
                 "claimsToHeaders": [{"claim": "sub", "header": "x-user"}], "forward": true,
                 "required": true}],
    })
}
