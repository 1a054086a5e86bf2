//! Looks after the proxies of pods: names those that have none, an old one, or one that nothing comes to, in Events and
//! numbers, and where that is wanted replaces old ones without restarting the app.
//!
//! One replica does, the one that holds the lease; each counts what it sees.

use std::collections::HashSet;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Api, Client};
use outrigger_upgrade::{Step, replace, step};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

use super::writer::CONTROLLER;
use crate::metrics::{Metrics, StateLabel};
use crate::replica::Replica;
use crate::source::kubernetes::pods::{Finding, FindingKind, Pods, Review};
use crate::store::StoreError;

/// Of the replica that does.
const LEASE: &str = "pods";
/// Events that are written at once; the others a moment later.
const AT_ONCE: usize = 20;
/// How long the API server may take for one.
const LIMIT: Duration = Duration::from_secs(5);
/// How long one pod may take to come back with another proxy.
const UPGRADE: Duration = Duration::from_secs(120);
/// Until the next is tried after one that did not come back: whatever is wrong, it is not to go through the whole mesh.
const AFTER_FAILURE: Duration = Duration::from_secs(600);

pub struct PodController {
    client: Client,
    pods: Arc<Pods>,
    replica: Arc<Replica>,
    metrics: Arc<Metrics>,
    recorder: Recorder,
    /// Of the proxies that new pods get.
    image: String,
    /// How many pods may be on their way to another proxy at one time; none: that is left to people.
    upgrades: Option<NonZeroU16>,
}

impl std::fmt::Debug for PodController {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PodController")
    }
}

/// What has been said and begun.
#[derive(Default)]
struct Course {
    /// Found the last time: what is still so is said.
    before: HashSet<(String, FindingKind)>,
    said: HashSet<(String, FindingKind)>,
    /// By uid.
    upgrading: HashSet<String>,
    upgrades: JoinSet<(Step, Result<Duration, String>)>,
    /// No upgrade is begun before.
    paused: Option<Instant>,
}

impl PodController {
    pub fn new(
        client: Client,
        pods: Arc<Pods>,
        replica: Arc<Replica>,
        metrics: Arc<Metrics>,
        image: String,
        upgrades: Option<NonZeroU16>,
    ) -> Self {
        let instance = Some(replica.name.as_str().to_owned());
        let reporter = Reporter { controller: CONTROLLER.to_owned(), instance };
        let recorder = Recorder::new(client.clone(), reporter);
        Self { client, pods, replica, metrics, recorder, image, upgrades }
    }

    /// Until dropped.
    pub async fn run(self) {
        let mut course = Course::default();
        let mut tick = tokio::time::interval(self.replica.timing.renew);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = tick.tick() => {
                    let review = self.pods.review(&self.image);
                    self.count(&review);
                    if !self.leads().await {
                        course = Course::default();
                        continue;
                    }
                    self.tell(&mut course, &review).await;
                    self.upgrade(&mut course, &review).await;
                }
                Some(Ok((step, result))) = course.upgrades.join_next() => {
                    self.upgraded(&mut course, &step, result).await;
                }
            }
        }
    }

    fn count(&self, review: &Review) {
        let of = |state: &'static str| self.metrics.pods.get_or_create_owned(&StateLabel { state });
        of("Meshed").set(review.meshed as i64);
        for kind in FindingKind::ALL {
            let count = review.findings.iter().filter(|finding| finding.kind == kind).count();
            of(kind.as_str()).set(count as i64);
        }
    }

    async fn leads(&self) -> bool {
        let replica = self.replica.clone();
        let acquired = tokio::task::spawn_blocking(move || {
            replica.store.acquire(LEASE, replica.name.as_str(), replica.timing.expiry)
        });
        match acquired.await {
            Ok(Ok(())) => true,
            Ok(Err(StoreError::Leased { .. })) | Err(_) => false,
            Ok(Err(error)) => {
                tracing::warn!(%error, "cannot find out who looks after pods");
                false
            }
        }
    }

    /// Says what has been so for a while and has not been said.
    async fn tell(&self, course: &mut Course, review: &Review) {
        let key = |finding: &Finding| (finding.uid.clone(), finding.kind);
        let now: HashSet<_> = review.findings.iter().map(key).collect();
        course.said.retain(|said| now.contains(said));
        let due = |finding: &&Finding| {
            let key = key(finding);
            course.before.contains(&key) && !course.said.contains(&key)
        };
        let due: Vec<&Finding> = review.findings.iter().filter(due).take(AT_ONCE).collect();
        for finding in due {
            if self.event(finding, finding.kind.as_str(), &finding.message).await {
                course.said.insert(key(finding));
            }
        }
        course.before = now;
    }

    /// Gives whether it was written.
    async fn event(&self, of: &Finding, reason: &str, note: &str) -> bool {
        let Finding { namespace, pod, uid, .. } = of;
        tracing::warn!(pod = format!("{namespace}/{pod}"), reason, "{note}");
        let reference = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            namespace: Some(namespace.clone()),
            name: Some(pod.clone()),
            uid: Some(uid.clone()),
            ..ObjectReference::default()
        };
        let event = Event {
            type_: EventType::Warning,
            reason: reason.to_owned(),
            // The API's own bound.
            note: Some(note.chars().take(1000).collect()),
            action: "Proxy".to_owned(),
            secondary: None,
        };
        match tokio::time::timeout(LIMIT, self.recorder.publish(&event, &reference)).await {
            Ok(Ok(())) => true,
            Ok(Err(error)) => {
                tracing::warn!(%error, pod, "could not write an Event");
                false
            }
            Err(_) => false,
        }
    }

    /// Begins as many as may be on their way.
    async fn upgrade(&self, course: &mut Course, review: &Review) {
        let Some(most) = self.upgrades else { return };
        if course.paused.is_some_and(|until| Instant::now() < until) {
            return;
        }
        let outdated = review.findings.iter().filter(|one| one.kind == FindingKind::ProxyOutdated);
        for finding in outdated {
            if course.upgrades.len() >= usize::from(most.get()) {
                return;
            }
            if course.upgrading.contains(&finding.uid) {
                continue;
            }
            let api = Api::<Pod>::namespaced(self.client.clone(), &finding.namespace);
            let pod = match tokio::time::timeout(LIMIT, api.get_opt(&finding.pod)).await {
                Ok(Ok(Some(pod))) => pod,
                Ok(Ok(None)) => continue,
                // The API server is away: nothing is begun.
                Ok(Err(_)) | Err(_) => return,
            };
            // One that is not ready comes later.
            let Ok(step) = step(&pod, &self.image) else { continue };
            course.upgrading.insert(step.uid.clone());
            let (client, image) = (self.client.clone(), self.image.clone());
            course.upgrades.spawn(async move {
                let result = replace(&client, &step, &image, UPGRADE).await;
                (step, result)
            });
        }
    }

    async fn upgraded(&self, course: &mut Course, step: &Step, result: Result<Duration, String>) {
        course.upgrading.remove(&step.uid);
        match result {
            Ok(took) => {
                tracing::info!(
                    pod = step.name(),
                    image = self.image,
                    seconds = took.as_secs_f64(),
                    "has another proxy"
                );
            }
            Err(why) => {
                course.paused = Some(Instant::now() + AFTER_FAILURE);
                let finding = Finding {
                    namespace: step.namespace.clone(),
                    pod: step.pod.clone(),
                    uid: step.uid.clone(),
                    kind: FindingKind::ProxyOutdated,
                    message: String::new(),
                };
                let minutes = AFTER_FAILURE.as_secs() / 60;
                let note = format!(
                    "its proxy was replaced by {} and the pod did not come back: {why}; no other pod is begun for {minutes} \
                     minutes. It gets its old proxy back by kubectl -n {} set image pod/{} outrigger-proxy={}",
                    self.image, step.namespace, step.pod, step.image
                );
                self.event(&finding, "UpgradeFailed", &note).await;
            }
        }
    }
}
