//! The flags of the commands.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::parse_duration;
use crate::grant::Grant;
use crate::source::kubernetes::ApiServerOptions;

#[derive(Debug, Args)]
pub struct TokenOptions {
    /// Namespace that the workload may register in, or whose requests may be seen.
    #[arg(long, value_name = "NAMESPACE")]
    pub namespace: String,

    /// Service account that it may register as.
    #[arg(long, value_name = "ACCOUNT", default_value = "default")]
    pub service_account: String,

    /// Make a token for `outrigger tap` instead: its holder may see the requests of the namespace's workloads.
    #[arg(long, conflicts_with_all = ["service_account", "any_address", "labels", "workloads"])]
    pub tap: bool,

    /// How long the token is valid (1h; also 90s, 30m, 7d).
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = parse_duration)]
    pub ttl: Duration,

    /// The control plane's state directory; its key is made if there is none yet.
    #[arg(long, env = "OUTRIGGER_STATE_DIR", value_name = "DIR")]
    pub state_dir: PathBuf,

    /// Let the workload register an address other than the one that it connects from.
    #[arg(long)]
    pub any_address: bool,

    /// Bind the token to exactly these labels: give each one. Without any the workload may have whatever
    /// labels it likes, and so join every Service of the namespace.
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = parse_label)]
    pub labels: Vec<(String, String)>,

    /// Bind the token to a workload's name; give several to allow each of them.
    #[arg(long = "workload", value_name = "NAME")]
    pub workloads: Vec<String>,
}

impl TokenOptions {
    pub fn grant(&self) -> Grant {
        Grant {
            any_address: self.any_address,
            labels: self.labels.iter().cloned().collect(),
            workloads: self.workloads.clone(),
            pod: None,
        }
    }
}

fn parse_label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("{text:?} is not a label: write KEY=VALUE")),
    }
}

#[derive(Debug, Subcommand)]
pub enum TrustStep {
    /// Print the roots, under which is issued, and who has which certificate.
    Status {
        #[command(flatten)]
        at: StateDir,
    },
    /// Add a root, which every proxy will trust beside the others, and print its name.
    AddRoot {
        /// A root made elsewhere, in PEM; without it a new one is made.
        #[arg(long, value_name = "FILE", requires = "key")]
        certificate: Option<PathBuf>,
        /// Its key, in PEM.
        #[arg(long, value_name = "FILE", requires = "certificate")]
        key: Option<PathBuf>,
        #[command(flatten)]
        at: StateDir,
    },
    /// Issue under another root from now on; every proxy renews at once.
    IssueFrom {
        /// The first digits of its name.
        root: String,
        /// Leave out proxies that are not connected: those that are still out there will not
        /// trust new certificates.
        #[arg(long)]
        ignore_absent: bool,
        #[command(flatten)]
        at: StateDir,
    },
    /// Stop trusting a root.
    RemoveRoot {
        /// The first digits of its name.
        root: String,
        /// Leave out proxies that are not connected: their certificates will no longer be trusted.
        #[arg(long)]
        ignore_absent: bool,
        #[command(flatten)]
        at: StateDir,
    },
}

#[derive(Debug, Args)]
pub struct StateDir {
    /// The state directory of the running control plane.
    #[arg(long, env = "OUTRIGGER_STATE_DIR", value_name = "DIR")]
    pub state_dir: PathBuf,
}

/// How a command finds its cluster.
#[derive(Clone, Debug, Default, Args)]
pub struct ClusterOptions {
    /// The kubeconfig file; unset in a pod: its own cluster.
    #[arg(long, env = "OUTRIGGER_KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,

    /// Context of the kubeconfig file. Unset: its current context.
    #[arg(long, env = "OUTRIGGER_KUBE_CONTEXT", value_name = "NAME")]
    pub kube_context: Option<String>,

    /// The control plane's namespace.
    #[arg(long, env = "OUTRIGGER_KUBE_NAMESPACE", value_name = "NAME")]
    pub kube_namespace: Option<String>,
}

impl ClusterOptions {
    pub fn cluster(&self) -> ApiServerOptions {
        ApiServerOptions { kubeconfig: self.kubeconfig.clone(), context: self.kube_context.clone() }
    }
}
