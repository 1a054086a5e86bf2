//! `outrigger-control-plane check` on manifests that are silent about being wrong, and on good ones.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

/// A mesh in which nothing is wrong: a Service with its workloads, a caller, routes and policies.
const GOOD: &str = "\
apiVersion: v1
kind: Service
metadata: {name: orders, namespace: bank}
spec:
  selector: {app: orders}
  ports: [{name: http, port: 80, targetPort: 8080, appProtocol: http}]
---
apiVersion: outrigger.dev/v1alpha1
kind: ExternalWorkload
metadata: {name: orders-1, namespace: bank, labels: {app: orders}}
spec: {address: 192.0.2.7, ports: [{port: 8080, name: http}], serviceAccount: orders}
---
apiVersion: outrigger.dev/v1alpha1
kind: ExternalWorkload
metadata: {name: web-1, namespace: bank, labels: {app: web}}
spec: {address: 192.0.2.8, ports: [{port: 8080}], serviceAccount: web}
";

/// Manifests beside the good ones, and what `check` says of them: severity, and the beginning of a line with
/// parts of it. `{1}` stands for the file of the case.
struct Case {
    name: &'static str,
    manifest: &'static str,
    says: &'static [&'static str],
    errors: bool,
}

const fn warning(
    name: &'static str,
    manifest: &'static str,
    says: &'static [&'static str],
) -> Case {
    Case { name, manifest, says, errors: false }
}

const fn error(name: &'static str, manifest: &'static str, says: &'static [&'static str]) -> Case {
    Case { name, manifest, says, errors: true }
}

const CASES: &[Case] = &[
    error(
        "a misspelt kind of ours",
        "apiVersion: outrigger.dev/v1alpha1\nkind: AccesPolicy\nmetadata: {name: a, namespace: bank}\nspec: {default: Deny}\n",
        &["case.yaml:2: kind: unknown kind \"AccesPolicy\"; did you mean AccessPolicy?"],
    ),
    error(
        "a version of ours that does not exist",
        "apiVersion: outrigger.dev/v1\nkind: AccessPolicy\nmetadata: {name: a, namespace: bank}\nspec: {default: Deny}\n",
        &[
            "case.yaml:1: apiVersion: \"outrigger.dev/v1\" must be outrigger.dev/v1alpha1",
            "AccessPolicy bank/a: no version of this policy has been valid yet",
        ],
    ),
    error(
        "a group that is nearly ours",
        "apiVersion: outriger.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {name: a, namespace: bank}\nspec: {}\n",
        &["case.yaml:1: apiVersion: \"outriger.dev/v1alpha1\" must be outrigger.dev/v1alpha1"],
    ),
    error(
        "a misspelt kind and another case",
        "apiVersion: outrigger.dev/v1alpha1\nkind: trafficpolicy\nmetadata: {name: a, namespace: bank}\nspec: {}\n",
        &["case.yaml:2: kind: unknown kind \"trafficpolicy\"; did you mean TrafficPolicy?"],
    ),
    error(
        "our kind in the group of Kubernetes",
        "apiVersion: v1\nkind: AccessPolicy\nmetadata: {name: a, namespace: bank}\nspec: {default: Deny}\n",
        &["case.yaml:1: apiVersion: \"v1\" must be outrigger.dev/v1alpha1"],
    ),
    warning(
        "a misspelt route",
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoutes\nmetadata: {name: r, namespace: bank}\nspec: {}\n",
        &["case.yaml:2: kind: unknown kind \"HTTPRoutes\"; did you mean HTTPRoute? (warning)"],
    ),
    warning(
        "a kind of the Gateway API without an effect",
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: g, namespace: bank}\nspec: {}\n",
        &[
            "case.yaml:2: kind: \"Gateway\" is not supported and has no effect in the mesh (warning)",
        ],
    ),
    warning(
        "a version of the Gateway API that does not exist",
        "apiVersion: gateway.networking.k8s.io/v2\nkind: HTTPRoute\nmetadata: {name: r, namespace: bank}\nspec: {parentRefs: [{kind: Service, group: \"\", name: orders}], rules: [{backendRefs: [{name: orders, port: 80}]}]}\n",
        &[
            "case.yaml:1: HTTPRoute bank/r: apiVersion: \"v2\" is not a known version of the Gateway API",
        ],
    ),
    warning(
        "a route in the group of Ingress",
        "apiVersion: networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r, namespace: bank}\nspec: {}\n",
        &[
            "case.yaml:1: apiVersion: \"networking.k8s.io/v1\" is not supported for HTTPRoute, which has no effect; write gateway.networking.k8s.io/v1",
        ],
    ),
    warning(
        "a Service in lower case",
        "apiVersion: v1\nkind: service\nmetadata: {name: s, namespace: bank}\nspec: {}\n",
        &["case.yaml:2: kind: unknown kind \"service\"; did you mean Service?"],
    ),
    warning(
        "a version of Service that does not exist",
        "apiVersion: v2\nkind: Service\nmetadata: {name: s, namespace: bank}\nspec: {}\n",
        &[
            "case.yaml:1: apiVersion: \"v2\" is not supported for Service, which has no effect; write v1",
        ],
    ),
    warning(
        "an EndpointSlice of a version that is no more",
        "apiVersion: discovery.k8s.io/v1beta1\nkind: EndpointSlice\nmetadata: {name: s, namespace: bank}\n",
        &[
            "case.yaml:1: apiVersion: \"discovery.k8s.io/v1beta1\" is not supported for EndpointSlice",
        ],
    ),
    warning(
        "Endpoints",
        "apiVersion: v1\nkind: Endpoints\nmetadata: {name: orders, namespace: bank}\n",
        &["case.yaml:2: kind: \"Endpoints\" is not supported: write an EndpointSlice"],
    ),
    warning(
        "a field of a Service in the wrong case",
        "apiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: bank}\nspec:\n  selector: {app: orders}\n  ports:\n  - port: 80\n    targetport: 8080\n    targetPort: 8080\n",
        &[
            "case.yaml:8: Service bank/s: spec.ports[0].targetport: unknown field of Service, ignored; did you mean targetPort?",
        ],
    ),
    warning(
        "a field of a route in the wrong case",
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r, namespace: bank}\nspec:\n  parentRefs: [{kind: Service, group: \"\", name: orders}]\n  rules:\n  - backendrefs:\n    - {name: orders, port: 80}\n",
        &[
            "case.yaml:7: HTTPRoute bank/r: spec.rules[0].backendrefs: unknown field of HTTPRoute, ignored; did you mean backendRefs?",
        ],
    ),
    warning(
        "a field of metadata",
        "apiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: bank, lables: {a: b}}\nspec: {selector: {app: orders}, ports: [{port: 80, targetPort: 8080}]}\n",
        &["case.yaml:3: Service bank/s: metadata.lables: unknown field", "did you mean labels?"],
    ),
    warning(
        "a field beside spec",
        "apiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: bank}\nspec: {selector: {app: orders}, ports: [{port: 80, targetPort: 8080}]}\nports: []\n",
        &["case.yaml:5: Service bank/s: ports: unknown field of Service, ignored"],
    ),
    warning(
        "a field of a workload's port",
        "apiVersion: outrigger.dev/v1alpha1\nkind: ExternalWorkload\nmetadata: {name: w, namespace: bank}\nspec:\n  address: 192.0.2.9\n  ports:\n  - {port: 80, protocol: http}\n",
        &[
            "case.yaml:7: ExternalWorkload bank/w: spec.ports[0].protocol: unknown field of ExternalWorkload",
        ],
    ),
    error(
        "a field of a policy",
        "apiVersion: outrigger.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {name: p, namespace: bank}\nspec:\n  targetRefs: [{kind: Service, name: orders}]\n  retires: {attempts: 2}\n",
        &["case.yaml:6: TrafficPolicy bank/p: spec.retires: "],
    ),
    warning(
        "a policy whose selector matches nothing",
        "apiVersion: outrigger.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {name: p, namespace: bank}\nspec:\n  selector: {matchLabels: {app: order}}\n  default: Deny\n",
        &[
            "case.yaml:5: AccessPolicy bank/p: spec.selector: matches no known workload in namespace bank, so the policy protects nothing (warning)",
        ],
    ),
    warning(
        "a policy for a port that nothing serves",
        "apiVersion: outrigger.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {name: p, namespace: bank}\nspec:\n  selector: {matchLabels: {app: orders}}\n  ports: [8080, 80]\n  default: Deny\n",
        &[
            "case.yaml:6: AccessPolicy bank/p: spec.ports[1]: no selected workload serves port 80; use the app's port, not the Service's",
        ],
    ),
    warning(
        "a service account that nobody runs as",
        "apiVersion: outrigger.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {name: p, namespace: bank}\nspec:\n  rules:\n  - action: Allow\n    from:\n    - serviceAccounts: [web, wbe]\n",
        &[
            "case.yaml:8: AccessPolicy bank/p: spec.rules[0].from[0].serviceAccounts[1]: no known workload runs as bank/wbe",
        ],
    ),
    warning(
        "a service account of a namespace that is not there",
        "apiVersion: outrigger.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {name: p, namespace: bank}\nspec:\n  rules:\n  - {action: Allow, from: [{serviceAccounts: [shop/web]}]}\n",
        &[
            "case.yaml:6: AccessPolicy bank/p: spec.rules[0].from[0].serviceAccounts[0]: namespace shop is unknown",
        ],
    ),
    warning(
        "a namespace that is not there",
        "apiVersion: outrigger.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {name: p, namespace: bank}\nspec:\n  rules:\n  - {action: Allow, from: [{namespaces: [bnak]}]}\n",
        &[
            "case.yaml:6: AccessPolicy bank/p: spec.rules[0].from[0].namespaces[0]: namespace bnak is unknown",
        ],
    ),
    warning(
        "the same rule twice",
        "apiVersion: outrigger.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {name: p, namespace: bank}\nspec:\n  rules:\n  - {action: Allow, from: [{serviceAccounts: [web]}]}\n  - {action: Allow, from: [{serviceAccounts: [web]}]}\n",
        &[
            "case.yaml:7: AccessPolicy bank/p: spec.rules[1]: has no effect: spec.rules[0] allows everything that it allows",
        ],
    ),
    warning(
        "a rule that another one denies",
        "apiVersion: outrigger.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {name: p, namespace: bank}\nspec:\n  rules:\n  - {action: Allow, from: [{serviceAccounts: [web]}], to: [{methods: [GET]}]}\n  - {action: Deny, from: [{serviceAccounts: [web]}]}\n",
        &[
            "case.yaml:6: AccessPolicy bank/p: spec.rules[0]: has no effect: spec.rules[1] denies everything that it allows",
        ],
    ),
    warning(
        "a rule that allows everybody beside others",
        "apiVersion: outrigger.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {name: p, namespace: bank}\nspec:\n  rules:\n  - {action: Allow, from: [{serviceAccounts: [web]}]}\n  - {action: Allow}\n",
        &[
            "case.yaml:6: AccessPolicy bank/p: spec.rules[0]: has no effect: spec.rules[1] allows everything that it allows",
        ],
    ),
    warning(
        "a default that a rule takes the place of",
        "apiVersion: outrigger.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {name: p, namespace: bank}\nspec:\n  default: Allow\n  rules:\n  - {action: Allow, from: [{serviceAccounts: [web]}]}\n",
        &[
            "case.yaml:5: AccessPolicy bank/p: spec.default: Allow has no effect together with a rule with the action Allow",
        ],
    ),
    warning(
        "two policies that say otherwise",
        "apiVersion: outrigger.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {name: a, namespace: bank}\nspec: {mtls: Strict}\n---\napiVersion: outrigger.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {name: b, namespace: bank}\nspec: {mtls: Permissive}\n",
        &[
            "case.yaml:9: AccessPolicy bank/b: spec.mtls: overridden by AccessPolicy bank/a, which sets another value for the same ports",
        ],
    ),
    error(
        "a key set that is not there",
        "apiVersion: outrigger.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {name: p, namespace: bank}\nspec:\n  jwt:\n  - issuer: https://id.example.com\n    jwks: {file: keys/gone.json}\n",
        &[
            "case.yaml:7: AccessPolicy bank/p: spec.jwt[0].jwks.file: ",
            "gone.json: ",
            "No such file",
        ],
    ),
    error(
        "a key set of a service that is not there",
        "apiVersion: outrigger.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {name: p, namespace: bank}\nspec:\n  jwt:\n  - issuer: https://id.example.com\n    jwks: {externalService: {name: id, path: /keys}}\n",
        &[
            "case.yaml:7: AccessPolicy bank/p: spec.jwt[0].jwks.externalService.name: there is no ExternalService bank/id",
        ],
    ),
    error(
        "a backend that does not exist",
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r, namespace: bank}\nspec:\n  parentRefs: [{kind: Service, group: \"\", name: orders}]\n  rules:\n  - backendRefs:\n    - {name: orders, port: 80}\n    - {name: order, port: 80}\n",
        &[
            "case.yaml:9: HTTPRoute bank/r: spec.rules[0].backendRefs[1].name: there is no Service bank/order",
        ],
    ),
    error(
        "a backend's port that does not exist",
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r, namespace: bank}\nspec:\n  parentRefs: [{kind: Service, group: \"\", name: orders}]\n  rules:\n  - backendRefs: [{name: orders, port: 8080}]\n",
        &[
            "case.yaml:7: HTTPRoute bank/r: spec.rules[0].backendRefs[0].port: Service bank/orders has no port 8080 (it has 80)",
        ],
    ),
    error(
        "a parent that does not exist",
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r, namespace: bank}\nspec:\n  parentRefs: [{kind: Service, group: \"\", name: order}]\n  rules: [{backendRefs: [{name: orders, port: 80}]}]\n",
        &["case.yaml:5: HTTPRoute bank/r: spec.parentRefs[0].name: there is no Service bank/order"],
    ),
    error(
        "a target that does not exist",
        "apiVersion: outrigger.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {name: p, namespace: bank}\nspec:\n  targetRefs: [{kind: Service, name: order}]\n  deadline: 1s\n",
        &[
            "case.yaml:5: TrafficPolicy bank/p: spec.targetRefs[0].name: there is no Service bank/order",
        ],
    ),
    error(
        "a slice of a Service that does not exist",
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: s, namespace: bank, labels: {kubernetes.io/service-name: gone}}\naddressType: IPv4\nendpoints: []\nports: []\n",
        &["case.yaml:3: EndpointSlice bank/s: metadata.labels: there is no Service bank/gone"],
    ),
    warning(
        "weights that are all 0",
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r, namespace: bank}\nspec:\n  parentRefs: [{kind: Service, group: \"\", name: orders}]\n  rules:\n  - backendRefs: [{name: orders, port: 80, weight: 0}]\n",
        &[
            "case.yaml:7: HTTPRoute bank/r: spec.rules[0].backendRefs: every weight is 0, so every request gets 500",
        ],
    ),
    warning(
        "a rule without backends",
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r, namespace: bank}\nspec:\n  parentRefs: [{kind: Service, group: \"\", name: orders}]\n  rules:\n  - matches: [{path: {value: /a}}]\n",
        &[
            "case.yaml:7: HTTPRoute bank/r: spec.rules[0]: has no backendRefs, so every request gets 500",
        ],
    ),
    warning(
        "a match that an earlier rule has",
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r, namespace: bank}\nspec:\n  parentRefs: [{kind: Service, group: \"\", name: orders}]\n  rules:\n  - matches: [{path: {value: /a}}]\n    backendRefs: [{name: orders, port: 80}]\n  - matches: [{path: {value: /a/}}]\n    backendRefs: [{name: orders, port: 80}]\n",
        &[
            "case.yaml:9: HTTPRoute bank/r: spec.rules[1].matches[0]: never matches at Service bank/orders port 80: spec.rules[0].matches[0] is the same and takes precedence",
        ],
    ),
    warning(
        "a match that another route has",
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: a, namespace: bank}\nspec:\n  parentRefs: [{kind: Service, group: \"\", name: orders}]\n  rules: [{backendRefs: [{name: orders, port: 80}]}]\n---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: b, namespace: bank}\nspec:\n  parentRefs: [{kind: Service, group: \"\", name: orders}]\n  rules: [{backendRefs: [{name: orders, port: 80}]}]\n",
        &[
            "case.yaml:13: HTTPRoute bank/b: spec.rules[0]: never matches at Service bank/orders port 80: spec.rules[0] of HTTPRoute bank/a is the same and takes precedence",
        ],
    ),
    warning(
        "hostnames of a route of a Service",
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r, namespace: bank}\nspec:\n  hostnames: [orders.example.com]\n  parentRefs: [{kind: Service, group: \"\", name: orders}]\n  rules: [{backendRefs: [{name: orders, port: 80}]}]\n",
        &["case.yaml:5: HTTPRoute bank/r: spec.hostnames: "],
    ),
    warning(
        "a Service without anything",
        "apiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: bank}\nspec: {}\n",
        &[
            "case.yaml:4: Service bank/s: spec.ports: is empty, so nobody can call it",
            "case.yaml:4: Service bank/s: spec.selector: is missing, and no EndpointSlice has the label",
        ],
    ),
    warning(
        "a Service whose selector matches nothing",
        "apiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: bank}\nspec:\n  selector: {app: order}\n  ports: [{port: 80}]\n",
        &[
            "case.yaml:5: Service bank/s: spec.selector: matches no known workload in namespace bank",
        ],
    ),
    warning(
        "a port that no workload has",
        "apiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: bank}\nspec:\n  selector: {app: orders}\n  ports:\n  - {port: 80, targetPort: web}\n",
        &[
            "case.yaml:7: Service bank/s: spec.ports[0].targetPort: no selected workload has a port \"web\"",
        ],
    ),
    warning(
        "two policies on one section",
        "apiVersion: outrigger.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {name: a, namespace: bank}\nspec: {targetRefs: [{kind: Service, name: orders}], maxVisits: 2}\n---\napiVersion: outrigger.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {name: b, namespace: bank}\nspec:\n  targetRefs: [{kind: Service, name: orders}]\n  maxVisits: 3\n",
        &[
            "case.yaml:11: TrafficPolicy bank/b: spec.maxVisits: overridden by TrafficPolicy bank/a, which also sets it for Service bank/orders",
        ],
    ),
    warning(
        "an experiment that has ended",
        "apiVersion: outrigger.dev/v1alpha1\nkind: FaultInjection\nmetadata: {name: f, namespace: bank}\nspec:\n  targetRefs: [{kind: Service, name: orders}]\n  percent: 10\n  fault: {delay: {fixed: 200ms}}\n  start: \"2024-11-22T10:00:00Z\"\n  end: \"2024-11-22T10:30:00Z\"\n",
        &["case.yaml:9: FaultInjection bank/f: spec.end: has passed: the fault injection is over"],
    ),
    warning(
        "a fault for callers that nobody is",
        "apiVersion: outrigger.dev/v1alpha1\nkind: FaultInjection\nmetadata: {name: f, namespace: bank}\nspec:\n  targetRefs: [{kind: Service, name: orders}]\n  from: [{namespace: bank, serviceAccount: wbe}]\n  percent: 10\n  fault: {delay: {fixed: 200ms}}\n  start: \"2199-11-22T10:00:00Z\"\n  end: \"2199-11-22T10:30:00Z\"\n",
        &["case.yaml:6: FaultInjection bank/f: spec.from[0]: no known workload runs as bank/wbe"],
    ),
    warning(
        "an object without a namespace among others",
        "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {selector: {app: orders}, ports: [{port: 80}]}\n",
        &[
            "case.yaml:3: Service default/s: metadata.namespace: is missing, so it is in \"default\"; others are in bank",
        ],
    ),
    error(
        "an object that is there twice",
        "apiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: bank}\nspec: {selector: {app: orders}, ports: [{port: 80, targetPort: 8080}]}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: bank}\nspec: {selector: {app: orders}, ports: [{port: 81, targetPort: 8080}]}\n",
        &[
            "case.yaml:6: Service bank/s: is defined twice in this file; the first definition stays in force",
        ],
    ),
    error(
        "a key that is there twice",
        "apiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: bank}\nspec:\n  selector: {app: orders}\n  ports: [{port: 80}]\n  ports: [{port: 81}]\n",
        &["case.yaml:7: ", "ports"],
    ),
    error(
        "a list that is none",
        "apiVersion: v1\nkind: List\nitem: []\n",
        &["case.yaml:1: items: must be a list of objects"],
    ),
    error("no kind", "apiVersion: v1\nmetadata: {name: s}\n", &["case.yaml:1: kind: is missing"]),
    error("a tab", "apiVersion: v1\nkind: Service\nmetadata:\n\tname: s\n", &["case.yaml:4: "]),
    error(
        "a number where a text belongs",
        "apiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: bank}\nspec: {selector: {app: 1}, ports: [{port: 80}]}\n",
        &["case.yaml:4: Service bank/s: spec.selector.app: must be a text, not the number 1"],
    ),
    error(
        "a list where a map belongs",
        "apiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: bank}\nspec: []\n",
        &["case.yaml:4: Service bank/s: spec: must be a map of fields, not a list"],
    ),
    error(
        "a text where a number belongs",
        "apiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: bank}\nspec: {selector: {app: a}, ports: [{port: \"80\"}]}\n",
        &[
            "case.yaml:4: Service bank/s: spec.ports[0].port: must be a whole number, not the text \"80\"",
        ],
    ),
    error(
        "a required field that is missing",
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r, namespace: bank}\n",
        &["case.yaml:1: HTTPRoute bank/r: spec: is missing"],
    ),
    error(
        "a word that is none of those",
        "apiVersion: outrigger.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {name: p, namespace: bank}\nspec: {default: Perhaps}\n",
        &["case.yaml:4: AccessPolicy bank/p: spec.default: \"Perhaps\" must be Allow or Deny"],
    ),
];

fn folder(manifest: &str) -> TempDir {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("good.yaml"), GOOD).unwrap();
    fs::write(folder.path().join("case.yaml"), manifest).unwrap();
    folder
}

fn check(arguments: &[&str], folder: &Path) -> Output {
    let program = env!("CARGO_BIN_EXE_outrigger-control-plane");
    Command::new(program).arg("check").args(arguments).current_dir(folder).output().unwrap()
}

fn text(out: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
}

#[test]
fn whatever_has_no_effect_is_named_with_its_line_and_remedy() {
    let mut failed = Vec::new();
    for case in CASES {
        let folder = folder(case.manifest);
        let out = check(&["."], folder.path());
        let said = text(&out);
        let missing: Vec<_> = case.says.iter().filter(|says| !said.contains(**says)).collect();
        let code = out.status.code();
        let strict = check(&["--strict", "."], folder.path()).status.code();
        if !missing.is_empty() || code != Some(i32::from(case.errors)) || strict != Some(1) {
            failed.push(format!(
                "{}: {missing:#?}, {code:?}, --strict {strict:?}:\n{said}",
                case.name
            ));
        }
    }
    assert!(failed.is_empty(), "{} of {}:\n{}", failed.len(), CASES.len(), failed.join("\n"));
}

#[test]
fn good_manifests_print_one_line() {
    let folder = folder("");
    fs::remove_file(folder.path().join("case.yaml")).unwrap();
    let out = check(&["--strict", "."], folder.path());
    assert_eq!(text(&out), "3 objects read, 0 errors, 0 warnings\n");
    let others = "apiVersion: apps/v1\nkind: Deployment\n---\napiVersion: serving.knative.dev/v1\nkind: Service\n";
    fs::write(folder.path().join("others.yaml"), others).unwrap();
    let last = "3 objects read, 0 errors, 0 warnings; 2 objects of other kinds ignored \
                (apps/v1 Deployment, serving.knative.dev/v1 Service)\n";
    assert_eq!(text(&check(&["--strict", "."], folder.path())), last);
}

#[test]
fn files_folders_and_standard_input_are_checked_together() {
    let folder = TempDir::new().unwrap();
    fs::create_dir(folder.path().join("more")).unwrap();
    fs::write(folder.path().join("good.txt"), GOOD).unwrap();
    let route = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r, namespace: bank}\nspec:\n  parentRefs: [{kind: Service, group: \"\", name: orders}]\n  rules:\n  - backendRefs: [{name: NAME, port: 80}]\n";
    fs::write(folder.path().join("more/route.yaml"), route.replace("NAME", "orders")).unwrap();
    let out = check(&["good.txt", "more"], folder.path());
    assert_eq!(text(&out), "4 objects read, 0 errors, 0 warnings\n");
    let out = check(&["more"], folder.path());
    assert!(text(&out).starts_with("more/route.yaml:5: HTTPRoute bank/r: spec.parentRefs[0].name: there is no Service bank/orders\n"), "{}", text(&out));
    let program = env!("CARGO_BIN_EXE_outrigger-control-plane");
    let mut checking = Command::new(program)
        .args(["check", "good.txt", "-"])
        .current_dir(folder.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let written = route.replace("NAME", "gone");
    checking.stdin.take().unwrap().write_all(written.as_bytes()).unwrap();
    let out = checking.wait_with_output().unwrap();
    let wanted = "stdin:7: HTTPRoute bank/r: spec.rules[0].backendRefs[0].name: there is no Service bank/gone\n4 objects read, 1 error, 0 warnings\n";
    assert_eq!(text(&out), wanted);
}

#[test]
fn what_cannot_be_read_is_named() {
    let folder = TempDir::new().unwrap();
    let out = check(&["gone.yaml"], folder.path());
    assert_eq!(
        text(&out),
        "outrigger-control-plane: gone.yaml: No such file or directory (os error 2)\n"
    );
    assert_eq!(out.status.code(), Some(1));
    let out = check(&["."], folder.path());
    assert_eq!(
        text(&out),
        ".: contains no manifest (a .yaml, .yml or .json file) (warning)\n0 objects read, 0 errors, 1 warning\n"
    );
    assert_eq!(out.status.code(), Some(0));
    std::os::unix::fs::symlink("nowhere.yaml", folder.path().join("link.yaml")).unwrap();
    let out = check(&["."], folder.path());
    assert!(text(&out).starts_with("./link.yaml: is a dangling link"), "{}", text(&out));
    assert_eq!(out.status.code(), Some(1));
    fs::remove_file(folder.path().join("link.yaml")).unwrap();
    fs::write(folder.path().join("note.yaml"), "# nothing\n").unwrap();
    let out = check(&["."], folder.path());
    assert_eq!(
        text(&out),
        "./note.yaml: contains no object (warning)\n0 objects read, 0 errors, 1 warning\n"
    );
}

#[test]
fn a_key_set_beside_the_manifests_is_no_manifest() {
    let folder = folder(
        "apiVersion: outrigger.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {name: p, namespace: bank}\nspec:\n  jwt:\n  - issuer: https://id.example.com\n    jwks: {file: keys.json}\n",
    );
    let keys = r#"{"keys": [{"kty": "EC", "crv": "P-256", "x": "a", "y": "b"}]}"#;
    fs::write(folder.path().join("keys.json"), keys).unwrap();
    let out = check(&["--strict", "."], folder.path());
    assert!(text(&out).starts_with("4 objects read, 0 errors, 0 warnings"), "{}", text(&out));
    let out = check(&["--strict", "good.yaml", "case.yaml"], folder.path());
    assert!(text(&out).starts_with("4 objects read, 0 errors, 0 warnings"), "{}", text(&out));
    fs::write(folder.path().join("keys.json"), "{}").unwrap();
    assert_eq!(check(&["case.yaml"], folder.path()).status.code(), Some(1));
}
