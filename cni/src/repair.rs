//! Pods that the plugin has missed: they started before it was there or while the daemon was away, or somebody has
//! taken the rules away since.
//!
//! Each pod of the mode `cni` that has a network is looked at once when it appears, and all of them now and then. One
//! without rules gets them: its init container, which has been failing, then succeeds, and an app that
//! runs already has its new connections redirected. What cannot be repaired is named by an Event on the pod.

use std::collections::HashSet;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use outrigger_redirect::Backend;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use crate::metrics::{Metrics, ResultLabel};
use crate::namespaces::{self, NamespaceError, Oldest};
use crate::pods::{Known, Pods, Wish};
use crate::wire::sentence;

/// How often all pods are looked at.
const ROUND: Duration = Duration::from_secs(30);

/// What a look at a pod has found.
#[derive(Debug)]
enum Found {
    Redirected,
    Repaired,
    /// It has no process by now, or none yet.
    NoProcess,
    Failed(String),
}

pub struct Repair {
    pub pods: Arc<Pods>,
    pub metrics: Arc<Metrics>,
    pub backend: Backend,
    /// The node's `/proc`.
    pub proc: PathBuf,
    pub recorder: Recorder,
}

/// Writes Events of this program on this node.
pub fn recorder(client: Client, node: &str) -> Recorder {
    let controller = "outrigger.dev/cni".to_owned();
    Recorder::new(client, Reporter { controller, instance: Some(node.to_owned()) })
}

impl Repair {
    /// Looks for ever.
    pub async fn run(self, mut suspects: mpsc::Receiver<Known>) {
        let repair = Arc::new(self);
        let mut rounds = tokio::time::interval(ROUND);
        rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // Uids of pods that were well, until the next round.
        let mut well = HashSet::new();
        loop {
            tokio::select! {
                _ = rounds.tick() => {
                    well.clear();
                    let mut wrong = 0;
                    let candidates = repair.pods.candidates();
                    let processes = match candidates.is_empty() {
                        true => Arc::new(Ok(Oldest::new())),
                        false => repair.processes().await,
                    };
                    for pod in candidates {
                        wrong += i64::from(!repair.look_at(&pod, &processes, &mut well).await);
                    }
                    repair.metrics.not_redirected.set(wrong);
                }
                pod = suspects.recv() => match pod {
                    Some(pod) if !well.contains(&pod.uid) => {
                        let processes = repair.processes().await;
                        repair.look_at(&pod, &processes, &mut well).await;
                    }
                    Some(_) => {}
                    None => return,
                },
            }
        }
    }

    /// One look for all pods: a node may have many processes, and users of pods decide how many.
    async fn processes(&self) -> Arc<Result<Oldest, NamespaceError>> {
        let proc = self.proc.clone();
        let found = tokio::task::spawn_blocking(move || namespaces::oldest(&proc)).await;
        let ended = |error| Err(NamespaceError::Enter(io::Error::other(error)));
        Arc::new(found.unwrap_or_else(ended))
    }

    /// Whether the pod is redirected now.
    async fn look_at(
        self: &Arc<Self>,
        pod: &Known,
        processes: &Arc<Result<Oldest, NamespaceError>>,
        well: &mut HashSet<String>,
    ) -> bool {
        let (this, known, processes) = (self.clone(), pod.clone(), processes.clone());
        let found = tokio::task::spawn_blocking(move || this.look(&known, &processes)).await;
        let found = found.unwrap_or_else(|error| Found::Failed(error.to_string()));
        match found {
            Found::Redirected => {}
            // The next round looks again.
            Found::NoProcess => return true,
            Found::Repaired => {
                self.count("repaired");
                let note = "the CNI plugin had missed this pod: its traffic is redirected now";
                self.say(pod, EventType::Normal, "RedirectionRepaired", note).await;
            }
            Found::Failed(why) => {
                self.count("failed");
                let note = format!(
                    "traffic of this pod does not go through its proxy, and cannot be made to: {why}; \
                     delete the pod to start it anew"
                );
                self.say(pod, EventType::Warning, "NotRedirected", &note).await;
                return false;
            }
        }
        well.insert(pod.uid.clone());
        true
    }

    fn look(&self, pod: &Known, processes: &Result<Oldest, NamespaceError>) -> Found {
        let wish = match &pod.wish {
            Wish::Nothing => return Found::Redirected,
            Wish::Unreadable(why) => return Found::Failed(why.clone()),
            Wish::Redirect(wish) => wish,
        };
        let processes = match processes {
            Ok(processes) => processes,
            Err(why) => return Found::Failed(sentence(&why.to_string())),
        };
        let repaired = || -> Result<Found, NamespaceError> {
            let Some(namespace) = namespaces::find(&self.proc, processes, &pod.uid)? else {
                return Ok(Found::NoProcess);
            };
            if namespaces::is_redirected(&namespace)? {
                return Ok(Found::Redirected);
            }
            namespaces::redirect(&namespace, wish, self.backend)?;
            Ok(Found::Repaired)
        };
        repaired().unwrap_or_else(|why| Found::Failed(sentence(&why.to_string())))
    }

    fn count(&self, result: &'static str) {
        self.metrics.repairs.get_or_create(&ResultLabel { result }).inc();
    }

    async fn say(&self, pod: &Known, type_: EventType, reason: &str, note: &str) {
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        let (namespace, name) = (text(&pod.reference.namespace), text(&pod.reference.name));
        tracing::warn!(namespace, name, uid = pod.uid, reason, note, "a pod was missed");
        let event = Event {
            type_,
            reason: reason.to_owned(),
            note: Some(note.to_owned()),
            action: "Redirect".to_owned(),
            secondary: None,
        };
        if let Err(error) = self.recorder.publish(&event, &pod.reference).await {
            tracing::warn!(%error, "an Event could not be written");
        }
    }
}
