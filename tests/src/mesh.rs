//! The usual mesh: an app `web` with a sidecar, and a caller with another.

use crate::app::Echo;
use crate::manifests::service;
use crate::process::{ControlPlane, Proxy};

pub struct Mesh {
    // Dropped in this order: callers before what they call.
    pub caller: Proxy,
    pub web: Proxy,
    pub plane: ControlPlane,
    pub app: Echo,
}

impl Mesh {
    /// `protocol` as `--app-port` takes it.
    pub fn start(protocol: &str) -> Self {
        let app = Echo::start("web");
        let plane = ControlPlane::start(&[("web.yaml", &service("web", ""))]);
        let port = format!("{}={protocol}:main", app.port);
        let web = Proxy::beside(&plane, "web", &[port], &[]);
        let caller = Proxy::caller(&plane, &[]);
        Self { caller, web, plane, app }
    }
}
