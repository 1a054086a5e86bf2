//! Manifests that most tests need.

/// A route that copies each request to `bank/app:80` to `bank/shadow:80`.
pub const MIRRORED: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\n\
    metadata: {name: copied, namespace: bank}\nspec:\n  \
    parentRefs: [{group: \"\", kind: Service, name: app}]\n  rules:\n  \
    - filters: [{type: RequestMirror, requestMirror: {backendRef: {name: shadow, port: 80}}}]\n    \
    backendRefs: [{name: app, port: 80}]\n";

/// A service `bank/<name>:80` of workloads labelled `app: <name>`, with a port of some protocol.
pub fn service(name: &str, protocol: &str) -> String {
    let app_protocol = match protocol {
        "" => String::new(),
        protocol => format!(", appProtocol: {protocol}"),
    };
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: bank}}\n\
         spec:\n  selector: {{app: {name}}}\n  ports: [{{name: main, port: 80, targetPort: main{app_protocol}}}]\n"
    )
}

/// A service with one endpoint that has no sidecar.
pub fn unmeshed(name: &str, protocol: &str, port: u16) -> String {
    let app_protocol = match protocol {
        "" => String::new(),
        protocol => format!(", appProtocol: {protocol}"),
    };
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: bank}}\n\
         spec: {{ports: [{{name: main, port: 80{app_protocol}}}]}}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: {name}, namespace: bank, labels: {{kubernetes.io/service-name: {name}}}}}\n\
         addressType: IPv4\nports: [{{name: main, port: {port}}}]\n\
         endpoints: [{{addresses: [\"127.0.0.1\"], conditions: {{ready: true}}}}]\n"
    )
}

/// A TrafficPolicy on one service of the bank; `spec` as YAML, indented by two.
pub fn traffic_policy(service: &str, spec: &str) -> String {
    format!(
        "apiVersion: outrigger.dev/v1alpha1\nkind: TrafficPolicy\n\
         metadata: {{name: {service}, namespace: bank}}\n\
         spec:\n  targetRefs: [{{kind: Service, group: \"\", name: {service}}}]\n{spec}"
    )
}
