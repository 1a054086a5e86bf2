//! Every flag and environment variable of the control plane; those of its commands are in [`commands`].

pub mod commands;
mod issuer;
mod pods;
mod telemetry;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use outrigger_core::address::LocalEndpoints;
use outrigger_core::config::{MeshSettings, MtlsMode, Unmatched};
use outrigger_core::identity::TrustDomain;
use outrigger_core::policy::access::Action;

use crate::cluster::definitions::Remove;
use crate::index::Security;
use crate::replica::{ReplicaName, Timing};
use crate::source::kubernetes::ApiServerOptions;
pub use commands::{ClusterOptions, StateDir, TokenOptions, TrustStep};
pub use issuer::IssuerOptions;
pub use pods::PodOptions;
pub use telemetry::TelemetryOptions;

/// The control plane of the Outrigger service mesh: tells every proxy what it needs to know.
#[derive(Debug, Parser)]
#[command(
    name = "outrigger-control-plane",
    version,
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  outrigger-control-plane --manifests ./manifests --state-dir ./state\n  \
                  outrigger-control-plane --kubernetes --kube-context staging --identity off"
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub options: Options,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Print a join token, with which a proxy registers its workload; or one for `outrigger tap`.
    Token(TokenOptions),
    /// Look at the roots that the mesh trusts, and rotate them step by step: add-root,
    /// issue-from, remove-root. An unsafe step is refused and says who is not ready.
    Trust {
        #[command(subcommand)]
        step: TrustStep,
    },
    /// Read manifests, print every problem with its file, line and field, and exit with 1 if one is an error:
    /// wrong syntax, a field or a reference that is wrong, a policy that would not be in force. A warning is for
    /// what is valid and has no effect, or not the one that it seems to have.
    #[command(after_help = "Examples:\n  \
                      outrigger-control-plane check manifests/\n  \
                      outrigger-control-plane check --strict services.yaml policies/\n  \
                      helm template chart | outrigger-control-plane check -")]
    Check {
        /// Files, folders with everything in them that ends in .yaml, .yml or .json, or - for standard input. They
        /// are checked together: one may refer to objects of another.
        #[arg(required = true, value_name = "PATH")]
        paths: Vec<PathBuf>,
        /// Exit with 1 for warnings, too.
        #[arg(long)]
        strict: bool,
        /// The same as the control plane's flag; auto allows loopback addresses.
        #[arg(
            long,
            env = "OUTRIGGER_LOCAL_ENDPOINTS",
            value_name = "POLICY",
            value_enum,
            default_value_t = LocalPolicy::Auto
        )]
        local_endpoints: LocalPolicy,
    },
    /// Print the CustomResourceDefinitions of TrafficPolicy, ServerPolicy, AccessPolicy, FaultInjection,
    /// ExternalService and ExternalWorkload as YAML, each with its schema, bounds, rules and descriptions. A cluster
    /// needs them before anything else, and those of a new version before its control plane.
    #[command(
        after_help = "Example: outrigger-control-plane crds | kubectl apply --server-side -f -\n\n\
                      Afterwards `kubectl explain trafficpolicy.spec.retries` tells what a field does, and\n\
                      `kubectl get outrigger -A` lists every object of these kinds."
    )]
    Crds {
        /// Apply them to the cluster instead, and wait until it serves them.
        #[arg(long, conflicts_with = "repository")]
        apply: bool,

        /// Take away what a control plane has kept in --kube-namespace, the root of its mesh included, and the
        /// definitions of kinds of which there is no object; `keep` leaves all definitions.
        #[arg(long, value_name = "WHICH", value_enum, conflicts_with_all = ["apply", "repository"], requires = "kube_namespace")]
        remove: Option<Remove>,

        #[command(flatten)]
        cluster: ClusterOptions,

        /// Write them, and docs/reference.md, into a copy of the repository instead.
        #[arg(long, hide = true, value_name = "DIR")]
        repository: Option<PathBuf>,
    },
}

#[derive(Clone, Debug, Args)]
pub struct Options {
    /// Folder of Kubernetes manifests (YAML, JSON) that describe the mesh; changes take effect at
    /// once.
    #[arg(long, env = "OUTRIGGER_MANIFESTS", value_name = "DIR")]
    pub manifests: Option<PathBuf>,

    /// Take Services, pods, routes and policies from the API of a Kubernetes cluster: in a pod from its own
    /// cluster, elsewhere from the one of KUBECONFIG or ~/.kube/config.
    #[arg(long, env = "OUTRIGGER_KUBERNETES", conflicts_with = "manifests")]
    pub kubernetes: bool,

    /// The kubeconfig file.
    #[arg(long, env = "OUTRIGGER_KUBECONFIG", value_name = "FILE", requires = "kubernetes")]
    pub kubeconfig: Option<PathBuf>,

    /// Context of the kubeconfig file. Unset: its current context.
    #[arg(long, env = "OUTRIGGER_KUBE_CONTEXT", value_name = "NAME", requires = "kubernetes")]
    pub kube_context: Option<String>,

    /// The namespace in which the control plane keeps its Secrets, ConfigMaps and Leases: its own one unless
    /// set.
    #[arg(long, env = "OUTRIGGER_KUBE_NAMESPACE", value_name = "NAME", requires = "kubernetes")]
    pub kube_namespace: Option<String>,

    #[command(flatten)]
    pub pods: PodOptions,

    /// Address for certificates, discovery and registration (gRPC).
    #[arg(
        long,
        env = "OUTRIGGER_LISTEN",
        value_name = "IP:PORT",
        default_value = "127.0.0.1:4780"
    )]
    pub listen: SocketAddr,

    /// Address of the admin server: /live, /ready, /metrics, /index, /proxies, /identity, /problems. Unauthenticated,
    /// and it shows everything: keep it on loopback.
    #[arg(long, env = "OUTRIGGER_ADMIN", value_name = "IP:PORT", default_value = "127.0.0.1:4782")]
    pub admin: SocketAddr,

    /// Address that serves only /live, /ready and /metrics, for a kubelet and Prometheus.
    #[arg(long, env = "OUTRIGGER_METRICS", value_name = "IP:PORT")]
    pub metrics: Option<SocketAddr>,

    /// Folder for the certificate authority, the key of join tokens and registrations, which survive a restart there.
    /// Required for identities and for workloads that register themselves. With --kubernetes all of that is stored in
    /// the cluster, and only the socket for the `trust` commands is here.
    #[arg(long, env = "OUTRIGGER_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,

    /// Name of this replica among the control planes that share a state directory; unique, of lower-case letters,
    /// digits and '-'.
    #[arg(
        long,
        env = "OUTRIGGER_REPLICA",
        value_name = "NAME",
        default_value_t = ReplicaName::default()
    )]
    pub replica: ReplicaName,

    /// How replicas look at each other; tests hurry.
    #[arg(skip)]
    pub timing: Timing,

    /// Domain of service names: orders.bank.svc.DOMAIN.
    #[arg(
        long,
        env = "OUTRIGGER_CLUSTER_DOMAIN",
        value_name = "DOMAIN",
        default_value = "cluster.local"
    )]
    pub cluster_domain: String,

    /// What proxies do with undeclared destinations. Undeclared names below the cluster domain or a known namespace
    /// are always refused.
    #[arg(
        long,
        env = "OUTRIGGER_UNMATCHED",
        value_name = "POLICY",
        value_enum,
        default_value_t = UnmatchedPolicy::Passthrough
    )]
    pub unmatched: UnmatchedPolicy,

    /// Maximum endpoints of one service sent to a proxy.
    #[arg(
        long,
        env = "OUTRIGGER_MAX_ENDPOINTS",
        value_name = "COUNT",
        default_value_t = 100,
        value_parser = clap::value_parser!(u32).range(1..=10_000)
    )]
    pub max_endpoints: u32,

    /// How long a workload stays an endpoint after its registration stream broke, and after a restart of the control
    /// plane (15s; also 500ms, 2m, 1h).
    #[arg(
        long,
        env = "OUTRIGGER_GRACE_PERIOD",
        value_name = "DURATION",
        default_value = "15s",
        value_parser = parse_duration
    )]
    pub grace_period: Duration,

    /// Whether an endpoint (of an EndpointSlice, an ExternalWorkload, an ExternalService or a registration)
    /// may have an address of the caller's own machine: loopback or link-local. Multicast, unspecified and
    /// broadcast addresses never.
    #[arg(
        long,
        env = "OUTRIGGER_LOCAL_ENDPOINTS",
        value_name = "POLICY",
        value_enum,
        default_value_t = LocalPolicy::Auto
    )]
    pub local_endpoints: LocalPolicy,

    /// Whether workloads have identities: certificates, and TLS on the gRPC port. Without them everything is
    /// plaintext and unauthenticated.
    #[arg(
        long,
        env = "OUTRIGGER_IDENTITY",
        value_name = "SWITCH",
        value_enum,
        default_value_t = Switch::On
    )]
    pub identity: Switch,

    /// The first part of every identity: spiffe://DOMAIN/ns/NAMESPACE/sa/ACCOUNT.
    #[arg(
        long,
        env = "OUTRIGGER_TRUST_DOMAIN",
        value_name = "DOMAIN",
        default_value = "outrigger.local"
    )]
    pub trust_domain: TrustDomain,

    /// Lifetime of a certificate (24h; also 90s, 30m; at least 30s). Proxies renew after two thirds of it.
    #[arg(
        long,
        env = "OUTRIGGER_CERTIFICATE_LIFETIME",
        value_name = "DURATION",
        default_value = "24h",
        value_parser = parse_certificate_lifetime
    )]
    pub certificate_lifetime: Duration,

    #[command(flatten)]
    pub issuer: IssuerOptions,

    /// Whether inbound ports accept plaintext from outside the mesh.
    #[arg(
        long,
        env = "OUTRIGGER_MTLS",
        value_name = "MODE",
        value_enum,
        default_value_t = Mtls::Permissive
    )]
    pub mtls: Mtls,

    /// Who may call a port without an AccessPolicy.
    #[arg(
        long,
        env = "OUTRIGGER_DEFAULT_ACCESS",
        value_name = "ACTION",
        value_enum,
        default_value_t = DefaultAccess::Allow
    )]
    pub default_access: DefaultAccess,

    #[command(flatten)]
    pub telemetry: TelemetryOptions,

    /// What is logged: error, warn, info, debug, trace (not in a release build), or per module as in
    /// `info,outrigger_control_plane::discovery=debug`.
    #[arg(long, env = "OUTRIGGER_LOG", value_name = "FILTER", default_value = "info")]
    pub log: String,

    /// Exit when the parent process exits.
    #[arg(long, env = "OUTRIGGER_EXIT_WITH_PARENT")]
    pub exit_with_parent: bool,
}

impl Options {
    pub fn settings(&self) -> MeshSettings {
        MeshSettings {
            cluster_domain: self.cluster_domain.trim_matches('.').to_ascii_lowercase(),
            unmatched: match self.unmatched {
                UnmatchedPolicy::Passthrough => Unmatched::Passthrough,
                UnmatchedPolicy::Refuse => Unmatched::Refuse,
            },
            max_endpoints: self.max_endpoints,
            namespaces: Vec::new(),
            telemetry: self.telemetry.telemetry(),
        }
    }

    pub fn security(&self) -> Security {
        let on = self.identity == Switch::On;
        Security {
            trust_domain: on.then(|| self.trust_domain.clone()),
            mtls: match self.mtls {
                Mtls::Permissive => MtlsMode::Permissive,
                Mtls::Strict => MtlsMode::Strict,
            },
            default_access: match self.default_access {
                DefaultAccess::Allow => Action::Allow,
                DefaultAccess::Deny => Action::Deny,
            },
        }
    }

    /// Which endpoints on the callers' own machines are taken.
    pub fn local(&self) -> LocalEndpoints {
        self.local_endpoints.of(self.listen.ip().to_canonical().is_loopback())
    }

    /// The cluster that objects come from, if they come from one.
    pub fn cluster(&self) -> Option<ApiServerOptions> {
        let (kubeconfig, context) = (self.kubeconfig.clone(), self.kube_context.clone());
        self.kubernetes.then_some(ApiServerOptions { kubeconfig, context })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DefaultAccess {
    /// Everybody.
    Allow,
    /// Nobody.
    Deny,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LocalPolicy {
    /// Loopback addresses where --listen is one, since the whole mesh is on this machine then.
    Auto,
    /// Loopback and link-local addresses.
    Allow,
    /// Neither.
    Refuse,
}

impl LocalPolicy {
    /// `one_machine`: only proxies of this machine can reach the control plane.
    pub fn of(self, one_machine: bool) -> LocalEndpoints {
        match self {
            Self::Auto if one_machine => LocalEndpoints::Loopback,
            Self::Auto | Self::Refuse => LocalEndpoints::Refuse,
            Self::Allow => LocalEndpoints::Allow,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    On,
    Off,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mtls {
    /// Plaintext is let in, counted and visible, as an unauthenticated caller.
    Permissive,
    /// Only callers with a certificate of the mesh.
    Strict,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum UnmatchedPolicy {
    /// Connect to where the app wanted to go.
    Passthrough,
    /// Answer with the reason destination_refused.
    Refuse,
}

/// Below this a renewal would not be over before the end.
const MIN_CERTIFICATE_LIFETIME: Duration = Duration::from_secs(30);
/// Above this a certificate that leaked is a danger for too long.
const MAX_CERTIFICATE_LIFETIME: Duration = Duration::from_secs(365 * 24 * 3600);

fn parse_certificate_lifetime(text: &str) -> Result<Duration, String> {
    let lifetime = parse_duration(text)?;
    if lifetime < MIN_CERTIFICATE_LIFETIME {
        return Err("must be at least 30s, because renewals would be too late otherwise".to_owned());
    }
    if lifetime > MAX_CERTIFICATE_LIFETIME {
        return Err("must be at most 365d".to_owned());
    }
    Ok(lifetime)
}

/// A number and its unit: `500ms`, `15s`, `2m`, `1h`, `7d`.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a duration: write a number and ms, s, m, h or d");
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let number: u64 = text[..digits].parse().map_err(|_| wrong())?;
    let millis = match &text[digits..] {
        "ms" => 1,
        "s" => 1000,
        "m" => 60 * 1000,
        "h" => 60 * 60 * 1000,
        "d" => 24 * 60 * 60 * 1000,
        _ => return Err(wrong()),
    };
    number.checked_mul(millis).map(Duration::from_millis).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn durations_need_a_unit() {
        assert_eq!(parse_duration("15s"), Ok(Duration::from_secs(15)));
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("7d"), Ok(Duration::from_secs(7 * 86400)));
        assert!(parse_certificate_lifetime("30s").is_ok());
        assert!(parse_certificate_lifetime("29s").is_err());
        for text in ["", "15", "s", "-1s", "1.5s", "99999999999999999999s", "1w"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }
}
