//! What holds for every pod unless its annotations say otherwise.

use std::fmt;

use crate::{INBOUND_PORT, OUTBOUND_PORT};

/// What the operator of the mesh has decided. Its defaults are those of `outrigger inject`.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Written into each pod, so that old proxies can be found.
    pub version: String,
    pub mode: Mode,
    /// Image of the sidecar.
    pub proxy_image: String,
    /// Image of the init container. None: the sidecar's, whatever a pod has for that.
    pub init_image: Option<String>,
    pub image_pull_policy: PullPolicy,
    /// URL of the control plane's discovery port, as a pod reaches it.
    pub control_plane: String,
    /// Where a pod finds the roots of the mesh when it starts; later ones come from the control plane.
    pub trust_bundle: TrustBundle,
    /// Audience of the projected token, the control plane's `--token-audience`.
    pub token_audience: String,
    /// Lifetime of the projected token in seconds; the kubelet renews it. Kubernetes wants 600 at least.
    pub token_seconds: u32,
    /// User and group of the proxy: what it sends is not redirected.
    pub uid: u32,
    pub cluster_domain: String,
    /// Ports of pods that are not redirected to the proxy.
    pub skip_inbound_ports: Vec<u16>,
    /// Ports of others that pods reach without the proxy.
    pub skip_outbound_ports: Vec<u16>,
    /// Networks that pods reach without the proxy, as in `169.254.169.254/32`.
    pub skip_outbound_networks: Vec<String>,
    pub proxy: Resources,
    pub init: Resources,
    /// The proxy's `--log`.
    pub log: String,
    /// The proxy's `--access-log`; none: what the control plane says.
    pub access_log: Option<String>,
}

/// How an app's traffic comes to its proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// An init container redirects it; needs NET_ADMIN.
    Init,
    /// The CNI plugin has redirected it; an init container proves that.
    Cni,
    /// `HTTP_PROXY` and its like in the app's environment; nothing is redirected.
    Env,
}

impl Mode {
    pub const ALL: [Self; 3] = [Self::Init, Self::Cni, Self::Env];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Init => "init",
            Self::Cni => "cni",
            Self::Env => "env",
        }
    }

    /// None: it is none of `init`, `cni` and `env`.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| mode.as_str() == text)
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// When the kubelet pulls an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PullPolicy {
    Always,
    IfNotPresent,
    Never,
}

impl PullPolicy {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Always => "Always",
            Self::IfNotPresent => "IfNotPresent",
            Self::Never => "Never",
        }
    }

    /// None: it is not spelled as Kubernetes does.
    pub fn parse(text: &str) -> Option<Self> {
        let all = [Self::Always, Self::IfNotPresent, Self::Never];
        all.into_iter().find(|policy| policy.as_str() == text)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TrustBundle {
    /// In a ConfigMap of the pod's namespace.
    ConfigMap(ConfigMapKey),
    /// In PEM, in an annotation of the pod.
    Roots(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigMapKey {
    pub name: String,
    pub key: String,
}

/// Resources of a container, as Kubernetes writes quantities (`10m`, `64Mi`). Requests are always set, so that
/// a ResourceQuota lets the pod in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resources {
    pub cpu_request: String,
    /// None: as much as there is.
    pub cpu_limit: Option<String>,
    pub memory_request: String,
    pub memory_limit: Option<String>,
}

impl Default for Settings {
    fn default() -> Self {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        Self {
            proxy_image: format!("outrigger/proxy:{version}"),
            version,
            mode: Mode::Init,
            init_image: None,
            image_pull_policy: PullPolicy::IfNotPresent,
            control_plane: "https://outrigger-control-plane.outrigger-system.svc:4780".to_owned(),
            trust_bundle: TrustBundle::ConfigMap(ConfigMapKey {
                name: "outrigger-trust-bundle.pem".to_owned(),
                key: "document".to_owned(),
            }),
            token_audience: "outrigger.dev".to_owned(),
            token_seconds: 3600,
            uid: u32::from(OUTBOUND_PORT),
            cluster_domain: "cluster.local".to_owned(),
            skip_inbound_ports: Vec::new(),
            skip_outbound_ports: Vec::new(),
            skip_outbound_networks: Vec::new(),
            // An idle proxy has some 10 MiB; 64 MiB of bodies and 16 MiB of cache are its own limits.
            proxy: Resources {
                cpu_request: "10m".to_owned(),
                cpu_limit: None,
                memory_request: "32Mi".to_owned(),
                memory_limit: Some("256Mi".to_owned()),
            },
            init: Resources {
                cpu_request: "10m".to_owned(),
                cpu_limit: None,
                memory_request: "16Mi".to_owned(),
                memory_limit: Some("64Mi".to_owned()),
            },
            log: "info".to_owned(),
            access_log: None,
        }
    }
}

/// The address of the proxy in an app's `HTTP_PROXY`.
pub(crate) fn proxy_url() -> String {
    format!("http://127.0.0.1:{OUTBOUND_PORT}")
}

/// Where the proxy listens: for the pod's address in either family, and in the mode `env` for its app alone.
pub(crate) fn listeners(mode: Mode) -> (String, String) {
    let outbound = match mode {
        Mode::Env => format!("127.0.0.1:{OUTBOUND_PORT}"),
        // What is redirected comes to loopback, of IPv4 or IPv6; others are refused by the proxy.
        Mode::Init | Mode::Cni => format!("[::]:{OUTBOUND_PORT}"),
    };
    (outbound, format!("[::]:{INBOUND_PORT}"))
}
