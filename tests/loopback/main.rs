//! Real processes over loopback: a control plane, proxies, apps, and clients that we did not write.

mod access;
mod cache;
mod config;
mod deadlines;
mod endpoints;
mod external;
mod fallbacks;
mod faults;
mod gateway_api;
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
mod wire;

use outrigger_tests::app::Echo;
use outrigger_tests::manifests::{service, unmeshed};
use outrigger_tests::process::{ControlPlane, Proxy};

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
