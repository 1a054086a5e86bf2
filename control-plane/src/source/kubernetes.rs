//! The API of a Kubernetes cluster as a source: watches every kind that the mesh is made of.
//!
//! One task watches each kind ([`watch`]), starting with those that every cluster has; [`crds`] starts and
//! stops the others as their definitions come and go. What they see goes through one channel to one task
//! ([`keep`]), which puts everything that has come meanwhile in force together: a burst is a few commits, and a
//! single change does not wait. Nothing of an object is kept here but its name and generation. While the API
//! server is away everything stays as it was; when it is back, what is gone is found by listing anew, and what
//! has not changed changes nothing.

mod crds;
mod keep;
pub mod pods;
mod resources;
mod watch;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use outrigger_core::address::LocalEndpoints;
use tokio::sync::{mpsc, watch as cell};
use tokio::task::JoinHandle;
use tokio::time::Instant;

pub use keep::Generations;
use pods::Pods;

use crate::metrics::Metrics;
use crate::problems::Problems;
use crate::publish::Publisher;

/// Observations between the watches and the task that puts them in force.
const QUEUE: usize = 1024;
/// How long the API server may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// Between two attempts to reach it at the start.
const AGAIN: Duration = Duration::from_millis(500);
/// How often it is said what has not been listed yet.
const PATIENCE: Duration = Duration::from_secs(5);

/// How the API server is found: in a cluster by the pod's own account, else by a kubeconfig file.
#[derive(Clone, Debug, Default)]
pub struct ApiServerOptions {
    /// None: KUBECONFIG, or ~/.kube/config, and inside a pod its own account.
    pub kubeconfig: Option<PathBuf>,
    /// None: the file's current one.
    pub context: Option<String>,
}

/// Why no client could be made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("{path}: {error}")]
    File { path: String, error: kube::config::KubeconfigError },
    #[error("no cluster found: {0}; set --kubeconfig, or run in a pod")]
    Nowhere(kube::config::InferConfigError),
    #[error("{0}")]
    Client(kube::Error),
}

impl ApiServerOptions {
    /// Makes a client; whether anybody answers is found out later.
    pub async fn client(&self) -> Result<Client, ConnectError> {
        let options =
            KubeConfigOptions { context: self.context.clone(), ..KubeConfigOptions::default() };
        let mut config = match (&self.kubeconfig, &self.context) {
            (Some(path), _) => {
                let failed = |error| ConnectError::File { path: path.display().to_string(), error };
                let file = Kubeconfig::read_from(path).map_err(failed)?;
                Config::from_custom_kubeconfig(file, &options).await.map_err(failed)?
            }
            (None, Some(context)) => {
                let failed =
                    |error| ConnectError::File { path: format!("context {context}"), error };
                Config::from_kubeconfig(&options).await.map_err(failed)?
            }
            (None, None) => Config::infer().await.map_err(ConnectError::Nowhere)?,
        };
        config.connect_timeout = Some(CONNECT);
        Client::try_from(config).map_err(ConnectError::Client)
    }
}

/// Completes when the API server answers, and says now and then that it does not.
pub async fn reachable(client: &Client) {
    let mut said: Option<Instant> = None;
    loop {
        let asked = tokio::time::timeout(CONNECT, client.apiserver_version()).await;
        let problem = match asked {
            Ok(Ok(version)) => {
                tracing::info!(version = version.git_version, "the API server answers");
                return;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer for {CONNECT:?}"),
        };
        if said.is_none_or(|said| said.elapsed() >= PATIENCE) {
            said = Some(Instant::now());
            tracing::warn!(problem, "waiting for the API server");
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// A running source; dropped, it watches no more.
#[derive(Debug)]
pub struct Kubernetes {
    pub generations: Arc<Generations>,
    pub pods: Arc<Pods>,
    synced: cell::Receiver<SyncState>,
    tasks: Vec<JoinHandle<()>>,
}

/// How much of the cluster has been seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct SyncState {
    /// Everything that there was at the beginning is in force.
    is_done: bool,
    /// Kinds that have not been listed yet.
    missing: Vec<String>,
}

impl Kubernetes {
    pub fn start(
        client: Client,
        publisher: Arc<Publisher>,
        problems: Arc<Problems>,
        metrics: Arc<Metrics>,
        local: LocalEndpoints,
    ) -> Self {
        let (observations, receiver) = mpsc::channel(QUEUE);
        let (told, synced) = cell::channel(SyncState::default());
        let generations = Arc::new(Generations::default());
        let pods = Arc::new(Pods::default());
        let keeper =
            keep::Keeper::new(publisher, problems, metrics.clone(), generations.clone(), told);
        let watcher = watch::WatchContext {
            client,
            generations: generations.clone(),
            pods: pods.clone(),
            observations,
            metrics,
            local,
        };
        let tasks = vec![tokio::spawn(keeper.run(receiver)), tokio::spawn(crds::run(watcher))];
        Self { generations, pods, synced, tasks }
    }

    /// Completes when all objects of the cluster are in force; says now and then what it waits for.
    pub async fn synced(&self) {
        let mut synced = self.synced.clone();
        loop {
            let done = synced.wait_for(|synced| synced.is_done);
            match tokio::time::timeout(PATIENCE, done).await {
                // An error means that the source has ended, which only happens with the process.
                Ok(_) => return,
                Err(_) => {
                    let missing = self.synced.borrow().missing.join(", ");
                    tracing::warn!(
                        missing,
                        "waiting for the API server to list all objects of the mesh"
                    );
                }
            }
        }
    }
}

impl Drop for Kubernetes {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}
