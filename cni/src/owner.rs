//! Whether this daemon ends because it is uninstalled, or only for now.
//!
//! A rollout, an eviction and a crash leave the DaemonSet where it is: the plugin stays in the node's configuration, so
//! that there is no moment in which pods start past it. Only when the DaemonSet is gone, or is being deleted, is
//! the plugin taken out. Helm may have taken this daemon's rights away by then, and it cannot ask any more: what
//! it has been told before counts, for a watch that is open outlives the right to open it. In doubt it stays,
//! which is harmless: without a daemon the plugin lets every pod through.

use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::apps::v1::DaemonSet;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::time::timeout;

/// How long the end waits for an answer, and then once more for what the watch has not told yet.
const LIMIT: Duration = Duration::from_secs(3);

/// The DaemonSet that this daemon belongs to.
pub struct Owner {
    api: Api<DaemonSet>,
    name: String,
    seen_gone: watch::Sender<bool>,
}

impl Owner {
    pub fn new(client: Client, namespace: &str, name: String) -> Self {
        let api = Api::namespaced(client, namespace);
        Self { api, name, seen_gone: watch::Sender::new(false) }
    }

    /// Watches for ever.
    pub async fn watch(&self) {
        let config = watcher::Config::default().fields(&format!("metadata.name={}", self.name));
        let mut stream =
            std::pin::pin!(watcher::watcher(self.api.clone(), config).default_backoff());
        let mut is_listed = false;
        while let Some(event) = stream.next().await {
            let gone = match event {
                Ok(Event::Init) => {
                    is_listed = false;
                    continue;
                }
                Ok(Event::InitApply(set) | Event::Apply(set)) => {
                    is_listed = true;
                    is_going(&set)
                }
                Ok(Event::InitDone) => !is_listed,
                Ok(Event::Delete(_)) => true,
                // What was known stays known.
                Err(_) => continue,
            };
            self.seen_gone.send_replace(gone);
        }
    }

    /// Asked once, at the end.
    pub async fn is_uninstalled(&self) -> bool {
        match timeout(LIMIT, self.api.get_opt(&self.name)).await {
            Ok(Ok(set)) => return set.is_none_or(|set| is_going(&set)),
            Ok(Err(error)) => {
                tracing::info!(%error, "the DaemonSet cannot be asked for: what the watch sees counts");
            }
            Err(_) => {
                tracing::info!("the API server does not answer: what the watch has seen counts");
            }
        }
        let mut seen = self.seen_gone.subscribe();
        matches!(timeout(LIMIT, seen.wait_for(|gone| *gone)).await, Ok(Ok(_)))
    }
}

fn is_going(set: &DaemonSet) -> bool {
    set.metadata.deletion_timestamp.is_some()
}
