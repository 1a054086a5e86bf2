//! Real processes over loopback: a control plane, proxies, apps, and clients that we did not write.

mod access;
mod cache;
mod config;
mod deadlines;
mod endpoints;
mod external;
mod fallbacks;
mod faults;
mod health;
mod hostile;
mod identity;
mod life;
mod lookups;
mod mirrors;
mod names;
mod once;
mod outputs;
mod protocols;
mod resilience;
mod server_policy;
mod silence;
mod soak;
mod tunnels;
mod upstreams;

use outrigger_tests::app::Echo;
use outrigger_tests::process::{ControlPlane, Proxy};

/// A service `bank/<name>:80` of workloads labelled `app: <name>`, with a port of some protocol.
fn service(name: &str, protocol: &str) -> String {
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
fn unmeshed(name: &str, protocol: &str, port: u16) -> String {
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

/// The usual mesh: an app `web` with a sidecar, and a caller with another.
struct Mesh {
    // Dropped in this order: callers before what they call.
    caller: Proxy,
    web: Proxy,
    plane: ControlPlane,
    app: Echo,
}

impl Mesh {
    /// `protocol` as `--app-port` takes it.
    fn start(protocol: &str) -> Self {
        let app = Echo::start("web");
        let plane = ControlPlane::start(&[("web.yaml", &service("web", ""))]);
        let port = format!("{}={protocol}:main", app.port);
        let web = Proxy::beside(&plane, "web", &[port], &[]);
        let caller = Proxy::caller(&plane, &[]);
        Self { caller, web, plane, app }
    }
}
