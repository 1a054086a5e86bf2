//! `outrigger-cni install`: the process of the DaemonSet, from its start to its end.
//!
//! The order matters: first questions are answered, then the plugin comes into the node's configuration; at the end it
//! is taken out, or, as long as the DaemonSet is there, left to the daemon that comes next.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use outrigger_redirect::Backend;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::confdir::ConfDir;
use crate::conflist::PLUGIN;
use crate::http;
use crate::installer::{Installation, Installer};
use crate::metrics::{Metrics, Part};
use crate::owner::Owner;
use crate::pods::Pods;
use crate::repair::{Repair, recorder};
use crate::server::{Server, Socket, serve};

/// Pods that wait to be looked at; those that do not fit are found by the next round.
const SUSPECTS: usize = 256;
/// How long the program outlives its entry.
const LAST_CALLS: Duration = Duration::from_secs(1);

/// Where the node's folders are mounted.
#[derive(Clone, Debug, Args)]
pub struct Folders {
    /// The folder of the node's CNI plugins
    #[arg(long, env = "OUTRIGGER_CNI_BIN_DIR", default_value = "/opt/cni/bin", value_name = "DIR")]
    bin_dir: PathBuf,

    /// The folder of the node's network configurations
    #[arg(
        long,
        env = "OUTRIGGER_CNI_CONF_DIR",
        default_value = "/etc/cni/net.d",
        value_name = "DIR"
    )]
    conf_dir: PathBuf,

    /// The configuration to use instead of the first by name
    #[arg(long, env = "OUTRIGGER_CNI_CONF_NAME", value_name = "FILE")]
    conf_name: Option<String>,

    /// Leave the program on the node when the plugin is taken out: CRI-O calls it for pods that started with it
    #[arg(long, env = "OUTRIGGER_CNI_KEEP_PROGRAM")]
    keep_program: bool,
}

impl Folders {
    /// The plugin finds the daemon at `socket`.
    pub fn installation(self, socket: &str) -> Installation {
        let entry = json!({"type": PLUGIN, "socket": socket}).to_string();
        Installation {
            programs: self.bin_dir,
            config: ConfDir { folder: self.conf_dir, name: self.conf_name, entry },
            keep_program: self.keep_program,
            known: Arc::default(),
        }
    }
}

/// Keep the plugin on this node, answer it, and redirect the pods that it has missed.
#[derive(Clone, Debug, Args)]
pub struct Install {
    #[command(flatten)]
    folders: Folders,

    /// Where the plugin asks; its folder must be there
    #[arg(
        long,
        env = "OUTRIGGER_CNI_SOCKET",
        default_value = "/run/outrigger-cni/cni.sock",
        value_name = "FILE"
    )]
    socket: PathBuf,

    /// The same path on the node, where it is another one
    #[arg(long, env = "OUTRIGGER_CNI_HOST_SOCKET", value_name = "FILE")]
    host_socket: Option<PathBuf>,

    /// The node's /proc, where pods that were missed are found
    #[arg(long, env = "OUTRIGGER_CNI_PROC", default_value = "/proc", value_name = "DIR")]
    proc: PathBuf,

    /// The name of this node
    #[arg(long, env = "OUTRIGGER_CNI_NODE", value_name = "NAME")]
    node: String,

    /// The DaemonSet of this pod: once it is gone, the end of this process takes the plugin out. Never unless set
    #[arg(long, env = "OUTRIGGER_CNI_DAEMONSET", value_name = "NAMESPACE/NAME", value_parser = object_name)]
    daemonset: Option<(String, String)>,

    /// What carries the rules
    #[arg(long, env = "OUTRIGGER_CNI_BACKEND", value_enum, default_value_t = Backend::Auto)]
    backend: Backend,

    /// Where /healthz, /ready and /metrics are served
    #[arg(long, env = "OUTRIGGER_CNI_LISTEN", default_value = "[::]:4785", value_name = "ADDRESS")]
    listen: SocketAddr,

    /// Filter for the log, as in info or outrigger_cni=debug
    #[arg(long, env = "OUTRIGGER_CNI_LOG", default_value = "info", value_name = "FILTER")]
    pub log: String,
}

fn object_name(text: &str) -> Result<(String, String), String> {
    let parts = text.split_once('/').filter(|(a, b)| !a.is_empty() && !b.is_empty());
    let (namespace, name) = parts.ok_or("must be NAMESPACE/NAME")?;
    Ok((namespace.to_owned(), name.to_owned()))
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// If it cannot begin, as text for a person.
pub async fn run(options: Install) -> Result<(), String> {
    let mut terminate = signal(SignalKind::terminate()).map_err(|error| error.to_string())?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|error| error.to_string())?;
    let metrics = Arc::new(Metrics::new());
    let listener = TcpListener::bind(options.listen).await;
    let listener = listener.map_err(|error| format!("--listen {}: {error}", options.listen))?;
    tokio::spawn(http::serve(listener, metrics.clone()));
    let client = kube::Client::try_default().await;
    let client = client.map_err(|error| format!("there is no way to an API server: {error}"))?;

    let owner = options
        .daemonset
        .clone()
        .map(|(namespace, name)| Arc::new(Owner::new(client.clone(), &namespace, name)));
    if let Some(owner) = owner.clone() {
        tokio::spawn(async move { owner.watch().await });
    }
    let pods = Arc::new(Pods::new(client.clone(), options.node.clone()));
    let (to_repair, suspects) = mpsc::channel(SUSPECTS);
    let (watching, counting) = (pods.clone(), metrics.clone());
    tokio::spawn(async move { watching.watch(to_repair, &counting).await });
    let repair = Repair {
        pods: pods.clone(),
        metrics: metrics.clone(),
        backend: options.backend,
        proc: options.proc.clone(),
        recorder: recorder(client, &options.node),
    };
    tokio::spawn(repair.run(suspects));

    let path = options.socket.display().to_string();
    let socket =
        Socket::bind(&options.socket).map_err(|error| format!("--socket {path}: {error}"))?;
    let socket = Arc::new(socket);
    metrics.set(Part::Socket, Ok(()));
    let (backend, proc) = (options.backend, options.proc);
    let server = Arc::new(Server { pods, metrics: metrics.clone(), backend, proc });
    let host_socket = options.host_socket.unwrap_or(options.socket);
    let installation = options.folders.installation(&host_socket.display().to_string());
    let installer = Installer::start(installation.clone(), socket.clone(), metrics);
    let installer = installer.map_err(|error| format!("no thread: {error}"))?;
    let ended = tokio::select! {
        ended = serve(&socket, server) => ended.map_err(|error| format!("--socket {path}: {error}")),
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    };
    let stopped = tokio::task::spawn_blocking(move || installer.stop()).await;
    stopped.map_err(|error| error.to_string())?;
    finish(owner, installation).await;
    ended
}

/// Takes the plugin out, if that is meant.
async fn finish(owner: Option<Arc<Owner>>, installation: Installation) {
    let is_uninstalled = match owner {
        Some(owner) => owner.is_uninstalled().await,
        None => false,
    };
    if !is_uninstalled {
        return tracing::info!("stopping; the plugin stays for the daemon that comes next");
    }
    let taken_out = installation.take_out();
    // A runtime that has read the entry just before runs the program just after.
    tokio::time::sleep(LAST_CALLS).await;
    match taken_out.and_then(|files| installation.remove_program().map(|()| files)) {
        Ok(files) => tracing::info!(?files, "uninstalled: the plugin is taken out"),
        Err(error) => tracing::error!(%error, "the plugin could not be taken out"),
    }
}
